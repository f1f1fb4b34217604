"""Latency: how well it is predicted, by the space's table or else by mult-adds, and how steady the machine was."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnet_search.dashboards.drawing import (
    BLUE,
    EDGE,
    VERMILLION,
    counted,
    dates,
    empty,
    escaped,
    evenly,
    layout,
    lines,
    log_ticks,
    plural,
)
from mnet_search.dashboards.quantities import numbers
from mnet_search.dashboards.snapshot import Snapshot, architecture, milliseconds, records
from mnet_search.models.arch import MnetError
from mnet_search.models.families import create
from mnet_search.models.latency_table import LatencyTable, spearman

NETWORKS = 200  # measured networks that are drawn
BOUND = 0.1  # drift up to which a measurement is good, by the usual protocol
LEAST_DRIFT = 0.1  # percent, as which less is drawn
POINTS = 2000  # of the drift over time


@dataclass(frozen=True)
class LatencyInfo:
    """Measured latency against what was known before. `x` is in ms where a table predicts (`predicted`), else
    mult-adds; `estimated` says which predictions are of layers that the table does not hold. `y` are medians, `bars`
    their quartiles, in ms.
    """

    predicted: bool = False
    numbers: tuple[int, ...] = ()
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    bars: tuple[tuple[float, float], ...] = ()
    estimated: tuple[bool, ...] = ()
    hover: tuple[tuple[str, ...], ...] = ()
    n_trials: int = 0
    note: str = ""
    empty: str = ""


def latency_info(snapshot: Snapshot, *, most: int = NETWORKS) -> LatencyInfo:
    """From at most `most` finished trials, evenly chosen by latency; the newest table of the space predicts."""
    finished = snapshot.finished()
    rows = finished[numbers(finished, "latency_ms") > 0]
    if rows.empty:
        why = "no latency was measured yet" if finished.empty else "this study measures no latency"
        return LatencyInfo(empty=f"{why}; objectives: latency_ms in the space file asks for it")
    order = np.argsort(rows["latency_ms"].to_numpy(), kind="stable")
    rows = rows.iloc[order[evenly(len(rows), most)]]
    table = snapshot.latency_tables[-1] if snapshot.latency_tables else None
    found = _predictions(rows, table) if table else None
    known = [cell[0] for cell in found] if found else numbers(rows, "mult_adds").tolist()
    measured = numbers(rows, "latency_ms").tolist()
    hover = tuple(
        (*architecture(row), f"predicted: {milliseconds(x)}") if found else architecture(row)
        for row, x in zip(records(rows), known, strict=True)
    )
    low = np.fmin(np.nan_to_num(numbers(rows, "latency_q1_ms"), nan=np.inf), measured)
    high = np.fmax(np.nan_to_num(numbers(rows, "latency_q3_ms"), nan=-np.inf), measured)
    return LatencyInfo(
        predicted=found is not None,
        numbers=tuple(rows["number"].astype(int).tolist()),
        x=tuple(float(value) for value in known),
        y=tuple(float(value) for value in measured),
        bars=tuple(zip(low.tolist(), high.tolist(), strict=True)),
        estimated=tuple(cell[1] for cell in found) if found else (False,) * len(rows),
        hover=hover,
        n_trials=len(order),
        note=_agreement(known, measured, predicted=found is not None, refused=table is not None and found is None),
    )


def _predictions(rows: pd.DataFrame, table: LatencyTable) -> list[tuple[float, bool]] | None:
    """(ms, whether a layer was estimated) of each network; None where the table cannot tell."""
    known: dict[str, tuple[float, bool]] = {}
    if "options" not in rows.columns:
        return None
    try:
        for row in records(rows):
            if row["arch_id"] not in known:
                found = table.predict(create(row["family"], **row["options"]))
                known[row["arch_id"]] = (found.latency_ms, bool(found.estimated))
    except MnetError:
        return None
    return [known[arch_id] for arch_id in rows["arch_id"]]


def _agreement(known: Sequence[float], measured: Sequence[float], *, predicted: bool, refused: bool) -> str:
    n = len(measured)
    rank = f"rank correlation {spearman(known, measured):.3f}" if n > 2 and len(set(known)) > 1 else ""
    if predicted:
        off = np.abs(np.array(known) / np.array(measured) - 1)
        error = f"predictions are off by {100 * float(np.median(off)):.0f} % (median of {n})"
        return ", ".join(filter(None, [error, rank]))
    why = "the table does not know these layers" if refused else "no latency table is stored for this space"
    build = "" if refused else "; mnet-search latency table --build SPACE makes one"
    return "; ".join(filter(None, [f"{why}, so mult-adds stand in{build}", f"{rank} (n {n})" if rank else ""]))


def latency_figure(info: LatencyInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    title = "Predicted latency (ms)" if info.predicted else "Multiply-adds per image"
    ticks = "~g" if info.predicted else "~s"
    figure.update_xaxes(title_text=title, type="log", tickformat=ticks, **log_ticks(info.x))
    figure.update_yaxes(title_text="Measured latency (ms)", type="log", tickformat="~g", **log_ticks(info.y))
    if info.empty:
        return empty(figure, info.empty)
    if info.predicted:
        ends = [min(*info.x, *info.y), max(*info.x, *info.y)]
        line = {"color": EDGE, "dash": "dash"}
        figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", name="as predicted", line=line, hoverinfo="skip"))
    figure.add_trace(
        go.Scatter(
            x=list(info.x),
            y=list(info.y),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - y for y, (_, high) in zip(info.y, info.bars, strict=True)],
                "arrayminus": [y - low for y, (low, _) in zip(info.y, info.bars, strict=True)],
                "thickness": 1,
                "width": 2,
            },
            customdata=list(info.numbers),
            text=[lines(hover) for hover in info.hover],
            hovertemplate="%{text}<extra></extra>",
            mode="markers",
            name=f"trials ({counted(len(info.y), info.n_trials)})",
            showlegend=True,
            marker={"color": BLUE, "size": 7, "symbol": ["circle-open" if e else "circle" for e in info.estimated]},
        )
    )
    return figure


# --- How steady the machine was ---


@dataclass(frozen=True)
class DriftInfo:
    """The drift of the reference network beside each latency measurement: the upper over the lower quartile of its
    samples, less 1, as a fraction; `good` where the protocol's bound was kept.
    """

    numbers: tuple[int, ...] = ()
    when: tuple[datetime.datetime, ...] = ()
    drift: tuple[float, ...] = ()
    good: tuple[bool, ...] = ()
    hover: tuple[str, ...] = ()
    note: str = ""
    empty: str = ""


def drift_info(snapshot: Snapshot) -> DriftInfo:
    """Needs the snapshot's `measurements`."""
    rows = snapshot.measurements
    rows = rows[rows["drift"].notna()] if len(rows) else rows
    if rows.empty:
        yet = " yet" if snapshot.finished().empty else " in this study"
        return DriftInfo(empty=f"no latency was measured beside the reference network{yet}, which shows drift")
    rows = rows.iloc[evenly(len(rows), POINTS)]
    bad = int((~rows["good"].astype(bool)).sum())
    return DriftInfo(
        numbers=tuple(rows["number"].astype(int).tolist()),
        when=tuple(when.to_pydatetime() for when in rows["measured"]),
        drift=tuple(rows["drift"].astype(float).tolist()),
        good=tuple(rows["good"].astype(bool).tolist()),
        hover=tuple(
            f"trial {number}: {milliseconds(median)}, drift {100 * drift:.1f} %"
            for number, median, drift in zip(rows["number"], rows["median_ms"], rows["drift"], strict=True)
        ),
        note=f"median drift {100 * float(rows['drift'].median()):.1f} %; {bad:,} of "
        f"{plural(len(rows), 'measurement')} beyond the protocol's bound: the machine was not the same throughout",
    )


def drift_figure(info: DriftInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(**dates())
    figure.update_yaxes(title_text="Drift of the reference (%)", type="log", tickformat="~g")
    if info.empty:
        return empty(figure, info.empty)
    shown = [max(LEAST_DRIFT, 100 * drift) for drift in info.drift]
    figure.update_yaxes(**log_ticks([*shown, 100 * BOUND]))
    figure.add_hline(y=100 * BOUND, line={"color": EDGE, "dash": "dash"})
    for good, name, colour, symbol in ((True, "good", BLUE, "circle"), (False, "not good", VERMILLION, "x")):
        places = [i for i, each in enumerate(info.good) if each is good]
        if places:
            figure.add_trace(
                go.Scatter(
                    x=[info.when[i] for i in places],
                    y=[shown[i] for i in places],
                    customdata=[info.numbers[i] for i in places],
                    text=[escaped(info.hover[i]) for i in places],
                    hovertemplate="%{text}<extra></extra>",
                    mode="markers",
                    name=f"{name} ({len(places):,})",
                    showlegend=True,
                    marker={"color": colour, "symbol": symbol, "size": 7},
                )
            )
    return figure
