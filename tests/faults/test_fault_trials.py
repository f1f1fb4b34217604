"""Trials that fail for reasons of their own: no number, no memory, no end. Each fails with its reason, and the search
goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drills import (
    OWN,
    again,
    assert_nothing_lost,
    ended,
    going,
    lives,
    trained,
    trials,
    until,
    workers,
    write_own,
)
from processes import start, write_space

pytestmark = pytest.mark.faults

BROKEN = """\
trial.report(1, accuracy=0.5)
trial.report(2, accuracy=float("nan") if (HERE / "broken").exists() else 0.5)
return float("nan") if (HERE / "broken").exists() else 0.5
"""


def test_figures_that_are_no_numbers_use_up_the_failures_and_are_tried_again(tmp_path: Path) -> None:
    write_own(tmp_path, BROKEN)
    (tmp_path / "broken").touch()
    arguments = ("run", write_space(tmp_path, OWN), "--executor", "local", "--n-trials", 4)
    log = again(tmp_path, *arguments, "--max-failures", 2, code=4)
    assert (
        "3 trials failed in this run, more than --max-failures 2; see the reasons with `mnet-search show tiny`" in log
    )
    failed = trials(tmp_path)
    assert [row["state"] for row in failed] == ["FAIL"] * 3
    assert {row["reason"] for row in failed} == {
        "evaluate returned nan for the objective accuracy, which is not finite"
    }
    (tmp_path / "broken").unlink()
    again(tmp_path, *arguments, "--retry-failed")
    found = assert_nothing_lost(tmp_path, 4, 2, with_checkpoints=False)
    runs = [(row["arch_id"], row["seed"]) for row in found if row["state"] == "COMPLETE"]
    assert runs[:3] == [(row["arch_id"], row["seed"]) for row in failed]
    assert len(found) == 7
    again(tmp_path, *arguments, "--retry-failed")  # they have ended well by now
    assert len(assert_nothing_lost(tmp_path, 4, 2, with_checkpoints=False)) == 7


def test_a_training_loss_that_is_no_number_fails_the_trial(tmp_path: Path) -> None:
    """One network of the space is trained at a rate at which it diverges; the others are not."""
    text = trained().replace("depth: shallow", "depth: shallow\n  training.learning_rate: [0.05, 1.0e+18]")
    text = text.replace("width: [0.1, 0.12, 0.15, 0.2]", "width: 0.1").replace("resolution: [9, 12]", "resolution: 9")
    arguments = ("run", write_space(tmp_path, text), "--executor", "local", "--n-trials", 2)
    log = again(tmp_path, *arguments)
    assert "every network of the space within the budgets is known" in log
    found = assert_nothing_lost(tmp_path, 1, 2)
    assert sorted(row["state"] for row in found) == ["COMPLETE", "FAIL"]
    (reason,) = [row["reason"] for row in found if row["state"] == "FAIL"]
    assert reason.startswith("the training loss became")


HUNGRY = """\
(HERE / f"began{trial.number}").touch()
trial.report(1, accuracy=0.5)
if trial.number in (0, 1) and not (HERE / f"again{trial.number}").exists():
    while not (HERE / f"began{1 - trial.number}").exists():
        time.sleep(0.01)
    (HERE / f"again{trial.number}").touch()
    raise MemoryError("no room for two")
if trial.number == 2:
    raise MemoryError("no room at all")
trial.report(2, accuracy=0.5)
return 0.5
"""


def test_trials_without_memory_run_alone_and_fail_only_there(tmp_path: Path) -> None:
    """Two at once find no memory in the same moment: both run again, one after the other. A third finds none even when
    it is alone.
    """
    write_own(tmp_path, HUNGRY)
    text = OWN.replace("concurrency: 1", "concurrency: 2")
    arguments = ("run", write_space(tmp_path, text), "--executor", "local", "--n-trials", 3)
    log = again(tmp_path, *arguments)
    assert (
        "out of memory, so one trial runs at a time from now on (evaluate ran out of memory (MemoryError: no room"
        in log
    )
    found = assert_nothing_lost(tmp_path, 3, 2, with_checkpoints=False)
    assert [(row["state"], row["attempts"]) for row in found] == [
        ("COMPLETE", 1),
        ("COMPLETE", 1),
        ("FAIL", 1),
        ("COMPLETE", 1),
    ]
    assert found[2]["reason"] == "evaluate ran out of memory (MemoryError: no room at all)"
    assert f"the end of {found[2]['folder']}/trial.log" in log
    one, other = sorted((row for row in found[:2]), key=lambda row: row["finished"])
    logs = [(Path(row["folder"]) / "trial.log").read_text() for row in (one, other)]
    assert [log.count("MemoryError: no room for two") > 0 for log in logs] == [True, True]


# An optimiser of the user's own, which runs in the worker: there it bounds the process, then takes more than that.
GREEDY = """\
import multiprocessing, resource
import torch
from pathlib import Path

