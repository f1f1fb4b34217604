"""Upgrades of a real database of version 1, which the code at a8145b9 made, and of what comes after: all or nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from sqlalchemy import Connection, inspect, text
from test_backup import shape
from test_integrity import damage_an_index
from test_studies import begin, finish, open_study

from mnet_search.studies import frame as frames
from mnet_search.studies.database import SCHEMA_VERSION
from mnet_search.studies.integrity import check
from mnet_search.studies.migrations import MIGRATIONS, Upgrade, default_backup, upgrade
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError
from mnet_search.studies.writer import StudyWriter

from postgres import Server
from processes import call, load, load_curves, mnet

SCHEMA_1 = (Path(__file__).parent / "fixtures" / "schema1.sql").read_text()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """study.db of version 1: a search that was killed, with finished, stopped, failed and RUNNING trials."""
    path = tmp_path / "study.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA_1)
    connection.close()
    return path


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def dump_of_fixture(folder: Path) -> list[str]:
    path = folder / "fixture.db"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA_1)
    connection.close()
    return dump(path)


def as_before(old: Path) -> bool:
    """Whether the database is what it was."""
    return dump(old) == dump_of_fixture(old.parent)


def refused(url: str, *arguments: Any, **options: Any) -> str:
    with pytest.raises(StorageError) as caught:
        upgrade(url, *arguments, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_study_of_version_1_is_the_same_afterwards_and_goes_on(old: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"schema 1, this one needs 2\); upgrade it with: mnet-search db upgrade"):
        Store(str(old))
    before = rows(old, "SELECT m.number, t.state, m.arch_id, m.seed, m.chosen, m.metrics, m.reason, m.checkpoint, "
                       "m.attempts FROM mnet_trials m JOIN trials t ON t.trial_id = m.trial_id ORDER BY 1")  # fmt: skip
    curves = rows(old, "SELECT * FROM mnet_curves ORDER BY 1, 2")
    done = upgrade(str(old))
    assert (done.from_version, done.to_version) == (1, 2)
    assert done.backup is not None
    assert re.fullmatch(r"study\.db\.before-schema-2-\d{8}-\d{6}", done.backup.name)
    assert dump(done.backup) == dump_of_fixture(tmp_path)
    frame = load(tmp_path)
    states = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}
    assert set(frame["state"]) == set(states.values())
    names = list(json.loads(before[0][4]))
    for row, (number, state, arch_id, seed, chosen, metrics, reason, checkpoint, attempts) in zip(
        frame.to_dict("records"), before, strict=True
    ):
        assert [row[k] for k in ("number", "state", "arch_id", "seed")] == [number, states[state], arch_id, seed]
        assert [row["reason"], row["checkpoint"], row["attempts"]] == [reason or "", checkpoint or "", attempts]
        assert {name: row[f"param.{name}"] for name in names} == json.loads(chosen)
        accuracy = json.loads(metrics or "{}").get("accuracy")
        assert row["accuracy"] == accuracy or (accuracy is None and pd.isna(row["accuracy"]))
    assert rows(old, "SELECT * FROM mnet_curves ORDER BY 1, 2") == curves
    assert len(load_curves(tmp_path)) == len(curves)
    folders = rows(old, "SELECT checkpoint, folder, owner FROM mnet_trials")
    assert [f for _, f, _ in folders] == [c and str(Path(c).parent) for c, _, _ in folders]
    assert {owner for _, _, owner in folders} == {None}
    (running,) = frame[frame["state"] == "running"]["number"]
    with Store(str(old)) as store:
        found = check(store, checkpoints=False)
        assert [f.severity for f in found] == ["warning"]
        assert f"trial {running} is left running" in found[0].what
        study = StudyWriter(store, store.row("tiny")["study_id"], "tiny")
        with study.lock():
            assert [r.number for r in study.records() if r.state == "running"] == [running]
    done_finished = int((frame["state"] == "finished").sum())
    resumed = mnet(tmp_path, "resume", "tiny", "--executor", "local", "--n-trials", done_finished + 1)
    assert resumed.returncode == 0, resumed.stderr
    after = load(tmp_path)
    assert after.set_index("number").loc[running, "state"] == "finished"
    others = frame[frame["number"] != running]
    pd.testing.assert_frame_equal(after[after["number"].isin(others["number"])], others)


def test_the_upgraded_tables_are_those_that_this_version_makes(old: Path, tmp_path: Path) -> None:
    upgrade(str(old))
    with Store(str(tmp_path / "new.db"), create=True) as store:
        open_study(store)

    def tables(path: Path) -> dict[str, object]:
        """In no order of columns; and SQLite has one kind of integer."""
        return {
            table: (sorted((name, kind.replace("BIGINT", "INTEGER"), *more) for name, kind, *more in columns), rest)
            for table, (columns, *rest) in shape(str(path)).items()
        }

    assert tables(old) == tables(tmp_path / "new.db")


def test_a_database_from_before_latency_tables_gets_them(old: Path) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute("DROP TABLE mnet_latency_tables")
    connection.close()
    upgrade(str(old))
    assert rows(old, "SELECT COUNT(*) FROM mnet_latency_tables") == [(0,)]


def test_every_version_has_a_step() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


# ---------------------------------------------------------------- what is current, newer, or none


def test_what_is_current_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with Store(str(path), create=True) as store:
        open_study(store)
    before = path.read_bytes()
    assert upgrade(str(path)) == Upgrade(2, 2, None)
    assert path.read_bytes() == before
    done = call(tmp_path, "db", "upgrade", "--storage", "study.db")
    assert (done.returncode, done.stdout) == (0, "study.db: schema 2 is current; nothing was changed\n")


def test_what_is_newer_or_none_of_ours_is_refused(old: Path, tmp_path: Path) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute("UPDATE mnet_schema SET version = 99")
    connection.close()
    assert "written by a newer mnet-search (schema 99, this one reads up to 2); upgrade mnet-search" in refused(
        str(old)
    )
    with sqlite3.connect(old) as connection:
        connection.execute("DELETE FROM mnet_schema")
    connection.close()
    assert "no study of mnet-search lies in this database; there is nothing to upgrade" in refused(str(old))
    assert "no such database" in refused(str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    assert "belongs to another program" in refused(str(tmp_path / "other.db"))


# ---------------------------------------------------------------- somebody at work


def test_a_driver_at_work_is_named_and_nothing_is_changed(old: Path, tmp_path: Path) -> None:
    (study_id,) = rows(old, "SELECT study_id FROM mnet_studies")[0]
    with FileLock(tmp_path / f"study.db.study{study_id}.lock"):  # as version 1 holds it
        said = refused(str(old))
    assert "study.db: study 'tiny' is being run by process 4000000 on example; wait for it or stop it" in said
    assert "nothing was changed" in said
    assert as_before(old)
    assert not list(tmp_path.glob("*before-schema*"))


def test_a_driver_of_this_version_is_named_too(tmp_path: Path) -> None:
    with Store(str(tmp_path / "study.db"), create=True) as store:
        study = open_study(store)
        with study.lock():
            said = refused(store.url, steps={2: add_a_column})
    assert f"study 'tiny' is being run by process {os.getpid()} on {socket.gethostname()}" in said


def test_whoever_writes_without_a_lock_is_waited_for(old: Path) -> None:
    connection = sqlite3.connect(old)
    connection.execute("BEGIN IMMEDIATE")
    said = refused(f"sqlite:///{old}?timeout=0.2")
    connection.close()
    assert "another process has kept the database locked for 0.2 s" in said
    assert as_before(old)


# ---------------------------------------------------------------- what fails in between


def add_a_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE mnet_studies ADD COLUMN colour TEXT"))
    connection.execute(text("CREATE TABLE mnet_colours (name TEXT)"))
    connection.execute(text("UPDATE mnet_studies SET colour = 'red'"))


def fail_half_way(connection: Connection) -> None:
    add_a_column(connection)
    connection.execute(text("ALTER TABLE mnet_no_such_table ADD COLUMN x TEXT"))


def lose_a_value(connection: Connection) -> None:
    connection.execute(text("DELETE FROM trial_values"))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (fail_half_way, "no such table: mnet_no_such_table"),
        (lose_a_value, "the upgraded database did not pass the integrity check (study 'tiny': trials 4 and 16 are fin"),
    ],
)
def test_a_step_that_fails_takes_the_ones_before_it_back(old: Path, tmp_path: Path, step: Any, words: str) -> None:
    said = refused(str(old), steps={**MIGRATIONS, 2: step})
    assert words in said
    assert as_before(old)
    (kept,) = tmp_path.glob("*before-schema-3*")
    assert dump(kept) == dump(old)
    kept.unlink()
    assert upgrade(str(old)).to_version == 2


def test_a_version_without_a_step_is_named(old: Path) -> None:
    assert "this version knows no way from schema 1 to 2" in refused(str(old), steps={2: add_a_column})
    assert as_before(old)


def test_what_was_wrong_before_does_not_stand_in_the_way(old: Path) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute("DELETE FROM mnet_curves")
    connection.close()
    upgrade(str(old))
    with Store(str(old)) as store:
        assert "are finished without a learning curve" in check(store, checkpoints=False)[0].what


def test_a_damaged_file_is_not_upgraded(old: Path, tmp_path: Path) -> None:
    damage_an_index(old)
    assert re.search(r"study.db: the file is damaged \(.*\); restore a backup; nothing was changed", refused(str(old)))
    assert not list(tmp_path.glob("*before-schema*"))


def test_a_kill_in_the_middle_leaves_it_as_it_was(old: Path) -> None:
    code = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_migrations import *
def hang(connection):
    add_a_column(connection)
    print("in the middle", flush=True)
    time.sleep(60)
upgrade(sys.argv[1], steps={**MIGRATIONS, 2: hang})
"""
    command = [sys.executable, "-c", code, str(old), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "in the middle\n"
        assert rows(old, "SELECT version FROM mnet_schema") == [(1,)]  # readers go on, and see what it was
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert as_before(old)
    assert upgrade(str(old)).to_version == 2


def test_a_disk_that_takes_no_more_leaves_it_as_it_was(old: Path, tmp_path: Path) -> None:
    rows(old, "PRAGMA journal_mode=WAL")
    size = old.stat().st_size
    before, former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        said = refused(str(old))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, former)
    assert "no backup was made: " in said
    assert as_before(old)
    assert not list(tmp_path.glob("*before-schema*"))

    def fill(connection: Connection) -> None:
        connection.execute(text("PRAGMA max_page_count=1"))  # of this connection: no page more than there are
        connection.execute(text("CREATE TABLE mnet_filler AS SELECT zeroblob(10000000) AS z"))

    assert "the disk is full" in refused(str(old), steps={**MIGRATIONS, 2: fill})
    assert as_before(old)


