"""Executors: carry out the driver's jobs, in processes of this machine or through Ray Tune. Both give the same records.

An executor asks `driver.next_job()`, runs `trial.run_trial`, and hands every epoch, outcome and failure back. It keeps
nothing that would be lost with it: the study is the only truth, so a killed run is simply started again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from mnet_search.models.arch import MnetError
from mnet_search.search.driver import Driver
from mnet_search.search.handoff import Ended, TrialTimeout
from mnet_search.search.own_evaluation import OwnTrial
from mnet_search.search.training import Epoch
from mnet_search.search.trial import Job, Outcome, TrialFailed, evaluate_by, run_trial

POLL_S = 0.2


@dataclass(frozen=True)
class Resources:
    """How many trials run at once, and what each may use."""

    concurrency: int
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0.0


class Executor(Protocol):
    """Runs jobs until the driver is done or asked to stop."""

    def run(self, driver: Driver) -> None: ...


# ---------------------------------------------------------------- this machine's processes


class LocalExecutor:
    """`concurrency` worker processes on this machine, reused from trial to trial."""

    def __init__(self, resources: Resources):
        self._resources = resources

    def run(self, driver: Driver) -> None:
        """Returns when the driver is done or stopping; workers are ended either way."""
        workers: list[_Worker] = []
        with driver.signals():
            try:
                while not driver.done and not driver.stopping:
                    self._fill(workers, driver)
                    waiting = [w.pipe for w in workers if w.trial_id is not None]
                    if not waiting:
                        continue
                    for pipe in connection.wait(waiting, timeout=POLL_S):
                        worker = next(w for w in workers if w.pipe is pipe)
                        if not worker.read(driver):
                            workers.remove(worker)
                            worker.end()
            finally:
                for worker in workers:  # all of them before any is waited for: a second Ctrl-C may come meanwhile
                    worker.kill()
                for worker in workers:
                    worker.end()

    def _fill(self, workers: list[_Worker], driver: Driver) -> None:
        """Give every idle worker a job, with more workers while there are fewer than may run."""
        while sum(w.trial_id is not None for w in workers) < self._resources.concurrency:
            job = driver.next_job()
            if job is None:
                return
            idle = next((w for w in workers if w.trial_id is None), None)
            if idle is None:
                idle = _Worker(self._resources.cpus_per_trial)
                workers.append(idle)
            idle.start(job, driver.trial_id(job))


class _Worker:
    """One worker process and the pipe to it."""

    def __init__(self, threads: int):
        context = _context()
        self.pipe, theirs = context.Pipe()
        self.trial_id: int | None = None
        self._rungs: Sequence[int] = ()
        with environment(OMP_NUM_THREADS=str(threads)):
            # No daemon, which may have no children: a streamed folder of pictures is decoded by some.
            self._process = context.Process(target=_serve, args=(theirs,))
            self._process.start()
        theirs.close()

    def start(self, job: Job, trial_id: int) -> None:
        self.trial_id, self._rungs = trial_id, job.rungs
        with contextlib.suppress(BrokenPipeError):  # the process died while idle: read() will see it
            self.pipe.send(job.to_dict())

    def read(self, driver: Driver) -> bool:
        """Hand one message to the driver. False once the process is gone."""
        assert self.trial_id is not None
        try:
            kind, content = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            driver.on_worker_lost(self.trial_id, f"the worker process {how}")
            return False
        if kind == "epoch":
            goes_on = driver.on_epoch(self.trial_id, Epoch(**content))
            if content["epoch"] in self._rungs:  # it waits for the answer
                with contextlib.suppress(BrokenPipeError):
                    self.pipe.send(goes_on)
            self.trial_id = self.trial_id if goes_on else None
            return True
        trial_id, self.trial_id = self.trial_id, None
        if kind == "outcome":
            driver.on_outcome(trial_id, Outcome(**content))
        else:
            driver.on_failure(trial_id, content)
        return kind != "timeout"  # what hangs in that process ends with it

    def kill(self) -> None:
        """End the process; its checkpoints are on disk."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        self._process.join()
        self.pipe.close()


def _context() -> Any:
    """How workers are made: forked from a small server that has imported torch once, so that the second worker, and one
    that replaces a killed one, start at once. (The driver itself cannot be forked: it has threads.) Without fork:
    spawn.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mnet_search.search.trial"])
    return context


def _serve(pipe: connection.Connection) -> None:
    """A worker's life: jobs in; epochs and then an outcome or a reason for failure out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        try:
            job = Job.from_dict(pipe.recv())
        except EOFError:
            return
        with contextlib.closing(_messages(job)) as messages:
            for kind, content in messages:
                pipe.send((kind, content))
                if kind == "epoch" and content["epoch"] in job.rungs and not pipe.recv():
                    break


def _end_with(sentinel: int) -> None:
    """End this process when the driver's ends, however it ends: no worker outlives a kill -9 of the driver."""
    connection.wait([sentinel])
    os._exit(1)


