"""How many trials share this machine: measured on networks of the space, never assumed.

The network that needs most memory says how many fit, the median one how many are fastest together. Both are trained for
a moment in processes of their own (`packing_probe`). What was measured is kept beside the study, so that the same
command decides at once; the decision itself is a pure function of it (`decide`).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mnet_search.models.arch import MnetError, Shape
from mnet_search.models.checkpoints import write_atomically
from mnet_search.models.costs import FLOAT32_BYTES, Costs
from mnet_search.search.evaluation import EVALUATION_PIXELS
from mnet_search.search.packing_probe import GAIN, Crew, Figures, ProbeFailed, ProbeJob, TooSlow, side_by_side
from mnet_search.search.recipes import TrainingOptions
from mnet_search.search.resources import (
    Machine,
    Resources,
    decide_resources,
    gpu_share,
    look_at_machine,
    plain_rule,
    trials_per_gpu,
)
from mnet_search.search.speed import SpeedOptions
from mnet_search.search.workers import environment, worker_context
from mnet_search.spaces import schema
from mnet_search.spaces.space import Space, si
from mnet_search.spaces.survey import Survey

__all__ = ["Images", "Packing", "Probe", "Subject", "decide", "pack", "subjects"]

HEADROOM = 1.2  # times the measured memory that each of several trials is given
BUDGET_S = {"cpu": 4.0, "cuda": 20.0}  # for all probes, from when torch is imported
CALM = 0.9  # of a core that a process alone must have had, or other programs took part in the measurement
TIMED_S = {"cpu": 0.4, "cuda": 1.0}  # for each number of trials side by side
MOST_ON_GPU = 99  # shares of four digits fit a GPU exactly so often, up to here
ASSUMED_CONTEXT_BYTES = 2**29  # of a GPU's memory for each process, where nothing was measured
# Bytes of a training process for each output of a convolution and image of a batch: 12 to 20 beside the libraries' own
# 50 MB, over seven networks on a CPU; 2 are the least there can be (bfloat16, kept for the backward pass).
TYPICAL_BYTES, LEAST_BYTES = 16, 2
LARGEST, MEDIAN = "largest", "median"


@dataclass(frozen=True)
class Images:
    """What is known of the images: how many train (None: enough for every batch), and how many each trial keeps in the
    memory of its GPU (streamed ones are not kept).
    """

    train: int | None = None
    on_device: int = 0


@dataclass(frozen=True)
class Probe:
    """So many processes that trained one network side by side.

    `network` is "largest" or "median", `about` it in words. `images_per_second` is of all processes together. One
    process took `peak_bytes` of its device's memory for training on batches of `batch`, and `own_bytes` beside it.
    `device_bytes` is what such processes may share of one GPU, None on a CPU. Where a first step took longer than there
    was time, it is not `measured`: `step_seconds` had gone by then, and `peak_bytes` is an estimate. `cpu_share` is the
    part of a core that one process had; more where it has more threads.
    """

    network: str
    about: str
    batch: int
    side_by_side: int
    images_per_second: float
    step_seconds: float
    peak_bytes: int
    own_bytes: int
    device_bytes: int | None
    measured: bool = True
    cpu_share: float = 1.0


@dataclass(frozen=True)
class Packing:
    """How many trials share the machine, why in one sentence, and what was measured for it."""

    resources: Resources
    reason: str
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A network that is measured: in words, as a probe process gets it, what it costs, what it sees, its arch id."""

    about: str
    job: ProbeJob
    costs: Costs
    input: Shape
    arch_id: str


def pack(
    space: Space,
    found: Survey,
    asked: schema.Resources,
    cache: Path | None,
    *,
    tell: Callable[[str], None] = lambda _: None,
    cluster: bool = False,
    trained: bool = True,
    images: Images | None = None,
) -> Packing:
    """How many trials of a space run at once, `auto` decided by measurement.

    `cache` is the file that keeps what was measured; `tell` is told before seconds are spent. On a `cluster` other
    machines train, and where nothing is `trained` there is nothing to measure: then the plain rule decides.

    Raises MnetError where a GPU is asked for and there is none, and where a network of the space cannot fit.
    """
    images = images or Images()
    if not trained or space.file.evaluate is not None:
        gpus = 0.0 if asked.gpus_per_trial == "auto" else asked.gpus_per_trial
        plain = decide_resources(asked.cpus_per_trial, gpus, asked.concurrency, elsewhere=cluster)
        return Packing(plain, f"{_trials(plain.concurrency)}: nothing is trained here, so nothing is measured")
    plain = decide_resources(asked.cpus_per_trial, asked.gpus_per_trial, asked.concurrency, elsewhere=cluster)
    if cluster:
        return Packing(plain, f"{_trials(plain.concurrency)}: a cluster trains, so this machine is not measured")
    machine = look_at_machine()
    device = "cuda" if plain.gpus_per_trial > 0 else "cpu"
    if asked.gpus_per_trial != "auto" if device == "cuda" else asked.concurrency != "auto":
        return decide((), machine, asked)
    networks = subjects(space, found, asked, images, device)
    key = _key(space, asked, machine, networks, images)
    probes = _kept(cache, key)
    if probes is None:
        tell(f"measuring how many trials fit side by side, {BUDGET_S[device]:g} s at most")
        try:
            probes = _measure(networks, machine, asked, images)
        except ProbeFailed as error:
            return replace(decide((), machine, asked), reason=f"by the plain rule, for a probe failed: {error}")
        _keep(cache, key, decide(probes, machine, asked), tell)
    return decide(probes, machine, asked)


