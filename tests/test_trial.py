"""One trial without Ray and without a database: what it yields, how it continues, how it fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from mnet_search.models.checkpoints import load_checkpoint
from mnet_search.models.families import create
from mnet_search.search import trial
from mnet_search.search.data import DataOptions
from mnet_search.search.training import Epoch, TrainingOptions, TrialFailed
from mnet_search.search.trial import Job, Outcome, latency_lock, latency_lock_path, run_trial

ARCH = create("mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        number=0,
        family=ARCH.family,
        options=dict(ARCH.options),
        arch_id=ARCH.id,
        seed=0,
        data=DataOptions(train_limit=150, validation=0.1),
        training=TrainingOptions(epochs=3, batch_size=50),
        folder=str(tmp_path / f"{ARCH.id}-seed0"),
        device="cpu",
        latency_repeats=3,
    )


def finish(job: Job) -> tuple[list[Epoch], Outcome]:
    *rows, outcome = run_trial(job)
    assert all(isinstance(row, Epoch) for row in rows)
    assert isinstance(outcome, Outcome)
    return rows, outcome  # type: ignore[return-value]  # the assertion on all rows narrows no list


def curve(rows: list[Epoch]) -> list[Epoch]:
    """The rows without what a clock says."""
    return [replace(row, seconds=0, images_per_second=0) for row in rows]


def test_a_trial_yields_its_epochs_and_then_one_outcome(job: Job) -> None:
    rows, outcome = finish(job)
    assert [row.epoch for row in rows] == [1, 2, 3]
    metrics = outcome.metrics
    assert metrics["accuracy"] == rows[-1].validation_accuracy  # the last, not the best
    assert metrics["validation_loss"] == rows[-1].validation_loss
    assert 0 < metrics["latency_q1_ms"] <= metrics["latency_ms"] <= metrics["latency_q3_ms"]
    assert (metrics["latency_n"], metrics["latency_batch"]) == (3, 1)
    assert metrics["train_seconds"] == pytest.approx(sum(row.seconds for row in rows))
    assert outcome.environment["device"] == "cpu"
    assert outcome.environment["threads"] == 1
    assert outcome.environment["torch"] == torch.__version__
    assert len(str(outcome.environment["data_digest"])) == 64
    assert outcome.checkpoint_sha256 == hashlib.sha256(Path(outcome.checkpoint).read_bytes()).hexdigest()
    assert len(load_checkpoint(Path(outcome.checkpoint)).rows) == 3
    json.dumps([outcome.metrics, outcome.environment])


def test_a_trial_that_was_stopped_goes_on_where_it_was(job: Job, tmp_path: Path) -> None:
    running = run_trial(job)
    first = [next(running), next(running)]
    running.close()  # type: ignore[attr-defined]  # declared as an iterator, which has no close
    rows, outcome = finish(job)
    assert rows[:2] == first  # clocks too: two epochs of the three were not trained again
    unstopped, _ = finish(replace(job, folder=str(tmp_path / "other")))
    assert curve(rows) == curve(unstopped)
    again, second = finish(job)
    assert again == rows
    assert second.checkpoint_sha256 == outcome.checkpoint_sha256


def test_a_job_goes_through_json(job: Job) -> None:
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job


def test_threads_are_set_for_the_trial_and_put_back(job: Job) -> None:
    before = torch.get_num_threads()
    running = run_trial(replace(job, threads=before + 1))
    next(running)
    assert torch.get_num_threads() == before + 1
    running.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"arch_id": "0123456789ab"},
            f"the code that runs the trial makes network {ARCH.id} of these options, the code that asked made "
            "0123456789ab: install the same mnet-search on every machine",
        ),
        ({"options": {"width": 0.1, "wdith": 1}}, "family mobilenet_v1 has no option 'wdith'; did you mean width"),
        ({"data": DataOptions(name="npz", path="nowhere.npz")}, "nowhere.npz"),
        ({"data": DataOptions(name="digts")}, r"unknown dataset 'digts'; did you mean digits\?"),
        ({"device": "warp"}, "device 'warp' is not known; use auto, cpu or cuda"),
        ({"latency_repeats": 1}, "latency: 1 timed runs have no quartiles"),
        (
            {"training": TrainingOptions(epochs=2, batch_size=50, learning_rate=1e18)},
            "^the training loss became nan in epoch 1, step",
        ),
    ],
)
def test_whatever_kills_a_trial_is_one_sentence_with_its_cause(job: Job, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TrialFailed, match=message) as caught:
        list(run_trial(replace(job, **changed)))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_folder_that_cannot_be_made_is_named(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrialFailed, match=r"^NotADirectoryError: \[Errno 20\] Not a directory: '.*file/below'"):
        list(run_trial(replace(job, folder=str(tmp_path / "file" / "below"))))


def test_an_interrupt_is_no_failure(job: Job) -> None:
    running = run_trial(job)
    next(running)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)  # type: ignore[attr-defined]


FULL_DISK = """
import os, sys
from dataclasses import replace
from pathlib import Path
from mnet_search.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from mnet_search.search.training import TrialFailed
from mnet_search.search.trial import Job, Outcome, run_trial
import json, torch

