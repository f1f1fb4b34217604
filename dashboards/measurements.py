"""What the database has of latencies beside the frame: how steady the machine was, and the tables that predict."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from sqlalchemy import Text, cast, func, select

from mnet_search.models.latency_table import LatencyTable
from mnet_search.studies import database as db
from mnet_search.studies.latency_tables import stored
from mnet_search.studies.store import Store

MOST = 2000  # measurements that are read, evenly over all
COLUMNS = ("number", "measured", "median_ms", "drift", "good")


def measurements(store: Store, study: str, *, most: int = MOST) -> pd.DataFrame:
    """The latency measurements of a study in order: the trial's `number`, when it was `measured`, `median_ms`, the
    `drift` of the reference network beside it (upper over lower quartile less 1, NaN where none was) and whether it was
    a `good` one. At most twice `most` rows. Raises StorageError.
    """
    own = db.trials.c.study_id == store.row(study)["study_id"]
    joined = db.measurements.join(db.trials, db.trials.c.trial_id == db.measurements.c.trial_id)
    latency = db.measurements.c.name == "latency_ms"
    with db.translated(store.url), store.engine.connect() as connection:
        count = connection.execute(select(func.count()).select_from(joined).where(own, latency)).scalar() or 0
        every = max(1, count // most)
        query = (
            select(
                db.trials.c.number,
                db.measurements.c.measured,
                db.measurements.c.median,
                cast(db.measurements.c.protocol, Text),
            )
            .select_from(joined)
            .where(own, latency, db.measurements.c.measurement_id % every == 0)
            .order_by(db.measurements.c.measurement_id)
        )
        rows = [(number, when, median, *_steady(cell)) for number, when, median, cell in connection.execute(query)]
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    return found.astype({"drift": float, "measured": "datetime64[us]"})


def latency_tables(store: Store, study: str) -> tuple[LatencyTable, ...]:
    """The latency tables of a study's space, oldest first. Raises StorageError."""
    name = store.row(study)["space_name"]
    return tuple(each.table for each in stored(store) if each.table.space == name)


def _steady(cell: str) -> tuple[float, bool]:
    protocol: dict[str, Any] = json.loads(cell) or {}
    drift = protocol.get("drift")
    return (float("nan") if drift is None else float(drift), bool(protocol.get("good", True)))
