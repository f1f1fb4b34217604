"""The disk and the database: full, locked by others, cut off in the middle of a write."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drills import (
    OWN,
    WRITER,
    Fault,
    again,
    assert_nothing_lost,
    count,
    driver_with,
    ended,
    finished,
    going,
    trained,
    trials,
    until,
    write_own,
)
from processes import start, write_space

pytestmark = pytest.mark.faults

QUICK = "trial.report(1, accuracy=0.5)\ntime.sleep(0.1)\ntrial.report(2, accuracy=0.5)\nreturn 0.5"


# ---------------------------------------------------------------- full disks


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", "-l", folder], check=True)


def enlarge(disk: Path) -> None:
    """Somebody has made room."""
    subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)


def test_a_disk_that_is_full_at_a_checkpoint_fails_trials_and_they_end_well_with_room(tmp_path: Path) -> None:
    space = write_space(tmp_path, trained())
    with small_disk(tmp_path / "disk", 600) as disk:
        arguments = ("run", space, "--executor", "local", "--n-trials", 3, "--runs-dir", disk / "runs")
        log = again(tmp_path, *arguments, "--max-failures", 1, code=4)
        assert "more than --max-failures 1" in log
        before, failed = finished(tmp_path), trials(tmp_path, "FAIL")
        assert len(failed) == 2
        assert any("No space left on device" in row["reason"] for row in failed)
        enlarge(disk)
        again(tmp_path, *arguments, "--retry-failed")
        found = assert_nothing_lost(tmp_path, 3, 2, before=before)
        runs = {(row["arch_id"], row["seed"]) for row in found if row["state"] == "COMPLETE"}
        assert {(row["arch_id"], row["seed"]) for row in failed} <= runs


def test_a_disk_that_is_full_at_a_commit_ends_the_run_and_it_goes_on_with_room(tmp_path: Path) -> None:
    write_own(tmp_path, "for epoch in range(1, 41):\n    trial.report(epoch, accuracy=0.5)\nreturn 0.5")
    space = write_space(tmp_path, OWN)
    with small_disk(tmp_path / "disk", 700) as disk:
        url = f"sqlite:///{disk / 'study.db'}"
        arguments = ("run", space, "--executor", "local", "--n-trials", 60, "--storage", url)
        log = again(tmp_path, *arguments, code=3)
        assert "the disk is full" in log
        assert "free some space and run the same command again" in log
        enlarge(disk)
        before = finished(url)
        again(tmp_path, *arguments)
        assert_nothing_lost(url, 60, 40, before=before, with_checkpoints=False)


# ---------------------------------------------------------------- locks of others


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program writes in the database, and does not end."""
    other = sqlite3.connect(database, isolation_level=None, timeout=30)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


def test_a_database_that_others_lock(tmp_path: Path) -> None:
    """For less than the timeout: the search waits. For longer: it ends with a sentence, and goes on later."""
    write_own(tmp_path, QUICK)
    space = write_space(tmp_path, OWN)
    url = "sqlite:///study.db?timeout=4"
    arguments = ("run", space, "--executor", "local", "--n-trials", 30, "--storage", url)
    with going(start(tmp_path, *arguments)) as process:
        until(lambda: count(tmp_path) >= 2)
        with locked(tmp_path / "study.db"):
            time.sleep(1.5)
            assert process.poll() is None
        waited = count(tmp_path)
        until(lambda: count(tmp_path) > waited)
        with locked(tmp_path / "study.db"):
            before = finished(tmp_path)
            log = ended(process, tmp_path, 3, timeout=60)
    assert "another process has kept the database locked for 4 s (database is locked)" in log
    assert "end it and run the same command again" in log
    again(tmp_path, *arguments)
    assert_nothing_lost(tmp_path, 30, 2, before=before, with_checkpoints=False)


# ---------------------------------------------------------------- power cuts


def copied(source: Path, target: Path, rng: random.Random) -> bool:
    """Copy a database in use as a disk may have it after a power cut; False where the log began anew meanwhile.

    The main file goes first. What SQLite may have folded into it by then, which the log's index tells, is in the log
    for sure, for it was synced before; of the rest a random part is there.
    """
    log = source.with_name(f"{source.name}-wal")
    salt = log.read_bytes()[:32]
    shutil.copy(source, target)
    index = source.with_name(f"{source.name}-shm").read_bytes()
    content = log.read_bytes()
    if content[:32] != salt or len(salt) < 32:
        return False
    page = int.from_bytes(content[8:12], "big")
    folded = 32 + int.from_bytes(index[128:132], sys.byteorder) * (page + 24)  # nBackfillAttempted
    length = rng.randrange(min(folded, len(content)), len(content) + 1)
    target.with_name(f"{target.name}-wal").write_bytes(content[:length])
    return True


