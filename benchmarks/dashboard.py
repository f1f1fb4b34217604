"""How fast the live page is on a large study, beside optuna-dashboard on the same database in the same run.

A database with a study of two objectives and one of three is made by bulk inserts (or taken from --database); each
server is started in a process of its own, asked for what a browser asks for, and measured:

- first view: seconds from asking for the page until all the data of its first view have come; the first visitor, for
  whom the server reads the study, and those who come after
- interactions (INTERACTIONS): seconds until everything that depends on one change of the address has come
- a poll where nothing has changed, and one after a trial has ended
- bytes of the page with its scripts, and of the data of the first view
- the server's memory: resident, and at its highest (Linux)

No browser takes part, so its own drawing is not in these figures. Of optuna-dashboard: the page, what its front end
asks for the overview of a study, and what it asks at every poll.

    OMP_NUM_THREADS=1 python benchmarks/dashboard.py --rows 50000 --repeats 5 --optuna-dashboard PATH/TO/BIN
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from big_study import insert, make, next_trial
from dash_client import Client, DashPage
from help_time import machine, versions

from mnet_search.studies.store import Store

STUDIES = {"two": 2, "three": 3}  # name -> objectives
SERVE = "import sys; from mnet_search.dashboards.app import serve; serve(sys.argv[1], port=0)"
START_S = 120.0
MOST_S = 20.0  # after which a figure is not measured again
FAILURE = '{"live":"block","name":"why"}'  # the part of the page that says why there is no view

# What a visitor does on the page of a study: its name, and the address after it.
INTERACTIONS: tuple[tuple[str, str], ...] = (
    ("list of studies", "view=studies"),
    ("overview", "view=overview"),
    ("front", "view=pareto"),
    ("front: axes changed", "view=pareto&x=params&color=param.width"),
    ("front: a budget", "view=pareto&max.params=500k"),
    ("front: brushed", "view=pareto&brush.param.width=0.25..0.5"),
    ("hypervolume", "view=history"),
    ("learning curves", "view=curves"),
    ("learning curves of 3 trials", "view=curves&trials=1,2,3"),
    ("parallel coordinates", "view=parallel"),
    ("importance", "view=importance"),
    ("scaling", "view=scaling"),
    ("latency", "view=latency"),
    ("timeline", "view=timeline"),
    ("trials", "view=trials"),
    ("trials: sorted", "view=trials&sort=-accuracy"),
    ("trials: searched", "view=trials&find=inverted"),
    ("one trial", "view=trial&trials=100"),
    ("three trials compared", "view=compare&trials=1,2,3"),
)


@dataclass
class Figures:
    """What was measured of one server on one study: seconds by name (one a repeat), bytes, and MB of memory."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    page_bytes: int = 0
    data_bytes: int = 0
    resident_mb: float = 0.0
    highest_mb: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)
        print(f"  {name}: {seconds:.2f} s", file=sys.stderr, flush=True)

    def enough(self, name: str) -> bool:
        """Whether no more time is to go into a figure, however many repeats were asked for."""
        return sum(self.seconds.get(name, [])) > MOST_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="trials of each study (default 50000)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default 5)")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="which to measure")
    parser.add_argument("--database", type=Path, help="a database that an earlier run has made here; kept")
    parser.add_argument("--optuna-dashboard", type=Path, help="the program optuna-dashboard, in any environment")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.database or Path(folder) / "studies.db"
        if not path.exists():
            began = time.perf_counter()
            with Store(f"sqlite:///{path}", create=True) as store:
                for study in asked.studies:
                    make(store, asked.rows, study=study, n_objectives=STUDIES[study])
            size = path.stat().st_size / 1e6
            print(f"{asked.rows:,} trials a study, {size:.0f} MB, made in {time.perf_counter() - began:.0f} s")
        for study in asked.studies:
            with server([sys.executable, "-c", SERVE, f"sqlite:///{path}"]) as (port, pid):
                report(f"mnet-search dashboard, study {study!r}", measure_ours(path, study, port, pid, asked.repeats))
            program = asked.optuna_dashboard
            if program is None or not program.exists():
                print("\noptuna-dashboard: not installed (--optuna-dashboard PATH/TO/BIN)")
                continue
            theirs = [str(program), f"sqlite:///{path}", "--port", str(free_port()), "--quiet"]
            with server(theirs) as (port, pid):
                report(f"optuna-dashboard, study {study!r}", measure_theirs(path, study, port, pid, asked.repeats))
    print(f"\n{machine()}; {versions('mnet-search', 'dash', 'plotly', 'pandas', 'optuna')}")
    if asked.optuna_dashboard is not None and asked.optuna_dashboard.exists():
        print(subprocess.run([asked.optuna_dashboard, "--version"], capture_output=True, text=True).stdout.strip())


# ---------------------------------------------------------------- ours


