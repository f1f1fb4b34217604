"""A large study made by bulk inserts into the real tables, as trials leave them: Optuna reads it too.

Options, parameters, metrics, user attributes of Optuna's, eight rows of a learning curve each. The figures are made up:
the error falls with the mult-adds as scaling laws do, and latency grows with them, both with noise, so that the front
has as many members as one has in earnest. Of a hundred trials six were stopped, three failed; the last four run.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import optuna
from sqlalchemy import text

from mnet_search.models.arch import Arch
from mnet_search.models.complexity import costs
from mnet_search.models.costs import Costs
from mnet_search.search.distributions import distribution
from mnet_search.spaces.space import Space, make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies import database as db
from mnet_search.studies.store import Store

STUDY = "large"
EPOCHS = 8
RUNNING = 4  # trials at the end
BULK = 5_000  # trials that are written at once
OBJECTIVES = {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"}
SPACE = {
    "family": "mobilenet_v1",
    "parameters": {
        "width": [0.25, 0.5, 0.75, 1.0],
        "resolution": {"min": 20, "max": 32, "step": 2},
        "depth": ["shallow", "full"],
        "block": ["separable", "inverted_residual"],
        "expand": {"values": [2, 4, 6], "when": {"block": "inverted_residual"}},
        **{f"stages.{stage}.kernel": [3, 5] for stage in (2, 3, 4, 5)},
        "training.learning_rate": {"min": 0.001, "max": 0.1, "log": True},
    },
}


@dataclass(frozen=True)
class Made:
    """One trial: our row, what Optuna has of it, and its curve."""

    row: dict[str, Any]
    state: str
    values: tuple[float, ...]
    chosen: Mapping[str, Any]
    accuracies: tuple[float, ...]


def make(store: Store, n_rows: int, *, study: str = STUDY, n_objectives: int = 3, seed: int = 0) -> None:
    """A study of so many trials and the first two or three of OBJECTIVES."""
    space = space_of(study, n_objectives)
    study_id = store.ensure_study(space, study, n_trials=n_rows, runs_dir="runs", provenance={"validation_images": 360})
    with store.read() as connection:
        first = max(1, _last(connection, "trial_id") + 1)
    rng = random.Random(seed)
    known: dict[str, tuple[Arch, Costs]] = {}
    for start in range(0, n_rows, BULK):
        numbers = range(start, min(start + BULK, n_rows))
        made = [_trial(space, rng, known, study_id, first, number, n_rows) for number in numbers]
        insert(store, space, made)


def space_of(study: str, n_objectives: int) -> Space:
    objectives = dict(list(OBJECTIVES.items())[:n_objectives])
    space = make_space(study, {**SPACE, "objectives": objectives}, Source(f"{study}.yaml"))
    return space.for_data(classes=10, in_channels=1)


def next_trial(store: Store, study: str, *, n_objectives: int = 3) -> tuple[Space, Made]:
    """One more finished trial of a study that was made here, to be inserted."""
    space, study_id = space_of(study, n_objectives), store.row(study)["study_id"]
    with store.read() as connection:
        number = _last(connection, "number", "WHERE study_id = :study", study=study_id) + 1
        first = _last(connection, "trial_id") + 1 - number
    rng = random.Random(number)
    while True:
        made = _trial(space, rng, {}, study_id, first, number, number + RUNNING + 1)
        if made.state == "COMPLETE":
            return space, made


def _last(connection: Any, column: str, where: str = "", **values: Any) -> int:
    found = connection.execute(text(f"SELECT MAX({column}) FROM trials {where}"), values).scalar()
    return -1 if found is None else int(found)


def _trial(
    space: Space, rng: random.Random, known: dict[str, Any], study_id: int, first: int, number: int, n_rows: int
) -> Made:
    chosen = space.sample(rng)
    key = json.dumps({name: value for name, value in chosen.items() if not name.startswith("training.")})
    if key not in known:  # the learning rate makes no other network
        arch = space.arch(chosen)
        known[key] = (arch, costs(arch))
    arch, total = known[key]
    draw = rng.random()
    state = "PRUNED" if draw < 0.06 else "FAIL" if draw < 0.09 else "COMPLETE"
    if number >= n_rows - RUNNING:
        state = "RUNNING"
    epochs = EPOCHS if state == "COMPLETE" else rng.randrange(1, EPOCHS)
    error = min(0.9, 2.2 * (total.mult_adds / 1e4) ** -0.4 * rng.uniform(1, 2))
    accuracies = tuple(1 - error - (0.9 - error) * math.exp(-epoch) for epoch in range(1, epochs + 1))
    latency_ms = 0.2 + total.mult_adds / 4e6 * rng.uniform(0.9, 1.2)
    measured = {
        "accuracy": accuracies[-1], "validation_loss": error, "latency_ms": latency_ms,
        "latency_q1_ms": 0.95 * latency_ms, "latency_q3_ms": 1.1 * latency_ms, "params": float(total.params),
    }  # fmt: skip
    finished, ended = state == "COMPLETE", state != "RUNNING"
    began = datetime(2026, 1, 1) + timedelta(seconds=20 * number)
    row = {
        "trial_id": first + number,
        "study_id": study_id,
        "number": number,
        "arch_id": arch.id,
        "seed": 0,
        "family": arch.family,
        "options": dict(arch.options),
        "chosen": chosen,
        "params": total.params,
        "mult_adds": total.mult_adds,
        "activations": total.activations,
        "attempts": 1,
        "folder": f"runs/{STUDY}/{arch.id}-{number}",
        "started": began,
        "finished": began + timedelta(seconds=15) if ended else None,
        "reason": {"PRUNED": "in the lower half at epoch 2", "FAIL": "the loss became nan"}.get(state),
        "metrics": measured if finished else None,
        "environment": {"device": "cpu", "threads": 1, "versions": {"torch": "2.15.0"}} if finished else None,
        "checkpoint": f"runs/{STUDY}/{arch.id}-{number}/last.pt" if finished else None,
        "checkpoint_sha256": f"{rng.getrandbits(256):064x}" if finished else None,
    }
    values = tuple(measured[name] for name in space.file.objectives) if finished else ()
    return Made(row, state, values, chosen, accuracies)


def insert(store: Store, space: Space, made: Sequence[Made]) -> None:
    """Our rows, Optuna's beside them, and the curves."""
    distributions = {name: distribution(parameter) for name, parameter in space.parameters.items()}
    texts = {name: optuna.distributions.distribution_to_json(found) for name, found in distributions.items()}
    figures = {**dict.fromkeys(db.CURVE_COLUMNS, 0.5), "seconds": 1.8}

    @cache
    def internal(name: str, value: Any) -> float:
        return float(distributions[name].to_internal_repr(value))

    theirs, noted, parameters, told, epochs = [], [], [], [], []
    for one in made:
        row, trial_id = one.row, one.row["trial_id"]
        ended = str(row["finished"]) if row["finished"] else None
        theirs.append((trial_id, row["number"], row["study_id"], one.state, str(row["started"]), ended))
        about = {"arch_id": row["arch_id"], "seed": row["seed"]}
        about |= asdict(Costs(row["params"], row["mult_adds"], row["activations"]))
        noted += [(trial_id, name, json.dumps(value)) for name, value in about.items()]
        parameters += [(trial_id, name, internal(name, value), texts[name]) for name, value in one.chosen.items()]
        told += [(trial_id, i, value) for i, value in enumerate(one.values)]
        for epoch, accuracy in enumerate(one.accuracies, start=1):
            epochs.append({"trial_id": trial_id, "epoch": epoch, **figures, "validation_accuracy": accuracy})
    with store.write() as connection:
        _insert(connection, "trials (trial_id, number, study_id, state, datetime_start, datetime_complete)", theirs)
        _insert(connection, "trial_user_attributes (trial_id, key, value_json)", noted)
        _insert(connection, "trial_params (trial_id, param_name, param_value, distribution_json)", parameters)
        told_all = [(*row, "FINITE") for row in told]
        _insert(connection, "trial_values (trial_id, objective, value, value_type)", told_all)
        connection.execute(db.trials.insert(), [one.row for one in made])
        connection.execute(db.curves.insert(), epochs)


def _insert(connection: Any, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", list(rows))
