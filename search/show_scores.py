"""What `scores` does and prints: how well training-free scores rank the networks that a study has trained."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from scipy.stats import rankdata, spearmanr

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.families import create
from mnet_search.models.tables import lookup
from mnet_search.search.data import Data, load
from mnet_search.search.printing import echo, print_json, print_table
from mnet_search.search.run import stored_space
from mnet_search.search.score_table import training_batch
from mnet_search.search.sources import data_options
from mnet_search.search.zero_cost import BAR, SCORES, Scored, measure_scores
from mnet_search.studies import frame as frames

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.studies.store import Store

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_NETWORKS = 5
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles: a 95 % interval
ROUNDING = 1e-9  # a correlation that is higher by less is the same


@dataclass(frozen=True)
class Ranking:
    """How a score ranks `n` networks.

    `rho` is Spearman's correlation with accuracy, `low` and `high` its 95 % bootstrap interval over networks, nan where
    the score cannot rank; `not_finite` networks were ranked last. `seconds` is a network's median, without building it.
    `beats` says whether |rho| is higher than the bar's, None where that cannot be said, and `share` in which part of
    the resamples of the same networks it is.
    """

    score: str
    rho: float
    low: float
    high: float
    n: int
    not_finite: int
    seconds: float
    beats: bool | None
    share: float
    verdict: str


def scores(store: Store, study: str, names: Sequence[str], *, as_json: bool) -> None:
    """Score every network that the study has trained (by all scores, or those in `names` and the bar), and compare with
    their accuracies. Raises MnetError.
    """
    wanted = list(dict.fromkeys([*(names or SCORES), BAR]))
    for name in wanted:
        lookup(SCORES, name, "score")
    if store.row(study)["space"].get("evaluate"):
        raise MnetError(f"study {study!r} was evaluated by a function: it has no images to take scores on")
    networks = finished_networks(frames.load(store, study), study)
    data = _images(store, study)
    archs = [_arch(row) for row in networks.to_dict("records")]
    images, labels = training_batch(data, max(arch.input.height for arch in archs))
    scored = [measure_scores(arch, wanted, images, labels, statistics=(data.mean, data.std)) for arch in archs]
    rankings = rank(wanted, scored, networks["accuracy"].to_numpy(dtype=float))
    if as_json:
        print_json(_content(study, networks, scored, rankings, len(labels)))
    else:
        _print(study, networks, rankings, len(labels))


def finished_networks(frame: pd.DataFrame, study: str) -> pd.DataFrame:
    """A row for each network that the study has finished: arch_id, family, options, mean `accuracy`, count of `trials`.

    Raises MnetError for too few of them.
    """
    finished = frame[frame["state"] == "finished"]
    if len(finished) and finished["accuracy"].isna().all():
        raise MnetError(
            f"study {study!r} has no accuracy in any of its {len(finished)} finished trials, so there is nothing to "
            "compare scores with; choose a study whose trials were validated (mnet-search studies lists them)"
        )
    known = finished[finished["accuracy"].notna()].groupby("arch_id", sort=False)
    columns = {name: (name, "first") for name in ("family", "options")}
    found = known.agg(**columns, accuracy=("accuracy", "mean"), trials=("accuracy", "size")).reset_index()
    missing = LEAST_NETWORKS - len(found)
    if missing > 0:
        more = f"mnet-search resume {shlex.quote(study)} --n-trials {len(finished) + missing}"
        raise MnetError(
            f"study {study!r} has {len(found)} finished networks, {missing} fewer than the {LEAST_NETWORKS} that a "
            f"rank correlation needs; let the search run on: {more}"
        )
    return found


def rank(names: Sequence[str], scored: Sequence[Mapping[str, Scored]], accuracy: Array) -> list[Ranking]:
    """Every score in `names`, BAR among them, against `accuracy` (n,), on the same resamples of the networks."""
    values = {name: np.array([row[name].value for row in scored]) for name in names}
    drawn = np.random.default_rng(0).integers(len(accuracy), size=(RESAMPLES, len(accuracy)))
    rhos = {name: _spearman(_last(values[name]), accuracy) for name in names}
    spreads = {name: _spearman_rows(_last(values[name])[drawn], accuracy[drawn]) for name in names}
    found = []
    for name in names:
        rho, bar, spread = rhos[name], rhos[BAR], spreads[name]
        finite = spread[np.isfinite(spread)]
        low, high = np.percentile(finite, INTERVAL) if len(finite) and math.isfinite(rho) else (math.nan, math.nan)
        beats = abs(rho) > abs(bar) + ROUNDING if name != BAR and math.isfinite(rho) and math.isfinite(bar) else None
        share = _share_above(spread, spreads[BAR]) if beats is not None else math.nan
        seconds = median(row[name].seconds for row in scored)
        verdict = _verdict(name, rho, bar, beats, share)
        lost = int(np.isnan(values[name]).sum())
        found.append(Ranking(name, rho, float(low), float(high), len(accuracy), lost, seconds, beats, share, verdict))
    return found


def _images(store: Store, study: str) -> Data:
    """The study's own training images. Raises MnetError where its trials saw different datasets."""
    space = stored_space(store, study, [])
    settings = space.data_settings
    datasets = sorted({str(setting.name) for setting in settings})
    if len(datasets) > 1:
        raise MnetError(
            f"study {study!r} was trained on different data ({', '.join(datasets)}), so its accuracies cannot be "
            "ranked together; search each of them in a study of its own"
        )
    return load(data_options(settings[0]))


