"""What a person asks of a study from outside a search: notes and tags on trials, and trials to be repeated.

Notes and tags are user attributes of Optuna's tables, so that other Optuna tools show them too. A repeat is a waiting
trial without an owner, as a search leaves one that it set down: whoever runs the study next takes it up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, column, func, select, table, text, update

from mnet_search.models.arch import MnetError
from mnet_search.models.remote_files import is_url
from mnet_search.studies import database as db
from mnet_search.studies.store import STATES, Store

NOTE, TAGS = "mnet_note", "mnet_tags"  # keys of Optuna's user attributes
MOST_NOTE, MOST_TAGS, MOST_TAG = 4000, 20, 40  # characters, tags, characters of one

_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
_TRIALS = table(
    "trials", column("trial_id"), column("number"), column("study_id"), column("state"), column("datetime_start")
)


@dataclass(frozen=True)
class Note:
    """What a person wrote about a trial."""

    text: str = ""
    tags: tuple[str, ...] = ()


def notes(store: Store, study: str, number: int | None = None) -> dict[int, Note]:
    """The notes and tags of a study's trials by number, or of one of them; trials without any are absent."""
    row = store.row(study)
    query = (
        select(db.trials.c.number, _ATTRIBUTES.c.key, _ATTRIBUTES.c.value_json)
        .join_from(_ATTRIBUTES, db.trials, db.trials.c.trial_id == _ATTRIBUTES.c.trial_id)
        .where(db.trials.c.study_id == row["study_id"], _ATTRIBUTES.c.key.in_([NOTE, TAGS]))
    )
    if number is not None:
        query = query.where(db.trials.c.number == number)
    found: dict[int, dict[str, Any]] = {}
    with store.read() as connection:
        for trial, key, value in connection.execute(query):
            found.setdefault(trial, {})[key] = json.loads(value)
    return {trial: _note(values) for trial, values in found.items()}


def _note(values: Mapping[str, Any]) -> Note:
    # Other tools may have written them: whatever is no text, and no list of texts, is shown as text.
    tags = values.get(TAGS) or []
    tags = tags if isinstance(tags, list) else [tags]
    return Note(str(values.get(NOTE) or ""), tuple(str(tag) for tag in tags))


def parse_tags(words: str) -> tuple[str, ...]:
    """Tags as a person writes them, with commas between; each once, in order."""
    return tuple(dict.fromkeys(tag for tag in (" ".join(word.split()) for word in words.split(",")) if tag))


def write_note(store: Store, study: str, number: int, note: Note) -> None:
    """Replace the note and the tags of a trial. Raises MnetError for an unknown trial and for one that is too long."""
    if len(note.text) > MOST_NOTE:
        raise MnetError(f"a note of {len(note.text):,} characters: at most {MOST_NOTE:,} are kept; shorten it")
    if len(note.tags) > MOST_TAGS or any(len(tag) > MOST_TAG for tag in note.tags):
        raise MnetError(f"at most {MOST_TAGS} tags of {MOST_TAG} characters each are kept; shorten them")
    # NUL is what no PostgreSQL server takes.
    words = note.text.replace("\0", "\ufffd").replace("\r\n", "\n").strip()
    values = {NOTE: words, TAGS: [tag.replace("\0", "\ufffd") for tag in note.tags]}
    with store.write() as connection:
        trial_id = _trial(connection, store, study, number)["trial_id"]
        for key, value in values.items():
            mine = (_ATTRIBUTES.c.trial_id == trial_id) & (_ATTRIBUTES.c.key == key)
            connection.execute(_ATTRIBUTES.delete().where(mine))
            if value:
                connection.execute(
                    _ATTRIBUTES.insert().values(trial_id=trial_id, key=key, value_json=json.dumps(value))
                )


@dataclass(frozen=True)
class Repeat:
    """A repeat that was asked for: the number of the new trial, and its seed."""

    number: int
    seed: int


