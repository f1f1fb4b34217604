"""Where imported trials are read from: a CSV file, or a study of Optuna's, as rows of named cells."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, inspect

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.studies import database as db
from mnet_search.studies import urls

Cell = Any  # text of a CSV; a number, text, true, false or None of a study


@dataclass(frozen=True)
class SourceRow:
    """One row. `place` is how errors name it ("row 3", "trial 7"), `label` how the study will ("results.csv row 3")."""

    place: str
    label: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class SourceTable:
    """What was read. `origin` is kept with each trial; `n_left_out` counts trials that did not finish; `directions`
    says of a column whether the source maximizes or minimizes it, where it does.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[SourceRow, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    n_left_out: int = 0
    directions: Mapping[str, str] = field(default_factory=dict)


_PLACE = re.compile(r" (?:row|trial) \d+$")


def source_of(label: str) -> str:
    """The name of the table that a row's label is of: "results.csv" of "results.csv row 3"."""
    return _PLACE.sub("", label)


def read_csv(path: Path) -> SourceTable:
    """A CSV file with a header, comma between cells, UTF-8; rows are counted from 1 below the header, and lines without
    anything in their cells are none. Raises MnetError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MnetError(f"{path}: cannot be read ({os.strerror(error.errno or 0)}); name a CSV file") from None
    try:
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        found = [cells for cells in csv.reader(lines, strict=True) if any(map(str.strip, cells))]
    except UnicodeDecodeError as error:
        raise MnetError(f"{path}: is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise MnetError(f"{path}: is no CSV file ({error}); save it as CSV in UTF-8") from None
    if not found:
        raise MnetError(f"{path}: is empty; a CSV file begins with the names of its columns")
    columns = tuple(name.strip() for name in found[0])
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise MnetError(f"{path}: the column {twice!r} stands twice in its header; give each a name of its own")
    if len(found) == 1:
        raise MnetError(f"{path}: has a header and no rows below it, so that there is nothing to import")
    rows = []
    for number, cells in enumerate(found[1:], 1):
        if len(cells) != len(columns):
            raise MnetError(
                f"{path}: row {number} has {len(cells)} cells and the header {len(columns)}; "
                "cells are separated by commas, and one that holds a comma stands in quotes"
            )
        values = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
        rows.append(SourceRow(f"row {number}", f"{path.name} row {number}", values))
    origin = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    return SourceTable(path.name, columns, tuple(rows), origin)


def read_study(url: str, study: str) -> SourceTable:
    """The finished trials of a study in any database of Optuna's. Columns: `params.NAME`, `values.0` (and `values.NAME`
    where the study names its objectives), `user_attrs.NAME`. Raises StorageError, MnetError.
    """
    import optuna

    normal = urls.normalise_url(url)
    path = urls.database_path(normal)
    if path is not None and not path.exists():
        raise db.StorageError(f"{path}: no such database; name the one that holds the study with --from-storage")
    options = urls.connect_options(urls.parse_url(normal))
    with db.translated(normal):
        if not _is_optunas(normal, options):
            raise db.StorageError(f"{urls.where(url)}: holds no studies of Optuna's; name another with --from-storage")
        try:
            storage = optuna.storages.RDBStorage(normal, engine_kwargs=options, skip_table_creation=True)
        except RuntimeError as error:  # its schema is of another version
            raise db.StorageError(f"{urls.where(url)}: {error}") from None
        try:
            return _finished(storage, study, urls.where(url))
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _is_optunas(url: str, options: Mapping[str, Any]) -> bool:
    """Looked at without our settings, which would change a SQLite file that is another program's."""
    try:
        engine = create_engine(url, **options)
    except ModuleNotFoundError:
        engine = db.make_engine(url)  # which says what to install
    try:
        return inspect(engine).has_table("studies") and inspect(engine).has_table("alembic_version")
    finally:
        engine.dispose()


def _finished(storage: Any, study: str, where: str) -> SourceTable:
    names = {found.study_name: found._study_id for found in storage.get_all_studies()}
    if study not in names:
        listed = ", ".join(names) or "none"
        raise MnetError(f"--from-study {study}: no such study in {where}{nearest(study, names)} (it has: {listed})")
    objectives = storage.get_study_system_attrs(names[study]).get("study:metric_names", [])
    ways = [way.name.lower() for way in storage.get_study_directions(names[study])]
    directions = {f"values.{index}": way for index, way in enumerate(ways)}
    directions |= {f"values.{name}": way for name, way in zip(objectives, ways, strict=False)}
    trials = storage.get_all_trials(names[study], deepcopy=False)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    rows = []
    for trial in done:
        cells: dict[str, Cell] = {f"params.{name}": value for name, value in trial.params.items()}
        cells |= {f"values.{index}": value for index, value in enumerate(trial.values)}
        cells |= {f"values.{name}": value for name, value in zip(objectives, trial.values, strict=False)}
        cells |= {f"user_attrs.{name}": value for name, value in trial.user_attrs.items()}
        rows.append(SourceRow(f"trial {trial.number}", f"study {study} trial {trial.number}", cells))
    columns = tuple(dict.fromkeys(name for row in rows for name in row.cells))
    return SourceTable(f"study {study}", columns, tuple(rows), {"study": study}, len(trials) - len(done), directions)
