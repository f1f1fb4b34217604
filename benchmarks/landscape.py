"""What searchers are compared on: problems whose true fronts are known.

`landscape` is a closed form over spaces/macro.yaml, 8 places x 3 choices: each block takes a share of the error that is
left, less the later it stands in its stage, more or less by the block before it, and less where stages are out of
proportion. `table` is the CSV beside this file: every network of cifar10_table.yaml, trained with two seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnet_search.models.complexity import costs
from mnet_search.spaces.space import Space, load_space, make_space
from mnet_search.spaces.yamlfile import Source

HERE = Path(__file__).parent
BLOCKS = ("identity", "narrow3", "wide5")
DEPTHS = {1: 2, 2: 3, 3: 3}
SEED_SD = 0.002  # of the accuracy between seeds, as measured on a MobileNet-like table


@dataclass(frozen=True)
class Problem:
    """Networks by the space's key: true accuracies, what single runs give, and exact costs."""

    name: str
    space: Space
    truth: Mapping[str, float]
    runs: Mapping[str, tuple[float, ...]]  # accuracies of single runs; one is drawn. Empty: noise of SEED_SD
    costs: Mapping[str, Mapping[str, float]]
    most: int  # evaluations

    def observed(self, key: str, rng: np.random.Generator, *, noisy: bool) -> float:
        """What training the network gives."""
        if not noisy:
            return self.truth[key]
        if self.runs:
            return float(rng.choice(self.runs[key]))
        return self.truth[key] + SEED_SD * float(rng.standard_normal())


def landscape(objectives: tuple[str, ...]) -> Problem:
    """3,969 networks with interactions between neighbours and between stages."""
    space = load_space(HERE.parent / "spaces" / "macro.yaml")
    space = with_objectives(space, objectives)
    rng = np.random.default_rng(7)
    gain = np.array([[0.0, 0.18, 0.24], [0.0, 0.22, 0.33], [0.0, 0.2, 0.31]])
    pairs = rng.normal(0, 0.05, (3, 3, 3))
    truth, of_costs = {}, {}
    for params in space.codes():
        arch = space.arch(params)
        if arch.id not in truth:
            truth[arch.id] = 1 - _error(params, gain, pairs)
            found = costs(arch)
            of_costs[arch.id] = {"mult_adds": float(found.mult_adds), "params": float(found.params)}
    return Problem("landscape", space, truth, {}, of_costs, 400)


def _error(params: Mapping[str, Any], gain: np.ndarray, pairs: np.ndarray) -> float:
    total, lengths = 0.0, []
    for stage, depth in DEPTHS.items():
        blocks = [BLOCKS.index(str(params[f"stages.{stage}.blocks.{place}"])) for place in range(1, depth + 1)]
        blocks = [block for block in blocks if block]
        lengths.append(len(blocks))
        before = 0
        for place, block in enumerate(blocks):
            total += gain[stage - 1, block] * 0.9**place + pairs[stage - 1, before, block]
            before = block
    total -= 0.04 * abs(lengths[2] - lengths[1]) + 0.05 * (lengths[0] == 0)
    return 0.05 + 0.45 * float(np.exp(-0.9 * total))


def table(objectives: tuple[str, ...]) -> Problem:
    """240 networks; the truth is the mean of their two runs, and what is observed is one of them."""
    space = with_objectives(load_space(HERE / "cifar10_table.yaml").for_data(classes=10, in_channels=3), objectives)
    truth, runs, of_costs = {}, {}, {}
    with (HERE / "cifar10_table.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            both = tuple(float(row[f"accuracy_seed{seed}_epoch4"]) for seed in (0, 1))
            truth[row["arch_id"]], runs[row["arch_id"]] = sum(both) / 2, both
            of_costs[row["arch_id"]] = {name: float(row[name]) for name in ("mult_adds", "params")}
    return Problem("table", space, truth, runs, of_costs, len(truth) // 2)


def with_objectives(space: Space, objectives: tuple[str, ...]) -> Space:
    """The same space under other objectives."""
    wanted = {name: "maximize" if name == "accuracy" else "minimize" for name in objectives}
    made = make_space(space.name, {**space.to_json(), "objectives": wanted}, Source(space.name))
    return made.for_data(**space.fixed) if space.fixed else made  # type: ignore[arg-type]


PROBLEMS = {"landscape": landscape, "table": table}
