"""The command that fits scaling laws to a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, Storage, StudyArg, open_store

app = typer.Typer()


@app.command()
def fit(
    study: StudyArg,
    form: Annotated[
        str | None, typer.Option("--form", help="power, log_linear, log_log or paper; default: all", metavar="NAME")
    ] = None,
    x: Annotated[
        str | None,
        typer.Option("--x", help="width, resolution, depth, mult_adds or params; default: all", metavar="NAME"),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="only networks with this value; may be repeated", metavar="PARAM=VALUE"),
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            "--predict", help="'width=0.4 resolution=24', or untrained: every network left", metavar="NETWORK"
        ),
    ] = None,
    suggest: Annotated[
        int | None, typer.Option("--suggest", help="the networks to train next, so many", metavar="N")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the suggestions here, for run", metavar="FILE.yaml")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files that exist")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="write the fit as one page", metavar="FILE.html")] = None,
    draws: Annotated[int, typer.Option("--draws", help="of the bootstrap", min=100, max=100_000)] = 500,
    seed: Annotated[int, typer.Option("--seed", help="of the bootstrap", min=0)] = 0,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Scaling laws: error by width, resolution, depth, mult-adds or params, with their uncertainty."""
    from mnet_search.search import show_fit

    asked = show_fit.Asked(
        form=form,
        x=x,
        where=show_fit.parse_assignment("--where", where or []),
        predict=tuple(predict or ()),
        suggest=suggest,
        output=output,
        force=force,
        plot=plot,
        draws=draws,
        seed=seed,
    )
    with open_store(storage) as store:
        show_fit.fit(store, study, asked, as_json=as_json)
