"""What a study shows, in words: its front and how sure that is, the knee, budgets, what decides, what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mnet_search.dashboards.distribution_plots import states_info
from mnet_search.dashboards.drawing import plural
from mnet_search.dashboards.importance_plot import importance_info
from mnet_search.dashboards.quantities import Quantity, figures, numbers, quantity
from mnet_search.dashboards.snapshot import (
    COSTS,
    STATES,
    Snapshot,
    noise_note,
    phrase,
    records,
    validation_images,
)
from mnet_search.studies.confidence import Confidence, front_confidence
from mnet_search.studies.noise import Noise, noise_of
from mnet_search.studies.pareto import EXACT, Array, networks, non_dominated

BUDGETS = 4
SURE = 0.95  # probability from which a network is said to be on the front for certain
DOUBT = 0.05  # probability up to which one is said not to be
WITHIN = 0.01  # of the best accuracy: one point
DRAWS, FEWER_DRAWS, MANY = 2000, 500, 2000  # of the means; fewer where a study has many networks
NAMED = 2  # parameters of a sentence


@dataclass(frozen=True)
class Conclusions:
    """What the sentences say. Networks are written out (means over their runs), empty where there is none; `costs`
    names the cost of the knee and the budgets; `budgets` are (limit, network); `importance` is of each measured
    objective, with its first parameters and their shares; `limits` are whole sentences.
    """

    states: tuple[tuple[str, int], ...]
    objectives: tuple[str, ...]
    n_networks: int = 0
    n_front: int = 0
    best: str = ""
    small: str = ""
    cost: str = ""
    knee: str = ""
    budgets: tuple[tuple[str, str], ...] = ()
    importance: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()
    importance_empty: str = ""
    noise: str = "unknown"  # where it is from: repeats, sampling, unknown
    sd: tuple[tuple[str, str], ...] = ()  # between runs of a network, of each measured objective
    n_repeated: int = 0
    n_sure: int = 0
    n_outside: int = 0  # networks off the front that may belong there
    least_sure: tuple[int, float] | None = None  # member by its trial, and its probability
    n_alike: int | None = None  # networks whose accuracy cannot be told from the best
    single: str = ""  # what single runs cannot tell apart
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A study's conclusions; and the `members` of its front, in order of trial number: a row a network, with means over
    its `n` runs and the `probability` that it belongs there, which says something where the noise is `known`.
    """

    conclusions: Conclusions
    members: pd.DataFrame
    known: bool = False


def conclude(snapshot: Snapshot) -> Result:
    """Work out what a study shows. Seconds for thousands of networks: means are drawn anew for the probabilities."""
    counts = snapshot.frame["state"].value_counts()
    found = Conclusions(
        states=tuple((state, int(counts[state])) for state in STATES if state in counts),
        objectives=tuple(quantity(snapshot, name).name for name in snapshot.objectives),
        limits=_limits(snapshot, counts),
    )
    if snapshot.finished().empty:
        return Result(replace(found, importance_empty=importance_info(snapshot).empty), snapshot.front())
    images = validation_images(snapshot.provenance)
    rows = _networks(snapshot)
    sure = front_confidence(
        snapshot.frame, snapshot.objectives, images, n_draws=DRAWS if len(rows) < MANY else FEWER_DRAWS
    )
    rows = rows.assign(on_front=sure.networks["on_front"], probability=sure.networks["probability"])
    found = replace(_with_networks(found, snapshot, rows), **_how_sure(snapshot, rows, sure))
    found = replace(found, **_importance(snapshot))
    return Result(found, rows[rows["on_front"]], sure.noise_source != "unknown")


def _networks(snapshot: Snapshot) -> pd.DataFrame:
    """A row a network, with means over its runs of all that is measured, objective or not."""
    measured = {"accuracy": "maximize", "latency_ms": "minimize"}
    return networks(snapshot.frame, {**measured, **snapshot.objectives})


# --- What was found ---


def _with_networks(found: Conclusions, snapshot: Snapshot, rows: pd.DataFrame) -> Conclusions:
    found = replace(found, n_networks=len(rows), n_front=int(rows["on_front"].sum()))
    real = rows[rows["accuracy"].notna()]
    if real.empty:
        return found
    order = real.sort_values(["accuracy", "params", "number"], ascending=[False, True, True])
    near = order[order["accuracy"] >= order["accuracy"].iloc[0] - WITHIN - 1e-12].sort_values(["params", "number"])
    best, small = records(order.head(1))[0], records(near.head(1))[0]
    found = replace(found, best=words(best), small=words(small))
    axis = main_cost(snapshot)
    if axis is None:
        return found
    costed = real[np.isfinite(numbers(real, axis.column)) & (numbers(real, axis.column) > 0)]
    if costed.empty:
        return found
    plane = np.column_stack([numbers(costed, "accuracy"), numbers(costed, axis.column)])
    members = costed[non_dominated(plane, ["maximize", "minimize"])].sort_values([axis.column, "number"])
    at = knee(numbers(members, axis.column), 1 - numbers(members, "accuracy"))
    return replace(
        found,
        cost=axis.name,
        knee="" if at is None else words(records(members.iloc[[at]])[0]),
        budgets=_budgets(members, axis),
    )


