"""What all plots share: colours, the empty panel, notes, ticks, thinning. No plot is drawn here.

Colours are from Okabe and Ito's palette (jfly.uni-koeln.de/color), and symbol, size or dash carry the same difference.
Text has no colour of its own, so that the page's style sheet colours it in light and dark.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mnet_search.studies.pareto import Array

# Okabe and Ito's but black and yellow, which a dark or a light page swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE = COLOURS
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
FILLS = ("", "/", "x", ".", "-", "|")  # patterns of bars

FRONT, RUNNING = VERMILLION, BLUE
OTHER, GRID = "rgba(126, 138, 152, 0.6)", "rgba(128, 138, 148, 0.25)"
EDGE = "rgba(128, 138, 148, 0.9)"  # around marks whose colour may be near the paper's
SCALE = "Cividis"  # the same order to every kind of colour vision, and in grey

WRAP = 50  # characters of a note in a line: what fits a telephone
NO_COLOUR = "rgba(0, 0, 0, 0)"


def layout(note: str = "", **more: Any) -> go.Layout:
    """Transparent, so that the page's light or dark paper shows; `note` stands below the axis title."""
    wrapped = textwrap.wrap(note, WRAP)
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "showline": True, "title_standoff": 6}
    corner = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "left", "yanchor": "top"}
    corner |= {"xshift": -44, "yshift": -50}  # below the axis title
    annotation = {"text": lines(wrapped), "showarrow": False, "align": "left", "font": {"size": 11}, **corner}
    plain: dict[str, Any] = {
        "template": "none",
        "paper_bgcolor": NO_COLOUR,
        "plot_bgcolor": NO_COLOUR,
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 56, "r": 12, "t": 12, "b": 50 + 16 * len(wrapped)},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "uirevision": "keep",  # a redraw with new trials keeps the reader's zoom
        "xaxis": axis,
        "yaxis": axis,
        "annotations": [annotation] if wrapped else [],
    }
    return go.Layout(plain | more)


def empty(figure: go.Figure, reason: str) -> go.Figure:
    """The panel of a plot that has nothing to show: one sentence in its middle."""
    figure.update_layout(annotations=[], xaxis_visible=False, yaxis_visible=False)
    figure.add_annotation(
        text=lines(textwrap.wrap(reason, 44)), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper"
    )
    return figure


def lines(texts: Iterable[str]) -> str:
    """Texts as lines of a label. Plotly reads a small HTML in them: names from a space file must stay what they are."""
    return "<br>".join(escaped(text) for text in texts)


def escaped(text: str) -> str:
    return html.escape(text, quote=False)


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """Ticks at 1, 2, 5 of each decade: left alone, plotly labels all nine digits, which overlap on narrow screens."""
    shown = [value for value in values if value > 0]
    decades = math.log10(max(shown) / min(shown)) if shown else 0.0
    if decades < 0.85:
        return {"nticks": 4}  # plotly's own, which are linear there
    return {"dtick": "D2" if decades < 3.2 else 1}


def dates() -> dict[str, Any]:
    """An axis of times. Its labels have two lines, which leave no room for a title above the note."""
    return {"type": "date", "tickangle": 0, "nticks": 5}


def colour_bar(title: str, **more: Any) -> dict[str, Any]:
    """A colour axis for continuous values, with its bar at the right."""
    bar = {"title": {"text": escaped(title), "side": "right"}, "thickness": 12, "outlinewidth": 0, **more}
    return {"colorscale": SCALE, "colorbar": bar}


def pattern(shape: str) -> dict[str, Any]:
    """Lines over the colour of a bar."""
    return {"shape": shape, "fillmode": "overlay", "fgcolor": "rgba(255, 255, 255, 0.75)", "size": 6, "solidity": 0.25}


def evenly(count: int, most: int) -> Array:
    """At most `most` of `count` places, evenly spread, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)) if count else np.arange(0)


def counted(shown: int, total: int) -> str:
    """How many of something are drawn, for a legend."""
    return f"{shown:,} of {total:,} shown" if shown < total else f"{total:,}"


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def of(values: Sequence[str], place: int) -> str:
    return values[place % len(values)]
