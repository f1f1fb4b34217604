"""The training loop and its checkpoints, on real digits with tiny networks."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mnet_search.models.checkpoints import load_checkpoint
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.data import Data, DataOptions, Split, load
from mnet_search.search.training import (
    Epoch,
    Recipe,
    TrainingOptions,
    TrialFailed,
    evaluate,
    recalibrate,
    train,
)

TINY = create(
    "mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1, dropout=0.2
)
OPTIONS = TrainingOptions(epochs=3, batch_size=50)


def digits(limit: int = 200) -> Data:
    return load(DataOptions(train_limit=limit, validation=0.1))


def run(checkpoint: Path | None = None, *, seed: int = 0, options: TrainingOptions = OPTIONS, stop: int = 99) -> Any:
    """The rows of a run on digits, at most `stop` of them, and its module."""
    module = build(TINY, seed)
    rows = []
    for row in train(module, digits(), options, resolution=9, seed=seed, checkpoint=checkpoint, identity=TINY.id):
        rows.append(row)
        if len(rows) == stop:
            break
    return rows, module


@functools.cache
def whole_run() -> Any:
    """The run that was never stopped."""
    return run()


def curve(rows: list[Epoch]) -> list[Epoch]:
    """The rows without what a clock says."""
    return [replace(row, seconds=0, images_per_second=0) for row in rows]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Seen(nn.Module):
    """A linear classifier that keeps the batches it is given while training; `broken_from` makes later ones NaN."""

    def __init__(self, broken_from: float = math.inf):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        nn.init.zeros_(self.linear.weight)
        self.batches: list[Tensor] = []
        self.broken_from = broken_from

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches.append(x)
        out = self.linear(x.flatten(1))
        return out * math.nan if len(self.batches) > self.broken_from else out


# ---------------------------------------------------------------- curves


def test_the_same_seed_gives_the_same_curve_and_leaves_the_global_random_state_alone() -> None:
    rows, module = whole_run()
    torch.rand(3)  # what others draw must not matter
    again, module_again = run()
    other, _ = run(seed=1, stop=1)
    assert curve(rows) == curve(again)
    assert same_state(module, module_again)
    assert curve(rows[:1]) != curve(other)
    before = torch.get_rng_state()
    run(stop=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert all(0 <= row.validation_accuracy <= 1 and row.seconds > 0 and row.images_per_second > 0 for row in rows)


def test_learning_happens_and_batch_norm_statistics_are_those_of_training_images() -> None:
    data, arch = digits(1079), create("mobilenet_v1", width=0.3, resolution=16, stem_stride=1, depth="shallow",
                                      classes=10, in_channels=1)  # fmt: skip
    module = build(arch, 0)
    rows = list(train(module, data, TrainingOptions(epochs=3, batch_size=32), resolution=16, seed=0))
    assert rows[-1].validation_accuracy > 0.6
    loss, accuracy = evaluate(module, data.validation, data, resolution=16)
    assert (loss, accuracy) == (rows[-1].validation_loss, rows[-1].validation_accuracy)
    assert (accuracy * len(data.validation)) % 1 == pytest.approx(0, abs=1e-9)


def test_every_image_is_seen_once_an_epoch_in_even_batches() -> None:
    data = digits(30)
    for batch_size, sizes in ((16, [15, 15]), (29, [15, 15]), (30, [30]), (99, [30]), (1, [2] * 15), (8, [8, 8, 7, 7])):
        module = Seen()
        plain = TrainingOptions(f"{__name__}:NO_CROP", epochs=1, batch_size=batch_size)
        list(train(module, data, plain, resolution=8, seed=0))
        assert [len(batch) for batch in module.batches] == sizes
        seen = torch.cat(module.batches).flatten(1)
        assert len(torch.unique(seen, dim=0)) == len(torch.unique(data.train.images.flatten(1), dim=0))


NO_CROP = Recipe(learning_rate=0.1, crop=0)


def test_the_loop_reads_nothing_back_between_steps() -> None:
    reading = {Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.cpu, Tensor.numpy}

    class Reads(TorchFunctionMode):
        count = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func in reading
            return func(*args, **(kwargs or {}))

    counts, data = [], digits()
    for batch_size in (100, 10):
        with Reads() as reads:
            list(train(build(TINY), data, TrainingOptions(epochs=1, batch_size=batch_size), resolution=9, seed=0))
        counts.append(reads.count)
    assert counts == [2, 2]  # once after training, once after validation


# ---------------------------------------------------------------- failures


def test_a_loss_that_is_no_number_fails_the_trial_with_epoch_step_and_last_finite_loss(tmp_path: Path) -> None:
    with pytest.raises(
        TrialFailed, match=r"^the training loss became (nan|inf) in epoch 1, step [234] of 4; the last "
    ):
        run(options=TrainingOptions(epochs=2, batch_size=50, learning_rate=1e18))
    broken = Seen(broken_from=5)  # 4 steps an epoch: the second step of epoch 2
    rows = train(broken, digits(), OPTIONS, resolution=8, seed=0, checkpoint=tmp_path / "last.pt")
    assert next(rows).epoch == 1
    with pytest.raises(TrialFailed) as caught:
        next(rows)
    text = str(caught.value)
    assert text.startswith("the training loss became nan in epoch 2, step 2 of 4; the last finite loss was ")
    assert text.endswith("; try a lower learning rate")
    assert caught.value.exit_code == 1
    assert len(load_checkpoint(tmp_path / "last.pt").rows) == 1
    with pytest.raises(TrialFailed, match="epoch 1, step 1 of 4; there was no finite loss before"):
        next(train(Seen(broken_from=0), digits(), OPTIONS, resolution=8, seed=0))
    with pytest.raises(TrialFailed, match="the validation loss became nan in epoch 1; the last finite training loss"):
        next(train(BreaksInEval(), digits(), OPTIONS, resolution=8, seed=0))


@pytest.mark.parametrize(("factor", "ends"), [(9.0, False), (11.0, True)])
def test_an_epoch_far_worse_than_guessing_ends_the_trial(factor: float, ends: bool) -> None:
    """A mean loss of `factor` times ln(10) in epoch 2, after one of guessing in epoch 1."""
    module = Wrong(nats=factor * math.log(10), from_batch=5)  # 4 steps an epoch
    plain = TrainingOptions(f"{__name__}:STILL", epochs=2, batch_size=50)
    rows = train(module, digits(), plain, resolution=8, seed=0)
    assert next(rows).train_loss == pytest.approx(math.log(10), rel=1e-3)
    if not ends:
        assert next(rows).train_loss == pytest.approx(factor * math.log(10), rel=1e-3)
        return
    with pytest.raises(TrialFailed) as caught:
        next(rows)
    assert str(caught.value) == (
        "training diverged in epoch 2: its mean loss is 25.33, that of guessing 2.3; the last good one, of the epoch "
        "before, was 2.303; try a lower learning rate"
    )


STILL = Recipe(learning_rate=1e-12, label_smoothing=0.0)


class Wrong(Seen):
    """Even logits; from a batch on also an eleventh class, so likely that the loss of each of the ten is `nats`."""

    def __init__(self, nats: float, from_batch: int):
        super().__init__()
        self.rest, self.from_batch = math.log(math.exp(nats) - 10), from_batch

    def forward(self, x: Tensor) -> Tensor:
        even = super().forward(x) * 0
        broken = self.training and len(self.batches) >= self.from_batch
        return torch.cat([even, torch.full((len(x), 1), self.rest)], 1) if broken else even


class BreaksInEval(Seen):
    """NaN only on validation images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else super().forward(x) * math.nan


