"""What goes on in a study: for `mnet-search status`, and for whoever watches it by a program."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from mnet_search.studies import database as db
from mnet_search.studies.drivers import DriverInfo
from mnet_search.studies.frame import load
from mnet_search.studies.store import Store, Summary

LAST_TRIALS = 50  # from whose times the time left is told


@dataclass(frozen=True)
class TrialNow:
    """A trial that runs, waits or has failed; `folder` holds its checkpoints and its log (`trial.log`)."""

    number: int
    state: str
    arch_id: str
    seed: int
    epochs: int
    attempts: int
    seconds: float  # since it was begun
    folder: str
    reason: str


@dataclass(frozen=True)
class Status:
    """A study at one moment. `seconds_left` is None where no driver is at work, or no trial has finished yet."""

    summary: Summary
    drivers: list[DriverInfo]
    running: list[TrialNow]
    waiting: list[TrialNow]
    failed: list[TrialNow]
    seconds_left: float | None
    runs_dir: str
    stop_request: str | None


def status(store: Store, study: str) -> Status:
    """Raises StorageError for a study that is not there."""
    row, summary, drivers = store.row(study), store.summary(study), store.drivers(study)
    frame = load(store, study)
    query = select(db.trials.c.number, db.trials.c.folder).where(db.trials.c.study_id == row["study_id"])
    with store.read() as connection:
        folders = {number: folder or "" for number, folder in connection.execute(query)}

    def trials(state: str) -> list[TrialNow]:
        return [_now(r, folders) for _, r in frame[frame["state"] == state].iterrows()]

    running = trials("running")
    ended = frame[frame["state"].isin(["finished", "stopped"]) & (frame["attempts"] == 1)].tail(LAST_TRIALS)
    times = (ended["finished"] - ended["started"]).dt.total_seconds()
    n_ended, n_finished = len(ended), int((ended["state"] == "finished").sum())
    left = max(summary.n_total_asked - summary.n_finished, 0)
    seconds_left = None
    if drivers and n_finished:  # trials that are stopped early cost time too
        each = statistics.median(times) * n_ended / n_finished
        seconds_left = each * left / max(len(running), 1)
    return Status(
        summary,
        drivers,
        running if drivers else [],
        trials("waiting") + ([] if drivers else running),
        trials("failed"),
        seconds_left,
        row["runs_dir"],
        row["stop_request"],
    )


def _now(row: Any, folders: dict[int, str]) -> TrialNow:
    seconds = (datetime.now() - row["started"].to_pydatetime()).total_seconds()
    return TrialNow(
        int(row["number"]),
        row["state"],
        row["arch_id"],
        int(row["seed"]),
        int(row["epochs"]),
        int(row["attempts"]),
        max(seconds, 0.0),
        folders.get(int(row["number"]), ""),
        row["reason"],
    )
