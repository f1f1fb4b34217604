"""What a run may use of a machine: how many trials at once, and what each of them has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from mnet_search.models.arch import MnetError


@dataclass(frozen=True)
class Resources:
    """How many trials run at once, and what each may use."""

    concurrency: int
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0.0


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
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
