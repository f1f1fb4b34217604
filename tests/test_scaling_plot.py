"""The plot of a scaling law: what it shows, how it is drawn, and its page in a real browser."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mnet_search.dashboards.scaling_plot import (
    REST,
    STEPS,
    STYLES,
    FitInfo,
    Group,
    Observed,
    fit_figure,
    fit_info,
    fit_page,
    residual_figure,
)
from mnet_search.studies.observations import observe
from mnet_search.studies.scaling import fit

from browser import chromium, hover_text, page_of


def law(resolutions=(16, 32), name="network"):
    width, resolution = np.tile([0.25, 0.5, 1.0], len(resolutions)), np.repeat(resolutions, 3).astype(float)
    log_error = -1 - 0.4 * np.log(width) - 0.3 * np.log(resolution / 32) + 0.02 * np.cos(7 * np.arange(len(width)))
    labels = [f"{name} {i}" for i in range(len(width))]
    sizes = {"width": width, "resolution": resolution}
    return fit(observe(1 - np.exp(log_error), sizes, images=1000, labels=labels), "paper")


def small(x, error):
    return Observed(x, error, error / 2, 2 * error, error, 0.0, f"network {x}")


def test_info():
    found = law()
    info = fit_info("Study law", found, ["a doubt"])
    assert (info.title, info.equation, info.doubts) == ("Study law", found.equation, ("a doubt",))
    assert [g.name for g in info.groups] == ["resolution=32", "resolution=16"]
    assert (info.x_axis, info.x_ticks) == ("width", ((0.25, "0.25"), (0.5, "0.5"), (1.0, "1")))
    error, fitted = math.exp(found.observations.log_error[3]), math.exp(found.fitted[3])
    half = 1.96 * found.observations.noise[3]
    assert info.groups[0].observed[0] == Observed(
        x=0.25,
        error=error,
        low=math.exp(found.observations.log_error[3] - half),
        high=math.exp(found.observations.log_error[3] + half),
        fitted=fitted,
        residual=found.residuals[3],
        hover=f"network 3: {100 * found.observations.accuracy[3]:.2f} %, fitted {100 * (1 - fitted):.2f} %",
    )
    line = info.groups[1]
    assert len(line.x) == len(line.low) == STEPS
    assert all(low < error < high for low, error, high in zip(line.low, line.error, line.high, strict=True))
    assert info.summary.startswith(f"a = {found.coefficients[0].value:.3g} (")
    assert fit_info("t", found) == fit_info("t", found), "the same fit, the same picture"


def test_ticks_are_round_and_enough():
    info = fit_info("t", law())
    texts = [text for _, text in info.error_ticks]
    assert len(texts) >= 4
    assert [float(text) for text in texts] == [value for value, _ in info.error_ticks]
    many = fit_info(
        "t", fit(observe(np.linspace(0.5, 0.8, 20), {"params": np.geomspace(1e4, 1e7, 20)}), "log_log", "params")
    )
    assert [text for _, text in many.x_ticks][:3] == ["10 k", "20 k", "50 k"]


def test_many_groups_keep_their_points_but_not_all_their_lines():
    info = fit_info("t", law(tuple(range(16, 36, 2))))
    assert len(info.groups) == 10
    assert sum(bool(group.x) for group in info.groups) == 5
    assert all(group.observed for group in info.groups)


INFO = FitInfo(
    title="Study <b>law</b>",
    equation="error = a < b",
    summary="n 3",
    doubts=("a <doubt>",),
    x_axis="width",
    x_ticks=((0.5, "0.5"), (1.0, "1")),
    error_ticks=((10.0, "10"), (20.0, "20")),
    fitted_ticks=((10.0, "10"),),
    groups=(
        Group("depth=28", (small(0.5, 0.2), small(1.0, 0.1)), (0.5, 1.0), (0.2, 0.1), (0.1, 0.05), (0.3, 0.2)),
        Group("depth=18", (small(0.5, 0.25),), (), (), (), ()),
    ),
)


def test_figures():
    figure = fit_figure(INFO)
    band, line, points, rest = figure.data
    assert (list(band.x), list(band.y)) == ([0.5, 1.0, 1.0, 0.5], [30.0, 20.0, 5.0, 10.0])
    assert (list(line.y), line.line.dash) == ([20.0, 10.0], STYLES[0][1])
    assert (list(points.x), list(points.y), points.name) == ([0.5, 1.0], [20.0, 10.0], "depth=28")
    assert list(points.error_y.array) == pytest.approx([20.0, 10.0])
    assert list(points.error_y.arrayminus) == pytest.approx([10.0, 5.0])
    assert (points.marker.color, rest.marker.color) == (STYLES[0][0], REST[0])
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert list(figure.layout.xaxis.ticktext) == ["0.5", "1"]
    residuals = residual_figure(INFO)
    assert [list(trace.y) for trace in residuals.data] == [[0.0, 0.0], [0.0]]
    assert list(residuals.data[0].x) == [20.0, 10.0]
    assert len(set(STYLES)) == len(STYLES), "no two lines look alike"
    assert len({(dash, symbol) for _, dash, symbol in STYLES}) == len(STYLES), "nor without colour"


def test_names_cannot_become_markup():
    info = replace(INFO, groups=(replace(INFO.groups[0], name="<i>x</i>"),))
    assert fit_figure(info).data[-1].name == "&lt;i&gt;x&lt;/i&gt;"
    page = fit_page(INFO)
    assert "<h1>Study &lt;b&gt;law&lt;/b&gt;</h1>" in page
    assert "Warning: a &lt;doubt&gt;" in page


@pytest.mark.browser
def test_the_page_in_a_browser(tmp_path):
    path = tmp_path / "fit.html"
    path.write_text(fit_page(fit_info("Study law", law())))
    with chromium() as browser, page_of(browser, 1200) as (shown, log):
        shown.goto(path.as_uri())
        shown.wait_for_selector("#residuals .scatterlayer .point")
        assert shown.locator("#fit .scatterlayer .point").count() == 6
        assert shown.locator("#residuals .scatterlayer .point").count() == 6
        assert "fitted" in hover_text(shown, "#residuals")
    assert (log.errors, log.addresses) == ([], [path.as_uri()])
