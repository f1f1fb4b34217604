"""A study as one HTML file that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import datetime
import html
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from mnet_search.dashboards.conclusions import Result, conclude, paragraphs
from mnet_search.dashboards.importance_plot import importance_info
from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.quantities import parameter_names, values_of
from mnet_search.dashboards.snapshot import COSTS, Snapshot, Table, front_table, take
from mnet_search.models.arch import MnetError
from mnet_search.studies.store import Store

# The file asks for nothing from outside, and the browser holds it to that.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

# No button that sends a figure to Plotly's servers, which version 7 offers.
GRAPH_CONFIG: Any = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "sendChartToCloud"],
}

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
.js-plotly-plot .main-svg text:not(.heatmap-label, .heatmap-label *) { fill: var(--ink) !important; }
.js-plotly-plot .hoverlayer text { fill: #1c2126 !important; }
.js-plotly-plot .hoverlayer .hovertext path { fill: #fff !important; stroke: #586470 !important; }
@media print {
  @page { margin: 12mm; }
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .cards, .figures { display: block; }
  .card { box-shadow: none; border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 8px 0; }
  .card { overflow: visible; }
  .figure, tr, li { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll, .long { overflow: visible; max-height: none; }
  table { white-space: normal; font-size: 8.5pt; width: 100%; }
  td, th { padding-right: 8px; overflow-wrap: break-word; }
  th { position: static; }
  thead { display: table-header-group; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 9pt; overflow: visible; max-height: none; }
  .modebar-container { display: none; }
}
"""

# What the report has beyond the pages that share its style.
OWN_STYLE = """
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); grid-auto-flow: dense; }
.groups { columns: 2 460px; column-gap: 28px; }
.groups > div { break-inside: avoid; padding-bottom: 10px; }
h3 { font-size: 14px; margin: 0 0 2px; }
.conclusions ul, .nothing ul { margin: 0; padding-left: 18px; max-width: 110ch; }
li { overflow-wrap: anywhere; }
.space pre { max-height: 640px; overflow: auto; }
.facts td:last-child { white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 760px) { .card { padding: 10px; } }
@media print { .groups { columns: 1; } .space pre { max-height: none; overflow: visible; } }
@media print { .card { padding: 8px 0; } }
"""

# Plotly draws for a width in pixels: for paper all figures are drawn anew, and for the screen again after it.
PRINT_SCRIPT = """
(() => {
  let paper = false;
  const draw = (size) => document.querySelectorAll('.js-plotly-plot').forEach((each) => Plotly.relayout(each, size));
  const print = (on) => {
    if (on === paper) return;
    paper = on;
    draw(on ? {autosize: false, width: 680, height: 400} : {autosize: true, width: null, height: null});
  };
  addEventListener('beforeprint', () => print(true));
  addEventListener('afterprint', () => print(false));
  matchMedia('print').addEventListener('change', (event) => print(event.matches));
})();
"""

WIDE = ("parallel", "curves", "timeline")
SLICES = 3  # parameters that are drawn one by one


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
    result = conclude(snapshot)
    drawn, empty = drawings(snapshot)
    words = "".join(_paragraph(heading, sentences) for heading, sentences in paragraphs(result.conclusions))
    parts = [
        _card("Conclusions", f'<div class="groups">{words}</div>', "wide conclusions"),
        _card("The front", _table_html(members_table(snapshot, result), "scroll long"), "wide"),
        *(_figure_card(each) for each in drawn),
        _card("Nothing to show", _items(f"{title}: {reason}." for title, reason in empty), "wide nothing")
        if empty
        else "",
        _card("Provenance", _table_html(Table((), tuple(flatten(snapshot.provenance)))), "wide facts"),
        _card("The space file as run", f"<pre>{html.escape(snapshot.space_text)}</pre>", "wide space"),
    ]
    name = html.escape(snapshot.name)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · mnet-search</title><style>{STYLE}{OWN_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>\n"
        f'<body><main><h1>{name}</h1><p class="soft">Report of {html.escape(made)}.</p>\n'
        f'<div class="cards figures">{"".join(parts)}</div></main><script>{PRINT_SCRIPT}</script></body></html>\n'
    )


@dataclass(frozen=True)
class Drawing:
    """One figure of the report: a row of PLOTS with options, what it shows, and the id and heading of its card."""

    id: str
    plot: str
    title: str
    info: Any


def drawings(snapshot: Snapshot) -> tuple[tuple[Drawing, ...], tuple[tuple[str, str], ...]]:
    """The figures that have something to show, and of the others the title and the reason. The one-parameter plot is
    drawn for each of the first parameters by importance; a panel that equals another is drawn once.
    """
    drawn, empty = [], []
    for name, plot in PLOTS.items():
        for place, (more, options) in enumerate(_variants(name, snapshot)):
            info = plot.info(snapshot, **options)
            if info.empty:
                empty.append((plot.title + more, info.empty))
            else:
                drawn.append(Drawing(f"plot-{name}" + f"-{place}" * (place > 0), name, plot.title + more, info))
    return tuple(drawn), tuple(empty)


def _variants(name: str, snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    """How often a row of PLOTS is drawn: what its title has more, and the options."""
    if name == "pareto":  # the panels of the known costs have rows of their own
        own = [each for each, best in snapshot.objectives.items() if best == "minimize" and each not in COSTS]
        return [(f": accuracy and {each}", {"x": each}) for each in own]
    if name == "slice":
        varying = [each for each in parameter_names(snapshot) if len(values_of(snapshot.frame, each)) > 1]
        order = [each for each in importance_info(snapshot).parameters if each in varying]
        chosen = [*order, *(each for each in varying if each not in order)][:SLICES]
        return [(f": {each}", {"parameter": each}) for each in chosen] or [("", {})]
    return [("", {})]


def members_table(snapshot: Snapshot, result: Result) -> Table:
    """The front as a table: means over the runs of each network, how many they are, and, where the noise is known, the
    probability that the network belongs there.
    """
    table = front_table(replace(snapshot, frame=result.members))
    if not table.rows:
        return table
    rows = result.members.set_index("number").loc[[int(row[0]) for row in table.rows]]
    columns = {"runs": [str(count) for count in rows["n"]]}
    if result.known:
        columns["p (on the front)"] = [f"{chance:.2f}" for chance in rows["probability"]]
    more = zip(*columns.values(), strict=True)
    return Table((*table.columns, *columns), tuple((*row, *extra) for row, extra in zip(table.rows, more, strict=True)))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as rows of (dotted name, text)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure_card(drawing: Drawing) -> str:
    figure = PLOTS[drawing.plot].figure(drawing.info)
    text = figure.to_html(
        full_html=False, include_plotlyjs=False, config=GRAPH_CONFIG, default_height="440px", div_id=drawing.id
    )
    return _card(drawing.title, text, "figure" + " wide" * (drawing.plot in WIDE))


def _card(title: str, body: str, classes: str = "") -> str:
    label = html.escape(title)
    return f'<section class="card {classes}" aria-label="{label}"><h2>{label}</h2>{body}</section>\n'


def _paragraph(heading: str, sentences: Iterable[str]) -> str:
    return f"<div><h3>{html.escape(heading)}</h3>{_items(sentences)}</div>"


def _items(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in sentences) + "</ul>"


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
