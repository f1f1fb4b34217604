"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it, so that
`--help` stays instant.

Data goes to stdout, logs and progress to stderr. Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 storage or lock,
4 failure budget exceeded, 130/143 on signals.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mnet_search.models.arch import MnetError

if TYPE_CHECKING:
    from mnet_search.search.run import RunOptions
    from mnet_search.spaces.space import Space
    from mnet_search.studies.store import Store

DEFAULT_STORAGE = "sqlite:///mnet-search.db"
# Commands that later versions bring; asked for, they say so instead of being unknown.
PLANNED = {
    "fit": "scaling-law fits",
    "compare": "comparing studies",
    "db": "database upgrades and backups",
    "table": "tables in the manner of the papers",
    "plot": "figures as files (`report` writes them as one page)",
}

app = typer.Typer(
    help="Find small image networks for a budget: search, watch, resume, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Storage = Annotated[
    str, typer.Option("--storage", envvar="MNET_STORAGE", help="database: sqlite:///FILE.db", metavar="URL")
]
Set = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", help="change a value, PATH=VALUE; may be repeated", metavar="PATH=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="where checkpoints and run folders go")]
NTrials = Annotated[int | None, typer.Option("--n-trials", help="finished trials in total; default: the space file's")]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="ray (Ray Tune) or local (processes of this machine, without Ray)")
]
MaxFailures = Annotated[int, typer.Option("--max-failures", help="give up after so many failed trials in one run")]
Scores = Annotated[list[str] | None, typer.Option("--score", help="may be repeated; default: all", metavar="NAME")]
QuietFlag = Annotated[bool, typer.Option("-q", "--quiet", help="no progress")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="write event files for TensorBoard as well")]
StudyArg = Annotated[str, typer.Argument(help="a study; `mnet-search studies` lists them", metavar="STUDY")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="of initialisation, order and augmentation; default: the file's")
]
Limits = Annotated[
    list[str] | None,
    typer.Option("--max", help="a budget, such as latency_ms=5 or params=100k; may be repeated", metavar="NAME=VALUE"),
]


@app.callback()
def _global(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="show log messages")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose or debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


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

    with _open(storage) as store:
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
    with _open(options.storage) as store:
        show.after_run(store, result, options, as_json=as_json)
    if result.stop_signal is not None:
        raise typer.Exit(128 + result.stop_signal)


