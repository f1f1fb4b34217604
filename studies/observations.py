"""What scaling laws are fitted to: the networks of a study with their errors, the noise of these, and their sizes.

Noise is that of ln(error), as in `confidence`: the pooled spread between runs of a network where networks were trained
more than once, else the binomial error of the validation images, a lower bound.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.complexity import costs, depth
from mnet_search.models.families import create
from mnet_search.models.tables import nearest
from mnet_search.spaces.space import si
from mnet_search.studies.confidence import LEAST_ERROR, NoiseSource
from mnet_search.studies.pareto import Array, network_of, networks

if TYPE_CHECKING:
    import pandas as pd

PARAMETER = "param."
SAME_WAY = 1e-8  # of the largest singular value: sizes that vary together and cannot be told apart
SAME_ERROR = 1e-9  # in ln(error): rounding


@dataclass(frozen=True, eq=False)
class Observations:
    """n networks: `accuracy` the mean over runs (fractions), `log_error` ln(1 - accuracy), `noise` its standard error
    (0 where nothing tells it), `n_runs` how many runs each has, all (n,).

    `variables` are arrays by a name of VARIABLES (NaN where a network has no such thing), `parameters` the values of
    each parameter of the space by its name, "-" where it is not active. `run_noise` is the sd of ln(error) between
    runs where `noise_source` is "repeats", from `noise_freedom` degrees of freedom; `images` the validation images.
    `notes` say what makes these networks a doubtful sample.
    """

    labels: tuple[str, ...]
    accuracy: Array
    log_error: Array
    noise: Array
    n_runs: Array
    variables: Mapping[str, Array]
    parameters: Mapping[str, tuple[Any, ...]]
    keys: tuple[str, ...]
    noise_source: NoiseSource
    run_noise: float
    noise_freedom: float
    images: int | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def n_values(self, name: str) -> int:
        """How many different values a variable has; 0 where some network has no such thing."""
        values = self.variables.get(name)
        return 0 if values is None or not np.isfinite(values).all() else len(np.unique(values))

    def noise_of_a_run(self, error: Array) -> Array:
        """The sd of ln(error) of one run of a network with this error."""
        if self.noise_source == "repeats":
            return np.full(np.shape(error), self.run_noise)
        return _binomial(np.asarray(error), self.images)


def observe(
    accuracy: Sequence[float] | Array,
    variables: Mapping[str, Sequence[float] | Array],
    *,
    images: int | None = None,
    labels: Sequence[str] | None = None,
    parameters: Mapping[str, Sequence[Any]] | None = None,
) -> Observations:
    """Observations from plain numbers: accuracies as fractions, variables by a name of VARIABLES, the number of images
    that the accuracies were measured on. Raises MnetError.
    """
    values = np.asarray(accuracy, dtype=float)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise MnetError("accuracies are a list of fractions from 0 to 1")
    columns = {name: np.asarray(column, dtype=float) for name, column in variables.items()}
    for name, column in columns.items():
        if column.shape != values.shape or not (column > 0).all():
            raise MnetError(f"{name}: a scaling law needs one number above 0 for each of the {len(values)} accuracies")
    error = _error(values, images)
    names = [" ".join(f"{name}={column[i]:g}" for name, column in columns.items()) for i in range(len(values))]
    return Observations(
        labels=tuple(labels) if labels is not None else tuple(names),
        accuracy=values,
        log_error=np.log(error),
        noise=_binomial(error, images),
        n_runs=np.ones(len(values), dtype=int),
        variables=columns,
        parameters={name: tuple(column) for name, column in (parameters or variables).items()},
        keys=tuple(names),
        noise_source="sampling" if images else "unknown",
        run_noise=0.0,
        noise_freedom=math.inf,
        images=images,
    )


def study_observations(
    frame: pd.DataFrame, study: str, images: int | None, where: Mapping[str, Any] | None = None
) -> Observations:
    """The networks that a study has finished, one observation each, of those trials that have the values of `where`.

    Raises MnetError where there is no finished trial, no accuracy, or no such parameter or value.
    """
    chosen = _filtered(frame, study, where or {})
    finished = chosen[chosen["state"] == "finished"]
    if finished.empty:
        raise MnetError(
            f"study {study!r} has no finished trial{_such(where)} to fit; train some: "
            f"mnet-search resume {shlex.quote(study)}"
        )
    if finished["accuracy"].isna().all():
        raise MnetError(
            f"study {study!r} has no accuracy in any of its {len(finished)} finished trials, and laws are fitted to "
            "1 - accuracy; choose a study whose trials were validated (mnet-search studies lists them)"
        )
    measured = chosen[(chosen["state"] != "finished") | chosen["accuracy"].notna()]
    rows = networks(measured, {"accuracy": "maximize"})
    runs = measured[measured["state"] == "finished"]
    accuracy = rows["accuracy"].to_numpy(dtype=float)
    error = _error(accuracy, images)
    pooled, freedom = _pooled(np.log(_error(runs["accuracy"].to_numpy(dtype=float), images)), network_of(runs))
    repeats = pooled > 0
    archs = [_arch(row) for row in rows.to_dict("records")]
    parameters = _parameters(rows)
    return Observations(
        labels=tuple(_label(parameters, i) or str(rows["arch_id"].iloc[i]) for i in range(len(rows))),
        accuracy=accuracy,
        log_error=np.log(error),
        noise=pooled / np.sqrt(rows["n"].to_numpy()) if repeats else _binomial(error, images),
        n_runs=rows["n"].to_numpy(dtype=int),
        variables={name: np.array([variable.of(arch) for arch in archs]) for name, variable in VARIABLES.items()},
        parameters=parameters,
        keys=tuple(map(str, rows["arch_id"])),
        noise_source="repeats" if repeats else "sampling" if images else "unknown",
        run_noise=pooled,
        noise_freedom=float(freedom) if repeats else math.inf,
        images=images,
        notes=tuple(_missing(chosen, len(rows))),
    )


def check_errors(observations: Observations) -> None:
    """Raises MnetError where all errors are one; an error of 0 counts as half an image, so that those of perfect
    networks are one too.
    """
    if len(observations) > 1 and float(np.ptp(observations.log_error)) < SAME_ERROR:
        raise MnetError(
            f"the errors do not vary: all {len(observations)} finished networks have the accuracy "
            f"{observations.accuracy.mean():.2%}, and there is nothing to fit; train networks further apart in size, "
            "or on data that tell them apart"
        )


def tell_apart(form: str, variables: tuple[str, ...], logs: Array) -> None:
    """Raises MnetError where the logarithms (n, k) of sizes depend on each other."""
    if len(variables) < 2:
        return
    singular = np.linalg.svd(logs - logs.mean(0), compute_uv=False)
    if singular[-1] <= SAME_WAY * singular[0]:
        raise MnetError(
            f"fit {form}: {' and '.join(variables)} vary together in these networks, so that their effects cannot be "
            "told apart; train networks in which one changes alone"
        )


def matches(value: Any, wanted: Any) -> bool:
    """Whether a parameter's value is the one asked for: numbers as numbers, else as text."""
    numbers = (int, float)
    if isinstance(value, numbers) and isinstance(wanted, numbers):
        return math.isclose(value, wanted, rel_tol=1e-9)
    return str(value) == str(wanted)


