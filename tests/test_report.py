"""The report: its conclusions by equality and in words, its figures, its weight; in a browser where there is one."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_search.dashboards.conclusions import Conclusions, alike, conclude, knee, main_cost, paragraphs
from mnet_search.dashboards.report import drawings, members_table, render
from mnet_search.studies.noise import noise_of

from browser import chromium, page_of
from plot_frames import NAN, NOTE, TRIALS, frame_of, grid_frame, large_snapshot, snapshot_of

TRIAL_0 = "trial 0 (width 0.25, block separable): 90.00 %, 0.500 ms [0.480, 0.550], 20 k params, 900 k mult-adds"
TRIAL_1 = "trial 1 (width 0.5, block separable): 95.00 %, 0.750 ms [0.700, 0.900], 90 k params, 3.5 M mult-adds"
UNKNOWN = "<img src=x onerror=alert(document)>"


def said(snapshot):
    return dict(paragraphs(conclude(snapshot).conclusions))


# --- Conclusions ---


def test_conclusions_of_a_known_study():
    found = conclude(snapshot_of(validation_images=500))
    assert found.conclusions == Conclusions(
        states=(("finished", 4), ("running", 1), ("failed", 1)),
        objectives=("accuracy", "latency", "params"),
        n_networks=4,
        n_front=3,
        best=TRIAL_1,
        small=TRIAL_1,
        cost="latency",
        knee="",
        budgets=(("0.560 ms", TRIAL_0), ("0.750 ms", TRIAL_1)),
        importance_empty="importance compares the best tenth of the trials with all: 16 more finished trials needed, "
        "not enough yet",
        noise="sampling",
        n_sure=3,
        n_alike=1,
        single=NOTE,
        limits=(
            "1 trial still running or waiting: this is not the study's last word.",
            "1 trial of 6 failed, most often (1): loss is NaN at epoch ….",
        ),
    )
    assert found.members["number"].tolist() == [0, 1, 2]


def test_conclusions_in_words():
    words = said(snapshot_of(validation_images=500))
    assert list(words) == ["What was found", "Within a budget of latency", "What decides", "How sure", "What limits it"]
    assert words["What was found"] == (
        "Trials: 4 finished, 1 running, 1 failed.",
        "The front of accuracy, latency and params has 3 of 4 networks.",
        f"Most accurate: {TRIAL_1}.",
        "No network of fewer params is within one point of it.",
    )
    assert words["How sure"] == (
        NOTE[0].upper() + NOTE[1:] + ".",
        "3 of the 3 members belong to the front with a probability of 95 % or more.",
        "These are from the sampling of the images alone; other starting weights add to the noise.",
        "1 other network cannot be told from the most accurate by accuracy (95 %).",
    )


def test_a_study_without_results_concludes_nothing_but_that():
    assert said(snapshot_of(frame_of().iloc[:0])) == {
        "What was found": ("Trials: none yet.",),
        "What decides": (
            "Importance compares the best tenth of the trials with all: 20 more finished trials needed, not enough "
            "yet.",
        ),
    }
    open_ = frame_of()[lambda frame: frame["state"] == "running"]
    assert said(snapshot_of(open_))["What limits it"] == (
        "1 trial still running or waiting: this is not the study's last word.",
    )


def test_repeats_say_how_large_the_noise_is():
    frame = grid_frame(repeats=3, noise=0.1)
    words = said(snapshot_of(frame, validation_images=500))
    finished = frame.groupby("arch_id")["accuracy"]
    pooled = 100 * np.sqrt(finished.var(ddof=1).mean())
    assert words["How sure"][0] == (
        f"Runs of one network differ by {pooled:.2g} points of accuracy and 0.00 ms of latency (standard deviation, "
        "from 18 networks run more than once)."
    )
    assert words["What was found"][2].endswith("mult-adds (mean of 3 runs).")
    assert "width" in words["What decides"][0] and words["What decides"][0].startswith("Accuracy: ")
    assert words["What limits it"] == ("No trial was stopped early, and none failed.",)


def test_nothing_is_said_of_noise_that_is_not_known():
    objectives = {"accuracy": "maximize", "params": "minimize"}
    found = conclude(snapshot_of(objectives=objectives))
    assert (found.conclusions.noise, found.conclusions.n_alike, found.known) == ("unknown", None, False)
    assert said(snapshot_of(objectives=objectives))["How sure"][-1] == (
        "Nothing in the study says how large its noise is, so the front has no probabilities."
    )
    assert members_table(snapshot_of(objectives=objectives), found).columns[-1] == "runs"


def test_an_objective_of_the_users_own_is_the_cost():
    frame = frame_of().assign(energy_mj=[3.0, 1.0, 2.0, NAN, NAN, 4.0])
    own = snapshot_of(frame, objectives={"accuracy": "maximize", "energy_mj": "minimize"}, validation_images=500)
    assert main_cost(own).column == "energy_mj"
    assert said(own)["Within a budget of energy_mj"] == (f"At most 1: {TRIAL_1}.",), "one network is best at both"
    assert [each.title for each in drawings(own)[0]][:2] == [
        "The front: accuracy and energy_mj",
        "Accuracy and latency",
    ]
    without = own.frame.assign(accuracy=NAN)
    lone = dataclasses.replace(own, frame=without, objectives={"energy_mj": "minimize"})
    assert conclude(lone).conclusions.best == ""


def test_what_limits_a_study():
    stopped = [(*TRIALS[0][:1], "stopped", *TRIALS[0][2:]), *TRIALS[1:]]
    frame = frame_of(stopped).assign(imported=["", "x.csv row 3", "", "", "", ""])
    measured = pd.DataFrame(
        {
            "number": [1, 2],
            "measured": pd.Timestamp("2026-01-02"),
            "median_ms": 1.0,
            "drift": 0.2,
            "good": [True, False],
        }
    )
    assert said(snapshot_of(frame, measurements=measured))["What limits it"] == (
        "1 trial still running or waiting: this is not the study's last word.",
        "1 trial of 6 (17 %) stopped early and in no front: a network that learns late may be among them.",
        "1 trial of 6 failed, most often (1): loss is NaN at epoch ….",
        "1 trial from elsewhere, with the figures that were recorded there.",
        "1 of 2 latency measurements not good: the machine drifted beyond the protocol's bound beside them.",
    )


def test_the_knee_of_fronts_that_are_known():
    costs = np.array([1.0, 10.0, 100.0, 1000.0])
    assert knee(costs, np.array([0.5, 0.2, 0.15, 0.1])) == 1
    assert knee(costs, np.array([0.5, 0.45, 0.12, 0.1])) == 2
    assert knee(costs, np.array([0.4, 0.3, 0.2, 0.1])) is None, "a straight line has none"
    assert knee(costs, np.array([0.4, 0.39, 0.38, 0.1])) is None, "nothing lies below the line"
    assert knee(costs[:2], np.array([0.4, 0.1])) is None


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(0.01, 0.9), min_size=3, max_size=30, unique=True),
    st.floats(0.1, 1e6),
    st.floats(0.2, 5.0),
)
def test_the_knee_does_not_depend_on_units(errors, unit, stretch):
    errors = np.array(sorted(errors, reverse=True))
    costs = np.geomspace(1, 50, len(errors))
    at, other = knee(costs, errors), knee(unit * costs, stretch * errors)
    below = 1 - np.linspace(0, 1, len(errors)) - (errors - errors[-1]) / (errors[0] - errors[-1])
    if at is not None and other is not None:
        assert 0 < at < len(errors) - 1
        assert below[other] == pytest.approx(below[at], abs=1e-6)
    else:
        assert below.max() < 1e-6


def test_networks_alike_are_those_within_the_interval_of_the_difference():
    frame = grid_frame(repeats=1)
    noise = noise_of(frame, {"accuracy": "maximize", "params": "minimize"}, 1000)
    assert alike(noise) == sum(
        abs(np.log(error / best)) < 1.959964 * np.hypot(*(np.sqrt((1 - e) / (e * 1000)) for e in (error, best)))
        for error in 1 - frame["accuracy"]
        for best in [1 - frame["accuracy"].max()]
    ) - 1  # fmt: skip


# --- The page ---


def test_the_front_has_means_of_all_runs():
    frame = frame_of([*TRIALS, (6, "finished", 0.97, 0.70, 0.60, 0.80, 90_000, 3_500_000, 0.5, "separable", NAN)])
    frame.loc[frame["number"] == 6, "arch_id"] = frame.loc[1, "arch_id"]
    objectives = {"accuracy": "maximize", "params": "minimize"}  # latency is none, and has a mean all the same
    snapshot = snapshot_of(frame, objectives=objectives, validation_images=500)
    table = members_table(snapshot, conclude(snapshot))
    assert table.columns[-2:] == ("runs", "p (on the front)")
    row = next(row for row in table.rows if row[0] == "1")
    start = table.columns.index("accuracy")
    assert row[start : start + 3] == ("96.00 %", "0.725 [0.650, 0.850]", "90 k")
    assert row[-2] == "2"


def test_empty_figures_are_listed_and_not_drawn():
    drawn, empty = drawings(snapshot_of(grid_frame()))
    assert [each.id for each in drawn if each.plot == "slice"] == ["plot-slice", "plot-slice-1", "plot-slice-2"]
    assert not any(each.info.empty for each in drawn)
    assert "plot-pareto" not in [each.id for each in drawn], "the same panel twice"
    reasons = dict(empty)
    assert reasons["Drift of the machine"].startswith("no latency was measured beside the reference network")
    page = render(snapshot_of(grid_frame()))
    assert f"<li>Drift of the machine: {reasons['Drift of the machine']}.</li>" in page
    assert 'id="plot-drift"' not in page and page.count('class="card figure') == len(drawn)


def test_5000_trials_are_light_and_quick():
    snapshot = large_snapshot(5000)
    begun = time.process_time()
    page = render(snapshot)
    assert time.process_time() - begun < 20, "seconds of the processor, on a busy machine"
    assert len(page.encode()) < 15_000_000


# --- In a browser ---


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A study with every kind of figure but latency's, and markup in what it recorded."""
    frame = grid_frame(repeats=2, noise=0.05)
    frame.loc[frame["number"] == 3, ["state", "reason"]] = ["failed", UNKNOWN]
    curves = [(number, epoch, 0.5 + 0.1 * epoch) for number in frame["number"] for epoch in (1, 2)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(snapshot_of(frame, curves, validation_images=500, note=UNKNOWN, space_text="a: 1\n" * 60)))
    return path


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 390])
def test_report_at_both_widths_and_in_both_themes(browser, report, width):
    with page_of(browser, width) as (page, log):
        page.goto(report.as_uri())
        wait_for_figures(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
        assert UNKNOWN in page.locator("section", has_text="Conclusions").first.inner_text()
        assert page.locator("img").count() == 0
        for theme, ink in (("light", "rgb(28, 33, 38)"), ("dark", "rgb(230, 233, 236)")):
            page.emulate_media(color_scheme=theme)
            assert fills(page, "#plot-heat .xtitle") == {ink}
            labels = fills(page, "#plot-heat .heatmap-label text")
            assert labels == {"rgb(255, 255, 255)", "rgb(68, 68, 68)"}, "by their cells"
        outside = page.evaluate(
            """[...document.querySelectorAll('section')].filter(
                (each) => each.getBoundingClientRect().right > innerWidth + 1).length"""
        )
        assert outside == 0
        assert log.errors == []
        assert [address for address in log.addresses if not address.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.browser
def test_report_on_paper(browser, report, tmp_path):
    """Light, figures drawn for the width of the page and whole, nothing hidden; the screen's own after it."""
    with page_of(browser) as (page, log):
        page.emulate_media(color_scheme="dark")
        page.goto(report.as_uri())
        wait_for_figures(page)
        before = widths(page)
        page.emulate_media(media="print", color_scheme="dark")
        page.wait_for_function(FIRST_WIDTH, arg=680)
        assert set(widths(page)) == {680}
        style = page.evaluate(
            "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
        )
        assert style == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
        assert fills(page, "#plot-heat .xtitle") == {"rgb(0, 0, 0)"}
        figure = page.evaluate("getComputedStyle(document.querySelector('.figure')).breakInside")
        assert figure == "avoid"
        clipped = page.evaluate(
            """[...document.querySelectorAll('pre, .scroll')].filter(
                (e) => e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1).length"""
        )
        assert clipped == 0
        page.emulate_media(media="screen", color_scheme="dark")
        page.wait_for_function(FIRST_WIDTH, arg=before[0])
        assert widths(page) == before
        page.pdf(path=tmp_path / "report.pdf", format="A4")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
        assert log.errors == []


FIRST_WIDTH = "(width) => +document.querySelector('.js-plotly-plot .main-svg').getAttribute('width') === width"


def wait_for_figures(page):
    page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length > 30")


def fills(page, target):
    """The colours that the elements have."""
    return set(page.locator(target).evaluate_all("(all) => all.map((each) => getComputedStyle(each).fill)"))


def widths(page):
    return page.locator(".js-plotly-plot .main-svg:first-child").evaluate_all(
        "(all) => all.map((each) => +each.getAttribute('width'))"
    )
