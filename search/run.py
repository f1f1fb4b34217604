"""A run from the space file to the last record: everything is checked before anything is written."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup
from mnet_search.search import provenance
from mnet_search.search.data import DATASETS, Data, DataOptions, describe, read
from mnet_search.search.data_cache import pinned, share
from mnet_search.search.driver import Driver, FailureBudgetError, Progress, Settings, absolute
from mnet_search.search.executors import EXECUTORS
from mnet_search.search.inline_executor import InlineExecutor
from mnet_search.search.objectives import OBJECTIVES
from mnet_search.search.optimisers import OPTIMISERS
from mnet_search.search.own_evaluation import OwnTrial, find_function
from mnet_search.search.recipes import RECIPES, SCHEDULES, TrainingOptions
from mnet_search.search.resources import decide_resources
from mnet_search.search.rungs import Rungs
from mnet_search.search.samplers import SAMPLERS, check_sampler
from mnet_search.search.schedulers import SCHEDULERS
from mnet_search.search.score_table import score_table
from mnet_search.search.speed import SpeedOptions
from mnet_search.search.teachers import load_teacher
from mnet_search.search.trial import Job
from mnet_search.search.zero_cost import SCORES
from mnet_search.spaces import schema
from mnet_search.spaces.identity import difference
from mnet_search.spaces.schema import COST_NAMES
from mnet_search.spaces.space import Params, Space, SpaceError, load_space, make_space
from mnet_search.spaces.survey import Survey, corners, survey
from mnet_search.spaces.yamlfile import Source, parse_value
from mnet_search.studies.database import database_path
from mnet_search.studies.export import data_facts
from mnet_search.studies.store import Store
from mnet_search.studies.writer import StudyWriter, open_study

DEFAULT_TRIALS = 30
DATA_CACHE = ".data"  # in the runs folder
# The names that a space file may use, by the key under which it uses them.
KNOWN: Mapping[str, Collection[str]] = {
    "data.name": DATASETS,
    "objectives": OBJECTIVES,
    "training.recipe": RECIPES,
    "training.optimiser": OPTIMISERS,
    "training.schedule": SCHEDULES,
    "search.sampler": SAMPLERS,
    "search.scheduler": SCHEDULERS,
    "search.scores": SCORES,
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
    n_stopped: int
    exhausted: bool
    stop_signal: int | None


def open_space(path: Path, overrides: list[str]) -> Space:
    """A space file, checked, with the network's ends fitted to its data. Raises MnetError."""
    return fit_to_data(check_training(load_space(path, overrides, KNOWN)))


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
    return fit_to_data(check_training(make_space(row["space_name"], values, Source(f"study {study}"), KNOWN)))


def check_training(space: Space) -> Space:
    """The space, known to train in ways that can be. Raises SpaceError at the line of a value that cannot."""
    tried: set[schema.Training] = set()
    codes: Iterable[Params] = corners(space) if space.settings.names else [{}]
    for params in codes:
        training = space.training_of(params)
        if training in tried:
            continue
        tried.add(training)
        try:
            resolved = TrainingOptions(**training.model_dump()).resolved()
            lookup(OPTIMISERS, resolved.optimiser, "optimiser")
        except MnetError as error:
            raise _training_error(space, params, str(error)) from None
    return space


def _training_error(space: Space, params: Params, text: str) -> SpaceError:
    """What the training's own checks say, at the line of the parameter or of the key that it is about."""
    found = re.match(r"training\.(\w+): ", text)
    name = found[0].removesuffix(": ") if found else "training.recipe"
    path = ("parameters", name) if name in params else tuple(name.split("."))
    return space.source.error(path, text.removeprefix(f"{name}: "))


def fit_to_data(space: Space) -> Space:
    """The same space with classes and input channels taken from its data, from each setting of it where they vary;
    where a function of one's own evaluates, they are the family's, or parameters.
    """
    if space.file.evaluate is not None:
        return space
    settings = space.data_settings
    for setting in settings:
        facts = describe(data_options(setting))
        of_one = setting if len(settings) > 1 else None
        space = space.for_data(classes=facts.classes, in_channels=facts.channels, data=of_one)
    return space


def data_options(setting: schema.Data) -> DataOptions:
    return DataOptions(**setting.model_dump())


def read_all(space: Space, earlier: Mapping[str, Any]) -> dict[schema.Data, Data]:
    """The images of every setting of the data that trials may have, streamed or not as the study's `earlier` provenance
    says. Raises DataError, SpaceError.
    """
    digests = {setting: data_facts(earlier, setting).get("data_digest") for setting in space.data_settings}
    options = {setting: data_options(setting) for setting in digests}
    return {s: read(pinned(options[s], digest) if digest else options[s]) for s, digest in digests.items()}


