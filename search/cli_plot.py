"""The command that writes one figure of a study as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, Storage, StudyArg, open_store

app = typer.Typer()


@app.command()
def plot(
    study: StudyArg,
    kind: Annotated[
        str | None, typer.Argument(help="which figure; without it the kinds are listed", metavar="[KIND]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="its ending says the form: .html, .json, .svg, .png, .pdf; default: KIND.html"
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", help="an option of the figure; may be repeated", metavar="OPTION=VALUE"),
    ] = None,
    width: Annotated[int, typer.Option("--width", help="in pixels", min=100, max=10_000)] = 900,
    height: Annotated[int, typer.Option("--height", help="in pixels", min=100, max=10_000)] = 500,
    force: Annotated[bool, typer.Option("--force", help="replace a file that exists")] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """One figure of a study as a file: a page, plotly's JSON, or a picture."""
    from mnet_search.search import show_plot

    asked = show_plot.Asked(kind, output, tuple(options or ()), width, height, force)
    with open_store(storage) as store:
        show_plot.plot(store, study, asked, as_json=as_json)
