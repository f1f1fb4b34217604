"""Measured latency of a module: a protocol with all that decides a figure, and a reference network beside it that shows
when the machine was not the same throughout. Needs only torch.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mnet_search.models.arch import MnetError, Shape

Run = Callable[[], object]
Clock = Callable[[], int]  # nanoseconds, as time.perf_counter_ns
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

WINDOW = 5  # runs that warm-up compares, and runs of the network between two samples of the reference
STABLE = 0.02  # warm-up is over when two windows' medians differ by less
MAX_WARMUP = 100  # runs after which warm-up is over, stable or not, and
MAX_WARMUP_NS = 2_000_000_000  # time
REFERENCE_SHAPE = Shape(3, 64, 64)
REFERENCE_RUNS = 50  # in one sample of the reference, at most


@dataclass(frozen=True)
class Protocol:
    """How a latency is taken. Two figures compare only where their protocols are equal.

    `batch` images a run on `device` ("cpu" or "cuda") in `dtype`; `threads` of a CPU; `channels_last` or NCHW
    memory; `fold_norm` folds batch norms into the convolutions before them, as inference does. `warmup` runs are not
    counted; `until_stable` goes on warming until two windows of 5 runs have medians within 2 % (at most 100 runs or
    2 s). `repeats` runs are timed, 5 at a time between two samples of the reference network. `statistic` is the
    figure to quote. `graph` replays a CUDA graph instead of launching every kernel. `drift_bound` is the drift of the
    reference up to which the measurement is good.
    """

    batch: int = 1
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = True
    fold_norm: bool = True
    warmup: int = 10
    until_stable: bool = True
    repeats: int = 50
    statistic: Literal["median", "mean"] = "median"
    graph: bool = False
    drift_bound: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("threads", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value < least:
                raise MnetError(f"latency: {name} {value} is too few; give {least} or more")
        if self.repeats < 2:
            raise MnetError(f"latency: {self.repeats} timed runs have no quartiles; give 2 or more repeats")
        if self.dtype not in DTYPES:
            raise MnetError(f"latency: unknown dtype {self.dtype!r} (known: {', '.join(DTYPES)})")
        if self.graph and not self.device.startswith("cuda"):
            raise MnetError(f"latency: a CUDA graph cannot be replayed on {self.device}; use --device cuda")


@dataclass(frozen=True)
class Latency:
    """Milliseconds from call to result of one batch over `n` timed runs, and how they were taken.

    `reference_ms` is the median time of the reference network, of which a sample is taken before and after every 5
    timed runs. `ratio` is the median of each run over the two samples around it: it travels between a machine's fast
    and slow hours. `drift` is the upper over the lower quartile of the samples, less 1: 0.1 says that the machine was
    10 % slower in its slow part than in its fast part. `good` is False where it is above the protocol's bound.
    `warmup` runs were made before the first that counts. `device` is "cpu" or the GPU's name.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    mean_ms: float
    sd_ms: float
    n: int
    batch: int
    threads: int
    device: str
    dtype: str
    channels_last: bool
    fold_norm: bool
    graph: bool
    statistic: str
    warmup: int
    reference_ms: float
    ratio: float
    drift: float
    drift_bound: float
    good: bool

    @property
    def latency_ms(self) -> float:
        """The protocol's statistic."""
        return self.mean_ms if self.statistic == "mean" else self.median_ms

    @property
    def warning(self) -> str:
        """Why this is not a good measurement, and what to do; empty where it is good."""
        if self.good:
            return ""
        return (
            f"not a good measurement: the reference network drifted {100 * self.drift:.0f} % "
            f"(bound {100 * self.drift_bound:.0f} %); close other programs and repeat"
        )


