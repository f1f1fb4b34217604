"""The folder of a trial that may be a URL: then the trial works in a scratch folder of its machine, which is mirrored.

After each epoch everything is at the URL, so a trial may go on on another machine than the one where it began.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from pathlib import Path
from types import TracebackType

from mnet_search.models.checkpoints import BEST, PREVIOUS, write_atomically
from mnet_search.models.remote_files import (
    RemoteError,
    RemoteFolder,
    is_url,
    scratch_folder,
    scratch_root,
    without_login,
)
from mnet_search.search.trial_log import LOG

__all__ = ["CHECKPOINT", "SPEED", "Mirror", "TrialFolder", "check_remote", "open_folder", "scratch_root"]

CHECKPOINT, SPEED = "last.pt", "speed.json"
# As save_checkpoint has them: what was before goes first, and each record before its content, so that whatever a kill
# leaves of the newest checkpoint agrees with its record.
MIRRORED = (SPEED, f"{PREVIOUS}.json", PREVIOUS, f"{CHECKPOINT}.json", CHECKPOINT, f"{BEST}.json", BEST)
PASSING = (f"{PREVIOUS}.json", PREVIOUS)  # gone once a run is complete
RECORD = f"{CHECKPOINT}.json"


class TrialFolder:
    """A folder of this machine, in which nothing has to be fetched or sent. As a context: while a trial works there."""

    def __init__(self, folder: str):
        self.path = Path(folder)

    def __enter__(self) -> TrialFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def send(self) -> None:
        """Called after each epoch's checkpoint, before anybody hears of the epoch."""

    def where(self, name: str) -> str:
        """The path or URL of a file, as the study keeps it."""
        return str(self.path / name)


class Mirror(TrialFolder):
    """A scratch folder in place of a URL. Entering fetches what is newer there; leaving removes the scratch folder, but
    for the log, once everything is at the URL. Raises RemoteError where that cannot be reached.

    One process uses it at a time; whoever runs trials takes care that no second machine works at the same URL.
    """

    def __init__(self, url: str):
        super().__init__(str(scratch_folder(url)))
        self._remote = RemoteFolder(url)
        self._there: dict[str, str] = {}  # name -> SHA-256 of what is at the URL; "" where that is not known
        self._sent = b""  # the record of the last checkpoint that is there as a whole

    def __enter__(self) -> TrialFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        names = self._remote.names()
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):  # of a process that was killed while it sent
                self._remote.remove(name)
        self._there = {name: "" for name in MIRRORED if name in names}
        if not self._take_newer():
            for name in self._there:
                if name not in PASSING and not (self.path / name).exists():
                    self._fetch(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = _read(self.path / RECORD)
        if record is not None and record != self._sent:
            return  # what is here may be all that there is
        with contextlib.suppress(OSError):
            for path in list(self.path.iterdir()):
                if not path.name.startswith(LOG):
                    path.unlink()
            self.path.rmdir()

    def where(self, name: str) -> str:
        """The URL of a file, without a password."""
        return self._remote.url_of(name)

    def send(self) -> None:
        """Bring what has changed to the URL. Raises RemoteError."""
        record = _read(self.path / RECORD)
        if record is None or record == self._sent:
            return
        for name in MIRRORED:
            content = _read(self.path / name)
            if content is not None:
                self._put(name, content)
        for name in PASSING:
            if name in self._there and not (self.path / name).exists():
                self._remote.remove(name)
                del self._there[name]
        self._sent = record

    def _put(self, name: str, content: bytes) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        if self._there.get(name) == sha256:
            return
        same = next((other for other, known in self._there.items() if known == sha256), None)
        self._there[name] = ""
        if same is None or not self._remote.copy(same, name):
            self._remote.write(name, content)
        self._there[name] = sha256

    def _take_newer(self) -> bool:
        """Replace what is here by what is at the URL, where that has as many epochs or more, and is another one."""
        if not {CHECKPOINT, RECORD} & self._there.keys():
            return False
        record, content = self._get(RECORD), self._get(CHECKPOINT)
        own_record, own_content = _read(self.path / RECORD), _read(self.path / CHECKPOINT)
        own = _epochs(own_record, own_content)
        if (record == own_record and own > 0) or _epochs(record, content) < own:
            return False
        for name in MIRRORED:  # the record too: a kill in what follows leaves nothing here that looks whole
            (self.path / name).unlink(missing_ok=True)
        for name in self._there.keys() - {CHECKPOINT, RECORD}:
            if name == BEST and content is not None and self._is_best(content):
                write_atomically(self.path / BEST, content)  # the same bytes: fetched already
            else:
                self._fetch(name)
        for name, found in ((CHECKPOINT, content), (RECORD, record)):
            if found is not None:
                write_atomically(self.path / name, found)
        return True

    def _is_best(self, content: bytes) -> bool:
        """Whether the record of the best checkpoint at the URL is that of this one."""
        try:
            recorded = json.loads(self._get(f"{BEST}.json") or b"")["sha256"]
        except (ValueError, KeyError, TypeError):
            return False
        return bool(recorded == hashlib.sha256(content).hexdigest())

    def _fetch(self, name: str) -> None:
        content = self._get(name)
        if content is not None:
            write_atomically(self.path / name, content)

    def _get(self, name: str) -> bytes | None:
        try:
            content = self._remote.read(name)
        except FileNotFoundError:
            return None
        self._there[name] = hashlib.sha256(content).hexdigest()
        return content


def open_folder(folder: str) -> TrialFolder:
    """The folder of a job: a path of this machine, or a URL. Raises RemoteError for a URL that cannot be used."""
    return Mirror(folder) if is_url(folder) else TrialFolder(folder)


def check_remote(url: str) -> None:
    """Write a small file, read it, remove it: a search asks before it begins. Raises RemoteError, an MnetError, for an
    unknown protocol, a missing package, a place that cannot be reached or keeps nothing.
    """
    remote, name, content = RemoteFolder(url), f".mnet-search-{uuid.uuid4().hex}", b"can be written\n"
    remote.write(name, content)
    try:
        found: bytes | None = remote.read(name)
    except FileNotFoundError:
        found = None
    remote.remove(name)
    if found != content:
        raise RemoteError(
            f"{without_login(url)} does not keep what is written there (a file of {len(content)} bytes came back as "
            f"{'nothing' if found is None else f'{len(found)} others'}); give another folder"
        )


def _epochs(record: bytes | None, content: bytes | None) -> int:
    """How many epochs a checkpoint holds, by its record; 0 where the two do not agree, or one is missing."""
    if record is None or content is None:
        return 0
    try:
        values = json.loads(record)
        sums, epochs = (values["sha256"], values["previous"]), int(values["epochs"])
    except (ValueError, KeyError, TypeError):
        return 0
    sha256 = hashlib.sha256(content).hexdigest()
    return epochs if sha256 == sums[0] else epochs - 1 if sha256 == sums[1] else 0


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
