"""A study over time: how its hypervolume grew, and which trials ran when, side by side."""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnet_search.dashboards.distribution_plots import STATE_LOOKS
from mnet_search.dashboards.drawing import FRONT, dates, empty, escaped, evenly, layout, lines, pattern, plural
from mnet_search.dashboards.quantities import PlotError, quantity
from mnet_search.dashboards.snapshot import STATES, Snapshot, architecture, records
from mnet_search.models.tables import nearest
from mnet_search.studies.pareto import Array, dominated_by, hypervolume, non_dominated, reference_point

STEPS = 500  # points of the line
WORK = {1: STEPS, 2: STEPS, 3: 12_000, 4: 1_500}  # networks on the last front times points, by number of objectives
FEWEST = 8  # points, however long the front
FIRST = 16  # steps, which are the largest, are all drawn
BLOCK = 512  # trials that are looked at together
BARS = 400  # trials of the timeline, the latest
AXES = {"trials": "Finished trials", "time": "Hours since the first trial began"}


@dataclass(frozen=True)
class HypervolumeInfo:
    """The volume that the running front dominates, as a share of the last: `x` trials or hours, `number` of the trial
    that brought it there. Volumes are exact at every point; where `n_steps` is more than are drawn, a step stands for
    several. `reference` words the corner that volumes are measured from.
    """

    by: str
    x: tuple[float, ...] = ()
    share: tuple[float, ...] = ()
    numbers: tuple[int, ...] = ()
    end: float = 0.0  # of the line: trials or hours until now
    n_steps: int = 0  # trials that entered the running front
    volume: float = 0.0  # the last, in the product of the objectives' units
    reference: str = ""
    note: str = ""
    empty: str = ""


def hypervolume_info(snapshot: Snapshot, *, by: str = "trials") -> HypervolumeInfo:
    """`by` "trials" (in the order in which they finished) or "time". Trials count one by one, not as means over runs.
    The reference point is fixed: a tenth of its range worse than the worst that was seen. PlotError for another `by`.
    """
    if by not in AXES:
        raise PlotError(f"hypervolume goes by {' or '.join(AXES)}, not by {by!r}{nearest(by, AXES)}")
    names, directions = list(snapshot.objectives), list(snapshot.objectives.values())
    if len(names) > max(WORK):
        return HypervolumeInfo(by, empty=f"hypervolume is exact for 1 to {max(WORK)} objectives; it has {len(names)}")
    rows = snapshot.finished()
    values = rows[names].to_numpy(dtype=float, na_value=np.nan)
    real = np.isfinite(values).all(axis=1)
    if not real.any():
        return HypervolumeInfo(by, empty=_no_volume(snapshot, names))
    rows, values = rows[real], values[real]
    order = np.argsort(rows["finished"].fillna(rows["started"]).to_numpy(), kind="stable")
    rows, values = rows.iloc[order], values[order]
    corner = reference_point(values, directions)
    entered = _entries(values, directions)
    most = max(FEWEST, WORK[len(names)] // (len(non_dominated(values[entered], directions)) if len(names) > 2 else 1))
    steps = np.union1d(evenly(len(entered), min(STEPS, most)), np.arange(min(FIRST, len(entered))))
    volumes = [_volume(values[entered[: step + 1]], directions, corner) for step in steps]
    last = volumes[-1]
    when = _positions(rows, snapshot.frame, by)
    reference = ", ".join(_corner(snapshot, names, corner))
    thinned = f"; {len(steps):,} of the {plural(len(entered), 'step')} are drawn" if len(steps) < len(entered) else ""
    return HypervolumeInfo(
        by=by,
        x=tuple(when[entered[steps]].tolist()),
        share=tuple(round(volume / last, 6) for volume in volumes),
        numbers=tuple(rows["number"].to_numpy()[entered[steps]].tolist()),
        end=float(when[-1]),
        n_steps=len(entered),
        volume=float(last),
        reference=reference,
        note=f"share of the last volume, {last:.4g}, from the corner {reference}{thinned}",
    )


def _corner(snapshot: Snapshot, names: Sequence[str], corner: Array) -> Iterable[str]:
    for name, at in zip(names, corner, strict=True):
        found = quantity(snapshot, name)
        yield f"{found.name} {found.text(float(at))}"


def _no_volume(snapshot: Snapshot, names: Sequence[str]) -> str:
    if snapshot.finished().empty:
        return "no finished trial has all objectives yet"
    return f"no finished trial has all of {', '.join(names)}, so there is no volume"


def _volume(values: Array, directions: Sequence[str], corner: Array) -> float:
    return hypervolume(values[non_dominated(values, directions)], directions, corner)


def _entries(values: Array, directions: Sequence[str]) -> Array:
    """The places of the rows (N, M) that no earlier row dominates or equals: those that change the running front."""
    found: list[int] = []
    kept = values[:0]
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        for place in np.flatnonzero(~dominated_by(block, kept, directions)):
            row = block[place : place + 1]
            if not dominated_by(row, kept, directions)[0] and not (kept == row).all(axis=1).any():
                kept = np.vstack([kept[~dominated_by(kept, row, directions)], row])
                found.append(start + int(place))
    return np.array(found)


def _positions(rows: pd.DataFrame, frame: pd.DataFrame, by: str) -> Array:
    if by == "trials":
        return np.arange(1, len(rows) + 1, dtype=float)
    began = frame["started"].min()
    hours: Array = (rows["finished"].fillna(rows["started"]) - began).dt.total_seconds().to_numpy() / 3600
    return hours.round(5)


def hypervolume_figure(info: HypervolumeInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note))
    figure.update_xaxes(title_text=AXES[info.by], rangemode="tozero")
    figure.update_yaxes(title_text="Hypervolume (share of the last)", tickformat=".0%", rangemode="tozero")
    if info.empty:
        return empty(figure, info.empty)
    unit = " finished trials" if info.by == "trials" else " h"
    trace = go.Scatter(
        x=[*info.x, info.end],
        y=[*info.share, info.share[-1]],
        customdata=[*info.numbers, info.numbers[-1]],
        mode="lines+markers" if len(info.x) <= 60 else "lines",
        line={"color": FRONT, "width": 2, "shape": "hv"},
        marker={"size": [*(6 for _ in info.x), 0]},  # the end of the line is no step
        hovertemplate=f"%{{y:.1%}} after %{{x:,.4~g}}{unit}<br>trial %{{customdata}}<extra></extra>",
        name="hypervolume",
    )
    return figure.add_trace(trace)


