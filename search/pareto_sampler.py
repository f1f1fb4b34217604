"""The sampler that knows what networks cost: it models accuracy alone, and integrates the expected gain in hypervolume
over exact costs.

It is an Optuna sampler and works without the rest of a search:

    study = optuna.create_study(directions=list(space.file.objectives.values()), sampler=ParetoSampler(space))
    study.optimize(lambda trial: my_values(suggest(space, trial)))

A proposal follows from the space, the trials of the study, the seed, and (for the hyperparameters of the model) when
they were fitted last.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sklearn.linear_model import Ridge

from mnet_search.models.arch import MnetError
from mnet_search.search.accuracy_model import AccuracyModel, Observation
from mnet_search.search.candidates import Candidates
from mnet_search.search.distributions import SpaceSampler
from mnet_search.search.gain import expected_gain
from mnet_search.spaces.schema import COST_NAMES
from mnet_search.spaces.space import Params, Space
from mnet_search.studies.pareto import non_dominated

Array = np.ndarray[Any, np.dtype[Any]]
Figures = Mapping[str, Sequence[float]]

FIRST_QUANTILES = (0.5, 0.05, 0.95, 0.25, 0.75)  # of the costs: where the first trials are taken
QUANTILE_WIDTH = 0.04  # either side
LEAST_TRIALS = 3  # finished, before the model is asked
LEAST_PAIRS = 4  # finished trials with a curve, before those that were stopped early tell anything
LEAST_TIMED = 6  # finished trials, before latency is predicted from them and not from mult-adds
LEAST_ERROR = 1e-3  # an accuracy of 1 has no logarithm of the error
MOST_COSTS = 4
BEST_KEPT = 1_000  # candidates of a large space that stay for the next proposal
# User attributes of a trial: {epoch: figure}, and whether another study trained it.
CURVE, OTHER_STUDY = "curve", "other_study"


class ParetoSampler(SpaceSampler):
    """Proposes the network with the largest expected gain in hypervolume, among those that no trial has trained.

    One objective is learnt: accuracy or validation_loss, by the logarithm of the error, or one of the user's own. All
    others are costs, known before training; latency_ms is predicted from the trials that were timed. Costs count by
    their logarithm, as fronts are drawn. Running trials count as if they had come out as predicted; trials stopped
    early count by what their last accuracy says of the final one, with the error of that as noise, and never as
    members of the front.
    """

    def __init__(self, space: Space, seed: int = 0, *, scores: Callable[[Candidates], Figures] | None = None):
        """`space` is fitted to its data; `scores` gives further figures of each candidate, by key, to learn from.

        Raises MnetError where not exactly one objective is to be learnt, there are more than four costs, or no network
        is within the budgets.
        """
        super().__init__(space, seed)
        learnt = learnt_objective(space)
        self._learnt = list(space.file.objectives).index(learnt)
        self._figure = figure_of(learnt, space.file.objectives[learnt])
        self._candidates = Candidates(space, seed)
        if not len(self._candidates):
            raise MnetError(f"no network of the space {space.name} was found within its constraints; raise the budgets")
        self._further = scores
        self._model: AccuracyModel | None = None
        self._table: Array | None = None  # features of the candidates
        self._gains = np.zeros(0)  # of the last proposal
        self._given: dict[int, Params] = {}  # by the number of a trial whose parameters may not be stored yet
        self._lock = threading.Lock()  # Optuna asks from several threads where n_jobs says so

    def choose(self, study: optuna.Study, trial: FrozenTrial) -> Params:
        """The parameters of the best candidate."""
        with self._lock:
            chosen = self._candidates.rows[self._best(study, trial)].params
            self._given[trial.number] = chosen
        return chosen

    def _best(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """The index of the candidate to train next."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and self._params(t)]
        known = self._read(trials)
        n_begun = len(known.taken | known.held | {o.candidate for o in known.told})
        drawing = n_begun < len(FIRST_QUANTILES) or len(known.told) < LEAST_TRIALS
        if not (self._candidates.whole or drawing):
            self._renew(known, trial.number)
            known = self._read(trials)
        free = np.ones(len(self._candidates), dtype=bool)
        free[list(known.taken)] = False
        fresh = free.copy()
        fresh[list(known.held)] = False
        if not free.any():
            return 0  # all are known: whoever asks sees it
        costs = self._costs(trials)
        if drawing:
            return self._first(n_begun, costs, fresh if fresh.any() else free)
        features = self._features()
        if self._model is None:
            self._model = AccuracyModel(features)
        elif self._model.features is not features:
            self._model.retable(features)
        mean, sd = self._model.posterior([*known.told, *known.stopped], known.pending)
        there = np.array(sorted(known.there), dtype=int)
        gains = expected_gain(
            mean,
            sd,
            costs,
            self._figure.error(mean[there]),
            costs[there],
            np.full(costs.shape[1], 1.1),
            worst_error=self._worst(mean[[*there, *(o.candidate for o in known.told)]]),
            logarithmic=self._figure.logarithmic,
        )
        self._gains = gains
        return int(np.argmax(np.where(free, gains, -1.0)))

    def _params(self, trial: FrozenTrial) -> Params:
        """A trial's parameters: those that it was given, while they are stored one by one."""
        if trial.state != TrialState.RUNNING:
            self._given.pop(trial.number, None)
        return self._given.get(trial.number, trial.params)

    def _worst(self, figures: Array) -> float:
        """The error from which volumes are measured: a tenth of the range beyond the worst."""
        errors = self._figure.error(figures)
        return float(errors.max() + 0.1 * (np.ptp(errors) or abs(errors.max()) or 1.0))

    def _first(self, number: int, costs: Array, free: Array) -> int:
        """A network drawn near one of the quantiles of the first cost (of mult-adds where no objective is a cost)."""
        by = costs[:, 0] if costs.shape[1] else self._candidates.cost("mult_adds")
        order = np.flatnonzero(free)[np.argsort(by[free], kind="stable")]
        at = FIRST_QUANTILES[number % len(FIRST_QUANTILES)]
        low = min(int((at - QUANTILE_WIDTH) * len(order)), len(order) - 1)
        near = order[max(low, 0) : max(math.ceil((at + QUANTILE_WIDTH) * len(order)), low + 1)]
        return int(np.random.default_rng([self._seed, number]).choice(near))

    def _read(self, trials: Sequence[FrozenTrial]) -> Known:
        """What the trials say of the candidates."""
        known = Known()
        curves: list[tuple[dict[int, float], float]] = []
        stopped: list[tuple[int, dict[int, float]]] = []
        for t in trials:
            index = self._candidates.add(self._params(t))
            if index is None:
                continue
            own = not t.user_attrs.get(OTHER_STUDY)
            if own and t.state != TrialState.PRUNED:
                known.taken.add(index)
            if t.state == TrialState.FAIL or (t.values and not math.isfinite(t.values[self._learnt])):
                continue
            curve = {int(epoch): self._figure.of(value) for epoch, value in t.user_attrs.get(CURVE, {}).items()}
            if t.state == TrialState.COMPLETE:
                figure = self._figure.of(t.values[self._learnt])
                known.told.append(Observation(index, figure))
                if own:
                    known.there.add(index)
                curves.append((curve, figure))
            elif t.state == TrialState.PRUNED:
                stopped.append((index, curve))
            else:
                known.pending.append(index)
                known.there.add(index)
        for index, curve in stopped:
            if index not in known.taken:  # it has not gone on since
                known.stopped += extrapolated(index, curve, curves)
                known.held.add(index)
        return known

    def _costs(self, trials: Sequence[FrozenTrial]) -> Array:
        """The costs of every candidate -> (N, K): logarithms from 0 to 1 over the candidates, less is better."""
        columns = []
        for position, (name, direction) in enumerate(self._space.file.objectives.items()):
            if position == self._learnt:
                continue
            logs = self._latencies(trials, position) if name == "latency_ms" else np.log1p(self._candidates.cost(name))
            column = (logs - logs.min()) / (np.ptp(logs) or 1.0)
            columns.append(1.0 - column if direction == "maximize" else column)
        return np.stack(columns, axis=1) if columns else np.zeros((len(self._candidates), 0))

    def _latencies(self, trials: Sequence[FrozenTrial], position: int) -> Array:
        """The logarithm of every candidate's latency, by a linear fit to the trials that were timed; until there are a
        few, that of its mult-adds.
        """
        done = [(self._candidates.add(t.params), t.values[position]) for t in trials if t.state == TrialState.COMPLETE]
        timed = [(index, value) for index, value in done if index is not None and 0 < value < math.inf]
        if len(timed) < LEAST_TIMED:
            return np.log1p(self._candidates.cost("mult_adds"))
        features = self._features()
        fit = Ridge(alpha=1.0).fit(features[[i for i, _ in timed]], np.log([value for _, value in timed]))
        found: Array = fit.predict(features)
        return found

    def _features(self) -> Array:
        if self._table is None or len(self._table) != len(self._candidates):
            self._table = self._candidates.features(self._further(self._candidates) if self._further else None)
        return self._table

    def _renew(self, known: Known, number: int) -> None:
        """Other candidates for a space that is too large to be looked at whole: what is known, the best of the last
        proposal, and new ones.
        """
        best = np.argsort(-self._gains)[:BEST_KEPT] if len(self._gains) == len(self._candidates) else np.arange(0)
        kept = sorted(known.taken | known.held | {o.candidate for o in known.told} | set(best.tolist()))
        parents = [kept.index(i) for i in self._front(known)]
        self._candidates.renew(random.Random(f"{self._seed}:{number}"), kept, parents)
        self._table = None

    def _front(self, known: Known) -> list[int]:
        """The candidates that came out so that none dominates them in the figure, params and mult-adds."""
        if not known.told:
            return []
        index = np.array([o.candidate for o in known.told])
        costs = [self._candidates.cost(name)[index] for name in ("params", "mult_adds")]
        values = np.column_stack([[o.figure for o in known.told], *costs])
        return sorted(set(index[non_dominated(values, ["minimize"] * 3)].tolist()))


