"""The database's password is in nothing that a run writes, and in no command line that others may read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect
from sqlalchemy.engine import make_url

from mnet_search.studies.store import Store

from drills import assert_nothing_lost, ended, going, rows, trained, until
from postgres import Server
from processes import start, write_space

pytestmark = pytest.mark.faults
RAY = [pytest.mark.ray, pytest.mark.xdist_group("ray")]
BIG = 50 << 20


class Watcher(threading.Thread):
    """Reads the command line of every process of this machine, over and over, while it lasts."""

    def __init__(self, secret: str, but: set[int]):
        super().__init__(daemon=True)
        self._secret, self._but, self._over = secret.encode(), but, threading.Event()
        self.seen: set[int] = set()
        self.found: list[tuple[int, bytes]] = []

    def run(self) -> None:
        while not self._over.wait(0.05):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) not in self._but:
                    try:
                        line = (entry / "cmdline").read_bytes()
                    except OSError:
                        continue
                    self.seen.add(int(entry.name))
                    if self._secret in line:
                        self.found.append((int(entry.name), line))

    def end(self) -> None:
        self._over.set()
        self.join()


def files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < BIG:
                yield path


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=RAY)])
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_password_is_written_nowhere(tmp_path: Path, postgres: Server, executor: str, given: str) -> None:
    if executor == "ray" and given == "option":
        pytest.skip("Ray is slow to start; what differs is over before it starts")
    url = postgres.database()
    secret = str(make_url(url).password)
    sessions = set(Path("/tmp/ray").glob("session_2*"))
    arguments: list[object] = ["run", write_space(tmp_path, trained()), "--executor", executor, "--n-trials", 1]
    variables = {"MNET_STORAGE": url} if given == "environment" else {}
    if given == "option":
        arguments += ["--storage", url]
    process = start(tmp_path, "-v", *arguments, "--tensorboard", **variables)
    # Until it has begun anew without it, some milliseconds, the command line that was typed is there to see.
    watcher = Watcher(secret, {process.pid})
    watcher.start()
    with going(process):
        until_hidden(process.pid, secret)
        watcher._but = set()
        ended(process, tmp_path, 0, timeout=240)
    watcher.end()
    assert watcher.found == []
    assert process.pid in watcher.seen
    assert_nothing_lost(url, 1, 2)
    new = set(Path("/tmp/ray").glob("session_2*")) - sessions
    assert new or executor != "ray"
    looked = list(files(tmp_path, *new))
    assert len(looked) > 5
    assert [path for path in looked if secret.encode() in path.read_bytes()] == []
    assert [row for row in everything(url) if secret in row] == []
    text = "".join(everything(url))
    assert "mnet-search" in text


def until_hidden(pid: int, secret: str) -> None:
    line = Path(f"/proc/{pid}/cmdline")
    until(lambda: b"run" in line.read_bytes() and secret.encode() not in line.read_bytes(), timeout=20, every=0.005)


def everything(url: str) -> list[str]:
    """Every row of every table, as text."""
    with Store(url) as store:
        tables = inspect(store.engine).get_table_names()
    assert {"mnet_studies", "mnet_trials"} <= set(tables)
    return [str(row) for table in tables for row in rows(url, f'SELECT * FROM "{table}"')]
