"""A study's frame kept up to date: of a study that was read once, only what has changed since is read again.

What can change is what `studies.writer` changes. A trial that is open (running or waiting) may change in any way; one
that has ended does not, but for a driver that came too late and counts its attempt. A new trial has a greater
`trial_id` than all before, but for one whose driver paused between Optuna's table and ours. So each look reads the
trials that are new, open or among the last to end, by their keys, and the number of all, by an index: where it does not
add up, what is missing is looked for, and where trials are gone, all is read anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Connection, bindparam, func, select, text

from mnet_search.studies import database as db
from mnet_search.studies import frame as frames
from mnet_search.studies.store import Store

LAST_ENDED = 20  # trials that are looked at again though they have ended
BLOCK_ROWS = 5000  # that are read and packed at once, since what is read takes many times the room of what is kept
MOST_AT_ONCE = 2000  # changed trials; more are read as all are, which is quicker then
OPEN = ("RUNNING", "WAITING")
SOME = "IN :ids"  # a condition on trial_id

Array = np.ndarray[Any, np.dtype[Any]]
NO_CURVE: Array = np.empty((0, 1 + len(db.CURVE_COLUMNS)))

_COUNTS = """
SELECT (SELECT COUNT(*) FROM mnet_trials WHERE study_id = :study_id) AS ours,
       (SELECT COUNT(*) FROM trials WHERE study_id = :study_id) AS theirs