def measure(
    module: nn.Module, shape: Shape, protocol: Protocol | None = None, *, clock: Clock = time.perf_counter_ns
) -> Latency:
    """Time a copy of `module`, (batch, channels, height, width) -> anything, on random images, by `protocol` (None:
    the default one).

    Inference mode, no garbage collection; on a GPU by CUDA events, so a time is the device's from the first kernel to
    the last. The module, the number of threads and torch's random state are left as they were. The caller sees to it
    that nothing else is timed on this machine meanwhile. Raises MnetError where the device or its memory is missing.
    """
    protocol = protocol or PROTOCOLS["default"]
    device = find_device(protocol.device)
    with refuse_memory(shape, protocol), quiet(protocol.threads), torch.inference_mode():
        run, timed = runner(module, shape, protocol), stopwatch(device, clock)
        warmup = warm_up(run, timed, protocol, clock)
        times_ms, samples_ms = _interleaved(run, timed, Reference(protocol, timed), protocol.repeats)
    q1, median, q3 = statistics.quantiles(times_ms, n=4, method="inclusive")
    drift = drift_of(samples_ms)
    return Latency(
        median_ms=median,
        q1_ms=q1,
        q3_ms=q3,
        mean_ms=statistics.fmean(times_ms),
        sd_ms=statistics.stdev(times_ms),
        n=len(times_ms),
        batch=protocol.batch,
        threads=protocol.threads,
        device=device_name(device),
        dtype=protocol.dtype,
        channels_last=protocol.channels_last,
        fold_norm=protocol.fold_norm,
        graph=protocol.graph,
        statistic=protocol.statistic,
        warmup=warmup,
        reference_ms=statistics.median(samples_ms),
        ratio=statistics.median(ms / samples_between(samples_ms, i // WINDOW) for i, ms in enumerate(times_ms)),
        drift=drift,
        drift_bound=protocol.drift_bound,
        good=drift <= protocol.drift_bound,
    )


def drift_of(samples_ms: list[float]) -> float:
    """Upper over lower quartile of the reference's samples, less 1: the slow part against the fast part, blind to a
    single interruption.
    """
    q1, _, q3 = statistics.quantiles(samples_ms, n=4, method="inclusive")
    return q3 / q1 - 1


def samples_between(samples_ms: list[float], window: int) -> float:
    """The mean of the reference's samples before and after a window of runs, counted from 0."""
    return (samples_ms[window] + samples_ms[window + 1]) / 2


def _interleaved(
    run: Run, timed: Callable[[Run], float], reference: Reference, repeats: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of `repeats` runs, and of the reference before, between and after every 5 of them.

    The run after the reference is not counted: it finds the reference's data in the caches.
    """
    like_ms = timed(run)
    times_ms: list[float] = []
    samples_ms = [reference.sample(like_ms)]
    while len(times_ms) < repeats:
        run()
        times_ms += [timed(run) for _ in range(min(WINDOW, repeats - len(times_ms)))]
        samples_ms.append(reference.sample(like_ms))
    return times_ms, samples_ms


def warm_up(run: Run, timed: Callable[[Run], float], protocol: Protocol, clock: Clock) -> int:
    """Run until the times are stable, as the protocol says; the number of runs made."""
    for _ in range(protocol.warmup):
        run()
    if not protocol.until_stable:
        return protocol.warmup
    made, before, start_ns = protocol.warmup, math.inf, clock()
    while made + WINDOW <= MAX_WARMUP and clock() - start_ns < MAX_WARMUP_NS:
        now = statistics.median(timed(run) for _ in range(WINDOW))
        made += WINDOW
        if abs(now - before) < STABLE * now:
            break
        before = now
    return made


# ---------------------------------------------------------------- what is run


def runner(module: nn.Module, shape: Shape, protocol: Protocol) -> Run:
    """A call that puts one batch through a copy of the module made ready for inference, its result on the device."""
    ready = prepare(module, protocol)
    images = random_images(shape, protocol)
    return _graphed(ready, images) if protocol.graph else lambda: ready(images)


def prepare(module: nn.Module, protocol: Protocol) -> nn.Module:
    """A copy in evaluation mode on the protocol's device, in its dtype and memory format, norms folded if it says
    so.
    """
    copied = copy.deepcopy(module).eval()
    if protocol.fold_norm:
        copied = folded(copied)
    copied = copied.to(device=torch.device(protocol.device), dtype=DTYPES[protocol.dtype])
    return copied.to(memory_format=torch.channels_last) if protocol.channels_last else copied


def random_images(shape: Shape, protocol: Protocol) -> Tensor:
    """(batch, channels, height, width), the same ones every time."""
    size = (protocol.batch, shape.channels, shape.height, shape.width)
    images = torch.rand(size, generator=torch.Generator().manual_seed(0))
    images = images.to(device=torch.device(protocol.device), dtype=DTYPES[protocol.dtype])
    return images.contiguous(memory_format=torch.channels_last if protocol.channels_last else torch.contiguous_format)


def folded(module: nn.Module) -> nn.Module:
    """The module with its batch norms folded: in place where it is an nn.Sequential, as ours are, else by torch.fx,
    which reads in the code what follows what; as it is where torch.fx cannot read it.
    """
    fold_norms(module)
    if not isinstance(module, nn.Sequential) and any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        from torch.fx.experimental.optimization import fuse

        with contextlib.suppress(Exception):  # whatever code not written for tracing raises while it is traced
            return fuse(module)
    return module


def fold_norms(module: nn.Module) -> None:
    """Fold every batch norm into the convolution right before it in the same nn.Sequential, in place. For evaluation
    only: what is computed stays the same up to rounding.
    """
    for part in list(module.modules()):
        if not isinstance(part, nn.Sequential):
            continue
        names = list(part._modules)
        for name, after in itertools.pairwise(names):
            conv, norm = part._modules.get(name), part._modules[after]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                part._modules[name] = fuse_conv_bn_eval(conv, norm)
                if type(part) is nn.Sequential:
                    del part._modules[after]
                else:  # a subclass may call its children by name
                    part._modules[after] = nn.Identity()


class Reference:
    """The network whose time says how fast the machine is at the moment: at batch 1 under the protocol, otherwise the
    same everywhere and in every version. So it is made here of torch's own parts: a convolution and three separable
    ones, 5.0 M mult-adds.
    """

    def __init__(self, protocol: Protocol, timed: Callable[[Run], float]):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            parts: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()]
            for channels, out, stride in ((32, 64, 1), (64, 64, 2), (64, 128, 2)):
                parts += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels), nn.ReLU()]
                parts += [nn.Conv2d(channels, out, 1), nn.ReLU()]
            network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
        self._run, self._timed = runner(network, REFERENCE_SHAPE, replace(protocol, batch=1)), timed
        for _ in range(WINDOW):
            self._run()
        self._about_ms = statistics.median(timed(self._run) for _ in range(WINDOW))

    def sample(self, like_ms: float) -> float:
        """Milliseconds of one run, the mean of as many as last about `like_ms` together (1 to 50): what interrupts a
        network of that length interrupts the sample as often.
        """
        runs = min(REFERENCE_RUNS, max(1, round(like_ms / max(self._about_ms, 1e-6))))
        return self._timed(lambda: [self._run() for _ in range(runs)]) / runs


def _graphed(ready: nn.Module, images: Tensor) -> Run:
    """Capture one pass as a CUDA graph; a run replays it."""
    side = torch.cuda.Stream(images.device)
    side.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(side):  # capture wants libraries that have chosen their kernels already
        for _ in range(3):
            ready(images)
    torch.cuda.current_stream(images.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ready(images)
    return graph.replay


# ---------------------------------------------------------------- the machine


def find_device(name: str) -> torch.device:
    """Raises MnetError where torch does not see the device."""
    if name not in ("cpu", "cuda"):
        raise MnetError(f"latency: unknown device {name!r}; use cpu or cuda (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MnetError(f"--device {name}: torch sees no GPU on this machine; use --device cpu")
    return device


def device_name(device: torch.device) -> str:
    """ "cpu" or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def stopwatch(device: torch.device, clock: Clock = time.perf_counter_ns) -> Callable[[Run], float]:
    """Milliseconds that a run takes: by CUDA events on a GPU, by `clock` elsewhere."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def by_events(run: Run) -> float:
            start.record()
            run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return by_events

    def by_clock(run: Run) -> float:
        start_ns = clock()
        run()
        return (clock() - start_ns) / 1e6

    return by_clock


@contextlib.contextmanager
def quiet(threads: int) -> Iterator[None]:
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


@contextlib.contextmanager
def refuse_memory(shape: Shape, protocol: Protocol) -> Iterator[None]:
    """Turns what torch raises for too much memory into an MnetError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own class for a GPU is a RuntimeError
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            word in text for word in ("memory", "overflow")
        ):
            raise
        raise too_large(shape, protocol) from error


def too_large(shape: Shape, protocol: Protocol) -> MnetError:
    return MnetError(
        f"latency: batch {protocol.batch} of {shape} does not fit into the memory of {protocol.device}; "
        "lower the resolution, the width or --batch"
    )


# A name for each way of taking latencies, so that figures can say which they follow.
PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(),
    # Batch 32, 10 warm-ups that are not counted, 100 timed runs, mean and standard deviation, as slim's ResNetV2 was
    # timed; the network in the memory format and with the norms that it is built with.
    "resnet_v2": Protocol(
        batch=32,
        channels_last=False,
        fold_norm=False,
        warmup=10,
        until_stable=False,
        repeats=100,
        statistic="mean",
    ),
    "cuda_graph": Protocol(device="cuda", graph=True),
}
