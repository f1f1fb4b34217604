"""Backups of real databases while they are written to: whole, checked, one moment of the original, or not there."""

from __future__ import annotations

import json
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import inspect
from test_integrity import damage_an_index
from test_studies import begin, finish, open_study, space_of

from mnet_search.studies import frame as frames
from mnet_search.studies.backup import backup, default_target
from mnet_search.studies.integrity import check
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError
from mnet_search.studies.writer import StudyWriter

from postgres import Server
from processes import call

# A driver that finishes trials as fast as it can, each with a curve of three epochs.
BUSY = """
import sys
sys.path.insert(0, sys.argv[2])
from test_studies import *
store = Store(sys.argv[1], create=True)
study = open_study(store)
with study.lock():
    for seed in range(1_000_000):
        space, chosen = space_of(), {"width": 0.1, "resolution": 20, "block": "separable"}
        arch, distributions = space.arch(chosen), {n: distribution(space.parameters[n]) for n in chosen}
        record = study.begin(chosen=chosen, distributions=distributions, arch=arch, costs=costs(arch), seed=seed)
        for epoch in (1, 2, 3):
            study.add_epoch(record.trial_id, epoch, {"seconds": 1.0})
        study.finish(record.trial_id, [0.5, 1.0], metrics={"accuracy": 0.5}, environment={}, measurement=None,
                     checkpoint="", checkpoint_sha256="")
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    server: Server = request.getfixturevalue("postgres")
    return server.database()


def some_trials(url: str) -> None:
    with Store(url, create=True) as store:
        study = open_study(store)
        with study.lock():
            first, second, third = begin(study), begin(study, 0.2), begin(study, 0.3)
            for epoch, loss in ((1, float("nan")), (2, 0.25)):
                study.add_epoch(first.trial_id, epoch, {"train_loss": loss, "validation_accuracy": 0.5, "seconds": 2.0})
            finish(study, first, 0.6)
            study.fail(second.trial_id, "the loss became nan")
            study.set_down(third.trial_id)
            begin(study, 0.1, resolution=32)


def same(url: str, copy: Path) -> None:
    with Store(url) as store, Store(str(copy)) as copied:
        pd.testing.assert_frame_equal(frames.load(store, "tiny"), frames.load(copied, "tiny"))
        pd.testing.assert_frame_equal(frames.curves(store, "tiny"), frames.curves(copied, "tiny"))
        assert store.row("tiny") == copied.row("tiny")


def test_a_copy_is_equal_is_opened_like_any_other_and_goes_on(url: str, tmp_path: Path) -> None:
    some_trials(url)
    target = tmp_path / "copy" / "c.db"
    target.parent.mkdir()
    made = backup(url, target)
    assert (made.path, made.n_studies, made.n_trials, made.bytes) == (target, 1, 4, target.stat().st_size)
    assert [p.name for p in target.parent.iterdir()] == ["c.db"]
    same(url, target)
    with Store(str(target)) as copied:
        assert [f.severity for f in check(copied, checkpoints=False)] == ["warning"]  # a trial was running
        study = open_study(copied, space_of())
        with study.lock():
            assert [r.state for r in study.records()] == ["finished", "failed", "waiting", "running"]
            for record in study.records()[2:]:
                assert study.begin_again(record)
                study.add_epoch(record.trial_id, 1, {"seconds": 1.0})
                finish(study, record, 0.4)
            last = begin(study)
            assert last.number == 4
            study.fail(last.trial_id, "enough")
        assert copied.summary("tiny").n_finished == 3
        assert check(copied, checkpoints=False) == []


def shape(url: str) -> dict[str, tuple[Any, ...]]:
    """Every table's columns, keys and indexes."""
    with Store(url) as store:
        found = inspect(store.engine)
        return {
            table: (
                [(c["name"], str(c["type"]), c["nullable"], c["primary_key"]) for c in found.get_columns(table)],
                sorted((c["constrained_columns"], c["referred_table"]) for c in found.get_foreign_keys(table)),
                sorted((i["name"] or "", i["column_names"], i["unique"]) for i in found.get_indexes(table)),
                sorted(c["column_names"] for c in found.get_unique_constraints(table)),
            )
            for table in found.get_table_names()
        }


