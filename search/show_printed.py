"""What `show` prints of a study on CIFAR-10: our figures beside those that others printed for the same networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mnet_search.models.complexity import costs
from mnet_search.models.published_cifar import SYSTEMS
from mnet_search.search.printing import echo, print_table
from mnet_search.spaces.schema import Choice, SpaceFile, Training, Value
from mnet_search.spaces.settings import TrialSettings
from mnet_search.studies.export import data_facts

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.studies.store import Store

DATASET = "cifar10"


def beside_printed(store: Store, study: str, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """For each printed system whose family the study has trained on CIFAR-10: what was printed, and `ours`, a row for
    each way in which that very network was trained. Empty for other studies.
    """
    stored = store.row(study)
    file = SpaceFile.model_validate(stored["space"])
    systems = [system for system in SYSTEMS if system.family in set(frame["family"])]
    if not systems or DATASET not in _datasets(file):
        return []
    settings, chosen = TrialSettings(file), store.chosen(study)
    networks = [system.arch() for system in systems]
    finished = frame[(frame["state"] == "finished") & frame["arch_id"].isin({arch.id for arch in networks})]
    ours: dict[str, dict[tuple[Any, ...], list[float]]] = {}
    for row in finished.to_dict("records"):
        params: Mapping[str, Value] = chosen[row["number"]]
        data = settings.data(params)
        if data.name == DATASET:
            images = data_facts(stored["provenance"], data).get("train_images")
            group = (_recipe(settings.training(params)), int(row["epochs"]), images)
            ours.setdefault(row["arch_id"], {}).setdefault(group, []).append(float(row["accuracy"]))
    return [
        {**asdict(system), "our_params": costs(arch).params, "ours": _groups(ours.get(arch.id, {}))}
        for system, arch in zip(systems, networks, strict=True)
    ]


def print_beside(rows: list[dict[str, Any]]) -> None:
    """The same as a table, a line for each way of training."""
    echo("\nBeside what others printed for these networks on CIFAR-10; ours is validation after the last epoch.")
    table = Table(box=None, pad_edge=False)
    for name in ("system", "printed", "which is", "trained by"):
        table.add_column(name)
    for name in ("params printed", "ours", "our accuracy", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("by recipe", "trained on"):
        table.add_column(name)
    for row in rows:
        percent = row["accuracy_percent"]
        head = [row["system"], "-" if percent is None else f"{percent:.2f}%", row["kind"], row["recipe"]]
        head += [_printed_params(row), f"{row['our_params']:,}"]
        for one in row["ours"] or [None]:
            table.add_row(*head, *(("-", "0", "", "") if one is None else _cells(one)))
            head = [""] * len(head)
    print_table(table)


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    spread = f" ({one['lowest']:.2%} to {one['highest']:.2%})" if one["n"] > 1 else ""
    images = "?" if one["train_images"] is None else f"{one['train_images']:,}"
    epochs = f"{one['epochs']} epoch{'s' * (one['epochs'] != 1)}"
    return f"{one['accuracy']:.2%}{spread}", str(one["n"]), one["recipe"], f"{epochs} of {images} images"


def _groups(found: Mapping[tuple[Any, ...], list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "recipe": recipe,
            "accuracy": sum(values) / len(values),
            "lowest": min(values),
            "highest": max(values),
            "n": len(values),
            "epochs": epochs,
            "train_images": images,
        }
        for (recipe, epochs, images), values in found.items()
    ]


def _recipe(training: Training) -> str:
    """The recipe with all that is changed of it but the number of epochs: `adam_plain, batch 32`."""
    changes = training.model_dump(exclude={"recipe", "epochs", "batch_size"}, exclude_none=True)
    return ", ".join([training.recipe, f"batch {training.batch_size}", *(f"{k} {v}" for k, v in changes.items())])


def _printed_params(row: Mapping[str, Any]) -> str:
    total, trainable = row["params"], row["trainable"]
    if total is None or trainable is None:
        return "-" if total is trainable else f"{total or trainable:,}"
    return f"{total:,}, {trainable:,} trainable"


def _datasets(file: SpaceFile) -> list[Any]:
    """The datasets that trials may be trained on."""
    parameter = file.parameters.get("data.name")
    return [file.data.name, *(parameter.values if isinstance(parameter, Choice) else [])]
