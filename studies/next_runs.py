"""What a scaling law says of networks that are not trained, and which of them would make it most certain.

Suggestions are a greedy I-optimal design (Atkinson, Donev and Tobias, Optimum Experimental Designs, with SAS, 2007,
section 10.6): the networks that shrink the mean variance of the predicted accuracy over the space's networks most, by
the law's derivatives at its estimate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.tables import nearest
from mnet_search.spaces.schema import Range, Value
from mnet_search.spaces.space import Params, Space
from mnet_search.spaces.survey import survey
from mnet_search.studies.least_squares import LEAST_SD
from mnet_search.studies.observations import VARIABLES, matches
from mnet_search.studies.pareto import Array
from mnet_search.studies.scaling import LEVEL, Fit, Predicted

EDGE = 1e-9  # relative: rounding does not put a network outside of the trained range


@dataclass(frozen=True)
class Network:
    """A network of a space: its assignment, its id, its key in the study and its sizes by variable."""

    params: Params
    arch_id: str
    key: str
    sizes: Mapping[str, float]


@dataclass(frozen=True)
class Forecast:
    """Predictions of networks, with what lies beyond the trained range; `total` may be more than are shown."""

    networks: tuple[Network, ...]
    predicted: Predicted
    outside: tuple[tuple[str, ...], ...]
    total: int


@dataclass(frozen=True)
class Suggestion:
    """Networks to train next, the most telling first; the mean half-width of the 95 % interval of the predicted
    accuracy over the space's networks, in points (percent), now and as expected with them.
    """

    networks: tuple[Network, ...]
    points_before: float
    points_after: float
    n_space: int


def describe_network(space: Space, params: Params, names: Sequence[str]) -> Network:
    """A network with the sizes that a law needs. Raises MnetError where it does not have one."""
    arch = space.arch(params)
    return Network(params, arch.id, space.key(params, arch.id), _sizes(arch, names))


def _sizes(arch: Arch, names: Sequence[str]) -> dict[str, float]:
    found = {name: VARIABLES[name].of(arch) for name in names}
    missing = next((name for name, value in found.items() if not np.isfinite(value)), None)
    if missing:
        raise MnetError(f"a network of the family {arch.family} has no {missing}, which the law is of")
    return found


def space_networks(space: Space, names: Sequence[str], where: Mapping[str, Any]) -> list[Network]:
    """Every network within the space's budgets (a sample of a large space) that has the values of `where`."""
    found = []
    for key, (params, _) in survey(space).feasible.items():
        if _has(params, where, space):
            arch = space.arch(params)
            found.append(Network(params, arch.id, key, _sizes(arch, names)))
    return found


def _has(params: Params, where: Mapping[str, Any], space: Space) -> bool:
    known: dict[str, Any] = {"family": space.file.family, **params}
    return all(name in known and matches(known[name], value) for name, value in where.items())


def assignment(space: Space, given: Mapping[str, Any], where: Mapping[str, Any]) -> Params:
    """The whole assignment: what is given, then what `where` says, then values that have no alternative. A number may
    lie outside its parameter's values. Raises MnetError that names what is unknown, impossible or missing.
    """
    for name in given:
        if name not in space.parameters:
            known = ", ".join(space.parameters)
            raise MnetError(f"the space has no parameter {name!r}{nearest(name, space.parameters)} (it has: {known})")
    chosen: Params = {}
    for name, parameter in space.parameters.items():
        if not space.active(parameter, chosen):
            if name in given:
                conditions = " ".join(f"{other}={value}" for other, value in parameter.when.items())
                raise MnetError(f"{name}={given[name]}: it exists only where {conditions}")
            continue
        grid = parameter.grid()
        if name in given or name in where:
            chosen[name] = _possible(name, given.get(name, where.get(name)), parameter, grid)
        elif grid is not None and len(grid) == 1:
            chosen[name] = grid[0]
        else:
            several = ", ".join(map(str, grid)) if grid is not None else f"{parameter.min} to {parameter.max}"  # type: ignore[union-attr]
            raise MnetError(f"{name} is missing; give {name}=VALUE too, one of {several}")
    return chosen


