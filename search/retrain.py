"""`mnet-search train`: full training of a config in a folder of its own, and the one place that touches test images.

The folder holds config.yaml (as trained), last.pt and best.pt, the weights of both as safetensors, curve.csv,
curve.html, result.json and, where asked for, tensorboard/.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout
from torch import nn

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.checkpoints import (
    BEST,
    PREVIOUS,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    record_path,
    write_atomically,
)
from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.tables import lookup
from mnet_search.search.data import Data, DataOptions, load, load_test
from mnet_search.search.data_cache import pinned
from mnet_search.search.evaluation import Images
from mnet_search.search.event_files import FOLDER as EVENTS
from mnet_search.search.event_files import EventFile
from mnet_search.search.optimisers import OPTIMISERS
from mnet_search.search.run import check_name
from mnet_search.search.speed import SpeedOptions
from mnet_search.search.teachers import load_teacher
from mnet_search.search.training import Epoch, TrainingOptions, TrialFailed, evaluate, train
from mnet_search.search.trial import find_device, memory_named, settled_speed
from mnet_search.spaces.yamlfile import dump
from mnet_search.studies.export import TrainConfig, read_config

log = logging.getLogger(__name__)

CONFIG, LAST, RESULT = "config.yaml", "last.pt", "result.json"
WEIGHTS = {LAST: "weights.safetensors", BEST: "weights-best.safetensors"}
LOCK_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class TrainResult:
    """What a full training came to; accuracies are shares of images.

    `validation_accuracy` and `test_accuracy` are of the last epoch, the `_best` ones of the epoch that validated best,
    whose weights best.pt keeps.
    """

    arch_id: str
    epochs: int
    validation_accuracy: float
    best_epoch: int
    validation_accuracy_best: float
    test_accuracy: float
    test_accuracy_best: float
    test_loss: float
    test_images: int
    params: int
    mult_adds: int
    folder: str


@dataclass(frozen=True)
class Measured:
    """What a network came to on the test images."""

    test_accuracy: float
    test_loss: float
    test_images: int


class Watcher(Protocol):
    """Who watches a training. `stored` comes once, with the rows of earlier runs, before the first `epoch`."""

    def stored(self, rows: Sequence[Epoch]) -> None: ...
    def epoch(self, row: Epoch) -> None: ...


def train_config(
    config: TrainConfig,
    arch: Arch,
    folder: Path,
    watcher: Watcher,
    *,
    device: str = "auto",
    threads: int = 1,
    event_files: bool = False,
) -> TrainResult:
    """Train the config's network from its seed, then measure it once on the test images, the weights of its best epoch
    too where that was not the last one.

    The same call again goes on from the last epoch. Raises MnetError where the folder holds another training, the data
    cannot be had or training fails.
    """
    torch.set_num_threads(threads)
    where = find_device(device)
    module = build(arch, config.seed)
    options = TrainingOptions(**config.training.model_dump())
    lookup(OPTIMISERS, options.resolved().optimiser, "optimiser")
    with _claimed(folder, config), memory_named():
        data = load(_stored_way(folder, DataOptions(**config.data.model_dump())))
        _fits(arch, data)
        test = load_test(pinned(DataOptions(**config.data.model_dump()), data.digest))  # a mistake in it shows now
        teacher = load_teacher(options.teacher, data.facts) if options.teacher else None
        write_atomically(folder / CONFIG, _config_text(config).encode())
        training = train(
            module,
            data,
            options,
            resolution=arch.input.height,
            seed=config.seed,
            device=where,
            checkpoint=folder / LAST,
            identity=arch.id,
            network=arch.to_json(),
            teacher=teacher,
            speed=settled_speed(folder, module, data, options, SpeedOptions(), arch.input.height, where),
        )
        with _recorded(folder, wanted=event_files) as events:
            rows = _follow(training, config, folder, watcher, events)
        result = _finish(module.to(where), data, test, arch, folder, rows)
        write_atomically(folder / RESULT, json.dumps(asdict(result), indent=1).encode())
    return result


def _fits(arch: Arch, data: Data) -> None:
    """Raises MnetError where the network takes other images, or tells other classes apart."""
    facts, output = data.facts, arch.root.output.channels
    for what, network, images in (
        ("channels", arch.input.channels, facts.channels),
        ("classes", output, facts.classes),
    ):
        if network != images:
            option = "in_channels" if what == "channels" else "classes"
            raise MnetError(
                f"the config's network is made for {network} {what}, {facts.name} has {images}; set "
                f"arch.options.{option} to {images} (and leave arch.arch_id out), or give the data it was made for"
            )


def _finish(
    module: nn.Module, data: Data, test: Images, arch: Arch, folder: Path, rows: Sequence[Epoch]
) -> TrainResult:
    """Write the weights of the last and of the best epoch, and measure both on the test images."""
    last, best = _checkpoints(folder)
    for stored, name in ((last, LAST), (best, BEST)):
        _write_weights(folder / WEIGHTS[name], stored, arch)

    def measured(stored: Checkpoint) -> tuple[float, float]:
        module.load_state_dict(stored.module)
        return evaluate(module, test, data, resolution=arch.input.height)

    loss, accuracy = measured(last)
    network, best_row = costs(arch), Epoch(**best.rows[-1])
    return TrainResult(
        arch_id=arch.id,
        epochs=len(rows),
        validation_accuracy=rows[-1].validation_accuracy,
        best_epoch=best_row.epoch,
        validation_accuracy_best=best_row.validation_accuracy,
        test_accuracy=accuracy,
        test_accuracy_best=accuracy if best is last else measured(best)[1],
        test_loss=loss,
        test_images=len(test),
        params=network.params,
        mult_adds=network.mult_adds,
        folder=str(folder),
    )


# ---------------------------------------------------------------- the folder


def run_folder(runs_dir: Path, config_path: Path, name: str | None) -> Path:
    """Where a config is trained. Raises MnetError for a name that would lead out of the runs folder."""
    return runs_dir / (f"train-{config_path.stem}" if name is None else check_name("--name", name))


@contextlib.contextmanager
def _claimed(folder: Path, config: TrainConfig) -> Iterator[None]:
    """The folder, for this process and this config alone. Raises MnetError where it is another's, or full."""
    _refuse_another(folder, config)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        raise MnetError(
            f"another process trains in {folder}; wait for it, stop it, or take another folder with --name"
        ) from None
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise TrialFailed(
            f"{where}: {error.strerror or error}; mend that and run the same command again, which goes on from the "
            "last epoch"
        ) from error
    finally:
        lock.release()


