"""Which parameters decide: their importance for each objective by PED-ANOVA, and an objective against one of them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnet_search.dashboards.drawing import (
    COLOURS,
    FILLS,
    FRONT,
    OTHER,
    counted,
    empty,
    escaped,
    evenly,
    layout,
    log_ticks,
    of,
    pattern,
    plural,
)
from mnet_search.dashboards.quantities import (
    PARAMETER,
    PlotError,
    Quantity,
    figure_axis,
    is_choice,
    is_logarithmic,
    labels,
    numbers,
    ordered,
    parameter_names,
    plain,
    values_of,
)
from mnet_search.dashboards.snapshot import Snapshot, present
from mnet_search.models.tables import nearest

if TYPE_CHECKING:
    import optuna

TRIALS = 2000  # that importance is reckoned from; more change it little
LEAST = 20  # trials: the best tenth of fewer is not even two
TOP = 0.1  # share of the trials that count as good
POINTS = 1000  # of one slice
BINS = 8  # of a parameter with many values


@dataclass(frozen=True)
class ImportanceInfo:
    """Importance of each parameter for reaching the best tenth of an objective, as shares that add up to 1.

    PED-ANOVA: Watanabe, Bansal, Hutter, IJCAI 2023, arXiv 2304.10255. `parameters` are in order of their greatest
    share; `objectives` are (name, a share for each parameter).
    """

    parameters: tuple[str, ...] = ()
    objectives: tuple[tuple[str, tuple[float, ...]], ...] = ()
    n_trials: int = 0
    note: str = ""
    empty: str = ""


def importance_info(snapshot: Snapshot, *, most: int = TRIALS) -> ImportanceInfo:
    """From at most `most` finished trials, evenly chosen by number. Parameters that are not active in all of them, or
    that do not vary, are left out.
    """
    finished = snapshot.finished()
    rows = finished.iloc[evenly(len(finished), most)]
    if len(rows) < LEAST:
        more = LEAST - len(rows)
        return ImportanceInfo(
            empty=f"importance compares the best tenth of the trials with all: {plural(more, 'more finished trial')} "
            "needed, not enough yet"
        )
    names = [name for name in parameter_names(snapshot) if len(values_of(rows, name)) > 1]
    always = [name for name in names if rows[PARAMETER + name].map(present).all()]
    if not always:
        return ImportanceInfo(empty="no parameter that is always active varies between the finished trials")
    objectives = [figure_axis(snapshot, name) for name in snapshot.objectives]
    found = [(each.name, _shares(rows, always, each)) for each in objectives]
    order = sorted(range(len(always)), key=lambda i: (-max(shares[i] for _, shares in found), always[i]))
    left_out = [name for name in names if name not in always]
    notes = [f"share of reaching the best tenth; from {counted(len(rows), len(finished))} finished trials"]
    if left_out:
        notes.append(f"left out, since not always active: {', '.join(left_out)}")
    return ImportanceInfo(
        parameters=tuple(always[i] for i in order),
        objectives=tuple((name, tuple(round(shares[i], 4) for i in order)) for name, shares in found),
        n_trials=len(rows),
        note="; ".join(notes),
    )


def _shares(rows: pd.DataFrame, names: Sequence[str], objective: Quantity) -> list[float]:
    values = numbers(rows, objective.column)
    real = np.isfinite(values)
    if real.sum() < LEAST or np.ptp(values[real]) == 0:
        return [0.0] * len(names)
    found = _ped_anova(rows[real], names, values[real] * (1 if objective.best == "minimize" else -1))
    total = sum(found.values())
    return [found[name] / total if total > 0 else 0.0 for name in names]


def _ped_anova(rows: pd.DataFrame, names: Sequence[str], values: Any) -> Mapping[str, float]:
    """Optuna's evaluator; of the values less is better."""
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import FrozenTrial, TrialState

    columns = {name: _column(rows, name) for name in names}
    distributions = {name: found[0] for name, found in columns.items()}
    now = datetime.datetime.now()
    trials = [
        FrozenTrial(
            number=place,
            trial_id=place,
            state=TrialState.COMPLETE,
            value=float(value),
            datetime_start=now,
            datetime_complete=now,
            params=dict(zip(names, row, strict=True)),
            distributions=distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for place, (row, value) in enumerate(
            zip(zip(*(found[1] for found in columns.values()), strict=True), values, strict=True)
        )
    ]
    study = cast("optuna.Study", _Finished(trials))
    return PedAnovaImportanceEvaluator(target_quantile=TOP).evaluate(study, params=list(names))


class _Finished:
    """Trials as the evaluator asks a study for them. A study in memory would copy each of them deeply, which takes four
    times as long as the evaluation, and would log that it was made.
    """

    def __init__(self, trials: list[optuna.trial.FrozenTrial]):
        from optuna.study import StudyDirection

        self._trials = trials
        self.directions = [StudyDirection.MINIMIZE]

    def get_trials(self, deepcopy: bool = True, states: object = None) -> list[optuna.trial.FrozenTrial]:
        return self._trials

    def _is_multi_objective(self) -> bool:
        return False


def _column(rows: pd.DataFrame, name: str) -> tuple[optuna.distributions.BaseDistribution, list[Any]]:
    """A parameter as Optuna takes it: a range where it has many numbers, else a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    column = PARAMETER + name
    if is_choice(rows, column):
        texts = labels(rows[column])
        return CategoricalDistribution(ordered(texts)), texts.tolist()
    values = numbers(rows, column)
    log = is_logarithmic(values)
    return FloatDistribution(float(values.min()), float(values.max()), log=log), values.tolist()


def importance_figure(info: ImportanceInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note, barmode="group", bargap=0.25))
    figure.update_xaxes(title_text="Importance (share)", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    if info.empty:
        return empty(figure, info.empty)
    for place, (name, shares) in enumerate(info.objectives):
        figure.add_trace(
            go.Bar(
                x=list(shares),
                y=[escaped(each) for each in info.parameters],
                orientation="h",
                name=escaped(name),
                marker={"color": of(COLOURS, place), "pattern": pattern(of(FILLS, place))},
                hovertemplate=f"%{{y}}: %{{x:.1%}} of {escaped(name)}<extra></extra>",
            )
        )
    return figure


# --- One parameter ---


@dataclass(frozen=True)
class Slice:
    """The trials of one value, or of one range of values, of a parameter: their mean with its 95 % interval."""

    label: str
    at: float
    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SliceInfo:
    """An objective against one parameter. Points are (place on the axis, value, trial number)."""

    parameter: str
    objective: Quantity
    choice: bool = False
    log: bool = False
    slices: tuple[Slice, ...] = ()
    points: tuple[tuple[float, float, int], ...] = ()
    n_trials: int = 0  # may be more than are drawn
    note: str = ""
    empty: str = ""


def slice_info(
    snapshot: Snapshot, *, parameter: str | None = None, objective: str = "accuracy", most: int = POINTS
) -> SliceInfo:
    """`objective` is any figure that has a better and a worse; `parameter` by default the first that varies. The
    interval is Student's, of the mean over trials: it says how sure the mean is, not how far trials lie apart.
    PlotError for a parameter that the space does not have.
    """
    axis = figure_axis(snapshot, objective)
    known = parameter_names(snapshot)
    name = (parameter or next(iter(known), "")).removeprefix(PARAMETER)
    if parameter and name not in known:
        listed = ", ".join(known) or "none"
        raise PlotError(f"the space has no parameter {name!r}{nearest(name, known)}; it has: {listed}")
    if not name:
        return SliceInfo("", axis, empty="the space has no parameters, so there is nothing to slice by")
    finished = snapshot.finished()
    rows = finished[np.isfinite(numbers(finished, axis.column)) & finished[PARAMETER + name].notna().to_numpy()]
    if rows.empty:
        yet = " yet" if finished.empty else ""
        return SliceInfo(name, axis, empty=f"no finished trial has {axis.name} and {name}{yet}")
    values, choice = numbers(rows, axis.column), is_choice(rows, PARAMETER + name)
    if choice:
        texts = labels(rows[PARAMETER + name])
        kinds = ordered(texts)
        place = {kind: float(i) for i, kind in enumerate(kinds)}
        at = np.array([place[text] for text in texts])
        slices = [_slice(kind, place[kind], values[at == place[kind]]) for kind in kinds]
    else:
        at = numbers(rows, PARAMETER + name)
        slices = _binned(at, values)
    order = np.argsort(values, kind="stable")
    drawn = np.sort(order[evenly(len(rows), most)])
    numbers_of = rows["number"].to_numpy()
    thinned = f"{counted(len(drawn), len(rows))} of the finished trials; " if len(drawn) < len(rows) else ""
    return SliceInfo(
        parameter=name,
        objective=axis,
        choice=choice,
        log=not choice and is_logarithmic(at),
        slices=tuple(slices),
        points=tuple((float(at[i]), float(values[i]), int(numbers_of[i])) for i in drawn),
        n_trials=len(rows),
        note=f"{thinned}means with their 95 % intervals; a sampler does not choose values evenly, so a mean is of the "
        "trials that it chose",
    )


def _slice(label: str, at: float, values: Any) -> Slice:
    from scipy.stats import t

    mean, half = float(values.mean()), 0.0
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Slice(label, at, len(values), mean, mean - half, mean + half)


def _binned(at: Any, values: Any) -> list[Slice]:
    edges = np.unique(np.quantile(at, np.linspace(0, 1, BINS + 1)))
    bins = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, max(0, len(edges) - 2))
    found = []
    for place in np.unique(bins):
        inside = bins == place
        low, high = float(at[inside].min()), float(at[inside].max())
        found.append(_slice(f"{plain(low)} to {plain(high)}", float(np.median(at[inside])), values[inside]))
    return found


def slice_figure(info: SliceInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(title_text=escaped(info.parameter))
    figure.update_yaxes(title_text=escaped(info.objective.axis), tickformat=info.objective.ticks)
    if info.empty:
        return empty(figure, info.empty)
    scale = info.objective.scale
    if info.choice:
        texts = [escaped(each.label) for each in info.slices]
        figure.update_xaxes(tickvals=[each.at for each in info.slices], ticktext=texts)
    if info.log:
        figure.update_xaxes(type="log", tickformat="~g", **log_ticks(at for at, _, _ in info.points))
    figure.add_trace(
        go.Scatter(
            x=[at for at, _, _ in info.points],
            y=[scale * value for _, value, _ in info.points],
            customdata=[number for _, _, number in info.points],
            mode="markers",
            name=f"trials ({counted(len(info.points), info.n_trials)})",
            marker={"color": OTHER, "size": 5},
            hovertemplate="trial %{customdata}: %{y:.4~g}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[each.at for each in info.slices],
            y=[scale * each.mean for each in info.slices],
            error_y={
                "array": [scale * (each.high - each.mean) for each in info.slices],
                "thickness": 2,
                "width": 6,
                "color": FRONT,
            },
            text=[escaped(f"{info.parameter} {each.label}: {plural(each.n, 'trial')}") for each in info.slices],
            hovertemplate="%{text}<br>mean %{y:.4~g}<extra></extra>",
            mode="markers" if info.choice else "lines+markers",
            name="mean",
            line={"color": FRONT},
            marker={"color": FRONT, "symbol": "diamond", "size": 10, "line": {"color": "white", "width": 1}},
        )
    )
    return figure
