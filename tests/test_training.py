"""The training loop and its checkpoints, on real digits with tiny networks."""

from __future__ import annotations

import functools
import logging
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mnet_search.models.arch import MnetError
from mnet_search.models.checkpoints import CheckpointError, load_checkpoint, record_path
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.data import Data, DataOptions, Split, load
from mnet_search.search.training import (
    RECIPES,
    Epoch,
    NesterovSGD,
    Recipe,
    TrainingOptions,
    TrialFailed,
    describe_run,
    evaluate,
    one_cycle,
    recalibrate,
    train,
)

TINY = create(
    "mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1, dropout=0.2
)
OPTIONS = TrainingOptions(epochs=3, batch_size=50)


def digits(limit: int = 200) -> Data:
    return load(DataOptions(limit=limit, validation=0.1))


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


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_gives_bit_for_bit_the_curve_and_weights_of_one_that_never_stopped(
    tmp_path: Path, stop: int
) -> None:
    whole, module = whole_run()
    first, _ = run(tmp_path / "last.pt", stop=stop)
    resumed, module_resumed = run(tmp_path / "last.pt")
    assert resumed[:stop] == first  # clocks too: these epochs were not trained again
    assert curve(resumed) == curve(whole)
    assert same_state(module, module_resumed)
    again, module_again = run(tmp_path / "last.pt")
    assert again == resumed
    assert same_state(module, module_again)


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


class BreaksInEval(Seen):
    """NaN only on validation images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else super().forward(x) * math.nan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "training.epochs: 0 is not a whole number from 1 up"),
        ({"batch_size": 1.5}, "training.batch_size: 1.5 is not a whole number from 1 up"),
        ({"learning_rate": 0.0}, "training.learning_rate: 0.0 is not above 0; leave it out for the recipe's own"),
        ({"learning_rate": math.nan}, "training.learning_rate: nan is not above 0"),
        ({"recipe": "defualt"}, r"unknown recipe 'defualt'; did you mean default\?"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MnetError, match=message):
        TrainingOptions(**options)


def test_one_training_image_is_too_few() -> None:
    data = digits()
    single = replace(data, train=Split(data.train.images[:1], data.train.labels[:1]))
    with pytest.raises(TrialFailed, match="1 training images are too few for batch statistics; give 2 or more"):
        next(train(build(TINY), single, OPTIONS, resolution=9, seed=0))


# ---------------------------------------------------------------- optimiser, schedule, statistics

NAMES = [name for name, _ in build(TINY).named_parameters()]
DECAYED = {name for name in NAMES if name.endswith("pointwise.conv.weight")} | {"stem.conv.weight", "classifier.weight"}


def test_the_optimiser_moves_as_torchs_own_does() -> None:
    ours, theirs = build(TINY, 3), build(TINY, 3)
    recipe = RECIPES["default"]
    mine = NesterovSGD(ours, recipe)
    decayed = [p for name, p in theirs.named_parameters() if name in DECAYED]
    ids = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [p for p in theirs.parameters() if id(p) not in ids], "weight_decay": 0.0},
    ]
    reference = torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum, nesterov=True)
    for step in range(4):
        rate = 0.1 / (step + 1)
        for module in (ours, theirs):
            torch.manual_seed(step)  # dropout
            images = torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(step))
            nn.functional.cross_entropy(module(images), torch.arange(8)).backward()
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        reference.zero_grad()
        mine.step(rate)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_weight_decay_spares_depthwise_filters_norms_and_biases() -> None:
    module = build(TINY)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    NesterovSGD(module, Recipe(learning_rate=1, weight_decay=0.5)).step(1.0)  # no gradients: decay alone moves anything
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, start[name])}
    assert moved == DECAYED


def test_the_learning_rate_climbs_to_its_peak_and_falls_to_nearly_zero() -> None:
    for anneal in ("cosine", "linear"):
        recipe = Recipe(learning_rate=0.4, warmup=0.25, anneal=anneal)  # type: ignore[arg-type]
        rates = [one_cycle(recipe, TrainingOptions(batch_size=64), step, 40) for step in range(40)]
        assert max(rates) == rates[9] == pytest.approx(0.2)  # half the reference batch, half the rate
        assert rates[:10] == sorted(rates[:10])
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert 0 < rates[-1] < 0.2 / 30
    assert one_cycle(recipe, TrainingOptions(batch_size=64, learning_rate=0.7), 9, 40) == pytest.approx(0.7)
    assert one_cycle(recipe, TrainingOptions(batch_size=128), 0, 1) == pytest.approx(0.4)


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


# ---------------------------------------------------------------- checkpoints


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    record = record_path(path)
    match how:
        case "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "no record":
            record.unlink()
        case "torn record":
            record.write_bytes(record.read_bytes()[:40])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "flipped",
            r"checkpoint .*last.pt is damaged: the SHA-256 of its \d+ bytes is \w{12}..., \w{12}... is recorded",
        ),
        ("truncated", "last.pt is damaged"),
        ("empty", "last.pt is damaged: the SHA-256 of its 0 bytes"),
        ("no record", r"cannot be verified, for its record last.pt.json cannot be read \(FileNotFoundError"),
        ("torn record", r"cannot be verified, for its record last.pt.json cannot be read \(JSONDecodeError"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_training_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, message: str
) -> None:
    path = tmp_path / "last.pt"
    run(path, stop=2)
    spoil(path, how)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        rows, _ = run(path)
    assert "it is kept as last.pt.refused and training starts anew" in caplog.text
    assert curve(rows) == curve(whole_run()[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "last.pt.json", "last.pt.refused"]
    assert len(load_checkpoint(path).rows) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "its seed is 0, this run's 1"),
        ({"identity": "cafe"}, f"its network is '{TINY.id}', this run's 'cafe'"),
        ({"options": replace(OPTIONS, epochs=4)}, "its training.epochs is 3, this run's 4"),
        ({"data": digits(100)}, "its data is '"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "last.pt"
    run(path, stop=1)
    asked = {"data": digits(), "options": OPTIONS, "resolution": 9, "seed": 0, "identity": TINY.id}
    same = describe_run(build(TINY), **asked)  # type: ignore[arg-type]
    other = describe_run(build(TINY), **asked | changed)  # type: ignore[arg-type]
    stored = load_checkpoint(path, same)
    assert stored.momenta is not None
    assert asdict(Epoch(**stored.rows[0])) == stored.rows[0]
    with pytest.raises(CheckpointError, match=f"last.pt is from another run: {message}"):
        load_checkpoint(path, other)


def test_a_stop_between_record_and_checkpoint_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    run(path, stop=1)
    older = path.read_bytes()
    run(path, stop=2)
    path.write_bytes(older)  # the record is of two epochs, the file still of one
    rows, _ = run(path)
    assert curve(rows) == curve(whole_run()[0])


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
