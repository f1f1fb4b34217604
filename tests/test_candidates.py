"""The networks that a search may propose: which, what a model is told of them, and how new ones are bred."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_search.models.complexity import costs
from mnet_search.search import candidates
from mnet_search.search.candidates import Candidates, complete, cross, knob, mutate, varies
from mnet_search.spaces.schema import Choice, Parameter, Range
from mnet_search.spaces.space import Params, Space, load_space, make_space
from mnet_search.spaces.yamlfile import Source

MACRO = Path(__file__).parents[1] / "spaces" / "macro.yaml"
CONDITIONAL: dict[str, Any] = {
    "width": [0.25, 0.5, 0.75],
    "resolution": [20, 32],
    "block": ["separable", "inverted_residual"],
    "expand": {"values": [2, 4, 6], "when": {"block": "inverted_residual"}},
    "kernel": {"values": [3, 5], "when": {"expand": [4, 6]}},
}


def space_of(parameters: dict[str, Any], **rest: Any) -> Space:
    values = {"family": "mobilenet_v1", "parameters": parameters, **rest}
    return make_space("test", values, Source("test")).for_data(classes=10, in_channels=3)


def valid(space: Space, params: Params) -> bool:
    """Whether an assignment gives a value of the list to each parameter that exists, and to no other."""
    there = [n for n, p in space.parameters.items() if space.active(p, params)]
    return list(params) == there and all(params[n] in space.values(n) for n in there)


@pytest.fixture(scope="module")
def conditional() -> Space:
    return space_of(CONDITIONAL)


# ---------------------------------------------------------------- which networks


def test_the_whole_of_macro() -> None:
    found = Candidates(load_space(MACRO).for_data(classes=10, in_channels=3))
    assert found.whole and len(found) == 3969
    assert len({row.key for row in found.rows}) == 3969
    features = found.features()
    assert features.shape[0] == 3969 and np.isfinite(features).all()
    assert features.mean(axis=0) == pytest.approx(0.0, abs=1e-9) and features.std(axis=0) == pytest.approx(1.0)


def test_conditional_parameters_and_exact_costs(conditional: Space) -> None:
    found = Candidates(conditional)
    assert len(found) == 3 * 2 * (1 + 1 + 2 * 2)
    for index, row in enumerate(found.rows):
        assert valid(conditional, row.params)
        assert row.costs == costs(conditional.arch(row.params))
        assert found.add(row.params) == found.add(dict(reversed(row.params.items()))) == index
    assert found.cost("params").tolist() == [row.costs.params for row in found.rows]
    assert found.add({**found.rows[0].params, "width": -1.0}) is None  # no such network
    assert len(found) == 36


@pytest.mark.parametrize("bound", [{"max": "1M"}, {"min": "1M"}, {"min": "500k", "max": "2M"}])
def test_none_breaks_a_budget(bound: dict[str, str], conditional: Space) -> None:
    space = space_of(CONDITIONAL, constraints={"params": bound})
    found, every = Candidates(space), Candidates(conditional)
    fits = {row.key for row in every.rows if space.violation(row.costs) is None}
    assert {row.key for row in found.rows} == fits and 0 < len(fits) < len(every)
    over = next(row for row in every.rows if row.key not in fits)
    assert found.add(over.params) is None and found.add(over.params) is None


def test_fractions_that_optuna_counted_up_are_those_of_the_file() -> None:
    space = space_of({"width": 0.25, "resolution": 32, "training.momentum": {"min": 0.1, "max": 0.5, "step": 0.1}})
    found = Candidates(space)
    assert len(found) == 5
    assert found.add({"width": 0.25, "resolution": 32, "training.momentum": 0.1 + 0.2}) == 2
    assert len(found) == 5


CONTINUOUS = {"width": {"min": 0.25, "max": 1.0}, "resolution": [20, 32], "block": ["separable", "inverted_residual"]}


def test_a_continuous_space_is_sampled_and_renewed_around_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SAMPLED", 200)
    monkeypatch.setattr(candidates, "NEW", 150)
    space = space_of(CONTINUOUS)
    found, same, other = Candidates(space, seed=1), Candidates(space, seed=1), Candidates(space, seed=2)
    assert not found.whole and len(found) == 200
    assert [row.key for row in found.rows] == [row.key for row in same.rows] != [row.key for row in other.rows]
    table, kept = found.features(), [5, 9, 170]
    keys = [found.rows[i].key for i in kept]
    rows = [table[i] for i in kept]
    for pool in (found, same):
        assert len(pool.cost("params")) == 200
        pool.renew(random.Random(3), kept, [0, 2])
        assert [row.key for row in pool.rows[:3]] == keys
        assert [pool.add(row.params) for row in pool.rows[:3]] == [0, 1, 2]
        assert len({row.key for row in pool.rows}) == len(pool) == 153
        assert pool.cost("params").tolist() == [row.costs.params for row in pool.rows]
    assert [row.key for row in found.rows] == [row.key for row in same.rows]
    np.testing.assert_allclose(found.features()[:3], rows)  # by the scale of the first call
    found.renew(random.Random(4), range(100), [])
    assert len(found) == 250  # NEW of them new


def test_drawing_ends_where_a_space_is_drawn_out() -> None:
    """Widths are rounded: a continuous range of few networks."""
    space = space_of({"width": {"min": 0.25, "max": 0.2501}, "resolution": [20, 32]})
    assert len(Candidates(space)) == 2


# ---------------------------------------------------------------- what a model is told


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (Choice(values=["a", "b", "c"]), "b", [0, 1, 0]),
        (Choice(values=["a", 3, True]), True, [0, 0, 1]),
        (Choice(values=[3, 5]), 5, [0, 1]),  # two numbers are categories
        (Choice(values=[True, False]), False, [0, 1]),
        (Choice(values=["a"]), "a", []),
        (Choice(values=[7]), 7, []),
        (Choice(values=[2, 4, 6]), 4, [0.5]),
        (Choice(values=[6, 2, 5]), 5, [0.75]),  # in whatever order
        (Choice(values=[0, 1, 100]), 1, [0.01]),  # no logarithm of 0
        (Choice(values=[1, 10, 100]), 10, [0.5]),  # more than fourfold
        (Range(min=1, max=4), 2, [1 / 3]),
        (Range(min=0.5, max=1.0), 0.625, [0.25]),
        (Range(min=1e-4, max=1e-2, log=True), 1e-3, [0.5]),
        (Range(min=1.0, max=2.0, log=True), 2**0.5, [0.5]),
        (Range(min=0.1, max=0.5, step=0.1), 0.5, [1.0]),
        (Range(min=3, max=3), 3, [0.5]),
        (Choice(values=["a", "b"], when={"x": 1}), "a", [1, 1, 0]),
        (Choice(values=["a", "b"], when={"x": 1}), None, [0, 0, 0]),
        (Choice(values=["a"], when={"x": 1}), None, [0]),
        (Choice(values=[2, 4, 6], when={"x": 1}), 6, [1, 1.0]),
        (Choice(values=[2, 4, 6], when={"x": 1}), None, [0, 0.5]),
    ],
)
def test_knobs(parameter: Parameter, value: Any, expected: list[float]) -> None:
    assert knob(parameter, value) == pytest.approx(expected)


def test_features_leave_out_what_does_not_vary_and_take_further_figures(conditional: Space) -> None:
    found = Candidates(conditional)
    further = {row.key: (float(i), 1.0) for i, row in enumerate(found.rows)}
    assert found.features(further).shape[1] == Candidates(conditional).features().shape[1] + 1
    one = Candidates(space_of({"width": 0.5, "resolution": 32}))
    assert one.features().tolist() == [[0.0]]


# ---------------------------------------------------------------- breeding


def test_a_mutation_changes_one_parameter_and_what_comes_into_being(conditional: Space) -> None:
    rng, changed = random.Random(0), set()
    for _ in range(400):
        parent = conditional.sample(rng)
        child = mutate(conditional, parent, rng)
        assert valid(conditional, child)
        differ = {name for name in parent if name in child and child[name] != parent[name]}
        assert len(differ) == 1
        changed |= differ
    assert changed == set(CONDITIONAL)
    fixed = space_of({"width": 0.5, "resolution": 32})
    assert mutate(fixed, {"width": 0.5, "resolution": 32}, rng) == {"width": 0.5, "resolution": 32}
    assert [varies(p) for p in (Choice(values=[1]), Choice(values=[1, 2]), Range(min=1.0, max=2.0))] == [0, 1, 1]


def test_a_cross_takes_values_of_the_parents(conditional: Space) -> None:
    rng, from_both = random.Random(0), 0
    for _ in range(400):
        first, second = conditional.sample(rng), conditional.sample(rng)
        child = cross(conditional, first, second, rng)
        assert valid(conditional, child)
        for name, value in child.items():
            having = [parent[name] for parent in (first, second) if name in parent]
            assert value in having or not having
        from_both += child not in (first, second)
    assert from_both > 100


def test_complete_keeps_what_is_there_and_draws_the_rest(conditional: Space) -> None:
    rng = random.Random(0)
    given: Params = {"width": 0.5, "block": "inverted_residual", "expand": 4}
    drawn = [complete(conditional, given, rng) for _ in range(30)]
    assert all(valid(conditional, params) and given.items() <= params.items() for params in drawn)
    assert {params["kernel"] for params in drawn} == {3, 5}
    assert complete(conditional, {"block": "separable", "expand": 4, "kernel": 5}, rng).keys() == {
        "width",
        "resolution",
        "block",
    }
