"""The order of trials by more than one objective: non-domination first, then crowding (Deb et al., "NSGA-II", 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mnet_search.studies.pareto import non_dominated

Array = np.ndarray[Any, np.dtype[Any]]


def ranks(values: Any, directions: Sequence[str]) -> Array:
    """(N, M) -> (N,) whole numbers, 0 the best: rows of an earlier layer first; within a layer the lonelier first, the
    ends of the layer before all. Rows that differ in neither share a rank. Rows with a NaN share the last.
    """
    table = np.asarray(values, dtype=float).reshape(-1, len(directions))
    layers = non_domination_layers(table, directions)
    lonely = np.zeros(len(table))
    for layer in np.unique(layers[layers < len(table)]):
        lonely[layers == layer] = crowding(table[layers == layer])
    pairs = np.column_stack([layers, -lonely])
    _, found = np.unique(pairs, axis=0, return_inverse=True)
    return np.asarray(found).reshape(-1)


def non_domination_layers(values: Any, directions: Sequence[str]) -> Array:
    """(N, M) -> (N,): 0 for rows that none dominates, 1 for those that only rows of layer 0 dominate, and so on."""
    table = np.asarray(values, dtype=float).reshape(-1, len(directions))
    layers = np.full(len(table), len(table))
    left = np.flatnonzero(~np.isnan(table).any(axis=1))
    layer = 0
    while len(left):
        mask = non_dominated(table[left], directions)
        layers[left[mask]] = layer
        left, layer = left[~mask], layer + 1
    return layers


def crowding(values: Array) -> Array:
    """How far the neighbours of each row (N, M) are apart, summed over the objectives by the share of their range; the
    ends of each objective are infinitely far from any. An infinite range has no shares: neighbours in it add nothing.
    """
    found = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        gaps = np.full(len(values), np.inf)
        if len(values) > 2:
            with np.errstate(invalid="ignore"):  # between two infinities
                span = column[order[-1]] - column[order[0]]
                between = (column[order[2:]] - column[order[:-2]]) / (span if span > 0 else np.inf)
            gaps[1:-1] = np.nan_to_num(between, nan=0.0)
        found[order] += gaps
    return found
