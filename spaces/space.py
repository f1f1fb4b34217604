"""A space: the set of networks that a YAML describes, with its objectives and budgets. Sampling, enumeration, counting,
hashing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mnet_search.models.arch import Arch, MnetError, OptionError
from mnet_search.models.complexity import costs
from mnet_search.models.costs import Costs
from mnet_search.models.families import create
from mnet_search.models.stages import Options
from mnet_search.spaces.checks import check_conditions, check_families, check_names
from mnet_search.spaces.schema import COST_NAMES, Choice, Parameter, Range, SpaceFile, Value, conditions
from mnet_search.spaces.yamlfile import Source, SpaceError, read, validate

Params = dict[str, Value]
# What decides whether two runs belong to one study. How far and how fast to search (search, resources) may change
# between runs.
IDENTITY = ("family", "blocks", "data", "parameters", "objectives", "constraints", "training")
SURVEY_LIMIT = 20_000


@dataclass(frozen=True)
class Space:
    """A checked space. `fixed` holds the options that the data decides (classes, in_channels)."""

    name: str
    file: SpaceFile
    source: Source = field(repr=False, compare=False)
    fixed: Mapping[str, Value] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters, each after those that its `when` speaks of."""
        ordered: dict[str, Parameter] = {}
        waiting = dict(self.file.parameters)
        while waiting:
            ready = [n for n, p in waiting.items() if all(other in ordered for other, _ in conditions(p))]
            if not ready:
                name = next(iter(waiting))
                raise self.source.error(
                    ("parameters", name, "when"), "these conditions depend on each other in a circle"
                )
            ordered |= {name: waiting.pop(name) for name in ready}
        return ordered

    def for_data(self, *, classes: int, in_channels: int) -> Space:
        """The same space with the network's ends fitted to the data."""
        return replace(self, fixed={**self.fixed, "classes": classes, "in_channels": in_channels})

    def active(self, parameter: Parameter, chosen: Mapping[str, Value]) -> bool:
        """Whether a parameter exists under the values chosen so far."""
        return all(other in chosen and chosen[other] in values for other, values in conditions(parameter))

    def codes(self) -> Iterator[Params]:
        """Every assignment of values, conditionals resolved. Raises SpaceError where a range is continuous."""
        names = list(self.parameters)
        grids = [self.values(name) for name in names]
        if not any(parameter.when for parameter in self.parameters.values()):
            return (dict(zip(names, code, strict=True)) for code in itertools.product(*grids))

        def extend(index: int, chosen: Params) -> Iterator[Params]:
            if index == len(names):
                yield dict(chosen)
            elif not self.active(self.parameters[names[index]], chosen):
                yield from extend(index + 1, chosen)
            else:
                for value in self.values(names[index]):
                    yield from extend(index + 1, {**chosen, names[index]: value})

        return extend(0, {})

    def values(self, name: str) -> list[Value]:
        """Every value of a parameter. Raises SpaceError where it is continuous."""
        grid = self.parameters[name].grid()
        if grid is None:
            raise self.source.error(("parameters", name), "a continuous range cannot be enumerated; give it a step")
        return grid

    @cached_property
    def n_codes(self) -> int | None:
        """How many assignments there are; None where a range is continuous."""
        sizes: dict[str, int] = {}
        for name, parameter in self.parameters.items():
            grid = parameter.grid()
            if grid is None:
                return None
            sizes[name] = len(grid)
        controllers = {other for p in self.parameters.values() for other, _ in conditions(p)}

        def count(names: list[str], chosen: Params) -> int:
            if not names:
                return 1
            name, rest = names[0], names[1:]
            if not self.active(self.parameters[name], chosen):
                return count(rest, chosen)
            if name not in controllers:
                return sizes[name] * count(rest, chosen)
            return sum(count(rest, {**chosen, name: value}) for value in self.values(name))

        return count(list(self.parameters), {})

    def sample(self, rng: random.Random) -> Params:
        """One assignment, every active parameter drawn evenly (in the logarithm where the range says so)."""
        chosen: Params = {}
        for name, parameter in self.parameters.items():
            if self.active(parameter, chosen):
                chosen[name] = _draw(parameter, rng)
        return chosen

    @cached_property
    def families(self) -> list[str]:
        """The families that the networks are of."""
        return [self.file.family] if self.file.family is not None else [str(v) for v in self.values("family")]

    @cached_property
    def _places(self) -> dict[str, dict[Value, Options]]:
        """For each parameter that chooses the block at one place: its values as what the family takes there."""
        return {
            name: {value: self._variant(value) for value in parameter.grid() or []}
            for name, parameter in self.parameters.items()
            if name.split(".")[2:3] == ["blocks"] and name.count(".") == 3
        }

    def _variant(self, value: Value) -> Options:
        return Options(self.file.blocks.get(str(value), {"block": value}))

    @cached_property
    def _choosers(self) -> list[str]:
        """The parameters that choose the block of a stage or of the network by a name of the file's `blocks`."""
        return [n for n in self.parameters if self.file.blocks and n.split(".")[-1] == "block"]

    def arch(self, params: Mapping[str, Value]) -> Arch:
        """The network of an assignment. Raises SpaceError that points at the parameter's line."""
        places = self._places
        options: dict[str, Any] = {n: places[n][v] if n in places else v for n, v in params.items()}
        for name in self._choosers:
            if name in options:
                prefix = name.removesuffix("block")
                chosen, variant = options[name], self._variant(options[name])
                for option, of_it in variant.items():
                    if prefix + option in params and option != "block":
                        taken = f"the named block {chosen} decides it already; give it a `when:`, or leave it out there"
                        raise self.source.error(("parameters", prefix + option), taken)
                    options[prefix + option] = of_it
        family = str(options.pop("family", self.file.family))
        try:
            return create(family, **{**options, **self.fixed})
        except OptionError as error:
            option = error.option
            related = (
                option.startswith(f"{n}.") or n.startswith(f"{option}.") or n.endswith(f".{option}") for n in params
            )
            names = [option, *itertools.compress(params, related)]
            name = next((n for n in names if n in params), option)
            raise self.source.error(("parameters", name), str(error)) from None
        except MnetError as error:
            raise self.source.error(("parameters", _blame(str(error), params)), str(error)) from None

    def violation(self, network: Costs) -> str | None:
        """The first budget that the costs break, in words; None where they meet all."""
        for name, bound in self.file.constraints.items():
            value = getattr(network, name)
            if bound.max is not None and value > bound.max:
                return f"{name} {si(value)} is over the budget of {si(bound.max)}"
            if bound.min is not None and value < bound.min:
                return f"{name} {si(value)} is under the least of {si(bound.min)}"
        return None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes this space this space; where the data lies is left out, since a study may move between
        machines.
        """
        content = {key: value for key, value in self.to_json().items() if key in IDENTITY}
        if not content["blocks"]:
            del content["blocks"]  # as studies from before there were named blocks have it
        content["data"] = {key: value for key, value in content["data"].items() if key not in ("path", "download")}
        return content

    @cached_property
    def hash(self) -> str:
        """12 hex digits over `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """The file's content with every default written out."""
        return self.file.model_dump(mode="json")


@dataclass(frozen=True)
class Survey:
    """What a space holds. `exact` says whether every code was looked at or `n_seen` samples of them."""

    n_codes: int | None
    exact: bool
    n_seen: int
    networks: dict[str, tuple[Params, Costs]] = field(repr=False)
    feasible: dict[str, tuple[Params, Costs]] = field(repr=False)
    smallest: Arch
    largest: Arch

    def cost_range(self, name: str, *, feasible: bool = False) -> tuple[int, int]:
        """Least and greatest value of a cost over the networks seen."""
        pool = self.feasible if feasible else self.networks
        values = [getattr(c, name) for _, c in pool.values()]
        return min(values), max(values)


def load_space(path: Path, overrides: Iterable[str] = (), known: Mapping[str, Collection[str]] | None = None) -> Space:
    """Read and check a space file. `known` maps dotted keys ("search.sampler") to the names that they may have.

    Raises SpaceError with file, line, key, the value seen and what is possible.
    """
    values, source = read(path, overrides)
    return make_space(path.stem, values, source, known)


def make_space(
    name: str, values: Mapping[str, Any], source: Source, known: Mapping[str, Collection[str]] | None = None
) -> Space:
    """A checked Space from plain values. Raises SpaceError."""
    space = Space(name, validate(values, source, SpaceFile), source)
    check_conditions(space.file, source)
    check_families(space.file, space.families, source)
    _ = space.parameters  # raises where conditions run in a circle
    for dotted, names in (known or {}).items():
        check_names(space.file, source, tuple(dotted.split(".")), names)
    return space


def survey(space: Space, limit: int = SURVEY_LIMIT) -> Survey:
    """Build the description (never the module) of every network, or of `limit` sampled ones where there are more.

    Raises SpaceError for a value that no network can have, and where no network meets the budgets.
    """
    exact = space.n_codes is not None and space.n_codes <= limit
    if exact:
        codes: Iterable[Params] = space.codes()
    else:
        rng = random.Random(0)
        codes = itertools.chain(_corners(space), (space.sample(rng) for _ in range(limit)))
    networks: dict[str, tuple[Params, Costs]] = {}
    n_seen = 0
    for params in codes:
        arch = space.arch(params)
        n_seen += 1
        if arch.id not in networks:
            networks[arch.id] = (params, costs(arch))
    feasible = {key: found for key, found in networks.items() if space.violation(found[1]) is None}
    by_size = sorted(networks, key=lambda key: (networks[key][1].mult_adds, networks[key][1].params))
    smallest, largest = (space.arch(networks[key][0]) for key in (by_size[0], by_size[-1]))
    found = Survey(space.n_codes, exact, n_seen, networks, feasible, smallest, largest)
    if not feasible:
        raise _no_network_meets(space, found)
    return found


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two spaces' identities, a line each: `training.epochs: 8 -> 4`."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{k}: {before.get(k, 'absent')} -> {after.get(k, 'absent')}" for k in keys if before.get(k) != after.get(k)
    ]


def si(value: float) -> str:
    """4231976 -> '4.23 M': three digits, with k, M or G."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{float(f'{value / size:.3g}'):g}{suffix}"
    return f"{float(f'{value:.3g}'):g}"


def _draw(parameter: Parameter, rng: random.Random) -> Value:
    if isinstance(parameter, Range) and (parameter.log or parameter.grid() is None):
        low, high = float(parameter.min), float(parameter.max)
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if parameter.log else rng.uniform(low, high)
        return (
            min(max(round(value), int(parameter.min)), int(parameter.max))
            if parameter.whole
            else min(max(value, low), high)
        )
    return rng.choice(parameter.grid() or [])


def _corners(space: Space) -> Iterator[Params]:
    """The codes with every parameter at its first, its last value, and each value of each parameter once: so that no
    bad value stays unseen.
    """
    ends = {name: _some_values(parameter) for name, parameter in space.parameters.items()}

    def complete(pinned: Mapping[str, Value], pick: Callable[[list[Value]], Value]) -> Params:
        chosen: Params = {}
        for name, parameter in space.parameters.items():
            if space.active(parameter, chosen):
                chosen[name] = pinned.get(name, pick(ends[name]))
        return chosen

    for pick in (lambda values: values[0], lambda values: values[-1]):
        yield complete({}, pick)
        for name, parameter in space.parameters.items():
            pins = {other: values[0] for other, values in conditions(parameter)}
            for value in ends[name]:
                yield complete({**pins, name: value}, pick)


def _some_values(parameter: Parameter) -> list[Value]:
    grid = parameter.grid()
    if grid is not None and len(grid) <= 200:
        return sorted(grid, key=lambda v: (isinstance(v, str), v if not isinstance(v, str) else 0))
    return [parameter.min, parameter.max] if isinstance(parameter, Range) else list(parameter.values)


def _blame(message: str, params: Mapping[str, Value]) -> str:
    """The parameter whose value an error quotes; the first where none is."""
    return next(
        (name for name, value in params.items() if isinstance(value, str) and repr(value) in message),
        next(iter(params), ""),
    )


def _no_network_meets(space: Space, found: Survey) -> SpaceError:
    seen = f"{len(found.networks):,} networks" + (
        "" if found.exact else f" sampled from {found.n_codes or 'infinitely many'} codes"
    )
    for name, bound in space.file.constraints.items():
        least, most = found.cost_range(name)
        if bound.max is not None and least > bound.max:
            miss = f"the smallest has {si(least)}, {si(least - bound.max)} too many"
            message = f"none of the {seen} has {name} within {si(bound.max)}: {miss}"
            return space.source.error(("constraints", name), message)
        if bound.min is not None and most < bound.min:
            miss = f"the largest has {si(most)}, {si(bound.min - most)} too few"
            message = f"none of the {seen} has {name} of at least {si(bound.min)}: {miss}"
            return space.source.error(("constraints", name), message)
    return space.source.error(
        ("constraints",), f"none of the {seen} meets all budgets together, though each alone is met"
    )


def _flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


__all__ = [
    "COST_NAMES",
    "Choice",
    "Params",
    "Range",
    "Space",
    "SpaceError",
    "Survey",
    "difference",
    "load_space",
    "make_space",
    "si",
    "survey",
]
