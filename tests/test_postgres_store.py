"""The store on a real PostgreSQL server: the tests of SQLite once more, and what is refused."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url

# Collected here once more, with this file's `url`.
from test_studies import (
    begin,
    finish,
    open_study,
    test_a_study_comes_back_as_a_frame,  # noqa: F401
    test_a_study_whose_making_was_killed_half_way_is_made_whole,  # noqa: F401
    test_an_edited_space_is_refused_with_the_difference,  # noqa: F401
    test_an_optuna_study_of_the_same_name_is_not_taken_over,  # noqa: F401
    test_optuna_reads_the_same_study,  # noqa: F401
    test_records_name_trials_to_take_up_again_and_end_half_begun_ones,  # noqa: F401
    test_unknown_studies_are_answered_with_the_known_ones,  # noqa: F401
)

from mnet_search.models.latency_table import LatencyTable
from mnet_search.studies import database as db
from mnet_search.studies import frame as frames
from mnet_search.studies import latency_tables
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError, secrets_to_environment
from mnet_search.studies.writer import StudyWriter

from postgres import USER, Server


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store with a study `tiny`."""
    with Store(url, create=True) as opened:
        open_study(opened)
        yield opened


@pytest.fixture
def study(store: Store) -> StudyWriter:
    return StudyWriter(store, store.row("tiny")["study_id"], "tiny")


# ---------------------------------------------------------------- one driver


def test_summary_and_fingerprint_follow_the_study(store: Store, study: StudyWriter) -> None:
    seen = [store.fingerprint("tiny")]

    def changed() -> bool:
        seen.append(store.fingerprint("tiny"))
        return seen[-1] != seen[-2]

    assert not changed()
    first, second, third = begin(study), begin(study, 0.2), begin(study, 0.3)
    assert changed()
    study.add_epoch(first.trial_id, 1, {"seconds": 1.0})
    assert changed()
    finish(study, first, 0.6)
    study.stop(second.trial_id, "place 2 of 2")
    study.fail(third.trial_id, "a reason with a \0 in it")
    assert changed()
    summary = store.summary("tiny")
    assert (summary.n_finished, summary.n_stopped, summary.n_failed, summary.active) == (1, 1, 1, False)
    assert isinstance(summary.last_activity, datetime)
    with study.lock():
        assert changed()
        assert store.summary("tiny").active
    assert changed()
    frame = frames.load(store, "tiny")
    assert frame["state"].tolist() == ["finished", "stopped", "failed"]
    assert frame["reason"].tolist() == ["", "place 2 of 2", "a reason with a \ufffd in it"]  # PostgreSQL takes no NUL
    assert store.chosen("tiny")[1] == {"width": 0.2, "resolution": 20, "block": "separable"}


def test_figures_that_are_not_finite_are_stored(store: Store, study: StudyWriter) -> None:
    """JSON has no nan, which PostgreSQL, unlike SQLite, insists on."""
    record = begin(study)
    study.add_epoch(record.trial_id, 1, {"train_loss": math.nan, "validation_loss": math.inf, "seconds": 1.0})
    study.finish(
        record.trial_id,
        [0.5, math.inf],
        metrics={"accuracy": 0.5, "validation_loss": math.nan, "latency_ms": math.inf},
        environment={"device": "cpu", "probe": [math.nan, {"seconds": -math.inf}]},
        measurement=None,
        checkpoint="",
        checkpoint_sha256="",
    )
    row = frames.load(store, "tiny").iloc[0]
    assert row["accuracy"] == 0.5
    assert math.isnan(row["validation_loss"])
    assert study.curves()[record.trial_id][1]["train_loss"] is None  # as from SQLite
    assert study.curves()[record.trial_id][1]["validation_loss"] == math.inf
    assert study.records()[0].values == [0.5, math.inf]
    with store.read() as connection:
        assert connection.execute(select(db.trials.c.environment)).scalar() == {
            "device": "cpu",
            "probe": [None, {"seconds": None}],
        }


def test_a_request_to_stop_reaches_the_driver_and_ends_with_the_next_run(store: Store, study: StudyWriter) -> None:
    assert study.stop_requested() is None
    store.request_stop("tiny", "finish")
    assert study.stop_requested() == "finish"
    study.begin_run(9, Path("runs"), {})
    assert study.stop_requested() is None
    with pytest.raises(StorageError, match="no study 'tinny'"):
        store.request_stop("tinny", "now")


def test_a_latency_table_replaces_its_predecessor(store: Store) -> None:
    table = LatencyTable("tiny", {"device": "cpu"}, {"conv": [0.5, "conv", [1, 2]]}, {"conv": 1.0}, 3, 0.1, 0.0)
    assert latency_tables.stored(store) == []
    for saved in (table, replace(table, fingerprint={"device": "gpu"}), replace(table, seconds=7.0)):
        latency_tables.save(store, saved)
    assert [(s.table.fingerprint["device"], s.table.seconds) for s in latency_tables.stored(store)] == [
        ("gpu", 0.0),
        ("cpu", 7.0),
    ]
    assert latency_tables.find(store, "tiny", {"device": "cpu"}).table.seconds == 7


