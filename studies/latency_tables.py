"""Latency tables in a study's database: one per space, device and protocol; the newest replaces its predecessor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import inspect, select

from mnet_search.models.arch import MnetError
from mnet_search.models.latency_table import LatencyTable, refuse_other_device
from mnet_search.models.tables import nearest
from mnet_search.studies import database as db
from mnet_search.studies.store import Store


@dataclass(frozen=True)
class StoredTable:
    """A table and when it was stored."""

    table: LatencyTable
    created: datetime


def save(store: Store, table: LatencyTable) -> None:
    """Store a table in place of an older one of the same space, device and protocol. Raises StorageError."""
    _ = store.optuna  # whose tables every reader of the database counts on
    content = table.to_json()
    with db.translated(store.url), store.engine.begin() as connection:
        rows = connection.execute(
            select(db.latency_tables.c.table_id, db.latency_tables.c.fingerprint).where(
                db.latency_tables.c.space_name == table.space
            )
        ).all()
        same = [table_id for table_id, fingerprint in rows if fingerprint == content["fingerprint"]]
        connection.execute(db.latency_tables.delete().where(db.latency_tables.c.table_id.in_(same)))
        connection.execute(
            db.latency_tables.insert().values(
                space_name=table.space,
                fingerprint=content["fingerprint"],
                content=content,
                created=datetime.now(),
            )
        )


def stored(store: Store) -> list[StoredTable]:
    """Every table of the database, oldest first; none where it has never held any."""
    with db.translated(store.url):
        if not inspect(store.engine).has_table(db.latency_tables.name):
            return []
        with store.engine.connect() as connection:
            rows = connection.execute(select(db.latency_tables).order_by(db.latency_tables.c.table_id)).mappings().all()
    return [StoredTable(LatencyTable.from_json(row["content"]), row["created"]) for row in rows]


def find(store: Store, space: str, fingerprint: Mapping[str, Any]) -> StoredTable:
    """The table of a space that was taken on this device under this protocol.

    Raises MnetError where there is none, and, naming both sides, where there are only others'.
    """
    found = stored(store)
    names = list(dict.fromkeys(s.table.space for s in found))
    of_space = [s for s in found if s.table.space == space]
    if not of_space:
        held = f"{nearest(space, names)}; it has tables of: {', '.join(names)}" if names else "; it has none yet"
        raise MnetError(
            f"no latency table of {space!r} in {store.where}{held}; build it: mnet-search latency table --build SPACE"
        )
    for candidate in reversed(of_space):
        if dict(candidate.table.fingerprint) == dict(fingerprint):
            return candidate
    refuse_other_device(of_space[-1].table, fingerprint)
    raise AssertionError("fingerprints differ, yet were not refused")
