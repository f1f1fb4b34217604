"""The only training loop. Runs where nothing but torch, torchvision and numpy is installed.

Images stay in memory as uint8 on the training device; order, augmentation and normalisation are batched there, and the
loop reads nothing back from the device between the steps of an epoch. All that is random comes from generators derived
from (seed, epoch), so an epoch depends on the state that enters it and on nothing else: on a CPU, a run that goes on
from a checkpoint gives bit for bit the curve of one that never stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnet_search.models.arch import MnetError
from mnet_search.models.checkpoints import (
    Checkpoint,
    keep_best,
    load_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from mnet_search.models.tables import lookup
from mnet_search.search.data import Data
from mnet_search.search.data_stream import StreamedSplit
from mnet_search.search.evaluation import EVALUATION_PIXELS, Images, evaluate, recalibrate
from mnet_search.search.optimisers import Optimiser
from mnet_search.search.pixels import augment, cutout, mixup, normalise
from mnet_search.search.recipes import RECIPES, SCHEDULES, Position, Recipe, TrainingOptions
from mnet_search.search.speed import FORMATS, Speed, forward_of
from mnet_search.search.teachers import Teacher

__all__ = [
    "RECIPES",
    "Epoch",
    "Recipe",
    "TrainingOptions",
    "TrialFailed",
    "describe_run",
    "evaluate",
    "load_checkpoint",
    "recalibrate",
    "save_checkpoint",
    "train",
]

STATISTICS_IMAGES = 512  # training images over which batch-norm statistics are taken before a validation
DIVERGED = 10.0  # times the loss of guessing evenly: an epoch with a mean loss above that will not come back


class TrialFailed(MnetError):  # noqa: N818  # the word for it everywhere else: states, logs, database
    """A training run that cannot go on; its text is one sentence with the real cause."""

    exit_code = 1


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve, epochs counted from 1. Accuracies are fractions 0..1.

    `train_loss` (with label smoothing and a teacher's part) and `train_accuracy` are means over the epoch's augmented
    batches while the weights moved; `validation_loss` is plain cross entropy in nats. `learning_rate` is the last
    step's; `images_per_second` counts the training steps alone, `seconds` the whole epoch with its validation.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True, eq=False)
class _Run:
    """What stays the same from epoch to epoch."""

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimiser: Optimiser
    training: Images
    validation: Images
    data: Data
    options: TrainingOptions
    speed: Speed
    resolution: int
    seed: int
    taught: Callable[[Tensor], Tensor] | None  # a teacher's logits

    @property
    def recipe(self) -> Recipe:
        return self.optimiser.recipe

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return _steps(len(self.training), self.options)


# ---------------------------------------------------------------- the loop


def train(
    module: nn.Module,
    data: Data,
    options: TrainingOptions,
    *,
    resolution: int,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    identity: str = "",
    network: Mapping[str, Any] | None = None,
    teacher: Teacher | None = None,
    speed: Speed | None = None,
) -> Iterator[Epoch]:
    """Train `module`, (N, C, resolution, resolution) -> (N, classes), in place; one row per epoch.

    With `checkpoint`, a row is on disk before it is yielded; where that file holds an earlier part of this very run,
    its rows come first and training goes on from there. A file that is damaged or from another run is put aside (see
    resume_checkpoint); the epoch of the best validation accuracy is kept as best.pt beside it. `identity` names the
    network, by its arch id, in the checkpoint, and `network` (family, options) says how it is built. Raises TrialFailed
    when a loss is not finite or training diverges, OSError with errno and path when the checkpoint cannot be written.
    """
    device, speed = torch.device(device), speed or Speed()
    if len(data.train) < 2:
        raise TrialFailed(f"{len(data.train)} training images are too few for batch statistics; give 2 or more")
    module.to(device=device, memory_format=FORMATS[speed.memory_format])  # type: ignore[call-overload]  # torch's stub lacks this form
    description = describe_run(
        module, data, options, resolution=resolution, seed=seed, identity=identity, teacher=teacher, speed=speed
    )
    optimiser = Optimiser(module, options.resolved())
    rows: list[Epoch] = []
    stored = resume_checkpoint(checkpoint, description) if checkpoint else None
    if stored:
        module.load_state_dict(stored.module)
        rows = [Epoch(**row) for row in stored.rows]
        if checkpoint and _is_best(rows):
            keep_best(checkpoint)  # a kill may have come between the two
        yield from rows
    if len(rows) == options.epochs:
        return
    training, validation = (split.at(resolution, device) for split in (data.train, data.validation))
    if isinstance(training, StreamedSplit):
        training = training.viewed(crop=optimiser.recipe.crop > 0, flip=optimiser.recipe.flip)
    taught = teacher.reader(data.mean, data.std, device) if teacher else None
    forward = forward_of(module, speed)
    run = _Run(module, forward, optimiser, training, validation, data, options, speed, resolution, seed, taught)
    if stored and stored.optimiser is not None:
        optimiser.load(stored.optimiser, steps=len(rows) * run.steps)
        optimiser.swap()
    for number in range(len(rows) + 1, options.epochs + 1):
        row = _epoch(run, number, rows)
        rows.append(row)
        if checkpoint:
            kept = Checkpoint(
                description,
                [asdict(row) for row in rows],
                module.state_dict(),
                optimiser.state() if number < options.epochs else None,
                _about(network, data) if network else None,
            )
            save_checkpoint(checkpoint, kept, best=_is_best(rows))
        yield row
        if number < options.epochs:
            optimiser.swap()


def _epoch(run: _Run, number: int, rows: list[Epoch]) -> Epoch:
    """Train and validate once. Leaves the module in eval mode with the weights that were validated."""
    started = time.perf_counter()
    generator = make_generator(run.seed, number, run.training.labels.device)
    losses, correct, rate = _train_epoch(run, number, generator)
    trained = time.perf_counter()
    _check_losses(losses, number, rows, _even_loss(run))
    run.optimiser.swap()
    if run.recipe.recalibrate or run.recipe.average:  # running statistics are those of the weights that moved
        recalibrate(run.module, _statistics_batches(run, generator))
    loss, accuracy = evaluate(run.module, run.validation, run.data, resolution=run.resolution)
    if not math.isfinite(loss):
        last = f"the last finite training loss was {losses[-1]:.4g}"
        raise TrialFailed(f"the validation loss became {loss} in epoch {number}; {last}; try a lower learning rate")
    return Epoch(
        epoch=number,
        train_loss=math.fsum(losses) / len(losses),
        train_accuracy=correct / len(run.training),
        validation_loss=loss,
        validation_accuracy=accuracy,
        learning_rate=rate,
        images_per_second=len(run.training) / (trained - started),
        seconds=time.perf_counter() - started,
    )


def _train_epoch(run: _Run, number: int, generator: torch.Generator) -> tuple[list[float], int, float]:
    """All steps of epoch `number`: the loss of each, how many images were classified right, the last learning rate.

    The images are parted evenly, so that each is seen once and no batch norm meets a remainder of one image.
    """
    recipe, steps, device = run.recipe, run.steps, generator.device
    schedule, total = lookup(SCHEDULES, recipe.schedule, "schedule"), run.options.epochs * steps
    record = torch.zeros(2, steps, device=device)  # loss and right answers of each step, read once at the end
    rate = 0.0
    run.module.train()
    with _seeded_dropout(generator, device):
        order = torch.randperm(len(run.training), generator=generator, device=device)
        batches = run.training.batches(order.tensor_split(steps), seed=generator.initial_seed())
        for step, (images, labels) in enumerate(batches):
            rate = recipe.learning_rate * schedule(recipe, Position((number - 1) * steps + step, total, steps))
            inputs, share = _prepare(run, images, generator)
            logits = run.forward(inputs)
            loss = _loss(run, logits, inputs, labels, share)
            loss.backward()
            run.optimiser.step(rate)
            record[0, step] = loss.detach()
            record[1, step] = (logits.detach().argmax(1) == labels).sum()
    losses, correct = record.tolist()
    return losses, int(sum(correct)), rate


def _prepare(run: _Run, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """uint8 (N, C, H, W) -> what the network sees, and with mixup the weight of each image's own label."""
    recipe, data = run.recipe, run.data
    side = images.shape[-1]
    if isinstance(run.training, StreamedSplit):  # cropped and flipped as it is read
        inputs = images
    else:
        inputs = augment(images, generator, round(recipe.crop * side), recipe.flip and data.facts.flip)
    inputs = normalise(inputs, data.mean, data.std)
    if recipe.cutout:
        inputs = cutout(inputs, generator, round(recipe.cutout * side))
    inputs, share = mixup(inputs, generator, recipe.mixup) if recipe.mixup else (inputs, None)
    return inputs.contiguous(memory_format=FORMATS[run.speed.memory_format]), share


