"""The options of a study's networks for the plots that build networks, which the snapshots in the server's memory lack.

Few networks of many are built, so the options of each are read when a plot asks for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from sqlalchemy import select

from mnet_search.dashboards.measurements import latency_tables, measurements
from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.studies import database as db
from mnet_search.studies.store import Store

Read = Callable[[str, int], dict[str, Any]]


class LaterOptions(Mapping[str, Any]):
    """The options of one network, read when they are first looked at."""

    __slots__ = ("_arch_id", "_found", "_number", "_read")

    def __init__(self, read: Read, arch_id: str, number: int):
        self._read, self._arch_id, self._number = read, arch_id, number
        self._found: dict[str, Any] | None = None

    def _options(self) -> dict[str, Any]:
        found = self._found
        if found is None:
            found = self._found = self._read(self._arch_id, self._number)
        return found

    def __getitem__(self, key: str) -> Any:
        return self._options()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options())

    def __len__(self) -> int:
        return len(self._options())


@contextlib.contextmanager
def with_options(snapshot: Snapshot, storage_url: str, *, latency: bool = False) -> Iterator[Snapshot]:
    """A snapshot whose frame has the column `options`, good while the block lasts; with `latency`, its measurements and
    latency tables too.
    """
    with Store(storage_url) as store:
        study_id = store.row(snapshot.name)["study_id"]
        more: dict[str, Any] = {}
        if latency:
            more["measurements"] = measurements(store, snapshot.name)
            more["latency_tables"] = latency_tables(store, snapshot.name)
        with store.read() as connection:

            def read(arch_id: str, number: int) -> dict[str, Any]:
                # By the network's id alone, whose index is narrow: asked for the study too, SQLite goes by that one's.
                query = select(db.trials.c.study_id, db.trials.c.options).where(
                    db.trials.c.arch_id == arch_id, db.trials.c.number == number
                )
                found = [options for study, options in connection.execute(query) if study == study_id]
                return dict(found[0]) if found else {}

            cells = zip(snapshot.frame["arch_id"].tolist(), snapshot.frame["number"].tolist(), strict=True)
            options = [LaterOptions(read, arch_id, number) for arch_id, number in cells]
            column = pd.Series(options, index=snapshot.frame.index, dtype=object)
            yield replace(snapshot, frame=snapshot.frame.assign(options=column), **more)
