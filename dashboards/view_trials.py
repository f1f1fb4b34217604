"""Every trial in a table: sorted, searched, with the columns that a reader wants, a page at a time, and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from dash import html as tags

from mnet_search.dashboards.page_parts import attributes, block, group, link, select, table, text_input, toggle
from mnet_search.dashboards.quantities import QUANTITIES, plain
from mnet_search.dashboards.scene import Scene
from mnet_search.dashboards.snapshot import STATES, present
from mnet_search.dashboards.view_state import ViewState, to_query
from mnet_search.studies.frame_files import to_csv
from mnet_search.studies.pareto import Array

ROWS = 50  # a page
HIDDEN = ("checkpoint", "checkpoint_sha256", "options")  # not offered as columns
FIRST = ("number", "state", "accuracy", "latency_ms", "params", "mult_adds", "epochs", "seed", "reason")


def columns_of(state: ViewState, frame: pd.DataFrame) -> list[str]:
    """The columns that are shown: those that the address names, or the first ones and the parameters."""
    offered = [str(name) for name in frame if name not in HIDDEN]
    asked = [name for name in state.option("columns").split(",") if name in offered]
    if asked:
        return list(dict.fromkeys(asked))
    parameters = [name for name in offered if name.startswith("param.")]
    found = [name for name in (*FIRST[:2], *parameters, *FIRST[2:]) if name in offered]
    return [name for name in found if name != "reason" or (frame["reason"] != "").any()]


def rows_of(state: ViewState, frame: pd.DataFrame) -> pd.DataFrame:
    """The trials that the address asks for, in its order: by state, and by words in texts, parameters, numbers."""
    states = [name for name in state.option("show").split(",") if name in STATES]
    if states:
        frame = frame[frame["state"].isin(states)]
    for word in state.option("find").lower().split():
        hits = np.zeros(len(frame), dtype=bool)
        for name in columns_of(state, frame):
            hits |= _having(frame[name], word)
        frame = frame[hits]
    sort = state.option("sort", "number")
    column = sort.removeprefix("-")
    if column not in frame.columns or column in HIDDEN:
        column = "number"
    order = frame[column] if pd.api.types.is_numeric_dtype(frame[column]) else frame[column].astype(str)
    ranked = order.sort_values(ascending=not sort.startswith("-"), kind="stable", na_position="last")
    return frame.loc[ranked.index]


def _having(values: pd.Series, word: str) -> Array:
    """Where a column has a word: looked for once in each different text or whole number. Figures are not searched."""
    if pd.api.types.is_float_dtype(values) and not str(values.name).startswith("param."):
        return np.zeros(len(values), dtype=bool)
    codes, kinds = pd.factorize(values)
    found = np.array([word in plain(kind).lower() for kind in kinds] + [False])
    return found[codes]


def csv_of(state: ViewState, frame: pd.DataFrame) -> str:
    """What the table shows, all pages of it, in full precision."""
    return to_csv(rows_of(state, frame)[columns_of(state, frame)])


def draw_trials(scene: Scene) -> list[Any]:
    """The table with its controls."""
    state, frame = scene.state, scene.snapshot.frame
    rows, columns = rows_of(state, frame), columns_of(state, frame)
    n_pages = max(1, -(-len(rows) // ROWS))
    asked = state.option("page")
    page = min(max(int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 1, 1), n_pages)
    shown = rows.iloc[(page - 1) * ROWS : page * ROWS]
    head = [_header(state, name) for name in columns]
    numeric = [place for place, name in enumerate(columns) if pd.api.types.is_numeric_dtype(frame[name])]
    words = [place for place, name in enumerate(columns) if name == "reason"]
    cells = [
        [_cell(state, name, row) for name in columns]
        for row in shown[list(dict.fromkeys(["number", *columns]))].to_dict("records")
    ]
    body = table(head, cells, label="Trials", numeric=numeric, words=words)
    if rows.empty:
        body = tags.P("no trial is like this: clear the search, the states or the filter", className="message")
    return [
        tags.H2("Trials"),
        block("controls", *_controls(state, frame), className="controls"),
        tags.Section([block("pages", *_pages(state, page, n_pages, len(rows))), block("rows", body)], className="card"),
    ]


def _controls(state: ViewState, frame: pd.DataFrame) -> list[Any]:
    now = [name for name in state.option("show").split(",") if name]
    counts = frame["state"].value_counts()
    toggles = []
    for name in STATES:
        if name in counts or name in now:
            chosen = [one for one in now if one != name] if name in now else [*now, name]
            then = state.having(show=",".join(chosen), page="")
            toggles.append(toggle(f"{name} ({counts.get(name, 0):,})", then, name in now))
    columns = columns_of(state, frame)
    offered = [str(name) for name in frame if name not in HIDDEN]
    boxes = []
    for name in offered:
        kept = [one for one in columns if one != name] if name in columns else [*columns, name]
        boxes.append(toggle(_title(name), state.having(columns=",".join(kept)), name in columns))
    return [
        text_input("find", "Search", state.option("find"), "a word or a number"),
        group("States", *toggles),
        select("sort", "Sort by", _orders(columns), state.option("sort", "number")),
        tags.Details([tags.Summary("Columns"), tags.Div(boxes, className="group")], id="columns"),
        tags.A("Download CSV", href="/table.csv" + to_query(state), download="trials.csv"),
    ]


def _orders(columns: Sequence[str]) -> list[tuple[str, str]]:
    orders = []
    for name in columns:
        orders += [(name, f"{_title(name)}, ascending"), (f"-{name}", f"{_title(name)}, descending")]
    return orders


def _header(state: ViewState, name: str) -> Any:
    sort = state.option("sort", "number")
    best_first = name in QUANTITIES and QUANTITIES[name].best == "maximize"
    then, mark = (f"-{name}" if best_first else name), ""
    if sort == name:
        then, mark = f"-{name}", " ▲"
    elif sort == f"-{name}":
        then, mark = name, " ▼"
    return link(_title(name) + mark, state.having(sort=then, page=""), title="sort by this")


def _title(name: str) -> str:
    units = {"latency_ms": "latency, ms", "latency_q1_ms": "latency q1, ms", "latency_q3_ms": "latency q3, ms"}
    units |= {"seconds": "training, s", "accuracy": "accuracy, %", "number": "trial", "mult_adds": "mult-adds"}
    return units.get(name, name.removeprefix("param.").replace("_", " "))


def _cell(state: ViewState, name: str, row: Mapping[Any, Any]) -> Any:
    value = row[name]
    if name == "number":
        return link(str(value), state.to("trial", int(value)))
    if not present(value):
        return "–"
    if name == "accuracy":
        return f"{100 * value:.2f}"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float) and not name.startswith("param."):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and name in ("params", "mult_adds", "activations"):
        return f"{value:,}"
    return plain(value)


def _pages(state: ViewState, page: int, n_pages: int, n_rows: int) -> list[Any]:
    words = f"{n_rows:,} {'trial' if n_rows == 1 else 'trials'}"
    if n_pages == 1:
        return [tags.P(words, className="soft")]
    ends = [("first", 1, page > 1), ("previous", page - 1, page > 1)]
    ends += [("next", page + 1, page < n_pages), ("last", n_pages, page < n_pages)]
    links = [link(text, state.having(page=to)) if can else tags.Span(text, className="soft") for text, to, can in ends]
    place = tags.Span(f"{words}, page {page:,} of {n_pages:,}", className="soft")
    return [tags.Nav([place, *links], className="row", **attributes(aria_label="pages of the table"))]