def check_teachers(space: Space) -> dict[str, str]:
    """The digest of each teacher. Raises MnetError where one is not there, or has not learnt the data's classes."""
    codes: Iterable[Params] = corners(space) if space.settings.names else [{}]
    pairs = {(space.training_of(params).teacher, space.data_of(params)) for params in codes}
    return {
        teacher: load_teacher(teacher, describe(data_options(setting))).digest
        for teacher, setting in pairs
        if teacher is not None
    }


def recipes_of(space: Space) -> dict[str, dict[str, Any]]:
    """The recipes that trials may have, as they are now: their names alone do not say how a trial was trained."""
    grid = space.parameters["training.recipe"].grid() if "training.recipe" in space.parameters else None
    names = {space.file.training.recipe, *map(str, grid or [])}
    return {name: asdict(lookup(RECIPES, name, "recipe")) for name in sorted(names)}


def run_search(
    space: Space, options: RunOptions, progress: Progress, function: Callable[[OwnTrial], Any] | None = None
) -> RunResult:
    """Search until the asked number of trials is finished, the space is exhausted, or the user stops. A `function` is
    called in this process in place of training, whatever executor is asked for.

    Raises MnetError for bad input (nothing is written then), StorageError, FailureBudgetError.
    """
    name = check_name("--study", options.study or space.name)
    executor = lookup(EXECUTORS, options.executor, "executor")
    if function is not None:
        executor = partial(InlineExecutor, function=function)
    elif space.file.evaluate:
        find_function(space.file.evaluate)
    found = survey(space)
    asked = space.file.resources
    resources = decide_resources(asked.cpus_per_trial, asked.gpus_per_trial, asked.concurrency)
    n_trials = count_trials(space, found, options.n_trials)
    seed = space.file.search.seed if options.seed is None else options.seed
    if not 0 <= seed < 2**31:
        raise MnetError(f"--seed {seed}: a seed is a whole number from 0 to {2**31 - 1:,}")
    check_sampler(space)
    Rungs(space)
    check_runs_dir(options.runs_dir)
    if space.file.search.warm_start is not None:
        with Store(options.storage) as store:  # not made where it is not there
            warm_study(store, space, name)
    trained = space.file.evaluate is None and function is None
    teachers = check_teachers(space) if trained else {}
    cache = (options.runs_dir / DATA_CACHE).resolve()
    data = read_all(space, _earlier(options.storage, name)) if trained else {}
    scores = _scores(space, data, seed, options.runs_dir / name)
    facts = provenance.collect(["mnet-search", *sys.argv[1:]])
    facts |= _data_facts(data) | {"teachers": teachers, "recipes": recipes_of(space)}
    facts |= {"executor": options.executor, "resources": asdict(resources)}
    with Store(options.storage, create=True) as store:
        warm = warm_study(store, space, name)
        study = open_study(store, space, name, n_trials=n_trials, runs_dir=options.runs_dir, provenance=facts)
        with study.lock():
            check_same_sources(name, store.provenance(name), facts)
            study.begin_run(n_trials, options.runs_dir, facts)
            settings = Settings(n_trials, options.runs_dir, seed, options.max_failures)
            digests = {setting: images.digest for setting, images in data.items()}
            while data:  # trial processes map them; the driver needs none
                share(data.popitem()[1], cache)
            template = _job_template(space, resources.cpus_per_trial, cache)
            driver = Driver(study, space, found, settings, template, progress, digests, teachers, warm, scores)
            if not driver.done:
                executor(resources).run(driver)
    if not driver.n_finished and driver.n_failed and driver.exhausted:
        raise FailureBudgetError(
            f"all {driver.n_failed} trials failed, and the space has no other network; see the reasons with "
            f"`mnet-search show {name}`, mend the cause, and run the same command again"
        )
    return RunResult(
        name,
        driver.n_finished,
        n_trials,
        driver.n_new,
        driver.n_failed,
        driver.n_stopped,
        driver.exhausted,
        driver.stop_signal,
    )


def _scores(space: Space, data: Mapping[schema.Data, Data], seed: int, folder: Path) -> Any:
    """What gives the sampler its zero-cost scores; None where none are asked for. Raises MnetError."""
    if not space.file.search.scores:
        return None
    if len(data) != 1:
        why = "the data vary" if data else "nothing is trained"
        raise MnetError(f"search.scores: they are taken on the study's images, and here {why}; leave them out")
    return score_table(space, next(iter(data.values())), seed, folder / "scores.json")


