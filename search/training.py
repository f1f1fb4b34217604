"""The only training loop and its recipes. Runs where nothing but torch, torchvision and numpy is installed.

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnet_search.models.arch import MnetError
from mnet_search.models.checkpoints import Checkpoint, load_checkpoint, resume_checkpoint, save_checkpoint
from mnet_search.models.tables import lookup
from mnet_search.search.data import Data, Split, augment, normalise, resize

__all__ = [
    "RECIPES",
    "Epoch",
    "NesterovSGD",
    "Recipe",
    "TrainingOptions",
    "TrialFailed",
    "describe_run",
    "evaluate",
    "load_checkpoint",
    "one_cycle",
    "recalibrate",
    "save_checkpoint",
    "train",
]

EVALUATION_PIXELS = 2**19  # in one validation batch: 512 images of 32x32, 10 of 224x224
STATISTICS_IMAGES = 512  # training images over which batch-norm statistics are taken before a validation


class TrialFailed(MnetError):  # noqa: N818  # the word for it everywhere else: states, logs, database
    """A training run that cannot go on; its text is one sentence with the real cause."""

    exit_code = 1


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with Nesterov momentum under a one-cycle schedule.

    `learning_rate` is the peak for `reference_batch` images and scales with the batch size; `warmup` is the share of
    the steps that climb to it, after which it falls to 0. `weight_decay` is for the weights of convolutions and linear
    layers; depthwise filters, norms and biases have none (arXiv 1704.04861, section 3). `crop` is the padding of the
    random crop as a share of the resolution.
    """

    learning_rate: float
    reference_batch: int = 128
    warmup: float = 0.25
    anneal: Literal["cosine", "linear"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    crop: float = 0.0625


@dataclass(frozen=True)
class TrainingOptions:
    """What a space says about training. `learning_rate` None is the recipe's, scaled to the batch; else it is taken
    as it is."""

    recipe: str = "default"
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        lookup(RECIPES, self.recipe, "recipe")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MnetError(f"training.{name}: {value!r} is not a whole number from 1 up")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise MnetError(f"training.learning_rate: {rate!r} is not above 0; leave it out for the recipe's own")


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve, epochs counted from 1. Accuracies are fractions 0..1.

    `train_loss` (with label smoothing) and `train_accuracy` are means over the epoch's augmented batches while the
    weights moved; `validation_loss` is plain cross entropy in nats. `learning_rate` is the last step's;
    `images_per_second` counts the training steps alone, `seconds` the whole epoch with its validation.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    images_per_second: float
    seconds: float


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
) -> Iterator[Epoch]:
    """Train `module`, (N, C, resolution, resolution) -> (N, classes), in place; one row per epoch.

    With `checkpoint`, a row is on disk before it is yielded; where that file holds an earlier part of this very run,
    its rows come first and training goes on from there. A file that is damaged or from another run is put aside (see
    resume_checkpoint). `identity` names the network, by its arch id, in the checkpoint. Raises TrialFailed when a loss
    is not finite, OSError with errno and path when the checkpoint cannot be written.
    """
    device = torch.device(device)
    recipe = lookup(RECIPES, options.recipe, "recipe")
    if len(data.train) < 2:
        raise TrialFailed(f"{len(data.train)} training images are too few for batch statistics; give 2 or more")
    module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    optimiser = NesterovSGD(module, recipe)
    run = describe_run(module, data, options, resolution=resolution, seed=seed, identity=identity)
    rows: list[Epoch] = []
    if checkpoint and (stored := resume_checkpoint(checkpoint, run)):
        module.load_state_dict(stored.module)
        optimiser.load(stored.momenta)
        rows = [Epoch(**row) for row in stored.rows]
        yield from rows
    if len(rows) == options.epochs:
        return
    training, validation = (_place(split, resolution, device) for split in (data.train, data.validation))
    for number in range(len(rows) + 1, options.epochs + 1):
        started = time.perf_counter()
        generator = make_generator(seed, number, device)
        losses, correct, rate = _train_epoch(module, optimiser, training, data, options, number, generator)
        trained = time.perf_counter()
        _check_finite(losses, number, rows)
        recalibrate(module, _statistics_batches(training, data, generator))
        loss, accuracy = evaluate(module, validation, data, resolution=resolution)
        if not math.isfinite(loss):
            last = f"the last finite training loss was {losses[-1]:.4g}"
            raise TrialFailed(f"the validation loss became {loss} in epoch {number}; {last}; try a lower learning rate")
        row = Epoch(
            epoch=number,
            train_loss=math.fsum(losses) / len(losses),
            train_accuracy=correct / len(training),
            validation_loss=loss,
            validation_accuracy=accuracy,
            learning_rate=rate,
            images_per_second=len(training) / (trained - started),
            seconds=time.perf_counter() - started,
        )
        rows.append(row)
        if checkpoint:
            momenta = optimiser.momenta if number < options.epochs else None
            stored = Checkpoint(run, [asdict(row) for row in rows], module.state_dict(), momenta)
            save_checkpoint(checkpoint, stored)
        yield row