def _refuse_another(folder: Path, config: TrainConfig) -> None:
    """Raises MnetError where the folder holds a training that this config would not continue."""
    advice = "take another folder with --name or --runs-dir"
    path = folder / CONFIG
    if not path.exists():
        others = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
        if others and not (folder / LAST).exists():
            raise MnetError(f"{folder} holds other things ({others[0]}), no training; {advice}")
        return
    try:
        there = read_config(path)[0]
    except MnetError as error:
        raise MnetError(f"{folder} holds a training of which the config cannot be read ({error}); {advice}") from None
    if not any((folder / name).exists() for name in (LAST, PREVIOUS, BEST)):
        return  # nothing was trained yet: a mistake in that config must not keep the folder
    one, other = (dict(_flat(_deciding(each))) for each in (there, config))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    if names:
        # the id says that the network is another one; the options say in what
        name = next((name for name in names if name != "arch.arch_id"), names[0])
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise MnetError(
            f"{folder} holds another training: its {name} is {_shown(one.get(name))}, here {_shown(other.get(name))}"
            f"{more}; {advice}"
        )


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


def _deciding(config: TrainConfig) -> dict[str, Any]:
    """What decides a training; `measured`, `provenance` and whether data may be downloaded do not."""
    values = config.model_dump(include={"arch", "data", "training", "seed"}, exclude_none=True)
    values["data"].pop("download", None)
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _config_text(config: TrainConfig) -> str:
    return "# As trained in this folder, changes of the command line applied.\n" + dump(
        config.model_dump(exclude_none=True)
    )


# ---------------------------------------------------------------- while it trains


