"""Learning curves of a study: of its front, of what runs now, of the rest, or of trials that were chosen; and the rungs
at which the scheduler stopped trials.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnet_search.dashboards.drawing import (
    COLOURS,
    DASHES,
    EDGE,
    FRONT,
    OTHER,
    RUNNING,
    SYMBOLS,
    empty,
    escaped,
    layout,
    lines,
    of,
    plural,
)
from mnet_search.dashboards.snapshot import Snapshot, architecture, records

CURVES = 200  # of the other trials whose learning curves are drawn, the latest first
CHOSEN = 50  # of the trials that were chosen, the first ones
RUNGS = 12  # with the most trials stopped; more are no rungs


@dataclass(frozen=True)
class Curve:
    """Validation accuracy (fractions) of one trial by epoch, with its architecture if it is not one of the rest."""

    number: int
    epochs: tuple[int, ...]
    accuracy: tuple[float, ...]
    hover: tuple[str, ...]


@dataclass(frozen=True)
class CurvesInfo:
    """Learning curves: of the study's front, of the trials that run now, and of the rest, or only of those that were
    chosen; each by trial number. `rungs` are (epoch, trials stopped there).
    """

    front: tuple[Curve, ...]
    running: tuple[Curve, ...]
    others: tuple[Curve, ...]
    n_others: int  # may be more than are drawn
    last_epoch: int
    chosen: tuple[Curve, ...] = ()
    rungs: tuple[tuple[int, int], ...] = ()
    note: str = ""
    empty: str = ""


def curves_info(snapshot: Snapshot, *, numbers: Collection[int] | None = None) -> CurvesInfo:
    """`numbers` draws the curves of these trials alone, with their architectures."""
    rows = snapshot.curves.dropna(subset=["validation_accuracy"])
    rungs = _rungs(snapshot.frame)
    if numbers is not None:
        return replace(_chosen(snapshot, rows, numbers), rungs=rungs)
    frame = snapshot.frame
    members = set(snapshot.front()["number"].tolist())
    running = set(frame.loc[frame["state"] == "running", "number"].tolist())
    others = [number for number in np.unique(rows["number"]).tolist() if number not in members | running]
    shown = rows[rows["number"].isin([*members, *running, *others[-CURVES:]])]
    curves = _curves(snapshot, shown, members | running)
    # A snapshot need not hold the curves of all trials.
    begun = frame.loc[~frame["number"].isin([*members, *running]), "epochs"] > 0
    return CurvesInfo(
        front=tuple(curve for curve in curves if curve.number in members),
        running=tuple(curve for curve in curves if curve.number in running),
        others=tuple(curve for curve in curves if curve.number not in members | running),
        n_others=max(len(others), int(begun.sum())),
        last_epoch=int(rows["epoch"].max()) if len(rows) else 0,
        rungs=rungs,
        empty="" if curves else "no trial has finished its first epoch yet",
    )


def _chosen(snapshot: Snapshot, rows: pd.DataFrame, numbers: Collection[int]) -> CurvesInfo:
    wanted = sorted(set(numbers))
    drawn = wanted[:CHOSEN]
    shown = rows[rows["number"].isin(drawn)]
    curves = _curves(snapshot, shown, drawn)
    lacking = [number for number in drawn if number not in {curve.number for curve in curves}]
    notes = [f"the first {CHOSEN} of {len(wanted):,} chosen trials"] if len(wanted) > CHOSEN else []
    if lacking:
        listed = ", ".join(map(str, lacking[:8])) + (", ..." if len(lacking) > 8 else "")
        notes.append(f"no curve yet of trial{'s' * (len(lacking) > 1)} {listed}")
    why = "" if curves else "no trial is chosen: click one in the front or in the table"
    return CurvesInfo(
        front=(),
        running=(),
        others=(),
        n_others=0,
        last_epoch=int(shown["epoch"].max()) if len(shown) else 0,
        chosen=curves,
        note="; ".join(notes) if curves else "",
        empty=why if curves or not wanted else "none of the chosen trials has finished its first epoch yet",
    )


def _curves(snapshot: Snapshot, rows: pd.DataFrame, named: Collection[int]) -> tuple[Curve, ...]:
    frame = snapshot.frame[snapshot.frame["number"].isin(list(named))]
    hovers = {int(row["number"]): architecture(row) for row in records(frame)}
    return tuple(_curve(group, hovers) for _, group in rows.sort_values(["number", "epoch"]).groupby("number"))


def _curve(rows: pd.DataFrame, hovers: Mapping[int, tuple[str, ...]]) -> Curve:
    number = int(rows["number"].iloc[0])
    return Curve(
        number=number,
        epochs=tuple(rows["epoch"].astype(int).tolist()),
        accuracy=tuple(rows["validation_accuracy"].astype(float).tolist()),
        hover=hovers.get(number, (f"trial {number}",)),
    )


def _rungs(frame: pd.DataFrame) -> tuple[tuple[int, int], ...]:
    epochs = frame.loc[(frame["state"] == "stopped") & (frame["epochs"] > 0), "epochs"]
    counts = epochs.astype(int).value_counts().head(RUNGS).sort_index()
    return tuple((int(str(epoch)), int(count)) for epoch, count in counts.items())


# --- Drawing ---


def curves_figure(info: CurvesInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(title_text="Epoch", tickformat="d", dtick=1 if info.last_epoch <= 12 else None)
    figure.update_yaxes(title_text="Validation accuracy (%)")
    if info.empty:
        return empty(figure, info.empty)
    if info.others:
        figure.add_trace(_joined(info))
    running, members = f"running ({len(info.running)})", f"on the front of the study ({len(info.front)})"
    for name, curves, line in (
        (running, info.running, {"color": RUNNING, "width": 2, "dash": "dot"}),
        (members, info.front, {"color": FRONT, "width": 2}),
    ):
        for row, curve in enumerate(curves):
            figure.add_trace(_trace(curve, name, line, legendgroup=name, showlegend=row == 0))
    for place, curve in enumerate(info.chosen):
        line = {"color": of(COLOURS, place), "width": 2, "dash": of(DASHES, place // len(COLOURS))}
        figure.add_trace(_trace(curve, f"trial {curve.number}", line, symbol=of(SYMBOLS, place)))
    for epoch, count in info.rungs:
        figure.add_vline(
            x=epoch,
            line={"color": EDGE, "width": 1, "dash": "dot"},
            annotation={"text": f"{count:,} stopped", "textangle": -90, "font": {"size": 10}, "yanchor": "bottom"},
            annotation_position="bottom left",
        )
    if info.rungs:
        corner = {"x": 1, "y": 0, "xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "top"}
        text = f"dotted: {plural(len(info.rungs), 'epoch')} at which trials were stopped early"
        figure.add_annotation(text=text, showarrow=False, yshift=-34, font={"size": 10}, **corner)
    return figure


def _trace(curve: Curve, name: str, line: Mapping[str, object], symbol: str = "circle", **more: object) -> go.Scatter:
    return go.Scatter(
        x=curve.epochs,
        y=[100 * accuracy for accuracy in curve.accuracy],
        customdata=[curve.number] * len(curve.epochs),
        meta=lines(curve.hover),
        hovertemplate="epoch %{x}: %{y:.2f} %<br>%{meta}<extra></extra>",
        name=escaped(name),
        mode="lines+markers",
        line=line,
        marker={"size": 5, "symbol": symbol},
        **more,
    )


def _joined(info: CurvesInfo) -> go.Scatter:
    """All other curves as one trace with gaps between them, which is quick to draw."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int] = []
    for curve in info.others:
        x += [*curve.epochs, None]
        y += [*(100 * accuracy for accuracy in curve.accuracy), None]
        numbers += [curve.number] * (len(curve.epochs) + 1)
    count = f"{info.n_others:,}"
    if info.n_others > len(info.others):
        count = f"the latest {len(info.others):,} of {info.n_others:,}"
    return go.Scatter(
        x=x,
        y=y,
        customdata=numbers,
        hovertemplate="epoch %{x}: %{y:.2f} %<br>trial %{customdata}<extra></extra>",
        name=f"other trials ({count})",
        mode="lines+markers",
        line={"color": OTHER, "width": 1},
        marker={"size": 3},
    )
