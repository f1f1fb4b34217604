"""`mnet-search train`: full training of an exported config, with the test images at the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mnet_search.models.arch import Arch
from mnet_search.models.checkpoints import write_atomically
from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.search.data import DataOptions, load, load_test
from mnet_search.search.training import Epoch, TrainingOptions, evaluate, train
from mnet_search.studies.export import TrainConfig


@dataclass(frozen=True)
class TrainResult:
    """What a full training came to; accuracies are shares of images."""

    arch_id: str
    epochs: int
    validation_accuracy: float
    test_accuracy: float
    test_loss: float
    test_images: int
    params: int
    mult_adds: int
    folder: str


def train_config(
    config: TrainConfig,
    arch: Arch,
    folder: Path,
    *,
    on_epoch: Callable[[Epoch], None],
    device: str = "auto",
    threads: int = 1,
) -> TrainResult:
    """Train the config's network from its seed, then measure it once on the test images. Writes checkpoint, curve and
    result into `folder`.

    The same call again goes on from the last epoch. Raises MnetError where the data cannot be had or training fails.
    """
    torch.set_num_threads(threads)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    options = DataOptions(**config.data.model_dump())
    data = load(options)
    module = build(arch, config.seed)
    rows: list[Epoch] = []
    for row in train(
        module,
        data,
        TrainingOptions(**config.training.model_dump()),
        resolution=arch.input.height,
        seed=config.seed,
        device=where,
        checkpoint=folder / "last.pt",
        identity=arch.id,
    ):
        rows.append(row)
        on_epoch(row)
        write_atomically(folder / "curve.csv", _curve_csv(rows).encode())
    test = load_test(options)
    loss, accuracy = evaluate(module, test, data, resolution=arch.input.height)
    network = costs(arch)
    result = TrainResult(
        arch_id=arch.id,
        epochs=len(rows),
        validation_accuracy=rows[-1].validation_accuracy,
        test_accuracy=accuracy,
        test_loss=loss,
        test_images=len(test),
        params=network.params,
        mult_adds=network.mult_adds,
        folder=str(folder),
    )
    write_atomically(folder / "result.json", json.dumps(asdict(result), indent=1).encode())
    return result


def _curve_csv(rows: list[Epoch]) -> str:
    stream = io.StringIO()
    content: list[dict[str, Any]] = [asdict(row) for row in rows]
    writer = csv.DictWriter(stream, fieldnames=list(content[0]))
    writer.writeheader()
    writer.writerows(content)
    return stream.getvalue()
