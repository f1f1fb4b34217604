"""Fills a latency table: times every layer inside real forward passes, and whole networks beside them.

A layer alone in a loop finds its weights and its input in the caches, and in the layout it likes; inside a network it
does not. So a network is run step by step with a mark before and after each step, in turn with the whole network and
with the reference network, by whose times everything is divided.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from mnet_search.models.arch import Arch, Branches, Node, Residual, Scale
from mnet_search.models.factory import build, to_module
from mnet_search.models.latency import (
    Clock,
    Protocol,
    Reference,
    Run,
    device_name,
    drift_of,
    find_device,
    measure,
    prepare,
    quiet,
    random_images,
    refuse_memory,
    runner,
    stopwatch,
)
from mnet_search.models.latency_table import (
    LatencyTable,
    Layer,
    Part,
    Selection,
    branches,
    calibrate,
    design_row,
    judge,
    layers_of,
    parts,
    sizes,
)

ROUNDS = 12  # of reference, whole networks and stepwise passes, by turns
PASSES = 3  # of each in a round; the first after the reference finds foreign data in the caches and is not counted
TURNS = 9  # measurements of each held-out network, all of them by turns: noise comes in stretches
OnMeasured = Callable[[int, int], None]  # measurements done, measurements in all


@dataclass(frozen=True)
class NetworkTimes:
    """One network as it was timed, in multiples of the reference network's time: the whole, and each layer by its key
    (the mean over its places where it occurs more than once).
    """

    arch: Arch
    whole: float
    layers: dict[str, float]


class Marks(Interface):
    """Points in time on a device: `mark` sets one, `elapsed_ms` says what lies between two."""

    def mark(self) -> Any: ...
    def elapsed_ms(self, start: Any, end: Any) -> float: ...


class ClockMarks:
    """Of a clock in nanoseconds; what a pair of marks costs by itself is taken off."""

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self.mark = clock
        pairs = [(self.mark(), self.mark()) for _ in range(1001)]
        self._own_ns = statistics.median(end - start for start, end in pairs)

    def elapsed_ms(self, start: int, end: int) -> float:
        return max(0.0, end - start - self._own_ns) / 1e6


class EventMarks:
    """CUDA events on the current stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return float(start.elapsed_time(end))


