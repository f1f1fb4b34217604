"""The rungs of a study: a scheduler of the space's choice over the study's own learning curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TypeAlias

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.models.tables import lookup
from mnet_search.search.samplers import Curve, Proposer
from mnet_search.search.schedulers import SCHEDULERS, Reached, Scheduler, halving_rungs, places
from mnet_search.search.training import Epoch
from mnet_search.spaces.schema import COST_NAMES
from mnet_search.spaces.space import Params, Space
from mnet_search.studies.writer import StudyWriter, TrialRecord

Run: TypeAlias = tuple[str, int]  # a network, by the space's key, and its seed
# What a curve holds of an objective that is learnt; accuracy stands for one's own.
COLUMNS = {"validation_loss": "validation_loss"}


class Rungs:
    """Judges trials as their epochs come. Built anew from the curves of the study, it goes on where an earlier run
    ended.
    """

    def __init__(self, space: Space):
        """Raises MnetError for a scheduler that is not known, or a first rung that no trial comes to."""
        search = space.file.search
        self._space = space
        name = search.scheduler or ("none" if search.sampler == "grid" else "moasha")
        epochs = _most_epochs(space)
        if search.first_rung is not None and search.first_rung >= epochs and name != "none":
            raise MnetError(
                f"search.first_rung: {search.first_rung} is not below training.epochs ({epochs}), so no trial would "
                "ever be judged; lower it, or write search.scheduler: none"
            )
        rungs = halving_rungs(epochs, search.eta, search.first_rung)
        self._scheduler: Scheduler = lookup(SCHEDULERS, name, "scheduler")(rungs, search.eta)
        self.column = next((COLUMNS[n] for n in space.file.objectives if n in COLUMNS), "validation_accuracy")
        self._curves: dict[int, dict[int, float]] = defaultdict(dict)
        self._judged: set[tuple[int, int]] = set()
        self._stopped: dict[int, TrialRecord] = {}
        self._gone_on: set[Run] = set()
        self._numbers: dict[Run, int] = {}  # of the first trial of a run: one that goes on is no second measure

    def of(self, record: TrialRecord, epochs: int) -> tuple[int, ...]:
        """The epochs after which this trial of `epochs` is judged."""
        return tuple(rung for rung in self._scheduler.rungs(self._number(record)) if rung < epochs)

    def take_up(self, record: TrialRecord, curve: Mapping[int, Mapping[str, float | None]]) -> None:
        """A trial of an earlier run, with what the study has of its curve; failed ones are no measure for others."""
        if record.state == "failed":
            return
        if record.state == "stopped":
            self._stopped[record.number] = record
            self._gone_on.discard(self._run(record))
        else:
            self._gone_on.add(self._run(record))
        for epoch, figures in curve.items():
            value = figures[self.column]
            if value is not None and (record.number, epoch) not in self._judged:
                self._add(record, epoch, value)

    def judge(self, record: TrialRecord, epoch: Epoch, *, ends: bool) -> str | None:
        """Note what came; why the trial ends after this epoch, None where it goes on. It can only where it `ends` may,
        and what was judged before is not judged again.
        """
        if (record.number, epoch.epoch) in self._judged:
            return None
        reached = self._add(record, epoch.epoch, getattr(epoch, self.column))
        reason = self._scheduler.judge(reached) if reached is not None and ends else None
        if reason is not None:
            self._stopped[record.number] = record
            self._gone_on.discard(self._run(record))
        return reason

    def best_stopped(self) -> TrialRecord | None:
        """The trial that was stopped early and has the first place among those that got farthest."""
        left = {n: max(self._curves[n], default=0) for n in self._left()}
        most = max(left.values(), default=0)
        farthest = [number for number, epoch in left.items() if epoch == most]
        if not farthest:
            return None
        reached = [self._reached(self._stopped[n], left[n], self._curves[n].get(left[n], math.inf)) for n in farthest]
        return self._stopped[farthest[places(reached).index(0)]]

    def stopped(self, key: str) -> TrialRecord | None:
        """The trial of a network, by the space's key, that was stopped early and has not gone on."""
        return next((r for r in self._left().values() if self._run(r)[0] == key), None)

    def _left(self) -> dict[int, TrialRecord]:
        return {number: r for number, r in self._stopped.items() if self._run(r) not in self._gone_on}

    def go_on(self, stopped: TrialRecord, record: TrialRecord) -> None:
        """A trial that was stopped early goes on as another, `record`."""
        self._gone_on.add(self._run(record))
        self._curves[record.number] = dict(self._curves[stopped.number])

    def was_stopped(self, record: TrialRecord) -> bool:
        """Whether the same run was stopped early before."""
        return any(self._run(other) == self._run(record) for n, other in self._stopped.items() if n != record.number)

    def curve(self, number: int) -> Curve:
        """The figure after each epoch of a trial."""
        return self._curves[number]

    def _add(self, record: TrialRecord, epoch: int, value: float) -> Reached | None:
        if not math.isfinite(value):
            return None
        self._curves[record.number][epoch] = value
        if epoch not in self._scheduler.rungs(self._number(record)):
            return None
        reached = self._reached(record, epoch, value)
        self._scheduler.record(reached)
        self._judged.add((record.number, epoch))
        return reached

    def _reached(self, record: TrialRecord, epoch: int, value: float) -> Reached:
        error = value if self.column == "validation_loss" else -value
        return Reached(self._number(record), epoch, error, known_costs(self._space, record.chosen))

    def _run(self, record: TrialRecord) -> Run:
        return self._space.key(record.chosen, record.arch_id), record.seed

    def _number(self, record: TrialRecord) -> int:
        return self._numbers.setdefault(self._run(record), record.number)


def known_costs(space: Space, params: Params) -> tuple[float, ...]:
    """The cost objectives of a network, less is better; latency, which is measured after training, by mult-adds."""
    network = costs(space.arch(params))
    found = {}
    for name, direction in space.file.objectives.items():
        cost = "mult_adds" if name == "latency_ms" else name
        if cost in COST_NAMES:
            found[cost] = float(getattr(network, cost)) * (-1 if direction == "maximize" else 1)
    return tuple(found.values())


def teach(proposer: Proposer, study: StudyWriter, rungs: Rungs, *, other_study: bool = False) -> None:
    """Tell a sampler all that was finished or stopped early in a study."""
    curves = study.curves()
    for trial in study.store.optuna.get_all_trials(study.study_id):
        if trial.state.name == "COMPLETE" or (trial.state.name == "PRUNED" and not other_study):
            rows = curves.get(trial._trial_id, {})
            curve = {epoch: value for epoch, row in rows.items() if (value := row[rungs.column]) is not None}
            proposer.remember(trial, curve, other_study=other_study)


def _most_epochs(space: Space) -> int:
    """The epochs of a trial, of the longest where they are searched over."""
    parameter = space.file.parameters.get("training.epochs")
    values = [int(v) for v in (parameter.grid() if parameter else None) or [] if not isinstance(v, str)]
    return max(values, default=space.file.training.epochs)
