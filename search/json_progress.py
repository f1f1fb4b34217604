"""A search as JSON lines on stderr: events and log messages, for log collectors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from mnet_search.search.progress import Quiet
from mnet_search.search.training import Epoch
from mnet_search.search.trial_log import JsonLines
from mnet_search.studies.writer import TrialRecord

log = logging.getLogger("mnet_search.search")


class JsonProgress(Quiet):
    """Each event as a record of the log, with its figures in `fields`."""

    def begin(self, study: str, n_asked: int, done: Sequence[TrialRecord]) -> None:
        _tell("search begins", study=study, n_asked=n_asked, n_finished=len(done))

    def started(self, record: TrialRecord) -> None:
        _tell("trial started", **_trial(record), attempt=record.attempts, parameters=record.chosen)

    def epoch(self, record: TrialRecord, epoch: Epoch) -> None:
        _tell("epoch", **_trial(record), **asdict(epoch))

    def finished(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        _tell("trial finished", **_trial(record), values=dict(values))

    def stopped(self, record: TrialRecord, reason: str) -> None:
        _tell("trial stopped early", **_trial(record), reason=reason)

    def failed(self, record: TrialRecord, reason: str) -> None:
        _tell("trial failed", logging.WARNING, **_trial(record), reason=reason)

    def left(self, record: TrialRecord, why: str) -> None:
        _tell("trial left", **_trial(record), reason=why)

    def note(self, text: str) -> None:
        _tell(text)


def _trial(record: TrialRecord) -> dict[str, Any]:
    return {"trial": record.number, "arch_id": record.arch_id, "seed": record.seed}


def _tell(event: str, level: int = logging.INFO, **fields: Any) -> None:
    log.log(level, event, extra={"fields": fields})


@contextmanager
def logged() -> Iterator[JsonProgress]:
    """While it lasts, everything that is logged goes to stderr as JSON lines, events at INFO and above."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    before, level = root.handlers[:], log.level
    root.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    try:
        yield JsonProgress()
    finally:
        root.handlers[:] = before
        log.setLevel(level)