def _loss(run: _Run, logits: Tensor, inputs: Tensor, labels: Tensor, share: Tensor | None) -> Tensor:
    """Mean over the batch: cross entropy with the labels (and, mixed, with the partner's), and the teacher's part."""
    recipe = run.recipe

    def against(targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing, reduction="none")

    loss = against(labels) if share is None else share * against(labels) + (1 - share) * against(labels.flip(0))
    if run.taught is None:
        return loss.mean()
    heat = recipe.teacher_temperature
    taught = F.log_softmax(run.taught(inputs) / heat, 1)
    divergence = F.kl_div(F.log_softmax(logits / heat, 1), taught, reduction="batchmean", log_target=True)
    return (1 - recipe.teacher_weight) * loss.mean() + recipe.teacher_weight * heat**2 * divergence


# ---------------------------------------------------------------- small parts of the loop


def describe_run(
    module: nn.Module,
    data: Data,
    options: TrainingOptions,
    *,
    resolution: int,
    seed: int,
    identity: str = "",
    teacher: Teacher | None = None,
    speed: Speed | None = None,
) -> dict[str, Any]:
    """All that decides a run's curve, JSON-able: runs with equal descriptions may continue each other."""
    weights = json.dumps([[name, list(value.shape)] for name, value in module.state_dict().items()])
    return {
        "network": identity,
        "weights": hashlib.sha256(weights.encode()).hexdigest()[:12],
        "seed": seed,
        "resolution": resolution,
        "data": data.digest,
        "flip": data.facts.flip,
        "teacher": teacher.digest if teacher else None,
        "way": (speed or Speed()).name,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        **{f"training.{name}": value for name, value in asdict(options.resolved()).items()},
    }


