"""Commands that look after a database: db upgrade and db backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, Storage

app = typer.Typer(no_args_is_help=True)


@app.command()
def upgrade(
    storage: Storage = DEFAULT_STORAGE,
    backup: Annotated[
        Path | None,
        typer.Option("--backup", help="where the copy goes; default: beside the database", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a database of an older version to this one, after a backup. No driver may be at work on it."""
    from mnet_search.search import show_database
    from mnet_search.studies import migrations

    show_database.upgraded(storage, migrations.upgrade(storage, backup), as_json=as_json)


@app.command()
def backup(
    storage: Storage = DEFAULT_STORAGE,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="default: mnet-search-backup-DATE-TIME.db here", metavar="FILE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a file that exists")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a database to a SQLite file, while searches go on; also one in PostgreSQL."""
    from mnet_search.search import show_database
    from mnet_search.studies import backup as backups

    made = backups.backup(storage, output or backups.default_target(), force=force)
    show_database.backed_up(made, as_json=as_json)