@app.command()
def validate(
    space: Annotated[Path, typer.Argument(help="a space file", metavar="SPACE")],
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check a space, count its networks, show the smallest, the largest and what the budgets leave. Builds nothing."""
    from mnet_search.search import show_counts
    from mnet_search.search.run import check_teachers, open_space
    from mnet_search.spaces.survey import survey

    checked = open_space(space, overrides or [])
    check_teachers(checked)
    show_counts.survey_of(checked, survey(checked), as_json=as_json)


@app.command()
def count(
    target: Annotated[
        str | None,
        typer.Argument(
            help="a family (mobilenet_v1), torchvision:NAME, a space file or an exported config",
            metavar="MODEL|SPACE|CONFIG",
        ),
    ] = None,
    overrides: Set = None,
    layers: Annotated[bool, typer.Option("--layers", help="every layer with its shapes and costs")] = False,
    table: Annotated[
        str | None, typer.Option("--table", help="paper: tables 2 to 9 of MobileNetV1, printed and exact")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Params, mult-adds, activations and memory, in closed form: nothing is built (torchvision's are traced)."""
    from mnet_search.search import show_counts

    if table is not None:
        if table != "paper" or target is not None or overrides or layers:
            raise MnetError(f"--table {table}: the one table is `mnet-search count --table paper`, without a network")
        show_counts.paper(as_json=as_json)
    elif target is None:
        raise MnetError("count what? a family (mobilenet_v1), torchvision:NAME, a space, a config, or --table paper")
    else:
        show_counts.counts(target, overrides or [], layers=layers, as_json=as_json)


@app.command()
def latency(
    target: Annotated[
        str, typer.Argument(help="a family, an exported config, or the word table", metavar="MODEL|CONFIG|table")
    ],
    overrides: Set = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="images a run; may be repeated")] = None,
    protocol: Annotated[str, typer.Option("--protocol", help="default, resnet_v2 or cuda_graph")] = "default",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="of a CPU; default: 1")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", min=2, help="timed runs; default: 50")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: cpu")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16")] = None,
    channels_last: Annotated[bool | None, typer.Option("--channels-last/--nchw", help="memory format")] = None,
    fold_norm: Annotated[
        bool | None, typer.Option("--fold/--no-fold", help="fold batch norms into the convolutions")
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", help="predict from the stored table of this space", metavar="SPACE")
    ] = None,
    build: Annotated[
        Path | None, typer.Option("--build", help="with `table`: measure the layers of a space", metavar="SPACE")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Measured latency of an untrained network, beside a reference network that shows drift.

    `latency table --build SPACE` measures every layer of a space once; `latency MODEL --table SPACE` then predicts;
    `latency table` lists what is stored.
    """
    from mnet_search.search import show_latency

    changes = {"threads": threads, "repeats": repeats, "device": device, "dtype": dtype}
    changes |= {"channels_last": channels_last, "fold_norm": fold_norm}
    wanted = show_latency.protocols(protocol, batches or [], changes)
    if target != "table" and build:
        raise MnetError(f"--build {build}: write mnet-search latency table --build {build}")
    if target == "table" and table:
        raise MnetError(f"--table {table}: it predicts a network; write mnet-search latency MODEL --table {table}")
    if target != "table" and table:
        show_latency.predicted(storage, target, overrides or [], table, wanted, as_json=as_json)
    elif target != "table":
        show_latency.measured(target, overrides or [], wanted, as_json=as_json)
    elif build:
        show_latency.built(storage, build, overrides or [], wanted, quiet=quiet, as_json=as_json)
    else:
        show_latency.listed(storage, as_json=as_json)


@app.command()
def studies(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """List the studies of a database."""
    from mnet_search.search import show

    with _open(storage) as store:
        show.study_list(store, as_json=as_json)


@app.command("show")
def show_command(
    study: StudyArg,
    storage: Storage = DEFAULT_STORAGE,
    everything: Annotated[bool, typer.Option("--all", help="every trial, not only the front")] = False,
    as_json: AsJson = False,
) -> None:
    """A study: its progress, its front, and why trials failed."""
    from mnet_search.search import show

    with _open(storage) as store:
        show.study(store, study, everything=everything, as_json=as_json)


@app.command()
def best(
    study: StudyArg,
    limits: Limits = None,
    test: Annotated[bool, typer.Option("--test", help="measure it on the test images too")] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """The best network of a study, within budgets."""
    from mnet_search.search import show

    with _open(storage) as store:
        show.best(store, study, show.parse_limits(limits or []), test=test, as_json=as_json)


@app.command()
def export(
    study: StudyArg,
    trial: Annotated[int | None, typer.Option("--trial", help="this trial")] = None,
    best_one: Annotated[bool, typer.Option("--best", help="the best one, within --max")] = False,
    whole_front: Annotated[bool, typer.Option("--front", help="every member of the front")] = False,
    limits: Limits = None,
    formats: Annotated[str, typer.Option("--format", help="config,weights")] = "config,weights",
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write to")] = Path("exports"),
    force: Annotated[bool, typer.Option("--force", help="replace files that exist")] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Write the training config and the weights of a trained network."""
    from mnet_search.search import show

    chosen = [str(trial)] * (trial is not None) + ["best"] * best_one + ["front"] * whole_front
    if len(chosen) != 1:
        raise MnetError("say which network: one of --trial N, --best or --front")
    with _open(storage) as store:
        show.exported(
            store,
            study,
            chosen[0],
            show.parse_limits(limits or []),
            formats.split(","),
            output,
            force=force,
            as_json=as_json,
        )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="a config that `export` wrote, or your own", metavar="CONFIG")],
    overrides: Set = None,
    runs_dir: RunsDir = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="folder in the runs folder; default: train-CONFIG")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int, typer.Option("--threads", min=1, help="threads on a CPU")] = 1,
    tensorboard: Tensorboard = False,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Train a config in full and measure it on the test images. The same command again continues."""
    from mnet_search.search import show_train

    changes, how = overrides or [], show_train.How(name, device, threads, tensorboard)
    show_train.trained(config, changes, runs_dir, how, quiet=quiet, as_json=as_json)


@app.command()
def dashboard(
    study: Annotated[
        str | None, typer.Argument(help="a study; without it the page lists them", metavar="[STUDY]")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8050,
    host: Annotated[str, typer.Option("--host", help="loopback only in this version")] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
) -> None:
    """A live page of the Pareto fronts, on this machine only."""
    from mnet_search.dashboards.app import serve

    _open(storage).close()
    serve(storage, study, host=host, port=port, open_browser=open_browser)


@app.command()
def report(
    study: StudyArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="the file to write")] = Path("report.html"),
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """One self-contained HTML file of a study, to keep or send."""
    from mnet_search.dashboards.report import write_report

    with _open(storage) as store:
        write_report(store, study, output)
    typer.echo(str(output))


@app.command()
def scores(study: StudyArg, names: Scores = None, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """How well scores of untrained networks rank a study's networks, beside their mult-adds alone."""
    from mnet_search.search import show_scores

    with _open(storage) as store:
        show_scores.scores(store, study, names or [], as_json=as_json)


