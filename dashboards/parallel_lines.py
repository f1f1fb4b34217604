"""Parallel coordinates as plain lines.

Plotly's own kind of them needs WebGL and a browser that lets a page make code from text ('unsafe-eval'), which the page
does not allow. These need neither; a box drawn over an axis is the brush.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mnet_search.dashboards.drawing import FRONT, GRID, OTHER, SCALE, empty, escaped, layout
from mnet_search.dashboards.parallel_plot import ParallelAxis, ParallelInfo
from mnet_search.studies.pareto import Array

BANDS = 10  # of colour, where a figure is the colour
FAINT = "rgba(126, 138, 152, 0.13)"
KEPT = "rgba(0, 114, 178, 0.28)"
HALF = 0.09  # of the distance between axes: half the width of what shows a brush

Range = tuple[float, float]


def span(axis: ParallelAxis) -> Range:
    """The places at the foot and the head of an axis."""
    low, high = min(axis.values), max(axis.values)
    margin = 0.4 if axis.categories else 0.02 * (high - low) or 0.5
    return low - margin, high + margin


def lines_figure(info: ParallelInfo, kept: Mapping[int, Sequence[Range]]) -> go.Figure:
    """`kept` are ranges of places by the position of their axis: lines outside of them are faint."""
    figure = go.Figure(layout=layout(info.note, dragmode="select"))
    if info.empty:
        return empty(figure, info.empty)
    heights = np.column_stack([_heights(axis) for axis in info.axes])
    inside = np.ones(len(heights), dtype=bool)
    for place, ranges in kept.items():
        values = np.array(info.axes[place].values)
        inside &= np.any([(values >= low) & (values <= high) for low, high in ranges], axis=0)
    front = np.array(info.on_front, dtype=bool)
    numbers = np.array(info.numbers)
    _add(figure, "outside the filter", heights[~inside], numbers[~inside], {"color": FAINT, "width": 1})
    if info.colour:
        _add_bands(figure, info, heights, numbers, inside)
    else:
        rest, members = inside & ~front, inside & front
        _add(figure, f"other trials ({rest.sum():,})", heights[rest], numbers[rest], {"color": OTHER, "width": 1})
        line = {"color": FRONT, "width": 2}
        _add(figure, f"front of the study ({members.sum():,})", heights[members], numbers[members], line)
    _add_ticks(figure, info)
    places = list(range(len(info.axes)))
    figure.update_xaxes(
        tickvals=places,
        ticktext=[escaped(axis.title) for axis in info.axes],
        side="top",
        tickangle=-20,
        showgrid=False,
        showline=False,
        range=[-0.15, len(places) - 0.4],
        fixedrange=True,
    )
    figure.update_yaxes(visible=False, range=[-0.02, 1.02], fixedrange=True)
    shapes = [{"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": GRID, "width": 2}} for x in places]
    for place, ranges in kept.items():
        shapes += [_shown(place, *_limits(info.axes[place], low, high)) for low, high in ranges]
    legend = {"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top"}
    margin = {"l": 16, "r": 70, "t": 84, "b": 44 + 16 * bool(info.note)}
    return figure.update_layout(shapes=shapes, legend=legend, margin=margin)


def _heights(axis: ParallelAxis) -> Array:
    low, high = span(axis)
    return (np.array(axis.values, dtype=float) - low) / (high - low)


def _limits(axis: ParallelAxis, low: float, high: float) -> Range:
    foot, head = span(axis)
    first, last = ((value - foot) / (head - foot) for value in (low, high))
    return min(max(first, 0.0), 1.0), min(max(last, 0.0), 1.0)


def _shown(place: int, low: float, high: float) -> dict[str, Any]:
    box = {"x0": place - HALF, "x1": place + HALF, "y0": low, "y1": high}
    return {"type": "rect", **box, "fillcolor": KEPT, "line": {"color": "#0072B2", "width": 1}}


def _add(figure: go.Figure, name: str, heights: Array, numbers: Array, line: Mapping[str, Any], **more: Any) -> None:
    """Lines of one look as one trace with gaps between them, which is quick to draw."""
    if not len(heights):
        return
    n_axes = heights.shape[1]
    y = np.column_stack([heights.round(4), np.full(len(heights), np.nan)]).ravel()
    x = np.tile([*range(n_axes), n_axes - 1.0], len(heights))
    figure.add_trace(
        go.Scatter(
            x=x.tolist(),
            y=[None if np.isnan(value) else value for value in y.tolist()],
            customdata=np.repeat(numbers, n_axes + 1).tolist(),
            mode="lines",
            name=name,
            line=dict(line),
            hovertemplate="trial %{customdata}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            **more,
        )
    )


def _add_bands(figure: go.Figure, info: ParallelInfo, heights: Array, numbers: Array, inside: Array) -> None:
    values = np.array(info.colour)
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / (high - low or 1.0)
    bands = np.minimum((shares * BANDS).astype(int), BANDS - 1)
    for band in range(BANDS):
        mine = inside & (bands == band)
        colour = sample_colorscale(SCALE, [(band + 0.5) / BANDS])[0]
        _add(figure, "", heights[mine], numbers[mine], {"color": colour, "width": 1.5}, showlegend=False)
    bar = {"title": {"text": escaped(info.colour_title), "side": "right"}, "thickness": 12, "outlinewidth": 0}
    marker = {"color": [low, high], "colorscale": SCALE, "showscale": True, "colorbar": bar, "size": 0.1}
    figure.add_trace(
        go.Scatter(x=[0, 0], y=[0, 0], mode="markers", marker=marker, showlegend=False, hoverinfo="skip", opacity=0)
    )


def _add_ticks(figure: go.Figure, info: ParallelInfo) -> None:
    x, y, texts = [], [], []
    for place, axis in enumerate(info.axes):
        low, high = span(axis)
        for at, text in axis.ticks:
            x.append(place)
            y.append((at - low) / (high - low))
            texts.append(f"<b>{escaped(text)}</b>")
    ticks = {"mode": "markers+text", "textposition": "middle right", "textfont": {"size": 11}}
    marker = {"symbol": "line-ew-open", "size": 7, "color": "rgba(126, 138, 152, 0.9)"}
    figure.add_trace(
        go.Scatter(x=x, y=y, text=texts, marker=marker, showlegend=False, hoverinfo="skip", cliponaxis=False, **ticks)
    )
