"""What `export` refuses, in one line and leaving nothing behind; and formats of one's own."""

from __future__ import annotations

import json
import resource
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.show_export import images_of, licence_of
from mnet_search.studies.export import Asked, Format, export_members, select
from mnet_search.studies.frame import load as load_frame
from mnet_search.studies.store import Store
from mnet_search.studies.trained import ExportImages, FromData, Trained

from exports import URL, read_registry_once, searched
from processes import call, load

pytestmark = pytest.mark.xdist_group("export")  # one worker, so that the study is searched once


@pytest.fixture(scope="module", autouse=True)
def one_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        read_registry_once(patch)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.getbasetemp())


def altered(study: Path, folder: Path, *statements: tuple[str, tuple]) -> Path:
    """A copy of the study's database after some SQL."""
    with sqlite3.connect(study / "study.db") as source, sqlite3.connect(folder / "study.db") as target:
        source.backup(target)
        for statement, values in statements:
            target.execute(statement, values)
    source.close()
    target.close()
    return folder


def with_data(**data: object) -> tuple[str, tuple]:
    paths = "".join(f", '$.data.{name}', ?" for name in data)
    return f"UPDATE mnet_studies SET space = json_set(space{paths})", tuple(data.values())


TRIAL = "UPDATE mnet_trials SET {} WHERE number = 0"
REFUSED = {
    "failed": (
        [("UPDATE trials SET state = 'FAIL' WHERE number = 0", ()), (TRIAL.format("reason = 'out of memory'"), ())],
        "config",
        "trial 0 is failed: out of memory; only a finished trial can be exported",
    ),
    "stopped": (
        [("UPDATE trials SET state = 'PRUNED' WHERE number = 0", ())],
        "config",
        "trial 0 is stopped; only a finished trial can be exported",
    ),
    "running": (
        [("UPDATE trials SET state = 'RUNNING' WHERE number = 0", ())],
        "config",
        "trial 0 is running; only a finished trial can be exported",
    ),
    "imported": (
        [(TRIAL.format("checkpoint = NULL"), ())],
        "onnx",
        "trial 0 has no weights: it was not trained here; --format config needs none",
    ),
    "gone": (
        [(TRIAL.format("checkpoint = '/nowhere/last.pt'"), ())],
        "torch_export",
        "the checkpoint of trial 0 is gone (/nowhere/last.pt); --format config needs none",
    ),
    "not a file": (
        [(TRIAL.format("checkpoint = '/'"), ())],
        "weights",
        "the checkpoint of trial 0 cannot be read (/: Is a directory); --format config needs none",
    ),
    "no data": (
        [with_data(name="npz", path="/nowhere/a.npz")],
        "config,onnx",
        "an export is checked on the trial's images: npz: nothing found at '/nowhere/a.npz'; set data.path to an .npz "
        "file (--format config,weights,torch_export needs no images)",
    ),
    "other data": (
        [with_data(split_seed=1)],
        "onnx",
        "trial 0 was trained on other images (their digest was",
    ),
    "unknown": ([], "torch-export", "unknown export format 'torch-export'; did you mean torch_export?"),
    "not a format": ([], "json:dumps", "export format 'json:dumps' is a function; it must be a Format"),
}


@pytest.mark.parametrize(("statements", "formats", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    study: Path, tmp_path: Path, statements: list, formats: str, text: str
) -> None:
    altered(study, tmp_path, *statements)
    done = call(tmp_path, "export", "tiny", "--trial", 0, "--format", formats, "-o", "a/b", *URL)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
    assert text in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "trial 1: checkpoint {} is damaged: the SHA-256 of",
        ),
        (
            lambda path: path.with_name(path.name + ".json").unlink(),
            "trial 1: checkpoint {} cannot be verified, for",
        ),
        (lambda path: path.unlink(), "the checkpoint of trial 1 is gone ({}); --format config needs none"),
    ],
)
def test_a_front_says_which_trial_cannot_be_exported(
    study: Path, tmp_path: Path, harm: Callable[[Path], object], text: str
) -> None:
    """Trial 1 of two, whose checkpoint is a copy that harm comes to."""
    own = Path(load(study).loc[1, "checkpoint"])
    copy = tmp_path / "run"
    shutil.copytree(study / own.parent, copy)
    altered(study, tmp_path, ("UPDATE mnet_trials SET checkpoint = ? WHERE number = 1", (str(copy / own.name),)))
    harm(copy / own.name)
    done = call(study, "export", "tiny", "--front", "--format", "weights", "-o", tmp_path / "o", *_at(tmp_path))
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
    assert text.format(copy / own.name) in done.stderr
    assert not (tmp_path / "o").exists()


def _at(folder: Path) -> tuple[str, str]:
    return "--storage", f"sqlite:///{folder / 'study.db'}"


