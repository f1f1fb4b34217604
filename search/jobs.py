"""From a trial's record to the job that a worker is given, and from its outcome to what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnet_search.search.resources import Resources
from mnet_search.search.teachers import teacher_path
from mnet_search.search.trial import Job, Outcome
from mnet_search.spaces.schema import Data, Training
from mnet_search.spaces.space import Space
from mnet_search.studies.writer import TrialRecord


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of a study. `template` is what they have in common, `runs_dir` a folder or a URL that fsspec
    opens; `digests` are those of the images that each setting of the data led to here, `teachers` those of teachers.
    """

    space: Space
    study: str
    template: Job
    runs_dir: str
    digests: Mapping[Data, str] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)

    def folder(self, key: str, seed: int) -> str:
        """Of the checkpoints and the log of a network's run: a path, or a URL."""
        name = f"{self.study}/{key}-seed{seed}"
        if "://" in self.runs_dir:
            return f"{self.runs_dir.rstrip('/')}/{name}"
        return str((Path(self.runs_dir) / name).resolve())

    def make(self, record: TrialRecord, rungs: Sequence[int], resources: Resources) -> Job:
        """The job of a trial that is judged after each epoch of `rungs`."""
        arch, data = self.space.arch(record.chosen), self.space.data_of(record.chosen)
        training = self.space.training_of(record.chosen)
        content = self.template.to_dict()
        content |= {"number": record.number, "family": arch.family, "options": dict(arch.options), "arch_id": arch.id}
        content |= {"data": data.model_dump() | {"path": absolute(data.path)}}
        content |= {"data_digest": self.digests.get(data, "")}
        content |= {"training": _training(training), "teacher_digest": self.teachers.get(training.teacher or "", "")}
        content |= {"params": record.chosen, "timeout_s": self.space.file.search.trial_timeout_s, "rungs": tuple(rungs)}
        content |= {"gpu_memory_fraction": resources.gpu_memory_fraction}
        folder = self.folder(self.space.key(record.chosen, arch.id), record.seed)
        return Job.from_dict(content | {"seed": record.seed, "folder": folder})


def _training(training: Training) -> dict[str, Any]:
    """The settings of a training; a teacher's checkpoint under its full path."""
    teacher = training.teacher and teacher_path(training.teacher)
    return training.model_dump() | ({"teacher": str(teacher)} if teacher else {})


def absolute(path: str | None) -> str | None:
    """Workers may have another working directory."""
    return None if path is None else str(Path(path).resolve())


def latency_measurement(outcome: Outcome) -> dict[str, Any] | None:
    """The row of a trial's latency, with quartiles and protocol; None where it was not measured that way."""
    metrics = outcome.metrics
    # A function of one's own may return the one figure without its quartiles.
    if not {"latency_ms", "latency_q1_ms", "latency_q3_ms"} <= metrics.keys():
        return None
    protocol = {key: outcome.environment[key] for key in ("device", "threads") if key in outcome.environment}
    return {
        "name": "latency_ms",
        "median": metrics["latency_ms"],
        "q1": metrics["latency_q1_ms"],
        "q3": metrics["latency_q3_ms"],
        "n": int(metrics.get("latency_n", 0)),
        "protocol": protocol | {"batch": int(metrics.get("latency_batch", 1))} | _drift(metrics),
    }


def _drift(metrics: Mapping[str, float]) -> dict[str, Any]:
    """How steady the machine was while the latency was taken."""
    if "latency_drift" not in metrics:
        return {}
    return {"drift": metrics["latency_drift"], "good": bool(metrics["latency_good"])}
