"""A study as a DataFrame and as files: every column documented, values whole, no formulas, nothing half written."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_studies import begin, finish, open_study

from mnet_search.spaces.space import Space
from mnet_search.spaces.space import make_space as make
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies import frame as frames
from mnet_search.studies.frame_files import FORMULA_STARTS, to_csv, to_parquet
from mnet_search.studies.store import Store

from processes import call

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with study.db: a finished trial with two epochs, one that failed for a formula, one open."""
    folder = tmp_path_factory.mktemp("frame")
    with Store(f"sqlite:///{folder / 'study.db'}", create=True) as store:
        study = open_study(store)
        first, second = begin(study), begin(study, 0.2)
        for epoch in (1, 2):
            study.add_epoch(first.trial_id, epoch, {"train_loss": 1.0, "validation_accuracy": 0.5, "seconds": 2.0})
        finish(study, first, 0.6)
        study.fail(second.trial_id, "=HYPERLINK(1)")
        begin(study, 0.3)
    return folder


@pytest.fixture
def frame(folder: Path) -> pd.DataFrame:
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        return frames.load(store, "tiny")


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


def test_every_column_is_documented_in_the_docstring_and_in_the_docs(frame: pd.DataFrame) -> None:
    columns = [re.sub(r"^param\..*", "param.NAME", name) for name in frame.columns]
    columns.insert(columns.index("attempts") + 1, "NAME")  # objectives of the user's own stand there
    columns = list(dict.fromkeys(columns))
    assert re.findall(r"^    - `([\w.]+)`:", frames.load.__doc__ or "", re.MULTILINE) == columns
    page = (ROOT / "docs" / "tables.md").read_text()
    section = page.partition("## The columns of a frame")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE) == columns


def test_types_and_values(frame: pd.DataFrame) -> None:
    kinds = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert {kinds[name] for name in ("number", "seed", "params", "mult_adds", "epochs", "attempts")} == {"int64"}
    assert {kinds[name] for name in ("accuracy", "validation_loss", "latency_ms", "seconds")} == {"float64"}
    assert {kinds[name] for name in ("state", "arch_id", "family", "reason", "checkpoint", "imported")} == {"str"}
    assert kinds["started"].startswith("datetime64")
    assert frame["imported"].tolist() == ["", "", ""]
    assert frame["epochs"].tolist() == [2, 0, 0]
    assert frame["seconds"].isna().tolist() == [False, True, True]
    assert frame["options"][0]["width"] == 0.1
    assert frame["param.resolution"].tolist() == [20, 20, 20]


def test_equal_options_are_kept_once(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path / 'study.db'}", create=True) as store:
        study = open_study(store)
        begin(study), begin(study), begin(study, 0.2)
        first, second, third = frames.load(store, "tiny")["options"]
    assert first is second
    assert third != first


def test_a_study_without_trials_and_one_of_more_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(f"sqlite:///{tmp_path / 'study.db'}", create=True) as store:
        study = open_study(store)
        empty = frames.load(store, "tiny")
        assert (len(empty), len(frames.curves(store, "tiny"))) == (0, 0)
        for _ in range(5):
            study.add_epoch(begin(study).trial_id, 1, {"seconds": 1.0})
        whole = frames.load(store, "tiny"), frames.curves(store, "tiny")
        monkeypatch.setattr(frames, "CHUNK_ROWS", 2)
        pd.testing.assert_frame_equal(frames.load(store, "tiny"), whole[0])
        pd.testing.assert_frame_equal(frames.curves(store, "tiny"), whole[1])
        assert whole[0]["number"].tolist() == [0, 1, 2, 3, 4]
    assert list(empty.columns) == list(whole[0].columns)


def test_objectives_of_ones_own_are_columns(tmp_path: Path) -> None:
    space: Space = make(
        "own",
        {
            "family": "mobilenet_v1",
            "parameters": {"width": [0.1, 0.2, 0.3], "resolution": 20, "block": "separable"},
            "evaluate": "mine:function",
            "objectives": {"energy": "minimize", "params": "minimize"},
        },
        Source("own.yaml"),
    ).for_data(classes=10, in_channels=1)
    with Store(f"sqlite:///{tmp_path / 'study.db'}", create=True) as store:
        study = open_study(store, space)
        record = begin(study)
        done = {"environment": {}, "measurement": None, "checkpoint": "", "checkpoint_sha256": ""}
        study.finish(record.trial_id, [3.0, 1.0], metrics={"energy": 3.0}, **done)
        frame = frames.load(store, "tiny")
    assert frame["energy"].tolist() == [3.0]
    assert frame["accuracy"].isna().all()


