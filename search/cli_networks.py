"""Commands about spaces and networks, which need no study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mnet_search.models.arch import MnetError
from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, QuietFlag, RunsDir, Set, Storage, Tensorboard

app = typer.Typer()


@app.command()
def validate(
    space: Annotated[Path, typer.Argument(help="a space file", metavar="SPACE")],
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check a space, count its networks, show the smallest, the largest and what the budgets leave. Builds nothing."""
    from mnet_search.search import show_counts
    from mnet_search.search.run import open_space
    from mnet_search.search.sources import check_teachers
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
def train(
    config: Annotated[Path, typer.Argument(help="a config that `export` wrote, or your own", metavar="CONFIG")],
    overrides: Set = None,
    runs_dir: RunsDir = "runs",
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
    show_train.trained(config, changes, Path(runs_dir), how, quiet=quiet, as_json=as_json)


@app.command()
def schema() -> None:
    """The JSON Schema of a space file, for editors."""
    from mnet_search.spaces.schema import SpaceFile

    typer.echo(json.dumps(SpaceFile.model_json_schema(), indent=2))


@app.command()
def doctor(
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", envvar="MNET_STORAGE", help="check this database; default: mnet-search.db here", metavar="URL"
        ),
    ] = None,
    files: Annotated[bool, typer.Option("--files", help="read every checkpoint too, and compare its SHA-256")] = False,
    as_json: AsJson = False,
) -> None:
    """What this machine offers: versions, processor, GPUs, datasets, samplers; and whether the database is whole."""
    from mnet_search.search import show, show_database

    database = show_database.examined(storage, DEFAULT_STORAGE, files=files)
    show.machine(database, as_json=as_json)
    if show_database.is_bad(database):
        raise typer.Exit(3)