def warm_study(store: Store, space: Space, study: str) -> StudyWriter | None:
    """The study whose trials teach the sampler of `study` beforehand; None where none is asked for.

    Raises StorageError where there is no such study, MnetError with the differences where it is of another space.
    """
    name = space.file.search.warm_start
    if name is None:
        return None
    row = store.row(name)
    changes = difference(row["identity"], space.identity)
    if changes or name == study:
        more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
        why = f"is of another space ({'; '.join(changes[:3])}{more})" if changes else "is this study itself"
        raise MnetError(
            f"search.warm_start: study {name!r} {why}; name another study of the same space, or leave it out"
        )
    return StudyWriter(store, int(row["study_id"]), name)


def _earlier(storage: str, study: str) -> Mapping[str, Any]:
    """The provenance of a study that exists, else nothing."""
    if not database_path(storage).exists():
        return {}
    with Store(storage, create=True) as store:
        return store.provenance(study) if study in store.names() else {}


def check_same_sources(study: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises MnetError where a study's trials were trained on other images, by another teacher, or by a recipe that
    meant something else under the same name: they could not be compared.
    """
    again = "or start a new study with --study NAME"
    for row in now.get("data", [now]):
        setting = schema.Data(**row["settings"]) if "settings" in row else schema.Data()
        old, new = data_facts(earlier, setting).get("data_digest"), row.get("data_digest")
        if old and old != new:
            raise MnetError(
                f"study {study!r} was begun on other images (their digest was {old[:12]}, it is {new[:12]} now); put "
                f"them back, {again}"
            )
    for name, digest in now["teachers"].items():
        old = earlier.get("teachers", {}).get(name, digest)
        if old != digest:
            raise MnetError(
                f"study {study!r} was begun with another teacher under {name!r} (its digest was {old[:12]}, it is "
                f"{digest[:12]} now); put it back, {again}"
            )
    changes = difference(earlier.get("recipes") or now["recipes"], now["recipes"])
    if changes:
        raise MnetError(
            f"study {study!r} was begun with another meaning of its recipe ({'; '.join(changes)}); use the version "
            f"that began it, {again}"
        )


def _data_facts(data: Mapping[schema.Data, Data]) -> dict[str, Any]:
    """What a study keeps of its data: of the first setting, and of each one where they vary (`data`)."""
    each: list[dict[str, Any]] = [
        {
            "data_digest": images.digest,
            "validation_images": len(images.validation),
            "train_images": len(images.train),
        }
        for images in data.values()
    ]
    settings = (setting.model_dump(exclude_none=True) for setting in data)
    varied = [{"settings": setting, **facts} for setting, facts in zip(settings, each, strict=True)]
    if not each:  # nothing is trained
        return {}
    return each[0] | ({"data": varied} if len(varied) > 1 else {})


def count_trials(space: Space, found: Survey, asked: int | None) -> int:
    """How many finished trials a run aims at: what was asked, else the file's number, else the whole grid or 30."""
    n_trials = asked if asked is not None else space.file.search.n_trials
    if n_trials is None:
        n_trials = len(found.feasible) if space.file.search.sampler == "grid" else DEFAULT_TRIALS
    if n_trials < 1:
        raise MnetError(f"--n-trials {n_trials}: ask for 1 or more finished trials")
    return n_trials


def check_name(option: str, name: str) -> str:
    """The name that `option` gave, of a folder below the runs folder. Raises MnetError for one that would lead out."""
    if not re.fullmatch(r"[\w][\w .+-]{0,99}", name):
        raise MnetError(
            f"{option} {name!r}: a name is letters, digits, spaces and . _ + -, 100 at most, first a letter or digit"
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


def _job_template(space: Space, threads: int, cache: Path) -> Job:
    """What all jobs of a study have in common."""
    training, resources = TrainingOptions(**space.file.training.model_dump()), space.file.resources
    return Job(
        number=-1,
        family=space.families[0],  # each job names its own
        options={},
        arch_id="",
        seed=0,
        data=replace(data_options(space.file.data), path=absolute(space.file.data.path)),
        training=training,
        folder="",
        data_cache=str(cache),
        threads=threads,
        speed=SpeedOptions(resources.memory_format, resources.precision, resources.compile),
        evaluate=space.file.evaluate or "",
        measured=[name for name in space.file.objectives if name not in COST_NAMES],
    )