def _train_epoch(
    module: nn.Module,
    optimiser: NesterovSGD,
    training: Split,
    data: Data,
    options: TrainingOptions,
    number: int,
    generator: torch.Generator,
) -> tuple[list[float], int, float]:
    """All steps of epoch `number`: the loss of each, how many images were classified right, the last learning rate.

    The images are parted evenly, so that each is seen once and no batch norm meets a remainder of one image.
    """
    recipe, count, device = optimiser.recipe, len(training), training.labels.device
    steps = _steps(count, options)
    padding = round(recipe.crop * training.images.shape[-1])
    record = torch.zeros(2, steps, device=device)  # loss and right answers of each step, read once at the end
    rate = 0.0
    module.train()
    with _seeded_dropout(generator, device):
        order = torch.randperm(count, generator=generator, device=device)
        for step, chosen in enumerate(order.tensor_split(steps)):
            rate = one_cycle(recipe, options, (number - 1) * steps + step, options.epochs * steps)
            images = augment(training.images[chosen], generator, padding, data.facts.flip)
            labels = training.labels[chosen]
            logits = module(normalise(images, data.mean, data.std))
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimiser.step(rate)
            record[0, step] = loss.detach()
            record[1, step] = (logits.detach().argmax(1) == labels).sum()
    losses, correct = record.tolist()
    return losses, int(sum(correct)), rate


