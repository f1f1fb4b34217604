"""Parallel coordinates: objectives, costs and parameters as axes, a line a trial, the front before the rest. They are
drawn by `parallel_lines.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mnet_search.dashboards.drawing import counted, evenly
from mnet_search.dashboards.quantities import (
    MISSING,
    PARAMETER,
    Quantity,
    figures,
    is_choice,
    is_logarithmic,
    labels,
    numbers,
    ordered,
    parameter_names,
    quantity,
    with_unit,
)
from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.studies.pareto import Array

LINES = 2000  # the front is always among them, whole
AXES = 12  # more cannot be read; the first ones
DECADE = 10.0  # largest over least value of a cost from which its axis is logarithmic
TICKS = 6


@dataclass(frozen=True)
class ParallelAxis:
    """One axis: `values` are places on it, one a line; `ticks` are places and texts. Categories have whole numbers."""

    column: str
    title: str
    values: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...]
    categories: bool = False
    log: bool = False  # places are powers of ten of the value (times the scale of its quantity)


@dataclass(frozen=True)
class ParallelInfo:
    """Lines by trial number, those of the front last. `colour` has a value a line where a figure is the colour."""

    numbers: tuple[int, ...] = ()
    on_front: tuple[bool, ...] = ()
    axes: tuple[ParallelAxis, ...] = ()
    colour: tuple[float, ...] = ()
    colour_title: str = ""
    note: str = ""
    empty: str = ""


def parallel_info(
    snapshot: Snapshot, *, columns: Collection[str] | None = None, colour: str | None = None, most: int = LINES
) -> ParallelInfo:
    """`columns` are the axes, figures and parameters by name (default: the objectives, the other costs, and every
    parameter that varies). `colour` is a figure; without it the front is told from the rest. PlotError for names that
    the study does not have.
    """
    finished = snapshot.finished()
    if finished.empty:
        return ParallelInfo(empty="no finished trial to draw a line for yet")
    axes = [quantity(snapshot, name) for name in columns] if columns else _usual(snapshot, finished)
    shade = quantity(snapshot, colour) if colour else None
    members = finished["number"].isin(snapshot.front()["number"]).to_numpy()
    rest = np.flatnonzero(~members)
    # Evenly by rank of the first axis, so that a thinned study keeps its shape.
    rest = rest[np.argsort(numbers(finished.iloc[rest], axes[0].column), kind="stable")]
    rest = np.sort(rest[evenly(len(rest), max(0, most - int(members.sum())))])
    rows = finished.iloc[np.concatenate([rest, np.flatnonzero(members)])]
    notes = [f"front and {counted(len(rest), int((~members).sum()))} of the other finished trials"]
    if len(axes) > AXES:
        notes.append(f"the first {AXES} of {len(axes)} axes; choose others by name")
    shades = _shades(rows, shade) if shade else np.zeros(0)
    least = float(np.nanmin(shades)) if np.isfinite(shades).any() else 0.0
    return ParallelInfo(
        numbers=tuple(rows["number"].astype(int).tolist()),
        on_front=tuple([False] * len(rest) + [True] * int(members.sum())),
        axes=tuple(_axis(rows, each) for each in axes[:AXES]),
        colour=tuple(np.nan_to_num(shades, nan=least).tolist()),
        colour_title=shade.axis if shade else "",
        note="; ".join(notes) if len(rest) < (~members).sum() or len(axes) > AXES else "",
    )


def _shades(rows: pd.DataFrame, shade: Quantity) -> Array:
    """Colours are on one scale: categories are places in their order."""
    if not is_choice(rows, shade.column):
        return numbers(rows, shade.column) * shade.scale
    axis = _axis(rows, shade)
    return np.array(axis.values) if any(_is_text(text) for _, text in axis.ticks) else numbers(rows, shade.column)


def _is_text(text: str) -> bool:
    return text != MISSING and not text.replace(".", "", 1).lstrip("-").isdigit()


def _usual(snapshot: Snapshot, finished: pd.DataFrame) -> list[Quantity]:
    """The objectives, the other figures that have a better and a worse, and the parameters that vary."""
    found = [quantity(snapshot, name) for name in (*snapshot.objectives, "params", "mult_adds", "latency_ms")]
    found += [
        quantity(snapshot, PARAMETER + name)
        for name in parameter_names(snapshot)
        if finished[PARAMETER + name].nunique() > 1
    ]
    known = set(figures(snapshot))
    kept = {each.column: each for each in found if each.column in known or each.column.startswith(PARAMETER)}
    return list(kept.values())


def _axis(rows: pd.DataFrame, axis: Quantity) -> ParallelAxis:
    if is_choice(rows, axis.column):
        texts = labels(rows[axis.column])
        names = ordered(texts)
        places = {name: float(i) for i, name in enumerate(names)}
        ticks = tuple((place, name) for name, place in places.items())
        return ParallelAxis(axis.column, axis.name, tuple(places[text] for text in texts), ticks, True)
    values = numbers(rows, axis.column) * axis.scale
    real = values[np.isfinite(values)]
    if not len(real):
        return ParallelAxis(axis.column, with_unit(axis), (0.0,) * len(rows), ((0.0, MISSING),))
    log = is_logarithmic(real) or (axis.best == "minimize" and real.min() > 0 and real.max() / real.min() >= DECADE)
    if log:
        values, real = np.log10(values), np.log10(real)
    ticks = _ticks(float(real.min()), float(real.max()), axis, log)
    if len(real) < len(values):
        below = float(f"{real.min() - 0.1 * (real.max() - real.min() or 1.0):.6g}")
        values = np.where(np.isfinite(values), values, below)
        ticks = ((below, MISSING), *ticks)
    return ParallelAxis(axis.column, with_unit(axis), _rounded(values), ticks, log=log)


def _rounded(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _ticks(low: float, high: float, axis: Quantity, log: bool) -> tuple[tuple[float, str], ...]:
    """Round values, ascending, in the axis' own unit."""
    if high - low < 1e-12:
        return ((low, _text(10**low if log else low, axis)),)
    if log:
        powers = range(math.floor(low), math.ceil(high) + 1)
        digits = (1, 2, 5) if high - low < 2.2 else (1,)
        found = [math.log10(digit) + power for power in powers for digit in digits]
        return tuple((tick, _text(10**tick, axis)) for tick in found if low - 1e-9 <= tick <= high + 1e-9)
    step = 10.0 ** math.floor(math.log10(high - low))
    step *= next(share for share in (0.2, 0.5, 1, 2, 5) if (high - low) / (step * share) <= TICKS)
    return tuple((i * step, _text(i * step, axis)) for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def _text(value: float, axis: Quantity) -> str:
    return f"{value:.4g}" if axis.scale != 1 or axis.spread else axis.text(value)
