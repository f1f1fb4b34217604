"""Studies side by side: their fronts of accuracy and one cost, and the distributions of their errors."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mnet_search.dashboards.drawing import GRID
from mnet_search.dashboards.report import GRAPH_CONFIG, POLICY, STYLE
from mnet_search.dashboards.snapshot import COSTS, Cost
from mnet_search.spaces.space import si
from mnet_search.studies.comparing import Comparison, StudyFrame
from mnet_search.studies.pareto import front

# Okabe and Ito's; dashes and markers differ too, so nothing depends on telling hues apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
MANY_DECADES = 10**3.2
OTHERS = {"activations": Cost("activations", "Activations", si, "~s")}


@dataclass(frozen=True)
class FrontLine:
    """The front of one study: costs ascending, accuracies (shares), trial numbers."""

    study: str
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class FrontsInfo:
    """Fronts of accuracy and one cost."""

    cost: str
    lines: tuple[FrontLine, ...]


def fronts_info(studies: Sequence[StudyFrame], cost: str) -> FrontsInfo:
    lines = []
    for study in studies:
        rows = front(study.frame, {"accuracy": "maximize", cost: "minimize"})
        lines.append(
            FrontLine(
                study.name,
                tuple(float(value) for value in rows[cost]),
                tuple(float(value) for value in rows["accuracy"]),
                tuple(int(value) for value in rows["number"]),
            )
        )
    return FrontsInfo(cost, tuple(lines))


def fronts_figure(info: FrontsInfo) -> go.Figure:
    cost = {**COSTS, **OTHERS}[info.cost]
    figure = _figure(cost.axis, "Validation accuracy (%)")
    # Left alone, plotly labels all nine digits of a decade, which overlap.
    values = [value for line in info.lines for value in line.costs if value > 0]
    wide = bool(values) and max(values) > MANY_DECADES * min(values)
    figure.update_xaxes(type="log", tickformat=cost.ticks, dtick=1 if wide else "D2")
    for place, line in enumerate(info.lines):
        figure.add_trace(
            go.Scatter(
                x=list(line.costs),
                y=[100 * value for value in line.accuracies],
                name=html.escape(line.study),
                mode="lines+markers",
                line={"color": _of(COLOURS, place), "dash": _of(DASHES, place), "shape": "hv", "width": 2},
                marker={"symbol": _of(MARKERS, place), "size": 9},
                customdata=list(line.numbers),
                hovertemplate="trial %{customdata}: %{y:.2f} % at %{x:.3s}<extra></extra>",
            )
        )
    return figure


def errors_figure(found: Comparison) -> go.Figure:
    """F(error): the share of a study's networks with at most this error, as steps."""
    figure = _figure("Validation error (%)", "Share of networks with at most this error")
    figure.update_yaxes(range=[0, 1.02])
    for place, each in enumerate(found.errors):
        figure.add_trace(
            go.Scatter(
                x=[100 * error for error in (each.errors[0], *each.errors)],
                y=[0.0, *each.shares],
                name=html.escape(f"{each.study} ({len(each.errors)} networks)"),
                mode="lines",
                line={"color": _of(COLOURS, place), "dash": _of(DASHES, place), "shape": "hv", "width": 2},
                hovertemplate="%{y:.0%} of the networks have at most %{x:.2f} %<extra></extra>",
            )
        )
    return figure


def compare_page(info: FrontsInfo, found: Comparison) -> str:
    """Both figures as one HTML file that asks for nothing from outside."""
    title = html.escape(" and ".join(line.study for line in info.lines))
    cards = ""
    for name, figure in (("Fronts", fronts_figure(info)), ("Errors of all networks", errors_figure(found))):
        drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=GRAPH_CONFIG, default_height="480px")
        cards += f'<section class="card wide"><h2>{name}</h2>{drawn}</section>'
    notes = "".join(f'<p class="soft">{html.escape(note)}.</p>' for note in found.notes)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · mnet-search</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f'<body><main><h1>{title}</h1>{notes}<div class="cards">{cards}</div></main></body></html>\n'
    )


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure(
        layout={
            "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
        }
    )
    figure.update_xaxes(title_text=x, gridcolor=GRID, zerolinecolor=GRID)
    figure.update_yaxes(title_text=y, gridcolor=GRID, zerolinecolor=GRID)
    return figure


def _of(values: Sequence[str], place: int) -> str:
    return values[place % len(values)]
