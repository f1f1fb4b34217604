"""A database copied to a SQLite file while searches go on: whole, checked, or not there at all."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import JSON, Column, Connection, Engine, Enum, Float, Integer, MetaData, String, insert, select, text
from sqlalchemy.types import TypeEngine

from mnet_search.studies import integrity
from mnet_search.studies.database import OPTUNA_TABLES, make_engine, metadata, open_engine, translated
from mnet_search.studies.urls import BUSY_TIMEOUT_S, StorageError, database_path

BATCH = 1000  # rows that are in memory at once, when a server's tables are copied


@dataclass(frozen=True)
class Backup:
    """A copy that passed the integrity check: the file, what is in it, and its size in bytes."""

    path: Path
    n_studies: int
    n_trials: int
    bytes: int


def default_target(now: datetime | None = None) -> Path:
    """mnet-search-backup-YYYYmmdd-HHMMSS.db, in the working directory."""
    return Path(f"mnet-search-backup-{(now or datetime.now()):%Y%m%d-%H%M%S}.db")


def backup(url: str, target: Path, *, force: bool = False) -> Backup:
    """Copy a database of this version as it is at one moment; searches go on meanwhile. A server's becomes a SQLite
    file, which every command opens like any other.

    `target` is replaced only with `force`. Raises StorageError, and then leaves neither it nor a part of it.
    """
    engine = open_engine(url, create=False)
    try:
        return copy(engine, url, target, force=force)
    finally:
        engine.dispose()


def copy(engine: Engine, url: str, target: Path, *, force: bool = False, option: str = "-o") -> Backup:
    """What `backup` does, of a database of any version that is open already; `option` is what names the target."""
    source = database_path(url)
    _check_target(target, source, option, force=force)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with translated(url):
            if source is not None:
                _copy_file(source, temporary)
            else:
                _copy_server(engine, temporary)
            made = _checked(temporary, target)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if not force:
            _check_target(target, source, option, force=False)  # it may have come into being meanwhile
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except StorageError as error:
        raise StorageError(f"no backup was made: {error}") from None
    except OSError as error:
        raise StorageError(f"{target}: the backup cannot be written: {error.strerror or error}") from None
    finally:
        for rest in (temporary, *_beside(temporary)):
            with contextlib.suppress(OSError):
                rest.unlink(missing_ok=True)
    return made


def _beside(path: Path) -> list[Path]:
    """The files that SQLite keeps beside an open one."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


def _check_target(target: Path, source: Path | None, option: str, *, force: bool) -> None:
    """Raises StorageError where a file must not, or cannot, be written."""
    another = f"name another file with {option}"
    if source is not None and target.exists() and target.samefile(source):
        raise StorageError(f"{target}: the backup would replace the database itself; {another}")
    if target.is_dir():
        raise StorageError(f"{target}: the backup is a file, and this is a folder; name a file in it with {option}")
    if target.exists() and not force:
        more = "give --force to replace it, or " if option == "-o" else ""
        raise StorageError(f"{target} exists already; {more}{another}")
    if not target.parent.is_dir():
        raise StorageError(f"{target}: the folder {target.parent} does not exist; create it, or {another}")
    for rest in _beside(target):
        if (
            not rest.name.endswith("-shm") and rest.exists() and rest.stat().st_size
        ):  # SQLite would take it for the copy's
            raise StorageError(
                f"{target}: {rest.name} lies beside it, of a database that is open or was not closed; {another}"
            )


def _checked(path: Path, target: Path) -> Backup:
    """What is in a copy. Nobody is at work on it, so the drivers of the original are taken out. Raises StorageError
    where it is not whole.
    """
    engine = make_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            if connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'mnet_drivers'")).first():
                connection.execute(text("DELETE FROM mnet_drivers"))
        with engine.connect() as connection:
            damage = integrity.structure(connection)
            if damage:
                raise StorageError(f"{target} did not pass the integrity check: {damage[0].what}")
            n_studies = int(connection.execute(text("SELECT COUNT(*) FROM mnet_studies")).scalar() or 0)
            n_trials = int(connection.execute(text("SELECT COUNT(*) FROM mnet_trials")).scalar() or 0)
    finally:
        engine.dispose()  # the last connection folds the write-ahead log into the file
    return Backup(target, n_studies, n_trials, path.stat().st_size)


def _copy_file(source: Path, target: Path) -> None:
    """SQLite's online backup, in one step: a reader, for which no writer waits, and which sees one moment."""
    with (
        contextlib.closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT_S)) as original,
        contextlib.closing(sqlite3.connect(target)) as made,
    ):
        # The backup would wait for ever for a lock; a question first waits for as long as is said above.
        original.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        original.backup(made)


# ---------------------------------------------------------------- PostgreSQL


def _copy_server(engine: Engine, target: Path) -> None:
    """Optuna's tables and ours, as the server has them, whatever their version, in one snapshot."""
    made = make_engine(f"sqlite:///{target}")
    try:
        with _snapshot(engine) as source, made.connect() as copy:
            tables = _tables(source)
            tables.create_all(copy)
            copy.commit()
            for table in tables.sorted_tables:
                keys = list(table.primary_key.columns)
                rows = source.execute(select(table).order_by(*keys).execution_options(yield_per=BATCH))
                for batch in rows.mappings().partitions():
                    copy.execute(insert(table), [dict(row) for row in batch])
                copy.commit()
    finally:
        made.dispose()


@contextlib.contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one moment, and cannot write."""
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection:
        yield connection
        connection.rollback()


def _tables(source: Connection) -> MetaData:
    """The tables that mnet-search knows, as they are on the server, in types that SQLite has."""
    reflected = MetaData()
    reflected.reflect(source, only=lambda name, _: name in OPTUNA_TABLES or name in metadata.tables)
    for table in reflected.tables.values():
        for column in table.columns:
            column.type = _plain(column)
            column.server_default = None  # a sequence; SQLite numbers by itself
    return reflected


def _plain(column: Column) -> TypeEngine:
    kind: TypeEngine = column.type.as_generic(allow_nulltype=False)
    if isinstance(kind, Enum):
        return String(max(map(len, kind.enums)))
    if isinstance(kind, JSON):
        return JSON(none_as_null=True)
    if isinstance(kind, Float):
        return Float()
    return Integer() if column.primary_key and isinstance(kind, Integer) else kind
