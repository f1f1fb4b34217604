"""A space: the set of networks that a YAML describes, with its objectives and budgets. Sampling, enumeration, counting,
hashing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mnet_search.models.arch import Arch, MnetError, OptionError
from mnet_search.models.costs import Costs
from mnet_search.models.families import create
from mnet_search.models.stages import Options
from mnet_search.spaces.checks import check_conditions, check_families, check_names
from mnet_search.spaces.identity import difference
from mnet_search.spaces.listed import active, complete
from mnet_search.spaces.scalings import check_scalings, scaled
from mnet_search.spaces.schema import COST_NAMES, Choice, Data, Parameter, Range, SpaceFile, Training, Value, conditions
from mnet_search.spaces.settings import MOST_DATA_SETTINGS, TrialSettings, check_settings
from mnet_search.spaces.yamlfile import Source, SpaceError, read, validate

Params = dict[str, Value]
# What decides whether two runs belong to one study. How far and how fast to search (search, resources) may change
# between runs.
IDENTITY = (
    "family",
    "blocks",
    "data",
    "parameters",
    "scalings",
    "networks",
    "evaluate",
    "objectives",
    "constraints",
    "training",
)
LATER_KEYS = ("blocks", "scalings", "networks", "evaluate")  # absent where empty, as in studies from before they were


@dataclass(frozen=True)
class Space:
    """A checked space. `fixed` holds the options that the data decides (classes, in_channels); `fixed_by_data` those of
    each setting of the data where they differ.
    """

    name: str
    file: SpaceFile
    source: Source = field(repr=False, compare=False)
    fixed: Mapping[str, Value] = field(default_factory=dict)
    fixed_by_data: Mapping[Data, Mapping[str, Value]] = field(default_factory=dict)

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

    def for_data(self, *, classes: int, in_channels: int, data: Data | None = None) -> Space:
        """The same space with the network's ends fitted to the data, to one setting of it where `data` is given."""
        ends: dict[str, Value] = {"classes": classes, "in_channels": in_channels}
        if data is None:
            return replace(self, fixed={**self.fixed, **ends})
        return replace(self, fixed=self.fixed or ends, fixed_by_data={**self.fixed_by_data, data: ends})

    @cached_property
    def settings(self) -> TrialSettings:
        """What parameters say of the trials' data and training."""
        return TrialSettings(self.file)

    def data_of(self, params: Mapping[str, Value]) -> Data:
        """The data of a trial with this assignment."""
        return self.settings.data(params)

    def training_of(self, params: Mapping[str, Value]) -> Training:
        """The training of a trial with this assignment."""
        return self.settings.training(params)

    @cached_property
    def data_settings(self) -> list[Data]:
        """Every data that trials may have, without repeats. Raises SpaceError where there are too many to read."""
        found: dict[Data, None] = {}
        for params in self.codes(self.settings.behind("data.")):
            found[self.data_of(params)] = None
            if len(found) > MOST_DATA_SETTINGS:
                name = next(name for name in self.settings.names if name.startswith("data."))
                many = f"more than {MOST_DATA_SETTINGS} different settings of the data"
                raise self.source.error(("parameters", name), f"{many}, and all are read at once; give fewer values")
        return list(found)

    def key(self, params: Mapping[str, Value], arch_id: str | None = None) -> str:
        """What is trained once: the network's id, with that of the trial's settings where parameters decide them."""
        arch_id = arch_id or self.arch(params).id
        return f"{arch_id}-{self.settings.id(params)}" if self.settings.names else arch_id

    def active(self, parameter: Parameter, chosen: Mapping[str, Value]) -> bool:
        """Whether a parameter exists under the values chosen so far."""
        return active(parameter, chosen)

    def codes(self, only: Collection[str] | None = None) -> Iterator[Params]:
        """Every assignment of values, conditionals resolved, to all parameters or to these. Raises SpaceError where a
        range is continuous.
        """
        names = [name for name in self.parameters if only is None or name in only]
        if self.listed:
            parts = ({name: value for name, value in params.items() if name in names} for params in self.listed)
            return iter({tuple(part.items()): part for part in parts}.values())
        grids = [self.values(name) for name in names]
        if not any(self.parameters[name].when for name in names):
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
    def listed(self) -> list[Params]:
        """The assignments that the file lists under `networks`, whole and without repeats; empty where it lists none,
        and every assignment is one of the space's. Raises SpaceError at an entry that is none.
        """
        found: dict[tuple[tuple[str, Value], ...], Params] = {}
        for index, given in enumerate(self.file.networks or []):
            try:
                params = complete(self.parameters, given)
            except ValueError as error:
                raise self.source.error(("networks", str(index)), str(error)) from None
            found.setdefault(tuple(params.items()), params)
        return list(found.values())

    @cached_property
    def n_codes(self) -> int | None:
        """How many assignments there are; None where a range is continuous."""
        if self.listed:
            return len(self.listed)
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
        if self.listed:
            return dict(rng.choice(self.listed))
        chosen: Params = {}
        for name, parameter in self.parameters.items():
            if self.active(parameter, chosen):
                chosen[name] = _draw(parameter, rng)
        return chosen

    def draw(self, name: str, rng: random.Random) -> Value:
        """One value of a parameter."""
        return _draw(self.parameters[name], rng)

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
        fixed = self.fixed
        if self.settings.names:
            fixed = self.fixed_by_data.get(self.data_of(params), fixed)
            params = self.settings.network(params)
        params = scaled(self.file.scalings, params)
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
            return create(family, **{**options, **fixed})
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
        for key in LATER_KEYS:
            if not content[key]:
                del content[key]
        content["data"] = {key: value for key, value in content["data"].items() if key not in ("path", "download")}
        return content

    @cached_property
    def hash(self) -> str:
        """12 hex digits over `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """The file's content with every default written out."""
        return self.file.model_dump(mode="json")


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
    for dotted, names in (known or {}).items():
        if dotted == "objectives" and space.file.evaluate:
            continue  # one's own function may return figures of its own
        check_names(space.file, source, tuple(dotted.split(".")), names)
    check_conditions(space.file, source)
    _ = space.parameters  # raises where conditions run in a circle
    check_settings(space.file, source)
    check_scalings(space.file, source)
    check_families(space.file, space.families, source)
    _ = space.listed  # raises where the file lists what the space does not hold
    return space


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


def _blame(message: str, params: Mapping[str, Value]) -> str:
    """The parameter whose value an error quotes; the first where none is."""
    return next(
        (name for name, value in params.items() if isinstance(value, str) and repr(value) in message),
        next(iter(params), ""),
    )


__all__ = [
    "COST_NAMES",
    "Choice",
    "Params",
    "Range",
    "Space",
    "SpaceError",
    "difference",
    "load_space",
    "make_space",
    "si",
]
