"""Ranks of trials by several objectives: layers and crowding by hand, and against the front of studies.pareto."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnet_search.studies.pareto import non_dominated
from mnet_search.studies.ranking import crowding, non_domination_layers, ranks

NAN, INF = float("nan"), float("inf")
BOTH = ["maximize", "minimize"]


def test_layers_by_hand() -> None:
    rows = [(0.9, 5), (0.8, 2), (0.8, 3), (0.7, 3), (0.9, 5), (NAN, 1), (0.1, 9)]
    assert non_domination_layers(rows, BOTH).tolist() == [0, 0, 1, 2, 0, 7, 3]
    assert non_domination_layers([(1,), (3,), (2,)], ["maximize"]).tolist() == [2, 0, 1]


def test_crowding_by_hand() -> None:
    rows = np.array([(0.0, 10.0), (1.0, 6.0), (2.0, 4.0), (10.0, 0.0)])
    assert crowding(rows).tolist() == pytest.approx([INF, 2 / 10 + 6 / 10, 9 / 10 + 6 / 10, INF])
    assert crowding(rows[:2]).tolist() == [INF, INF]
    assert crowding(rows[:1]).tolist() == [INF]
    assert crowding(np.array([(1.0,), (1.0,), (1.0,)])).tolist() == [INF, 0.0, INF]  # no range
    assert crowding(np.array([(-INF,), (0.0,), (1.0,), (INF,)])).tolist() == [INF, 0.0, 0.0, INF]


def test_ranks_by_hand() -> None:
    rows = [(10.0, 0.0), (1.0, 6.0), (2.0, 4.0), (0.0, 10.0), (11.0, 12.0), (NAN, 0.0), (0.0, NAN)]
    # the two ends, then the lonelier of the two between, then the second layer; rows with a NaN share the last
    assert ranks(rows, ["minimize", "minimize"]).tolist() == [0, 2, 1, 0, 3, 4, 4]
    assert ranks([(0.5,), (0.7,), (0.5,)], ["maximize"]).tolist() == [1, 0, 1]


def test_nothing_and_nothing_but_nan() -> None:
    assert ranks([], BOTH).tolist() == []
    assert ranks([(NAN, 1), (1, NAN)], BOTH).tolist() == [0, 0]


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, list[str]]:
    columns = draw(st.integers(1, 4))
    numbers = st.sampled_from([NAN, INF, -INF, -1.0, 0.0, 0.5, 1.0, 2.0])
    values = draw(arrays(float, (draw(st.integers(0, 12)), columns), elements=numbers))
    return values, draw(st.lists(st.sampled_from(BOTH), min_size=columns, max_size=columns))


@given(tables())
@settings(max_examples=200, deadline=None)
def test_the_first_layer_is_the_front_and_ranks_follow_the_layers(table: tuple[np.ndarray, list[str]]) -> None:
    values, directions = table
    layers, found = non_domination_layers(values, directions), ranks(values, directions)
    assert (layers == 0).tolist() == non_dominated(values, directions).tolist()
    for a in range(len(values)):
        for b in range(len(values)):
            assert layers[a] >= layers[b] or found[a] < found[b]
    assert sorted(set(found.tolist())) == list(range(len(set(found.tolist()))))
