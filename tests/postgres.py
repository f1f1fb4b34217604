"""A real PostgreSQL server for tests: made in a temporary folder, on a free port of this machine, gone at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

USER = "tester"
START_S = 60.0
ROOM = 2 * 1024**3  # bytes; an empty database takes 8 MB


class Server:
    """A server of its own. `url()` is where it listens, without a database; `stop` and `start` are for fault drills,
    after which the data and the port are the same.
    """

    def __init__(self, folder: Path):
        self.folder, self.port, self.password = folder, _free_port(), secrets.token_hex(8)
        self._user = _other_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0

    def create(self) -> None:
        """Make the cluster: passwords by scram-sha-256, and no fsync, since nothing here outlives the machine."""
        word = self.folder / "password"
        word.write_text(self.password)
        if self._user is not None:
            for path in (self.folder, word):
                shutil.chown(path, self._user)
        made = self._run(
            [
                *(_binary("initdb"), "-D", self.folder / "data", "-U", USER, "--pwfile", word),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ]
        )
        assert made.returncode == 0, made.stdout.decode(errors="replace")

    def url(self) -> str:
        """postgresql+psycopg://USER:PASSWORD@127.0.0.1:PORT"""
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}"

    def database(self) -> str:
        """The URL of a fresh, empty database."""
        self._made += 1
        name = f"test{self._made}_{os.getpid()}"
        self.execute(f"CREATE DATABASE {name}")
        return f"{self.url()}/{name}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of a statement, run outside of any transaction as the server's owner."""
        url = f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start the server and wait until it answers; also after `stop`, where it first repairs itself."""
        assert self._process is None, "it runs already"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "max_connections": "200",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_binary("postgres"), "-D", self.folder / "data", *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
                start_new_session=True,  # a Ctrl-C at the tests must not reach it before they have ended
            )
        end = time.monotonic() + START_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > end:
                    self.stop(immediate=True)
                    log_text = (self.folder / "log").read_text(errors="replace")
                    raise AssertionError(f"the server did not start; its log says:\n{log_text[-2000:]}") from None
                time.sleep(0.05)

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server, ending every connection; `immediate`: as a power cut would, by SIGKILL to all of it."""
        if self._process is None:
            return
        if immediate:
            family = [self._process.pid, *_children(self._process.pid)]  # each in a session of its own
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            family = []
            self._process.send_signal(signal.SIGINT)  # "fast": connections end, what was committed stays
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        _wait_for_end(family)

    def restart(self, *, immediate: bool = False) -> None:
        self.stop(immediate=immediate)
        self.start()

    def _run(self, command: list[Any]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            extra_groups=None if self._user is None else [],
            timeout=120,
        )


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A running server, ended with its folder at the end. Skips where none is installed, unless MNET_REQUIRE_POSTGRES
    is set.
    """
    if not installed():
        missing = "no PostgreSQL server is installed (neither in PATH nor in /usr/lib/postgresql)"
        if os.environ.get("MNET_REQUIRE_POSTGRES", "") not in ("", "0"):
            pytest.fail(f"MNET_REQUIRE_POSTGRES is set, and {missing}")
        pytest.skip(missing)
    folder = Path(tempfile.mkdtemp(prefix="pg", dir=_parent()))
    made = Server(folder)
    try:
        made.create()
        made.start()
        yield made
    finally:
        made.stop(immediate=True)
        shutil.rmtree(folder, ignore_errors=True)


def _parent() -> str:
    """Memory where there is room, else /tmp; not the test's own folder, for the path of the server's socket may be 107
    bytes long at most.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM
    return str(memory) if roomy else "/tmp"


def installed() -> bool:
    return bool(_find("postgres") and _find("initdb"))


def _find(name: str) -> Path | None:
    """A binary of the server: in PATH, else the newest version of Debian's folders."""
    found = shutil.which(name)
    if found:
        return Path(found).resolve()  # initdb looks for postgres beside itself
    versions = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = sorted(versions, key=lambda path: int(path.parts[4]) if path.parts[4].isdigit() else 0)
    return newest[-1] if newest else None


def _binary(name: str) -> Path:
    found = _find(name)
    assert found is not None
    return found


def _other_user() -> str | None:
    """Whom the server runs as: it refuses root; None: whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("root may not run a PostgreSQL server, and there is neither a user postgres nor nobody")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _children(pid: int) -> list[int]:
    """The processes that serve connections (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for_end(pids: list[int]) -> None:
    """Until all are dead (a zombie is): the shared memory, which a new server refuses, goes with the last one."""
    end = time.monotonic() + 10
    while time.monotonic() < end and any(_lives(pid) for pid in pids):
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
