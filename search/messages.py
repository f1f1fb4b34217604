"""A trial as messages: what a worker sends of it, whichever executor it belongs to."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from typing import Any

from mnet_search.search.handoff import TrialTimeout
from mnet_search.search.own_evaluation import OwnTrial
from mnet_search.search.trial import Job, Outcome, TrialFailed, TrialOutOfMemory, run_trial
from mnet_search.search.trial_log import TrialLog, capture, send_log


def messages(
    job: Job, function: Callable[[OwnTrial], Any] | None = None, *, descriptors: bool = False
) -> Generator[tuple[str, Any], None, None]:
    """A trial's events and its end: ("epoch" or "outcome", values), or ("failure", "timeout"
    or "out_of_memory", reason).

    Its log is kept in its folder; with `descriptors`, for a process that runs nothing but trials, with all that is
    printed.
    """
    with trial_log(job, descriptors=descriptors) as log, contextlib.closing(run_trial(job, function)) as events:
        over = False
        try:
            for event in events:
                if isinstance(event, Outcome):
                    over = True
                    figures = ", ".join(f"{name} {value:.6g}" for name, value in event.metrics.items())
                    log.write(f"trial {job.number} is finished: {figures}")
                    send_log(job.folder)  # before anybody hears of the end: this process may be ended then
                yield ("outcome" if isinstance(event, Outcome) else "epoch"), asdict(event)
        except TrialFailed as error:
            log.write(f"trial {job.number} has failed: {error}", error)
            if isinstance(error, TrialTimeout):
                log.write_threads()
            send_log(job.folder)
            yield _kind(error), str(error)
        except GeneratorExit:
            if not over:
                events.close()
                log.write(f"trial {job.number} was ended by whoever runs it")
            raise
        except BaseException as error:
            log.write(f"trial {job.number} was ended by {type(error).__name__}", error)
            raise


@contextlib.contextmanager
def trial_log(job: Job, *, descriptors: bool = False) -> Iterator[TrialLog]:
    """A trial's log, begun and sent to where its folder is."""
    try:
        with capture(job.folder, descriptors=descriptors) as log:
            log.write(_begin(job))
            yield log
    finally:
        send_log(job.folder)


def _kind(error: TrialFailed) -> str:
    if isinstance(error, TrialOutOfMemory):
        return "out_of_memory"
    return "timeout" if isinstance(error, TrialTimeout) else "failure"


def _begin(job: Job) -> str:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return (
        f"trial {job.number} begins: network {job.arch_id}, seed {job.seed}, process {os.getpid()} on "
        f"{socket.gethostname()}, this attempt at {now}"
    )
