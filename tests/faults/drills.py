"""What all fault drills share: drivers that die at an exact place, and the one check of what must hold afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from mnet_search.models.checkpoints import load_checkpoint
from mnet_search.studies.integrity import check
from mnet_search.studies.store import Store

from processes import TINY, children, start

# Trials without training: `own.py` in the test's folder says what each does.
OWN = """\
description: networks that a function evaluates
family: mobilenet_v1
evaluate: own:evaluate
parameters:
  width: {min: 0.1, max: 1.0, step: 0.01}
  resolution: [24, 32]
objectives: {accuracy: maximize, params: minimize}
search: {sampler: random, scheduler: none, seed: 0}
resources: {concurrency: 1}
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
WRITER = "mnet_search.studies.writer:StudyWriter"


@dataclass(frozen=True)
class Fault:
    """What happens in a driver at the n-th call of a method, of those calls for which `only` holds: `act` is run before
    the call, or after it.
    """

    owner: str  # module:Class
    method: str
    n: int = 1
    after: bool = False
    only: str = "True"  # of `args` and `options`
    act: str = KILL


_SCRIPT = """\
import datetime, importlib, os, signal, sys, time

FAULTS = {faults!r}


def put(owner, method, n, after, only, act):
    module, _, name = owner.partition(":")
    made = getattr(importlib.import_module(module), name)
    original, count = getattr(made, method), 0

    def wrapped(*args, **options):
        nonlocal count
        hit = bool(eval(only, {{"args": args, "options": options}}))
        count += hit
        due = hit and count == n
        if due and not after:
            exec(act, globals())
        result = original(*args, **options)
        if due and after:
            exec(act, globals())
        return result

    setattr(made, method, wrapped)


if __name__ == "__main__":
    for fault in FAULTS:
        put(*fault)
    from mnet_search.search.cli import main

    main(sys.argv[1:])
"""


def driver_with(folder: Path, *faults: Fault, name: str = "driver_with_faults.py") -> Path:
    """A script for `start` that is the command line, but for what happens to it: nothing is put in place of anything,
    the real call is made before or after.
    """
    rows = [(f.owner, f.method, f.n, f.after, f.only, f.act) for f in faults]
    script = folder / name
    script.write_text(_SCRIPT.format(faults=rows))
    return script


def trained(epochs: int = 2, *, images: int = 200, concurrency: int = 1) -> str:
    """The tiny space, with so many epochs a trial."""
    return (
        TINY.replace("epochs: 2", f"epochs: {epochs}")
        .replace("train_limit: 200", f"train_limit: {images}")
        .replace("concurrency: 1", f"concurrency: {concurrency}")
    )


def write_own(folder: Path, body: str) -> None:
    """The function that evaluates trials of OWN; `body` is what stands in it, and returns the accuracy."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    head = "import os, sys, time\nfrom pathlib import Path\n\nHERE = Path(__file__).parent\n\n\n"
    (folder / "own.py").write_text(f"{head}def accuracy(trial):\n{lines}\n\n\n{_EVALUATE}")


_EVALUATE = """\
def evaluate(trial):
    return {"accuracy": accuracy(trial)}
"""


# ---------------------------------------------------------------- processes


def ended(process: subprocess.Popen[str], folder: Path, code: int, timeout: float = 120) -> str:
    """Wait until a process has ended with this exit code; the log of all that was started in the folder."""
    found = process.wait(timeout)
    log = (folder / "log.txt").read_text()
    assert found == code, f"exit code {found}, not {code}; the log says:\n{log}"
    assert "Traceback" not in log, log
    return log


def again(folder: Path, *arguments: object, code: int = 0, timeout: float = 120, **variables: str) -> str:
    """The same command once more, to its end."""
    with going(start(folder, *arguments, **variables)) as process:
        return ended(process, folder, code, timeout)


@contextlib.contextmanager
def going(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A started process that is gone at the end, with all of its group, whatever the test came to."""
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: see `start`
            process.wait()


def workers(pid: int) -> list[int]:
    """The worker processes of a driver with the local executor: forked by multiprocessing's server, its child."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            found += children(child)
    return found


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(happened: Callable[[], Any], timeout: float = 60, every: float = 0.02) -> Any:
    """What `happened` gives, once it is true. Errors of a study that is being made count as not yet."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            found = happened()
            if found:
                return found
        time.sleep(every)
    raise AssertionError(f"did not happen within {timeout} s")


# ---------------------------------------------------------------- the database


