"""The expected gain in hypervolume against Monte Carlo, and what must hold of it whatever the front."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnet_search.search.gain import MOST_TICKS, expected_gain
from mnet_search.studies.pareto import hypervolume, non_dominated

DRAWS = 1_500
WORST = 1.1


def gain_of(mean: Any, sd: Any, costs: Any, front: Any, *, logarithmic: bool = False, worst: float = WORST) -> Any:
    """`front` (F, 1 + K): errors, then costs; the reference is 1.1 in every cost."""
    front, costs = np.asarray(front, dtype=float), np.asarray(costs, dtype=float)
    reference = np.full(costs.shape[1], 1.1)
    return expected_gain(
        np.asarray(mean, dtype=float),
        np.asarray(sd, dtype=float),
        costs,
        front[:, 0],
        front[:, 1:],
        reference,
        worst_error=worst,
        logarithmic=logarithmic,
    )


def sampled_gain(
    mean: float, sd: float, costs: Any, front: Any, *, logarithmic: bool, seed: int
) -> tuple[float, float]:
    """The same by drawing errors, and four standard errors of it (and 1e-5, for what no draw reaches)."""
    drawn = np.random.default_rng(seed).normal(mean, sd, DRAWS)
    errors = np.exp(drawn) if logarithmic else drawn
    directions, reference = ["minimize"] * front.shape[1], np.full(front.shape[1], WORST)
    before = hypervolume(front, directions, reference)
    more = [hypervolume(np.vstack([front, [error, *costs]]), directions, reference) - before for error in errors]
    return float(np.mean(more)), 4 * float(np.std(more)) / DRAWS**0.5 + 1e-5


@pytest.mark.parametrize("logarithmic", [False, True], ids=["linear", "logarithmic"])
@pytest.mark.parametrize("n_costs", [0, 1, 2, 3])
def test_equals_monte_carlo_within_four_standard_errors(n_costs: int, logarithmic: bool) -> None:
    rng = np.random.default_rng(n_costs)
    front = rng.uniform(0.1, 1.0, (7, 1 + n_costs))
    front[0, 0] = 1.3  # beyond the reference: adds nothing and hides nothing
    costs = rng.uniform(0.0, 1.0, (4, n_costs))
    errors, sd = rng.uniform(0.15, 0.9, 4), np.array([0.02, 0.1, 0.2, 0.3])
    mean = np.log(errors) if logarithmic else errors
    found = gain_of(mean, sd, costs, front, logarithmic=logarithmic)
    for i in range(4):
        drawn, tolerance = sampled_gain(mean[i], sd[i], costs[i], front, logarithmic=logarithmic, seed=i)
        assert found[i] == pytest.approx(drawn, abs=tolerance)


@pytest.mark.parametrize("n_costs", [0, 1, 2, 3, 4])
def test_an_empty_front_and_one_beyond_the_reference_leave_the_whole_box(n_costs: int) -> None:
    costs = np.full((2, n_costs), 0.5)
    box = 0.6 ** (1 + n_costs)  # an error of 0.5, known exactly
    for front in (np.zeros((0, 1 + n_costs)), np.full((3, 1 + n_costs), 1.1), np.full((1, 1 + n_costs), 2.0)):
        found = gain_of([0.5, 0.5], [1e-9, 1e-9], costs, front)
        assert found == pytest.approx([box, box])
        if n_costs:
            assert gain_of([0.5], [0.1], np.full((1, n_costs), 1.1), front) == pytest.approx([0.0])


def test_by_hand() -> None:
    front = [[0.5, 0.6], [0.8, 0.1]]
    # within 1.1 x 1.1: (0.3, 0.3) adds its own box but for those of the two members
    assert gain_of([0.3], [1e-9], [[0.3]], front) == pytest.approx([0.8 * 0.8 - 0.6 * 0.5 - 0.3 * 0.8 + 0.3 * 0.5])
    assert gain_of([0.9], [1e-9], [[0.7]], front) == pytest.approx([0.0], abs=1e-12)  # dominated


@pytest.mark.parametrize("n_costs", [0, 1, 2, 3])
def test_dominated_members_change_nothing(n_costs: int) -> None:
    rng = np.random.default_rng(3)
    front = rng.uniform(0.2, 1.0, (10, 1 + n_costs))
    front = front[non_dominated(front, ["minimize"] * (1 + n_costs))]
    worse = np.repeat(front, 200, axis=0) + rng.uniform(0.0, 0.3, (200 * len(front), 1 + n_costs))
    mean, sd, costs = rng.uniform(0.2, 1.0, 50), rng.uniform(0.01, 0.2, 50), rng.uniform(0, 1.2, (50, n_costs))
    alone, among = gain_of(mean, sd, costs, front), gain_of(mean, sd, costs, np.vstack([worse, front]))
    assert among == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize(("n_costs", "most_off"), [(1, 0.005), (2, 0.01), (3, 0.1)])
def test_with_more_members_than_ticks_it_is_close_to_exact(
    n_costs: int, most_off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off by that share of the largest gain; exact again with room for all."""
    rng = np.random.default_rng(4)
    n_members = {1: 2 * MOST_TICKS[1], 2: 2 * MOST_TICKS[2], 3: 2 * MOST_TICKS[3]}[n_costs]
    front = np.abs(rng.normal(size=(n_members, 1 + n_costs)))
    front = 1.0 - front / np.linalg.norm(front, axis=1, keepdims=True)  # none dominates another
    mean, sd, costs = rng.uniform(0.0, 0.5, 200), np.full(200, 0.1), rng.uniform(0, 1, (200, n_costs))
    capped = gain_of(mean, sd, costs, front)
    monkeypatch.setitem(MOST_TICKS, n_costs, n_members + 2)
    exact = gain_of(mean, sd, costs, front)
    assert np.abs(capped - exact).max() <= most_off * exact.max()


