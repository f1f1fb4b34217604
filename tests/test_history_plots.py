"""Hypervolume over trials and time, which trial ran when, and learning curves."""

from __future__ import annotations

import datetime
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_search.dashboards.history_plots import _entries
from mnet_search.dashboards.learning_curves import CHOSEN, CURVES, Curve, CurvesInfo
from mnet_search.dashboards.plots import PLOTS
from mnet_search.models.arch import MnetError
from mnet_search.studies.pareto import hypervolume, non_dominated, reference_point

from plot_frames import HOVER_0, HOVER_1, HOVER_4, NAN, START, TRIALS, frame_of, snapshot_of

PAIR = {"accuracy": "maximize", "params": "minimize"}


def minutes(count):
    return (START + pd.Timedelta(minutes=count)).to_pydatetime()


# --- Hypervolume ---


def test_hypervolume_grows_with_the_running_front():
    snapshot = snapshot_of(objectives=PAIR)
    info = PLOTS["hypervolume"].info(snapshot)
    values = np.array([(0.90, 20_000), (0.95, 90_000), (0.93, 60_000), (0.88, 95_000)])
    corner = reference_point(values, list(PAIR.values()))
    volumes = [hypervolume(values[:n], list(PAIR.values()), corner) for n in (1, 2, 3)]
    assert info.numbers == (0, 1, 2), "the last trial is dominated and changes nothing"
    assert (info.x, info.end, info.n_steps) == ((1.0, 2.0, 3.0), 4.0, 3)
    assert info.share == pytest.approx([volume / volumes[-1] for volume in volumes], abs=1e-6)
    assert info.volume == pytest.approx(volumes[-1])
    assert info.reference == "accuracy 87.30 %, params 102 k", "a tenth of the range worse than the worst"
    figure = PLOTS["hypervolume"].figure(info)
    assert list(figure.data[0].x) == [1, 2, 3, 4]
    assert figure.layout.xaxis.title.text == "Finished trials"


def test_hypervolume_over_time_and_in_order_of_the_ends():
    frame = frame_of()
    frame.loc[frame["number"] == 0, "finished"] = START + np.timedelta64(2, "h")
    info = PLOTS["hypervolume"].info(snapshot_of(frame, objectives=PAIR), by="time")
    assert info.numbers == (1, 2, 0)
    assert info.x == pytest.approx([150 / 3600, 210 / 3600, 2.0], abs=1e-4)
    assert PLOTS["hypervolume"].figure(info).layout.xaxis.title.text == "Hours since the first trial began"
    with pytest.raises(MnetError, match=r"hypervolume goes by trials or time, not by 'tme'; did you mean time\?"):
        PLOTS["hypervolume"].info(snapshot_of(), by="tme")
    five = {f"figure {i}": "minimize" for i in range(5)}
    assert "exact for 1 to 4 objectives" in PLOTS["hypervolume"].info(snapshot_of(objectives=five)).empty


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_only_entries_change_the_running_front(rows):
    values, directions = np.array(rows, dtype=float), ["maximize", "minimize"]
    entered = set(_entries(values, directions).tolist())

    def front(count):
        return {tuple(row) for row in values[:count][non_dominated(values[:count], directions)]}

    for place in range(len(values)):
        assert (place in entered) == (front(place + 1) != front(place)), "a second equal row changes nothing"


# --- The timeline ---


def test_timeline_puts_trials_into_the_first_free_lane():
    info = PLOTS["timeline"].info(snapshot_of(), now=datetime.datetime(2026, 1, 2, 10, 30))
    assert [(bar.number, bar.lane, bar.state) for bar in info.bars] == [
        (0, 0, "finished"),
        (1, 1, "finished"),
        (2, 0, "finished"),
        (3, 1, "failed"),
        (4, 0, "running"),
        (5, 1, "finished"),
    ]
    assert (info.n_lanes, info.n_trials) == (2, 6)
    assert (info.bars[0].start, info.bars[0].end) == (minutes(0), minutes(1.5))
    assert info.bars[4].end == minutes(30)
    assert info.bars[0].hover == (*HOVER_0, "finished after 90.0 s")
    assert info.bars[4].hover == (*HOVER_4, "running for 26.0 min")
    figure = PLOTS["timeline"].figure(info)
    assert [trace.name for trace in figure.data] == ["finished (4)", "running (1)", "failed (1)"]
    assert list(figure.data[0].y) == [1, 2, 1, 2]
    assert figure.data[0].x[0] == 90_000, "milliseconds on an axis of dates"


def test_timeline_of_many_trials_shows_the_latest():
    info = PLOTS["timeline"].info(snapshot_of(), most=2)
    assert [bar.number for bar in info.bars] == [4, 5]
    assert (
        info.note
        == "times are the driver's; lanes are not workers: each is the first that was free; the latest 2 of 6 trials"
    )
    frame = frame_of()
    frame.loc[frame["number"] == 4, "state"] = "waiting"
    frame.loc[frame["number"] == 5, "attempts"] = 0  # brought in from elsewhere
    info = PLOTS["timeline"].info(snapshot_of(frame))
    assert [bar.number for bar in info.bars] == [0, 1, 2, 3]
    assert info.note.endswith("; 1 trial that waits not drawn")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)), min_size=1, max_size=25))
