"""One trial: one network trained once with one seed. Runs without Ray and without the database.

A trial is a generator of epochs with one outcome at the end, so whoever runs it may stop after any epoch and run it
again later: it goes on from its own checkpoint, whose folder is named by network and seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.checkpoints import write_atomically
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.latency import PROTOCOLS, Latency, measure
from mnet_search.search.data import Data, DataOptions, load
from mnet_search.search.data_cache import shared
from mnet_search.search.handoff import in_thread
from mnet_search.search.own_evaluation import OwnTrial, find_function, measured
from mnet_search.search.provenance import processor
from mnet_search.search.remote_folder import CHECKPOINT, SPEED, open_folder
from mnet_search.search.resources import limit_gpu_memory
from mnet_search.search.speed import Speed, SpeedOptions, choose_speed
from mnet_search.search.teachers import Teacher, load_teacher
from mnet_search.search.training import Epoch, TrainingOptions, TrialFailed, probe_batch, train

log = logging.getLogger(__name__)

CPU_ALLOCATOR = "DefaultCPUAllocator"  # by which torch's RuntimeError for a full memory is known
LATENCY_LOCK_TIMEOUT_S = 600.0  # a measurement takes seconds; whoever holds the lock this long is stuck
FOLDER_LOCK_TIMEOUT_S = 60.0  # a worker may outlive its killed driver by some seconds


@dataclass(frozen=True)
class Job:
    """All that a worker needs to run a trial; goes through JSON. `options` are the family's, resolved.

    `folder` is the trial's own, keyed by arch id and seed, a path or a URL; `device` is torch's name or "auto": cuda
    where there is any. `data_cache` is where this machine's processes share the images whose digest is `data_digest`;
    without it, each reads its own. After each epoch of `rungs` whoever runs the trial asks whether it goes on.
    `evaluate` is a function of the user's own in place of training, which is told `params`, the space's parameters, and
    returns what `measured` names. `gpu_memory_fraction` is the share of the GPU's memory that the process may have.
    """

    number: int
    family: str
    options: Mapping[str, Any]
    arch_id: str
    seed: int
    data: DataOptions
    training: TrainingOptions
    folder: str
    data_digest: str = ""
    teacher_digest: str = ""
    data_cache: str = ""
    device: str = "auto"
    threads: int = 1
    speed: SpeedOptions = field(default_factory=SpeedOptions)
    latency_repeats: int = 50
    rungs: Sequence[int] = ()
    timeout_s: float | None = None
    evaluate: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    measured: Sequence[str] = ()
    gpu_memory_fraction: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        kinds: dict[str, Any] = {"data": DataOptions, "training": TrainingOptions, "speed": SpeedOptions}
        made = {name: kind(**values[name]) for name, kind in kinds.items()}
        lists = {name: tuple(values[name]) for name in ("rungs", "measured") if name in values}
        return cls(**{**values, **made, **lists})


@dataclass(frozen=True)
class Outcome:
    """What a finished trial came to: `metrics` with their units in the names, `environment` where they were taken."""

    metrics: dict[str, float]
    environment: dict[str, str | int]
    checkpoint: str
    checkpoint_sha256: str


def run_trial(job: Job, function: Callable[[OwnTrial], Any] | None = None) -> Generator[Epoch | Outcome, None, None]:
    """Train the job's network, yielding each epoch, then exactly one Outcome.

    `accuracy` is the validation accuracy after the last epoch: the best over the epochs would be picked for its noise,
    and so be too high. A `function` of the user's own, or the one that the job names, is called in place of training.
    Raises TrialFailed, one sentence with the real cause, for everything that a trial can die of (TrialTimeout where it
    took too long); KeyboardInterrupt passes.
    """
    if function is not None or job.evaluate:
        yield from in_thread(partial(evaluate_by, job, function), job.timeout_s)
    elif job.timeout_s is not None:
        yield from in_thread(partial(_emit_all, job), job.timeout_s)
    else:
        yield from _train(job)


def _emit_all(job: Job, emit: Callable[[Epoch | Outcome], None]) -> None:
    with contextlib.closing(_train(job)) as events:
        for event in events:
            emit(event)


def evaluate_by(job: Job, function: Callable[[OwnTrial], Any] | None, emit: Callable[[Epoch | Outcome], None]) -> None:
    """Call a function of the user's own, or the one that the job names; `emit` takes what it reports and, last, the
    outcome. Raises TrialFailed.
    """
    try:
        function = function or find_function(job.evaluate)
        trial = OwnTrial(_same_arch(job), dict(job.params), job.seed, job.number, emit)
        figures = measured(function(trial), tuple(job.measured))
    except MnetError as error:
        raise TrialFailed(str(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TrialOutOfMemory(f"evaluate ran out of memory ({type(error).__name__}: {_first_line(error)})") from error
    except (Exception, SystemExit) as error:  # whatever it is, the trial fails with it and the search goes on
        if CPU_ALLOCATOR in str(error):
            raise TrialOutOfMemory(f"evaluate ran out of memory ({_first_line(error)})") from error
        raise TrialFailed(f"evaluate raised {type(error).__name__}: {_first_line(error)}") from error
    emit(Outcome(figures, environment(torch.device("cpu"), job.threads), "", ""))


def _train(job: Job) -> Generator[Epoch | Outcome, None, None]:
    """Training and latency, with every error named and torch's threads as they were afterwards."""
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(job.threads)
        with memory_named():
            yield from _run(job)
    except TrialFailed:
        raise
    except MnetError as error:
        raise TrialFailed(str(error)) from error
    except Exception as error:  # whatever it is, the trial fails with it and the search goes on
        raise TrialFailed(f"{type(error).__name__}: {_first_line(error)}") from error
    finally:
        torch.set_num_threads(threads_before)


