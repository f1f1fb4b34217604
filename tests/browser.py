"""A real headless Chromium for the tests that look at pages as a user does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

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
