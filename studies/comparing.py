"""Studies side by side: what each has of the front that they have together, who is better at which budget, and how the
errors of all their networks are distributed.

Everything measured is known up to its noise (`noise.py`), so each answer is also given for draws of what the means
might be. The draws are about the means as measured, and the best of many networks is partly the luckiest: shares of
draws say how far noise may turn a comparison, not how likely the truth is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.spaces.identity import difference
from mnet_search.studies.noise import Noise, noise_of
from mnet_search.studies.pareto import EXACT, Array, hypervolume, non_dominated, reference_point

LEVEL = 0.95
DRAWS = 1000
BUDGETS = 5  # that are looked at where none are given
MOST_OBJECTIVES = 4  # of a hypervolume
UNEQUAL = 2  # times as many networks, from which on it is said
NORMAL_SD = (0.1587, 0.8413)  # one sd each way: few runs make heavy tails, whose own sd says nothing
QUANTILES = (0.0, 0.1, 0.5, 0.9)
# What is said of a study whose noise is not that between runs.
DOUBTS = {
    "sampling": "{name}: no network was repeated, so its intervals know of the sampling of validation images alone, "
    "and not of what a seed does",
    "unknown": "{name}: nothing tells the noise of its accuracies; search.repeats would",
}


@dataclass(frozen=True)
class StudyFrame:
    """One study as `frame.load` reads it. `guided`: its networks were chosen by what earlier ones came to, or ended
    early, so that they are no fair sample of its space.
    """

    name: str
    frame: pd.DataFrame
    objectives: Mapping[str, str]
    validation_images: int | None = None
    data_digest: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False
    limited: bool = False  # to the networks within limits


@dataclass(frozen=True)
class Volume:
    """What a study has of the hypervolume of all together (0 to 1), with its interval, and the share of draws in which
    it has the most (`best`).
    """

    study: str
    n_networks: int
    n_front: int
    share: float
    low: float
    high: float
    best: float


@dataclass(frozen=True)
class Entry:
    """The most accurate network of a study within a budget; `number` is that of its first trial."""

    study: str
    number: int
    accuracy: float
    standard_error: float
    cost: float
    wins: float  # share of the draws in which it is the most accurate of those compared


@dataclass(frozen=True)
class AtBudget:
    """The best of each study within one budget, the winner first; studies without a network within it are absent."""

    budget: float
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Errors:
    """The distribution of a study's errors (1 - accuracy), one a network: F(e) is `shares` at `errors`, both ascending
    (Radosavovic et al., arXiv 1905.13214, section 3.1). `quantiles` are at `QUANTILES`, the first the best.
    """

    study: str
    errors: tuple[float, ...]
    shares: tuple[float, ...]
    quantiles: tuple[float, ...]
    median_low: float
    median_high: float


@dataclass(frozen=True)
class Comparison:
    """Studies compared; `notes` say what limits the comparison."""

    objectives: Mapping[str, str]
    cost: str
    volumes: tuple[Volume, ...]
    budgets: tuple[AtBudget, ...]
    errors: tuple[Errors, ...]
    notes: tuple[str, ...]


def compare(
    studies: Sequence[StudyFrame],
    *,
    cost: str | None = None,
    budgets: Sequence[float] = (),
    n_draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare studies by the objectives that all have, and by accuracy within budgets of one cost: the first cost among
    the objectives, unless another is named. Raises MnetError where there is nothing to compare by.
    """
    if len(studies) < 2:
        raise MnetError("name two studies or more to compare; `mnet-search show STUDY` shows one")
    objectives = _common(studies)
    cost = _cost(studies, objectives, cost)
    if any(budget <= 0 for budget in budgets):
        raise MnetError(f"--at {', '.join(f'{b:g}' for b in budgets)}: budgets are numbers above 0, such as 1M,5M")
    by = {name: "maximize" if name == "accuracy" else "minimize" for name in ("accuracy", cost)}
    drawn = [_Drawn(study, objectives | by, n_draws, seed + place) for place, study in enumerate(studies)]
    for one, limited in zip(drawn, (study.limited for study in studies), strict=True):
        if not len(one.values):
            raise MnetError(
                f"study {one.name!r} has no finished network with {', '.join(objectives | by)}"
                + (" within --max" if limited else "; let it run on, or leave it out")
            )
    return Comparison(
        objectives=objectives,
        cost=cost,
        volumes=_volumes(drawn, objectives),
        budgets=tuple(_at(drawn, cost, budget) for budget in sorted(budgets) or _budgets(drawn, cost)),
        errors=tuple(_errors(study, one, seed) for study, one in zip(studies, drawn, strict=True)),
        notes=tuple(_notes(studies, objectives, [len(one.values) for one in drawn]))
        + tuple(one.doubt for one in drawn if one.doubt),
    )


