"""Where the networks of a study cannot bear the law that was fitted to them: one sentence for each doubt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as f_distribution

from mnet_search.studies.observations import VARIABLES
from mnet_search.studies.pareto import Array
from mnet_search.studies.scaling import Fit

LEAST_SPAN = 2.0  # greatest over least value of a variable
FEW_LEFT = 3  # networks less coefficients
CLEAR = 0.01  # probability below which structure in the residuals is no chance, divided by what was looked at
COLLINEAR = 10.0  # variance inflation factor: Kutner et al., Applied Linear Statistical Models (5th ed.), section 10.5
AT_BOUND = 0.025  # share of the bootstrap on the offset's bound from which its interval begins there
PARAMETER_FIRST = 0.01  # a variable explains the residuals better where its p is less than this share of a parameter's
NOTHING = 1e-9


@dataclass(frozen=True)
class Explained:
    """What explains the residuals of a fit: `f` and `p` of the F-test of the further columns, and a sentence; `what` is
    a parameter of the space or a variable.
    """

    what: str
    parameter: bool
    f: float
    p: float
    text: str


def doubts(fit: Fit) -> tuple[str, ...]:
    """What speaks against the fit, the sample first; empty where nothing does."""
    found = [*fit.observations.notes, *_spans(fit), *_nothing_found(fit), *_offset(fit), *_left_out(fit)]
    return (*found, *_structure(fit), *_collinear(fit), *_few(fit))


def _spans(fit: Fit) -> Iterator[str]:
    for name in fit.variables:
        values = fit.observations.variables[name]
        span = float(values.max() / values.min())
        if span < LEAST_SPAN - NOTHING:
            ends = f"{VARIABLES[name].text(values.min())} to {VARIABLES[name].text(values.max())}"
            yield f"{name} spans a factor of {span:.3g} ({ends}), less than {LEAST_SPAN:g}: its law is a local one"


def _nothing_found(fit: Fit) -> Iterator[str]:
    exponents = fit.form.exponents(len(fit.variables))
    for place in exponents:
        c = fit.coefficients[place]
        if c.low <= 0 <= c.high:
            yield (
                f"the interval of {c.name}, {c.low:.3g} to {c.high:.3g}, holds 0: the networks show no effect of "
                f"{c.size or fit.variables[0]}"
            )


def _offset(fit: Fit) -> Iterator[str]:
    place = fit.form.offset
    if place is None:
        return
    c = fit.coefficients[place]
    if c.value <= NOTHING:
        yield f"the offset {c.name} runs to its bound of 0: without it, it is the form log_log"
    elif float((fit.draws[:, place] <= NOTHING).mean()) >= AT_BOUND:
        yield f"the offset {c.name}, 0 to {c.high:.3g}, is not distinguishable from 0: see log_log"


def _left_out(fit: Fit) -> Iterator[str]:
    left = fit.left_out
    if left.n == 0 or left.log_error >= left.mean_log_error:
        yield (
            f"networks left out are predicted no better than by the mean of the others ({left.log_error:.3g} against "
            f"{left.mean_log_error:.3g} in ln(error)): the law predicts nothing"
        )
    for label in left.decisive:
        yield f"{label} alone decides a coefficient: it cannot be left out, and the law is untested there"


def _few(fit: Fit) -> Iterator[str]:
    if fit.freedom < FEW_LEFT:
        yield f"{len(fit.observations)} networks for {len(fit.theta)} coefficients: {fit.freedom} left over"


def _collinear(fit: Fit) -> Iterator[str]:
    if len(fit.variables) < 2:
        return
    correlation = np.corrcoef(fit.logs(fit.observations.variables), rowvar=False)
    inflation = np.diag(np.linalg.inv(correlation))
    if inflation.max() > COLLINEAR:
        np.fill_diagonal(correlation, 0.0)
        first, second = sorted(np.unravel_index(np.argmax(np.abs(correlation)), correlation.shape))
        yield (
            f"{fit.variables[first]} and {fit.variables[second]} nearly vary together (correlation "
            f"{correlation[first, second]:.2f}): their coefficients can be traded for one another"
        )


# ---------------------------------------------------------------- structure in the residuals


def _structure(fit: Fit) -> Iterator[str]:
    tried = explanations(fit)
    # Of two that explain about as well, the parameter is what can be acted on.
    best = min(tried, key=lambda e: e.p * (PARAMETER_FIRST if e.parameter else 1.0), default=None)
    if best is not None and best.p < CLEAR / len(tried):
        yield f"{best.text} (F = {best.f:.3g}, p = {best.p:.2g}, of {len(tried)} things tried)"


def explanations(fit: Fit) -> list[Explained]:
    """What could explain the residuals, each tested as further columns of the law: another variable, curvature in one
    that it has, or a parameter whose values are apart from each other.
    """
    found = [*_variables(fit), *_parameters(fit)]
    return [e for e in found if e is not None]


def _variables(fit: Fit) -> Iterator[Explained | None]:
    for name, values in fit.observations.variables.items():
        if not np.isfinite(values).all() or len(np.unique(values)) < 3:
            continue
        logs = np.log(values)
        logs = logs - logs.mean()
        if name in fit.variables:
            bent = f"the residuals bend with {name}: the form does not follow the data over its whole range"
            yield _tested(fit, name, (logs**2)[:, np.newaxis], bent)
        else:
            direction = "grow" if float((fit.residuals * logs).sum()) > 0 else "fall"
            text = f"the residuals {direction} with {name}, which the law does not have"
            yield _tested(fit, name, logs[:, np.newaxis], text)


def _parameters(fit: Fit) -> Iterator[Explained | None]:
    for name, values in fit.observations.parameters.items():
        texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        groups = list(dict.fromkeys(texts))
        if len(groups) < 2 or len(groups) > len(texts) / 2:
            continue
        members = np.array([[text == group for group in groups] for text in texts], dtype=float)
        means = (members * fit.residuals[:, np.newaxis]).sum(0) / members.sum(0)
        apart = np.argsort(-means)
        ends = [*apart] if len(apart) <= 4 else [apart[0], apart[-1]]
        shown = [f"{name}={groups[i]} {means[i]:+.3f}" for i in ends]
        text = f"the residuals differ by {name} (mean in ln(error): {', '.join(shown)}): "
        if name in fit.variables:
            text += f"the form does not follow {name} over its whole range"
        else:
            text += f"one law for all mixes several; fit each, as with --where {name}={groups[int(apart[-1])]}"
        yield _tested(fit, name, members[:, 1:], text, parameter=True)


def _tested(fit: Fit, what: str, columns: Array, text: str, *, parameter: bool = False) -> Explained | None:
    """The F-test of further columns (n, q) beside the law's own derivatives; None where they add nothing new or too few
    networks are left.
    """
    observations = fit.observations
    root = 1 / np.sqrt(fit.tau**2 + observations.noise**2 + NOTHING)
    own = fit.slope(fit.logs(observations.variables)) * root[:, np.newaxis]
    target = fit.residuals * root
    basis = np.linalg.qr(own)[0]
    weighted = columns * root[:, np.newaxis]
    fresh = weighted - basis @ (basis.T @ weighted)
    size = np.linalg.norm(weighted, axis=0).max()
    left, singular, _ = np.linalg.svd(fresh, full_matrices=False)
    left = left[:, singular > 1e-6 * size]
    added = left.shape[1]
    freedom = len(target) - own.shape[1] - added
    target = target - basis @ (basis.T @ target)
    if added == 0 or freedom < 2:
        return None
    gained = float(((left.T @ target) ** 2).sum())
    rest = float((target**2).sum()) - gained
    if float((target**2).sum()) < NOTHING:
        return None
    f = (gained / added) / (rest / freedom) if rest > NOTHING * gained else math.inf
    return Explained(what, parameter, f, float(f_distribution.sf(f, added, freedom)), text)
