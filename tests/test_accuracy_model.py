"""The Gaussian process of accuracy: against scikit-learn's own predictions, grown one trial at a time or at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from mnet_search.search.accuracy_model import MOST_TRIALS, ROOM, AccuracyModel, Observation


def problem(n: int, n_candidates: int = 300, seed: int = 0) -> tuple[Any, list[Observation]]:
    """Features of candidates, and `n` observations of a smooth function with noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_candidates, 4))
    figures = np.sin(features[:, 0]) + 0.3 * features[:, 1] ** 2 - 1.5 + 0.05 * rng.normal(size=n_candidates)
    chosen = rng.permutation(n_candidates)[:n]
    return features, [Observation(int(i), float(figures[i])) for i in chosen]


def reference(model: AccuracyModel, features: Any, observations: list[Observation]) -> tuple[Any, Any]:
    """Mean and standard deviation of the noise-free figure by scikit-learn, with the kernel that the model has."""
    kernel = model._kernel
    assert kernel is not None
    figures = np.array([o.figure for o in observations])
    centre, scale = figures.mean(), figures.std()
    noise = kernel.k2.noise_level + np.array([o.variance for o in observations]) / scale**2
    regressor = GaussianProcessRegressor(kernel.k1, alpha=noise, optimizer=None)
    regressor.fit(features[[o.candidate for o in observations]], (figures - centre) / scale)
    mean, sd = regressor.predict(features, return_std=True)
    return centre + scale * mean, scale * sd


def close(found: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
    """Within a thousandth, for figures of which the spread is about 1."""
    assert found[0] == pytest.approx(wanted[0], abs=1e-3)
    assert found[1] == pytest.approx(wanted[1], abs=1e-3)


@pytest.mark.parametrize("n", [3, 40, 120])
def test_the_posterior_is_that_of_scikit_learn(n: int) -> None:
    features, observations = problem(n)
    model = AccuracyModel(features)
    close(model.posterior(observations), reference(model, features, observations))


def test_it_learns() -> None:
    features, observations = problem(80)
    mean, sd = AccuracyModel(features).posterior(observations)
    others = np.setdiff1d(np.arange(300), [o.candidate for o in observations])
    truth = np.sin(features[:, 0]) + 0.3 * features[:, 1] ** 2 - 1.5
    off = mean[others] - truth[others]
    assert np.abs(off).mean() < 0.3 * truth.std()
    assert 0.5 < np.sqrt(np.mean((off / sd[others]) ** 2)) < 2.0  # and knows how well


def test_grown_one_by_one_equals_made_at_once() -> None:
    features, observations = problem(59)
    grown = AccuracyModel(features)
    for n in range(50, 60):  # no fit between: fewer than a fifth more
        found = grown.posterior(observations[:n], pending=[0, 1])
    close(found, (reference(grown, features, observations)[0], found[1]))
    made = AccuracyModel(features)
    made._kernel, made._noise, made._n_at_fit = grown._kernel, grown._noise, 50
    made.retable(features)
    close(grown.posterior(observations), made.posterior(observations))


def test_stopped_trials_may_come_go_and_change_between_proposals() -> None:
    features, observations = problem(59)
    model = AccuracyModel(features)
    model.posterior(observations[:50])
    for n, figure, variance in ((51, -1.0, 0.2), (52, -1.2, 0.2), (54, -1.2, 0.1), (57, 0.0, 0.4)):
        unsure = [Observation(7, figure, variance), Observation(8, -1.0, 0.3)]
        shown = [*observations[:n], *unsure]
        close(model.posterior(shown), reference(model, features, shown))
    close(model.posterior(observations[:55]), reference(model, features, observations[:55]))
    swapped = [*observations[:53], observations[54], observations[53]]  # they finish in another order
    close(model.posterior(swapped), reference(model, features, swapped))


def test_what_is_pending_is_less_unknown_and_no_better() -> None:
    features, observations = problem(20)
    model = AccuracyModel(features)
    mean, sd = model.posterior(observations)
    pending = int(np.argmax(sd))
    mean_then, sd_then = model.posterior(observations, [pending, pending])
    np.testing.assert_array_equal(mean, mean_then)
    assert (sd_then <= sd + 1e-6).all() and sd_then[pending] < 0.8 * sd[pending]
    mean_after, sd_after = model.posterior(observations)
    np.testing.assert_array_equal(mean, mean_after)
    assert sd_after == pytest.approx(sd, abs=1e-5)


def test_a_variance_of_its_own_makes_an_observation_count_less() -> None:
    features, observations = problem(30)
    place = next(i for i in range(300) if i not in {o.candidate for o in observations})
    model = AccuracyModel(features)
    before, sd_before = model.posterior(observations)
    moved, left = [], []
    for variance in (0.0, 0.05, 1.0, 1e6):
        mean, sd = model.posterior([*observations, Observation(place, float(before[place]) + 1.0, variance)])
        moved.append(float(mean[place] - before[place]))
        left.append(float(sd[place]))
    assert moved[0] > moved[1] > moved[2] > abs(moved[3])
    assert left == sorted(left) and left[3] == pytest.approx(sd_before[place], rel=0.1)


def test_more_observations_than_predictions_rest_on() -> None:
    n = MOST_TRIALS + ROOM + 30
    features, observations = problem(n, n_candidates=700)
    model = AccuracyModel(features)
    model.posterior(observations[:MOST_TRIALS])
    fitted = model._kernel
    for k in (MOST_TRIALS + 1, MOST_TRIALS + 50, MOST_TRIALS + 95):
        mean, sd = model.posterior(observations[:k])
        latest = {o.candidate for o in observations[k - 40 : k]}
        assert latest <= {candidate for candidate, _ in model._rows}
        assert len(model._rows) <= MOST_TRIALS + ROOM
    assert model._kernel is fitted
    stopped = [Observation(i, 0.0, 0.5) for i in range(MOST_TRIALS)]
    model.posterior([*observations, *stopped])
    assert len(model._rows) <= MOST_TRIALS + ROOM + MOST_TRIALS // 5
    assert {o.candidate for o in observations[-40:]} <= {candidate for candidate, _ in model._rows}
    all_mean, all_sd = reference(model, features, observations)
    assert np.corrcoef(mean, all_mean)[0, 1] > 0.98 and sd.mean() < 2 * all_sd.mean()


def test_other_candidates_under_what_was_learnt() -> None:
    features, observations = problem(40)
    model = AccuracyModel(features)
    mean, sd = model.posterior(observations)
    order = np.random.default_rng(1).permutation(300)[:200]
    order = np.unique([*order, *(o.candidate for o in observations)])
    model.retable(features[order])
    there = [Observation(int(np.flatnonzero(order == o.candidate)[0]), o.figure) for o in observations]
    close(model.posterior(there), (mean[order], sd[order]))


@pytest.mark.parametrize("figure", [0.1, 0.0, -2.3])
def test_figures_that_are_all_the_same(figure: float) -> None:
    features, observations = problem(12)
    alike = [Observation(o.candidate, figure, 0.01 * (i % 2)) for i, o in enumerate(observations)]
    mean, sd = AccuracyModel(features).posterior(alike, [3])
    assert mean == pytest.approx(np.full(300, figure), abs=1e-6)
    assert np.isfinite(sd).all() and (sd > 0).all()
