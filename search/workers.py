"""How worker processes are made, and what they find in their environment. Needs no torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver
from typing import Any

PRELOADED = ["mnet_search.search.trial"]


def worker_context() -> Any:
    """How workers are made: forked from a small server that has imported torch once, so that the second worker, and one
    that replaces a killed one, start at once. (The driver itself cannot be forked: it has threads.) Without fork:
    spawn.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start_early() -> None:
    """Start the server that workers are forked from, which imports torch while this process does so too."""
    if worker_context().get_start_method() == "forkserver":
        with environment(PGPASSWORD=None, MNET_STORAGE=None):  # the database is the driver's alone
            forkserver.ensure_running()


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Environment variables for processes started inside, without those that are None; put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
