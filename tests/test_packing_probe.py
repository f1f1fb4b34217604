"""Networks trained for a moment in real processes side by side, and what memory there is for them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnet_search.search.packing_probe import Crew, ProbeFailed, ProbeJob, TooSlow, _counts, side_by_side
from mnet_search.search.recipes import TrainingOptions
from mnet_search.search.resources import available_memory
from mnet_search.search.workers import worker_context

TINY_JOB = ProbeJob("baseline", {"resolution": 12, "hidden": 8, "classes": 10, "in_channels": 1}, 8, TrainingOptions())


def crew(job: ProbeJob = TINY_JOB, budget_s: float = 60.0) -> Crew:
    return Crew(worker_context(), job, budget_s)


def test_a_crew_trains_side_by_side_and_none_of_it_is_left() -> None:
    with crew() as probing:
        (first,) = probing.warm(1)
        assert probing.warm(2) != []
        found = probing.train(2, 0.05)
        pids = [process.pid for process, _ in probing._members]
    assert first.images == 8
    assert first.peak_bytes > 0
    assert first.own_bytes > 50 * 10**6  # Python and torch
    assert first.device_bytes is None
    assert len(found) == 2
    assert all(figures.images % 8 == 0 and figures.seconds >= 0.05 for figures in found)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_images_a_second_of_one_and_two_and_at_least_one_step() -> None:
    with crew() as probing:
        found = side_by_side(probing, 2, 0.0, upwards=False)
    assert set(found) == {1, 2}
    assert all(rate > 0 and figures.images == 8 for rate, figures in found.values())


def test_memory_grows_with_the_batch() -> None:
    options = {"resolution": 32, "width": 0.5, "classes": 10, "in_channels": 3}
    peaks = []
    for batch in (8, 128):
        with crew(ProbeJob("mobilenet_v2", options, batch, TrainingOptions())) as probing:
            peaks.append(probing.warm(1)[0].peak_bytes)
    assert peaks[1] > peaks[0] + 128 * 4 * 50_000  # a good part of its activations, kept for the backward pass


def test_what_takes_too_long_is_killed() -> None:
    options = {"resolution": 224, "classes": 1000, "in_channels": 3}
    started = time.monotonic()
    with crew(ProbeJob("resnet18", options, 512, TrainingOptions()), 0.5) as probing:
        with pytest.raises(TooSlow):
            probing.warm(1)
        assert probing.left_s == 0
        (process, _), *_ = probing._members
    assert process.exitcode == -9
    assert time.monotonic() - started < 60


def test_a_process_that_fails_says_why() -> None:
    job = ProbeJob("baseline", {"colour": 1}, 8, TrainingOptions())
    with crew(job) as probing, pytest.raises(ProbeFailed, match="colour") as caught:
        probing.warm(1)
    assert not caught.value.memory_ended


def test_memory_that_is_refused_is_told_apart() -> None:
    huge = dataclasses.replace(TINY_JOB, batch=10**13)  # more than any process can address
    with crew(huge) as probing, pytest.raises(ProbeFailed) as caught:
        probing.warm(1)
    assert caught.value.memory_ended


def test_a_process_that_is_killed_is_noticed() -> None:
    with crew() as probing:
        probing.warm(1)
        (process, _), *_ = probing._members
        process.kill()
        process.join()
        with pytest.raises(ProbeFailed, match="its process was killed by signal 9"):
            probing.train(1, 0.1)


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('ran', flush=True)\n"
        "from mnet_search.search.workers import worker_context\n"
        "from mnet_search.search.packing_probe import Crew, ProbeJob\n"
        "from mnet_search.search.recipes import TrainingOptions\n"
        f"job = ProbeJob('baseline', {TINY_JOB.options!r}, 8, TrainingOptions())\n"
        "with Crew(worker_context(), job, 60) as crew:\n"
        "    print(len(crew.warm(2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.stderr) == ("ran\n2\n", "")


def test_the_numbers_that_are_tried() -> None:
    assert [_counts(most, upwards=True) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
    assert [_counts(most, upwards=False) for most in (1, 2, 12)] == [[1], [1, 2], [1, 12, 6, 3]]


# ---------------------------------------------------------------- memory of the machine


def test_memory_is_bounded_by_the_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    everything = available_memory(tmp_path, own)
    own.write_text("9:name=systemd:/\n4:memory:/jobs/one\n3:cpuset:/\n0::/\n")
    for folder, limit in (("memory/jobs/one", 2**63 - 4096), ("memory/jobs", 5_000_000), ("memory", 2**63 - 4096)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (tmp_path / folder / "memory.usage_in_bytes").write_text("1500000\n")
        (tmp_path / folder / "memory.stat").write_text("cache 7\ntotal_inactive_file 500000\n")
    assert available_memory(tmp_path, own) == 4_000_000
    own.write_text("0::/slice/job\n")
    (tmp_path / "slice" / "job").mkdir(parents=True)
    assert available_memory(tmp_path, own) == pytest.approx(everything, rel=0.2)
    (tmp_path / "slice" / "job" / "memory.max").write_text("max\n")
    (tmp_path / "slice" / "memory.max").write_text("3000000\n")
    (tmp_path / "slice" / "memory.current").write_text("1000000\n")
    (tmp_path / "slice" / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert available_memory(tmp_path, own) == 2_200_000
