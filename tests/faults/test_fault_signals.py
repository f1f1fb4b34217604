"""Ctrl-C, SIGTERM, `mnet-search stop` and time limits: running trials are set down and cost no attempt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mnet_search.models.checkpoints import load_checkpoint
from mnet_search.search.driver import MAX_ATTEMPTS

from drills import (
    OWN,
    again,
    assert_nothing_lost,
    count,
    curve,
    ended,
    going,
    lives,
    trained,
    trials,
    until,
    workers,
    write_own,
)
from processes import mnet, start, write_space

pytestmark = pytest.mark.faults

SLEEPS = """\
trial.report(1, accuracy=0.5)
(HERE / "sleeps").touch()
if (HERE / "slow").exists():
    time.sleep(60)
trial.report(2, accuracy=0.5)
return 0.5
"""


def started_sleeping(folder: Path, *more: object) -> subprocess.Popen[str]:
    """A driver whose trial is in an epoch that takes a minute."""
    write_own(folder, SLEEPS)
    (folder / "slow").touch()
    space = write_space(folder, OWN)
    process = start(folder, "run", space, "--executor", "local", "--n-trials", 2, *more)
    try:
        until(lambda: (folder / "sleeps").exists())
        until(lambda: trials(folder, "RUNNING")[0]["epochs"] == 1)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def goes_on_after(folder: Path, process: subprocess.Popen[str], code: int, pids: list[int]) -> None:
    """The driver ends within three seconds (more where the machine has more to do than cores), its trial waits, and the
    same command completes.
    """
    began = time.monotonic()
    ended(process, folder, code, timeout=20)
    assert time.monotonic() - began < 3 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert not any(lives(pid) for pid in pids)
    assert [(row["state"], row["attempts"], row["owner"]) for row in trials(folder)] == [("WAITING", 1, None)]
    (folder / "slow").unlink()
    again(folder, "run", folder / "tiny.yaml", "--executor", "local", "--n-trials", 2)
    found = assert_nothing_lost(folder, 2, 2, with_checkpoints=False)
    assert [row["attempts"] for row in found] == [1, 1]


def test_ctrl_c_sets_trials_down_at_their_checkpoint_and_counts_as_no_attempt(tmp_path: Path) -> None:
    epochs, n_stops = 60, MAX_ATTEMPTS + 1
    space = write_space(tmp_path, trained(epochs, concurrency=2))
    arguments = ("run", space, "--executor", "local", "--n-trials", 2)
    seen: dict[int, list[dict[str, object]]] = {}
    for stop in range(n_stops):
        before = sum(map(len, seen.values()))
        with going(start(tmp_path, *arguments)) as process:
            until(lambda: all(len(curve(tmp_path, key)) > len(seen.get(key, ())) for key in (1, 2)))
            process.send_signal(signal.SIGTERM if stop == 1 else signal.SIGINT)
            log = ended(process, tmp_path, 143 if stop == 1 else 130)
        assert "trials that run go on to their next checkpoint" in log
        assert "mnet-search resume tiny" in log
        found = trials(tmp_path)
        assert [(r["state"], r["attempts"], r["owner"]) for r in found] == [("WAITING", 1, None)] * 2
        for row in found:
            lines = curve(tmp_path, row["trial_id"])
            assert lines[: len(seen.get(row["trial_id"], ()))] == seen.get(row["trial_id"], [])  # not trained again
            kept = load_checkpoint(Path(row["folder"]) / "last.pt")
            assert [line["epoch"] for line in kept.rows][: len(lines)] == [line["epoch"] for line in lines]
            assert len(kept.rows) <= len(lines) + 1  # of the moment at which its process was ended
            seen[row["trial_id"]] = lines
        assert sum(map(len, seen.values())) > before
    assert all(len(lines) < epochs for lines in seen.values()), "the trials were over before the last stop"
    again(tmp_path, *arguments, timeout=240)
    found = assert_nothing_lost(tmp_path, 2, epochs)
    assert [row["attempts"] for row in found] == [1, 1]
    for key, lines in seen.items():
        assert curve(tmp_path, key)[: len(lines)] == lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_an_epoch_that_takes_long(tmp_path: Path, number: int) -> None:
    with going(started_sleeping(tmp_path)) as process:
        pids = workers(process.pid)
        process.send_signal(number)
        until(lambda: "go on to their next checkpoint" in (tmp_path / "log.txt").read_text())
        process.send_signal(number)
        goes_on_after(tmp_path, process, 128 + number, pids)


def test_signals_that_rain_down_leave_a_study_that_goes_on(tmp_path: Path) -> None:
    """Somebody leans on Ctrl-C: whatever place in the driver each of them meets, the trial waits and costs nothing."""
    with going(started_sleeping(tmp_path)) as process:
        pids, end = workers(process.pid), time.monotonic() + 20
        while trials(tmp_path, "RUNNING") and process.poll() is None:
            for _ in range(3):
                process.send_signal(signal.SIGINT)
                time.sleep(0.005)
            assert time.monotonic() < end
        goes_on_after(tmp_path, process, 130, pids)


def test_stop_now_from_another_process(tmp_path: Path) -> None:
    with going(started_sleeping(tmp_path)) as process:
        pids = workers(process.pid)
        said = mnet(tmp_path, "stop", "tiny", "--now")
        assert said.returncode == 0, said.stderr
        assert f"asked process {process.pid} on" in said.stdout
        goes_on_after(tmp_path, process, 130, pids)
    none = mnet(tmp_path, "stop", "tiny")
    assert (none.returncode, "no driver is at work on study tiny" in none.stdout) == (0, True)


GATED = """\
for epoch in range(1, 301):
    if not (HERE / "fast").exists():
        time.sleep(0.2)
    trial.report(epoch, accuracy=0.5)
