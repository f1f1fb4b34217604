"""Checked rows as finished trials of a study, in Optuna's tables and ours: each whole or not at all, and none twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import column, select, table, text, update

from mnet_search.spaces.schema import COST_NAMES, Parameter
from mnet_search.spaces.space import Params, Space
from mnet_search.studies import database as db
from mnet_search.studies.frame import IMPORTED_FROM
from mnet_search.studies.import_sources import source_of
from mnet_search.studies.importing import ImportedTrial, Plan
from mnet_search.studies.store import Store
from mnet_search.studies.writer import StudyWriter

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SAME_FIGURE = 1e-9  # relative: what dividing by 100 may change

_EXISTING = """
SELECT m.trial_id, m.arch_id, m.seed, m.attempts, m.chosen, m.metrics, m.environment, m.number, t.state, a.value_json
FROM mnet_trials m JOIN trials t ON t.trial_id = m.trial_id
LEFT JOIN trial_user_attributes a ON a.trial_id = m.trial_id AND a.key = :imported_from AND m.attempts = 0
WHERE m.study_id = :study_id AND t.state IN ('COMPLETE', 'RUNNING', 'WAITING') ORDER BY m.number
"""


# Optuna's, written as Optuna does, which takes a query or two for each attribute
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
_TRIALS = table("trials", column("trial_id"), column("number"))


@dataclass(frozen=True)
class Placed:
    """A trial of a plan with the seed that it gets in the study; `trial_id` where an import that was killed had begun
    it.
    """

    trial: ImportedTrial
    seed: int
    trial_id: int | None = None


@dataclass(frozen=True)
class Placement:
    """What of a plan is new to a study. `n_again` rows were imported before; `changed` says of each row whose place
    has other figures in the study what they are; of `n_same` the study has the network with that seed already, trained
    here or brought in from elsewhere.
    """

    new: tuple[Placed, ...]
    n_again: int = 0
    n_same: int = 0
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Before:
    """A trial that an earlier import brought in; `seeded` where its seed is the source's and not one of ours,
    `trial_id` where the import was killed before the end of it.
    """

    label: str
    number: int
    seed: int
    seeded: bool
    figures: Mapping[str, float]
    trial_id: int | None

    def is_run(self, trial: ImportedTrial) -> bool:
        """Whether a row of its source and network tells of this very run, wherever in the source it stands."""
        seeds_differ = self._seeds_told(trial) and trial.seed != self.seed
        return not seeds_differ and _same(trial.metrics, self.figures)

    def is_place(self, trial: ImportedTrial) -> bool:
        """Whether a row stands in its place: of the seed where both have one of the source's, else of the label."""
        return trial.seed == self.seed if self._seeds_told(trial) else trial.label == self.label

    def _seeds_told(self, trial: ImportedTrial) -> bool:
        return self.seeded and trial.seed is not None


def place(store: Store | None, study: str, space: Space, found: Plan) -> Placement:
    """What of a plan a study lacks. None for a database that is not there yet.

    A row was imported before where a trial of the same source has its network, its figures and, where rows have seeds,
    its seed; each trial is one row. A row that is left in the place of a trial that is left has changed. A row without
    a seed gets the next one, from the space's own on, with which its network is not in the study.
    """
    taken, before = _taken(store, study, space)
    keys = [space.key(trial.chosen, trial.arch.id) for trial in found.trials]
    known = [before.get((source_of(t.label), key), []) for t, key in zip(found.trials, keys, strict=True)]
    runs = _matched(found.trials, known)
    new, changed, n_again, n_same = [], [], 0, 0
    for number, (trial, key) in enumerate(zip(found.trials, keys, strict=True)):
        run = runs.get(number)
        if run is not None:
            if run.trial_id is None:
                n_again += 1
            else:
                new.append(Placed(trial, run.seed, run.trial_id))
            continue
        other = next((b for b in known[number] if b.is_place(trial)), None)  # those that are left
        if other is not None:
            known[number].remove(other)
            changed.append(_changed(trial, other))
            continue
        if trial.seed is not None and (key, trial.seed) in taken:
            n_same += 1
            continue
        seed = _free_seed(key, taken, space.file.search.seed) if trial.seed is None else trial.seed
        taken.add((key, seed))
        new.append(Placed(trial, seed))
    return Placement(tuple(new), n_again, n_same, tuple(changed))


def _taken(
    store: Store | None, study: str, space: Space
) -> tuple[set[tuple[str, int]], dict[tuple[str, str], list[_Before]]]:
    """The networks with seeds that a study has, and the trials that were imported by (source, network)."""
    taken: set[tuple[str, int]] = set()
    before: dict[tuple[str, str], list[_Before]] = {}
    for row in _existing(store, study) if store is not None else ():
        key = space.key(_from_json(row["chosen"]), row["arch_id"])
        taken.add((key, row["seed"]))
        if row["value_json"] is not None:
            label, metrics = str(_from_json(row["value_json"])), _from_json(row["metrics"]) or {}
            figures = {name: value for name, value in metrics.items() if name not in COST_NAMES}
            open_trial = None if row["state"] == "COMPLETE" else row["trial_id"]
            mapping = ((_from_json(row["environment"]) or {}).get("imported") or {}).get("mapping", {})
            one = _Before(label, row["number"], row["seed"], "seed" in mapping, figures, open_trial)
            before.setdefault((source_of(label), key), []).append(one)
    return taken, before


