"""A study as the driver writes it: one driver at a time, every step recorded before the next begins."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from sqlalchemy import literal, select, update

from mnet_search.models.arch import Arch
from mnet_search.models.costs import Costs
from mnet_search.spaces.space import Space
from mnet_search.studies import database as db
from mnet_search.studies.database import StorageError
from mnet_search.studies.store import STATES, Store

if TYPE_CHECKING:
    import optuna


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


class StudyWriter:
    """A study as the driver writes it. Hold `lock()` around everything."""

    def __init__(self, store: Store, study_id: int, name: str):
        self.store, self.study_id, self.name = store, study_id, name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One driver at a time. The lock is the operating system's and ends with the process. Raises StorageError
        naming the holder.
        """
        path = self.store.path.with_name(f"{self.store.path.name}.study{self.study_id}.lock")
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

    def curves(self) -> dict[int, dict[int, dict[str, float | None]]]:
        """The learning curves of all trials: trial id -> epoch -> figures."""
        own = select(db.trials.c.trial_id).where(db.trials.c.study_id == self.study_id)
        query = select(db.curves).where(db.curves.c.trial_id.in_(own)).order_by(db.curves.c.epoch)
        found: dict[int, dict[int, dict[str, float | None]]] = {}
        with self.store._read() as connection:
            for row in connection.execute(query).mappings():
                figures = {name: row[name] for name in db.CURVE_COLUMNS}
                found.setdefault(row["trial_id"], {})[row["epoch"]] = figures
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
                    params=costs.params,
                    mult_adds=costs.mult_adds,
                    activations=costs.activations,
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

    def copy_curve(self, source: int, target: int) -> None:
        """The learning curve of a trial that goes on as another one."""
        columns = ["trial_id", "epoch", *db.CURVE_COLUMNS]
        rows = select(literal(target), *(db.curves.c[name] for name in columns[1:])).where(
            db.curves.c.trial_id == source
        )
        with self._write() as connection:
            connection.execute(db.curves.insert().from_select(columns, rows))

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
        self._end(trial_id, reason, "FAIL")

    def stop(self, trial_id: int, reason: str) -> None:
        """Record why a trial was stopped early, and tell Optuna: without values, which are those of finished trials."""
        self._end(trial_id, reason, "PRUNED")

    def _end(self, trial_id: int, reason: str, state: str) -> None:
        with self._write() as connection:
            connection.execute(
                update(db.trials).where(db.trials.c.trial_id == trial_id).values(finished=datetime.now(), reason=reason)
            )
        self._tell(trial_id, state, None)

    def _tell(self, trial_id: int, state: str, values: list[float] | None) -> None:
        import optuna

        with db.translated(self.store.path):
            self.store.optuna.set_trial_state_values(trial_id, optuna.trial.TrialState[state], values)


def open_study(
    store: Store, space: Space, study: str, *, n_trials: int, runs_dir: Path, provenance: Mapping[str, Any]
) -> StudyWriter:
    """The study under this name, made if it is new. Raises MnetError where its stored space is another one."""
    made = store.ensure_study(space, study, n_trials=n_trials, runs_dir=runs_dir, provenance=provenance)
    return StudyWriter(store, made, study)
