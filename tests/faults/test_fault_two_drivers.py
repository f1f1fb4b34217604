"""Several drivers at one study: SQLite refuses the second; in PostgreSQL they share the work, and take over what one of
them leaves when it is killed, hangs for longer than its lease, or loses the server.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drills import (
    OWN,
    Fault,
    again,
    assert_nothing_lost,
    count,
    driver_with,
    ended,
    finished,
    going,
    rows,
    trials,
    until,
    write_own,
)
from postgres import Server
from processes import start, write_space

pytestmark = pytest.mark.faults

GATED = """\
trial.report(1, accuracy=0.5)
while (HERE / "waits").exists():
    time.sleep(0.01)
time.sleep(0.1)
trial.report(2, accuracy=0.5)
return 0.5
"""


class Study:
    """A study in PostgreSQL, and the command that searches it; trials wait in their first epoch until `go`."""

    def __init__(self, folder: Path, url: str, n_trials: int, body: str = GATED, text: str = OWN):
        self.folder, self.url, self.n_trials = folder, url, n_trials
        write_own(folder, body)
        (folder / "waits").touch()
        self._arguments = ("run", write_space(folder, text), "--executor", "local", "--n-trials", n_trials, "--join")

    @contextlib.contextmanager
    def driver(self, *more: object, script: Path | None = None) -> Iterator[subprocess.Popen[str]]:
        process = start(self.folder, *self._arguments, *more, script=script, MNET_STORAGE=self.url)
        with going(process):
            yield process

    def go(self) -> None:
        (self.folder / "waits").unlink()

    def running(self, n: int) -> list[dict[str, object]]:
        """Wait until so many trials are in their first epoch."""
        return until(lambda: (r := trials(self.url, "RUNNING")) and [t["epochs"] for t in r] == [1] * n and r)  # type: ignore[no-any-return]

    def completes(self, **options: object) -> list[dict[str, object]]:
        """The same command again has nothing to do, or does it; then the promise holds."""
        return assert_nothing_lost(self.url, self.n_trials, 2, with_checkpoints=False, **options)  # type: ignore[arg-type]


def owner(study: Study, process: subprocess.Popen[str]) -> str:
    (row,) = rows(study.url, "SELECT driver_id FROM mnet_drivers WHERE pid = :pid", pid=process.pid)
    return str(row["driver_id"])


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.database()


@pytest.mark.parametrize("join", [False, True])
def test_sqlite_refuses_a_second_driver_and_names_the_first(tmp_path: Path, join: bool) -> None:
    write_own(tmp_path, GATED)
    (tmp_path / "waits").touch()
    arguments = ("run", write_space(tmp_path, OWN), "--executor", "local", "--n-trials", 1)
    with going(start(tmp_path, *arguments)) as first:
        until(lambda: trials(tmp_path, "RUNNING")[0]["epochs"] == 1)
        log = again(tmp_path, *arguments, *["--join"] * join, code=3)
        assert f"study 'tiny' is already being run by process {first.pid} on {socket.gethostname()} since" in log
        assert ("SQLite takes one driver at a time (several can join a study in PostgreSQL)" in log) == join
        assert "stop it with `mnet-search stop tiny`, or choose another --study name" in log
        (tmp_path / "waits").unlink()
        ended(first, tmp_path, 0)
    assert [row["attempts"] for row in assert_nothing_lost(tmp_path, 1, 2, with_checkpoints=False)] == [1]


def test_two_drivers_share_a_study(tmp_path: Path, url: str) -> None:
    study = Study(tmp_path, url, 24)
    with study.driver() as first, study.driver() as second:
        study.running(2)
        owners = {owner(study, first), owner(study, second)}
        study.go()
        ended(first, tmp_path, 0)
        ended(second, tmp_path, 0)
    found = study.completes()
    assert len(found) == 24
    assert {row["owner"] for row in found} == owners
    assert {row["attempts"] for row in found} == {1}


def test_what_a_killed_driver_leaves_is_taken_up_once_by_those_that_live(tmp_path: Path, url: str) -> None:
    """It leaves two trials in the middle, and one of which there is Optuna's row alone."""
    study = Study(tmp_path, url, 9)
    dies = driver_with(tmp_path, Fault("optuna.storages:RDBStorage", "create_new_trial", n=3, after=True))
    with study.driver() as first, study.driver() as second:
        study.running(2)
        with study.driver("-s", "resources.concurrency=3", script=dies) as third:
            assert third.wait(60) == -signal.SIGKILL
        left = [row["number"] for row in trials(url, "RUNNING") if row["owner"] is not None][2:]
        assert len(left) == 2
        study.go()
        ended(first, tmp_path, 0)
        ended(second, tmp_path, 0)
    found = study.completes()
    assert {row["number"] for row in found if row["attempts"] == 2} == set(left)
    assert [row["state"] for row in found if row["attempts"] is None] == ["FAIL"]
    assert len(found) == 10


