"""The store: the only opener of the database, and through it the only truth about a study.

Optuna's tables hold parameters, states and objective values, so that any Optuna tool reads them; our own tables
(`database.py`) hold what Optuna has no place for. Only the driver writes. Readers (`studies`, `show`, the dashboard)
need neither Optuna nor a lock.
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from sqlalchemy import func, select, text, update

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.complexity import Costs
from mnet_search.models.tables import nearest
from mnet_search.spaces.space import Space, difference
from mnet_search.studies import database as db
from mnet_search.studies.database import StorageError

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


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the driver needs it back after a restart."""

    trial_id: int
    number: int
    state: str
    arch_id: str
    seed: int
    chosen: dict[str, Any]
    values: list[float] | None
    attempts: int


class Store:
    """An open database. `create` allows a new one. Raises StorageError (exit code 3)."""

    def __init__(self, url: str, *, create: bool = False):
        self.url = db.normalise_url(url)
        self.path = db.database_path(url)
        self.engine = db.open_engine(self.url, create=create)

    @cached_property
    def optuna(self) -> optuna.storages.RDBStorage:
        """Optuna's view of the same database; imported only when asked for, since readers do without."""
        import optuna

        with db.translated(self.path):
            try:
                storage = optuna.storages.RDBStorage(
                    self.url, engine_kwargs={"connect_args": {"timeout": db.BUSY_TIMEOUT_S}}
                )
            except RuntimeError as error:  # Optuna's schema is of another version
                raise StorageError(f"{self.path}: {error}") from None
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
        with self._read() as connection:
            return list(connection.execute(select(db.studies.c.name).order_by(db.studies.c.study_id)).scalars())

    def row(self, study: str) -> Mapping[str, Any]:
        """A study's own row. Raises StorageError naming the studies that there are."""
        with self._read() as connection:
            found = connection.execute(select(db.studies).where(db.studies.c.name == study)).mappings().first()
        if found is None:
            names = self.names()
            listed = f"; it has: {', '.join(names)}" if names else "; it has none yet"
            raise StorageError(f"no study {study!r} in {self.path}{nearest(study, names)}{listed}")
        return found

    def studies(self) -> list[Summary]:
        """Every study of the database, oldest first."""
        counts = "SELECT study_id, state, COUNT(*) FROM trials GROUP BY study_id, state"
        latest = select(
            db.trials.c.study_id, func.max(func.coalesce(db.trials.c.finished, db.trials.c.started))
        ).group_by(db.trials.c.study_id)
        with self._read() as connection:
            rows = connection.execute(select(db.studies).order_by(db.studies.c.study_id)).mappings().all()
            by_state = {(study, state): n for study, state, n in connection.execute(text(counts))}
            activity = {row[0]: row[1] for row in connection.execute(latest)}
        return [_summary(row, by_state, activity.get(row["study_id"])) for row in rows]

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

    def fingerprint(self, study: str) -> tuple[Any, ...]:
        """Changes whenever something that a page shows has changed; cheap enough for every poll."""
        row = self.row(study)
        with self._read() as connection:
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
        return (row["n_trials"], _driver_alive(row["driver"]), tuple(map(tuple, states)), tuple(epochs))

    @contextlib.contextmanager
    def _read(self) -> Iterator[Any]:
        with db.translated(self.path), self.engine.connect() as connection:
            yield connection

    # ------------------------------------------------------------ opening a study to write

    def open_study(
        self, space: Space, study: str, *, n_trials: int, runs_dir: Path, provenance: Mapping[str, Any]
    ) -> StudyWriter:
        """The study under this name, made if it is new. Raises MnetError with the differences where the space is
        another one.
        """
        with db.translated(self.path):
            if study in self.names():
                row = self.row(study)
                if row["space_hash"] != space.hash:
                    raise _edited(study, row["identity"], space)
                return StudyWriter(self, row["study_id"], study)
            return StudyWriter(self, self._create(space, study, n_trials, runs_dir, provenance), study)

    def _create(self, space: Space, study: str, n_trials: int, runs_dir: Path, provenance: Mapping[str, Any]) -> int:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        objectives = dict(space.file.objectives)
        directions = list(objectives.values())
        made = optuna.create_study(storage=self.optuna, study_name=study, directions=directions, load_if_exists=True)
        if made.get_trials(deepcopy=False):
            raise StorageError(
                f"{self.path}: a study {study!r} exists that mnet-search did not make; choose another --study name"
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


class StudyWriter:
    """A study as the driver writes it. Hold `lock()` around everything."""

    def __init__(self, store: Store, study_id: int, name: str):
        self.store, self.study_id, self.name = store, study_id, name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One driver at a time. The lock is the operating system's and ends with the process. Raises StorageError
        naming the holder.
        """
        slug = "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)
        path = self.store.path.with_name(f"{self.store.path.name}.{slug}.lock")
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            holder = self.store.row(self.name)["driver"] or {}
            who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
            raise StorageError(
                f"study {self.name!r} is already being run by {who}; "
                "wait for it, stop it, or choose another --study name"
            ) from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked: {error}") from None
        try:
            self._set_driver(
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": datetime.now().isoformat(timespec="seconds"),
                }
            )
            yield
        finally:
            with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong before
                self._set_driver(None)
            lock.release()

    def begin_run(self, n_trials: int, runs_dir: Path, provenance: Mapping[str, Any]) -> None:
        """Note what this run aims at and where its figures will come from."""
        with self._write() as connection:
            connection.execute(
                update(db.studies)
                .where(db.studies.c.study_id == self.study_id)
                .values(n_trials=n_trials, runs_dir=str(runs_dir), provenance=dict(provenance))
            )

    def _set_driver(self, driver: Mapping[str, Any] | None) -> None:
        with self._write() as connection:
            connection.execute(update(db.studies).where(db.studies.c.study_id == self.study_id).values(driver=driver))

    @contextlib.contextmanager
    def _write(self) -> Iterator[Any]:
        with db.translated(self.store.path), self.store.engine.begin() as connection:
            yield connection

    def records(self) -> list[TrialRecord]:
        """Every trial, in order of number. A trial without a row of ours was begun by a driver that died in the act; it
        is told as failed.
        """
        with db.translated(self.store.path):
            trials = self.store.optuna.get_all_trials(self.study_id, deepcopy=False)
        with self.store._read() as connection:
            rows = {
                r["trial_id"]: r
                for r in connection.execute(select(db.trials).where(db.trials.c.study_id == self.study_id)).mappings()
            }
        found = []
        for trial in trials:
            row = rows.get(trial._trial_id)
            if row is None:
                if not trial.state.is_finished():
                    self._tell(trial._trial_id, "FAIL", None)
                continue
            state = STATES[trial.state.name]
            found.append(
                TrialRecord(
                    trial._trial_id,
                    trial.number,
                    state,
                    row["arch_id"],
                    row["seed"],
                    row["chosen"],
                    trial.values,
                    row["attempts"],
                )
            )
        return found

    def begin(
        self,
        *,
        chosen: Mapping[str, Any],
        distributions: Mapping[str, optuna.distributions.BaseDistribution],
        arch: Arch,
        costs: Costs,
        seed: int,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> TrialRecord:
        """A new RUNNING trial, in both our tables and Optuna's."""
        import optuna

        template = optuna.trial.FrozenTrial(
            number=-1,
            trial_id=-1,
            state=optuna.trial.TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=dict(chosen),
            distributions=dict(distributions),
            user_attrs={"arch_id": arch.id, "seed": seed, **asdict(costs)},
            system_attrs=dict(system_attrs or {}),
            intermediate_values={},
        )
        with db.translated(self.store.path):
            trial_id = self.store.optuna.create_new_trial(self.study_id, template)
            number = self.store.optuna.get_trial_number_from_id(trial_id)
        with self._write() as connection:
            connection.execute(
                db.trials.insert().values(
                    trial_id=trial_id,
                    study_id=self.study_id,
                    number=number,
                    arch_id=arch.id,
                    seed=seed,
                    family=arch.family,
                    options=dict(arch.options),
                    chosen=dict(chosen),
                    **asdict(costs),
                    attempts=1,
                    started=datetime.now(),
                )
            )
        return TrialRecord(trial_id, number, "running", arch.id, seed, dict(chosen), None, 1)

    def begin_again(self, trial_id: int) -> None:
        """Count another attempt at a trial that a dead driver or worker left behind."""
        with self._write() as connection:
            connection.execute(
                update(db.trials).where(db.trials.c.trial_id == trial_id).values(attempts=db.trials.c.attempts + 1)
            )

    def add_epoch(self, trial_id: int, epoch: int, values: Mapping[str, float]) -> None:
        """One row of the learning curve; a row that a resumed trial sends again replaces the old one."""
        row = {name: values.get(name) for name in db.CURVE_COLUMNS}
        with self._write() as connection:
            connection.execute(db.curves.delete().where(db.curves.c.trial_id == trial_id, db.curves.c.epoch == epoch))
            connection.execute(db.curves.insert().values(trial_id=trial_id, epoch=epoch, **row))

    def finish(
        self,
        trial_id: int,
        values: list[float],
        *,
        metrics: Mapping[str, float],
        environment: Mapping[str, Any],
        measurement: Mapping[str, Any] | None,
        checkpoint: str,
        checkpoint_sha256: str,
    ) -> None:
        """Record everything about a finished trial, then tell Optuna: a kill between the two leaves it RUNNING, and it
        is told again later.
        """
        with self._write() as connection:
            connection.execute(
                update(db.trials)
                .where(db.trials.c.trial_id == trial_id)
                .values(
                    finished=datetime.now(),
                    metrics=dict(metrics),
                    environment=dict(environment),
                    checkpoint=checkpoint,
                    checkpoint_sha256=checkpoint_sha256,
                )
            )
            if measurement is not None:
                connection.execute(db.measurements.delete().where(db.measurements.c.trial_id == trial_id))
                connection.execute(
                    db.measurements.insert().values(trial_id=trial_id, measured=datetime.now(), **measurement)
                )
        self._tell(trial_id, "COMPLETE", values)

    def fail(self, trial_id: int, reason: str) -> None:
        """Record why a trial failed, and tell Optuna."""
        with self._write() as connection:
            connection.execute(
                update(db.trials).where(db.trials.c.trial_id == trial_id).values(finished=datetime.now(), reason=reason)
            )
        self._tell(trial_id, "FAIL", None)

    def _tell(self, trial_id: int, state: str, values: list[float] | None) -> None:
        import optuna

        with db.translated(self.store.path):
            self.store.optuna.set_trial_state_values(trial_id, optuna.trial.TrialState[state], values)


def _summary(row: Mapping[str, Any], by_state: Mapping[tuple[int, str], int], activity: Any) -> Summary:
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
        active=_driver_alive(row["driver"]),
    )


def _driver_alive(driver: Mapping[str, Any] | None) -> bool:
    """Whether the driver that entered itself still lives; one on another host is believed for a day."""
    if not driver:
        return False
    if driver["host"] != socket.gethostname():
        return datetime.now() - datetime.fromisoformat(driver["since"]) < timedelta(days=1)
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _edited(study: str, old: Mapping[str, Any], space: Space) -> MnetError:
    changes = "; ".join(difference(old, space.identity))
    return MnetError(
        f"{space.source.name}: the space differs from the one that study {study!r} was made with ({changes}); "
        "undo the change, or start a new study with --study NAME"
    )
