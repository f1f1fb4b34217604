"""Which networks leave a study, and the training config of each: all that `mnet-search train` needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.families import create
from mnet_search.spaces.schema import Data, SpaceFile, Strict, Training
from mnet_search.spaces.settings import TrialSettings
from mnet_search.spaces.yamlfile import read, validate
from mnet_search.studies.frame import METRICS, load
from mnet_search.studies.pareto import front, networks
from mnet_search.studies.store import Store

CONFIG_VERSION = 1


class ArchEntry(Strict):
    """A network in a config: how to make it, and the id by which to see that it is the same one (if given)."""

    family: str
    options: dict[str, bool | int | float | str | dict[str, bool | int | float | str]] = Field(default_factory=dict)
    arch_id: str | None = None


class TrainConfig(Strict):
    """What `mnet-search train` needs, and where it came from. `measured` and `provenance` are for people."""

    config_version: int = Field(default=CONFIG_VERSION, ge=1, description="1 in this version")
    arch: ArchEntry
    data: Data = Data()
    training: Training = Training()
    seed: int = Field(default=0, ge=0)
    measured: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)


def read_config(path: Path, overrides: Iterable[str] = ()) -> tuple[TrainConfig, Arch]:
    """A config and its network. Raises MnetError where it is of a newer version, or its network is another one in this
    version.
    """
    values, source = read(path, overrides)
    version = values.get("config_version")
    if isinstance(version, int) and version > CONFIG_VERSION:
        raise source.error(
            ("config_version",),
            f"{version} is newer than this mnet-search reads ({CONFIG_VERSION}); upgrade mnet-search",
        )
    if "arch" not in values:
        raise MnetError(f"{path}: no training config (it has no `arch:`); `mnet-search export STUDY --best` writes one")
    config = validate(values, source, TrainConfig)
    arch = create(config.arch.family, **config.arch.options)
    if config.arch.arch_id is None:  # written by hand
        config = config.model_copy(update={"arch": config.arch.model_copy(update={"arch_id": arch.id})})
    elif arch.id != config.arch.arch_id:
        raise MnetError(
            f"{path}: its options give the network {arch.id} in this version, not {config.arch.arch_id}; "
            "use the mnet-search that wrote it, or set arch.arch_id if the change is meant"
        )
    return config, arch


def select(
    frame: pd.DataFrame, objectives: Mapping[str, str], which: str, limits: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The rows that `which` names: "front", "best" (of the first objective within `limits`, ties to fewer mult-adds) or
    a trial's number.

    Networks that were trained several times are compared, and held to the limits, by their means. The row of such a
    network is its first trial as it was recorded, with its own seed, figures and checkpoint: what can be exported is
    one run. Raises MnetError where there is none, or the trial did not finish.
    """
    if which not in ("front", "best"):
        return _one_trial(frame, int(which))
    finished = frame[frame["state"] == "finished"]
    if finished.empty:
        raise MnetError("no trial of this study has finished yet; let the search run on")
    if which == "front":
        members = front(finished, objectives)["number"].tolist()
        rows = finished[finished["number"].isin(members)]
        return rows.sort_values("number", key=lambda numbers: numbers.map(members.index))
    limits = limits or {}
    for name in limits:
        if name not in frame.columns or not pd.api.types.is_numeric_dtype(frame[name]):
            raise MnetError(
                f"--max {name}: not a figure of a trial; "
                "use params, mult_adds, activations, latency_ms or another objective"
            )
    averaged = {**objectives, **{name: "minimize" for name in limits if name in METRICS}}
    known = within = networks(finished, averaged)
    for name, limit in limits.items():
        within = within[within[name] <= limit]
        if within.empty:
            least = known[name].min()
            raise MnetError(f"no finished trial has {name} within {limit:g}; the least is {least:g}")
    first, direction = next(iter(objectives.items()))
    ordered = within.sort_values([first, "mult_adds", "number"], ascending=[direction == "minimize", True, True])
    return finished[finished["number"] == ordered["number"].iloc[0]]


def config_of(store: Store, study: str, row: pd.Series) -> dict[str, Any]:
    """The training config of one finished trial, as plain values in the order in which a person reads them."""
    stored = store.row(study)
    names = ("accuracy", "validation_loss", "latency_ms", "latency_q1_ms", "latency_q3_ms")
    measured = {name: float(row[name]) for name in names if not math.isnan(row[name])}
    provenance = dict(stored["provenance"])
    settings = TrialSettings(SpaceFile.model_validate(stored["space"]))
    chosen = store.chosen(study)[int(row["number"])]
    data = settings.data(chosen)
    return {
        "config_version": CONFIG_VERSION,
        "arch": {"family": row["family"], "options": dict(row["options"]), "arch_id": row["arch_id"]},
        "data": data.model_dump(mode="json", exclude_none=True),
        "training": settings.training(chosen).model_dump(mode="json", exclude_none=True),
        "seed": int(row["seed"]),
        "measured": {
            **measured,
            **_runs(load(store, study), int(row["number"])),
            "validation_images": data_facts(provenance, data).get("validation_images"),
            **{name: int(row[name]) for name in ("params", "mult_adds", "activations")},
        },
        "provenance": {"study": study, "trial": int(row["number"]), "space_hash": stored["space_hash"], **provenance},
    }


def _runs(frame: pd.DataFrame, number: int) -> dict[str, Any]:
    """How many runs the network of this trial has, and where more than one, the mean and sd of their accuracies."""
    rows = networks(frame, {"accuracy": "maximize"})
    row = rows[[number in numbers for numbers in rows["numbers"]]].iloc[0]
    if row["n"] == 1:
        return {"runs": 1}
    figures = {"accuracy_mean": float(row["accuracy"]), "accuracy_sd": float(row["accuracy_sd"])}
    return {"runs": int(row["n"]), **{name: value for name, value in figures.items() if not math.isnan(value)}}


def data_facts(provenance: Mapping[str, Any], data: Data) -> Mapping[str, Any]:
    """What a study keeps of one setting of its data: data_digest, train_images, validation_images."""
    wanted = data.model_dump(exclude_none=True)
    for exact in (True, False):  # where the images lie may have changed since
        left_out = ("download",) if exact else ("download", "path")
        for row in provenance.get("data", []):
            if _without(row["settings"], left_out) == _without(wanted, left_out):
                facts: Mapping[str, Any] = row
                return facts
    return provenance


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _one_trial(frame: pd.DataFrame, number: int) -> pd.DataFrame:
    row = frame[frame["number"] == number]
    if row.empty:
        last = f"0 to {frame['number'].max()}" if len(frame) else "none yet"
        raise MnetError(f"no trial {number} in this study (it has: {last})")
    state, reason = row.iloc[0]["state"], row.iloc[0]["reason"]
    if state != "finished":
        raise MnetError(
            f"trial {number} is {state}{': ' + reason if reason else ''}; only a finished trial can be exported"
        )
    return row
