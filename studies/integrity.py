"""Is a database whole? What SQLite says of its file, and what must hold in every study."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, inspect, text

from mnet_search.studies.database import translated
from mnet_search.studies.drivers import drivers_of
from mnet_search.studies.store import Store

SHOWN = 5  # trials that a finding names
RESTORE = "restore a backup"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: an error, or a warning of what mends itself. `what` is one sentence with
    the remedy.
    """

    severity: Literal["error", "warning"]
    what: str


def check(store: Store, *, checkpoints: bool = True, files: bool = False) -> list[Finding]:
    """What is wrong with a database; nothing is changed. With `checkpoints`, those of finished trials must be there,
    and with `files` have the recorded SHA-256: all of them are read then. Raises StorageError.
    """
    with translated(store.url), store.engine.connect() as connection:
        found = [*structure(connection), *invariants(connection), *_running(connection)]
        if checkpoints:
            found += _checkpoints(connection, files=files, on_server=store.path is None)
    return found


def facts(store: Store) -> dict[str, Any]:
    """What the database is: its place, schema version, the engine's version, and SQLite's settings. Raises
    StorageError.
    """
    found: dict[str, Any] = {"storage": store.where}
    with store.read() as connection:
        found["schema"] = connection.execute(text("SELECT version FROM mnet_schema")).scalar()
        if store.path is None:
            found["postgresql"] = connection.execute(text("SHOW server_version")).scalar()
            return found
        found["sqlite"] = connection.execute(text("SELECT sqlite_version()")).scalar()
        found["journal_mode"] = connection.execute(text("PRAGMA journal_mode")).scalar()
        levels = ("off", "normal", "full", "extra")
        found["synchronous"] = levels[int(connection.execute(text("PRAGMA synchronous")).scalar() or 0)]
    return found


# ---------------------------------------------------------------- the file


def structure(connection: Connection) -> list[Finding]:
    """What SQLite finds in its own file; PostgreSQL looks after its files itself."""
    if connection.dialect.name != "sqlite":
        return []
    said = connection.execute(text("PRAGMA integrity_check(10)")).scalars().all()
    found = [
        Finding("error", f"the file is damaged ({line}); {RESTORE}") for line in map(_one_line, said) if line != "ok"
    ]
    broken: dict[tuple[str, str], int] = defaultdict(int)
    for row in connection.execute(text("PRAGMA foreign_key_check")).all():
        broken[row[0], row[2]] += 1
    return found + [
        Finding("error", f"{count} rows of {table} point to rows of {parent} that are not there; {RESTORE}")
        for (table, parent), count in broken.items()
    ]


def _one_line(said: Any) -> str:
    return " ".join(str(said).split())


# ---------------------------------------------------------------- our own


@dataclass(frozen=True)
class _Rule:
    """A query that gives (study, trial number) for each trial that breaks a rule, and how a finding of it reads."""

    severity: Literal["error", "warning"]
    query: str
    what: str


_OURS = "FROM mnet_trials m JOIN mnet_studies s ON s.study_id = m.study_id "
_FINISHED = f"SELECT s.name, m.number {_OURS} JOIN trials t ON t.trial_id = m.trial_id WHERE t.state = 'COMPLETE' AND "
_FOREIGN = (
    "SELECT s.name, t.number FROM trials t JOIN mnet_studies s ON s.study_id = t.study_id WHERE t.state IN ({}) "
    "AND NOT EXISTS (SELECT 1 FROM mnet_trials m WHERE m.trial_id = t.trial_id)"
)
_RULES = (
    _Rule(
        "error",
        _FOREIGN.format("'COMPLETE', 'PRUNED'"),
        f"known to Optuna alone; another program has written into the study, or rows were lost: {RESTORE}, or start a "
        "new study",
    ),
    _Rule(
        "warning",
        _FOREIGN.format("'RUNNING', 'WAITING'"),
        "begun, but not entered: the driver was killed, or is at it now; the next `mnet-search resume` ends it",
    ),
    _Rule(
        "error",
        f"SELECT s.name, m.number {_OURS} WHERE NOT EXISTS (SELECT 1 FROM trials t WHERE t.trial_id = m.trial_id)",
        f"unknown to Optuna, so that no command shows them; {RESTORE}",
    ),
    _Rule(
        "error",
        _FINISHED + "(SELECT COUNT(*) FROM trial_values v WHERE v.trial_id = m.trial_id) < "
        "(SELECT COUNT(*) FROM study_directions d WHERE d.study_id = m.study_id)",
        f"finished without a value for each objective; {RESTORE}",
    ),
    _Rule(
        "error",
        _FINISHED + "(m.metrics IS NULL OR CAST(m.metrics AS TEXT) IN ('null', '{}'))",
        f"finished without metrics; {RESTORE}",
    ),
)
_ORPHANS = (
    ("mnet_curves", "rows of learning curves"),
    ("mnet_measurements", "measurements"),
)


