"""The Pareto view: what it shows of a known study under each option, and how that is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from mnet_search.dashboards.pareto_marks import POINTS, Colour, Marks
from mnet_search.dashboards.pareto_plot import ParetoInfo, pareto_info
from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.quantities import QUANTITIES
from mnet_search.models.arch import MnetError
from mnet_search.studies.confidence import front_confidence
from mnet_search.studies.pareto import front

from plot_frames import HOVER_0, HOVER_1, HOVER_2, NAN, NOTE, TRIALS, frame_of, grid_frame, large_snapshot, snapshot_of

HOVER_5 = (
    "trial 5 · 000000000005 · mobilenet_v1",
    "width: 0.5",
    "block: inverted_residual",
    "expand: 2",
    "accuracy: 88.00 %",
    "params: 95 k",
    "mult-adds: 4 M",
)


def test_info_of_an_exact_cost():
    info = PLOTS["pareto_params"].info(snapshot_of())
    assert info == ParetoInfo(
        x=QUANTITIES["params"],
        y=QUANTITIES["accuracy"],
        log_x=True,
        log_y=False,
        marks=(
            Marks("dominated", "dominated (1)", (5,), (95_000.0,), (0.88,), (HOVER_5,)),
            Marks(
                "front",
                "front of accuracy and params (3)",
                (0, 2, 1),
                (20_000.0, 60_000.0, 90_000.0),
                (0.90, 0.93, 0.95),
                (HOVER_0, HOVER_2, HOVER_1),
            ),
        ),
        line=True,
        note="single runs, no repeats: differences below about the binomial error are noise",
    ), "cheapest first; nothing is known of the noise"


def test_info_of_a_measured_cost():
    info = PLOTS["pareto_latency"].info(snapshot_of(validation_images=500))
    front, dominated = info.kind("front"), info.kind("dominated")
    assert (front.numbers, front.x, front.y) == ((0, 1), (0.50, 0.75), (0.90, 0.95))
    assert dominated.numbers == (2,), "the trial without a latency is left out"
    assert front.bars_x == ((0.48, 0.55), (0.70, 0.90)), "the quartiles"
    binomial = (0.95 * 0.05 / 500) ** 0.5
    assert front.bars_y[1] == (pytest.approx(0.95 - binomial), pytest.approx(0.95 + binomial))
    assert front.hover[1] == (*HOVER_1, f"on the front with probability {front.chance[1]:.2f}")
    assert info.note == NOTE


def test_probabilities_are_those_of_the_confidence_module():
    frame = grid_frame(repeats=3, noise=0.15)
    snapshot = snapshot_of(frame, validation_images=1000)
    front = pareto_info(snapshot, x="mult_adds").kind("front")
    objectives = {"accuracy": "maximize", "mult_adds": "minimize"}
    exact = front_confidence(frame, objectives, 1000).networks.set_index("number")["probability"]
    assert len(front.chance) > 3 and min(front.chance) < 0.9
    assert front.chance == pytest.approx([exact[number] for number in front.numbers], abs=0.08)
    assert front.hover[0][-2].startswith("mean of 3 runs, sd of accuracy ")
    first = frame[frame["arch_id"] == frame.loc[front.numbers[0], "arch_id"]]["accuracy"]
    assert front.y[0] == pytest.approx(first.mean())
    assert np.diff(front.bars_y[0])[0] == pytest.approx(2 * first.std())
    assert pareto_info(snapshot, x="mult_adds").note == "bars of accuracy are one standard deviation between runs"


def test_third_objective_is_the_colour_and_has_no_line():
    info = pareto_info(snapshot_of(), x="mult_adds", z="params")
    assert info.kind("front").name == "front of accuracy, mult-adds and params (3)"
    assert (info.line, info.colour) == (False, Colour(QUANTITIES["params"]))
    assert info.kind("front").colour == (20_000.0, 90_000.0, 60_000.0)
    assert info.kind("dominated").numbers == (5,)
    figure = PLOTS["pareto"].figure(info)
    assert figure.data[-1].mode == "markers"
    assert figure.data[-1].marker.coloraxis == "coloraxis"
    assert figure.layout.coloraxis.colorbar.title.text == "Parameters"


def test_other_axes_and_scales():
    info = pareto_info(snapshot_of(), x="accuracy", y="params", log_x=False, log_y=True)
    assert info.kind("front").numbers == (1, 2, 0), "best accuracy first"
    figure = PLOTS["pareto"].figure(info)
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == (None, "log")
    assert figure.layout.xaxis.title.text == "Validation accuracy (%)"
    assert list(figure.data[-1].x) == [95.0, 93.0, 90.0]
    assert figure.data[-1].line.shape == "vh"


def test_colour_and_size_by_parameter_and_figure():
    info = pareto_info(snapshot_of(), x="params", colour="block", size="mult_adds")
    assert info.colour.categories == ("inverted_residual", "separable")
    assert info.kind("front").colour == (1.0, 0.0, 1.0)
    assert info.kind("dominated").colour == (0.0,)
    assert info.kind("front").size[0] < info.kind("front").size[2] < info.kind("front").size[1]
    assert info.note.endswith(". A larger mark has more mult-adds")
    figure = PLOTS["pareto"].figure(info)
    assert [trace.name for trace in figure.data[:2]] == ["block: inverted_residual", "block: separable"]
    front = figure.data[-1]
    assert front.marker.symbol == ("square", "circle", "square"), "symbols say what colours say"
    assert len(set(front.marker.color)) == 2
    with pytest.raises(MnetError, match=r"'block' has no number in any trial, so it cannot be a size"):
        pareto_info(snapshot_of(), size="block")
    missing = pareto_info(snapshot_of(), x="params", colour="expand")
    assert missing.colour.categories == ("2", "4", "–")


def test_budgets_cut_the_space_and_name_the_best_inside():
    info = pareto_info(snapshot_of(), x="mult_adds", budgets={"params": 60_000})
    assert info.kind("front").numbers == (0, 2)
    assert info.kind("over_budget").numbers == (1, 5)
    assert info.best == (
        "best with params at most 60 k: trial 2 (width 0.25, block inverted_residual, expand 4): 93.00 %, "
        "0.900 ms [0.850, 0.950], 60 k params, 3.6 M mult-adds"
    )
    assert info.limits == ()
    info = pareto_info(snapshot_of(), x="params", budgets={"params": 60_000, "accuracy": 0.92})
    assert info.kind("front").numbers == (2,)
    assert info.limits == (("x", 60_000.0), ("y", 0.92))
    assert info.best.startswith("best with params at most 60 k and accuracy at least 92.00 %: trial 2 ")
    figure = PLOTS["pareto"].figure(info)
    assert [(shape.x0, shape.y0) for shape in figure.layout.shapes] == [(60_000, 0), (0, 92.0)]
    nothing = pareto_info(snapshot_of(), x="params", budgets={"params": 10}, show=["front"])
    assert nothing.empty == "no finished trial has params at most 10: allow more, or show what is over budget"
    assert pareto_info(snapshot_of(), x="params", budgets={"latency_ms": 5}).kind("over_budget").numbers == (5,), (
        "what was not measured is not known to be inside"
    )


def test_trials_that_were_stopped_stand_at_their_last_epoch():
    frame = frame_of()
    frame.loc[frame["number"] == 3, "state"] = "stopped"
    curves = [(3, 2, 0.71), (3, 1, 0.6), (0, 1, 0.5)]
    info = pareto_info(snapshot_of(frame, curves), x="params")
    stopped = info.kind("stopped")
    assert (stopped.numbers, stopped.x, stopped.y) == ((3,), (10_000.0,), (0.71,))
    assert stopped.name == "stopped early, at their last epoch (1, 1 below the frame)"
    assert 3 not in info.kind("front").numbers, "an accuracy of half a training is on no front"
    figure = PLOTS["pareto"].figure(info)
    assert figure.data[0].marker.symbol == "circle-open"
    hidden = pareto_info(snapshot_of(frame, curves), x="params", show=["front"])
    assert [marks.kind for marks in hidden.marks] == ["front"]
    assert pareto_info(snapshot_of(frame, curves)).kind("stopped") is None, "it has no latency"


def test_published_networks_stand_beside_a_study_of_their_data():
    shown = ["front", "reference"]
    cifar = snapshot_of(space_text="family: mobilenet_v1\ndata: {name: cifar10, path: data}\n")
    info = pareto_info(cifar, x="params", show=shown)
    found = info.kind("reference")
    assert "MobileNetV1 (PyTorch)" in [hover[0] for hover in found.hover]
    assert set(found.numbers) == {None}
    assert found.y[found.hover.index(next(h for h in found.hover if h[0] == "MobileNetV1 (PyTorch)"))] == 0.7199
    assert pareto_info(cifar, x="latency_ms", show=shown).kind("reference") is None
    assert pareto_info(snapshot_of(), x="params", show=shown).kind("reference") is None


def test_names_that_are_not_there():
    for options, text in (
        ({"x": "parms"}, r"no figure or parameter 'parms'; did you mean params\?"),
        ({"x": "width"}, r"'width' is neither better nor worse, so it has no front; axes can be: accuracy, "),
        ({"x": "accuracy"}, r"axes must differ, and 'accuracy' and 'accuracy' do not"),
        ({"show": ["font"]}, r"no kind of mark 'font'; did you mean front\?"),
        ({"budgets": {"width": 1}}, r"'width' is neither better nor worse"),
    ):
        with pytest.raises(MnetError, match=text):
            pareto_info(snapshot_of(), **options)
    assert pareto_info(snapshot_of(), show=[]).empty.startswith("nothing of what is switched on is there")
    none = frame_of().assign(latency_ms=NAN)
    assert pareto_info(snapshot_of(none)).empty == (
        "no finished trial has accuracy and latency, so there is nothing to compare: choose other axes"
    )


def test_note_says_what_a_front_of_single_runs_cannot_tell():
    frame = frame_of()
    frame.loc[frame["number"] == 2, "arch_id"] = "000000000001"  # trial 2 repeats the network of trial 1
    note = pareto_info(snapshot_of(frame), x="mult_adds").note
    assert note.startswith("1 of 2 are single runs: differences below about the binomial error")
    frame["arch_id"] = "000000000001"
    assert "single runs" not in pareto_info(snapshot_of(frame), x="mult_adds").note
    frame["param.training.recipe"] = [f"recipe {number}" for number in frame["number"]]
    note = pareto_info(snapshot_of(frame), x="mult_adds").note
    assert note.startswith("single runs, no repeats"), "one network under other recipes is no repeat"
    perfect = frame_of([(*TRIALS[0][:2], 1.0, *TRIALS[0][3:])])
    note = pareto_info(snapshot_of(perfect, validation_images=100), x="params").note
    assert "about 0.99 points" in note, "no error in 100 images is not: no noise"


def test_large_studies_are_thinned_but_never_the_front():
    count = POINTS + 1000
    trials = [
        (i, "finished", 0.5 - 0.3 * i / count, 2.0 + i, 2.0, 3.0 + i, 10, 10, 1.0, "b", NAN) for i in range(count)
    ]
    frame = frame_of([(count, "finished", 0.9, 1.0, 1.0, 1.0, 9, 9, 1.0, "b", NAN), *trials])
    info = pareto_info(snapshot_of(frame))
    dominated = info.kind("dominated")
    assert (info.kind("front").numbers, len(dominated.numbers)) == ((count,), POINTS)
    assert (dominated.numbers[0], dominated.numbers[-1]) == (0, count - 1), "the ends of the cloud stay"
    assert dominated.name.startswith(f"dominated ({POINTS:,} of {count:,} shown, ")
    assert dominated.bars_x == (), "thousands of bars would hide the points"


def test_front_of_a_large_study_is_whole():
    large = large_snapshot(20_000)
    members = front(large.frame, {"accuracy": "maximize", "latency_ms": "minimize"})
    assert sorted(pareto_info(large).kind("front").numbers) == sorted(members["number"])


def test_figure():
    figure = PLOTS["pareto_latency"].draw(snapshot_of(validation_images=500))
    dominated, front = figure.data
    assert (dominated.name, front.name) == ("dominated (1)", "front of accuracy and latency (2)")
    assert (front.mode, front.line.shape) == ("lines+markers", "hv")
    assert front.marker.size > dominated.marker.size
    assert (list(front.x), list(front.y), list(front.customdata)) == ([0.50, 0.75], [90.0, 95.0], [0, 1])
    assert list(front.error_x.array) == pytest.approx([0.05, 0.15])
    assert list(front.error_x.arrayminus) == pytest.approx([0.02, 0.05])
    assert front.text[1].startswith("<br>".join(HOVER_1))
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
    info = pareto_info(snapshot_of(frame_of(TRIALS[:2] + bad)))
    assert info.y_range == pytest.approx((0.68, 0.9716)), (
        "a margin below the lower quartile of the others, which is below the front's end"
    )
    figure = PLOTS["pareto_latency"].figure(info)
    assert figure.layout.yaxis.range == pytest.approx((68.0, 97.16))
    assert figure.data[0].name == "dominated (4, 1 below the frame)"
    assert len(figure.data[0].x) == 4, "they are there, a double click away"
    assert PLOTS["pareto_latency"].draw(snapshot_of()).layout.yaxis.range is None
