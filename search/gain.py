"""The expected gain in hypervolume of candidates whose costs are known and whose error is uncertain.

Every objective but one is a cost that is known before training, so the expected gain is an integral over the one that
is not: at each level of the error, the chance of being below it times the cost volume that nothing at least as good
dominates yet. Between two levels of the front that volume does not change, so the integral is a sum over the levels. It
is exact up to `MOST_TICKS` different costs on the front, and on a grid of so many ticks a cost for more (Emmerich,
Deutz, Klinkenberg: "Hypervolume-based expected improvement", 2011, for the case of all objectives uncertain).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy.special import ndtr

from mnet_search.studies.pareto import non_dominated

Array = np.ndarray[Any, np.dtype[Any]]

MOST_TICKS = {0: 1, 1: 512, 2: 128, 3: 24, 4: 12}  # by the number of costs: bounds the grid's memory
LEAST_CHANCE_SIGMAS = 7.0  # an improvement farther out than this is none


def expected_gain(
    mean: Array,
    sd: Array,
    costs: Array,
    front_errors: Array,
    front_costs: Array,
    reference: Array,
    *,
    worst_error: float,
    logarithmic: bool,
) -> Array:
    """Expected gain in hypervolume of each candidate -> (N,).

    `mean`, `sd` (N,) of the error's normal distribution, of its logarithm where `logarithmic`; `costs` (N, K) of the
    candidates, K from 0 to 4, less is better; `front_errors` (F,), `front_costs` (F, K) of what is there already,
    dominated or not; `reference` (K,) and `worst_error` the corner that volumes are measured from.
    """
    n_costs = costs.shape[1]
    useful = (front_errors < worst_error) & (front_costs < reference).all(axis=1)
    useful[useful] = non_dominated(np.column_stack([front_errors, front_costs])[useful], ["minimize"] * (n_costs + 1))
    errors, order = np.unique(front_errors[useful], return_inverse=True)
    dominated_from = front_costs[useful]
    levels = np.append(errors, worst_error)
    gains, below = np.zeros(len(mean)), np.zeros(len(mean))
    ticks = [_ticks(dominated_from[:, k], costs[:, k], reference[k], MOST_TICKS[n_costs]) for k in range(n_costs)]
    places = [np.clip(np.searchsorted(t, costs[:, k], side="right") - 1, 0, len(t) - 2) for k, t in enumerate(ticks)]
    free = np.ones([len(t) - 1 for t in ticks], dtype=bool)
    for level, error in enumerate(levels):  # from the best error to the worst: less and less is free
        if level > 0:
            for point in dominated_from[order == level - 1]:
                free[
                    tuple(
                        slice(int(np.searchsorted(t, x, side="left")), None) for t, x in zip(ticks, point, strict=True)
                    )
                ] = False
        volume = _volume_above(free, ticks)
        near = np.flatnonzero((np.log(error) if logarithmic else error) > mean - LEAST_CHANCE_SIGMAS * sd)
        up_to_here = _below(float(error), mean[near], sd[near], logarithmic)
        share = np.maximum(up_to_here - below[near], 0.0)
        below[near] = up_to_here
        gains[near] += share * _interpolate(volume, ticks, [p[near] for p in places], costs[near])
    return gains


def _below(level: float, mean: Array, sd: Array, logarithmic: bool) -> Array:
    """The integral of P(error < e) over e from the least error to a level -> (N,)."""
    if logarithmic:
        z = (np.log(level) - mean) / sd
        found: Array = level * ndtr(z) - np.exp(mean + sd**2 / 2) * ndtr(z - sd)
    else:
        z = (level - mean) / sd
        found = sd * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    return np.maximum(found, 0.0)


def _ticks(points: Array, candidates: Array, reference: float, most: int) -> Array:
    """The places along one cost where volumes may bend: those of the front, from the cheapest candidate on, and the
    reference. With too many, every so many of them.
    """
    inside = np.unique(points[points < reference])
    if len(inside) > most - 2:
        inside = inside[np.linspace(0, len(inside) - 1, most - 2).round().astype(int)]
    low = min(float(candidates.min(initial=reference)), float(inside.min(initial=reference)))
    ticks = np.unique(np.concatenate([[low], inside, [reference]]))
    return ticks if len(ticks) > 1 else np.array([low - 1.0, reference])


def _volume_above(free: Array, ticks: list[Array]) -> Array:
    """For each node of the grid, the free volume between it and the reference: one more node than cells an axis."""
    volume = free.astype(float)
    for axis, t in enumerate(ticks):
        shape = [1] * volume.ndim
        shape[axis] = -1
        volume = volume * np.diff(t).reshape(shape)
        volume = np.flip(np.cumsum(np.flip(volume, axis), axis), axis)
        volume = np.concatenate([volume, np.zeros_like(volume.take([0], axis))], axis)
    return volume


def _interpolate(volume: Array, ticks: list[Array], places: list[Array], costs: Array) -> Array:
    """The free volume above each candidate: linear along each cost between two nodes, which is exact."""
    if not ticks:
        return np.full(len(costs), float(volume))
    weights = []
    for axis, (t, place) in enumerate(zip(ticks, places, strict=True)):
        upper = np.clip((costs[:, axis] - t[place]) / (t[place + 1] - t[place]), 0.0, 1.0)
        weights.append((1.0 - upper, upper))
    total = np.zeros(len(costs))
    for corner in itertools.product((0, 1), repeat=len(ticks)):
        weight = np.ones(len(costs))
        for axis, side in enumerate(corner):
            weight = weight * weights[axis][side]
        total += weight * volume[tuple(place + side for place, side in zip(places, corner, strict=True))]
    return total
