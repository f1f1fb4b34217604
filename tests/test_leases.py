"""Several drivers on a real PostgreSQL server: turns, leases, taking over, and being refused."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from test_studies import finish, open_study

from mnet_search.studies import frame as frames
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError
from mnet_search.studies.writer import LeaseLostError, StudyWriter, TrialRecord

from postgres import Server

# A driver that does what it is told, line by line, and answers each line with one of its own.
DRIVER = """
import sys
sys.path.insert(0, sys.argv[3])
from test_studies import *
store = Store(sys.argv[1])
study = StudyWriter(store, store.row("tiny")["study_id"], "tiny")
with study.lock(join=True, lease_s=float(sys.argv[2])):
    print(study.owner, flush=True)
    for line in sys.stdin:
        try:
            exec(line)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        else:
            print("done", flush=True)
"""


class Driver:
    """A driver in a process of its own."""

    def __init__(self, url: str, lease_s: float = 60.0):
        command = [sys.executable, "-c", DRIVER, url, str(lease_s), str(Path(__file__).parent)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.owner = self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def do(self, line: str) -> str:
        self.tell(line)
        return self._answer()

    def enter_turn(self) -> None:
        assert self.do("turn = study.turn(); turn.__enter__()") == "done"

    def leave_turn(self) -> str:
        return self.do("turn.__exit__(None, None, None)")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


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


@contextlib.contextmanager
def driver(url: str, lease_s: float = 60.0) -> Iterator[Driver]:
    started = Driver(url, lease_s)
    try:
        yield started
    finally:
        started.end()


def the_orphan(study: StudyWriter) -> TrialRecord:
    """The one trial that is left behind; a driver looks for such once in a while."""
    found: list[TrialRecord] = []
    wait_until(lambda: found.extend(study.orphans()) or found, timeout=10)
    (orphan,) = found
    return orphan


def wait_until(happened: Callable[[], object], timeout: float = 20) -> float:
    """Seconds until it happened."""
    start = time.monotonic()
    while not happened():
        assert time.monotonic() - start < timeout, "it did not happen"
        time.sleep(0.05)
    return time.monotonic() - start


def test_a_second_driver_needs_join_and_is_told_who_is_there(store: Store, study: StudyWriter) -> None:
    with driver(store.url) as other:
        with pytest.raises(StorageError) as caught, study.lock():
            pass
        text = str(caught.value)
        assert (
            f"study 'tiny' is already being run by process {other.process.pid} on {socket.gethostname()} since" in text
        )
        assert "work beside it with --join, wait for it, stop it with `mnet-search stop tiny`" in text
        with study.lock(join=True):
            assert {d.driver_id for d in store.drivers("tiny")} == {study.owner, other.owner}
            other.send(signal.SIGKILL)
            wait_until(lambda: len(store.drivers("tiny")) == 1, timeout=5)
        assert not study.shared
    assert store.drivers("tiny") == []
    with study.lock():  # whoever was killed leaves nothing that had to be cleared away
        assert study.shared


def test_a_turn_is_one_drivers_and_a_kill_ends_it_at_once(store: Store, study: StudyWriter) -> None:
    had: list[float] = []

    def wait_for_turn() -> None:
        with study.turn():
            had.append(time.monotonic())

    with study.lock(join=True), driver(store.url) as other:
        for ended_by in ("leaving", "kill"):
            other.enter_turn()
            waiting = threading.Thread(target=wait_for_turn)
            waiting.start()
            time.sleep(0.5)
            assert waiting.is_alive()
            assert not had
            start = time.monotonic()
            if ended_by == "kill":
                other.send(signal.SIGKILL)
            else:
                assert other.leave_turn() == "done"
            waiting.join(timeout=20)
            assert had.pop() - start < 2


def test_trials_of_a_killed_driver_are_taken_over_once(store: Store, study: StudyWriter) -> None:
    with study.lock(join=True), driver(store.url) as other:
        assert study.records() == []
        assert other.do("record = begin(study)") == "done"
        ((news, _),) = study.news()
        assert (news.state, news.owner) == ("running", other.owner)
        assert study.news() == []
        assert study.orphans() == []
        other.send(signal.SIGKILL)
        orphan = the_orphan(study)
        with study.turn():
            assert study.begin_again(orphan)
            assert not study.begin_again(orphan)  # as a third driver would find
        finish(study, orphan, 0.5)
        assert [(r.state, r.attempts, r.owner) for r in study.records()] == [("finished", 2, study.owner)]


def test_the_end_of_anothers_trial_is_news(store: Store, study: StudyWriter) -> None:
    with study.lock(join=True), driver(store.url) as other:
        assert other.do("record = begin(study); finish(study, record, 0.7)") == "done"
        ((record, trial),) = study.news()
        assert (record.state, record.values, trial and trial.values) == ("finished", [0.7, 1000.0], [0.7, 1000.0])
        assert other.do("record = begin(study, 0.2)") == "done"
        assert [(r.state, trial) for r, trial in study.news()] == [("running", None)]
        assert other.do("study.set_down(record.trial_id)") == "done"
        assert study.begin_again(the_orphan(study), counts=False)
        assert [r.attempts for r in study.records()] == [1, 1]


def test_a_stopped_driver_loses_its_lease_its_trial_and_its_late_writes(store: Store, study: StudyWriter) -> None:
    with study.lock(join=True), driver(store.url, lease_s=1) as other:
        assert study.records() == []
        assert other.do("record = begin(study)") == "done"
        assert len(study.news()) == 1
        time.sleep(2)
        assert study.orphans() == []  # a lease is renewed while its driver lives
        other.send(signal.SIGSTOP)
        assert wait_until(lambda: len(store.drivers("tiny")) == 1, timeout=10) < 4
        assert [d.driver_id for d in store.drivers("tiny")] == [study.owner]
        orphan = the_orphan(study)
        assert study.begin_again(orphan)
        study.add_epoch(orphan.trial_id, 1, {"seconds": 1.0, "train_loss": 0.25})
        other.send(signal.SIGCONT)
        lost = f"LeaseLostError: trial {orphan.trial_id} of study 'tiny' is another driver's now"
        assert other.do("study.add_epoch(record.trial_id, 1, {'seconds': 99.0, 'train_loss': 9.0})") == lost
        assert other.do("finish(study, record, 0.9)") == lost
        assert other.do("study.fail(record.trial_id, 'late')") == lost
        assert other.do("study.set_down(record.trial_id)") == lost
        assert study.curves()[orphan.trial_id][1]["train_loss"] == 0.25
        finish(study, orphan, 0.5)
        assert frames.load(store, "tiny")[["state", "accuracy", "attempts"]].to_numpy().tolist() == [
            ["finished", 0.5, 2]
        ]
        wait_until(lambda: len(store.drivers("tiny")) == 2, timeout=5)  # it lives, and is among the drivers again
        assert other.do("record = begin(study, 0.2); finish(study, record, 0.6)") == "done"


def test_a_trial_that_its_driver_ended_at_the_last_moment_is_not_begun_again(store: Store, study: StudyWriter) -> None:
    with study.lock(join=True), driver(store.url) as other:
        assert study.records() == []
        assert other.do("record = begin(study)") == "done"
        ((seen, _),) = study.news()  # taken for an orphan's, and finished before it is taken over
        assert other.do("finish(study, record, 0.7)") == "done"
        assert not study.begin_again(seen)
        assert [(r.state, r.values) for r, _ in study.news()] == [("finished", [0.7, 1000.0])]
        with pytest.raises(LeaseLostError, match=r"trial .* of study 'tiny' was ended by another driver"):
            study._tell(seen.trial_id, "COMPLETE", [0.1, 1.0])


def test_a_driver_that_hangs_in_its_turn_is_ended_by_the_server(
    store: Store, study: StudyWriter, caplog: pytest.LogCaptureFixture
) -> None:
    with study.lock(join=True), driver(store.url, lease_s=1) as other:
        other.enter_turn()
        other.send(signal.SIGSTOP)
        start = time.monotonic()
        with study.turn():
            assert 1 < time.monotonic() - start < 15
            assert f"driver {other.owner} hangs in its turn and its lease is over" in caplog.text
        other.send(signal.SIGCONT)
        answer = other.leave_turn()
        assert answer.startswith("StorageError: ")
        assert "has ended the connection" in answer
        with study.turn():
            pass
        other.enter_turn()
        assert other.leave_turn() == "done"


class Wire:
    """A way to the server that can be cut so that the server does not notice."""

    def __init__(self, port: int):
        self._target, self._listening = port, socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((client, server))
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)

    def cut(self) -> None:
        """The clients' ends break; the server's stay open and silent."""
        for client, _ in self._pairs:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        for pair in self._pairs:
            for end in pair:
                end.close()


def test_a_lost_connection_that_the_server_believes_in_is_replaced(
    store: Store, study: StudyWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """A firewall that forgets a connection answers the driver with a reset, and the server with nothing: there the lock
    of the lease and the turn are still held.
    """
    wire = Wire(make_url(store.url).port or 0)
    through = make_url(store.url).set(port=wire.port).render_as_string(hide_password=False)
    try:
        with Store(through) as distant:
            theirs = StudyWriter(distant, study.study_id, "tiny")
            with theirs.lock(lease_s=2):
                with pytest.raises(StorageError), theirs.turn():
                    wire.cut()
                start = time.monotonic()
                with theirs.turn():  # which its own former connection holds still
                    assert time.monotonic() - start < 15
                assert "has lost the connection of its turn" in caplog.text
                wait_until(lambda: [d.driver_id for d in store.drivers("tiny")] == [theirs.owner], timeout=10)
                time.sleep(3)
                assert [d.driver_id for d in store.drivers("tiny")] == [theirs.owner]
        assert store.drivers("tiny") == []
    finally:
        wire.close()