def test_csv_holds_every_trial_and_no_formula(folder: Path, frame: pd.DataFrame) -> None:
    done = call(folder, "frame", "tiny")
    assert done.returncode == 0, done.stderr
    back = pd.read_csv(io.StringIO(done.stdout))
    assert list(back.columns) == list(frame.columns)
    assert back["accuracy"].tolist()[0] == frame["accuracy"][0]
    assert back["reason"].tolist()[1] == "'=HYPERLINK(1)"
    assert json.loads(back["options"][0]) == frame["options"][0]


def test_parquet_is_the_frame_again(folder: Path, frame: pd.DataFrame) -> None:
    done = call(folder, "frame", "tiny", "-o", "trials.parquet")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "trials.parquet: 3 trials, " in done.stderr
    back = pd.read_parquet(folder / "trials.parquet")
    back["options"] = back["options"].map(json.loads)
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)


def test_curves_are_a_row_an_epoch(folder: Path) -> None:
    done = call(folder, "frame", "tiny", "--curves", "-o", "-")
    assert done.stdout.splitlines()[0].startswith("number,epoch,train_loss,")
    assert [line.split(",")[:3] for line in done.stdout.splitlines()[1:]] == [["0", "1", "1.0"], ["0", "2", "1.0"]]
    rows = json.loads(call(folder, "frame", "tiny", "--curves", "--json").stdout)
    assert [(row["epoch"], row["validation_loss"]) for row in rows] == [(1, None), (2, None)]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("trials.xlsx", "-o trials.xlsx: its ending says the form, and is .xlsx; write .csv or .parquet"),
        ("trials", "-o trials: its ending says the form, and is none; write .csv or .parquet"),
        ("study.csv", "study.csv: exists already; replace it with --force, or name another with -o"),
        ("file/x.csv", "file/x.csv: there is no folder 'file'; make it, or name another with -o"),
    ],
)
def test_bad_outputs(folder: Path, output: str, text: str) -> None:
    for name in ("study.csv", "file"):
        (folder / name).write_text("mine")
    done = call(folder, "frame", "tiny", "-o", output)
    assert done.returncode == 2
    assert text in done.stderr
    assert (folder / "study.csv").read_text() == "mine"
    assert not list(folder.glob(".*.tmp"))


def test_force_replaces(folder: Path) -> None:
    (folder / "old.csv").write_text("old")
    assert call(folder, "frame", "tiny", "-o", "old.csv", "--force").returncode == 0
    assert (folder / "old.csv").read_text().startswith("number,")


@given(st.lists(st.text(max_size=5) | st.sampled_from(["=1", "+1", "-1", "@x", "\t=1", "'"]), min_size=1, max_size=4))
def test_no_text_cell_begins_as_a_formula(texts: list[str]) -> None:
    frame = pd.DataFrame({"text": pd.Series(texts, dtype="str"), "mixed": pd.Series([-1, *texts[1:]], dtype=object)})
    back = pd.read_csv(io.StringIO(to_csv(frame)), keep_default_na=False, dtype=str, lineterminator="\n")
    texts_back = [*back["text"], *back["mixed"][1:]]
    assert not any(cell.startswith(FORMULA_STARTS) for cell in texts_back)
    assert back["mixed"][0] == "-1", "a number is no formula"


def test_parquet_without_pyarrow_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = call(folder, "frame", "tiny", "-o", "none.parquet")
    assert done.returncode == 2
    assert "Parquet needs pyarrow, which is not installed; install it (pip install pyarrow), or write" in done.stderr
    assert not (folder / "none.parquet").exists()


def test_parameters_that_are_numbers_and_words_are_text_in_parquet() -> None:
    frame = pd.DataFrame({"param.depth": pd.Series([0.5, "full", None], dtype=object)})
    assert pd.read_parquet(io.BytesIO(to_parquet(frame)))["param.depth"].tolist()[:2] == ["0.5", "full"]
