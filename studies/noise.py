"""What chance does to the figures of a study: how far each network's means are known, and draws of what they might be.

Noise is taken on a logarithmic scale (of the error for accuracy, of the value for latency and loss), since it grows
with the quantity: a network at 99 % varies less than one at 70 %. What else a study measures is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mnet_search.studies.pareto import EXACT, network_of, networks

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.studies.pareto import Array

NoiseSource = Literal["repeats", "sampling", "unknown"]

QUARTILE_RANGE = 1.349  # between the quartiles of a normal distribution, in standard deviations
LEAST_ERROR = 5e-5  # taken for none where the number of validation images is unknown: half an image of 10,000
POSITIVE = ("latency_ms", "validation_loss")
LEAST_VALUE = 1e-12
LARGEST_LOG = 100.0  # of a draw: few runs make heavy tails


@dataclass(frozen=True)
class Noise:
    """The means of a study's networks, and how far they are known.

    `rows` is `networks()`; `values` (N, M) its objectives. `usable` (N,) are the rows that have them all: `centres` and
    `errors` (U, M) are their means and standard errors on the noise's scale, of which `directions` (M,) say what is
    better (an accuracy stands there as its error). `freedom` (M,) is that of each pooled sd, infinite where none was
    pooled. `sources` and `sd` are by measured objective: `Confidence` says what they hold.
    """

    rows: pd.DataFrame
    objectives: Mapping[str, str]
    values: Array
    usable: Array
    centres: Array
    errors: Array
    freedom: Array
    directions: tuple[str, ...]
    sources: Mapping[str, NoiseSource]
    sd: Mapping[str, float]

    def scales(self, n_draws: int, generator: np.random.Generator) -> Array:
        """(D, M): how much larger than estimated the noise of each draw is, where the sd is from few runs. One number a
        draw for all networks makes every mean Student-t distributed.
        """
        scales = np.ones((n_draws, len(self.freedom)))
        for column in np.flatnonzero(np.isfinite(self.freedom)):
            scales[:, column] = np.sqrt(self.freedom[column] / generator.chisquare(self.freedom[column], n_draws))
        return scales

    def draws(self, n_draws: int, seed: int) -> Array:
        """Means that the usable networks might have (D, U, M), in the objectives' own units."""
        generator = np.random.default_rng(seed)
        scale = self.scales(n_draws, generator)[:, np.newaxis]
        drawn = self.centres + generator.standard_normal((n_draws, *self.centres.shape)) * scale * self.errors
        for column, name in enumerate(self.objectives):
            if name == "accuracy":
                drawn[:, :, column] = 1 - np.exp(np.minimum(drawn[:, :, column], 0.0))  # no error is above 1
            elif name in POSITIVE:
                drawn[:, :, column] = np.exp(np.minimum(drawn[:, :, column], LARGEST_LOG))
        return drawn


def noise_of(frame: pd.DataFrame, objectives: Mapping[str, str], validation_images: int | None) -> Noise:
    """The networks of a study's frame with their noise.

    The standard error of a network's mean is the sd between runs over sqrt(n). That sd is pooled over all networks with
    two runs or more, weighted by degrees of freedom. Where no network was repeated (or its runs do not differ), the
    error is that of sampling: sqrt(p (1 - p) / validation_images) for accuracy, that of the quartiles for latency_ms,
    and none for another objective. ParetoError where an objective is no column of the frame.
    """
    rows = networks(frame, objectives)
    finished = frame[frame["state"] == "finished"]
    first = network_of(finished)
    values = rows[list(objectives)].to_numpy(dtype=float, na_value=np.nan)
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
    return Noise(rows, objectives, values, usable, centres, errors, freedom, tuple(directions), sources, sd)


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
