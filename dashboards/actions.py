"""What the live page can do besides showing: stop a search, export, repeat and annotate a trial.

Each takes a study and what its form holds, and returns a sentence for the person who asked. Nothing here trusts a path:
exports go to `exports/` in the study's runs folder, and what they read lies in that folder too.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnet_search.dashboards.guard import DashboardError
from mnet_search.models.remote_files import is_url
from mnet_search.studies.requests import Note, ask_repeat, detail, parse_tags, write_note
from mnet_search.studies.store import Store

EXPORTED = ("config", "weights", "card")
LOG = "trial.log"
TAIL_BYTES = 16_384


@dataclass(frozen=True)
class Action:
    """`do` acts and says what it did; raises MnetError. `label` stands on its button."""

    label: str
    do: Callable[[Store, str, Mapping[str, Any]], str]


def act(storage_url: str, name: str, content: Mapping[str, Any]) -> str:
    """Carry out an action by its name. Raises MnetError: an expected failure in one line."""
    if name not in ACTIONS:
        raise DashboardError(f"no action {name!r}: there are {', '.join(ACTIONS)}")
    with Store(storage_url) as store:
        return ACTIONS[name].do(store, _text(content, "study"), content)


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key, "")
    if not isinstance(value, str):
        raise DashboardError(f"{key} must be a text, not {type(value).__name__}")
    return value


def _number(content: Mapping[str, Any]) -> int:
    value = content.get("trial")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise DashboardError(f"trial {value!r} is no number of a trial")
    return value


# ---------------------------------------------------------------- paths


def runs_folder(store: Store, study: str) -> Path:
    """Where the study's runs lie. A relative one is looked for here, and beside the database. DashboardError for a URL
    and for a folder that is not there.
    """
    named = str(store.row(study)["runs_dir"])
    if is_url(named):
        raise DashboardError(
            f"the runs of study {study!r} lie at a URL: export from the command line (mnet-search export)"
        )
    beside = [Path(named)] + ([store.path.parent / named] if store.path is not None else [])
    for folder in beside:
        if folder.is_dir():
            return folder.resolve()
    raise DashboardError(
        f"no runs folder {named!r} of study {study!r} on this machine: start the dashboard where it is"
    )


def inside(path: Path, folder: Path) -> Path:
    """A path with all links followed. DashboardError where it leads out of a (resolved) folder."""
    resolved = path.resolve()
    if not resolved.is_relative_to(folder):
        raise DashboardError(f"{path.name} leads out of the study's runs folder: it is left alone")
    return resolved


def log_tail(store: Store, study: str, number: int, lines: int = 40) -> list[str]:
    """The last lines of a trial's log, from its last 16 kB. DashboardError in words where there is none to show."""
    folder = detail(store, study, number).folder
    if not folder:
        raise DashboardError("no folder of this trial is recorded: it was not trained here")
    if is_url(folder):
        raise DashboardError("the log lies at a URL, which this page does not open; mnet-search status names it")
    path = inside(Path(folder) / LOG, runs_folder(store, study))
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            content = file.read(TAIL_BYTES)
    except OSError:
        raise DashboardError("no log on this machine: the trial ran elsewhere, or its folder was removed") from None
    found = [line.rstrip() for line in content.decode("utf-8", errors="replace").splitlines() if line.strip()]
    return found[-lines:]


# ---------------------------------------------------------------- actions


def _export(store: Store, study: str, content: Mapping[str, Any]) -> str:
    from mnet_search.studies.export import export_to, select
    from mnet_search.studies.frame import load

    number = _number(content)
    rows = select(load(store, study), store.objectives(study), str(number))
    runs = runs_folder(store, study)
    checkpoint = str(rows.iloc[0]["checkpoint"])
    formats = EXPORTED if checkpoint else ("config", "card")
    if checkpoint:
        inside(Path(checkpoint), runs)
    folder = inside(runs / "exports", runs)
    files = export_to(store, study, rows, formats, str(folder), force=True)
    names = ", ".join(Path(file).name for file in files)
    return f"trial {number} is exported to {folder}: {names}"


def _stop(store: Store, study: str, _content: Mapping[str, Any]) -> str:
    drivers = store.drivers(study)
    if not drivers:
        raise DashboardError(f"no search is running on study {study!r}: there is nothing to stop")
    store.request_stop(study, "finish")
    return "the search was asked to stop: it ends after the running trials' next checkpoints, and resume goes on"


def _repeat(store: Store, study: str, content: Mapping[str, Any]) -> str:
    asked = ask_repeat(store, study, _number(content))
    return (
        f"trial {asked.number} waits: the same network with seed {asked.seed}; "
        f"a search that is begun from now on trains it (mnet-search resume {shlex.quote(study)})"
    )


def _annotate(store: Store, study: str, content: Mapping[str, Any]) -> str:
    number = _number(content)
    write_note(store, study, number, Note(_text(content, "note"), parse_tags(_text(content, "tags"))))
    return f"the note of trial {number} is kept"


ACTIONS = {
    "export": Action("Export", _export),
    "stop": Action("Stop the search", _stop),
    "repeat": Action("Repeat with the next seed", _repeat),
    "note": Action("Keep note and tags", _annotate),
}
