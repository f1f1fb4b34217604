"""Options that several commands have, and the store that they open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mnet_search.studies.store import Store

DEFAULT_STORAGE = "sqlite:///mnet-search.db"

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


def open_store(storage: str) -> Store:
    """The store of a storage URL. Raises StorageError."""
    from mnet_search.studies.store import Store

    return Store(storage)
