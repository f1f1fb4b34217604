"""What holds for every test: one thread, and with `MNET_REQUIRE_BROWSER` set no browser test that quietly skips."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postgres import Server

# Read by torch when it is first imported, here and in every process that a test starts: with more busy threads than
# cores it is slower by an order of magnitude.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def browser_required() -> bool:
    """Whether `MNET_REQUIRE_BROWSER` asks for the browser tests; empty and 0 do not."""
    return os.environ.get("MNET_REQUIRE_BROWSER", "") not in ("", "0")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip of a test marked `browser` becomes a failure that names the skip's reason."""
    report = yield
    # An expected failure is reported as skipped too, but it did run.
    if browser_required() and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("browser"):
        report.outcome = "failed"
        report.longrepr = f"MNET_REQUIRE_BROWSER is set and this browser test skipped: {reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module with browser tests that skips as a whole, where no test is left to carry the mark."""
    report = yield
    if browser_required() and report.skipped and "mark.browser" in Path(collector.path).read_text(encoding="utf-8"):
        report.outcome = "failed"
        report.longrepr = f"MNET_REQUIRE_BROWSER is set and these browser tests skipped: {reason(report.longrepr)}"
    return report


def reason(longrepr: object) -> str:
    """The text of a skip, which pytest keeps as (path, line, text)."""
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running PostgreSQL server, one per test process; `postgres.database()` is the URL of a fresh database."""
    from postgres import server

    with server() as running:
        yield running