def test_one_training_image_is_too_few() -> None:
    data = digits()
    single = replace(data, train=Split(data.train.images[:1], data.train.labels[:1]))
    with pytest.raises(TrialFailed, match="1 training images are too few for batch statistics; give 2 or more"):
        next(train(build(TINY), single, OPTIONS, resolution=9, seed=0))


# ---------------------------------------------------------------- statistics


def test_recalibrating_takes_plain_means_and_changes_nothing_else() -> None:
    module = nn.Sequential(
        nn.Dropout(0.5), nn.BatchNorm2d(2, momentum=0.3), nn.BatchNorm2d(2, track_running_stats=False)
    )
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.full((2,), 99.0)
    batches = [torch.rand(4, 2, 3, 3) + shift for shift in (0, 5)]
    before = torch.get_rng_state()
    recalibrate(module, iter(batches))
    assert torch.equal(torch.get_rng_state(), before)  # dropout was off
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, torch.cat(batches).mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert norm.momentum == 0.3
    assert not any(part.training for part in module.modules())


def test_training_needs_no_more_than_torch_and_numpy() -> None:
    """And no torch.optim, which would import torch._dynamo: seconds in every worker."""
    script = """
import sys
for name in ("filelock", "sklearn", "optuna", "ray", "pandas", "pydantic", "sqlalchemy", "ruamel", "PIL", "scipy"):
    sys.modules[name] = None
import torch
from mnet_search.models import latency
from mnet_search.models.arch import Shape
from mnet_search.search.data import Data, Facts, Split
from mnet_search.search.training import TrainingOptions, train
part = Split(torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 2)
data = Data(Facts("made up", 1, 2, 8, 8, ("0", "1"), True, ""), part, part, (0.5,), (0.5,), "digest")
nn = torch.nn
module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
print(len(list(train(module, data, TrainingOptions(epochs=2), resolution=8, seed=0))))
latency.measure(module, Shape(1, 8, 8), latency.Protocol(repeats=2))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2", "False"], done.stderr