job = Job.from_dict(json.load(sys.stdin))
path = Path(job.folder) / "last.pt"
running = run_trial(job)
print(next(running).epoch)
filler = path.parent / "filler"
try:
    filler.write_bytes(bytes(2 << 20))
except OSError:
    pass
try:
    next(running)
except TrialFailed as error:
    print(error)
print(len(load_checkpoint(path).rows))
filler.unlink()
names = sorted(p.name for p in path.parent.iterdir())
try:
    save_checkpoint(path, Checkpoint({}, [], {"weight": torch.zeros(300000)}))
except OSError as error:
    print(error.errno, error.filename)
print(len(load_checkpoint(path).rows), sorted(p.name for p in path.parent.iterdir()) == names)
*rows, outcome = run_trial(job)
print([row.epoch for row in rows], type(outcome).__name__)
"""


def test_a_full_disk_is_named_and_what_was_saved_is_kept(job: Job, tmp_path: Path) -> None:
    """On a real file system of 1 MB, in a mount namespace of its own, so that nothing stays mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(disk)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system (unshare and mount tmpfs)")
    job = replace(job, folder=str(disk / "trial"))
    done = subprocess.run(
        [*mount, sys.executable, "-c", FULL_DISK],
        input=json.dumps(job.to_dict()),
        capture_output=True,
        text=True,
        timeout=240,
    )
    path = disk / "trial" / "last.pt"
    assert done.stdout.splitlines() == [
        "1",
        f"OSError: [Errno 28] No space left on device: '{path}.json'",
        "1",
        f"28 {path}",
        "1 True",
        "[1, 2, 3] Outcome",
    ], done.stderr
    assert str(disk) not in Path("/proc/self/mountinfo").read_text()


# ---------------------------------------------------------------- locks


@pytest.fixture
def shared_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory that every user may write to, in the place of the system's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield folder


def test_two_trials_never_time_at_once(job: Job, shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert latency_lock_path() == shared_folder / "mnet-search-latency.lock"
    with (
        FileLock(latency_lock_path()),
        pytest.raises(TrialFailed, match=r"mnet-search-latency.lock was held for 0.1 s by another trial"),
        latency_lock(timeout_s=0.1),
    ):
        pass
    with latency_lock(timeout_s=0.1):
        pass


def test_the_latency_lock_is_for_all_users_of_the_machine(shared_folder: Path) -> None:
    with latency_lock():
        assert stat.S_IMODE(latency_lock_path().stat().st_mode) == 0o666


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_latency_lock_that_is_closed_to_this_user_is_replaced_by_an_own_one(shared_folder: Path) -> None:
    latency_lock_path().touch(mode=0o600)
    os.seteuid(65534)
    try:
        with latency_lock(timeout_s=1):
            assert (shared_folder / "mnet-search-latency-65534.lock").exists()
    finally:
        os.seteuid(0)


def test_one_process_trains_in_a_folder_at_a_time(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "FOLDER_LOCK_TIMEOUT_S", 0.1)
    running = run_trial(job)
    next(running)
    with pytest.raises(TrialFailed, match=r"another process trains in .*-seed0 and did not end within 0.1 s"):
        next(run_trial(job))
    running.close()  # type: ignore[attr-defined]
    assert next(run_trial(job)) is not None