class Stepwise:
    """A network run step by step: calling it gives the output and leaves (key, start, end) of every layer in `marks`.

    (N, C, H, W) -> what the network gives. Initialised apart from `build`, so its numbers are not those of the whole
    network; times do not depend on them.
    """

    def __init__(self, node: Node, protocol: Protocol, clock: Marks):
        self.marks: list[tuple[str, Any, Any]] = []
        self._clock, self._protocol = clock, protocol
        with torch.random.fork_rng(devices=[]):
            self._run = self._row(node)

    def __call__(self, x: Tensor) -> Tensor:
        self.marks.clear()
        return self._run(x)

    def layer_ms(self) -> dict[str, list[float]]:
        """Milliseconds of each layer in the last pass, by key, once for each time it ran."""
        found = defaultdict(list)
        for key, start, end in self.marks:
            found[key].append(self._clock.elapsed_ms(start, end))
        return dict(found)

    def _row(self, node: Node) -> Callable[[Tensor], Tensor]:
        steps = [self._step(part) for part in parts(node)]

        def run(x: Tensor) -> Tensor:
            for step in steps:
                x = step(x)
            return x

        return run

    def _step(self, part: Part) -> Callable[[Tensor], Tensor]:
        node, inner = part.nodes[0], branches(part.nodes[0])
        if inner is not None and part.layer is not None:
            return self._joined(node, [self._row(branch) for branch in inner], part.layer)
        modules = nn.Sequential(*(to_module(primitive) for primitive in part.nodes))
        for layer in modules:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)  # torch's own rule shrinks deep networks' maps to slow denormals
        module = prepare(modules, self._protocol)
        if part.layer is None:
            return module
        return self._timed(part.layer, module)

    def _joined(
        self, node: Node, inner: Sequence[Callable[[Tensor], Tensor]], layer: Layer
    ) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            outputs = [branch(x) for branch in inner]
            start = self._clock.mark()
            match node:
                case Residual(shortcut=shortcut):
                    result = outputs[0] + (x if shortcut is None else outputs[1])
                case Scale():
                    result = x * outputs[0]
                case Branches():
                    result = torch.cat(outputs, dim=1)
            self.marks.append((layer.key, start, self._clock.mark()))
            return result

        return run

    def _timed(self, layer: Layer, module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        key, mark, marks = layer.key, self._clock.mark, self.marks

        def run(x: Tensor) -> Tensor:
            start = mark()
            result = module(x)
            marks.append((key, start, mark()))
            return result

        return run


class Bench:
    """Times networks and their layers under one protocol, each in turn with the reference network. Use inside `quiet`
    and inference mode.
    """

    def __init__(self, protocol: Protocol):
        self.protocol, device = protocol, find_device(protocol.device)
        self._timed = stopwatch(device, clock_for(protocol))
        self._marks: Marks = EventMarks() if device.type == "cuda" else ClockMarks(clock_for(protocol))
        self._reference = Reference(protocol, self._timed)
        self.samples_ms: list[float] = []

    def __call__(self, arch: Arch) -> NetworkTimes:
        """The medians over the rounds; every time is divided by the reference's in the same round."""
        with refuse_memory(arch.input, self.protocol):
            run = runner(build(arch), arch.input, self.protocol)
            images = random_images(arch.input, self.protocol)
            steps = Stepwise(arch.root, self.protocol, self._marks)
            for _ in range(self.protocol.warmup // 2 + 1):
                run()
                steps(images)
            whole: list[float] = []
            layers: dict[str, list[float]] = defaultdict(list)
            for _ in range(ROUNDS):
                passes = self._passes(run)
                sample_ms = self._reference.sample(passes[0])
                self.samples_ms.append(sample_ms)
                whole += [ms / sample_ms for ms in passes]
                steps(images)
                for _ in range(PASSES):
                    steps(images)
                    for key, times_ms in steps.layer_ms().items():
                        layers[key].append(statistics.fmean(times_ms) / sample_ms)
        return NetworkTimes(
            arch, statistics.median(whole), {key: statistics.median(ratios) for key, ratios in layers.items()}
        )

    def _passes(self, run: Run) -> list[float]:
        run()
        return [self._timed(run) for _ in range(PASSES)]


# ---------------------------------------------------------------- the table


def build_table(
    space: str, selection: Selection, protocol: Protocol, on_measured: OnMeasured = lambda done, total: None
) -> LatencyTable:
    """Time every layer of the covering networks, calibrate on these, judge by the held-out ones, and at last time those
    layers that only held-out networks have.

    `on_measured(done, of)` is called after each measurement of a network. Raises MnetError where memory or device are
    missing.
    """
    start = time.monotonic()
    total = len(selection.cover) + TURNS * len(selection.held_out)
    with quiet(protocol.threads), torch.inference_mode():
        bench, timed, clock = Bench(protocol), [], clock_for(protocol)
        for done, arch in enumerate(selection.cover, start=1):
            timed.append(bench(arch))
            on_measured(done, total)
        table = fill(space, fingerprint(protocol), timed, bench.samples_ms)
        ratios: dict[str, list[float]] = defaultdict(list)
        for done, arch in enumerate(selection.held_out * TURNS, start=len(timed) + 1):
            ratios[arch.id].append(measure(build(arch), arch.input, protocol, clock=clock).ratio)
            on_measured(done, total)
        measured_ms = [statistics.median(ratios[arch.id]) * table.reference_ms for arch in selection.held_out]
        table = judge(table, selection.held_out, measured_ms)
        added = dict(table.layers)
        for arch in selection.held_out:
            if any(layer.key not in added for layer in layers_of(arch)):
                added = layer_rows([bench(arch)], table.reference_ms) | added
    return replace(table, layers=added, seconds=round(time.monotonic() - start, 1))


def clock_for(protocol: Protocol) -> Clock:
    """The thread's own processor time where one thread does the work: on a quiet machine it is the time that passes,
    and on a busy one it stands still while other programs have the core. Measured at a load of 3.5 on 2 cores: two
    measurements of a network differ by 6 % instead of 11 %.
    """
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time_ns if protocol.threads == 1 and fine else time.perf_counter_ns


def fill(
    space: str, fingerprint: Mapping[str, Any], timed: Sequence[NetworkTimes], samples_ms: Sequence[float]
) -> LatencyTable:
    """A calibrated table from timed networks. Its milliseconds are those of the machine at the median of the
    reference's samples.
    """
    reference_ms = statistics.median(samples_ms)
    layers = layer_rows(timed, reference_ms)
    rows = [design_row((layer, layers[layer.key][0]) for layer in layers_of(t.arch)) for t in timed]
    calibration = calibrate(rows, [t.whole * reference_ms for t in timed])
    return LatencyTable(space, fingerprint, layers, calibration, len(timed), reference_ms, drift_of(list(samples_ms)))


def layer_rows(timed: Sequence[NetworkTimes], reference_ms: float) -> dict[str, list[Any]]:
    """A row for each layer by its key: milliseconds (the median over the networks that have it), kind, sizes."""
    ratios: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, tuple[str, list[int]]] = {}
    for network in timed:
        for layer in layers_of(network.arch):
            kinds[layer.key] = (layer.kind, sizes(layer))
        for key, ratio in network.layers.items():
            ratios[key].append(ratio)
    return {key: [max(1e-6, statistics.median(found) * reference_ms), *kinds[key]] for key, found in ratios.items()}


def fingerprint(protocol: Protocol) -> dict[str, Any]:
    """What a table's times hold for: the processor or GPU, torch, and the protocol as far as it changes times."""
    device = find_device(protocol.device)
    found: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count() or 1, "torch": torch.__version__}
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found |= {"gpu": device_name(device), "capability": capability, "cuda": torch.version.cuda}
        found |= {"graph": protocol.graph}
    else:
        found |= {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": protocol.threads}
    found |= {"batch": protocol.batch, "dtype": protocol.dtype}
    return found | {"channels_last": protocol.channels_last, "fold_norm": protocol.fold_norm}


def processor() -> str:
    """The processor's name with family, model and stepping, since a virtual one may hide which of a kind it is."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts]
    return f"{name} ({'/'.join(numbers)})" if numbers else name