"""


@contextlib.contextmanager
def one_moment(store: Store) -> Iterator[Connection]:
    """A connection on which all queries see the database as it was at the first one. It can write nothing, takes no
    lock that a search would wait for, and should not be kept: meanwhile SQLite's write-ahead log cannot be folded.
    """
    with store.read() as connection:
        if connection.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            connection.exec_driver_sql("BEGIN")  # the driver would begin one only before a write
        try:
            yield connection
        finally:
            connection.rollback()


class Follower:
    """One study, followed from look to look; not for two threads at once.

    `frame` is what `studies.frame.load` gives but for the column `options`, which is most of what there is to read and
    to keep. Every look that changes something makes a new frame, and leaves the old one as it was. `news_of_finished`
    is whether the last look changed a finished trial, or made one finished.
    """

    def __init__(self) -> None:
        self.frame = pd.DataFrame()
        self.news_of_finished = False
        self._row: Mapping[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._place: dict[int, int] = {}  # trial_id -> its row in the frame
        self._chosen: dict[str, list[Any]] = {}  # parameter -> as it was chosen, row by row
        self._watched: dict[int, tuple[Any, ...]] = {}  # trial_id -> what was read of it last
        self._ended: list[int] = []  # the last trials to end, in that order
        self._sums: dict[int, tuple[Any, ...]] = {}  # trial_id -> of its curve
        self._curves: dict[int, Array] = {}  # trial_id -> epoch and figures
        self._counts = (0, 0)
        self._newest = 0  # trial_id

    def look(self, connection: Connection, row: Mapping[str, Any]) -> bool:
        """Bring the frame up to date -> whether anything in it or in a curve has changed. `row` is the study's own."""
        other = any(self._row.get(key) != row[key] for key in ("study_id", "created", "space", "objectives"))
        self._row = row
        counts = connection.execute(text(_COUNTS), {"study_id": row["study_id"]}).one()
        ids = None if other or not self._place else self._to_read(connection, *counts)
        if ids is None:
            was_empty = not other and not self._place
            self._read_all(connection, counts)
            return not (was_empty and not self._place)
        rows = self._rows(connection, ids)
        gone = set(self._watched).difference(found.trial_id for found in rows)
        changed = [found for found in rows if self._watched.get(found.trial_id) != tuple(found)]
        new = [found.number for found in changed if found.trial_id not in self._place]
        if gone or (new and new[0] <= self.frame["number"].iloc[-1]):  # the latter: it belongs between others
            self._read_all(connection, counts)
            return True
        self._counts = (counts.ours, counts.theirs)
        self.news_of_finished = any(found.state == "COMPLETE" for found in changed)
        if changed:
            self._put(changed)
        return self._look_at_curves(connection) or bool(changed)

    def _to_read(self, connection: Connection, ours: int, theirs: int) -> list[int] | None:
        """The trials that may have changed; None where all are to be read."""
        own = select(db.trials.c.trial_id).where(db.trials.c.study_id == self._row["study_id"])
        new = set(connection.execute(own.where(db.trials.c.trial_id > self._newest)).scalars())
        if ours != self._counts[0] + len(new):
            there = set(connection.execute(own).scalars())
            if not there.issuperset(self._place):
                return None
            new = there.difference(self._place)
        if theirs < self._counts[1] or len(new) + len(self._watched) > MOST_AT_ONCE:
            return None
        return sorted(new.union(self._watched))

    def _rows(self, connection: Connection, ids: Sequence[int], *, options: bool = False) -> Sequence[Any]:
        query = frames.rows_query(SOME, options=options).bindparams(bindparam("ids", expanding=True))
        return connection.execute(query, {"ids": list(ids)}).all() if ids else []

    # ------------------------------------------------------------ the frame

    def _columns(self) -> frames.Columns:
        return frames.Columns(frames.own_objectives(self._row["objectives"]), list(self._row["space"]["parameters"]))

    def _read_all(self, connection: Connection, counts: Any) -> None:
        self._forget()
        self._counts, self.news_of_finished = (counts.ours, counts.theirs), True
        ids: list[int] = []
        watched: dict[int, tuple[Any, ...]] = {}
        part = self._columns()
        query = frames.rows_query(frames.OF_STUDY, options=False).bindparams(study_id=self._row["study_id"])
        result = connection.execute(query.execution_options(yield_per=frames.CHUNK_ROWS))
        made: list[pd.DataFrame] = []
        for rows in result.partitions(frames.CHUNK_ROWS):
            if len(ids) - sum(map(len, made)) >= BLOCK_ROWS:
                made.append(self._fixed(part))
                part = self._columns()
            part.add(rows)
            ids += [row.trial_id for row in rows]
            watched |= {row.trial_id: tuple(row) for row in rows if row.state in OPEN}
        self._place = {trial_id: place for place, trial_id in enumerate(ids)}
        made.append(self._fixed(part))
        frame = pd.concat(made, ignore_index=True)
        self.frame = frame.assign(**{f"param.{name}": pd.Series(values) for name, values in self._chosen.items()})
        self._newest = max(ids, default=0)
        last = self.frame["finished"].dropna().nlargest(LAST_ENDED + len(watched)).index[::-1]
        self._ended = [ids[place] for place in last if ids[place] not in watched][-LAST_ENDED:]
        self._watched = watched | {row.trial_id: tuple(row) for row in self._rows(connection, self._ended)}
        self._sums = self._curve_sums(connection)

    def _fixed(self, part: frames.Columns) -> pd.DataFrame:
        """The columns of a part whose type does not depend on the others; its parameters are set down by themselves."""
        for name, values in part.params.items():
            self._chosen.setdefault(name, []).extend(values)
        frame = part.frame()
        return frame[[name for name in frame.columns if name != "options" and not name.startswith("param.")]]

    def _put(self, rows: Sequence[Any]) -> None:
        """A new frame with the rows that were read: those of known trials in their places, new ones at the end."""
        part, old = self._columns(), self.frame
        part.add(rows)
        chosen = {name: list(values) for name, values in part.params.items()}
        source = np.arange(len(old))  # of each row of the new frame: in the old one, or behind it in the part
        new: list[int] = []
        for i, row in enumerate(rows):
            if row.trial_id in self._place:
                source[self._place[row.trial_id]] = len(old) + i
            else:
                self._place[row.trial_id] = len(old) + len(new)
                new.append(i)
        source = np.append(source, len(old) + np.array(new, dtype=int))
        fixed = [name for name in old.columns if not name.startswith("param.")]
        both = pd.concat([old[fixed], part.frame()[fixed]], ignore_index=True)
        made = both.take(source).reset_index(drop=True)
        for name, values in self._chosen.items():
            values += [chosen[name][i] for i in new]
            # What a column is made of depends on all its values: pandas decides as it does for a frame that is loaded.
            made[f"param.{name}"] = pd.Series(values) if new else old[f"param.{name}"]
        self.frame = made
        self._watch(rows)

    def _watch(self, rows: Iterable[Any]) -> None:
        for row in rows:
            self._newest = max(self._newest, row.trial_id)
            self._watched[row.trial_id] = tuple(row)
            if row.state not in OPEN and row.trial_id not in self._ended:
                self._ended.append(row.trial_id)
        for trial_id in self._ended[:-LAST_ENDED]:
            del self._watched[trial_id]
            self._sums.pop(trial_id, None)
        del self._ended[:-LAST_ENDED]

    # ------------------------------------------------------------ curves

    def _curve_sums(self, connection: Connection) -> dict[int, tuple[Any, ...]]:
        """Of each curve that may grow: how long it is, and sums that tell a row which was written again."""
        of = db.curves.c
        weighted = [func.sum(of.epoch * of[name]) for name in db.CURVE_COLUMNS]
        query = select(of.trial_id, func.count(), *weighted).where(of.trial_id.in_(self._watched)).group_by(of.trial_id)
        return {row[0]: tuple(row) for row in connection.execute(query)}

    def _look_at_curves(self, connection: Connection) -> bool:
        before, self._sums = self._sums, self._curve_sums(connection)
        changed = [trial_id for trial_id, sums in self._sums.items() if before.get(trial_id) != sums]
        for trial_id in changed:
            self._curves.pop(trial_id, None)
        return bool(changed)

    def keep_curves(self, connection: Connection, numbers: Iterable[int]) -> pd.DataFrame:
        """The curves of these trials, with the columns of `studies.frame.curves`: read where they are new or have
        changed, and no others kept.
        """
        wanted = self._ids(numbers)
        read = read_curves(connection, [trial_id for trial_id in wanted if trial_id not in self._curves])
        known = self._curves | read
        self._curves = {trial_id: known.get(trial_id, NO_CURVE) for trial_id in wanted}
        return self._curve_frame(self._curves)

    def curves(self, connection: Connection, numbers: Iterable[int]) -> pd.DataFrame:
        """The curves of any trials, read now and not kept."""
        wanted = self._ids(numbers)
        read = read_curves(connection, wanted)
        return self._curve_frame({trial_id: read[trial_id] for trial_id in wanted if trial_id in read})

    def options(self, connection: Connection, number: int) -> dict[str, Any]:
        """The options of one trial's network, which the frame does without; nothing where there is no such trial."""
        rows = self._rows(connection, self._ids([number]), options=True)
        return dict(json.loads(rows[0].options)) if rows else {}

    def _ids(self, numbers: Iterable[int]) -> list[int]:
        """The trial_id of each number that the frame has, in order of number."""
        ids = list(self._place)  # in order of the rows, which is that of the numbers
        wanted = self.frame["number"].isin(set(numbers)).to_numpy()
        return [ids[place] for place in np.flatnonzero(wanted)]

    def _curve_frame(self, curves: Mapping[int, Array]) -> pd.DataFrame:
        """Curves that are in order of number, as `studies.frame.curves` gives them."""
        rows = np.array([self._place[trial_id] for trial_id in curves], dtype=int)
        number = np.repeat(self.frame["number"].to_numpy()[rows], [len(curve) for curve in curves.values()])
        table = np.concatenate([NO_CURVE, *curves.values()])
        figures = {name: table[:, i] for i, name in enumerate(db.CURVE_COLUMNS, start=1)}
        return pd.DataFrame({"number": number, "epoch": table[:, 0].astype(int), **figures})


def read_curves(connection: Connection, trial_ids: Sequence[int]) -> dict[int, Array]:
    """trial_id -> its curve: one row an epoch, in order, with the epoch and the figures of `CURVE_COLUMNS`."""
    names = ("epoch", *db.CURVE_COLUMNS)
    columns = [db.curves.c.trial_id, *(db.curves.c[name] for name in names)]
    found: dict[int, Array] = {}
    for start in range(0, len(trial_ids), frames.CHUNK_ROWS):
        some = trial_ids[start : start + frames.CHUNK_ROWS]
        query = select(*columns).where(db.curves.c.trial_id.in_(some)).order_by(db.curves.c.trial_id, db.curves.c.epoch)
        table = np.array([tuple(row) for row in connection.execute(query)], dtype=float).reshape(-1, 1 + len(names))
        ids, first = np.unique(table[:, 0].astype(int), return_index=True)
        found |= dict(zip(ids.tolist(), np.split(table[:, 1:], first[1:]), strict=True)) if len(ids) else {}
    return found