def test_drivers_that_start_at_once_make_one_study(url: str) -> None:
    code = (
        "import sys, time\nsys.path.insert(0, sys.argv[2])\nfrom test_studies import *\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "with Store(sys.argv[1], create=True) as store:\n    begin(open_study(store))\n"
        "print('made', flush=True)"
    )
    command = [sys.executable, "-c", code, url, str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert answers == ["made\n"] * 3
    with Store(url) as opened:
        assert opened.names() == ["tiny"]
        assert len(frames.load(opened, "tiny")) == 3


# ---------------------------------------------------------------- what is refused


def refused(url: str, **options: Any) -> str:
    with pytest.raises(StorageError) as caught:
        Store(url, **options)
    password = make_url(url).password
    assert password is None or str(password) not in str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_programs_database_is_refused_and_left_as_it_was(postgres: Server, url: str) -> None:
    name = url.rpartition("/")[2]
    postgres.execute("CREATE TABLE bookmarks (url TEXT)", name)
    assert "belongs to another program (it has tables bookmarks)" in refused(url, create=True)
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    assert postgres.execute(tables, name) == [("bookmarks",)]


def test_an_empty_database_has_no_study(url: str) -> None:
    assert "no study of mnet-search lies in this database; name another one" in refused(url)


@pytest.mark.parametrize(("version", "text"), [(99, "written by a newer mnet-search"), (1, "mnet-search db upgrade")])
def test_another_schema_is_refused(postgres: Server, store: Store, version: int, text: str) -> None:
    postgres.execute(f"UPDATE mnet_schema SET version = {version}", make_url(store.url).database or "")
    assert text in refused(store.url)


def test_wrong_password(url: str) -> None:
    wrong = make_url(url).set(password="not-the-secret").render_as_string(hide_password=False)
    text = refused(wrong)
    assert "the server refused the login" in text
    assert "set PGPASSWORD, or write it to ~/.pgpass" in text
    assert f"//{USER}:***@127.0.0.1" in text


def test_the_password_may_come_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = secrets_to_environment({"MNET_STORAGE": url})
    assert str(make_url(url).password) not in found["MNET_STORAGE"]
    assert "the server refused the login" in refused(found["MNET_STORAGE"], create=True)
    monkeypatch.setenv("PGPASSWORD", found["PGPASSWORD"])
    Store(found["MNET_STORAGE"], create=True).close()


def test_unknown_database(postgres: Server) -> None:
    text = refused(f"{postgres.url()}/nowhere", create=True)
    assert "the server has no such database" in text
    assert "make it with createdb, or name another with --storage" in text


def test_a_user_who_may_not_make_tables(postgres: Server, url: str) -> None:
    name = make_url(url).database
    postgres.execute("DROP ROLE IF EXISTS guest")
    postgres.execute("CREATE ROLE guest LOGIN PASSWORD 'visiting'")
    text = refused(f"postgresql://guest:visiting@127.0.0.1:{postgres.port}/{name}", create=True)
    assert "the database does not let this user do that (permission denied for schema public" in text
    assert "grant it, or log in as the database's owner" in text


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # it does not listen
        text = refused(f"postgresql://tester:verysecret@127.0.0.1:{nobody.getsockname()[1]}/studies", create=True)
    assert "the server cannot be reached within 10 s" in text
    assert "check that it runs and that this machine may connect" in text


def test_a_server_that_does_not_answer_costs_the_connect_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        start = time.monotonic()
        port = silent.getsockname()[1]
        text = refused(f"postgresql://tester:verysecret@127.0.0.1:{port}/studies?connect_timeout=2")
        assert 1.5 < time.monotonic() - start < 5
    assert "the server cannot be reached within 2 s" in text


def test_psycopg_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from mnet_search.studies.store import Store\n"
        "try: Store('postgresql://u:secret@h/d')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.stdout.strip() == (
        "StorageError postgresql+psycopg://u:***@h/d: psycopg is not installed; install it with: "
        "pip install 'mnet-search[postgres]'"
    ), done.stderr


def test_the_server_helper_starts_again_with_its_data(postgres: Server, url: str) -> None:
    name = make_url(url).database or ""
    postgres.execute("CREATE TABLE kept AS SELECT 7 AS n", name)
    for immediate in (False, True):
        postgres.restart(immediate=immediate)
        assert postgres.execute("SELECT n FROM kept", name) == [(7,)]
    postgres.stop()
    with pytest.raises(psycopg.OperationalError):
        postgres.execute("SELECT 1")
    postgres.start()
