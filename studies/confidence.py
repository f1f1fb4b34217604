"""How sure a front is: the probability that each network belongs to it, from the noise between runs.

A measured objective is known up to its standard error, so which networks are on the front is known up to chance. Here
the means are drawn anew many times, and a network's probability is the share of draws in which no other dominates it.

Noise is taken on a logarithmic scale (of the error for accuracy, of the value for latency and loss), since it grows
with the quantity: a network at 99 % varies less than one at 70 %. Dominance asks for the order alone, which the
logarithm keeps. What else a study measures is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mnet_search.models.arch import MnetError
from mnet_search.studies.noise import LEAST_ERROR as LEAST_ERROR
from mnet_search.studies.noise import Noise, NoiseSource, noise_of
from mnet_search.studies.noise import sampling_error as sampling_error
from mnet_search.studies.pareto import EXACT, dominated_by, non_dominated
from mnet_search.studies.pareto import networks as networks  # it lives where `front` needs it

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.studies.pareto import Array

BLOCK_NUMBERS = 1 << 19  # drawn at once: bounds the memory


@dataclass(frozen=True)
class Confidence:
    """A front and how sure it is.

    `networks` is `networks()` with two more columns: `on_front` (no other dominates its means) and `probability` (the
    share of draws in which none does). `noise_source` says where the noise of `principal`, the accuracy or else the
    first measured objective, is from: "repeats", the spread between runs; "sampling", the binomial error of the
    validation images or the quartiles of a latency, a lower bound without what seeds do; "unknown", nothing to draw
    from, so that each probability is 0 or 1. `sd` has each measured objective's pooled sd between runs in its own unit,
    from `n_repeated` networks of two runs or more; it is empty where there are none.
    """

    networks: pd.DataFrame
    noise_source: NoiseSource
    principal: str | None
    n_repeated: int
    sd: Mapping[str, float] = field(default_factory=dict)


def front_confidence(
    frame: pd.DataFrame,
    objectives: Mapping[str, str],
    validation_images: int | None,
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> Confidence:
    """The networks of a study's frame, which are on the front, and with what probability.

    The standard error of a network's mean is the sd between runs over sqrt(n). That sd is pooled over all networks with
    two runs or more, weighted by degrees of freedom, and is uncertain itself where these are few: each draw takes one
    for all networks, so that every mean is Student-t distributed. Where no network was repeated (or its runs do not
    differ), accuracy has the binomial error sqrt(p (1 - p) / validation_images), latency_ms that of its quartiles, and
    another objective none. The same seed gives the same result. A network that lacks an objective is on no front.
    ParetoError where an objective is no column of the frame, MnetError where fewer than one draw is asked for.
    """
    if n_draws < 1:
        raise MnetError(f"n_draws is {n_draws}: a share of draws needs 1 or more; try 2000")
    noise = noise_of(frame, objectives, validation_images)
    rows, usable = noise.rows, noise.usable
    probability = np.zeros(len(rows))
    probability[usable] = _shares(noise, n_draws, seed)
    measured = [name for name in objectives if name not in EXACT]
    on_front = non_dominated(noise.values, list(objectives.values()))
    principal = "accuracy" if "accuracy" in measured else next(iter(measured), None)
    return Confidence(
        networks=rows.assign(on_front=on_front, probability=probability),
        noise_source=noise.sources[principal] if principal else "unknown",
        principal=principal,
        n_repeated=int((rows["n"] > 1).sum()),
        sd=noise.sd,
    )


def doubtful(result: Confidence) -> list[int]:
    """The networks whose place is in doubt, by the number of their first trial: the most doubtful first, by p (1 - p);
    ties to fewer runs, then to the earlier trial. Those that are always or never on the front are not listed.
    """
    rows = result.networks
    doubt = (rows["probability"] * (1 - rows["probability"])).round(9).to_numpy()  # p and 1 - p alike
    order = np.lexsort((rows["number"], rows["n"], -doubt))
    return [int(rows["number"].iloc[place]) for place in order if doubt[place] > 0]


def _shares(noise: Noise, n_draws: int, seed: int) -> Array:
    """The share of draws in which each row (N, M) is non-dominated: (N,)."""
    generator = np.random.default_rng(seed)
    centres, errors, directions = noise.centres, noise.errors, noise.directions
    scales = noise.scales(n_draws, generator)
    # The wide draws together: in all other blocks most rows are out of reach of the front, and cost nothing.
    scales = scales[np.argsort(scales.max(axis=1), kind="stable")]
    counts = np.zeros(len(centres))
    size = max(1, BLOCK_NUMBERS // max(1, centres.size))
    for start in range(0, n_draws, size):
        scale = scales[start : start + size, np.newaxis]
        draws = centres + generator.standard_normal((len(scale), *centres.shape)) * scale * errors
        near = np.flatnonzero(_within_reach(draws, directions))
        for draw in draws[:, near]:
            counts[near] += non_dominated(draw, directions)
    return counts / n_draws


def _within_reach(draws: Array, directions: Sequence[str]) -> Array:
    """The rows of draws (D, N, M) that may be on the front of some draw -> (N,). A row whose best is dominated by
    another row's worst is not: it is dominated in every draw, and by a row that dominates all that it dominates.
    """
    if draws.size == 0:
        return np.ones(draws.shape[1], dtype=bool)
    low, high = draws.min(axis=0), draws.max(axis=0)
    upward = np.array(directions) == "maximize"
    best, worst = np.where(upward, high, low), np.where(upward, low, high)
    return ~dominated_by(best, worst[non_dominated(worst, directions)], directions)
