"""Executors: carry out the driver's jobs, in processes of this machine or through Ray Tune. Both give the same records.

An executor asks `driver.next_job()`, runs `trial.run_trial`, and hands every epoch, outcome and failure back. It keeps
nothing that would be lost with it: the study is the only truth, so a killed run is simply started again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mnet_search.search.driver import Driver
from mnet_search.search.inline_executor import InlineExecutor
from mnet_search.search.local_executor import LocalExecutor
from mnet_search.search.ray_executor import RayExecutor
from mnet_search.search.resources import Resources


class Executor(Protocol):
    """Runs jobs until the driver is done or asked to stop."""

    def run(self, driver: Driver) -> None: ...


EXECUTORS: dict[str, Callable[[Resources], Executor]] = {
    "ray": RayExecutor,
    "local": LocalExecutor,
    "inline": InlineExecutor,
}
