"""Proposals for networks that are new under their settings and within the budgets."""

from __future__ import annotations

import random

from mnet_search.models.complexity import costs
from mnet_search.search.rungs import Rungs
from mnet_search.search.samplers import Proposal, Proposer, pick_untried
from mnet_search.spaces.space import Params, Space, SpaceError
from mnet_search.spaces.survey import Survey

PROPOSALS_BEFORE_PICKING = 50  # a sampler that keeps proposing known or oversized networks is helped out


class NewNetworks:
    """Asks the sampler until it proposes what may be trained. `known` are the networks, by the space's key, that are
    trained or were.
    """

    def __init__(self, space: Space, survey: Survey, proposer: Proposer, rungs: Rungs, rng: random.Random):
        self.known: set[str] = set()
        self._space, self._survey, self._proposer, self._rungs, self._rng = space, survey, proposer, rungs, rng

    def propose(self) -> Proposal | None:
        """A proposal for a network that is new under its settings and within the budgets; None where there is none
        left.
        """
        tries = 0
        while (proposal := self._proposer.ask()) is not None:
            verdict = self._judge(proposal.chosen)
            if verdict is None:
                return proposal
            self._proposer.reject(proposal, over_budget=verdict == "budget")
            tries += 1
            if tries >= PROPOSALS_BEFORE_PICKING and self._space.file.search.sampler != "grid":
                return self._pick()
        return None

    def _judge(self, chosen: Params) -> str | None:
        """Why an assignment is not to be trained; None where it is."""
        if self._space.listed and chosen not in self._space.listed:
            return "impossible"
        try:
            arch = self._space.arch(chosen)
        except SpaceError:
            return "impossible"
        key = self._space.key(chosen, arch.id)
        if key in self.known and not (self._proposer.takes_up_stopped and self._rungs.stopped(key)):
            return "known"
        return "budget" if self._space.violation(costs(arch)) else None

    def _pick(self) -> Proposal | None:
        """Any network that was not trained yet: the sampler has run dry."""
        pool = {key: params for key, (params, _) in self._survey.feasible.items()}
        chosen = pick_untried(self._space, pool, self.known, self._rng)
        if chosen is None and not self._survey.exact:
            for _ in range(10_000):
                candidate = self._space.sample(self._rng)
                if self._judge(candidate) is None:
                    chosen = candidate
                    break
        return None if chosen is None else self._proposer.ask_for(chosen)
