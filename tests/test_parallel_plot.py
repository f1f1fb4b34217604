"""Parallel coordinates: axes, their ticks, the order of the lines."""

from __future__ import annotations

import math

import pytest

from mnet_search.dashboards.parallel_plot import ParallelAxis, ParallelInfo
from mnet_search.dashboards.plots import PLOTS
from mnet_search.models.arch import MnetError

from plot_frames import NAN, TRIALS, frame_of, snapshot_of


def test_axes_of_chosen_columns():
    info = PLOTS["parallel"].info(snapshot_of(), columns=["accuracy", "block", "expand"])
    assert info == ParallelInfo(
        numbers=(5, 0, 1, 2),
        on_front=(False, True, True, True),
        axes=(
            ParallelAxis(
                "accuracy",
                "accuracy (%)",
                (88.0, 90.0, 95.0, 93.0),
                ((88.0, "88"), (90.0, "90"), (92.0, "92"), (94.0, "94")),
            ),
            ParallelAxis(
                "param.block", "block", (0.0, 1.0, 1.0, 0.0), ((0.0, "inverted_residual"), (1.0, "separable")), True
            ),
            ParallelAxis("param.expand", "expand", (0.0, 2.0, 2.0, 1.0), ((0.0, "2"), (1.0, "4"), (2.0, "–")), True),
        ),
    )


def test_lines_of_the_front_come_last_and_costs_are_logarithmic():
    trials = [*TRIALS, (6, "finished", 0.80, 9.0, 8.0, 9.5, 900_000, 40_000_000, 1.0, "separable", NAN)]
    info = PLOTS["parallel"].info(snapshot_of(frame_of(trials)))
    assert info.numbers == (5, 6, 0, 1, 2), "behind the front, then the front"
    assert info.on_front == (False, False, True, True, True)
    assert [axis.title for axis in info.axes] == [
        "accuracy (%)", "latency (ms)", "params", "mult-adds", "width", "block", "expand",
    ]  # fmt: skip
    params = info.axes[2]
    assert params.log and params.values[1] == pytest.approx(math.log10(900_000), abs=1e-4)
    assert params.ticks[0] == (pytest.approx(math.log10(20_000)), "20 k")
    assert not info.axes[0].log
    latency = info.axes[1]
    assert latency.values[0] < min(latency.values[1:]), "what was not measured stands below"
    assert latency.ticks[0] == (latency.values[0], "–")
    figure = PLOTS["parallel"].figure(info)
    assert [trace.name for trace in figure.data[:2]] == ["other trials (2)", "front of the study (3)"], "over the rest"
    assert list(dict.fromkeys(figure.data[1].customdata)) == [0, 1, 2]
    assert figure.layout.xaxis.ticktext[0] == "accuracy (%)"
    assert {trace.type for trace in figure.data} == {"scatter"}, "WebGL and parcoords need 'unsafe-eval'"


def test_thinned_but_never_the_front():
    trials = [(i, "finished", 0.5 - i / 1000, 2.0, 2.0, 2.0, 10 + i, 10, 1.0, "b", NAN) for i in range(100)]
    snapshot = snapshot_of(frame_of([(100, "finished", 0.9, 1.0, 1.0, 1.0, 9, 9, 1.0, "b", NAN), *trials]))
    info = PLOTS["parallel"].info(snapshot, most=11)
    assert info.numbers == (0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100)
    assert info.note == "front and 10 of 100 shown of the other finished trials"
    assert PLOTS["parallel"].info(snapshot, most=0).numbers == (100,)


def test_colour_by_a_figure_and_names_that_are_not_there():
    info = PLOTS["parallel"].info(snapshot_of(), colour="accuracy")
    assert sorted(info.colour) == pytest.approx([88.0, 90.0, 93.0, 95.0])
    figure = PLOTS["parallel"].figure(info)
    assert figure.data[-2].marker.colorbar.title.text == "Validation accuracy (%)"
    assert set(PLOTS["parallel"].info(snapshot_of(), colour="block").colour) == {0.0, 1.0}
    with pytest.raises(MnetError, match=r"no figure or parameter 'acuracy'; did you mean accuracy\?"):
        PLOTS["parallel"].info(snapshot_of(), colour="acuracy")
