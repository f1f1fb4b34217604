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
    feature predicts better from 80 trials on and worse from 30 (.996 against .995 of the hypervolume after 100 trials
    of the landscape in benchmarks/, at twice the time and more); a linear part or squared terms make no difference.
    """

    def __init__(self, features: Array):
        self._kernel: Kernel | None = None
        self._noise = 1.0
        self._n_at_fit = 0
        self._thinned: list[int] = []  # of more than MOST_TRIALS: those of the first `_n_thinned` that are kept
        self._n_thinned = 0
        self.retable(features)

    def retable(self, features: Array) -> None:
        """Other candidates from now on; what was learnt of the kernel stays."""
        self.features = features
        self._prior = np.ones(len(features)) if self._kernel is None else self._kernel.k1.diag(features)
        self._forget()

    def _forget(self) -> None:
        self._rows: list[tuple[int, float]] = []  # candidate and variance, in units of the kernel
        self._factor = np.zeros((0, 0))  # lower Cholesky factor of the observations' covariance, with room to grow
        self._solved = np.zeros((0, len(self.features)), dtype=np.float32)  # its solution for every candidate
        self._explained = np.zeros(len(self.features))

    def posterior(self, observations: Sequence[Observation], pending: Sequence[int] = ()) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free figure of every candidate -> (N,), (N,).

        `pending` candidates count as if they had come out at their mean: their surroundings are no longer unknown.
        What is quick to extend are the observations without a variance of their own; they had better come first.
        """
        figures = np.array([o.figure for o in observations])
        centre, scale = float(figures.mean()), float(figures.std())
        if scale <= 1e-12 * max(1.0, abs(centre)):  # one figure for all, but for rounding
            scale = 1.0
        if self._kernel is None or len(observations) >= REFIT * self._n_at_fit:
            self._fit_kernel(observations, centre, scale)
        used = self._used(observations)
        rows = [(o.candidate, o.variance / scale**2) for o in used]
        same = next(
            (i for i, (a, b) in enumerate(zip(self._rows, rows, strict=False)) if a != b),
            min(len(self._rows), len(rows)),
        )
        self._drop(len(self._rows) - same)
        self._append(rows[same:])
        n = len(rows)
        targets = (np.array([o.figure for o in used]) - centre) / scale
        weights = solve_triangular(self._factor[:n, :n], targets, lower=True)
        mean = weights.astype(np.float32) @ self._solved[:n]
        self._append([(index, 0.0) for index in pending])
        sd = np.sqrt(np.maximum(self._prior - self._explained, 1e-10))
        self._drop(len(pending))
        return centre + scale * mean.astype(float), scale * sd

    def _used(self, observations: Sequence[Observation]) -> list[Observation]:
        """The observations that predictions rest on: those with a variance of their own last, and of more than
        `MOST_TRIALS` the latest and of the earlier ones every so many, chosen anew each `ROOM` observations.
        """
        firm = [o for o in observations if not o.variance]
        loose = [o for o in observations if o.variance][-max(MOST_TRIALS - len(firm), MOST_TRIALS // 5) :]
        if len(firm) <= MOST_TRIALS:
            self._thinned, self._n_thinned = [], 0
            return [*firm, *loose]
        if not self._n_thinned <= len(firm) < self._n_thinned + ROOM:
            latest = MOST_TRIALS // 10
            early = np.linspace(0, len(firm) - latest - 1, MOST_TRIALS - latest).round().astype(int).tolist()
            self._thinned, self._n_thinned = [*early, *range(len(firm) - latest, len(firm))], len(firm)
        return [*(firm[i] for i in self._thinned), *firm[self._n_thinned :], *loose]

    def _fit_kernel(self, observations: Sequence[Observation], centre: float, scale: float) -> None:
        start = self._kernel or (
            ConstantKernel(1.0, (1e-3, 1e2)) * Matern(np.sqrt(self.features.shape[1]), (0.3, 1e2), nu=2.5)
            + WhiteKernel(1e-2, (1e-5, 1.0))
        )
        chosen = observations
        if len(observations) > MOST_FITTED:
            chosen = [observations[i] for i in np.linspace(0, len(observations) - 1, MOST_FITTED).round().astype(int)]
        figures = (np.array([o.figure for o in chosen]) - centre) / scale
        model = GaussianProcessRegressor(start, alpha=np.array([o.variance for o in chosen]) / scale**2 + JITTER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a hyperparameter at its bound is an answer too
            model.fit(self.features[[o.candidate for o in chosen]], figures)
        self._kernel, self._n_at_fit = model.kernel_, len(observations)
        self._noise = float(model.kernel_.k2.noise_level)
        self._prior = model.kernel_.k1.diag(self.features)
        self._forget()

    def _append(self, rows: Sequence[tuple[int, float]]) -> None:
        """More observations: rows of the factor, and of its solution for every candidate."""
        if not rows:
            return
        assert self._kernel is not None
        n, m = len(self._rows), len(rows)
        if n + m > len(self._factor):
            room = n + m + ROOM - len(self._factor)
            self._factor = np.pad(self._factor, (0, room))
            self._solved = np.pad(self._solved, ((0, room), (0, 0)))
        index = [candidate for candidate, _ in rows]
        smooth, new = self._kernel.k1, self.features[index]
        left = np.zeros((m, 0))
        own = smooth(new) + np.diag([self._noise + variance + JITTER for _, variance in rows])
        if n:
            known = self.features[[candidate for candidate, _ in self._rows]]
            left = solve_triangular(self._factor[:n, :n], smooth(known, new), lower=True).T
            own -= left @ left.T
        corner = cholesky(own, lower=True)
        inverse = solve_triangular(corner, np.eye(m), lower=True).astype(np.float32)
        narrow = left.astype(np.float32)
        for part in _blocks(len(self.features)):
            covariance = smooth(new, self.features[part]).astype(np.float32)
            self._solved[n : n + m, part] = inverse @ (covariance - narrow @ self._solved[:n, part])
        self._factor[n : n + m, :n], self._factor[n : n + m, n : n + m] = left, corner
        self._explained += np.square(self._solved[n : n + m]).sum(axis=0, dtype=float)
        self._rows += rows

    def _drop(self, count: int) -> None:
        """Forget the last observations."""
        if count:
            n = len(self._rows) - count
            self._explained -= np.square(self._solved[n : n + count]).sum(axis=0, dtype=float)
            del self._rows[n:]


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
