"""What the commands print: tables for people, or JSON, on stdout."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.families import FAMILIES, check_option_names, create
from mnet_search.models.tables import lookup
from mnet_search.search.printing import echo, print_json, print_table
from mnet_search.spaces.space import si
from mnet_search.spaces.yamlfile import parse_value, read
from mnet_search.studies.urls import split_password

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.search.run import RunOptions, RunResult
    from mnet_search.studies.confidence import Confidence
    from mnet_search.studies.store import Store

DEFAULT_STORAGE = "sqlite:///mnet-search.db"


def after_run(store: Store, result: RunResult, options: RunOptions, *, as_json: bool) -> None:
    """The front, and what to type next."""
    from mnet_search.studies.frame import load

    frame = load(store, result.study)
    objectives = store.objectives(result.study)
    found = _Front(store, result.study, frame, objectives)
    if as_json:
        print_json(asdict(result) | {"front": _records(found.members), "noise": found.noise()})
        return
    state = (
        f"stopped at {result.n_finished} of {result.n_asked} ({result.stop_reason})"
        if result.stop_reason
        else f"{result.n_finished} of {result.n_asked} finished"
    )
    notes = [f"{result.n_new} in this run"] + [f"{result.n_failed} failed"] * (result.n_failed > 0)
    notes += _stopped(frame)
    if result.exhausted and result.n_finished < result.n_asked:
        notes.append("every network of the space within the budgets is known")
    _print_front(found.members, objectives, f"Study {result.study}: {state} ({', '.join(notes)}). {found.title()}")
    storage = split_password(options.storage)[0]
    where = "" if storage == DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"
    name = shlex.quote(result.study)
    if result.stop_reason:
        echo(f"\nNext:  mnet-search resume {name}{where}        goes on from here")
        return
    echo(f"\nNext:  mnet-search dashboard {name}{where}        browse the front")
    echo(f"       mnet-search report {name}{where}           the same as one HTML file")
    echo(f"       mnet-search best {name} --max params=50k{where}")
    trained = store.row(result.study)["space"].get("evaluate") is None
    formats, what = ("", "config, weights and model card") if trained else (" --format config", "config")
    echo(f"       mnet-search export {name} --best{formats}{where}    {what}, for mnet-search train")


def find_arch(target: str, overrides: Iterable[str]) -> Arch | None:
    """The network of a family name or of an exported config; None for a space file. Raises MnetError for anything
    else.
    """
    if target in FAMILIES or (":" in target and not Path(target).exists()):
        options = {}
        for item in overrides:
            name, equals, text = item.partition("=")
            if not equals or not name.strip():
                raise MnetError(f"--set {item}: write NAME=VALUE, for example -s width=0.5")
            options[name] = parse_value(text)
        check_option_names(target, list(options))
        return create(target, **options)
    if target.endswith((".yaml", ".yml")) and not Path(target).exists():
        raise MnetError(f"{target}: no such file")
    if not Path(target).is_file() or not target:
        lookup({**FAMILIES, "torchvision:NAME": None}, target, "network or file")
    values, _ = read(Path(target))
    if "arch" not in values:
        return None
    from mnet_search.studies.export import read_config

    return read_config(Path(target), overrides)[1]


def study_list(store: Store, *, as_json: bool) -> None:
    """Every study in a line."""
    found = store.studies()
    if as_json:
        print_json([asdict(s) for s in found])
        return
    if not found:
        echo(f"no study in {store.where} yet; start one with: mnet-search run spaces/mobilenet.yaml")
        return
    table = Table("study", "space", "finished", "running", "failed", "state", "last activity", box=None, pad_edge=False)
    for s in found:
        state = "running" if s.active else ("done" if s.n_finished >= s.n_total_asked else "stopped")
        counts_text = [f"{s.n_finished}/{s.n_total_asked}", str(s.n_running if s.active else 0), str(s.n_failed)]
        table.add_row(s.name, s.space, *counts_text, state, s.last_activity.isoformat(sep=" ", timespec="seconds"))
    print_table(table)


def study(store: Store, name: str, *, everything: bool, as_json: bool) -> None:
    """Progress, front (or every trial) and failures of a study."""
    from mnet_search.search.show_printed import beside_printed, print_beside
    from mnet_search.studies.frame import load

    frame, summary = load(store, name), store.summary(name)
    found = _Front(store, name, frame, summary.objectives)
    printed = beside_printed(store, name, frame)
    if as_json:
        content = {
            "study": asdict(summary),
            "front": _records(found.members),
            "noise": found.noise(),
            "trials": _records(frame),
            "provenance": store.provenance(name),
            "printed": printed,
        }
        print_json(content)
        return
    title = f"Study {name} (space {summary.space}): {summary.n_finished} of {summary.n_total_asked} finished"
    title = ", ".join([title, *_stopped(frame)])
    if everything:
        _print_front(frame, summary.objectives, f"{title}. Every trial", state=True)
    else:
        _print_front(found.members, summary.objectives, f"{title}. {found.title()}")
    if printed:
        print_beside(printed)
    failed = frame[frame["state"] == "failed"]
    for _, row in failed.head(10).iterrows():
        echo(f"trial {row['number']} failed: {row['reason']}")
    if len(failed) > 10:
        echo(f"... and {len(failed) - 10} more (--json lists all)")


def best(store: Store, name: str, limits: Mapping[str, float], *, test: bool, as_json: bool) -> None:
    """The best network within budgets, by the mean over its runs; with `test`, its first run on the test images."""
    from mnet_search.search.show_train import print_tested, tested
    from mnet_search.studies.export import select
    from mnet_search.studies.frame import load

    frame, objectives = load(store, name), store.objectives(name)
    first = select(frame, objectives, "best", limits).iloc[0]
    on_test = tested(store, name, first) if test else {}
    found = _Front(store, name, frame, objectives)
    row = found.network(int(first["number"]))
    if as_json:
        print_json(_records(row)[0] | on_test)
        return
    within = f" within {', '.join(f'{k} {si(v)}' for k, v in limits.items())}" if limits else ""
    n_runs = int(row["n"].iloc[0])
    what = "a single run" if n_runs == 1 else f"the mean of {n_runs} runs"
    title = ", ".join([f"Best {next(iter(objectives))} of study {name}{within}", *_stopped(frame), what])
    _print_front(row, objectives, found.with_noise(title, row))
    if test:
        print_tested(on_test)
    echo(f"\nNext:  mnet-search export {shlex.quote(name)} --trial {first['number']}")


def machine(database: dict[str, Any] | None, *, as_json: bool) -> None:
    """What this machine offers, and what was found in the database."""
    import torch

    from mnet_search.search import provenance
    from mnet_search.search.run import EXECUTORS, KNOWN
    from mnet_search.search.show_database import print_examined

    facts = provenance.collect(["mnet-search", "doctor"])
    content = {key: facts[key] for key in ("versions", "platform", "processor", "cpu_cores")}
    content["gpus"] = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    content |= {"families": list(FAMILIES), "executors": list(EXECUTORS)} | {
        key: list(names) for key, names in KNOWN.items()
    }
    if as_json:
        print_json(content if database is None else content | {"database": database})
        return
    for key, value in content.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, dict)
            else ", ".join(value)
            if isinstance(value, list)
            else value
        )
        echo(f"{key:16} {shown or 'none'}")
    if database is not None:
        print_examined(database)


def parse_limits(items: list[str]) -> dict[str, float]:
    """`--max latency_ms=5`. Raises MnetError."""
    from mnet_search.spaces.schema import quantity

    limits = {}
    for item in items:
        name, equals, text = item.partition("=")
        try:
            limits[name.strip()] = float(quantity(text))
        except ValueError:
            equals = ""
        if not equals:
            raise MnetError(f"--max {item}: write NAME=NUMBER, for example --max latency_ms=5 or --max params=100k")
    return limits


# ---------------------------------------------------------------- printing


class _Front:
    """The front of a study with its confidence, and what the commands say of its noise."""

    def __init__(self, store: Store, name: str, frame: pd.DataFrame, objectives: Mapping[str, str]):
        from mnet_search.dashboards.snapshot import validation_images
        from mnet_search.studies.confidence import front_confidence
        from mnet_search.studies.pareto import front

        self.images = validation_images(store.provenance(name))
        self.result: Confidence = front_confidence(frame, objectives, self.images)
        if self.result.noise_source == "unknown" and self.result.principal is not None:  # 0 or 1 would say too much
            self.result = replace(self.result, networks=self.result.networks.assign(probability=float("nan")))
        known = self.result.networks.set_index("number")["probability"]
        members = front(frame, objectives)
        self.members = members.assign(probability=members["number"].map(known).astype(float))

    def network(self, number: int) -> pd.DataFrame:
        """The one network whose first trial this is."""
        rows = self.result.networks
        return rows[rows["number"] == number].drop(columns="on_front")

    def noise(self) -> dict[str, Any]:
        """For programs: where the probabilities come from."""
        result = self.result
        return {"source": result.noise_source, "sd": dict(result.sd), "n_repeated": result.n_repeated}

    def title(self) -> str:
        count = f"Front: {len(self.members)} network{'s' * (len(self.members) != 1)}"
        if len(self.members) and (self.members["n"] == 1).all():
            return self.with_noise(f"{count}, single runs, so places are uncertain", self.members)
        return self.with_noise(count, self.members)

    def with_noise(self, text: str, rows: pd.DataFrame) -> str:
        """The text, how large the noise of the rows' figures is, and what helps where all are single runs."""
        from mnet_search.studies.confidence import sampling_error

        result, name = self.result, self.result.principal
        if rows.empty or name is None:
            return text
        single = bool((rows["n"] == 1).all())
        if result.noise_source == "unknown":
            text += f"; the noise of {name} is not known"
        if result.noise_source == "repeats":
            networks = f"{result.n_repeated} repeated network{'s' * (result.n_repeated != 1)}"
            text += f"; noise between runs: sd {_points(name, result.sd[name])} from {networks}"
        elif name == "accuracy" and self.images:
            error = sampling_error(float(rows[name].max()), self.images)
            text += f"{': ' if single else '; '}sampling error of accuracy about +-{_points(name, error)}"
        return text + "; repeat with search.repeats: adaptive" * single


