"""Dominance and hypervolume: the only copy in the project; and the networks that a study's front is made of.

Every function of numbers takes `values` (N, M), one row a trial and one column an objective, and `directions` (M,),
each "maximize" or "minimize", and does not know what an objective means. A row with a NaN in it is no result: it is
never on the front, dominates nothing and adds no volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mnet_search.models.arch import MnetError

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["maximize", "minimize"]
Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_ROWS = 256  # rows compared at once: bounds the memory at (front, BLOCK_ROWS, M) booleans
MARGIN = 0.1  # of the observed range, by which the reference point lies beyond the worst value
EXACT = ("params", "mult_adds", "activations")  # objectives that are counted: the same in every run of a network
SETTINGS = ("param.training.", "param.data.")  # columns by which one network under two recipes is two candidates
QUARTILES = ("latency_q1_ms", "latency_q3_ms")  # averaged along with latency_ms


def non_dominated(values: Any, directions: Sequence[str]) -> Array:
    """Which rows no other row dominates: (N, M) -> boolean mask (N,).

    A row dominates another where it is at least as good in every objective and better in one, so equal rows do not
    dominate each other and all stay. Rows with a NaN are never on the front; infinities compare as numbers.
    About 10 ms for 10,000 random rows of 3 objectives; quadratic where nearly every row is on the front.
    """
    costs = _as_costs(values, directions)
    mask = np.zeros(len(costs), dtype=bool)
    real = np.flatnonzero(~np.isnan(costs).any(axis=1))
    if len(real) == 0:
        return mask
    distinct, inverse = np.unique(costs[real], axis=0, return_inverse=True)
    mask[real] = _front_of_sorted(distinct)[inverse.reshape(-1)]
    return mask


def dominated_by(values: Any, others: Any, directions: Sequence[str]) -> Array:
    """Which rows (N, M) any row of `others` (K, M) dominates -> boolean mask (N,). A NaN neither wins nor loses."""
    rows, rivals = _as_costs(values, directions), _as_costs(others, directions)
    mask: Array = np.any(_no_better(rows, rivals) & ~_no_better(rivals, rows).T, axis=1)
    return mask


def hypervolume(values: Any, directions: Sequence[str], reference: Any) -> float:
    """Volume between the rows and `reference` (M,), in the product of the objectives' units: exact but for rounding.

    Rows that are not better than the reference in every objective add nothing, nor do rows with a NaN or an infinity.
    By slicing along the last objective and adding each row's exclusive share of the slice (While, Bradstreet, Barone:
    "A fast way of calculating exact hypervolumes", 2012). Written for 1 to 4 objectives; more are refused, since the
    time grows exponentially with them.
    """
    costs = _as_costs(values, directions)
    if costs.shape[1] > 4:
        raise ValueError(f"hypervolume is exact for 1 to 4 objectives, not {costs.shape[1]}: leave out some objectives")
    corner = np.asarray(reference, dtype=float).reshape(-1)
    if corner.shape != (costs.shape[1],) or not np.isfinite(corner).all():
        raise ValueError(f"the reference must be {costs.shape[1]} finite numbers, one an objective, not {reference!r}")
    corner = corner * _signs(directions)
    inside = np.isfinite(costs).all(axis=1) & (costs < corner).all(axis=1)
    # Gains: how far each row is better than the reference, so that the reference is the origin from here on.
    gains = np.unique(corner - costs[inside], axis=0)
    return _volume(gains)


def reference_point(values: Any, directions: Sequence[str]) -> Array:
    """A reference for `hypervolume`: the worst finite value of each objective and a tenth of its range more -> (M,).

    Where all rows share one value, a tenth of that value more (or 1.0 at zero). It depends on the rows given, so
    volumes that are to be compared need one common reference. ValueError where no row is finite.
    """
    costs = _as_costs(values, directions)
    finite = costs[np.isfinite(costs).all(axis=1)]
    if len(finite) == 0:
        raise ValueError("no reference point: not one row is finite in every objective")
    best, worst = finite.min(axis=0), finite.max(axis=0)
    span = np.where(worst > best, worst - best, np.abs(worst))
    point: Array = (worst + MARGIN * np.where(span > 0, span, 1 / MARGIN)) * _signs(directions)
    return point


def network_of(finished: pd.DataFrame) -> pd.Series:
    """For each row, the lowest trial number of its network: rows of the same arch_id and the same parameters of
    training and data are runs of one network. A frame without arch_id has a network a row.
    """
    if "arch_id" not in finished.columns or finished.empty:
        return finished["number"]
    alike = ["arch_id", *(name for name in finished.columns if str(name).startswith(SETTINGS))]
    return finished.groupby(alike, dropna=False, sort=False)["number"].transform("min")


def networks(frame: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """One row a network, by `network_of`, of the finished rows of a study's frame, in order of trial number.

    The row is that of the network's first trial, with each measured objective (and with latency_ms its quartiles) as
    the mean over its runs, and further columns: `n` runs, `numbers` of the trials, `NAME_sd` the sample standard
    deviation of each measured objective (NaN for one run). Runs that lack a measurement do not count in its mean.
    ParetoError where an objective is no column of the frame.
    """
    missing = [name for name in objectives if name not in frame.columns]
    if missing:
        known = ", ".join(sorted(str(column) for column in frame.columns))
        raise ParetoError(f"objective {missing[0]!r} is no column of the study; its columns: {known}")
    finished = frame[frame["state"] == "finished"].sort_values("number", kind="stable")
    first = network_of(finished)
    found = finished[finished["number"] == first].reset_index(drop=True)
    measured = [name for name in objectives if name not in EXACT]
    quartiles = [name for name in QUARTILES if "latency_ms" in measured and name in frame.columns]
    new: dict[str, Any] = {}
    for name in [*measured, *quartiles]:
        runs = finished[name].astype(float).groupby(first)
        new[name] = runs.mean().to_numpy()
        if name in measured:
            new[f"{name}_sd"] = runs.std(ddof=1).to_numpy()
    order = np.argsort(first.to_numpy(), kind="stable")
    starts = np.flatnonzero(np.diff(first.to_numpy()[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    cells = finished["number"].to_numpy()[order].tolist()
    ends = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
    new |= {"n": sizes, "numbers": [tuple(cells[start:end]) for start, end in ends]}
    return found.assign(**new)


def front(frame: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """The networks of a study that no other dominates, by the columns named in `objectives`: rows of `networks`, where
    one that was trained several times is judged by the mean over its runs.

    Sorted by the last objective, best first (the cheapest network leads where the last objective is a cost); ties by
    the objective before it and so on to the first, then by trial number. Equal rows all stay.
    ParetoError where an objective is no column of the frame.
    """
    rows = networks(frame, objectives)
    directions = list(objectives.values())
    values = rows[list(objectives)].to_numpy(dtype=float, na_value=np.nan)
    mask = non_dominated(values, directions)
    members, costs = rows[mask], values[mask] * _signs(directions)
    order = np.lexsort((members["number"].to_numpy(), *costs.T))
    return members.iloc[order].reset_index(drop=True)


class ParetoError(MnetError):
    """A front was asked for by an objective that the study does not record."""


def _as_costs(values: Any, directions: Sequence[str]) -> Array:
    """(N, M) of any numbers -> (N, M) floats of which less is better."""
    signs = _signs(directions)
    table = np.asarray(values, dtype=float)
    if table.size == 0:
        table = table.reshape(0, len(signs))
    if table.ndim != 2 or table.shape[1] != len(signs):
        raise ValueError(f"values must have the shape (N, {len(signs)}), one column a direction, not {table.shape}")
    return table * signs + 0.0  # -0.0 would make equal rows differ in np.unique


def _signs(directions: Sequence[str]) -> Array:
    if len(directions) == 0:
        raise ValueError("no objectives: give at least one direction")
    unknown = [direction for direction in directions if direction not in ("maximize", "minimize")]
    if unknown:
        raise ValueError(f"direction {unknown[0]!r} is unknown: use 'maximize' or 'minimize'")
    return np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])


def _front_of_sorted(costs: Array) -> Array:
    """Mask (N,) of distinct rows in lexicographic order: there, whatever dominates a row comes before it."""
    if costs.shape[1] == 1:
        return np.arange(len(costs)) == 0
    if costs.shape[1] == 2:
        best_before = np.minimum.accumulate(np.append(np.inf, costs[:-1, 1]))
        mask: Array = costs[:, 1] < best_before
        # The first row is on the front even where its second objective is itself infinite.
        mask[0] = True
        return mask
    mask = np.zeros(len(costs), dtype=bool)
    kept = costs[:0]
    for start in range(0, len(costs), BLOCK_ROWS):
        index = np.arange(start, min(start + BLOCK_ROWS, len(costs)))
        index = index[~_no_better(costs[index], kept).any(axis=1)]
        # All rows differ, so "no better than" another row of the block is being dominated; every row is so to itself.
        index = index[_no_better(costs[index], costs[index]).sum(axis=1) == 1]
        mask[index] = True
        kept = np.concatenate([kept, costs[index]])
    return mask


def _no_better(rows: Array, others: Array) -> Array:
    """Where a row (n, M) is equal to or dominated by a row of others (k, M) -> (n, k)."""
    result = np.ones((len(rows), len(others)), dtype=bool)
    for column in range(rows.shape[1]):  # column by column: a third of the time of one (n, k, M) comparison
        result &= np.greater_equal.outer(rows[:, column], others[:, column])
    return result


def _volume(gains: Array) -> float:
    """Volume of the union of the boxes from the origin to each row (n, M) > 0."""
    if len(gains) == 0:
        return 0.0
    if gains.shape[1] == 1:
        return float(gains.max())
    if gains.shape[1] == 2:
        widest_first = gains[np.argsort(-gains[:, 0], kind="stable")]
        heights = np.maximum.accumulate(widest_first[:, 1])
        return float(np.sum(widest_first[:, 0] * np.diff(heights, prepend=0.0)))
    tallest_first = gains[np.argsort(-gains[:, -1], kind="stable")]
    tops, bases = tallest_first[:, -1], tallest_first[:, :-1]
    area, total, kept = 0.0, 0.0, bases[:0]
    for row, (base, drop) in enumerate(zip(bases, tops - np.append(tops[1:], 0.0), strict=True)):
        if row == 0 or not (kept >= base).all(axis=1).any():
            overlap = np.minimum(kept, base)
            area += float(np.prod(base)) - _volume(_outermost(overlap))
            kept = np.vstack([kept[~(kept <= base).all(axis=1)], base])
        total += area * drop
    return total


def _outermost(gains: Array) -> Array:
    """The rows (n, M) whose boxes lie in no other row's box, so that `_volume` recurses into few."""
    if gains.shape[1] < 3 or len(gains) < 2:
        return gains
    distinct = np.unique(-gains, axis=0)
    return -distinct[_front_of_sorted(distinct)]
