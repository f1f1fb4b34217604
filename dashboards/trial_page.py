"""One trial whole: its network layer by layer, curve, measurements, log, where it came from, and what can be done with
it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from dash import dcc
from dash import html as tags

from mnet_search.dashboards.actions import log_tail
from mnet_search.dashboards.page_parts import (
    action,
    as_json,
    attributes,
    block,
    card,
    empty,
    link,
    pairs,
    select,
    slot,
    table,
)
from mnet_search.dashboards.report import flatten
from mnet_search.dashboards.scene import Scene, draw
from mnet_search.dashboards.snapshot import COSTS, parameters, percent, present, quartiles
from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import layers
from mnet_search.models.costs import LayerCosts
from mnet_search.models.families import create
from mnet_search.spaces.space import si
from mnet_search.studies.requests import Note, TrialDetail, detail, notes
from mnet_search.studies.store import Store
from mnet_search.studies.urls import hide_password

QUIET = ("norm", "act", "dropout", "flatten")  # kinds of layers that hold no multiply-adds, folded away at first


def draw_trial(scene: Scene) -> list[Any]:
    """The trial that the address names. Raises MnetError for one that is not there."""
    if not scene.state.trials:
        number = _latest(scene)
        if number is None:
            return [tags.H2("Trial"), block("why", empty("no trial has begun yet: this page follows the search"))]
        scene = replace(scene, state=scene.state.to("trial", number))
    number = scene.state.trials[0]
    row = scene.row(number)
    with Store(scene.storage_url) as store:
        found = detail(store, scene.whole.name, number)
        note = notes(store, scene.whole.name, number).get(number, Note())
        log = _log(store, scene.whole.name, number)
    cards = [
        card("What it is", block("facts", *_facts(scene, row, found))),
        card("What to do with it", block("do", *_actions(scene, row)), block("note", *_note(scene, number, note))),
        card("Learning curve", _curve(scene, number)),
        card("Measurements", block("measured", *_measurements(found)), wide=True),
        card("The network, layer by layer", block("layers", *_layers(scene, row)), wide=True),
        card("The end of its log", block("log", log), wide=True),
        card("Where it was trained", block("from", *_origin(scene, row, found)), wide=True),
    ]
    return [
        block("title", tags.H2(f"Trial {number}"), *_neighbours(scene, number), className="row spread"),
        tags.Div(cards, className="cards"),
    ]


def _latest(scene: Scene) -> int | None:
    numbers = scene.whole.frame["number"]
    return int(numbers.max()) if len(numbers) else None


def _neighbours(scene: Scene, number: int) -> Iterator[Any]:
    last = _latest(scene) or 0
    near = [("previous", number - 1)] * (number > 0) + [("next", number + 1)] * (number < last)
    links = [link(f"{text} (trial {to})", scene.state.to("trial", to)) for text, to in near]
    front = [int(one) for one in scene.whole.front()["number"] if one != number][:1]
    beside = link("compare", scene.state.to("compare", number, *front))
    yield tags.Nav([*links, beside], className="row", **attributes(aria_label="other trials"))


# ---------------------------------------------------------------- figures


def facts_of(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A trial's parameters, figures and costs, with their units."""
    rows = [("state", str(row["state"]) + (f": {row['reason']}" if row["reason"] else ""))]
    rows += [(name, value) for name, value in parameters(row).items()]
    if present(row.get("accuracy")):
        rows.append(("validation accuracy", percent(row["accuracy"])))
    if present(row.get("validation_loss")):
        rows.append(("validation loss", f"{row['validation_loss']:.4f} nats"))
    for column, cost in COSTS.items():
        if present(row.get(column)):
            rows.append((cost.name, f"{cost.text(row[column])}{quartiles(row, cost)}"))
    rows.append(("activations", si(row["activations"])))
    rows.append(("seed", str(row["seed"])))
    trained = f", {row['seconds']:,.1f} s of training" if present(row.get("seconds")) and row["seconds"] else ""
    rows.append(("epochs", f"{row['epochs']}{trained}"))
    if row["attempts"] != 1:
        rows.append(("attempts", str(row["attempts"])))
    return rows


def _facts(scene: Scene, row: Mapping[str, Any], _found: TrialDetail) -> Iterator[Any]:
    rows: list[tuple[str, Any]] = [("network", tags.Code(row["arch_id"])), ("family", row["family"]), *facts_of(row)]
    if row["number"] in set(scene.whole.front()["number"]):
        rows.insert(0, ("on the front", "yes, of the study's objectives"))
    if row["imported"]:
        rows.append(("imported from", row["imported"]))
    same = scene.whole.frame[scene.whole.frame["arch_id"] == row["arch_id"]]
    others = [int(number) for number in same["number"] if number != row["number"]]
    if others:
        links = [part for one in others[:12] for part in (link(f"trial {one}", scene.state.to("trial", one)), " ")]
        rows.append(("same network", tags.Span([*links, "…" if len(others) > 12 else ""])))
    yield pairs(rows)


def _curve(scene: Scene, number: int) -> Any:
    curves = scene.live.curves(scene.whole.name, [number])
    snapshot = replace(scene.whole, curves=curves)
    label = f"validation accuracy of trial {number} by epoch"
    return draw(snapshot, "curves", label, opens=False, height=340, keep=str(number), numbers=(number,))


