"""Dominance and hypervolume against brute force, inclusion-exclusion and Monte Carlo."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnet_search.models.arch import MnetError
from mnet_search.studies.pareto import front, hypervolume, non_dominated, reference_point

# Few distinct numbers, so that ties, equal rows and both zeros come up all the time.
NUMBERS = st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 3.0])
DIRECTIONS = st.sampled_from(["maximize", "minimize"])


@st.composite
def tables(draw, numbers=NUMBERS, rows=12):
    columns = draw(st.integers(1, 4))
    values = draw(arrays(float, (draw(st.integers(0, rows)), columns), elements=numbers))
    return values, draw(st.lists(DIRECTIONS, min_size=columns, max_size=columns))


def brute_mask(values, directions):
    signs = np.array([-1 if direction == "maximize" else 1 for direction in directions])
    costs = [tuple(row) for row in np.asarray(values, float) * signs]

    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    real = [not any(np.isnan(row)) for row in costs]
    return [
        real[i] and not any(real[j] and dominates(other, row) for j, other in enumerate(costs))
        for i, row in enumerate(costs)
    ]


def inclusion_exclusion(costs, reference):
    """Volume of the union of boxes from their intersections: exponential, and independent of any sweep."""
    total = 0.0
    for size in range(1, len(costs) + 1):
        for group in itertools.combinations(costs, size):
            total -= (-1) ** size * np.prod(np.maximum(np.asarray(reference) - np.max(group, axis=0), 0.0))
    return total


@given(tables())
@settings(max_examples=400, deadline=None)
def test_mask_equals_brute_force(table):
    values, directions = table
    assert non_dominated(values, directions).tolist() == brute_mask(values, directions)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_mask_equals_brute_force_across_blocks(columns):
    """More rows than one block holds, with ties, so that the block-wise path meets the front of earlier blocks."""
    values = np.random.default_rng(columns).integers(0, 25, (700, columns)).astype(float)
    values[::50, 0] = np.nan
    directions = ["minimize", "maximize", "minimize", "maximize"][:columns]
    assert non_dominated(values, directions).tolist() == brute_mask(values, directions)


def test_ten_thousand_rows_that_are_all_on_the_front():
    angles = np.random.default_rng(0).normal(size=(10_000, 3))
    shell = np.abs(angles) / np.linalg.norm(angles, axis=1, keepdims=True)
    assert non_dominated(shell, ["maximize"] * 3).all()
    assert non_dominated(np.vstack([shell, shell * 0.5]), ["maximize"] * 3).sum() == 10_000


def test_small_cases():
    two = ["maximize", "minimize"]
    assert non_dominated([], two).tolist() == []
    assert non_dominated(np.empty((0, 2)), two).tolist() == []
    assert non_dominated([[0.9, 3.0]], two).tolist() == [True]
    assert non_dominated([[np.nan, 3.0]], two).tolist() == [False]
    assert non_dominated([[0.9, 3.0], [0.9, 3.0], [0.8, 3.0]], two).tolist() == [True, True, False], "equal rows stay"
    assert non_dominated([[0.9, np.nan], [0.1, 5.0]], two).tolist() == [False, True], "NaN dominates nothing"
    assert non_dominated([[1.0, np.inf]], two).tolist() == [True]
    assert non_dominated([[-0.0, 0.0, 1.0], [0.0, -0.0, 1.0]], ["minimize"] * 3).tolist() == [True, True]


@given(tables(st.integers(0, 6).map(float), rows=7), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_volume_equals_inclusion_exclusion(table, edge):
    values, directions = table
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    reference = np.where(signs > 0, float(edge), 6.0 - edge)
    inside = [row for row in values * signs if (row < reference * signs).all()]
    expected = inclusion_exclusion(inside, reference * signs)
    assert hypervolume(values, directions, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_volume_agrees_with_monte_carlo(columns):
    generator = np.random.default_rng(columns)
    values = generator.random((60, columns)) ** 0.5
    samples = generator.random((200_000, columns))
    covered = np.zeros(len(samples), dtype=bool)
    for row in values:
        covered |= (samples >= row).all(axis=1)
    error = np.sqrt(covered.mean() * (1 - covered.mean()) / len(samples))
    volume = hypervolume(values, ["minimize"] * columns, np.ones(columns))
    assert volume == pytest.approx(covered.mean(), abs=4 * error)


def test_volume_by_hand():
    two = ["maximize", "minimize"]
    assert hypervolume([[0.5, 1.0]], two, [0.0, 3.0]) == pytest.approx(1.0)
    assert hypervolume([[0.5, 1.0], [0.75, 2.0]], two, [0.0, 3.0]) == pytest.approx(1.25)
    assert hypervolume([[0.5, 1.0], [0.5, 1.0], [0.25, 2.0]], two, [0.0, 3.0]) == pytest.approx(1.0), "no double count"
    assert hypervolume([[0.5, 3.0], [0.0, 1.0]], two, [0.0, 3.0]) == 0.0, "on the reference is not inside it"
    assert hypervolume([[np.nan, 1.0], [np.inf, 1.0]], two, [0.0, 3.0]) == 0.0
    assert hypervolume([], two, [0.0, 3.0]) == 0.0
    assert hypervolume([[2.0], [5.0]], ["maximize"], [1.0]) == pytest.approx(4.0)


@given(tables(st.integers(0, 6).map(float), rows=7))
@settings(max_examples=100, deadline=None)
def test_volume_is_that_of_the_front_and_grows_with_rows(table):
    values, directions = table
    if not len(values):
        return
    reference = reference_point(values, directions)
    whole = hypervolume(values, directions, reference)
    assert whole > 0
    assert hypervolume(values[non_dominated(values, directions)], directions, reference) == pytest.approx(whole)
    assert hypervolume(values[1:], directions, reference) <= whole + 1e-9


def test_reference_lies_a_tenth_of_the_range_beyond_the_worst():
    values = [[0.5, 10.0], [0.9, 30.0], [np.nan, 99.0]]
    assert reference_point(values, ["maximize", "minimize"]).tolist() == pytest.approx([0.46, 32.0])
    assert reference_point([[0.5, 0.0]], ["maximize", "minimize"]).tolist() == pytest.approx([0.45, 1.0])
    with pytest.raises(ValueError, match="no reference point: not one row is finite in every objective"):
        reference_point([[np.nan, 1.0]], ["maximize", "minimize"])


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="direction 'up' is unknown: use 'maximize' or 'minimize'"):
        non_dominated([[1.0]], ["up"])
    with pytest.raises(ValueError, match="no objectives: give at least one direction"):
        non_dominated([[1.0]], [])
    with pytest.raises(ValueError, match=r"values must have the shape \(N, 2\), one column a direction, not \(1, 3\)"):
        non_dominated([[1.0, 2.0, 3.0]], ["minimize"] * 2)
    with pytest.raises(ValueError, match="exact for 1 to 4 objectives, not 5"):
        hypervolume(np.ones((1, 5)), ["minimize"] * 5, np.ones(5))
    with pytest.raises(ValueError, match="the reference must be 2 finite numbers"):
        hypervolume([[1.0, 1.0]], ["minimize"] * 2, [np.nan, 1.0])


def trials(**columns):
    count = len(columns["accuracy"])
    return pd.DataFrame({"number": range(count), "state": ["finished"] * count, **columns})


def test_front_holds_finished_rows_sorted_by_the_last_objective():
    frame = trials(
        accuracy=[0.90, 0.95, 0.80, 0.99, 0.90, np.nan],
        params=[100, 200, 150, 50, 100, 10],
        state=["finished", "finished", "finished", "running", "finished", "finished"],
    )
    members = front(frame, {"accuracy": "maximize", "params": "minimize"})
    assert members["number"].tolist() == [0, 4, 1], "cheapest first, equal rows by number"
    assert members.index.tolist() == [0, 1, 2]
    assert front(frame, {"params": "minimize", "accuracy": "maximize"})["number"].tolist() == [1, 0, 4]


def test_front_of_nothing_and_of_missing_values():
    objectives = {"accuracy": "maximize", "params": "minimize"}
    empty = trials(accuracy=[0.5], params=[1], state=["failed"])
    assert front(empty, objectives).empty
    nullable = trials(accuracy=pd.array([0.5, None], dtype="Float64"), params=pd.array([1, 2], dtype="Int64"))
    assert front(nullable, objectives)["number"].tolist() == [0]
    with pytest.raises(MnetError, match=r"objective 'energy' is no column of the study; its columns: accuracy, number"):
        front(empty, {"energy": "minimize"})
