"""What `train` and `best --test` print, and what a person sees while a network trains."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mnet_search.models.arch import MnetError
from mnet_search.search.printing import echo, print_json
from mnet_search.search.progress import show_seconds
from mnet_search.spaces.space import si

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.search.training import Epoch
    from mnet_search.studies.store import Store


@dataclass(frozen=True)
class How:
    """What the command line says of a training beside its config."""

    name: str | None = None
    device: str = "auto"
    threads: int = 1
    event_files: bool = False


def trained(
    config_path: Path,
    overrides: list[str],
    runs_dir: Path,
    how: How,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a config and print what came of it."""
    from mnet_search.dashboards.snapshot import percent
    from mnet_search.search.retrain import run_folder, sampling_error, train_config
    from mnet_search.search.run import check_runs_dir
    from mnet_search.studies.export import read_config

    config, arch = read_config(config_path, overrides)
    folder = run_folder(runs_dir, config_path, how.name)
    check_runs_dir(folder)
    with watch_training(config.training.epochs, quiet=quiet) as watcher:
        result = train_config(
            config, arch, folder, watcher, device=how.device, threads=how.threads, event_files=how.event_files
        )
    if as_json:
        print_json(asdict(result))
        return
    test, validation = (
        f"{percent(value)} (last epoch)" for value in (result.test_accuracy, result.validation_accuracy)
    )
    if result.best_epoch != result.epochs:
        test += f", {percent(result.test_accuracy_best)} with best.pt (epoch {result.best_epoch})"
        validation += f", {percent(result.validation_accuracy_best)} (epoch {result.best_epoch})"
    error = percent(sampling_error(result.test_accuracy, result.test_images))
    echo(f"test accuracy {test}; one run, {result.test_images} images: sampling error {error}")
    echo(f"validation accuracy {validation}")
    echo(
        f"{si(result.params)} params, {si(result.mult_adds)} mult-adds; "
        f"config, checkpoints, weights, curve and result in {result.folder}/"
    )


def tested(store: Store, study: str, row: pd.Series) -> dict[str, Any]:
    """A trial of a study on the test images, as test_accuracy, test_loss and test_images. Raises MnetError."""
    from mnet_search.models.remote_files import checkpoint_file
    from mnet_search.search.retrain import measure_on_test
    from mnet_search.studies.export import TrainConfig, config_of

    if not row["checkpoint"]:
        raise MnetError(f"--test: trial {row['number']} was evaluated by a function and not trained here: no weights")
    config = TrainConfig.model_validate(config_of(store, study, row))
    with checkpoint_file(row["checkpoint"], row["checkpoint_sha256"]) as path:
        return asdict(measure_on_test(config, path, study, int(row["number"])))


def print_tested(found: Mapping[str, Any]) -> None:
    """The sentence for people."""
    from mnet_search.dashboards.snapshot import percent
    from mnet_search.search.retrain import sampling_error

    accuracy, images = found["test_accuracy"], found["test_images"]
    error = percent(sampling_error(accuracy, images))
    echo(f"\ntest accuracy {percent(accuracy)} (one run, {images} images: sampling error {error})")


# ---------------------------------------------------------------- while it trains


class QuietTraining:
    """Shows nothing."""

    def stored(self, rows: Sequence[Epoch]) -> None: ...
    def epoch(self, row: Epoch) -> None: ...


class TrainingProgress:
    """A bar on a terminal, one line an epoch elsewhere."""

    def __init__(self, console: Console, epochs: int):
        self._console, self._epochs = console, epochs
        self._rows: list[Epoch] = []
        self._seconds: list[float] = []  # of the epochs of this run; those of earlier ones may be another machine's
        self._since = time.monotonic()
        self.live = (
            Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)
            if console.is_terminal
            else None
        )

    def stored(self, rows: Sequence[Epoch]) -> None:
        """Earlier runs of this training left these rows."""
        self._rows, self._since = list(rows), time.monotonic()
        if len(rows) < self._epochs:
            self._say(f"going on after epoch {len(rows)} of {self._epochs}")
        else:
            self._say(f"finished already: {self._epochs} of {self._epochs} epochs; nothing is left to train")

    def epoch(self, row: Epoch) -> None:
        self._rows.append(row)
        self._seconds.append(row.seconds)
        self._since = time.monotonic()
        if self.live is None:
            figures = f"train loss {row.train_loss:.3f}, validation {row.validation_accuracy:.2%}, {row.seconds:.1f} s"
            self._say(f"epoch {row.epoch}/{self._epochs}: {figures}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def render(self) -> Group:
        """The bar, and below it what is known so far."""
        done = len(self._rows)
        head = Table.grid(padding=(0, 2))  # a bar ends no line of its own
        number = Text(f"epoch {min(done + 1, self._epochs)}/{self._epochs}", style="bold")
        head.add_row(number, ProgressBar(total=self._epochs, completed=done, width=40), self._left())
        if not self._rows:
            return Group(head)
        last, best = self._rows[-1], max(self._rows, key=lambda row: row.validation_accuracy)
        figures = [
            f"validation {last.validation_accuracy:.2%}, loss {last.validation_loss:.3f}",
            f"best {best.validation_accuracy:.2%} (epoch {best.epoch})",
            f"{last.images_per_second:,.0f} images/s",
        ]
        return Group(head, Text(", ".join(figures), style="dim"))

    def _left(self) -> str:
        left = self._epochs - len(self._rows)
        if not self._seconds or left <= 0:
            return ""
        seconds = statistics.median(self._seconds) * left - (time.monotonic() - self._since)
        return f"about {show_seconds(max(seconds, 0))} left"


@contextmanager
def watch_training(epochs: int, *, quiet: bool) -> Iterator[QuietTraining | TrainingProgress]:
    """Progress of a training on stderr."""
    if quiet:
        yield QuietTraining()
        return
    progress = TrainingProgress(Console(stderr=True), epochs)
    if progress.live is None:
        yield progress
        return
    with progress.live:
        yield progress
