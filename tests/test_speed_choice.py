"""How the fastest way to train is found: only where a probe is cheap, never by noise, and once for a trial."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mnet_search.models.arch import MnetError
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search import speed
from mnet_search.search.data import DataOptions, load
from mnet_search.search.speed import Speed, SpeedOptions, choose_speed
from mnet_search.search.training import TrainingOptions, train
from mnet_search.search.trial import settled_speed

NETWORK = create("baseline", resolution=16, classes=10, in_channels=1, hidden=16)
IMAGES, LABELS = torch.rand(8, 1, 16, 16), torch.arange(8)
MANY = 100_000


class Slow(nn.Module):
    """Slower by a known time in one memory format."""

    def __init__(self, slow: torch.memory_format, by_s: float):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
        self.slow, self.by_s = slow, by_s

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous(memory_format=self.slow):
            torch.cpu.synchronize()
            end = speed.time.perf_counter() + self.by_s
            while speed.time.perf_counter() < end:
                pass
        return self.linear(self.conv(x).mean((2, 3)))


def test_few_steps_are_not_probed() -> None:
    chosen = choose_speed(build(NETWORK), IMAGES, LABELS, steps=399)
    assert chosen == Speed("channels_last", "float32", reason="399 steps are too few to probe")


def test_the_faster_way_is_found_and_the_reason_says_by_how_much() -> None:
    images = torch.rand(4, 3, 8, 8)
    slow = choose_speed(Slow(torch.channels_last, 0.02), images, LABELS[:4], MANY)
    assert (slow.memory_format, slow.precision) == ("contiguous", "float32")
    assert slow.reason.startswith("probed, times as multiples of its own: channels_last float32 ")
    assert slow.reason.endswith(", contiguous float32 1.00")
    usual = choose_speed(Slow(torch.contiguous_format, 0.02), images, LABELS[:4], MANY)
    assert usual.memory_format == "channels_last"


def test_a_gain_within_the_noise_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 0.95] * 20)
    monkeypatch.setattr(speed, "_seconds", lambda run, device: next(times) / 1e6)
    chosen = choose_speed(build(NETWORK), IMAGES, LABELS, MANY)
    assert chosen.memory_format == "channels_last"
    assert chosen.reason.endswith("channels_last float32 1.00, contiguous float32 0.95")


def test_a_probe_leaves_module_and_random_state_as_they_were() -> None:
    module = build(create("mobilenet_v1", resolution=16, stem_stride=1, classes=10, in_channels=1, dropout=0.5)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    choose_speed(module, IMAGES, LABELS, MANY, SpeedOptions(compile=False))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_what_the_user_fixes_is_not_measured() -> None:
    asked = SpeedOptions("contiguous", "bfloat16", compile=False)
    assert choose_speed(build(NETWORK), IMAGES, LABELS, MANY, asked) == Speed(
        "contiguous", "bfloat16", False, "as asked"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_format": "nchw"}, r"resources.memory_format: 'nchw' is not known \(known: auto, channels_last, cont"),
        ({"precision": "float16"}, r"resources.precision: 'float16' is not known \(known: auto, float32, bfloat16\)"),
        ({"compile": "yes"}, "resources.compile: 'yes' is not auto, true or false"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(MnetError, match=message):
        SpeedOptions(**options)


# ---------------------------------------------------------------- compiling


def test_compiling_is_tried_only_where_enough_training_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_seconds", lambda run, device: 0.01)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert not choose_speed(build(NETWORK), IMAGES, LABELS, 59_999).compiled


@pytest.mark.parametrize(("step_s", "pays"), [(0.5, True), (0.99, False)])
def test_compiling_is_kept_where_warm_up_and_steps_together_are_faster(
    monkeypatch: pytest.MonkeyPatch, step_s: float, pays: bool
) -> None:
    """20 s of warm-up, three times, against 1,000 steps of a second."""
    monkeypatch.setattr(speed, "_fastest", lambda *_: (Speed(reason="probed"), 1.0))
    times = iter([20.0] + [step_s] * 4)
    monkeypatch.setattr(speed, "_seconds", lambda run, device: next(times))
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    chosen = choose_speed(build(NETWORK), IMAGES, LABELS, 1000)
    assert chosen.compiled is pays
    verdict = "compiling pays" if pays else "compiling does not pay"
    assert chosen.reason == f"probed; {verdict} (warm-up 20 s, a step {step_s:.2f} times the plain one's)"


def test_a_system_that_cannot_compile_trains_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(speed, "_fastest", lambda *_: (Speed(reason="probed"), 1.0))
    monkeypatch.setattr(torch, "compile", broken)
    chosen = choose_speed(build(NETWORK), IMAGES, LABELS, 1000)
    assert chosen == Speed(reason="probed; torch.compile failed (no C++ compiler found)")


# ---------------------------------------------------------------- trials


def test_another_way_trains_nearly_alike() -> None:
    data = load(DataOptions(train_limit=200, validation=0.1))
    options = TrainingOptions(epochs=1, batch_size=50)
    losses = []
    for way in (Speed(), Speed("contiguous"), Speed("channels_last", "bfloat16")):
        (row,) = train(build(NETWORK, 0), data, options, resolution=16, seed=0, speed=way)
        losses.append(row.train_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=2e-2)
    assert losses[2] != losses[0]


def test_the_way_is_chosen_once_for_a_folder(tmp_path: Path) -> None:
    data, options = load(DataOptions(train_limit=200, validation=0.1)), TrainingOptions(epochs=2, batch_size=50)
    asked = (build(NETWORK), data, options)
    first = settled_speed(tmp_path, *asked, SpeedOptions(), 16, torch.device("cpu"))
    assert first.reason == "8 steps are too few to probe"
    kept = replace(first, memory_format="contiguous", reason="another machine's")
    stored = json.loads((tmp_path / "speed.json").read_text())
    (tmp_path / "speed.json").write_text(json.dumps(stored | {"chosen": vars(kept)}))
    assert settled_speed(tmp_path, *asked, SpeedOptions(), 16, torch.device("cpu")) == kept
    wished = SpeedOptions(memory_format="channels_last", precision="float32")
    assert settled_speed(tmp_path, *asked, wished, 16, torch.device("cpu")).reason == "as asked"
    (tmp_path / "speed.json").write_text("{torn")
    assert settled_speed(tmp_path, *asked, SpeedOptions(), 16, torch.device("cpu")) == first


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_on_a_cpu_gives_nearly_the_same_losses() -> None:
    """Without dropout, whose random numbers a compiled network draws otherwise."""
    network = create("baseline", resolution=16, classes=10, in_channels=1, hidden=16, dropout=0.0)
    data = load(DataOptions(train_limit=200, validation=0.1))
    options = TrainingOptions(epochs=1, batch_size=50)
    rows = [
        next(train(build(network, 0), data, options, resolution=16, seed=0, speed=Speed(compiled=compiled)))
        for compiled in (False, True)
    ]
    assert rows[1].train_loss == pytest.approx(rows[0].train_loss, rel=1e-3)
