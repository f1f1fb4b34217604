"""A study as a driver writes it: every step recorded before the next begins, and only by the driver that owns the
trial.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnClause, Connection, column, literal, select, table, text, update

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.costs import Costs
from mnet_search.spaces.space import Space
from mnet_search.studies import database as db
from mnet_search.studies.leases import LEASE_S, Seat, seat
from mnet_search.studies.store import STATES, Store

if TYPE_CHECKING:
    import optuna


LOOK_EVERY_S = 2.0  # for trials that were left behind


class LeaseLostError(MnetError):
    """Another driver has taken up the trial: this one was silent for longer than its lease. Nothing was written."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as a driver needs it back: after a restart, or from another driver. `owner` is the driver that runs it,
    None where none does.
    """

    trial_id: int
    number: int
    state: str
    arch_id: str
    seed: int
    chosen: dict[str, Any]
    values: list[float] | None
    attempts: int
    owner: str | None = None


class StudyWriter:
    """A study as a driver writes it. Hold `lock()` around everything, and `turn()` around what decides."""

    def __init__(self, store: Store, study_id: int, name: str):
        self.store, self.study_id, self.name = store, study_id, name
        self._seat: Seat | None = None
        self._last_look = 0.0
        self._last, self._open = 0, set[int]()  # what `news` has seen: the newest trial, and others' that run

    @contextlib.contextmanager
    def lock(self, *, join: bool = False, lease_s: float = LEASE_S) -> Iterator[None]:
        """A driver's seat at the study; beside others where `join` and the database allow. Raises StorageError naming
        who is there already.
        """
        with seat(self.store, self.study_id, self.name, join=join, lease_s=lease_s) as self._seat:
            try:
                yield
            finally:
                self._seat = None

    @property
    def shared(self) -> bool:
        """Whether other drivers may be at work on the study."""
        return self._seat is not None and self._seat.shared

    @property
    def owner(self) -> str | None:
        """The driver that owns what is begun here."""
        return self._seat.driver_id if self._seat else None

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts no other driver decides what is trained next."""
        return self._seat.turn() if self._seat else contextlib.nullcontext()

    def begin_run(self, n_trials: int, runs_dir: str | Path, provenance: Mapping[str, Any]) -> None:
        """Note what this run aims at and where its figures will come from. A request to stop is over, unless it is
        meant for others that are still at work.
        """
        others = [d for d in self.store.entered(self.study_id) if d.alive and d.driver_id != self.owner]
        values: dict[str, Any] = {"n_trials": n_trials, "runs_dir": str(runs_dir), "provenance": dict(provenance)}
        if not others:
            values["stop_request"] = None
        with self.store.write() as connection:
            connection.execute(update(db.studies).where(db.studies.c.study_id == self.study_id).values(**values))

    def stop_requested(self) -> str | None:
        """`finish` or `now` where somebody has asked the drivers to stop."""
        query = select(db.studies.c.stop_request).where(db.studies.c.study_id == self.study_id)
        with self.store.read() as connection:
            asked: str | None = connection.execute(query).scalar()
        return asked

    @contextlib.contextmanager
    def _own(self, trial_id: int, **values: Any) -> Iterator[Connection]:
        """A transaction on a trial of this driver, begun with new values of its row. Raises LeaseLostError, and nothing
        is written, where another driver has it now.
        """
        mine = db.trials.c.owner.is_not_distinct_from(self.owner)
        with self.store.write() as connection:
            changed = values or {"owner": self.owner}
            found = connection.execute(
                update(db.trials).where(db.trials.c.trial_id == trial_id, mine).values(**changed)
            )
            if not found.rowcount:
                raise LeaseLostError(f"trial {trial_id} of study {self.name!r} is another driver's now")
            yield connection

    def records(self) -> list[TrialRecord]:
        """Every trial, in order of number; called in this driver's turn."""
        self.end_half_begun()
        with db.translated(self.store.url):
            trials = self.store.optuna.get_all_trials(self.study_id, deepcopy=False)
        with self.store.read() as connection:
            rows = {
                r["trial_id"]: r
                for r in connection.execute(select(db.trials).where(db.trials.c.study_id == self.study_id)).mappings()
            }
        found = []
        for trial in trials:
            row = rows.get(trial._trial_id)
            if row is not None:
                found.append(_record(row, trial.state.name, trial.values))
        self._last = max((trial._trial_id for trial in trials), default=0)
        return found

    def end_half_begun(self) -> None:
        """A trial without a row of ours was begun by a driver that died in the act: it is told as failed; called in
        this driver's turn.
        """
        query = text(
            "SELECT trial_id FROM trials WHERE study_id = :study AND state IN ('RUNNING', 'WAITING') "
            "AND trial_id NOT IN (SELECT trial_id FROM mnet_trials) ORDER BY trial_id"
        )
        with self.store.read() as connection:
            half_begun = connection.execute(query, {"study": self.study_id}).scalars().all()
        for trial_id in half_begun:
            self._tell(trial_id, "FAIL", None)

    def watch(self, trial_ids: Iterable[int]) -> None:
        """Trials of other drivers whose end is news."""
        self._open |= set(trial_ids)

    def news(self) -> list[tuple[TrialRecord, optuna.trial.FrozenTrial | None]]:
        """What other drivers have begun, and what they have ended with Optuna's record of it, since this was last
        asked, in order of number; called in this driver's turn.
        """
        new = (db.trials.c.trial_id > self._last) | db.trials.c.trial_id.in_(self._open)
        state: ColumnClause[str] = column("state")
        query = (
            select(db.trials, state)
            .join(table("trials", column("trial_id"), state), text("trials.trial_id = mnet_trials.trial_id"))
            .where(db.trials.c.study_id == self.study_id, new)
            .order_by(db.trials.c.number)
        )
        with self.store.read() as connection:
            rows = connection.execute(query).mappings().all()
        found: list[tuple[TrialRecord, optuna.trial.FrozenTrial | None]] = []
        for row in rows:
            trial_id, running = row["trial_id"], row["state"] in ("RUNNING", "WAITING")
            self._last = max(self._last, trial_id)
            own = row["owner"] is not None and row["owner"] == self.owner
            if own and (running or trial_id not in self._open):  # of one that was lost the end is news all the same
                self._open.discard(trial_id)
            elif not running:
                self._open.discard(trial_id)
                with db.translated(self.store.url):
                    trial = self.store.optuna.get_trial(trial_id)
                found.append((_record(row, row["state"], trial.values), trial))
            elif trial_id not in self._open:
                self._open.add(trial_id)
                found.append((_record(row, row["state"], None), None))
        return found

    def orphans(self) -> list[TrialRecord]:
        """Trials of drivers that no longer live, and those that were set down; called in this driver's turn, where it
        looks for them once in a while.
        """
        if (
            self._seat is None
            or not self._open
            or (self._last_look and time.monotonic() < self._last_look + LOOK_EVERY_S)
        ):
            return []
        self._last_look = time.monotonic()
        gone = set(self._seat.gone())
        with self.store.read() as connection:
            known = set(
                connection.execute(
                    select(db.drivers.c.driver_id).where(db.drivers.c.study_id == self.study_id)
                ).scalars()
            )
            rows = connection.execute(select(db.trials).where(db.trials.c.trial_id.in_(self._open))).mappings().all()
        return [_record(row, "RUNNING", None) for row in rows if row["owner"] in gone or row["owner"] not in known]

    def curves(self, trial_ids: Iterable[int] | None = None) -> dict[int, dict[int, dict[str, float | None]]]:
        """The learning curves of all trials, or of those named: trial id -> epoch -> figures."""
        own: Any = select(db.trials.c.trial_id).where(db.trials.c.study_id == self.study_id)
        wanted = own if trial_ids is None else list(trial_ids)
        query = select(db.curves).where(db.curves.c.trial_id.in_(wanted)).order_by(db.curves.c.epoch)
        found: dict[int, dict[int, dict[str, float | None]]] = {}
        with self.store.read() as connection:
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
        folder: str = "",
        system_attrs: Mapping[str, Any] | None = None,
    ) -> TrialRecord:
        """A new RUNNING trial of this driver, in both our tables and Optuna's; `folder` is where its checkpoints and
        its log will be.
        """
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
        with db.translated(self.store.url):
            trial_id = self.store.optuna.create_new_trial(self.study_id, template)
            number = self.store.optuna.get_trial_number_from_id(trial_id)
        with self.store.write() as connection:
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
                    owner=self.owner,
                    folder=folder,
                    started=datetime.now(),
                )
            )
        return TrialRecord(trial_id, number, "running", arch.id, seed, dict(chosen), None, 1, self.owner)

    def begin_again(self, record: TrialRecord, *, counts: bool = True) -> bool:
        """Take a trial that was left behind, or set down. Another attempt is counted where its driver or worker has
        died. False where another driver was quicker.
        """
        theirs = db.trials.c.owner.is_not_distinct_from(record.owner)
        with self.store.write() as connection:
            found = connection.execute(
                update(db.trials)
                .where(db.trials.c.trial_id == record.trial_id, theirs)
                .values(owner=self.owner, attempts=db.trials.c.attempts + int(counts))
            )
        if not found.rowcount:
            return False
        try:
            self._tell(record.trial_id, "RUNNING", None)
        except LeaseLostError:  # its driver was not dead, and has ended it a moment ago: that is news
            with self._own(record.trial_id, owner=record.owner):
                return False
        self._open.discard(record.trial_id)
        return True

    def set_down(self, trial_id: int) -> None:
        """A trial that was stopped in the middle waits for the next run; its checkpoint says where it goes on."""
        with self._own(trial_id):  # else it is another's, and runs
            pass
        self._tell(trial_id, "WAITING", None)
        with self._own(trial_id, owner=None):
            pass

    def add_epoch(self, trial_id: int, epoch: int, values: Mapping[str, float]) -> None:
        """One row of the learning curve; a row that a resumed trial sends again replaces the old one. Raises
        LeaseLostError.
        """
        row = {name: _number(values.get(name)) for name in db.CURVE_COLUMNS}
        with self._own(trial_id) as connection:
            connection.execute(db.curves.delete().where(db.curves.c.trial_id == trial_id, db.curves.c.epoch == epoch))
            connection.execute(db.curves.insert().values(trial_id=trial_id, epoch=epoch, **row))

    def copy_curve(self, source: int, target: int) -> None:
        """The learning curve of a trial that goes on as another one."""
        columns = ["trial_id", "epoch", *db.CURVE_COLUMNS]
        rows = select(literal(target), *(db.curves.c[name] for name in columns[1:])).where(
            db.curves.c.trial_id == source
        )
        with self.store.write() as connection:
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
        runs again from its last checkpoint. Raises LeaseLostError.
        """
        ended = {"finished": datetime.now(), "metrics": dict(metrics), "environment": dict(environment)}
        kept = {"checkpoint": checkpoint, "checkpoint_sha256": checkpoint_sha256}
        with self._own(trial_id, **ended, **kept) as connection:
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
        with self._own(
            trial_id, finished=datetime.now(), reason=reason.replace("\0", "\ufffd")
        ):  # which no server takes
            pass
        self._tell(trial_id, state, None)

    def _tell(self, trial_id: int, state: str, values: list[float] | None) -> None:
        import optuna

        with db.translated(self.store.url):
            try:
                self.store.optuna.set_trial_state_values(trial_id, optuna.trial.TrialState[state], values)
            except optuna.exceptions.UpdateFinishedTrialError:
                raise LeaseLostError(f"trial {trial_id} of study {self.name!r} was ended by another driver") from None


def _number(value: float | None) -> float | None:
    """A figure of a curve; nan is null, as SQLite stores it, in every database."""
    return None if value is None or math.isnan(value) else value


def _record(row: Mapping[str, Any], state: str, values: list[float] | None) -> TrialRecord:
    return TrialRecord(
        row["trial_id"],
        row["number"],
        STATES[state],
        row["arch_id"],
        row["seed"],
        dict(row["chosen"]),
        values,
        row["attempts"],
        row["owner"],
    )


def open_study(
    store: Store, space: Space, study: str, *, n_trials: int, runs_dir: str | Path, provenance: Mapping[str, Any]
) -> StudyWriter:
    """The study under this name, made if it is new. Raises MnetError where its stored space is another one."""
    made = store.ensure_study(space, study, n_trials=n_trials, runs_dir=runs_dir, provenance=provenance)
    return StudyWriter(store, made, study)
