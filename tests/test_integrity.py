"""`integrity.check` and `doctor` on real databases: whole ones, and each kind of harm that they must name."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from test_studies import begin, open_study, space_of

from mnet_search.studies.integrity import Finding, check, facts
from mnet_search.studies.store import Store
from mnet_search.studies.writer import StudyWriter

from postgres import Server
from processes import call


def searched(url: str, folder: Path) -> StudyWriter:
    """A study as a driver leaves it: two finished trials with checkpoints, one failed, one stopped."""
    store = Store(url, create=True)
    study = open_study(store)
    with study.lock():
        records = [begin(study, width) for width in (0.1, 0.2, 0.3)]
        again = begin(study, 0.3, resolution=32)
        for number, record in enumerate(records[:2]):
            path = folder / f"{number}.pt"
            path.write_bytes(bytes([number]) * 100)
            study.add_epoch(record.trial_id, 1, {"seconds": 1.0})
            study.finish(
                record.trial_id,
                [0.5, 1000.0],
                metrics={"accuracy": 0.5},
                environment={},
                measurement={"name": "latency_ms", "median": 1, "q1": 1, "q3": 1, "n": 5, "protocol": {}},
                checkpoint=str(path),
                checkpoint_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
        study.fail(records[2].trial_id, "the loss became nan")
        study.stop(again.trial_id, "place 2 of 2")
    return study


@pytest.fixture(params=["sqlite", "postgresql"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> StudyWriter:
    if request.param == "sqlite":
        return searched(f"sqlite:///{tmp_path / 'study.db'}", tmp_path)
    server: Server = request.getfixturevalue("postgres")
    return searched(server.database(), tmp_path)


def damage_an_index(path: Path) -> None:
    """A closed file, of which SQLite notices nothing until it is asked."""
    with sqlite3.connect(path) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_mnet_trials_arch_id'"
        page, size = connection.execute(query).fetchone()[0], connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    content = bytearray(path.read_bytes())
    start = (page - 1) * size + 3
    content[start : start + 2] = b"\x00\x02"  # the number of its entries
    path.write_bytes(bytes(content))


def harm(study: StudyWriter, *statements: str) -> None:
    with study.store.engine.connect() as connection:
        if study.store.path is not None:
            connection.execute(text("PRAGMA foreign_keys=OFF"))
        for statement in statements:
            connection.execute(text(statement))
        connection.commit()


def test_a_whole_database_has_no_findings(study: StudyWriter) -> None:
    assert check(study.store, files=True) == []
    found = facts(study.store)
    assert found.pop("storage") == study.store.where
    if study.store.path is not None:
        assert found == {
            "schema": 2,
            "sqlite": sqlite3.sqlite_version,
            "journal_mode": "wal",
            "synchronous": "normal",
        }
    else:
        assert found["schema"] == 2
        assert int(str(found["postgresql"]).split(".")[0]) >= 12


HARM = [
    (
        ["DELETE FROM mnet_trials WHERE number = 0", "DELETE FROM mnet_curves", "DELETE FROM mnet_measurements"],
        [("error", "study 'tiny': trial 0 is known to Optuna alone; another program has written into the study"),
         ("error", "study 'tiny': trial 1 is finished without a learning curve; restore a backup")],
    ),
    (
        ["DELETE FROM mnet_trials WHERE number = 0"],
        [("error", "trial 0 is known to Optuna alone"),
         ("error", "1 rows of learning curves belong to no trial; restore a backup"),
         ("error", "1 measurements belong to no trial; restore a backup")],
    ),
    (
        ["DELETE FROM trial_values WHERE trial_id IN (SELECT trial_id FROM trials WHERE number = 1)"],
        [("error", "study 'tiny': trial 1 is finished without a value for each objective; restore a backup")],
    ),
    (
        ["UPDATE mnet_trials SET metrics = NULL"],
        [("error", "study 'tiny': trials 0 and 1 are finished without metrics; restore a backup")],
    ),
    (["UPDATE mnet_trials SET metrics = 'null'"], [("error", "trials 0 and 1 are finished without metrics")]),
    (
        ["UPDATE mnet_trials SET arch_id = 'same', chosen = '{\"a\": 1, \"b\": 2}'",
         "UPDATE mnet_trials SET chosen = '{\"b\": 2, \"a\": 1}' WHERE number = 1"],
        [("error", "study 'tiny': trials 0 and 1 are one network (same) with one seed (0), trained twice")],
    ),
    (["UPDATE mnet_trials SET arch_id = 'same'"], []),  # chosen differently: under another recipe, say
    (
        ["UPDATE trials SET state = 'RUNNING' WHERE number > 1"],
        [("warning", "trials 2 and 3 are left running by a driver that no longer lives; `mnet-search resume` takes")],
    ),
    (
        ["UPDATE trials SET state = 'RUNNING' WHERE number = 3", "DELETE FROM mnet_trials WHERE number = 3"],
        [("warning", "study 'tiny': trial 3 is begun, but not entered: the driver was killed, or is at it now; the n")],
    ),
    (["DELETE FROM mnet_trials WHERE number = 2"], []),  # failed in the act, and told so
    (
        [*(f"DELETE FROM {t} WHERE trial_id IN (SELECT trial_id FROM trials WHERE number = 2)"
           for t in ("trial_params", "trial_user_attributes", "trial_system_attributes")),
         "DELETE FROM trials WHERE number = 2"],
        [("error", "study 'tiny': trial 2 is unknown to Optuna, so that no command shows them; restore a backup")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "expected"), HARM, ids=[h[0][-1][:60] for h in HARM])
def test_each_kind_of_harm_is_named(study: StudyWriter, statements: list[str], expected: list[tuple[str, str]]) -> None:
    harm(study, *statements)
    found = check(study.store)
    assert [f.severity for f in found] == [severity for severity, _ in expected], found
    for finding, (_, words) in zip(found, expected, strict=True):
        assert words in finding.what


def test_a_study_that_optuna_does_not_know(study: StudyWriter) -> None:
    harm(study, "UPDATE mnet_trials SET study_id = study_id", "INSERT INTO mnet_studies (study_id, name, space_name, "
         "space, identity, space_hash, fixed, objectives, n_trials, created, provenance, runs_dir) SELECT 99, 'lost', "
         "space_name, space, identity, space_hash, fixed, objectives, n_trials, created, provenance, runs_dir "
         "FROM mnet_studies")  # fmt: skip
    assert check(study.store) == [
        Finding("error", "study 'lost' is unknown to Optuna and cannot be resumed; restore a backup")
    ]


def test_no_curve_is_asked_of_what_was_not_trained(study: StudyWriter) -> None:
    harm(study, "DELETE FROM mnet_curves")
    assert "are finished without a learning curve" in check(study.store)[0].what
    space = json.dumps(space_of().to_json() | {"evaluate": "mine:function"}).replace("'", "''").replace(":", r"\:")
    harm(study, f"UPDATE mnet_studies SET space = '{space}'")
    assert check(study.store) == []


def test_a_running_trial_of_a_live_driver_is_as_it_should_be(study: StudyWriter) -> None:
    with study.lock():
        begin(study, 0.1, resolution=32)
        assert check(study.store) == []
    (finding,) = check(study.store)
    assert finding.severity == "warning"
    assert "trial 4 is left running" in finding.what


def test_checkpoints_are_looked_for_and_read_where_that_is_asked(study: StudyWriter, tmp_path: Path) -> None:
    (tmp_path / "0.pt").write_bytes(b"\x07" * 100)
    assert check(study.store) == []
    (finding,) = check(study.store, files=True)
    assert finding.what.startswith("study 'tiny': trial 0 is with a checkpoint whose SHA-256 is not the recorded one")
    (tmp_path / "0.pt").unlink()
    (finding,) = check(study.store, files=True)
    assert finding.what.startswith("study 'tiny': trial 0 is without a readable checkpoint")
    # another machine of a shared study may have it
    assert finding.severity == ("error" if study.store.path is not None else "warning")
    assert check(study.store, checkpoints=False) == []
    harm(study, "UPDATE mnet_trials SET checkpoint = 's3\\://bucket/0.pt' WHERE number = 0")
    assert check(study.store, files=True) == []


def test_a_damaged_file_and_broken_references_are_named(tmp_path: Path) -> None:
    study = searched(f"sqlite:///{tmp_path / 'study.db'}", tmp_path)
    harm(study, "DELETE FROM studies")
    whats = [finding.what for finding in check(study.store)]
    assert "4 rows of trials point to rows of studies that are not there; restore a backup" in whats
    study.store.close()
    damage_an_index(tmp_path / "study.db")
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        whats = [finding.what for finding in check(store)]
    assert any(what.startswith("the file is damaged (") and what.endswith("; restore a backup") for what in whats)


# ---------------------------------------------------------------- doctor


@pytest.fixture
def no_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MNET_STORAGE", raising=False)


@pytest.mark.usefixtures("no_storage")
def test_doctor_checks_a_database_where_there_is_one(tmp_path: Path) -> None:
    done = call(tmp_path, "doctor", "--json")
    assert done.returncode == 0
    assert "database" not in json.loads(done.stdout)
    study = searched(f"sqlite:///{tmp_path / 'mnet-search.db'}", tmp_path)
    study.store.close()
    done = call(tmp_path, "doctor")
    assert done.returncode == 0, done.stderr
    expected = f"mnet-search.db, schema 2, sqlite {sqlite3.sqlite_version}, journal_mode wal, synchronous normal"
    assert f"{'database':16} {expected}" in done.stdout
    assert "checked: nothing is wrong with it" in done.stdout
    (tmp_path / "0.pt").write_bytes(b"")
    assert call(tmp_path, "doctor").returncode == 0
    done = call(tmp_path, "doctor", "--files")
    assert done.returncode == 3
    assert "error: study 'tiny': trial 0 is with a checkpoint whose SHA-256 is not the recorded one" in done.stdout


@pytest.mark.usefixtures("no_storage")
def test_a_warning_is_no_failure_of_doctor(tmp_path: Path) -> None:
    study = searched(f"sqlite:///{tmp_path / 'study.db'}", tmp_path)
    begin(study, 0.1, resolution=32)
    study.store.close()
    done = call(tmp_path, "doctor", "--storage", "study.db", "--json")
    assert done.returncode == 0
    database = json.loads(done.stdout)["database"]
    assert [f["severity"] for f in database["findings"]] == ["warning"]
    assert (database["storage"], database["schema"], database["journal_mode"]) == ("study.db", 2, "wal")


@pytest.mark.usefixtures("no_storage")
def test_doctor_goes_on_where_a_database_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.db").write_text("no database" * 100)
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///words.db")
    done = call(tmp_path, "doctor")
    assert done.returncode == 3
    assert "error: words.db: is not a SQLite database; name another file with --storage" in done.stdout
    assert "cpu_cores" in done.stdout
    done = call(tmp_path, "doctor", "--storage", "none.db", "--json")
    assert done.returncode == 3
    assert "no such database" in json.loads(done.stdout)["database"]["findings"][0]["what"]
    done = call(tmp_path, "doctor", "--storage", "mysql://u:secret@h/d")
    assert done.returncode == 2
    assert done.stderr.startswith("mnet-search: mysql://u:***@h/d: studies are not stored in 'mysql'")


def test_doctor_on_postgresql(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    searched(url, tmp_path).store.close()
    done = call(tmp_path, "doctor", "--storage", url)
    assert done.returncode == 0
    assert "schema 2, postgresql 1" in done.stdout
    assert postgres.password not in done.stdout
