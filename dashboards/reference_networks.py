"""Networks that others built by hand and published, as marks beside a study's own: exact costs, accuracy as printed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.models.complexity import costs
from mnet_search.models.published_cifar import SYSTEMS

DATA = "cifar10"  # that the published accuracies are of
_NAME = re.compile(r"^data:.*?\bname:\s*([\w.:/-]+)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Reference:
    """A published network in a panel, accuracy as a fraction."""

    x: float
    y: float
    hover: tuple[str, ...]


def references(snapshot: Snapshot, x: str, y: str) -> tuple[Reference, ...]:
    """The published networks that have both figures; none where the study is of other data than theirs, or where an
    axis is one that a paper cannot know (a latency here).
    """
    found = _NAME.search(snapshot.space_text)
    if found is None or found[1] != DATA or not {x, y} <= {"accuracy", "params", "mult_adds", "activations"}:
        return ()
    rows = []
    for system in SYSTEMS:
        if system.accuracy_percent is None:
            continue
        cost = costs(system.arch())
        values = {"accuracy": system.accuracy_percent / 100, "params": float(cost.params)}
        values |= {"mult_adds": float(cost.mult_adds), "activations": float(cost.activations)}
        hover = (system.system, f"{system.accuracy_percent} %: {system.kind}", system.recipe)
        rows.append(Reference(values[x], values[y], hover))
    return tuple(rows)
