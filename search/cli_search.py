"""Commands that search, and that watch and steer a search from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnet_search.search.cli_options import (
    DEFAULT_LEASE_S,
    DEFAULT_STORAGE,
    Address,
    AsJson,
    ExecutorName,
    FromFit,
    Join,
    Lease,
    LogJson,
    MaxFailures,
    NTrials,
    QuietFlag,
    RetryFailed,
    RunsDir,
    Seed,
    Set,
    ShipCode,
    Storage,
    StudyArg,
    Tensorboard,
    TimeLimit,
    open_store,
    seconds_of,
)

if TYPE_CHECKING:
    from mnet_search.search.run import RunOptions
    from mnet_search.spaces.space import Space

app = typer.Typer()


@app.command()
def run(
    space: Annotated[Path, typer.Argument(help="a space file, for example spaces/mobilenet.yaml", metavar="SPACE")],
    n_trials: NTrials = None,
    study: Annotated[
        str | None, typer.Option("--study", help="name of the study; default: the space file's name")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    runs_dir: RunsDir = "runs",
    executor: ExecutorName = "ray",
    address: Address = None,
    ship_code: ShipCode = False,
    join: Join = False,
    lease: Lease = DEFAULT_LEASE_S,
    seed: Seed = None,
    from_fit: FromFit = None,
    timeout: TimeLimit = None,
    max_failures: MaxFailures = 10,
    retry_failed: RetryFailed = False,
    overrides: Set = None,
    tensorboard: Tensorboard = False,
    log_json: LogJson = False,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Search a space. The same command again continues where it stopped."""
    _prepare(executor)
    from mnet_search.search.run import RunOptions, open_space

    options = RunOptions(
        storage,
        study,
        runs_dir,
        n_trials,
        executor,
        max_failures,
        seed,
        retry_failed=retry_failed,
        timeout_s=seconds_of("--timeout", timeout),
        join=join,
        lease_s=lease,
        address=address,
        ship_code=ship_code,
        from_fit=from_fit,
    )
    shown = Shown(tensorboard, log_json, quiet, as_json)
    _search(open_space(space, overrides or []), options, shown)


@app.command()
def resume(
    study: StudyArg,
    n_trials: NTrials = None,
    storage: Storage = DEFAULT_STORAGE,
    runs_dir: Annotated[str | None, typer.Option("--runs-dir", help="default: where the study's runs lie")] = None,
    executor: ExecutorName = "ray",
    address: Address = None,
    ship_code: ShipCode = False,
    join: Join = False,
    lease: Lease = DEFAULT_LEASE_S,
    timeout: TimeLimit = None,
    max_failures: MaxFailures = 10,
    retry_failed: RetryFailed = False,
    overrides: Set = None,
    tensorboard: Tensorboard = False,
    log_json: LogJson = False,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Continue a study from the space that it stores."""
    _prepare(executor)
    from mnet_search.search.run import RunOptions, stored_space

    with open_store(storage) as store:
        space, row = stored_space(store, study, overrides or []), store.row(study)
    options = RunOptions(
        storage,
        study,
        runs_dir or row["runs_dir"],
        n_trials if n_trials is not None else int(row["n_trials"]),
        executor,
        max_failures,
        retry_failed=retry_failed,
        timeout_s=seconds_of("--timeout", timeout),
        join=join,
        lease_s=lease,
        address=address,
        ship_code=ship_code,
    )
    _search(space, options, Shown(tensorboard, log_json, quiet, as_json))


@app.command()
def stop(
    study: StudyArg,
    now: Annotated[bool, typer.Option("--now", help="do not wait for the running trials' next checkpoints")] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Ask the drivers of a study to stop, wherever they run. `resume` goes on later."""
    from mnet_search.search import show_status

    with open_store(storage) as store:
        show_status.stopped(store, study, now=now, as_json=as_json)


@app.command()
def status(study: StudyArg, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Who works on a study, what runs, how long it will take, what failed and where the logs are."""
    from mnet_search.search import show_status

    with open_store(storage) as store:
        show_status.status(store, study, as_json=as_json)


@dataclass(frozen=True)
class Shown:
    """How a search is shown while it runs, and after."""

    tensorboard: bool
    log_json: bool
    quiet: bool
    as_json: bool


def _prepare(executor: str) -> None:
    """What takes seconds and can go on beside this process' own imports."""
    if executor == "local":
        from mnet_search.search.workers import start_early

        start_early()


def _search(space: Space, options: RunOptions, shown: Shown) -> None:
    from mnet_search.search import show
    from mnet_search.search.event_files import recorded
    from mnet_search.search.json_progress import logged
    from mnet_search.search.progress import watch
    from mnet_search.search.run import run_search

    watcher = logged() if shown.log_json else watch(space, quiet=shown.quiet)
    with watcher as watched, recorded(watched, options.runs_dir, wanted=shown.tensorboard) as progress:
        result = run_search(space, options, progress)
    with open_store(options.storage) as store:
        show.after_run(store, result, options, as_json=shown.as_json)
    if result.stop_signal is not None:
        raise typer.Exit(128 + result.stop_signal)
    if result.stop_requested:  # like Ctrl-C, from afar
        raise typer.Exit(130)