def url_of(where: Path | str) -> str:
    """The storage of a test's folder, or the URL itself."""
    return where if isinstance(where, str) else f"sqlite:///{where / 'study.db'}"


def rows(where: Path | str, query: str, **values: Any) -> list[dict[str, Any]]:
    """The rows of a query, through a connection of its own."""
    with Store(url_of(where)) as store, store.read() as connection:
        return [dict(row) for row in connection.execute(text(query), values).mappings()]


_TRIALS = """
SELECT t.trial_id, t.number, t.state, m.arch_id, m.seed, m.attempts, m.reason, m.owner, m.folder, m.checkpoint,
       m.checkpoint_sha256, m.metrics, m.environment, m.started, m.finished, t.datetime_complete,
       (SELECT COUNT(*) FROM mnet_curves c WHERE c.trial_id = t.trial_id) AS epochs
FROM trials t LEFT JOIN mnet_trials m ON m.trial_id = t.trial_id ORDER BY t.number
"""


def trials(where: Path | str, state: str | None = None) -> list[dict[str, Any]]:
    """Optuna's trials with our row of each, all None where there is none; `state` is Optuna's word."""
    return [row for row in rows(where, _TRIALS) if state in (None, row["state"])]


def count(where: Path | str, state: str = "COMPLETE") -> int:
    return len(trials(where, state))


def curve(where: Path | str, trial_id: int) -> list[dict[str, Any]]:
    return rows(where, "SELECT * FROM mnet_curves WHERE trial_id = :id ORDER BY epoch", id=trial_id)


def finished(where: Path | str) -> dict[int, dict[str, Any]]:
    """All that the database has of each finished trial: none of it may change any more."""
    found: dict[int, dict[str, Any]] = {}
    for row in trials(where, "COMPLETE"):
        key = row["trial_id"]
        values = rows(where, "SELECT objective, value FROM trial_values WHERE trial_id = :id ORDER BY 1", id=key)
        measured = rows(where, "SELECT * FROM mnet_measurements WHERE trial_id = :id", id=key)
        found[key] = row | {"values": values, "curve": curve(where, key), "measured": measured}
    return found


def assert_nothing_lost(
    where: Path | str,
    n_trials: int,
    epochs: int,
    *,
    before: dict[int, dict[str, Any]] | None = None,
    with_checkpoints: bool = True,
) -> list[dict[str, Any]]:
    """The promise, asserted on the database: exactly `n_trials` finished, none twice, none left RUNNING or WAITING,
    each whole; the file too; no driver left; what was finished `before` the fault is as it was. Returns all trials.

    Trials of a function of one's own make no checkpoint and no measurement: `with_checkpoints` is False for them.
    """
    found = trials(where)
    shown = "\n".join(str({k: r[k] for k in ("number", "state", "attempts", "epochs", "reason")}) for r in found)
    done = finished(where)
    assert len(done) == n_trials, f"{len(done)} finished, not {n_trials}:\n{shown}"
    assert {row["state"] for row in found} <= {"COMPLETE", "FAIL", "PRUNED"}, shown
    runs = [(row["arch_id"], row["seed"]) for row in found if row["state"] == "COMPLETE"]
    assert len(set(runs)) == len(runs), f"a network was finished twice:\n{shown}"
    for row in done.values():
        assert [line["epoch"] for line in row["curve"]] == list(range(1, epochs + 1)), shown
        metrics = row["metrics"] if isinstance(row["metrics"], dict) else json.loads(row["metrics"])
        assert metrics["accuracy"] is not None, shown
        assert row["values"], shown
        assert all(value["value"] is not None for value in row["values"]), shown
        assert None not in (row["environment"], row["finished"], row["datetime_complete"]), shown
        assert row["reason"] is None, shown
        if with_checkpoints:
            assert len(row["measured"]) == 1, shown
            kept = load_checkpoint(Path(row["checkpoint"]))  # it has the SHA-256 of the record beside it
            record = json.loads(Path(f"{row['checkpoint']}.json").read_bytes())
            assert record["sha256"] == row["checkpoint_sha256"], shown
            assert [line["epoch"] for line in kept.rows] == list(range(1, epochs + 1)), shown
    assert rows(where, "SELECT * FROM mnet_drivers") == []
    with Store(url_of(where)) as store:
        wrong = [finding.what for finding in check(store, files=with_checkpoints)]
        assert wrong == []
        if store.path is not None:
            with store.read() as connection:
                assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
    for key, row in (before or {}).items():
        assert done[key] == row, "a trial that was finished before the fault has changed"
    return found
