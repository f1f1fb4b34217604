"""Schedulers by themselves: what holds for each of them, and the rules by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnet_search.search import schedulers
from mnet_search.search.schedulers import SCHEDULERS, Reached, Scheduler, dominated, halving_rungs, places

EPOCHS = (1, 3)


def make(name: str, epochs: tuple[int, ...] = EPOCHS, eta: float = 3.0) -> Scheduler:
    return SCHEDULERS[name](epochs, eta)


def some(n: int, epoch: int = 1) -> list[Reached]:
    """Trials with coarse figures, so that ties are many."""
    rng = random.Random(7)
    return [Reached(i, epoch, rng.randint(0, 4) / 4, (float(rng.randint(0, 3)),)) for i in range(n)]


def judged(scheduler: Scheduler, reached: Reached) -> str | None:
    scheduler.record(reached)
    return scheduler.judge(reached)


# ---------------------------------------------------------------- every scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rungs_are_below_the_last_epoch_and_rise(name: str) -> None:
    for last in range(1, 40):
        for eta in (1.01, 1.5, 2.0, 3.0, 4.0, 100.0):
            for first in (None, 1, 2, 7, 50):
                epochs = halving_rungs(last, eta, first)
                scheduler = make(name, epochs, eta)
                for trial in range(4):
                    rungs = scheduler.rungs(trial)
                    assert list(rungs) == sorted(set(rungs))
                    assert all(1 <= rung < last for rung in rungs)
                    assert set(rungs) <= set(epochs)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_first_trial_goes_on(name: str) -> None:
    for epoch in EPOCHS:
        assert judged(make(name), Reached(0, epoch, 0.9, (5.0, 1.0))) is None


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_order_in_which_trials_are_told_and_telling_one_again_change_nothing(name: str) -> None:
    trials = some(30)
    first = make(name)
    for reached in trials:
        first.record(reached)
    expected = [first.judge(reached) for reached in trials]
    assert [first.judge(reached) for reached in trials] == expected
    assert name == "none" or any(expected)
    for seed in range(5):
        shuffled = random.Random(seed).sample(trials, len(trials))
        other = make(name)
        for reached in [*shuffled, *shuffled[:7]]:
            other.record(reached)
        assert [other.judge(reached) for reached in trials] == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_rung_knows_nothing_of_another(name: str) -> None:
    scheduler = make(name)
    for reached in some(30, epoch=1):
        scheduler.record(reached)
    assert judged(scheduler, Reached(30, 3, 1.0, (9.0,))) is None


# ---------------------------------------------------------------- moasha


@pytest.mark.parametrize(("eta", "kept"), [(2.0, 2), (3.0, 1)])
def test_moasha_keeps_the_front_and_the_first_share(eta: float, kept: int) -> None:
    scheduler = make("moasha", eta=eta)
    assert judged(scheduler, Reached(0, 1, 0.5, (2.0,))) is None
    assert judged(scheduler, Reached(1, 1, 0.9, (1.0,))) is None  # cheaper: on the front
    assert judged(scheduler, Reached(2, 1, 0.1, (9.0,))) is None  # better: on the front, beyond any share
    reason = judged(scheduler, Reached(3, 1, 0.6, (3.0,)))
    assert reason == f"place 4 of 4 at epoch 1, where the first {max(kept, 2)} go on"


def test_moasha_lets_a_dominated_trial_go_on_among_the_first_of_its_share() -> None:
    scheduler = make("moasha", eta=2.0)
    for number, error in enumerate((0.1, 0.2, 0.3)):
        judged(scheduler, Reached(number, 1, error, (1.0,)))
    fourth = Reached(3, 1, 0.15, (1.0,))
    assert dominated(fourth, [Reached(0, 1, 0.1, (1.0,))])
    assert judged(scheduler, fourth) is None  # second of four
    assert judged(scheduler, Reached(4, 1, 0.25, (1.0,))) == "place 4 of 5 at epoch 1, where the first 3 go on"


def test_moasha_breaks_ties_by_number() -> None:
    scheduler = make("moasha", eta=3.0)
    same = [Reached(number, 1, 0.5, (1.0,)) for number in range(6)]
    assert places(same[::-1]) == [5, 4, 3, 2, 1, 0]
    for reached in same:
        scheduler.record(reached)
    assert [scheduler.judge(reached) is None for reached in same] == [True, True, False, False, False, False]


def test_without_costs_the_error_alone_decides() -> None:
    scheduler = make("moasha", eta=2.0)
    assert judged(scheduler, Reached(0, 1, 0.5, ())) is None
    assert judged(scheduler, Reached(1, 1, 0.6, ())) is not None
    assert judged(scheduler, Reached(2, 1, 0.4, ())) is None


# ---------------------------------------------------------------- hyperband, median


def test_brackets_of_hyperband_take_turns_and_the_last_is_judged_nowhere() -> None:
    scheduler = make("hyperband", (1, 3, 9))
    assert [scheduler.rungs(trial) for trial in range(5)] == [(1, 3, 9), (3, 9), (9,), (), (1, 3, 9)]
    assert judged(scheduler, Reached(0, 3, 0.1, (1.0,))) is None
    assert judged(scheduler, Reached(1, 3, 0.9, (2.0,))) is None  # the first of its bracket
    assert judged(scheduler, Reached(4, 3, 0.9, (2.0,))) is not None
    assert judged(scheduler, Reached(3, 3, 9.9, (9.0,))) is None


def test_the_median_is_taken_of_those_that_cost_no_more() -> None:
    scheduler = make("median")
    for number, error in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert judged(scheduler, Reached(number, 1, error, (5.0, 5.0))) is None
    assert judged(scheduler, Reached(4, 1, 0.9, (4.0, 9.0))) is None  # cheaper in one: it has no peers
    assert judged(scheduler, Reached(5, 1, 0.9, (5.0, 4.0))) is None
    assert judged(scheduler, Reached(6, 1, 0.2, (5.0, 5.0))) is None
    reason = judged(scheduler, Reached(7, 1, 0.5, (5.0, 5.0)))
    assert reason == "below the median of 6 trials that cost no more, at epoch 1"


# ---------------------------------------------------------------- rungs


@pytest.mark.parametrize(
    ("epochs", "eta", "first", "rungs"),
    [
        (4, 3, None, (1,)),
        (8, 3, None, (1, 3)),
        (9, 3, None, (1, 3)),
        (1, 3, None, ()),
        (16, 2, None, (4, 8)),
        (27, 3, 1, (1, 3, 9)),
        (28, 3, 1, (1, 3, 9, 27)),
        (10, 3, 2, (2, 6)),
        (10, 3, 10, ()),
        (6, 1.2, 1, (1, 2, 3, 4, 5)),
    ],
)
def test_rungs_by_halving(epochs: int, eta: float, first: int | None, rungs: tuple[int, ...]) -> None:
    assert halving_rungs(epochs, eta, first) == rungs


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40))
def test_with_many_trials_the_same_ones_end(figures: list[tuple[int, int]]) -> None:
    def verdicts(many: int) -> list[bool]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedulers, "MANY", many)
            rule = schedulers.SuccessiveHalving((1,), 3.0)
            reached = [Reached(n, 1, float(error), (float(cost),)) for n, (error, cost) in enumerate(figures)]
            return [judged(rule, one) is None for one in reached]

    assert verdicts(0) == verdicts(500)
