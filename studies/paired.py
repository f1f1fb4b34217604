"""Differences between networks that were trained with the same seeds, with intervals for the pairs.

Two runs of one seed see the same images in the same order, so part of what chance does to one it does to the other, and
it cancels in their difference: the spread of the differences, not that of the runs, says how sure a comparison is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mnet_search.models.arch import MnetError

LEVEL = 0.95
SAME = 1e-12  # rounding of equal gaps


@dataclass(frozen=True)
class Runs:
    """One network's runs: value by seed, in the order of seeds."""

    name: str
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation between seeds; nan for fewer than two."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Difference:
    """How much larger the values of `first` are than those of `second`, over the seeds that both have.

    `low` and `high` bound the mean difference with `LEVEL` (Student's t over the pairs); nan where nothing tells the
    spread: fewer than two pairs, or pairs that do not differ. `correlation` of the pairs says what pairing was worth:
    at 0 nothing.
    """

    first: str
    second: str
    n: int
    mean: float
    sd: float
    low: float
    high: float
    correlation: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def runs_of(frame: pd.DataFrame, objective: str, networks: Mapping[str, str]) -> tuple[Runs, ...]:
    """The finished runs of named networks; `networks` gives each name's arch_id. Raises MnetError where the study does
    not record the objective. Of several finished runs with one seed the first counts.
    """
    if objective not in frame.columns:
        raise MnetError(f"{objective!r} is no figure of this study; try accuracy")
    finished = frame[(frame["state"] == "finished") & frame[objective].notna()].sort_values("number")
    found = []
    for name, arch_id in networks.items():
        rows = finished[finished["arch_id"] == arch_id].drop_duplicates("seed").sort_values("seed")
        values = zip(rows["seed"], rows[objective], strict=True)
        found.append(Runs(name, {int(seed): float(value) for seed, value in values}))
    return tuple(found)


def differences(runs: Sequence[Runs], images: int | None = None) -> tuple[Difference, ...]:
    """Every two networks compared, the first of each pair being the one with the larger mean; largest gaps first.

    Accuracies of `images` images are known to 1/images and no better, so the spread of the pairs is taken as at least
    that of two such roundings: few pairs that happen to be equal are not certain.
    """
    least = math.sqrt(2 / 12) / images if images else 0.0
    found = [_difference(one, other, least) for one, other in itertools.combinations(runs, 2)]
    return tuple(sorted(found, key=lambda d: (math.isnan(d.mean), -abs(d.mean) if d.n else 0.0)))


def _difference(one: Runs, other: Runs, least: float) -> Difference:
    from scipy.stats import t

    seeds = [seed for seed in one.values if seed in other.values]
    a, b = (np.array([runs.values[seed] for seed in seeds]) for runs in (one, other))
    if seeds and a.mean() < b.mean():
        one, other, a, b = other, one, b, a
    gaps = a - b
    n = len(seeds)
    mean = float(gaps.mean()) if n else math.nan
    sd = max(float(gaps.std(ddof=1)), least) if n > 1 else 0.0
    if sd < SAME:
        return Difference(one.name, other.name, n, mean, math.nan, math.nan, math.nan, math.nan)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    varies = n > 2 and a.std() > 0 and b.std() > 0
    correlation = float(np.corrcoef(a, b)[0, 1]) if varies else math.nan
    return Difference(one.name, other.name, n, mean, sd, mean - half, mean + half, correlation)
