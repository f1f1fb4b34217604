"""A network trained for a moment in processes of its own, several side by side: images a second, and memory. Needs
torch alone.

Each process trains the same network for real: forward, backward and the optimiser's step on random pixels. It says when
it has warmed up; then it trains for as long as it is told, so that all of a crew begin together.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.optimisers import Optimiser
from mnet_search.search.pixels import augment, normalise
from mnet_search.search.recipes import TrainingOptions
from mnet_search.search.speed import FORMATS, SpeedOptions, choose_speed, forward_of

__all__ = ["GAIN", "Crew", "Figures", "ProbeFailed", "ProbeJob", "TooSlow", "side_by_side"]

GAIN = 1.05  # times the images a second that more trials at once must reach
START_TIMEOUT_S = 60.0  # for a process to import torch
CUDA_CONTEXT_BYTES = (
    2**30
)  # the most that a process takes of a GPU beside tensors (some hundred MB, measured each time)
STEPS_BETWEEN_WAITS = 8  # on a GPU, whose queue of steps would outlast the time; waiting at every step would cost some


@dataclass(frozen=True)
class ProbeJob:
    """What a process trains: a network by family and resolved options, on batches of `batch` images, on "cpu" or "cuda"
    with `threads` threads. What torch.compile would gain is left out: its warm-up is longer than a probe.
    """

    family: str
    options: Mapping[str, Any]
    batch: int
    training: TrainingOptions
    speed: SpeedOptions = field(default_factory=SpeedOptions)
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Figures:
    """What one process measured. `peak_bytes` is what the training took of its device's memory, `own_bytes` what the
    process takes beside it (the CUDA context; on a CPU Python, torch and what was imported); `device_bytes` of a GPU's
    memory may be shared among such processes, None on a CPU. `cpu_share` is the part of a core that it had.
    """

    images: int
    seconds: float
    peak_bytes: int
    own_bytes: int
    device_bytes: int | None
    cpu_share: float = 1.0


class TooSlow(Exception):  # noqa: N818  # not an error: there was no time for it
    """The deadline came before the answer."""


class ProbeFailed(Exception):  # noqa: N818  # what became of a probe; the decision goes on without it
    """A process died or raised; `memory_ended` where there was no more memory for it."""

    def __init__(self, text: str, memory_ended: bool):
        super().__init__(text)
        self.memory_ended = memory_ended


# ---------------------------------------------------------------- the side that asks


class Crew:
    """Processes that train one job each; a context manager that ends with all of them killed.

    `budget_s` counts from the moment at which the first one has imported torch, so that a cold disk does not decide.
    """

    def __init__(self, context: Any, job: ProbeJob, budget_s: float, deadline: float | None = None):
        self._context, self._job, self._budget_s = context, job, budget_s
        self._members: list[tuple[Any, connection.Connection]] = []
        self.deadline = deadline
        """Of time.monotonic(): an earlier crew's, or None before the first process is up."""

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _pipe in self._members:
            process.kill()
        for process, pipe in self._members:
            process.join()
            pipe.close()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._budget_s if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)

    def warm(self, count: int) -> list[Figures]:
        """Bring the crew to `count` processes that have made one step each; the figures are those of the new ones.

        Raises TooSlow, ProbeFailed.
        """
        fresh = range(len(self._members), count)
        for _ in fresh:
            self._start()
        for index in fresh:
            self._wait_until_up(index)
        return [self._receive(index, self.left_s) for index in fresh]

    def train(self, count: int, seconds: float) -> list[Figures]:
        """Let the first `count` processes, warmed up, train side by side for `seconds` and at least one step each.

        Raises TooSlow, ProbeFailed.
        """
        for index in range(count):
            with contextlib.suppress(BrokenPipeError):  # it died: receiving says so
                self._members[index][1].send(seconds)
        return [self._receive(index, self.left_s) for index in range(count)]

    def _start(self) -> None:
        mine, theirs = self._context.Pipe()
        with _without_main():
            process = self._context.Process(target=_serve, args=(theirs, self._job), daemon=True)
            process.start()
        theirs.close()
        self._members.append((process, mine))

    def _wait_until_up(self, index: int) -> None:
        if self.deadline is not None:
            self._receive(index, self.left_s)
            return
        try:
            self._receive(index, START_TIMEOUT_S)
        except TooSlow:
            raise ProbeFailed(f"its process did not start within {START_TIMEOUT_S:g} s", memory_ended=False) from None
        self.deadline = time.monotonic() + self._budget_s

    def _receive(self, index: int, timeout_s: float) -> Any:
        process, pipe = self._members[index]
        if not pipe.poll(timeout_s):
            raise TooSlow
        try:
            kind, content = pipe.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            code = process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            # Nobody but the system sends this signal to a process so young: it is how Linux gets memory back.
            raise ProbeFailed(f"its process {how}", memory_ended=code == -signal.SIGKILL) from None
        if kind == "failed":
            raise ProbeFailed(*content)
        return content


