"""Commands that give a study as a table, and take one from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, Limits, Storage, StudyArg, open_store

app = typer.Typer()

Output = Annotated[
    str, typer.Option("-o", "--output", help="the file to write; - for the terminal or a pipe", metavar="FILE")
]
Force = Annotated[bool, typer.Option("--force", help="replace a file that exists")]


@app.command()
def table(
    study: StudyArg,
    style: Annotated[str, typer.Option("--style", help="paper, markdown, latex or csv")] = "paper",
    which: Annotated[str, typer.Option("--rows", help="front, all (networks) or best")] = "front",
    limits: Limits = None,
    output: Output = "-",
    force: Force = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """The networks of a study as a table in the manner of the papers."""
    from mnet_search.search import show, show_tables

    with open_store(storage) as store:
        bounds = show.parse_limits(limits or [])
        show_tables.results(store, study, style, which, bounds, output, force=force, as_json=as_json)


@app.command()
def frame(
    study: StudyArg,
    output: Output = "-",
    curves: Annotated[bool, typer.Option("--curves", help="the learning curves instead: a row an epoch")] = False,
    force: Force = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Every trial of a study as a row, for spreadsheets and scripts: FILE.csv or FILE.parquet."""
    from mnet_search.search import show_tables

    with open_store(storage) as store:
        show_tables.frame(store, study, output, curves=curves, force=force, as_json=as_json)


@app.command("import")
def import_command(
    study: Annotated[str, typer.Argument(help="the study that takes them; made if it is new", metavar="STUDY")],
    space: Annotated[
        Path | None, typer.Option("--space", help="its space file; a study that exists has its own", metavar="SPACE")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--from", help="a CSV file with a header", metavar="FILE.csv")] = None,
    from_storage: Annotated[
        str | None, typer.Option("--from-storage", help="the database of an Optuna study", metavar="URL")
    ] = None,
    from_study: Annotated[str | None, typer.Option("--from-study", help="its name there", metavar="NAME")] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="where a parameter or figure stands: NAME=COLUMN, NAME=COLUMN% or NAME==VALUE; may be repeated",
            metavar="NAME=COLUMN",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, and write nothing")] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Bring finished trials into a study from a CSV file or an Optuna study, marked as imported."""
    from mnet_search.search import show_tables

    source = show_tables.ImportSource(csv, from_storage, from_study, tuple(mapping or ()))
    show_tables.imported(storage, study, space, source, dry_run=dry_run, as_json=as_json)
