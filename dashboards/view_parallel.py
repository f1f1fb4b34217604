"""Parallel coordinates, whose brush filters every other view; by a box over an axis, or by fields and switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from dash import html as tags

from mnet_search.dashboards.page_parts import as_json, attributes, block, graph, select, slot, toggle
from mnet_search.dashboards.parallel_lines import lines_figure, span
from mnet_search.dashboards.parallel_plot import ParallelAxis, parallel_info
from mnet_search.dashboards.quantities import PARAMETER, figures, labels, ordered, quantity
from mnet_search.dashboards.scene import Scene
from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.dashboards.view_plots import TALL, known
from mnet_search.dashboards.view_state import Brush, ViewState

MOST_SWITCHES = 12  # values of an axis that get a switch each
FIELDS = 12  # axes with fields, the first ones


def draw_parallel(scene: Scene) -> list[Any]:
    """All trials are drawn, those outside the brush faint."""
    state, whole = scene.state, scene.whole
    shades = [("", "the front"), *((name, quantity(whole, name).name) for name in figures(whole))]
    color = known(state, "color", shades, "")
    info = parallel_info(whole, colour=color or None)
    axes = [_about(whole, axis) for axis in info.axes]
    kept = {place: found for place, about in enumerate(axes) if (found := _places(about, state.brush))}
    drawn = lines_figure(info, kept)
    if drawn.data:
        drawn.data[0].meta = axes
    now = as_json(sorted((name, brush.ranges, brush.values) for name, brush in state.brush.items()))
    label = "objectives, costs and parameters as axes, a line a trial"
    return [
        tags.H2("Parallel coordinates"),
        block("controls", select("color", "Colour", shades, color), className="controls"),
        tags.Section(
            tags.Div(graph("parallel", drawn, label, height=TALL, keep=f"{color} {now}"), className="broad"),
            className="card scroll",
        ),
        tags.P(
            "Draw a box over an axis to keep a range of it: every view then shows the trials within. A double click "
            "takes all filters away. The fields below do the same.",
            className="hint",
        ),
        block("fields", *(_fields(scene, about) for about in axes[:FIELDS]), className="controls"),
    ]


def _about(whole: Snapshot, axis: ParallelAxis) -> dict[str, Any]:
    """What the page's script needs to turn places on an axis into values."""
    found, (low, high) = quantity(whole, axis.column), span(axis)
    about: dict[str, Any] = {"name": axis.column.removeprefix(PARAMETER), "column": axis.column, "title": found.name}
    about |= {"scale": found.scale, "log": axis.log, "low": low, "high": high}
    return about | ({"words": [text for _, text in axis.ticks]} if axis.categories else {})


def _places(about: Mapping[str, Any], brush: Mapping[str, Brush]) -> list[tuple[float, float]]:
    """The brush of an axis as places on it."""
    wanted = brush.get(about["name"]) or brush.get(about["column"])
    if wanted is None:
        return []
    if "words" in about:
        words = about["words"]
        places = [place for place, word in enumerate(words) if word in wanted.values]
        places += [place for place, word in enumerate(words) if _is_within(word, wanted)]
        return [(place - 0.25, place + 0.25) for place in sorted(set(places))]

    def at(value: float) -> float:
        value = min(max(value * about["scale"], -1e299), 1e299)
        return float(np.log10(value)) if about["log"] and value > 0 else (-300.0 if about["log"] else value)

    return [(at(low), at(high)) for low, high in wanted.ranges]


def _float(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")


def _fields(scene: Scene, about: Mapping[str, Any]) -> Any:
    """The brush of one axis without a mouse: switches for values, two fields for a range."""
    state, name = scene.state, about["name"]
    now = state.brush.get(name, Brush())
    legend = tags.Legend(about["title"])
    if "words" in about:
        every = ordered(labels(scene.whole.frame[about["column"]]))
        if len(every) <= MOST_SWITCHES:
            kept = tuple(word for word in every if word in now.values or _is_within(word, now))
            switches = [_switch(state, name, kept, word) for word in every]
            return tags.Fieldset([legend, tags.Div(switches, className="group")])
    low, high = now.ranges[0] if now.ranges else (-1e300, 1e300)
    inputs = []
    for side, value, bare in (("low", low, -1e300), ("high", high, 1e300)):
        field, text = f"set-{side}.{name}", "" if value == bare else f"{value:g}"
        word = "at least" if side == "low" else "at most"
        inputs.append(tags.Div([tags.Label(word, htmlFor=field), slot(field, text)]))
    return tags.Fieldset([legend, tags.Div(inputs, className="row")], **attributes(data_brush=name))


def _is_within(word: str, brush: Brush) -> bool:
    return any(low <= _float(word) <= high for low, high in brush.ranges)


def _switch(state: ViewState, name: str, kept: tuple[str, ...], word: str) -> Any:
    values = tuple(one for one in kept if one != word) if word in kept else (*kept, word)
    left = {key: brush for key, brush in state.brush.items() if key != name}
    then = replace(state, brush={**left, name: Brush((), values)} if values else left)
    return toggle(word, then, word in kept)
