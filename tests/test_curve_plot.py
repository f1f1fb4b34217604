"""The plot of one training: what it shows, how it is drawn, and its page in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mnet_search.dashboards.curve_plot import LINES, MARKED, Line, TrainingInfo, training_figure, training_info
from mnet_search.dashboards.curve_plot import training_page as page

from browser import chromium, hover_text, page_of


def rows_of(*accuracies: float) -> list[dict[str, float]]:
    """Rows of a training with these validation accuracies."""
    more = {"train_accuracy": 0.25, "train_loss": 2.5, "validation_loss": 2.0}
    more |= {"learning_rate": 0.0123456, "images_per_second": 12345.6, "seconds": 1.0}
    return [{"epoch": n, "validation_accuracy": value, **more} for n, value in enumerate(accuracies, 1)]


HOVER = "learning rate 0.0123, 12,346 images/s"


def test_training_info():
    assert training_info("mobilenet_v1 abc", rows_of(0.5, 0.75, 0.75), 5) == TrainingInfo(
        title="mobilenet_v1 abc: 3 of 5 epochs",
        epochs=(1, 2, 3),
        accuracy=(Line("validation accuracy", (0.5, 0.75, 0.75)), Line("training accuracy", (0.25, 0.25, 0.25))),
        loss=(Line("validation loss", (2.0, 2.0, 2.0)), Line("training loss", (2.5, 2.5, 2.5))),
        hover=(HOVER, HOVER, HOVER),
        best=1,
        best_text="best validation: 75.00 % (epoch 2)",
    )
    assert training_info("a b", rows_of(0.5), 1).title == "a b: 1 epoch"
    assert training_info("a b", rows_of(0.5, 0.5), 2).title == "a b: 2 epochs"


def test_training_figure():
    figure = training_figure(training_info("mobilenet_v1 abc", rows_of(0.5, 0.75, 0.7), 3))
    assert [(trace.name, trace.yaxis) for trace in figure.data] == [
        ("validation accuracy", None),
        ("training accuracy", None),
        ("validation loss", "y2"),
        ("training loss", "y2"),
        ("best validation: 75.00 % (epoch 2)", None),
    ]
    assert (list(figure.data[0].y), list(figure.data[2].y)) == ([50.0, 75.0, 70.0], [2.0, 2.0, 2.0])
    assert (list(figure.data[4].x), list(figure.data[4].y)) == ([2], [75.0])
    assert list(figure.data[0].text) == [HOVER] * 3
    assert (figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text) == ("Accuracy (%)", "Loss (nats)")
    assert figure.layout.title.text == "mobilenet_v1 abc: 3 epochs"
    assert figure.data[0].mode == "lines+markers"
    many = training_figure(training_info("a b", rows_of(*[0.5] * (MARKED + 1)), MARKED + 1))
    assert many.data[0].mode == "lines"


@pytest.mark.parametrize("what", range(3), ids=["colour", "dash", "symbol"])
def test_every_line_is_told_apart_by(what):
    assert len({style[what] for style in LINES.values()}) == 4


def test_small_differences_do_not_fill_the_plot():
    low, high = training_figure(training_info("a b", rows_of(0.25), 1)).layout.yaxis.range
    assert (low, high) == pytest.approx((19.4, 30.6)), "10 points and a margin"


def test_names_cannot_become_markup():
    info = training_info("<b>x</b> abc", rows_of(0.5), 1)
    assert training_figure(info).layout.title.text == "&lt;b&gt;x&lt;/b&gt; abc: 1 epoch"
    assert "<title>&lt;b&gt;x&lt;/b&gt; abc: 1 epoch" in page(info)


@pytest.mark.browser
def test_the_page_in_a_browser(tmp_path: Path):
    with chromium() as browser:
        for epochs in (1, 30):
            look_at_page(browser, tmp_path / "curve.html", epochs)


def look_at_page(browser: Any, path: Path, epochs: int):
    values = [0.9 - 0.8 / n for n in range(1, epochs + 1)]
    path.write_text(page(training_info("mobilenet_v1 abc", rows_of(*values), epochs)))
    address = path.as_uri()
    with page_of(browser, 1200) as (shown, log):
        shown.goto(address)
        shown.wait_for_selector("#curve .scatterlayer .trace:last-child .point")
        assert shown.locator("#curve .scatterlayer .point").count() == 4 * epochs + 1
        assert shown.evaluate("document.documentElement.scrollHeight <= window.innerHeight"), "it fits the window"
        assert "images/s" in hover_text(shown, "#curve")
    assert (log.errors, log.addresses) == ([], [address])