@dataclass
class Known:
    """What the trials of a study say of the candidates."""

    told: list[Observation] = field(default_factory=list)  # what came of finished trials
    stopped: list[Observation] = field(default_factory=list)  # what is to be expected of stopped ones
    pending: list[int] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)  # trained, being trained, failed or refused in this study
    there: set[int] = field(default_factory=set)  # those of them that may be on its front
    held: set[int] = field(default_factory=set)  # stopped early, and free to go on


@dataclass(frozen=True)
class Figure:
    """How the learnt objective is modelled: `of` a value what the model is told, whose `error` is less where it is
    better; `logarithmic` where that is the exponential of it.
    """

    of: Callable[[float], float]
    logarithmic: bool

    def error(self, figures: Array) -> Array:
        """The errors of modelled figures."""
        return np.exp(figures) if self.logarithmic else figures


def figure_of(name: str, direction: str) -> Figure:
    """Accuracy and losses by the logarithm of the error, in which noise is even; what is not known, as it is."""
    if name == "accuracy" and direction == "maximize":
        return Figure(lambda value: math.log(max(1.0 - value, LEAST_ERROR)), True)
    if name == "validation_loss" and direction == "minimize":
        return Figure(lambda value: math.log(max(value, LEAST_ERROR)), True)
    return Figure((lambda value: -value) if direction == "maximize" else (lambda value: value), False)


