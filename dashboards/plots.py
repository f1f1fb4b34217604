"""Every plot of a study, each as two functions: what is shown (an info of plain data) and how (a plotly figure).

The info function takes a `Snapshot` and does all the choosing, sorting and wording; its result is a frozen dataclass
that tests compare with `==`. The figure function draws that and decides nothing. Colours are from Okabe and Ito's
palette, and size, line and lightness carry the same difference, so no plot depends on telling hues apart.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnet_search.dashboards.snapshot import COSTS, Snapshot, architecture, noise_note, present, records
from mnet_search.studies.pareto import front, networks

POINTS = 2000  # of the other trials that one panel draws; the front is always whole
ERROR_BARS = 500  # other trials up to which each shows its latency quartiles
MARGIN = 0.08  # of the accuracies framed, left free above and below
CURVES = 200  # of the other trials whose learning curves are drawn, the latest first

FRONT, RUNNING = "#D55E00", "#0072B2"
OTHER, GRID = "rgba(126, 138, 152, 0.6)", "rgba(128, 138, 148, 0.25)"


# --- Accuracy against a cost ---


@dataclass(frozen=True)
class Point:
    """One finished trial in a panel. Accuracy is a fraction; low and high are the quartiles of a measured cost."""

    number: int
    cost: float
    accuracy: float
    low: float | None
    high: float | None
    hover: tuple[str, ...]


@dataclass(frozen=True)
class ParetoInfo:
    """The front of accuracy and one cost (cheapest first), and the trials behind it (by number)."""

    cost: str
    front: tuple[Point, ...]
    others: tuple[Point, ...]
    n_others: int  # may be more than are drawn
    floor: float  # accuracy from which the panel is drawn at first, so that failures do not flatten the front
    n_below: int  # others below it
    note: str


def pareto_info(snapshot: Snapshot, cost: str) -> ParetoInfo:
    finished = snapshot.finished()
    usable = finished[(finished[cost] > 0) & finished["accuracy"].notna()]
    members = front(usable, {"accuracy": "maximize", cost: "minimize"})
    others = usable[~usable["number"].isin(members["number"])].sort_values("number")
    # Evenly by rank of accuracy, so that a thinned cloud keeps its shape.
    ranks = np.linspace(0, len(others) - 1, min(len(others), POINTS)).round().astype(int)
    drawn = others.sort_values("accuracy", kind="stable").iloc[ranks].sort_values("number")
    floor = 0.0
    if len(others):
        lowest = min(members["accuracy"].min(), others["accuracy"].quantile(0.25))
        floor = float(lowest - MARGIN * (members["accuracy"].max() - lowest))
    return ParetoInfo(
        cost=cost,
        front=_points(members, cost),
        others=_points(drawn, cost),
        n_others=len(others),
        floor=floor,
        n_below=int((others["accuracy"] < floor).sum()),
        note=noise_note(members, finished, snapshot.provenance),
    )


def _points(rows: pd.DataFrame, cost: str) -> tuple[Point, ...]:
    low, high = COSTS[cost].spread or ("", "")

    def limit(row: Mapping[str, Any], column: str) -> float | None:
        return float(row[column]) if present(row.get(column)) else None

    return tuple(
        Point(
            number=int(row["number"]),
            cost=float(row[cost]),
            accuracy=float(row["accuracy"]),
            low=limit(row, low),
            high=limit(row, high),
            hover=architecture(row),
        )
        for row in records(rows)
    )


def pareto_figure(info: ParetoInfo) -> go.Figure:
    cost = COSTS[info.cost]
    figure = go.Figure(layout=_layout(info.note))
    figure.update_xaxes(title_text=cost.axis, type="log", tickformat=cost.ticks, **_log_ticks(info))
    figure.update_yaxes(title_text="Validation accuracy (%)")
    if not info.front:
        return _empty(figure, f"no finished trial has an accuracy and its {cost.name} yet")
    if info.others:
        count = f"{info.n_others:,}"
        if info.n_others > len(info.others):
            count = f"{len(info.others):,} of {info.n_others:,} shown"
        if info.n_below:
            # A double click on the panel shows them: plotly's own way back to all data.
            count += f", {info.n_below:,} below the frame"
            best = info.front[-1].accuracy
            figure.update_yaxes(range=[100 * info.floor, 100 * (best + MARGIN * (best - info.floor))])
        style = {"mode": "markers", "marker": {"color": OTHER, "size": 6}}
        bars = len(info.others) <= ERROR_BARS
        figure.add_trace(_scatter(info.others, f"other trials ({count})", OTHER, bars=bars, **style))
    # A step, since at a budget between two points the best known network is still the cheaper one.
    style = {
        "mode": "lines+markers",
        "line": {"color": FRONT, "width": 2, "shape": "hv"},
        "marker": {"color": FRONT, "size": 11, "line": {"color": "white", "width": 1}},
    }
    title = f"front of accuracy and {cost.name} ({len(info.front)})"
    figure.add_trace(_scatter(info.front, title, FRONT, bars=True, **style))
    return figure


def _log_ticks(info: ParetoInfo) -> dict[str, Any]:
    """Ticks at 1, 2, 5 of each decade: left alone, plotly labels all nine digits, which overlap on narrow screens."""
    costs = [point.cost for point in (*info.front, *info.others)]
    decades = math.log10(max(costs) / min(costs)) if costs else 0.0
    if decades < 0.85:
        return {"nticks": 4}  # plotly's own, which are linear there
    return {"dtick": "D2" if decades < 3.2 else 1}


def _scatter(points: tuple[Point, ...], name: str, color: str, *, bars: bool, **style: Any) -> go.Scatter:
    if bars and any(point.low is not None for point in points):
        style["error_x"] = {
            "array": [0.0 if point.high is None else max(0.0, point.high - point.cost) for point in points],
            "arrayminus": [0.0 if point.low is None else max(0.0, point.cost - point.low) for point in points],
            "color": color,
            "thickness": 1,
            "width": 3,
        }
    return go.Scatter(
        x=[point.cost for point in points],
        y=[100 * point.accuracy for point in points],
        customdata=[point.number for point in points],
        text=[_lines(point.hover) for point in points],
        hovertemplate="%{text}<extra></extra>",
        name=name,
        **style,
    )


# --- Learning curves ---


@dataclass(frozen=True)
class Curve:
    """Validation accuracy (fractions) of one trial by epoch, with its architecture if on the front or running."""

    number: int
    epochs: tuple[int, ...]
    accuracy: tuple[float, ...]
    hover: tuple[str, ...]


@dataclass(frozen=True)
class CurvesInfo:
    """Learning curves: of the study's front, of the trials that run now, and of the rest; each by trial number."""

    front: tuple[Curve, ...]
    running: tuple[Curve, ...]
    others: tuple[Curve, ...]
    n_others: int  # may be more than are drawn
    last_epoch: int


