"""The command that compares studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, Limits, Storage, open_store

app = typer.Typer()


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(help="two studies or more of one database", metavar="STUDY STUDY...")],
    cost: Annotated[
        str | None, typer.Option("--cost", help="of the budgets: mult_adds, params, activations or latency_ms")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", help="budgets, such as 1M,5M", metavar="BUDGETS")] = None,
    limits: Limits = None,
    draws: Annotated[int, typer.Option("--draws", min=100, max=100_000, help="of what the noise leaves open")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the draws")] = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="write fronts and error distributions as a page", metavar="FILE.html")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file of --plot")] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Studies side by side: fronts, hypervolume with intervals, who wins at which budget, distributions of errors."""
    from mnet_search.search import show, show_compare

    budgets = show_compare.budgets_of(at)
    bounds = show.parse_limits(limits or [])
    with open_store(storage) as store:
        read = [show_compare.read(store, study, bounds) for study in studies]
    show_compare.compared(
        read, cost=cost, budgets=budgets, n_draws=draws, seed=seed, plot=plot, force=force, as_json=as_json
    )
