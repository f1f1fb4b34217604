"""The log of one trial, trial.log in its own folder: what Python logged while it ran, and in a process of its own all
that was printed too, down to the last words of a crash.

A log never makes a trial fail: where it cannot be written it is given up without a word.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import io
import json
import logging
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mnet_search.models.remote_files import RemoteFolder, is_url, scratch_folder

LOG = "trial.log"
MAX_BYTES = 1 << 20  # a log larger than this when a trial begins becomes trial.log.1
TAIL_BYTES = 16 << 10
_redirecting = threading.Lock()  # a process has one standard output


class TrialLog:
    """The log of a trial while it is open. Does nothing where it could not be opened."""

    def __init__(self, handler: logging.Handler | None = None):
        self._handler = handler

    def write(self, message: str, error: BaseException | None = None) -> None:
        """A line of our own, with the traceback of an error and of what caused it: into the file and nowhere else."""
        if self._handler is not None:
            about = None if error is None else (type(error), error, error.__traceback__)
            record = logging.LogRecord(__name__, logging.ERROR if error else logging.INFO, "", 0, message, (), about)
            self._handler.handle(record)

    def write_threads(self) -> None:
        """Where each thread of this process is: for a trial that hangs."""
        if isinstance(self._handler, _FileHandler):
            with contextlib.suppress(OSError, ValueError):
                faulthandler.dump_traceback(self._handler.descriptor, all_threads=True)


@contextlib.contextmanager
def capture(folder: str | Path, *, descriptors: bool) -> Iterator[TrialLog]:
    """While this is open, the root logger's records at INFO and above go to the end of trial.log in `folder`.

    With `descriptors`, what is written to standard output and standard error goes there too, from Python or not, and
    the stack of a crash: for processes that run nothing but trials. May be left in another thread than entered. A
    folder that is a URL has its log in the scratch folder of this machine; `send_log` brings it to the URL.
    """
    with contextlib.ExitStack() as stack:
        handler = None
        with contextlib.suppress(Exception):  # whatever hinders a log, the trial may go well
            raw = stack.enter_context(_opened(_local_log(folder)))
            handler = _FileHandler(raw)
            handler.setFormatter(_Lines())
            if descriptors:
                stack.enter_context(_descriptors(raw.fileno()))
            stack.enter_context(_root_records(handler, last_resort=not descriptors))
        yield TrialLog(handler)


def last_lines(folder: str | Path, n: int = 5) -> list[str]:
    """The last lines of a trial's log that are not empty, read from its last 16 kB; none where there is no log.

    Of a folder that is a URL, the log there or the one in the scratch folder of this machine, whichever is newer: a
    process that was killed has sent nothing.
    """
    tails = []
    with contextlib.suppress(Exception):
        path = _local_log(folder, fetch=False)
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            tails.append((os.fstat(file.fileno()).st_mtime, file.read(TAIL_BYTES)))
    if is_url(folder):
        with contextlib.suppress(Exception):
            content, written = RemoteFolder(str(folder)).tail(LOG, TAIL_BYTES)
            tails.append((written, content))
    if not tails:
        return []
    _, content = max(tails)
    lines = [line.rstrip() for line in content.decode("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-n:] if n > 0 else []


def send_log(folder: str | Path) -> None:
    """Bring the log of a trial whose folder is a URL there, and remove a scratch folder that holds nothing else."""
    if not is_url(folder):
        return
    with contextlib.suppress(Exception):  # the trial went as it went
        path = _local_log(folder, fetch=False)
        RemoteFolder(str(folder)).write(LOG, path.read_bytes())
        if all(other.name.startswith(LOG) for other in path.parent.iterdir()):
            shutil.rmtree(path.parent)


def _local_log(folder: str | Path, *, fetch: bool = True) -> Path:
    """The log on this machine. That of a URL is fetched where it is missing here, so that it goes on."""
    if not is_url(folder):
        return Path(folder) / LOG
    path = scratch_folder(str(folder)) / LOG
    if fetch and not path.exists():
        with contextlib.suppress(FileNotFoundError):
            content = RemoteFolder(str(folder)).read(LOG)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return path


# ---------------------------------------------------------------- the file


class _Forgiving(io.FileIO):
    """A file that loses what it has no room for: a print must not fail for a full disk."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


