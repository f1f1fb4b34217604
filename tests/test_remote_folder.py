"""Trials whose folder is a URL: what is there after each epoch, going on elsewhere after a kill, and failing."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mnet_search.models import remote_files
from mnet_search.models.checkpoints import load_checkpoint
from mnet_search.models.families import create
from mnet_search.models.remote_files import (
    RemoteError,
    RemoteFolder,
    checkpoint_file,
    scratch_folder,
)
from mnet_search.search.data import DataOptions
from mnet_search.search.messages import messages
from mnet_search.search.remote_folder import check_remote
from mnet_search.search.training import Epoch, TrainingOptions, TrialFailed
from mnet_search.search.trial import Job, Outcome, run_trial
from mnet_search.search.trial_log import last_lines

ARCH = create("mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1)
KEPT = {"last.pt", "last.pt.json", "best.pt", "best.pt.json", "speed.json"}


def job_in(folder: str) -> Job:
    return Job(
        number=0,
        family=ARCH.family,
        options=dict(ARCH.options),
        arch_id=ARCH.id,
        seed=0,
        data=DataOptions(train_limit=150, validation=0.1),
        training=TrainingOptions(epochs=3, batch_size=50),
        folder=folder,
        device="cpu",
        latency_repeats=3,
    )


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Where scratch folders go, "one" at first; called with another name, as on another machine."""

    def move(name: str) -> None:
        folder = tmp_path / "machines" / name
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setenv("TMPDIR", str(folder))

    move("one")
    monkeypatch.setattr(remote_files, "WAITS_S", (0.0, 0.0, 0.0))
    return move


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty folder in this process's memory."""
    MemoryFileSystem.store.clear()
    yield "memory://runs/trial"
    MemoryFileSystem.store.clear()


def finish(job: Job) -> tuple[list[Epoch], Outcome]:
    *rows, outcome = run_trial(job)
    assert isinstance(outcome, Outcome)
    return rows, outcome  # type: ignore[return-value]  # all before the outcome are epochs


def curve(rows: list[Epoch]) -> list[Epoch]:
    """The rows without what a clock says."""
    return [replace(row, seconds=0, images_per_second=0) for row in rows]


