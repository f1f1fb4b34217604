"""How a network is run fastest on this machine: measured on the network itself, never assumed.

A choice changes the order of sums and so the last digits of a curve. It is therefore made once for a trial, kept with
it, and only where a probe is small beside the training; a way within 10 % of the usual one does not replace it, so that
timing noise does not decide. What was chosen, and why, is recorded with the trial.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnet_search.models.arch import MnetError

__all__ = ["Speed", "SpeedOptions", "choose_speed"]

PROBE_STEPS = 4  # of each way, the first of them not counted
PROBE_SHARE = 0.02  # of a training's steps that a probe may take
MARGIN = 0.9  # of the usual way's time that another must stay below
COMPILING_PAYS_S = 600.0  # of training left, from which torch.compile is tried: its warm-up takes about a minute

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Speed:
    """The way a network is trained: memory format of weights and images, precision of its forward pass, compiled or
    not; `reason` is for people.
    """

    memory_format: str = "channels_last"
    precision: str = "float32"
    compiled: bool = False
    reason: str = "not probed"

    @property
    def name(self) -> str:
        return f"{self.memory_format} {self.precision}{' compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class SpeedOptions:
    """What the user fixes of it; "auto" measures."""

    memory_format: str = "auto"
    precision: str = "auto"
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        for name, known in (("memory_format", FORMATS), ("precision", PRECISIONS)):
            if getattr(self, name) not in ("auto", *known):
                listed = ", ".join(("auto", *known))
                raise MnetError(f"resources.{name}: {getattr(self, name)!r} is not known (known: {listed})")
        if self.compile not in ("auto", True, False):
            raise MnetError(f"resources.compile: {self.compile!r} is not auto, true or false")


def choose_speed(
    module: nn.Module, images: Tensor, labels: Tensor, steps: int, options: SpeedOptions | None = None
) -> Speed:
    """The fastest way to train `module` for `steps` steps like the one on `images` (N, C, H, W) and `labels` (N,).

    The module and torch's random state are left as they were; both lie on the device that is asked about.
    """
    options = options or SpeedOptions()
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        return _choose(module, images, labels, steps, options)


def _choose(module: nn.Module, images: Tensor, labels: Tensor, steps: int, options: SpeedOptions) -> Speed:
    ways = _ways(options, images.device)
    if len(ways) == 1:
        chosen, took = replace(ways[0], reason="as asked" if options != SpeedOptions() else ways[0].reason), None
    elif PROBE_STEPS * len(ways) > PROBE_SHARE * steps:
        chosen, took = replace(ways[0], reason=f"{steps} steps are too few to probe"), None
    else:
        chosen, took = _fastest(module, images, labels, ways)
    if options.compile is True:
        return replace(chosen, compiled=True, reason=f"{chosen.reason}; compiled as asked")
    if options.compile is False or took is None or took * steps < COMPILING_PAYS_S:
        return chosen
    return _compiled_if_it_pays(module, images, labels, chosen, took, steps)


def _ways(options: SpeedOptions, device: torch.device) -> list[Speed]:
    """The ways worth trying, the usual one first."""
    formats = list(FORMATS) if options.memory_format == "auto" else [options.memory_format]
    precisions = [options.precision]
    if options.precision == "auto":
        precisions = ["float32", "bfloat16"] if _has_bfloat16(device) else ["float32"]
        if device.type == "cuda":
            precisions.reverse()
    return [Speed(f, p) for p in precisions for f in formats]


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for it: emulated, it is slower by orders of magnitude."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


def _fastest(module: nn.Module, images: Tensor, labels: Tensor, ways: list[Speed]) -> tuple[Speed, float]:
    """Every way in turn, several times over: the best times are compared. Returns seconds of a step as well."""
    runs = [_step(module, images, labels, way) for way in ways]
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(PROBE_STEPS):
        for run, taken in zip(runs, times, strict=True):
            taken.append(_seconds_or_never(run, images.device))
    best = [min(taken[1:]) for taken in times]
    fastest = min(range(len(ways)), key=best.__getitem__)
    chosen = fastest if best[fastest] < MARGIN * best[0] else 0
    others = ", ".join(f"{way.name} {time_s / best[chosen]:.2f}" for way, time_s in zip(ways, best, strict=True))
    return replace(ways[chosen], reason=f"probed, times as multiples of its own: {others}"), best[chosen]


def _step(module: nn.Module, images: Tensor, labels: Tensor, way: Speed) -> Callable[[], None]:
    """A training step on a copy of the module."""
    copied = copy.deepcopy(module).to(memory_format=FORMATS[way.memory_format]).train()
    forward = forward_of(copied, way)
    images = images.contiguous(memory_format=FORMATS[way.memory_format])

    def run() -> None:
        F.cross_entropy(forward(images), labels).backward()
        for p in copied.parameters():
            p.grad = None

    return run


def forward_of(module: nn.Module, way: Speed) -> Callable[[Tensor], Tensor]:
    """float (N, C, H, W) -> float32 (N, classes), computed in the way's precision."""
    on_gpu = next(module.parameters()).is_cuda  # where "reduce-overhead" replays CUDA graphs
    mode = "reduce-overhead" if on_gpu else "default"
    if way.compiled:
        torch.compiler.reset()  # else the networks of earlier trials count against a limit, and compiling ends silently
    inner: Any = torch.compile(module, dynamic=False, mode=mode) if way.compiled else module
    if way.precision == "float32":
        return inner
    dtype = PRECISIONS[way.precision]

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=dtype):
            logits: Tensor = inner(images)
        return logits.float()

    return forward


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _seconds_or_never(run: Callable[[], None], device: torch.device) -> float:
    """A way that does not fit in the memory beside the others is none."""
    try:
        return _seconds(run, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return math.inf


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compiled_if_it_pays(
    module: nn.Module, images: Tensor, labels: Tensor, chosen: Speed, eager_s: float, steps: int
) -> Speed:
    """torch.compile where warm-up and faster steps together take less time than the steps as they are."""
    try:
        run = _step(module, images, labels, replace(chosen, compiled=True))
        warm_s = _seconds(run, images.device)
        step_s = min(_seconds(run, images.device) for _ in range(PROBE_STEPS))
    except Exception as error:  # noqa: BLE001  # no compiler, an unsupported system: torch raises many kinds
        reason = str(error).strip().splitlines()
        return replace(chosen, reason=f"{chosen.reason}; torch.compile failed ({reason[0][:80] if reason else ''})")
    gain = steps * (eager_s - step_s) - 3 * warm_s  # training compiles it twice more: its batches have two sizes
    figures = f"warm-up {warm_s:.0f} s, a step {step_s / eager_s:.2f} times the plain one's"
    if gain <= 0:
        return replace(chosen, reason=f"{chosen.reason}; compiling does not pay ({figures})")
    return replace(chosen, compiled=True, reason=f"{chosen.reason}; compiling pays ({figures})")
