"""A run from the space file to the last record: everything is checked before anything is written."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup
from mnet_search.search import provenance
from mnet_search.search.data import DATASETS, DataOptions, describe, load
from mnet_search.search.driver import Driver, Progress, Settings
from mnet_search.search.executors import EXECUTORS, decide_resources
from mnet_search.search.objectives import OBJECTIVES
from mnet_search.search.samplers import SAMPLERS
from mnet_search.search.training import RECIPES, TrainingOptions
from mnet_search.search.trial import Job
from mnet_search.spaces.space import Space, Survey, load_space, make_space, survey
from mnet_search.spaces.yamlfile import Source, parse_value
from mnet_search.studies.store import Store
from mnet_search.studies.writer import open_study

DEFAULT_TRIALS = 30
# The names that a space file may use, by the key under which it uses them.
KNOWN: Mapping[str, Collection[str]] = {
    "data.name": DATASETS,
    "objectives": OBJECTIVES,
    "training.recipe": RECIPES,
    "search.sampler": SAMPLERS,
    "search.scheduler": (
        "none",
    ),  # early stopping is not part of this version: every trial is trained to its last epoch
}


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a space file."""

    storage: str
    study: str | None = None
    runs_dir: Path = Path("runs")
    n_trials: int | None = None
    executor: str = "ray"
    max_failures: int = 10
    seed: int | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    study: str
    n_finished: int
    n_asked: int
    n_new: int
    n_failed: int
    exhausted: bool
    stop_signal: int | None


def open_space(path: Path, overrides: list[str]) -> Space:
    """A space file, checked, with the network's ends fitted to its data. Raises MnetError."""
    return fit_to_data(load_space(path, overrides, KNOWN))


def stored_space(store: Store, study: str, overrides: list[str]) -> Space:
    """The space that a study was made with, overrides applied to how it is searched. Raises MnetError."""
    row = store.row(study)
    values = dict(row["space"])
    for item in overrides:
        key, _, text = item.partition("=")
        first, _, second = key.partition(".")
        if first not in ("search", "resources") or not second:
            raise MnetError(
                f"--set {item}: resume can change search.* and resources.* only; edit the space file for a new study"
            )
        values[first] = {**values[first], second: parse_value(text)}
    return fit_to_data(make_space(row["space_name"], values, Source(f"study {study}"), KNOWN))


def fit_to_data(space: Space) -> Space:
    """The same space with classes and input channels taken from its data."""
    facts = describe(data_options(space))
    return space.for_data(classes=facts.classes, in_channels=facts.channels)


def data_options(space: Space) -> DataOptions:
    return DataOptions(**space.file.data.model_dump())


def run_search(space: Space, options: RunOptions, progress: Progress) -> RunResult:
    """Search until the asked number of trials is finished, the space is exhausted, or the user stops.

    Raises MnetError for bad input (nothing is written then), StorageError, FailureBudgetError.
    """
    name = check_study_name(options.study or space.name)
    executor_class = lookup(EXECUTORS, options.executor, "executor")
    found = survey(space)
    data = load(data_options(space))
    resources = decide_resources(**space.file.resources.model_dump())
    n_trials = count_trials(space, found, options.n_trials)
    seed = space.file.search.seed if options.seed is None else options.seed
    check_runs_dir(options.runs_dir)
    facts = provenance.collect(["mnet-search", *sys.argv[1:]])
    facts |= {
        "data_digest": data.digest,
        "validation_images": len(data.validation.labels),
        "train_images": len(data.train.labels),
    }
    facts |= {"executor": options.executor, "resources": asdict(resources)}
    with Store(options.storage, create=True) as store:
        study = open_study(store, space, name, n_trials=n_trials, runs_dir=options.runs_dir, provenance=facts)
        with study.lock():
            study.begin_run(n_trials, options.runs_dir, facts)
            settings = Settings(n_trials, options.runs_dir, seed, options.max_failures)
            driver = Driver(study, space, found, settings, _job_template(space, resources.cpus_per_trial), progress)
            if not driver.done:
                executor_class(resources).run(driver)
    return RunResult(
        name, driver.n_finished, n_trials, driver.n_new, driver.n_failed, driver.exhausted, driver.stop_signal
    )


def count_trials(space: Space, found: Survey, asked: int | None) -> int:
    """How many finished trials a run aims at: what was asked, else the file's number, else the whole grid or 30."""
    n_trials = asked if asked is not None else space.file.search.n_trials
    if n_trials is None:
        n_trials = len(found.feasible) if space.file.search.sampler == "grid" else DEFAULT_TRIALS
    if n_trials < 1:
        raise MnetError(f"--n-trials {n_trials}: ask for 1 or more finished trials")
    return n_trials


def check_study_name(name: str) -> str:
    """The name, which is also a folder below the runs folder. Raises MnetError for one that would lead out of it."""
    if not re.fullmatch(r"[\w][\w .+-]{0,99}", name):
        raise MnetError(
            f"--study {name!r}: a name is letters, digits, spaces and . _ + -, 100 at most, first a letter or digit"
        )
    return name


def check_runs_dir(folder: Path) -> None:
    """Raises MnetError unless files can be written below `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise MnetError(
            f"{folder}: the runs folder cannot be written to ({reason}); name another with --runs-dir"
        ) from None


def _job_template(space: Space, threads: int) -> Job:
    """What all jobs of a study have in common."""
    training = TrainingOptions(**space.file.training.model_dump())
    return Job(
        number=-1,
        family=space.families[0],  # each job names its own
        options={},
        arch_id="",
        seed=0,
        data=replace(data_options(space), path=_absolute(space.file.data.path)),
        training=training,
        folder="",
        threads=threads,
    )


def _absolute(path: str | None) -> str | None:
    """Workers may have another working directory."""
    return None if path is None else str(Path(path).resolve())