def test_a_backup_that_exists_is_not_replaced(old: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.db"
    kept.write_text("mine")
    said = refused(str(old), kept)
    assert said.endswith("kept.db exists already; name another file with --backup")
    assert kept.read_text() == "mine"
    assert as_before(old)
    assert upgrade(str(old), tmp_path / "other.db").backup == tmp_path / "other.db"
    assert dump(tmp_path / "other.db") == dump_of_fixture(tmp_path)


def test_db_upgrade(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")
    done = call(tmp_path, "studies")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "upgrade it with: mnet-search db upgrade, which makes a backup first" in done.stderr
    done = call(tmp_path, "doctor")
    assert done.returncode == 3
    assert "error: study.db: written by an older mnet-search" in done.stdout
    (study_id,) = rows(old, "SELECT study_id FROM mnet_studies")[0]
    with FileLock(tmp_path / f"study.db.study{study_id}.lock"):
        done = call(tmp_path, "db", "upgrade", "--storage", "study.db")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    done = call(tmp_path, "db", "upgrade", "--backup", "before.db", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"from_version": 1, "to_version": 2, "backup": "before.db"}
    done = call(tmp_path, "db", "upgrade", "--storage", "before.db")
    assert done.returncode == 0
    assert done.stdout.startswith("before.db: upgraded from schema 1 to 2\nas it was before: before.db.before-schema-2")
    assert call(tmp_path, "studies").returncode == 0


# ---------------------------------------------------------------- PostgreSQL, of which there was no version 1


@pytest.fixture
def shared(postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    url = postgres.database()
    with Store(url, create=True) as store:
        study = open_study(store)
        record = begin(study)
        study.add_epoch(record.trial_id, 1, {"seconds": 1.0})
        finish(study, record, 0.6)
    return url


def test_a_servers_database_is_upgraded_after_a_backup(shared: str, postgres: Server, tmp_path: Path) -> None:
    done = upgrade(shared, steps={2: add_a_column})
    assert (done.from_version, done.to_version) == (2, 3)
    name = shared.rpartition("/")[2]
    assert postgres.execute("SELECT version FROM mnet_schema", name) == [(3,)]
    assert postgres.execute("SELECT colour FROM mnet_studies", name) == [("red",)]
    assert done.backup is not None
    assert done.backup.name.startswith("mnet-search.db.before-schema-3-")
    with Store(str(done.backup)) as store:
        assert frames.load(store, "tiny")["accuracy"].tolist() == [0.6]
    assert default_backup(shared, 3).parent == Path()


def test_a_step_that_fails_on_a_server_is_taken_back(shared: str, postgres: Server) -> None:
    said = refused(shared, Path("a.db"), steps={2: fail_half_way})
    assert "mnet_no_such_table" in said
    assert postgres.password not in said
    assert "did not pass" in refused(shared, Path("b.db"), steps={2: lose_a_value})
    with Store(shared) as store:
        assert check(store, checkpoints=False) == []
        columns = {column["name"] for column in inspect(store.engine).get_columns("mnet_studies")}
        assert "colour" not in columns


def test_a_live_driver_on_a_server_is_named(shared: str) -> None:
    with Store(shared) as store:
        with StudyWriter(store, store.row("tiny")["study_id"], "tiny").lock():
            said = refused(shared, steps={2: add_a_column})
        assert f"study 'tiny' is being run by process {os.getpid()} on {socket.gethostname()}" in said
        assert not list(Path().glob("*before-schema*"))
    assert upgrade(shared, steps={2: add_a_column}).to_version == 3
