"""What `plot` does: lists the kinds of figures, or writes one, with the options of its info function by name."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mnet_search.dashboards.plots import PLOTS, Plot
from mnet_search.dashboards.snapshot import Snapshot, take
from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.search.printing import check_file, echo, print_json, print_table, write_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mnet_search.studies.store import Store

PICTURES = (".svg", ".png", ".pdf")
ENDINGS = (".html", ".json", *PICTURES)
PAPER, INK = "white", "#1c2126"
EXTRA = "mnet-search[figures]"


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; width and height in pixels."""

    kind: str | None
    output: Path | None = None
    options: tuple[str, ...] = ()
    width: int = 900
    height: int = 500
    force: bool = False


def plot(store: Store, study: str, asked: Asked, *, as_json: bool) -> None:
    """List the kinds, or write one figure and print its path. Raises MnetError, and then no file was written."""
    if asked.kind is None:
        store.row(study)  # a study that does not exist is said, whatever is asked of it
        _list(as_json)
        return
    row = _row(asked.kind)
    options = parse_options(asked.kind, row, asked.options)
    path = asked.output or Path(f"{asked.kind}.html")
    check_file(path, "-o", force=asked.force, endings=ENDINGS)
    ending = path.suffix.lower()
    if ending in PICTURES:
        check_pictures(ending)
    content = _content(take(store, study), asked, row, options, ending)
    write_file(path, content, "-o", force=asked.force, endings=ENDINGS)
    if as_json:
        print_json({"study": study, "kind": asked.kind, "file": str(path), "bytes": len(content)})
    else:
        echo(str(path))


def _row(kind: str) -> Plot:
    if kind not in PLOTS:
        raise MnetError(f"there is no figure {kind!r}{nearest(kind, PLOTS)} (known: {', '.join(PLOTS)})")
    return PLOTS[kind]


def _content(snapshot: Snapshot, asked: Asked, row: Plot, options: Mapping[str, Any], ending: str) -> bytes:
    info = row.info(snapshot, **options)
    if info.empty:
        raise MnetError(f"nothing to draw for {asked.kind!r} of study {snapshot.name!r}: {info.empty}")
    figure = for_paper(row.figure(info), asked.width, asked.height)
    if ending == ".json":
        return str(figure.to_json()).encode()
    if ending == ".html":
        return page(figure, f"{row.title}: {snapshot.name}").encode()
    return picture(figure, ending)


# --- Options ---


@dataclass(frozen=True)
class Option:
    """An option of an info function: its type as people read it, how a text becomes it, and its default."""

    type: str
    parse: Callable[[str], Any]
    default: Any


def parse_options(kind: str, row: Plot, items: tuple[str, ...]) -> dict[str, Any]:
    """`--set x=params --set log_y=true` -> keywords of the info function. MnetError for a name or a value it does not
    take; what a study does not have is said by the info function.
    """
    known, found = options_of(row), {}
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip()
        if not equals:
            raise MnetError(f"--set {item}: write OPTION=VALUE, such as --set x=params")
        if name not in known:
            listed = f"it has: {', '.join(known)}" if known else "it has none"
            raise MnetError(f"--set {item}: {kind!r} has no option {name!r}{nearest(name, known)} ({listed})")
        try:
            found[name] = known[name].parse(text.strip())
        except ValueError:
            raise MnetError(f"--set {item}: {name} is {known[name].type}, not {text!r}") from None
    return found


def options_of(row: Plot) -> dict[str, Option]:
    """The options of a row of PLOTS: the keywords of its info function whose type a text can say."""
    found = {}
    for name, each in inspect.signature(row.info).parameters.items():
        type_name = str(each.annotation).removesuffix(" | None")
        if each.kind is inspect.Parameter.KEYWORD_ONLY and type_name in TYPES:
            said, parse = TYPES[type_name]
            found[name] = Option(said, parse, each.default)
    return found


