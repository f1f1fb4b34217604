"""`mnet-search train` from the first epoch to its files, `best --test`, and event files: real commands, real kills."""

from __future__ import annotations

import csv
import json
import re
import shutil
import struct
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from mnet_search.models.checkpoints import load_checkpoint
from mnet_search.models.families import create
from mnet_search.search.event_files import PATTERN, TAGS, EventFile, RecordedProgress
from mnet_search.search.progress import Quiet
from mnet_search.search.retrain import sampling_error
from mnet_search.search.show_train import TrainingProgress
from mnet_search.search.training import Epoch
from mnet_search.spaces.yamlfile import dump
from mnet_search.studies.export import read_config
from mnet_search.studies.writer import TrialRecord

from processes import Done, call, load, start, write_space

TINY = create("mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1)
CONFIG: dict[str, Any] = {
    "config_version": 1,
    "arch": {"family": TINY.family, "options": dict(TINY.options), "arch_id": TINY.id},
    "data": {"name": "digits", "test": 0.6, "validation": 0.3},
    "training": {"epochs": 3, "batch_size": 64},
    "seed": 0,
}
CLOCKS = ("images_per_second", "seconds")
MADE = {"config.yaml", "last.pt", "last.pt.json", "best.pt", "best.pt.json", "weights.safetensors"}
MADE |= {"weights-best.safetensors", "curve.csv", "curve.html", "result.json", "speed.json"}


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


def write_config(folder: Path, name: str = "c.yaml", **changes: Any) -> Path:
    path = folder / name
    path.write_text(dump(CONFIG | changes))
    return path


def curve(folder: Path) -> list[dict[str, str]]:
    """The rows of curve.csv without what a clock says."""
    with (folder / "curve.csv").open() as file:
        return [{name: value for name, value in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def train(folder: Path, *arguments: object) -> Done:
    done = call(folder, "train", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def refused(folder: Path, *arguments: object) -> str:
    """The one line with which a command refuses."""
    done = call(folder, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    return done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A folder in which c.yaml was trained to its end, and what that printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder, write_config(folder), "--tensorboard")


# ---------------------------------------------------------------- one training


def test_a_training_leaves_all_its_files(trained: tuple[Path, Done]) -> None:
    run = trained[0] / "runs" / "train-c"
    assert {path.name for path in run.iterdir() if path.is_file() and not path.name.startswith(".")} == MADE
    config, arch = read_config(run / "config.yaml")
    assert (config, arch.id) == (read_config(trained[0] / "c.yaml")[0], TINY.id), "it can be trained as it is"
    for checkpoint, weights in (("last.pt", "weights.safetensors"), ("best.pt", "weights-best.safetensors")):
        stored, exported = load_checkpoint(run / checkpoint).module, load_file(run / weights)
        assert stored.keys() == exported.keys()
        assert all(tensor.equal(exported[name]) for name, tensor in stored.items())
    assert f"mobilenet_v1 {TINY.id}: 3 epochs" in (run / "curve.html").read_text()
    assert [row["epoch"] for row in curve(run)] == ["1", "2", "3"]


def test_what_a_training_prints(trained: tuple[Path, Done]) -> None:
    folder, done = trained
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    found = json.loads((folder / "runs" / "train-c" / "result.json").read_text())
    assert done.stdout.startswith(f"test accuracy {100 * found['test_accuracy']:.2f} % (last epoch)")
    error = sampling_error(found["test_accuracy"], found["test_images"])
    assert f"{found['test_images']} images: sampling error {100 * error:.2f} %" in done.stdout
    assert "weights, curve and result in runs/train-c/" in done.stdout


def test_a_finished_training_says_so_and_trains_nothing(trained: tuple[Path, Done]) -> None:
    folder, first = trained
    run = folder / "runs" / "train-c"
    before, stamp = (run / "result.json").read_text(), (run / "last.pt").stat().st_mtime_ns
    rows = (run / "curve.csv").read_bytes()
    again = train(folder, "c.yaml")
    assert again.stderr == "finished already: 3 of 3 epochs; nothing is left to train\n"
    assert again.stdout == first.stdout
    assert (run / "result.json").read_text() == before
    assert (run / "last.pt").stat().st_mtime_ns == stamp
    assert (run / "curve.csv").read_bytes() == rows, "its clocks too"
    quiet = train(folder, "c.yaml", "-q", "--json")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout) == json.loads(before)


def test_the_best_epoch_is_measured_too_where_it_was_not_the_last(tmp_path: Path) -> None:
    config = write_config(tmp_path, training={"epochs": 8, "batch_size": 64})
    found = json.loads(train(tmp_path, config, "--json").stdout)
    accuracies = [float(row["validation_accuracy"]) for row in curve(tmp_path / "runs" / "train-c")]
    best = accuracies.index(max(accuracies)) + 1
    assert (found["best_epoch"], found["epochs"]) == (best, 8)
    assert found["validation_accuracy_best"] == max(accuracies)
    line = f"test accuracy {100 * found['test_accuracy']:.2f} % (last epoch)"
    if best != 8:
        line += f", {100 * found['test_accuracy_best']:.2f} % with best.pt (epoch {best})"
    assert train(tmp_path, config).stdout.startswith(line + "; one run, ")


def test_kill_9_in_the_middle_loses_and_repeats_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, training={"epochs": 12, "batch_size": 64})
    process = start(tmp_path, "train", config, "--tensorboard")
    run = tmp_path / "runs" / "train-c"
    wait_for_rows(run, 2, process, tmp_path)
    process.kill()
    process.wait()
    stored = len(load_checkpoint(run / "last.pt").rows)
    assert 2 <= stored < 12
    again = train(tmp_path, config, "--tensorboard")
    assert again.stderr.splitlines()[0] == f"going on after epoch {stored} of 12"
    assert [line.split(":")[0] for line in again.stderr.splitlines()[1:]] == [
        f"epoch {number}/12" for number in range(stored + 1, 13)
    ]
    train(tmp_path, config, "--name", "unkilled", "-q")
    assert len(curve(run)) == 12
    assert curve(run) == curve(tmp_path / "runs" / "unkilled")
    assert steps(run / "tensorboard") == list(range(1, 13)), "no step twice"


def wait_for_rows(run: Path, count: int, process: subprocess.Popen[str], folder: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if (run / "curve.csv").exists() and len(curve(run)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} rows; the log says:\n{(folder / 'log.txt').read_text()}")


# ---------------------------------------------------------------- names, overrides, other trainings


def test_overrides_are_in_the_config_that_is_kept(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train(tmp_path, config, "-s", "training.epochs=1", "--name", "short one", "-q")
    run = tmp_path / "runs" / "short one"
    assert read_config(run / "config.yaml")[0].training.epochs == 1
    assert len(curve(run)) == 1
    again = train(tmp_path, run / "config.yaml", "--name", "short one", "--json")
    assert json.loads(again.stdout)["epochs"] == 1
    assert "finished already: 1 of 1 epochs" in again.stderr


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "its seed is 0, here 1;"),
        ({"training": {"epochs": 4, "batch_size": 32}}, "its training.epochs is 3, here 4 (and 1 more);"),
        (
            {"training": {**CONFIG["training"], "learning_rate": 0.1}},
            "its training.learning_rate is not set, here 0.1;",
        ),
        ({"data": {**CONFIG["data"], "test": 0.5}}, "its data.test is 0.6, here 0.5;"),
        ({"arch": "wider"}, "its arch.options.width is 0.1, here 0.2 (and 1 more);"),
    ],
)
def test_another_training_is_not_mixed_in(trained: tuple[Path, Done], tmp_path: Path, change: Any, text: str) -> None:
    if change.get("arch"):
        wider = create(TINY.family, **{**TINY.options, "width": 0.2})
        change = {"arch": {"family": wider.family, "options": dict(wider.options), "arch_id": wider.id}}
    config = write_config(tmp_path, **change)
    before = (trained[0] / "runs" / "train-c" / "config.yaml").read_bytes()
    line = refused(trained[0], "train", config)
    assert f"runs/train-c holds another training: {text} take another folder with --name or --runs-dir" in line
    assert (trained[0] / "runs" / "train-c" / "config.yaml").read_bytes() == before


def test_what_was_measured_and_where_it_came_from_do_not_matter(trained: tuple[Path, Done], tmp_path: Path) -> None:
    more = {"measured": {"accuracy": 0.5}, "provenance": {"study": "other"}}
    config = write_config(tmp_path, data={**CONFIG["data"], "download": True}, **more)
    assert "finished already" in train(trained[0], config).stderr


def test_folders_that_cannot_be_trained_in(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "runs" / "study" / "trial").mkdir(parents=True)
    assert "runs/study holds other things (trial), no training" in refused(tmp_path, "train", config, "--name", "study")
    assert "--name '../x': a name is letters" in refused(tmp_path, "train", config, "--name", "../x")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.yaml").write_text("arch: 1\n")
    line = refused(tmp_path, "train", config, "--name", "broken")
    assert "runs/broken holds a training of which the config cannot be read" in line


def test_a_mistake_is_found_before_the_folder_is_taken(tmp_path: Path) -> None:
    config = write_config(tmp_path, training={"epochs": 1, "batch_size": 64})
    assert "unknown optimiser 'adan'; did you mean adam?" in refused(
        tmp_path, "train", config, "-s", "training.optimiser=adan"
    )
    assert "device 'gpu' is not known; use auto, cpu or cuda" in refused(tmp_path, "train", config, "--device", "gpu")
    assert "no checkpoint at" in refused(tmp_path, "train", config, "-s", "training.teacher=nobody")
    train(tmp_path, config, "-s", "training.optimiser=adam", "-s", "training.learning_rate=0.001")


def test_a_config_by_hand_needs_a_network_alone_and_must_fit_the_data(tmp_path: Path) -> None:
    options = {name: value for name, value in dict(TINY.options).items() if name != "classes"}
    config = tmp_path / "mine.yaml"
    short = {"data": CONFIG["data"], "training": {"epochs": 1, "batch_size": 64}}
    config.write_text(dump({"arch": {"family": TINY.family, "options": options | {"classes": 7}}, **short}))
    text = refused(tmp_path, "train", config)
    assert "network is made for 7 classes, digits has 10; set arch.options.classes to 10" in text
    config.write_text(dump({"arch": {"family": TINY.family, "options": options | {"in_channels": 3}}, **short}))
    assert "is made for 3 channels, digits has 1; set arch.options.in_channels to 1" in refused(
        tmp_path, "train", config, "-s", "arch.options.classes=10"
    )
    train(tmp_path, config, "-s", "arch.options.classes=10", "-s", "arch.options.in_channels=1")
    kept, arch = read_config(tmp_path / "runs" / "train-mine" / "config.yaml")
    assert kept.arch.arch_id == arch.id


def test_a_damaged_best_leaves_the_last_to_be_measured(trained: tuple[Path, Done], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    best = tmp_path / "runs" / "train-c" / "best.pt"
    best.unlink()
    best.write_bytes(b"damaged")
    result = json.loads(train(tmp_path, tmp_path / "c.yaml", "--json").stdout)
    assert result["best_epoch"] == result["epochs"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, training={"epochs": 1, "batch_size": 64})
    train(tmp_path, config, "-q")
    path = tmp_path / "runs" / "train-c" / "curve.csv"
    path.unlink()
    path.mkdir()
    done = call(tmp_path, "train", config, "-q")
    assert done.returncode == 1
    assert done.stderr == (
        "mnet-search: runs/train-c/curve.csv: Is a directory; mend that and run the same command again, which goes on "
        "from the last epoch\n"
    )


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    from filelock import FileLock

    config = write_config(tmp_path)
    (tmp_path / "runs" / "train-c").mkdir(parents=True)
    with FileLock(tmp_path / "runs" / "train-c" / ".lock"):
        assert "another process trains in runs/train-c; wait for it" in refused(tmp_path, "train", config)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config_version": 2}, "c.yaml:1: config_version: 2 is newer than this mnet-search reads (1); upgrade"),
        ({"trainning": {}}, "trainning: unknown key; did you mean training? (known: config_version, arch, data,"),
        ({"training": {"epoch": 3}}, "training.epoch: unknown key; did you mean epochs? (known: recipe, epochs,"),
    ],
)
def test_configs_of_newer_versions_and_unknown_keys(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    assert text in refused(tmp_path, "train", write_config(tmp_path, **change).name)
    assert not (tmp_path / "runs").exists()


def test_a_trained_network_teaches_another(trained: tuple[Path, Done], tmp_path: Path) -> None:
    config = write_config(tmp_path, training={"epochs": 1, "batch_size": 64})
    train(tmp_path, config, "-q", "--name", "alone")
    train(tmp_path, config, "-q", "--name", "taught", "-s", f"training.teacher={trained[0] / 'runs' / 'train-c'}")
    alone, taught = (curve(tmp_path / "runs" / name)[0]["train_loss"] for name in ("alone", "taught"))
    assert alone != taught


# ---------------------------------------------------------------- progress


ROWS = [
    Epoch(1, 2.3, 0.1, 2.2, 0.2, 0.1, 5000.0, 10.0),
    Epoch(2, 1.3, 0.5, 1.2, 0.6, 0.1, 6000.0, 10.0),
    Epoch(3, 1.0, 0.6, 1.1, 0.5, 0.1, 4000.0, 10.0),
]


def test_the_bar_on_a_terminal() -> None:
    console = Console(force_terminal=True, width=120, record=True)
    progress = TrainingProgress(console, 5)
    progress.stored(ROWS[:2])
    progress.epoch(ROWS[2])
    console.print(progress.render())
    text = console.export_text()
    assert "going on after epoch 2 of 5" in text
    assert re.search(r"epoch 4/5  \S+  about 20 s left *\n", text), (
        "two epochs like the last one; those of earlier runs do not count"
    )
    assert "validation 50.00%, loss 1.100, best 60.00% (epoch 2), 4,000 images/s" in text
    assert "epoch 3/5:" not in text, "the bar says it"


# ---------------------------------------------------------------- event files


def events(folder: Path) -> list[Any]:
    """The events of the one file in a folder, its framing checked."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (path,) = folder.glob(PATTERN)
    content, found = path.read_bytes(), []
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
        body = content[12 : 12 + length]
        assert struct.unpack("<I", content[12 + length : 16 + length])[0] == masked_crc32c(body)
        found.append(Event.FromString(body))
        content = content[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    return found[1:]


def steps(folder: Path) -> list[int]:
    return [event.step for event in events(folder)]


def test_event_files_hold_the_curve(trained: tuple[Path, Done]) -> None:
    run = trained[0] / "runs" / "train-c"
    found = events(run / "tensorboard")
    with (run / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [event.step for event in found] == [1, 2, 3]
    for event, row in zip(found, rows, strict=True):
        values = {value.tag: value.simple_value for value in event.summary.value}
        assert values == {tag: pytest.approx(float(row[name]), rel=1e-6) for tag, name in TAGS.items()}


def test_a_trial_that_starts_again_has_no_step_twice(tmp_path: Path) -> None:
    record = TrialRecord(7, 3, "running", "abc", 0, {}, None, 1)
    progress = RecordedProgress(Quiet(), tmp_path)
    progress.begin("s", 1, [])
    for count in (2, 3):  # its worker dies after the second epoch; the trial sends its rows again
        progress.started(record)
        for row in ROWS[:count]:
            progress.epoch(record, row)
    assert steps(tmp_path / "s" / "tensorboard" / "trial0003-abc") == [1, 2, 3], "on disk before it has ended"
    progress.finished(record, {})


def test_event_files_that_cannot_be_written_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").touch()
    file = EventFile(tmp_path / "taken")
    file.add(ROWS[0])
    file.close()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "no event files are written from here on: File exists" in message


# ---------------------------------------------------------------- a study: run --tensorboard, best --test


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    where = ("--storage", f"sqlite:///{folder / 'study.db'}")
    done = call(folder, "run", write_space(folder), "--executor", "local", "--n-trials", 2, "--tensorboard", *where)
    assert done.returncode == 0, done.stderr
    return folder


def test_run_writes_event_files_of_every_trial(study: Path) -> None:
    folder = study / "runs" / "tiny" / "tensorboard"
    wanted = {f"trial{row.number:04d}-{row.arch_id}" for row in load(study).itertuples()}
    assert {path.name for path in folder.iterdir()} == wanted
    assert [steps(path) for path in folder.iterdir()] == [[1, 2], [1, 2]]


def test_best_on_the_test_images(study: Path, tmp_path: Path) -> None:
    found = json.loads(call(study, "best", "tiny", "--test", "--json").stdout)
    assert found["test_images"] == 359
    # a training of the exported config is the same one and has the same figures
    call(study, "export", "tiny", "--trial", found["number"], "--format", "config", "-o", tmp_path)
    (config,) = tmp_path.glob("*.yaml")
    result = json.loads(train(tmp_path, config, "--json").stdout)
    assert [result[name] for name in ("test_accuracy", "test_loss")] == [found["test_accuracy"], found["test_loss"]]
    error = sampling_error(found["test_accuracy"], 359)
    shown = call(study, "best", "tiny", "--test").stdout
    wanted = (
        f"test accuracy {100 * found['test_accuracy']:.2f} % (one run, 359 images: sampling error {100 * error:.2f} %)"
    )
    assert wanted in shown
    assert "test_accuracy" not in json.loads(call(study, "best", "tiny", "--json").stdout)


def test_best_without_a_whole_checkpoint_is_one_line(study: Path, tmp_path: Path) -> None:
    number = json.loads(call(study, "best", "tiny", "--json").stdout)["number"]
    path = Path(load(study).set_index("number").loc[number, "checkpoint"])
    kept = shutil.copy(path, tmp_path)
    advice = f"`mnet-search export tiny --trial {number} --format config` and `mnet-search train` make it anew"
    try:
        path.unlink()
        assert f"the checkpoint of trial {number} is gone ({path}); {advice}" in refused(
            study, "best", "tiny", "--test"
        )
        path.write_bytes(Path(kept).read_bytes()[:-10])
        line = refused(study, "best", "tiny", "--test")
        assert "is damaged: the SHA-256" in line
        assert advice in line
    finally:
        shutil.copy(kept, path)


def test_the_sampling_error_of_no_errors_is_not_none() -> None:
    assert sampling_error(0.9, 400) == pytest.approx(0.015)
    assert sampling_error(1.0, 100) == sampling_error(0.99, 100) > 0
    assert asdict(ROWS[0])["epoch"] == 1
