"""Looking at every network of a space, or at a sample of them, before anything is trained."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mnet_search.models.arch import Arch
from mnet_search.models.complexity import costs
from mnet_search.models.costs import Costs
from mnet_search.spaces.schema import Parameter, Range, Value, conditions
from mnet_search.spaces.space import Params, Space, si
from mnet_search.spaces.yamlfile import SpaceError

SURVEY_LIMIT = 20_000


@dataclass(frozen=True)
class Survey:
    """What a space holds. `exact` says whether every code was looked at or `n_seen` samples of them. `networks` and
    `feasible` are by `Space.key`: a network stands there once for each setting that it is trained under.
    """

    n_codes: int | None
    exact: bool
    n_seen: int
    networks: dict[str, tuple[Params, Costs]] = field(repr=False)
    feasible: dict[str, tuple[Params, Costs]] = field(repr=False)
    smallest: Arch
    largest: Arch

    def distinct(self, *, feasible: bool = False) -> dict[str, Params]:
        """One assignment for each network, by its id."""
        pool = self.feasible if feasible else self.networks
        found: dict[str, Params] = {}
        for key, (params, _) in pool.items():
            found.setdefault(key.partition("-")[0], params)
        return found

    def cost_range(self, name: str, *, feasible: bool = False) -> tuple[int, int]:
        """Least and greatest value of a cost over the networks seen."""
        pool = self.feasible if feasible else self.networks
        values = [getattr(c, name) for _, c in pool.values()]
        return min(values), max(values)


def survey(space: Space, limit: int = SURVEY_LIMIT, samples: int = SURVEY_LIMIT) -> Survey:
    """Build the description (never the module) of every network, or of `samples` drawn ones where there are more than
    `limit` codes.

    Raises SpaceError for a value that no network can have, and where no network meets the budgets.
    """
    exact = space.n_codes is not None and space.n_codes <= limit
    if exact:
        codes: Iterable[Params] = space.codes()
    else:
        rng = random.Random(0)
        codes = itertools.chain(corners(space), (space.sample(rng) for _ in range(samples)))
    networks: dict[str, tuple[Params, Costs]] = {}
    n_seen = 0
    for params in codes:
        arch = space.arch(params)
        n_seen += 1
        key = space.key(params, arch.id)
        if key not in networks:
            networks[key] = (params, costs(arch))
    feasible = {key: found for key, found in networks.items() if space.violation(found[1]) is None}
    by_size = sorted(networks, key=lambda key: (networks[key][1].mult_adds, networks[key][1].params))
    smallest, largest = (space.arch(networks[key][0]) for key in (by_size[0], by_size[-1]))
    found = Survey(space.n_codes, exact, n_seen, networks, feasible, smallest, largest)
    if not feasible:
        raise _no_network_meets(space, found)
    return found


def corners(space: Space) -> Iterator[Params]:
    """The codes with every parameter at its first, its last value, and each value of each parameter once: so that no
    bad value stays unseen. Of a space that lists its networks, those.
    """
    if space.listed:
        yield from space.listed
        return
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
            pins = _pins(space, parameter)
            for value in ends[name]:
                yield complete({**pins, name: value}, pick)


def _pins(space: Space, parameter: Parameter) -> Params:
    """Values of other parameters under which this one exists."""
    pins: Params = {}
    for other, values in conditions(parameter):
        pins |= {**_pins(space, space.parameters[other]), **pins, other: values[0]}
    return pins


def _some_values(parameter: Parameter) -> list[Value]:
    grid = parameter.grid()
    if grid is not None and len(grid) <= 200:
        return sorted(grid, key=lambda v: (isinstance(v, str), v if not isinstance(v, str) else 0))
    return [parameter.min, parameter.max] if isinstance(parameter, Range) else list(parameter.values)


def _no_network_meets(space: Space, found: Survey) -> SpaceError:
    seen = f"{len(found.distinct()):,} networks" + (
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
