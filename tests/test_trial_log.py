"""The log of a trial: what lands there, also of a process that dies, and that it never makes a trial fail."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnet_search.models.families import create
from mnet_search.search.data import DataOptions
from mnet_search.search.local_executor import _serve
from mnet_search.search.messages import messages
from mnet_search.search.own_evaluation import OwnTrial
from mnet_search.search.training import TrainingOptions
from mnet_search.search.trial import Job
from mnet_search.search.trial_log import LOG, MAX_BYTES, TAIL_BYTES, JsonLines, capture, last_lines

ARCH = create("mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        number=3,
        family=ARCH.family,
        options=dict(ARCH.options),
        arch_id=ARCH.id,
        seed=5,
        data=DataOptions(train_limit=150, validation=0.1),
        training=TrainingOptions(epochs=2, batch_size=50),
        folder=str(tmp_path / "trial"),
        device="cpu",
        latency_repeats=3,
        measured=("accuracy",),
    )


def log_of(job: Job) -> str:
    return (Path(job.folder) / LOG).read_text()


def good(trial: OwnTrial) -> dict[str, float]:
    logging.getLogger("mine").info("network %s", trial.arch.id)
    return {"accuracy": 0.5}


# ---------------------------------------------------------------- what lands there


def test_a_log_has_the_records_of_the_trial_between_its_begin_and_its_end(job: Job) -> None:
    *_, (kind, _) = messages(job, good)
    assert kind == "outcome"
    first, second, third = log_of(job).splitlines()
    who = rf"network {ARCH.id}, seed 5, process {os.getpid()} on \S+, this attempt at \S+"
    assert re.fullmatch(rf"{TIME} INFO mnet_search\.search\.trial_log: trial 3 begins: {who}", first)
    assert re.fullmatch(rf"{TIME} INFO mine: network {ARCH.id}", second)
    assert third.endswith("trial 3 is finished: accuracy 0.5")


def test_a_trial_that_trains_has_a_log_and_goes_on_in_it(job: Job) -> None:
    running = messages(job)
    next(running)
    running.close()
    assert log_of(job).splitlines()[-1].endswith("trial 3 was ended by whoever runs it")
    list(messages(job))
    assert log_of(job).count("trial 3 begins") == 2
    assert "is finished: accuracy" in log_of(job).splitlines()[-1]


def test_what_made_a_trial_fail_is_there_with_its_whole_traceback(job: Job) -> None:
    def broken(trial: OwnTrial) -> dict[str, float]:
        return {"accuracy": {}["gone"]}

    assert list(messages(job, broken)) == [("failure", "evaluate raised KeyError: 'gone'")]
    text = log_of(job)
    assert "ERROR mnet_search.search.trial_log: trial 3 has failed: evaluate raised KeyError: 'gone'\n" in text
    assert 'in broken\n    return {"accuracy": {}["gone"]}' in text
    assert "The above exception was the direct cause of the following exception:" in text
    assert last_lines(job.folder, 1) == ["mnet_search.search.training.TrialFailed: evaluate raised KeyError: 'gone'"]


def test_what_ends_a_search_is_there_too(job: Job) -> None:
    running = messages(job)
    next(running)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)
    assert "trial 3 was ended by KeyboardInterrupt\nTraceback" in log_of(job)


def test_of_a_trial_that_hangs_it_says_where(job: Job) -> None:
    over = threading.Event()

    def hangs_here(trial: OwnTrial) -> dict[str, float]:
        over.wait(60)
        return {}

    ((kind, _),) = messages(replace(job, timeout_s=0.2), hangs_here)
    over.set()
    assert kind == "timeout"
    assert re.search(r'File ".*test_trial_log.py", line \d+ in hangs_here', log_of(job))


def test_a_large_log_is_put_aside_when_a_trial_begins(job: Job) -> None:
    folder = Path(job.folder)
    folder.mkdir()
    (folder / LOG).write_bytes(b"x" * MAX_BYTES)
    list(messages(job, good))
    assert not (folder / f"{LOG}.1").exists()
    list(messages(job, good))
    assert (folder / f"{LOG}.1").stat().st_size > MAX_BYTES
    assert len(log_of(job).splitlines()) == 3


# ---------------------------------------------------------------- other loggers are left as they are


def test_the_handlers_of_the_user_get_what_they_got_before(tmp_path: Path) -> None:
    root, seen = logging.getLogger(), []

    class Mine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    mine, loud = Mine(), logging.getLogger("loud")
    level, before = root.level, list(root.handlers)
    root.addHandler(mine)
    root.setLevel(logging.WARNING)
    loud.setLevel(logging.DEBUG)
    try:
        with capture(tmp_path, descriptors=False):
            for logger in (logging.getLogger("quiet.one"), loud):
                logger.debug("%s debug", logger.name)
                logger.info("%s info", logger.name)
                logger.warning("%s warning", logger.name)
        logging.getLogger("quiet.one").info("after")
        assert (root.level, root.handlers, mine.filters) == (logging.WARNING, [*before, mine], [])
    finally:
        root.removeHandler(mine)
        root.setLevel(level)
        loud.setLevel(logging.NOTSET)
    assert seen == ["quiet.one warning", "loud debug", "loud info", "loud warning"]
    messages_there = [line.split(": ")[1] for line in (tmp_path / LOG).read_text().splitlines()]
    assert messages_there == ["quiet.one info", "quiet.one warning", "loud info", "loud warning"]


PLAIN = """
import logging, sys
from mnet_search.search.trial_log import capture
with capture(sys.argv[1], descriptors=False):
    print("printed")
    logging.getLogger("a").info("info")
    logging.getLogger("a").warning("warning")
    logging.getLogger("a").warning("%d", "not a number")
