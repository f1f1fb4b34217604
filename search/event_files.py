"""Event files for TensorBoard: what a training says of each epoch, written by the main process as it comes.

Each epoch is on disk before the next one begins. A training that goes on sends its rows from epoch 1 again, so its
files are begun anew and no step stands twice.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnet_search.models.arch import MnetError

if TYPE_CHECKING:
    from mnet_search.search.settings import Progress
    from mnet_search.search.training import Epoch
    from mnet_search.studies.writer import TrialRecord

log = logging.getLogger(__name__)

FOLDER = "tensorboard"
PATTERN = "events.out.tfevents.*"
TAGS = {
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
    "seconds": "seconds",
}


class EventFile:
    """The event file of one training in `folder`, where older ones are removed.

    Where it cannot be written, one warning says so and the training goes on without it.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._writer: Any = None
        self._try(self._open)

    def _open(self) -> None:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event

        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(PATTERN):
            old.unlink()
        # The plain writer: SummaryWriter hands events to a thread, and what that still holds is lost with a kill.
        self._writer = RecordWriter(str(self.folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, row: Epoch) -> None:
        """All scalars of an epoch, whose number is the step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=getattr(row, name)) for tag, name in TAGS.items()]
        self._try(lambda: self._write(Event(wall_time=time.time(), step=row.epoch, summary=Summary(value=values))))

    def _write(self, event: Any) -> None:
        if self._writer is not None:
            self._writer.write(event.SerializeToString())
            self._writer.flush()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._try(writer.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._writer = None
            log.warning("%s: no event files are written from here on: %s", self.folder, error.strerror or error)


class RecordedProgress:
    """Passes everything on to another Progress, and writes the epochs of each trial to an event file of its own."""

    def __init__(self, progress: Progress, runs_dir: Path):
        self._progress, self._runs_dir = progress, runs_dir
        self._folder = runs_dir
        self._files: dict[int, EventFile] = {}

    def begin(self, study: str, n_asked: int, done: Sequence[TrialRecord]) -> None:
        self._folder = self._runs_dir / study / FOLDER
        self._progress.begin(study, n_asked, done)

    def started(self, record: TrialRecord) -> None:
        self._end(record.trial_id)  # its worker died, and it starts once more
        self._files[record.trial_id] = EventFile(self._folder / f"trial{record.number:04d}-{record.arch_id}")
        self._progress.started(record)

    def epoch(self, record: TrialRecord, epoch: Epoch) -> None:
        self._files[record.trial_id].add(epoch)
        self._progress.epoch(record, epoch)

    def finished(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        self._end(record.trial_id)
        self._progress.finished(record, values)

    def stopped(self, record: TrialRecord, reason: str) -> None:
        self._end(record.trial_id)
        self._progress.stopped(record, reason)

    def failed(self, record: TrialRecord, reason: str) -> None:
        self._end(record.trial_id)
        self._progress.failed(record, reason)

    def left(self, record: TrialRecord, why: str) -> None:
        self._end(record.trial_id)
        self._progress.left(record, why)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def _end(self, trial_id: int) -> None:
        if file := self._files.pop(trial_id, None):
            file.close()

    def close(self) -> None:
        for trial_id in list(self._files):
            self._end(trial_id)


@contextmanager
def recorded(progress: Progress, runs_dir: str | Path, *, wanted: bool) -> Iterator[Progress]:
    """`progress`; where `wanted`, with event files below RUNS_DIR/STUDY/tensorboard."""
    if not wanted:
        yield progress
        return
    if "://" in str(runs_dir):
        raise MnetError(
            f"--tensorboard writes to a folder of this machine, and --runs-dir is {runs_dir}; leave one out"
        )
    watcher = RecordedProgress(progress, Path(runs_dir))
    try:
        yield watcher
    finally:
        watcher.close()
