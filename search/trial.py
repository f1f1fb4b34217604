"""One trial: one network trained once with one seed. Runs without Ray and without the database.

A trial is a generator of epochs with one outcome at the end, so that whoever runs it may stop after any epoch and run it again later: it goes on from
its own checkpoint, whose folder is named by network and seed.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.checkpoints import record_path
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.latency import Latency, measure
from mnet_search.search.data import DataOptions, load
from mnet_search.search.training import Epoch, TrainingOptions, TrialFailed, train

CHECKPOINT = "last.pt"


@dataclass(frozen=True)
class Job:
    """All that a worker needs to run a trial; goes through JSON. `options` are the family's, resolved; `folder` is the trial's own."""

    number: int
    family: str
    options: Mapping[str, Any]
    arch_id: str
    seed: int
    data: DataOptions
    training: TrainingOptions
    folder: str
    device: str = "auto"
    threads: int = 1
    latency_repeats: int = 50

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        data, training = DataOptions(**values["data"]), TrainingOptions(**values["training"])
        return cls(**{**values, "data": data, "training": training})


@dataclass(frozen=True)
class Outcome:
    """What a finished trial came to. `metrics` are numbers with their unit in the name, `environment` says where they were taken."""

    metrics: dict[str, float]
    environment: dict[str, str | int]
    checkpoint: str
    checkpoint_sha256: str


def run_trial(job: Job) -> Iterator[Epoch | Outcome]:
    """Train the job's network, yielding each epoch, then exactly one Outcome.

    accuracy is the validation accuracy after the last epoch: the best over the epochs would be picked by its noise, and be too high by about the
    spread of the last epochs. Raises TrialFailed with the real cause for everything that a trial can die of.
    """
    try:
        yield from _run(job)
    except TrialFailed:
        raise
    except MnetError as error:
        raise TrialFailed(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise TrialFailed(f"out of GPU memory; lower training.batch_size or run fewer trials at once ({error})") from error
    except Exception as error:  # noqa: BLE001  # whatever it is, the trial fails with it and the search goes on
        raise TrialFailed(f"{type(error).__name__}: {error}") from error


def _run(job: Job) -> Iterator[Epoch | Outcome]:
    started = time.perf_counter()
    torch.set_num_threads(job.threads)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if job.device == "auto" else job.device)
    arch = _same_arch(job)
    data = load(job.data)
    module = build(arch, job.seed)
    checkpoint = Path(job.folder) / CHECKPOINT
    resolution = arch.input.height
    last: Epoch | None = None
    for last in train(
        module,
        data,
        job.training,
        resolution=resolution,
        seed=job.seed,
        device=device,
        checkpoint=checkpoint,
        identity=arch.id,
    ):
        yield last
    assert last is not None, "a trial has at least one epoch"
    with latency_lock():
        latency = measure(module, arch.input, threads=job.threads, device=device, repeats=job.latency_repeats)
    yield Outcome(
        metrics=_metrics(last, latency, time.perf_counter() - started),
        environment=environment(device, job.threads) | {"data_digest": data.digest},
        checkpoint=str(checkpoint),
        checkpoint_sha256=_recorded_sha256(checkpoint),
    )


def _same_arch(job: Job) -> Arch:
    arch = create(job.family, **job.options)
    if arch.id != job.arch_id:
        raise TrialFailed(
            f"the code that runs the trial makes network {arch.id} of these options, the code that asked made {job.arch_id}: "
            "install the same mnet-search on every machine"
        )
    return arch


def _metrics(last: Epoch, latency: Latency, seconds: float) -> dict[str, float]:
    if not math.isfinite(last.validation_accuracy):
        raise TrialFailed(f"the validation accuracy of epoch {last.epoch} is {last.validation_accuracy}")
    return {
        "accuracy": last.validation_accuracy,
        "validation_loss": last.validation_loss,
        "latency_ms": latency.median_ms,
        "latency_q1_ms": latency.q1_ms,
        "latency_q3_ms": latency.q3_ms,
        "latency_n": latency.n,
        "latency_batch": latency.batch,
        "trial_seconds": seconds,
    }


def _recorded_sha256(checkpoint: Path) -> str:
    import json

    return str(json.loads(record_path(checkpoint).read_text(encoding="utf-8"))["sha256"])


def environment(device: torch.device, threads: int) -> dict[str, str | int]:
    """Where figures are taken."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "pid": os.getpid(),
    }


def latency_lock_path() -> Path:
    """One file per machine: two trials never time at once, whoever runs them."""
    return Path(tempfile.gettempdir()) / "mnet-search-latency.lock"


@contextlib.contextmanager
def latency_lock() -> Iterator[None]:
    """Hold the machine's right to time. Where the file cannot be shared with its owner, a file of one's own serves."""
    path = latency_lock_path()
    try:
        lock = FileLock(path, mode=0o666)
        lock.acquire()
    except PermissionError:
        lock = FileLock(path.with_name(f"{path.stem}-{os.getuid()}.lock"), mode=0o600)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
