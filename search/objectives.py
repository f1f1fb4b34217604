"""Objectives: what a trial is judged by, and how each is read from a network's exact costs and a trial's measurements.

To add one, write its row in OBJECTIVES at the foot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mnet_search.models.arch import MnetError
from mnet_search.models.costs import Costs


@dataclass(frozen=True)
class Objective:
    """`value(costs, metrics)` reads it; `unit` is for people; `direction` is what is usually wanted of it."""

    unit: str
    direction: str
    value: Callable[[Costs, Mapping[str, float]], float]


def values_of(names: list[str], network: Costs, metrics: Mapping[str, float]) -> list[float]:
    """The objectives of a finished trial, in order. Raises MnetError where one was not measured or is not finite."""
    values = []
    for name in names:
        known = OBJECTIVES.get(name)  # a function of one's own may measure others
        value = known.value(network, metrics) if known else metrics.get(name, math.nan)
        if not math.isfinite(value):
            raise MnetError(f"objective {name} is {value}: the trial did not measure it, or its training diverged")
        values.append(float(value))
    return values


def _metric(name: str) -> Callable[[Costs, Mapping[str, float]], float]:
    return lambda _network, metrics: metrics.get(name, math.nan)


OBJECTIVES: dict[str, Objective] = {
    "accuracy": Objective("share of validation images", "maximize", _metric("accuracy")),
    "validation_loss": Objective("nats", "minimize", _metric("validation_loss")),
    "latency_ms": Objective("ms", "minimize", _metric("latency_ms")),
    "params": Objective("parameters", "minimize", lambda network, _: network.params),
    "mult_adds": Objective("multiply-adds", "minimize", lambda network, _: network.mult_adds),
    "activations": Objective("elements", "minimize", lambda network, _: network.activations),
}
