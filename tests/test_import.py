"""Trials brought in from CSV files and Optuna studies: checked whole, written as finished ones, marked, never twice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.distributions import distribution
from mnet_search.search.rungs import Rungs, teach
from mnet_search.search.samplers import make_proposer
from mnet_search.spaces.space import Space, make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies import integrity
from mnet_search.studies.frame import curves, load
from mnet_search.studies.import_sources import read_csv, read_study
from mnet_search.studies.import_writer import enter, place
from mnet_search.studies.importing import parse_mapping, plan
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError
from mnet_search.studies.writer import StudyWriter, open_study

from postgres import Server
from processes import call

SPACE = """\
family: mobilenet_v1
data: {name: digits}
parameters:
  width: [0.1, 0.2, 0.3]
  resolution: {min: 20, max: 32, step: 4}
  depth: shallow
  block: [separable, inverted_residual]
  expand: {values: [2, 4], when: {block: inverted_residual}}
objectives: {accuracy: maximize, params: minimize}
constraints: {params: {max: 600k}}
"""
ROWS = """\
width,resolution,block,expand,top1,ms,trained
0.1,20,separable,,71.5,1.25,8
0.10,20.0,separable,,72.5,,8
0.2,32,inverted_residual,4,80,2,8
0.3,32,inverted_residual,4,85,2,8
"""
MAPS = ("--map", "accuracy=top1%", "--map", "latency_ms=ms", "--map", "epochs=trained")
NEW = ("import", "ours", "--space", "space.yaml", "--from", "rows.csv", *MAPS)


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(folder: Path, rows: str = ROWS) -> Path:
    (folder / "space.yaml").write_text(SPACE)
    (folder / "rows.csv").write_text(rows)
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose study `ours` took ROWS: two runs of one network, one other, and one row over the budget."""
    folder = written(tmp_path_factory.mktemp("import"))
    done = call(folder, *NEW, "--storage", "sqlite:///study.db")
    assert done.stdout == "Study ours: 3 trials imported from rows.csv; left out: 1 over the space's budgets\n"
    return folder


