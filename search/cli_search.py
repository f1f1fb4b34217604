"""Commands that search: run and resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnet_search.search.cli_options import (
    DEFAULT_STORAGE,
    AsJson,
    ExecutorName,
    MaxFailures,
    NTrials,
    QuietFlag,
    RunsDir,
    Seed,
    Set,
    Storage,
    StudyArg,
    Tensorboard,
    open_store,
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
    runs_dir: RunsDir = Path("runs"),
    executor: ExecutorName = "ray",
    seed: Seed = None,
    max_failures: MaxFailures = 10,
    overrides: Set = None,
    tensorboard: Tensorboard = False,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Search a space. The same command again continues where it stopped."""
    from mnet_search.search.run import RunOptions, open_space

    options = RunOptions(storage, study, runs_dir, n_trials, executor, max_failures, seed)
    _search(open_space(space, overrides or []), options, tensorboard=tensorboard, quiet=quiet, as_json=as_json)


@app.command()
def resume(
    study: StudyArg,
    n_trials: NTrials = None,
    storage: Storage = DEFAULT_STORAGE,
    runs_dir: Annotated[Path | None, typer.Option("--runs-dir", help="default: where the study's runs lie")] = None,
    executor: ExecutorName = "ray",
    max_failures: MaxFailures = 10,
    overrides: Set = None,
    tensorboard: Tensorboard = False,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Continue a study from the space that it stores."""
    from mnet_search.search.run import RunOptions, stored_space

    with open_store(storage) as store:
        space, row = stored_space(store, study, overrides or []), store.row(study)
    asked = n_trials if n_trials is not None else int(row["n_trials"])
    options = RunOptions(storage, study, runs_dir or Path(row["runs_dir"]), asked, executor, max_failures, None)
    _search(space, options, tensorboard=tensorboard, quiet=quiet, as_json=as_json)


def _search(space: Space, options: RunOptions, *, tensorboard: bool, quiet: bool, as_json: bool) -> None:
    from mnet_search.search import show
    from mnet_search.search.event_files import recorded
    from mnet_search.search.progress import watch
    from mnet_search.search.run import run_search

    with watch(space, quiet=quiet) as shown, recorded(shown, options.runs_dir, wanted=tensorboard) as progress:
        result = run_search(space, options, progress)
    with open_store(options.storage) as store:
        show.after_run(store, result, options, as_json=as_json)
    if result.stop_signal is not None:
        raise typer.Exit(128 + result.stop_signal)