# ---------------------------------------------------------------- the decision


def decide(probes: tuple[Probe, ...], machine: Machine, asked: schema.Resources) -> Packing:
    """How many trials share a machine by what was measured on it; a pure function.

    Of the numbers that fit the memory and the cores it takes the smallest than which no larger one is GAIN times as
    fast. Without side-by-side probes, or where other programs disturbed them, it is the plain rule's number as far as
    the memory reaches.

    Raises MnetError where the largest network, or as many as are asked for, do not fit the memory.
    """
    n_gpus = 0 if asked.gpus_per_trial == 0 else len(machine.gpus)
    wanted = (asked.cpus_per_trial, asked.gpus_per_trial, asked.concurrency)
    plain = plain_rule(*wanted, n_cores=machine.cores, n_gpus=n_gpus)
    largest = next((p for p in probes if p.network == LARGEST), None)
    if largest is None:
        return Packing(_limited(plain, machine), f"{_trials(plain.concurrency)}: as asked, nothing was measured")
    memory = _memory(largest, machine)
    needs = largest.peak_bytes + largest.own_bytes
    if largest.measured and memory is not None and needs > memory:
        raise _does_not_fit(largest.about, largest.batch, _bytes(needs), memory)
    if n_gpus and asked.concurrency != "auto":
        n, why = _as_many_as_asked(largest, memory, int(asked.concurrency), n_gpus)
    else:
        n, why = _fastest(probes, largest, machine, asked)
    place = f"{_trials(n)} on each of {n_gpus} GPUs" if n_gpus > 1 else _trials(n)
    size = f"{'' if largest.measured else 'about '}{_bytes(largest.peak_bytes)}"
    reason = f"{place}: {why}; the largest needs {size} of {_bytes(memory) if memory else 'the memory'}"
    if not n_gpus:
        return Packing(Resources(n, asked.cpus_per_trial), reason, probes)
    resources = plain_rule(asked.cpus_per_trial, gpu_share(n), asked.concurrency, n_cores=machine.cores, n_gpus=n_gpus)
    return Packing(_limited(resources, machine, largest), reason, probes)


def _fastest(probes: tuple[Probe, ...], largest: Probe, machine: Machine, asked: schema.Resources) -> tuple[int, str]:
    """How many on one device, and why."""
    by_memory, by_cores = _most(largest, machine, asked)
    most = min(by_memory, by_cores)
    if most == 1:
        if by_memory < by_cores:
            return 1, f"two of the largest network ({largest.about}) do not fit the memory"
        return 1, f"a trial has {asked.cpus_per_trial} of {machine.cores} cores"
    medians = {p.side_by_side: p for p in probes if p.network == MEDIAN and p.side_by_side <= most}
    share, unknown = medians.get(1, largest).cpu_share, ""
    if not largest.measured:
        unknown = (
            f"a step of the largest ({largest.about}) takes over {largest.step_seconds:.2g} s, too long to measure"
        )
    elif share < CALM:
        unknown = f"other programs keep this machine too busy to measure; a process alone had {share:.0%} of a core"
    elif len(medians) < 2:
        more_measured = any(p.side_by_side > most for p in probes)
        unknown = "more do not fit the memory now" if more_measured else "there was no time to measure side by side"
    if unknown:
        return min(1 if largest.device_bytes is not None else by_cores, most), unknown
    best = max(p.images_per_second for p in medians.values())
    n = min(n for n, p in medians.items() if p.images_per_second * GAIN > best)
    fewest = medians[min(medians)]
    more = [p for p in medians.values() if p.side_by_side > n]
    other = max(more, key=lambda p: p.images_per_second) if fewest.side_by_side == n else fewest
    rates = f"{_speed(medians[n], ' images/s')} against {_speed(other)}"
    return n, f"the median network ({fewest.about}) trains {rates}"


