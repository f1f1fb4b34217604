"""What a study's trials came to, all together: the distribution of their errors, and their states with the reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from mnet_search.dashboards.drawing import (
    FILLS,
    RUNNING,
    VERMILLION,
    empty,
    evenly,
    layout,
    pattern,
    plural,
)
from mnet_search.dashboards.snapshot import STATES, Snapshot
from mnet_search.studies.pareto import network_of

STEPS = 2000  # networks of which the distribution is drawn
REASONS = 8  # of the reasons for failures, the most frequent
LONGEST = 90  # characters of a reason

# One look a state: colour and pattern.
STATE_LOOKS = {
    "finished": ("#009E73", FILLS[0]),
    "running": (RUNNING, FILLS[1]),
    "waiting": ("#CC79A7", FILLS[3]),
    "stopped": ("#56B4E9", FILLS[4]),
    "failed": (VERMILLION, FILLS[2]),
}
_DIGITS = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class ErrorsInfo:
    """F(error) over a study's finished networks, each once: (error, share of networks with at most it), ascending, as
    fractions (Radosavovic et al., arXiv 1905.13214, section 3.1).
    """

    points: tuple[tuple[float, float], ...]
    n_networks: int  # may be more than are drawn
    note: str
    empty: str = ""


def errors_info(snapshot: Snapshot) -> ErrorsInfo:
    """The mean of a network that was trained several times counts once."""
    rows = snapshot.finished()
    means = rows["accuracy"].astype(float).groupby(network_of(rows)).mean()
    errors = np.sort(1 - means.dropna().to_numpy())
    places = evenly(len(errors), STEPS)
    stopped = int((snapshot.frame["state"] == "stopped").sum())
    were = "trial was" if stopped == 1 else "trials were"
    note = f"{stopped:,} {were} stopped early and left out, so this is not the space's own" if stopped else ""
    points = tuple((float(errors[place]), float(place + 1) / len(errors)) for place in places)
    why = "no finished trial has an accuracy" + (" yet" if rows.empty else ", so there are no errors to show")
    return ErrorsInfo(points, len(errors), note, "" if points else why)


def errors_figure(info: ErrorsInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(title_text="Validation error (%)")
    figure.update_yaxes(title_text="Share of networks with at most it", tickformat=".0%", range=[0, 1.03])
    if info.empty:
        return empty(figure, info.empty)
    errors = [100 * error for error, _ in info.points]
    return figure.add_trace(
        go.Scatter(
            x=[errors[0], *errors],
            y=[0.0, *(share for _, share in info.points)],
            name=f"networks ({info.n_networks:,})",
            showlegend=True,
            mode="lines",
            line={"color": RUNNING, "width": 2, "shape": "hv"},
            hovertemplate="%{y:.1%} of the networks have at most %{x:.2f} %<extra></extra>",
        )
    )


# --- States ---


@dataclass(frozen=True)
class StatesInfo:
    """Trials by state, and why those that failed did: (reason, trials), the most frequent first; numbers within a
    reason are left out, so that the same failure at another epoch is the same.
    """

    states: tuple[tuple[str, int], ...]
    reasons: tuple[tuple[str, int], ...]
    n_more: int  # failures of rarer reasons
    empty: str = ""


def states_info(snapshot: Snapshot) -> StatesInfo:
    """Every state that some trial is in, finished first."""
    counts = snapshot.frame["state"].value_counts()
    failed = snapshot.frame.loc[snapshot.frame["state"] == "failed", "reason"]
    # Few different texts, and only these are worked on.
    kinds: dict[str, int] = {}
    for text, count in failed.astype(str).value_counts().items():
        kind = _kind(str(text))
        kinds[kind] = kinds.get(kind, 0) + int(count)
    ranked = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return StatesInfo(
        states=tuple((state, int(counts[state])) for state in STATES if counts.get(state, 0)),
        reasons=tuple(ranked[:REASONS]),
        n_more=sum(count for _, count in ranked[REASONS:]),
        empty="" if len(snapshot.frame) else "no trial has begun yet",
    )


def _kind(reason: str) -> str:
    text = " ".join(_DIGITS.sub("…", reason).split()) or "no reason was recorded"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def states_figure(info: StatesInfo) -> go.Figure:
    """A bar a state; the reasons of failures are words below."""
    failures = [f"{count:,} × {reason}" for reason, count in info.reasons]
    if info.n_more:
        failures.append(f"{plural(info.n_more, 'failure')} of other reasons")
    figure = go.Figure(layout=layout(f"failed: {'; '.join(failures)}" if failures else "", bargap=0.35))
    figure.update_xaxes(title_text="Trials", tickformat=",d", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    if info.empty:
        return empty(figure, info.empty)
    for state, count in info.states:
        colour, shape = STATE_LOOKS[state]
        figure.add_trace(
            go.Bar(
                x=[count],
                y=[state],
                orientation="h",
                showlegend=False,
                marker={"color": colour, "pattern": pattern(shape)},
                text=[f"{count:,}"],
                textposition="outside",
                cliponaxis=False,
                hovertemplate=f"{count:,} {state}<extra></extra>",
            )
        )
    return figure
