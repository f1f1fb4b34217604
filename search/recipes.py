"""How networks are trained, as data: recipes, and what a space may change of them.

To add a recipe, write its row in RECIPES at the foot; every field of `Recipe` can also be set in a space file under
`training`, for one space or as a parameter to search over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup

__all__ = ["RECIPES", "SCHEDULES", "Recipe", "TrainingOptions"]

DECAYED = ("weights", "linear", "all")
ANNEALS = ("cosine", "linear")


@dataclass(frozen=True)
class Recipe:
    """How to train a network.

    `learning_rate` is the peak for `reference_batch` images and scales with the batch size (None: it does not). The
    schedule moves it: one_cycle climbs over the share `warmup` of the steps and falls towards 0 by `anneal`;
    exponential multiplies it by `decay_rate` every `decay_epochs`. `momentum` is that of SGD (Nesterov's) and of
    RMSprop, and Adam's first; `second_momentum` the memory of squared gradients in Adam and RMSprop, `epsilon` added to
    their root.

    `weight_decay` is added to the gradients of `decayed`: the "weights" of convolutions and linear layers without
    depthwise filters, norms and biases (arXiv 1704.04861, section 3), those of "linear" layers alone, or "all".
    `clip_norm` bounds the norm of the whole gradient; 0 does not.

    `crop` is the padding of the random crop and `cutout` the side of the blanked square, as shares of the resolution;
    `flip` mirrors half of the images where the data allow it; `mixup` is the alpha of the mixing weights; 0 is off.

    `average` is the memory of the averaged weights (EMA) that are validated and kept; 0 keeps the last ones.
    `recalibrate` re-estimates batch-norm statistics on training images before each validation.

    With a teacher, the loss is its `teacher_weight` times the divergence from the teacher's softened probabilities (by
    `teacher_temperature`; Hinton et al., arXiv 1503.02531, section 2) plus the rest times the labels' cross entropy.
    """

    learning_rate: float
    reference_batch: int | None = 128
    optimiser: str = "sgd"
    schedule: str = "one_cycle"
    warmup: float = 0.25
    anneal: str = "cosine"
    decay_rate: float = 0.94
    decay_epochs: float = 2.0
    momentum: float = 0.9
    second_momentum: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 5e-4
    decayed: str = "weights"
    clip_norm: float = 0.0
    label_smoothing: float = 0.1
    crop: float = 0.0625
    flip: bool = True
    cutout: float = 0.0
    mixup: float = 0.0
    average: float = 0.0
    recalibrate: bool = True
    teacher_weight: float = 0.9
    teacher_temperature: float = 4.0

    def __post_init__(self) -> None:
        for name, (words, good) in _LIMITS.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not (number and good(value)):
                raise MnetError(f"training.{name}: {value!r} is not a number {words}")
        lookup(SCHEDULES, self.schedule, "schedule")
        for name, known in (("anneal", ANNEALS), ("decayed", DECAYED)):
            if getattr(self, name) not in known:
                raise MnetError(f"training.{name}: {getattr(self, name)!r} is not known (known: {', '.join(known)})")
        for name in ("flip", "recalibrate"):
            if not isinstance(getattr(self, name), bool):
                raise MnetError(f"training.{name}: {getattr(self, name)!r} is not true or false")


_SHARE = ("from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE = ("from 0 to below 1", lambda value: 0 <= value < 1)
_POSITIVE = ("above 0", lambda value: value > 0)
_FROM_ZERO = ("from 0 up", lambda value: value >= 0)
_LIMITS = {
    "learning_rate": ("above 0; leave it out for the recipe's own", lambda value: value > 0),
    "warmup": _SHARE,
    "decay_rate": ("above 0, up to 1", lambda value: 0 < value <= 1),
    "decay_epochs": _POSITIVE,
    "momentum": _BELOW_ONE,
    "second_momentum": _BELOW_ONE,
    "epsilon": _POSITIVE,
    "weight_decay": _FROM_ZERO,
    "clip_norm": _FROM_ZERO,
    "label_smoothing": _BELOW_ONE,
    "crop": _SHARE,
    "cutout": _SHARE,
    "mixup": _FROM_ZERO,
    "average": _BELOW_ONE,
    "teacher_weight": _SHARE,
    "teacher_temperature": _POSITIVE,
}


@dataclass(frozen=True)
class TrainingOptions:
    """What a space says about training: a recipe, what it changes of it (None: as the recipe has it), and how long.

    `learning_rate` is the peak for the batch size as it is; the recipe's own is scaled to it. `teacher` is a network to
    learn from: a checkpoint of a trained network, or torchvision:NAME with its published weights.
    """

    recipe: str = "default"
    epochs: int = 8
    batch_size: int = 128
    teacher: str | None = None
    learning_rate: float | None = None
    optimiser: str | None = None
    schedule: str | None = None
    warmup: float | None = None
    anneal: str | None = None
    decay_rate: float | None = None
    decay_epochs: float | None = None
    momentum: float | None = None
    second_momentum: float | None = None
    epsilon: float | None = None
    weight_decay: float | None = None
    decayed: str | None = None
    clip_norm: float | None = None
    label_smoothing: float | None = None
    crop: float | None = None
    flip: bool | None = None
    cutout: float | None = None
    mixup: float | None = None
    average: float | None = None
    recalibrate: bool | None = None
    teacher_weight: float | None = None
    teacher_temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MnetError(f"training.{name}: {value!r} is not a whole number from 1 up")
        self.resolved()

    def resolved(self) -> Recipe:
        """The recipe with its changes, its learning rate that of this batch size. Raises MnetError for values that
        cannot be.
        """
        recipe = lookup(RECIPES, self.recipe, "recipe")
        if not isinstance(recipe, Recipe):
            raise MnetError(f"recipe {self.recipe!r} is a {type(recipe).__name__}; it must be a Recipe")
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)}
        changes: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "learning_rate" not in changes and recipe.reference_batch:
            changes["learning_rate"] = recipe.learning_rate * self.batch_size / recipe.reference_batch
        return replace(recipe, **changes)


# ---------------------------------------------------------------- schedules: the share of the peak at a step


@dataclass(frozen=True)
class Position:
    """Where a step is in a run: `step` from 0 of `steps`, `per_epoch` of them in an epoch."""

    step: int
    steps: int
    per_epoch: int


def _one_cycle(recipe: Recipe, at: Position) -> float:
    """Linear to the peak over the warm-up's share of the steps, then towards 0 by `anneal` (arXiv 1708.07120)."""
    warmup = min(max(1, round(recipe.warmup * at.steps)), at.steps)
    if at.step < warmup:
        return (at.step + 1) / warmup
    done = (at.step + 1 - warmup) / (at.steps + 1 - warmup)
    return 1 - done if recipe.anneal == "linear" else (1 + math.cos(math.pi * done)) / 2


