"""A study as it was read at one moment, and the words and figures that every page uses for it.

The live page and the report are written from one `Snapshot`, so they cannot disagree.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mnet_search.dashboards.measurements import latency_tables, measurements
from mnet_search.models.latency_table import LatencyTable
from mnet_search.spaces.space import si
from mnet_search.studies import frame as frames
from mnet_search.studies.pareto import front
from mnet_search.studies.store import Store


@dataclass(frozen=True)
class Snapshot:
    """A study as it was read at one moment: what every plot, table and sentence is made from.

    `frame` has one row a trial and `curves` one row a trial and epoch, with the columns of `studies.frame`;
    `objectives` maps columns of the frame to "maximize" or "minimize". Nobody changes any of it, nor what the methods
    give, which is worked out once: one snapshot is shared by all who look at a study.
    """

    name: str
    objectives: Mapping[str, str]
    frame: pd.DataFrame
    curves: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)
    space_text: str = ""
    measurements: pd.DataFrame = field(default_factory=pd.DataFrame)  # with the columns of dashboards.measurements
    latency_tables: tuple[LatencyTable, ...] = ()  # of the study's space, oldest first
    worked_out: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def finished(self) -> pd.DataFrame:
        return self._once("finished", lambda: self.frame[self.frame["state"] == "finished"])

    def front(self) -> pd.DataFrame:
        """The trials that no other beats in all objectives of the study at once."""
        return self._once("front", lambda: front(self.frame, self.objectives))

    def _once(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        # A copy by `dataclasses.replace` shares what was worked out, unless its frame or objectives are others.
        of = self.worked_out.get("of")
        if of is None or of[0] is not self.frame or of[1] != self.objectives:
            object.__setattr__(self, "worked_out", {"of": (self.frame, self.objectives)})
        known = self.worked_out
        if name not in known:
            known[name] = make()
        found: pd.DataFrame = known[name]
        return found


def take(store: Store | str, study: str) -> Snapshot:
    """Read a study from an open store or a storage URL. StorageError where there is no such database or study."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(Store(store)) if isinstance(store, str) else store
        return Snapshot(
            name=study,
            objectives=opened.objectives(study),
            frame=frames.load(opened, study),
            curves=frames.curves(opened, study),
            provenance=opened.provenance(study),
            space_text=opened.space_text(study),
            measurements=measurements(opened, study),
            latency_tables=latency_tables(opened, study),
        )


# --- Costs ---


@dataclass(frozen=True)
class Cost:
    """One column that a network costs: how the axis, the legend and a single value name it."""

    name: str
    axis: str
    text: Callable[[float], str]
    ticks: str  # d3-format of the axis ticks
    spread: tuple[str, str] | None = None  # columns of the lower and upper quartile


def milliseconds(value: float) -> str:
    return f"{_three_digits(value)} ms"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


COSTS = {
    "latency_ms": Cost(
        "latency", "Latency (ms, median and quartiles)", milliseconds, "~g", ("latency_q1_ms", "latency_q3_ms")
    ),
    "params": Cost("params", "Parameters", si, "~s"),
    "mult_adds": Cost("mult-adds", "Multiply-adds per image", si, "~s"),
}


# --- Words shared by plots and tables ---


def present(value: Any) -> bool:
    """Whether a cell of the frame holds anything (not None, NaN, NA or NaT)."""
    return not (pd.api.types.is_scalar(value) and pd.isna(value))