return 0.5
"""


def test_stop_from_another_process_waits_for_the_checkpoint_and_status_shows_the_run(tmp_path: Path) -> None:
    write_own(tmp_path, GATED)
    space = write_space(tmp_path, OWN)
    arguments = ("run", space, "--executor", "local", "--n-trials", 1)
    with going(start(tmp_path, *arguments)) as process:
        until(lambda: trials(tmp_path, "RUNNING")[0]["epochs"] >= 1)
        (running,) = trials(tmp_path)
        shown = mnet(tmp_path, "status", "tiny", "--json")
        assert shown.returncode == 0, shown.stderr
        status = json.loads(shown.stdout)
        assert [driver["pid"] for driver in status["drivers"]] == [process.pid]
        assert [(now["number"], now["arch_id"]) for now in status["running"]] == [(0, running["arch_id"])]
        folder = status["running"][0]["folder"]
        assert "trial 0 begins" in (Path(folder) / "trial.log").read_text()
        said = mnet(tmp_path, "stop", "tiny")
        assert said.returncode == 0, said.stderr
        log = ended(process, tmp_path, 130, timeout=30)
    assert "stopping (asked to by mnet-search stop)" in log
    (waiting,) = trials(tmp_path)
    assert (waiting["state"], waiting["attempts"]) == ("WAITING", 1)
    assert 0 < waiting["epochs"] < 300
    text = mnet(tmp_path, "status", "tiny").stdout
    assert "no driver is at work; go on with: mnet-search resume tiny" in text
    (tmp_path / "fast").touch()
    again(tmp_path, *arguments)  # the request was that run's
    assert_nothing_lost(tmp_path, 1, 300, with_checkpoints=False)


def test_a_time_limit_ends_a_run_well_and_the_next_goes_on(tmp_path: Path) -> None:
    write_own(tmp_path, "for epoch in (1, 2):\n    time.sleep(0.4)\n    trial.report(epoch, accuracy=0.5)\nreturn 0.5")
    space = write_space(tmp_path, OWN)
    arguments = ("run", space, "--executor", "local", "--n-trials", 8)
    log = again(tmp_path, *arguments, "--timeout", 3)
    assert "the time limit of 3 s is over" in log
    done = count(tmp_path)
    assert done < 8  # a slow machine may not get to the first
    assert {row["attempts"] for row in trials(tmp_path)} == {1}
    assert not trials(tmp_path, "RUNNING")
    again(tmp_path, *arguments)
    assert_nothing_lost(tmp_path, 8, 2, with_checkpoints=False)
