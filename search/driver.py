"""The driver: decides what is trained next and records what came of it. Executors carry out; they never touch the
database.

sampler -> network -> costs -> budget and duplicate check -> job -> executor -> epochs and outcome -> study
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search.candidates import Candidates
from mnet_search.search.objectives import values_of
from mnet_search.search.pareto_sampler import Figures
from mnet_search.search.repeats import Repeats
from mnet_search.search.rungs import Rungs, teach
from mnet_search.search.samplers import Proposal, Proposer, make_proposer, pick_untried
from mnet_search.search.teachers import teacher_path
from mnet_search.search.training import Epoch
from mnet_search.search.trial import Job, Outcome
from mnet_search.spaces.schema import COST_NAMES, Data, Training
from mnet_search.spaces.space import Params, Space, SpaceError
from mnet_search.spaces.survey import Survey
from mnet_search.studies.writer import StudyWriter, TrialRecord

MAX_ATTEMPTS = 3  # of one trial, when the process that trains it dies
PROPOSALS_BEFORE_PICKING = 50  # a sampler that keeps proposing known or oversized networks is helped out


class FailureBudgetError(MnetError):
    """Too many trials failed."""

    exit_code = 4


class Progress(Protocol):
    """Who watches a run: the terminal, or nobody."""

    def begin(self, study: str, n_asked: int, done: Sequence[TrialRecord]) -> None: ...
    def started(self, record: TrialRecord) -> None: ...
    def epoch(self, record: TrialRecord, epoch: Epoch) -> None: ...
    def finished(self, record: TrialRecord, values: Mapping[str, float]) -> None: ...
    def stopped(self, record: TrialRecord, reason: str) -> None: ...
    def failed(self, record: TrialRecord, reason: str) -> None: ...


@dataclass(frozen=True)
class Settings:
    """How a run is carried out."""

    n_trials: int
    runs_dir: Path
    seed: int = 0
    max_failures: int = 10


class Driver:
    """One run over a study. Executors call `next_job`, `on_epoch`, `on_outcome`, `on_failure` and `on_worker_lost`."""

    def __init__(
        self,
        study: StudyWriter,
        space: Space,
        survey: Survey,
        settings: Settings,
        job: Job,
        progress: Progress,
        digests: Mapping[Data, str] | None = None,
        teachers: Mapping[str, str] | None = None,
        warm: StudyWriter | None = None,
        scores: Callable[[Candidates], Figures] | None = None,
    ):
        """`digests` are those of the images that each setting of the data led to here, `teachers` those of teachers;
        `warm` is another study of the same space, from which the sampler learns first, `scores` what it is told of
        each candidate.
        """
        self.study, self.space, self.settings, self.progress = study, space, settings, progress
        self._survey, self._template, self._digests = survey, job, digests or {}
        self._teachers = teachers or {}
        self.n_finished = self.n_new = self.n_failed = self.n_stopped = 0
        self.exhausted = False
        self.stop_signal: int | None = None
        self.running: dict[int, TrialRecord] = {}
        self._again: deque[TrialRecord] = deque()
        self._used_up = False  # no network is left that was not begun
        self._known: set[str] = set()
        self._proposals: dict[int, Proposal] = {}
        self._judged_at: dict[int, tuple[int, ...]] = {}
        self._repeats = Repeats(space.file.search.repeats, settings.n_trials, study)
        self._rungs = Rungs(space)
        self._scores = scores
        self._take_up(warm)

    def _take_up(self, warm: StudyWriter | None) -> None:
        """Read the study: finished trials teach the sampler, trials that a dead driver left RUNNING are run again from
        their checkpoints.
        """
        records = self.study.records()
        self._rng = random.Random(f"{self.settings.seed}:{len(records)}")
        # A resumed run draws on from where it is: the same stream again would only propose what is known already.
        self._proposer: Proposer = make_proposer(
            self.space, (self.settings.seed + 1_000_003 * len(records)) % 2**31, self._scores
        )
        if warm is not None:
            teach(self._proposer, warm, self._rungs, other_study=True)
        teach(self._proposer, self.study, self._rungs)
        curves = self.study.curves()
        for record in records:
            key = self.space.key(record.chosen, record.arch_id)
            if record.state != "failed":  # what failed before may be tried again: its cause may be mended
                self._known.add(key)
                self._repeats.begun(key, record.seed)
            if record.state == "finished":
                self.n_finished += 1
                self._repeats.finished(key, record)
            elif record.state == "running":
                self._again.append(record)
            self._rungs.take_up(record, curves.get(record.trial_id, {}))
        self.progress.begin(self.study.name, self.settings.n_trials, [r for r in records if r.state == "finished"])

    # ------------------------------------------------------------ asked by executors

    @property
    def stopping(self) -> bool:
        """True once the user asked to stop: executors start nothing more and end what runs."""
        return self.stop_signal is not None

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left to start."""
        return not self.running and (self.n_finished >= self.settings.n_trials or self.exhausted)

    def next_job(self) -> Job | None:
        """A trial to run; None where there is none now (ask again when one has ended). Raises FailureBudgetError."""
        if self.stopping:
            return None
        if self.n_failed > self.settings.max_failures:
            raise FailureBudgetError(
                f"{self.n_failed} trials failed in this run, more than --max-failures {self.settings.max_failures}; "
                f"see the reasons with `mnet-search show {self.study.name}`, "
                "mend the cause, and run the same command again"
            )
        if self._again:
            return self._run_again(self._again.popleft())
        if self.n_finished + len(self.running) >= self.settings.n_trials or self.exhausted:
            return None
        repeat = self._repeats.next(self.n_finished)
        if repeat is not None:
            return self._begin(self._proposer.ask_for(repeat.chosen), repeat.seed)
        proposal = None if self._used_up else self._propose()
        if proposal is not None:
            stopped = self._rungs.stopped(self.space.key(proposal.chosen))
            return self._begin(proposal, stopped.seed if stopped else self.settings.seed, stopped)
        self._used_up = True
        return self._go_on_with_stopped()

    def on_epoch(self, trial_id: int, epoch: Epoch) -> bool:
        """A row of a learning curve has come. False where the trial ends here; then it is over for the driver."""
        record = self.running[trial_id]
        self.study.add_epoch(trial_id, epoch.epoch, asdict(epoch))
        self.progress.epoch(record, epoch)
        reason = self._rungs.judge(record, epoch, ends=epoch.epoch in self._judged_at[trial_id])
        if reason is None:
            return True
        self.study.stop(trial_id, reason)
        self._end(trial_id, None, stopped=True)
        self.n_stopped += 1
        self.progress.stopped(record, reason)
        return False

    def on_outcome(self, trial_id: int, outcome: Outcome) -> None:
        """A trial has ended well."""
        record = self.running[trial_id]
        names = list(self.space.file.objectives)
        network = costs(self.space.arch(record.chosen))
        try:
            exact = {name: float(getattr(network, name)) for name in names if name in COST_NAMES}
            metrics = {**outcome.metrics, **exact}
            values = values_of(names, network, metrics)
        except MnetError as error:
            self.on_failure(trial_id, str(error))
            return
        self.study.finish(
            trial_id,
            values,
            metrics=metrics,
            environment=outcome.environment,
            measurement=_latency(outcome),
            checkpoint=outcome.checkpoint,
            checkpoint_sha256=outcome.checkpoint_sha256,
        )
        self._end(trial_id, values)
        self._repeats.finished(self.space.key(record.chosen, record.arch_id), record)
        self.n_finished += 1
        self.n_new += 1
        self.progress.finished(record, {**dict(zip(names, values, strict=True)), **outcome.metrics})

    def on_failure(self, trial_id: int, reason: str) -> None:
        """A trial has failed for a reason of its own; the search goes on with other networks."""
        record = self.running[trial_id]
        self.study.fail(trial_id, reason)
        self._end(trial_id, None)
        self._repeats.failed(self.space.key(record.chosen, record.arch_id))
        self.n_failed += 1
        self.progress.failed(record, reason)

    def on_worker_lost(self, trial_id: int, reason: str) -> None:
        """The process that trained a trial has died: the trial runs again from its checkpoint, a few times."""
        record = self.running[trial_id]
        if record.attempts >= MAX_ATTEMPTS:
            self.on_failure(trial_id, f"{reason}, at the {record.attempts}. attempt")
        else:
            del self.running[trial_id]
            self._again.append(record)

    # ------------------------------------------------------------ own work

    def _end(self, trial_id: int, values: list[float] | None, *, stopped: bool = False) -> None:
        record = self.running.pop(trial_id)
        proposal, curve = self._proposals.pop(trial_id, None), self._rungs.curve(record.number)
        if proposal is not None:
            self._proposer.tell(proposal, values, curve, stopped=stopped)
        elif values is not None or stopped:  # taken up from an earlier run: the sampler has not seen it yet
            self._proposer.remember(self.study.store.optuna.get_trial(trial_id), curve)

    def _propose(self) -> Proposal | None:
        """A proposal for a network that is new under its settings and within the budgets; None where there is none
        left.
        """
        tries = 0
        while (proposal := self._proposer.ask()) is not None:
            verdict = self._judge(proposal.chosen)
            if verdict is None:
                return proposal
            self._proposer.reject(proposal, over_budget=verdict == "budget")
            tries += 1
            if tries >= PROPOSALS_BEFORE_PICKING and self.space.file.search.sampler != "grid":
                return self._pick()
        return None

    def _go_on_with_stopped(self) -> Job | None:
        """No network is left that was not begun: the best of those that were stopped early goes on to its end, from its
        checkpoint, as a trial of its own. `exhausted` once there are none, and nothing runs that may yet be stopped or
        trained again.
        """
        stopped = self._rungs.best_stopped()
        self.exhausted = stopped is None and not self.running
        return None if stopped is None else self._begin(self._proposer.ask_for(stopped.chosen), stopped.seed, stopped)

    def _judge(self, chosen: Params) -> str | None:
        """Why an assignment is not to be trained; None where it is."""
        try:
            arch = self.space.arch(chosen)
        except SpaceError:
            return "impossible"
        key = self.space.key(chosen, arch.id)
        if key in self._known and not (self._proposer.takes_up_stopped and self._rungs.stopped(key)):
            return "known"
        return "budget" if self.space.violation(costs(arch)) else None

    def _pick(self) -> Proposal | None:
        """Any network that was not trained yet: the sampler has run dry."""
        pool = {key: params for key, (params, _) in self._survey.feasible.items()}
        chosen = pick_untried(self.space, pool, self._known, self._rng)
        if chosen is None and not self._survey.exact:
            for _ in range(10_000):
                candidate = self.space.sample(self._rng)
                if self._judge(candidate) is None:
                    chosen = candidate
                    break
        return None if chosen is None else self._proposer.ask_for(chosen)

    def _begin(self, proposal: Proposal, seed: int, goes_on: TrialRecord | None = None) -> Job:
        arch = self.space.arch(proposal.chosen)
        record = self.study.begin(
            chosen=proposal.chosen,
            distributions=proposal.distributions,
            arch=arch,
            costs=costs(arch),
            seed=seed,
            system_attrs=proposal.system_attrs,
        )
        key = self.space.key(proposal.chosen, arch.id)
        self._known.add(key)
        self._repeats.begun(key, seed)
        self._proposals[record.trial_id] = proposal
        if goes_on is not None:
            self.study.copy_curve(goes_on.trial_id, record.trial_id)
            self._rungs.go_on(goes_on, record)
        return self._start(record)

    def _run_again(self, record: TrialRecord) -> Job | None:
        if record.attempts >= MAX_ATTEMPTS:
            self.running[record.trial_id] = record
            self.on_failure(record.trial_id, f"the search died in this trial {record.attempts} times")
            return self.next_job()
        self.study.begin_again(record.trial_id)
        return self._start(TrialRecord(**{**asdict(record), "attempts": record.attempts + 1}))

    def _start(self, record: TrialRecord) -> Job:
        self.running[record.trial_id] = record
        self.progress.started(record)
        arch, data = self.space.arch(record.chosen), self.space.data_of(record.chosen)
        key = self.space.key(record.chosen, record.arch_id)
        folder = self.settings.runs_dir / self.study.name / f"{key}-seed{record.seed}"
        content = self._template.to_dict()
        content |= {"number": record.number, "family": arch.family, "options": dict(arch.options), "arch_id": arch.id}
        content |= {"data": data.model_dump() | {"path": absolute(data.path)}}
        content |= {"data_digest": self._digests.get(data, "")}
        training = self.space.training_of(record.chosen)
        content |= {"training": _training(training), "teacher_digest": self._teachers.get(training.teacher or "", "")}
        content |= {"params": record.chosen, "timeout_s": self.space.file.search.trial_timeout_s}
        # What was judged before, or was trained to its end with another seed, is not judged again.
        judged = not self._repeats.is_repeat(key) and not self._rungs.was_stopped(record)
        self._judged_at[record.trial_id] = self._rungs.of(record, training.epochs) if judged else ()
        content |= {"rungs": self._judged_at[record.trial_id]}
        return Job.from_dict(content | {"seed": record.seed, "folder": str(folder.resolve())})

    def trial_id(self, job: Job) -> int:
        """The study's id of a job that runs."""
        return next(key for key, record in self.running.items() if record.number == job.number)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask to stop; a second one stops at once. Whatever was trained is in the study and in
        checkpoints either way.
        """

        def handle(number: int, _frame: FrameType | None) -> None:
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = number

        if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
            yield
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _training(training: Training) -> dict[str, Any]:
    """The settings of a training; a teacher's checkpoint under its full path."""
    teacher = training.teacher and teacher_path(training.teacher)
    return training.model_dump() | ({"teacher": str(teacher)} if teacher else {})


def absolute(path: str | None) -> str | None:
    """Workers may have another working directory."""
    return None if path is None else str(Path(path).resolve())


def _latency(outcome: Outcome) -> dict[str, Any] | None:
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
