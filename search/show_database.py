"""What `db` and the database's part of `doctor` print."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mnet_search.search.printing import echo, print_json
from mnet_search.studies.urls import StorageError, database_path, where

if TYPE_CHECKING:
    from mnet_search.studies.backup import Backup
    from mnet_search.studies.migrations import Upgrade


def examined(storage: str | None, default: str, *, files: bool) -> dict[str, Any] | None:
    """The facts and the findings of a database, one that cannot be opened included; where none is named, those of the
    default one if it is there. Raises UrlError.
    """
    if storage is None:
        path = database_path(default)
        if path is None or not path.exists():
            return None
        storage = default
    content: dict[str, Any] = {"storage": where(storage)}
    from mnet_search.studies import integrity
    from mnet_search.studies.store import Store

    try:
        with Store(storage) as store:
            content |= integrity.facts(store)
            content["findings"] = [asdict(found) for found in integrity.check(store, files=files)]
    except StorageError as error:
        content["findings"] = [asdict(integrity.Finding("error", str(error)))]
    return content


def is_bad(database: dict[str, Any] | None) -> bool:
    """Whether there is an error among the findings."""
    return database is not None and any(found["severity"] == "error" for found in database["findings"])


def print_examined(database: dict[str, Any]) -> None:
    facts = [f"{key} {value}" for key, value in database.items() if key not in ("storage", "findings")]
    echo(f"{'database':16} {', '.join([database['storage'], *facts])}")
    for found in database["findings"]:
        echo(f"{found['severity']}: {found['what']}")
    if not database["findings"]:
        echo(f"{'':16} checked: nothing is wrong with it")


def backed_up(made: Backup, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(made))
        return
    echo(str(made.path))
    counts = f"{made.n_studies} stud{'y' if made.n_studies == 1 else 'ies'}, {made.n_trials} trials"
    name = shlex.quote(str(made.path))
    echo(f"{counts}, {made.bytes / 1e6:.1f} MB, checked; open it with: --storage {name}")


def upgraded(storage: str, done: Upgrade, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(done))
        return
    if done.backup is None:
        echo(f"{where(storage)}: schema {done.to_version} is current; nothing was changed")
        return
    echo(f"{where(storage)}: upgraded from schema {done.from_version} to {done.to_version}")
    echo(f"as it was before: {done.backup}")