def _name(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _truth(text: str) -> bool:
    if (value := {"true": True, "yes": True, "false": False, "no": False}.get(text.lower())) is None:
        raise ValueError
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(_name(part.strip()) for part in text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _limits(text: str) -> dict[str, float]:
    from mnet_search.spaces.schema import quantity

    pairs = (part.partition("=") for part in text.split(","))
    return {_name(name.strip()): float(quantity(value.strip())) for name, _, value in pairs}


# Annotations of the info functions -> what an error calls them, and how a text becomes one.
TYPES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": ("a name", _name),
    "bool": ("true or false", _truth),
    "int": ("a number from 1", _count),
    "Collection[str]": ("names with commas between", _names),
    "Collection[int]": ("trial numbers with commas between", _numbers),
    "Mapping[str, float]": ("limits such as params=100k,latency_ms=5", _limits),
}


def _list(as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "kind": kind,
                    "title": row.title,
                    "options": {
                        name: {"type": each.type, "default": each.default} for name, each in options_of(row).items()
                    },
                }
                for kind, row in PLOTS.items()
            ]
        )
        return
    table = Table("kind", "shows", "options (--set)")
    for kind, row in PLOTS.items():
        table.add_row(kind, row.title, ", ".join(options_of(row)) or "–")
    print_table(table)


# --- Files ---


def for_paper(figure: go.Figure, width: int, height: int) -> go.Figure:
    """A figure of the pages with a white background and dark text of its own, since no style sheet is around it."""
    hover = {"bgcolor": PAPER, "font": {"color": INK}}
    return figure.update_layout(
        paper_bgcolor=PAPER, plot_bgcolor=PAPER, font_color=INK, hoverlabel=hover, width=width, height=height
    )


def page(figure: go.Figure, title: str) -> str:
    """A self-contained page of one figure, which asks for nothing from outside."""
    from plotly.offline import get_plotlyjs

    from mnet_search.dashboards.report import GRAPH_CONFIG, POLICY

    text = html.escape(title)
    drawn = figure.to_html(
        full_html=False, include_plotlyjs=False, config={**GRAPH_CONFIG, "responsive": False}, div_id="plot"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text}</title><style>body {{ margin: 8px; background: {PAPER}; color: {INK}; "
        "font: 15px/1.5 system-ui, sans-serif; } h1 { font-size: 18px; margin: 0 0 4px; }</style>"
        f"<script>{get_plotlyjs()}</script></head>\n<body><h1>{text}</h1>{drawn}</body></html>\n"
    )


def check_pictures(ending: str) -> None:
    """Raises MnetError where no picture can be made: without kaleido, or a Chromium for it."""
    instead = "or write .html or .json, which need neither"
    if find_spec("kaleido") is None:
        raise MnetError(f"{ending} needs the package kaleido: pip install '{EXTRA}' ({instead})")
    if find_spec("choreographer") is None or find_spec("kaleido.errors") is None:
        raise MnetError(f"{ending} needs kaleido 1 or newer: pip install -U '{EXTRA}' ({instead})")


def picture(figure: go.Figure, ending: str) -> bytes:
    """SVG, PNG or PDF by kaleido, which has a Chromium draw it; nothing is asked from the network. MnetError where
    there is no browser, or where it fails.
    """
    import kaleido
    from kaleido.errors import ChromeNotFoundError

    size = {"width": figure.layout.width, "height": figure.layout.height}
    try:
        made = kaleido.calc_fig_sync(
            figure.to_dict(), opts={"format": ending.removeprefix("."), **size}, kopts={"mathjax": False}
        )
    except ChromeNotFoundError:
        raise MnetError(
            f"{ending} is drawn by a Chromium or Chrome, and none was found: install one, or name it in BROWSER_PATH, "
            "or write .html or .json, which need none"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MnetError(f"{ending}: the browser did not draw it ({reason}); write .html or .json instead") from error
    return bytes(made)
