"""The driver: decides what is trained next and records what came of it. Executors carry out; they never touch the
database.

sampler -> network -> costs -> budget and duplicate check -> job -> executor -> epochs and outcome -> study

Where several drivers work on one study, each decides in its turn, after it has heard what the others did.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace

from optuna.trial import FrozenTrial

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search.candidates import Candidates
from mnet_search.search.jobs import Jobs, latency_measurement
from mnet_search.search.new_networks import NewNetworks
from mnet_search.search.objectives import values_of
from mnet_search.search.pareto_sampler import Figures
from mnet_search.search.plan import Planned
from mnet_search.search.repeats import Repeats, failed_only
from mnet_search.search.resources import Resources, halved, memory_kills
from mnet_search.search.rungs import Rungs, teach
from mnet_search.search.samplers import Proposal, Proposer, make_proposer
from mnet_search.search.settings import FailureBudgetError, Progress, Settings
from mnet_search.search.stopping import Stopping
from mnet_search.search.training import Epoch
from mnet_search.search.trial import Job, Outcome
from mnet_search.search.trial_log import LOG, last_lines
from mnet_search.spaces.schema import COST_NAMES
from mnet_search.spaces.space import Space
from mnet_search.spaces.survey import Survey
from mnet_search.studies.urls import StorageError
from mnet_search.studies.writer import LeaseLostError, StudyWriter, TrialRecord

LOG_LINES = 5  # of a failed trial's log that are shown
MAX_ATTEMPTS = 3  # of one trial, when the process that trains it dies
LISTEN_EVERY_S = 0.5  # to other drivers, while there is nothing to begin


class Driver:
    """One run over a study. Executors call `look`, `next_job`, and `on_...` with what came of a job."""

    def __init__(
        self,
        study: StudyWriter,
        space: Space,
        survey: Survey,
        settings: Settings,
        jobs: Jobs,
        progress: Progress,
        warm: StudyWriter | None = None,
        scores: Callable[[Candidates], Figures] | None = None,
    ):
        """`warm` is another study of the same space, from which the sampler learns first, `scores` what it is told of
        each candidate.
        """
        self.study, self.space, self.settings, self.progress = study, space, settings, progress
        self._jobs = jobs
        self.n_finished = self.n_new = self.n_failed = self.n_stopped = 0
        self.exhausted = False
        self._told = False
        self._memory_kills = memory_kills()
        self.stop = Stopping(settings.timeout_s, study.stop_requested)
        self.resources = settings.resources
        self.running: dict[int, TrialRecord] = {}
        self._begun_beside: dict[int, Resources] = {}  # how many might run at once when a trial was begun
        self._elsewhere: set[int] = set()  # trials that other drivers run, or that nobody does
        self._left_behind: deque[TrialRecord] = deque()  # those of them that nobody runs, when this driver last looked
        self._again: deque[tuple[TrialRecord, bool]] = deque()  # and whether another attempt is counted
        self._retry: deque[TrialRecord] = deque()
        self._idle_until = 0.0
        self._used_up = False  # no network is left that was not begun
        self._proposals: dict[int, Proposal] = {}
        self._judged_at: dict[int, tuple[int, ...]] = {}
        self._planned = Planned(space, settings.planned)
        repeats = space.file.search.repeats
        if self._planned and not isinstance(repeats, int):
            repeats = 1
        self._repeats = Repeats(repeats, settings.n_trials, study, self._planned.allows)
        self._rungs = Rungs(space)
        self._scores = scores
        with study.turn():
            self._take_up(survey, warm)

    def _take_up(self, survey: Survey, warm: StudyWriter | None) -> None:
        """Read the study: finished trials teach the sampler, trials that a dead driver left RUNNING are run again from
        their checkpoints.
        """
        records = self.study.records()
        # A resumed run draws on from where it is: the same stream again would only propose what is known already.
        self._proposer: Proposer = make_proposer(
            self.space, (self.settings.seed + 1_000_003 * len(records)) % 2**31, self._scores
        )
        rng = random.Random(f"{self.settings.seed}:{len(records)}")
        self._new = NewNetworks(self.space, survey, self._proposer, self._rungs, rng)
        if warm is not None:
            teach(self._proposer, warm, self._rungs, other_study=True)
        teach(self._proposer, self.study, self._rungs)
        curves = self.study.curves()
        for record in records:
            key = self._key(record)
            if record.state != "failed":  # what failed before may be tried again: its cause may be mended
                self._new.known.add(key)
                self._repeats.begun(key, record.seed)
            if record.state == "finished":
                self.n_finished += 1
                self._repeats.finished(key, record)
            elif record.state in ("running", "waiting") and self._planned.allows(key):
                self._elsewhere.add(record.trial_id)
            self._rungs.take_up(record, curves.get(record.trial_id, {}))
        self.study.watch(self._elsewhere)
        if self.settings.retry_failed:
            self._retry.extend(r for r in failed_only(records, self._key) if self._planned.allows(self._key(r)))
        self.progress.begin(self.study.name, self.settings.n_trials, [r for r in records if r.state == "finished"])

    def _key(self, record: TrialRecord) -> str:
        return self.space.key(record.chosen, record.arch_id)

    # ------------------------------------------------------------ asked by executors

    @property
    def stopping(self) -> bool:
        """True once the run is to end: executors start nothing more, and trials end after their next checkpoint."""
        return self.stop.wanted

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left to start; or the run is to end, and nothing needs to be waited for."""
        if self.stopping:
            return self.stop.now or not self.running
        return not self.running and (self.n_finished >= self.settings.n_trials or self.exhausted)

    def look(self) -> None:
        """Look for reasons to stop; executors call it several times a second."""
        self.stop.look()
        if self.stop.wanted and not self._told:
            self._told = True
            if self.running and not self.stop.now:
                self.progress.note(f"stopping ({self.stop.reason}): trials that run go on to their next checkpoint")

    def signals(self) -> contextlib.AbstractContextManager[None]:
        """Ctrl-C and SIGTERM are reasons to stop while it lasts."""
        return self.stop.signals()

    def next_job(self) -> Job | None:
        """A trial to run; None where there is none now (ask again later). Raises FailureBudgetError."""
        if self.stopping or len(self.running) >= self.resources.concurrency or time.monotonic() < self._idle_until:
            return None
        if self.n_failed > self.settings.max_failures:
            raise FailureBudgetError(
                f"{self.n_failed} trials failed in this run, more than --max-failures {self.settings.max_failures}; "
                f"see the reasons with `mnet-search show {self.study.name}`, "
                "mend the cause, and run the same command again"
            )
        with self.study.turn():
            self._listen()
            job = self._choose()
        if job is None and self.study.shared:
            self._idle_until = time.monotonic() + LISTEN_EVERY_S
        return job

    def _listen(self) -> None:
        """Hear what other drivers have begun and ended."""
        if self.study.shared:
            for record, trial in self.study.news():
                self._hear(record, trial)

    def _is_mine(self, trial_id: int) -> bool:
        """Whether this driver takes a trial for its own; what others did with it is heard once it is lost."""
        return trial_id in self.running or any(trial_id == record.trial_id for record, _ in self._again)

    def _hear(self, record: TrialRecord, trial: FrozenTrial | None) -> None:
        if self._is_mine(record.trial_id):
            return
        key = self._key(record)
        self._new.known.add(key)
        self._repeats.begun(key, record.seed)
        self._retry = deque(r for r in self._retry if (self._key(r), r.seed) != (key, record.seed))
        if trial is None:  # it has not ended
            if self._planned.allows(key):
                self._elsewhere.add(record.trial_id)
            self._rungs.take_up(record, {})  # where it goes on with one that was stopped, nobody else does
            return
        self._elsewhere.discard(record.trial_id)
        if record.state == "failed":
            self._repeats.failed(key)
            return
        if record.state == "finished":
            self.n_finished += 1
            self._repeats.finished(key, record)
            self.progress.note(f"trial {record.number} was finished by another driver")
        self._rungs.take_up(record, self.study.curves([record.trial_id]).get(record.trial_id, {}))
        self._proposer.remember(trial, self._rungs.curve(record.number))

    def _choose(self) -> Job | None:
        if self.n_finished + len(self.running) >= self.settings.n_trials:  # fewer may be asked for than were begun
            return None
        while self._again:
            job = self._run_again(*self._again.popleft())
            if job is not None:
                return job
        if self._elsewhere:
            self._left_behind = deque(self.study.orphans()) or self._left_behind
        while self._left_behind:
            record = self._left_behind.popleft()
            if record.trial_id not in self._elsewhere or self._is_mine(record.trial_id):
                continue  # it was taken up, or has ended
            job = self._run_again(record, record.owner is not None)
            if job is not None:
                return job
        begun = self.n_finished + len(self.running) + len(self._elsewhere)
        if begun >= self.settings.n_trials or self.exhausted:
            return None
        if self._retry:
            failed = self._retry.popleft()
            return self._begin(self._proposer.ask_for(failed.chosen), failed.seed)
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
        try:
            self.study.add_epoch(trial_id, epoch.epoch, asdict(epoch))
        except LeaseLostError as error:
            self._lose(trial_id, error)
            return False
        self.progress.epoch(record, epoch)
        reason = self._rungs.judge(record, epoch, ends=epoch.epoch in self._judged_at[trial_id])
        if reason is None:
            if not self.stopping or self._is_last(record, epoch):
                return True
            self._set_down(trial_id)
            return False
        try:
            self.study.stop(trial_id, reason)
        except LeaseLostError as error:
            self._lose(trial_id, error)
            return False
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
        try:
            self.study.finish(
                trial_id,
                values,
                metrics=metrics,
                environment=outcome.environment,
                measurement=latency_measurement(outcome),
                checkpoint=outcome.checkpoint,
                checkpoint_sha256=outcome.checkpoint_sha256,
            )
        except LeaseLostError as error:
            self._lose(trial_id, error)
            return
        self._end(trial_id, values)
        self._repeats.finished(self._key(record), record)
        self.n_finished += 1
        self.n_new += 1
        self.progress.finished(record, {**dict(zip(names, values, strict=True)), **outcome.metrics})

    def on_failure(self, trial_id: int, reason: str) -> None:
        """A trial has failed for a reason of its own; the search goes on with other networks."""
        record = self.running[trial_id]
        try:
            self.study.fail(trial_id, reason)
        except LeaseLostError as error:
            self._lose(trial_id, error)
            return
        self._end(trial_id, None)
        self._repeats.failed(self._key(record))
        self.n_failed += 1
        self.progress.failed(record, reason)
        folder = self._jobs.folder(self._key(record), record.seed)
        lines = last_lines(folder, LOG_LINES)
        if lines:
            self.progress.note("\n    ".join([f"    the end of {folder}/{LOG}:", *lines]))

    def on_worker_lost(self, trial_id: int, reason: str) -> None:
        """The process that trained a trial has died: the trial runs again from its checkpoint, a few times; beside
        fewer others where the system has ended a process for want of memory.
        """
        if memory_kills() > self._memory_kills:
            self._memory_kills, reason = memory_kills(), f"{reason}, for want of memory"
            if halved(self.resources) is not None:
                self.on_out_of_memory(trial_id, reason)
                return
        record = self.running[trial_id]
        if record.attempts >= MAX_ATTEMPTS:
            self.on_failure(trial_id, f"{reason}, at the {record.attempts}. attempt")
        else:
            del self.running[trial_id]
            self._again.append((record, True))

    def on_out_of_memory(self, trial_id: int, reason: str) -> None:
        """A trial had too little memory beside others: from now on half as many run at once, and it runs again once
        more than its failures allow. Alone it has failed.
        """
        fewer_now = self._begun_beside[trial_id] != self.resources  # another trial of the same moment has seen to it
        smaller = self.resources if fewer_now else halved(self.resources)
        if smaller is None:
            self.on_failure(trial_id, reason)
            return
        self.resources = smaller
        self._again.append((self.running.pop(trial_id), False))
        n = smaller.concurrency
        how = f"{n} trials run at once" if n > 1 else "one trial runs at a time"
        self.progress.note(f"out of memory, so {how} from now on ({reason})")

    def leave(self) -> None:
        """The run is over: what it did not bring to an end waits for the next one, from its checkpoint. That counts as
        no attempt.
        """
        self.stop.over = True
        if self.study.shared and not self.stop.wanted:
            with contextlib.suppress(StorageError), self.study.turn():  # else the next driver sees to it
                self.study.end_half_begun()
        left = [*self.running, *(record.trial_id for record, _ in self._again)]
        for trial_id in left:
            with contextlib.suppress(LeaseLostError, StorageError):  # then its lease runs out
                self.study.set_down(trial_id)

    # ------------------------------------------------------------ own work

    def _is_last(self, record: TrialRecord, epoch: Epoch) -> bool:
        """Whether a trial is trained to its end; what a function of one's own will still report is not known."""
        return self.space.file.evaluate is None and epoch.epoch >= self.space.training_of(record.chosen).epochs

    def _set_down(self, trial_id: int) -> None:
        with contextlib.suppress(LeaseLostError):
            self.study.set_down(trial_id)
        self.progress.left(self.running.pop(trial_id), "it waits for the next run")

    def _lose(self, trial_id: int, error: LeaseLostError) -> None:
        """Another driver has taken up the trial, since this one was silent for too long."""
        record = self.running.pop(trial_id)
        proposal = self._proposals.pop(trial_id, None)
        if proposal is not None:
            self._proposer.tell(proposal, None, {})
        self._elsewhere.add(trial_id)
        self.study.watch([trial_id])
        self.progress.left(record, str(error))

    def _end(self, trial_id: int, values: list[float] | None, *, stopped: bool = False) -> None:
        record = self.running.pop(trial_id)
        proposal, curve = self._proposals.pop(trial_id, None), self._rungs.curve(record.number)
        if proposal is not None:
            self._proposer.tell(proposal, values, curve, stopped=stopped)
        elif values is not None or stopped:  # taken up from an earlier run: the sampler has not seen it yet
            self._proposer.remember(self.study.store.optuna.get_trial(trial_id), curve)

    def _propose(self) -> Proposal | None:
        """The next network of the plan, where there is one, or else of the sampler; None where none is left."""
        if not self._planned:
            return self._new.propose()
        chosen = self._planned.next(self._new.known, self._rungs.stopped)
        return None if chosen is None else self._proposer.ask_for(chosen)

    def _go_on_with_stopped(self) -> Job | None:
        """No network is left that was not begun: the best of those that were stopped early goes on to its end, from its
        checkpoint, as a trial of its own. `exhausted` once there are none, and nothing runs that may yet be stopped or
        trained again.
        """
        stopped = None if self._planned else self._rungs.best_stopped()
        self.exhausted = stopped is None and not self.running and not self._elsewhere
        return None if stopped is None else self._begin(self._proposer.ask_for(stopped.chosen), stopped.seed, stopped)

    def _begin(self, proposal: Proposal, seed: int, goes_on: TrialRecord | None = None) -> Job:
        arch = self.space.arch(proposal.chosen)
        key = self.space.key(proposal.chosen, arch.id)
        record = self.study.begin(
            chosen=proposal.chosen,
            distributions=proposal.distributions,
            arch=arch,
            costs=costs(arch),
            seed=seed,
            folder=self._jobs.folder(key, seed),
            system_attrs=proposal.system_attrs,
        )
        self._new.known.add(key)
        self._repeats.begun(key, seed)
        self._proposals[record.trial_id] = proposal
        if goes_on is not None:
            self.study.copy_curve(goes_on.trial_id, record.trial_id)
            self._rungs.go_on(goes_on, record)
        return self._start(record)

    def _run_again(self, record: TrialRecord, counts: bool) -> Job | None:
        """None where there is nothing to run: it was tried often enough, or another driver was quicker."""
        taken = self.study.begin_again(record, counts=counts)
        if not taken:
            self._elsewhere.add(record.trial_id)
            self.study.watch([record.trial_id])
            return None
        self._elsewhere.discard(record.trial_id)
        record = replace(record, owner=self.study.owner, attempts=record.attempts + int(counts))
        if record.attempts <= MAX_ATTEMPTS:
            return self._start(record)
        self.running[record.trial_id] = record
        self.on_failure(record.trial_id, f"the search died in this trial {MAX_ATTEMPTS} times")
        return None

    def _start(self, record: TrialRecord) -> Job:
        self.running[record.trial_id] = record
        self._begun_beside[record.trial_id] = self.resources
        self.progress.started(record)
        key = self._key(record)
        # What was judged before, or was trained to its end with another seed, is not judged again.
        judged = not (self._repeats.is_repeat(key) or self._rungs.was_stopped(record) or self._planned.holds(key))
        epochs = self.space.training_of(record.chosen).epochs
        self._judged_at[record.trial_id] = self._rungs.of(record, epochs) if judged else ()
        return self._jobs.make(record, self._judged_at[record.trial_id], self.resources)

    def trial_id(self, job: Job) -> int:
        """The study's id of a job that runs."""
        return next(key for key, record in self.running.items() if record.number == job.number)