def _messages(job: Job, function: Callable[[OwnTrial], Any] | None = None) -> Generator[tuple[str, Any], None, None]:
    """A trial's events and its end: ("epoch" or "outcome", values), or ("failure" or "timeout", reason)."""
    with contextlib.closing(run_trial(job, function)) as events:
        try:
            for event in events:
                yield ("outcome" if isinstance(event, Outcome) else "epoch"), asdict(event)
        except TrialFailed as error:
            yield ("timeout" if isinstance(error, TrialTimeout) else "failure"), str(error)


# ---------------------------------------------------------------- this process


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
            while not driver.done and not driver.stopping:
                job = driver.next_job()
                if job is not None:
                    self._run(driver, job, driver.trial_id(job))

    def _run(self, driver: Driver, job: Job, trial_id: int) -> None:
        if (job.evaluate or self._function) and job.timeout_s is None:
            self._call(driver, job, trial_id)
            return
        with contextlib.closing(_messages(job, self._function)) as messages:
            for kind, content in messages:
                if kind == "outcome":
                    driver.on_outcome(trial_id, Outcome(**content))
                elif kind != "epoch":
                    driver.on_failure(trial_id, content)
                elif not driver.on_epoch(trial_id, Epoch(**content)) or driver.stopping:
                    return

    def _call(self, driver: Driver, job: Job, trial_id: int) -> None:
        over = False

        def emit(event: Epoch | Outcome) -> None:
            nonlocal over
            if over:  # somebody caught what was raised at the last one
                raise Ended
            if isinstance(event, Outcome):
                driver.on_outcome(trial_id, event)
            elif not driver.on_epoch(trial_id, event) or driver.stopping:
                over = True
                raise Ended

        try:
            evaluate_by(job, self._function, emit)
        except Ended:
            return
        except TrialFailed as error:
            if not over:
                driver.on_failure(trial_id, str(error))


# ---------------------------------------------------------------- Ray Tune


class RayExecutor:
    """Ray Tune on this machine (or on the cluster that RAY_ADDRESS names), with actors reused from trial to trial."""

    def __init__(self, resources: Resources):
        self._resources = resources

    def run(self, driver: Driver) -> None:
        """Returns when the driver is done or stopping. Ray is shut down if it was started here."""
        folder = Path(tempfile.mkdtemp(prefix="mnet-search-ray-"))
        quiet = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_AIR_NEW_OUTPUT": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's result files would be a second record
            "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "OMP_NUM_THREADS": str(self._resources.cpus_per_trial),
        }
        with environment(**quiet):
            import ray

            started = not ray.is_initialized()
            if started:
                _start_ray(self._resources)
            try:
                with driver.signals():
                    self._tune(driver, folder)
            finally:
                if started:
                    ray.shutdown()
                shutil.rmtree(folder, ignore_errors=True)

    def _tune(self, driver: Driver, folder: Path) -> None:
        from ray import tune

        from mnet_search.search.ray_trial import RayTrial, StudySearcher, StudyStopper

        searcher = StudySearcher(driver)
        use = {"cpu": self._resources.cpus_per_trial, "gpu": self._resources.gpus_per_trial}
        tuner = tune.Tuner(
            tune.with_resources(RayTrial, use),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=self._resources.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=driver.study.name.replace("/", "_"),
                storage_path=str(folder),
                stop=StudyStopper(driver, searcher),
                failure_config=tune.FailureConfig(
                    max_failures=0
                ),  # a lost worker is the driver's affair: see on_worker_lost
                verbose=0,
                callbacks=[],
            ),
        )
        while not driver.done and not driver.stopping:
            tuner.fit()
            if searcher.error is not None:
                raise searcher.error


def _start_ray(resources: Resources) -> None:
    import logging

    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if not logging.getLogger().isEnabledFor(logging.INFO):  # why a trial ended is the driver's to say
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=max(resources.concurrency * resources.cpus_per_trial, 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, OSError) as error:
        raise MnetError(f"Ray could not be started or reached: {error}; try --executor local") from error


@contextlib.contextmanager
def environment(**values: str) -> Any:
    """Environment variables for processes started inside, put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def decide_resources(cpus_per_trial: int, gpus_per_trial: float | str, concurrency: int | str) -> Resources:
    """What `auto` means on this machine: one trial per GPU where there are any, else one per `cpus_per_trial` cores.

    Raises MnetError where a GPU is asked for and there is none.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_gpus = _count_gpus()
    gpus = (1.0 if n_gpus else 0.0) if gpus_per_trial == "auto" else float(gpus_per_trial)
    if gpus > 0 and not n_gpus and not os.environ.get("RAY_ADDRESS"):
        raise MnetError(
            f"resources.gpus_per_trial is {gpus:g}, but torch sees no GPU on this machine; set it to 0 or auto"
        )
    by_cpu = max(cores // cpus_per_trial, 1)
    automatic = max(min(by_cpu, int(n_gpus / gpus)), 1) if gpus > 0 else by_cpu
    return Resources(automatic if concurrency == "auto" else int(concurrency), cpus_per_trial, gpus)


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


EXECUTORS: dict[str, Callable[[Resources], Executor]] = {
    "ray": RayExecutor,
    "local": LocalExecutor,
    "inline": InlineExecutor,
}
