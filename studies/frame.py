"""A study as a tidy DataFrame: one row a trial, units in the column names."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from sqlalchemy import select, text

from mnet_search.studies import database as db
from mnet_search.studies.store import STATES, Store

METRICS = ("accuracy", "validation_loss", "latency_ms", "latency_q1_ms", "latency_q3_ms")
_TRIALS = """
SELECT m.trial_id, m.number, t.state, m.arch_id, m.family, m.seed, m.chosen, m.options, m.metrics, m.params,
       m.mult_adds, m.activations, m.attempts, m.started, m.finished, m.reason, m.checkpoint, m.checkpoint_sha256,
       (SELECT COUNT(*) FROM mnet_curves c WHERE c.trial_id = m.trial_id) AS epochs,
       (SELECT SUM(seconds) FROM mnet_curves c WHERE c.trial_id = m.trial_id) AS seconds
FROM mnet_trials m JOIN trials t ON t.trial_id = m.trial_id
WHERE m.study_id = :study_id ORDER BY m.number
"""


def load(store: Store, study: str) -> pd.DataFrame:
    """Every trial of a study, one row each, in order of number.

    Columns: number, state (finished, running, failed, stopped), arch_id, family, seed, accuracy (of validation, 0..1),
    validation_loss, latency_ms with its quartiles latency_q1_ms and latency_q3_ms, params, mult_adds, activations,
    epochs, seconds (of training), attempts, reason, started, finished, checkpoint, options (the resolved network's),
    `NAME` for each objective of the user's own, and `param.NAME` for each parameter of the space (missing where it was
    not active). Raises StorageError for an unknown study.
    """
    study_id = store.row(study)["study_id"]
    with store.read() as connection:
        rows = connection.execute(text(_TRIALS), {"study_id": study_id}).mappings().all()
    names = list(store.row(study)["space"]["parameters"])
    own = [name for name in store.objectives(study) if name not in _columns([], [])]
    frame = pd.DataFrame([_row(row, own, names) for row in rows], columns=_columns(own, names))
    for column in ("started", "finished"):
        frame[column] = pd.to_datetime(frame[column])
    for column in (*METRICS, *own, "seconds"):
        frame[column] = frame[column].astype(float)
    return frame


def curves(store: Store, study: str) -> pd.DataFrame:
    """Every learning curve of a study: one row per trial and epoch, with the columns number, epoch and those of
    `CURVE_COLUMNS`.
    """
    study_id = store.row(study)["study_id"]
    query = (
        select(db.trials.c.number, db.curves.c.epoch, *(db.curves.c[name] for name in db.CURVE_COLUMNS))
        .join(db.trials, db.trials.c.trial_id == db.curves.c.trial_id)
        .where(db.trials.c.study_id == study_id)
        .order_by(db.trials.c.number, db.curves.c.epoch)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    return pd.DataFrame([tuple(row) for row in rows], columns=["number", "epoch", *db.CURVE_COLUMNS])


def _columns(own: list[str], names: list[str]) -> list[str]:
    known = [
        "number",
        "state",
        "arch_id",
        "family",
        "seed",
        *METRICS,
        "params",
        "mult_adds",
        "activations",
        "epochs",
        "seconds",
        "attempts",
    ]
    return [
        *known,
        *own,
        "reason",
        "started",
        "finished",
        "checkpoint",
        "checkpoint_sha256",
        "options",
        *(f"param.{name}" for name in names),
    ]


def _row(row: Any, own: list[str], names: list[str]) -> dict[str, Any]:
    metrics, chosen = _json(row["metrics"]), _json(row["chosen"])
    plain = (
        "number",
        "arch_id",
        "family",
        "seed",
        "params",
        "mult_adds",
        "activations",
        "epochs",
        "seconds",
        "attempts",
        "started",
        "finished",
    )
    return (
        {name: row[name] for name in plain}
        | {"state": STATES[row["state"]], "reason": row["reason"] or "", "options": _json(row["options"])}
        | {"checkpoint": row["checkpoint"] or "", "checkpoint_sha256": row["checkpoint_sha256"] or ""}
        | {name: metrics.get(name) for name in (*METRICS, *own)}
        | {f"param.{name}": chosen.get(name) for name in names}
    )


def _json(value: Any) -> dict[str, Any]:
    """A JSON column of a raw query: SQLite gives text, PostgreSQL a mapping."""
    return dict(json.loads(value) if isinstance(value, str) else value or {})
