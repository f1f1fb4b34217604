"""What Ray Tune needs of us: a trainable, and a searcher, a scheduler and a stopper that are thin views on the driver.
Imported only when Ray runs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from mnet_search.search.driver import Driver
from mnet_search.search.messages import messages
from mnet_search.search.ray_cluster import ClusterError, missing_code
from mnet_search.search.training import Epoch
from mnet_search.search.trial import Job, Outcome


class RayTrial(tune.Trainable):
    """One trial in a Ray actor; a step is an epoch, the last one carries the outcome.

    The content of a result is JSON, since Tune flattens mappings on their way.
    """

    _sent: Generator[tuple[str, Any], None, None]
    _unfit: str | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._sent = messages(Job.from_dict(config["job"]), descriptors=True)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The actor goes on with another trial: no new process, no new import of torch."""
        self._sent.close()  # one that was stopped early holds its folder until then
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._unfit is not None:  # what hangs or fills the memory is still here; an actor that raises is not reused
            raise RuntimeError(self._unfit)
        kind, content = next(self._sent)
        if kind in ("timeout", "out_of_memory"):
            self._unfit = str(content)
        elif kind != "epoch":
            next(self._sent, None)  # it has nothing more to say, and closes what it has open
        return {"kind": kind, "content": json.dumps(content), "done": kind != "epoch" and self._unfit is None}

    def cleanup(self) -> None:
        self._sent.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial keeps its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the trial finds its own checkpoints."""


LOOK_EVERY_S = 5.0  # at Ray's nodes


def _check_nodes() -> None:
    """Raises ClusterError where no node is left."""
    import ray

    if not any(node["Alive"] for node in ray.nodes()):
        raise ClusterError(
            "Ray has no node left that lives (its raylet has died); start it again where it is a cluster's, and run "
            "the same command again"
        )


class StudySearcher(Searcher):
    """Tune's view of the driver. Holds nothing of its own, so there is nothing to save: the study is asked and told
    directly.

    Tune swallows what a searcher raises in places, so an error is kept in `error` and ends the run. Where the driver
    changes what each trial has of a GPU, the run ends too, for Tune fixes that at its beginning.
    """

    def __init__(self, driver: Driver):
        super().__init__()
        self._driver, self._gpus = driver, driver.resources.gpus_per_trial
        self._trial_ids: dict[str, int] = {}
        self.error: BaseException | None = None
        self._next_look = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its search algorithm into a file of the run; nothing of ours, and no database URL, goes
        there.
        """
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next job; None to be asked again later; FINISHED when nothing is left."""
        changed = self._driver.resources.gpus_per_trial != self._gpus
        if self.error is not None or self._driver.stopping or self._driver.done or changed:
            return Searcher.FINISHED
        try:
            self._driver.look()  # where nothing runs here, Tune asks for nothing else
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
        key = self._trial_ids.get(trial_id)
        if key is None or key not in self._driver.running:
            return True
        content = json.loads(result["content"])
        match result.get("kind"):
            case "epoch":
                self._guard(lambda: self._driver.on_epoch(key, Epoch(**content)))
                return key in self._driver.running
            case "outcome":
                self._guard(lambda: self._driver.on_outcome(key, Outcome(**content)))
            case "out_of_memory":
                self._guard(lambda: self._driver.on_out_of_memory(key, content))
            case "failure" | "timeout":
                self._guard(lambda: self._driver.on_failure(key, content))
        return True

    def look(self) -> None:
        """Have the driver look for reasons to stop, and see whether Ray still has a node: Tune would wait for one."""
        self._guard(self._driver.look)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_EVERY_S
            self._guard(_check_nodes)

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
    """Ends a trial where the driver says so; ends Tune where nothing is waited for, or the searcher met an error."""

    def __init__(self, driver: Driver, searcher: StudySearcher):
        self._driver, self._searcher = driver, searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return not self._searcher.hand_over(trial_id, result)

    def stop_all(self) -> bool:
        self._searcher.look()
        return self._driver.stop.now or self._searcher.error is not None


class StudyScheduler(FIFOScheduler):
    """First come, first served; early stopping is the driver's. Has Tune forget what has ended: it would keep every
    trial, about 60 KB each, and look over all of them at each step (measured at 10,000 trials: 0.6 GB, and half of the
    driver's time).
    """

    def __init__(self, searcher: StudySearcher):
        super().__init__()
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A worker that lacks our code ends the run: every trial would fail there."""
        with contextlib.suppress(OSError, TypeError):
            lacking = missing_code(Path(trial.error_file).read_text())
            self._searcher.error = self._searcher.error or lacking

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first that waits."""
        trials: list[Trial] = tune_controller.get_trials()
        ended = [trial for trial in trials[:-1] if trial.is_finished()]  # Tune's summary at the end needs one
        if ended:
            forget(tune_controller, ended)
        return next((trial for trial in trials if trial.status == Trial.PENDING), None)


def forget(tune_controller: Any, ended: Sequence[Trial]) -> None:
    """Take trials that have ended out of everything in which Tune's controller keeps them. Its attributes are private:
    where one is missing, Tune merely keeps more.
    """
    controller, gone = getattr(tune_controller, "_tune_controller", tune_controller), set(ended)
    trials: list[Trial] = tune_controller.get_trials()
    trials[:] = [trial for trial in trials if trial not in gone]
    for name in ("_live_trials", "_stopped_trials", "_failed_trials", "_trials_to_cache"):
        getattr(controller, name, set()).difference_update(gone)
    metadata = getattr(controller, "_trial_metadata", {})
    for trial in ended:
        metadata.pop(trial.trial_id, None)
    # An actor that was asked for and then not needed leaves its "stop" behind, and with that its trial.
    actors = getattr(controller, "_actor_manager", None)
    tasks, wanted = (getattr(actors, f"_pending_actors_to_{name}", {}) for name in ("enqueued_actor_tasks", "attrs"))
    for actor in [actor for actor in tasks if actor not in wanted]:
        del tasks[actor]


class NoProgress(TrialProgressCallback):
    """Prints nothing and, unlike the callback that Tune adds where it sees none of its kind, keeps no trials."""

    def __init__(self) -> None:
        super().__init__()

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any) -> None:
        """Nothing: the driver tells whoever watches."""

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Nothing."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Nothing."""
