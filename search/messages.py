"""A trial as messages: what a worker sends of it, whichever executor it belongs to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

from mnet_search.search.handoff import TrialTimeout
from mnet_search.search.own_evaluation import OwnTrial
from mnet_search.search.trial import Job, Outcome, TrialFailed, run_trial


def messages(job: Job, function: Callable[[OwnTrial], Any] | None = None) -> Generator[tuple[str, Any], None, None]:
    """A trial's events and its end: ("epoch" or "outcome", values), or ("failure" or "timeout", reason)."""
    with contextlib.closing(run_trial(job, function)) as events:
        try:
            for event in events:
                yield ("outcome" if isinstance(event, Outcome) else "epoch"), asdict(event)
        except TrialFailed as error:
            yield ("timeout" if isinstance(error, TrialTimeout) else "failure"), str(error)
