"""Regularised evolution over networks: the youngest trials are the population, the winner of a tournament is mutated
(Real et al., arXiv 1802.01548), with ranks of non-domination in place of accuracy.
"""

from __future__ import annotations

import random

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mnet_search.search.candidates import mutate
from mnet_search.search.distributions import SpaceSampler
from mnet_search.spaces.space import Params
from mnet_search.studies.ranking import ranks

POPULATION, TOURNAMENT = 50, 10
FIRST = 10  # trials drawn evenly before anything is mutated
MUTATIONS = 50  # tried for a child that no trial has trained


class EvolutionSampler(SpaceSampler):
    """Proposes a mutation of the best of `TOURNAMENT` trials, drawn from the last `POPULATION`; by crowding among
    equals. Deterministic under a seed and the trials of the study.
    """

    def choose(self, study: optuna.Study, trial: FrozenTrial) -> Params:
        """The parameters of a child."""
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