def test_what_a_power_cut_leaves_opens_whole_and_goes_on(tmp_path: Path) -> None:
    """The database and its write-ahead log as they are at many moments, the log cut off at random lengths: as a disk
    may have them that lost power.

    Our databases have synchronous=NORMAL: the log is synced before it is folded into the main file, and the main file
    before the log begins anew, but not at each commit. So a cut may take the last commits (each frame has a checksum
    that covers those before it, so only whole commits from the beginning of the log are read), never the order in
    which they were made and never the file. What was lost runs again; synchronous=FULL would cost one fsync a commit,
    and win the last epoch.
    """
    rng, copies = random.Random(7), []
    write_own(tmp_path, QUICK.replace("0.1", "0.01"))
    arguments = ("run", write_space(tmp_path, OWN), "--executor", "local", "--n-trials", 150)
    with going(start(tmp_path, *arguments)) as process:
        until(lambda: count(tmp_path) >= 2)
        for number in range(60):
            folder = tmp_path / f"copy{number}"
            folder.mkdir()
            if copied(tmp_path / "study.db", folder / "study.db", rng):
                copies.append(folder)
            time.sleep(rng.uniform(0.0, 0.08))
        process.kill()
        process.wait()
    assert len(copies) >= 20
    whole = {row["number"]: row for row in trials(tmp_path)}
    lengths = []
    for folder in copies:
        with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'mnet_trials'").fetchall():
                continue  # cut within the making of the tables
            found = connection.execute("SELECT number, arch_id, seed FROM mnet_trials ORDER BY number").fetchall()
        assert found == [(n, whole[n]["arch_id"], whole[n]["seed"]) for n in range(len(found))]  # a prefix
        lengths.append((len(found), folder))
    assert len({length for length, _ in lengths}) > 5
    _, folder = max(row for row in lengths if row[0] < len(whole))
    for name in ("own.py", "tiny.yaml"):
        shutil.copy(tmp_path / name, folder / name)
    before = finished(folder)
    again(folder, *arguments[:-1], 150)
    assert_nothing_lost(folder, 150, 2, before=before, with_checkpoints=False)


def test_kill_9_while_sqlite_writes(tmp_path: Path) -> None:
    """From inside: at a commit of the driver, of which the log may have a part."""
    write_own(tmp_path, QUICK.replace("0.1", "0.0"))
    arguments = ("run", write_space(tmp_path, OWN), "--executor", "local", "--n-trials", 12)
    act = "__import__('threading').Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()"
    script = driver_with(tmp_path, Fault(WRITER, "finish", n=5, act=act))
    with going(start(tmp_path, *arguments, script=script)) as process:
        assert process.wait(120) == -signal.SIGKILL
    before = finished(tmp_path)
    assert 4 <= len(before) <= 6
    again(tmp_path, *arguments)
    assert_nothing_lost(tmp_path, 12, 2, before=before, with_checkpoints=False)


# ---------------------------------------------------------------- damaged checkpoints


def flip(content: bytes) -> bytes:
    """Some bytes in the middle are others."""
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0x55 for byte in content[middle : middle + 64]) + content[middle + 64 :]


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


IN_THE_MIDDLE = Fault(WRITER, "add_epoch", n=44)  # of 40 epochs a trial: the second has at least three checkpoints
AT_THE_END = Fault(WRITER, "finish", n=2)  # it is trained to its end; what is left is to say so


@pytest.mark.parametrize(
    ("fault", "epochs", "damage", "damaged"),
    [
        (IN_THE_MIDDLE, 40, flip, ["last.pt"]),
        (IN_THE_MIDDLE, 40, None, ["last.pt"]),
        (IN_THE_MIDDLE, 40, halve, ["last.pt", "previous.pt", "best.pt"]),
        (AT_THE_END, 1, halve, ["last.pt"]),  # the best one is then complete too
    ],
    ids=["flipped", "without its record", "all of them truncated", "truncated at the end"],
)
def test_a_damaged_checkpoint_is_refused_and_its_trial_completes(
    tmp_path: Path, fault: Fault, epochs: int, damage: Callable[[bytes], bytes] | None, damaged: list[str]
) -> None:
    """It goes on from the checkpoint before, or from the best one; where all are damaged, from the beginning."""
    arguments = ("run", write_space(tmp_path, trained(epochs)), "--executor", "local", "--n-trials", 2)
    with going(start(tmp_path, *arguments, script=driver_with(tmp_path, fault))) as process:
        assert process.wait(120) == -signal.SIGKILL
    before = finished(tmp_path)
    (row,) = trials(tmp_path, "RUNNING")
    folder = Path(row["folder"])
    for name in damaged:
        path = folder / name
        if damage is None:
            path.with_name(f"{name}.json").unlink()
            continue
        content = path.read_bytes()
        path.unlink()  # never into the file: two names may be one
        path.write_bytes(damage(content))
    again(tmp_path, *arguments)
    found = assert_nothing_lost(tmp_path, 2, epochs, before=before)
    assert [(r["state"], r["attempts"]) for r in found] == [("COMPLETE", 1), ("COMPLETE", 2)]
    log = (folder / "trial.log").read_text()
    assert ("training starts anew" if len(damaged) > 1 else "the one before it is tried") in log
    assert (folder / "last.pt.refused").exists()