@functools.cache
def unstopped() -> list[Epoch]:
    """The curve of the run that was never stopped, in a folder of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        return curve(finish(job_in(folder))[0])


def scratch_files(url: str) -> set[str]:
    folder = scratch_folder(url)
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# ---------------------------------------------------------------- a trial


@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_trial_at_a_url_is_that_of_a_local_folder(tmp_path: Path, memory: str, where: str) -> None:
    url = memory if where == "memory" else f"file://{tmp_path}/shared/trial"
    rows, outcome = finish(job_in(url))
    assert curve(rows) == unstopped()
    assert outcome.checkpoint == f"{url}/last.pt"
    assert RemoteFolder(url).names() == KEPT
    assert not scratch_folder(url).exists()
    with checkpoint_file(outcome.checkpoint, outcome.checkpoint_sha256) as path:
        assert len(load_checkpoint(path).rows) == 3
        assert hashlib.sha256(path.read_bytes()).hexdigest() == outcome.checkpoint_sha256
    assert not path.exists()
    assert finish(job_in(url))[0] == rows  # clocks too: nothing was trained again
    assert RemoteFolder(url).names() == KEPT


def test_each_epoch_is_at_the_url_before_anybody_hears_of_it(memory: str) -> None:
    with_previous = KEPT | {"previous.pt", "previous.pt.json"}
    for event in run_trial(job_in(memory)):
        epoch = event.epoch if isinstance(event, Epoch) else 3
        with checkpoint_file(f"{memory}/last.pt") as path:
            assert len(load_checkpoint(path).rows) == epoch
        assert RemoteFolder(memory).names() == (with_previous if epoch == 2 else KEPT)


def test_only_new_bytes_are_sent(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    write = RemoteFolder.write
    monkeypatch.setattr(
        RemoteFolder, "write", lambda self, name, content: (sent.append(name), write(self, name, content))
    )
    running = run_trial(job_in(memory))
    next(running)
    assert sent == ["speed.json", "last.pt.json", "last.pt"]  # the best one is the last one: a copy
    sent.clear()
    next(running)
    assert sent == ["last.pt.json", "last.pt"]  # the one before it was the last one
    running.close()
    sent.clear()
    next(run_trial(job_in(memory)))
    assert sent == []


def test_a_worker_leaves_the_log_there_and_nothing_here(tmp_path: Path) -> None:
    from mnet_search.search.local_executor import _serve

    url = f"file://{tmp_path}/shared/trial"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,))
    process.start()
    try:
        ours.send(job_in(url).to_dict())
        kinds = [ours.recv()[0] for _ in range(4)]
        assert kinds == ["epoch", "epoch", "epoch", "outcome"]
        assert RemoteFolder(url).names() == KEPT | {"trial.log"}
        assert not scratch_folder(url).exists()
    finally:
        process.kill()
        process.join()
    assert "trial 0 is finished" in last_lines(url)[-1]


# ---------------------------------------------------------------- logs


def test_a_log_goes_on_on_another_machine(memory: str, machine: Callable[[str], None]) -> None:
    running = messages(job_in(memory))
    next(running)
    running.close()
    assert last_lines(memory)[-1].endswith("trial 0 was ended by whoever runs it")
    assert not scratch_folder(memory).exists()
    machine("two")
    list(messages(job_in(memory)))
    assert RemoteFolder(memory).read("trial.log").count(b"trial 0 begins") == 2


def test_a_failure_and_a_function_of_ones_own_are_logged_there_too(memory: str) -> None:
    ((kind, _),) = messages(job_in(memory), lambda trial: {}["gone"])
    assert kind == "failure"
    assert last_lines(memory, 1)[0].endswith("evaluate raised KeyError: 'gone'")
    assert not scratch_folder(memory).exists()


def test_of_a_worker_that_was_killed_the_log_of_this_machine_is_read(memory: str) -> None:
    assert last_lines(memory) == []
    RemoteFolder(memory).write("trial.log", b"x" * 20_000 + b"\nthere\n")
    assert last_lines(memory, 1) == ["there"]
    scratch_folder(memory).mkdir()
    path = scratch_folder(memory) / "trial.log"
    path.write_text("here\n")
    assert last_lines(memory, 1) == ["here"]
    os.utime(path, (1, 1))
    assert last_lines(memory, 1) == ["there"]


# ---------------------------------------------------------------- going on elsewhere


def die_while_sending(job: dict[str, Any], n: int) -> None:
    """In a process of its own, which imports this file and nothing heavy: run a trial, and kill -9 this process while
    it sends its `n`th file: the bytes are there, under the temporary name.
    """
    replace_file, left = RemoteFolder._replace, n

    def replacing(self: RemoteFolder, name: str, put: Callable[[str], Any]) -> None:
        nonlocal left
        left -= 1

        def put_and_die(path: str) -> None:
            put(path)
            os.kill(os.getpid(), signal.SIGKILL)

        replace_file(self, name, put if left else put_and_die)

    RemoteFolder._replace = replacing  # type: ignore[method-assign]
    for event in run_trial(Job.from_dict(job)):
        print("epoch", getattr(event, "epoch", None), flush=True)


def kill_while_sending(job: Job, n: int) -> None:
    context = multiprocessing.get_context("forkserver")  # a server that has imported torch once
    context.set_forkserver_preload(["mnet_search.search.trial"])
    process = context.Process(target=in_folder, args=(tempfile.gettempdir(), job.to_dict(), n))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def in_folder(folder: str, job: dict[str, Any], n: int) -> None:
    tempfile.tempdir = folder
    die_while_sending(job, n)


# Files in the order in which they go: speed.json, last.pt.json, last.pt, best.pt.json, best.pt (the first epoch);
# previous.pt.json, previous.pt, last.pt.json, last.pt, and the best one again (the second).
@pytest.mark.parametrize(("n", "epochs"), [(1, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 2)])
def test_a_trial_that_was_killed_while_it_sent_goes_on_elsewhere_as_if_nothing_had_been(
    tmp_path: Path, machine: Callable[[str], None], n: int, epochs: int
) -> None:
    url = f"file://{tmp_path}/shared/trial"
    kill_while_sending(job_in(url), n)
    assert [name for name in RemoteFolder(url).names() if name.endswith(".tmp")]
    before: list[Any] = []
    if epochs:
        with checkpoint_file(f"{url}/last.pt") as path:
            before = load_checkpoint(path).rows
    assert len(before) == epochs
    machine("two")
    rows, outcome = finish(job_in(url))
    assert [asdict(row) for row in rows[:epochs]] == before  # clocks too: these epochs were not trained again
    assert curve(rows) == unstopped()
    assert RemoteFolder(url).names() == KEPT
    with checkpoint_file(outcome.checkpoint, outcome.checkpoint_sha256) as path:
        assert len(load_checkpoint(path).rows) == 3


def test_on_the_same_machine_what_was_not_sent_yet_is_not_lost(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared/trial"
    kill_while_sending(job_in(url), 9)  # the second epoch's content
    here = load_checkpoint(scratch_folder(url) / "last.pt").rows
    assert len(here) == 2
    rows, _ = finish(job_in(url))
    assert [asdict(row) for row in rows[:2]] == here
    assert curve(rows) == unstopped()
    assert RemoteFolder(url).names() == KEPT


def test_what_is_newer_at_the_url_replaces_what_an_old_attempt_left_here(
    tmp_path: Path, machine: Callable[[str], None]
) -> None:
    url = f"file://{tmp_path}/shared/trial"
    kill_while_sending(job_in(url), 7)  # two epochs here, one there
    machine("two")
    running = run_trial(job_in(url))
    newer = [next(running), next(running)]  # the second epoch under another clock
    running.close()
    machine("one")
    assert {"last.pt", "previous.pt"} < scratch_files(url)
    rows, _ = finish(job_in(url))
    assert rows[:2] == newer
    assert curve(rows) == unstopped()


def test_a_damaged_checkpoint_at_the_url_is_refused_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{tmp_path}/shared/trial"
    running = run_trial(job_in(url))
    first = [next(running), next(running)]
    running.close()
    (tmp_path / "shared" / "trial" / "last.pt").write_bytes(b"damaged")
    rows, _ = finish(job_in(url))
    assert "last.pt is damaged" in caplog.text and "the one before it is tried" in caplog.text
    assert rows[:1] == first[:1]
    assert curve(rows) == unstopped()


# ---------------------------------------------------------------- failures


def test_a_url_that_cannot_be_written_fails_the_trial_and_keeps_what_was_trained(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    url = f"file://{tmp_path}/shared/trial"
    running = run_trial(job_in(url))
    next(running)
    (tmp_path / "shared" / "trial").rename(tmp_path / "away")
    (tmp_path / "shared").rmdir()
    (tmp_path / "shared").write_text("a file in its place")
    with pytest.raises(TrialFailed) as caught:
        next(running)
    assert str(caught.value).startswith(f"{url}/previous.pt.json cannot be written, after 4 tries (")
    assert str(caught.value).endswith(
        "look whether this machine reaches it and may write there, then run the same command again"
    )
    assert len(load_checkpoint(scratch_folder(url) / "last.pt").rows) == 2
    with pytest.raises(TrialFailed, match=r"shared/trial cannot be listed, after 4 tries \(NotADirectoryError: "):
        next(run_trial(job_in(url)))
    (tmp_path / "shared").unlink()
    (tmp_path / "shared").mkdir()
    (tmp_path / "away").rename(tmp_path / "shared" / "trial")
    assert curve(finish(job_in(url))[0]) == unstopped()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s33://bucket/runs", r"^s33://bucket/runs: no file system is known for s33://, s3://, .*; did you mean s3\?$"),
        ("ftp://me:secret@127.0.0.1:9/runs", r"^ftp://127.0.0.1:9/runs cannot be opened \(ConnectionRefusedError: "),
        ("file:///proc/nowhere/runs", r"^file:///proc/nowhere/runs/.mnet-search-\w+ cannot be written, after 4 tries"),
        pytest.param(
            *("s3://bucket/runs", r"^s3://bucket/runs: a package for s3:// is missing: Install s3fs to access S3"),
            marks=pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is here"),
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_known_before_a_search_begins(url: str, message: str) -> None:
    with pytest.raises(RemoteError, match=message) as caught:
        check_remote(url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(TrialFailed):
        list(run_trial(job_in(url)))


class Sieve(MemoryFileSystem):
    """Loses, or changes, what is written."""

    protocol = "sieve"
    becomes: bytes | None = None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.becomes is not None:
            super().pipe_file(path, self.becomes)


def test_a_place_that_keeps_nothing_is_known_before_a_search_begins(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("sieve", Sieve, clobber=True)
    for becomes, what in ((None, "nothing"), (b"123", "3 others")):
        monkeypatch.setattr(Sieve, "becomes", becomes)
        with pytest.raises(
            RemoteError, match=rf"^sieve://a does not keep .* \(a file of 15 bytes came back as {what}\)"
        ):
            check_remote("sieve://a")
    check_remote(memory)
    assert RemoteFolder(memory).names() == set()


def test_a_scratch_folder_of_somebody_else_fails_the_trial(memory: str) -> None:
    above = scratch_folder(memory).parent
    above.rmdir()
    above.symlink_to(above.parent)
    ((kind, reason),) = messages(job_in(memory))
    assert kind == "failure" and "is somebody else's; remove it, or set TMPDIR" in reason
