"""The learning curve of one training as a page: accuracy and loss, of training and validation, over the epochs.

In the manner of `plots.py`: the info function chooses and words, the figure function draws and decides nothing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mnet_search.dashboards.drawing import GRID
from mnet_search.dashboards.report import GRAPH_CONFIG, POLICY, STYLE

MARKED = 60  # epochs up to which every point has a marker; more would run into each other
SPAN = 10.0  # points of accuracy that are shown at least, so that one epoch does not look like a great difference

STAR_EDGE = {"color": "white", "width": 1}
# Okabe and Ito's colours; dash and symbol tell the same lines apart without them.
LINES: Mapping[str, tuple[str, str, str]] = {
    "validation accuracy": ("#0072B2", "solid", "circle"),
    "training accuracy": ("#56B4E9", "dash", "square"),
    "validation loss": ("#D55E00", "dot", "diamond"),
    "training loss": ("#E69F00", "dashdot", "triangle-up"),
}


@dataclass(frozen=True)
class Line:
    """One line of the plot: accuracies are fractions, losses are in nats."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class TrainingInfo:
    """A training so far. `hover` says of each epoch how it was trained; `best` is an index into `epochs`."""

    title: str
    epochs: tuple[int, ...]
    accuracy: tuple[Line, ...]
    loss: tuple[Line, ...]
    hover: tuple[str, ...]
    best: int
    best_text: str


def training_info(network: str, rows: Sequence[Mapping[str, float]], epochs: int) -> TrainingInfo:
    """What is shown of a training of `network` (its family and arch id): its rows, at least one, of `epochs` asked for.

    A row has the fields of search.training.Epoch. The first of equally good epochs is the best.
    """
    validation = [row["validation_accuracy"] for row in rows]
    best = validation.index(max(validation))
    done = f"{len(rows)} of {epochs} epochs" if len(rows) < epochs else f"{epochs} epoch{'s' * (epochs > 1)}"
    return TrainingInfo(
        title=f"{network}: {done}",
        epochs=tuple(int(row["epoch"]) for row in rows),
        accuracy=(_line("validation accuracy", rows), _line("training accuracy", rows)),
        loss=(_line("validation loss", rows), _line("training loss", rows)),
        hover=tuple(
            f"learning rate {row['learning_rate']:.3g}, {row['images_per_second']:,.0f} images/s" for row in rows
        ),
        best=best,
        best_text=f"best validation: {100 * validation[best]:.2f} % (epoch {int(rows[best]['epoch'])})",
    )


def _line(name: str, rows: Sequence[Mapping[str, float]]) -> Line:
    part, what = name.split()
    key = f"{'train' if part == 'training' else part}_{what}"
    return Line(name, tuple(float(row[key]) for row in rows))


def training_figure(info: TrainingInfo) -> go.Figure:
    figure = go.Figure(layout=_layout(info))
    for line in info.accuracy:
        figure.add_trace(_trace(info, line, [100 * value for value in line.values], "%{y:.2f} %"))
    for line in info.loss:
        figure.add_trace(_trace(info, line, list(line.values), "%{y:.4f} nats", yaxis="y2"))
    best = 100 * info.accuracy[0].values[info.best]
    figure.add_trace(
        go.Scatter(
            x=[info.epochs[info.best]],
            y=[best],
            name=info.best_text,
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": LINES["validation accuracy"][0], "line": STAR_EDGE},
            text=[f"{info.best_text}<br>{info.hover[info.best]}"],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    return figure


def _trace(info: TrainingInfo, line: Line, values: list[float], shown: str, **more: Any) -> go.Scatter:
    color, dash, symbol = LINES[line.name]
    few = len(info.epochs) <= MARKED
    return go.Scatter(
        x=info.epochs,
        y=values,
        name=line.name,
        text=info.hover,
        hovertemplate=f"epoch %{{x}}: {line.name} {shown}<br>%{{text}}<extra></extra>",
        mode="lines+markers" if few else "lines",
        line={"color": color, "width": 2, "dash": dash},
        marker={"symbol": symbol, "size": 7},
        **more,
    )


def _layout(info: TrainingInfo) -> go.Layout:
    """Transparent, so that the page's light or dark paper shows; the page's style sheet colours the text."""
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "showline": True, "title_standoff": 10}
    last = info.epochs[-1]
    few = last <= 12
    return go.Layout(
        template="none",
        title={"text": html.escape(info.title, quote=False), "x": 0, "xref": "paper", "xanchor": "left", "y": 0.98},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 64, "r": 64, "t": 84, "b": 52},
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "xanchor": "left"},
        hovermode="closest",
        hoverlabel={"align": "left"},
        xaxis=axis
        | {"title_text": "Epoch", "tickformat": "d", "dtick": 1 if few else None}
        | {"range": [info.epochs[0] - 0.02 * last - 0.1, last + 0.02 * last + 0.1]},
        yaxis=axis | {"title_text": "Accuracy (%)", "range": _accuracy_range(info)},
        yaxis2=axis
        | {"title_text": "Loss (nats)", "overlaying": "y", "side": "right", "showgrid": False}
        # Ticks of its own: plotly would put them at the left axis' and label them 0.207, 0.46, 0.713.
        | {"rangemode": "tozero", "tickmode": "auto"},
    )


def _accuracy_range(info: TrainingInfo) -> list[float]:
    values = [100 * value for line in info.accuracy for value in line.values]
    low, high = min(values), max(values)
    missing = max(0.0, SPAN - (high - low)) / 2
    margin = 0.06 * max(high - low, SPAN)
    return [low - missing - margin, high + missing + margin]


def training_page(info: TrainingInfo) -> str:
    """The figure as one HTML file that asks for nothing from outside, and the browser holds it to that."""
    figure = training_figure(info).to_html(
        full_html=False, include_plotlyjs=False, config=GRAPH_CONFIG, default_height="100%", div_id="curve"
    )
    name = html.escape(info.title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · mnet-search</title><style>{STYLE}{FULL}</style><script>{get_plotlyjs()}</script></head>\n"
        f'<body><main><section class="card">{figure}</section></main></body></html>\n'
    )


# The plot fills the window.
FULL = (
    "main { padding: 12px; max-width: none; } .card { height: calc(100vh - 24px); min-height: 360px; }\n"
    ".card > div { height: 100%; }\n"
)