@pytest.fixture
def store(imported: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{imported / 'study.db'}") as opened:
        yield opened


def space_of(**changes: object) -> Space:
    from mnet_search.spaces.yamlfile import parse_value

    values = {**parse_value(SPACE), **changes}
    return make_space("space", values, Source("space.yaml")).for_data(classes=10, in_channels=1)


def plan_of(folder: Path, rows: str, *maps: str, space: Space | None = None):
    (folder / "rows.csv").write_text(rows)
    return plan(space or space_of(), read_csv(folder / "rows.csv"), parse_mapping(maps))


# ---------------------------------------------------------------- what comes in


def test_rows_are_finished_trials_marked_as_imported(store: Store) -> None:
    frame = load(store, "ours")
    assert frame["state"].tolist() == ["finished"] * 3
    assert frame["imported"].tolist() == ["rows.csv row 1", "rows.csv row 2", "rows.csv row 3"]
    assert frame["accuracy"].tolist() == pytest.approx([0.715, 0.725, 0.8])
    assert frame["latency_ms"].tolist() == pytest.approx([1.25, math.nan, 2.0], nan_ok=True)
    assert frame["seed"].tolist() == [0, 1, 0], "the second run of a network gets the next seed"
    assert frame["arch_id"].nunique() == 2
    assert frame["attempts"].tolist() == [0, 0, 0]
    assert (frame["checkpoint"] == "").all()
    space = space_of()
    assert frame["arch_id"][2] == space.arch(store.chosen("ours")[2]).id
    assert store.chosen("ours")[2] == {
        "width": 0.2,
        "resolution": 32,
        "depth": "shallow",
        "block": "inverted_residual",
        "expand": 4,
    }
    assert (frame["finished"] >= frame["started"]).all()
    assert curves(store, "ours").empty
    summary = store.summary("ours")
    assert (summary.n_finished, summary.n_total_asked, summary.active) == (3, 3, False)


def test_optuna_sees_them_and_where_they_are_from(store: Store) -> None:
    trials = store.optuna.get_all_trials(store.row("ours")["study_id"])
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert trials[0].values == pytest.approx([0.715, load(store, "ours")["params"][0]])
    assert trials[0].user_attrs["imported_from"] == "rows.csv row 1"
    assert trials[0].user_attrs["arch_id"] == load(store, "ours")["arch_id"][0]


def test_nothing_is_wrong_with_the_database(store: Store) -> None:
    assert integrity.check(store) == []


def test_samplers_learn_from_them_and_a_driver_knows_them(store: Store) -> None:
    space, writer = space_of(), StudyWriter(store, store.row("ours")["study_id"], "ours")
    proposer = make_proposer(space, 0)
    teach(proposer, writer, Rungs(space))
    assert len(proposer._study.trials) == 3  # type: ignore[attr-defined]
    assert {r.state for r in writer.records()} == {"finished"}
    assert proposer.ask() is not None


def test_tables_mark_them(imported: Path) -> None:
    done = call(imported, "table", "ours", "--rows", "all")
    assert "shallow 0.1 MobileNet-20 †" in done.stdout
    assert "† has imported runs, which were not trained here." in done.stdout


def test_the_same_again_brings_in_nothing(imported: Path) -> None:
    done = call(imported, *NEW, "--json")
    counts = json.loads(done.stdout)
    assert (counts["imported"], counts["already_imported"], counts["over_budget"]) == (0, 3, 1)
    done = call(imported, "import", "ours", "--from", "rows.csv", *MAPS)  # the study has a space
    assert "0 trials imported from rows.csv; left out: 3 imported before, 1 over" in done.stdout
    more = "0.3,20,separable,,60,1,8\n"
    (imported / "rows.csv").write_text(ROWS + more)
    done = call(imported, *NEW, "--dry-run")
    (imported / "rows.csv").write_text(ROWS)
    assert "Study ours: 1 trials would be imported from rows.csv; left out: 3 imported before" in done.stdout


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    done = call(folder, *NEW, "--dry-run")
    assert done.stdout.startswith("Study ours: 3 trials would be imported from rows.csv;")
    assert sorted(path.name for path in folder.iterdir()) == ["rows.csv", "space.yaml"]


def test_an_import_that_was_killed_goes_on(folder: Path) -> None:
    with Store(f"sqlite:///{folder / 'study.db'}", create=True) as store:
        found = plan_of(folder, ROWS, "accuracy=top1%")
        space = space_of()
        writer = open_study(store, space, "ours", n_trials=3, runs_dir="runs", provenance={})
        study_id = store.row("ours")["study_id"]
        with writer.lock():
            enter(writer, space, place(store, "ours", space, found).new[:2], found.origin, distribution)
        with store.write() as connection:  # as a kill leaves them: before the last step, and after the first
            connection.exec_driver_sql("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
        store.optuna.create_new_trial(study_id)
        with writer.lock():
            placed = place(store, "ours", space, found)
            assert (len(placed.new), placed.n_again) == (2, 1)
            enter(writer, space, placed.new, found.origin, distribution)
        frame = load(store, "ours")
        assert frame[["number", "state", "imported"]].to_numpy().tolist() == [
            [0, "finished", "rows.csv row 1"],
            [1, "finished", "rows.csv row 2"],
            [3, "finished", "rows.csv row 3"],
        ]
        assert integrity.check(store) == []


def test_one_that_a_driver_took_up_and_trained_is_its_own(folder: Path) -> None:
    with Store(f"sqlite:///{folder / 'study.db'}", create=True) as store:
        found, space = plan_of(folder, ROWS, "accuracy=top1%"), space_of()
        writer = open_study(store, space, "ours", n_trials=3, runs_dir="runs", provenance={})
        with writer.lock():
            enter(writer, space, place(store, "ours", space, found).new[:1], found.origin, distribution)
        with store.write() as connection:
            connection.exec_driver_sql("UPDATE trials SET state = 'RUNNING'")
        with writer.lock():
            assert writer.begin_again(writer.records()[0])
        assert load(store, "ours")["imported"].tolist() == [""]


def test_a_driver_at_work_keeps_imports_out(imported: Path, store: Store) -> None:
    (imported / "more.csv").write_text(ROWS + "0.3,20,separable,,60,1,8\n")
    with StudyWriter(store, store.row("ours")["study_id"], "ours").lock():
        done = call(imported, "import", "ours", "--from", "more.csv", *MAPS)
    assert done.returncode == 3
    assert "study 'ours' is already being run by" in done.stderr


def test_import_and_load_on_postgresql(postgres: Server, folder: Path) -> None:
    url = postgres.database()
    first, again = (call(folder, *NEW, "--storage", url, "--json") for _ in range(2))
    assert json.loads(first.stdout)["imported"] == 3, first.stderr
    assert json.loads(again.stdout)["already_imported"] == 3
    with Store(url) as store:
        frame = load(store, "ours")
        assert frame["imported"].tolist() == ["rows.csv row 1", "rows.csv row 2", "rows.csv row 3"]
        assert frame["options"][2]["expand"] == 4
        assert frame["accuracy"].tolist() == pytest.approx([0.715, 0.725, 0.8])
        assert integrity.check(store) == []


def test_another_space_is_refused(imported: Path) -> None:
    (imported / "other.yaml").write_text(SPACE.replace("[0.1, 0.2, 0.3]", "[0.1, 0.2]"))
    done = call(imported, "import", "ours", "--space", "other.yaml", "--from", "rows.csv", *MAPS)
    assert done.returncode == 2
    assert "the space differs from the one that study 'ours' was made with (parameters.width.values:" in done.stderr


# ---------------------------------------------------------------- seeds, constants, costs, epochs


def test_mapped_seeds_are_kept_and_known_ones_left_out(folder: Path) -> None:
    found = plan_of(folder, "width,resolution,block,acc,s\n0.1,20,separable,0.7,5\n0.1,20,separable,0.8,6\n", *SEEDED)
    with Store(f"sqlite:///{folder / 'study.db'}", create=True) as store:
        space = space_of()
        writer = open_study(store, space, "ours", n_trials=3, runs_dir="runs", provenance={})
        with writer.lock():
            enter(writer, space, place(store, "ours", space, found).new, found.origin, distribution)
        assert load(store, "ours")["seed"].tolist() == [5, 6]
        other = plan_of(
            folder, "width,resolution,block,acc,s\n\n0.1,20,separable,0.7,4\n0.1,20,separable,0.8,6\n", *SEEDED
        )
        placed = place(store, "ours", space, other)
        assert ([p.seed for p in placed.new], placed.n_same, placed.n_again) == ([4], 0, 1)
        other = plan_of(folder, "width,resolution,block,acc,s\n0.1,20,separable,0.9,6\n", *SEEDED)
        placed = place(store, "ours", space, other)
        assert (placed.new, placed.n_same, placed.n_again) == ((), 0, 0)
        assert placed.changed == (
            "rows.csv row 1 was imported before, as trial 1, with other figures: accuracy 0.9 (0.8 before); it is left "
            "out and the trial stays as it is; if it is another run, give it in a file of another name",
        ), "its place is that of its seed"
        (folder / "rows.csv").rename(folder / "other.csv")
        other = plan(space, read_csv(folder / "other.csv"), parse_mapping(SEEDED))
        placed = place(store, "ours", space, other)
        assert (placed.new, placed.n_same, placed.n_again) == ((), 1, 0)


SEEDED = ("accuracy=acc", "seed=s")


def test_constants_single_values_and_columns_of_a_frame(folder: Path) -> None:
    found = plan_of(folder, "param.width,acc\n0.1,0.7\n", "accuracy=acc", "resolution==20", "block==separable")
    assert found.trials[0].chosen == {"width": 0.1, "resolution": 20, "depth": "shallow", "block": "separable"}
    assert found.origin["mapping"] == {
        "accuracy": "acc",
        "resolution": "=20",
        "block": "=separable",
        "width": "param.width",
        "depth": "=shallow",
    }


def test_stated_costs_are_compared_and_other_epochs_noted(folder: Path) -> None:
    exact = plan_of(folder, ROWS, "accuracy=top1%").trials[0].costs.mult_adds
    rows = f"width,resolution,block,acc,flops,e\n0.1,20,separable,0.7,{exact * 1.001},100\n0.2,20,separable,0.7,5,8\n"
    found = plan_of(folder, rows, "accuracy=acc", "mult_adds=flops", "epochs=e")
    second = found.trials[1].costs.mult_adds
    assert found.notes == (
        f"mult_adds differs in 1 rows (row 2: 5 there, {second:,} here); the exact sum is kept",
        "trained for other epochs than the space's (100 in 1 rows): their accuracies may not be comparable",
    )
    assert (found.trials[0].costs.mult_adds, found.trials[0].epochs) == (exact, 100)


def test_a_parameter_that_is_not_active_there_is_not_read(folder: Path) -> None:
    rows = "width,resolution,block,expand,acc\n0.1,20,separable,99,0.7\n"
    assert "expand" not in plan_of(folder, rows, "accuracy=acc").trials[0].chosen


def test_spaces_that_list_their_networks_take_no_others(folder: Path) -> None:
    listed = [{"width": 0.1, "resolution": 20, "block": "separable"}]
    space = space_of(networks=listed)
    rows = "width,resolution,block,acc\n0.1,20,separable,0.7\n"
    assert len(plan_of(folder, rows, "accuracy=acc", space=space).trials) == 1
    with pytest.raises(MnetError, match="row 2: its network is none of the 1 that the space lists"):
        plan_of(folder, rows + "0.2,20,separable,0.7\n", "accuracy=acc", space=space)


# ---------------------------------------------------------------- Optuna's studies


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An Optuna study of three finished trials, one pruned and one failed."""
    url = f"sqlite:///{tmp_path_factory.mktemp('optuna') / 'o.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=url, study_name="theirs", directions=["maximize"])

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("ms", 1.5)
        width = trial.suggest_categorical("w", [0.1, 0.2, 0.3])
        trial.suggest_int("resolution", 20, 32, step=4)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise KeyError
        return width + 0.5

    study.optimize(objective, n_trials=5, catch=KeyError)
    study._storage.remove_session()  # type: ignore[attr-defined]
    return url


def test_an_optuna_study_comes_in(theirs: str, folder: Path) -> None:
    source = (
        "--from-storage",
        theirs,
        "--from-study",
        "theirs",
        "--map",
        "width=params.w",
        "--map",
        "block==separable",
    )
    maps = ("--map", "accuracy=values.0", "--map", "latency_ms=user_attrs.ms")
    done = call(folder, "import", "ours", "--space", "space.yaml", *source, *maps)
    assert done.stdout == "Study ours: 3 trials imported from study theirs; left out: 2 not finished in the source\n"
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        frame = load(store, "ours")
    assert frame["imported"].tolist() == [f"study theirs trial {n}" for n in (0, 3, 4)]
    assert frame["accuracy"].tolist() == pytest.approx((frame["param.width"] + 0.5).tolist())
    assert set(frame["latency_ms"]) == {1.5}


def test_studies_that_are_not_there(theirs: str, tmp_path: Path) -> None:
    with pytest.raises(MnetError, match=r"--from-study their: no such study in .*o\.db; did you mean theirs\?"):
        read_study(theirs, "their")
    with pytest.raises(StorageError, match="no such database; name the one that holds the study with --from-storage"):
        read_study(f"sqlite:///{tmp_path / 'none.db'}", "x")
    (tmp_path / "empty.db").touch()
    with pytest.raises(StorageError, match="holds no studies of Optuna's; name another with --from-storage"):
        read_study(f"sqlite:///{tmp_path / 'empty.db'}", "x")
    assert (tmp_path / "empty.db").stat().st_size == 0, "no tables were made in it"
