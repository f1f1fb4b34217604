"""Measured latency: the protocol, seen from inside the module that is timed and through a clock that obeys."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mnet_search.models.arch import MnetError, Shape
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.latency import PROTOCOLS, Protocol, drift_of, fold_norms, folded, measure

FIXED = Protocol(until_stable=False)  # as many warm-ups as it says


class Probe(nn.Module):
    """Keeps under what conditions it is called; a class-wide list, since a copy is timed."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(
            {
                "training": self.training or self.norm.training,
                "inference": torch.is_inference_mode_enabled(),
                "threads": torch.get_num_threads(),
                "collecting": gc.isenabled(),
                "shape": tuple(x.shape),
                "dtype": x.dtype,
                "channels_last": x.is_contiguous(memory_format=torch.channels_last)
                and self.conv.weight.is_contiguous(memory_format=torch.channels_last),
            }
        )
        return self.norm(self.conv(x))


class Ticks:
    """A clock that goes on by the next of the given milliseconds whenever it is read; the last one stays."""

    def __init__(self, *steps_ms: float):
        self.steps: Iterator[float] = iter(steps_ms)
        self.last, self.now = steps_ms[-1], 0.0

    def __call__(self) -> int:
        self.now += next(self.steps, self.last)
        return round(self.now * 1e6)


def test_every_run_is_made_as_stated_and_the_warm_up_is_not_counted() -> None:
    Probe.seen.clear()
    found = measure(Probe(), Shape(3, 8, 6), replace(FIXED, batch=2, threads=2, warmup=3, repeats=7))
    expected = {"training": False, "inference": True, "threads": 2, "collecting": False, "shape": (2, 3, 8, 6)}
    # 3 to warm up, 1 to see how long a run is, 7 that count and 1 more after each of two samples of the reference
    assert Probe.seen == [expected | {"channels_last": True, "dtype": torch.float32}] * 13
    assert (found.n, found.batch, found.threads, found.device, found.warmup) == (7, 2, 2, "cpu", 3)


def test_dtype_and_memory_format_are_what_the_protocol_says() -> None:
    Probe.seen.clear()
    found = measure(Probe(), Shape(3, 8, 6), Protocol(dtype="bfloat16", channels_last=False, warmup=0, repeats=2))
    assert {(seen["dtype"], seen["channels_last"]) for seen in Probe.seen} == {(torch.bfloat16, False)}
    assert (found.dtype, found.channels_last, found.fold_norm) == ("bfloat16", False, True)


def test_the_protocol_of_resnet_v2_is_known_by_name() -> None:
    Probe.seen.clear()
    found = measure(Probe(), Shape(3, 8, 8), PROTOCOLS["resnet_v2"])
    assert (found.batch, found.warmup, found.n, found.statistic) == (32, 10, 100, "mean")
    assert (found.channels_last, found.fold_norm) == (False, False)
    assert found.latency_ms == found.mean_ms
    assert found.sd_ms > 0
    assert len(Probe.seen) == 10 + 1 + 100 + 20


def test_the_median_lies_between_the_quartiles() -> None:
    arch = create("mobilenet_v1", width=0.1, resolution=17, depth="shallow", classes=10, in_channels=1)
    found = measure(build(arch), arch.input, Protocol(warmup=1, repeats=9))
    assert 0 < found.q1_ms <= found.median_ms <= found.q3_ms
    assert found.latency_ms == found.median_ms
    assert min(found.reference_ms, found.ratio, found.mean_ms) > 0
    assert found.drift >= 0


def test_module_threads_random_state_and_collector_are_left_as_they_were() -> None:
    module = Probe()
    module.norm.eval()  # a mixed mode, which train() or eval() on the whole would lose
    strides, state = module.conv.weight.stride(), {k: v.clone() for k, v in module.state_dict().items()}
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    protocol = Protocol(threads=threads + 1, repeats=2)
    measure(module, Shape(3, 8, 8), protocol)
    assert (module.training, module.norm.training) == (True, False)
    assert module.conv.weight.stride() == strides
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(RuntimeError, match="expected input"):
        measure(module, Shape(5, 8, 8), protocol)
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, True)


# ---------------------------------------------------------------- drift and warm-up


def test_on_a_steady_machine_the_measurement_is_good() -> None:
    found = measure(Probe(), Shape(3, 8, 8), Protocol(repeats=20), clock=Ticks(1.0))
    assert (found.drift, found.good, found.warning) == (0, True, "")
    assert (found.median_ms, found.reference_ms, found.ratio, found.sd_ms) == (1, 1, 1, 0)