def test_a_card_and_a_torch_program_need_no_images(study: Path, tmp_path: Path) -> None:
    altered(study, tmp_path, with_data(name="npz", path="/nowhere/a.npz"))
    formats = "config,weights,torch_export,card"
    done = call(tmp_path, "export", "tiny", "--trial", 0, "--format", formats, "-o", "out", *URL)
    assert done.returncode == 0, done.stderr
    assert "not known here, for the images are not on this machine" in (tmp_path / "out/tiny-trial0.md").read_text()


def test_what_was_not_trained_here_has_a_card_all_the_same(study: Path, tmp_path: Path) -> None:
    altered(study, tmp_path, (TRIAL.format("checkpoint = NULL, environment = NULL"), ()))
    done = call(tmp_path, "export", "tiny", "--trial", 0, "--format", "config,card", "-o", "out", *URL)
    assert done.returncode == 0, done.stderr
    assert "the device was not recorded" in (tmp_path / "out/tiny-trial0.md").read_text()


def test_eight_bits_want_onnx(study: Path, tmp_path: Path) -> None:
    done = call(study, "export", "tiny", "--best", "--int8", "-o", tmp_path / "out", *URL)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--int8 makes the ONNX file smaller: add onnx to --format" in done.stderr


@pytest.mark.parametrize(
    ("name", "package", "text"),
    [
        ("onnx", "onnx", "pip install 'mnet-search[onnx]'\n"),
        ("onnx", "onnxscript", "--format onnx needs the package onnxscript, which is not installed"),
        ("executorch", "executorch", "pip install 'mnet-search[executorch]' (or take --format torch_export"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, text: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = call(study, "export", "tiny", "--best", "--format", f"config,{name}", "-o", tmp_path / "out", *URL)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert text in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call(study, "export", "tiny", "--best", "-o", tmp_path / "file" / "out", *URL)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}/file/out: cannot be written: Not a directory" in done.stderr
    (tmp_path / "tiny-trial0.md").mkdir()
    done = call(study, "export", "tiny", "--trial", 0, "-o", tmp_path, "--force", *URL)
    assert done.returncode == 2 and f"{tmp_path}/tiny-trial0.md is a folder" in done.stderr


def test_files_that_do_not_fit_leave_the_old_ones_and_nothing_else(study: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-trial1.yaml").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # below the weights, above all that is read
    try:
        done = call(study, "export", "tiny", "--trial", 1, "-o", tmp_path, "--force", *URL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}: cannot be written: File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-trial1.yaml"]
    assert (tmp_path / "tiny-trial1.yaml").read_text() == "old"


def test_a_file_that_computes_something_else_is_not_written(study: Path, tmp_path: Path) -> None:
    """Here because training normalised otherwise than the file does."""

    def otherwise(trained: Trained) -> ExportImages:
        return replace(images_of(trained), normalise=lambda pixels: pixels.astype(np.float32) / 255)

    asked = Asked(("config", "onnx"), from_data=FromData(otherwise, licence_of))
    with Store(f"sqlite:///{study / 'study.db'}") as store:
        rows = select(load_frame(store, "tiny"), store.objectives("tiny"), "0")
        expected = (
            r"^tiny-trial0.onnx: its scores differ from the trained network's by up to \d.* on 359 validation images"
        )
        with pytest.raises(MnetError, match=expected):
            export_members(store, "tiny", rows, str(tmp_path / "out"), asked)
        with pytest.raises(MnetError, match="this export needs the study's images; use `mnet-search export`"):
            export_members(store, "tiny", rows, str(tmp_path / "out"), replace(asked, from_data=None))
    assert not list(tmp_path.iterdir())


def test_a_format_of_ones_own(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = "[Made('.txt', trained.arch.id.encode())]"
    (tmp_path / "own_format.py").write_text(
        "from mnet_search.studies.export import Format\nfrom mnet_search.studies.trained import Made\n"
        f"text = Format(lambda trained, made, asked: {made}, ('.txt',), weights=False)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = call(study, "export", "tiny", "--trial", 0, "--format", "card,own_format:text", "-o", tmp_path / "o", *URL)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o/tiny-trial0.txt").read_text() == load(study).loc[0, "arch_id"]
    assert "| `tiny-trial0.txt` | 12 |" in (tmp_path / "o/tiny-trial0.md").read_text()
    assert isinstance(sys.modules["own_format"].text, Format)


def test_executorch_where_it_is_installed(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="not among the packages that this project is developed with")
    done = call(study, "export", "tiny", "--trial", 0, "--format", "executorch", "-o", tmp_path, "--json", *URL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["networks"][0]["parity_executorch"]["max_relative"] < 1e-4
