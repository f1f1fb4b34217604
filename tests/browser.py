"""A real study, a real server and a real headless Chromium, for the tests that look at pages as a user does."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution

from mnet_search.dashboards.app import bind, create_app
from mnet_search.models.complexity import costs
from mnet_search.models.costs import Costs
from mnet_search.spaces.space import load_space
from mnet_search.studies.store import Store
from mnet_search.studies.writer import TrialRecord, open_study

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOW_TO_GET_ONE = "no Chromium found: apt-get install chromium, or set CHROMIUM=/path/to/it"


@dataclass
class Log:
    """What a page complained about, and every address that it asked for."""

    errors: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; skips the test where there is none."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(HOW_TO_GET_ONE)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Any, width: int = 1440) -> Iterator[tuple[Any, Log]]:
    """An empty page and the log of what it will complain about."""
    page, log = browser.new_page(viewport={"width": width, "height": 900}), Log()
    page.on("console", lambda message: log.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: log.errors.append(str(error)))
    page.on("request", lambda request: log.addresses.append(request.url))
    page.set_default_timeout(60_000)
    yield page, log
    page.close()


def wait_for_points(page: Any, plot: str, count: int) -> None:
    """Wait until the last trace of a plot (its front) shows this many markers, drawn ones and not only data."""
    page.wait_for_function(
        """([plot, count]) => {
            const graph = document.querySelector(plot);
            if (!graph || !graph.data || !graph.data.length) return false;
            const groups = graph.querySelectorAll('.scatterlayer .trace');
            const drawn = groups.length ? groups[groups.length - 1].querySelectorAll('.point').length : 0;
            return drawn === count && graph.data[graph.data.length - 1].x.length === count;
        }""",
        arg=[plot, count],
    )


def hover_text(page: Any, plot: str) -> str:
    """Point the mouse at the first marker of the front -> the text that appears."""
    page.locator(plot).scroll_into_view_if_needed()
    page.wait_for_timeout(300)  # plotly measures the page anew after a scroll
    box = page.locator(f"{plot} .scatterlayer .trace:last-child .point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 30, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    label = page.locator(f"{plot} .hoverlayer .hovertext").first
    label.wait_for()
    return "\n".join(label.locator("tspan").all_text_contents()) or label.text_content()


SPACE = """
description: <img src=x onerror="alert(1)"> & friends
family: mobilenet_v1
data: {name: digits}
parameters:
  width: [0.25, 0.5, 0.75, 1.0]
  resolution: [20, 24, 32]
  depth: [shallow, full]
objectives: {accuracy: maximize, latency_ms: minimize, params: minimize}
"""
STUDY = 'digits <script>alert("study")</script> {%css%}'


class Written:
    """A study that a test goes on writing, as the driver of a search does."""

    def __init__(self, folder: Path, name: str = STUDY, url: str | None = None):
        (folder / "space.yaml").write_text(SPACE)
        self.url, self.name = url or f"sqlite:///{folder / 'studies.db'}", name
        self.space = load_space(folder / "space.yaml").for_data(classes=10, in_channels=1)
        self.store = Store(self.url, create=True)
        provenance = {"validation_images": 500, "data": {"name": "digits", "files": ["<b>a</b>", "b"]}}
        self.writer = open_study(
            self.store, self.space, name, n_trials=30, runs_dir=folder / "runs", provenance=provenance
        )
        self.codes = iter(random.Random(0).sample(list(self.space.codes()), 24))

    def begin(self) -> tuple[TrialRecord, Costs]:
        chosen = next(self.codes)
        arch = self.space.arch(chosen)
        distributions = {name: CategoricalDistribution(self.space.values(name)) for name in chosen}
        record = self.writer.begin(chosen=chosen, distributions=distributions, arch=arch, costs=costs(arch), seed=0)
        self.writer.add_epoch(record.trial_id, 1, {"validation_accuracy": 0.6})
        return record, costs(arch)

    def finish(self, accuracy: float, latency_ms: float) -> int:
        record, cost = self.begin()
        metrics = {"accuracy": accuracy, "validation_loss": 1 - accuracy, "latency_ms": latency_ms}
        metrics |= {"latency_q1_ms": 0.9 * latency_ms, "latency_q3_ms": 1.2 * latency_ms}
        self.writer.finish(
            record.trial_id, [accuracy, latency_ms, float(cost.params)],
            metrics=metrics, environment={}, measurement=None, checkpoint="", checkpoint_sha256="",
        )  # fmt: skip
        return record.number


def ask(port: int, method: str = "GET", path: str = "/", body: str | None = None, **headers: str) -> tuple[Any, str]:
    """One request to the server on this machine, with these headers -> the answer and its text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


@contextmanager
def served(url: str, study: str | None = None, token: str | None = None) -> Iterator[int]:
    """The page on a free port -> the port."""
    server = bind(create_app(url, study, token), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
