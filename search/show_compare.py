"""`mnet-search compare`: studies side by side, as tables or a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.table import Table

from mnet_search.models.arch import MnetError
from mnet_search.search.printing import check_file, echo, print_json, print_table, write_file
from mnet_search.spaces.schema import quantity
from mnet_search.spaces.space import si
from mnet_search.studies.comparing import QUANTILES, AtBudget, Comparison, StudyFrame, compare
from mnet_search.studies.frame import load
from mnet_search.studies.store import Store

FOOTER = (
    "Intervals are 95 %: of the share over draws of what the means may be, of the median over networks drawn anew.",
    "+- is one standard error; `ahead` the share of draws in which a study leads. The best of many networks is",
    "partly the luckiest: run it again (search.repeats) before a small lead is believed.",
)
UNGUIDED = ("grid", "random")  # samplers that do not look at what came of earlier trials


def budgets_of(text: str | None) -> list[float]:
    """`1M,5M` as numbers. Raises MnetError."""
    try:
        return [float(quantity(part)) for part in text.split(",")] if text else []
    except ValueError as error:
        raise MnetError(f"--at {text}: {error}") from None


def read(store: Store, study: str, limits: Mapping[str, float]) -> StudyFrame:
    """A study for comparing, with the networks within the limits alone. Raises StorageError, MnetError."""
    row, frame = store.row(study), load(store, study)
    for name, limit in limits.items():
        if name not in frame.columns or not pd.api.types.is_numeric_dtype(frame[name]):
            raise MnetError(
                f"--max {name}: not a figure of a trial; use params, mult_adds, activations, latency_ms or an objective"
            )
        frame = frame[frame[name] <= limit]
    search = row["space"].get("search", {})
    own = frame[frame["imported"] == ""]
    guided = len(own) > 0 and (search.get("sampler") not in UNGUIDED or bool((own["state"] == "stopped").any()))
    facts = row["provenance"]
    return StudyFrame(
        study,
        frame,
        store.objectives(study),
        facts.get("validation_images"),
        facts.get("data_digest"),
        row["identity"]["training"],
        guided,
        bool(limits),
    )


def compared(
    studies: Sequence[StudyFrame],
    *,
    cost: str | None,
    budgets: Sequence[float],
    n_draws: int,
    seed: int,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Print the comparison, and write its page where one is asked for. Raises MnetError."""
    if plot is not None:
        check_file(plot, "--plot", force=force, endings=(".html",))
    found = compare(studies, cost=cost, budgets=budgets, n_draws=n_draws, seed=seed)
    if plot is not None:
        _write_page(studies, found, plot, force=force)
    if as_json:
        print_json(asdict(found))
        return
    for title, table in (_volumes(found), _budgets(found), _errors(found)):
        echo(title)
        print_table(table)
        echo("")
    for line in FOOTER:
        echo(line)
    for note in found.notes:
        echo(f"Note: {note}.")


def _volumes(found: Comparison) -> tuple[str, Table]:
    title, table = (
        f"Hypervolume of {', '.join(found.objectives)}, as a share of that of all fronts together",
        Table(box=None, pad_edge=False),
    )
    for name in ("study", "networks", "on its front", "share", "interval", "ahead"):
        table.add_column(name, justify="left" if name == "study" else "right", no_wrap=True)
    for volume in found.volumes:
        table.add_row(
            volume.study,
            str(volume.n_networks),
            str(volume.n_front),
            f"{volume.share:.3f}",
            f"{volume.low:.3f} to {volume.high:.3f}",
            f"{volume.best:.2f}",
        )
    return title, table


def _budgets(found: Comparison) -> tuple[str, Table]:
    title, table = (
        f"The most accurate network within a budget of {found.cost}; how often the winner is ahead",
        Table(box=None, pad_edge=False),
    )
    table.add_column("budget", justify="right", no_wrap=True)
    names = [volume.study for volume in found.volumes]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("winner", no_wrap=True)
    for row in found.budgets:
        table.add_row(_amount(found.cost, row.budget), *_cells(row, names), _winner(row))
    return title, table


def _cells(row: AtBudget, names: Sequence[str]) -> list[str]:
    cells = {e.study: f"{e.accuracy:.2%} (+-{100 * e.standard_error:.2f}, trial {e.number})" for e in row.entries}
    return [cells.get(name, "-") for name in names]


def _winner(row: AtBudget) -> str:
    if not row.entries:
        return "no network is within it"
    if len(row.entries) == 1:
        return f"{row.entries[0].study} alone has one"
    if row.entries[0].accuracy == row.entries[1].accuracy:
        return "a tie"
    return f"{row.entries[0].study}, {row.entries[0].wins:.2f}"


def _errors(found: Comparison) -> tuple[str, Table]:
    title, table = "Errors of all finished networks: quantiles of their distribution", Table(box=None, pad_edge=False)
    names = ["best" if q == 0 else f"{q:.0%}" for q in QUANTILES]
    for name in ("study", *names, "interval of the median"):
        table.add_column(name, justify="left" if name == "study" else "right", no_wrap=True)
    for each in found.errors:
        cells = [f"{value:.2%}" for value in each.quantiles]
        table.add_row(each.study, *cells, f"{each.median_low:.2%} to {each.median_high:.2%}")
    return title, table


def _amount(cost: str, value: float) -> str:
    return f"{value:g} ms" if cost == "latency_ms" else si(value)


def _write_page(studies: Sequence[StudyFrame], found: Comparison, path: Path, *, force: bool) -> None:
    from mnet_search.dashboards.compare_plot import compare_page, fronts_info

    page = compare_page(fronts_info(studies, found.cost), found)
    write_file(path, page.encode(), "--plot", force=force, endings=(".html",))
