"""The store on a real SQLite file: what is written comes back, other programs' files are refused, one driver at a
time.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search.distributions import distribution
from mnet_search.spaces.space import Space, make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies import frame as frames
from mnet_search.studies import writer
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError, normalise_url
from mnet_search.studies.writer import StudyWriter, TrialRecord


def space_of(**changes: object) -> Space:
    values = {
        "family": "mobilenet_v1",
        "parameters": {"width": [0.1, 0.2, 0.3], "resolution": [20, 32], "block": ["separable", "conv"]},
        "objectives": {"accuracy": "maximize", "params": "minimize"},
        **changes,
    }
    return make_space("tiny", values, Source("tiny.yaml")).for_data(classes=10, in_channels=1)


def open_study(store: Store, space: Space | None = None, n_trials: int = 4) -> StudyWriter:
    return writer.open_study(
        store,
        space or space_of(),
        "tiny",
        n_trials=n_trials,
        runs_dir=Path("runs"),
        provenance={"versions": {"python": "3"}},
    )


def begin(study: StudyWriter, width: float = 0.1, resolution: int = 20) -> TrialRecord:
    space, chosen = space_of(), {"width": width, "resolution": resolution, "block": "separable"}
    arch = space.arch(chosen)
    distributions = {name: distribution(space.parameters[name]) for name in chosen}
    return study.begin(chosen=chosen, distributions=distributions, arch=arch, costs=costs(arch), seed=0)


def finish(study: StudyWriter, record: TrialRecord, accuracy: float) -> None:
    study.finish(
        record.trial_id,
        [accuracy, 1000.0],
        metrics={"accuracy": accuracy, "latency_ms": 1.5, "latency_q1_ms": 1.4, "latency_q3_ms": 1.7},
        environment={"device": "cpu"},
        measurement={"name": "latency_ms", "median": 1.5, "q1": 1.4, "q3": 1.7, "n": 20, "protocol": {"batch": 1}},
        checkpoint="last.pt",
        checkpoint_sha256="0" * 64,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_a_study_comes_back_as_a_frame(url: str) -> None:
    with Store(url, create=True) as store:
        study = open_study(store)
        first, second, third = begin(study), begin(study, 0.2), begin(study, 0.3)
        for epoch in (1, 2):
            study.add_epoch(first.trial_id, epoch, {"train_loss": 1.0, "validation_accuracy": 0.5, "seconds": 2.0})
        study.add_epoch(
            first.trial_id, 2, {"validation_accuracy": 0.6, "seconds": 2.0}
        )  # a resumed trial sends it again
        finish(study, first, 0.6)
        study.fail(second.trial_id, "the loss became nan in epoch 1")
    with Store(url) as store:
        frame = frames.load(store, "tiny")
        assert frame["state"].tolist() == ["finished", "failed", "running"]
        row = frame.iloc[0]
        assert (row["accuracy"], row["latency_ms"], row["epochs"], row["seconds"]) == (0.6, 1.5, 2, 4.0)
        assert (row["param.width"], row["param.block"], row["params"]) == (
            0.1,
            "separable",
            costs(space_of().arch({"width": 0.1, "resolution": 20, "block": "separable"})).params,
        )
        assert frame.iloc[1]["reason"] == "the loss became nan in epoch 1"
        curves = frames.curves(store, "tiny")
        assert curves[["number", "epoch", "validation_accuracy"]].to_numpy().tolist() == [[0, 1, 0.5], [0, 2, 0.6]]
        summary = store.studies()[0]
        assert (summary.n_finished, summary.n_running, summary.n_failed, summary.n_total_asked) == (1, 1, 1, 4)
        assert not summary.active
        assert third.number == 2


def test_optuna_reads_the_same_study(url: str) -> None:
    with Store(url, create=True) as store:
        study = open_study(store)
        finish(study, begin(study), 0.6)
    theirs = optuna.load_study(study_name="tiny", storage=url)
    assert theirs.metric_names == ["accuracy", "params"]
    assert theirs.best_trials[0].values == [0.6, 1000.0]
    assert theirs.best_trials[0].params == {"width": 0.1, "resolution": 20, "block": "separable"}
    theirs._storage.remove_session()  # type: ignore[attr-defined]


def test_records_name_trials_to_take_up_again_and_end_half_begun_ones(url: str) -> None:
    with Store(url, create=True) as store:
        study = open_study(store)
        finish(study, begin(study), 0.5)
        running = begin(study, 0.2)
        assert study.begin_again(running)
        orphan = store.optuna.create_new_trial(study.study_id)  # the driver died between the two tables
        records = study.records()
        assert [(r.number, r.state, r.attempts) for r in records] == [(0, "finished", 1), (1, "running", 2)]
        assert records[0].values == [0.5, 1000.0]
        assert store.optuna.get_trial(orphan).state == optuna.trial.TrialState.FAIL


def test_an_edited_space_is_refused_with_the_difference(url: str) -> None:
    with Store(url, create=True) as store:
        open_study(store)
        open_study(store).begin_run(9, Path("runs"), {})
        assert store.summary("tiny").n_total_asked == 9
        edited = space_of(
            training={"epochs": 3}, parameters={"width": [0.1], "resolution": [20, 32], "block": ["separable", "conv"]}
        )
        with pytest.raises(MnetError) as caught:
            open_study(store, edited)
    text = str(caught.value)
    assert "parameters.width.values: [0.1, 0.2, 0.3] -> [0.1]" in text
    assert "training.epochs: 8 -> 3" in text
    assert "undo the change, or start a new study with --study NAME" in text
    assert caught.value.exit_code == 2


def test_unknown_studies_are_answered_with_the_known_ones(url: str) -> None:
    with Store(url, create=True) as store:
        open_study(store)
        with pytest.raises(StorageError, match=r"no study 'tiney' in .*; did you mean tiny\?; it has: tiny"):
            frames.load(store, "tiney")


def test_one_driver_at_a_time_and_the_lock_ends_with_its_process(url: str, tmp_path: Path) -> None:
    with Store(url, create=True) as store:
        open_study(store)
    holder = (
        "import sys, time; from pathlib import Path; from mnet_search.studies.writer import *\n"
        "s = Store(sys.argv[1]); w = StudyWriter(s, s.row('tiny')['study_id'], 'tiny')\n"
        "with w.lock(): print('held', flush=True); time.sleep(60)"
    )
    with Store(url) as store:
        study = StudyWriter(store, store.row("tiny")["study_id"], "tiny")
        process = subprocess.Popen([sys.executable, "-c", holder, url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            assert store.summary("tiny").active
            with (
                pytest.raises(
                    StorageError, match=f"already being run by process {process.pid} on .* since 20"
                ) as caught,
                study.lock(),
            ):
                pass
            assert "wait for it, stop it with `mnet-search stop tiny`, or choose another --study" in str(caught.value)
            with pytest.raises(StorageError, match="SQLite takes one driver at a time"), study.lock(join=True):
                pass
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert not store.summary("tiny").active  # killed: the entry is stale, and is seen to be
        with study.lock():
            assert store.summary("tiny").active
        assert not store.summary("tiny").active


def test_the_database_is_in_wal_mode_so_that_readers_never_block_the_search(url: str, tmp_path: Path) -> None:
    with Store(url, create=True) as store:
        study = open_study(store)
        with store.read() as reading, sqlite3.connect(tmp_path / "study.db"):
            assert reading.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert reading.exec_driver_sql("PRAGMA synchronous").scalar() == 1
            begin(study)


BAD_FILES = [
    (
        b"this is no database, only words that go on for a while" * 100,
        "is not a SQLite database; name another file with --storage",
    ),
    (None, "no such database; start a search first"),
]


@pytest.mark.parametrize(("content", "text"), BAD_FILES, ids=["corrupt", "missing"])
def test_files_that_cannot_be_opened(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "x.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        Store(f"sqlite:///{path}")
    assert text in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_damaged_database_is_named_as_such(url: str, tmp_path: Path) -> None:
    with Store(url, create=True) as store:
        open_study(store)
    path = tmp_path / "study.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)  # the first page, with the schema's root, stays
    path.write_bytes(bytes(content))
    with pytest.raises(StorageError, match="the database is damaged"), Store(url) as store:
        store.studies()


def test_another_programs_database_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"belongs to another program \(it has tables bookmarks\)"):
        Store(f"sqlite:///{path}", create=True)
    # The journal mode may be noted in the header; the tables are what they were.
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
    connection.close()
    assert len(before) == len(path.read_bytes())


def test_a_newer_schema_is_refused(url: str, tmp_path: Path) -> None:
    with Store(url, create=True) as store:
        open_study(store)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE mnet_schema SET version = 99")
    connection.close()
    with pytest.raises(StorageError, match=r"written by a newer mnet-search \(schema 99, this one reads up to 2\)"):
        Store(url)


def test_an_optuna_study_of_the_same_name_is_not_taken_over(url: str) -> None:
    theirs = optuna.create_study(study_name="tiny", storage=url)
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    theirs._storage.remove_session()  # type: ignore[attr-defined]
    with (
        Store(url, create=True) as store,
        pytest.raises(StorageError, match="a study 'tiny' exists that mnet-search did not make"),
    ):
        open_study(store)


def test_a_study_whose_making_was_killed_half_way_is_made_whole(url: str) -> None:
    optuna.create_study(study_name="tiny", storage=url)._storage.remove_session()  # type: ignore[attr-defined]
    with Store(url, create=True) as store:
        finish(open_study(store), begin(open_study(store)), 0.5)
        assert store.summary("tiny").n_finished == 1


def test_an_older_schema_is_refused_with_what_upgrades_it(url: str, tmp_path: Path) -> None:
    with Store(url, create=True) as store:
        open_study(store)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE mnet_schema SET version = 1")
    connection.close()
    with pytest.raises(StorageError, match=r"older mnet-search \(schema 1, this one needs 2\).*mnet-search db upgrade"):
        Store(url)


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [
        ("mysql://user:secret@host/db", 2, "mysql://user:***@host/db: studies are not stored in 'mysql'; write sqlite"),
        (
            "postgresql+asyncpg://user:secret@host/db",
            2,
            "the driver for PostgreSQL is psycopg; write postgresql+psycopg",
        ),
        ("postgresql://user:secret@host", 2, "names no database; write postgresql+psycopg://USER@HOST/DATABASE"),
        ("postgresql+asyncpg://host/db?password=secret", 2, "postgresql+asyncpg://host/db?password=***: the driver"),
        ("sqlite://", 2, "names no file"),
        ("nonsense://x", 2, "studies are not stored in 'nonsense'"),
        ("://user:secret@x", 2, "'://user:***@x' is not a storage URL"),
        ("sqlite:///no/such/folder/x.db", 3, "the folder no/such/folder does not exist"),
    ],
)
def test_bad_storage_urls(url: str, code: int, text: str) -> None:
    with pytest.raises(StorageError) as caught:
        Store(url, create=True)
    assert text in str(caught.value)
    assert caught.value.exit_code == code
    assert "secret" not in str(caught.value)


def test_a_plain_path_is_sqlite() -> None:
    assert normalise_url("a/b.db") == "sqlite:///a/b.db"
    assert normalise_url("postgresql://u:p@h/d") == "postgresql+psycopg://u:p@h/d"
