"""`mnet-search iso`: solves for networks of one budget, trains them with paired seeds, says how they differ."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search.printing import echo, print_json, print_table, write_file
from mnet_search.search.run import RunOptions, check_training, fit_to_data, run_search
from mnet_search.spaces.equal_budgets import EqualBudget, solve, space_of
from mnet_search.spaces.schema import quantity
from mnet_search.spaces.space import Space, si
from mnet_search.spaces.yamlfile import dump
from mnet_search.studies.frame import load
from mnet_search.studies.paired import LEVEL, Difference, Runs, differences, runs_of
from mnet_search.studies.store import Store


@dataclass(frozen=True)
class Asked:
    """What is asked: a budget of a cost, the knobs that may meet it, and how many seeds answer it."""

    cost: str
    budget: float
    tolerance: float
    knobs: tuple[str, ...]
    seeds: int


@dataclass(frozen=True)
class Question:
    """The solved networks as a space of their own, and the study that answers it."""

    found: EqualBudget
    space: Space
    study: str


def quantity_of(option: str, text: str) -> float:
    """`300M` as a number. Raises MnetError."""
    try:
        return float(quantity(text))
    except ValueError as error:
        raise MnetError(f"{option}: {error}") from None


def share_of(option: str, text: str) -> float:
    """`2%` or `0.02` as a share. Raises MnetError."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise MnetError(f"{option} {text}: write a share such as 2% or 0.02") from None


def solved(space: Space, asked: Asked, study: str | None) -> Question:
    """The networks of the budget, solved for. Raises MnetError where fewer than two ways meet it."""
    found = solve(space, asked.cost, asked.budget, asked.tolerance, asked.knobs)
    name = study or f"{space.name}-iso-{asked.cost}-{_exactly(asked.budget)}"
    narrowed = fit_to_data(check_training(space_of(space, found, name, asked.seeds)))
    return Question(found, narrowed, name)


def _exactly(budget: float) -> str:
    """In a study's name: two budgets have two."""
    short = si(budget).replace(" ", "")
    return short if quantity(short) == budget else f"{budget:.0f}"


def write_space(question: Question, path: Path, *, force: bool) -> None:
    """The space of the solved networks as a file of its own. Raises MnetError where there is one already."""
    file = question.space.file.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    write_file(path, dump(file).encode(), "-o", force=force, endings=(".yaml", ".yml"))


def trained(question: Question, options: RunOptions, *, quiet: bool) -> int | None:
    """Train what is not trained yet; the signal that stopped it, None where it ended by itself."""
    from mnet_search.search.progress import watch

    with watch(question.space, quiet=quiet) as progress:
        done = run_search(question.space, options, progress)
    if done.stop_reason is not None:
        print(f"mnet-search: {done.stop_reason}; the same command again goes on from here", file=sys.stderr)
    return done.stop_signal


def answered(question: Question, storage: str | None, *, as_json: bool) -> None:
    """The networks with their costs, what they came to, and each difference with its interval; without a storage the
    networks alone.
    """
    runs: tuple[Runs, ...] = ()
    images, found = None, question.found
    if storage is not None:
        with Store(storage) as store:
            frame, images = load(store, question.study), store.provenance(question.study).get("validation_images")
        runs = runs_of(frame, "accuracy", {way.name: way.arch_id for way in found.ways})
    gaps = differences([each for each in runs if each.values], images)
    if as_json:
        print_json(_content(question, runs, gaps))
        return
    echo(
        f"{len(found.ways)} ways to spend {si(found.budget)} {found.cost_name}, where the largest has "
        f"{si(found.base_cost)}" + (f"; study {question.study}" if runs else "")
    )
    print_table(_ways(question, runs))
    for line in found.missed:
        echo(f"not met by {line}")
    if gaps:
        echo("")
        for line in sentences(gaps):
            echo(line)


def sentences(gaps: tuple[Difference, ...]) -> list[str]:
    """Each difference as a person says it, in points of accuracy, and what the intervals mean."""
    lines = []
    for gap in gaps:
        words = f"{gap.first} over {gap.second}: {100 * gap.mean:+.2f} points"
        if math.isnan(gap.low):
            pairs = "one pair tells" if gap.n == 1 else f"{gap.n} pairs that do not differ tell"
            lines.append(f"{words} ({pairs} no spread; give more --seeds)")
            continue
        interval = f"{LEVEL:.0%} interval {100 * gap.low:+.2f} to {100 * gap.high:+.2f}"
        verdict = "" if gap.clear else "; may be chance"
        lines.append(f"{words}, {interval}, {gap.n} pairs{verdict}")
    n = sum(not math.isnan(gap.low) for gap in gaps)
    if n:
        lines.append(f"(runs of the same seed are compared; intervals by Student's t over the pairs{_chance(n)})")
    return lines


def _chance(n: int) -> str:
    """How many of several intervals leave out 0 by chance."""
    return f"; of {n}, {n * (1 - LEVEL):.2g} leave out 0 by chance where nothing differs" if n > 1 else ""


def _ways(question: Question, runs: tuple[Runs, ...]) -> Table:
    found = question.found
    table = Table(box=None, pad_edge=False)
    for name in ("way", "network", "mult_adds", "params", "off budget"):
        table.add_column(name, justify="left" if name in ("way", "network") else "right", no_wrap=True)
    if runs:
        for name in ("accuracy", "sd", "runs"):
            table.add_column(name, justify="right", no_wrap=True)
    by_name = {each.name: each for each in runs}
    for way in found.ways:
        cost = costs(question.space.arch(way.params))
        cells = [way.name, _changed(way.params, found.base), si(cost.mult_adds), si(cost.params), f"{way.miss:+.1%}"]
        if runs:
            each = by_name[way.name]
            cells += [_percent(each.mean), _percent(each.sd), str(len(each.values))]
        table.add_row(*cells)
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def _changed(params: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items() if base.get(name) != value) or "as it is"


def _content(question: Question, runs: tuple[Runs, ...], gaps: tuple[Difference, ...]) -> dict[str, Any]:
    found = question.found
    return {
        "study": question.study,
        **asdict(replace(found, ways=())),
        "ways": [asdict(way) | asdict(costs(question.space.arch(way.params))) for way in found.ways],
        "runs": [{"name": each.name, "mean": each.mean, "sd": each.sd, "values": dict(each.values)} for each in runs],
        "differences": [asdict(gap) | {"clear": gap.clear} for gap in gaps],
    }
