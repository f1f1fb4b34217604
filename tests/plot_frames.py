"""Studies in memory for the tests of plots: a small one whose every figure is known, and a large one."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.models.complexity import costs
from mnet_search.models.families import create

OBJECTIVES = {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"}
NAN = math.nan

#       number state       accuracy latency  q1    q3   params  mult-adds width block               expand
TRIALS = [
    (0, "finished", 0.90, 0.50, 0.48, 0.55, 20_000, 900_000, 0.25, "separable", NAN),
    (1, "finished", 0.95, 0.75, 0.70, 0.90, 90_000, 3_500_000, 0.5, "separable", NAN),
    (2, "finished", 0.93, 0.90, 0.85, 0.95, 60_000, 3_600_000, 0.25, "inverted_residual", 4.0),
    (3, "failed", NAN, NAN, NAN, NAN, 10_000, 500_000, 0.25, "separable", NAN),
    (4, "running", NAN, NAN, NAN, NAN, 4_231_976, 568_740_352, 1.0, "separable", NAN),
    (5, "finished", 0.88, NAN, NAN, NAN, 95_000, 4_000_000, 0.5, "inverted_residual", 2.0),
]
COLUMNS = ["number", "state", "accuracy", "latency_ms", "latency_q1_ms", "latency_q3_ms", "params", "mult_adds"]
COLUMNS += ["param.width", "param.block", "param.expand"]

HOVER_0 = (
    "trial 0 · 000000000000 · mobilenet_v1",
    "width: 0.25",
    "block: separable",
    "accuracy: 90.00 %",
    "latency: 0.500 ms [0.480, 0.550]",
    "params: 20 k",
    "mult-adds: 900 k",
)
HOVER_1 = (
    "trial 1 · 000000000001 · mobilenet_v1",
    "width: 0.5",
    "block: separable",
    "accuracy: 95.00 %",
    "latency: 0.750 ms [0.700, 0.900]",
    "params: 90 k",
    "mult-adds: 3.5 M",
)
HOVER_2 = (
    "trial 2 · 000000000002 · mobilenet_v1",
    "width: 0.25",
    "block: inverted_residual",
    "expand: 4",
    "accuracy: 93.00 %",
    "latency: 0.900 ms [0.850, 0.950]",
    "params: 60 k",
    "mult-adds: 3.6 M",
)
HOVER_4 = (
    "trial 4 · 000000000004 · mobilenet_v1",
    "width: 1",
    "block: separable",
    "params: 4.23 M",
    "mult-adds: 569 M",
)
NOTE = (
    "single runs, no repeats: differences below about 0.97 points "
    "(binomial standard error of the best accuracy, 500 validation images) are noise"
)


START = pd.Timestamp("2026-01-02 10:00")


def frame_of(trials=TRIALS):
    """Trial n starts n minutes after START; what ended did so 90 s later, after two epochs."""
    frame = pd.DataFrame(trials, columns=COLUMNS)
    open_ = frame["state"].isin(["running", "waiting"])
    frame["arch_id"] = [f"{number:012x}" for number in frame["number"]]
    frame["family"] = "mobilenet_v1"
    frame["validation_loss"] = 1 - frame["accuracy"]
    frame["activations"] = frame["mult_adds"] // 10
    frame["epochs"], frame["seconds"], frame["attempts"] = np.where(open_, 1, 2), 60.0, 1
    frame["started"] = START + pd.to_timedelta(60 * frame["number"], unit="s")
    frame["finished"] = (frame["started"] + pd.Timedelta(seconds=90)).mask(open_)
    frame["reason"] = np.where(frame["state"] == "failed", "loss is NaN at epoch 2", "")
    return frame


def snapshot_of(
    frame=None, curves=(), objectives=OBJECTIVES, space_text="", measurements=None, tables=(), **provenance
):
    table = pd.DataFrame(list(curves), columns=["number", "epoch", "validation_accuracy"])
    more = {} if measurements is None else {"measurements": measurements}
    return Snapshot(
        "digits",
        objectives,
        frame_of() if frame is None else frame,
        table,
        provenance,
        space_text,
        latency_tables=tuple(tables),
        **more,
    )


def grid_frame(repeats=2, noise=0.0):
    """The MobileNetV1 grid of real networks on digits: width by resolution by depth; error falls as width ** -0.4."""
    rows, generator = [], np.random.default_rng(0)
    for width in (0.25, 0.5, 1.0):
        for resolution in (18, 24, 32):
            for depth in ("shallow", "full"):
                options = {"width": width, "resolution": resolution, "depth": depth, "classes": 10, "in_channels": 1}
                arch = create("mobilenet_v1", **options)
                cost = costs(arch)
                for _ in range(repeats):
                    error = 0.1 * width**-0.4 * (resolution / 32) ** -0.3 * (0.9 if depth == "shallow" else 1.0)
                    accuracy = 1 - error * math.exp(noise * generator.standard_normal())
                    latency = cost.mult_adds / 1e6
                    row = (len(rows), "finished", accuracy, latency, latency, latency, cost.params, cost.mult_adds)
                    rows.append((*row, width, "separable", NAN, arch.id, dict(arch.options), resolution, depth))
    frame = frame_of([row[:11] for row in rows]).drop(columns=["param.block", "param.expand"])
    frame["arch_id"], frame["options"] = [row[11] for row in rows], [row[12] for row in rows]
    frame["param.resolution"], frame["param.depth"] = [row[13] for row in rows], [row[14] for row in rows]
    return frame


def large_snapshot(count=50_000, trials_with_curves=800):
    """A study of many trials, nine in ten of different networks, in a fraction of a second."""
    r = np.random.default_rng(0)
    width, resolution = r.choice([0.25, 0.5, 0.75, 1.0], count), r.choice([18, 23, 27, 32], count)
    mult_adds = (3e5 * (width / 0.25) ** 2 * (resolution / 18) ** 2 * np.exp(r.normal(0, 0.5, count))).astype(int)
    state = r.choice(["finished", "stopped", "failed", "running"], count, p=[0.8, 0.15, 0.04, 0.01])
    done = state == "finished"
    frame = pd.DataFrame({"number": np.arange(count), "state": state, "arch_id": r.integers(0, 5 * count, count)})
    frame["arch_id"] = frame["arch_id"].map("{:012x}".format)
    frame["accuracy"] = np.where(done, 0.95 - 0.5 * (mult_adds / 3e5) ** -0.3 + r.normal(0, 0.01, count), np.nan)
    frame["latency_ms"] = np.where(done, mult_adds / 8e5 * np.exp(r.normal(0, 0.1, count)), np.nan)
    frame["latency_q1_ms"], frame["latency_q3_ms"] = 0.95 * frame["latency_ms"], 1.1 * frame["latency_ms"]
    frame["params"] = (1e5 * (width / 0.25) ** 2 * np.exp(r.normal(0, 0.5, count))).astype(int)
    frame["mult_adds"], frame["activations"], frame["validation_loss"] = (
        mult_adds,
        mult_adds // 30,
        1 - frame["accuracy"],
    )
    frame["family"], frame["epochs"], frame["seconds"], frame["attempts"] = (
        "mobilenet_v1",
        8,
        r.uniform(5, 20, count),
        1,
    )
    frame["reason"] = np.where(state == "failed", "loss is NaN at epoch 3", "")
    frame["started"] = START + pd.to_timedelta(np.sort(r.integers(0, 10**6, count)), unit="s")
    frame["finished"] = (frame["started"] + pd.to_timedelta(r.integers(5, 20, count), unit="s")).mask(
        state == "running"
    )
    frame["options"] = [{}] * count
    frame["param.width"], frame["param.resolution"] = width, resolution
    frame["param.depth"] = r.choice(["shallow", "full"], count)
    frame["param.learning_rate"] = np.exp(r.uniform(-9, -3, count))
    numbers = np.repeat(np.arange(count - trials_with_curves, count), 8)
    curves = pd.DataFrame({"number": numbers, "epoch": np.tile(np.arange(1, 9), trials_with_curves)})
    curves["validation_accuracy"] = r.uniform(0.3, 0.8, len(curves))
    return Snapshot("large", OBJECTIVES, frame, curves, {"validation_images": 10_000})
