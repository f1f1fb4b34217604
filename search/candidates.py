"""The networks that a search may propose, with their exact costs and what a model is told of them.

A space of up to `MOST_CANDIDATES` codes is looked at whole. Of a larger or continuous one a sample is held, which is
renewed with mutations and crossovers of what is on the front.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnet_search.models.complexity import costs, depth
from mnet_search.models.costs import Costs
from mnet_search.spaces.schema import Choice, Parameter, Range, Value
from mnet_search.spaces.space import Params, Space, SpaceError

Array = np.ndarray[Any, np.dtype[Any]]

MOST_CANDIDATES = 50_000  # codes of a space that is looked at whole
SAMPLED = 4_000  # networks held of a larger one,
NEW = 500  # of which so many are new at each proposal
TRIES = 20  # draws for each network wanted: a space may be full of networks that are known or over the budget
MOST_KNOWN = 100  # draws in a row of networks that are there already, after which a space counts as drawn out
ORDERED = 3  # numbers from which on a list is ordered and not a set of categories


@dataclass(frozen=True)
class Candidate:
    """A network that may be trained. `key` is the space's; `params` one of the codes that lead to it."""

    key: str
    params: Params
    costs: Costs
    depth: int


class Candidates:
    """Distinct networks within the budgets, each with an index."""

    def __init__(self, space: Space, seed: int = 0):
        """Looks at the whole space where it can, else at `SAMPLED` networks drawn with `seed`."""
        self.space = space
        self.rows: list[Candidate] = []
        self._index: dict[str, int] = {}
        self._by_code: dict[tuple[tuple[str, Value], ...], int | None] = {}
        self._scale: tuple[Array, Array] | None = None
        self._costs: dict[str, Array] = {}
        grids = {name: parameter.grid() for name, parameter in space.parameters.items()}
        self._numbers: dict[str, list[int | float]] = {
            name: [v for v in grid if isinstance(v, int | float) and not isinstance(v, bool)]
            for name, grid in grids.items()
            if grid is not None
        }
        self.whole = space.n_codes is not None and space.n_codes <= MOST_CANDIDATES
        if self.whole:
            for params in space.codes():
                self.add(params)
        else:
            self.grow(random.Random(seed), [], SAMPLED)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, params: Mapping[str, Value]) -> int | None:
        """The index of the network of an assignment, which joins if it is new; None where there is no such network or
        it breaks a budget.
        """
        code = tuple(params.items())
        if code not in self._by_code:
            self._by_code[code] = self._add({name: self._listed(name, value) for name, value in code})
        return self._by_code[code]

    def _listed(self, name: str, value: Value) -> Value:
        """A fraction as the file has it: Optuna counts up steps, and 0.1 + 0.2 is not 0.3."""
        numbers = self._numbers.get(name, [])
        if not isinstance(value, float) or not numbers or value in numbers:
            return value
        nearest = min(numbers, key=lambda number: math.fabs(number - value))
        return nearest if math.isclose(nearest, value, rel_tol=1e-8, abs_tol=1e-12) else value

    def _add(self, params: Params) -> int | None:
        try:
            arch = self.space.arch(params)
        except SpaceError:
            return None
        key = self.space.key(params, arch.id)
        if key not in self._index:
            network = costs(arch)
            if self.space.violation(network) is not None:
                return None
            self._index[key] = len(self.rows)
            self.rows.append(Candidate(key, params, network, depth(arch)))
        return self._index[key]

    def renew(self, rng: random.Random, kept: Sequence[int], parents: Sequence[int]) -> None:
        """For a space that is not held whole: forget all but the `kept` networks, and add new ones, half of them
        children of `parents`. Indices change.
        """
        bred = [self.rows[i].params for i in parents]
        self.rows = [self.rows[i] for i in kept]
        self._index = {row.key: i for i, row in enumerate(self.rows)}
        self._by_code, self._costs = {}, {}
        self.grow(rng, bred, NEW)

    def grow(self, rng: random.Random, parents: Sequence[Params], n: int) -> None:
        """Add up to `n` networks: where there are `parents`, half of them mutations and crossovers of those."""
        wanted, n_known = len(self) + n, 0
        for _ in range(n * TRIES):
            before = len(self)
            if before >= wanted or n_known >= MOST_KNOWN:
                return
            if parents and rng.random() < 0.5:
                params = mutate(self.space, cross(self.space, rng.choice(parents), rng.choice(parents), rng), rng)
            else:
                params = self.space.sample(rng)
            if self.add(params) is not None:
                n_known = n_known + 1 if len(self) == before else 0

    def cost(self, name: str) -> Array:
        """One cost of every candidate -> (N,)."""
        if len(self._costs.get(name, ())) != len(self):
            self._costs[name] = np.array([getattr(row.costs, name) for row in self.rows], dtype=float)
        return self._costs[name]

    def features(self, further: Mapping[str, Sequence[float]] | None = None) -> Array:
        """What a model is told of every candidate -> (N, F): the parameters' values (`knob`); of the resolved network
        log mult-adds, log params, log activations, log depth and log receptive field; `further` figures by key.

        Each column is brought to mean 0 and variance 1 over the candidates of the first call; columns that do not vary
        are left out.
        """
        rows = []
        seen: dict[tuple[str, type, Value | None], list[float]] = {}
        for row in self.rows:
            knobs: list[float] = []
            for name, parameter in self.space.parameters.items():
                value = row.params.get(name)
                if (name, type(value), value) not in seen:
                    seen[name, type(value), value] = knob(parameter, value)
                knobs += seen[name, type(value), value]
            c = row.costs
            sizes = (c.mult_adds, c.params, c.activations, row.depth, c.receptive_field)
            rows.append([*knobs, *(math.log1p(x) for x in sizes), *(further[row.key] if further else ())])
        table = np.array(rows, dtype=float)
        if self._scale is None:
            self._scale = table.mean(axis=0), table.std(axis=0)
        mean, spread = self._scale
        told = spread > 1e-9
        found: Array = (table[:, told] - mean[told]) / spread[told]
        return found if told.any() else np.zeros((len(table), 1))


