"""Who runs a study: a seat for each driver, and the turn in which one of them decides.

SQLite has one seat, a file lock of the operating system that ends with its process. PostgreSQL has as many as want to
join: each driver holds an advisory lock for as long as its connection lives, and a lease by the database's clock that
it renews. A driver is gone when its lock is free (it was killed) or its lease is over (it hangs, or its network does);
whoever sees it takes up its trials. Should it come back, its writes are refused: see `StudyWriter`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from filelock import FileLock, Timeout
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError

from mnet_search.studies import database as db
from mnet_search.studies.store import Store
from mnet_search.studies.urls import StorageError

log = logging.getLogger(__name__)

LEASE_S = 60.0
RENEWALS = 4  # of a lease, before it would be over
LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code, whatever language its messages are in
TURN_WAIT_S = 5.0  # after which a waiting driver looks whether the one whose turn it is still lives
_HOLDER = """
SELECT l.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND ((l.classid::bigint << 32) | l.objid::bigint) = :key
"""


class Seat(Protocol):
    """A driver's place at a study. `shared`: other drivers may be at it too."""

    @property
    def driver_id(self) -> str: ...

    @property
    def shared(self) -> bool: ...

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else decides what is trained next while it lasts."""

    def gone(self) -> list[str]:
        """Drivers that entered themselves and no longer live."""


@contextlib.contextmanager
def seat(store: Store, study_id: int, name: str, *, join: bool = False, lease_s: float = LEASE_S) -> Iterator[Seat]:
    """A seat at a study, given back at the end. Raises StorageError naming who is there, where nobody else may be."""
    if store.path is not None:
        with _file_seat(store, study_id, name, join=join) as taken:
            yield taken
        return
    leased = _LeasedSeat(store, study_id, lease_s)
    leased.enter(name, join=join)
    try:
        yield leased
    finally:
        leased.leave()


def _row(driver_id: str, study_id: int, **more: Any) -> dict[str, Any]:
    return {"driver_id": driver_id, "study_id": study_id, "host": socket.gethostname(), "pid": os.getpid(), **more}


# ---------------------------------------------------------------- SQLite


@dataclass(frozen=True)
class _FileSeat:
    driver_id: str
    former: tuple[str, ...]
    shared: bool = False

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def gone(self) -> list[str]:
        return list(self.former)


@contextlib.contextmanager
def _file_seat(store: Store, study_id: int, name: str, *, join: bool) -> Iterator[Seat]:
    assert store.path is not None
    path = store.path.with_name(f"{store.path.name}.study{study_id}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        there = next(iter(store.entered(study_id)), None)
        more = "SQLite takes one driver at a time (several can join a study in PostgreSQL); " if join else ""
        raise StorageError(
            f"study {name!r} is already being run by {there or 'another process'}; {more}wait for it, stop it with "
            f"`mnet-search stop {name}`, or choose another --study name"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be locked: {error}") from None
    driver_id, mine = uuid.uuid4().hex, db.drivers.c.study_id == study_id
    try:
        with store.write() as connection:  # the lock is ours, so whoever is entered there has died
            former = tuple(connection.execute(select(db.drivers.c.driver_id).where(mine)).scalars())
            connection.execute(db.drivers.delete().where(mine))
            row = _row(driver_id, study_id, since=db.database_now(store.engine))
            connection.execute(db.drivers.insert().values(**row))
        yield _FileSeat(driver_id, former)
    finally:
        with contextlib.suppress(StorageError), store.write() as connection:  # a full disk must not hide what was wrong
            connection.execute(db.drivers.delete().where(db.drivers.c.driver_id == driver_id))
        lock.release()


# ---------------------------------------------------------------- PostgreSQL


def advisory_key(name: str) -> int:
    """The 64-bit key of an advisory lock."""
    return int.from_bytes(hashlib.sha256(f"mnet-search:{name}".encode()).digest()[:8], "big", signed=True)


class _LeasedSeat:
    """A seat beside others: a row, an advisory lock, and a thread that renews the lease."""

    shared = True

    def __init__(self, store: Store, study_id: int, lease_s: float):
        self.driver_id = uuid.uuid4().hex
        self._store, self._study_id, self._lease_s = store, study_id, lease_s
        self._lock, self._turn = advisory_key(self.driver_id), advisory_key(f"study {study_id}")
        self._held: Connection | None = None
        self._turn_backend: int | None = None  # the server's process of the connection that holds this driver's turn
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def enter(self, name: str, *, join: bool) -> None:
        with self.turn():
            there = [other for other in self._store.entered(self._study_id) if other.alive]
            if there and not join:
                more = f" and {len(there) - 1} more" if len(there) > 1 else ""
                raise StorageError(
                    f"study {name!r} is already being run by {there[0]}{more}; work beside it with --join, wait "
                    f"for it, stop it with `mnet-search stop {name}`, or choose another --study name"
                )
            with db.translated(self._store.url):
                self._renew()
        self._thread.start()

    def leave(self) -> None:
        self._left.set()
        self._thread.join()
        with contextlib.suppress(StorageError):
            over = [self.driver_id, *self.gone()]  # the row of one that hangs comes back with it
            with self._store.write() as connection:
                connection.execute(db.drivers.delete().where(db.drivers.c.driver_id.in_(over)))
        self._let_go()

    def gone(self) -> list[str]:
        return [other.driver_id for other in self._store.entered(self._study_id) if not other.alive]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with db.translated(self._store.url), self._store.engine.connect() as connection:
            connection.execute(
                text("SELECT set_config('application_name', :name, false)"), {"name": f"mnet-search {self.driver_id}"}
            )
            connection.commit()
            while True:
                try:
                    connection.execute(text(f"SET LOCAL lock_timeout = {int(1000 * TURN_WAIT_S)}"))
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": self._turn})
                    break
                except DBAPIError as error:
                    connection.rollback()
                    if getattr(error.orig, "sqlstate", "") != LOCK_NOT_AVAILABLE:
                        raise
                    self._end_turn_of_the_dead(connection)
            self._turn_backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
            try:
                yield
            finally:
                self._turn_backend = None
                connection.rollback()  # nothing was written through it; this ends the turn

    def _end_turn_of_the_dead(self, connection: Connection) -> None:
        """The server ends the connection of a driver that hangs in its turn, once its lease is over; and a former one
        of this driver's own, of which the server has not noticed yet that it is dead.
        """
        alive = {other.driver_id for other in self._store.entered(self._study_id) if other.alive}
        for pid, name in connection.execute(text(_HOLDER), {"key": self._turn}).all():
            driver_id = str(name).rpartition(" ")[2]
            if driver_id == self.driver_id:
                ended, why = pid != self._turn_backend, "has lost the connection of its turn"
            else:
                ended, why = driver_id not in alive, "hangs in its turn and its lease is over"
            if ended:
                log.warning("driver %s %s; the server ends it", driver_id, why)
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.rollback()

    def _keep(self) -> None:
        while not self._left.wait(self._lease_s / RENEWALS):
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001  # the server may be back at the next one; until then writes say so
                log.warning("the lease could not be renewed: %s", " ".join(str(error).split()))
                self._let_go()

    def _renew(self) -> None:
        """Take the lock where it is not held, and put off the end of the lease; a row that was removed comes back."""
        if self._held is None:
            self._held = self._store.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._take_lock(self._held)
        now = db.database_now(self._store.engine)
        mine = db.drivers.c.driver_id == self.driver_id
        renewed = {"expires": now + self._lease_s, "backend": func.pg_backend_pid(), "lock": self._lock}
        if not self._held.execute(db.drivers.update().where(mine).values(**renewed)).rowcount:
            row = _row(self.driver_id, self._study_id, since=now, **renewed)
            self._held.execute(db.drivers.insert().values(**row))

    def _take_lock(self, connection: Connection) -> None:
        key = {"key": self._lock}
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
            return
        # It is this driver's own, in a connection of which the server has not noticed yet that it is dead.
        for pid, _ in connection.execute(text(_HOLDER), key).all():
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(text(f"SET lock_timeout = {int(1000 * TURN_WAIT_S)}"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), key)

    def _let_go(self) -> None:
        if self._held is not None:
            with contextlib.suppress(DBAPIError):
                self._held.invalidate()  # a pooled connection would keep the lock
                self._held.close()
            self._held = None
