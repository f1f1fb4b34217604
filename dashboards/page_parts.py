"""What views are put together from: cards, tables, labelled controls, links, and parts that follow the study.

A live part is one that the server may replace while the page stands: a block of words or a table, or a figure. All else
of a view stays until the visitor goes elsewhere, so that focus, scroll and zoom are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from dash import dcc
from dash import html as tags
from dash.development.base_component import Component
from plotly.io.json import to_json_plotly

from mnet_search.dashboards.report import GRAPH_CONFIG
from mnet_search.dashboards.view_state import ViewState, to_query

HEIGHT = 440  # pixels of a figure
_RANGE = re.compile(r"([xy]axis\d*)\.range\[0\]")


def attributes(**given: Any) -> dict[str, Any]:
    """Attributes of elements whose names have hyphens, as `aria_label`."""
    return {name.replace("_", "-"): value for name, value in given.items()}


# ---------------------------------------------------------------- live parts


def block(name: str, *children: Any, **attributes: Any) -> Component:
    """Words, tables or controls that are replaced whole where they have changed."""
    return tags.Div(list(children), id={"live": "block", "name": name}, **attributes)


def graph(name: str, drawn: go.Figure, label: str, *, opens: bool = True, height: int = HEIGHT, keep: str = "") -> Any:
    """A plot with its label for those who do not see it. A click on a point opens its trial where it `opens`; the zoom
    is kept as long as `keep` stays the same.
    """
    drawn.update_layout(uirevision=keep or name)
    plot = dcc.Graph(
        id={"live": "figure", "name": name}, figure=drawn, config=GRAPH_CONFIG, style={"height": f"{height}px"}
    )
    return tags.Figure(plot, **attributes(aria_label=label, role="figure", data_open="trial" if opens else ""))


def keep_zoom(figure: go.Figure, relayout: Any) -> None:
    """The ranges that a visitor gave the axes, where the last thing done to them was to zoom: plotly's own way of
    keeping them ends where the figure frames its data anew.
    """
    for key, low in relayout.items() if isinstance(relayout, dict) else ():
        found = _RANGE.fullmatch(key)
        high = relayout.get(f"{found[1]}.range[1]") if found else None
        if found and high is not None:
            figure.update_layout({found[1]: {"range": [low, high], "autorange": False}})


@dataclass(frozen=True)
class Parts:
    """A drawn view taken apart: `skeleton` is a digest of all that stays, `blocks` and `figures` what may be replaced,
    by name, with the digest of each block.
    """

    skeleton: str
    blocks: Mapping[str, Any]
    figures: Mapping[str, Any]
    digests: Mapping[str, str]


def take_apart(view: Sequence[Any]) -> Parts:
    """The live parts of a view by name."""
    blocks: dict[str, Any] = {}
    figures: dict[str, Any] = {}

    def plain(node: Any) -> Any:
        if isinstance(node, list | tuple):
            return [plain(child) for child in node]
        if not isinstance(node, Component):
            return node
        content = node.to_plotly_json()
        props = dict(content["props"])
        kind, name = _live(props.get("id"))
        if kind == "block":
            blocks[name] = props.pop("children")
        elif kind == "figure":
            figures[name] = props.pop("figure")
        else:
            props["children"] = plain(props.get("children"))
        return [content["type"], props]

    skeleton = _digest(plain(list(view)))
    return Parts(skeleton, blocks, figures, {name: _digest(content) for name, content in blocks.items()})


def _live(identity: Any) -> tuple[str, str]:
    return (identity.get("live", ""), identity["name"]) if isinstance(identity, dict) else ("", "")


def _digest(content: Any) -> str:
    # Not for safety: it only tells whether something was sent before.
    return hashlib.sha256(to_json_plotly(content).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- words and tables


def card(title: str, *body: Any, wide: bool = False) -> Component:
    """A section of the page under its heading."""
    return tags.Section([tags.H3(title), *body], className="card wide" if wide else "card")


def empty(text: str) -> Component:
    """Why there is nothing, and what to do."""
    return tags.P(text, className="message")


def table(
    columns: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    label: str,
    numeric: Iterable[int] = (),
    words: Iterable[int] = (),
    tall: bool = False,
) -> Component:
    """A table with headers. Columns by place: `numeric` stand to the right, `words` may break."""
    kinds = dict.fromkeys(numeric, "number") | dict.fromkeys(words, "words")
    head = [tags.Th(column, scope="col", className=kinds.get(place)) for place, column in enumerate(columns)]
    body = [tags.Tr([tags.Td(cell, className=kinds.get(place)) for place, cell in enumerate(row)]) for row in rows]
    whole = tags.Table([tags.Thead(tags.Tr(head)), tags.Tbody(body)], **attributes(aria_label=label))
    # A region that scrolls must be reachable by keyboard.
    return tags.Div(
        whole,
        className="scroll long" if tall else "scroll",
        tabIndex=0,
        role="region",
        **attributes(aria_label=f"{label} (scrolls)"),
    )


def pairs(rows: Iterable[tuple[str, Any]]) -> Component:
    """Names and values."""
    return tags.Dl([part for name, value in rows for part in (tags.Dt(name), tags.Dd(value))])


# ---------------------------------------------------------------- controls


def link(text: Any, state: ViewState, **attributes: Any) -> Component:
    """A way to another state of the page."""
    return tags.A(text, href=to_query(state), **attributes)


def toggle(text: str, state: ViewState, on: bool) -> Component:
    """A link that switches something of the view; `state` is what follows."""
    return link(
        text, state, className="toggle on" if on else "toggle", **attributes(aria_current="true" if on else "false")
    )


def group(label: str, *toggles: Component) -> Component:
    """Toggles that belong together."""
    return tags.Div([tags.Span(label), *toggles], className="group", role="group", **attributes(aria_label=label))


def select(name: str, label: str, options: Sequence[tuple[str, str]], value: str) -> Component:
    """A choice of one value, (value, text) each, that stands in the address as `name`."""
    known = [option for option, _ in options]
    given = [] if value in known else [tags.Option(f"{value}?" if value else "–", value=value, selected=True)]
    choices = [tags.Option(text, value=option, selected=option == value) for option, text in options]
    field = f"set-{name}"
    return tags.Div([tags.Label(label, htmlFor=field), tags.Select([*given, *choices], id=field)])


def slot(identity: str, value: str, *, kind: str = "text", label: str = "", placeholder: str = "") -> Component:
    """Where the page's script makes an input: Dash has none that is plain, and its own fails where it is replaced while
    somebody types. A `label` is for one that no label element names.
    """
    about = attributes(data_slot=identity, data_kind=kind, data_value=value, data_label=label)
    return tags.Span(className="slot", **about, **attributes(data_placeholder=placeholder))


def text_input(name: str, label: str, value: str, placeholder: str = "") -> Component:
    """A line of text that stands in the address as `name`."""
    field = f"set-{name}"
    return tags.Div([tags.Label(label, htmlFor=field), slot(field, value, placeholder=placeholder)])


def slider(name: str, label: str, low: float, high: float, value: float | None, shown: str) -> Component:
    """A budget between the least and the most that there is, in equal ratios where they are far apart; at its right end
    it limits nothing. Its value stands in the address as `max.NAME`.
    """
    by_ratio = low > 0 and high > 4 * low
    place = 1000
    if value is not None and high > low:
        inside = min(max(value, low), high)
        place = round(
            1000 * (math.log(inside / low) / math.log(high / low) if by_ratio else (inside - low) / (high - low))
        )
    scale: dict[str, Any] = {"data-low": repr(low), "data-high": repr(high), "data-log": "1" if by_ratio else ""}
    words = [tags.Span(f"{label}: "), tags.Output(shown)]
    words.append(slot(f"set-max.{name}", str(place), kind="range", label=f"{label}, at most"))
    return tags.Div(words, **scale)


def action(name: str, label: str, study: str, trial: int | None = None) -> Component:
    """A button that has the server do something; see actions.py."""
    about: dict[str, Any] = {
        "data-action": name,
        "data-study": study,
        "data-trial": "" if trial is None else str(trial),
    }
    return tags.Button(label, type="button", id=f"act-{name}", **about)


def as_json(value: Any) -> str:
    """A recorded value in one line."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
