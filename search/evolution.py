"""Regularised evolution over networks: the youngest trials are the population, the winner of a tournament is mutated
(Real et al., arXiv 1802.01548), with ranks of non-domination in place of accuracy.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from mnet_search.search.candidates import mutate
from mnet_search.search.distributions import distribution
from mnet_search.spaces.schema import Value
from mnet_search.spaces.space import Space
from mnet_search.studies.ranking import ranks

POPULATION, TOURNAMENT = 50, 10
FIRST = 10  # trials drawn evenly before anything is mutated
MUTATIONS = 50  # tried for a child that no trial has trained


class EvolutionSampler(optuna.samplers.BaseSampler):
    """Proposes a mutation of the best of `TOURNAMENT` trials, drawn from the last `POPULATION`; by crowding among
    equals. Deterministic under a seed and the trials of the study.
    """

    def __init__(self, space: Space, seed: int = 0):
        self._space, self._seed = space, seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter of the space; none where the trial was enqueued with its own."""
        if "fixed_params" in trial.system_attrs:
            return {}
        return {name: distribution(parameter) for name, parameter in self._space.parameters.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of a child."""
        if not search_space:
            return {}
        rng = random.Random(f"{self._seed}:{trial.number}")
        trials = study.get_trials(deepcopy=False)
        grown = [t for t in trials if t.state == TrialState.COMPLETE]
        if len(grown) < FIRST:
            return self._space.sample(rng)
        directions = [direction.name.lower() for direction in study.directions]
        drawn = rng.sample(grown[-POPULATION:], min(TOURNAMENT, len(grown[-POPULATION:])))
        order = ranks(np.array([t.values for t in drawn]), directions)
        parent = drawn[int(np.argmin(order))].params
        known = {frozenset(t.params.items()) for t in trials if t.number != trial.number}
        for _ in range(MUTATIONS):
            child = mutate(self._space, parent, rng)
            if frozenset(child.items()) not in known:
                return child
        return self._space.sample(rng)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Value:
        """An even draw, for what the search did not choose."""
        return self._space.draw(param_name, random.Random(f"{self._seed}:{trial.number}:{param_name}"))
