"""The same source again: an edited file brings in only what is new; what maps itself, and what must not be mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_import import NEW, plan_of, space_of, written

from mnet_search.models.arch import MnetError
from mnet_search.search.distributions import distribution
from mnet_search.studies.frame import load
from mnet_search.studies.import_sources import read_study
from mnet_search.studies.import_writer import enter, place
from mnet_search.studies.importing import plan
from mnet_search.studies.store import Store
from mnet_search.studies.writer import open_study

from processes import call

HEAD = "width,resolution,block,accuracy"
A, B, C = "0.1,20,separable,0.71", "0.1,20,separable,0.72", "0.2,20,separable,0.8"


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Store]]:
    """A folder and its study `ours`, to which A, B and C were brought as rows 1 to 3 of rows.csv."""
    path = tmp_path_factory.mktemp("edited")
    found, space = plan_of(path, "\n".join([HEAD, A, B, C])), space_of()
    with Store(f"sqlite:///{path / 'study.db'}", create=True) as store:
        writer = open_study(store, space, "ours", n_trials=3, runs_dir="runs", provenance={})
        with writer.lock():
            enter(writer, space, place(store, "ours", space, found).new, found.origin, distribution)
        yield path, store


@pytest.mark.parametrize(
    ("rows", "new", "n_again", "n_changed"),
    [
        ([A, B, C], [], 3, 0),
        ([C, B, A], [], 3, 0),
        (["0.3,20,separable,0.6", A, B, C], ["rows.csv row 1"], 3, 0),
        (["0.1,20,separable,0.6", A, B, C], ["rows.csv row 1"], 3, 0),  # another run of a network that moved on
        ([A, A, B, C], ["rows.csv row 2"], 3, 0),  # each trial is one row
        ([B, C], [], 2, 0),
        ([A, "0.1,20,separable,0.75", C], [], 2, 1),
        ([A, "0.1,20,separable,0.75", C, B], ["rows.csv row 2"], 3, 0),
        ([A, "0.3,20,separable,0.72", C], ["rows.csv row 2"], 2, 0),  # another network
        ([A, B.replace("0.72", "0.7200000000001"), C], [], 3, 0),
    ],
)
def test_an_edited_file_brings_in_only_what_is_new(
    edited: tuple[Path, Store], rows: list[str], new: list[str], n_again: int, n_changed: int
) -> None:
    folder, store = edited
    placed = place(store, "ours", space_of(), plan_of(folder, "\n".join([HEAD, *rows])))
    assert [p.trial.label for p in placed.new] == new
    assert (placed.n_again, len(placed.changed), placed.n_same) == (n_again, n_changed, 0)


@given(st.permutations([A, A, B, C, "0.1,20,separable,0.73", "0.3,20,separable,0.6"]), st.data())
def test_whatever_is_done_to_a_file_rows_that_are_in_the_study_are_found(
    edited: tuple[Path, Store], rows: list[str], data: st.DataObject
) -> None:
    folder, store = edited
    kept = rows[: data.draw(st.integers(1, len(rows)))]
    placed = place(store, "ours", space_of(), plan_of(folder, "\n".join([HEAD, *kept])))
    assert placed.n_again == len({A, B, C} & set(kept))
    assert len(placed.new) + len(placed.changed) + placed.n_again == len(kept)


def test_a_row_with_a_seed_is_the_run_that_was_brought_in_without(edited: tuple[Path, Store]) -> None:
    folder, store = edited
    rows = f"{HEAD},s\n{A},7\n0.1,20,separable,0.75,8\n"
    placed = place(store, "ours", space_of(), plan_of(folder, rows, "seed=s"))
    assert (placed.new, placed.n_again, len(placed.changed)) == ((), 1, 1)


def test_other_figures_are_said_and_counted(folder: Path) -> None:
    (folder / "rows.csv").write_text("\n".join([HEAD, A, B, C]))
    new = ("import", "ours", "--space", "space.yaml", "--from", "rows.csv")
    assert call(folder, *new).returncode == 0
    rows = [f"{row.replace('.7', '.5')},{2 + i}" for i, row in enumerate((A, B))]
    (folder / "rows.csv").write_text("\n".join([f"{HEAD},latency_ms", *rows, f"{C},"]))
    done = call(folder, *new)
    assert done.stdout == (
        "Study ours: 0 trials imported from rows.csv; left out: 1 imported before, "
        "2 imported before with other figures\n"
    )
    assert done.stderr.splitlines()[0] == (
        "warning: rows.csv row 1 was imported before, as trial 0, with other figures: accuracy 0.51 (0.71 before), "
        "latency_ms 2 (none before); it is left out and the trial stays as it is; if it is another run, give it in a "
        "file of another name"
    )
    told = json.loads(call(folder, *new, "--json").stdout)
    assert (told["imported"], told["already_imported"], told["changed"], len(told["notes"])) == (0, 1, 2, 2)


def test_what_frame_writes_needs_no_map(folder: Path) -> None:
    assert call(folder, *NEW).returncode == 0
    assert call(folder, "frame", "ours", "-o", "trials.csv").returncode == 0
    done = call(folder, "import", "copy", "--space", "space.yaml", "--from", "trials.csv")
    assert done.stdout == "Study copy: 3 trials imported from trials.csv\n", done.stderr
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        first, copy = load(store, "ours"), load(store, "copy")
    for name in ("accuracy", "latency_ms", "arch_id", "param.width", "param.expand"):
        assert first[name].equals(copy[name])


def test_what_a_study_minimizes_is_no_accuracy(folder: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{folder / 'o.db'}", study_name="x", directions=["minimize"] * 2)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["loss", "error"])
    study.add_trial(optuna.trial.create_trial(values=[0.3, 0.1]))
    study._storage.remove_session()  # type: ignore[attr-defined]
    table = read_study(f"sqlite:///{folder / 'o.db'}", "x")
    asked = {"width": "=0.1", "resolution": "=20", "block": "=separable", "accuracy": "values.1"}
    text = (
        "--map accuracy=values.1: study x minimizes values.1, and accuracy is to be maximized; map another column, or "
        "give it from a CSV file, converted"
    )
    with pytest.raises(MnetError) as caught:
        plan(space_of(), table, asked)
    assert str(caught.value) == text
    with pytest.raises(
        MnetError, match=r"accuracy=values\.error: study x minimizes values\.error, and accuracy is to be"
    ):
        plan(space_of(), table, asked | {"accuracy": "values.error"})
    gain = space_of(objectives={"accuracy": "maximize", "gain": "maximize"})
    with pytest.raises(MnetError, match=r"minimizes values\.loss, and gain is to be maximized"):
        plan(gain, table, asked | {"accuracy": "=0.7", "gain": "values.loss"})
    found = plan(space_of(), table, asked | {"accuracy": "=0.7", "validation_loss": "values.loss"})
    assert found.trials[0].metrics == {"accuracy": 0.7, "validation_loss": 0.3}