def curves_info(snapshot: Snapshot) -> CurvesInfo:
    rows = snapshot.curves.dropna(subset=["validation_accuracy"]).sort_values(["number", "epoch"])
    members = set(snapshot.front()["number"])
    running = set(snapshot.frame.loc[snapshot.frame["state"] == "running", "number"])
    others = sorted(set(rows["number"]) - members - running)
    shown = rows[rows["number"].isin(members | running | set(others[-CURVES:]))]
    named = snapshot.frame[snapshot.frame["number"].isin(members | running)]
    hovers = {int(row["number"]): architecture(row) for row in records(named)}
    curves = [_curve(group, hovers) for _, group in shown.groupby("number")]
    return CurvesInfo(
        front=tuple(curve for curve in curves if curve.number in members),
        running=tuple(curve for curve in curves if curve.number in running),
        others=tuple(curve for curve in curves if curve.number not in members | running),
        n_others=len(others),
        last_epoch=int(rows["epoch"].max()) if len(rows) else 0,
    )


def _curve(rows: pd.DataFrame, hovers: Mapping[int, tuple[str, ...]]) -> Curve:
    number = int(rows["number"].iloc[0])
    return Curve(
        number=number,
        epochs=tuple(int(epoch) for epoch in rows["epoch"]),
        accuracy=tuple(float(accuracy) for accuracy in rows["validation_accuracy"]),
        hover=hovers.get(number, (f"trial {number}",)),
    )


def curves_figure(info: CurvesInfo) -> go.Figure:
    figure = go.Figure(layout=_layout(""))
    figure.update_xaxes(title_text="Epoch", tickformat="d", dtick=1 if info.last_epoch <= 12 else None)
    figure.update_yaxes(title_text="Validation accuracy (%)")
    if not (info.front or info.running or info.others):
        return _empty(figure, "no trial has finished its first epoch yet")
    if info.others:
        figure.add_trace(_joined(info))
    running, members = f"running ({len(info.running)})", f"on the front of the study ({len(info.front)})"
    for name, curves, line in (
        (running, info.running, {"color": RUNNING, "width": 2, "dash": "dot"}),
        (members, info.front, {"color": FRONT, "width": 2}),
    ):
        for row, curve in enumerate(curves):
            trace = go.Scatter(
                x=curve.epochs,
                y=[100 * accuracy for accuracy in curve.accuracy],
                meta=_lines(curve.hover),
                hovertemplate="epoch %{x}: %{y:.2f} %<br>%{meta}<extra></extra>",
                name=name,
                legendgroup=name,
                showlegend=row == 0,
                mode="lines+markers",
                line=line,
                marker={"size": 5},
            )
            figure.add_trace(trace)
    return figure


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


