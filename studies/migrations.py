"""A database of an older version brought to this one: backed up first, then all steps at once or none."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from mnet_search.studies import integrity
from mnet_search.studies.backup import copy
from mnet_search.studies.database import SCHEMA_VERSION, making, open_engine, translated
from mnet_search.studies.drivers import drivers_of
from mnet_search.studies.urls import BUSY_TIMEOUT_S, StorageError, database_path, where

Step = Callable[[Connection], None]


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade came to. Where the versions are one, there was nothing to do, and `backup` is None."""

    from_version: int
    to_version: int
    backup: Path | None


def upgrade(url: str, backup_to: Path | None = None, *, steps: Mapping[int, Step] | None = None) -> Upgrade:
    """Bring a database to this version, after a backup to a file that must not exist yet (by default beside a SQLite
    file, else in the working directory).

    Raises StorageError where a driver is at work on it, where it is newer or no database of ours, and where anything
    fails; the database is then as it was. `steps` are those of `MIGRATIONS`, by the version that they start from.
    """
    chosen = MIGRATIONS if steps is None else steps
    engine = open_engine(url, create=False, older=True)
    try:
        with translated(url):
            with engine.connect() as connection:
                version = _version(connection, url)
            last = max(chosen, default=SCHEMA_VERSION - 1) + 1
            if version >= last:
                return Upgrade(version, version, None)
            return _upgrade(engine, url, backup_to, chosen, last)
    finally:
        engine.dispose()


def default_backup(url: str, version: int, now: datetime | None = None) -> Path:
    """FILE.db.before-schema-N-YYYYmmdd-HHMMSS beside a SQLite file; a file of this name in the working directory for a
    server's.
    """
    path = database_path(url) or Path("mnet-search.db")
    return path.with_name(f"{path.name}.before-schema-{version}-{now or datetime.now():%Y%m%d-%H%M%S}")


def _upgrade(engine: Engine, url: str, backup_to: Path | None, steps: Mapping[int, Step], last: int) -> Upgrade:
    with _alone(engine, url), _transaction(engine) as connection:
        version = _version(connection, url)  # again: another upgrade may have been quicker
        if version >= last:
            return Upgrade(version, version, None)
        _refuse_at_work(connection, url)
        damage = integrity.structure(connection)
        if damage:
            raise StorageError(f"{where(url)}: {damage[0].what}; nothing was changed")
        known = set(integrity.invariants(connection))
        target = backup_to or default_backup(url, last)
        made = copy(engine, url, target, option="--backup")  # while the transaction keeps everybody else from writing
        for start in range(version, last):
            if start not in steps:
                raise StorageError(f"{where(url)}: this version knows no way from schema {start} to {start + 1}")
            steps[start](connection)
        connection.execute(text("UPDATE mnet_schema SET version = :version"), {"version": last})
        found = [*integrity.structure(connection), *(f for f in integrity.invariants(connection) if f not in known)]
        if found:
            raise StorageError(
                f"{where(url)}: the upgraded database did not pass the integrity check ({found[0].what}); nothing was "
                f"changed, and the backup {made.path} was made for nothing"
            )
    return Upgrade(version, last, made.path)


def _version(connection: Connection, url: str) -> int:
    version = connection.execute(text("SELECT version FROM mnet_schema")).scalar()
    if version is None:
        raise StorageError(f"{where(url)}: no study of mnet-search lies in this database; there is nothing to upgrade")
    return int(version)


# ---------------------------------------------------------------- nobody else at work


@contextlib.contextmanager
def _alone(engine: Engine, url: str) -> Iterator[None]:
    """Nobody makes a study meanwhile, and in SQLite no driver starts: it would wait for a lock file of its study."""
    path = database_path(url)
    with making(engine), contextlib.ExitStack() as locks:
        if path is not None:
            with engine.connect() as connection:
                studies = connection.execute(text("SELECT study_id, name FROM mnet_studies")).all()
            for study_id, name in studies:
                lock = FileLock(path.with_name(f"{path.name}.study{study_id}.lock"))
                try:
                    locks.enter_context(lock.acquire(timeout=0.5))
                except Timeout:
                    with engine.connect() as connection:
                        raise _at_work(url, name, _holder(connection, study_id)) from None
                except OSError as error:
                    raise StorageError(f"{lock.lock_file}: cannot be locked: {error}") from None
        yield


