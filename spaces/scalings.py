"""Compound scaling: several parameters of a network that grow together, by one coefficient.

A space's `scalings` name factors; a network of scaling s and coefficient c has each parameter p at base(p) * s(p) ** c
(EfficientNet, arXiv 1905.11946, equation 3, where factors for depth, width and resolution with d * w^2 * r^2 of about 2
double the mult-adds with each step of the coefficient).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mnet_search.models.tables import nearest
from mnet_search.spaces.schema import Parameter, Range, SpaceFile, Value
from mnet_search.spaces.yamlfile import Source

SCALING = ("scaling", "coefficient")  # the parameters that choose the factors, and their power
MOST = 1e3  # by which anything is multiplied or divided
WHOLE = ("resolution",)  # rounded to the nearest whole number


def scaled(scalings: Mapping[str, Mapping[str, float]], params: Mapping[str, Value]) -> Mapping[str, Value]:
    """The assignment with every scaled parameter multiplied, and without the two that say how."""
    if not scalings or not set(SCALING) <= params.keys():
        return params
    found = {name: value for name, value in params.items() if name not in SCALING}
    for name, factor in scalings[str(params["scaling"])].items():
        value = float(found[name]) * factor ** float(params["coefficient"])
        found[name] = round(value) if name in WHOLE else round(value, 6)
    return found


def check_scalings(file: SpaceFile, source: Source) -> None:
    """Raises SpaceError for scalings that are not chosen by parameters, or of parameters that are no numbers."""
    if not file.scalings:
        return
    for name in SCALING:
        if name not in file.parameters:
            raise source.error(("scalings",), f"they need a parameter {name!r}; add it to parameters")
        if file.parameters[name].when:
            raise source.error(("parameters", name, "when"), "every network is scaled somehow; leave the condition out")
    if not _numbers(file.parameters["coefficient"]):
        raise source.error(("parameters", "coefficient"), "it is the power of the factors; write numbers, or a range")
    for value in file.parameters["scaling"].grid() or []:
        if value not in file.scalings:
            known = f"(known: {', '.join(file.scalings)})"
            hint = nearest(str(value), file.scalings)
            raise source.error(("parameters", "scaling"), f"unknown scaling {value!r}{hint} {known}")
    for scaling, factors in file.scalings.items():
        for name in factors:
            _check_scaled(file, source, scaling, name)


def _check_scaled(file: SpaceFile, source: Source, scaling: str, name: str) -> None:
    path = ("scalings", scaling, name)
    parameter = file.parameters.get(name)
    if name in SCALING or parameter is None:
        raise source.error(path, f"no parameter {name!r} to scale; give it a value in parameters")
    if parameter.when or not _numbers(parameter):
        raise source.error(path, f"{name} is not always a number, so it has no multiple; give it numbers alone")
    factor = file.scalings[scaling][name]
    for power in _ends(file.parameters["coefficient"]):
        if abs(power * math.log(factor)) > math.log(MOST):
            raise source.error(path, f"{factor:g} to the power of {power:g} is no size of a network; lower one of them")


def _ends(parameter: Parameter) -> list[float]:
    values = parameter.grid() if not isinstance(parameter, Range) else [parameter.min, parameter.max]
    return [float(value) for value in values or []]


def _numbers(parameter: Parameter) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in parameter.grid() or [0.0])