def knob(parameter: Parameter, value: Value | None) -> list[float]:
    """A parameter's value as a model sees it; None where the network does not have the parameter.

    Numbers with an order are one number from 0 to 1 (in the logarithm where they are all above 0 and span more than
    fourfold), other values are one-hot; a parameter with a condition has one more column for being there.
    """
    there = [0.0 if value is None else 1.0] if parameter.when else []
    grid = parameter.grid()
    if isinstance(parameter, Choice) and not _ordered(parameter.values):
        return [*there, *(float(_same(value, one)) for one in parameter.values)] if len(parameter.values) > 1 else there
    ends = [parameter.min, parameter.max] if isinstance(parameter, Range) else parameter.values
    numbers = [float(v) for v in grid or ends]
    low, high = min(numbers), max(numbers)
    if value is None or high <= low:
        return [*there, 0.5]
    number = float(value)
    logarithmic = (low > 0 and high > 4 * low) or (isinstance(parameter, Range) and parameter.log)
    if logarithmic:
        return [*there, math.log(number / low) / math.log(high / low)]
    return [*there, (number - low) / (high - low)]


def _ordered(values: Sequence[Value]) -> bool:
    return len(values) >= ORDERED and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _same(value: Value | None, one: Value) -> bool:
    return type(value) is type(one) and value == one


def mutate(space: Space, params: Mapping[str, Value], rng: random.Random) -> Params:
    """The assignment with one parameter changed that can vary, and with those drawn that exist only now."""
    names = [name for name in params if varies(space.parameters[name])]
    if not names:
        return dict(params)
    changed = rng.choice(names)
    chosen = {name: value for name, value in params.items() if name != changed}
    for _ in range(TRIES):
        value = space.draw(changed, rng)
        if value != params[changed]:
            break
    return complete(space, {**chosen, changed: value}, rng)


def cross(space: Space, first: Mapping[str, Value], second: Mapping[str, Value], rng: random.Random) -> Params:
    """Each parameter from one of the two that have it."""
    chosen: Params = {}
    for name in dict.fromkeys([*first, *second]):
        having = [parent for parent in (first, second) if name in parent]
        chosen[name] = rng.choice(having)[name]
    return complete(space, chosen, rng)


def complete(space: Space, params: Mapping[str, Value], rng: random.Random) -> Params:
    """An assignment to exactly the parameters that exist: those of `params` as they are, the others drawn."""
    chosen: Params = {}
    for name, parameter in space.parameters.items():
        if space.active(parameter, chosen):
            chosen[name] = params[name] if name in params else space.draw(name, rng)
    return chosen


def varies(parameter: Parameter) -> bool:
    """Whether a parameter has more than one value."""
    grid = parameter.grid()
    return grid is None or len(grid) > 1