def test_a_servers_copy_has_the_tables_of_a_file_that_was_one_from_the_start(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    for made in (url, f"sqlite:///{tmp_path / 'fresh.db'}"):
        with Store(made, create=True) as store:
            open_study(store)
    backup(url, tmp_path / "copy.db")
    assert shape(str(tmp_path / "copy.db")) == shape(str(tmp_path / "fresh.db"))


def test_while_trials_are_written_as_fast_as_can_be_a_copy_is_one_moment_of_them(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUSY, url, str(Path(__file__).parent)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    copies = [tmp_path / f"copy{number}.db" for number in range(4)]
    try:
        end = time.monotonic() + 60
        while trials(url) < 5:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.1)
        before = trials(url)
        for copy in copies:
            backup(url, copy)
        assert trials(url) > before  # nobody waited for the backups
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with Store(url) as store:
        whole, curves = frames.load(store, "tiny"), frames.curves(store, "tiny")
    counts = []
    for copy in copies:
        with Store(str(copy)) as store:
            assert [f for f in check(store) if f.severity == "error"] == []
            frame, curve = frames.load(store, "tiny"), frames.curves(store, "tiny")
        counts.append(len(frame))
        finished = frame[frame["state"] == "finished"]
        assert len(finished) >= len(frame) - 1  # and the one that ran
        pd.testing.assert_frame_equal(finished, whole.head(len(finished)))
        pd.testing.assert_frame_equal(curve, curves.head(len(curve)))
        assert len(curve) >= 3 * len(finished)
    assert counts == sorted(counts)


def trials(url: str) -> int:
    try:
        with Store(url) as store:
            return len(frames.load(store, "tiny"))
    except StorageError:  # it is being made
        return 0


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def study(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    some_trials(url)
    return url


def refused(url: str, target: Path, *, force: bool = False) -> str:
    before = {p: p.read_bytes() for p in target.parent.glob("*") if p.is_file()}
    with pytest.raises(StorageError) as caught:
        backup(url, target, force=force)
    kept = {p: p.read_bytes() for p in target.parent.glob("*") if p.is_file() and not p.name.startswith("study.db-")}
    assert {p: c for p, c in before.items() if not p.name.startswith("study.db-")} == kept
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_nothing_is_replaced_unless_asked(study: str, tmp_path: Path) -> None:
    target = tmp_path / "c.db"
    target.write_text("mine")
    assert "c.db exists already; give --force to replace it, or name another file with -o" in refused(study, target)
    assert backup(study, target, force=True).n_trials == 4
    same(study, target)
    text = refused(study, tmp_path / "study.db", force=True)
    assert "the backup would replace the database itself; name another file with -o" in text
    (tmp_path / "link.db").symlink_to(tmp_path / "study.db")
    assert "the database itself" in refused(study, tmp_path / "link.db", force=True)
    (tmp_path / "folder").mkdir()
    assert "the backup is a file, and this is a folder" in refused(study, tmp_path / "folder", force=True)
    assert "the folder" in refused(study, tmp_path / "nowhere" / "c.db")
    (tmp_path / "d.db-wal").write_text("of a database that was killed")
    assert "d.db-wal lies beside it, of a database that is open" in refused(study, tmp_path / "d.db")


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "no such database" in refused(str(tmp_path / "none.db"), tmp_path / "c.db")
    (tmp_path / "words.db").write_text("words" * 1000)
    assert "is not a SQLite database" in refused(str(tmp_path / "words.db"), tmp_path / "c.db")


def test_a_damaged_database_gives_no_backup(study: str, tmp_path: Path) -> None:
    damage_an_index(tmp_path / "study.db")
    text = refused(study, tmp_path / "c.db")
    assert "no backup was made: " in text
    assert "c.db did not pass the integrity check: the file is damaged (" in text
    content = bytearray((tmp_path / "study.db").read_bytes())
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    (tmp_path / "study.db").write_bytes(bytes(content))
    assert "the database is damaged" in refused(study, tmp_path / "c.db")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_disk_that_takes_no_more_leaves_nothing_behind(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}" if kind == "sqlite" else request.getfixturevalue("postgres").database()
    some_trials(url)
    before, former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        text = refused(url, tmp_path / "c.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, former)
    assert text.startswith("no backup was made: ")
    same(url, backup(url, tmp_path / "c.db").path)


def test_a_kill_in_the_middle_leaves_no_backup(study: str, tmp_path: Path) -> None:
    """The copy has its name only once it is whole."""
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("CREATE TABLE mnet_filler AS SELECT zeroblob(300000000) AS z")
    connection.close()
    code = "import sys; from mnet_search.studies.backup import *\nbackup(sys.argv[1], Path(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", code, study, str(tmp_path / "c.db")])
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".c.db.*.tmp")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "c.db").exists()


# ---------------------------------------------------------------- the command


def test_db_backup(study: str, tmp_path: Path) -> None:
    done = call(tmp_path, "db", "backup", "--storage", "study.db")
    assert done.returncode == 0, done.stderr
    name = done.stdout.splitlines()[0]
    assert re.fullmatch(r"mnet-search-backup-\d{8}-\d{6}\.db", name)
    assert f"1 study, 4 trials, 0.2 MB, checked; open it with: --storage {name}" in done.stdout
    same(study, tmp_path / name)
    done = call(tmp_path, "db", "backup", "--storage", "study.db", "-o", "c.db", "--json")
    assert json.loads(done.stdout) == {
        "path": "c.db",
        "n_studies": 1,
        "n_trials": 4,
        "bytes": (tmp_path / "c.db").stat().st_size,
    }
    done = call(tmp_path, "db", "backup", "--storage", "study.db", "-o", "c.db")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "mnet-search: c.db exists already; give --force to replace it, or name another file with -o\n"
    )
    assert call(tmp_path, "db", "backup", "--storage", "study.db", "-o", "c.db", "--force").returncode == 0
    assert default_target().parent == Path()


def test_db_backup_of_a_server_shows_no_password(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    some_trials(url)
    done = call(tmp_path, "db", "backup", "--storage", url, "-o", "c.db")
    assert done.returncode == 0, done.stderr
    assert postgres.password not in done.stdout + done.stderr
    assert postgres.password.encode() not in (tmp_path / "c.db").read_bytes()
    same(url, tmp_path / "c.db")


def test_a_copy_of_a_study_at_work_has_no_driver(url: str, tmp_path: Path) -> None:
    with Store(url, create=True) as store:
        study = open_study(store)
        with study.lock():
            assert store.summary("tiny").active
            backup(url, tmp_path / "c.db")
    with Store(str(tmp_path / "c.db")) as copied:
        assert not copied.summary("tiny").active
        with StudyWriter(copied, study.study_id, "tiny").lock():
            pass