def _filtered(frame: pd.DataFrame, study: str, where: Mapping[str, Any]) -> pd.DataFrame:
    for name, wanted in where.items():
        column = "family" if name == "family" else PARAMETER + name
        if column not in frame.columns:
            known = [str(c).removeprefix(PARAMETER) for c in frame.columns if str(c).startswith(PARAMETER)]
            raise MnetError(
                f"--where {name}={wanted}: study {study!r} has no parameter {name!r}{nearest(name, known)} (it has: "
                f"{', '.join(known)})"
            )
        kept = frame[[matches(value, wanted) for value in frame[column]]]
        if kept.empty:
            seen = ", ".join(dict.fromkeys(_plain(value) for value in frame[column].dropna()))
            raise MnetError(f"--where {name}={wanted}: no trial has that value; trials have: {seen or 'none'}")
        frame = kept
    return frame


def _such(where: Mapping[str, Any] | None) -> str:
    return " with " + " ".join(f"{name}={value}" for name, value in where.items()) if where else ""


def _missing(frame: pd.DataFrame, n: int) -> list[str]:
    """What the trials that did not finish make of those that did."""
    count = {state: int((frame["state"] == state).sum()) for state in ("stopped", "failed", "running")}
    notes = []
    if count["stopped"] or count["failed"]:
        ends = [f"{count[state]} {text}" for state, text in _ENDS.items() if count[state]]
        notes.append(
            f"{' and '.join(ends)} of {len(frame)} trials, so the {n} networks that are left are a selected sample, "
            "and laws fitted to it are biased; run with search.scheduler: none for a fit"
        )
    return notes


