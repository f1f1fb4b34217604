"""A study's networks as rows of a table in the manner of the MobileNetV1 paper (arXiv 1704.04861, tables 4 to 9)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from mnet_search.models.arch import MnetError
from mnet_search.studies.confidence import sampling_error
from mnet_search.studies.pareto import front, networks

Which = Literal["front", "all", "best"]
ErrorKind = Literal["sd", "sampling", ""]

IN_COLUMNS = ("accuracy", "latency_ms", "params", "mult_adds")  # objectives that have a column anyway
PAPER_FAMILY, PAPER_NAME = "mobilenet_v1", "MobileNet"
NAMED_DEPTHS = ("full", "shallow")


@dataclass(frozen=True)
class ResultRow:
    """One network, means over its `n` runs. `accuracy` is a share (0 to 1); `accuracy_error` is the sample standard
    deviation over runs (`sd`), or for a single run the binomial error of the validation images (`sampling`).
    `objectives` are those without a column of their own, `parameters` those that vary and the name does not say.
    """

    network: str
    arch_id: str
    trials: tuple[int, ...]
    accuracy: float | None
    accuracy_error: float | None
    error_kind: ErrorKind
    mult_adds: int
    params: int
    latency_ms: float | None = None
    latency_q1_ms: float | None = None
    latency_q3_ms: float | None = None
    objectives: tuple[tuple[str, float | None], ...] = ()
    parameters: tuple[tuple[str, Any], ...] = ()
    imported: bool = False

    @property
    def n(self) -> int:
        return len(self.trials)


@dataclass(frozen=True)
class ResultTable:
    """Rows and what must be said of them, a line each."""

    rows: tuple[ResultRow, ...]
    notes: tuple[str, ...] = ()


def rows_of(
    frame: pd.DataFrame,
    objectives: Mapping[str, str],
    which: Which = "front",
    limits: Mapping[str, float] | None = None,
    validation_images: int | None = None,
) -> tuple[ResultRow, ...]:
    """The networks of a study's frame: its front, all, or the best by the first objective; of those within `limits`
    (name -> at most). Most mult-adds first, as in the paper.

    Raises MnetError where nothing is finished, or nothing is within the limits.
    """
    finished = frame[frame["state"] == "finished"]
    if finished.empty:
        raise MnetError("no trial of this study has finished yet; let the search run on")
    averaged = {**objectives, "accuracy": "maximize", "validation_loss": "minimize", "latency_ms": "minimize"}
    known = networks(finished, {name: way for name, way in averaged.items() if name in frame.columns})
    within = _within(known, limits or {})
    chosen = _chosen(finished, within, objectives, which)
    names = _parameters_to_show(known)
    imported = dict(zip(finished["number"], finished["imported"] != "", strict=True))
    ordered = chosen.sort_values(["mult_adds", "params", "number"], ascending=[False, False, True])
    return tuple(
        _row(row, objectives, names, validation_images, imported=any(imported[n] for n in row["numbers"]))
        for row in ordered.to_dict("records")
    )


def _within(rows: pd.DataFrame, limits: Mapping[str, float]) -> pd.DataFrame:
    found = rows
    for name, limit in limits.items():
        if name not in rows.columns or not pd.api.types.is_numeric_dtype(rows[name]):
            raise MnetError(
                f"--max {name}: not a figure of a trial; "
                "use params, mult_adds, activations, latency_ms or another objective"
            )
        found = found[found[name] <= limit]
        if found.empty:
            raise MnetError(f"no finished trial has {name} within {limit:g}; the least is {rows[name].min():g}")
    return found


def _chosen(finished: pd.DataFrame, within: pd.DataFrame, objectives: Mapping[str, str], which: Which) -> pd.DataFrame:
    if which == "all":
        return within
    if which == "best":
        first, direction = next(iter(objectives.items()))
        by = [first, "mult_adds", "number"]
        return within.sort_values(by, ascending=[direction == "minimize", True, True]).head(1)
    runs = [number for numbers in within["numbers"] for number in numbers]
    members = front(finished[finished["number"].isin(runs)], objectives)["number"]
    return within[within["number"].isin(members)]


def _row(
    row: Mapping[Any, Any],
    objectives: Mapping[str, str],
    names: Sequence[str],
    images: int | None,
    *,
    imported: bool,
) -> ResultRow:
    accuracy, n = _figure(row["accuracy"]), len(row["numbers"])
    error, kind = (_figure(row["accuracy_sd"]), "sd") if n > 1 else (None, "")
    if n == 1 and images and accuracy is not None and not imported:  # of others' images nothing is known
        error, kind = sampling_error(accuracy, images), "sampling"
    return ResultRow(
        network=network_name(str(row["family"]), row["options"]),
        arch_id=str(row["arch_id"]),
        trials=tuple(row["numbers"]),
        accuracy=accuracy,
        accuracy_error=error,
        error_kind=kind if error is not None else "",  # type: ignore[arg-type]
        mult_adds=int(row["mult_adds"]),
        params=int(row["params"]),
        **{name: _figure(row[name]) for name in ("latency_ms", "latency_q1_ms", "latency_q3_ms")},
        objectives=tuple((name, _figure(row[name])) for name in objectives if name not in IN_COLUMNS),
        parameters=tuple((name, _plain(row[f"param.{name}"])) for name in names),
        imported=imported,
    )


def network_name(family: str, options: Mapping[str, Any]) -> str:
    """As the field names it: "0.75 MobileNet-160", "shallow MobileNet-32"; other families by their name."""
    if family != PAPER_FAMILY or not {"width", "resolution"} <= options.keys():
        return family
    width = float(options["width"])
    shallow = options.get("depth") == "shallow"
    shown = [*["shallow"] * shallow, *[str(width)] * (width != 1 or not shallow)]
    return f"{' '.join(shown)} {PAPER_NAME}-{options['resolution']}"


def _parameters_to_show(rows: pd.DataFrame) -> list[str]:
    """Parameters of more than one value that some network's name does not say."""
    names = []
    for column in (str(c) for c in rows.columns if str(c).startswith("param.")):
        name = column.removeprefix("param.")
        values = {_plain(value) for value in rows[column]}
        pairs = zip(rows["family"], rows["options"], rows[column], strict=True)
        if len(values) > 1 and not all(_is_said(name, f, o) for f, o, v in pairs if _plain(v) is not None):
            names.append(name)
    return names


