"""The forms that a scaling law may have: each a curve of ln(error) over the logarithms of a network's sizes.

Sizes stand relative to the largest one observed (width to 1), so that coefficients speak of the largest network: with
a power law of mult_adds, `c + a` is its error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mnet_search.studies.least_squares import Model
from mnet_search.studies.observations import VARIABLES
from mnet_search.studies.pareto import Array

BIGGEST_EXPONENT = 60.0  # of e, in the power law's term: far beyond any error, and no overflow
# Shares of the least error that the offset of a power law is searched from.
OFFSETS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97)


@dataclass(frozen=True)
class Form:
    """A law. `variables` are those that it has together, in order; empty where it has one, of any name.

    `names` gives the coefficients for so many variables; `model` the curve and its derivatives for the logarithms of
    the relative sizes (n, k); `starts` coefficients (B, p) to search from, `bounds` their least values; `reported`
    turns coefficients as searched (..., p) into coefficients as printed; `exponents` are the places of those whose
    being 0 means no law; `equation` words it for printed coefficients and relative sizes; `least_values` is how many
    different values a variable needs.
    """

    text: str
    model: Callable[[Array], Model]
    starts: Callable[[Array, Array], Array]
    names: Callable[[int], tuple[str, ...]]
    exponents: Callable[[int], tuple[int, ...]]
    equation: Callable[[Sequence[float], Sequence[str]], str]
    variables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # of `variables`: left out without a word where they do not vary
    least_values: int = 2
    offset: int | None = None  # the place of a coefficient that is bounded by 0
    reported: Callable[[Array], Array] = np.asarray


def relative(names: Sequence[str], references: Sequence[float]) -> tuple[str, ...]:
    """Sizes over their references in words: `width`, `resolution / 224`."""
    texts = zip(names, references, strict=True)
    return tuple(name if r == 1 else f"{name} / {VARIABLES[name].text(r)}" for name, r in texts)


# ---------------------------------------------------------------- ln(error) linear in the logarithms


def _linear_model(logs: Array) -> Model:
    design = np.column_stack([np.ones(len(logs)), logs])

    def model(theta: Array) -> tuple[Array, Array]:
        return theta @ design.T, np.broadcast_to(design, (len(theta), *design.shape))

    return model


def _least_squares(logs: Array, target: Array) -> Array:
    return np.linalg.lstsq(np.column_stack([np.ones(len(logs)), logs]), target, rcond=None)[0]


def _linear_starts(logs: Array, log_error: Array) -> Array:
    return _least_squares(logs, log_error)[np.newaxis]


def _letters(count: int) -> tuple[str, ...]:
    return tuple("abcdefgh"[: count + 1])


def _signed(values: Sequence[float], terms: Sequence[str]) -> str:
    return "".join(f" {'-' if value < 0 else '+'} {abs(value):.3g} {term}" for value, term in zip(values, terms))  # noqa: B905


def _log_equation(values: Sequence[float], sizes: Sequence[str]) -> str:
    return f"ln(error) = {values[0]:.3g}{_signed(values[1:], [f'ln({size})' for size in sizes])}"


# ---------------------------------------------------------------- error = a + b ln(x)


def _log_linear_model(logs: Array) -> Model:
    design = np.column_stack([np.ones(len(logs)), logs])

    def model(theta: Array) -> tuple[Array, Array]:
        error = theta @ design.T
        safe = np.where(error > 0, error, np.nan)
        return np.log(safe), design / safe[:, :, np.newaxis]

    return model


def _log_linear_starts(logs: Array, log_error: Array) -> Array:
    """The least-squares line, and a level one, which is defined wherever the errors are."""
    line = _least_squares(logs, np.exp(log_error))
    return np.array([line, [float(np.exp(log_error).mean()), 0.0]])


def _log_linear_equation(values: Sequence[float], sizes: Sequence[str]) -> str:
    return f"error = {values[0]:.3g}{_signed(values[1:], [f'ln({size})' for size in sizes])}"


# ---------------------------------------------------------------- error = c + a x^-b


def _power_model(logs: Array) -> Model:
    x = logs[:, 0]

    def model(theta: Array) -> tuple[Array, Array]:
        offset, scale, exponent = (theta[:, i, np.newaxis] for i in range(3))
        term = np.exp(np.clip(scale - exponent * x, -BIGGEST_EXPONENT, BIGGEST_EXPONENT))
        error = offset + term
        share = term / error
        return np.log(error), np.stack([1 / error, share, -share * x], axis=2)

    return model


def _power_starts(logs: Array, log_error: Array) -> Array:
    error = np.exp(log_error)
    starts = []
    for share in OFFSETS:
        offset = share * float(error.min())
        scale, slope = _least_squares(logs, np.log(error - offset))
        starts.append([offset, scale, -slope])
    return np.array(starts)


def _power_reported(theta: Array) -> Array:
    shown = np.array(theta, dtype=float)
    shown[..., 1] = np.exp(np.clip(shown[..., 1], -BIGGEST_EXPONENT, BIGGEST_EXPONENT))
    return shown


def _power_equation(values: Sequence[float], sizes: Sequence[str]) -> str:
    offset, scale, exponent = values
    size = sizes[0] if " " not in sizes[0] else f"({sizes[0]})"
    return f"error = {offset:.3g} + {scale:.3g} {size}^{-exponent:.3g}"


def _after_first(count: int) -> tuple[int, ...]:
    return tuple(range(1, count + 1))


# Add one here. `paper` is the law that Howard et al. (MobileNets, arXiv 1704.04861, figures 4 and 5) draw the data of;
# `power` that of Hestness et al. (arXiv 1712.00409, section 2) and Kaplan et al. (arXiv 2001.08361), with an offset.
FORMS = {
    "power": Form(
        "error = c + a x^-b, c >= 0",
        _power_model,
        _power_starts,
        names=lambda _: ("c", "a", "b"),
        exponents=lambda _: (2,),
        equation=_power_equation,
        least_values=3,
        offset=0,
        reported=_power_reported,
    ),
    "log_linear": Form(
        "error = a + b ln(x)",
        _log_linear_model,
        _log_linear_starts,
        names=_letters,
        exponents=_after_first,
        equation=_log_linear_equation,
    ),
    "log_log": Form(
        "ln(error) = a + b ln(x)",
        _linear_model,
        _linear_starts,
        names=_letters,
        exponents=_after_first,
        equation=_log_equation,
    ),
    "paper": Form(
        "ln(error) = a + b ln(width) + c ln(resolution) [+ d ln(depth)]",
        _linear_model,
        _linear_starts,
        names=_letters,
        exponents=_after_first,
        equation=_log_equation,
        variables=("width", "resolution", "depth"),
        optional=("depth",),
    ),
}