def side_by_side(crew: Crew, most: int, timed_s: float, *, upwards: bool) -> dict[int, tuple[float, Figures]]:
    """Images a second of 1 to `most` processes together, with the figures of the one that took most memory; the better
    of two times where there is time for two, since a busy moment of the machine must not decide.

    Ends where more (`upwards`) or fewer do not pay; what there is no time or no memory for is left out.
    """
    found: dict[int, tuple[float, Figures]] = {}

    def measure(count: int) -> float:
        crew.warm(count)
        each = crew.train(count, timed_s)
        rate = sum(figures.images / figures.seconds for figures in each)
        if count not in found or rate > found[count][0]:
            found[count] = rate, max(each, key=lambda figures: figures.peak_bytes)
        return rate

    with contextlib.suppress(TooSlow, ProbeFailed):
        before = 0.0
        for count in _counts(most, upwards):
            rate = measure(count)
            if rate < GAIN * before if upwards else GAIN * rate < before:
                break
            before = rate if upwards or count > 1 else 0.0
        for count in list(found):
            if crew.left_s > 2 * timed_s:
                measure(count)
    return found


def _counts(most: int, upwards: bool) -> list[int]:
    """1, 2, 4 ... `most`; or 1, `most`, and down from there by halves. Cores mostly pay to the last and a GPU does not:
    either is soon where it ends.
    """
    halves = [count for power in range(most.bit_length()) if (count := most >> power) > 1]
    if not upwards:
        return [1, *halves]
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not import the main module again: they need nothing of it, a command line takes part of a
    second, and a user's script without `if __name__ == "__main__"` would run a second time.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---------------------------------------------------------------- the side that trains


def _serve(pipe: connection.Connection, job: ProbeJob) -> None:
    """A process's life: up, warmed up, then trained for as many seconds as are sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who asked ends this process
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    pipe.send(("up", None))
    try:
        memory = _Memory(torch.device(job.device))
        step = _step(job)
        pipe.send(("warm", _timed(job, step, memory, 0.0)))
        while True:
            pipe.send(("trained", _timed(job, step, memory, pipe.recv())))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told and not raised
        lines = str(error).strip().splitlines()
        ended = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        pipe.send(("failed", (f"{type(error).__name__}: {lines[0] if lines else 'no further text'}", ended)))


def _end_with(sentinel: int) -> None:
    """End this process when the one that asked ends, however it ends."""
    connection.wait([sentinel])
    os._exit(1)


def _step(job: ProbeJob) -> Callable[[], None]:
    """A training step of the job, as the training loop makes it."""
    torch.set_num_threads(job.threads)
    device, recipe = torch.device(job.device), job.training.resolved()
    arch = create(job.family, **job.options)
    module = build(arch).to(device).train()
    channels, height, width = arch.input
    generator = torch.Generator(device).manual_seed(0)
    pixels = torch.randint(0, 256, (job.batch, channels, height, width), dtype=torch.uint8, device=device)
    labels = torch.arange(job.batch, device=device) % arch.classes
    mean = (0.5,) * channels

    def images() -> Tensor:
        return normalise(augment(pixels, generator, round(recipe.crop * height), recipe.flip), mean, mean)

    way = choose_speed(module, pixels, labels, 0, job.speed)  # for 0 steps: the usual way, without trying others
    module.to(memory_format=FORMATS[way.memory_format])
    forward, optimiser = forward_of(module, way), Optimiser(module, recipe)

    def run() -> None:
        logits = forward(images().contiguous(memory_format=FORMATS[way.memory_format]))
        F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing).backward()
        optimiser.step(recipe.learning_rate)

    return run


def _timed(job: ProbeJob, step: Callable[[], None], memory: _Memory, seconds: float) -> Figures:
    device, steps = torch.device(job.device), 0
    _wait(device)
    started, used = time.perf_counter(), time.process_time()
    while not steps or time.perf_counter() - started < seconds:
        step()
        steps += 1
        if steps % STEPS_BETWEEN_WAITS == 0:
            _wait(device)
    _wait(device)
    took, used = time.perf_counter() - started, time.process_time() - used
    share = used / took if device.type == "cpu" else 1.0  # what a GPU works at leaves its process idle
    return Figures(steps * job.batch, took, *memory.now(), cpu_share=share)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Memory:
    """Memory that was taken since this was made, before there was a module."""

    def __init__(self, device: torch.device):
        self._device = device
        self._before = _resident()[0]
        self._own = _status().get("RssAnon", self._before)

    def now(self) -> tuple[int, int, int | None]:
        """`peak_bytes`, `own_bytes` and `device_bytes` of Figures."""
        if self._device.type != "cuda":
            return max(_resident()[1] - self._before, 0), self._own, None
        peak = torch.cuda.max_memory_reserved(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        # What is taken and not by our tensors: this process's context, and all that other programs have.
        beside = max(total - free - torch.cuda.memory_reserved(self._device), 0)
        own = min(beside, CUDA_CONTEXT_BYTES)
        return peak, own, total - (beside - own)


def _resident() -> tuple[int, int]:
    """Main memory of this process in bytes: now, and the most so far."""
    status = _status()
    if "VmRSS" in status and "VmHWM" in status:
        return status["VmRSS"], status["VmHWM"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes; empty where there is none (macOS)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in rows}
