"""Checkpoints and going on from them: for every recipe, a run that was stopped has the curve of one that was not."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnet_search.models.checkpoints import BEST, PREVIOUS, CheckpointError, load_checkpoint, record_path
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.data import Data, DataOptions, load
from mnet_search.search.recipes import RECIPES, TrainingOptions
from mnet_search.search.speed import Speed
from mnet_search.search.teachers import load_teacher
from mnet_search.search.training import Epoch, describe_run, train

TINY = create(
    "mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1, dropout=0.2
)
OPTIONS = TrainingOptions(epochs=3, batch_size=50)
WAYS = {
    **{name: TrainingOptions(name, epochs=3, batch_size=50) for name in RECIPES},
    "everything": TrainingOptions(
        *("paper", 3, 50),
        mixup=0.4,
        cutout=0.3,
        average=0.9,
        label_smoothing=0.1,
        weight_decay=1e-3,
        learning_rate=0.01,
    ),
    "adam averaged": TrainingOptions("adam_plain", epochs=3, batch_size=50, average=0.9, recalibrate=True, crop=0.1),
}


def digits(limit: int = 200) -> Data:
    return load(DataOptions(train_limit=limit, validation=0.1))


def run(checkpoint: Path | None = None, *, options: TrainingOptions = OPTIONS, stop: int = 99, **more: Any) -> Any:
    """The rows of a run on digits, at most `stop` of them, and its module."""
    module = build(TINY, 0)
    rows = []
    for row in train(module, digits(), options, resolution=9, seed=0, checkpoint=checkpoint, identity=TINY.id, **more):
        rows.append(row)
        if len(rows) == stop:
            break
    return rows, module


@functools.cache
def whole_run(way: str = "default") -> Any:
    """The run that was never stopped."""
    return run(options=WAYS[way])


def curve(rows: list[Epoch]) -> list[Epoch]:
    """The rows without what a clock says."""
    return [replace(row, seconds=0, images_per_second=0) for row in rows]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("way", list(WAYS))
def test_a_resumed_run_gives_bit_for_bit_the_curve_and_weights_of_one_that_never_stopped(
    tmp_path: Path, way: str, stop: int
) -> None:
    whole, module = whole_run(way)
    first, _ = run(tmp_path / "last.pt", options=WAYS[way], stop=stop)
    resumed, module_resumed = run(tmp_path / "last.pt", options=WAYS[way])
    assert resumed[:stop] == first  # clocks too: these epochs were not trained again
    assert curve(resumed) == curve(whole)
    assert same_state(module, module_resumed)
    again, module_again = run(tmp_path / "last.pt", options=WAYS[way])
    assert again == resumed
    assert same_state(module, module_again)


def test_a_run_with_a_teacher_or_another_memory_format_goes_on_too(tmp_path: Path) -> None:
    list(run(tmp_path / "teacher" / "last.pt", network=TINY.to_json()))
    teacher = load_teacher(str(tmp_path / "teacher"), digits().facts)
    for name, more in (("taught", {"teacher": teacher}), ("contiguous", {"speed": Speed("contiguous")})):
        path = tmp_path / name / "last.pt"
        whole, module = run(**more)
        run(path, stop=1, **more)
        resumed, module_resumed = run(path, **more)
        assert curve(resumed) == curve(whole)
        assert same_state(module, module_resumed)


# ---------------------------------------------------------------- which files are kept


def test_best_and_last_are_kept_and_what_is_kept_is_what_was_validated(tmp_path: Path) -> None:
    path, options = tmp_path / "last.pt", TrainingOptions(epochs=4, batch_size=50, learning_rate=0.4, average=0.8)
    module = build(TINY, 0)
    for row in train(module, digits(), options, resolution=9, seed=0, checkpoint=path):
        assert same_state(module, stored_module(path))
        best = load_checkpoint(tmp_path / BEST)
        accuracies = [kept["validation_accuracy"] for kept in load_checkpoint(path).rows]
        assert len(best.rows) == accuracies.index(max(accuracies)) + 1
        names = {p.name for p in tmp_path.iterdir()} - {"last.pt", "last.pt.json", BEST, f"{BEST}.json"}
        assert names == ({PREVIOUS, f"{PREVIOUS}.json"} if 1 < row.epoch < 4 else set())
    assert load_checkpoint(path).optimiser is None


def test_a_kill_between_last_and_best_is_made_good(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    whole = whole_run()[0]
    stop = next(row.epoch for row in whole[1:] if row.validation_accuracy > whole[0].validation_accuracy)
    run(path, stop=1)
    older = {name: (tmp_path / name).read_bytes() for name in (BEST, f"{BEST}.json")}
    run(path, stop=stop)
    for name, content in older.items():
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(content)
    run(path, stop=stop)
    assert len(load_checkpoint(tmp_path / BEST).rows) == stop
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


def stored_module(path: Path) -> nn.Module:
    module = build(TINY, 1)
    module.load_state_dict(load_checkpoint(path).module)
    return module


def test_a_checkpoint_says_how_its_network_is_built_and_fed(tmp_path: Path) -> None:
    run(tmp_path / "last.pt", stop=1, network=TINY.to_json())
    about = load_checkpoint(tmp_path / "last.pt").network
    assert about is not None
    assert create(about["family"], **about["options"]).id == TINY.id
    assert about["class_names"] == list("0123456789")
    assert (tuple(about["mean"]), tuple(about["std"])) == (digits().mean, digits().std)


# ---------------------------------------------------------------- damage


def spoil(path: Path, how: str) -> None:
    """Replace the file by a damaged one: its other names keep the sound one."""
    content = bytearray(path.read_bytes())
    record = record_path(path)
    path.unlink()
    match how:
        case "flipped":
            content[len(content) // 2] ^= 1
        case "truncated":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "no record":
            record.unlink()
        case "torn record":
            half = record.read_bytes()[:40]
            record.unlink()
            record.write_bytes(half)
    path.write_bytes(content)


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
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, message: str
) -> None:
    path = tmp_path / "last.pt"
    first, _ = run(path, stop=2)
    spoil(path, how)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        rows, module = run(path)
    assert "it is kept as last.pt.refused and the one before it is tried" in caplog.text
    assert rows[:1] == first[:1]  # clocks too: the first epoch was not trained again
    assert rows[1] != first[1]
    assert curve(rows) == curve(whole_run()[0])
    assert same_state(module, whole_run()[1])
    assert {p.name for p in tmp_path.iterdir()} == {
        *("last.pt", "last.pt.json", "last.pt.refused", BEST, f"{BEST}.json")
    }


def test_where_every_checkpoint_is_damaged_training_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.pt"
    run(path, stop=2)
    for name in ("last.pt", PREVIOUS, BEST):
        spoil(tmp_path / name, "truncated")
    with caplog.at_level(logging.WARNING):
        rows, _ = run(path)
    assert caplog.text.count("the one before it is tried") == 2
    assert caplog.text.count("training starts anew") == 1
    assert curve(rows) == curve(whole_run()[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "its seed is 0, this run's 1"),
        ({"identity": "cafe"}, f"its network is '{TINY.id}', this run's 'cafe'"),
        ({"options": replace(OPTIONS, epochs=4)}, "its epochs is 3, this run's 4"),
        ({"options": replace(OPTIONS, mixup=0.2)}, "its training.mixup is 0.0, this run's 0.2"),
        ({"data": digits(100)}, "its data is '"),
        ({"speed": Speed("contiguous")}, "its way is 'channels_last float32', this run's 'contiguous float32'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "last.pt"
    run(path, stop=1)
    asked = {"data": digits(), "options": OPTIONS, "resolution": 9, "seed": 0, "identity": TINY.id}
    same = describe_run(build(TINY), **asked)  # type: ignore[arg-type]
    other = describe_run(build(TINY), **asked | changed)  # type: ignore[arg-type]
    stored = load_checkpoint(path, same)
    assert stored.optimiser is not None
    assert asdict(Epoch(**stored.rows[0])) == stored.rows[0]
    with pytest.raises(CheckpointError, match=f"last.pt is from another run: {message}"):
        load_checkpoint(path, other)


def test_a_stop_between_record_and_checkpoint_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    run(path, stop=1)
    older = path.read_bytes()
    run(path, stop=2)
    path.unlink()
    path.write_bytes(older)  # the record is of two epochs, the file still of one
    rows, _ = run(path)
    assert curve(rows) == curve(whole_run()[0])


def test_a_checkpoint_of_the_first_format_can_still_be_read(tmp_path: Path) -> None:
    """Weights of studies from before 0.2 can be exported; training from one starts anew, since more decides a run."""
    path = tmp_path / "last.pt"
    run(path, stop=1)
    stored = torch.load(path, weights_only=True)
    older = {key: stored[key] for key in ("run", "rows", "module")}
    torch.save({"format": 1, **older, "momenta": stored["optimiser"][0]}, path)
    write_record(path)
    found = load_checkpoint(path)
    assert found.module.keys() == stored["module"].keys()
    assert found.optimiser is not None and len(found.optimiser) == 1
    torch.save({"format": 3, **older}, path)
    write_record(path)
    with pytest.raises(CheckpointError, match=r"last\.pt has format 3; this version reads 1 and 2"):
        load_checkpoint(path)


def write_record(path: Path) -> None:
    record = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "previous": None}
    record_path(path).write_text(json.dumps(record))
