"""Samplers: where the next assignment of parameters comes from.

An Optuna sampler works in an in-memory copy of the study. Only proposals that are new networks within the budgets reach
the database, so it holds nothing but trials that were trained. To add a sampler, write its row in SAMPLERS at the foot.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup
from mnet_search.search.candidates import Candidates
from mnet_search.search.distributions import distribution, suggest
from mnet_search.search.evolution import EvolutionSampler
from mnet_search.search.pareto_sampler import CURVE, OTHER_STUDY, Figures, ParetoSampler, learnt_objective
from mnet_search.spaces.space import Params, Space

Curve: TypeAlias = Mapping[int, float]  # accuracy after each epoch


@dataclass(frozen=True)
class Proposal:
    """One assignment; `system_attrs` is what the sampler wants remembered with the trial (NSGA-II: its generation)."""

    chosen: Params
    distributions: Mapping[str, BaseDistribution]
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    handle: Any = field(default=None, repr=False)


class Proposer(Protocol):
    """What the driver needs of a sampler. `takes_up_stopped`: what it proposes of networks that were stopped early is
    meant.
    """

    takes_up_stopped: bool

    def ask(self) -> Proposal | None:
        """The next proposal; None where there is nothing left to propose."""

    def ask_for(self, chosen: Params) -> Proposal:
        """A proposal that the driver decided on."""

    def reject(self, proposal: Proposal, over_budget: bool) -> None:
        """The proposal was not trained: its network is known already, or breaks a budget."""

    def tell(self, proposal: Proposal, values: list[float] | None, curve: Curve, *, stopped: bool = False) -> None:
        """The objective values of a proposal that was trained; None where it failed, or was stopped early with
        `curve`.
        """

    def remember(self, trial: optuna.trial.FrozenTrial, curve: Curve, *, other_study: bool = False) -> None:
        """A trial of an earlier run, or of another study, that was finished or stopped early."""


class OptunaProposer:
    """An Optuna sampler over a copy of the study in memory."""

    def __init__(self, space: Space, sampler: optuna.samplers.BaseSampler):
        self._space = space
        # Optuna's own would rank a stopped trial of several objectives by a value that it does not have.
        self.takes_up_stopped = isinstance(sampler, ParetoSampler)
        self._stopped = TrialState.PRUNED if self.takes_up_stopped else TrialState.FAIL
        directions = list(space.file.objectives.values())
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(directions=directions, sampler=sampler)

    def ask(self) -> Proposal:
        trial = self._study.ask()
        chosen = suggest(self._space, trial)
        frozen = self._study._storage.get_trial(trial._trial_id)
        return Proposal(chosen, frozen.distributions, frozen.system_attrs, trial)

    def ask_for(self, chosen: Params) -> Proposal:
        self._study.enqueue_trial(dict(chosen))
        return self.ask()

    def reject(self, proposal: Proposal, over_budget: bool) -> None:
        if over_budget:
            proposal.handle.set_constraint(
                "budget", 1.0
            )  # above 0: infeasible, and the samplers that can learn from it do
        self._study.tell(proposal.handle, state=TrialState.PRUNED if over_budget else TrialState.FAIL)

    def tell(self, proposal: Proposal, values: list[float] | None, curve: Curve, *, stopped: bool = False) -> None:
        proposal.handle.set_user_attr(CURVE, dict(curve))
        if values is None:
            self._study.tell(proposal.handle, state=self._stopped if stopped else TrialState.FAIL)
        else:
            self._study.tell(proposal.handle, values)

    def remember(self, trial: optuna.trial.FrozenTrial, curve: Curve, *, other_study: bool = False) -> None:
        copied = copy.copy(trial)
        copied.user_attrs = {**trial.user_attrs, CURVE: dict(curve), OTHER_STUDY: other_study}
        if trial.state == TrialState.PRUNED:
            copied.state = self._stopped
        self._study.add_trial(copied)


class GridProposer:
    """Every assignment of the space once, in the order of the file."""

    takes_up_stopped = False

    def __init__(self, space: Space):
        self._space = space
        self._codes: Iterator[Params] = space.codes()

    def ask(self) -> Proposal | None:
        chosen = next(self._codes, None)
        return None if chosen is None else self.ask_for(chosen)

    def ask_for(self, chosen: Params) -> Proposal:
        return Proposal(chosen, {name: distribution(self._space.parameters[name]) for name in chosen})

    def reject(self, proposal: Proposal, over_budget: bool) -> None:
        """A grid does not learn."""

    def tell(self, proposal: Proposal, values: list[float] | None, curve: Curve, *, stopped: bool = False) -> None:
        """A grid does not learn."""

    def remember(self, trial: optuna.trial.FrozenTrial, curve: Curve, *, other_study: bool = False) -> None:
        """A grid does not learn; networks that are known already are passed over by the driver."""


def make_proposer(space: Space, seed: int, scores: Callable[[Candidates], Figures] | None = None) -> Proposer:
    """The proposer that the space asks for: a row of SAMPLERS, or any Optuna sampler class (or what makes one) as
    package.module:Class, made with `seed=`. `scores` are further figures for the pareto sampler to learn from.

    Raises MnetError for an unknown name, a class that is no Optuna sampler, scores for another sampler.
    """
    name = space.file.search.sampler
    if scores is not None:
        if name != "pareto":
            raise MnetError(
                f"search.scores: sampler {name!r} does not learn from scores; use pareto, or leave them out"
            )
        return OptunaProposer(space, ParetoSampler(space, seed, scores=scores))
    entry: Any = lookup(SAMPLERS, name, "sampler")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in SAMPLERS:
            proposer: Proposer = entry(space, seed)
            return proposer
        sampler = entry(seed=seed)
    if not isinstance(sampler, optuna.samplers.BaseSampler):
        raise MnetError(f"sampler {name!r} is a {type(sampler).__name__}, not an Optuna sampler")
    return OptunaProposer(space, sampler)


def check_sampler(space: Space) -> None:
    """Raises MnetError where the space's sampler cannot search it: known without looking at the space."""
    name = space.file.search.sampler
    if name == "pareto":
        learnt_objective(space)
    elif name not in SAMPLERS:
        make_proposer(space, 0)


def pick_untried(space: Space, pool: Mapping[str, Params], known: set[str], rng: random.Random) -> Params | None:
    """A network that is not yet known, drawn evenly from the feasible pool; None where every one is known."""
    left = sorted(key for key in pool if key not in known)
    return pool[rng.choice(left)] if left else None


SAMPLERS: dict[str, Callable[[Space, int], Proposer]] = {
    "pareto": lambda space, seed: OptunaProposer(space, ParetoSampler(space, seed)),
    "tpe": lambda space, seed: OptunaProposer(
        space, optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    ),
    "nsga2": lambda space, seed: OptunaProposer(space, optuna.samplers.NSGAIISampler(seed=seed, population_size=20)),
    "nsga3": lambda space, seed: OptunaProposer(space, optuna.samplers.NSGAIIISampler(seed=seed, population_size=20)),
    "evolution": lambda space, seed: OptunaProposer(space, EvolutionSampler(space, seed)),
    "random": lambda space, seed: OptunaProposer(space, optuna.samplers.RandomSampler(seed=seed)),
    "grid": lambda space, seed: GridProposer(space),
}