# --- The distribution of errors ---


@dataclass(frozen=True)
class ErrorsInfo:
    """F(error) over a study's finished networks, each once: (error, share of networks with at most it), ascending, as
    fractions (Radosavovic et al., arXiv 1905.13214, section 3.1).
    """

    points: tuple[tuple[float, float], ...]
    n_networks: int  # may be more than are drawn
    note: str


def errors_info(snapshot: Snapshot) -> ErrorsInfo:
    rows = networks(snapshot.frame, {"accuracy": "maximize"})
    errors = np.sort(1 - rows["accuracy"].dropna().to_numpy(dtype=float))
    places = np.unique(np.linspace(0, len(errors) - 1, min(len(errors), POINTS)).round().astype(int))
    stopped = int((snapshot.frame["state"] == "stopped").sum())
    were = "trial was" if stopped == 1 else "trials were"
    note = f"{stopped:,} {were} stopped early and left out, so this is not the space's own" if stopped else ""
    points = tuple((float(errors[place]), float(place + 1) / len(errors)) for place in places if len(errors))
    return ErrorsInfo(points, len(errors), note)


def errors_figure(info: ErrorsInfo) -> go.Figure:
    figure = go.Figure(layout=_layout(info.note))
    figure.update_xaxes(title_text="Validation error (%)")
    figure.update_yaxes(title_text="Share of networks with at most it", tickformat=".0%", range=[0, 1.03])
    if not info.points:
        return _empty(figure, "no finished trial has an accuracy yet")
    errors = [100 * error for error, _ in info.points]
    return figure.add_trace(
        go.Scatter(
            x=[errors[0], *errors],
            y=[0.0, *(share for _, share in info.points)],
            name=f"networks ({info.n_networks:,})",
            showlegend=True,
            mode="lines",
            line={"color": RUNNING, "width": 2, "shape": "hv"},
            hovertemplate="%{y:.1%} of the networks have at most %{x:.2f} %<extra></extra>",
        )
    )


# --- Drawing ---


def _lines(lines: Iterable[str]) -> str:
    # Plotly reads a small HTML in its texts: names from a space file must stay what they are.
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _layout(note: str) -> go.Layout:
    """Transparent, so that the page's light or dark paper shows; the page's style sheet colours the text."""
    lines = textwrap.wrap(note, 50)  # what fits a telephone
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "showline": True, "title_standoff": 6}
    corner = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "left", "yanchor": "top"}
    corner |= {"xshift": -44, "yshift": -50}  # below the axis title
    annotation = {"text": _lines(lines), "showarrow": False, "align": "left", "font": {"size": 11}, **corner}
    return go.Layout(
        template="none",
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        margin={"l": 56, "r": 12, "t": 12, "b": 50 + 16 * len(lines)},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hovermode="closest",
        hoverlabel={"align": "left"},
        uirevision="keep",  # a redraw with new trials keeps the reader's zoom
        xaxis=axis,
        yaxis=axis,
        annotations=[annotation] if lines else [],
    )


def _empty(figure: go.Figure, reason: str) -> go.Figure:
    figure.update_layout(annotations=[], xaxis_visible=False, yaxis_visible=False)
    figure.add_annotation(
        text="<br>".join(textwrap.wrap(reason, 44)), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper"
    )
    return figure


@dataclass(frozen=True)
class Plot:
    """A row of PLOTS: the heading, what is shown, how it is drawn."""

    title: str
    info: Callable[[Snapshot], Any]
    figure: Callable[[Any], go.Figure]

    def draw(self, snapshot: Snapshot) -> go.Figure:
        return self.figure(self.info(snapshot))


PLOTS = {
    "pareto_latency": Plot("Accuracy and latency", partial(pareto_info, cost="latency_ms"), pareto_figure),
    "pareto_params": Plot("Accuracy and parameters", partial(pareto_info, cost="params"), pareto_figure),
    "pareto_mult_adds": Plot("Accuracy and multiply-adds", partial(pareto_info, cost="mult_adds"), pareto_figure),
    "errors": Plot("Errors of all networks", errors_info, errors_figure),
    "curves": Plot("Learning curves", curves_info, curves_figure),
}