def test_a_driver_that_hangs_longer_than_its_lease_loses_its_trial_and_works_on(tmp_path: Path, url: str) -> None:
    study = Study(tmp_path, url, 8)
    with study.driver("--lease", 2) as hangs:
        (lost,) = study.running(1)
        with study.driver() as other:
            study.running(2)
            hangs.send_signal(signal.SIGSTOP)
            taker = owner(study, other)
            # the other has a trial of its own, which it ends first
            (tmp_path / "waits").rename(tmp_path / "waited")
            until(lambda: [r for r in trials(url) if (r["number"], r["owner"]) == (lost["number"], taker)])
            until(lambda: count(url) >= 2)
            before = finished(url)
            hangs.send_signal(signal.SIGCONT)
            ended(other, tmp_path, 0)
            log = ended(hangs, tmp_path, 0)
    found = study.completes(before=before)
    assert len(found) == 8
    assert [(row["attempts"], row["owner"]) for row in found if row["number"] == lost["number"]] == [(2, taker)]
    assert "is another driver's now" in log


def test_the_servers_end_ends_drivers_with_a_sentence_and_the_study_goes_on(
    tmp_path: Path, url: str, postgres: Server
) -> None:
    study = Study(tmp_path, url, 6)
    with study.driver() as first, study.driver() as second:
        study.running(2)
        before = finished(url)
        postgres.restart(immediate=True)  # as a power cut would
        study.go()
        codes = [first.wait(60), second.wait(60)]
    log = (tmp_path / "log.txt").read_text()
    assert set(codes) <= {0, 3}, log
    assert "Traceback" not in log
    for _ in range(codes.count(3)):
        assert "the server cannot be reached within" in log
    with study.driver() as third:
        ended(third, tmp_path, 0)
    study.completes(before=before)


def test_drivers_that_retry_failures_share_them(tmp_path: Path, url: str) -> None:
    study = Study(tmp_path, url, 4, 'if (HERE / "waits").exists():\n    raise ValueError("no licence")\n' + GATED)
    with study.driver("--max-failures", 3) as process:
        log = ended(process, tmp_path, 4)
    assert "4 trials failed in this run, more than --max-failures 3" in log
    failed = {(row["arch_id"], row["seed"]) for row in trials(url, "FAIL")}
    assert len(failed) == 4
    study.go()
    with study.driver("--retry-failed") as first, study.driver("--retry-failed") as second:
        ended(first, tmp_path, 0)
        ended(second, tmp_path, 0)
    found = study.completes()
    assert {(row["arch_id"], row["seed"]) for row in found if row["state"] == "COMPLETE"} == failed
    assert len(found) == 8


SMALL = OWN.replace("{min: 0.1, max: 1.0, step: 0.01}", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]").replace(
    "scheduler: none", "scheduler: moasha, eta: 2, first_rung: 1"
)
UNEQUAL = """\
for epoch in (1, 2):
    time.sleep(0.2)
    trial.report(epoch, accuracy=trial.params["width"] / 2)
return trial.params["width"] / 2
"""


def test_a_trial_that_was_stopped_early_goes_on_once(tmp_path: Path, url: str) -> None:
    """Two drivers, and no network is left but those that were stopped early."""
    study = Study(tmp_path, url, 12, UNEQUAL, SMALL)
    with study.driver() as first, study.driver() as second:
        ended(first, tmp_path, 0)
        ended(second, tmp_path, 0)
    found = study.completes()
    stopped = [(row["arch_id"], row["seed"]) for row in found if row["state"] == "PRUNED"]
    assert stopped
    assert len(set(stopped)) == len(stopped)
    assert len(found) == 12 + len(stopped)
