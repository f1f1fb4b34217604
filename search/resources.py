"""What a machine has, and what a run may use of it: how many trials at once, and what each of them has."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mnet_search.models.arch import MnetError
from mnet_search.search.data_files import memory_available


@dataclass(frozen=True)
class Resources:
    """How many trials run at once, and what each may use. `gpu_memory_fraction` is the share of its GPU's memory that
    torch may take in each process; 0 sets no limit.
    """

    concurrency: int
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0.0
    gpu_memory_fraction: float = 0.0


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch names it, with all of its memory in bytes, used or not."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a machine has. `memory_bytes` of main memory may be taken without swapping; None where that is not known."""

    hostname: str
    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    torch: str

    def device_bytes(self, on_gpu: bool) -> int | None:
        """The memory that trials on one device share: all of the smallest GPU's, or main memory."""
        return min(gpu.memory_bytes for gpu in self.gpus) if on_gpu else self.memory_bytes


# ---------------------------------------------------------------- the plain rule


def decide_resources(
    cpus_per_trial: int, gpus_per_trial: float | str, concurrency: int | str, *, elsewhere: bool = False
) -> Resources:
    """What `auto` means on this machine without measuring: one trial per GPU where there are any, else one per
    `cpus_per_trial` cores.

    Raises MnetError where a GPU is asked for and there is none, unless trials run `elsewhere`, on other machines.
    """
    n_gpus = count_gpus()
    elsewhere = elsewhere or bool(os.environ.get("RAY_ADDRESS"))
    if gpus_per_trial != "auto" and float(gpus_per_trial) > 0 and not n_gpus and not elsewhere:
        raise MnetError(
            f"resources.gpus_per_trial is {float(gpus_per_trial):g}, but torch sees no GPU on this machine; set it to "
            "0 or auto"
        )
    return plain_rule(cpus_per_trial, gpus_per_trial, concurrency, n_cores=count_cores(), n_gpus=n_gpus)


def plain_rule(
    cpus_per_trial: int, gpus_per_trial: float | str, concurrency: int | str, *, n_cores: int, n_gpus: int
) -> Resources:
    """`decide_resources` on a machine with so many cores and GPUs."""
    gpus = (1.0 if n_gpus else 0.0) if gpus_per_trial == "auto" else float(gpus_per_trial)
    by_cpu = max(n_cores // cpus_per_trial, 1)
    by_gpu = n_gpus * trials_per_gpu(gpus) if 0 < gpus <= 1 else int(n_gpus / gpus) if gpus else by_cpu
    automatic = max(min(by_cpu, by_gpu), 1)
    return Resources(automatic if concurrency == "auto" else int(concurrency), cpus_per_trial, gpus)


def trials_per_gpu(gpus_per_trial: float) -> int:
    """How many trials of this share (above 0) lie on one GPU; 1 where one trial has several."""
    return max(int(1 / gpus_per_trial + 1e-9), 1)


def gpu_share(n: int) -> float:
    """The part of a GPU that each of `n` trials has, in the four digits that Ray counts in: n of them fit one GPU."""
    return math.floor(10_000 / n) / 10_000


def halved(resources: Resources) -> Resources | None:
    """Half as many trials side by side, for when their memory did not suffice; None where a trial is alone already."""
    if resources.concurrency <= 1:
        return None
    if resources.gpus_per_trial <= 0:
        return replace(resources, concurrency=resources.concurrency // 2)
    now = trials_per_gpu(resources.gpus_per_trial)
    if now == 1:
        return None
    fewer = now // 2
    return replace(
        resources,
        concurrency=math.ceil(resources.concurrency * fewer / now),
        gpus_per_trial=gpu_share(fewer),
        gpu_memory_fraction=resources.gpu_memory_fraction * now / fewer if fewer > 1 else 0.0,
    )


def limit_gpu_memory(fraction: float) -> None:
    """Hold this process to its share of the GPU's memory, so that one trial that needs more fails and not those beside
    it: torch.OutOfMemoryError above it. 0 sets no limit; without a GPU nothing is done.
    """
    if fraction <= 0:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(fraction, 1.0))


# ---------------------------------------------------------------- what there is


def look_at_machine() -> Machine:
    """This machine as it is now."""
    import torch

    found = (torch.cuda.get_device_properties(index) for index in range(count_gpus()))
    gpus = tuple(Gpu(gpu.name, gpu.total_memory) for gpu in found)
    return Machine(socket.gethostname(), count_cores(), available_memory(), gpus, torch.__version__)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes of main memory that may be taken without swapping, within the limits of this process's control groups;
    None where the system does not say.
    """
    known = [memory_available(), *(_left_in(folder) for folder in _memory_groups(cgroups, own))]
    return min((size for size in known if size is not None), default=None)


def _memory_groups(cgroups: Path, own: Path) -> Iterator[Path]:
    """The folders of the control groups that bound this process's memory: its own and all above it (v2, v1). In a
    container the names may be those outside; then the root is the container's own.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        inner = root / name.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _left_in(group: Path) -> int | None:
    """Bytes below a control group's limit, file pages that can be dropped counted as free; None without a limit."""
    for limit_name, used_name, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int((group / limit_name).read_text())
            used = int((group / used_name).read_text())
            rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        return max(limit - max(used - int(rows.get(dropped, 0)), 0), 0)
    return None


def memory_kills(statistics: Path = Path("/proc/vmstat")) -> int:
    """How many processes the system has ended for want of memory since it started (Linux; elsewhere 0)."""
    try:
        lines = statistics.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def count_gpus() -> int:
    """The GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