def _arch(row: Mapping[Any, Any]) -> Arch:
    arch = create(row["family"], **row["options"])
    if arch.id != row["arch_id"]:
        raise MnetError(
            f"the options of network {row['arch_id']} give the network {arch.id} in this version; use the mnet-search "
            "that trained it"
        )
    return arch


# ---------------------------------------------------------------- ranks


def _last(values: Array) -> Array:
    """Networks without a score rank last."""
    return np.where(np.isnan(values), -np.inf, values)


def _spearman(values: Array, accuracy: Array) -> float:
    """Spearman's correlation, nan where one side is the same for all."""
    if (values == values[0]).all() or (accuracy == accuracy[0]).all():
        return math.nan
    return float(spearmanr(rankdata(values), accuracy).statistic)


def _spearman_rows(values: Array, accuracy: Array) -> Array:
    """Spearman's correlation of each row of (R, n) and (R, n) -> (R,), nan as above."""
    sides = [rankdata(side, axis=1) for side in (values, accuracy)]
    first, second = (side - side.mean(1, keepdims=True) for side in sides)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return np.divide((first * second).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 0)


def _share_above(spread: Array, bar: Array) -> float:
    """Share of resamples in which |rho| is higher than the bar's, of those in which both can rank."""
    both = np.isfinite(spread) & np.isfinite(bar)
    return float((np.abs(spread[both]) > np.abs(bar[both]) + ROUNDING).mean()) if both.any() else math.nan


def _verdict(name: str, rho: float, bar: float, beats: bool | None, share: float) -> str:
    if not math.isfinite(rho):
        return "cannot rank: every network has the same score, or the same accuracy"
    if name == BAR:
        return "the bar to beat"
    if beats is None:
        return f"no bar: {BAR} cannot rank"
    often = "" if math.isnan(share) else f"; higher in {100 * share:.0f} % of resamples"
    return f"{'beats' if beats else 'does not beat'} {BAR} ({_short(bar)}){often}"


# ---------------------------------------------------------------- printing


def _print(study: str, networks: pd.DataFrame, rankings: Sequence[Ranking], images: int) -> None:
    title = f"Study {study}: scores of {len(networks)} networks on {images} training images, against accuracy"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("score")
    for name in ("Spearman", "95 % interval", "n", "s a network"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for ranking in rankings:
        interval = "-" if math.isnan(ranking.low) else f"{_short(ranking.low)} to {_short(ranking.high)}"
        verdict = ranking.verdict + (f"; {ranking.not_finite} not finite, ranked last" if ranking.not_finite else "")
        shown = [_short(ranking.rho), interval, str(ranking.n), f"{ranking.seconds:.2g}"]
        table.add_row(ranking.score, *shown, verdict)
    print_table(table)
    repeated = int((networks["trials"] > 1).sum())
    means = f"accuracy is the mean over the trials of a network ({repeated} have more than one); " if repeated else ""
    echo(f"\n{means}a score beats the bar where its |Spearman| is higher; the interval is over networks drawn again.")


def _content(
    study: str,
    networks: pd.DataFrame,
    scored: Sequence[Mapping[str, Scored]],
    rankings: Sequence[Ranking],
    images: int,
) -> dict[str, Any]:
    rows = [
        {"arch_id": row["arch_id"], "accuracy": row["accuracy"], "trials": row["trials"]}
        | {"scores": {name: found.value for name, found in of_one.items()}}
        for row, of_one in zip(networks.to_dict("records"), scored, strict=True)
    ]
    return {"study": study, "images": images, "scores": [asdict(ranking) for ranking in rankings], "networks": rows}


def _short(value: float) -> str:
    """A correlation as papers print it: .74, -.31, 1.00."""
    if math.isnan(value):
        return "-"
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1)