def test_bars_of_a_lane_never_overlap(spans):
    trials = [(i, *TRIALS[0][1:]) for i in range(len(spans))]
    frame = frame_of(trials)
    frame["started"] = [START + np.timedelta64(start, "s") for start, _ in spans]
    frame["finished"] = [START + np.timedelta64(start + length, "s") for start, length in spans]
    bars = PLOTS["timeline"].info(snapshot_of(frame)).bars
    assert len(bars) == len(spans)
    for lane in {bar.lane for bar in bars}:
        own = sorted((bar.start, bar.end) for bar in bars if bar.lane == lane)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(own))


# --- Learning curves ---


def test_curves_info():
    curves = [(1, 2, 0.95), (1, 1, 0.6), (4, 1, 0.3), (3, 1, 0.1), (5, 1, 0.5), (5, 2, NAN)]
    assert PLOTS["curves"].info(snapshot_of(curves=curves)) == CurvesInfo(
        front=(Curve(1, (1, 2), (0.6, 0.95), HOVER_1),),
        running=(Curve(4, (1,), (0.3,), HOVER_4),),
        others=(Curve(3, (1,), (0.1,), ("trial 3",)), Curve(5, (1,), (0.5,), ("trial 5",))),
        n_others=2,
        last_epoch=2,
    )


def test_curves_of_chosen_trials_alone():
    curves = [(1, 1, 0.6), (0, 1, 0.4), (4, 1, 0.3), (5, 1, 0.5)]
    info = PLOTS["curves"].info(snapshot_of(curves=curves), numbers=[1, 0, 2])
    assert info.chosen == (Curve(0, (1,), (0.4,), HOVER_0), Curve(1, (1,), (0.6,), HOVER_1))
    assert (info.front, info.running, info.others) == ((), (), ())
    assert info.note == "no curve yet of trial 2"
    figure = PLOTS["curves"].figure(info)
    assert [trace.name for trace in figure.data] == ["trial 0", "trial 1"]
    assert len({(trace.line.color, trace.line.dash, trace.marker.symbol) for trace in figure.data}) == 2
    assert PLOTS["curves"].info(snapshot_of(curves=curves), numbers=[]).empty.startswith("no trial is chosen")
    assert PLOTS["curves"].info(snapshot_of(curves=curves), numbers=[2]).empty.startswith("none of the chosen trials")
    many = PLOTS["curves"].info(snapshot_of(curves=curves), numbers=range(CHOSEN + 1))
    assert many.note.startswith(f"the first {CHOSEN} of {CHOSEN + 1} chosen trials; no curve yet of trials 2, 3, ")


def test_curves_mark_the_rungs_where_trials_were_stopped():
    frame = frame_of()
    frame.loc[frame["number"].isin([2, 3]), "state"] = "stopped"
    frame.loc[frame["number"] == 5, ["state", "epochs"]] = ["stopped", 4]
    info = PLOTS["curves"].info(snapshot_of(frame, [(0, 1, 0.4)]))
    assert info.rungs == ((2, 2), (4, 1))
    assert info.n_others == 3, "their curves need not be in the snapshot"
    figure = PLOTS["curves"].figure(info)
    assert [shape.x0 for shape in figure.layout.shapes] == [2, 4]
    assert figure.layout.annotations[0].text == "2 stopped"


def test_curves_of_a_large_study():
    count = CURVES + 30
    trials = [(i, "finished", 0.5, 2.0 + i, 2.0, 3.0 + i, 10, 10, 1.0, "b", NAN) for i in range(1, count + 1)]
    frame = frame_of([(0, "finished", 0.9, 1.0, 1.0, 1.0, 9, 9, 1.0, "b", NAN), *trials])
    info = PLOTS["curves"].info(snapshot_of(frame, [(number, 1, 0.5) for number in range(count + 1)]))
    assert [curve.number for curve in info.others] == list(range(count + 1 - CURVES, count + 1))
    assert PLOTS["curves"].figure(info).data[0].name == f"other trials (the latest {CURVES} of {count:,})"


def test_curves_figure():
    curves = [(1, 1, 0.6), (1, 2, 0.95), (0, 1, 0.4), (4, 1, 0.3), (3, 1, 0.1), (5, 1, 0.5)]
    figure = PLOTS["curves"].draw(snapshot_of(curves=curves))
    assert [(trace.name, trace.showlegend) for trace in figure.data] == [
        ("other trials (2)", None),
        ("running (1)", True),
        ("on the front of the study (2)", True),
        ("on the front of the study (2)", False),
    ]
    assert list(figure.data[0].x) == [1, None, 1, None], "a gap between trials"
    assert (list(figure.data[3].x), list(figure.data[3].y)) == ([1, 2], [60.0, 95.0])
    assert figure.data[3].meta == "<br>".join(HOVER_1)
    assert list(figure.data[3].customdata) == [1, 1], "a click opens the trial"
