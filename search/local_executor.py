"""Trials in processes of this machine: without Ray, and the quickest to start."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection

from mnet_search.search.driver import Driver
from mnet_search.search.messages import messages
from mnet_search.search.resources import Resources, count_gpus
from mnet_search.search.training import Epoch
from mnet_search.search.trial import Job, Outcome
from mnet_search.search.workers import environment, worker_context

POLL_S = 0.2


class LocalExecutor:
    """`concurrency` worker processes on this machine, reused from trial to trial."""

    def __init__(self, resources: Resources):
        self._resources = resources

    def run(self, driver: Driver) -> None:
        """Returns when the driver is done or stopping; workers are ended either way."""
        workers: list[_Worker] = []
        with driver.signals():
            try:
                while not driver.done:
                    driver.look()
                    self._fill(workers, driver)
                    waiting = [w.pipe for w in workers if w.trial_id is not None]
                    if not waiting:
                        if not driver.done:  # other drivers have what is left
                            time.sleep(POLL_S)
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
        """Give idle workers jobs while the driver has any, with more workers where none is idle."""
        while (job := driver.next_job()) is not None:
            idle = next((w for w in workers if w.trial_id is None), None)
            if idle is None:
                idle = _Worker(self._resources.cpus_per_trial, self._gpu_for_one_more(workers))
                workers.append(idle)
            idle.start(job, driver.trial_id(job))

    def _gpu_for_one_more(self, workers: list[_Worker]) -> int | None:
        """The GPU that the fewest workers have; None where there is no choice."""
        if self._resources.gpus_per_trial == 0 or (n_gpus := count_gpus()) < 2:
            return None
        return min(range(n_gpus), key=lambda gpu: sum(worker.gpu == gpu for worker in workers))


class _Worker:
    """One worker process and the pipe to it; `gpu` is the one that it has of several."""

    def __init__(self, threads: int, gpu: int | None = None):
        self.gpu = gpu
        context = worker_context()
        self.pipe, theirs = context.Pipe()
        self.trial_id: int | None = None
        self._rungs: Sequence[int] = ()
        with environment(OMP_NUM_THREADS=str(threads), PGPASSWORD=None):  # the database is the driver's alone
            # No daemon, which may have no children: a streamed folder of pictures is decoded by some.
            self._process = context.Process(target=_serve, args=(theirs,))
            self._process.start()
        theirs.close()

    def start(self, job: Job, trial_id: int) -> None:
        self.trial_id, self._rungs = trial_id, job.rungs
        with contextlib.suppress(BrokenPipeError):  # the process died while idle: read() will see it
            self.pipe.send(job.to_dict() | ({} if self.gpu is None else {"device": f"cuda:{self.gpu}"}))

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
            goes_on, waits = driver.on_epoch(self.trial_id, Epoch(**content)), content["epoch"] in self._rungs
            if waits:
                with contextlib.suppress(BrokenPipeError):
                    self.pipe.send(goes_on)
            self.trial_id = self.trial_id if goes_on else None
            return goes_on or waits  # one that does not wait for an answer trains on: its process ends
        trial_id, self.trial_id = self.trial_id, None
        if kind == "outcome":
            driver.on_outcome(trial_id, Outcome(**content))
        elif kind == "out_of_memory":
            driver.on_out_of_memory(trial_id, content)
        else:
            driver.on_failure(trial_id, content)
        return kind not in ("timeout", "out_of_memory")  # what hangs, or what fills the memory, ends with its process

    def kill(self) -> None:
        """End the process; its checkpoints are on disk."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: connection.Connection) -> None:
    """A worker's life: jobs in; epochs and then an outcome or a reason for failure out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):  # the driver is gone
        while True:
            job = Job.from_dict(pipe.recv())
            with contextlib.closing(messages(job, descriptors=True)) as sent:
                for kind, content in sent:
                    pipe.send((kind, content))
                    if kind == "epoch" and content["epoch"] in job.rungs and not pipe.recv():
                        break


def _end_with(sentinel: int) -> None:
    """End this process when the driver's ends, however it ends: no worker outlives a kill -9 of the driver."""
    connection.wait([sentinel])
    os._exit(1)
