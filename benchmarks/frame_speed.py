"""How long `studies.frame.load` takes over a large study, and the memory that it takes a row.

A study is made by bulk inserts into the real tables, as trials leave them (`big_study.py`). Prints seconds of `load`
and `curves` (median and quartiles of n), and bytes a row: the peak of what Python allocates meanwhile (tracemalloc, in
a run of its own, for it slows Python down), and what the frame holds.

    OMP_NUM_THREADS=1 python benchmarks/frame_speed.py --rows 50000 --repeats 5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from big_study import STUDY, make

from mnet_search.studies.frame import curves, load
from mnet_search.studies.store import Store


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


if __name__ == "__main__":
    main()
