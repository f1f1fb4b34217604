"""How sure a front is: the probability that each network belongs to it, from the noise between runs.

A measured objective is known up to its standard error, so which networks are on the front is known up to chance. Here
the means are drawn anew many times, and a network's probability is the share of draws in which no other dominates it.

Noise is taken on a logarithmic scale (of the error for accuracy, of the value for latency and loss), since it grows
with the quantity: a network at 99 % varies less than one at 70 %. Dominance asks for the order alone, which the
logarithm keeps. What else a study measures is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mnet_search.models.arch import MnetError
from mnet_search.studies.pareto import EXACT, dominated_by, network_of, non_dominated
from mnet_search.studies.pareto import networks as networks  # it lives where `front` needs it

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.studies.pareto import Array

NoiseSource = Literal["repeats", "sampling", "unknown"]

BLOCK_NUMBERS = 1 << 19  # drawn at once: bounds the memory
QUARTILE_RANGE = 1.349  # between the quartiles of a normal distribution, in standard deviations
LEAST_ERROR = 5e-5  # taken for none where the number of validation images is unknown: half an image of 10,000
POSITIVE = ("latency_ms", "validation_loss")
LEAST_VALUE = 1e-12


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
    rows = networks(frame, objectives)
    finished = frame[frame["state"] == "finished"]
    first = network_of(finished)
    measured = [name for name in objectives if name not in EXACT]
    values = rows[list(objectives)].to_numpy(dtype=float, na_value=np.nan)
    on_front = non_dominated(values, list(objectives.values()))
    usable = np.isfinite(values).all(axis=1)

    centres, errors = values[usable].copy(), np.zeros((int(usable.sum()), len(objectives)))
    directions, freedom = list(objectives.values()), np.full(len(objectives), math.inf)
    sources: dict[str, NoiseSource] = {}
    sd: dict[str, float] = {}
    for column, (name, direction) in enumerate(objectives.items()):
        if name in EXACT:
            continue
        runs = finished[name].astype(float)
        counts = runs.groupby(first).count().to_numpy()[usable]
        pooled, degrees = _pooled(_on_scale(name, runs, validation_images), first)
        if degrees:
            sd[name] = _pooled(runs, first)[0]
        if pooled > 0:
            errors[:, column], freedom[column] = pooled / np.sqrt(counts), degrees
            sources[name] = "repeats"
        else:
            errors[:, column], sources[name] = _without_repeats(name, rows[usable], validation_images, counts)
        centres[:, column] = _on_scale(name, values[usable, column], validation_images)
        if name == "accuracy":  # its error is drawn, of which less is better
            directions[column] = "minimize" if direction == "maximize" else "maximize"

    probability = np.zeros(len(rows))
    probability[usable] = _shares(centres, errors, freedom, directions, n_draws, seed)
    principal = "accuracy" if "accuracy" in measured else next(iter(measured), None)
    return Confidence(
        networks=rows.assign(on_front=on_front, probability=probability),
        noise_source=sources[principal] if principal else "unknown",
        principal=principal,
        n_repeated=int((rows["n"] > 1).sum()),
        sd=sd,
    )


def doubtful(result: Confidence) -> list[int]:
    """The networks whose place is in doubt, by the number of their first trial: the most doubtful first, by p (1 - p);
    ties to fewer runs, then to the earlier trial. Those that are always or never on the front are not listed.
    """
    rows = result.networks
    doubt = (rows["probability"] * (1 - rows["probability"])).round(9).to_numpy()  # p and 1 - p alike
    order = np.lexsort((rows["number"], rows["n"], -doubt))
    return [int(rows["number"].iloc[place]) for place in order if doubt[place] > 0]


def sampling_error(accuracy: float, images: int) -> float:
    """The binomial standard error of an accuracy on so many images; no error in n images counts as one."""
    p = min(accuracy, 1 - 1 / images)
    return math.sqrt(p * (1 - p) / images)


def _on_scale(name: str, values: Any, images: int | None) -> Any:
    """On the scale on which noise is drawn: ln(error) of accuracies, ln(value) of latency and loss, else as it is."""
    if name == "accuracy":
        return np.log(np.maximum(1 - values, 0.5 / images if images else LEAST_ERROR))
    return np.log(np.maximum(values, LEAST_VALUE)) if name in POSITIVE else values


def _pooled(runs: pd.Series, first: pd.Series) -> tuple[float, int]:
    """The sd within networks over all of two runs or more, and its degrees of freedom; (0, 0) without any."""
    groups = runs.groupby(first)
    degrees = groups.count() - 1
    repeated = degrees > 0
    total = int(degrees[repeated].sum())
    if total == 0:
        return 0.0, 0
    return math.sqrt(float((degrees[repeated] * groups.var(ddof=1)[repeated]).sum()) / total), total


def _without_repeats(name: str, rows: pd.DataFrame, images: int | None, counts: Array) -> tuple[Any, NoiseSource]:
    """The standard error of each network (N,) on the logarithmic scale, where runs do not tell it."""
    nothing = np.zeros(len(rows))
    if name == "accuracy" and images:
        error = np.clip(1 - rows["accuracy"].to_numpy(dtype=float), 1 / images, 1.0)
        return np.sqrt((1 - error) / (error * images)), "sampling"  # sqrt(p (1 - p) / images) / error
    if name == "latency_ms" and {"latency_q1_ms", "latency_q3_ms"} <= set(rows.columns):
        spread = (rows["latency_q3_ms"] - rows["latency_q1_ms"]) / QUARTILE_RANGE / rows["latency_ms"]
        known = spread.to_numpy(dtype=float, na_value=np.nan)
        if np.isfinite(known).any():
            usual = float(np.median(known[np.isfinite(known)]))
            return np.where(np.isfinite(known), known, usual) / np.sqrt(counts), "sampling"
    return nothing, "unknown"


def _shares(centres: Array, errors: Array, freedom: Array, directions: list[str], n_draws: int, seed: int) -> Array:
    """The share of draws in which each row (N, M) is non-dominated: (N,)."""
    generator = np.random.default_rng(seed)
    scales = np.ones((n_draws, len(freedom)))
    for column in np.flatnonzero(np.isfinite(freedom)):
        scales[:, column] = np.sqrt(freedom[column] / generator.chisquare(freedom[column], n_draws))
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


def _within_reach(draws: Array, directions: list[str]) -> Array:
    """The rows of draws (D, N, M) that may be on the front of some draw -> (N,). A row whose best is dominated by
    another row's worst is not: it is dominated in every draw, and by a row that dominates all that it dominates.
    """
    if draws.size == 0:
        return np.ones(draws.shape[1], dtype=bool)
    low, high = draws.min(axis=0), draws.max(axis=0)
    upward = np.array(directions) == "maximize"
    best, worst = np.where(upward, high, low), np.where(upward, low, high)
    return ~dominated_by(best, worst[non_dominated(worst, directions)], directions)
