"""What a person sees while a search runs: a live panel on a terminal, one line per finished trial elsewhere, nothing
with --quiet.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mnet_search.search.training import Epoch
from mnet_search.spaces.space import Space, si
from mnet_search.studies.pareto import non_dominated
from mnet_search.studies.writer import TrialRecord

FRONT_ROWS = 12


class Quiet:
    """Shows nothing."""

    def begin(self, study: str, n_asked: int, done: Sequence[TrialRecord]) -> None: ...
    def started(self, record: TrialRecord) -> None: ...
    def epoch(self, record: TrialRecord, epoch: Epoch) -> None: ...
    def finished(self, record: TrialRecord, values: Mapping[str, float]) -> None: ...
    def stopped(self, record: TrialRecord, reason: str) -> None: ...
    def failed(self, record: TrialRecord, reason: str) -> None: ...
    def left(self, record: TrialRecord, why: str) -> None: ...
    def note(self, text: str) -> None: ...


class TerminalProgress(Quiet):
    """Counts, time left and the front so far."""

    def __init__(self, console: Console, objectives: Mapping[str, str]):
        self._console, self._objectives = console, dict(objectives)
        self._study, self._n_asked = "", 0
        self._done: list[tuple[TrialRecord, list[float]]] = []
        self._running: dict[int, tuple[TrialRecord, str]] = {}
        self._failures: list[str] = []
        self._n_failed = self._n_stopped = 0
        self._started: dict[int, float] = {}
        self._seconds: list[float] = []
        self._seconds_stopped = 0.0
        self._side_by_side = 1
        self._live = (
            Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)
            if console.is_terminal
            else None
        )

    def begin(self, study: str, n_asked: int, done: Sequence[TrialRecord]) -> None:
        """The study is open: what is asked for, and what earlier runs have finished."""
        self._study, self._n_asked = study, n_asked
        self._done = [(record, record.values) for record in done if record.values is not None]
        if done and self._live is None:
            self._console.print(
                f"{study}: {len(done)} of {n_asked} trials are finished already; going on", highlight=False
            )
        if self._live:
            self._live.start()

    def close(self) -> None:
        if self._live:
            self._live.stop()

    def started(self, record: TrialRecord) -> None:
        self._running[record.trial_id] = (record, "starting")
        self._started[record.trial_id] = time.monotonic()
        self._side_by_side = max(self._side_by_side, len(self._running))

    def epoch(self, record: TrialRecord, epoch: Epoch) -> None:
        self._running[record.trial_id] = (
            record,
            f"epoch {epoch.epoch}: {show_value('accuracy', epoch.validation_accuracy)}",
        )

    def finished(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        self._running.pop(record.trial_id, None)
        self._done.append((record, [values[name] for name in self._objectives]))
        self._seconds.append(time.monotonic() - self._started[record.trial_id])
        if self._live is None:
            shown = ", ".join(f"{name} {show_value(name, values[name])}" for name in self._objectives)
            self._console.print(
                f"trial {record.number}: {shown} ({len(self._done)}/{self._n_asked}{self._eta()})",
                highlight=False,
                soft_wrap=True,
            )

    def stopped(self, record: TrialRecord, reason: str) -> None:
        self._running.pop(record.trial_id, None)
        self._n_stopped += 1
        self._seconds_stopped += time.monotonic() - self._started[record.trial_id]
        if self._live is None:
            self._console.print(f"trial {record.number} stopped early: {reason}", highlight=False, soft_wrap=True)

    def failed(self, record: TrialRecord, reason: str) -> None:
        self._running.pop(record.trial_id, None)
        self._n_failed += 1
        self._failures.append(f"trial {record.number} failed: {reason}")
        if self._live is None:
            self._console.print(self._failures[-1], highlight=False, soft_wrap=True, markup=False)

    def left(self, record: TrialRecord, why: str) -> None:
        """A trial that ran ends here without a result; nothing of it is lost."""
        self._running.pop(record.trial_id, None)
        self.note(f"trial {record.number}: {why}")

    def note(self, text: str) -> None:
        """A sentence about the run: how it is packed, why it stops."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _eta(self) -> str:
        """Time left, from the median trial: the first ones also carry the start of their worker."""
        left = self._n_asked - len(self._done)
        if not self._seconds or left <= 0:
            return ""
        each = statistics.median(self._seconds) + self._seconds_stopped / len(self._seconds)
        return f", about {show_seconds(each * left / self._side_by_side)} left"

    def render(self) -> Group:
        """The live panel."""
        head = Text.assemble(
            (self._study, "bold"),
            f"  {len(self._done)}/{self._n_asked} finished",
            f", {self._n_stopped} stopped early" if self._n_stopped else "",
            f", {self._n_failed} failed" if self._n_failed else "",
            self._eta(),
        )
        running = [
            Text(f"  trial {record.number}: {what}", style="dim") for record, what in list(self._running.values())[:8]
        ]
        failures = [Text(line, style="red") for line in self._failures[-2:]]
        bar = Table.grid()  # a bar ends no line of its own
        bar.add_row(ProgressBar(total=self._n_asked, completed=len(self._done), width=48))
        return Group(
            head,
            bar,
            *running,
            *failures,
            self._front(),
        )

    def _front(self) -> Table:
        table = Table(title="Front so far", title_justify="left", box=None, pad_edge=False)
        table.add_column("trial", justify="right")
        for name in self._objectives:
            table.add_column(name, justify="right")
        table.add_column("parameters")
        done = list(self._done)
        if done:
            values = np.array([v for _, v in done], dtype=float)
            front = [done[i] for i in np.flatnonzero(non_dominated(values, list(self._objectives.values())))]
            sign = -1 if next(iter(self._objectives.values())) == "maximize" else 1
            for record, row in sorted(front, key=lambda item: sign * item[1][0])[:FRONT_ROWS]:
                cells = [show_value(name, value) for name, value in zip(self._objectives, row, strict=True)]
                table.add_row(str(record.number), *cells, show_params(record.chosen))
        return table


@contextmanager
def watch(space: Space, *, quiet: bool) -> Iterator[Quiet]:
    """Progress for a run of `space` on stderr."""
    if quiet:
        yield Quiet()
        return
    progress = TerminalProgress(Console(stderr=True), space.file.objectives)
    try:
        yield progress
    finally:
        progress.close()


def show_value(name: str, value: float) -> str:
    """An objective or metric with unit and sensible digits: accuracy in %, latency in ms, counts with k, M, G."""
    if value != value:
        return "-"
    if "accuracy" in name:
        return f"{value:.1%}"
    if name.endswith("_ms"):
        return f"{value:.3g} ms"
    if name.endswith("loss"):
        return f"{value:.3f}"
    return si(value)


def show_params(chosen: Mapping[str, object]) -> str:
    """`width=0.5 depth=full`, the parameters that a trial has."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in chosen.items()
        if value == value
    )


def show_seconds(seconds: float) -> str:
    """95 -> '1 min 35 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