@app.command()
def schema() -> None:
    """The JSON Schema of a space file, for editors."""
    from mnet_search.spaces.schema import SpaceFile

    typer.echo(json.dumps(SpaceFile.model_json_schema(), indent=2))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine offers: versions, processor, GPUs, datasets, samplers."""
    from mnet_search.search import show

    show.machine(as_json=as_json)


def _open(storage: str) -> Store:
    from mnet_search.studies.store import Store

    return Store(storage)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and turns every expected error into one line on stderr and its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # torch reads it at import; trials side by side must not fight for cores
    sys.path.append(str(Path.cwd()))  # for package.module:name of the user's own; last, so that it can shadow nothing
    sys.exit(run_command(arguments))


def run_command(arguments: list[str]) -> int:
    """Run a command line in this process and return its exit code."""
    # -v and --debug may stand anywhere, though they belong to the whole command
    everywhere = [a for a in arguments if a in ("-v", "--verbose", "--debug")]
    arguments = everywhere + [a for a in arguments if a not in everywhere]
    planned = PLANNED.get(next((a for a in arguments if not a.startswith("-")), ""))
    if planned:
        return _fail(f"{planned}: not part of this version", 2)
    try:
        code: Any = app(arguments, standalone_mode=False)
    except MnetError as error:
        return _fail(str(error), error.exit_code, debug="--debug" in arguments)
    except typer.Abort:
        return _fail("stopped", 130)
    except typer.TyperException as error:
        _show_usage(error)
        return 2
    except KeyboardInterrupt:
        return _fail("stopped; run the same command again to continue", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # the reader has left; the interpreter flushes once more at exit
        return 0
    except Exception as error:  # noqa: BLE001  # the last line of defence: no traceback without --debug
        return _fail(
            f"internal error, {type(error).__name__}: {error} (--debug shows the traceback)",
            1,
            debug="--debug" in arguments,
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"mnet-search: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_usage(error: Any) -> None:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mnet-search"
    print(f"mnet-search: {message} (see {command} --help)", file=sys.stderr)


if __name__ == "__main__":
    main()