def parameters(row: Mapping[str, Any]) -> dict[str, str]:
    """The space parameters that were active in a row of the frame, as text."""
    found = {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
    return {name: _plain(value) for name, value in found.items() if present(value)}


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


def _plain(value: object) -> str:
    # A whole number in a column with gaps comes back as a float.
    return f"{value:g}" if isinstance(value, float) else str(value)


def architecture(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One trial in lines: number, id and family, every chosen parameter, accuracy, costs."""
    lines = [f"trial {row['number']} · {row['arch_id']} · {row['family']}"]
    lines += [f"{name}: {value}" for name, value in parameters(row).items()]
    if present(row.get("accuracy")):
        lines.append(f"accuracy: {percent(row['accuracy'])}")
    for column, cost in COSTS.items():
        if present(row.get(column)):
            lines.append(f"{cost.name}: {cost.text(row[column])}{quartiles(row, cost)}")
    return tuple(lines)


def phrase(row: Mapping[str, Any]) -> str:
    """One trial in one line of a sentence."""
    chosen = ", ".join(f"{name} {value}" for name, value in parameters(row).items())
    figures = [percent(row["accuracy"])]
    for column, cost in COSTS.items():
        if present(row.get(column)):
            name = "" if cost.spread else f" {cost.name}"  # a measured cost has a unit, which says enough
            figures.append(f"{cost.text(row[column])}{quartiles(row, cost)}{name}")
    return f"trial {row['number']} ({chosen or row['family']}): {', '.join(figures)}"


def quartiles(row: Mapping[str, Any], cost: Cost) -> str:
    """The quartiles of a measured cost, as " [0.51, 0.56]"; nothing for an exact cost or where none were measured."""
    if cost.spread is None or not all(present(row.get(column)) for column in cost.spread):
        return ""
    return " [" + ", ".join(_three_digits(row[column]) for column in cost.spread) + "]"


def noise_note(members: pd.DataFrame, finished: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    """What a front of single runs cannot tell apart; empty where every network on it was repeated.

    The binomial standard error sqrt(p (1 - p) / n) of the best accuracy p on n validation images; p is taken as at most
    1 - 1/n, since no error in n images does not mean no noise.
    """
    if members.empty:
        return ""
    # The same network under another recipe, or on other data, is no repeat.
    alike = ["arch_id", *(name for name in finished if str(name).startswith(("param.training.", "param.data.")))]
    runs = finished.groupby(alike, dropna=False)["number"].transform("size")
    singles = int((members["number"].map(dict(zip(finished["number"], runs, strict=True))) < 2).sum())
    if singles == 0:
        return ""
    images = validation_images(provenance)
    if images is None:
        size = "the binomial error"
    else:
        best = min(float(members["accuracy"].max()), 1 - 1 / images)
        error = 100 * math.sqrt(best * (1 - best) / images)
        size = f"{error:.2g} points (binomial standard error of the best accuracy, {images:,} validation images)"
    which = "single runs, no repeats" if singles == len(members) else f"{singles} of {len(members)} are single runs"
    return f"{which}: differences below about {size} are noise"


def validation_images(provenance: Mapping[str, Any]) -> int | None:
    """How many images the accuracy was measured on, where the study recorded it."""
    count = provenance.get("validation_images")
    return int(count) if isinstance(count, int | float) and count > 1 else None


# --- The front as a table ---


@dataclass(frozen=True)
class Table:
    """Text cells, ready to be shown; the writer of the page escapes them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def front_table(snapshot: Snapshot) -> Table:
    """The front of the study, one row a trial: number, the parameters that were chosen, accuracy and costs."""
    rows = records(snapshot.front())
    names = list(dict.fromkeys(name for row in rows for name in parameters(row)))
    columns = ("trial", *names, "accuracy", "latency, ms [q1, q3]", "params", "mult-adds")
    return Table(columns, tuple(_cells(row, names) for row in rows))


def _cells(row: Mapping[str, Any], names: list[str]) -> tuple[str, ...]:
    chosen = parameters(row)
    cells = [str(row["number"]), *(chosen.get(name, "–") for name in names)]
    cells.append(percent(row["accuracy"]) if present(row.get("accuracy")) else "–")
    for column, cost in COSTS.items():
        shown = present(row.get(column))
        cells.append(cost.text(row[column]).removesuffix(" ms") + quartiles(row, cost) if shown else "–")
    return tuple(cells)


# --- The study in words ---


@dataclass(frozen=True)
class Overview:
    """How far a study is and what it found. `best` and `small` are trials in words, empty where none is finished."""

    states: tuple[tuple[str, int], ...]
    n_front: int
    best: str
    small: str
    note: str


STATES = ("finished", "running", "waiting", "stopped", "failed")


def overview(snapshot: Snapshot) -> Overview:
    """Counts by state, the most accurate trial, and the one of fewest params within one point of it."""
    counts = snapshot.frame["state"].value_counts()
    finished = snapshot.finished().dropna(subset=["accuracy"])
    members = snapshot.front()
    best, small = "", ""
    if len(finished):
        # Of equally accurate trials the smaller one is meant.
        order = finished.sort_values(["accuracy", "params", "number"], ascending=[False, True, True])
        near = order[order["accuracy"] >= order["accuracy"].iloc[0] - 0.01 - 1e-12]
        best = phrase(records(order.head(1))[0])
        small = phrase(records(near.sort_values(["params", "number"]).head(1))[0])
    return Overview(
        states=tuple((state, int(counts[state])) for state in STATES if state in counts),
        n_front=len(members),
        best=best,
        small=small,
        note=noise_note(members, finished, snapshot.provenance),
    )


def findings(found: Overview) -> tuple[str, ...]:
    """The best trials as sentences; none where no trial is finished."""
    if not found.best:
        return ()
    best = f"Most accurate: {found.best}."
    if found.small == found.best:
        return (best, "No network of fewer params is within one point of it.")
    return (best, f"Fewest params within one point of that: {found.small}.")


def sentences(found: Overview) -> tuple[str, ...]:
    """The whole overview for a reader: counts, the best trials, and what their noise is."""
    counts = ", ".join(f"{count:,} {state}" for state, count in found.states) or "none yet"
    note = (f"{found.note[0].upper()}{found.note[1:]}.",) if found.note else ()
    return (f"Trials: {counts}. On the front: {found.n_front}.", *findings(found), *note)
