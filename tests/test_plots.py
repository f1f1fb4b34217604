"""What each plot shows, by equality of its info; how it is drawn, by the few things that a reader relies on."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from mnet_search.dashboards.plots import CURVES, PLOTS, POINTS, Curve, CurvesInfo, ParetoInfo, Point, pareto_info
from mnet_search.dashboards.snapshot import (
    Overview,
    Snapshot,
    Table,
    front_table,
    milliseconds,
    overview,
    parameters,
    percent,
    present,
    sentences,
)

OBJECTIVES = {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"}
NAN = math.nan

#       number state       accuracy latency  q1    q3   params  mult-adds width block               expand
TRIALS = [
    (0, "finished", 0.90, 0.50, 0.48, 0.55, 20_000, 900_000, 0.25, "separable", NAN),
    (1, "finished", 0.95, 0.75, 0.70, 0.90, 90_000, 3_500_000, 0.5, "separable", NAN),
    (2, "finished", 0.93, 0.90, 0.85, 0.95, 60_000, 3_600_000, 0.25, "inverted_residual", 4.0),
    (3, "failed", NAN, NAN, NAN, NAN, 10_000, 500_000, 0.25, "separable", NAN),
    (4, "running", NAN, NAN, NAN, NAN, 4_231_976, 568_740_352, 1.0, "separable", NAN),
    (5, "finished", 0.88, NAN, NAN, NAN, 95_000, 4_000_000, 0.5, "inverted_residual", 2.0),
]
COLUMNS = ["number", "state", "accuracy", "latency_ms", "latency_q1_ms", "latency_q3_ms", "params", "mult_adds"]
COLUMNS += ["param.width", "param.block", "param.expand"]

HOVER_0 = (
    "trial 0 · 000000000000 · mobilenet_v1",
    "width: 0.25",
    "block: separable",
    "accuracy: 90.00 %",
    "latency: 0.500 ms [0.480, 0.550]",
    "params: 20 k",
    "mult-adds: 900 k",
)
HOVER_1 = (
    "trial 1 · 000000000001 · mobilenet_v1",
    "width: 0.5",
    "block: separable",
    "accuracy: 95.00 %",
    "latency: 0.750 ms [0.700, 0.900]",
    "params: 90 k",
    "mult-adds: 3.5 M",
)
HOVER_2 = (
    "trial 2 · 000000000002 · mobilenet_v1",
    "width: 0.25",
    "block: inverted_residual",
    "expand: 4",
    "accuracy: 93.00 %",
    "latency: 0.900 ms [0.850, 0.950]",
    "params: 60 k",
    "mult-adds: 3.6 M",
)
HOVER_4 = (
    "trial 4 · 000000000004 · mobilenet_v1",
    "width: 1",
    "block: separable",
    "params: 4.23 M",
    "mult-adds: 569 M",
)
NOTE = (
    "single runs, no repeats: differences below about 0.97 points "
    "(binomial standard error of the best accuracy, 500 validation images) are noise"
)


def frame_of(trials=TRIALS):
    frame = pd.DataFrame(trials, columns=COLUMNS)
    frame["arch_id"] = [f"{number:012x}" for number in frame["number"]]
    frame["family"] = "mobilenet_v1"
    return frame


def snapshot_of(frame=None, curves=(), objectives=OBJECTIVES, **provenance):
    table = pd.DataFrame(list(curves), columns=["number", "epoch", "validation_accuracy"])
    return Snapshot("digits", objectives, frame_of() if frame is None else frame, table, provenance)


def test_pareto_info_of_a_measured_cost():
    snapshot = snapshot_of(validation_images=500)
    assert PLOTS["pareto_latency"].info(snapshot) == ParetoInfo(
        cost="latency_ms",
        front=(Point(0, 0.50, 0.90, 0.48, 0.55, HOVER_0), Point(1, 0.75, 0.95, 0.70, 0.90, HOVER_1)),
        others=(Point(2, 0.90, 0.93, 0.85, 0.95, HOVER_2),),  # the trial without a latency is left out
        n_others=1,
        floor=pytest.approx(0.896),
        n_below=0,
        note=NOTE,
    )


def test_pareto_info_of_an_exact_cost():
    info = PLOTS["pareto_params"].info(snapshot_of(validation_images=500))
    assert info.front == (
        Point(0, 20_000.0, 0.90, None, None, HOVER_0),
        Point(2, 60_000.0, 0.93, None, None, HOVER_2),
        Point(1, 90_000.0, 0.95, None, None, HOVER_1),
    ), "cheapest first"
    assert [point.number for point in info.others] == [5]
    info = PLOTS["pareto_mult_adds"].info(snapshot_of())
    assert [point.number for point in info.front] == [0, 1]
    assert info.note == "single runs, no repeats: differences below about the binomial error are noise"


def test_curves_info():
    curves = [(1, 2, 0.95), (1, 1, 0.6), (4, 1, 0.3), (3, 1, 0.1), (5, 1, 0.5), (5, 2, NAN)]
    assert PLOTS["curves"].info(snapshot_of(curves=curves)) == CurvesInfo(
        front=(Curve(1, (1, 2), (0.6, 0.95), HOVER_1),),
        running=(Curve(4, (1,), (0.3,), HOVER_4),),
        others=(Curve(3, (1,), (0.1,), ("trial 3",)), Curve(5, (1,), (0.5,), ("trial 5",))),
        n_others=2,
        last_epoch=2,
    )


def test_errors_are_of_networks_and_not_of_runs():
    frame = frame_of()
    info = PLOTS["errors"].info(snapshot_of(frame))
    accuracies = sorted(frame.loc[frame["state"] == "finished", "accuracy"].dropna(), reverse=True)
    n = len(accuracies)
    assert info.n_networks == n and info.note == ""
    assert info.points == tuple((pytest.approx(1 - value), (i + 1) / n) for i, value in enumerate(accuracies))
    figure = PLOTS["errors"].figure(info)
    assert list(figure.data[0].y) == [0.0, *(share for _, share in info.points)]
    frame.loc[frame["number"] == 2, "arch_id"] = "000000000001"  # trial 2 repeats the network of trial 1
    frame.loc[frame["number"] == 4, "state"] = "stopped"
    info = PLOTS["errors"].info(snapshot_of(frame))
    assert info.n_networks == n - 1
    assert info.points[0] == (pytest.approx(0.06), 1 / (n - 1))  # the mean of .95 and .93
    assert info.note == "1 trial was stopped early and left out, so this is not the space's own"


def test_note_says_what_a_front_of_single_runs_cannot_tell():
    frame = frame_of()
    frame.loc[frame["number"] == 2, "arch_id"] = "000000000001"  # trial 2 repeats the network of trial 1
    note = pareto_info(snapshot_of(frame), "mult_adds").note
    assert note.startswith("1 of 2 are single runs: differences below about the binomial error")
    frame["arch_id"] = "000000000001"
    assert pareto_info(snapshot_of(frame), "mult_adds").note == ""
    frame["param.training.recipe"] = [f"recipe {number}" for number in frame["number"]]
    note = pareto_info(snapshot_of(frame), "mult_adds").note
    assert note.startswith("single runs, no repeats"), "one network under other recipes is no repeat"
    perfect = frame_of([(*TRIALS[0][:2], 1.0, *TRIALS[0][3:])])
    note = pareto_info(snapshot_of(perfect, validation_images=100), "params").note
    assert "about 0.99 points" in note, "no error in 100 images is not: no noise"


def test_large_studies_are_thinned_but_never_the_front():
    count = POINTS + 1000
    trials = [
        (i, "finished", 0.5 - 0.3 * i / count, 2.0 + i, 2.0, 3.0 + i, 10, 10, 1.0, "b", NAN) for i in range(count)
    ]
    frame = frame_of([(count, "finished", 0.9, 1.0, 1.0, 1.0, 9, 9, 1.0, "b", NAN), *trials])
    curves = [(number, 1, 0.5) for number in range(count + 1)]
    snapshot = snapshot_of(frame, curves)
    info = pareto_info(snapshot, "latency_ms")
    assert ([point.number for point in info.front], len(info.others), info.n_others) == ([count], POINTS, count)
    assert (info.others[0].number, info.others[-1].number) == (0, count - 1), "the ends of the cloud stay"
    figure = PLOTS["pareto_latency"].figure(info)
    assert figure.data[0].name == f"other trials ({POINTS:,} of {count:,} shown, {info.n_below} below the frame)"
    assert 0 < info.n_below < count / 4
    assert figure.data[0].error_x.array is None, "thousands of bars would hide the points"
    shown = PLOTS["curves"].info(snapshot)
    assert [curve.number for curve in shown.others] == list(range(count - CURVES, count))
    assert PLOTS["curves"].figure(shown).data[0].name == f"other trials (the latest {CURVES} of {count:,})"


def test_pareto_figure():
    figure = PLOTS["pareto_latency"].draw(snapshot_of(validation_images=500))
    others, front = figure.data
    assert (others.name, front.name) == ("other trials (1)", "front of accuracy and latency (2)")
    assert (front.mode, front.line.shape) == ("lines+markers", "hv")
    assert front.marker.size > others.marker.size
    assert (list(front.x), list(front.y), list(front.customdata)) == ([0.50, 0.75], [90.0, 95.0], [0, 1])
    assert list(front.error_x.array) == pytest.approx([0.05, 0.15])
    assert list(front.error_x.arrayminus) == pytest.approx([0.02, 0.05])
    assert front.text[1] == "<br>".join(HOVER_1)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "Latency (ms, median and quartiles)"
    assert figure.layout.yaxis.title.text == "Validation accuracy (%)"
    assert figure.layout.annotations[0].text.replace("<br>", " ") == NOTE
    params = PLOTS["pareto_params"].draw(snapshot_of())
    assert params.layout.xaxis.tickformat == "~s", "20k, 1M"
    assert params.data[-1].error_x.array is None


def test_failures_do_not_flatten_the_front():
    bad = [
        (number, "finished", accuracy, *TRIALS[2][3:])
        for number, accuracy in ((6, 0.1), (7, 0.9), (8, 0.91), (9, 0.92))
    ]
    snapshot = snapshot_of(frame_of(TRIALS[:2] + bad))
    info = PLOTS["pareto_latency"].info(snapshot)
    assert (info.floor, info.n_below) == (pytest.approx(0.68), 1), (
        "a margin below the lower quartile of the others, which is below the front's end"
    )
    figure = PLOTS["pareto_latency"].figure(info)
    assert figure.layout.yaxis.range == pytest.approx((68.0, 97.16))
    assert figure.data[0].name == "other trials (4, 1 below the frame)"
    assert len(figure.data[0].x) == 4, "they are there, a double click away"
    assert PLOTS["pareto_latency"].draw(snapshot_of()).layout.yaxis.range is None


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


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_of_a_study_without_results_says_why_it_is_empty(name):
    nothing = snapshot_of(frame_of().iloc[:0])
    unfinished = snapshot_of(frame_of()[lambda frame: frame["state"] == "running"])
    for snapshot in (nothing, unfinished):
        figure = PLOTS[name].draw(snapshot)
        assert not figure.data
        assert "yet" in figure.layout.annotations[0].text


def test_names_from_a_space_cannot_become_markup():
    frame = frame_of().rename(columns={"param.block": "param.<b>&"})
    frame["param.<b>&"] = "<a href='https://example.org'>x</a>"
    text = PLOTS["pareto_latency"].draw(snapshot_of(frame)).data[-1].text[0]
    assert "<br>&lt;b&gt;&amp;: &lt;a href='https://example.org'&gt;x&lt;/a&gt;<br>" in text


def test_front_table_lists_only_parameters_that_were_chosen():
    snapshot = snapshot_of(frame_of(TRIALS[:2]))
    assert front_table(snapshot) == Table(
        ("trial", "width", "block", "accuracy", "latency, ms [q1, q3]", "params", "mult-adds"),
        (
            ("0", "0.25", "separable", "90.00 %", "0.500 [0.480, 0.550]", "20 k", "900 k"),
            ("1", "0.5", "separable", "95.00 %", "0.750 [0.700, 0.900]", "90 k", "3.5 M"),
        ),
    )
    unmeasured = frame_of(TRIALS[-1:])
    table = front_table(snapshot_of(unmeasured, objectives={"accuracy": "maximize", "params": "minimize"}))
    assert table.rows == (("5", "0.5", "inverted_residual", "2", "88.00 %", "–", "95 k", "4 M"),)


def test_overview_in_words():
    found = overview(snapshot_of(validation_images=500))
    best = "trial 1 (width 0.5, block separable): 95.00 %, 0.750 ms [0.700, 0.900], 90 k params, 3.5 M mult-adds"
    states = (("finished", 4), ("running", 1), ("failed", 1))
    assert found == Overview(states, n_front=3, best=best, small=best, note=NOTE)
    assert sentences(found) == (
        "Trials: 4 finished, 1 running, 1 failed. On the front: 3.",
        f"Most accurate: {best}.",
        "No network of fewer params is within one point of it.",
        NOTE[0].upper() + NOTE[1:] + ".",
    )
    nearly = [(*trial[:2], 0.94, *trial[3:]) if trial[0] == 2 else trial for trial in TRIALS]
    assert sentences(overview(snapshot_of(frame_of(nearly))))[2] == (
        "Fewest params within one point of that: trial 2 (width 0.25, block inverted_residual, expand 4): "
        "94.00 %, 0.900 ms [0.850, 0.950], 60 k params, 3.6 M mult-adds."
    )
    assert sentences(overview(snapshot_of(frame_of().iloc[:0]))) == ("Trials: none yet. On the front: 0.",)


def test_single_values():
    assert [milliseconds(value) for value in (0.01234, 0.5, 12.345, 123.4)] == [
        "0.0123 ms",
        "0.500 ms",
        "12.3 ms",
        "123 ms",
    ]
    assert percent(0.98765) == "98.77 %"
    assert [present(value) for value in (None, NAN, pd.NA, pd.NaT, 0, "", False, [1, 2])] == [False] * 4 + [True] * 4
    assert parameters({"param.a": 1.0, "param.b": None, "param.stages.3.kernel": 5, "seed": 0}) == {
        "a": "1",
        "stages.3.kernel": "5",
    }