print(logging.getLogger().handlers, logging.getLogger().level)
"""


def test_in_a_users_own_process_prints_and_warnings_are_seen_as_ever(tmp_path: Path) -> None:
    done = run(PLAIN, tmp_path)
    assert done.stdout == "printed\n[] 30\n"
    assert done.stderr.splitlines()[0] == "warning"
    assert "printed" not in (tmp_path / LOG).read_text()


# ---------------------------------------------------------------- processes of their own


def run(program: str, folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


EVERYTHING = """
import ctypes, logging, os, subprocess, sys, faulthandler
from mnet_search.search.trial_log import capture
print("before")
with capture(sys.argv[1], descriptors=True):
    print("from Python")
    print("on standard error", file=sys.stderr)
    os.write(1, b"by descriptor\\n")
    ctypes.CDLL(None).printf(b"from C\\n")
    subprocess.run(["echo", "from a child"])
    logging.getLogger("a").warning("a record")
    print("enabled", faulthandler.is_enabled())
print("after", faulthandler.is_enabled())
print("after", file=sys.stderr)
"""


def test_all_that_a_process_of_its_own_writes_is_there(tmp_path: Path) -> None:
    done = run(EVERYTHING, tmp_path)
    assert (done.stdout, done.stderr) == ("before\nafter False\n", "after\n")
    lines = (tmp_path / LOG).read_text().splitlines()
    wanted = {"from Python", "on standard error", "by descriptor", "from C", "from a child", "enabled True"}
    assert wanted < set(lines)
    assert len(lines) == 7  # the record once


DEATHS = {
    "killed": ("os.kill(os.getpid(), 9)", -signal.SIGKILL, "last words"),
    "crashed": ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV, "Fatal Python error: Segmentation fault"),
    "aborted": ("os.abort()", -signal.SIGABRT, "Fatal Python error: Aborted"),
}


@pytest.mark.parametrize(("act", "code", "text"), DEATHS.values(), ids=DEATHS)
def test_a_process_that_dies_leaves_its_last_words(tmp_path: Path, act: str, code: int, text: str) -> None:
    program = f"""
import os, sys
from mnet_search.search.trial_log import capture
with capture(sys.argv[1], descriptors=True):
    print("last words", end="")
    {act}
"""
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert "last words" in (tmp_path / LOG).read_text()
    assert text in (tmp_path / LOG).read_text()


THREADS = """
import sys, threading
from mnet_search.search.trial_log import capture

def steps(name):
    with capture(sys.argv[1] + "/" + name, descriptors=True):
        print(name, 1)
        yield
        print(name, 2)
        yield

def elsewhere(act):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()