def _measurements(found: TrialDetail) -> Iterator[Any]:
    if not found.measurements:
        yield tags.P("none were stored: latency is measured where it is an objective", className="soft")
        return
    columns = ("of", "median", "q1", "q3", "runs", "protocol", "when")
    rows = [
        (
            one["name"].removesuffix("_ms").replace("_", " ") + (", ms" if one["name"].endswith("_ms") else ""),
            f"{one['median']:.4g}",
            f"{one['q1']:.4g}",
            f"{one['q3']:.4g}",
            str(one["n"]),
            ", ".join(f"{key} {_round(value)}" for key, value in dict(one["protocol"]).items()),
            f"{one['measured']:%Y-%m-%d %H:%M:%S}",
        )
        for one in found.measurements
    ]
    yield table(columns, rows, label="Measurements", numeric=(1, 2, 3, 4), words=(5,))


def _round(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_json(value)


# ---------------------------------------------------------------- the network


def _layers(scene: Scene, row: Mapping[str, Any]) -> Iterator[Any]:
    try:
        arch = create(row["family"], **scene.live.options(scene.whole.name, int(row["number"])))
        found = list(layers(arch))
    except (MnetError, ImportError) as error:
        yield empty(f"this network cannot be described here: {error}")
        return
    everything = scene.state.option("show") == "all"
    options = [("", "with weights, and poolings"), ("all", "all, batch norms and activations too")]
    yield tags.Div(select("show", "Layers", options, "all" if everything else ""), className="controls")
    yield layer_table(found, everything)


def layer_table(found: list[LayerCosts], everything: bool) -> Any:
    """Each layer with its shapes, its costs, and its share of the multiply-adds as a bar."""
    total = sum(one.costs.mult_adds for one in found) or 1
    rows: list[tuple[Any, ...]] = []
    for one in found:
        if not everything and not one.weights and _is_quiet(one.kind):
            continue
        share = one.costs.mult_adds / total
        bar = tags.Progress(value=f"{share:.4f}", max="1", **attributes(aria_label=f"{share:.1%} of the multiply-adds"))
        figures = (f"{one.costs.params:,}", f"{one.costs.mult_adds:,}", f"{one.costs.activations:,}")
        rows.append((one.name, one.kind, str(one.input), str(one.output), *figures, bar))
    sums = [sum(getattr(one.costs, name) for one in found) for name in ("params", "mult_adds", "activations")]
    rows.append(("all", "", str(found[0].input), str(found[-1].output), *(f"{value:,}" for value in sums), ""))
    columns = ("layer", "kind", "input", "output", "params", "mult-adds", "activations", "share of mult-adds")
    return table(columns, rows, label="Layers", numeric=(4, 5, 6), tall=True)


def _is_quiet(kind: str) -> bool:
    return not any(word in kind for word in ("conv", "linear", "pool"))


# ---------------------------------------------------------------- origin


def _log(store: Store, study: str, number: int) -> Any:
    try:
        lines = log_tail(store, study, number)
    except MnetError as error:
        return tags.P(str(error), className="soft")
    return tags.Pre("\n".join(lines) or "the log is empty", tabIndex=0, **attributes(aria_label="end of the log"))


def commands(scene: Scene, row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a terminal runs to train the same network again."""
    study, number = scene.whole.name, row["number"]
    storage = shlex.quote(hide_password(scene.storage_url))
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{study}-trial{number}")
    exported = f"mnet-search export {shlex.quote(study)} --trial {number} --format config -o . --storage {storage}"
    return (exported, f"mnet-search train {stem}.yaml")


def _origin(scene: Scene, row: Mapping[str, Any], found: TrialDetail) -> Iterator[Any]:
    if row["state"] == "finished":
        yield tags.P("The same network again, with the same seed, data and recipe:")
        yield tags.Pre("\n".join(commands(scene, row)), tabIndex=0)
    rows: list[tuple[str, Any]] = [("started", _when(row["started"])), ("finished", _when(row["finished"]))]
    rows.append(("folder", tags.Code(found.folder) if found.folder else "none is recorded"))
    if row["checkpoint_sha256"]:
        rows.append(("weights, SHA-256", tags.Code(row["checkpoint_sha256"])))
    yield pairs(rows)
    recorded = list(flatten(found.environment))
    if recorded:
        yield tags.Details([tags.Summary("machine, versions and data of this trial"), pairs(recorded)])


def _when(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if present(value) and isinstance(value, pd.Timestamp) else "–"


# ---------------------------------------------------------------- what can be done


def _actions(scene: Scene, row: Mapping[str, Any]) -> Iterator[Any]:
    study, number = scene.whole.name, int(row["number"])
    if row["state"] == "finished":
        yield tags.P([action("export", "Export", study, number), " config, weights and card, into the runs folder"])
    yield tags.P([action("repeat", "Repeat with the next seed", study, number), " trained by the search's next run"])


def _note(scene: Scene, number: int, note: Note) -> Iterator[Any]:
    fields = [
        tags.Div(
            [
                tags.Label("Note", htmlFor="write-note"),
                dcc.Textarea(id="write-note", value=note.text, rows=3, maxLength=4000),
            ],
            className="field",
        ),
        tags.Div(
            [
                tags.Label("Tags, with commas between", htmlFor="write-tags"),
                slot("write-tags", ", ".join(note.tags)),
            ],
            className="field",
        ),
        action("note", "Keep note and tags", scene.whole.name, number),
    ]
    shown = [tags.Span(tag, className="badge") for tag in note.tags]
    yield tags.Div([*fields, " ", *shown], **attributes(data_form="note", role="group", aria_label="Note and tags"))