def ask_repeat(store: Store, study: str, number: int) -> Repeat:
    """Have the network of a trial trained once more, with the next seed that it was not trained with.

    The new trial waits, and the study asks for one finished trial more; a search that is begun later takes it up. All
    in one transaction, so that no driver sees half of it. Raises MnetError for an unknown trial.
    """
    row = store.row(study)
    with store.write() as connection:
        # First a write: in SQLite it is what keeps other writers out until the end, in PostgreSQL Optuna waits for it
        # before it numbers a trial.
        mine = db.studies.c.study_id == row["study_id"]
        connection.execute(update(db.studies).where(mine).values(n_trials=db.studies.c.n_trials + 1))
        if store.engine.dialect.name == "postgresql":
            connection.execute(
                text("SELECT study_id FROM studies WHERE study_id = :id FOR UPDATE"), {"id": row["study_id"]}
            )
        source = _trial(connection, store, study, number)
        alike = (db.trials.c.study_id == row["study_id"]) & (db.trials.c.arch_id == source["arch_id"])
        rows = connection.execute(select(db.trials.c.seed, db.trials.c.chosen).where(alike)).all()
        taken = {seed for seed, chosen in rows if chosen == source["chosen"]}
        seed = source["seed"]
        while seed in taken:
            seed = (seed + 1) % 2**31
        return Repeat(_enter(connection, row["study_id"], source, seed), seed)


def _enter(connection: Connection, study_id: int, source: Mapping[str, Any], seed: int) -> int:
    """A waiting trial like `source`, in Optuna's tables and ours -> its number."""
    of_study = _TRIALS.c.study_id == study_id
    number = connection.execute(select(func.count()).select_from(_TRIALS).where(of_study)).scalar_one()
    now = datetime.now()
    connection.execute(  # Optuna keeps naive UTC
        text(
            "INSERT INTO trials (number, study_id, state, datetime_start) VALUES (:number, :study_id, 'WAITING', :now)"
        ).bindparams(number=number, study_id=study_id, now=now.astimezone(UTC).replace(tzinfo=None))
    )
    query = select(func.max(_TRIALS.c.trial_id)).where(of_study, _TRIALS.c.number == number)
    trial_id = connection.execute(query).scalar_one()
    ids = {"new": trial_id, "old": source["trial_id"]}
    connection.execute(
        text(
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
            "SELECT CAST(:new AS INTEGER), param_name, param_value, distribution_json "
            "FROM trial_params WHERE trial_id = :old"
        ),
        ids,
    )
    costs = {name: source[name] for name in ("params", "mult_adds", "activations")}
    noted = {"arch_id": source["arch_id"], "seed": seed, **costs}
    attributes = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(v)} for key, v in noted.items()]
    connection.execute(_ATTRIBUTES.insert(), attributes)
    same = {name: source[name] for name in ("study_id", "arch_id", "family", "options", "chosen")}
    folder = _folder(source["folder"] or "", source["seed"], seed)
    values = {"trial_id": trial_id, "number": number, "seed": seed, "attempts": 1, "started": now, "folder": folder}
    connection.execute(db.trials.insert().values(**same, **costs, **values))
    return int(number)


def _folder(of_source: str, old: int, new: int) -> str:
    """Of the checkpoints and the log, named as a search names them; nothing where the source has none, or another
    way of naming them.
    """
    ending = f"-seed{old}"
    return f"{of_source.removesuffix(ending)}-seed{new}" if of_source.endswith(ending) else ""


def _trial(connection: Connection, store: Store, study: str, number: int) -> Mapping[str, Any]:
    mine = (db.trials.c.study_id == store.row(study)["study_id"]) & (db.trials.c.number == number)
    found = connection.execute(select(db.trials).where(mine)).mappings().first()
    if found is None:
        raise MnetError(f"no trial {number} in study {study!r}")
    return dict(found)


# ---------------------------------------------------------------- one trial, whole


@dataclass(frozen=True)
class TrialDetail:
    """What the frame has no column for: where a trial was trained, its folder, and its measurements."""

    trial_id: int
    state: str
    folder: str
    chosen: Mapping[str, Any]
    environment: Mapping[str, Any]
    measurements: tuple[Mapping[str, Any], ...]

    @property
    def is_remote(self) -> bool:
        """Whether its folder is a URL."""
        return is_url(self.folder)


def detail(store: Store, study: str, number: int) -> TrialDetail:
    """Raises MnetError for an unknown trial, StorageError for an unknown study."""
    with store.read() as connection:
        row = _trial(connection, store, study, number)
        state = connection.execute(select(_TRIALS.c.state).where(_TRIALS.c.trial_id == row["trial_id"])).scalar_one()
        query = select(db.measurements).where(db.measurements.c.trial_id == row["trial_id"])
        measured = connection.execute(query.order_by(db.measurements.c.measurement_id)).mappings().all()
    return TrialDetail(
        trial_id=row["trial_id"],
        state=STATES[state],
        folder=row["folder"] or "",
        chosen=dict(row["chosen"]),
        environment=dict(row["environment"] or {}),
        measurements=tuple(dict(one) for one in measured),
    )