def _is_said(name: str, family: str, options: Mapping[str, Any]) -> bool:
    if name == "family":
        return True
    said = ("width", "resolution", *["depth"] * (options.get("depth") in NAMED_DEPTHS))
    return family == PAPER_FAMILY and name in said


def _figure(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _plain(value: Any) -> Any:
    """A parameter's value; None where it is not active. A whole number in a column with gaps comes as a float."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def notes_of(
    rows: Sequence[ResultRow], study: str, n_finished: int, data: str, validation_images: int | None
) -> tuple[str, ...]:
    """What a table of these rows must say: where it is from, and what stands behind +-, brackets and daggers."""
    images = f", {validation_images:,} validation images" if validation_images else ""
    notes = [f"Study {study}: {n_finished} finished trials, data {data}{images}; n is the number of runs of a network."]
    kinds = {row.error_kind for row in rows}
    if "sd" in kinds:
        notes.append("± is the sample standard deviation over n runs.")
    if "sampling" in kinds:
        notes.append("(±) is the binomial sampling error of the validation images, for a single run.")
    if any(row.latency_q1_ms is not None for row in rows):
        notes.append("Latency is the median of the measured runs, with their quartiles in brackets.")
    if any(row.imported for row in rows):
        notes.append("† has imported runs, which were not trained here.")
    return tuple(notes)
