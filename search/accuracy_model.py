"""A Gaussian process of what training alone can tell: the error of a network, from what is known of it before.

scikit-learn fits the hyperparameters, now and then; predictions over all candidates are kept and extended by one row of
a Cholesky factor for each new trial, so that a proposal costs O(trials x candidates) and not O(trials^2 x candidates).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

Array = np.ndarray[Any, np.dtype[Any]]

MOST_FITTED = 160  # trials from which hyperparameters are taken
MOST_TRIALS = 500  # trials that predictions rest on; of more, a part
REFIT = 1.2  # hyperparameters are fitted anew each time there are so many times more trials
ROOM = 100  # observations for which there is room before memory moves
BLOCK = 4_000  # candidates whose covariances are made at once
JITTER = 1e-8


@dataclass(frozen=True)
class Observation:
    """What came of a candidate; `variance` is that of the figure beyond the noise that all share."""

    candidate: int
    figure: float
    variance: float = 0.0


class AccuracyModel:
    """The posterior of one figure over a table of candidates `features` (N, F), each column of unit variance.

    The kernel is one Matern 5/2 over all features, and noise; figures are standardised inside. A length for each
    feature, a linear part and squared terms were tried: they predict better from 80 trials on and worse from 30, and
    found no better fronts in 100 (benchmarks/searchers.py) at twice the time and more.
    """

    def __init__(self, features: Array):
        self._features = features
        self._kernel: Kernel | None = None
        self._noise = 1.0
        self._n_at_fit = self._n_seen = 0
        self._rows: list[Observation] = []
        self._factor = np.zeros((0, 0))  # lower Cholesky factor of the observations' covariance, with room to grow
        self._solved = np.zeros((0, len(features)), dtype=np.float32)  # its solution for every candidate
        self._explained = np.zeros(len(features))
        self._prior = np.ones(len(features))

    def retable(self, features: Array) -> None:
        """Other candidates from now on; what was learnt of the kernel stays."""
        self._features, self._rows = features, []
        if self._kernel is not None:
            self._prior = self._kernel.k1.diag(features)

    def posterior(self, observations: Sequence[Observation], pending: Sequence[int] = ()) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free figure of every candidate -> (N,), (N,).

        `pending` candidates count as if they had come out at their mean: their surroundings are no longer unknown.
        """
        figures = np.array([o.figure for o in observations])
        centre, scale = float(figures.mean()), float(figures.std()) or 1.0
        if self._kernel is None or len(observations) >= REFIT * self._n_at_fit:
            self._fit_kernel(observations, centre, scale)
        n = len(self._rows)
        kept = self._rows == list(observations[:n]) if len(observations) <= MOST_TRIALS else n > 0
        new = observations[n:] if len(observations) <= MOST_TRIALS else observations[self._n_seen :]
        if n and kept and n + len(new) <= MOST_TRIALS + ROOM:
            for observation in new:
                self._append(observation, scale)
        else:
            self._rebuild(_spread(observations), scale)
        self._n_seen = len(observations)
        targets = (np.array([o.figure for o in self._rows]) - centre) / scale
        n = len(self._rows)
        weights = solve_triangular(self._factor[:n, :n], targets, lower=True)
        mean = weights.astype(np.float32) @ self._solved[:n]
        for index in pending:
            self._append(Observation(index, 0.0), scale)
        sd = np.sqrt(np.maximum(self._prior - self._explained, 1e-10))
        self._drop(len(pending))
        return centre + scale * mean.astype(float), scale * sd

    def _fit_kernel(self, observations: Sequence[Observation], centre: float, scale: float) -> None:
        start = self._kernel or (
            ConstantKernel(1.0, (1e-3, 1e2)) * Matern(np.sqrt(self._features.shape[1]), (0.3, 1e2), nu=2.5)
            + WhiteKernel(1e-2, (1e-5, 1.0))
        )
        chosen = observations
        if len(observations) > MOST_FITTED:
            chosen = [observations[i] for i in np.linspace(0, len(observations) - 1, MOST_FITTED).round().astype(int)]
        figures = (np.array([o.figure for o in chosen]) - centre) / scale
        model = GaussianProcessRegressor(start, alpha=np.array([o.variance for o in chosen]) / scale**2 + JITTER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a hyperparameter at its bound is an answer too
            model.fit(self._features[[o.candidate for o in chosen]], figures)
        self._kernel, self._n_at_fit = model.kernel_, len(observations)
        self._noise = float(model.kernel_.k2.noise_level)
        self._prior = model.kernel_.k1.diag(self._features)
        self._rows = []

    def _rebuild(self, observations: list[Observation], scale: float) -> None:
        """Factor and solution from nothing, after the kernel has changed."""
        assert self._kernel is not None
        index = [o.candidate for o in observations]
        smooth = self._kernel.k1
        variances = np.array([self._noise + o.variance / scale**2 + JITTER for o in observations])
        n = len(index)
        room = n + ROOM
        self._factor = np.zeros((room, room))
        self._factor[:n, :n] = cholesky(smooth(self._features[index]) + np.diag(variances), lower=True)
        inverse = solve_triangular(self._factor[:n, :n], np.eye(n), lower=True).astype(np.float32)
        self._solved = np.zeros((room, len(self._features)), dtype=np.float32)
        for part in np.array_split(np.arange(len(self._features)), max(1, len(self._features) // BLOCK)):
            self._solved[:n, part] = inverse @ smooth(self._features[index], self._features[part]).astype(np.float32)
        self._explained = np.square(self._solved[:n]).sum(axis=0).astype(float)
        self._rows = list(observations)

    def _append(self, observation: Observation, scale: float) -> None:
        """One more observation: a row of the factor, and of its solution for every candidate."""
        assert self._kernel is not None
        n = len(self._rows)
        if n == len(self._factor):
            self._factor = np.pad(self._factor, (0, ROOM))
            self._solved = np.pad(self._solved, ((0, ROOM), (0, 0)))
        covariance = self._kernel.k1(self._features[[observation.candidate]], self._features)[0]
        known = [o.candidate for o in self._rows]
        left = solve_triangular(self._factor[:n, :n], covariance[known], lower=True) if n else np.zeros(0)
        own = covariance[observation.candidate] + self._noise + observation.variance / scale**2 + JITTER
        corner = np.sqrt(max(own - left @ left, 1e-10))
        self._factor[n, :n], self._factor[n, n] = left, corner
        self._solved[n] = (covariance - left.astype(np.float32) @ self._solved[:n]) / corner
        self._explained += np.square(self._solved[n])
        self._rows.append(observation)

    def _drop(self, count: int) -> None:
        """Forget the last observations."""
        for _ in range(count):
            self._rows.pop()
            self._explained -= np.square(self._solved[len(self._rows)])


def _spread(observations: Sequence[Observation]) -> list[Observation]:
    """All of them, or `MOST_TRIALS`: the latest tenth and of the earlier ones every so many."""
    if len(observations) <= MOST_TRIALS:
        return list(observations)
    latest = MOST_TRIALS // 10
    early = np.linspace(0, len(observations) - latest - 1, MOST_TRIALS - latest).round().astype(int)
    return [observations[i] for i in early] + list(observations[-latest:])