def extrapolated(
    index: int, curve: Mapping[int, float], finished: Sequence[tuple[Mapping[int, float], float]]
) -> list[Observation]:
    """What the last figure of a trial that was stopped early says of its final one: by a line through the finished
    trials at the same epoch, with the variance that is left there. Nothing where too few finished trials have a curve.
    """
    if not curve:
        return []
    epoch = max(curve)
    pairs = np.array([(other[epoch], final) for other, final in finished if epoch in other])
    if len(pairs) < LEAST_PAIRS or np.ptp(pairs[:, 0]) == 0:
        return []
    slope, offset = np.polyfit(pairs[:, 0], pairs[:, 1], 1)
    left = pairs[:, 1] - (slope * pairs[:, 0] + offset)
    return [Observation(index, float(slope * curve[epoch] + offset), float(left @ left) / (len(pairs) - 2))]


def learnt_objective(space: Space) -> str:
    """The one objective that is to be learnt. Raises MnetError where there is not exactly one, or too many costs."""
    names = list(space.file.objectives)
    learnt = [name for name in names if not is_cost(name)]
    if len(learnt) != 1 or len(names) - 1 > MOST_COSTS:
        raise MnetError(
            f"objectives {', '.join(names)}: the pareto sampler takes one objective that is learnt "
            f"(accuracy, validation_loss or your own; here: {', '.join(learnt) or 'none'}) and up to {MOST_COSTS} "
            "costs; use search.sampler: tpe or nsga2 for others"
        )
    return learnt[0]


def is_cost(name: str) -> bool:
    """Whether an objective is known, or can be predicted, before training."""
    return name in COST_NAMES or name == "latency_ms"
