"""What each plot shows, by equality of its info; how it is drawn, by the few things that a reader relies on."""

from __future__ import annotations

import time

import pandas as pd
import pytest

from mnet_search.dashboards.distribution_plots import ErrorsInfo, StatesInfo
from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.quantities import figures, parameter_names, quantity
from mnet_search.dashboards.snapshot import (
    Overview,
    Table,
    front_table,
    milliseconds,
    overview,
    parameters,
    percent,
    present,
    sentences,
)
from mnet_search.models.arch import MnetError

from plot_frames import NAN, NOTE, TRIALS, frame_of, large_snapshot, snapshot_of

OPEN_TRIALS = ("timeline", "states")  # these show what runs, too


@pytest.fixture(scope="module")
def large():
    return large_snapshot()


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_of_a_study_without_results_says_why_it_is_empty(name):
    nothing = snapshot_of(frame_of().iloc[:0])
    unfinished = snapshot_of(frame_of()[lambda frame: frame["state"] == "running"])
    for snapshot in (nothing, unfinished)[: 1 if name in OPEN_TRIALS else 2]:
        figure = PLOTS[name].draw(snapshot)
        assert not figure.data
        text = figure.layout.annotations[0].text.replace("<br>", " ")
        assert " yet" in text
        assert PLOTS[name].info(snapshot).empty == text


@pytest.mark.parametrize("name", [name for name in PLOTS if not name.startswith("pareto_")])
def test_every_plot_is_quick_and_light_at_50000_trials(name, large):
    large.front()  # worked out once for all plots
    if name == "importance":
        import optuna.importance  # noqa: F401  # not what is timed
    spent_s = []
    while not spent_s or (spent_s[-1] > 0.8 and len(spent_s) < 3):
        begun = time.process_time()
        info = PLOTS[name].info(large)
        spent_s.append(time.process_time() - begun)
    figure = PLOTS[name].figure(info)
    assert min(spent_s) <= 0.8, (
        "seconds of the processor, on a busy machine; the slowest needs half of it, most a tenth"
    )
    assert len(figure.to_json()) < 1_000_000
    assert figure.data or name in ("drift", "shapes")


@pytest.mark.parametrize("name", PLOTS)
def test_no_plot_needs_what_the_pages_policy_forbids(name):
    """Kinds of traces that plotly draws by WebGL make code from text, which the Content-Security-Policy refuses."""
    kinds = {trace.type for trace in PLOTS[name].draw(snapshot_of()).data}
    assert kinds <= {"scatter", "bar", "heatmap"}


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_takes_states_as_categories(name):
    """The server's snapshots keep texts that repeat as categories."""
    frame = frame_of()
    slim = frame.astype({"state": "category", "arch_id": "category", "param.block": "category"})
    assert PLOTS[name].info(snapshot_of(slim)) == PLOTS[name].info(snapshot_of(frame))


# --- Errors and states ---


def test_errors_are_of_networks_and_not_of_runs():
    frame = frame_of()
    info = PLOTS["errors"].info(snapshot_of(frame))
    accuracies = sorted(frame.loc[frame["state"] == "finished", "accuracy"].dropna(), reverse=True)
    n = len(accuracies)
    points = tuple((pytest.approx(1 - value), (i + 1) / n) for i, value in enumerate(accuracies))
    assert info == ErrorsInfo(points, n_networks=n, note="")
    figure = PLOTS["errors"].figure(info)
    assert list(figure.data[0].y) == [0.0, *(share for _, share in info.points)]
    frame.loc[frame["number"] == 2, "arch_id"] = "000000000001"  # trial 2 repeats the network of trial 1
    frame.loc[frame["number"] == 4, "state"] = "stopped"
    info = PLOTS["errors"].info(snapshot_of(frame))
    assert info.n_networks == n - 1
    assert info.points[0] == (pytest.approx(0.06), 1 / (n - 1))  # the mean of .95 and .93
    assert info.note == "1 trial was stopped early and left out, so this is not the space's own"


def test_states_and_the_reasons_of_failures():
    failed = [(number, "failed", *TRIALS[3][2:]) for number in (6, 7, 8)]
    frame = frame_of([*TRIALS, *failed])
    frame.loc[frame["number"] == 6, "reason"] = "loss is NaN at epoch 17"
    frame.loc[frame["number"] == 7, "reason"] = "<out of memory>"
    frame.loc[frame["number"] == 8, "reason"] = ""
    info = PLOTS["states"].info(snapshot_of(frame))
    assert info == StatesInfo(
        states=(("finished", 4), ("running", 1), ("failed", 4)),
        reasons=(("loss is NaN at epoch …", 2), ("<out of memory>", 1), ("no reason was recorded", 1)),
        n_more=0,
    ), "the same failure at another epoch is the same"
    figure = PLOTS["states"].figure(info)
    assert [trace.x[0] for trace in figure.data] == [4, 1, 4]
    assert "&lt;out of memory&gt;" in figure.layout.annotations[0].text.replace("<br>", " ")


# --- Names ---


def test_quantities_name_what_a_study_has():
    snapshot = snapshot_of(
        objectives={"accuracy": "maximize", "energy_mj": "minimize"}, frame=frame_of().assign(energy_mj=1.5)
    )
    assert figures(snapshot)[:3] == ("accuracy", "energy_mj", "validation_loss")
    assert parameter_names(snapshot) == ("width", "block", "expand")
    assert quantity(snapshot, "energy_mj").best == "minimize"
    assert quantity(snapshot, "width") == quantity(snapshot, "param.width")
    with pytest.raises(
        MnetError, match=r"study 'digits' has no figure or parameter 'widht'; did you mean width\?; it has: accuracy, "
    ):
        quantity(snapshot, "widht")


def test_names_from_a_space_cannot_become_markup():
    frame = frame_of().rename(columns={"param.block": "param.<b>&"})
    frame["param.<b>&"] = "<a href='https://example.org'>x</a>"
    text = PLOTS["pareto_latency"].draw(snapshot_of(frame)).data[-1].text[0]
    assert "<br>&lt;b&gt;&amp;: &lt;a href='https://example.org'&gt;x&lt;/a&gt;<br>" in text
    for name, options in (
        ("pareto", {"colour": "<b>&"}),
        ("parallel", {"columns": ["accuracy", "<b>&"]}),
        ("slice", {"parameter": "<b>&"}),
        ("heat", {"x": "<b>&", "y": "width"}),
    ):
        drawn = PLOTS[name].draw(snapshot_of(frame), **options).to_json()
        assert "<a href" not in drawn and "\\u003ca href" not in drawn, name


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
