"""The live page's data: whatever a search, an import or another hand writes, what was read before and brought up to
date equals what is read anew; and a search does not notice that it is watched.
"""

from __future__ import annotations

import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from pandas.testing import assert_frame_equal
from sqlalchemy import text

from mnet_search.dashboards import live
from mnet_search.dashboards.live import LiveStudies
from mnet_search.dashboards.snapshot import Snapshot, take
from mnet_search.studies import changes, frame
from mnet_search.studies import database as db
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError

from postgres import Server
from processes import load, search
from written_at_random import STUDY, Driver


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def driver(url: str) -> Iterator[Driver]:
    with Store(url, create=True) as store:
        yield Driver(store)


@pytest.fixture
def watched(url: str) -> Iterator[LiveStudies]:
    studies = LiveStudies(url)
    yield studies
    studies.close()


def assert_same(found: Snapshot, fresh: Snapshot) -> None:
    assert_frame_equal(found.frame, fresh.frame.drop(columns="options"))
    assert_frame_equal(found.curves, fresh.curves)
    assert_frame_equal(found.front(), fresh.front().drop(columns="options"))
    for name in ("name", "objectives", "provenance", "space_text"):
        assert getattr(found, name) == getattr(fresh, name)


def follow(url: str, seed: int, steps: int, watched: LiveStudies) -> list[str]:
    """Random steps of two drivers; at some of them the study is looked at -> the steps."""
    done: list[str] = []
    with Store(url, create=True) as store:
        drivers = [Driver(store, seed), Driver(store, seed + 100)]
        choose = random.Random(seed)
        for _ in range(steps):
            done.append(choose.choice(drivers).step())
            if choose.random() < 0.4:
                mark, found = watched.snapshot(STUDY)
                assert_same(found, take(store, STUDY))
                assert watched.snapshot(STUDY) == (mark, found)
        assert_same(watched.snapshot(STUDY)[1], take(store, STUDY))
    return done


# --- What was followed is what is read anew ---


@pytest.mark.parametrize("seed", [0, 2])
def test_whatever_is_written_is_followed(url: str, watched: LiveStudies, seed: int) -> None:
    done = follow(url, seed, 50, watched)
    assert len(set(done)) >= 9, "nearly every kind of step was among them"


def test_whatever_is_written_to_a_server_is_followed(postgres: Server) -> None:
    url = postgres.database()
    watched = LiveStudies(url)
    follow(url, 4, 25, watched)
    watched.close()


def test_only_what_may_have_changed_is_read(driver: Driver, watched: LiveStudies) -> None:
    for _ in range(changes.LAST_ENDED + 30):
        driver.finish(driver.begin())
    record = driver.begin()
    watched.snapshot(STUDY)
    read: list[int] = []
    rows_of = changes.Follower._rows

    def rows(self: Any, connection: Any, ids: Any, **how: Any) -> Any:
        read.extend(ids)
        return rows_of(self, connection, ids, **how)

    changes.Follower._rows = rows  # type: ignore[method-assign]
    try:
        driver.train(record)
        watched.snapshot(STUDY)
        assert len(read) == changes.LAST_ENDED + 1
        assert record.trial_id in read
    finally:
        changes.Follower._rows = rows_of  # type: ignore[method-assign]


def test_nothing_new_is_the_same_object(driver: Driver, watched: LiveStudies) -> None:
    driver.finish(driver.begin())
    mark, found = watched.snapshot(STUDY)
    assert watched.snapshot(STUDY)[1] is found
    driver.writer.begin_run(20, "runs", {"run": 0})
    later, same = watched.snapshot(STUDY)
    assert later != mark, "20 trials are asked for now, and the page says so"
    assert same is found, "while nothing that is drawn has changed"
    driver.train(driver.begin())
    assert watched.snapshot(STUDY)[1] is not found
    assert len(found.frame) == 1, "what others look at stays as it was"
    with driver.writer.lock():
        begun, _ = watched.snapshot(STUDY)
        assert watched.snapshot(STUDY)[0] == begun
    assert watched.snapshot(STUDY)[0] != begun, "the search has ended"


def test_the_marks_of_another_server_are_others(url: str, driver: Driver, watched: LiveStudies) -> None:
    driver.begin()
    another = LiveStudies(url)
    assert another.snapshot(STUDY)[0] != watched.snapshot(STUDY)[0]
    another.close()


def test_a_row_that_comes_late_is_found(driver: Driver, watched: LiveStudies) -> None:
    driver.finish(driver.begin())
    late, record = driver.begin(), driver.begin()
    with driver.store.write() as connection:  # as if its driver had paused between the two tables
        row = connection.execute(db.trials.select().where(db.trials.c.trial_id == late.trial_id)).mappings().one()
        connection.execute(db.trials.delete().where(db.trials.c.trial_id == late.trial_id))
    assert watched.snapshot(STUDY)[1].frame["number"].tolist() == [0, 2]
    driver.finish(record)
    with driver.store.write() as connection:
        connection.execute(db.trials.insert().values(**row))
    assert_same(watched.snapshot(STUDY)[1], take(driver.store, STUDY))


