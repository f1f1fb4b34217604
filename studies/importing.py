"""Trials brought in from elsewhere: rows checked against the space by a stated mapping, before `import_writer.py`
writes any of them.

Costs are never taken over: they are counted here, exactly, and what the source says of them is compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.complexity import costs
from mnet_search.models.costs import Costs
from mnet_search.models.tables import nearest
from mnet_search.spaces.schema import COST_NAMES, Choice, Parameter, Range, Value
from mnet_search.spaces.space import Params, Space
from mnet_search.studies.frame import METRICS
from mnet_search.studies.import_sources import Cell, SourceRow, SourceTable

STATED_COSTS = ("params", "mult_adds", "activations")
SAME_COST = 0.005  # relative difference up to which a printed cost is taken for the exact one, rounded
DIRECTIONS = {name: "maximize" if name == "accuracy" else "minimize" for name in METRICS}
OPPOSITE = {"maximize": "minimize", "minimize": "maximize"}
MOST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Column:
    """A column of the source; `percent` figures are divided by 100."""

    name: str
    percent: bool = False


@dataclass(frozen=True)
class Constant:
    """One value for all rows."""

    value: Cell


Mapped: TypeAlias = Column | Constant


@dataclass(frozen=True)
class ImportedTrial:
    """One row, checked: a network of the space with its exact costs and measured figures. `seed` and `epochs` are None
    where the source does not say.
    """

    place: str
    label: str
    chosen: Params
    arch: Arch
    costs: Costs
    metrics: Mapping[str, float]
    seed: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Plan:
    """What an import would bring in; `notes` are warnings, a sentence each."""

    trials: tuple[ImportedTrial, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    n_over_budget: int = 0
    n_left_out: int = 0
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- the mapping


def parse_mapping(items: Sequence[str]) -> dict[str, str]:
    """`--map` options: name -> what stands behind the first `=`. Raises MnetError."""
    found: dict[str, str] = {}
    for item in items:
        name, _, what = (part.strip() for part in item.partition("="))
        if not name or not what or what == "=":
            raise MnetError(
                f"--map {item}: write NAME=COLUMN, NAME=COLUMN% for a share in percent, or NAME==VALUE for all rows"
            )
        if name in found:
            raise MnetError(f"--map {item}: {name} is mapped twice, to {found[name]} too; leave one of them out")
        found[name] = what
    return found


def resolve(space: Space, table: SourceTable, asked: Mapping[str, str]) -> dict[str, Mapped]:
    """Where each parameter and figure comes from: as asked, else a column of its name, or the single value of a
    parameter. Raises MnetError naming what is missing and what there is.
    """
    figures = figures_of(space)
    known = [*space.parameters, *figures, "seed", "epochs", *(c for c in STATED_COSTS if c not in space.parameters)]
    found: dict[str, Mapped] = {}
    for name, what in asked.items():
        if name not in known:
            raise MnetError(f"--map {name}={what}: nothing is called {name!r}{nearest(name, known)}{_has(known)}")
        found[name] = _mapped(name, what, table, figures)
        _check_direction(space, table, name, found[name])
    for name, parameter in space.parameters.items():
        if name in found:
            continue
        column = next((c for c in (name, f"param.{name}", f"params.{name}") if c in table.columns), None)
        values = parameter.grid()
        if column is not None:
            found[name] = Column(column)
        elif values is not None and len(values) == 1:
            found[name] = Constant(values[0])
        elif not parameter.when:
            raise MnetError(f"parameter {_unmapped(name, table)}")
    found |= {name: Column(name) for name in figures if name not in found and name in table.columns}
    for name in space.file.objectives:
        if name not in found and name not in COST_NAMES:
            raise MnetError(f"objective {_unmapped(name, table)}")
    return found


def figures_of(space: Space) -> list[str]:
    """What is measured of a trial: the known figures, and objectives of the user's own."""
    return [*METRICS, *(n for n in space.file.objectives if n not in METRICS and n not in COST_NAMES)]


def _mapped(name: str, what: str, table: SourceTable, figures: Sequence[str]) -> Mapped:
    if what.startswith("="):
        return Constant(what[1:].strip())
    if what in table.columns:
        return Column(what)
    column = what.removesuffix("%").strip()
    if column == what or column not in table.columns:
        has = f"{nearest(column, table.columns)}{_has(table.columns)}"
        raise MnetError(f"--map {name}={what}: {table.name} has no column {column!r}{has}")
    if name not in figures or name.startswith("latency"):
        raise MnetError(f"--map {name}={what}: {name} is not given in percent; leave the % out")
    return Column(column, percent=True)


