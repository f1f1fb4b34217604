"""Measured latency: the protocol, seen from inside the module that is timed."""

from __future__ import annotations

import gc
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mnet_search.models.arch import MnetError, Shape
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.latency import measure


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
                "channels_last": x.is_contiguous(memory_format=torch.channels_last)
                and self.conv.weight.is_contiguous(memory_format=torch.channels_last),
            }
        )
        return self.norm(self.conv(x))


def test_every_run_is_made_as_stated_and_the_warm_up_is_not_counted() -> None:
    Probe.seen.clear()
    found = measure(Probe(), Shape(3, 8, 6), batch=2, threads=2, warmup=3, repeats=7)
    expected = {"training": False, "inference": True, "threads": 2, "collecting": False, "shape": (2, 3, 8, 6)}
    assert Probe.seen == [expected | {"channels_last": True}] * 10
    assert (found.n, found.batch, found.threads, found.device) == (7, 2, 2, "cpu")


def test_the_median_lies_between_the_quartiles() -> None:
    arch = create("mobilenet_v1", width=0.1, resolution=17, depth="shallow", classes=10, in_channels=1)
    found = measure(build(arch), arch.input, warmup=1, repeats=9)
    assert 0 < found.q1_ms <= found.median_ms <= found.q3_ms


def test_module_threads_random_state_and_collector_are_left_as_they_were() -> None:
    module = Probe()
    module.norm.eval()  # a mixed mode, which train() or eval() on the whole would lose
    strides, state = module.conv.weight.stride(), {k: v.clone() for k, v in module.state_dict().items()}
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    measure(module, Shape(3, 8, 8), threads=threads + 1, repeats=2)
    assert (module.training, module.norm.training) == (True, False)
    assert module.conv.weight.stride() == strides
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(RuntimeError, match="expected input"):
        measure(module, Shape(5, 8, 8), threads=threads + 1, repeats=2)
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "latency: batch 0 is too few; give 1 or more"),
        ({"threads": 0}, "latency: threads 0 is too few; give 1 or more"),
        ({"warmup": -1}, "latency: warmup -1 is too few; give 0 or more"),
        ({"repeats": 1}, "latency: 1 timed runs have no quartiles; give 2 or more repeats"),
    ],
)
def test_counts_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(MnetError, match=message):
        measure(Probe(), Shape(3, 8, 8), **options)  # type: ignore[arg-type]
