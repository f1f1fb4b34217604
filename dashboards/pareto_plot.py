"""The Pareto view: any two figures of a study against each other (a third as colour), with the front and what is behind
it, cut off by budgets, stopped early, or published by others.

A mark is a network: the mean over its runs, by `studies.pareto.networks`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mnet_search.dashboards.pareto_marks import FEWER, POINTS, Colour, Drawing, Marks, Scale, published, usable_rows
from mnet_search.dashboards.quantities import PlotError, Quantity, figure_axis, numbers
from mnet_search.dashboards.quantities import quantity as quantity_of
from mnet_search.dashboards.snapshot import Snapshot, noise_note, phrase, records, validation_images
from mnet_search.models.tables import nearest
from mnet_search.studies.noise import noise_of
from mnet_search.studies.pareto import Array, non_dominated

MARGIN = 0.08  # of the values framed, left free above and below

KINDS = ("reference", "over_budget", "stopped", "dominated", "front")  # in the order of drawing
SHOWN = ("front", "dominated", "stopped", "over_budget")


@dataclass(frozen=True)
class ParetoInfo:
    """The panel. `marks` are in the order of drawing, the front last (by x); `line` says whether the front is joined;
    `y_range` is what is framed at first, so that failures do not flatten the front; `limits` are the budgets that lie
    on an axis, as ("x" or "y", value); `best` names the best network within the budgets; `empty` says why there is
    nothing.
    """

    x: Quantity
    y: Quantity
    log_x: bool
    log_y: bool
    marks: tuple[Marks, ...] = ()
    line: bool = False
    y_range: tuple[float, float] | None = None
    colour: Colour | None = None
    limits: tuple[tuple[str, float], ...] = ()
    best: str = ""
    note: str = ""
    empty: str = ""

    def kind(self, name: str) -> Marks | None:
        """The marks of one kind, where they are drawn."""
        return next((marks for marks in self.marks if marks.kind == name), None)


def pareto_info(
    snapshot: Snapshot,
    *,
    x: str = "latency_ms",
    y: str = "accuracy",
    z: str | None = None,
    colour: str | None = None,
    size: str | None = None,
    log_x: bool = True,
    log_y: bool = False,
    show: Collection[str] = SHOWN,
    budgets: Mapping[str, float] | None = None,
) -> ParetoInfo:
    """The front of `y`, `x` and, where it is given, `z` (shown as colour unless another is asked for).

    `show` has names of KINDS. `budgets` are the most of a figure that is minimised, or the least of one that is
    maximised, in the frame's units: networks beyond them take no part in the front. PlotError for names that the study
    does not have.
    """
    _known(show)
    axes = [figure_axis(snapshot, name) for name in (x, y, *((z,) if z else ()))]
    if len({axis.column for axis in axes}) < len(axes):
        raise PlotError(f"axes must differ, and {x!r} and {y!r}{f' and {z!r}' if z else ''} do not: choose another")
    bounds = [(figure_axis(snapshot, name), float(limit)) for name, limit in (budgets or {}).items()]
    scale = Scale(snapshot, colour or z, size)
    info = ParetoInfo(axes[0], axes[1], log_x, log_y, colour=scale.meaning)
    logs = [axes[0].column] * log_x + [axes[1].column] * log_y
    usable = usable_rows(snapshot.finished(), axes, logs)
    if usable.empty:
        return replace(info, empty=_why_empty(snapshot, axes))
    noise = noise_of(usable, {axis.column: axis.best for axis in axes}, validation_images(snapshot.provenance))
    inside = _inside(noise.rows, bounds)
    on_front = np.zeros(len(noise.rows), dtype=bool)
    on_front[inside] = non_dominated(noise.values[inside], [axis.best for axis in axes])
    drawing = Drawing(axes, scale, validation_images(snapshot.provenance))
    rest = noise.rows[inside & ~on_front]
    kinds = {
        "front": lambda: drawing.front(noise, inside, on_front),
        "dominated": lambda: drawing.marks("dominated", "dominated", rest, POINTS),
        "stopped": lambda: drawing.stopped(snapshot, logs),
        "over_budget": lambda: drawing.marks("over_budget", "over budget", noise.rows[~inside], FEWER),
        "reference": lambda: published(snapshot, axes),
    }
    found = [kinds[kind]() for kind in KINDS if kind in show]
    floor, y_range = _framed(axes[1], noise.values[on_front, 1], noise.values[inside & ~on_front, 1], log_y)
    marks = tuple(_below(each, floor) for each in found if each is not None and each.x)
    if y_range:
        y_range = (floor, max([y_range[1], *(y * (1 + MARGIN / 10) for each in marks for y in each.y)]))
    members = noise.rows[on_front]
    return replace(
        info,
        marks=marks,
        line=z is None,
        y_range=y_range if any("below" in each.name for each in marks) else None,
        limits=tuple(
            (side, limit)
            for axis, limit in bounds
            for side, q in (("x", axes[0]), ("y", axes[1]))
            if q.column == axis.column
        ),
        best=_best_inside(snapshot, noise.rows[inside], bounds),
        note=_note(snapshot, axes, members, marks, size),
        empty=_nothing_drawn(marks, show, bounds),
    )


# --- What there is ---


def _known(show: Collection[str]) -> None:
    for name in show:
        if name not in KINDS:
            raise PlotError(f"there is no kind of mark {name!r}{nearest(name, KINDS)}; known: {', '.join(KINDS)}")


def _why_empty(snapshot: Snapshot, axes: Sequence[Quantity]) -> str:
    names = " and ".join(axis.name for axis in reversed(axes[:2]))
    if snapshot.finished().empty:
        return f"no finished trial has {names} yet"
    return f"no finished trial has {names}, so there is nothing to compare: choose other axes"


def _inside(rows: pd.DataFrame, bounds: Sequence[tuple[Quantity, float]]) -> Array:
    """Which networks keep every budget; one that was not measured does not."""
    mask = np.ones(len(rows), dtype=bool)
    for axis, limit in bounds:
        values = numbers(rows, axis.column)
        mask &= (values <= limit) if axis.best == "minimize" else (values >= limit)
    return mask


def _budget_text(bounds: Sequence[tuple[Quantity, float]]) -> str:
    most = {"minimize": "at most", "maximize": "at least"}
    return " and ".join(f"{axis.name} {most[axis.best]} {axis.text(limit)}" for axis, limit in bounds)


def _best_inside(snapshot: Snapshot, rows: pd.DataFrame, bounds: Sequence[tuple[Quantity, float]]) -> str:
    """The best by accuracy, or else by the study's first objective; the fewer params the better among equals."""
    if not bounds or rows.empty:
        return ""
    first = "accuracy" if "accuracy" in snapshot.objectives else next(iter(snapshot.objectives))
    best = quantity_of(snapshot, first).best
    if rows[first].isna().all() or rows["accuracy"].isna().all():
        return ""
    order = rows.dropna(subset=["accuracy"]).sort_values(
        [first, "params", "number"], ascending=[best == "minimize", True, True]
    )
    return f"best with {_budget_text(bounds)}: {phrase(records(order.head(1))[0])}"