def _matched(trials: Sequence[ImportedTrial], known: Sequence[list[_Before]]) -> dict[int, _Before]:
    """The trial that a row was imported as, by the row's number in `trials`; it is then no longer in `known`. Rows that
    stand where they stood come first.
    """
    found: dict[int, _Before] = {}
    for same_place in (True, False):
        for number, trial in enumerate(trials):
            if number in found:
                continue
            fitting = (b for b in known[number] if (b.label == trial.label or not same_place) and b.is_run(trial))
            run = next(fitting, None)
            if run is not None:
                found[number] = run
                known[number].remove(run)
    return found


def _same(figures: Mapping[str, float], others: Mapping[str, float]) -> bool:
    return figures.keys() == others.keys() and all(
        math.isclose(value, others[name], rel_tol=SAME_FIGURE, abs_tol=SAME_FIGURE) for name, value in figures.items()
    )


def _changed(trial: ImportedTrial, before: _Before) -> str:
    names = [name for name in {**trial.metrics, **before.figures} if _differs(name, trial.metrics, before.figures)]
    shown = ", ".join(f"{n} {_shown(trial.metrics.get(n))} ({_shown(before.figures.get(n))} before)" for n in names)
    another = "in a file of another name" if " row " in trial.label else "from a study of another name"
    return (
        f"{trial.label} was imported before, as trial {before.number}, with other figures: {shown}; it is left out and "
        f"the trial stays as it is; if it is another run, give it {another}"
    )


def _differs(name: str, figures: Mapping[str, float], others: Mapping[str, float]) -> bool:
    parts = ({name: each[name]} if name in each else {} for each in (figures, others))
    return not _same(*parts)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.10g}"


def _existing(store: Store, study: str) -> Sequence[Mapping[str, Any]]:
    if study not in store.names():
        return []
    query = text(_EXISTING).bindparams(study_id=store.row(study)["study_id"], imported_from=IMPORTED_FROM)
    with store.read() as connection:
        rows: Sequence[Mapping[str, Any]] = connection.execute(query).mappings().all()
    return rows


def _from_json(cell: Any) -> Any:
    """A JSON column of a raw query: SQLite gives text, PostgreSQL what it says."""
    return json.loads(cell) if isinstance(cell, str) else cell


def _free_seed(key: str, taken: set[tuple[str, int]], first: int) -> int:
    seed = first
    while (key, seed) in taken:
        seed = (seed + 1) % 2**31
    return seed


def enter(
    writer: StudyWriter,
    space: Space,
    new: Sequence[Placed],
    origin: Mapping[str, Any],
    distribution: Callable[[Parameter], BaseDistribution],
) -> None:
    """Write trials as finished ones; inside the writer's lock. Raises StorageError.

    Each is begun at Optuna, set down in our table with its figures and no attempt, and then told as complete. Killed
    after the first step, it is one that a driver died over, and is told as failed; after the second, the same import
    ends it, or a driver that comes first trains it.
    """
    with writer.turn():
        writer.end_half_begun()
    for placed in new:
        with writer.turn(), db.translated(writer.store.url):
            _enter(writer, space, placed, origin, distribution)


def _enter(
    writer: StudyWriter,
    space: Space,
    placed: Placed,
    origin: Mapping[str, Any],
    distribution: Callable[[Parameter], BaseDistribution],
) -> None:
    import optuna

    trial, storage = placed.trial, writer.store.optuna
    figures = {name: float(getattr(trial.costs, name)) for name in space.file.objectives if name in COST_NAMES}
    figures = {**trial.metrics, **figures}
    about = {**origin, "from": trial.label} | ({"epochs": trial.epochs} if trial.epochs is not None else {})
    now = datetime.now()
    ended = {"started": now, "finished": now, "metrics": figures, "environment": {"imported": about}}
    if placed.trial_id is None:
        trial_id = storage.create_new_trial(writer.study_id, _template(space, trial.chosen, distribution))
        with writer.store.write() as connection:
            number = connection.execute(select(_TRIALS.c.number).where(_TRIALS.c.trial_id == trial_id)).scalar()
            values = _row(trial, placed.seed) | {"study_id": writer.study_id, "number": number, "owner": writer.owner}
            connection.execute(db.trials.insert().values(trial_id=trial_id, **values, **ended))
            noted = {"arch_id": trial.arch.id, "seed": placed.seed, **asdict(trial.costs), IMPORTED_FROM: trial.label}
            rows = [{"trial_id": trial_id, "key": k, "value_json": json.dumps(v)} for k, v in noted.items()]
            connection.execute(_ATTRIBUTES.insert(), rows)
    else:
        trial_id = placed.trial_id
        with writer.store.write() as connection:
            mine = db.trials.c.trial_id == trial_id
            connection.execute(update(db.trials).where(mine).values(owner=writer.owner, **ended))
    values_in_order = [figures[name] for name in space.file.objectives]
    storage.set_trial_state_values(trial_id, optuna.trial.TrialState.COMPLETE, values_in_order)


def _template(space: Space, chosen: Params, distribution: Callable[[Parameter], BaseDistribution]) -> Any:
    import optuna

    return optuna.trial.FrozenTrial(
        number=-1,
        trial_id=-1,
        state=optuna.trial.TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params=dict(chosen),
        distributions={name: distribution(space.parameters[name]) for name in chosen},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )


def _row(trial: ImportedTrial, seed: int) -> dict[str, Any]:
    """What our table says of it besides its figures."""
    return {
        "arch_id": trial.arch.id,
        "seed": seed,
        "family": trial.arch.family,
        "options": dict(trial.arch.options),
        "chosen": dict(trial.chosen),
        **{name: getattr(trial.costs, name) for name in ("params", "mult_adds", "activations")},
        "attempts": 0,
        "folder": "",
        "checkpoint": "",
        "checkpoint_sha256": "",
    }
