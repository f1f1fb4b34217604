"""A scaling law drawn: error against size with the band of the law, and the residuals.

In the manner of `plots.py`: the info function chooses and words, the figure functions draw and decide nothing.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mnet_search.dashboards.drawing import GRID
from mnet_search.studies.observations import VARIABLES
from mnet_search.studies.scaling import Fit

STEPS = 60  # points of each line
BEYOND = 1.15  # how far the lines go past the networks
MOST_LINES = 8  # of the values of further variables; the rest have their points alone
NORMAL = 1.96  # standard errors on each side of an observed error
FEWEST_TICKS = 4
MOST_VALUES = 8  # of a variable up to which each has its tick

# Okabe and Ito's colours but black and yellow, which a dark or a light page swallows; dash and symbol tell lines apart
# without them.
STYLES: tuple[tuple[str, str, str], ...] = (
    ("#0072B2", "solid", "circle"),
    ("#D55E00", "dash", "square"),
    ("#009E73", "dot", "diamond"),
    ("#CC79A7", "dashdot", "triangle-up"),
    ("#E69F00", "longdash", "cross"),
    ("#56B4E9", "longdashdot", "x"),
    ("#0072B2", "dash", "triangle-down"),
    ("#D55E00", "dot", "star"),
)
REST = ("rgba(126, 138, 152, 0.8)", "solid", "circle-open")


@dataclass(frozen=True)
class Observed:
    """One network: errors are fractions, `low` and `high` the 95 % interval of its own noise; the residual is of
    ln(error), observed less fitted.
    """

    x: float
    error: float
    low: float
    high: float
    fitted: float
    residual: float
    hover: str


@dataclass(frozen=True)
class Group:
    """The networks that share the values of the further variables, and the law with its 95 % band for these; the line
    is empty where there are too many groups.
    """

    name: str
    observed: tuple[Observed, ...]
    x: tuple[float, ...]
    error: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class FitInfo:
    """A law as it is shown: `x_axis` names the variable that errors are drawn against; ticks are values and texts."""

    title: str
    equation: str
    summary: str
    doubts: tuple[str, ...]
    x_axis: str
    x_ticks: tuple[tuple[float, str], ...]
    error_ticks: tuple[tuple[float, str], ...]
    fitted_ticks: tuple[tuple[float, str], ...]
    groups: tuple[Group, ...]


def fit_info(title: str, fit: Fit, doubts: Sequence[str] = ()) -> FitInfo:
    """What is shown of a law: against its first variable, a group for each combination of the others."""
    observations = fit.observations
    first, others = fit.variables[0], fit.variables[1:]
    sizes = {name: observations.variables[name] for name in fit.variables}
    members: dict[tuple[float, ...], list[int]] = {}
    for i in range(len(observations)):
        members.setdefault(tuple(float(sizes[name][i]) for name in others), []).append(i)
    keys = sorted(members, reverse=True)
    drawn = set(keys) if len(keys) <= MOST_LINES else {keys[round(p)] for p in np.linspace(0, len(keys) - 1, 5)}
    axis = np.geomspace(sizes[first].min() / BEYOND, sizes[first].max() * BEYOND, STEPS)
    fitted = 100 * np.exp(fit.fitted)
    errors = [*fitted, *(100 * np.exp(observations.log_error))]
    interval = "; ".join(f"{c.name} = {c.value:.3g} ({c.low:.3g} to {c.high:.3g})" for c in fit.coefficients)
    return FitInfo(
        title=title,
        equation=fit.equation,
        summary=f"{interval}. R2 {fit.r2:.3f} of ln(error), n {len(observations)}, left out networks within "
        f"{fit.left_out.points:.2f} points of accuracy.",
        doubts=tuple(doubts),
        x_axis=first.replace("_", "-"),
        x_ticks=_x_ticks(first, sizes[first]),
        error_ticks=_ticks(min(errors) / BEYOND, max(errors) * BEYOND),
        fitted_ticks=_ticks(float(fitted.min()), float(fitted.max())),
        groups=tuple(_group(fit, others, key, members[key], axis if key in drawn else axis[:0]) for key in keys),
    )


def _x_ticks(name: str, values: Any) -> tuple[tuple[float, str], ...]:
    distinct = sorted({float(value) for value in values})
    if len(distinct) > MOST_VALUES:
        return tuple(
            (tick, VARIABLES[name].text(tick)) for tick, _ in _ticks(distinct[0] / BEYOND, distinct[-1] * BEYOND)
        )
    return tuple((value, VARIABLES[name].text(value)) for value in distinct)


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Round values for a logarithmic axis: 1, 2 and 5 of each power of ten, or even steps where few of them are in."""
    if high <= low * (1 + 1e-9):
        return ((low, f"{low:.3g}"),)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    step = 10.0 ** math.ceil(math.log10(high - low))
    for share in (1, 2, 5, 10, 20):
        if len(found) < FEWEST_TICKS:
            size = step / share
            found = [i * size for i in range(math.ceil(low / size), math.floor(high / size) + 1)]
    return tuple((round(value, 10), f"{value:.6g}") for value in found)