def words(row: Mapping[str, Any]) -> str:
    """A network in one line, and of how many runs it is the mean."""
    return phrase(row) + (f" (mean of {row['n']} runs)" if row["n"] > 1 else "")


def main_cost(snapshot: Snapshot) -> Quantity | None:
    """The cost that knee and budgets are about: the first objective that is minimised, else the first known cost."""
    known = figures(snapshot)
    asked = [name for name, direction in snapshot.objectives.items() if direction == "minimize"]
    names = [name for name in (*asked, *COSTS) if name in known and name != "validation_loss"]
    return quantity(snapshot, names[0]) if names else None


def knee(costs: Array, errors: Array) -> int | None:
    """The place of the knee of a front in order of cost (N,), or None where it has none.

    The member farthest below the straight line between the front's two ends, with the logarithm of the cost and the
    error each scaled to 0 to 1. None for fewer than three members, and where none lies below the line.
    """
    if len(costs) < 3 or costs[-1] <= costs[0] or errors[0] <= errors[-1]:
        return None
    x = np.log(costs / costs[0]) / np.log(costs[-1] / costs[0])
    y = (errors - errors[-1]) / (errors[0] - errors[-1])
    below = 1 - x - y  # the distance times the root of two
    at = int(below.argmax())
    return at if below[at] > 1e-9 else None


def _budgets(members: pd.DataFrame, axis: Quantity) -> tuple[tuple[str, str], ...]:
    """Evenly spaced on the logarithm of the cost, rounded up to two digits; each with the best network that fits."""
    costs, found = numbers(members, axis.column), dict[int, str]()
    for limit in np.geomspace(costs[0], costs[-1], BUDGETS + 1)[1:]:
        rounded = _up(float(limit))
        place = int((costs <= rounded).sum()) - 1  # along a front, more cost is more accuracy
        found.setdefault(place, axis.text(rounded))  # the smallest budget that buys it
    return tuple((text, words(records(members.iloc[[place]])[0])) for place, text in found.items())


def _up(value: float) -> float:
    """Rounded up to two digits."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f"{np.ceil(value / unit - 1e-9) * unit:.6g}")


# --- How sure it is ---


def _how_sure(snapshot: Snapshot, rows: pd.DataFrame, sure: Confidence) -> dict[str, Any]:
    members = rows[rows["on_front"]]
    least = members.sort_values(["probability", "number"]).head(1)
    doubtful = sure.noise_source != "unknown" and len(least) and float(least["probability"].iloc[0]) < SURE
    noise = noise_of(snapshot.frame, snapshot.objectives, validation_images(snapshot.provenance))
    return {
        "noise": sure.noise_source,
        "sd": tuple((quantity(snapshot, name).name, _spread(snapshot, name, value)) for name, value in sure.sd.items()),
        "n_repeated": sure.n_repeated,
        "n_sure": int((members["probability"] >= SURE).sum()),
        "n_outside": int((~rows["on_front"] & (rows["probability"] > DOUBT)).sum()),
        "least_sure": (int(least["number"].iloc[0]), round(float(least["probability"].iloc[0]), 2))
        if doubtful
        else None,
        "n_alike": alike(noise),
        "single": noise_note(members, snapshot.finished(), snapshot.provenance)
        if rows["accuracy"].notna().any()
        else "",
    }


def alike(noise: Noise) -> int | None:
    """How many further networks have an accuracy that cannot be told from the best one's: the means differ by less than
    Student's t at 95 % (two-sided) times the standard error of the difference, on the logarithm of the error. None
    where the noise is not known.
    """
    from scipy.stats import t

    names = list(noise.objectives)
    if "accuracy" not in names or noise.sources.get("accuracy", "unknown") == "unknown" or not len(noise.centres):
        return None
    column = names.index("accuracy")
    centres, errors = noise.centres[:, column], noise.errors[:, column]
    best = int(centres.argmin() if noise.directions[column] == "minimize" else centres.argmax())
    allowed = float(t.ppf(0.975, noise.freedom[column])) * np.hypot(errors, errors[best])
    return int((np.abs(centres - centres[best]) < allowed).sum()) - 1


def _spread(snapshot: Snapshot, name: str, value: float) -> str:
    if name == "accuracy":
        return f"{100 * value:.2g} points"
    return quantity(snapshot, name).text(value)


# --- What decides, and what limits it ---


def _importance(snapshot: Snapshot) -> dict[str, Any]:
    info = importance_info(snapshot)
    found = []
    counted_exactly = {quantity(snapshot, name).name for name in snapshot.objectives if name in EXACT}
    for name, shares in info.objectives:
        if name in counted_exactly:  # known before any training, and no finding
            continue
        order = sorted(zip(shares, info.parameters, strict=True), key=lambda pair: -pair[0])
        if order[0][0] > 0:
            found.append((name, tuple((parameter, share) for share, parameter in order[:NAMED] if share >= 0.01)))
    return {"importance": tuple(found), "importance_empty": info.empty}


def _limits(snapshot: Snapshot, counts: pd.Series) -> tuple[str, ...]:
    frame, total = snapshot.frame, len(snapshot.frame)
    stopped, failed = int(counts.get("stopped", 0)), int(counts.get("failed", 0))
    unfinished = int(counts.get("running", 0) + counts.get("waiting", 0))
    said = []
    if unfinished:
        said.append(f"{plural(unfinished, 'trial')} still running or waiting: this is not the study's last word.")
    if stopped:
        said.append(
            f"{plural(stopped, 'trial')} of {total:,} ({100 * stopped / total:.0f} %) stopped early and in no front: "
            "a network that learns late may be among them."
        )
    if failed:
        reason, count = states_info(snapshot).reasons[0]
        said.append(f"{plural(failed, 'trial')} of {total:,} failed, most often ({count:,}): {reason}.")
    brought = int(frame["imported"].fillna("").ne("").sum()) if "imported" in frame else 0
    if brought:
        said.append(f"{plural(brought, 'trial')} from elsewhere, with the figures that were recorded there.")
    rows = snapshot.measurements
    bad = int((~rows["good"].astype(bool)).sum()) if len(rows) else 0
    if bad:
        said.append(
            f"{bad:,} of {plural(len(rows), 'latency measurement')} not good: the machine drifted beyond the "
            "protocol's bound beside them."
        )
    return tuple(said)


# --- Sentences ---


def paragraphs(found: Conclusions) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The conclusions for a reader: headings with their sentences, none empty."""
    parts = (
        ("What was found", _found(found)),
        (f"Within a budget of {found.cost}", tuple(f"At most {limit}: {network}." for limit, network in found.budgets)),
        ("What decides", _decides(found)),
        ("How sure", _sure(found)),
        ("What limits it", found.limits or ("No trial was stopped early, and none failed.",) * bool(found.states)),
    )
    return tuple((heading, sentences) for heading, sentences in parts if sentences)


