"""A study as a tidy DataFrame: one row a trial, units in the column names. Public, for scripts of one's own:

from mnet_search.studies.frame import load
from mnet_search.studies.store import Store

with Store("sqlite:///mnet-search.db") as store:
    frame = load(store, "mobilenet")
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import TextClause, select, text

from mnet_search.studies import database as db
from mnet_search.studies.store import STATES, Store

METRICS = ("accuracy", "validation_loss", "latency_ms", "latency_q1_ms", "latency_q3_ms")
IMPORTED_FROM = "imported_from"  # Optuna's user attribute of a trial that was brought in; see studies/importing.py
CHUNK_ROWS = 500  # at once: more are slower, for the cells of a chunk no longer fit the processor's cache

_WHOLE = ("number", "seed", "params", "mult_adds", "activations", "epochs", "attempts")
_TEXT = ("arch_id", "family", "reason", "checkpoint", "checkpoint_sha256", "imported")
# One pass over the curves, not one a trial. JSON as text, which SQLite gives anyway and PostgreSQL on request.
# `{trials}` is a condition on `trial_id`, `{options}` what is read of the options.
_ROWS = """
SELECT m.trial_id, m.number, t.state, m.arch_id, m.family, m.seed, m.params, m.mult_adds, m.activations,
       COALESCE(c.epochs, 0) AS epochs, c.seconds, m.attempts, COALESCE(m.reason, '') AS reason, m.started, m.finished,
       COALESCE(m.checkpoint, '') AS checkpoint, COALESCE(m.checkpoint_sha256, '') AS checkpoint_sha256,
       COALESCE(a.value_json, '""') AS imported,
       {options} AS options, CAST(m.chosen AS TEXT) AS chosen, CAST(m.metrics AS TEXT) AS metrics