one, other = steps("one"), steps("other")
elsewhere(lambda: next(one))
elsewhere(lambda: next(other))   # while the first has the descriptors
elsewhere(lambda: next(one))
elsewhere(one.close)
elsewhere(lambda: next(other))
elsewhere(other.close)
print("after")
"""


def test_it_may_go_on_and_end_in_other_threads(tmp_path: Path) -> None:
    done = run(THREADS, tmp_path)
    assert (done.stdout, done.stderr) == ("other 2\nafter\n", "")
    assert (tmp_path / "one" / LOG).read_text() == "one 1\nother 1\none 2\n"


OWN = """
import os, sys
def talks(trial):
    print("said by the function")
    os.write(2, b"said below it\\n")
    if trial.seed == 6:
        os.kill(os.getpid(), 9)
    return {"accuracy": 0.5}
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A worker of the local executor, and the pipe to it."""
    (tmp_path / "talking.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)  # a spawned process has the same path
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,))
    process.start()
    theirs.close()
    yield ours
    process.kill()
    process.join()


def test_a_worker_keeps_the_log_of_each_of_its_trials(job: Job, worker: Any, tmp_path: Path) -> None:
    jobs = [replace(job, number=n, folder=str(tmp_path / f"t{n}"), evaluate="talking:talks") for n in (0, 1)]
    dies = replace(jobs[0], number=2, seed=6, folder=str(tmp_path / "t2"))
    for one in jobs:
        worker.send(one.to_dict())
        assert worker.recv()[0] == "outcome"
        lines = log_of(one).splitlines()
        assert lines[1:3] == ["said by the function", "said below it"]
        assert f"trial {one.number} begins" in lines[0]
        assert lines[3].endswith(f"trial {one.number} is finished: accuracy 0.5")
    worker.send(dies.to_dict())
    with pytest.raises((EOFError, ConnectionResetError)):
        worker.recv()
    assert last_lines(dies.folder, 2) == ["said by the function", "said below it"]


# ---------------------------------------------------------------- where there is no room for it


def test_where_no_log_can_be_made_the_trial_goes_well(tmp_path: Path, job: Job) -> None:
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "below")
    ((kind, _),) = messages(replace(job, folder=folder), good)
    assert kind == "outcome"
    assert last_lines(folder) == []


FULL = """
import logging, os, sys
from mnet_search.search.trial_log import capture, last_lines
with capture(sys.argv[1], descriptors=True):
    print("begin")
    for _ in range(40):
        print("x" * 50_000)
        print("y" * 50_000, file=sys.stderr)
        logging.getLogger("a").warning("z" * 50_000)
print(last_lines(sys.argv[1], 1) != [])
"""


def test_a_full_disk_hinders_no_print(tmp_path: Path) -> None:
    """On a real file system of 1 MB, in a mount namespace of its own."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system (unshare and mount tmpfs)")
    done = run(FULL, tmp_path, *mount)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# ---------------------------------------------------------------- reading it


def test_the_last_lines_are_those_that_are_not_empty(tmp_path: Path) -> None:
    assert last_lines(tmp_path) == []
    (tmp_path / LOG).write_bytes(b"one\n\n  two \r\n \nthr\xffee\n\n")
    assert last_lines(tmp_path, 2) == ["  two", "thr\ufffdee"]
    assert last_lines(str(tmp_path)) == ["one", "  two", "thr\ufffdee"]
    assert last_lines(tmp_path, 0) == []


def test_no_more_is_read_than_the_end(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("a" * (4 * TAIL_BYTES) + "\nlast\n")
    first, last = last_lines(tmp_path)
    assert (len(first), last) == (TAIL_BYTES - len("\nlast\n"), "last")


# ---------------------------------------------------------------- for machines


def record_of(**more: Any) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "a.b", "levelname": "INFO", "msg": "two\n%s", "args": ("lines",), **more})
    record.created = 1.5
    return record


def test_a_record_is_one_json_object_on_a_line(tmp_path: Path) -> None:
    fields = {"trial": 3, "path": tmp_path, "loss": float("nan"), "level": "mine", ("odd", 1): {"deep": [1, {2}]}}
    line = JsonLines().format(record_of(fields=fields))
    assert "\n" not in line
    values = json.loads(line)
    assert re.fullmatch(TIME, values.pop("time"))
    assert values == {
        "level": "INFO",
        "logger": "a.b",
        "message": "two\nlines",
        "trial": 3,
        "path": str(tmp_path),
        "loss": "nan",
        "('odd', 1)": {"deep": [1, "{2}"]},
    }


def test_an_error_is_part_of_its_record() -> None:
    try:
        raise ValueError("cause")
    except ValueError:
        line = JsonLines().format(record_of(exc_info=sys.exc_info()))
    values = json.loads(line)
    assert list(values) == ["time", "level", "logger", "message", "exception"]
    assert values["exception"].startswith("Traceback") and values["exception"].endswith("ValueError: cause")
    assert "exception" not in json.loads(JsonLines().format(record_of(exc_info=(None, None, None), fields="none")))