# --- Framing and words ---


def _framed(axis: Quantity, front: Array, rest: Array, log: bool) -> tuple[float, tuple[float, float] | None]:
    """From where the panel is drawn at first, and to where."""
    if not len(rest) or not len(front) or axis.best != "maximize" or log:
        return -np.inf, None
    lowest, best = min(front.min(), np.quantile(rest, 0.25)), front.max()
    floor = float(lowest - MARGIN * (best - lowest))
    return floor, (floor, float(best + MARGIN * (best - floor)))


def _below(marks: Marks, floor: float) -> Marks:
    count = sum(value < floor for value in marks.y)
    return replace(marks, name=f"{marks.name[:-1]}, {count:,} below the frame)") if count else marks


def _note(
    snapshot: Snapshot, axes: Sequence[Quantity], members: pd.DataFrame, marks: Sequence[Marks], size: str | None
) -> str:
    parts = []
    if any(axis.column == "accuracy" for axis in axes):
        parts.append(noise_note(members, snapshot.finished(), snapshot.provenance))
    if len(members) and (members["n"] > 1).any() and any(each.bars_y for each in marks):
        parts.append("bars of accuracy are one standard deviation between runs")
    if size:
        parts.append(f"a larger mark has more {quantity_of(snapshot, size).name}")
    return ". ".join(part[0].upper() + part[1:] if i else part for i, part in enumerate(filter(None, parts)))


def _nothing_drawn(marks: Sequence[Marks], show: Collection[str], bounds: Sequence[tuple[Quantity, float]]) -> str:
    if marks:
        return ""
    if bounds and "over_budget" not in show:
        return f"no finished trial has {_budget_text(bounds)}: allow more, or show what is over budget"
    return f"nothing of what is switched on is there; switch on more of: {', '.join(KINDS)}"
