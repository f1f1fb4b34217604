"""Files of a folder that is a URL: s3://bucket/runs, file:///shared/runs and whatever else fsspec opens.

fsspec is imported when a URL is used, and not before.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest

log = logging.getLogger(__name__)

T = TypeVar("T")
WAITS_S = (0.5, 1.0, 2.0)  # before each further try
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a drive


class RemoteError(MnetError):
    """A folder that is a URL cannot be used, or a file of it cannot be read or written."""


def is_url(where: object) -> bool:
    """True for what fsspec opens; False for a path of this machine."""
    return isinstance(where, str) and _URL.match(where) is not None


def without_login(text: str) -> str:
    """A text for people: what stands before the @ of any URL in it is left out."""
    return re.sub(r"(://)[^/\s'\"]*@", r"\1", text)


def without_password(url: str) -> str:
    """A URL to be kept: the name of the user stays, the password does not."""
    return re.sub(r"(://[^/:@]*):[^/]*@", r"\1@", url, count=1)


class RemoteFolder:
    """One flat folder of files. Every call tries several times; raises RemoteError once that was in vain.

    A file is replaced in one step: under a temporary name first, where a move costs nothing; object stores, which
    cannot move, show an object only once it is whole.
    """

    def __init__(self, url: str):
        """Raises RemoteError for a protocol that is not known, and where the package for it is missing."""
        self.url = url.rstrip("/")
        self._files, self._path = _opened(url)
        self._moves = _has_own_move(self._files)

    def url_of(self, name: str) -> str:
        """Of one file, without the password."""
        return f"{without_password(self.url)}/{name}"

    def names(self) -> set[str]:
        """Of all files; none where there is no such folder."""

        def act() -> set[str]:
            self._files.invalidate_cache()
            return {found.rstrip("/").rpartition("/")[2] for found in self._files.ls(self._path, detail=False)}

        with contextlib.suppress(FileNotFoundError):
            return self._persist("cannot be listed", "", act)
        return set()

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""
        return self._persist("cannot be read", name, lambda: bytes(self._files.cat_file(self._at(name))))

    def tail(self, name: str, n_bytes: int) -> tuple[bytes, float]:
        """The last bytes of a file, and when it was written (seconds since 1970). One try; raises whatever comes."""
        self._files.invalidate_cache()
        path = self._at(name)
        size = int(self._files.info(path)["size"])
        content = bytes(self._files.cat_file(path, start=max(0, size - n_bytes), end=size))
        return content, self._files.modified(path).timestamp()

    def write(self, name: str, content: bytes) -> None:
        """Replace a file in one step; the folder is made where it has to be."""
        self._persist(
            "cannot be written",
            name,
            lambda: self._replace(name, lambda path: self._files.pipe_file(path, content)),
            missing_is_final=False,
        )

    def copy(self, name: str, other: str) -> bool:
        """Give a file a second name without sending its bytes again; False where that is not to be had."""
        try:
            self._replace(other, lambda path: self._files.cp_file(self._at(name), path))
        except Exception as error:  # noqa: BLE001  # whatever it is, the bytes can still be sent
            log.debug("%s is sent anew, for it could not be copied: %s", other, error)
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._persist("cannot be removed", name, lambda: self._files.rm_file(self._at(name)))

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _replace(self, name: str, put: Callable[[str], Any]) -> None:
        if not self._moves:
            put(self._at(name))
            return
        self._files.makedirs(self._path, exist_ok=True)
        temporary = self._at(f".{name}.{socket.gethostname()}-{os.getpid()}.tmp")
        try:
            put(temporary)
            self._files.mv(temporary, self._at(name))
        except BaseException:
            with contextlib.suppress(Exception):
                self._files.rm_file(temporary)
            raise

    def _persist(self, what: str, name: str, act: Callable[[], T], *, missing_is_final: bool = True) -> T:
        for wait in (*WAITS_S, None):
            try:
                return act()
            except Exception as error:  # each file system has errors of its own
                if missing_is_final and isinstance(error, FileNotFoundError):
                    raise
                shown = without_login(f"{self.url}/{name}".rstrip("/"))
                reason = without_login(_first_line(error))
                if wait is None:
                    raise RemoteError(
                        f"{shown} {what}, after {len(WAITS_S) + 1} tries ({type(error).__name__}: {reason}); look "
                        "whether this machine reaches it and may write there, then run the same command again"
                    ) from error
                log.info("%s %s (%s: %s); once more in %g s", shown, what, type(error).__name__, reason, wait)
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _opened(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    shown = without_login(url)
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import available_protocols, get_filesystem_class
    except ImportError:
        raise RemoteError(f"{shown}: folders that are URLs need a package that is missing: install fsspec") from None
    protocol = url.partition("://")[0]
    try:
        get_filesystem_class(protocol)
        files, path = url_to_fs(url)
    except ImportError as error:
        raise RemoteError(f"{shown}: a package for {protocol}:// is missing: {_first_line(error)}") from None
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise RemoteError(f"{shown} is no address of a folder: {without_login(_first_line(error))}") from None
        raise RemoteError(
            f"{shown}: no file system is known for {protocol}://, s3://, gs://, sftp:// and file:// are some that are"
            f"{nearest(protocol, available_protocols())}"
        ) from None
    except Exception as error:  # noqa: BLE001  # whatever is said of the address or the credentials
        reason = without_login(_first_line(error))
        raise RemoteError(f"{shown} cannot be opened ({type(error).__name__}: {reason}); look at the address") from None
    return files, str(path).rstrip("/")


def _has_own_move(files: Any) -> bool:
    """Whether a file system moves files: fsspec's stand-in copies and removes, which is no one step."""
    from fsspec import AbstractFileSystem

    return type(files).mv is not AbstractFileSystem.mv


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no further text")


# ---------------------------------------------------------------- on this machine


def scratch_folder(url: str) -> Path:
    """Where this user keeps the files of a URL on this machine while they are worked on; not made yet. Raises as
    `scratch_root` does.
    """
    return scratch_root() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]


def scratch_root() -> Path:
    """The folder of this user below the machine's temporary one (TMPDIR), closed to others; made where it has to be.

    Raises RemoteError where it is somebody else's, for in /tmp anybody may make one, and OSError where it cannot be
    made.
    """
    above = Path(tempfile.gettempdir()) / f"mnet-search-{os.geteuid()}"
    above.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = above.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise RemoteError(f"{above} is somebody else's; remove it, or set TMPDIR to a folder of your own")
    return above


@contextlib.contextmanager
def checkpoint_file(where: str, sha256: str = "") -> Iterator[Path]:
    """A checkpoint as a file of this machine, with its record beside it, for load_checkpoint: one at a URL is fetched
    into a temporary folder and held to `sha256`, where it is given.

    Raises FileNotFoundError where a URL leads to nothing, RemoteError where it cannot be read or has other bytes.
    """
    if not is_url(where):
        yield Path(where)
        return
    above, _, name = where.rpartition("/")
    remote = RemoteFolder(above)
    content = remote.read(name)
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        raise RemoteError(
            f"{without_login(where)} is not the checkpoint that the study knows: the SHA-256 of its {len(content)} "
            f"bytes is {found[:12]}..., {sha256[:12]}... is recorded"
        )
    with tempfile.TemporaryDirectory(prefix="mnet-search-") as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        record = f"{name}.json"
        with contextlib.suppress(FileNotFoundError):  # load_checkpoint says what is amiss then
            (path.parent / record).write_bytes(remote.read(record))
        yield path