UNIT = st.integers(0, 12).map(lambda i: i / 10)  # few numbers, so that ties come up, some beyond the reference


@st.composite
def cases(draw: Any) -> tuple[Any, Any, Any, Any, bool]:
    n_costs, logarithmic = draw(st.integers(0, 3)), draw(st.booleans())
    front = draw(arrays(float, (draw(st.integers(0, 6)), 1 + n_costs), elements=UNIT))
    if logarithmic:
        front[:, 0] += 0.05  # the exponential of something
    costs = draw(arrays(float, (5, n_costs), elements=UNIT))
    mean = draw(arrays(float, 5, elements=st.floats(-3.0, 2.0)))
    return mean, draw(arrays(float, 5, elements=st.floats(1e-3, 2.0))), costs, front, logarithmic


@given(cases())
@settings(max_examples=150, deadline=None)
def test_never_negative_and_no_more_than_the_candidates_whole_box(case: tuple[Any, Any, Any, Any, bool]) -> None:
    mean, sd, costs, front, logarithmic = case
    found = gain_of(mean, sd, costs, front, logarithmic=logarithmic)
    empty = gain_of(mean, sd, costs, front[:0], logarithmic=logarithmic)
    assert (found >= 0).all()
    assert (found <= empty + 1e-9).all()
    if logarithmic:  # an error is no less than 0
        assert (empty <= WORST * np.prod(np.maximum(1.1 - costs, 0.0), axis=1) + 1e-9).all()


@given(cases())
@settings(max_examples=150, deadline=None)
def test_a_cheaper_candidate_gains_at_least_as_much(case: tuple[Any, Any, Any, Any, bool]) -> None:
    mean, sd, costs, front, logarithmic = case
    found = gain_of(np.full(5, mean[0]), np.full(5, sd[0]), costs, front, logarithmic=logarithmic)
    for cheap, dear in itertools.permutations(range(5), 2):
        if (costs[cheap] <= costs[dear]).all():
            assert found[cheap] >= found[dear] - 1e-9
