"""kill -9 of the driver at exact places, and of workers: the same command again completes, and nothing is lost,
repeated or counted twice.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mnet_search.search.driver import MAX_ATTEMPTS

from drills import (
    INTERRUPT,
    OWN,
    WRITER,
    Fault,
    again,
    assert_nothing_lost,
    driver_with,
    ended,
    finished,
    going,
    lives,
    rows,
    trained,
    trials,
    until,
    workers,
    write_own,
)
from processes import start, write_space

pytestmark = pytest.mark.faults

OPTUNA = "optuna.storages:RDBStorage"
STORE = "mnet_search.studies.store:Store"
# What has died where; the states of trials, in order of number, that it leaves behind; attempts in the end.
PLACES = {
    "between Optuna's study and ours": ((Fault(OPTUNA, "create_new_study", after=True),), [], [1, 1, 1]),
    "a study without trials": ((Fault(WRITER, "begin"),), [], [1, 1, 1]),
    "between Optuna's row of a new trial and ours": (
        (Fault(OPTUNA, "create_new_trial", n=2, after=True),),
        ["COMPLETE", "RUNNING"],
        [1, None, 1, 1],
    ),
    "between a checkpoint and its epoch's row": (
        (Fault(WRITER, "add_epoch", n=6),),
        ["COMPLETE", "RUNNING"],
        [1, 2, 1],
    ),
    "in the middle of an epoch": ((Fault(WRITER, "add_epoch", n=6, after=True),), ["COMPLETE", "RUNNING"], [1, 2, 1]),
    "between our row of an outcome and Optuna's COMPLETE": (
        (Fault(WRITER, "_tell", n=2, only="args[2] == 'COMPLETE'"),),
        ["COMPLETE", "RUNNING"],
        [1, 2, 1],
    ),
    "while it stops after Ctrl-C, before the trial is set down": (
        (Fault(WRITER, "add_epoch", n=6, act=INTERRUPT), Fault(WRITER, "set_down")),
        ["COMPLETE", "RUNNING"],
        [1, 2, 1],
    ),
    "while it stops after Ctrl-C, before Optuna hears that the trial waits": (
        (Fault(WRITER, "add_epoch", n=6, act=INTERRUPT), Fault(WRITER, "_tell", only="args[2] == 'WAITING'")),
        ["COMPLETE", "RUNNING"],
        [1, 2, 1],  # the trial was the dead driver's until its last step, so this was an attempt
    ),
    "while it stops after Ctrl-C, before the trial is nobody's": (
        (
            Fault(WRITER, "add_epoch", n=6, act=INTERRUPT),
            Fault(WRITER, "_tell", only="args[2] == 'WAITING'", after=True),
        ),
        ["COMPLETE", "WAITING"],
        [1, 2, 1],
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_kill_9_of_the_driver(tmp_path: Path, place: str) -> None:
    faults, left, attempts = PLACES[place]
    space = write_space(tmp_path, trained(4))
    arguments = ("run", space, "--executor", "local", "--n-trials", 3)
    with going(start(tmp_path, *arguments, script=driver_with(tmp_path, *faults))) as process:
        assert process.wait(120) == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    if place == "between Optuna's study and ours":
        assert rows(tmp_path, "SELECT * FROM mnet_studies") == []
    assert [row["state"] for row in trials(tmp_path)] == left
    before = finished(tmp_path)
    again(tmp_path, *arguments)
    found = assert_nothing_lost(tmp_path, 3, 4, before=before)
    assert [row["attempts"] for row in found] == attempts


def test_kill_9_of_the_driver_ends_its_workers(tmp_path: Path) -> None:
    write_own(tmp_path, "(HERE / 'sleeps').touch()\ntime.sleep(60)\nreturn 0.5")
    space = write_space(tmp_path, OWN.replace("concurrency: 1", "concurrency: 2"))
    with going(start(tmp_path, "run", space, "--executor", "local", "--n-trials", 3)) as process:
        until(lambda: (tmp_path / "sleeps").exists())
        pids = until(lambda: workers(process.pid))
        process.kill()
        process.wait()
        until(lambda: not any(lives(pid) for pid in pids), timeout=10)


WORKER = """\
for epoch in (1, 2):
    trial.report(epoch, accuracy=0.5)
    while trial.number == 1 and (HERE / "waits").exists():
        time.sleep(0.01)
return 0.5
"""


def kill_worker(folder: Path, driver: int, attempt: int) -> None:
    """Kill the worker of trial 1 in the middle of its trial."""
    until(lambda: any((r["number"], r["attempts"], r["epochs"]) == (1, attempt, 1) for r in trials(folder, "RUNNING")))
    log = Path(next(row["folder"] for row in trials(folder, "RUNNING"))) / "trial.log"
    until(lambda: log.read_text().count("trial 1 begins") == attempt)
    (worker,) = workers(driver)
    os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("deaths", [1, MAX_ATTEMPTS])
def test_kill_9_of_a_worker(tmp_path: Path, deaths: int) -> None:
    """Its trial begins again; at the third death it fails, with the reason, and the search goes on with others."""
    write_own(tmp_path, WORKER)
    (tmp_path / "waits").touch()
    space = write_space(tmp_path, OWN)
    with going(start(tmp_path, "run", space, "--executor", "local", "--n-trials", 3)) as process:
        for attempt in range(1, deaths + 1):
            kill_worker(tmp_path, process.pid, attempt)
        if deaths < MAX_ATTEMPTS:
            until(lambda: any(row["attempts"] == deaths + 1 for row in trials(tmp_path)))
            (tmp_path / "waits").unlink()
        log = ended(process, tmp_path, 0)
    found = assert_nothing_lost(tmp_path, 3, 2, with_checkpoints=False)
    if deaths < MAX_ATTEMPTS:
        assert [row["attempts"] for row in found] == [1, 2, 1]
        return
    reason = f"the worker process was killed by signal 9, at the {MAX_ATTEMPTS}. attempt"
    assert [(row["state"], row["attempts"], row["reason"]) for row in found] == [
        ("COMPLETE", 1, None),
        ("FAIL", MAX_ATTEMPTS, reason),
        ("COMPLETE", 1, None),
        ("COMPLETE", 1, None),
    ]
    assert f"trial 1 failed: {reason}" in log


def test_a_driver_that_dies_in_the_same_trial_again_and_again_gives_it_up(tmp_path: Path) -> None:
    """A network that takes the whole process group with it, as the kernel's memory killer may: it fails in the end, and
    the study is completed with others.
    """
    write_own(tmp_path, "trial.report(1, accuracy=0.5)\ntrial.report(2, accuracy=0.5)\nreturn 0.5")
    space = write_space(tmp_path, OWN)
    script = driver_with(tmp_path, Fault(WRITER, "finish", only="args[1] == 1"))
    arguments = ("run", space, "--executor", "local", "--n-trials", 2)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        with going(start(tmp_path, *arguments, script=script)) as process:
            assert process.wait(120) == -signal.SIGKILL
        assert [(row["state"], row["attempts"]) for row in trials(tmp_path)] == [("RUNNING", attempt)]
    log = again(tmp_path, *arguments)
    found = assert_nothing_lost(tmp_path, 2, 2, with_checkpoints=False)
    assert [row["state"] for row in found] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert found[0]["reason"] == f"the search died in this trial {MAX_ATTEMPTS} times"
    assert "trial 0 failed: the search died in this trial" in log
