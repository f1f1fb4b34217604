"""Commands that read studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, Limits, Scores, Storage, StudyArg, open_store

app = typer.Typer()


@app.command()
def studies(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """List the studies of a database."""
    from mnet_search.search import show

    with open_store(storage) as store:
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

    with open_store(storage) as store:
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

    with open_store(storage) as store:
        show.best(store, study, show.parse_limits(limits or []), test=test, as_json=as_json)


@app.command()
def dashboard(
    study: Annotated[
        str | None, typer.Argument(help="the study shown first; without it the page lists them", metavar="[STUDY]")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8050,
    host: Annotated[
        str, typer.Option("--host", help="an address of this machine; one that others reach needs --token")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            "--token", envvar="MNET_DASHBOARD_TOKEN", help="what visitors must know: they open /?token=TEXT once"
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
) -> None:
    """A live page of studies: fronts, curves, trials side by side; on this machine only, unless told otherwise."""
    from mnet_search.dashboards.app import serve

    open_store(storage).close()
    serve(storage, study, host=host, port=port, open_browser=open_browser, token=token)


@app.command()
def report(
    study: StudyArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="the file to write")] = Path("report.html"),
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """One self-contained HTML file of a study, to keep or send."""
    from mnet_search.dashboards.report import write_report

    with open_store(storage) as store:
        write_report(store, study, output)
    typer.echo(str(output))


@app.command()
def scores(study: StudyArg, names: Scores = None, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """How well scores of untrained networks rank a study's networks, beside their mult-adds alone."""
    from mnet_search.search import show_scores

    with open_store(storage) as store:
        show_scores.scores(store, study, names or [], as_json=as_json)