def test_many_new_trials_at_once(driver: Driver, watched: LiveStudies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_AT_ONCE", 5)
    driver.begin()
    watched.snapshot(STUDY)
    for _ in range(6):
        driver.finish(driver.begin())
    monkeypatch.setattr(changes, "BLOCK_ROWS", 2)
    monkeypatch.setattr(frame, "CHUNK_ROWS", 2)
    assert_same(watched.snapshot(STUDY)[1], take(driver.store, STUDY))


# --- Curves and options ---


def test_curves_are_those_that_are_drawn_and_others_are_read_when_asked_for(
    driver: Driver, watched: LiveStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LATEST_CURVES", 2)
    for accuracy in (0.99, 0.1, 0.1, 0.1, 0.1):
        record = driver.begin()
        for epoch in (1, 2):
            driver.train(record, epoch)
        driver.finish(record, accuracy, latency_ms=9.0 if accuracy < 0.5 else 1.0)
    running = driver.begin()
    driver.train(running)
    _, found = watched.snapshot(STUDY)
    fresh = take(driver.store, STUDY).curves
    front = set(found.front()["number"])
    others = [number for number in range(5) if number not in front]
    drawn = front | {5} | set(others[-2:])
    assert 0 in front
    assert len(others) > 2, "some are not kept"
    assert_frame_equal(found.curves, fresh[fresh["number"].isin(drawn)].reset_index(drop=True))
    asked = watched.curves(STUDY, [others[0], 5, 99])
    assert_frame_equal(asked, fresh[fresh["number"].isin([others[0], 5])].reset_index(drop=True))
    assert_frame_equal(watched.curves(STUDY, [99]), fresh.head(0))
    driver.train(running, 2)
    assert watched.snapshot(STUDY)[1].curves.query("number == 5")["epoch"].tolist() == [1, 2]


def test_the_options_of_one_network(driver: Driver, watched: LiveStudies) -> None:
    driver.begin()
    driver.finish(driver.begin())
    expected = take(driver.store, STUDY).frame["options"]
    assert [watched.options(STUDY, number) for number in (0, 1, 9)] == [expected[0], expected[1], {}]


# --- The list ---


def test_the_list_is_that_of_the_store_and_read_once_a_second(
    driver: Driver, watched: LiveStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.finish(driver.begin())
    monkeypatch.setattr(live, "LIST_AGE_S", 60.0)
    first = watched.list()
    assert list(first) == driver.store.studies()
    driver.finish(driver.begin())
    assert watched.list() is first
    monkeypatch.setattr(watched, "_list_until", 0.0)
    assert watched.list()[0].n_finished == 2


# --- What is not there, and what is there again ---


def test_a_missing_database_a_missing_study_and_their_return(tmp_path: Path, url: str, watched: LiveStudies) -> None:
    for ask in (watched.list, lambda: watched.snapshot(STUDY), lambda: watched.curves(STUDY, [0])):
        with pytest.raises(StorageError, match=r"study\.db: no such database; start a search first"):
            ask()
    with Store(url, create=True) as store:
        Driver(store, study="other").begin()
        with pytest.raises(StorageError, match=r"no study 'watched' in .*study\.db; it has: other"):
            watched.snapshot(STUDY)
        Driver(store).begin()
        assert len(watched.snapshot(STUDY)[1].frame) == 1


def test_a_study_that_was_deleted_and_made_anew(url: str, driver: Driver, watched: LiveStudies) -> None:
    for _ in range(3):
        driver.finish(driver.begin())
    mark, _ = watched.snapshot(STUDY)
    with driver.store.write() as connection:
        for table in ("mnet_curves", "mnet_measurements", "mnet_trials", "mnet_studies"):
            connection.execute(text(f"DELETE FROM {table}"))
    optuna.delete_study(study_name=STUDY, storage=driver.store.optuna)
    with pytest.raises(StorageError, match=r"no study 'watched' in .*; it has none yet"):
        watched.snapshot(STUDY)
    Driver(driver.store, seed=5).begin()
    again, found = watched.snapshot(STUDY)
    assert again != mark
    assert_same(found, take(url, STUDY))


def test_trials_that_another_tool_deleted_are_gone(driver: Driver, watched: LiveStudies) -> None:
    for _ in range(3):
        driver.finish(driver.begin())
    watched.snapshot(STUDY)
    with driver.store.write() as connection:
        connection.execute(text("DELETE FROM mnet_trials WHERE number = 1"))
    assert_same(watched.snapshot(STUDY)[1], take(driver.store, STUDY))
    optuna.delete_study(study_name=STUDY, storage=driver.store.optuna)
    mark, found = watched.snapshot(STUDY)
    assert found.frame.empty
    assert watched.snapshot(STUDY) == (mark, found)


def test_a_database_that_was_replaced_is_read_anew(tmp_path: Path, url: str, watched: LiveStudies) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for where, n in ((url, 3), (other, 2)):
        with Store(where, create=True) as store:
            driver = Driver(store, seed=n)
            for _ in range(n):
                driver.finish(driver.begin())
    mark, found = watched.snapshot(STUDY)
    assert (len(found.frame), watched.list()[0].n_finished) == (3, 3)
    (tmp_path / "study.db").unlink()
    with pytest.raises(StorageError, match="no such database"):
        watched.snapshot(STUDY)
    (tmp_path / "other.db").replace(tmp_path / "study.db")
    again, found = watched.snapshot(STUDY)
    assert again != mark
    assert (len(found.frame), watched.list()[0].n_finished) == (2, 2)
    assert_same(found, take(url, STUDY))


def test_a_look_that_fails_half_way_loses_nothing(
    driver: Driver, watched: LiveStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.finish(driver.begin())
    watched.snapshot(STUDY)
    driver.finish(driver.begin())
    with monkeypatch.context() as broken:
        broken.setattr(changes.Follower, "keep_curves", lambda *_: (_ for _ in ()).throw(StorageError("gone")))
        with pytest.raises(StorageError, match="gone"):
            watched.snapshot(STUDY)
    assert_same(watched.snapshot(STUDY)[1], take(driver.store, STUDY))


def test_a_bad_url_is_said_at_the_first_question() -> None:
    with pytest.raises(StorageError, match="studies are not stored in 'mysql'"):
        LiveStudies("mysql://localhost/x").list()


def test_studies_that_nobody_looks_at_are_let_go(
    url: str, driver: Driver, watched: LiveStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_ROWS", 3)
    for study in ("a", "b", "c"):
        other = Driver(driver.store, study=study)
        other.begin()
        other.begin()
        watched.snapshot(study)
    watched.snapshot("c")
    assert list(watched._followed) == ["c"]
    assert len(watched.snapshot("a")[1].frame) == 2


# --- The search does not notice ---


def test_it_cannot_write_and_keeps_no_snapshot_of_the_database(
    tmp_path: Path, driver: Driver, watched: LiveStudies
) -> None:
    driver.finish(driver.begin())
    watched.snapshot(STUDY)
    store = watched._store
    assert store is not None
    with pytest.raises(StorageError, match=r"readonly|read-only"), store.write() as connection:
        connection.execute(text("DELETE FROM mnet_curves"))
    # A reader that held an old state would keep the log from being folded.
    driver.finish(driver.begin())
    with sqlite3.connect(tmp_path / "study.db", timeout=1) as raw:
        busy, pages, folded = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    raw.close()
    assert (busy, pages, folded) == (0, 0, 0)


def test_many_threads_see_one_object(driver: Driver, watched: LiveStudies) -> None:
    for _ in range(4):
        driver.finish(driver.begin())
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: watched.snapshot(STUDY), range(64)))
    assert {mark for mark, _ in found} == {found[0][0]}
    assert {id(snapshot) for _, snapshot in found} == {id(found[0][1])}


WATCH = """
import sys, threading
from mnet_search.dashboards.live import LiveStudies
from mnet_search.studies.urls import StorageError

watched, stop, marks, problems = LiveStudies(sys.argv[1]), threading.Event(), set(), set()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set())).start()
print("watching", flush=True)
while not stop.wait(0.05):
    try:
        marks.add(watched.snapshot(sys.argv[2])[0])
    except StorageError as error:
        problems.add(str(error))
print(len(marks), *problems, sep="\\n")
"""


def test_a_search_that_another_process_watches_goes_on_as_ever(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    command = [sys.executable, "-c", WATCH, url, "tiny"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        search(tmp_path)
        with Store(url, create=True) as store:
            driver = Driver(store, study="by hand")
            watched_s = write_seconds(driver)
            n_marks, *problems = watcher.communicate()[0].splitlines()
            alone_s = write_seconds(driver)
    allowed = ("no such database", "no study", "no such table")  # before the study was made
    assert [text for text in problems if not any(part in text for part in allowed)] == []
    trials = load(tmp_path)
    assert (trials["state"].tolist(), trials["attempts"].tolist()) == (["finished"] * 4, [1] * 4)
    assert int(n_marks) >= 8, "each trial was seen to begin and to end"
    assert watched_s < 4 * alone_s + 0.01, "generous, for what else the machine does"


def write_seconds(driver: Driver) -> float:
    """The median time that one row of a curve takes to be written."""
    record, seconds = driver.begin(), []
    for epoch in range(60):
        began = time.perf_counter()
        driver.train(record, epoch)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
