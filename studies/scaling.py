"""Scaling laws fitted to a study: error as a function of a network's size, with the uncertainty of all that is said.

ln(error) of network i is taken as normal about the law with the variance tau^2 + s_i^2: s_i, the known noise of its
mean, from repeats or from the number of validation images, and tau, the lack of fit, estimated. Laws are fitted by
maximum likelihood and compared by AICc (Hurvich and Tsai, Biometrika 76, 1989). Intervals are from a parametric
bootstrap in which the scale of the errors is drawn as well, so that they are as wide as Student's t asks for where few
networks are left over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup, nearest
from mnet_search.studies.laws import FORMS, Form, relative
from mnet_search.studies.least_squares import covariance, fit_with_spread, solve, variances
from mnet_search.studies.observations import VARIABLES, Observations, check_errors, tell_apart
from mnet_search.studies.pareto import Array

DRAWS = 500
LEVEL = 0.95
LEFT_OVER = 2  # networks more than coefficients, at least
CERTAIN = 1 - 1e-6  # a leverage above it: the network alone decides a coefficient
NO_ERROR = -30.0  # ln(error) that stands for none


@dataclass(frozen=True)
class Coefficient:
    """A coefficient with its 95 % interval; `size` is the variable that it belongs to, None for a, c of a curve."""

    name: str
    size: str | None
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LeftOut:
    """How well networks are predicted that the law was not fitted to: root mean squares over n, in ln(error) and in
    points of accuracy (percent), beside those of the mean of the others. `decisive` networks (by label) alone decide a
    coefficient; they cannot be left out and do not count.
    """

    log_error: float
    points: float
    mean_log_error: float
    mean_points: float
    n: int
    decisive: tuple[str, ...]


@dataclass(frozen=True)
class Predicted:
    """Accuracies (m,) as fractions, with the intervals of the mean over runs and of one new run."""

    accuracy: Array
    low: Array
    high: Array
    run_low: Array
    run_high: Array


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. `theta` are the coefficients as they were searched, `draws` (B, p) those of the bootstrap and
    `spread` (B,) its lack of fit; `residuals` (n,) are of ln(error), observed less fitted. `r2` is of ln(error);
    `aicc` is inf where there are too few networks for it.
    """

    form_name: str
    variables: tuple[str, ...]
    references: tuple[float, ...]
    observations: Observations
    theta: Array
    coefficients: tuple[Coefficient, ...]
    tau: float
    fitted: Array
    residuals: Array
    r2: float
    aicc: float
    left_out: LeftOut
    draws: Array
    spread: Array
    seed: int

    @property
    def form(self) -> Form:
        return lookup(FORMS, self.form_name, "form")

    @property
    def equation(self) -> str:
        values = [c.value for c in self.coefficients]
        return self.form.equation(values, relative(self.variables, self.references))

    @property
    def freedom(self) -> int:
        """Networks less coefficients."""
        return len(self.observations) - len(self.theta)

    def logs(self, sizes: Mapping[str, Array]) -> Array:
        """The relative sizes' logarithms (m, k). Raises MnetError for a variable that is missing."""
        return _logs(sizes, self.variables, self.references)

    def slope(self, logs: Array) -> Array:
        """The derivatives of ln(error) by the coefficients (m, p), at the estimate."""
        return np.nan_to_num(self.form.model(logs)(self.theta[np.newaxis])[1][0])

    def covariance(self) -> Array:
        """Of the coefficients as they were searched, to first order (p, p)."""
        weights = variances(self.tau, self.observations.noise)
        return covariance(self.slope(self.logs(self.observations.variables)), weights)

    def error(self, sizes: Mapping[str, Array]) -> Array:
        """The law's errors (m,) for sizes by name, each (m,)."""
        found: Array = np.exp(_defined(self.form.model(self.logs(sizes))(self.theta[np.newaxis])[0][0]))
        return found

    def predict(self, sizes: Mapping[str, Array]) -> Predicted:
        """Accuracies for sizes by name, each (m,), with 95 % intervals."""
        model = self.form.model(self.logs(sizes))
        centre, means = _defined(model(self.theta[np.newaxis])[0][0]), _defined(model(self.draws)[0])
        noise = np.hypot(self.observations.noise_of_a_run(np.exp(np.minimum(means, 0.0))), self.spread[:, np.newaxis])
        runs = means + noise * np.random.default_rng([self.seed, 1]).standard_normal(means.shape)
        low, high = _interval(_accuracy(means))
        run_low, run_high = _interval(_accuracy(runs))
        return Predicted(_accuracy(centre), low, high, run_low, run_high)


