"""The figures and parameters of a study's frame as axes: how each is named, with its unit, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mnet_search.dashboards.snapshot import COSTS, Snapshot, percent, present
from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.spaces.space import si
from mnet_search.studies.pareto import Array

PARAMETER = "param."
FEW_VALUES = 8  # different numbers up to which a parameter is a choice and no range
FAR = 100.0  # largest over least value of a parameter from which its axis is logarithmic
MISSING = "–"  # a conditional parameter that was not active


class PlotError(MnetError):
    """A plot was asked for what the study does not record."""


def short(value: float) -> str:
    """A number in four digits, as people write it."""
    return f"{value:,.0f}" if abs(value) >= 9999.5 else f"{value:.4g}"


@dataclass(frozen=True)
class Quantity:
    """A column of the frame as an axis. `name` stands in sentences, `axis` at the axis, which shows the value times
    `scale`; `best` is "maximize", "minimize" or empty; `ticks` is a d3-format; `spread` the columns of the quartiles.
    """

    column: str
    name: str
    axis: str
    best: str = ""
    scale: float = 1.0
    ticks: str = "~g"
    text: Callable[[float], str] = short
    spread: tuple[str, str] | None = None


def with_unit(axis: Quantity) -> str:
    """The name with the unit of its axis, short: latency (ms)."""
    unit = axis.axis.partition("(")[2].partition(")")[0].partition(",")[0]
    return f"{axis.name} ({unit})" if unit else axis.name


def _cost(column: str) -> Quantity:
    cost = COSTS[column]
    return Quantity(column, cost.name, cost.axis, "minimize", ticks=cost.ticks, text=cost.text, spread=cost.spread)


def _seconds(value: float) -> str:
    return f"{value:,.1f} s"


# Add one here: a column that every study has.
QUANTITIES = {
    "accuracy": Quantity("accuracy", "accuracy", "Validation accuracy (%)", "maximize", 100.0, text=percent),
    "validation_loss": Quantity("validation_loss", "validation loss", "Validation loss (nats)", "minimize"),
    "latency_ms": _cost("latency_ms"),
    "params": _cost("params"),
    "mult_adds": _cost("mult_adds"),
    "activations": Quantity("activations", "activations", "Activations per image", "minimize", ticks="~s", text=si),
    "seconds": Quantity("seconds", "training time", "Training time (s)", "minimize", text=_seconds),
    "epochs": Quantity("epochs", "epochs", "Epochs trained"),
}


def figures(snapshot: Snapshot) -> tuple[str, ...]:
    """The columns that can be axes, objectives first: those in which some trial has a number."""
    names = dict.fromkeys([*snapshot.objectives, *QUANTITIES])
    frame = snapshot.frame
    return tuple(name for name in names if name in frame.columns and (frame.empty or frame[name].notna().any()))


def parameter_names(snapshot: Snapshot) -> tuple[str, ...]:
    """The parameters of the space, those that vary first."""
    names = [str(column).removeprefix(PARAMETER) for column in snapshot.frame if str(column).startswith(PARAMETER)]
    return tuple(sorted(names, key=lambda name: len(values_of(snapshot.frame, name)) < 2))


def values_of(frame: pd.DataFrame, parameter: str) -> tuple[Any, ...]:
    """The different values of a parameter: numbers ascending, then the rest as text."""
    found = [value for value in frame[PARAMETER + parameter].unique() if present(value)]
    numbers = sorted(value for value in found if _is_number(value))
    return (*numbers, *sorted((value for value in found if not _is_number(value)), key=str))


def quantity(snapshot: Snapshot, name: str) -> Quantity:
    """A figure by its column, or a parameter by its name (with or without `param.`). PlotError for another."""
    column = name if name in snapshot.frame.columns else PARAMETER + name
    if name in QUANTITIES or (name in snapshot.objectives and name in snapshot.frame.columns):
        plain = QUANTITIES.get(name) or Quantity(name, name, name)
        return plain if plain.best else _directed(plain, snapshot.objectives.get(name, ""))
    if column not in snapshot.frame.columns or not column.startswith(PARAMETER):
        known = [*figures(snapshot), *parameter_names(snapshot)]
        raise PlotError(
            f"study {snapshot.name!r} has no figure or parameter {name!r}{nearest(name, known)}; it has: "
            f"{', '.join(known)}"
        )
    parameter = column.removeprefix(PARAMETER)
    return Quantity(column, parameter, parameter)


def figure_axis(snapshot: Snapshot, name: str) -> Quantity:
    """A quantity that has a better and a worse. PlotError for a parameter, or one that is merely recorded."""
    found = quantity(snapshot, name)
    if not found.best:
        usable = [other for other in figures(snapshot) if quantity(snapshot, other).best]
        raise PlotError(
            f"{name!r} is neither better nor worse, so it has no front; axes can be: {', '.join(usable)} "
            "(parameters can be colour or size)"
        )
    return found


def _directed(plain: Quantity, direction: str) -> Quantity:
    return Quantity(plain.column, plain.name, plain.axis, direction, plain.scale, plain.ticks, plain.text)


def is_choice(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column is drawn as categories: texts, truths, and parameters of few different numbers."""
    values = frame[column]
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return True
    return column.startswith(PARAMETER) and values.nunique() <= FEW_VALUES


def is_logarithmic(values: Array) -> bool:
    """Whether numbers above 0 range so far that only a logarithmic axis shows them all: learning rates, say."""
    real = values[np.isfinite(values)]
    return bool(len(real) and real.min() > 0 and real.max() / real.min() >= FAR)


def labels(values: pd.Series) -> Array:
    """Cells as the text of categories."""
    codes, kinds = pd.factorize(values, use_na_sentinel=True)
    names = np.array([*(plain(value) for value in kinds), MISSING], dtype=object)
    return names[codes]


def ordered(names: Any) -> tuple[str, ...]:
    """Categories in order: numbers by value, then texts, what is missing last."""
    return tuple(sorted(set(names), key=_place))


def plain(value: Any) -> str:
    """A cell as text; a whole number in a column with gaps comes back as a float."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _place(name: str) -> tuple[int, float, str]:
    try:
        return (0, float(name), name)
    except ValueError:
        return (2 if name == MISSING else 1, 0.0, name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def numbers(rows: pd.DataFrame, column: str) -> Array:
    """A column as floats, NaN where there is nothing."""
    return pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
