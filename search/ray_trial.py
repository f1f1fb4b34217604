"""The three pieces that Ray Tune needs of us: a trainable, a searcher and a stopper, each a thin view on the driver.
Imported only when Ray runs.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from mnet_search.search.driver import Driver
from mnet_search.search.handoff import TrialTimeout
from mnet_search.search.training import Epoch
from mnet_search.search.trial import Job, Outcome, TrialFailed, run_trial


class RayTrial(tune.Trainable):
    """One trial in a Ray actor; a step is an epoch, the last one carries the outcome.

    The content of a result is JSON, since Tune flattens mappings on their way.
    """

    _events: Generator[Epoch | Outcome, None, None]
    _timeout: TrialTimeout | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._events = run_trial(Job.from_dict(config["job"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The actor goes on with another trial: no new process, no new import of torch."""
        self._events.close()  # one that was stopped early holds its folder until then
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._timeout is not None:  # it may still be at work here: an actor that raises is not used again
            raise self._timeout
        try:
            event = next(self._events)
        except TrialTimeout as error:
            self._timeout = error
            return {"kind": "failure", "content": str(error)}
        except TrialFailed as error:
            return {"kind": "failure", "content": str(error), "done": True}
        if isinstance(event, Outcome):
            return {"kind": "outcome", "content": json.dumps(asdict(event)), "done": True}
        return {"kind": "epoch", "content": json.dumps(asdict(event))}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial keeps its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the trial finds its own checkpoints."""


class StudySearcher(Searcher):
    """Tune's view of the driver. Holds nothing of its own, so there is nothing to save: the study is asked and told
    directly.

    Tune swallows what a searcher raises in places, so an error is kept in `error` and ends the run.
    """

    def __init__(self, driver: Driver):
        super().__init__()
        self._driver = driver
        self._trial_ids: dict[str, int] = {}
        self.error: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its search algorithm into a file of the run; nothing of ours, and no database URL, goes
        there.
        """
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next job; None to be asked again later; FINISHED when nothing is left."""
        if self.error is not None or self._driver.stopping or self._driver.done:
            return Searcher.FINISHED
        try:
            job = self._driver.next_job()
        except BaseException as error:  # noqa: BLE001  # kept and raised by the executor, outside Tune
            self.error = error
            return Searcher.FINISHED
        if job is None:
            return Searcher.FINISHED if self._driver.done else None
        self._trial_ids[trial_id] = self._driver.trial_id(job)
        return {"job": job.to_dict()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the stopper, which Tune asks first, has handed it over."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error and trial_id in self._trial_ids:
            key = self._trial_ids.pop(trial_id)
            if key in self._driver.running:  # it is over for the driver where it took too long
                self._guard(lambda: self._driver.on_worker_lost(key, "the Ray worker died"))
        elif result is not None:
            self.hand_over(trial_id, result)
            self._trial_ids.pop(trial_id, None)

    def hand_over(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Give the driver what a trial has sent. False where the trial ends here."""
        key, content = self._trial_ids.get(trial_id), str(result.get("content"))
        if key is None or key not in self._driver.running:
            return True
        match result.get("kind"):
            case "epoch":
                self._guard(lambda: self._driver.on_epoch(key, Epoch(**json.loads(content))))
                return key in self._driver.running
            case "outcome":
                self._guard(lambda: self._driver.on_outcome(key, Outcome(**json.loads(content))))
            case "failure":
                self._guard(lambda: self._driver.on_failure(key, content))
        return True

    def _guard(self, act: Any) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  # kept and raised by the executor, outside Tune
            self.error = self.error or error

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, and nothing secret in a file."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the driver reads the study."""


class StudyStopper(tune.Stopper):
    """Ends a trial where the driver says so; ends Tune when the user asked to stop, or the searcher met an error."""

    def __init__(self, driver: Driver, searcher: StudySearcher):
        self._driver, self._searcher = driver, searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return not self._searcher.hand_over(trial_id, result)

    def stop_all(self) -> bool:
        return self._driver.stopping or self._searcher.error is not None