@torch.no_grad()
def evaluate(module: nn.Module, split: Split, data: Data, *, resolution: int) -> tuple[float, float]:
    """Mean cross entropy in nats and accuracy 0..1 of `module` on `split`, on the module's device.

    Images are brought to `resolution` and normalised as `data`'s training images. Leaves the module in eval mode.
    """
    split = _place(split, resolution, next(module.parameters()).device)
    total = torch.zeros(2, device=split.labels.device)
    module.eval()
    size = max(1, EVALUATION_PIXELS // resolution**2)
    for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
        logits = module(normalise(images, data.mean, data.std))
        total[0] += F.cross_entropy(logits, labels, reduction="sum")
        total[1] += (logits.argmax(1) == labels).sum()
    loss, correct = total.tolist()
    return loss / len(split), correct / len(split)


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterator[Tensor]) -> None:
    """Replace every batch norm's running statistics by plain means over `batches`. Leaves the module in eval mode.

    Running averages lag far behind after few steps, and networks then validate near chance. Training never reads them,
    so it is not disturbed; checkpoints hold them, so saved weights are the network that was validated.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    module.eval()  # dropout off
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        for index, batch in enumerate(batches if norms else ()):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # the mean so far; momentum None would wait for the device to say it
            module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


class NesterovSGD:
    """torch.optim.SGD(nesterov=True), step for step, with the recipe's weight decay where it belongs.

    Written out because constructing any torch.optim class imports torch._dynamo: 2 to 7 s and 150 MB in every worker.
    """

    def __init__(self, module: nn.Module, recipe: Recipe):
        self.recipe = recipe
        self.parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.momenta = [torch.zeros_like(p) for p in self.parameters]
        weights = {id(part.weight) for part in module.modules() if _has_weight_decay(part)}
        self._decayed = [i for i, p in enumerate(self.parameters) if id(p) in weights]

    def load(self, momenta: list[Tensor] | None) -> None:
        """Take over stored momenta, in the order of the parameters; None leaves them."""
        for own, stored in zip(self.momenta, momenta or self.momenta, strict=True):
            own.copy_(stored)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the parameters along their gradients and clear these."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        decayed = [self.parameters[i] for i in self._decayed]
        torch._foreach_add_([gradients[i] for i in self._decayed], decayed, alpha=self.recipe.weight_decay)
        torch._foreach_mul_(self.momenta, self.recipe.momentum)
        torch._foreach_add_(self.momenta, gradients)
        torch._foreach_add_(gradients, self.momenta, alpha=self.recipe.momentum)
        torch._foreach_add_(self.parameters, gradients, alpha=-learning_rate)
        for p in self.parameters:
            p.grad = None


def _has_weight_decay(part: nn.Module) -> bool:
    depthwise = isinstance(part, nn.Conv2d) and 1 < part.groups == part.in_channels
    return isinstance(part, nn.Conv2d | nn.Linear) and not depthwise


def one_cycle(recipe: Recipe, options: TrainingOptions, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) of `steps`: linear to the peak over the warm-up share, then towards 0."""
    peak = options.learning_rate or recipe.learning_rate * options.batch_size / recipe.reference_batch
    warmup = min(max(1, round(recipe.warmup * steps)), steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / (steps + 1 - warmup)
    return peak * (1 - done if recipe.anneal == "linear" else (1 + math.cos(math.pi * done)) / 2)


# ---------------------------------------------------------------- small parts of the loop


def describe_run(
    module: nn.Module, data: Data, options: TrainingOptions, *, resolution: int, seed: int, identity: str = ""
) -> dict[str, Any]:
    """All that decides a run's curve, JSON-able: runs with equal descriptions may continue each other."""
    weights = json.dumps([[name, list(value.shape)] for name, value in module.state_dict().items()])
    recipe = lookup(RECIPES, options.recipe, "recipe")
    return {
        "network": identity,
        "weights": hashlib.sha256(weights.encode()).hexdigest()[:12],
        "seed": seed,
        "resolution": resolution,
        "data": data.digest,
        "flip": data.facts.flip,
        **{f"training.{name}": value for name, value in asdict(options).items()},
        **{f"recipe.{name}": value for name, value in asdict(recipe).items()},
    }


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


def _place(split: Split, resolution: int, device: torch.device) -> Split:
    """The split on `device` at `resolution`; no copy where it is there already."""
    return Split(resize(split.images.to(device), resolution), split.labels.to(device))


def _statistics_batches(training: Split, data: Data, generator: torch.Generator) -> Iterator[Tensor]:
    """Up to STATISTICS_IMAGES training images in even batches of two or more; not augmented, as validation is not."""
    count = min(STATISTICS_IMAGES, len(training))
    size = max(2, EVALUATION_PIXELS // training.images.shape[-1] ** 2)
    chosen = torch.randperm(len(training), generator=generator, device=training.labels.device)[:count]
    for part in chosen.tensor_split(min(math.ceil(count / size), count // 2)):
        yield normalise(training.images[part], data.mean, data.std)


def _check_finite(losses: list[float], epoch: int, rows: list[Epoch]) -> None:
    """Raises TrialFailed at the first loss of the epoch that is no number."""
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            last = losses[step - 1] if step else rows[-1].train_loss if rows else None
            before = "there was no finite loss before" if last is None else f"the last finite loss was {last:.4g}"
            raise TrialFailed(
                f"the training loss became {loss} in epoch {epoch}, step {step + 1} of {len(losses)}; {before}; "
                "try a lower learning rate"
            )


# Measured on digits at 24 and 32 pixels, widths 0.1 to 1, 5 epochs: a peak of 0.2 at batch 128 (0.1 at 64, 0.05 at 32)
# trained every width at every batch size; 0.3 was a little better for small networks and lost width 1 at batch 128.
# Cropping by 1/16 beat 1/8 by 2 to 9 points at so few epochs.
RECIPES: dict[str, Recipe] = {
    "default": Recipe(learning_rate=0.2),
}
