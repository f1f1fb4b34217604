"""Helpers for tests that run the real command line in real processes."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mnet_search.search import cli
from mnet_search.search.progress import Quiet
from mnet_search.search.run import RunOptions, RunResult, open_space, run_search
from mnet_search.studies import frame as frames
from mnet_search.studies.store import Store

TINY = """\
description: the smallest networks, on a few digits, for tests
family: mobilenet_v1
data: {name: digits, train_limit: 200}
parameters:
  width: [0.1, 0.12, 0.15, 0.2]
  resolution: [9, 12]
  depth: shallow
  stem_stride: 1
objectives: {accuracy: maximize, latency_ms: minimize, params: minimize}
training: {epochs: 2, batch_size: 50}
search: {sampler: grid, n_trials: 4, seed: 0}
resources: {concurrency: 1}
"""


def write_space(folder: Path, text: str = TINY, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mnet_search.search.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MNET_STORAGE": "sqlite:///study.db"}


def mnet(folder: Path, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in `folder`, with the database study.db there."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout
    )


@dataclass(frozen=True)
class Done:
    """What a command printed and returned."""

    returncode: int
    stdout: str
    stderr: str


def call(folder: Path, *arguments: object) -> Done:
    """A command in this process, for the many that need none of their own: importing torch takes seconds."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run_command(list(map(str, arguments)))
    finally:
        os.chdir(before)
    return Done(code, out.getvalue(), err.getvalue())


def search(
    folder: Path, text: str = TINY, *, n_trials: int | None = None, overrides: tuple[str, ...] = (), **options: object
) -> RunResult:
    """Run a search with the local executor from inside this process; its workers are processes all the same."""
    settings = {"runs_dir": folder / "runs", "executor": "local", "n_trials": n_trials, **options}
    space = open_space(write_space(folder, text), list(overrides))
    return run_search(space, RunOptions(f"sqlite:///{folder / 'study.db'}", **settings), Quiet())  # type: ignore[arg-type]


def start(folder: Path, *arguments: object, script: Path | None = None, **variables: str) -> subprocess.Popen[str]:
    """Start a command in `folder`, in a process group of its own; by a `script` that takes the same arguments, with
    further environment variables.
    """
    full = [sys.executable, str(script), *map(str, arguments)] if script else command(*arguments)
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            full, cwd=folder, env=environment() | variables, stdout=log, stderr=log, text=True, start_new_session=True
        )


def load(folder: Path, study: str = "tiny") -> pd.DataFrame:
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        return frames.load(store, study)


def load_curves(folder: Path, study: str = "tiny") -> pd.DataFrame:
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        return frames.curves(store, study)


def wait_for(
    folder: Path, happened: Callable[[pd.DataFrame], bool], process: subprocess.Popen[str], timeout: float = 120
) -> pd.DataFrame:
    """Poll the study until `happened`; fails with the log where the process ends or time runs out first."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if (folder / "study.db").exists():
            try:
                frame = load(folder)
            except Exception:  # noqa: BLE001  # the study is being made
                frame = None
            if frame is not None and happened(frame):
                return frame
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"did not happen; the log says:\n{(folder / 'log.txt').read_text()}")


def children(pid: int) -> list[int]:
    """Direct children of a process (Linux)."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def ray_actors(pid: int) -> list[int]:
    """Pids of the Ray actors below a driver, whatever Ray calls them (Linux)."""
    found = []
    for child in children(pid):
        title = Path(f"/proc/{child}/cmdline").read_bytes()
        if title.startswith(b"ray::") and b"Agent" not in title and b"IDLE" not in title:
            found.append(child)
        found += ray_actors(child)
    return found