def _check_direction(space: Space, table: SourceTable, name: str, mapped: Mapped) -> None:
    """What a study minimizes is no accuracy, whatever it is called there."""
    theirs = table.directions.get(mapped.name) if isinstance(mapped, Column) else None
    ours = {**DIRECTIONS, **space.file.objectives}.get(name)
    if theirs in OPPOSITE and OPPOSITE[theirs] == ours:
        assert isinstance(mapped, Column)
        raise MnetError(
            f"--map {name}={mapped.name}: {table.name} {theirs}s {mapped.name}, and {name} is to be {ours}d; map "
            "another column, or give it from a CSV file, converted"
        )


def _unmapped(name: str, table: SourceTable) -> str:
    return f"{name}: not mapped; write --map {name}=COLUMN or --map {name}==VALUE{_has(table.columns)}"


def _has(names: Sequence[str]) -> str:
    return f" (there are: {', '.join(names) or 'none'})"


# ---------------------------------------------------------------- the rows


def plan(space: Space, table: SourceTable, asked: Mapping[str, str]) -> Plan:
    """Every row of a table, checked; those over the space's budgets are counted and left out, as a search would.

    Raises MnetError for the first row that is no trial of the space, with the number of the others.
    """
    mapping = resolve(space, table, asked)
    trials, problems, over = [], [], 0
    differing: dict[str, list[str]] = {}
    for row in table.rows:
        try:
            trial = _trial(space, row, mapping, table)
            stated = {name: _number(row, name, mapping) for name in STATED_COSTS if name in mapping}
        except MnetError as error:
            problems.append(str(error))
            continue
        if space.violation(trial.costs) is not None:
            over += 1
            continue
        trials.append(trial)
        for name, value in stated.items():
            if value is not None and not math.isclose(value, getattr(trial.costs, name), rel_tol=SAME_COST):
                differing.setdefault(name, []).append(
                    f"{row.place}: {value:,.0f} there, {getattr(trial.costs, name):,} here"
                )
    if problems:
        others = len(problems) - 1
        more = f" (and {others} more row{'s' * (others > 1)})" if others else ""
        raise MnetError(f"{problems[0]}{more}; nothing was written")
    _check_twice(space, trials)
    origin = {**table.origin, "mapping": {name: _as_text(mapped) for name, mapped in mapping.items()}}
    notes = [
        f"{name} differs in {len(rows)} rows ({rows[0]}); the exact sum is kept" for name, rows in differing.items()
    ]
    return Plan(tuple(trials), origin, over, table.n_left_out, (*notes, *_epoch_notes(space, trials)))


def _trial(space: Space, row: SourceRow, mapping: Mapping[str, Mapped], table: SourceTable) -> ImportedTrial:
    chosen: Params = {}
    for name, parameter in space.parameters.items():
        if space.active(parameter, chosen):  # what is not active there does not exist, whatever its cell says
            if name not in mapping:
                raise MnetError(f"{row.place}: parameter {_unmapped(name, table)}")
            chosen[name] = _value(row, name, parameter, _cell(row, mapping[name]))
    if space.listed and chosen not in space.listed:
        raise MnetError(f"{row.place}: its network is none of the {len(space.listed)} that the space lists")
    metrics = {}
    for name in figures_of(space):
        value = _number(row, name, mapping) if name in mapping else None
        if value is None and name in space.file.objectives:
            raise MnetError(f"{row.place}: {name} is empty, and it is an objective; fill it in, or leave the row out")
        if value is not None:
            metrics[name] = _checked(row, name, value)
    try:
        arch = space.arch(chosen)
    except MnetError as error:
        raise MnetError(f"{row.place}: no such network: {error}") from None
    seed, epochs = (_whole(row, name, mapping, least) for name, least in (("seed", 0), ("epochs", 1)))
    return ImportedTrial(row.place, row.label, chosen, arch, costs(arch), metrics, seed, epochs)


def _cell(row: SourceRow, mapped: Mapped) -> Cell:
    return mapped.value if isinstance(mapped, Constant) else row.cells.get(mapped.name)


