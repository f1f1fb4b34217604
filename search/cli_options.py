"""Options that several commands have, and the store that they open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnet_search.models.arch import MnetError

if TYPE_CHECKING:
    from mnet_search.studies.store import Store

DEFAULT_STORAGE = "sqlite:///mnet-search.db"
DEFAULT_LEASE_S = 60.0

Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="MNET_STORAGE",
        help="database: sqlite:///FILE.db or postgresql+psycopg://USER@HOST/DATABASE",
        metavar="URL",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", help="change a value, PATH=VALUE; may be repeated", metavar="PATH=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]
RunsDir = Annotated[
    str, typer.Option("--runs-dir", help="where checkpoints and logs go: a folder, or a URL (s3://...)", metavar="DIR")
]
NTrials = Annotated[int | None, typer.Option("--n-trials", help="finished trials in total; default: the space file's")]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="ray (Ray Tune) or local (processes of this machine, without Ray)")
]
MaxFailures = Annotated[int, typer.Option("--max-failures", help="give up after so many failed trials in one run")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="run the trials again that failed before")]
TimeLimit = Annotated[
    str | None,
    typer.Option("--timeout", help="end the run after so long: 90 (seconds), 30m, 2h; resume goes on", metavar="TIME"),
]
Join = Annotated[bool, typer.Option("--join", help="work beside other drivers on a study in PostgreSQL")]
Lease = Annotated[
    float,
    typer.Option("--lease", min=1, max=86400, help="seconds of silence until others take over", metavar="S"),
]
Address = Annotated[
    str | None, typer.Option("--address", help="a Ray cluster to join: auto or HOST:PORT", metavar="ADDRESS")
]
ShipCode = Annotated[
    bool, typer.Option("--ship-code", help="send this installation's code to the cluster; else it is installed there")
]
FromFit = Annotated[
    Path | None,
    typer.Option("--from-fit", help="train the networks that `fit --suggest -o FILE` named", metavar="FILE"),
]
LogJson = Annotated[bool, typer.Option("--log-json", help="events and log messages as JSON lines on stderr")]
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


def seconds_of(option: str, text: str | None) -> float | None:
    """A duration in seconds: `90`, `90s`, `30m`, `2h`, `1d`. Raises MnetError."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:].lower())
    try:
        value = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e10:
        raise MnetError(f"{option} {text}: write a time above 0, such as 90 (seconds), 30m, 2h or 1d")
    return value


def open_store(storage: str) -> Store:
    """The store of a storage URL. Raises StorageError."""
    from mnet_search.studies.store import Store

    return Store(storage)
