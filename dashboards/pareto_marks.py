"""The marks of the Pareto view: rows of networks as places, bars, colours, sizes, and the probability of being on the
front.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mnet_search.dashboards.drawing import counted, evenly
from mnet_search.dashboards.quantities import PlotError, Quantity, is_choice, labels, numbers, ordered
from mnet_search.dashboards.quantities import quantity as quantity_of
from mnet_search.dashboards.reference_networks import references
from mnet_search.dashboards.snapshot import Snapshot, architecture, present, records
from mnet_search.studies.confidence import sampling_error
from mnet_search.studies.noise import Noise
from mnet_search.studies.pareto import Array, dominated_by, non_dominated

POINTS = 2000  # of the dominated networks that one panel draws; the front is always whole
FEWER = 500  # of those stopped early, and of those over budget
ERROR_BARS = 100  # networks up to which each of a kind shows its bars; more hide the points
REACHES = (3.0, 1.0, 0.3, 0.0)  # standard errors beyond which a network is taken to be out of the front's reach
NEAR = 1500  # networks that are drawn anew at most; where more are within reach, the next smaller one is taken
DRAWS, DRAWN = (100, 300), 45_000  # fewest and most draws; networks drawn anew, in all
# Columns that no mark says anything of; fewer are quicker to read row by row.
UNREAD = {"checkpoint", "checkpoint_sha256", "options", "reason", "imported", "started", "finished", "numbers", "seed"}
Bar = tuple[float, float] | None  # the lower and the upper end
MARK_SIZES = (7.0, 19.0)  # pixels, where size carries a figure


@dataclass(frozen=True)
class Marks:
    """Networks drawn alike, a row each: `numbers` of their first trials (None: not of this study), x and y in their
    units (fractions for accuracy). `bars_x` and `bars_y` are (low, high) or None each, and empty where none is drawn.
    `colour` has a value or the place of a category each, `size` pixels, `chance` the probability of being on the front.
    """

    kind: str
    name: str
    numbers: tuple[int | None, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    hover: tuple[tuple[str, ...], ...]
    bars_x: tuple[Bar, ...] = ()
    bars_y: tuple[Bar, ...] = ()
    colour: tuple[float | None, ...] = ()
    size: tuple[float, ...] = ()
    chance: tuple[float, ...] = ()


@dataclass(frozen=True)
class Colour:
    """What colour means: a figure on a continuous scale, or, where there are some, categories."""

    quantity: Quantity
    categories: tuple[str, ...] = ()


def usable_rows(rows: pd.DataFrame, axes: Sequence[Quantity], logs: Collection[str]) -> pd.DataFrame:
    """The rows that have a place in the panel: a number on each axis, above 0 on logarithmic ones."""
    mask = np.ones(len(rows), dtype=bool)
    for axis in axes:
        values = numbers(rows, axis.column)
        mask &= np.isfinite(values) & ((values > 0) if axis.column in logs else True)
    return rows[mask]


class Scale:
    """What colour and size mean, over all trials, so that it stays while marks are switched on and off."""

    def __init__(self, snapshot: Snapshot, colour: str | None, size: str | None):
        self.meaning: Colour | None = None
        self.size = quantity_of(snapshot, size) if size else None
        if colour:
            found = quantity_of(snapshot, colour)
            choice = is_choice(snapshot.frame, found.column)
            self.meaning = Colour(found, ordered(labels(snapshot.frame[found.column])) if choice else ())
        if self.size:
            values = numbers(snapshot.frame, self.size.column)
            if not np.isfinite(values).any():
                raise PlotError(f"{size!r} has no number in any trial, so it cannot be a size: choose another")
            self._least, self._most = float(np.nanmin(values)), float(np.nanmax(values))

    def colours(self, rows: pd.DataFrame) -> tuple[float | None, ...]:
        if self.meaning is None:
            return ()
        column = self.meaning.quantity.column
        if self.meaning.categories:
            place = {name: float(i) for i, name in enumerate(self.meaning.categories)}
            return tuple(place[name] for name in labels(rows[column]))
        scaled = numbers(rows, column) * self.meaning.quantity.scale
        return tuple(float(value) if np.isfinite(value) else None for value in scaled)

    def sizes(self, rows: pd.DataFrame) -> tuple[float, ...]:
        if self.size is None:
            return ()
        span = self._most - self._least or 1.0
        share = np.nan_to_num((numbers(rows, self.size.column) - self._least) / span)
        low, high = MARK_SIZES
        return tuple(float(value) for value in (low + (high - low) * np.sqrt(np.clip(share, 0, 1))).round(2))


@dataclass(frozen=True)
class Drawing:
    """How rows become marks."""

    axes: Sequence[Quantity]
    scale: Scale
    images: int | None

    def marks(self, kind: str, name: str, rows: pd.DataFrame, most: int) -> Marks:
        """Thinned evenly by rank of y, so that the cloud keeps its shape."""
        order = np.argsort(numbers(rows, self.axes[1].column), kind="stable")
        drawn = rows.iloc[np.sort(order[evenly(len(rows), most)])]
        return self.of(kind, f"{name} ({counted(len(drawn), len(rows))})", drawn)

    def of(self, kind: str, name: str, rows: pd.DataFrame, *, bars: bool = False) -> Marks:
        found = records(rows[[name for name in rows.columns if name not in UNREAD]])
        bars = bars or len(rows) <= ERROR_BARS
        return Marks(
            kind=kind,
            name=name,
            numbers=tuple(int(row["number"]) for row in found),
            x=tuple(float(row[self.axes[0].column]) for row in found),
            y=tuple(float(row[self.axes[1].column]) for row in found),
            hover=tuple((*architecture(row), *_runs(row)) for row in found),
            bars_x=_bars(found, self.axes[0], self.images) if bars else (),
            bars_y=_bars(found, self.axes[1], self.images) if bars else (),
            colour=self.scale.colours(rows),
            size=self.scale.sizes(rows),
        )

    def front(self, noise: Noise, inside: Array, on_front: Array) -> Marks:
        """By x, best first: whole, with the probability of each."""
        rows, first = noise.rows[on_front], self.axes[0]
        sign = 1 if first.best == "minimize" else -1
        order = np.lexsort((rows["number"], sign * numbers(rows, first.column)))
        names = [axis.name for axis in (self.axes[1], self.axes[0], *self.axes[2:])]
        title = f"front of {', '.join(names[:-1])} and {names[-1]} ({len(rows)})"
        marks = self.of("front", title, rows.iloc[order], bars=True)
        if not on_front.any() or not noise.errors.any():
            return marks
        chance = _chances(noise, inside, on_front)[order]
        hover = tuple(
            (*lines, f"on the front with probability {p:.2f}") for lines, p in zip(marks.hover, chance, strict=True)
        )
        return replace(marks, hover=hover, chance=tuple(round(float(p), 3) for p in chance))

    def stopped(self, snapshot: Snapshot, logs: Collection[str]) -> Marks:
        """With the accuracy of their last epoch."""
        rows = snapshot.frame[snapshot.frame["state"] == "stopped"]
        curves = snapshot.curves[snapshot.curves["number"].isin(rows["number"])].dropna(subset=["validation_accuracy"])
        last = curves.sort_values("epoch", kind="stable").groupby("number")["validation_accuracy"].last()
        rows = rows.assign(accuracy=rows["accuracy"].fillna(rows["number"].map(last).astype(float)))
        return self.marks("stopped", "stopped early, at their last epoch", usable_rows(rows, self.axes, logs), FEWER)


def published(snapshot: Snapshot, axes: Sequence[Quantity]) -> Marks | None:
    found = references(snapshot, axes[0].column, axes[1].column)
    return Marks(
        "reference",
        f"published by others ({len(found)})",
        numbers=(None,) * len(found),
        x=tuple(each.x for each in found),
        y=tuple(each.y for each in found),
        hover=tuple(each.hover for each in found),
    )


def _runs(row: Mapping[str, object]) -> tuple[str, ...]:
    count, sd = row.get("n", 1), row.get("accuracy_sd")
    if not isinstance(count, int) or count < 2:
        return ()
    spread = f", sd of accuracy {100 * float(sd):.2g} points" if isinstance(sd, float) and present(sd) else ""
    return (f"mean of {count} runs{spread}",)


def _bars(rows: Sequence[Mapping[str, object]], axis: Quantity, images: int | None) -> tuple[Bar, ...]:
    """Quartiles of a latency; of another figure one sd between runs on each side, and of an accuracy that was measured
    once its binomial error.
    """
    found = [_bar(row, axis, images) for row in rows]
    return tuple(found) if any(found) else ()


def _bar(row: Mapping[str, object], axis: Quantity, images: int | None) -> Bar:
    def number(column: str) -> float | None:
        value = row.get(column)
        return float(value) if isinstance(value, int | float) and present(value) else None

    centre = number(axis.column) or 0.0
    if axis.spread:
        low, high = (number(column) for column in axis.spread)
        # The median of medians may lie outside of the mean quartiles.
        return None if low is None or high is None else (min(low, centre), max(high, centre))
    half = number(f"{axis.column}_sd")
    if half is None and axis.column == "accuracy" and images:
        half = sampling_error(centre, images)
    return (centre - half, centre + half) if half else None


# --- How sure the front is ---


def _chances(noise: Noise, inside: Array, members: Array) -> Array:
    """The probability of each of the `members` (M,) that none of the networks inside dominates it, by drawing the means
    of those within reach anew: `studies.confidence.front_confidence`, short enough for a page. Where very many are
    within reach, it is an upper bound.
    """
    near = np.flatnonzero(inside)
    for reach in REACHES:
        near = near[members[near] | _within_reach(noise, near, reach)]
        if len(near) <= NEAR:
            break
    few = replace(noise, centres=noise.centres[near], errors=noise.errors[near])
    count = int(np.clip(DRAWN // len(near), *DRAWS))
    drawn = few.draws(count, 0)
    hits = np.zeros(len(near))
    for draw in drawn:
        hits += non_dominated(draw, list(noise.objectives.values()))
    chances: Array = (hits / count)[members[near]]
    return chances


def _within_reach(noise: Noise, places: Array, reach: float) -> Array:
    """Which networks at these places (P,) no other of them dominates, even if each is so many standard errors off."""
    centres = noise.centres[places]
    spread = reach * noise.errors[places] * np.where(np.array(noise.directions) == "maximize", 1, -1)
    worst = centres - spread
    rivals = worst[non_dominated(worst, noise.directions)]
    mask: Array = ~dominated_by(centres + spread, rivals, noise.directions)
    return mask
