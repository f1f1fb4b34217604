"""Schedulers: which trials are not worth their last epochs.

Trials are judged at rungs, a few epochs of their training, by accuracy there and by costs, which are known. A
scheduler is told every trial that reaches a rung, those of earlier runs too, so that its rungs are those of the study.
To add one, write its row in SCHEDULERS at the foot.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mnet_search.studies.ranking import ranks

MANY = 500  # trials at a rung, beyond which they are sorted only where it must be
PEERS = 4  # trials that a median is taken of, at the least


@dataclass(frozen=True)
class Reached:
    """A trial at a rung: `error` there, less is better, and its known `costs`, less is better."""

    trial: int
    epoch: int
    error: float
    costs: tuple[float, ...]


class Scheduler(Protocol):
    """What the driver needs of a scheduler."""

    def rungs(self, trial: int) -> tuple[int, ...]:
        """The epochs after which this trial, by its number, is judged."""

    def record(self, reached: Reached) -> None:
        """A trial has come to one of its rungs, now or in an earlier run."""

    def judge(self, reached: Reached) -> str | None:
        """Why a trial that was just recorded ends here; None where it goes on."""


class NoScheduler:
    """Every trial is trained to its last epoch."""

    def rungs(self, trial: int) -> tuple[int, ...]:
        return ()

    def record(self, reached: Reached) -> None: ...

    def judge(self, reached: Reached) -> str | None:
        return None


@dataclass
class RungRule:
    """A rule with the same rungs for every trial: it keeps who came to each."""

    epochs: tuple[int, ...]
    _reached: dict[int, dict[int, Reached]] = field(default_factory=lambda: defaultdict(dict), kw_only=True)

    def rungs(self, trial: int) -> tuple[int, ...]:
        return self.epochs

    def record(self, reached: Reached) -> None:
        self._reached[reached.epoch][reached.trial] = reached

    def at(self, epoch: int) -> list[Reached]:
        """The trials that came to a rung."""
        return list(self._reached[epoch].values())


@dataclass
class SuccessiveHalving(RungRule):
    """Asynchronous successive halving on whole vectors (Schmucker et al., arXiv 2106.12639): at each rung the trials
    that came to it are sorted by non-domination of (error there, costs) and by crowding among equals, and one goes on
    where it is among the first 1/eta. So does one that no other dominates there: a front may be longer than that
    share. Nobody waits for anybody.
    """

    eta: float

    def judge(self, reached: Reached) -> str | None:
        here = self.at(reached.epoch)
        if not dominated(reached, here):
            return None
        kept = math.ceil(len(here) / self.eta)
        # Whoever dominates it stands before it, so that thousands need not be sorted, which takes long.
        if len(here) > MANY and (better := n_better(reached, here)) >= kept:
            return f"{better} of {len(here)} are better at epoch {reached.epoch}, where the first {kept} go on"
        place = places(here)[[r.trial for r in here].index(reached.trial)]
        if place < kept:
            return None
        return f"place {place + 1} of {len(here)} at epoch {reached.epoch}, where the first {kept} go on"


class Hyperband:
    """Brackets of successive halving that begin at later and later rungs (Li et al., arXiv 1603.06560): trials take
    turns, so that some are given time before they are judged at all. The last bracket is judged nowhere.
    """

    def __init__(self, epochs: tuple[int, ...], eta: float):
        self._brackets = [SuccessiveHalving(epochs[later:], eta) for later in range(len(epochs))]

    def rungs(self, trial: int) -> tuple[int, ...]:
        bracket = self._bracket(trial)
        return bracket.rungs(trial) if bracket else ()

    def record(self, reached: Reached) -> None:
        bracket = self._bracket(reached.trial)
        if bracket:
            bracket.record(reached)

    def judge(self, reached: Reached) -> str | None:
        bracket = self._bracket(reached.trial)
        return bracket.judge(reached) if bracket else None

    def _bracket(self, trial: int) -> SuccessiveHalving | None:
        turn = trial % (len(self._brackets) + 1)
        return self._brackets[turn] if turn < len(self._brackets) else None


@dataclass
class MedianRule(RungRule):
    """A trial ends where it is worse than the median of those that cost no more in anything."""

    def judge(self, reached: Reached) -> str | None:
        own = np.array(reached.costs)
        peers = [
            other.error
            for other in self.at(reached.epoch)
            if other.trial != reached.trial and (np.array(other.costs) <= own).all()
        ]
        if len(peers) < PEERS or reached.error <= np.median(peers):
            return None
        return f"below the median of {len(peers)} trials that cost no more, at epoch {reached.epoch}"


def dominated(one: Reached, others: Sequence[Reached]) -> bool:
    """Whether another trial is at least as good in everything; one of the same figures counts."""
    own = (one.error, *one.costs)
    rest = (other for other in others if other.trial != one.trial)
    return any(all(a <= b for a, b in zip((other.error, *other.costs), own, strict=True)) for other in rest)


def n_better(one: Reached, others: Sequence[Reached]) -> int:
    """How many trials are at least as good in everything and better in something."""
    own, table = np.array((one.error, *one.costs)), np.array([(other.error, *other.costs) for other in others])
    return int(((table <= own).all(axis=1) & (table < own).any(axis=1)).sum())


def places(reached: Sequence[Reached]) -> list[int]:
    """The place of each trial among those at its rung, from 0: by non-domination, then crowding, then number."""
    # Distinct figures, sorted: crowding depends on the order of those that are equal in something.
    table, inverse = np.unique(np.array([(r.error, *r.costs) for r in reached]), axis=0, return_inverse=True)
    order = ranks(table, ["minimize"] * table.shape[1])[inverse.reshape(-1)]
    found = [0] * len(reached)
    for place, index in enumerate(np.lexsort((np.array([r.trial for r in reached]), order))):
        found[int(index)] = place
    return found


def halving_rungs(epochs: int, eta: float, first: int | None = None) -> tuple[int, ...]:
    """The epochs at which trials are judged: first, first x eta, ... below the last; where no first is given, the last
    over eta^2 and over eta, rounded, of those that are not the same.
    """
    if first is None:
        found = [max(1, round(epochs / eta**power)) for power in (2, 1)]
    else:
        found = [round(first * eta**power) for power in range(64) if first * eta**power < epochs]
    return tuple(rung for rung in dict.fromkeys(found) if rung < epochs)


SCHEDULERS: dict[str, Callable[[tuple[int, ...], float], Scheduler]] = {
    "moasha": SuccessiveHalving,
    "hyperband": Hyperband,
    "median": lambda epochs, eta: MedianRule(epochs),
    "none": lambda epochs, eta: NoScheduler(),
}
