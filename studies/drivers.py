"""The drivers that have entered themselves at a study, and whether they live."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, select, text

from mnet_search.studies import database as db

# The drivers of a study of which the database knows that they live. `pg_locks` shows a 64-bit key in two halves.
_ALIVE = """
SELECT d.driver_id FROM mnet_drivers d WHERE d.study_id = :study AND d.expires > extract(epoch FROM clock_timestamp())
AND EXISTS (SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND ((l.classid::bigint << 32) | l.objid::bigint) = d.lock)
"""


@dataclass(frozen=True)
class DriverInfo:
    """A driver that has entered itself at a study; `since` is in this machine's time."""

    driver_id: str
    host: str
    pid: int
    since: datetime
    alive: bool

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since.isoformat(sep=' ', timespec='seconds')}"


def drivers_of(connection: Connection, study_id: int) -> list[DriverInfo]:
    """Every driver that has entered itself at a study and not left."""
    query = select(db.drivers).where(db.drivers.c.study_id == study_id).order_by(db.drivers.c.since)
    rows = connection.execute(query).mappings().all()
    known = None
    if connection.dialect.name == "postgresql":
        known = set(connection.execute(text(_ALIVE), {"study": study_id}).scalars())
    return [
        DriverInfo(
            row["driver_id"],
            row["host"],
            row["pid"],
            datetime.fromtimestamp(row["since"]),
            _lives(row["host"], row["pid"], row["since"]) if known is None else row["driver_id"] in known,
        )
        for row in rows
    ]


def _lives(host: str, pid: int, since: float) -> bool:
    """Whether a process lives; one on another host, with which SQLite is not to be used, is believed for a day."""
    if host != socket.gethostname():
        return datetime.now() - datetime.fromtimestamp(since) < timedelta(days=1)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
