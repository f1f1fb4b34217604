"""Measured latency of a module: warm-up, repeats, median and quartiles, threads and device stated. Needs only torch."""

from __future__ import annotations

import contextlib
import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mnet_search.models.arch import MnetError, Shape


@dataclass(frozen=True)
class Latency:
    """Milliseconds from call to result of one batch: median and quartiles of `n` timed runs, and how they were taken.

    `device` is "cpu" or the GPU's name.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    n: int
    batch: int
    threads: int
    device: str


def measure(
    module: nn.Module,
    shape: Shape,
    *,
    batch: int = 1,
    threads: int = 1,
    device: torch.device | str = "cpu",
    warmup: int = 10,
    repeats: int = 50,
) -> Latency:
    """Time a copy of `module`, (batch, channels, height, width) -> anything, on random images.

    Inference mode, channels_last, batch norms as they are (not folded into convolutions); the first `warmup` runs are
    not counted; on a GPU each run is waited for, so a time is what a caller sees, launches included. The module, the
    number of threads and torch's random state are left as they were. The caller sees to it that nothing else is timed
    on this machine meanwhile. Raises MnetError for counts that cannot be.
    """
    for name, value, least in (("batch", batch, 1), ("threads", threads, 1), ("warmup", warmup, 0)):
        if value < least:
            raise MnetError(f"latency: {name} {value} is too few; give {least} or more")
    if repeats < 2:
        raise MnetError(f"latency: {repeats} timed runs have no quartiles; give 2 or more repeats")
    device = torch.device(device)
    copied = copy.deepcopy(module).to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch's stub lacks this form
    images = torch.rand(batch, shape.channels, shape.height, shape.width, generator=torch.Generator().manual_seed(0))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    with _quiet(threads), torch.inference_mode():
        times_ms = _times_ms(lambda: copied(images), device, warmup, repeats)
    q1, median, q3 = statistics.quantiles(times_ms, n=4, method="inclusive")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Latency(median, q1, q3, repeats, batch, threads, name)


def _times_ms(run: Callable[[], object], device: torch.device, warmup: int, repeats: int) -> list[float]:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warmup):
        run()
    times_ms = []
    for _ in range(repeats):
        wait()
        start_ns = time.perf_counter_ns()
        run()
        wait()
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return times_ms


@contextlib.contextmanager
def _quiet(threads: int) -> Iterator[None]:
    """This many threads and no garbage collection while timing; both put back afterwards."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()
