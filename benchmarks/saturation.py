"""How many trials a second a study in PostgreSQL takes, with one driver and with several: what saturates first.

    python benchmarks/saturation.py --storage postgresql+psycopg://USER@HOST/DATABASE --drivers 1 2 4 --seconds 20

Each driver is a process that runs trials that cost nothing (`evaluate` returns at once), so all that is measured is the
driver, its sampler, the database, and the turn in which one driver at a time decides. Printed: the trials a second of
all drivers together, the share of the time in which somebody had the turn, and the workers that such a study keeps busy
with trials of ten minutes. Every run makes a study of its own in that database.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from mnet_search.search.api import OwnTrial
from mnet_search.search.progress import Quiet
from mnet_search.search.run import RunOptions, run_search
from mnet_search.spaces.space import make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies.database import trials
from mnet_search.studies.store import Store
from mnet_search.studies.writer import StudyWriter

TRIAL_S = 600.0  # of the imagined trials, for the last column


def space_of(sampler: str) -> dict[str, Any]:
    """48,750 codes, which `pareto` holds as a whole."""
    return {
        "family": "mobilenet_v1",
        "evaluate": "saturation:no_op",
        "parameters": {
            "width": {"min": 0.1, "max": 1.34, "step": 0.01},
            "resolution": {"min": 32, "max": 224, "step": 8},
            "depth": ["shallow", "full"],
            "stages.3.kernel": [3, 5],
            "stages.4.kernel": [3, 5, 7],
            "classes": 10,
        },
        "objectives": {"accuracy": "maximize", "params": "minimize"},
        "search": {"sampler": sampler, "scheduler": "none", "n_trials": 100_000},
        "resources": {"concurrency": 1, "gpus_per_trial": 0},
    }


def no_op(trial: OwnTrial) -> Mapping[str, float]:
    """An accuracy that grows with the costs."""
    return {"accuracy": 1 - 1 / (1 + trial.arch.input.height * float(trial.params["width"]) / 50)}


def drive(storage: str, study: str, sampler: str, seed: int, folder: str, report: Any) -> None:
    """One driver: trials until it is asked to stop; sends how many, and how long it had the turn, the median."""
    os.chdir(folder)
    held: list[float] = []
    plain = StudyWriter.turn

    @contextlib.contextmanager
    def timed(self: StudyWriter) -> Iterator[None]:
        with plain(self):
            began = time.perf_counter()
            yield
            held.append(time.perf_counter() - began)

    StudyWriter.turn = timed  # type: ignore[method-assign]
    space = make_space("saturation", space_of(sampler), Source("saturation"))
    result = run_search(space, RunOptions(storage, study, executor="inline", seed=seed, join=True), Quiet(), no_op)
    report.send((result.n_new, statistics.median(held)))


def measure(storage: str, sampler: str, drivers: int, seconds: float) -> tuple[float, float]:
    """Trials a second of all drivers, and the share of the time that somebody had the turn."""
    context = multiprocessing.get_context("spawn")
    study = f"{sampler}-{drivers}-{time.time_ns()}"
    with tempfile.TemporaryDirectory() as folder:
        pipes = []
        for seed in range(drivers):
            ours, theirs = context.Pipe()
            context.Process(target=drive, args=(storage, study, sampler, seed, folder, theirs)).start()
            pipes.append(ours)
        while len(at_work(storage, study)) < drivers:  # imports and looks at the space are not counted
            time.sleep(0.5)
        time.sleep(2)
        before, began = finished(storage, study), time.monotonic()
        time.sleep(seconds)
        rate = (finished(storage, study) - before) / (time.monotonic() - began)
        with Store(storage) as store:
            store.request_stop(study, "finish")
        ended = [pipe.recv() for pipe in pipes]
    return rate, statistics.fmean(held for _, held in ended) * rate


def at_work(storage: str, study: str) -> set[str]:
    """The drivers that have finished a trial."""
    with Store(storage) as store:
        if study not in store.names():
            return set()
        query = select(trials.c.owner).where(
            trials.c.study_id == store.row(study)["study_id"], trials.c.finished.is_not(None)
        )
        with store.read() as connection:
            return set(connection.execute(query).scalars())


def finished(storage: str, study: str) -> int:
    with Store(storage) as store:
        return store.summary(study).n_finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--drivers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--samplers", nargs="+", default=["random", "pareto"])
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("| sampler | drivers | trials a second | share of the time that somebody has the turn | 10-minute workers |")
    print("|---|---|---|---|---|")
    for sampler in asked.samplers:
        for drivers in asked.drivers:
            rate, share = measure(asked.storage, sampler, drivers, asked.seconds)
            print(f"| {sampler} | {drivers} | {rate:.1f} | {share:.2f} | {rate * TRIAL_S:,.0f} |", flush=True)


if __name__ == "__main__":
    import sys

    sys.path.append(str(Path(__file__).parent))  # the space names a function of this file
    main()