class TrialOutOfMemory(TrialFailed):
    """A trial that found no memory: beside fewer others it may."""


@contextlib.contextmanager
def memory_named() -> Iterator[None]:
    """Turns memory that is full into a TrialOutOfMemory of one line."""
    advice = "lower training.batch_size or run fewer trials at once"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrialOutOfMemory(f"out of GPU memory; {advice} ({_first_line(error)})") from error
    except MemoryError as error:
        raise TrialOutOfMemory(f"out of memory; {advice} ({_first_line(error)})") from error
    except RuntimeError as error:  # torch's allocator for the CPU has no class of its own
        if CPU_ALLOCATOR not in str(error):
            raise
        raise TrialOutOfMemory(f"out of memory; {advice} ({_first_line(error)})") from error


def find_device(name: str) -> torch.device:
    """torch's device of a name; "auto" is cuda where there is any. Raises MnetError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MnetError(f"device {name!r} is not known; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MnetError(f"device {name!r}: torch sees no GPU on this machine; use cpu")
    return device


def _run(job: Job) -> Iterator[Epoch | Outcome]:
    device = find_device(job.device)
    if device.type == "cuda":
        limit_gpu_memory(job.gpu_memory_fraction)
    arch = _same_arch(job)
    data = shared(job.data, Path(job.data_cache), job.data_digest) if job.data_cache else load(job.data)
    teacher = _teacher(job, data)
    module = build(arch, job.seed)
    folder = open_folder(job.folder)
    checkpoint = folder.path / CHECKPOINT
    rows: list[Epoch] = []
    with _folder_lock(folder.path), folder:
        speed = settled_speed(folder.path, module, data, job.training, job.speed, arch.input.height, device)
        for row in train(
            module,
            data,
            job.training,
            resolution=arch.input.height,
            seed=job.seed,
            device=device,
            checkpoint=checkpoint,
            identity=arch.id,
            network=arch.to_json(),
            teacher=teacher,
            speed=speed,
        ):
            rows.append(row)
            folder.send()
            yield row
        sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    protocol = replace(PROTOCOLS["default"], threads=job.threads, device=str(device), repeats=job.latency_repeats)
    with latency_lock():
        latency = measure(module, arch.input, protocol)
    yield Outcome(
        metrics=_metrics(rows, latency),
        environment=environment(device, job.threads)
        | {"data_digest": data.digest, "way": speed.name, "way_reason": speed.reason},
        checkpoint=folder.where(CHECKPOINT),
        checkpoint_sha256=sha256,
    )


def settled_speed(
    folder: Path,
    module: nn.Module,
    data: Data,
    training: TrainingOptions,
    options: SpeedOptions,
    resolution: int,
    device: torch.device,
) -> Speed:
    """The way in which the trial of this folder is trained: chosen once, since another way gives other last digits, and
    anew only for another kind of device or other wishes.
    """
    path, asked = folder / SPEED, {"device": device.type, **asdict(options)}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(path.read_bytes())
        if kept["asked"] == asked:
            return Speed(**kept["chosen"])
        log.warning("%s: chosen for %s, now %s is asked; chosen anew", path, kept["asked"], asked)
    module.to(device)
    images, labels, steps = probe_batch(data, training, resolution, device)
    speed = choose_speed(module, images, labels, steps, options)
    write_atomically(path, json.dumps({"asked": asked, "chosen": asdict(speed)}, indent=1).encode())
    return speed


def _teacher(job: Job, data: Data) -> Teacher | None:
    if job.training.teacher is None:
        return None
    teacher = load_teacher(job.training.teacher, data.facts)
    if job.teacher_digest not in ("", teacher.digest):
        raise TrialFailed(
            f"training.teacher: {job.training.teacher!r} is another network here than the one that the search began "
            f"with (digest {teacher.digest[:12]}, not {job.teacher_digest[:12]}); put that one back"
        )
    return teacher


def _same_arch(job: Job) -> Arch:
    arch = create(job.family, **job.options)
    if arch.id != job.arch_id:
        raise TrialFailed(
            f"the code that runs the trial makes network {arch.id} of these options, the code that asked made "
            f"{job.arch_id}: install the same mnet-search on every machine"
        )
    return arch


def _metrics(rows: list[Epoch], latency: Latency) -> dict[str, float]:
    return {
        "accuracy": rows[-1].validation_accuracy,
        "validation_loss": rows[-1].validation_loss,
        "latency_ms": latency.median_ms,
        "latency_q1_ms": latency.q1_ms,
        "latency_q3_ms": latency.q3_ms,
        "latency_n": latency.n,
        "latency_batch": latency.batch,
        "latency_drift": latency.drift,
        "latency_good": float(latency.good),
        "train_seconds": sum(row.seconds for row in rows),
    }


def environment(device: torch.device, threads: int) -> dict[str, str | int]:
    """Where figures are taken. `device` is "cpu" or the GPU's name."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
    }