@dataclass(frozen=True)
class Refused:
    """A form of these variables that the networks do not support, and why; `lacking` is how far they are from it: the
    networks and the different values that are missing at least.
    """

    form: str
    variables: tuple[str, ...]
    reason: str
    lacking: int = 1


def fit(observations: Observations, form: str, x: str | None = None, *, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Fit one form, of the variable `x` where it has one. `paper` leaves out a depth that does not vary, unless `x`
    names it.

    Raises MnetError for names that are not known, where a variable has too few different values, where there are fewer
    than two networks more than coefficients, and where all errors are one.
    """
    law = lookup(FORMS, form, "form")
    check_errors(observations)
    if draws < 100:
        raise MnetError(f"--draws {draws}: the ends of a 95 % interval need 100 draws or more; try {DRAWS}")
    return _fit(observations, form, _variables(observations, form, law, x), draws, seed)


def fit_all(
    observations: Observations,
    form: str | None = None,
    x: str | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[list[Fit], list[Refused]]:
    """Every form and variable that the networks support (or those of one form, or of one variable alone), best first by
    AICc and then by the leave-one-out error; and those that they do not, with the reason. Raises MnetError where all
    errors are one.
    """
    check_errors(observations)
    fits, refused = [], []
    for name, law in FORMS.items():
        if form not in (None, name) or (law.variables and x is not None):
            continue
        for variable in (None,) if law.variables else observations.variables:
            if x not in (None, variable):
                continue
            try:
                chosen = _variables(observations, name, law, variable, strict=False)
                fits.append(_fit(observations, name, chosen, draws, seed))
            except MnetError as error:
                reason = str(error).partition(": ")[2] or str(error)
                names = (variable,) if variable else law.variables
                refused.append(Refused(name, names, reason, _lacking(observations, law, names)))
    return sorted(fits, key=lambda found: (found.aicc, found.left_out.log_error)), refused


def check_variable(name: str) -> None:
    """Raises MnetError for a variable that is not known."""
    if name not in VARIABLES:
        raise MnetError(f"unknown variable {name!r}{nearest(name, VARIABLES)} (known: {', '.join(VARIABLES)})")


# ---------------------------------------------------------------- what can be fitted


def _lacking(observations: Observations, law: Form, names: Sequence[str]) -> int:
    values = [max(law.least_values - observations.n_values(n), 0) for n in names if n not in law.optional]
    networks = len(law.names(len(values))) + LEFT_OVER - len(observations)
    return max(sum(values) + max(networks, 0), 1)


def _variables(
    observations: Observations, form: str, law: Form, x: str | None, *, strict: bool = True
) -> tuple[str, ...]:
    """The variables of a fit. Raises MnetError where one of them has too few values."""
    if x is not None:
        check_variable(x)
    if not law.variables:
        if x is None:
            raise MnetError(f"fit {form}: which variable? give --x, one of {', '.join(VARIABLES)}")
        _needs_values(observations, form, x, law.least_values)
        return (x,)
    if x is not None and x not in law.variables:
        raise MnetError(
            f"fit {form}: it has {', '.join(law.variables)} and no {x}; fit {x} by another form: --form log_log --x {x}"
        )
    varying = tuple(name for name in law.variables if observations.n_values(name) >= law.least_values)
    if strict:
        for name in law.variables:
            if name not in varying and (name == x or name not in law.optional):
                _needs_values(observations, form, name, law.least_values)
    if len(varying) < 2:
        alone = f"{varying[0]} alone varies: see log_log" if varying else "no variable has two different values"
        raise MnetError(f"fit {form}: {alone}")
    return varying


def _needs_values(observations: Observations, form: str, name: str, least: int) -> None:
    found = observations.n_values(name)
    if found >= least:
        return
    values = observations.variables.get(name)
    if values is None or not np.isfinite(values).all():
        raise MnetError(f"fit {form}: not every network has a {name}; fit another variable, or choose by --where")
    seen = ", ".join(VARIABLES[name].text(value) for value in np.unique(values))
    others = [other for other in VARIABLES if observations.n_values(other) >= 2]
    instead = f", or fit what varies: --form log_log --x {others[0]}" if others else ""
    raise MnetError(
        f"fit {form}: {name} has {'one value' if found == 1 else f'{found} different values'}, {seen}, in the "
        f"{len(observations)} finished network{'s' * (len(observations) != 1)}, and {least} different values or more "
        f"are needed; train networks of another {name}{instead}"
    )


def _logs(sizes: Mapping[str, Array], names: Sequence[str], references: Sequence[float]) -> Array:
    missing = [name for name in names if name not in sizes]
    if missing:
        raise MnetError(f"the law has {', '.join(names)}: give {', '.join(missing)} too")
    columns = [np.log(np.asarray(sizes[name], dtype=float) / r) for name, r in zip(names, references, strict=True)]
    return np.column_stack(columns)


def _fit(observations: Observations, form: str, variables: tuple[str, ...], draws: int, seed: int) -> Fit:
    law: Form = lookup(FORMS, form, "form")
    names = law.names(len(variables))
    n, p = len(observations), len(names)
    if n < p + LEFT_OVER:
        more = p + LEFT_OVER - n
        fewer = ", or fit a form with fewer coefficients (--form log_log)" if p > 2 else ""
        raise MnetError(
            f"fit {form}: {n} finished network{'s' * (n != 1)} and {p} coefficients; at least {more} more "
            f"{'is' if more == 1 else 'are'} needed, since a fit to fewer than {p + LEFT_OVER} says nothing of its "
            f"error; train more{fewer}"
        )
    references = tuple(VARIABLES[v].reference or float(observations.variables[v].max()) for v in variables)
    logs = _logs(observations.variables, variables, references)
    tell_apart(form, variables, logs)
    y, noise = observations.log_error, observations.noise
    model, lower = law.model(logs), np.full(p, -np.inf)
    if law.offset is not None:
        lower[law.offset] = 0.0
    starts = law.starts(logs, y)
    theta, tau, _ = fit_with_spread(model, y, noise, starts, lower, restricted=True)
    _, _, likelihood = fit_with_spread(model, y, noise, starts, lower, restricted=False)
    value, slope = model(theta[np.newaxis])
    fitted, residuals = value[0], y - value[0]
    drawn, spread = _bootstrap(observations, law, logs, theta, tau, lower, draws, seed)
    total = float(((y - y.mean()) ** 2).sum())
    shown = law.reported(theta)
    low, high = _interval(law.reported(drawn))
    sizes = [None] * (p - len(variables)) + list(variables)
    return Fit(
        form_name=form,
        variables=variables,
        references=references,
        observations=observations,
        theta=theta,
        coefficients=tuple(
            Coefficient(*row) for row in zip(names, sizes, shown.tolist(), low.tolist(), high.tolist(), strict=True)
        ),
        tau=tau,
        fitted=fitted,
        residuals=residuals,
        r2=1 - float((residuals**2).sum()) / total if total > 0 else math.nan,
        aicc=_aicc(likelihood, n, p + 1),
        left_out=_leave_one_out(observations, law, logs, theta, tau, lower, slope[0]),
        draws=drawn,
        spread=spread,
        seed=seed,
    )


def _aicc(likelihood: float, n: int, k: int) -> float:
    return 2 * k - 2 * likelihood + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf


def _bootstrap(
    observations: Observations,
    law: Form,
    logs: Array,
    theta: Array,
    tau: float,
    lower: Array,
    draws: int,
    seed: int,
) -> tuple[Array, Array]:
    """Coefficients fitted to drawn observations (B, p), and the lack of fit that each was drawn with (B,)."""
    rng = np.random.default_rng(seed)
    n, noise = len(observations), observations.noise
    model = law.model(logs)
    freedom = observations.noise_freedom
    known = np.sqrt(freedom / rng.chisquare(freedom, draws)) if math.isfinite(freedom) else np.ones(draws)
    mean_noise = float((noise**2).mean())
    # The residuals tell the sum of both variances, with an error of its own: what of it is not known noise is spread.
    left, centre = n - len(theta), model(theta[np.newaxis])[0]
    residual = observations.log_error - centre[0]
    seen = tau**2 + mean_noise if tau > 0 else float((residual**2).sum()) / left
    whole = seen * left / rng.chisquare(left, draws)
    spread = np.sqrt(np.maximum(whole - mean_noise, 0.0))
    sd = np.sqrt((known[:, np.newaxis] * noise) ** 2 + spread[:, np.newaxis] ** 2)
    y = centre + sd * rng.standard_normal((draws, n))
    weights = np.broadcast_to(1 / variances(tau, noise), y.shape)
    found, loss = solve(model, y, weights, np.broadcast_to(theta, (draws, len(theta))).copy(), lower)
    if law.offset is not None:  # a curve may have a second best: look from the other end as well
        starts = law.starts(logs, observations.log_error)
        for start in (starts[0], starts[len(starts) // 2]):
            other, other_loss = solve(model, y, weights, np.broadcast_to(start, found.shape).copy(), lower)
            found = np.where((other_loss < loss)[:, np.newaxis], other, found)
            loss = np.minimum(loss, other_loss)
    return found, spread


def _leave_one_out(
    observations: Observations, law: Form, logs: Array, theta: Array, tau: float, lower: Array, slope: Array
) -> LeftOut:
    """Refit without each network, all at once: its weight is 0."""
    n, y = len(observations), observations.log_error
    precision = 1 / variances(tau, observations.noise)
    weighted = slope * np.sqrt(precision)[:, np.newaxis]
    leverage = np.einsum("ni,ij,nj->n", weighted, np.linalg.pinv(weighted.T @ weighted, hermitian=True), weighted)
    usable = leverage < CERTAIN
    weights = precision * (1 - np.eye(n))
    found, _ = solve(law.model(logs), np.broadcast_to(y, (n, n)), weights, np.tile(theta, (n, 1)), lower)
    predicted = np.diagonal(law.model(logs)(found)[0])
    usable &= np.isfinite(predicted)
    means = (y.sum() - y) / (n - 1)
    observed = np.exp(y)

    def points(predictions: Array) -> float:
        error = np.exp(np.minimum(predictions, 0.0))
        return 100 * _rms((error - observed)[usable])

    return LeftOut(
        log_error=_rms((predicted - y)[usable]),
        points=points(np.where(usable, predicted, y)),
        mean_log_error=_rms((means - y)[usable]),
        mean_points=points(means),
        n=int(usable.sum()),
        decisive=tuple(label for label, use in zip(observations.labels, usable, strict=True) if not use),
    )


def _rms(values: Array) -> float:
    return math.sqrt(float((values**2).mean())) if len(values) else math.nan


def _defined(log_error: Array) -> Array:
    """A straight line of errors falls below 0 somewhere: from there on the law says that there are none."""
    return np.where(np.isfinite(log_error), log_error, NO_ERROR)


def _accuracy(log_error: Array) -> Array:
    found: Array = 1 - np.exp(np.minimum(log_error, 0.0))
    return found


def _interval(values: Array) -> tuple[Array, Array]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
