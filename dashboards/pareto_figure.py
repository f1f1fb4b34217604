"""How the Pareto view is drawn."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from mnet_search.dashboards.drawing import (
    COLOURS,
    EDGE,
    FRONT,
    OTHER,
    SYMBOLS,
    colour_bar,
    empty,
    escaped,
    layout,
    lines,
    log_ticks,
    of,
)
from mnet_search.dashboards.pareto_marks import Colour, Marks
from mnet_search.dashboards.pareto_plot import ParetoInfo
from mnet_search.dashboards.quantities import Quantity

# Colour and symbol of each kind, and its size in pixels.
LOOKS: dict[str, tuple[str, str, float]] = {
    "front": (FRONT, "circle", 11),
    "dominated": (OTHER, "circle", 6),
    "stopped": ("#56B4E9", "circle-open", 7),
    "over_budget": (OTHER, "x-thin", 7),
    "reference": ("#009E73", "star", 12),
}
FAINTEST = 0.3  # opacity of a front's mark that is hardly on it


def pareto_figure(info: ParetoInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(title_text=escaped(info.x.axis), **_axis(info.x, info.log_x, info, "x"))
    figure.update_yaxes(title_text=escaped(info.y.axis), **_axis(info.y, info.log_y, info, "y"))
    if info.empty:
        return empty(figure, info.empty)
    if info.y_range:
        # A double click on the panel shows what is below: plotly's own way back to all data.
        figure.update_yaxes(range=[info.y.scale * value for value in info.y_range])
    if info.colour and info.colour.categories:
        _category_legend(figure, info.colour)
    elif info.colour:
        figure.update_layout(coloraxis=colour_bar(info.colour.quantity.axis, tickformat=info.colour.quantity.ticks))
    for marks in info.marks:
        figure.add_trace(_trace(info, marks))
    for side, value in info.limits:
        if side == "x":
            figure.add_vline(x=value * info.x.scale, line={"color": EDGE, "dash": "dash"})
        else:
            figure.add_hline(y=value * info.y.scale, line={"color": EDGE, "dash": "dash"})
    return figure


def _axis(quantity: Quantity, log: bool, info: ParetoInfo, side: str) -> dict[str, Any]:
    if not log:
        return {"tickformat": quantity.ticks}
    values = [value for marks in info.marks for value in (marks.x if side == "x" else marks.y)]
    return {"type": "log", "tickformat": quantity.ticks, **log_ticks(values)}


def _category_legend(figure: go.Figure, colour: Colour) -> None:
    for place, name in enumerate(colour.categories):
        marker = {"color": of(COLOURS, place), "symbol": of(SYMBOLS, place), "size": 9}
        title = escaped(f"{colour.quantity.name}: {name}")
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=title, marker=marker, hoverinfo="skip"))


def _trace(info: ParetoInfo, marks: Marks) -> go.Scatter:
    front = marks.kind == "front"
    style: dict[str, Any] = {"mode": "markers", "marker": _marker(info, marks)}
    if front and info.line:
        # A step, since at a budget between two points the best known network is still the cheaper one.
        style |= {"mode": "lines+markers", "line": {"color": FRONT, "width": 2, "shape": _step(info)}}
    colour = LOOKS[marks.kind][0]
    for axis, bars, centres, scale in (
        ("error_x", marks.bars_x, marks.x, info.x.scale),
        ("error_y", marks.bars_y, marks.y, info.y.scale),
    ):
        if bars:
            style[axis] = {
                "type": "data",
                "symmetric": False,
                "array": [scale * (bar[1] - at) if bar else 0.0 for bar, at in zip(bars, centres, strict=True)],
                "arrayminus": [scale * (at - bar[0]) if bar else 0.0 for bar, at in zip(bars, centres, strict=True)],
                "color": colour,
                "thickness": 1,
                "width": 3,
            }
    return go.Scatter(
        x=[info.x.scale * value for value in marks.x],
        y=[info.y.scale * value for value in marks.y],
        customdata=list(marks.numbers),
        text=[lines(hover) for hover in marks.hover],
        hovertemplate="%{text}<extra></extra>",
        name=escaped(marks.name),
        **style,
    )


def _step(info: ParetoInfo) -> str:
    """Along x first where a higher y costs more of x, which is how a front of a cost and accuracy lies."""
    return "hv" if info.x.best == "minimize" else "vh"


def _marker(info: ParetoInfo, marks: Marks) -> dict[str, Any]:
    colour, symbol, size = LOOKS[marks.kind]
    marker: dict[str, Any] = {"color": colour, "symbol": symbol, "size": list(marks.size) or size}
    hollow = marks.kind in ("stopped", "over_budget")
    if marks.kind == "front":
        marker["line"] = {"color": "white", "width": 1}
    if hollow:
        marker["line"] = {"color": colour, "width": 1.5}
    if marks.chance:
        marker["opacity"] = [round(FAINTEST + (1 - FAINTEST) * chance, 3) for chance in marks.chance]
    if not marks.colour or info.colour is None:
        return marker
    if info.colour.categories:
        places = [int(place) for place in marks.colour if place is not None]
        symbols = [of(SYMBOLS, place) + "-open" * hollow for place in places]
        marker |= {"color": [of(COLOURS, place) for place in places], "symbol": symbols}
    else:
        marker |= {"color": list(marks.colour), "coloraxis": "coloraxis"}
        if not hollow:
            marker["line"] = {"color": EDGE, "width": 1}  # the ends of the scale are near the paper's colours
    return marker
