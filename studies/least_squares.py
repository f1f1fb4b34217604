"""Weighted least squares of a curve with few coefficients, for many data sets at once, and the variance that is left.

A bootstrap and a leave-one-out are hundreds of fits of the same curve to a dozen points: they are done side by side,
as arrays of shape (fits, points, coefficients), in a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mnet_search.studies.pareto import Array

# The coefficients of B fits (B, p) -> the curve at n points (B, n), and its derivatives (B, n, p). A curve that is not
# defined for some coefficients gives NaN there.
Model = Callable[[Array], tuple[Array, Array]]

STEPS = 100
DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-4, 1e-12, 1e12
SMALLEST_GAIN = 1e-12  # relative fall of the sum of squares that is taken for none
LEAST_SD = 1e-6  # of an observation: without noise and lack of fit there would be nothing to weigh by
UNDEFINED = 1e100  # a residual where the curve is not defined
GRID = 41  # values of tau that are looked at in each of the rounds, each finer than the last
ROUNDS = 4
TURNS = 25  # of coefficients and tau by turns
SETTLED = 1e-7


def solve(model: Model, y: Array, weights: Array, start: Array, lower: Array) -> tuple[Array, Array]:
    """The coefficients that minimise sum(weights * (y - model)^2), for B fits at once: y and weights (B, n), start
    (B, p), `lower` (p,) a bound of each coefficient (-inf for none) -> the coefficients (B, p), the sums (B,).

    Levenberg and Marquardt's method with the steps cut at the bound; a coefficient that lies on it and would leave is
    held for that step. The sum is inf where the start itself is not defined.
    """
    theta = np.maximum(start, lower)
    damping = np.full(len(theta), DAMPING)
    value, slope = map(np.array, model(theta))
    loss = _loss(y, value, weights)
    going = np.isfinite(loss)
    for _ in range(STEPS):
        if not going.any():
            break
        rows = np.flatnonzero(going)
        step = _step(theta[rows], y[rows] - value[rows], slope[rows], weights[rows], damping[rows], lower)
        tried = np.maximum(theta[rows] + step, lower)
        new_value, new_slope = model(tried)
        new_loss = _loss(y[rows], new_value, weights[rows])
        better = new_loss <= loss[rows]
        gain = np.where(better, loss[rows] - np.where(better, new_loss, 0.0), np.inf)
        done = better & (gain <= SMALLEST_GAIN * loss[rows] + 1e-300)
        taken = rows[better]
        theta[taken], loss[taken] = tried[better], new_loss[better]
        value[taken], slope[taken] = new_value[better], new_slope[better]
        damping[rows] = np.clip(np.where(better, damping[rows] / 10, damping[rows] * 10), LEAST_DAMPING, MOST_DAMPING)
        going[rows] = ~done & ~(~better & (damping[rows] >= MOST_DAMPING))
    return theta, loss


def _loss(y: Array, value: Array, weights: Array) -> Array:
    residual = np.where(np.isfinite(value), np.clip(y - value, -UNDEFINED, UNDEFINED), UNDEFINED)
    loss = (weights * residual**2).sum(1)
    return np.where(loss < UNDEFINED, loss, np.inf)


def _step(theta: Array, residual: Array, slope: Array, weights: Array, damping: Array, lower: Array) -> Array:
    weighted = slope * weights[:, :, np.newaxis]
    normal = np.einsum("bni,bnj->bij", weighted, slope)
    downhill = np.einsum("bni,bn->bi", weighted, residual)
    held = (theta <= lower) & (downhill < 0)
    downhill = np.where(held, 0.0, downhill)
    normal = np.where(held[:, :, np.newaxis] | held[:, np.newaxis, :], 0.0, normal)
    diagonal = np.einsum("bii->bi", normal)
    scale = np.where(held, 1.0, np.maximum(diagonal, 1e-12 * diagonal.max(1, keepdims=True) + 1e-300))
    damped = normal + (damping[:, np.newaxis] * scale + held)[:, :, np.newaxis] * np.eye(theta.shape[1])
    # In units of each coefficient's own scale, so that none is lost to rounding beside the others.
    root = np.sqrt(scale)
    damped = damped / root[:, :, np.newaxis] / root[:, np.newaxis, :]
    step: Array = np.linalg.solve(damped, (downhill / root)[:, :, np.newaxis])[:, :, 0] / root
    return step


def variances(tau: float, noise: Array) -> Array:
    """The variance of each observation: lack of fit and known noise (n,) together."""
    found: Array = np.maximum(tau**2 + noise**2, LEAST_SD**2)
    return found


def fit_with_spread(
    model: Model, y: Array, noise: Array, starts: Array, lower: Array, *, restricted: bool
) -> tuple[Array, float, float]:
    """Maximum likelihood of y (n,) ~ N(model, tau^2 + noise^2) from several starts (B, p) -> coefficients (p,), tau, ln
    of the likelihood.

    `restricted` takes tau by the restricted likelihood (Patterson and Thompson, Biometrika 58, 1971), which allows for
    the coefficients that were fitted to the same data; the value that comes with it is not comparable between laws.
    """
    tau = 0.1  # where the noise differs between points, the first weights are nearly even
    theta = np.full(starts.shape[1], np.nan)
    for turn in range(TURNS):
        weights = 1 / variances(tau, noise)
        begin = starts if turn == 0 else theta[np.newaxis]
        found, losses = solve(model, _rows(y, begin), _rows(weights, begin), begin, lower)
        theta = found[np.argmin(losses)]
        value, slope = model(theta[np.newaxis])
        before, tau = tau, _spread(y - value[0], slope[0], noise, restricted=restricted)
        if abs(tau - before) <= SETTLED * (tau + before) or np.ptp(noise) == 0:
            break
    value, slope = model(theta[np.newaxis])
    return theta, tau, -float(_criterion(np.array([tau]), y - value[0], slope[0], noise, restricted=restricted)[0])


def _rows(values: Array, like: Array) -> Array:
    return np.broadcast_to(values, (len(like), len(values)))


def _spread(residual: Array, slope: Array, noise: Array, *, restricted: bool) -> float:
    """The tau of greatest likelihood, given the residuals (n,) and the curve's derivatives (n, p)."""
    left = max(1, len(residual) - slope.shape[1])
    most = 3 * float(np.sqrt((residual**2).sum() / left)) + LEAST_SD
    low, high = 0.0, most
    best = 0.0
    for _ in range(ROUNDS):
        grid = np.linspace(low, high, GRID)
        place = int(np.argmin(_criterion(grid, residual, slope, noise, restricted=restricted)))
        best = float(grid[place])
        low, high = grid[max(0, place - 1)], grid[min(GRID - 1, place + 1)]
    return best


def _criterion(taus: Array, residual: Array, slope: Array, noise: Array, *, restricted: bool) -> Array:
    """Minus the logarithm of the (restricted) likelihood at each tau (T,)."""
    variance = np.maximum(taus[:, np.newaxis] ** 2 + noise**2, LEAST_SD**2)  # (T, n)
    found: Array = 0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance).sum(1)
    if restricted:
        normal = np.einsum("tn,ni,nj->tij", 1 / variance, slope, slope)
        found = found + 0.5 * np.linalg.slogdet(normal)[1]
    return found


def covariance(slope: Array, variance: Array) -> Array:
    """Of the coefficients (p, p), from the derivatives (n, p) and the variances (n,) of the observations."""
    root = slope / np.sqrt(variance)[:, np.newaxis]
    found: Array = np.linalg.pinv(root.T @ root, hermitian=True)
    return found