_ENDS = {"stopped": "stopped early", "failed": "failed"}


def _parameters(rows: pd.DataFrame) -> dict[str, tuple[Any, ...]]:
    found = {}
    if rows["family"].nunique() > 1 and PARAMETER + "family" not in rows.columns:
        found["family"] = tuple(rows["family"])
    for column in rows.columns:
        if str(column).startswith(PARAMETER):
            values = [None if _absent(value) else value for value in rows[column]]
            found[str(column).removeprefix(PARAMETER)] = tuple("-" if v is None else _number(v) for v in values)
    return found


def _label(parameters: Mapping[str, tuple[Any, ...]], index: int) -> str:
    shown = {name: values[index] for name, values in parameters.items() if len(set(map(str, values))) > 1}
    shown = shown or {name: values[index] for name, values in parameters.items()}
    return " ".join(f"{name}={_plain(value)}" for name, value in shown.items() if value != "-")


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> Any:
    """A whole number in a column with gaps comes back as a float."""
    plain = value.item() if hasattr(value, "item") else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() and abs(plain) > 1 else plain


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _arch(row: Mapping[Any, Any]) -> Arch:
    arch = create(row["family"], **row["options"])
    if arch.id != row["arch_id"]:
        raise MnetError(
            f"the options of network {row['arch_id']} give the network {arch.id} in this version; use the mnet-search "
            "that trained it"
        )
    return arch


# ---------------------------------------------------------------- noise


def _error(accuracy: Array, images: int | None) -> Array:
    """1 - accuracy; no error in so many images counts as half of one."""
    found: Array = np.maximum(1 - accuracy, 0.5 / images if images else LEAST_ERROR)
    return found


def _binomial(error: Array, images: int | None) -> Array:
    """The standard error of ln(error) measured on so many images: sqrt(p (1 - p) / images) / p."""
    if not images:
        return np.zeros(np.shape(error))
    p = np.clip(error, 1 / images, 1.0)
    found: Array = np.sqrt((1 - p) / (p * images))
    return found


def _pooled(values: Array, network: pd.Series) -> tuple[float, int]:
    """The sd within networks of two runs or more, and its degrees of freedom; (0, 0) without any."""
    _, place = np.unique(network.to_numpy(), return_inverse=True)
    counts = np.bincount(place)
    freedom = int((counts - 1).sum())
    if freedom == 0:
        return 0.0, 0
    means = np.bincount(place, values) / counts
    return math.sqrt(float(((values - means[place]) ** 2).sum()) / freedom), freedom


# ---------------------------------------------------------------- variables


@dataclass(frozen=True)
class Variable:
    """What a law may have on its right side: how it is read from a network (NaN: it has none) and how it is printed;
    `reference` is what it stands relative to, None for the largest value observed.
    """

    of: Callable[[Arch], float]
    text: Callable[[float], str]
    reference: float | None = None


def _width(arch: Arch) -> float:
    value = arch.options.get("width")
    return float(value) if isinstance(value, int | float) else math.nan


def _depth(arch: Arch) -> float:
    return float(depth(arch)) or math.nan  # 0: a network that is described elsewhere


def _short(value: float) -> str:
    return f"{value:g}"


# Add one here: a number above 0 that a network's size is judged by.
VARIABLES: Mapping[str, Variable] = {
    "width": Variable(_width, _short, reference=1.0),  # the multiplier of every layer's channels
    "resolution": Variable(lambda arch: float(arch.input.height), _short),  # pixels
    "depth": Variable(_depth, _short),  # layers with weights: convolutions and linear layers
    "mult_adds": Variable(lambda arch: float(costs(arch).mult_adds), si),
    "params": Variable(lambda arch: float(costs(arch).params), si),
}