def _first_line(error: BaseException) -> str:
    """An error's text on one line; its type stands in where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no further text")


# ---------------------------------------------------------------- locks


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """One process trains in a folder at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not per thread, for a Ray actor may resume this generator from another thread than began it.
    lock = FileLock(folder / ".lock", thread_local=False)
    try:
        lock.acquire(timeout=FOLDER_LOCK_TIMEOUT_S)
    except Timeout:
        raise TrialFailed(
            f"another process trains in {folder} and did not end within {FOLDER_LOCK_TIMEOUT_S:g} s; wait for it, or "
            "end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def latency_lock_path() -> Path:
    """One file per machine: two trials never time at once, whoever runs them."""
    return Path(tempfile.gettempdir()) / "mnet-search-latency.lock"


@contextlib.contextmanager
def latency_lock(timeout_s: float = LATENCY_LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the machine's right to time. Where its file is closed to this user, one of the user's own serves.

    Raises TrialFailed where the lock is not to be had within `timeout_s`.
    """
    path = latency_lock_path()
    lock = FileLock(path, mode=0o666)  # so that other users' trials can take it too
    try:
        try:
            lock.acquire(timeout=timeout_s)
        except PermissionError:
            lock = FileLock(path.with_name(f"{path.stem}-{os.geteuid()}.lock"), mode=0o600)
            lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise TrialFailed(
            f"latency could not be measured: {error.lock_file} was held for {timeout_s:g} s by another trial; "
            "look for one that hangs on this machine"
        ) from None
    try:
        yield
    finally:
        lock.release()
