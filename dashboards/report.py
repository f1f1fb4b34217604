"""A study as one HTML file that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import datetime
import html
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.snapshot import Snapshot, Table, front_table, overview, sentences, take
from mnet_search.models.arch import MnetError
from mnet_search.studies.store import Store

# The file asks for nothing from outside, and the browser holds it to that.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

GRAPH_CONFIG: Any = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}

STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #1c2126; --soft: #586470; --line: #dbe1e7; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --card: #1c2024; --ink: #e6e9ec; --soft: #9ca8b3; --line: #313840; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1440px; margin: 0 auto; padding: 20px clamp(10px, 2vw, 28px) 40px; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 8px; }
p { margin: 0 0 4px; max-width: 110ch; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.cards { display: grid; gap: 14px; margin-top: 14px; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; }
.card { min-width: 0; overflow: hidden; }
.wide { grid-column: 1 / -1; }
.scroll { overflow: auto; }
.long { max-height: 640px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 4px 18px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); background: var(--card); position: sticky; top: 0; }
pre { margin: 0; font: 13px/1.45 ui-monospace, monospace; white-space: pre; overflow-x: auto; }
.js-plotly-plot .main-svg text { fill: var(--ink) !important; }
.js-plotly-plot .hoverlayer text { fill: #1c2126 !important; }
.js-plotly-plot .hoverlayer .hovertext path { fill: #fff !important; stroke: #586470 !important; }
"""


class ReportError(MnetError):
    """A report could not be written."""

    exit_code = 1


def write_report(store: Store | str, study: str, path: str | os.PathLike[str]) -> Path:
    """Write the report of one study -> the file's path. `store` is an open store or a storage URL.

    The file appears whole or not at all: it is written under a temporary name in the same folder, then renamed.
    StoreError where the study does not exist, ReportError where the file cannot be written.
    """
    target = Path(path)
    page = render(take(store, study))
    if not target.parent.is_dir():
        raise ReportError(f"no folder {str(target.parent)!r} to write the report to: make it, or give another path")
    try:
        _replace(target, page.encode())
    except OSError as error:
        raise ReportError(f"could not write the report to {str(target)!r}: {error.strerror or error}") from error
    return target


def render(snapshot: Snapshot, now: datetime.datetime | None = None) -> str:
    """The page as text. What comes from the study passes `html.escape`; figures pass plotly's own escaping."""
    made = (now or datetime.datetime.now().astimezone()).isoformat(" ", "minutes")
    words = "".join(f"<p>{html.escape(line)}</p>" for line in sentences(overview(snapshot)))
    cards = "".join(_plot_card(name, snapshot) for name in PLOTS)
    cards += _card("The front", _table_html(front_table(snapshot), "scroll long"))
    cards += _card("Provenance", _table_html(Table((), tuple(flatten(snapshot.provenance)))))
    cards += _card("The space file as run", f"<pre>{html.escape(snapshot.space_text)}</pre>")
    name = html.escape(snapshot.name)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · mnet-search</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f'<body><main><h1>{name}</h1>{words}<p class="soft">Report of {html.escape(made)}.</p>\n'
        f'<div class="cards">{cards}</div></main></body></html>\n'
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as rows of (dotted name, text)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _plot_card(name: str, snapshot: Snapshot) -> str:
    plot = PLOTS[name]
    figure = plot.draw(snapshot).to_html(
        full_html=False, include_plotlyjs=False, config=GRAPH_CONFIG, default_height="420px", div_id=f"plot-{name}"
    )
    return _card(plot.title, figure, wide=name == "curves")


def _card(title: str, body: str, *, wide: bool = True) -> str:
    return f'<section class="card{" wide" * wide}"><h2>{html.escape(title)}</h2>{body}</section>\n'


def _table_html(table: Table, classes: str = "scroll") -> str:
    if not table.rows:
        return '<p class="soft">nothing recorded</p>'
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="{classes}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _replace(target: Path, content: bytes) -> None:
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