def invariants(connection: Connection) -> list[Finding]:
    """What must hold in every study, whatever its version; files are left alone."""
    names = set(inspect(connection).get_table_names())
    studies = (
        text("SELECT name FROM mnet_studies")
        if "studies" not in names
        else text(
            "SELECT name FROM mnet_studies s WHERE NOT EXISTS (SELECT 1 FROM studies o WHERE o.study_id = s.study_id)"
        )
    )
    found = [
        Finding("error", f"study {name!r} is unknown to Optuna and cannot be resumed; {RESTORE}")
        for name in connection.execute(studies).scalars()
    ]
    if "trials" not in names:
        return found
    for rule in _RULES:
        found += _by_study(rule.severity, connection.execute(text(rule.query + " ORDER BY 1, 2")), rule.what)
    found += _by_study("error", _without_curve(connection), f"finished without a learning curve; {RESTORE}")
    for table, what in _ORPHANS:
        query = f"SELECT COUNT(*) FROM {table} c WHERE c.trial_id NOT IN (SELECT trial_id FROM mnet_trials)"
        count = connection.execute(text(query)).scalar()
        if count:
            found.append(Finding("error", f"{count} {what} belong to no trial; {RESTORE}"))
    return found + list(_twice(connection))


def _without_curve(connection: Connection) -> Iterator[tuple[str, int]]:
    """Trained trials without one; where a function of the user's evaluates, or a trial was imported, none need be."""
    own: dict[str, bool] = {}
    for name, space in connection.execute(text("SELECT name, space FROM mnet_studies")):
        content = json.loads(space) if isinstance(space, str) else space
        own[name] = content.get("evaluate") is not None
    trained = "m.attempts > 0 AND "  # an imported trial was never begun here
    query = _FINISHED + trained + "NOT EXISTS (SELECT 1 FROM mnet_curves c WHERE c.trial_id = m.trial_id) ORDER BY 1, 2"
    yield from ((name, number) for name, number in connection.execute(text(query)) if not own[name])


def _twice(connection: Connection) -> Iterator[Finding]:
    """Finished trials of one network, seed and settings: the second was trained for nothing."""
    query = (
        f"SELECT s.name, m.arch_id, m.seed, m.number, m.chosen {_OURS} JOIN trials t ON t.trial_id = m.trial_id "
        "JOIN (SELECT m2.study_id, m2.arch_id, m2.seed FROM mnet_trials m2 JOIN trials t2 ON t2.trial_id = m2.trial_id "
        "WHERE t2.state = 'COMPLETE' GROUP BY m2.study_id, m2.arch_id, m2.seed HAVING COUNT(*) > 1) d "
        "ON d.study_id = m.study_id AND d.arch_id = m.arch_id AND d.seed = m.seed "
        "WHERE t.state = 'COMPLETE' ORDER BY 1, 2, 3, 4"
    )
    rows = connection.execute(text(query)).all()
    for (study, arch_id, seed), group in groupby(rows, key=lambda row: (row[0], row[1], row[2])):
        same: dict[str, list[int]] = defaultdict(list)
        for row in group:
            chosen = json.loads(row[4]) if isinstance(row[4], str) else row[4]
            same[json.dumps(chosen, sort_keys=True)].append(row[3])
        for numbers in same.values():
            if len(numbers) > 1:
                yield Finding(
                    "error",
                    f"study {study!r}: trials {_listed(numbers)} are one network ({arch_id}) with one seed ({seed}), "
                    f"trained twice, and count twice; {RESTORE}, or start a new study",
                )


def _running(connection: Connection) -> list[Finding]:
    """RUNNING trials that nobody runs."""
    studies = connection.execute(text("SELECT study_id FROM mnet_studies")).scalars().all()
    alive = {driver.driver_id for study in studies for driver in drivers_of(connection, study) if driver.alive}
    query = (
        f"SELECT s.name, m.number, m.owner {_OURS} JOIN trials t ON t.trial_id = m.trial_id WHERE t.state = 'RUNNING'"
    )
    left = [(name, number) for name, number, owner in connection.execute(text(query)) if owner not in alive]
    what = "left running by a driver that no longer lives; `mnet-search resume` takes them up"
    return _by_study("warning", sorted(left), what)


def _checkpoints(connection: Connection, *, files: bool, on_server: bool) -> list[Finding]:
    """Checkpoints of finished trials. On a server's studies other machines work too, where they may lie."""
    query = _FINISHED.replace("m.number", "m.number, m.checkpoint, m.checkpoint_sha256", 1) + "m.checkpoint <> ''"
    missing, differing = [], []
    for name, number, checkpoint, sha256 in connection.execute(text(query + " ORDER BY 1, 2")):
        if "://" in checkpoint:
            continue
        try:
            with Path(checkpoint).open("rb") as file:
                if files and sha256 and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    differing.append((name, number))
        except OSError:
            missing.append((name, number))
    where = "here, and may lie on the machine that trained them" if on_server else "where it was written"
    lost = f"without a readable checkpoint {where}; their figures stand, but weights cannot be exported: put it back"
    changed = "with a checkpoint whose SHA-256 is not the recorded one, which is refused; put the file back from a copy"
    return [
        *_by_study("warning" if on_server else "error", missing, lost),
        *_by_study("error", differing, changed),
    ]


# ---------------------------------------------------------------- words


def _by_study(severity: Literal["error", "warning"], rows: Iterable[Any], what: str) -> list[Finding]:
    """One finding a study. `what` follows "are "."""
    by_study: dict[str, list[int]] = defaultdict(list)
    for name, number in rows:
        by_study[name].append(number)
    return [Finding(severity, f"study {name!r}: {_trials(numbers)} {what}") for name, numbers in by_study.items()]


def _trials(numbers: list[int]) -> str:
    return f"trial {numbers[0]} is" if len(numbers) == 1 else f"trials {_listed(numbers)} are"


def _listed(numbers: list[int]) -> str:
    if len(numbers) > SHOWN:
        return f"{', '.join(map(str, numbers[:SHOWN]))} and {len(numbers) - SHOWN} more"
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