def _value(row: SourceRow, name: str, parameter: Parameter, cell: Cell) -> Value:
    """The cell as the parameter's own value, so that "0.50" is its 0.5."""
    value = member(parameter, cell)
    if value is not None:
        return value
    if cell is None or cell == "":
        raise MnetError(f"{row.place}: {name} is empty, and the network needs one of the space ({_values(parameter)})")
    raise MnetError(f"{row.place}: {name} {cell} is not of the space ({_values(parameter)})")


def member(parameter: Parameter, cell: Cell) -> Value | None:
    """The value of a parameter that a cell means; None where it has no such value."""
    number = _as_number(cell)
    if isinstance(parameter, Choice):
        return next((value for value in parameter.values if _means(cell, number, value)), None)
    if number is None or not parameter.min <= number <= parameter.max:
        return None
    step = parameter.step if parameter.step is not None else (1 if parameter.whole else None)
    if step is None:
        return number
    value = parameter.min + round((number - parameter.min) / step) * step
    if not math.isclose(value, number, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return int(value) if parameter.whole else round(value, 10)


def _means(cell: Cell, number: float | None, value: Value) -> bool:
    if isinstance(value, bool):
        return str(cell).lower() == str(value).lower()
    if isinstance(value, str):
        return str(cell) == value
    return number is not None and math.isclose(number, value, rel_tol=1e-9, abs_tol=1e-12)


def _values(parameter: Parameter) -> str:
    if isinstance(parameter, Range):
        step = f" in steps of {parameter.step}" if parameter.step is not None else ""
        return f"{parameter.min} to {parameter.max}{step}"
    return ", ".join(map(str, parameter.values))


def _as_number(cell: Cell) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(cell, bool) or cell is None or (isinstance(cell, str) and "_" in cell):
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _number(row: SourceRow, name: str, mapping: Mapping[str, Mapped]) -> float | None:
    """A figure of a row; None where its cell is empty."""
    mapped = mapping[name]
    cell = _cell(row, mapped)
    if cell is None or cell == "":
        return None
    number = _as_number(cell)
    if number is None:
        raise MnetError(f"{row.place}: {name} is {cell}, and a finite number is needed")
    return number / 100 if isinstance(mapped, Column) and mapped.percent else number


def _checked(row: SourceRow, name: str, value: float) -> float:
    if name == "accuracy" and not 0 <= value <= 1:
        hint = "; write --map accuracy=COLUMN% for percent" if 1 < value <= 100 else ""
        raise MnetError(f"{row.place}: accuracy {value:g} is no share of images, which is 0 to 1{hint}")
    if name.startswith("latency") and value <= 0:
        raise MnetError(f"{row.place}: {name} {value:g} is no time, which is above 0 ms")
    return value


def _whole(row: SourceRow, name: str, mapping: Mapping[str, Mapped], least: int) -> int | None:
    value = _number(row, name, mapping) if name in mapping else None
    if value is None:
        return None
    if value != int(value) or not least <= value <= MOST_SEED:
        raise MnetError(f"{row.place}: {name} is {value:g}, and a whole number from {least} to {MOST_SEED:,} is needed")
    return int(value)


def _check_twice(space: Space, trials: Sequence[ImportedTrial]) -> None:
    """Raises MnetError where two rows say that they are one network trained with one seed."""
    seen: dict[tuple[str, int], str] = {}
    for trial in trials:
        if trial.seed is None:
            continue
        key = (space.key(trial.chosen, trial.arch.id), trial.seed)
        if key in seen:
            raise MnetError(
                f"{seen[key]} and {trial.place} are one network ({trial.arch.id}) with one seed ({trial.seed}); leave "
                "one of them out, or do not map seed: then each is a run of its own"
            )
        seen[key] = trial.place


def _epoch_notes(space: Space, trials: Sequence[ImportedTrial]) -> list[str]:
    others = Counter(t.epochs for t in trials if t.epochs is not None and t.epochs != _epochs(space, t))
    if not others:
        return []
    rows = ", ".join(f"{epochs} in {count} rows" for epochs, count in sorted(others.items())[:3])
    return [f"trained for other epochs than the space's ({rows}): their accuracies may not be comparable"]


def _epochs(space: Space, trial: ImportedTrial) -> int:
    return space.training_of(trial.chosen).epochs


def _as_text(mapped: Mapped) -> str:
    if isinstance(mapped, Constant):
        return f"={mapped.value}"
    return f"{mapped.name}%" if mapped.percent else mapped.name
