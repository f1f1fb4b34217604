"""How a run is carried out, who watches it, and the error that ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mnet_search.models.arch import MnetError
from mnet_search.search.resources import Resources
from mnet_search.search.training import Epoch
from mnet_search.spaces.space import Params
from mnet_search.studies.writer import TrialRecord


class FailureBudgetError(MnetError):
    """Too many trials failed."""

    exit_code = 4


class Progress(Protocol):
    """Who watches a run: the terminal, or nobody."""

    def begin(self, study: str, n_asked: int, done: Sequence[TrialRecord]) -> None: ...
    def started(self, record: TrialRecord) -> None: ...
    def epoch(self, record: TrialRecord, epoch: Epoch) -> None: ...
    def finished(self, record: TrialRecord, values: Mapping[str, float]) -> None: ...
    def stopped(self, record: TrialRecord, reason: str) -> None: ...
    def failed(self, record: TrialRecord, reason: str) -> None: ...
    def left(self, record: TrialRecord, why: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Settings:
    """How a run is carried out."""

    n_trials: int
    seed: int = 0
    max_failures: int = 10
    retry_failed: bool = False
    timeout_s: float | None = None
    planned: tuple[Params, ...] = ()  # where there are any, no other network is begun
    resources: Resources = field(default_factory=lambda: Resources(2**31))
