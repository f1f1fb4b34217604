"""A run from the space file to the last record: everything is checked before anything is written."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup
from mnet_search.search import provenance
from mnet_search.search.data import DATASETS, Data, Split, describe
from mnet_search.search.data_cache import share
from mnet_search.search.driver import Driver
from mnet_search.search.executors import EXECUTORS, Executor
from mnet_search.search.inline_executor import InlineExecutor
from mnet_search.search.jobs import Jobs, absolute
from mnet_search.search.objectives import OBJECTIVES
from mnet_search.search.optimisers import OPTIMISERS
from mnet_search.search.own_evaluation import OwnTrial, find_function
from mnet_search.search.packing import Images, pack
from mnet_search.search.plan import Plan, read_plan
from mnet_search.search.ray_cluster import cluster_concurrency, cluster_nodes
from mnet_search.search.ray_executor import RayExecutor
from mnet_search.search.recipes import RECIPES, SCHEDULES, TrainingOptions
from mnet_search.search.remote_folder import check_remote, scratch_root
from mnet_search.search.resources import Resources
from mnet_search.search.rungs import Rungs
from mnet_search.search.samplers import SAMPLERS, check_sampler
from mnet_search.search.schedulers import SCHEDULERS
from mnet_search.search.score_table import score_table
from mnet_search.search.settings import FailureBudgetError, Progress, Settings
from mnet_search.search.sources import (
    check_same_sources,
    check_teachers,
    data_options,
    earlier_facts,
    facts_of,
    read_all,
    recipes_of,
)
from mnet_search.search.speed import SpeedOptions
from mnet_search.search.stopping import StopNow
from mnet_search.search.trial import Job
from mnet_search.search.zero_cost import SCORES
from mnet_search.spaces import schema
from mnet_search.spaces.identity import difference
from mnet_search.spaces.schema import COST_NAMES
from mnet_search.spaces.space import Params, Space, SpaceError, load_space, make_space
from mnet_search.spaces.survey import Survey, corners, survey
from mnet_search.spaces.yamlfile import Source, parse_value
from mnet_search.studies.leases import LEASE_S
from mnet_search.studies.store import Store
from mnet_search.studies.urls import hide_password
from mnet_search.studies.writer import StudyWriter, open_study

DEFAULT_TRIALS = 30
# A network whose widths nobody else has takes a millisecond to look at, and a run begins with its first trial.
LOOK_AT_ALL, LOOK_AT_SOME = 7_000, 2_000
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
    runs_dir: str | Path = "runs"  # a folder, or a URL that fsspec opens
    n_trials: int | None = None
    executor: str = "ray"
    max_failures: int = 10
    seed: int | None = None
    retry_failed: bool = False
    timeout_s: float | None = None
    join: bool = False
    lease_s: float = LEASE_S
    address: str | None = None  # of a Ray cluster
    ship_code: bool = False
    from_fit: Path | None = None  # a file of networks to train, and no others


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
    stop_reason: str | None = None  # in words, where the run was ended before its time
    stop_requested: bool = False  # by `mnet-search stop`


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


def run_search(
    space: Space, options: RunOptions, progress: Progress, function: Callable[[OwnTrial], Any] | None = None
) -> RunResult:
    """Search until the asked number of trials is finished, the space is exhausted, or the user stops. A `function` is
    called in this process in place of training, whatever executor is asked for.

    Raises MnetError for bad input (nothing is written then), StorageError, FailureBudgetError.
    """
    name = check_name("--study", options.study or space.name)
    make_executor = _executor(options, function)
    if function is None and space.file.evaluate:
        find_function(space.file.evaluate)
    found = look_at(space)
    plan = read_plan(options.from_fit, space, name, options.storage) if options.from_fit else Plan((), 0)
    asked = options.n_trials if options.n_trials is not None else plan.n_trials or None
    n_trials = count_trials(space, found, asked)
    seed = space.file.search.seed if options.seed is None else options.seed
    if not 0 <= seed < 2**31:
        raise MnetError(f"--seed {seed}: a seed is a whole number from 0 to {2**31 - 1:,}")
    if options.max_failures < 0:
        raise MnetError(f"--max-failures {options.max_failures}: write 0 or more")
    if options.timeout_s is not None and options.timeout_s <= 0:
        raise MnetError(f"--timeout {options.timeout_s:g}: give the run some seconds")
    check_sampler(space)
    Rungs(space)
    local = check_runs_dir(options.runs_dir)
    if space.file.search.warm_start is not None:
        with Store(options.storage) as store:  # not made where it is not there
            warm_study(store, space, name)
    trained = space.file.evaluate is None and function is None
    teachers = check_teachers(space) if trained else {}
    cache = (local / DATA_CACHE).resolve()
    data = read_all(space, earlier_facts(options.storage, name)) if trained else {}
    scores = _scores(space, data, seed, local / name)
    packing = pack(
        space,
        found,
        _asked_of_cluster(space.file.resources, options) if _joins_cluster(options) else space.file.resources,
        local / name / "packing.json",
        tell=progress.note,
        cluster=_joins_cluster(options),
        trained=trained,
        images=_images(data),
    )
    facts = provenance.collect([hide_password(text) for text in ("mnet-search", *sys.argv[1:])])
    facts |= facts_of(data) | {"teachers": teachers, "recipes": recipes_of(space)}
    facts |= {"executor": options.executor, "resources": asdict(packing.resources), "packing": packing.reason}
    with ExitStack() as last, Store(options.storage, create=True) as store:
        warm = warm_study(store, space, name)
        study = open_study(store, space, name, n_trials=n_trials, runs_dir=options.runs_dir, provenance=facts)
        with study.lock(join=options.join, lease_s=options.lease_s):
            check_same_sources(name, store.provenance(name), facts)
            study.begin_run(n_trials, options.runs_dir, facts)
            digests = {setting: images.digest for setting, images in data.items()}
            while data:  # trial processes map them; the driver needs none
                share(data.popitem()[1], cache)
            template = _job_template(space, packing.resources.cpus_per_trial, cache)
            jobs = Jobs(space, name, template, str(options.runs_dir), digests, teachers)
            settings = Settings(
                n_trials,
                seed,
                options.max_failures,
                options.retry_failed,
                options.timeout_s,
                plan.networks,
                packing.resources,
            )
            driver = Driver(study, space, found, settings, jobs, progress, warm, scores)
            last.enter_context(driver.signals())  # until the study is closed
            _carry_out(make_executor(packing.resources), driver)
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
        driver.stop.signal,
        driver.stop.reason,
        driver.stop.requested,
    )


def _executor(options: RunOptions, function: Callable[[OwnTrial], Any] | None) -> Callable[[Resources], Executor]:
    """What makes the executor that is asked for; where there is a function, this process calls it."""
    made = lookup(EXECUTORS, options.executor, "executor")
    if function is not None:
        return partial(InlineExecutor, function=function)
    if options.executor == "ray":
        return partial(RayExecutor, address=options.address, ship_code=options.ship_code)
    for option, wanted in (("--address", options.address), ("--ship-code", options.ship_code)):
        if wanted:
            raise MnetError(f"{option}: it is for --executor ray, and this run has {options.executor}")
    return made


def look_at(space: Space) -> Survey:
    """What a run needs to know of a space before it begins: all of it where it is small, or a grid, else a sample."""
    whole = space.file.search.sampler == "grid" or (space.n_codes is not None and space.n_codes <= LOOK_AT_ALL)
    return survey(space) if whole else survey(space, limit=0, samples=LOOK_AT_SOME)


def _images(data: Mapping[schema.Data, Data]) -> Images:
    """How many images trials train on, and how many each keeps on its GPU; the most of any setting."""
    kept = [sum(len(s) for s in (d.train, d.validation) if isinstance(s, Split)) for d in data.values()]
    return Images(max((len(d.train) for d in data.values()), default=None), max(kept, default=0))


def _joins_cluster(options: RunOptions) -> bool:
    """Whether trials run on other machines than this one."""
    return options.executor == "ray" and bool(options.address or os.environ.get("RAY_ADDRESS", "local") != "local")


def _asked_of_cluster(asked: schema.Resources, options: RunOptions) -> schema.Resources:
    """What `auto` means on a cluster: a GPU a trial where it has any, and as many trials as its nodes have room for.

    Raises ClusterError where it cannot be reached.
    """
    nodes = cluster_nodes(options.address or os.environ["RAY_ADDRESS"])
    has_gpus = any(node["Resources"].get("GPU", 0) for node in nodes if node.get("Alive", True))
    gpus = float(has_gpus) if asked.gpus_per_trial == "auto" else asked.gpus_per_trial
    room = cluster_concurrency(nodes, asked.cpus_per_trial, float(gpus))
    concurrency = max(room, 1) if asked.concurrency == "auto" else asked.concurrency
    return asked.model_copy(update={"gpus_per_trial": gpus, "concurrency": concurrency})


def _carry_out(executor: Executor, driver: Driver) -> None:
    """Run until nothing is left; whatever ends it, trials that run are set down for the next run."""
    try:
        if not driver.done:
            executor.run(driver)
    except StopNow:
        pass
    finally:
        driver.leave()


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


def count_trials(space: Space, found: Survey, asked: int | None) -> int:
    """How many finished trials a run aims at: what was asked, else the file's number, else the whole grid or 30."""
    n_trials = asked if asked is not None else space.file.search.n_trials
    if n_trials is None:
        repeats = space.file.search.repeats if isinstance(space.file.search.repeats, int) else 1
        n_trials = len(found.feasible) * repeats if space.file.search.sampler == "grid" else DEFAULT_TRIALS
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


def check_runs_dir(folder: str | Path) -> Path:
    """A folder of this machine for what is no trial's own: the runs folder, or one beside the scratch folders where
    that is a URL. Raises MnetError unless files can be written there and below `folder`.
    """
    if not str(folder) or str(folder).startswith("://"):
        raise MnetError(f"--runs-dir {str(folder)!r}: name a folder, or a URL such as s3://bucket/runs")
    if hide_password(str(folder)) != str(folder):
        raise MnetError(
            f"--runs-dir {hide_password(str(folder))}: the study would keep its password; put the login into fsspec's "
            "own configuration (~/.config/fsspec), and leave it out of the URL"
        )
    if "://" in str(folder):
        check_remote(str(folder))
        local = scratch_root()
    else:
        local = Path(folder)
    try:
        local.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=local):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise MnetError(
            f"{local}: the runs folder cannot be written to ({reason}); name another with --runs-dir"
        ) from None
    return local


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
