"""Measured latency of a module: warm-up, repeats, median and quartiles, threads stated. Needs torch alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mnet_search.models.arch import Shape


@dataclass(frozen=True)
class Latency:
    """Milliseconds per forward pass of one batch: median and quartiles of `n` timed runs, and how they were taken."""

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
    """Time `module`, (batch, channels, height, width) -> anything, in inference mode with channels_last memory.

    The first `warmup` runs are not counted. The module's mode and torch's number of threads are put back afterwards. The caller sees to it that
    nothing else is timed on this machine at the same moment.
    """
    if batch < 1 or repeats < 1 or warmup < 0:
        raise ValueError(f"batch {batch} and repeats {repeats} are 1 or more, warmup {warmup} 0 or more")
    device = torch.device(device)
    was_training, threads_before = module.training, torch.get_num_threads()
    module.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch's stub lacks this form
    images = torch.rand(batch, shape.channels, shape.height, shape.width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            times_ms = _times_ms(lambda: module(images), device, warmup, repeats)
    finally:
        torch.set_num_threads(threads_before)
        module.train(was_training)
    q1, median, q3 = np.quantile(times_ms, [0.25, 0.5, 0.75])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Latency(float(median), float(q1), float(q3), repeats, batch, threads, name)


def _times_ms(run: Callable[[], object], device: torch.device, warmup: int, repeats: int) -> list[float]:
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter_ns()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times
