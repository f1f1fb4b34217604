"""Error and size: the law of a study's networks, two parameters as a map, and what making the largest network thinner,
shallower or of lower resolution costs and saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnet_search.dashboards.drawing import (
    COLOURS,
    DASHES,
    RUNNING,
    SYMBOLS,
    colour_bar,
    empty,
    escaped,
    evenly,
    layout,
    log_ticks,
    of,
    plural,
)
from mnet_search.dashboards.fit_plot import FitInfo, fit_figure, fit_info
from mnet_search.dashboards.quantities import (
    PARAMETER,
    PlotError,
    Quantity,
    figure_axis,
    is_choice,
    labels,
    numbers,
    ordered,
    parameter_names,
    plain,
    quantity,
    values_of,
)
from mnet_search.dashboards.snapshot import Snapshot, architecture, percent, present, records, validation_images
from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.studies.confidence import sampling_error
from mnet_search.studies.fit_checks import doubts
from mnet_search.studies.observations import study_observations
from mnet_search.studies.pareto import network_of, networks
from mnet_search.studies.scaling import check_variable, fit_all

NETWORKS = 200  # that a law is fitted to; the uncertainty of more is not what limits it, and time grows with the square
DRAWS = 200  # of the bootstrap
CELLS = 12  # values of a parameter on one side of the map; more are put together


@dataclass(frozen=True)
class ScalingInfo:
    """Error against a size. `fit` is the law that the networks support best, by AICc, with its networks; where there is
    none, `points` are (size, error as a fraction, trial) and `note` says why there is no law.
    """

    x: str
    fit: FitInfo | None = None
    points: tuple[tuple[float, float, int], ...] = ()
    numbers: tuple[int, ...] = ()  # of the first trial of each network of the fit
    note: str = ""
    empty: str = ""


def scaling_info(snapshot: Snapshot, *, x: str = "mult_adds", most: int = NETWORKS, draws: int = DRAWS) -> ScalingInfo:
    """`x` is a size that laws are about (`studies.observations.VARIABLES`). A law is fitted to at most `most` networks,
    evenly chosen by their mult-adds. PlotError for another `x`.
    """
    try:
        check_variable(x)
    except MnetError as error:
        raise PlotError(str(error)) from None
    finished = snapshot.finished()
    rows = finished[finished["accuracy"].notna()]
    if rows.empty:
        return ScalingInfo(x, empty="no finished trial has an accuracy" + (" yet" if finished.empty else ""))
    first = network_of(rows)
    own = rows[rows["number"] == first].sort_values(["mult_adds", "number"])
    chosen = own["number"].to_numpy()[evenly(len(own), most)]
    thinned = len(chosen) < len(own)
    part = rows[first.isin(chosen)] if thinned else snapshot.frame
    notes = [f"{len(chosen):,} of {plural(len(own), 'network')}, evenly by mult-adds"] if thinned else []
    if "options" not in part.columns:
        return _points(x, rows[first.isin(chosen)], [*notes, "no law: the networks' options were not read"])
    try:
        found = study_observations(part, snapshot.name, validation_images(snapshot.provenance))
        fits, refused = fit_all(found, x=x, draws=draws)
    except MnetError as error:
        return _points(x, rows[first.isin(chosen)], [*notes, f"no law: {error}"])
    if not fits:
        return _points(x, rows[first.isin(chosen)], [*notes, f"no law yet: {refused[0].reason}"])
    best = fits[0]
    against = doubts(best)
    notes = [best.equation, *notes]
    if against:
        more = f", and {plural(len(against) - 1, 'further doubt')}" if len(against) > 1 else ""
        notes.append(f"doubt: {against[0].partition(' (')[0]}{more}; mnet-search fit says all")
    numbers_of = np.sort(first[first.isin(chosen)].unique())
    return ScalingInfo(
        x,
        fit=fit_info(snapshot.name, best, against),
        numbers=tuple(int(number) for number in numbers_of),
        note="; ".join(notes),
    )


def _points(x: str, rows: pd.DataFrame, notes: Sequence[str]) -> ScalingInfo:
    if x not in rows.columns:
        return ScalingInfo(x, empty="; ".join(notes))
    means = networks(rows, {"accuracy": "maximize"})
    cells = zip(means[x], means["accuracy"], means["number"], strict=True)
    points = tuple((float(size), 1 - float(accuracy), int(number)) for size, accuracy, number in cells)
    return ScalingInfo(x, points=points, note="; ".join(notes))


def scaling_figure(info: ScalingInfo) -> go.Figure:
    if info.fit is not None:
        figure = fit_figure(info.fit)
        figure.data[-1].customdata = list(info.numbers) if len(figure.data[-1].x) == len(info.numbers) else None
        words = layout(info.note)
        return figure.update_layout(
            margin=words.margin, annotations=words.annotations, font=words.font, uirevision="keep"
        )
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(title_text=info.x.replace("_", "-"), type="log", tickformat="~s")
    figure.update_yaxes(title_text="Validation error (%)", type="log", tickformat="~g")
    if info.empty:
        return empty(figure, info.empty)
    figure.update_xaxes(**log_ticks(x for x, _, _ in info.points))
    figure.update_yaxes(**log_ticks(y for _, y, _ in info.points))
    return figure.add_trace(
        go.Scatter(
            x=[x for x, _, _ in info.points],
            y=[100 * error for _, error, _ in info.points],
            customdata=[number for _, _, number in info.points],
            mode="markers",
            name=f"networks ({len(info.points):,})",
            showlegend=True,
            marker={"color": RUNNING, "size": 8},
            hovertemplate="trial %{customdata}: %{y:.2f} % at %{x:.3s}<extra></extra>",
        )
    )


# --- Two parameters as a map ---


@dataclass(frozen=True)
class HeatInfo:
    """The mean of a figure over the finished trials of each pair of values; `cells` and `counts` have a row for each
    value of y. None: no trial.
    """

    x: str = ""
    y: str = ""
    value: Quantity | None = None
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    cells: tuple[tuple[float | None, ...], ...] = ()
    counts: tuple[tuple[int, ...], ...] = ()
    note: str = ""
    empty: str = ""


def heat_info(snapshot: Snapshot, *, x: str | None = None, y: str | None = None, value: str = "accuracy") -> HeatInfo:
    """`x` and `y` are parameters: width and resolution where the space has both, else the first two that vary.
    PlotError for one that it does not have.
    """
    shown, known = quantity(snapshot, value), parameter_names(snapshot)
    for name in (x, y):
        if name is not None and name.removeprefix(PARAMETER) not in known:
            listed = ", ".join(known) or "none"
            raise PlotError(f"the space has no parameter {name!r}{nearest(name, known)}; it has: {listed}")
    finished = snapshot.finished()
    rows = finished[np.isfinite(numbers(finished, shown.column))]
    if rows.empty:
        return HeatInfo(empty=f"no finished trial has {shown.name}" + (" yet" if finished.empty else ""))
    varying = [name for name in known if len(values_of(rows, name)) > 1]
    usual = ["width", "resolution"] if {"width", "resolution"} <= set(varying) else varying
    across = (x or next((name for name in usual if name != y), "")).removeprefix(PARAMETER)
    upward = (y or next((name for name in usual if name != across), "")).removeprefix(PARAMETER)
    if not across or not upward or across == upward:
        had = (
            f"only {varying[0]} varies" if len(varying) == 1 else "no parameter varies" if not varying else "it is one"
        )
        return HeatInfo(empty=f"a map needs two parameters that vary, and {had} between the finished trials")
    columns, column_of = _sides(rows, across)
    lines_, line_of = _sides(rows, upward)
    sums, counts = np.zeros((len(lines_), len(columns))), np.zeros((len(lines_), len(columns)), dtype=int)
    np.add.at(sums, (line_of, column_of), numbers(rows, shown.column))
    np.add.at(counts, (line_of, column_of), 1)
    return HeatInfo(
        x=across,
        y=upward,
        value=shown,
        columns=columns,
        rows=lines_,
        cells=tuple(
            tuple(float(s / n) if n else None for s, n in zip(*pair, strict=True))
            for pair in zip(sums, counts, strict=True)
        ),
        counts=tuple(tuple(int(n) for n in row) for row in counts),
        note=f"mean {shown.name} of {plural(len(rows), 'finished trial')}, over all other parameters",
    )


def _sides(rows: pd.DataFrame, parameter: str) -> tuple[tuple[str, ...], Any]:
    """The values of a parameter in order, and the place of each row among them; many values are put together."""
    column = PARAMETER + parameter
    if is_choice(rows, column) or rows[column].nunique() <= CELLS:
        texts = labels(rows[column])
        names = ordered(texts)
        place = {name: i for i, name in enumerate(names)}
        return names, np.array([place[text] for text in texts])
    values = numbers(rows, column)
    edges = np.unique(np.quantile(values[np.isfinite(values)], np.linspace(0, 1, CELLS - 3)))
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    ends = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return tuple(f"{plain(low)} to {plain(high)}" for low, high in ends), places


def heat_figure(info: HeatInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(title_text=escaped(info.x), type="category", showgrid=False)
    figure.update_yaxes(title_text=escaped(info.y), type="category", showgrid=False, automargin=True)
    if info.empty or info.value is None:
        return empty(figure, info.empty)
    shown = info.value
    texts = [
        ["" if cell is None else f"{_cell(cell, shown)}<br>n {n}" for cell, n in zip(*row, strict=True)]
        for row in zip(info.cells, info.counts, strict=True)
    ]
    return figure.add_trace(
        go.Heatmap(
            x=[escaped(name) for name in info.columns],
            y=[escaped(name) for name in info.rows],
            z=[[None if cell is None else shown.scale * cell for cell in row] for row in info.cells],
            text=texts,
            texttemplate="%{text}",
            hovertemplate=f"{escaped(info.x)} %{{x}}, {escaped(info.y)} %{{y}}<br>%{{text}}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            coloraxis="coloraxis",
        )
    ).update_layout(coloraxis=colour_bar(shown.axis, tickformat=shown.ticks))


def _cell(value: float, shown: Quantity) -> str:
    return f"{100 * value:.1f} %" if shown.text is percent else shown.text(value)


# --- Thinner, shallower, or of lower resolution ---

ON_WAY = 100  # networks of one line
WAYS = {"width": "thinner", "depth": "shallower", "resolution": "lower resolution"}


@dataclass(frozen=True)
class Way:
    """Networks that differ from the largest in one parameter alone, by cost, the largest last."""

    name: str
    parameter: str
    x: tuple[float, ...]
    accuracy: tuple[float, ...]
    bars: tuple[float, ...]  # one standard error on each side, 0 where unknown
    numbers: tuple[int, ...]
    hover: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ShapesInfo:
    """What each way of making the largest network smaller costs in accuracy (MobileNets, arXiv 1704.04861, tables 5 to
    7): the line that lies higher at one cost is the better way there.
    """

    x: Quantity | None = None
    ways: tuple[Way, ...] = ()
    note: str = ""
    empty: str = ""


def shapes_info(snapshot: Snapshot, *, x: str = "mult_adds") -> ShapesInfo:
    """`x` is a cost. PlotError for what is none."""
    cost = figure_axis(snapshot, x)
    finished = snapshot.finished()
    rows = finished[finished["accuracy"].notna() & (numbers(finished, cost.column) > 0)]
    if rows.empty:
        return ShapesInfo(empty=f"no finished trial has accuracy and {cost.name}" + (" yet" if finished.empty else ""))
    names = [str(column) for column in rows if str(column).startswith(PARAMETER)]
    ways = [name for name in WAYS if PARAMETER + name in names]
    largest = rows.iloc[int(np.argmax(numbers(rows, "mult_adds")))]
    # Only runs of networks that differ in one parameter at most are worked on.
    differs = (
        np.column_stack([_differs(rows[name], largest[name]) for name in names]) if names else np.zeros((len(rows), 0))
    )
    near = rows[differs.sum(axis=1) <= 1]
    single = differs[differs.sum(axis=1) <= 1]
    found = []
    for name in ways:
        others = np.delete(single, names.index(PARAMETER + name), axis=1)
        group = near[~others.any(axis=1)] if others.size else near
        means = networks(group, {"accuracy": "maximize", cost.column: cost.best})
        way = _way(means.iloc[evenly(len(means), ON_WAY)], name, cost, snapshot)
        found += [way] if len(way.numbers) > 1 else []
    if not found:
        had = f"varies {', '.join(ways)}" if ways else "has none of these as a parameter"
        return ShapesInfo(
            empty="this compares the largest finished network with those that differ from it in width, depth or "
            f"resolution alone; the space {had}, and no such network is finished yet"
        )
    return ShapesInfo(cost, tuple(found), f"all lines end at the largest finished network, trial {largest['number']}")


def _differs(cells: pd.Series, value: Any) -> Any:
    if not present(value):
        return cells.notna().to_numpy()
    return (cells.astype(object) != value).to_numpy()


def _way(rows: pd.DataFrame, parameter: str, cost: Quantity, snapshot: Snapshot) -> Way:
    images = validation_images(snapshot.provenance)
    found = records(rows.sort_values([cost.column, "number"]))

    def bar(row: dict[str, Any]) -> float:
        if row["n"] > 1 and present(row["accuracy_sd"]):
            return float(row["accuracy_sd"]) / float(np.sqrt(row["n"]))
        return sampling_error(float(row["accuracy"]), images) if images else 0.0

    return Way(
        name=WAYS[parameter],
        parameter=parameter,
        x=tuple(float(row[cost.column]) for row in found),
        accuracy=tuple(float(row["accuracy"]) for row in found),
        bars=tuple(bar(row) for row in found),
        numbers=tuple(int(row["number"]) for row in found),
        hover=tuple(architecture(row) for row in found),
    )


def shapes_figure(info: ShapesInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    if info.empty or info.x is None:
        return empty(figure, info.empty)
    sizes = [value for way in info.ways for value in way.x]
    figure.update_xaxes(title_text=escaped(info.x.axis), type="log", tickformat=info.x.ticks, **log_ticks(sizes))
    figure.update_yaxes(title_text="Validation accuracy (%)")
    for place, way in enumerate(info.ways):
        colour = of(COLOURS, place)
        figure.add_trace(
            go.Scatter(
                x=list(way.x),
                y=[100 * value for value in way.accuracy],
                error_y={"array": [100 * bar for bar in way.bars], "thickness": 1, "width": 3, "color": colour},
                customdata=list(way.numbers),
                text=["<br>".join(map(escaped, hover)) for hover in way.hover],
                hovertemplate="%{text}<extra></extra>",
                mode="lines+markers",
                name=f"{way.name} ({escaped(way.parameter)})",
                line={"color": colour, "dash": of(DASHES, place), "width": 2},
                marker={"symbol": of(SYMBOLS, place), "size": 9},
            )
        )
    return figure