def _possible(name: str, value: Any, parameter: Any, grid: list[Value] | None) -> Value:
    if isinstance(value, int | float) and not isinstance(value, bool):
        known = [v for v in grid or [] if isinstance(v, int | float) and not isinstance(v, bool)]
        if isinstance(parameter, Range) or known:
            return next((v for v in known if matches(v, value)), value)
    found = next((v for v in grid or [] if type(v) is type(value) and v == value), None)
    if found is None:
        raise MnetError(f"{name}={value} is not possible; its values are {', '.join(map(str, grid or []))}")
    return found


def outside(fit: Fit, sizes: Mapping[str, float]) -> tuple[str, ...]:
    """The variables in which a network lies beyond those that the law was fitted to, in words."""
    found = []
    for name in fit.variables:
        values = fit.observations.variables[name]
        low, high = float(values.min()), float(values.max())
        if not low * (1 - EDGE) <= sizes[name] <= high * (1 + EDGE):
            text = VARIABLES[name].text
            found.append(f"{name} {text(sizes[name])} is outside the trained range ({text(low)} to {text(high)})")
    return tuple(found)


def columns(networks: Sequence[Network], names: Sequence[str]) -> dict[str, Array]:
    """The sizes of networks as arrays, by variable."""
    return {name: np.array([network.sizes[name] for network in networks]) for name in names}


# ---------------------------------------------------------------- design


def suggest(fit: Fit, everywhere: Sequence[Network], taken: Collection[str], n: int) -> Suggestion:
    """The `n` networks of `everywhere` whose key is not in `taken` that make the law most certain over all of them.
    Fewer where there are no more. Raises MnetError for n < 1, and where there is none.
    """
    if n < 1:
        raise MnetError(f"--suggest {n}: ask for 1 network or more")
    free = [place for place, network in enumerate(everywhere) if network.key not in taken]
    if not free:
        raise MnetError("--suggest: every network of the space within its budgets is trained or being trained")
    sizes = columns(everywhere, fit.variables)
    error = fit.error(sizes)
    slope = fit.slope(fit.logs(sizes))
    shown = slope * error[:, np.newaxis]  # of accuracy
    noise = np.maximum(np.hypot(fit.tau, fit.observations.noise_of_a_run(np.minimum(error, 1.0))), LEAST_SD)
    steps = list(_greedy(slope, shown, noise, fit.covariance(), free, n))
    before = _half_width(shown, fit.covariance(), fit.freedom)
    after = _half_width(shown, steps[-1][1], fit.freedom + len(steps))
    chosen = [place for place, _ in steps]
    return Suggestion(tuple(everywhere[place] for place in chosen), 100 * before, 100 * after, len(everywhere))


def _greedy(
    slope: Array, shown: Array, noise: Array, covariance: Array, free: Sequence[int], n: int
) -> Iterator[tuple[int, Array]]:
    """One network after another with the covariance that there will be with it (Sherman and Morrison's formula)."""
    left = list(free)
    for _ in range(min(n, len(left))):
        reach = shown @ covariance @ slope[left].T  # (everywhere, left)
        own = np.einsum("li,ij,lj->l", slope[left], covariance, slope[left])
        gain = (reach**2).mean(0) / (noise[left] ** 2 + own)
        best = left.pop(int(np.argmax(gain)))
        along = covariance @ slope[best]
        covariance = covariance - np.outer(along, along) / (noise[best] ** 2 + slope[best] @ along)
        yield best, covariance


def _half_width(shown: Array, covariance: Array, freedom: int) -> float:
    variance = np.maximum(np.einsum("ni,ij,nj->n", shown, covariance, shown), 0.0)
    return float(student.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance).mean())
