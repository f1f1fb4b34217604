"""Trials in the process that searches, one after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from mnet_search.search.driver import Driver
from mnet_search.search.handoff import Ended
from mnet_search.search.messages import messages, trial_log
from mnet_search.search.own_evaluation import OwnTrial
from mnet_search.search.resources import Resources
from mnet_search.search.training import Epoch
from mnet_search.search.trial import Job, Outcome, TrialFailed, evaluate_by

POLL_S = 0.2


class InlineExecutor:
    """One trial after another in this process: for evaluation by a function of the user's own, which may be any
    callable.

    The function is called in the thread that searches; with a timeout in one of its own, which is left behind where it
    hangs.
    """

    def __init__(self, resources: Resources, function: Callable[[OwnTrial], Any] | None = None):
        self._function = function

    def run(self, driver: Driver) -> None:
        """Returns when the driver is done or stopping."""
        with driver.signals():
            while not driver.done:
                driver.look()
                job = driver.next_job()
                if job is not None:
                    self._run(driver, job, driver.trial_id(job))
                elif not driver.done:  # other drivers have what is left
                    time.sleep(POLL_S)

    def _run(self, driver: Driver, job: Job, trial_id: int) -> None:
        if (job.evaluate or self._function) and job.timeout_s is None:
            self._call(driver, job, trial_id)
            return
        with contextlib.closing(messages(job, self._function)) as sent:
            for kind, content in sent:
                if kind == "outcome":
                    driver.on_outcome(trial_id, Outcome(**content))
                elif kind != "epoch":
                    driver.on_failure(trial_id, content)
                elif not driver.on_epoch(trial_id, Epoch(**content)):
                    return

    def _call(self, driver: Driver, job: Job, trial_id: int) -> None:
        over = False

        def emit(event: Epoch | Outcome) -> None:
            nonlocal over
            driver.look()
            if over:  # somebody caught what was raised at the last one
                raise Ended
            if isinstance(event, Outcome):
                driver.on_outcome(trial_id, event)
            elif not driver.on_epoch(trial_id, event):
                over = True
                raise Ended

        with trial_log(job) as log:
            try:
                evaluate_by(job, self._function, emit)
            except Ended:
                return
            except TrialFailed as error:
                log.write(f"trial {job.number} has failed: {error}", error)
                if not over:
                    driver.on_failure(trial_id, str(error))
