"""Error and size, two parameters as a map, and the ways of making a network smaller."""

from __future__ import annotations

import numpy as np
import pytest

from mnet_search.dashboards.plots import PLOTS
from mnet_search.models.arch import MnetError

from plot_frames import frame_of, grid_frame, snapshot_of


@pytest.fixture(scope="module")
def grid():
    return snapshot_of(grid_frame(repeats=2, noise=0.02), validation_images=2000)


def test_scaling_shows_the_law_that_the_networks_support(grid):
    info = PLOTS["scaling"].info(grid, x="width")
    assert info.fit.x_axis == "width"
    (group,) = info.fit.groups
    assert len(group.observed) == 18 == len(info.numbers) and len(group.x) > 10
    assert group.low[0] < group.error[0] < group.high[0]
    assert info.note.startswith(info.fit.equation)
    figure = PLOTS["scaling"].figure(info)
    assert list(figure.data[-1].customdata) == list(range(0, 36, 2)), "the first trial of each network"
    assert figure.layout.yaxis.type == "log"
    for number, mark in zip(info.numbers, group.observed, strict=True):
        runs = grid.frame.loc[[number, number + 1], "accuracy"]
        assert mark.error == pytest.approx(1 - runs.mean())


def test_scaling_without_a_law_shows_the_points_and_says_why(grid):
    few = grid.frame[grid.frame["number"] < 2]
    info = PLOTS["scaling"].info(snapshot_of(few, validation_images=2000))
    assert info.fit is None
    cost, accuracy = few["mult_adds"].iloc[0], few["accuracy"].mean()
    assert info.points == ((float(cost), pytest.approx(1 - accuracy), 0),)
    assert info.note.startswith("no law yet: ")
    figure = PLOTS["scaling"].figure(info)
    assert list(figure.data[0].y) == pytest.approx([100 * (1 - accuracy)])
    bare = grid.frame.drop(columns="options")
    assert PLOTS["scaling"].info(snapshot_of(bare)).note == "no law: the networks' options were not read"
    assert PLOTS["scaling"].info(snapshot_of(bare), x="depth").empty == "no law: the networks' options were not read"
    thinned = PLOTS["scaling"].info(grid, most=10)
    assert len(thinned.numbers) == 10 and "; 10 of 18 networks, evenly by mult-adds" in thinned.note
    with pytest.raises(MnetError, match=r"unknown variable 'mult-adds'; did you mean mult_adds\?"):
        PLOTS["scaling"].info(grid, x="mult-adds")


def test_heat_is_of_width_and_resolution_where_both_vary(grid):
    info = PLOTS["heat"].info(grid)
    assert (info.x, info.y, info.columns, info.rows) == (
        "width", "resolution", ("0.25", "0.5", "1"), ("18", "24", "32"),
    )  # fmt: skip
    frame = grid.frame
    cell = frame[(frame["param.width"] == 1.0) & (frame["param.resolution"] == 18)]["accuracy"]
    assert info.cells[0][2] == pytest.approx(cell.mean())
    assert info.counts == ((4, 4, 4),) * 3
    assert info.note == "mean accuracy of 36 finished trials, over all other parameters"
    figure = PLOTS["heat"].figure(info)
    assert figure.data[0].z[0][2] == pytest.approx(100 * cell.mean())
    assert figure.data[0].text[0][2] == f"{100 * cell.mean():.1f} %<br>n 4"
    other = PLOTS["heat"].info(grid, x="depth", y="width", value="params")
    assert (other.columns, other.rows) == (("full", "shallow"), ("0.25", "0.5", "1"))


def test_heat_of_gaps_and_of_one_parameter(grid):
    frame = frame_of()
    info = PLOTS["heat"].info(snapshot_of(frame))
    assert (info.x, info.y) == ("width", "block"), "the first two that vary"
    assert info.cells == ((pytest.approx(0.93), pytest.approx(0.88)), (pytest.approx(0.90), pytest.approx(0.95)))
    gap = PLOTS["heat"].info(snapshot_of(frame[frame["number"] != 2]))
    assert gap.cells[0][0] is None and gap.counts[0][0] == 0
    one = frame[frame["param.block"] == "separable"]
    assert PLOTS["heat"].info(snapshot_of(one)).empty == (
        "a map needs two parameters that vary, and only width varies between the finished trials"
    )
    with pytest.raises(MnetError, match=r"the space has no parameter 'widht'; did you mean width\?; it has: width, "):
        PLOTS["heat"].info(grid, x="widht")


def test_shapes_compare_networks_that_differ_from_the_largest_in_one_thing(grid):
    info = PLOTS["shapes"].info(grid)
    frame = grid.frame
    largest = frame.loc[frame["mult_adds"].idxmax()]
    assert [(way.name, len(way.x)) for way in info.ways] == [
        ("thinner", 3), ("shallower", 2), ("lower resolution", 3),
    ]  # fmt: skip
    for way in info.ways:
        assert way.x[-1] == largest["mult_adds"] and list(way.x) == sorted(way.x)
        rows = frame[frame["number"].isin(way.numbers)]
        others = [f"param.{name}" for name in ("width", "depth", "resolution") if name != way.parameter]
        assert (rows[others] == largest[others]).all(axis=None)
    runs = frame[frame["arch_id"] == largest["arch_id"]]["accuracy"]
    assert info.ways[0].accuracy[-1] == pytest.approx(runs.mean())
    assert info.ways[0].bars[-1] == pytest.approx(runs.std() / np.sqrt(2)), "of the mean"
    figure = PLOTS["shapes"].figure(info)
    assert len({(trace.line.dash, trace.marker.symbol) for trace in figure.data}) == 3


def test_shapes_of_a_space_that_varies_none_of_them():
    frame = frame_of().drop(columns=["param.width"])
    assert "the space has none of these as a parameter" in PLOTS["shapes"].info(snapshot_of(frame)).empty