def _text(raw: io.FileIO) -> io.TextIOWrapper:
    """Unbuffered, so that a process that is killed leaves what it wrote."""
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_BYTES:
            path.replace(path.with_name(f"{LOG}.1"))
    with _Forgiving(path, "ab") as raw:
        yield raw


class _FileHandler(logging.StreamHandler[io.TextIOWrapper]):
    def __init__(self, raw: io.FileIO):
        super().__init__(_text(raw))
        self.setLevel(logging.INFO)
        self.descriptor = raw.fileno()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Nothing: the text of a record that cannot be formatted is lost, and only that."""


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        return _time(record)


def _time(record: logging.LogRecord) -> str:
    """ISO 8601 with the offset of this machine's zone."""
    return datetime.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


# ---------------------------------------------------------------- what goes there


@contextlib.contextmanager
def _root_records(handler: logging.Handler, *, last_resort: bool) -> Iterator[None]:
    """Give the root logger a further handler, and let every other one have what it would have had without it."""
    root = logging.getLogger()
    others, added, level = list(root.handlers), [handler], root.level
    if not others and last_resort and logging.lastResort is not None:  # else warnings would no longer be shown
        others, added = [logging.lastResort], [handler, logging.lastResort]
    before = _AsBefore(level, last_resort=len(added) == 2)
    for other in others:
        other.addFilter(before)
    for new in added:
        root.addHandler(new)
    if level > logging.INFO:
        root.setLevel(logging.INFO)
    try:
        yield
    finally:
        if level > logging.INFO and root.level == logging.INFO:
            root.setLevel(level)
        for new in added:
            root.removeHandler(new)
        for other in others:
            other.removeFilter(before)


class _AsBefore(logging.Filter):
    """Lets a record through if it had come this far with the root logger at its own level."""

    def __init__(self, level: int, *, last_resort: bool):
        super().__init__()
        self._level, self._last_resort = level, last_resort

    def filter(self, record: logging.LogRecord) -> bool:
        logger: logging.Logger | None = logging.getLogger(record.name)
        level, heard = logging.NOTSET, False
        while logger is not None and logger.parent is not None:  # the root has none
            level, heard = level or logger.level, heard or bool(logger.handlers)
            logger = logger.parent
        return record.levelno >= (level or self._level) and not (self._last_resort and heard)


@contextlib.contextmanager
def _descriptors(log: int) -> Iterator[None]:
    """Standard output and standard error go to a file, whoever in this process writes there."""
    with contextlib.ExitStack() as undo:
        if not _redirecting.acquire(blocking=False):  # another trial of this process has them
            yield
            return
        undo.callback(_redirecting.release)
        with contextlib.suppress(OSError):  # a process may have none
            _flush()
            for number, name in ((1, "stdout"), (2, "stderr")):
                kept = os.dup(number)
                undo.callback(_put_back, kept, number)
                os.dup2(log, number)
                undo.enter_context(_python_stream(name, number))
            if not faulthandler.is_enabled():
                undo.callback(faulthandler.disable)
            faulthandler.enable(file=2)
        yield


def _put_back(kept: int, number: int) -> None:
    _flush()
    os.dup2(kept, number)
    os.close(kept)


def _flush() -> None:
    """What Python and the C library still hold goes to where it was meant to go."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def _python_stream(name: str, number: int) -> Iterator[None]:
    """sys.stdout or sys.stderr without a buffer, and without errors where the disk is full."""
    before, ours = getattr(sys, name), _text(_Forgiving(number, "w", closefd=False))
    setattr(sys, name, ours)
    try:
        yield
    finally:
        if getattr(sys, name) is ours:
            setattr(sys, name, before)


# ---------------------------------------------------------------- for machines


class JsonLines(logging.Formatter):
    """A record as one JSON object on a line: time (ISO 8601 with offset), level, logger, message, every key of the
    record's `fields`, where it has such a mapping, and `exception`, the traceback, where there is one.

    A field cannot replace one of ours. What JSON cannot say becomes a string, as do inf and nan.
    """

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            values["exception"] = self.formatException(record.exc_info)
        fields = getattr(record, "fields", None)
        for key, value in fields.items() if isinstance(fields, Mapping) else ():
            values.setdefault(str(key), _plain(value))
        return json.dumps(values)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
