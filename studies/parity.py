"""Whether an exported file computes what the trained network computes, on real validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnet_search.models.arch import MnetError
from mnet_search.studies.trained import Trained

Scores = npt.NDArray[np.float32]
TOLERANCE = 1e-4
"""Of a score's difference, in multiples of max(1, |score|)."""
BATCH_PIXELS = 2**19  # in one batch: 512 images of 32x32, 10 of 224x224


@dataclass(frozen=True)
class Parity:
    """An exported file beside torch. `max_difference` is the largest of all scores', `max_relative` that in multiples
    of max(1, |score|); the rest are shares of images.
    """

    images: int
    max_difference: float
    max_relative: float
    same_top1: float
    accuracy: float
    accuracy_torch: float


def check(trained: Trained, run: Callable[[npt.NDArray[np.uint8]], Scores], name: str) -> Parity:
    """Compare `run`, from uint8 images (N, C, H, W) to scores, with training's own normalisation and module.

    Raises MnetError where a score differs by more than TOLERANCE.
    """
    import torch

    checked = trained.images.checked
    given, expected, step = [], [], batch_size(checked.images.shape)
    for start in range(0, len(checked), step):
        batch = checked.images[start : start + step]
        given.append(run(batch))
        with torch.no_grad():
            expected.append(trained.module(torch.from_numpy(trained.images.normalise(batch))).numpy())
    found = compare(np.concatenate(given), np.concatenate(expected), checked.labels)
    if not found.max_relative <= TOLERANCE:  # nan too
        raise MnetError(
            f"{name}: its scores differ from the trained network's by up to {found.max_difference:.3g} on "
            f"{found.images} validation images ({found.max_relative:.3g} of max(1, |score|), {TOLERANCE:g} is "
            "allowed); it is not written. --format config,weights holds the network itself"
        )
    return found


def compare(given: Scores, expected: Scores, labels: npt.NDArray[np.int64]) -> Parity:
    """Scores (N, K) of a file and of torch, and the classes (N,)."""
    difference = np.abs(given - expected)
    top = given.argmax(1)
    return Parity(
        images=len(labels),
        max_difference=float(difference.max()),
        max_relative=float((difference / np.maximum(1, np.abs(expected))).max()),
        same_top1=float((top == expected.argmax(1)).mean()),
        accuracy=float((top == labels).mean()),
        accuracy_torch=float((expected.argmax(1) == labels).mean()),
    )


def batch_size(shape: tuple[int, ...]) -> int:
    """Images of shape (N, C, H, W) in one batch."""
    return max(1, BATCH_PIXELS // (shape[2] * shape[3]))
