"""The command that compares networks of equal budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnet_search.models.arch import MnetError
from mnet_search.search.cli_options import (
    DEFAULT_STORAGE,
    Address,
    AsJson,
    ExecutorName,
    MaxFailures,
    QuietFlag,
    RunsDir,
    Set,
    ShipCode,
    Storage,
    TimeLimit,
    seconds_of,
)

app = typer.Typer()


@app.command()
def iso(
    space: Annotated[
        Path, typer.Argument(help="a space file; its largest network is what knobs lower", metavar="SPACE")
    ],
    mult_adds: Annotated[str | None, typer.Option("--mult-adds", help="the budget, such as 300M")] = None,
    params: Annotated[str | None, typer.Option("--params", help="a budget of parameters instead")] = None,
    tolerance: Annotated[str, typer.Option("--tolerance", help="how far a network may miss the budget")] = "2%",
    knobs: Annotated[
        str,
        typer.Option(
            "--knobs",
            help="ways to meet it: width, depth, resolution, compound (all three), or parameters such as block",
        ),
    ] = "width,depth,resolution",
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="runs of each network, paired by seed")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="solve and show, train nothing")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the space of the networks", metavar="FILE")
    ] = None,
    study: Annotated[str | None, typer.Option("--study", help="default: SPACE-iso-BUDGET")] = None,
    storage: Storage = DEFAULT_STORAGE,
    runs_dir: RunsDir = "runs",
    executor: ExecutorName = "ray",
    address: Address = None,
    ship_code: ShipCode = False,
    timeout: TimeLimit = None,
    max_failures: MaxFailures = 10,
    overrides: Set = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file of -o")] = False,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Thinner, shallower or lower resolution? Trains networks of one budget with paired seeds and compares them."""
    if (mult_adds is None) == (params is None):
        raise MnetError("say the budget: one of --mult-adds 300M or --params 1M")
    from mnet_search.search import show_iso
    from mnet_search.search.run import RunOptions, open_space

    asked = show_iso.Asked(
        cost="mult_adds" if mult_adds is not None else "params",
        budget=show_iso.quantity_of("--mult-adds" if mult_adds is not None else "--params", mult_adds or params or ""),
        tolerance=show_iso.share_of("--tolerance", tolerance),
        knobs=tuple(knob.strip() for knob in knobs.split(",") if knob.strip()),
        seeds=seeds,
    )
    opened = open_space(space, overrides or [])
    question = show_iso.solved(opened, asked, study)
    if output is not None:
        show_iso.write_space(question, output, force=force)
    if not dry_run:
        options = RunOptions(
            storage,
            question.study,
            runs_dir,
            len(question.found.ways) * seeds,
            executor,
            max_failures,
            timeout_s=seconds_of("--timeout", timeout),
            address=address,
            ship_code=ship_code,
        )
        stopped_by = show_iso.trained(question, options, quiet=quiet)
        if stopped_by is not None:
            raise typer.Exit(128 + stopped_by)
    show_iso.answered(question, None if dry_run else storage, as_json=as_json)
