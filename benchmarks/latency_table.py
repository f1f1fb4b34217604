"""How well a latency table predicts networks that it has not seen, over the MobileNet spaces and a MobileNetV1 grid of
64 to 224 px; and how far the default protocol's figures scatter.

    python benchmarks/latency_table.py [--space mobilenet] [--held-out 30]

Times are divided by those of the reference network beside them, so a busy machine costs precision, not truth; the
drift of the reference over a build says how busy it was.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mnet_search.models.arch import Arch
from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.latency import PROTOCOLS, measure
from mnet_search.models.latency_table import LatencyTable, select, spearman
from mnet_search.models.layer_timing import build_table, processor
from mnet_search.search.run import open_space
from mnet_search.spaces.survey import survey

SPACES = ("mobilenet", "mobilenet-cifar10", "grid")
ROOT = Path(__file__).resolve().parents[1]


def grid() -> list[Arch]:
    """192 MobileNetV1: 4 widths, 6 resolutions, full and shallow, 3x3 and 5x5 in stages 2 and 4."""
    knobs = itertools.product((0.25, 0.5, 0.75, 1.0), (64, 96, 128, 160, 192, 224), ("full", "shallow"), (3, 5), (3, 5))
    return [
        create("mobilenet_v1", width=w, resolution=r, depth=d, **{"stages.2.kernel": a, "stages.4.kernel": b})
        for w, r, d, a, b in knobs
    ]


def networks(name: str) -> list[Arch]:
    """Every network of a shipped space within its budgets, or of the grid."""
    if name == "grid":
        return grid()
    space = open_space(ROOT / "spaces" / f"{name}.yaml", [])
    return [space.arch(params) for params, _ in survey(space).feasible.values()]


def mult_adds_alone(table: LatencyTable, archs: Sequence[Arch]) -> tuple[float, float]:
    """Median error and Spearman's correlation of a line through the logarithms of mult-adds and latency, each network
    left out of its own fit.
    """
    by_id = {arch.id: costs(arch).mult_adds for arch in archs}
    x = np.log([by_id[row[0]] for row in table.held_out])
    y = np.log([row[1] for row in table.held_out])
    predicted = []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        predicted.append(float(np.polyval(np.polyfit(x[others], y[others], 1), x[i])))
    return float(np.median(np.abs(np.exp(predicted - y) - 1))), spearman(predicted, list(y))


def report(name: str, n_held_out: int) -> None:
    archs = networks(name)
    chosen = select(archs, n_held_out=n_held_out)
    table = build_table(name, chosen, PROTOCOLS["default"])
    measured_ms = [row[1] for row in table.held_out]
    print(
        f"{name}: {len(archs)} networks, {len(table.layers)} layers timed in {table.n_networks} of them, "
        f"{len(measured_ms)} others of {min(measured_ms):.2g} to {max(measured_ms):.2g} ms held out; "
        f"{table.seconds:.0f} s; reference {table.reference_ms:.2f} ms, drift {table.drift:.0%}"
    )
    if table.error:
        e, (median, rank) = table.error, mult_adds_alone(table, archs)
        print(
            f"  table            median error {e.median:.1%}, p90 {e.p90:.1%}, Spearman {e.spearman:.3f}, n = {e.n} "
            f"({e.n_estimated} with layers estimated)"
        )
        print(f"  mult-adds alone  median error {median:.1%}, Spearman {rank:.3f}", flush=True)


def scatter(n: int = 12) -> None:
    """Spread within one measurement, and between two measurements of the same network."""
    archs = [a for a in grid() if a.options["resolution"] in (64, 224)][:: max(1, 64 // n)][:n]
    start = time.monotonic()
    pairs = [[measure(build(arch), arch.input) for arch in archs] for _ in range(2)]
    seconds = (time.monotonic() - start) / (2 * len(archs))
    every = [m for row in pairs for m in row]
    within = statistics.median((m.q3_ms - m.q1_ms) / m.median_ms for m in every)
    apart = [statistics.median(abs(getattr(a, f) / getattr(b, f) - 1) for a, b in zip(*pairs, strict=True))
             for f in ("median_ms", "ratio")]  # fmt: skip
    print(
        f"default protocol, {len(archs)} networks of 64 and 224 px, twice, {seconds:.2f} s each: quartiles "
        f"{within:.1%} of the median apart; two measurements differ by {apart[0]:.1%} in ms, {apart[1]:.1%} in "
        f"multiples of the reference (medians); drift {statistics.median(m.drift for m in every):.1%}, "
        f"{sum(m.good for m in every)} of {len(every)} good"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", action="append", choices=SPACES, help="only this one; may be repeated")
    parser.add_argument("--held-out", type=int, default=30, help="networks to judge by (default 30)")
    arguments = parser.parse_args()
    print(
        f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}", flush=True
    )
    scatter()
    for name in arguments.space or SPACES:
        report(name, arguments.held_out)


if __name__ == "__main__":
    main()