from mnet_search.search.optimisers import OPTIMISERS, Rule

HERE = Path(__file__).parent


def move(*arguments):
    if multiprocessing.parent_process() is not None and (HERE / "hungry").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
        try:
            torch.ones(2**30)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    OPTIMISERS["sgd"].move(*arguments)


sgd = Rule(OPTIMISERS["sgd"].slots, move)
"""


def test_torch_without_memory_fails_the_trial_with_the_reason(tmp_path: Path) -> None:
    """The real thing: the kernel refuses torch's allocation within training."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    (tmp_path / "hungry").touch()
    text = trained().replace("epochs: 2", "epochs: 2, optimiser: 'greedy:sgd'")
    arguments = ("run", write_space(tmp_path, text), "--executor", "local", "--n-trials", 1)
    again(tmp_path, *arguments, "--max-failures", 0, code=4)
    (row,) = trials(tmp_path)
    assert row["state"] == "FAIL"
    assert row["reason"].startswith("out of memory; lower training.batch_size or run fewer trials at once (")
    assert "DefaultCPUAllocator: can't allocate memory" in row["reason"]
    (tmp_path / "hungry").unlink()
    again(tmp_path, *arguments, "--retry-failed")
    assert len(assert_nothing_lost(tmp_path, 1, 2)) == 2


def test_a_trial_that_hangs_fails_and_its_log_says_where(tmp_path: Path) -> None:
    write_own(tmp_path, "trial.report(1, accuracy=0.5)\nhangs(trial)\ntrial.report(2, accuracy=0.5)\nreturn 0.5")
    with (tmp_path / "own.py").open("a") as file:
        file.write(
            "\n\ndef hangs(trial):\n    while trial.number == 1:\n"
            "        (HERE / 'pid').write_text(str(os.getpid()))\n        time.sleep(1)\n"
        )
    text = OWN.replace("seed: 0}", "seed: 0, trial_timeout_s: 5}")
    with going(start(tmp_path, "run", write_space(tmp_path, text), "--executor", "local", "--n-trials", 2)) as process:
        until(lambda: (tmp_path / "pid").exists())
        pid = int((tmp_path / "pid").read_text())
        assert pid in workers(process.pid)
        ended(process, tmp_path, 0)
    found = assert_nothing_lost(tmp_path, 2, 2, with_checkpoints=False)
    assert [row["state"] for row in found] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert found[1]["reason"].startswith("the trial was not done after search.trial_timeout_s = 5 s")
    log = (Path(found[1]["folder"]) / "trial.log").read_text()
    assert 'own.py", line' in log
    assert "in hangs" in log
    assert not lives(pid)


@contextlib.contextmanager
def little_memory(megabytes: int) -> Iterator[Path]:
    """A group of processes that has so much memory together; its file `cgroup.procs` takes who belongs to it."""
    one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    name = f"mnet-search-{os.getpid()}"
    group, limit = (one / name, "memory.limit_in_bytes") if one.is_dir() else (two / name, "memory.max")
    try:
        group.mkdir()
        (group / limit).write_text(str(megabytes * 2**20))
    except OSError as error:
        pytest.skip(f"needs the right to make a group of processes with little memory: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def test_the_systems_own_end_of_a_worker_for_want_of_memory_is_told_from_other_kills(tmp_path: Path) -> None:
    body = "x = bytearray(6_000_000_000) if (HERE / 'large').exists() and trial.number == 0 else b''\n"
    write_own(tmp_path, body + "time.sleep(0.5)\nreturn 0.5")
    (tmp_path / "large").touch()
    space = OWN.replace("concurrency: 1", "concurrency: 2").replace("sampler: random", "sampler: grid")
    with little_memory(4500) as members:
        process = start(tmp_path, "run", write_space(tmp_path, space), "--executor", "local", "--n-trials", 3)
        members.write_text(str(process.pid))  # before it has begun anything of its own
        with going(process):
            log = ended(process, tmp_path, 0)
    why = "the worker process was killed by signal 9, for want of memory"
    assert f"out of memory, so one trial runs at a time from now on ({why})" in log
    failed = trials(tmp_path, "FAIL")
    assert [(row["number"], row["reason"], row["attempts"]) for row in failed] == [(0, f"{why}, at the 3. attempt", 3)]
    assert_nothing_lost(tmp_path, 3, 0, with_checkpoints=False)