def _found(found: Conclusions) -> tuple[str, ...]:
    counts = ", ".join(f"{count:,} {state}" for state, count in found.states) or "none yet"
    said = [f"Trials: {counts}."]
    if found.n_networks:
        said.append(
            f"The front of {_listed(found.objectives)} has {found.n_front:,} of {plural(found.n_networks, 'network')}."
        )
    if found.best:
        said.append(f"Most accurate: {found.best}.")
        said.append(
            f"Fewest params within one point of that: {found.small}."
            if found.small != found.best
            else "No network of fewer params is within one point of it."
        )
    if found.knee:
        said.append(
            f"Knee of accuracy and {found.cost}: {found.knee}. It is the member farthest below the line between the "
            f"ends of that front, with the logarithm of {found.cost} and the error each scaled to 0 to 1."
        )
    return tuple(said)


def _decides(found: Conclusions) -> tuple[str, ...]:
    if not found.importance:
        return (f"{_capital(found.importance_empty)}.",) if found.importance_empty else ()
    said = [
        f"{_capital(name)}: {', then '.join(f'{parameter} ({100 * share:.0f} %)' for parameter, share in shares)}."
        for name, shares in found.importance
    ]
    return (*said, "Shares of reaching the best tenth of the trials by that figure (PED-ANOVA).")


def _sure(found: Conclusions) -> tuple[str, ...]:
    if not found.n_networks:
        return ()
    said = []
    if found.sd:
        differ = _listed([f"{spread} of {name}" for name, spread in found.sd])
        said.append(
            f"Runs of one network differ by {differ} (standard deviation, from {plural(found.n_repeated, 'network')} "
            "run more than once)."
        )
    if found.single:
        said.append(f"{_capital(found.single)}.")
    if found.noise == "unknown":
        said.append("Nothing in the study says how large its noise is, so the front has no probabilities.")
        return tuple(said)
    said.append(
        f"{found.n_sure:,} of the {plural(found.n_front, 'member')} belong to the front with a "
        f"probability of {100 * SURE:.0f} % or more"
        + (f"; least sure is trial {found.least_sure[0]} with {found.least_sure[1]:.2f}." if found.least_sure else ".")
    )
    if found.noise == "sampling":
        said.append("These are from the sampling of the images alone; other starting weights add to the noise.")
    if found.n_outside:
        said.append(
            f"{plural(found.n_outside, 'network')} outside of it may belong to it (above {100 * DOUBT:.0f} % each)."
        )
    if found.n_alike is not None:
        said.append(
            f"{plural(found.n_alike, 'other network')} cannot be told from the most accurate by accuracy (95 %)."
            if found.n_alike
            else "The most accurate network differs from every other by more than noise (95 %, each taken alone)."
        )
    return tuple(said)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