class _Drawn:
    """The usable networks of a study: means (N, M) and draws (D, N, M), by the names of objectives."""

    def __init__(self, study: StudyFrame, objectives: Mapping[str, str], n_draws: int, seed: int):
        self.name = study.name
        self._names = list(objectives)
        noise: Noise = noise_of(study.frame, objectives, study.validation_images)
        self.numbers = noise.rows["number"].to_numpy()[noise.usable]
        self.values = noise.values[noise.usable]
        self.draws = noise.draws(n_draws, seed)
        self.doubt = DOUBTS.get(noise.sources["accuracy"], "").format(name=study.name)

    def means(self, names: Sequence[str]) -> Array:
        found: Array = self.values[:, self._columns(names)]
        return found

    def drawn(self, names: Sequence[str]) -> Array:
        found: Array = self.draws[:, :, self._columns(names)]
        return found

    def _columns(self, names: Sequence[str]) -> list[int]:
        return [self._names.index(name) for name in names]


def _volumes(drawn: Sequence[_Drawn], objectives: Mapping[str, str]) -> tuple[Volume, ...]:
    """Of each study the volume of its front, as a share of that of all fronts together, with one reference point. The
    draws are of the fronts' members as the means have them.
    """
    names, directions = list(objectives), list(objectives.values())
    means = [one.means(names) for one in drawn]
    masks = [non_dominated(values, directions) for values in means]
    point = reference_point(np.concatenate(means), directions)
    members = [one.drawn(names)[:, mask] for one, mask in zip(drawn, masks, strict=True)]
    whole = _shares([values[mask] for values, mask in zip(means, masks, strict=True)], directions, point)
    each = np.array([_shares([draws[i] for draws in members], directions, point) for i in range(len(members[0]))])
    low, high = np.quantile(each, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    most = each >= each.max(axis=1, keepdims=True) - 1e-12
    wins = (most / most.sum(axis=1, keepdims=True)).mean(axis=0)
    return tuple(
        Volume(
            one.name,
            len(one.values),
            int(mask.sum()),
            float(whole[i]),
            float(low[i]),
            float(high[i]),
            float(wins[i]),
        )
        for i, (one, mask) in enumerate(zip(drawn, masks, strict=True))
    )


def _shares(fronts: Sequence[Array], directions: Sequence[str], point: Array) -> list[float]:
    together = hypervolume(np.concatenate(fronts), directions, point)
    return [hypervolume(front, directions, point) / together if together else 0.0 for front in fronts]


def _at(drawn: Sequence[_Drawn], cost: str, budget: float) -> AtBudget:
    """Which of each study is the most accurate within a budget, by the means, and how often it is so by the draws."""
    found, draws = [], []
    for one in drawn:
        accuracy, spent = one.means(["accuracy", cost]).T
        within = np.flatnonzero(spent <= budget)
        if not len(within):
            continue
        best = within[np.lexsort((spent[within], -accuracy[within]))[0]]
        sample = one.drawn(["accuracy"])[:, best, 0]
        draws.append(sample)
        low, high = np.quantile(sample, NORMAL_SD)
        error = round(float(high - low) / 2, 12)
        found.append((one.name, int(one.numbers[best]), float(accuracy[best]), error, float(spent[best])))
    if not found:
        return AtBudget(budget, ())
    table = np.stack(draws, axis=1)
    most = table >= table.max(axis=1, keepdims=True)
    wins = (most / most.sum(axis=1, keepdims=True)).mean(axis=0)
    entries = [Entry(*each, wins=float(share)) for each, share in zip(found, wins, strict=True)]
    return AtBudget(budget, tuple(sorted(entries, key=lambda entry: -entry.accuracy)))


def _budgets(drawn: Sequence[_Drawn], cost: str) -> list[float]:
    """Budgets in even ratios, from the least that leaves each study a network to what the largest spends; of two
    digits.
    """
    spent = [one.means([cost])[:, 0] for one in drawn]
    least, most = max(each.min() for each in spent), max(each.max() for each in spent)
    if least >= most:
        return [float(most)]
    steps = np.geomspace(least, most, BUDGETS)
    return list(dict.fromkeys(_two_digits(step) for step in steps))


def _two_digits(value: float) -> float:
    """Rounded up, so that what it was made from stays within it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(round(value / unit, 9)) * unit:.6g}")


def _errors(study: StudyFrame, one: _Drawn, seed: int) -> Errors:
    errors = np.sort(1 - one.means(["accuracy"])[:, 0])
    resampled = np.random.default_rng(seed).choice(errors, (DRAWS, len(errors)))
    low, high = np.quantile(np.median(resampled, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Errors(
        study.name,
        tuple(float(error) for error in errors),
        tuple(float(share) for share in (np.arange(len(errors)) + 1) / len(errors)),
        tuple(float(value) for value in np.quantile(errors, QUANTILES)),
        float(low),
        float(high),
    )


def _common(studies: Sequence[StudyFrame]) -> dict[str, str]:
    first = studies[0]
    common = {
        name: direction
        for name, direction in first.objectives.items()
        if all(study.objectives.get(name) == direction or _counted(name, study) for study in studies)
    }
    if "accuracy" not in common or not all("accuracy" in study.frame.columns for study in studies):
        lacking = next((study for study in studies if study.objectives.get("accuracy") != "maximize"), first)
        raise MnetError(
            f"study {lacking.name!r} does not maximize accuracy (its objectives: {', '.join(lacking.objectives)}), and "
            "studies are compared by that; leave it out"
        )
    if len(common) < 2:
        common |= {"mult_adds": "minimize"}
    kept = [name for name in common if name != "accuracy"][: MOST_OBJECTIVES - 1]
    return {"accuracy": "maximize"} | {name: common[name] for name in kept}


def _counted(name: str, study: StudyFrame) -> bool:
    """Whether a study knows an objective of another one, since it is counted for every network."""
    return name in EXACT and name not in study.objectives


def _cost(studies: Sequence[StudyFrame], objectives: Mapping[str, str], asked: str | None) -> str:
    known = ["mult_adds", "params", "activations", "latency_ms"]
    if asked is None:
        return next((name for name in objectives if name in known), "mult_adds")
    if asked not in known:
        raise MnetError(f"--cost {asked}: no cost of a network{nearest(asked, known)} (known: {', '.join(known)})")
    lacking = [study.name for study in studies if study.frame[asked].isna().all()]
    if lacking:
        raise MnetError(f"--cost {asked}: study {lacking[0]!r} did not measure it; try mult_adds or params")
    return asked


def _notes(studies: Sequence[StudyFrame], objectives: Mapping[str, str], counts: Sequence[int]) -> list[str]:
    notes = []
    digests = {study.data_digest for study in studies}
    if len(digests) > 1:
        notes.append(
            "the studies were trained or validated on different images, so their accuracies differ for that too"
        )
    first = studies[0]
    for study in studies[1:]:
        changes = difference(dict(first.training), dict(study.training))
        if changes:
            notes.append(f"{study.name} was trained otherwise than {first.name} ({'; '.join(changes[:3])})")
    left_out = {name for study in studies for name in study.objectives} - set(objectives)
    if left_out:
        notes.append(
            f"compared by {', '.join(objectives)} alone; {', '.join(sorted(left_out))} is not known of every study, or "
            f"one too many for a hypervolume of {MOST_OBJECTIVES}"
        )
    if max(counts) >= UNEQUAL * min(counts):
        many, few = studies[int(np.argmax(counts))], studies[int(np.argmin(counts))]
        notes.append(
            f"{many.name} has {max(counts)} networks and {few.name} {min(counts)}: the best of more is luckier, which "
            "the draws do not know"
        )
    for study in studies:
        if study.guided:
            notes.append(
                f"{study.name}: its networks were chosen by a sampler that learns, or ended early, so its errors are "
                "those of what was trained and not of its space"
            )
    return notes