def measure_ours(path: Path, study: str, port: int, pid: int, repeats: int) -> Figures:
    found, base = Figures(), f"?study={study}"
    page = DashPage(port, base)
    found.add("first view, first visitor", page.first_s)
    found.page_bytes, found.data_bytes = page.page_bytes, page.first_bytes - page.page_bytes
    for _ in range(repeats):
        found.add("first view, later visitors", DashPage(port, base).first_s)
    for name, address in INTERACTIONS:
        for _ in range(repeats):
            page.set("url", "search", base)
            try:
                found.add(name, page.set("url", "search", f"{base}&{address}"))
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                found.problems.append(f"{name}: {error}")
                break
        if page.get(FAILURE, "children") is not None:
            found.problems.append(f"{name}: the page says that it cannot be shown")
    page.set("url", "search", f"{base}&view=pareto")
    for i in range(repeats):
        found.add("poll, nothing new", page.set("tick", "n_intervals", 2 * i))
        end_a_trial(path, study)
        found.add("poll, one trial ended", page.set("tick", "n_intervals", 2 * i + 1))
    found.resident_mb, found.highest_mb = memory_mb(pid)
    return found


def end_a_trial(path: Path, study: str) -> None:
    """One more finished trial, as a search would write it."""
    with Store(f"sqlite:///{path}") as store:
        space, one = next_trial(store, study, n_objectives=STUDIES[study])
        insert(store, space, [one])


# ---------------------------------------------------------------- optuna-dashboard


def measure_theirs(path: Path, study: str, port: int, pid: int, repeats: int) -> Figures:
    found = Figures()
    with Store(f"sqlite:///{path}") as store:
        study_id = store.row(study)["study_id"]
    detail, importances = f"/api/studies/{study_id}", f"/api/studies/{study_id}/param_importances"
    n_seen = first_view(found, "first view, first visitor", port, study_id)
    for _ in range(repeats):
        if not found.enough("first view, later visitors"):
            first_view(found, "first view, later visitors", port, study_id)
    client = Client(port)
    tried(found, "importance", repeats, lambda: client.ask(importances))
    for _ in range(repeats):
        tried(found, "poll, nothing new", 1, lambda: client.ask(f"{detail}?after={n_seen}"))
        end_a_trial(path, study)
        tried(found, "poll, one trial ended", 1, lambda: client.ask(f"{detail}?after={n_seen}"))
    found.resident_mb, found.highest_mb = memory_mb(pid)
    return found


def first_view(found: Figures, name: str, port: int, study_id: int) -> int:
    """The page of one study as a browser opens it -> how many trials came."""
    client, began = Client(port), time.perf_counter()
    client.page(f"/dashboard/studies/{study_id}")
    page_bytes = client.n_bytes
    for path in ("/api/meta", "/api/studies"):
        client.ask(path)
    status, content = client.ask(f"/api/studies/{study_id}?after=0")
    found.add(name, time.perf_counter() - began)
    if status != 200:
        found.problems.append(f"{name}: HTTP {status}: {content[:200].decode(errors='replace')}")
    found.page_bytes, found.data_bytes = page_bytes, client.n_bytes - page_bytes
    return len(json.loads(content).get("trials", [])) if status == 200 else 0


def tried(found: Figures, name: str, repeats: int, ask: Callable[[], tuple[int, bytes]]) -> None:
    for _ in range(repeats):
        if found.enough(name):
            return
        began = time.perf_counter()
        status, _ = ask()
        found.add(name, time.perf_counter() - began)
        if status != 200:
            found.problems.append(f"{name}: HTTP {status}")
            return


# ---------------------------------------------------------------- servers and figures


@contextlib.contextmanager
def server(command: list[str]) -> Iterator[tuple[int, int]]:
    """A server in a process of its own -> its port, which it says or was told, and its process id."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            yield wait_for_port(command, process, log), process.pid
        finally:
            process.terminate()
            process.wait(30)


def wait_for_port(command: list[str], process: subprocess.Popen[str], log: Any) -> int:
    port = int(command[command.index("--port") + 1]) if "--port" in command else None
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        said = re.search(r"http://127\.0\.0\.1:(\d+)/", log.read())
        port = int(said[1]) if port is None and said else port
        if port is not None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return port
        time.sleep(0.05)
    log.seek(0)
    raise RuntimeError(f"{command[0]} did not start:\n{log.read()[-2000:]}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process now and at its highest (Linux)."""
    text = Path(f"/proc/{pid}/status").read_text()
    now, highest = (int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) / 1e3 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now, highest


def report(title: str, found: Figures) -> None:
    print(f"\n{title}")
    print(f"{'':32}{'median s':>10}{'least':>9}{'most':>9}{'n':>4}")
    for name, seconds in found.seconds.items():
        middle = statistics.median(seconds)
        print(f"{name:32}{middle:>10.3f}{min(seconds):>9.3f}{max(seconds):>9.3f}{len(seconds):>4}")
    print(f"page with scripts {found.page_bytes / 1e6:.2f} MB, data of the first view {found.data_bytes / 1e6:.3f} MB")
    print(f"server memory {found.resident_mb:.0f} MB, at its highest {found.highest_mb:.0f} MB", flush=True)
    for problem in found.problems:
        print(f"  {problem}")


if __name__ == "__main__":
    main()
