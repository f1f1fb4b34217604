"""Spaces that list their networks one by one, where a product of values would hold others that nobody asked for."""

from __future__ import annotations

from collections.abc import Mapping

from mnet_search.models.tables import nearest
from mnet_search.spaces.schema import Parameter, Range, Value, conditions


def active(parameter: Parameter, chosen: Mapping[str, Value]) -> bool:
    """Whether a parameter exists under the values chosen so far."""
    return all(other in chosen and chosen[other] in values for other, values in conditions(parameter))


def complete(parameters: Mapping[str, Parameter], given: Mapping[str, Value]) -> dict[str, Value]:
    """An assignment with the parameters added that have a single value, in the space's order. Raises ValueError saying
    what it lacks, or has that the space does not.
    """
    for name in given:
        if name not in parameters:
            known = ", ".join(parameters)
            raise ValueError(f"no parameter {name!r}{nearest(name, parameters)} (the space has: {known})")
    chosen: dict[str, Value] = {}
    for name, parameter in parameters.items():
        if not active(parameter, chosen):
            continue
        values = parameter.grid()
        if name in given:
            chosen[name] = _member(name, given[name], parameter)
        elif values is not None and len(values) == 1:
            chosen[name] = values[0]
        else:
            raise ValueError(f"it lacks {name}, which may be {_of(parameter)}")
    for name in given:
        if name not in chosen:
            raise ValueError(f"{name} does not exist there, by its `when`; leave it out")
    return chosen


def _member(name: str, value: Value, parameter: Parameter) -> Value:
    """The value as the parameter has it, so that 1 is the 1.0 of its list."""
    for known in parameter.grid() or []:
        if known == value and isinstance(known, bool) == isinstance(value, bool):
            return known
    number = not isinstance(value, bool | str)
    if isinstance(parameter, Range) and parameter.grid() is None and number and _between(parameter, float(value)):
        return value
    raise ValueError(f"{name} is never {value!r}; it may be {_of(parameter)}")


def _between(limits: Range, value: float) -> bool:
    return limits.min <= value <= limits.max


def _of(parameter: Parameter) -> str:
    grid = parameter.grid()
    if isinstance(parameter, Range) and (grid is None or len(grid) > 8):
        return f"from {parameter.min:g} to {parameter.max:g}"
    return ", ".join(map(str, grid or []))