FROM mnet_trials m JOIN trials t ON t.trial_id = m.trial_id
LEFT JOIN (
    SELECT trial_id, COUNT(*) AS epochs, SUM(seconds) AS seconds FROM mnet_curves
    WHERE trial_id {trials} GROUP BY trial_id
) c ON c.trial_id = m.trial_id
LEFT JOIN trial_user_attributes a ON a.trial_id = m.trial_id AND a.key = :imported_from AND m.attempts = 0
WHERE m.trial_id {trials} ORDER BY m.number
"""


def load(store: Store, study: str) -> pd.DataFrame:
    """Every trial of a study, one row each, in order of number. Raises StorageError for an unknown study.

    Figures that were not measured are NaN, texts that do not apply are empty. The columns:

    - `number`: of the trial, from 0
    - `state`: finished, running, waiting, stopped (early) or failed
    - `arch_id`: the network's identity, 12 hex digits; equal networks have equal ones
    - `family`: of the network
    - `seed`: of starting weights, order and augmentation
    - `accuracy`: share of the validation images, 0 to 1
    - `validation_loss`: cross-entropy, nats
    - `latency_ms`: median of the measured runs, in ms
    - `latency_q1_ms`: their lower quartile, in ms
    - `latency_q3_ms`: their upper quartile, in ms
    - `params`: trainable parameters
    - `mult_adds`: multiply-adds of convolutions and linear layers, batch 1
    - `activations`: output elements of convolutions and linear layers, batch 1
    - `epochs`: rows of its learning curve
    - `seconds`: of training, summed over its epochs
    - `attempts`: how often it was begun; 0 where it was imported
    - `NAME`: an objective of the user's own, by its name
    - `reason`: why it failed or was stopped
    - `started`: local time of the driver's machine
    - `finished`: the same; NaT while it is open
    - `checkpoint`: path or URL of its weights
    - `checkpoint_sha256`: of that file
    - `options`: of the resolved network, a dict that equal rows share: do not change it in place
    - `imported`: where the trial was brought in from (`FILE.csv row 3`), empty for one that was run here
    - `param.NAME`: a parameter of the space; missing where it was not active
    """
    row = store.row(study)
    names = list(row["space"]["parameters"])
    own = own_objectives(row["objectives"])
    found = Columns(own, names)
    query = rows_query(OF_STUDY).bindparams(study_id=row["study_id"])
    with store.read() as connection:
        result = connection.execution_options(yield_per=CHUNK_ROWS).execute(query)
        for rows in result.partitions(CHUNK_ROWS):
            found.add(rows)
    return found.frame()


def curves(store: Store, study: str) -> pd.DataFrame:
    """Every learning curve of a study: one row per trial and epoch, with the columns number, epoch (from 1) and those
    of `CURVE_COLUMNS`: train_loss and validation_loss in nats, train_accuracy and validation_accuracy as shares of the
    images, learning_rate, images_per_second, seconds (of the epoch). Raises StorageError for an unknown study.
    """
    columns = (db.trials.c.number, db.curves.c.epoch, *(db.curves.c[name] for name in db.CURVE_COLUMNS))
    query = (
        select(*columns)
        .join(db.trials, db.trials.c.trial_id == db.curves.c.trial_id)
        .where(db.trials.c.study_id == store.row(study)["study_id"])
        .order_by(db.trials.c.number, db.curves.c.epoch)
    )
    found: list[array[Any]] = [array("q"), array("q"), *(array("d") for _ in db.CURVE_COLUMNS)]
    with store.read() as connection:
        result = connection.execution_options(yield_per=CHUNK_ROWS).execute(query)
        for rows in result.partitions(CHUNK_ROWS):
            for values, cells in zip(found, zip(*rows, strict=True), strict=True):
                values.extend(cells if values.typecode == "q" else _floats(cells))
    names = ("number", "epoch", *db.CURVE_COLUMNS)
    return pd.DataFrame({name: np.array(values) for name, values in zip(names, found, strict=True)})


OF_STUDY = "IN (SELECT trial_id FROM mnet_trials WHERE study_id = :study_id)"


def rows_query(trials: str, *, options: bool = True) -> TextClause:
    """What `Columns` takes, of the trials whose `trial_id` meets a condition, as OF_STUDY; without the options, which
    are most of what there is to read, where nobody asks for them.
    """
    read = "CAST(m.options AS TEXT)" if options else "'{}'"
    return text(_ROWS.format(trials=trials, options=read)).bindparams(imported_from=IMPORTED_FROM)


def own_objectives(objectives: Iterable[str]) -> list[str]:
    """Those that are no column of every frame."""
    return [name for name in objectives if name not in column_names([], [])]


class Columns:
    """A frame in the making: numbers packed, texts and parameters as they come, equal ones kept once."""

    def __init__(self, own: Sequence[str], names: Sequence[str]):
        self._own, self._names = own, names
        self._whole = {name: array("q") for name in _WHOLE}
        self._floats = {name: array("d") for name in (*METRICS, *own, "seconds")}
        self._other: dict[str, list[Any]] = {name: [] for name in (*_TEXT, "state", "started", "finished", "options")}
        self.params: dict[str, list[Any]] = {name: [] for name in names}
        self._known: dict[Any, Any] = {}  # a text (of options: what it says) -> the one that is kept

    def add(self, rows: Sequence[Any]) -> None:
        """Rows of the query."""
        columns = dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True))
        for name, whole in self._whole.items():
            whole.extend(columns[name])
        self._floats["seconds"].extend(_floats(columns["seconds"]))
        metrics = _mappings(columns["metrics"])
        for name in (*METRICS, *self._own):
            self._floats[name].extend(_floats(found.get(name) for found in metrics))
        chosen = _mappings(columns["chosen"])
        for name, values in self.params.items():
            values.extend(self._kept(found.get(name)) for found in chosen)
        self._other["state"].extend(STATES[state] for state in columns["state"])
        self._other["options"].extend(self._options(cell) for cell in columns["options"])
        self._other["imported"].extend(json.loads(cell) if cell != '""' else "" for cell in columns["imported"])
        for name in ("arch_id", "family", "reason", "checkpoint", "checkpoint_sha256"):
            self._other[name].extend(map(self._kept, columns[name]))
        for name in ("started", "finished"):
            self._other[name].extend(columns[name])

    def frame(self) -> pd.DataFrame:
        """The columns, each let go once it is in the frame's own form."""
        made: dict[str, Any] = {f"param.{name}": pd.Series(self.params.pop(name)) for name in self._names}
        for name in ("started", "finished"):
            made[name] = pd.to_datetime(pd.Series(self._other.pop(name)))
        made |= {name: pd.Series(self._other.pop(name)) for name in list(self._other)}
        made |= {name: np.array(values) for name, values in (*self._whole.items(), *self._floats.items())}
        return pd.DataFrame({name: made[name] for name in column_names(self._own, self._names)})

    def _kept(self, value: Any) -> Any:
        # 1, 1.0 and true are one key of a mapping, and not one value
        return self._known.setdefault(value, value) if isinstance(value, str) else value

    def _options(self, cell: str) -> dict[str, Any]:
        key = ("options", cell)
        if key not in self._known:
            self._known[key] = _mappings([cell])[0]
        options: dict[str, Any] = self._known[key]
        return options


def column_names(own: Iterable[str], names: Iterable[str]) -> list[str]:
    """The columns of a frame, in order."""
    identity = ["number", "state", "arch_id", "family", "seed"]
    figures = [*METRICS, "params", "mult_adds", "activations", "epochs", "seconds", "attempts"]
    record = ["reason", "started", "finished", "checkpoint", "checkpoint_sha256", "options", "imported"]
    return [*identity, *figures, *own, *record, *(f"param.{name}" for name in names)]


def _floats(cells: Iterable[Any]) -> list[float]:
    return [math.nan if cell is None else float(cell) for cell in cells]


def _mappings(cells: Iterable[str | None]) -> list[dict[str, Any]]:
    """JSON columns as text, read as one list, which takes half the time; nothing where one is null."""
    return [found or {} for found in json.loads(f"[{','.join(cell or 'null' for cell in cells)}]")]