def test_a_machine_that_slows_down_gives_no_good_measurement() -> None:
    slowing = Ticks(*(1 + i / 50 for i in range(1000)))
    found = measure(Probe(), Shape(3, 8, 8), Protocol(repeats=50, warmup=2, until_stable=False), clock=slowing)
    assert found.drift > 0.3
    assert not found.good
    assert found.warning == (
        f"not a good measurement: the reference network drifted {100 * found.drift:.0f} % (bound 10 %); "
        "close other programs and repeat"
    )
    assert found.q3_ms / found.q1_ms > 1.2
    assert found.ratio == pytest.approx(1, abs=0.1)  # both slowed alike
    lenient = Protocol(repeats=50, warmup=2, until_stable=False, drift_bound=2.0)
    assert measure(Probe(), Shape(3, 8, 8), lenient, clock=Ticks(*(1 + i / 50 for i in range(1000)))).good


def test_drift_is_the_slow_part_over_the_fast_part_and_blind_to_one_interruption() -> None:
    assert drift_of([1.0, 1.0, 1.0, 1.0, 9.0]) == 0
    assert drift_of([1.0, 1.0, 1.2, 1.2]) == pytest.approx(0.2)


def test_warm_up_goes_on_until_the_times_are_stable() -> None:
    steady = measure(Probe(), Shape(3, 8, 8), Protocol(warmup=4, repeats=2), clock=Ticks(1.0))
    assert steady.warmup == 4 + 2 * 5  # two windows that agree
    getting_faster = Ticks(*(2 - i / 60 for i in range(60)), 1.0)
    assert measure(Probe(), Shape(3, 8, 8), Protocol(warmup=4, repeats=2), clock=getting_faster).warmup > 4 + 2 * 5
    never = Ticks(*(1.1**i for i in range(1000)))
    assert measure(Probe(), Shape(3, 8, 8), Protocol(warmup=0, repeats=2), clock=never).warmup <= 100


# ---------------------------------------------------------------- batch norms


@pytest.mark.parametrize(
    "options", [{}, {"block": "inverted_residual", "se": 0.25}, {"block": "separable_plain", "act": "hswish"}]
)
def test_folded_norms_compute_the_same(options: dict[str, Any]) -> None:
    arch = create("mobilenet_v1", width=0.25, resolution=33, classes=10, **options)
    module = build(arch).eval()
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
            part.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    images = torch.rand(2, *arch.input)
    with torch.inference_mode():
        expected = module(images)
        fold_norms(module)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
        torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_norms_that_follow_no_convolution_stay() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    fold_norms(module)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in module) == 2


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "latency: batch 0 is too few; give 1 or more"),
        ({"threads": 0}, "latency: threads 0 is too few; give 1 or more"),
        ({"warmup": -1}, "latency: warmup -1 is too few; give 0 or more"),
        ({"repeats": 1}, "latency: 1 timed runs have no quartiles; give 2 or more repeats"),
        ({"dtype": "float8"}, r"latency: unknown dtype 'float8' \(known: float32, bfloat16, float16\)"),
        ({"graph": True}, "latency: a CUDA graph cannot be replayed on cpu; use --device cuda"),
        ({"device": "warp"}, "latency: unknown device 'warp'; use cpu or cuda"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MnetError, match=message):
        measure(Probe(), Shape(3, 8, 8), Protocol(**options))


class Glutton(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize(("module", "side"), [(Glutton(), 8), (Probe(), 10**9)])
def test_too_little_memory_is_answered_in_a_sentence(module: nn.Module, side: int) -> None:
    with pytest.raises(MnetError) as caught:
        measure(module, Shape(3, side, side), Protocol(batch=4))
    assert str(caught.value) == (
        f"latency: batch 4 of 3x{side}x{side} does not fit into the memory of cpu; "
        "lower the resolution, the width or --batch"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(MnetError, match="--device cuda: torch sees no GPU on this machine; use --device cpu"):
        measure(Probe(), Shape(3, 8, 8), PROTOCOLS["cuda_graph"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("graph", [False, True])
def test_on_a_gpu_events_time_launches_or_a_graph(graph: bool) -> None:
    arch = create("mobilenet_v1", width=0.25, resolution=64, classes=10)
    found = measure(build(arch), arch.input, Protocol(device="cuda", graph=graph, repeats=10))
    assert 0 < found.q1_ms <= found.median_ms <= found.q3_ms
    assert found.device == torch.cuda.get_device_name()


def test_torchvisions_norms_are_folded_as_well() -> None:
    module = build(create("torchvision:mobilenet_v3_small", resolution=64, classes=4))
    with torch.no_grad():
        for _ in range(2):
            module.train()(torch.rand(4, 3, 64, 64))
        images = torch.rand(2, 3, 64, 64)
        expected = module.eval()(images)
        ready = folded(module)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in ready.modules())
        torch.testing.assert_close(ready(images), expected, atol=1e-4, rtol=1e-4)