# --- Which trial ran when ---


@dataclass(frozen=True)
class Bar:
    """A trial on the timeline. Times are local ones of the driver's machine."""

    number: int
    lane: int
    start: datetime.datetime
    end: datetime.datetime
    state: str
    hover: tuple[str, ...]


@dataclass(frozen=True)
class TimelineInfo:
    """The latest trials in lanes. Workers are not recorded: a lane is the first one that is free."""

    bars: tuple[Bar, ...] = ()
    n_lanes: int = 0
    n_trials: int = 0  # may be more than are drawn
    note: str = ""
    empty: str = ""


def timeline_info(snapshot: Snapshot, *, most: int = BARS, now: datetime.datetime | None = None) -> TimelineInfo:
    """The latest `most` trials that ran. What runs is drawn until `now`, or else the study's last sign of life."""
    frame = snapshot.frame
    # A trial that waits was set down: when, nobody wrote down. One without attempts came from elsewhere.
    ran = frame[(frame["state"] != "waiting") & frame["started"].notna() & (frame["attempts"] > 0)]
    if ran.empty:
        return TimelineInfo(empty="no trial has begun yet" if frame.empty else "no trial ran here yet")
    shown = ran.sort_values(["started", "number"]).tail(most)
    shown = shown.astype({"started": "datetime64[us]", "finished": "datetime64[us]"})
    last = pd.Timestamp(now) if now else max(frame["started"].max(), frame["finished"].max())
    ends = shown["finished"].fillna(last.floor("us")).clip(lower=shown["started"])
    lanes = _lanes(shown["started"].tolist(), ends.tolist())
    bars = [
        Bar(
            number=int(row["number"]),
            lane=lane,
            start=row["started"].to_pydatetime(),
            end=end.to_pydatetime(),
            state=str(row["state"]),
            hover=(*architecture(row), _duration(end - row["started"], str(row["state"]))),
        )
        for row, end, lane in zip(records(shown), ends.tolist(), lanes, strict=True)
    ]
    notes = [f"the latest {len(bars):,} of {len(ran):,} trials"] if len(bars) < len(ran) else []
    if (waiting := int((frame["state"] == "waiting").sum())) > 0:
        notes.append(f"{plural(waiting, 'trial')} that {'waits' if waiting == 1 else 'wait'} not drawn")
    info = TimelineInfo(tuple(bars), max(lanes) + 1, len(ran))
    return replace(
        info, note="; ".join(["times are the driver's; lanes are not workers: each is the first that was free", *notes])
    )


def _lanes(starts: Sequence[pd.Timestamp], ends: Sequence[pd.Timestamp]) -> list[int]:
    """The lowest free lane for each, in order of their starts."""
    free: list[int] = []
    busy: list[tuple[pd.Timestamp, int]] = []
    found = []
    for start, end in zip(starts, ends, strict=True):
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        found.append(lane)
    return found


def _duration(span: datetime.timedelta, state: str) -> str:
    seconds = span.total_seconds()
    text = f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    if seconds >= 7200:
        text = f"{seconds / 3600:.1f} h"
    return f"{state} for {text}" if state == "running" else f"{state} after {text}"


def timeline_figure(info: TimelineInfo) -> go.Figure:
    figure = go.Figure(layout=layout(info.note, barmode="overlay", bargap=0.15))
    figure.update_xaxes(**dates())
    figure.update_yaxes(title_text="Trials at the same time", dtick=1 if info.n_lanes <= 12 else None, tickformat="d")
    figure.update_yaxes(range=[info.n_lanes + 0.6, 0.4])
    if info.empty:
        return empty(figure, info.empty)
    for state in STATES:
        bars = [bar for bar in info.bars if bar.state == state]
        if not bars:
            continue
        colour, shape = STATE_LOOKS[state]
        figure.add_trace(
            go.Bar(
                base=[bar.start for bar in bars],
                x=[1000 * (bar.end - bar.start).total_seconds() for bar in bars],  # milliseconds, on an axis of dates
                y=[bar.lane + 1 for bar in bars],
                orientation="h",
                customdata=[bar.number for bar in bars],
                text=[lines(bar.hover) for bar in bars],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
                name=escaped(f"{state} ({len(bars):,})"),
                showlegend=True,
                marker={"color": colour, "pattern": pattern(shape), "line": {"color": "white", "width": 0.5}},
            )
        )
    return figure
