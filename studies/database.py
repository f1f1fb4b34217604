"""Opening the database: checks, SQLite settings, and our own tables beside Optuna's."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from mnet_search.studies.urls import (
    BUSY_TIMEOUT_S,
    StorageError,
    connect_options,
    database_path,
    parse_url,
    timeout_s,
    where,
)

__all__ = ["SCHEMA_VERSION", "StorageError", "open_engine", "translated", "tune"]

SCHEMA_VERSION = 2

metadata = MetaData()
schema = Table("mnet_schema", metadata, Column("version", Integer, primary_key=True))
studies = Table(
    "mnet_studies",
    metadata,
    Column("study_id", Integer, primary_key=True, autoincrement=False),  # Optuna's
    Column("name", String(512), nullable=False, unique=True),
    Column("space_name", String(512), nullable=False),
    Column("space", JSON, nullable=False),  # the whole file, defaults written out
    Column("identity", JSON, nullable=False),  # the part that must not change, and
    Column("space_hash", String(12), nullable=False),  # its hash
    Column("fixed", JSON, nullable=False),  # options that the data decided
    Column("objectives", JSON, nullable=False),  # name -> direction, in Optuna's order
    Column("n_trials", Integer, nullable=False),  # finished trials asked for
    Column("created", DateTime, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("runs_dir", Text, nullable=False),
    Column("stop_request", String(8)),  # finish or now, from `mnet-search stop`; null when nobody asked
)
# Who runs a study now. Times are seconds since 1970 by the database's own clock.
drivers = Table(
    "mnet_drivers",
    metadata,
    Column("driver_id", String(32), primary_key=True),
    Column("study_id", Integer, ForeignKey("mnet_studies.study_id"), nullable=False, index=True),
    Column("host", String(256), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("backend", Integer),  # the server's process of its connection, in PostgreSQL
    Column("lock", BigInteger),  # the advisory lock that it holds while it lives, in PostgreSQL
    Column("since", Float, nullable=False),
    Column("expires", Float),  # the end of its lease, unless it renews it; null in SQLite, where a file lock says it
)
trials = Table(
    "mnet_trials",
    metadata,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),  # Optuna's
    Column("study_id", Integer, ForeignKey("mnet_studies.study_id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("arch_id", String(12), nullable=False, index=True),
    Column("seed", Integer, nullable=False),
    Column("family", String(512), nullable=False),
    Column("options", JSON, nullable=False),
    Column("chosen", JSON, nullable=False),  # the space's parameters as chosen
    Column("params", BigInteger, nullable=False),
    Column("mult_adds", BigInteger, nullable=False),
    Column("activations", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, default=1),
    Column("owner", String(32)),  # the driver that runs it; null where none does
    Column("folder", Text),  # of its checkpoints and log: a path, or a URL that fsspec opens
    Column("started", DateTime, nullable=False),
    Column("finished", DateTime),
    Column("reason", Text),  # why it failed or was stopped
    Column("metrics", JSON),  # accuracy, latency_ms, ...
    Column("environment", JSON),  # device, threads, versions, data digest
    Column("checkpoint", Text),
    Column("checkpoint_sha256", String(64)),
)
CURVE_COLUMNS = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "images_per_second",
    "seconds",
)
curves = Table(
    "mnet_curves",
    metadata,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    *(Column(name, Float) for name in CURVE_COLUMNS),
)
measurements = Table(
    "mnet_measurements",
    metadata,
    Column("measurement_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False, index=True),
    Column("name", String(64), nullable=False),  # latency_ms
    Column("median", Float, nullable=False),
    Column("q1", Float, nullable=False),
    Column("q3", Float, nullable=False),
    Column("n", Integer, nullable=False),
    Column("protocol", JSON, nullable=False),  # batch, threads, device
    Column("measured", DateTime, nullable=False),
)
# One row per space, device and protocol.
latency_tables = Table(
    "mnet_latency_tables",
    metadata,
    Column("table_id", Integer, primary_key=True),
    Column("space_name", String(512), nullable=False, index=True),
    Column("fingerprint", JSON, nullable=False),
    Column("content", JSON, nullable=False),  # models.latency_table.LatencyTable
    Column("created", DateTime, nullable=False),
)


def open_engine(url: str, *, create: bool, older: bool = False) -> Engine:
    """An engine on a database that was checked to be ours (or Optuna's, or new where `create` allows); with `older`,
    one of an older version too, to be upgraded.

    Raises StorageError for one that is missing, out of reach, corrupt, foreign, older or newer.
    """
    path, name = database_path(url), where(url)
    if path is not None and not path.exists():
        if not create:
            raise StorageError(
                f"{path}: no such database; start a search first (mnet-search run SPACE), "
                "or name another with --storage"
            )
        if not path.parent.is_dir():
            raise StorageError(
                f"{path}: the folder {path.parent} does not exist; create it, or name another file with --storage"
            )
    engine = make_engine(url)
    with translated(url):
        names = set(inspect(engine).get_table_names())
        strangers = names - set(metadata.tables) - OPTUNA_TABLES
        if names and not names & (set(metadata.tables) | {"version_info"}):
            listed = ", ".join(sorted(strangers)[:5])
            raise StorageError(
                f"{name}: this database belongs to another program (it has tables {listed}); "
                "name another one with --storage"
            )
        version = None
        if "mnet_schema" in names:
            version = check_version(engine, url, older=older)
        elif not create:
            raise StorageError(
                f"{name}: no study of mnet-search lies in this database; name another one with --storage"
            )
        if create and (version is None or not set(metadata.tables) <= names):
            with making(engine):
                _make_tables(engine)
    return engine


def make_engine(url: str) -> Engine:
    """An engine with our settings, on whatever is there. Raises StorageError where the driver is not installed."""
    parsed = parse_url(url)
    try:
        engine = create_engine(parsed, json_serializer=to_json, **connect_options(parsed))
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{where(url)}: {error.name} is not installed; install it with: pip install 'mnet-search[postgres]'"
        ) from None
    tune(engine)
    return engine


def to_json(value: Any) -> str:
    """JSON as every database takes it: a figure that is not finite is null."""
    return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def making(engine: Engine) -> Iterator[None]:
    """While it lasts, no other process makes tables or a study in the database: drivers may be started at once, and
    what they would make at the same time, the database refuses. Not to be nested. Raises StorageError.
    """
    if engine.dialect.name != "postgresql":
        lock = FileLock(f"{engine.url.database}.make.lock")
        try:
            lock.acquire(timeout=BUSY_TIMEOUT_S)
        except (OSError, Timeout) as error:
            raise StorageError(f"{lock.lock_file}: cannot be locked: {error}") from None
        try:
            yield
        finally:
            lock.release()
        return
    with engine.connect() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = {int(1000 * BUSY_TIMEOUT_S)}"))
        connection.execute(text("SELECT pg_advisory_xact_lock(7236201)"))
        try:
            yield
        finally:
            connection.rollback()


def _make_tables(engine: Engine) -> None:
    """Our tables, where they are not there yet."""
    with engine.begin() as connection:
        metadata.create_all(connection)
        if connection.execute(select(schema.c.version)).first() is None:
            connection.execute(schema.insert().values(version=SCHEMA_VERSION))


def optuna_is_made(engine: Engine, url: str) -> bool:
    """Whether Optuna's tables are all there: it notes their version last. Raises StorageError."""
    with translated(url):
        if not inspect(engine).has_table("alembic_version"):
            return False
        with engine.connect() as connection:
            return connection.execute(text("SELECT version_num FROM alembic_version")).first() is not None


def database_now(engine: Engine) -> ColumnElement[Any]:
    """Seconds since 1970 by the database's own clock, as an expression: all machines of a study read one clock."""
    if engine.dialect.name == "postgresql":
        return func.extract("epoch", func.clock_timestamp())
    return (func.julianday("now") - 2440587.5) * 86400.0


def tune(engine: Engine) -> None:
    """SQLite settings for every connection: write-ahead log, so that readers never block the search, and one fsync less
    per commit.

    synchronous=NORMAL with the log cannot corrupt the database; a power cut may take the last commits with it, and then
    the trials in question run again. Measured before: ask and tell at 1,000 trials take 556 ms by default, 120 ms with
    the log, 27 ms with both.
    """

    @event.listens_for(engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

    engine.dispose()  # connections that were opened before the listener would lack the settings


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns what a database driver raises, wrapped by Optuna or not, into a StorageError with the real cause."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # Optuna wraps driver errors in classes of its own; anything else goes on below
        cause = next((e for e in _causes(error) if isinstance(e, sqlite3.Error | DBAPIError)), None)
        if cause is None:
            raise
        original = cause.orig if isinstance(cause, DBAPIError) else cause
        raise StorageError(f"{where(url)}: {_advice(str(original), timeout_s(parse_url(url)))}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _advice(problem: str, waited_s: float) -> str:
    problem = " ".join(problem.split())
    if "not a database" in problem:
        return "is not a SQLite database; name another file with --storage"
    if "malformed" in problem or "corrupt" in problem:
        return f"the database is damaged ({problem}); restore a backup, or name another file with --storage"
    if "is locked" in problem:
        held = f"another process has kept the database locked for {waited_s:g} s"
        return f"{held} ({problem}); end it and run the same command again"
    if "disk is full" in problem or "No space left" in problem:
        return f"the disk is full ({problem}); free some space and run the same command again"
    if "unable to open" in problem or "readonly" in problem or "read-only" in problem:
        return f"cannot be opened for writing ({problem}); check its permissions and those of its folder"
    if "lock timeout" in problem:
        held = f"another process has kept a lock in the database for {BUSY_TIMEOUT_S:g} s"
        return f"{held} ({problem}); end it and run the same command again"
    if "does not exist" in problem and 'database "' in problem:
        return f"the server has no such database ({problem}); make it with createdb, or name another with --storage"
    if "permission denied" in problem:
        return f"the database does not let this user do that ({problem}); grant it, or log in as the database's owner"
    if "password authentication failed" in problem or "no password supplied" in problem:
        return f"the server refused the login ({problem}); set PGPASSWORD, or write it to ~/.pgpass"
    if "connection" in problem or "resolve host" in problem:
        return (
            f"the server cannot be reached within {waited_s:g} s, or has ended the connection ({problem}); "
            "check that it runs and that this machine may connect, and run the same command again"
        )
    return problem


def check_version(engine: Engine, url: str, *, older: bool = False) -> int | None:
    """The version of a database; None where it was never written. Raises StorageError for a newer one, and for an older
    one unless `older` allows it.
    """
    with engine.connect() as connection:
        version: int | None = connection.execute(select(schema.c.version)).scalar()
    if version is not None and version > SCHEMA_VERSION:
        raise StorageError(
            f"{where(url)}: written by a newer mnet-search (schema {version}, this one reads up to {SCHEMA_VERSION}); "
            "upgrade mnet-search"
        )
    if version is not None and version < SCHEMA_VERSION and not older:
        raise StorageError(
            f"{where(url)}: written by an older mnet-search (schema {version}, this one needs {SCHEMA_VERSION}); "
            "upgrade it with: mnet-search db upgrade, which makes a backup first"
        )
    return version


OPTUNA_TABLES = frozenset(
    {
        "alembic_version",
        "studies",
        "study_directions",
        "study_system_attributes",
        "study_user_attributes",
        "trial_heartbeats",
        "trial_intermediate_values",
        "trial_params",
        "trial_system_attributes",
        "trial_user_attributes",
        "trial_values",
        "trials",
        "version_info",
        "trial_constraints",
    }
)