def _refuse_at_work(connection: Connection, url: str) -> None:
    """Raises StorageError for live drivers of a server's studies, and keeps new ones out until the transaction ends."""
    if connection.dialect.name != "postgresql" or not inspect(connection).has_table("mnet_drivers"):
        return
    connection.execute(text("LOCK TABLE mnet_drivers IN SHARE ROW EXCLUSIVE MODE"))
    for study_id, name in connection.execute(text("SELECT study_id, name FROM mnet_studies")).all():
        alive = [driver for driver in drivers_of(connection, study_id) if driver.alive]
        if alive:
            raise _at_work(url, name, str(alive[0]))


def _holder(connection: Connection, study_id: int) -> str:
    """Who holds a study's lock file: version 1 noted it with the study, later ones in a table."""
    if inspect(connection).has_table("mnet_drivers"):
        query = "SELECT pid, host FROM mnet_drivers WHERE study_id = :study"
        row = connection.execute(text(query), {"study": study_id}).first()
        return f"process {row[0]} on {row[1]}" if row else "another process"
    noted = connection.execute(text("SELECT driver FROM mnet_studies WHERE study_id = :s"), {"s": study_id}).scalar()
    driver: dict[str, Any] = json.loads(noted or "null") or {}
    return f"process {driver.get('pid', '?')} on {driver.get('host', '?')}" if driver else "another process"


def _at_work(url: str, study: str, who: str) -> StorageError:
    return StorageError(
        f"{where(url)}: study {study!r} is being run by {who}; wait for it or stop it, then upgrade; nothing was "
        "changed"
    )


@contextlib.contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that takes the tables' changes back too where something fails in it.

    Python's SQLite driver begins one by itself before INSERT or UPDATE only, and would commit each ALTER TABLE at once:
    here it is told to leave that alone. BEGIN IMMEDIATE lets nobody else write from its first moment on; others read.
    """
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = {int(1000 * BUSY_TIMEOUT_S)}"))
            yield connection
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            with contextlib.suppress(DBAPIError):  # after some errors, SQLite has taken everything back already
                connection.exec_driver_sql("ROLLBACK")
            raise


# ---------------------------------------------------------------- steps: written down once, never edited


def _from_1_to_2(connection: Connection) -> None:
    """Drivers in a table of their own, several to a study; who runs a trial, and in which folder."""
    if sqlite3.sqlite_version_info >= (3, 35):  # an older one knows no DROP COLUMN, and there it stays, read by nobody
        connection.execute(text("ALTER TABLE mnet_studies DROP COLUMN driver"))
    for statement in (
        "ALTER TABLE mnet_studies ADD COLUMN stop_request VARCHAR(8)",
        "ALTER TABLE mnet_trials ADD COLUMN owner VARCHAR(32)",
        "ALTER TABLE mnet_trials ADD COLUMN folder TEXT",
        """
        CREATE TABLE mnet_drivers (
            driver_id VARCHAR(32) NOT NULL, study_id INTEGER NOT NULL, host VARCHAR(256) NOT NULL, pid INTEGER NOT NULL,
            backend INTEGER, lock BIGINT, since FLOAT NOT NULL, expires FLOAT, PRIMARY KEY (driver_id),
            FOREIGN KEY(study_id) REFERENCES mnet_studies (study_id)
        )
        """,
        "CREATE INDEX ix_mnet_drivers_study_id ON mnet_drivers (study_id)",
        """
        CREATE TABLE IF NOT EXISTS mnet_latency_tables (
            table_id INTEGER NOT NULL, space_name VARCHAR(512) NOT NULL, fingerprint JSON NOT NULL,
            content JSON NOT NULL, created DATETIME NOT NULL, PRIMARY KEY (table_id)
        )
        """,
        "CREATE INDEX IF NOT EXISTS ix_mnet_latency_tables_space_name ON mnet_latency_tables (space_name)",
    ):
        connection.execute(text(statement))
    rows = connection.execute(text("SELECT trial_id, checkpoint FROM mnet_trials WHERE checkpoint <> ''")).all()
    folders = [{"trial": trial_id, "folder": str(Path(checkpoint).parent)} for trial_id, checkpoint in rows]
    if folders:
        connection.execute(text("UPDATE mnet_trials SET folder = :folder WHERE trial_id = :trial"), folders)


# From version -> one step up. Version 1 was in SQLite only.
MIGRATIONS: dict[int, Step] = {1: _from_1_to_2}