def _group(fit: Fit, others: Sequence[str], key: tuple[float, ...], members: Sequence[int], axis: Any) -> Group:
    name = " ".join(f"{other}={VARIABLES[other].text(value)}" for other, value in zip(others, key, strict=True))
    sizes = {other: np.full(len(axis), value) for other, value in zip(others, key, strict=True)}
    sizes[fit.variables[0]] = axis
    band = fit.predict(sizes)
    return Group(
        name=name or "networks",
        observed=tuple(_observed(fit, i) for i in members),
        x=_numbers(axis),
        error=_numbers(1 - band.accuracy),
        low=_numbers(1 - band.high),
        high=_numbers(1 - band.low),
    )


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _observed(fit: Fit, i: int) -> Observed:
    o = fit.observations
    half = NORMAL * float(o.noise[i])
    fitted = math.exp(float(fit.fitted[i]))
    hover = f"{o.labels[i]}: {100 * o.accuracy[i]:.2f} %, fitted {100 * (1 - fitted):.2f} %"
    return Observed(
        x=float(o.variables[fit.variables[0]][i]),
        error=math.exp(float(o.log_error[i])),
        low=math.exp(float(o.log_error[i]) - half),
        high=math.exp(float(o.log_error[i]) + half),
        fitted=fitted,
        residual=float(fit.residuals[i]),
        hover=hover,
    )


# ---------------------------------------------------------------- drawing


def fit_figure(info: FitInfo) -> go.Figure:
    """Error against size, both axes logarithmic; errors in percent."""
    figure = go.Figure(layout=_layout(info.x_axis, "Validation error (%)"))
    faint = 0.15 if sum(bool(group.x) for group in info.groups) <= len(STYLES) / 2 else 0.07
    for group, (color, dash, symbol) in _styled(info):
        if group.x:
            edge = [100 * e for e in (*group.high, *reversed(group.low))]
            band = {"fill": "toself", "fillcolor": color, "opacity": faint, "line": {"width": 0}}
            x = [*group.x, *reversed(group.x)]
            figure.add_trace(go.Scatter(x=x, y=edge, hoverinfo="skip", showlegend=False, mode="lines", **band))
            line = {"color": color, "dash": dash, "width": 2}
            y = [100 * e for e in group.error]
            figure.add_trace(go.Scatter(x=group.x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False))
        figure.add_trace(
            go.Scatter(
                x=[o.x for o in group.observed],
                y=[100 * o.error for o in group.observed],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (o.high - o.error) for o in group.observed],
                    "arrayminus": [100 * (o.error - o.low) for o in group.observed],
                    "thickness": 1,
                    "width": 3,
                },
                **_marks(group, color, symbol),
            )
        )
    return _logarithmic(figure, xaxis=info.x_ticks, yaxis=info.error_ticks)


def residual_figure(info: FitInfo) -> go.Figure:
    """Residuals of ln(error) against the fitted error in percent, which has a logarithmic axis."""
    figure = go.Figure(layout=_layout("Fitted error (%)", "Residual of ln(error)"))
    figure.add_hline(y=0, line={"color": GRID, "width": 2})
    for group, (color, _, symbol) in _styled(info):
        x, y = [100 * o.fitted for o in group.observed], [o.residual for o in group.observed]
        figure.add_trace(go.Scatter(x=x, y=y, **_marks(group, color, symbol)))
    return _logarithmic(figure, xaxis=info.fitted_ticks)


def _styled(info: FitInfo) -> list[tuple[Group, tuple[str, str, str]]]:
    drawn = [group for group in info.groups if group.x]
    styles = dict(zip((group.name for group in drawn), STYLES, strict=False))
    return [(group, styles.get(group.name, REST)) for group in info.groups]


def _marks(group: Group, color: str, symbol: str) -> dict[str, Any]:
    return {
        "mode": "markers",
        "name": html.escape(group.name, quote=False),
        "marker": {"color": color, "symbol": symbol, "size": 9},
        "text": [html.escape(o.hover, quote=False) for o in group.observed],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _layout(x: str, y: str) -> go.Layout:
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "showline": True, "title_standoff": 10}
    return go.Layout(
        template="none",
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 64, "r": 16, "t": 12, "b": 52},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hovermode="closest",
        hoverlabel={"align": "left"},
        xaxis=axis | {"title_text": x},
        yaxis=axis | {"title_text": y},
    )


def _logarithmic(figure: go.Figure, **ticks: Sequence[tuple[float, str]]) -> go.Figure:
    for axis, marks in ticks.items():
        values, texts = [value for value, _ in marks], [text for _, text in marks]
        figure.update_layout({axis: {"type": "log", "tickmode": "array", "tickvals": values, "ticktext": texts}})
    return figure