def _constant(_recipe: Recipe, _at: Position) -> float:
    return 1.0


def _exponential(recipe: Recipe, at: Position) -> float:
    """In steps, every `decay_epochs` (Szegedy et al., arXiv 1512.00567, section 8)."""
    return recipe.decay_rate ** math.floor(at.step / (recipe.decay_epochs * at.per_epoch) + 1e-9)


SCHEDULES: dict[str, Callable[[Recipe, Position], float]] = {
    "one_cycle": _one_cycle,
    "constant": _constant,
    "exponential": _exponential,
}

# `default`, measured with MobileNetV1 in six forms (widths 0.1 to 1, three blocks) on digits at 24 pixels, 5 epochs of
# 9 steps, two seeds each: mean accuracy 92.2 % at a peak of 0.3 with the gradient's norm bounded by 2; 90.9 at 0.2,
# 73.0 at 0.3 and 66.7 at 0.4 without the bound, where the widest are lost; 85.4 at 0.4 with a bound of 1, where the
# narrowest are. On CIFAR-10, width 1, 4 epochs, one seed: 70.2 %; 71.4 at 0.4 without the bound (71.2 without label
# smoothing). Cropping by 1/16 beat 1/8 by 2 to 9 points on digits at so few epochs.
RECIPES: dict[str, Recipe] = {
    "default": Recipe(learning_rate=0.3, clip_norm=2.0),
    # MobileNetV1 (arXiv 1704.04861, section 3): RMSprop as for Inception V3 (arXiv 1512.00567, section 8), little
    # augmentation, no label smoothing, hardly any weight decay and none on depthwise filters.
    "paper": Recipe(
        learning_rate=0.045,
        reference_batch=None,
        optimiser="rmsprop",
        schedule="exponential",
        second_momentum=0.9,
        epsilon=1.0,
        weight_decay=4e-5,
        clip_norm=2.0,
        label_smoothing=0.0,
    ),
    # What people write by hand: Adam at its defaults, nothing else.
    "adam_plain": Recipe(
        learning_rate=1e-3,
        reference_batch=None,
        optimiser="adam",
        schedule="constant",
        weight_decay=0.0,
        decayed="linear",
        label_smoothing=0.0,
        crop=0.0,
        flip=False,
        recalibrate=False,
    ),
}
