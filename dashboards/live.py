"""The studies of a database as the live page shows them: each read once, then kept up to date by what is new.

One `LiveStudies` serves every visitor and every thread. It writes nothing, and its reads are short, so a search never
waits for it.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from sqlalchemy import event

from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.studies.changes import Follower, one_moment
from mnet_search.studies.drivers import drivers_of
from mnet_search.studies.pareto import front
from mnet_search.studies.store import Store, Summary
from mnet_search.studies.urls import StorageError

LATEST_CURVES = 200  # of the trials that are neither on the front nor open: as many as the plot of curves draws
LIST_AGE_S = 1.0  # for which a list of studies is good; longer where reading it takes long
LIST_SHARE = 10  # at most a tenth of the time goes into reading it
MOST_ROWS = 100_000  # trials in memory, of the studies that were looked at last; one study may have more


@dataclass
class _Followed:
    """A study that somebody looks at; `lock` is held while it is brought up to date."""

    follower: Follower = field(default_factory=Follower)
    lock: threading.Lock = field(default_factory=threading.Lock)
    run: str = field(default_factory=lambda: secrets.token_hex(4))  # marks of another server, or reading, are others
    version: int = 0
    about: tuple[Any, ...] = ()
    snapshot: Snapshot | None = None

    @property
    def mark(self) -> str:
        return f"{self.run}.{self.version}"


class LiveStudies:
    """The studies of a database, shared by all who look at them.

    Every method raises StorageError as `Store` does, where the database or the study is not there or cannot be read,
    and finds them again once they are. A database that was replaced by another is read anew.
    """

    def __init__(self, storage_url: str):
        self._url = storage_url
        self._lock = threading.Lock()  # of what follows
        self._store: Store | None = None
        self._file: tuple[int, int] | None = None
        self._followed: OrderedDict[str, _Followed] = OrderedDict()
        self._list_lock = threading.Lock()
        self._listed: tuple[Summary, ...] = ()
        self._list_until = 0.0

    def close(self) -> None:
        """Close every connection and forget what was read."""
        with self._lock:
            self._drop()

    def list(self) -> tuple[Summary, ...]:
        """Every study of the database, oldest first; not older than about a second."""
        with self._list_lock:
            store = self._open()
            if time.monotonic() >= self._list_until:
                began = time.monotonic()
                self._listed = tuple(self._tried(store.studies))
                now = time.monotonic()
                self._list_until = now + max(LIST_AGE_S, LIST_SHARE * (now - began))
            return self._listed

    def snapshot(self, study: str) -> tuple[str, Snapshot]:
        """A study as it is now, and a mark that changes whenever something of it has: the same mark, the same object.

        Its frame lacks the column `options`; its curves are those of the front, of open trials, and of the latest
        `LATEST_CURVES` others; it has no measurements and no latency tables. The mark changes also where a search
        begins, ends, or is to train more trials.
        """
        store = self._open()
        followed = self._follow(study)
        with followed.lock:
            self._tried(self._refresh, store, study, followed)
            assert followed.snapshot is not None
            return followed.mark, followed.snapshot

    def curves(self, study: str, numbers: Iterable[int]) -> pd.DataFrame:
        """The curves of any trials, read now; a number that the study has not has none."""
        return self._ask(study, Follower.curves, numbers)

    def options(self, study: str, number: int) -> dict[str, Any]:
        """The options of one trial's network, as `create` takes them; nothing where there is no such trial."""
        return self._ask(study, Follower.options, number)

    def _ask(self, study: str, question: Any, about: Any) -> Any:
        self.snapshot(study)
        store, followed = self._open(), self._follow(study)

        def ask() -> Any:
            with followed.lock, one_moment(store) as connection:
                return question(followed.follower, connection, about)

        return self._tried(ask)

    # ------------------------------------------------------------ one study

    def _refresh(self, store: Store, study: str, followed: _Followed) -> None:
        row, follower, before = store.row(study), followed.follower, followed.snapshot
        try:
            with one_moment(store) as connection:
                changed = follower.look(connection, row)
                active = any(driver.alive for driver in drivers_of(connection, row["study_id"]))
            about = (row["study_id"], row["created"], row["n_trials"], row["provenance"], active)
            if not changed and about == followed.about:
                return
            if changed or before is None or before.provenance != row["provenance"]:
                followed.snapshot = _snapshot(store, row, follower, before if about[:2] == followed.about[:2] else None)
        except BaseException:
            followed.follower = Follower()  # what it was about to take in would not be news a second time
            raise
        followed.about = about
        followed.version += 1
        _give_back()

    def _follow(self, study: str) -> _Followed:
        with self._lock:
            followed = self._followed.setdefault(study, _Followed())
            self._followed.move_to_end(study)
            n_rows = 0
            for name in reversed(list(self._followed)):
                n_rows += len(self._followed[name].follower.frame)
                if n_rows > MOST_ROWS and name != study:
                    del self._followed[name]
            return followed

    # ------------------------------------------------------------ the database

    def _open(self) -> Store:
        """The database, opened anew where it is another file by now."""
        with self._lock:
            if self._store is not None and self._store.path is not None and _identity(self._store) != self._file:
                self._drop()
            if self._store is None:
                self._store = Store(self._url)
                _make_read_only(self._store)
                self._file = _identity(self._store)
            return self._store

    def _tried(self, read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except StorageError:
            with self._lock:
                self._close()
            raise

    def _drop(self) -> None:
        self._close()
        self._followed.clear()
        self._list_until = 0.0

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


def _snapshot(store: Store, row: Any, follower: Follower, before: Snapshot | None) -> Snapshot:
    """What follows `before`, where that is of the same study."""
    known = {
        "name": row["name"],
        "objectives": dict(row["objectives"]),
        "provenance": dict(row["provenance"]),
        "space_text": before.space_text if before else store.space_text(row["name"]),
    }
    frame = follower.frame
    same = before is not None and not follower.news_of_finished and before.frame.dtypes.equals(frame.dtypes)
    members = before.front() if before is not None and same else front(frame, row["objectives"])
    opened = frame["state"].isin(["running", "waiting"])
    always = set(members["number"]) | set(frame.loc[opened, "number"])
    others = frame.loc[(frame["epochs"] > 0) & ~frame["number"].isin(always), "number"]
    with one_moment(store) as connection:
        curves = follower.keep_curves(connection, always.union(others.iloc[-LATEST_CURVES:]))
    # The front is not worked out a second time: that takes a quarter of a second for 50,000 trials.
    worked_out = {"of": (frame, known["objectives"]), "front": members}
    return Snapshot(frame=frame, curves=curves, worked_out=worked_out, **known)


def _give_back() -> None:
    """What pandas' texts took for a moment goes back to the system: 30 MB after 50,000 trials were read."""
    pyarrow = sys.modules.get("pyarrow")  # which pandas does without where it is not installed
    if pyarrow is not None:
        pyarrow.default_memory_pool().release_unused()


def _identity(store: Store) -> tuple[int, int] | None:
    """What the file of SQLite is, whatever its name; None where it is gone, and of a server."""
    try:
        found = store.path.stat() if store.path is not None else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def _make_read_only(store: Store) -> None:
    """No connection of a store writes any more, whatever is asked of it. A server is told so with each transaction."""
    if store.path is None:
        return

    @event.listens_for(store.engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA query_only=ON")

    store.engine.dispose()  # connections that were opened before
