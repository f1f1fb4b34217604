"""How long `studies.frame.load` takes over a large study, and the memory that it takes a row.

A study is made by bulk inserts into the real tables, as trials leave them: options, parameters, metrics, user
attributes of Optuna's, eight rows of a learning curve each. Prints seconds of `load` and `curves` (median and quartiles
of n), and bytes a row: the peak of what Python allocates meanwhile (tracemalloc, in a run of its own, for it slows
Python down), and what the frame holds.

    OMP_NUM_THREADS=1 python benchmarks/frame_speed.py --rows 50000 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from mnet_search.models.complexity import costs
from mnet_search.spaces.space import Space, make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies import database as db
from mnet_search.studies.frame import curves, load
from mnet_search.studies.store import Store

STUDY = "large"
EPOCHS = 8
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
    "objectives": {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=50_000, help="trials of the study")
    parser.add_argument("--repeats", type=int, default=3, help="timed loads")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Store(f"sqlite:///{folder}/large.db", create=True) as store:
        began = time.perf_counter()
        make(store, asked.rows)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{asked.rows:,} trials, {size / 1e6:.0f} MB, made in {time.perf_counter() - began:.1f} s")
        for name, read in (("load", load), ("curves", curves)):
            seconds = [timed(read, store) for _ in range(asked.repeats)]
            low, middle, high = quartiles(seconds)
            print(f"{name}: median {middle:.2f} s, quartiles {low:.2f} to {high:.2f}, n = {len(seconds)}")
        for name, read in (("load", load), ("curves", curves)):
            tracemalloc.start()
            frame = read(store, STUDY)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            held = int(frame.memory_usage(index=False, deep=False).sum())
            print(
                f"{name}: peak {peak / len(frame):,.0f} bytes a row, the frame's own columns {held / len(frame):,.0f}"
            )


def timed(read: Callable[[Store, str], Any], store: Store) -> float:
    began = time.perf_counter()
    read(store, STUDY)
    return time.perf_counter() - began


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def make(store: Store, n_rows: int) -> None:
    """A finished study of so many trials."""
    space = make_space("large", SPACE, Source("large.yaml")).for_data(classes=10, in_channels=1)
    study_id = store.ensure_study(space, STUDY, n_trials=n_rows, runs_dir="runs", provenance={"validation_images": 360})
    rng = random.Random(0)
    for start in range(1, n_rows + 1, 5_000):
        rows = [trial(space, rng, study_id, i) for i in range(start, min(start + 5_000, n_rows + 1))]
        insert(store, rows)


def trial(space: Space, rng: random.Random, study_id: int, trial_id: int) -> dict[str, Any]:
    chosen = space.sample(rng)
    arch = space.arch(chosen)
    total = costs(arch)
    began = datetime(2026, 1, 1) + timedelta(seconds=20 * trial_id)
    accuracy, latency_ms = rng.uniform(0.5, 0.99), rng.uniform(0.3, 9.0)
    return {
        "trial_id": trial_id,
        "study_id": study_id,
        "number": trial_id - 1,
        "arch_id": arch.id,
        "seed": 0,
        "family": arch.family,
        "options": dict(arch.options),
        "chosen": chosen,
        "params": total.params,
        "mult_adds": total.mult_adds,
        "activations": total.activations,
        "attempts": 1,
        "folder": f"runs/{STUDY}/{arch.id}-0",
        "started": began,
        "finished": began + timedelta(seconds=15),
        "metrics": {
            "accuracy": accuracy,
            "validation_loss": 1 - accuracy,
            "latency_ms": latency_ms,
            "latency_q1_ms": 0.9 * latency_ms,
            "latency_q3_ms": 1.2 * latency_ms,
            "params": float(total.params),
        },
        "environment": {"device": "cpu", "threads": 1, "versions": {"torch": "2.15.0"}},
        "checkpoint": f"runs/{STUDY}/{arch.id}-0/last.pt",
        "checkpoint_sha256": f"{rng.getrandbits(256):064x}",
    }


def insert(store: Store, rows: list[dict[str, Any]]) -> None:
    """Our rows, Optuna's beside them, and the curves."""
    names = ("trial_id", "number", "study_id")
    theirs = [{n: row[n] for n in names} | {"a": row["started"], "b": row["finished"]} for row in rows]
    costs_of = ("arch_id", "seed", "params", "mult_adds", "activations")
    noted = [{"t": r["trial_id"], "k": name, "v": json.dumps(r[name])} for r in rows for name in costs_of]
    values = ((i, name) for i, name in enumerate(SPACE["objectives"]))
    told = [{"t": r["trial_id"], "o": i, "v": r["metrics"][name]} for i, name in values for r in rows]
    figures = dict.fromkeys(db.CURVE_COLUMNS, 0.5)
    epochs = [{"trial_id": r["trial_id"], "epoch": e, **figures} for r in rows for e in range(1, EPOCHS + 1)]
    with store.write() as connection:
        connection.execute(
            text(
                "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) "
                "VALUES (:trial_id, :number, :study_id, 'COMPLETE', :a, :b)"
            ),
            [{**row, "a": str(row["a"]), "b": str(row["b"])} for row in theirs],
        )
        connection.execute(
            text("INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:t, :k, :v)"), noted
        )
        connection.execute(
            text("INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (:t, :o, :v, 'FINITE')"),
            told,
        )
        connection.execute(db.trials.insert(), rows)
        connection.execute(db.curves.insert(), epochs)


if __name__ == "__main__":
    main()
