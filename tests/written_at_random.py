"""A study that is written at random, as searches, imports and other hands write one."""

from __future__ import annotations

import random
from typing import Any

from mnet_search.models.complexity import costs
from mnet_search.search.distributions import distribution
from mnet_search.spaces.space import make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies import import_writer
from mnet_search.studies.importing import ImportedTrial
from mnet_search.studies.store import Store
from mnet_search.studies.writer import TrialRecord, open_study

STUDY = "watched"
SPACE = make_space(
    "watched",
    {
        "family": "mobilenet_v1",
        "parameters": {
            "width": [0.1, 0.2, 0.3, 1],
            "resolution": [20, 32],
            "block": ["separable", "inverted_residual"],
            "expand": {"values": [2, 4, 6], "when": {"block": "inverted_residual"}},
        },
        "objectives": {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"},
    },
    Source("watched.yaml"),
).for_data(classes=10, in_channels=1)


class Driver:
    """Writes a study as searches and imports do; two of them are two drivers of one study."""

    def __init__(self, store: Store, seed: int = 0, study: str = STUDY):
        self.store, self.random = store, random.Random(seed)
        self.writer = open_study(store, SPACE, study, n_trials=9, runs_dir="runs", provenance={"run": 0})
        self.begun: list[TrialRecord] = []
        self.ended: list[TrialRecord] = []

    def begin(self) -> TrialRecord:
        chosen = SPACE.sample(self.random)
        arch = SPACE.arch(chosen)
        distributions = {name: distribution(SPACE.parameters[name]) for name in chosen}
        record = self.writer.begin(chosen=chosen, distributions=distributions, arch=arch, costs=costs(arch), seed=0)
        self.begun.append(record)
        return record

    def train(self, record: TrialRecord, epoch: int = 1) -> None:
        figures = {"validation_accuracy": self.random.random(), "train_loss": float("nan"), "seconds": 1.0}
        self.writer.add_epoch(record.trial_id, epoch, figures)

    def finish(self, record: TrialRecord, accuracy: float | None = None, latency_ms: float = 0.0) -> None:
        accuracy = self.random.random() if accuracy is None else accuracy
        latency_ms = latency_ms or self.random.uniform(1, 9)
        measured = {"name": "latency_ms", "median": latency_ms, "q1": 1.0, "q3": 9.0, "n": 5, "protocol": {}}
        self.writer.finish(
            record.trial_id, [accuracy, latency_ms, 1000.0],
            metrics={"accuracy": accuracy, "latency_ms": latency_ms}, environment={}, measurement=measured,
            checkpoint=f"runs/{record.number}.pt", checkpoint_sha256="0" * 64,
        )  # fmt: skip
        self._end(record)

    def _end(self, record: TrialRecord) -> None:
        self.begun.remove(record)
        self.ended.append(record)

    # Each a step that may happen at any time, where there is a trial for it.

    def some_epoch(self) -> None:
        if self.begun:
            self.train(self.random.choice(self.begun), self.random.randint(1, 4))  # an old one: a resumed trial

    def some_end(self) -> None:
        if self.begun:
            record = self.random.choice(self.begun)
            how = self.random.choice(["finish", "finish", "fail", "stop"])
            if how == "finish":
                self.finish(record)
            else:
                getattr(self.writer, how)(record.trial_id, f"{how} of {record.number}")
                self._end(record)

    def some_set_down(self) -> None:
        if self.begun:
            record = self.random.choice(self.begun)
            self.writer.set_down(record.trial_id)
            if self.random.random() < 0.5:
                self.writer.begin_again(record, counts=self.random.random() < 0.5)

    def too_late(self) -> None:
        """A driver that took another for dead counts an attempt of a trial that has just ended."""
        if self.ended:
            assert not self.writer.begin_again(self.ended[-1])

    def half_begun(self) -> None:
        self.store.optuna.create_new_trial(self.writer.study_id)
        if self.random.random() < 0.5:
            self.begin()  # another driver's, before the first one's own row or its end
        self.writer.end_half_begun()

    def goes_on_as(self) -> None:
        if self.ended:
            source = self.random.choice(self.ended)
            self.writer.copy_curve(source.trial_id, self.begin().trial_id)

    def new_run(self) -> None:
        self.writer.begin_run(self.random.randint(1, 99), "runs", {"run": self.random.random()})

    def bring_in(self) -> None:
        chosen = SPACE.sample(self.random)
        arch = SPACE.arch(chosen)
        figures = {"accuracy": self.random.random(), "latency_ms": 2.0}
        row = ImportedTrial("row 1", "results.csv row 1", chosen, arch, costs(arch), figures)
        import_writer.enter(self.writer, SPACE, [import_writer.Placed(row, 7)], {"file": "r"}, distribution)

    def nothing(self) -> None:
        pass

    def step(self) -> str:
        steps = [self.begin] * 4 + [self.some_epoch] * 5 + [self.some_end] * 4 + [self.some_set_down] * 2
        steps += [self.too_late, self.half_begun, self.goes_on_as, self.new_run, self.bring_in, self.nothing]
        chosen: Any = self.random.choice(steps)
        chosen()
        return str(chosen.__name__)