def _follow(
    training: Iterator[Epoch], config: TrainConfig, folder: Path, watcher: Watcher, events: EventFile | None
) -> list[Epoch]:
    """Every row of a training, with the curve on disk after each; as a page at the end, however it ends."""
    network, epochs = f"{config.arch.family} {config.arch.arch_id}", config.training.epochs
    stored, rows = _stored_rows(folder), list[Epoch]()
    try:
        for row in training:
            rows.append(row)
            if events:
                events.add(row)
            # Its clock too is the same: a row of an earlier run, from the checkpoint.
            if len(rows) <= len(stored) and asdict(row) == stored[len(rows) - 1]:
                if len(rows) == len(stored):
                    watcher.stored(rows)
                    _write_curve(folder, rows)
                continue
            _write_curve(folder, rows)
            watcher.epoch(row)
    except BaseException:
        if rows:
            with contextlib.suppress(OSError):
                _write_page(folder, network, rows, epochs)
        raise
    _write_page(folder, network, rows, epochs)
    return rows


def _stored_way(folder: Path, options: DataOptions) -> DataOptions:
    """The options with images streamed or not as they were before, whatever memory is available now."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return pinned(options, json.loads(record_path(folder / LAST).read_bytes())["run"]["data"])
    return options


def _stored_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that an earlier run left, in the order in which `train` looks for them."""
    for name in (LAST, PREVIOUS, BEST):
        with contextlib.suppress(FileNotFoundError, CheckpointError):
            return load_checkpoint(folder / name).rows
    return []


@contextlib.contextmanager
def _recorded(folder: Path, *, wanted: bool) -> Iterator[EventFile | None]:
    events = EventFile(folder / EVENTS) if wanted else None
    try:
        yield events
    finally:
        if events:
            events.close()


def _write_curve(folder: Path, rows: Sequence[Epoch]) -> None:
    stream = io.StringIO()
    content = [asdict(row) for row in rows]
    writer = csv.DictWriter(stream, fieldnames=list(content[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(content)
    write_atomically(folder / "curve.csv", stream.getvalue().encode())


def _write_page(folder: Path, network: str, rows: Sequence[Epoch], epochs: int) -> None:
    from mnet_search.dashboards.curve_plot import training_info, training_page

    info = training_info(network, [asdict(row) for row in rows], epochs)
    write_atomically(folder / "curve.html", training_page(info).encode())


def _checkpoints(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """Those of the last and of the best epoch: the same one where the last is the best, or no other is kept."""
    last = load_checkpoint(folder / LAST)
    try:
        best = load_checkpoint(folder / BEST, last.run)
    except FileNotFoundError:
        return last, last
    except CheckpointError as error:
        log.warning("%s; only the weights of the last epoch are measured", error)
        return last, last
    return last, last if len(best.rows) == len(last.rows) else best


def _write_weights(path: Path, stored: Checkpoint, arch: Arch) -> None:
    """Weights by their state-dict names, as `export` writes them."""
    from safetensors.torch import save

    weights = {name: tensor.contiguous() for name, tensor in stored.module.items()}
    write_atomically(path, save(weights, metadata={"arch_id": arch.id, "epoch": str(len(stored.rows))}))


# ---------------------------------------------------------------- test images


def measure_on_test(config: TrainConfig, checkpoint: Path, study: str, trial: int) -> Measured:
    """A trained trial's network on the test images. Raises MnetError where its checkpoint is gone, damaged or of
    another network.
    """
    arch = create(config.arch.family, **config.arch.options)
    advice = f"`mnet-search export {study} --trial {trial} --format config` and `mnet-search train` make it anew"
    try:
        stored = load_checkpoint(checkpoint, {"network": config.arch.arch_id, "seed": config.seed})
    except FileNotFoundError:
        raise MnetError(f"the checkpoint of trial {trial} is gone ({checkpoint}); {advice}") from None
    except CheckpointError as error:
        raise MnetError(f"{error}; {advice}") from None
    options = pinned(DataOptions(**config.data.model_dump()), stored.run["data"])
    data, test = load(options), load_test(options)
    if data.digest != stored.run["data"]:
        raise MnetError(
            f"trial {trial} was trained on other images (their digest was {stored.run['data'][:12]}, it is "
            f"{data.digest[:12]} now); put them back"
        )
    module: nn.Module = build(arch, config.seed).to(find_device("auto"))
    module.load_state_dict(stored.module)
    loss, accuracy = evaluate(module, test, data, resolution=arch.input.height)
    return Measured(accuracy, loss, len(test))


def sampling_error(accuracy: float, images: int) -> float:
    """The binomial standard error of an accuracy; no error in n images does not mean no noise."""
    share = min(max(accuracy, 1 / images), 1 - 1 / images)
    return math.sqrt(share * (1 - share) / images)
