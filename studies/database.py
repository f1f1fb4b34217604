"""Opening the database: checks, SQLite settings, and our own tables beside Optuna's."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
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
    inspect,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from mnet_search.models.arch import MnetError

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30.0

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
    Column("driver", JSON),  # pid, host and since when a driver runs this study; null when none does
    Column("runs_dir", Text, nullable=False),
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
    Column("params", Integer, nullable=False),
    Column("mult_adds", Integer, nullable=False),
    Column("activations", Integer, nullable=False),
    Column("attempts", Integer, nullable=False, default=1),
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
# One row per space, device and protocol. A database from before 0.2 lacks it until a first row is stored.
latency_tables = Table(
    "mnet_latency_tables",
    metadata,
    Column("table_id", Integer, primary_key=True),
    Column("space_name", String(512), nullable=False, index=True),
    Column("fingerprint", JSON, nullable=False),
    Column("content", JSON, nullable=False),  # models.latency_table.LatencyTable
    Column("created", DateTime, nullable=False),
)


class StorageError(MnetError):
    """The database cannot be opened, read or written; the text says which one, why, and what to try."""

    exit_code = 3


def normalise_url(url: str) -> str:
    """A storage URL; a plain path means SQLite. Raises StorageError for what this version cannot use."""
    full = url if "://" in url else f"sqlite:///{url}"
    try:
        parsed = make_url(full)
    except ArgumentError:
        raise StorageError(f"{url!r} is not a storage URL; write sqlite:///FILE.db") from None
    if parsed.get_backend_name() != "sqlite":
        shown = parsed.render_as_string(hide_password=True)
        raise StorageError(f"{shown}: this version stores studies in SQLite only; write sqlite:///FILE.db")
    if not parsed.database or parsed.database == ":memory:":
        raise StorageError(
            f"{url!r} names no file, and a study in memory could not be resumed; write sqlite:///FILE.db"
        )
    return full


def database_path(url: str) -> Path:
    """The file behind a SQLite URL."""
    return Path(str(make_url(normalise_url(url)).database))


def open_engine(url: str, *, create: bool) -> Engine:
    """An engine on a database that was checked to be ours (or Optuna's, or new where `create` allows).

    Raises StorageError for a missing, corrupt, foreign or newer database.
    """
    path = database_path(url)
    if not path.exists():
        if not create:
            raise StorageError(
                f"{path}: no such database; start a search first (mnet-search run SPACE), "
                "or name another with --storage"
            )
        if not path.parent.is_dir():
            raise StorageError(
                f"{path}: the folder {path.parent} does not exist; create it, or name another file with --storage"
            )
    engine = create_engine(normalise_url(url), connect_args={"timeout": BUSY_TIMEOUT_S})
    tune(engine)
    with translated(path):
        names = set(inspect(engine).get_table_names())
        strangers = names - set(metadata.tables) - _optuna_tables()
        if names and not names & (set(metadata.tables) | {"version_info"}):
            listed = ", ".join(sorted(strangers)[:5])
            raise StorageError(
                f"{path}: this database belongs to another program (it has tables {listed}); "
                "name another file with --storage"
            )
        if "mnet_schema" in names:
            _check_version(engine, path)
        elif not create:
            raise StorageError(
                f"{path}: no study of mnet-search lies in this database; name another file with --storage"
            )
        if create:
            metadata.create_all(engine)
            with engine.begin() as connection:
                if connection.execute(select(schema.c.version)).first() is None:
                    connection.execute(schema.insert().values(version=SCHEMA_VERSION))
    return engine


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
def translated(path: Path) -> Iterator[None]:
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
        raise StorageError(f"{path}: {_advice(str(original))}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _advice(text: str) -> str:
    if "not a database" in text:
        return "is not a SQLite database; name another file with --storage"
    if "malformed" in text or "corrupt" in text:
        return f"the database is damaged ({text}); restore a backup, or name another file with --storage"
    if "locked" in text:
        held = f"another process has kept the database locked for {BUSY_TIMEOUT_S:.0f} s"
        return f"{held} ({text}); end it and run the same command again"
    if "full" in text:
        return f"the disk is full ({text}); free some space and run the same command again"
    if "unable to open" in text or "readonly" in text or "read-only" in text:
        return f"cannot be opened for writing ({text}); check its permissions and those of its folder"
    return text


def _check_version(engine: Engine, path: Path) -> None:
    with engine.connect() as connection:
        version = connection.execute(select(schema.c.version)).scalar()
    if version is not None and version > SCHEMA_VERSION:
        raise StorageError(
            f"{path}: written by a newer mnet-search (schema {version}, this one reads up to {SCHEMA_VERSION}); "
            "upgrade mnet-search"
        )


def _optuna_tables() -> set[str]:
    return {
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