def _points(name: str, amount: float) -> str:
    from mnet_search.search.progress import show_value

    return f"{100 * amount:.2g} points" if name == "accuracy" else show_value(name, amount)


def _stopped(frame: pd.DataFrame) -> list[str]:
    """For a title, where there are any."""
    count = int((frame["state"] == "stopped").sum())
    return [f"{count} stopped early"] * (count > 0)


def _print_front(frame: pd.DataFrame, objectives: Mapping[str, str], title: str, *, state: bool = False) -> None:
    """A table of trials; of networks, which have a column `n`, with their runs and the probability of the front."""
    from mnet_search.search.progress import show_params, show_value

    first, direction = next(iter(objectives.items()))
    ordered = frame.sort_values(first, ascending=direction == "minimize")
    names = list(dict.fromkeys([*objectives, "params", "mult_adds"]))
    spreads = [f"{name}_sd" for name in dict.fromkeys(["accuracy", *objectives]) if f"{name}_sd" in frame.columns]
    networks = ["runs", "sd", "P(front)"] if "n" in frame.columns else []
    table = Table(box=None, pad_edge=False)
    for name in ["trial", *["state"] * state, *names, *networks]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parameters")
    for _, row in ordered.iterrows():
        chosen = {
            str(k).removeprefix("param."): v for k, v in row.items() if str(k).startswith("param.") and v is not None
        }
        cells = [show_value(name, row[name]) for name in names]
        if networks:
            sd = row[spreads[0]] if spreads else float("nan")
            shown = "-" if sd != sd else f"{sd:.2%}" if spreads[0] == "accuracy_sd" else show_value(spreads[0][:-3], sd)
            chance = row["probability"]
            cells += [str(row["n"]), shown, "-" if chance != chance else f"{chance:.2f}"]
        table.add_row(str(row["number"]), *[row["state"]] * state, *cells, show_params(chosen))
    # As a line of its own, which no narrow table breaks.
    console = Console(highlight=False)
    console.print(Text(title, style="bold"), soft_wrap=not console.is_terminal)
    print_table(table)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(k): v for k, v in record.items()} for record in records]
