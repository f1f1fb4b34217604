"""Thousands of short trials while drivers and workers are killed at random, over and over: nothing is lost, repeated or
counted twice, and memory stays where it was.

MNET_SOAK_TRIALS is how many trials (2,000), MNET_SOAK_SEED decides the kills, MNET_SOAK_REPORT takes the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drills import OWN, assert_nothing_lost, count, going, rows, until, workers, write_own
from processes import start, write_space

pytestmark = [pytest.mark.faults, pytest.mark.slow]

TRIALS = int(os.environ.get("MNET_SOAK_TRIALS", "2000"))
SPACE = OWN.replace("{min: 0.1, max: 1.0, step: 0.01}", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]")
SPACE = SPACE.replace("[24, 32]", "{min: 24, max: 343, step: 1}").replace("concurrency: 1", "concurrency: 2")
BODY = """\
for epoch in (1, 2):
    time.sleep(0.025)
    trial.report(epoch, accuracy=0.5 + trial.params["width"] / 4)
return 0.5 + trial.params["width"] / 4
"""
PACE = min(max(TRIALS / 2000, 0.1), 1.0)
PAUSE_S = (3.0 * PACE, 8.0 * PACE)  # between two faults; less in a small soak, which would see none
KINDS = ("driver", "driver", "worker", "worker", "SIGINT", "SIGTERM")
GROWTH = 1.3
_DONE = """
SELECT m.trial_id, m.arch_id, m.seed, m.attempts, m.started, m.finished, t.datetime_complete, v.value
FROM mnet_trials m JOIN trials t ON t.trial_id = m.trial_id JOIN trial_values v ON v.trial_id = m.trial_id
WHERE t.state = 'COMPLETE' AND v.objective = 0
"""


def peak_mb(pid: int) -> float:
    """The most memory that a process had so far; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def done(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["trial_id"]: row for row in rows(folder, _DONE)}


class Soak:
    """A supervisor that starts the same command until all is finished, and what it did to it."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self._rng = folder, rng
        self.kills: Counter[str] = Counter()
        self.peaks: list[float] = []
        self.seen: dict[int, dict[str, Any]] = {}

    def run(self, *arguments: object) -> None:
        while True:
            before = count(self.folder) if (self.folder / "study.db").exists() else 0
            with going(start(self.folder, *arguments)) as process:
                code = self._live(process, before)
            log = (self.folder / "log.txt").read_text()
            assert "Traceback" not in log, log[-3000:]
            if code == 0:
                return
            assert code in (-signal.SIGKILL, 130, 143, -signal.SIGTERM), f"{code}: {log[-3000:]}"
            now = done(self.folder)
            assert {key: now[key] for key in self.seen} == self.seen  # what was finished stays as it was
            self.seen = now

    def _live(self, process: subprocess.Popen[str], before: int) -> int:
        """One life of a driver, from its first new trial on in danger."""
        until(lambda: process.poll() is not None or count(self.folder) > before, timeout=120)
        peak = 0.0
        while process.poll() is None:
            end = time.monotonic() + self._rng.uniform(*PAUSE_S)
            while process.poll() is None and time.monotonic() < end:
                peak = max(peak, peak_mb(process.pid))
                time.sleep(0.05)
            if process.poll() is None:
                self._strike(process)
        self.peaks += [peak] * (peak > 0)
        return process.wait()

    def _strike(self, process: subprocess.Popen[str]) -> None:
        kind = self._rng.choice(KINDS)
        if kind == "worker":
            there = workers(process.pid)
            if there:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._rng.choice(there), signal.SIGKILL)
                    self.kills[kind] += 1
            return
        self.kills[kind] += 1
        process.send_signal(signal.SIGKILL if kind == "driver" else signal.Signals[kind])
        process.wait(60)


@pytest.mark.timeout(7200)
def test_soak(tmp_path: Path) -> None:
    seed = int(os.environ.get("MNET_SOAK_SEED", "1"))
    write_own(tmp_path, BODY)
    soak, began = Soak(tmp_path, random.Random(seed)), time.monotonic()
    soak.run(
        *("run", write_space(tmp_path, SPACE), "--executor", "local", "--n-trials", TRIALS),
        *("--max-failures", 1_000_000, "-q"),
    )
    found = assert_nothing_lost(tmp_path, TRIALS, 2, with_checkpoints=False)
    assert {key: row for key, row in done(tmp_path).items() if key in soak.seen} == soak.seen
    failed = [row for row in found if row["state"] == "FAIL"]
    half_begun = [row for row in failed if row["arch_id"] is None]
    for row in failed:
        assert row["arch_id"] is None or "3. attempt" in row["reason"] or "died in this trial" in row["reason"], row
    report = {
        "trials": TRIALS,
        "seed": seed,
        "kills": dict(soak.kills),
        "driver_starts": len(soak.peaks),
        "wall_s": round(time.monotonic() - began, 1),
        "first_peak_mb": round(soak.peaks[0], 1),
        "last_peak_mb": round(soak.peaks[-1], 1),
        "most_peak_mb": round(max(soak.peaks), 1),
        "failed": len(failed) - len(half_begun),
        "half_begun": len(half_begun),
        "attempts": dict(Counter(row["attempts"] for row in found if row["attempts"] is not None)),
    }
    print(json.dumps(report))
    path = os.environ.get("MNET_SOAK_REPORT")
    if path:
        Path(path).write_text(json.dumps(report, indent=1))
    assert sum(soak.kills.values()) >= TRIALS // 200
    assert soak.peaks[-1] <= GROWTH * soak.peaks[0], report
