"""The store: the only opener of the database, and through it the only truth about a study.

Optuna's tables hold parameters, states and objective values, so that any Optuna tool reads them; our own tables
(`database.py`) hold what Optuna has no place for. Only the driver writes. Readers (`studies`, `show`, the dashboard)
need neither Optuna nor a lock.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, text

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.spaces.space import Space, difference
from mnet_search.studies import database as db
from mnet_search.studies import urls
from mnet_search.studies.database import StorageError
from mnet_search.studies.drivers import DriverInfo, drivers_of

if TYPE_CHECKING:
    import optuna

# Optuna's state names, and ours. A trial that was stopped early or refused is neither finished nor failed.
STATES = {"COMPLETE": "finished", "RUNNING": "running", "PRUNED": "stopped", "FAIL": "failed", "WAITING": "waiting"}


@dataclass(frozen=True)
class Summary:
    """One study in a line."""

    name: str
    space: str
    objectives: dict[str, str]
    n_finished: int
    n_running: int
    n_failed: int
    n_stopped: int
    n_total_asked: int
    created: datetime
    last_activity: datetime
    active: bool  # a driver is at work on it now


class Store:
    """An open database. `create` allows a new one. Raises StorageError (exit code 3)."""

    def __init__(self, url: str, *, create: bool = False):
        self.url = urls.normalise_url(url)
        self.where = urls.where(url)  # for people: without a password
        self.path = urls.database_path(url)  # None for a server
        self.engine = db.open_engine(self.url, create=create)

    @cached_property
    def optuna(self) -> optuna.storages.RDBStorage:
        """Optuna's view of the same database; imported only when asked for, since readers do without."""
        import optuna

        options = urls.connect_options(urls.parse_url(self.url))
        made = db.optuna_is_made(self.engine, self.url)
        with db.translated(self.url), contextlib.nullcontext() if made else db.making(self.engine):
            try:
                storage = optuna.storages.RDBStorage(self.url, engine_kwargs=options)
            except RuntimeError as error:  # Optuna's schema is of another version
                raise StorageError(f"{self.where}: {error}") from None
            db.tune(storage.engine)
        return storage

    def close(self) -> None:
        """Close every connection, so that SQLite folds its write-ahead log into the file."""
        self.engine.dispose()
        if "optuna" in self.__dict__:
            self.optuna.remove_session()
            self.optuna.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ reading

    def names(self) -> list[str]:
        with self.read() as connection:
            return list(connection.execute(select(db.studies.c.name).order_by(db.studies.c.study_id)).scalars())

    def row(self, study: str) -> Mapping[str, Any]:
        """A study's own row. Raises StorageError naming the studies that there are."""
        with self.read() as connection:
            found = connection.execute(select(db.studies).where(db.studies.c.name == study)).mappings().first()
        if found is None:
            names = self.names()
            listed = f"; it has: {', '.join(names)}" if names else "; it has none yet"
            raise StorageError(f"no study {study!r} in {self.where}{nearest(study, names)}{listed}")
        return found

    def studies(self) -> list[Summary]:
        """Every study of the database, oldest first."""
        counts = "SELECT study_id, state, COUNT(*) FROM trials GROUP BY study_id, state"
        latest = select(
            db.trials.c.study_id, func.max(func.coalesce(db.trials.c.finished, db.trials.c.started))
        ).group_by(db.trials.c.study_id)
        with self.read() as connection:
            rows = connection.execute(select(db.studies).order_by(db.studies.c.study_id)).mappings().all()
            by_state = {(study, state): n for study, state, n in connection.execute(text(counts))}
            activity = {row[0]: row[1] for row in connection.execute(latest)}
            active = set(connection.execute(select(db.drivers.c.study_id)).scalars())
        return [
            _summary(
                row,
                by_state,
                activity.get(row["study_id"]),
                active=row["study_id"] in active and bool(self.drivers(row["name"])),
            )
            for row in rows
        ]

    def drivers(self, study: str) -> list[DriverInfo]:
        """The drivers that are at work on a study now."""
        return [driver for driver in self.entered(self.row(study)["study_id"]) if driver.alive]

    def entered(self, study_id: int) -> list[DriverInfo]:
        """Every driver that has entered itself at a study, by its id, and not left; those too that have died since."""
        with self.read() as connection:
            return drivers_of(connection, study_id)

    def request_stop(self, study: str, how: str) -> None:
        """Ask every driver of a study to stop: `finish` after the running trials' next checkpoints, or `now`."""
        self.row(study)
        with self.write() as connection:
            connection.execute(db.studies.update().where(db.studies.c.name == study).values(stop_request=how))

    def summary(self, study: str) -> Summary:
        self.row(study)
        return next(s for s in self.studies() if s.name == study)

    def provenance(self, study: str) -> dict[str, Any]:
        """Versions, git commit, device, data digest and command of a study."""
        return dict(self.row(study)["provenance"])

    def objectives(self, study: str) -> dict[str, str]:
        return dict(self.row(study)["objectives"])

    def space_text(self, study: str) -> str:
        """The space file as it was run, defaults written out, as YAML."""
        from mnet_search.spaces.yamlfile import dump

        return dump(self.row(study)["space"])

    def chosen(self, study: str) -> dict[int, dict[str, Any]]:
        """The parameters of every trial by its number, as they were chosen: a frame's columns turn 2 into 2.0 where a
        trial has none.
        """
        query = select(db.trials.c.number, db.trials.c.chosen).where(
            db.trials.c.study_id == self.row(study)["study_id"]
        )
        with self.read() as connection:
            return {number: dict(chosen) for number, chosen in connection.execute(query)}

    def fingerprint(self, study: str) -> tuple[Any, ...]:
        """Changes whenever something that a page shows has changed; cheap enough for every poll."""
        row = self.row(study)
        with self.read() as connection:
            states = connection.execute(
                text(
                    "SELECT state, COUNT(*), MAX(trial_id) FROM trials "
                    "WHERE study_id = :id GROUP BY state ORDER BY state"
                ),
                {"id": row["study_id"]},
            ).all()
            epochs = connection.execute(
                select(func.count(), func.max(db.curves.c.trial_id)).select_from(db.curves)
            ).one()
        return (row["n_trials"], bool(self.drivers(study)), tuple(map(tuple, states)), tuple(epochs))

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        """A connection to read by."""
        with db.translated(self.url), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Any]:
        """A transaction: all of it, or nothing where something fails in it."""
        with db.translated(self.url), self.engine.begin() as connection:
            yield connection

    # ------------------------------------------------------------ making a study

    def ensure_study(
        self, space: Space, study: str, *, n_trials: int, runs_dir: str | Path, provenance: Mapping[str, Any]
    ) -> int:
        """Optuna's id of the study under this name, made if it is new.

        Raises MnetError with the differences where the stored space is another one.
        """
        with db.translated(self.url):
            if study not in self.names():
                _ = self.optuna  # its tables, which it makes where they are not there yet
                with db.making(self.engine):
                    if study not in self.names():  # another driver may have been quicker
                        return self._create(space, study, n_trials, runs_dir, provenance)
            row = self.row(study)
            changes = difference(row["identity"], space.identity) if row["space_hash"] != space.hash else []
            if changes:  # a hash also changes with the keys that a later version brings
                raise _edited(study, changes, space)
            return int(row["study_id"])

    def _create(
        self, space: Space, study: str, n_trials: int, runs_dir: str | Path, provenance: Mapping[str, Any]
    ) -> int:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        objectives = dict(space.file.objectives)
        directions = list(objectives.values())
        made = optuna.create_study(storage=self.optuna, study_name=study, directions=directions, load_if_exists=True)
        if made.get_trials(deepcopy=False):
            raise StorageError(
                f"{self.where}: a study {study!r} exists that mnet-search did not make; choose another --study name"
            )
        if [d.name.lower() for d in made.directions] != directions:  # an empty one, left by a kill or by other hands
            optuna.delete_study(study_name=study, storage=self.optuna)
            made = optuna.create_study(storage=self.optuna, study_name=study, directions=directions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            made.set_metric_names(list(objectives))
        with self.engine.begin() as connection:
            connection.execute(
                db.studies.insert().values(
                    study_id=made._study_id,
                    name=study,
                    space_name=space.name,
                    space=space.to_json(),
                    identity=space.identity,
                    space_hash=space.hash,
                    fixed=dict(space.fixed),
                    objectives=objectives,
                    n_trials=n_trials,
                    created=datetime.now(),
                    provenance=dict(provenance),
                    runs_dir=str(runs_dir),
                )
            )
        return int(made._study_id)


def _summary(
    row: Mapping[str, Any], by_state: Mapping[tuple[int, str], int], activity: Any, *, active: bool
) -> Summary:
    def count(state: str) -> int:
        return by_state.get((row["study_id"], state), 0)

    when = datetime.fromisoformat(activity) if isinstance(activity, str) else activity
    return Summary(
        name=row["name"],
        space=row["space_name"],
        objectives=dict(row["objectives"]),
        n_finished=count("COMPLETE"),
        n_running=count("RUNNING"),
        n_failed=count("FAIL"),
        n_stopped=count("PRUNED"),
        n_total_asked=row["n_trials"],
        created=row["created"],
        last_activity=max(row["created"], when) if when else row["created"],
        active=active,
    )


def _edited(study: str, changes: list[str], space: Space) -> MnetError:
    return MnetError(
        f"{space.source.name}: the space differs from the one that study {study!r} was made with "
        f"({'; '.join(changes)}); "
        "undo the change, or start a new study with --study NAME"
    )