def _as_many_as_asked(largest: Probe, memory: int | None, concurrency: int, n_gpus: int) -> tuple[int, str]:
    """How many on one GPU where the user says how many there are on all. Raises MnetError where they do not fit."""
    n = math.ceil(concurrency / n_gpus)
    most = _fitting(largest, memory)
    if n > most:
        each = _bytes(round(HEADROOM * largest.peak_bytes) + largest.own_bytes)
        raise MnetError(
            f"resources.concurrency is {concurrency}: each of {n} trials on one GPU needs up to {each} (the largest "
            f"network, {largest.about}) of {_bytes(memory or 0)}; set it to auto, or to {most * n_gpus} or less"
        )
    return n, "as asked"


def _memory(largest: Probe, machine: Machine) -> int | None:
    """Bytes that trials on one device may have together; None where that is not known."""
    return machine.memory_bytes if largest.device_bytes is None else largest.device_bytes


def _fitting(largest: Probe, memory: int | None) -> int:
    """How many of the largest network fit, at least 1."""
    each = HEADROOM * largest.peak_bytes + largest.own_bytes
    return 10_000 if memory is None or not each else max(int(memory / each), 1)


def _most(largest: Probe, machine: Machine, asked: schema.Resources) -> tuple[int, int]:
    """How many on one device its memory allows, and the cores: a trial on a GPU needs its cores too, to feed it."""
    n_gpus = len(machine.gpus) if asked.gpus_per_trial != 0 else 0
    by_cores = max(machine.cores // asked.cpus_per_trial // max(n_gpus, 1), 1)
    return _fitting(largest, _memory(largest, machine)), min(by_cores, MOST_ON_GPU) if n_gpus else by_cores


def _limited(resources: Resources, machine: Machine, largest: Probe | None = None) -> Resources:
    """The resources with the share of a GPU's memory that each process may have, what it takes itself left out."""
    n = trials_per_gpu(resources.gpus_per_trial) if resources.gpus_per_trial > 0 else 1
    total = machine.device_bytes(bool(machine.gpus))
    if n == 1 or resources.concurrency == 1 or not machine.gpus or not total:
        return resources
    part = (largest.device_bytes or total if largest else total) / n
    own = largest.own_bytes if largest else ASSUMED_CONTEXT_BYTES
    fraction = (part - own if largest else max(part - own, part / 2)) / total
    return replace(resources, gpu_memory_fraction=math.floor(fraction * 10**6) / 10**6)


def _does_not_fit(about: str, batch: int, needs: str, memory: int) -> MnetError:
    return MnetError(
        f"the largest network ({about}) needs {needs} of memory to train on batches of {batch}, and there are "
        f"{_bytes(memory)}; lower training.batch_size, or set a constraint (constraints.activations.max)"
    )


# ---------------------------------------------------------------- what is measured


def subjects(space: Space, found: Survey, asked: schema.Resources, images: Images, device: str) -> dict[str, Subject]:
    """The network of a space that needs most memory to train, and the median one by mult-adds, to be trained as the
    space says.
    """

    def batch(params: Mapping[str, Any]) -> int:
        size = int(params.get("training.batch_size", space.file.training.batch_size))
        return max(min(size, images.train or size), 2)  # as the training loop parts them

    def bytes_of(key: str) -> int:
        params, costs = found.feasible[key]
        return _trained_bytes(costs, batch(params), TYPICAL_BYTES)

    def subject(key: str) -> Subject:
        params, costs = found.feasible[key]
        arch, training = space.arch(params), TrainingOptions(**space.training_of(params).model_dump())
        speed = SpeedOptions(asked.memory_format, asked.precision, False)
        options = json.loads(json.dumps(dict(arch.options), default=dict))
        job = ProbeJob(arch.family, options, batch(params), training, speed, device, asked.cpus_per_trial)
        return Subject(f"{arch.family}, {si(costs.mult_adds)} mult-adds", job, costs, arch.input, arch.id)

    by_time = sorted(found.feasible, key=lambda key: (found.feasible[key][1].mult_adds, key))
    return {LARGEST: subject(max(by_time, key=bytes_of)), MEDIAN: subject(by_time[len(by_time) // 2])}


def _measure(
    networks: Mapping[str, Subject], machine: Machine, asked: schema.Resources, images: Images
) -> tuple[Probe, ...]:
    """Train the largest network alone, then as many of the median one as fit. Raises MnetError where the largest does
    not fit, ProbeFailed where it fails.
    """
    median = networks[MEDIAN]
    # The server that workers are forked from takes its variables from here.
    with environment(OMP_NUM_THREADS=str(asked.cpus_per_trial)):
        alone, deadline = _largest_alone(networks[LARGEST], machine, images)
        most = min(_most(alone, machine, asked))
        if not alone.measured or most == 1 or asked.concurrency != "auto":
            return (alone,)
        device = median.job.device
        with Crew(worker_context(), median.job, BUDGET_S[device], deadline) as crew:
            rates = side_by_side(crew, most, TIMED_S[device], upwards=device == "cuda")
    found = [_probe(MEDIAN, median, n, rate, figures, images) for n, (rate, figures) in sorted(rates.items())]
    return (alone, *found)


def _largest_alone(largest: Subject, machine: Machine, images: Images) -> tuple[Probe, float | None]:
    """What the largest network takes, and the deadline of all probes."""
    job = largest.job
    on_gpu, budget_s = job.device == "cuda", BUDGET_S[job.device]
    total, least = machine.device_bytes(on_gpu), _trained_bytes(largest.costs, job.batch, LEAST_BYTES)
    if total is not None and least > total:  # tried, it might make the system end other programs
        raise _does_not_fit(largest.about, job.batch, f"at least {_bytes(least)}", total)
    with Crew(worker_context(), job, budget_s) as crew:
        try:
            figures = crew.warm(1)[0]
            if figures.seconds < crew.left_s / 4:  # memory grows a little in the second step
                figures = crew.train(1, 0.0)[0]
        except TooSlow:
            estimate = _trained_bytes(largest.costs, job.batch, TYPICAL_BYTES)
            beside = (ASSUMED_CONTEXT_BYTES, total) if on_gpu else (0, None)
            figures = Figures(job.batch, budget_s, estimate, *beside)
            return replace(_probe(LARGEST, largest, 1, 0.0, figures, images), measured=False), crew.deadline
        except ProbeFailed as error:
            if not error.memory_ended:
                raise
            raise _does_not_fit(largest.about, job.batch, f"more than can be had ({error})", total or 0) from None
    return _probe(LARGEST, largest, 1, figures.images / figures.seconds, figures, images), crew.deadline


def _probe(network: str, subject: Subject, n: int, rate: float, figures: Figures, images: Images) -> Probe:
    """Figures as a Probe, with what training does not need and a trial does: images kept on a GPU, and validation."""
    job, costs = subject.job, subject.costs
    channels, side, _ = subject.input
    validating = FLOAT32_BYTES * (costs.peak_activations * max(1, EVALUATION_PIXELS // side**2) + 3 * costs.params)
    kept = images.on_device * channels * side**2 if job.device == "cuda" else 0  # on a CPU all share one copy
    peak_bytes = max(figures.peak_bytes, validating) + kept
    taken = (rate, figures.seconds * job.batch / figures.images, peak_bytes, figures.own_bytes, figures.device_bytes)
    return Probe(network, subject.about, job.batch, n, *taken, cpu_share=figures.cpu_share)


def _trained_bytes(costs: Costs, batch: int, each: int) -> int:
    """Memory for training, by what an output and an image take; beside it weights, gradients and momenta."""
    return each * batch * costs.activations + 3 * FLOAT32_BYTES * costs.params


# ---------------------------------------------------------------- what is kept


def _key(
    space: Space, asked: schema.Resources, machine: Machine, networks: Mapping[str, Subject], images: Images
) -> dict[str, Any]:
    """What a measurement depends on. How much memory is free now does not: that is asked anew."""
    facts = {name: value for name, value in asdict(machine).items() if name != "memory_bytes"}
    measured = {name: {"arch_id": s.arch_id, "batch": s.job.batch} for name, s in networks.items()}
    key = {"version": 1, "space": space.hash, "machine": facts, "asked": asked.model_dump()}
    return json.loads(json.dumps(key | {"networks": measured, "images": asdict(images)}))


def _kept(cache: Path | None, key: Mapping[str, Any]) -> tuple[Probe, ...] | None:
    """The probes of an earlier run like this one; None where there are none, or the file is damaged or another's."""
    if cache is None:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(cache.read_bytes())
        if kept["for"] == key:
            return TypeAdapter(tuple[Probe, ...]).validate_python(kept["probes"])
    return None


def _keep(cache: Path | None, key: Mapping[str, Any], packing: Packing, tell: Callable[[str], None]) -> None:
    try:
        if cache is not None:
            write_atomically(cache, json.dumps({"for": key, **asdict(packing)}, indent=1).encode())
    except OSError as error:  # the next run measures again
        tell(f"{cache}: what was measured cannot be kept ({error.strerror})")


def _trials(n: int) -> str:
    return "1 trial at a time" if n == 1 else f"{n} trials side by side"


def _speed(probe: Probe, unit: str = "") -> str:
    """In two digits, as far as such short times are good for."""
    place = "alone" if probe.side_by_side == 1 else f"in {probe.side_by_side} processes"
    return f"{float(f'{probe.images_per_second:.2g}'):,g}{unit} {place}"


def _bytes(size: int) -> str:
    return f"{si(size)}B"