def _is_best(rows: list[Epoch]) -> bool:
    """Whether the last epoch validated better than all before it."""
    return max(rows, key=lambda row: row.validation_accuracy) is rows[-1]


def probe_batch(
    data: Data, options: TrainingOptions, resolution: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """A batch as the network will see it, float (N, C, H, W) with its labels (N,), and the steps of the whole run."""
    training = data.train.at(resolution, device)
    count = len(training)
    chosen = torch.arange(min(options.batch_size, count))
    images, labels = next(iter(training.batches([chosen])))
    return normalise(images, data.mean, data.std), labels, options.epochs * _steps(count, options)


def _about(network: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """What a checkpoint says of its network: how to build it, and what to feed it with."""
    plain = json.loads(json.dumps(dict(network), default=dict))
    facts = {"class_names": list(data.facts.class_names), "mean": list(data.mean), "std": list(data.std)}
    return {"family": plain["family"], "options": plain["options"], **facts}


def make_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """The source of all that is random in one epoch."""
    digest = hashlib.sha256(f"mnet-search/{seed}/{epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


@contextlib.contextmanager
def _seeded_dropout(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global state alone: seeded for this epoch, and the caller's state given back after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed() + 1)
        yield


def _steps(count: int, options: TrainingOptions) -> int:
    """Steps in an epoch; at least two images in each, which a batch norm over a single pixel needs."""
    return min(math.ceil(count / options.batch_size), count // 2)


def _statistics_batches(run: _Run, generator: torch.Generator) -> Iterator[Tensor]:
    """Up to STATISTICS_IMAGES training images in even batches of two or more; not augmented, as validation is not."""
    count = min(STATISTICS_IMAGES, len(run.training))
    size = max(2, EVALUATION_PIXELS // run.resolution**2)
    chosen = torch.randperm(len(run.training), generator=generator, device=generator.device)[:count]
    for images, _ in run.training.batches(chosen.tensor_split(min(math.ceil(count / size), count // 2))):
        yield normalise(images, run.data.mean, run.data.std)


def _even_loss(run: _Run) -> float:
    """The loss of guessing evenly; a sure teacher's part may be as large as its temperature squared makes it."""
    recipe = run.recipe
    weight = 0.0 if run.taught is None else recipe.teacher_weight
    scale = 1 - weight + weight * recipe.teacher_temperature**2
    return scale * math.log(run.data.facts.classes)


def _check_losses(losses: list[float], epoch: int, rows: list[Epoch], guessing: float) -> None:
    """Raises TrialFailed at the first loss of the epoch that is no number, and where they are beyond recovery."""
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            last = losses[step - 1] if step else rows[-1].train_loss if rows else None
            before = "there was no finite loss before" if last is None else f"the last finite loss was {last:.4g}"
            raise TrialFailed(
                f"the training loss became {loss} in epoch {epoch}, step {step + 1} of {len(losses)}; {before}; "
                "try a lower learning rate"
            )
    mean = math.fsum(losses) / len(losses)
    if mean > DIVERGED * guessing:
        last = rows[-1].train_loss if rows else losses[0]
        where = "of the epoch before" if rows else "of the first step"
        raise TrialFailed(
            f"training diverged in epoch {epoch}: its mean loss is {mean:.4g}, that of guessing {guessing:.3g}; the "
            f"last good one, {where}, was {last:.4g}; try a lower learning rate"
        )
