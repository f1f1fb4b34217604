"""Images for the search: one fixed, stratified split in memory as uint8, and the training loop's pixel operations.

The search sees training and validation images only (`load`); `load_test` is for the one figure that is reported at the
end. Where images come from is in `data_sources` and `data_files`; nothing here needs more than torch and numpy.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnet_search.search.data_files import Array, DataError, DataOptions, Facts, Pixels, Source, check_labels
from mnet_search.search.data_sources import DATASETS, describe, open_source

__all__ = [
    "DATASETS",
    "Data",
    "DataError",
    "DataOptions",
    "Facts",
    "Indices",
    "Source",
    "Split",
    "augment",
    "describe",
    "load",
    "load_test",
    "normalise",
    "resize",
    "split_indices",
    "stratified_subset",
]

RESIZE_CHUNK_BYTES = 64 * 2**20
"""Of float32 images, input or output whichever is larger, that `resize` holds at once."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W), channels_last in memory, and labels int64 (N,). Shared in the process: read only."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Data:
    """What a search may see.

    `mean` and `std` are per channel of the training images, as fractions 0..1 of white. `digest` is the SHA-256 of both
    parts' pixels and labels, by which two results can be known to rest on the same images.
    """

    facts: Facts
    train: Split
    validation: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str


@dataclass(frozen=True, eq=False)
class Indices:
    """A split as ascending positions in the source: disjoint, and together every image once."""

    train: Array
    validation: Array
    test: Array


@functools.lru_cache(maxsize=2)
def load(options: DataOptions) -> Data:
    """Training and validation images, never test images; read once per process, as a reused worker runs many trials."""
    source = open_source(options)
    facts = source.facts
    images, labels = _checked(source.train(), facts, f"{facts.name} train")
    _all_present(labels, facts)
    parts = _parts(source, labels, options)
    chosen = parts.train
    if options.limit is not None:
        chosen = chosen[stratified_subset(labels[chosen], options.limit, options.split_seed)]
    train = _split(images, labels, chosen)
    if source.validation:
        images, labels = _checked(source.validation(), facts, f"{facts.name} validation")
        validation = _split(images, labels, np.arange(len(labels)))
    else:
        validation = _split(images, labels, parts.validation)
    mean, std = _statistics(train.images)
    return Data(facts, train, validation, mean, std, _digest(train, validation))


def load_test(options: DataOptions) -> Split:
    """The held-out images: the source's own test part, else those that `load` leaves out under the same options."""
    source = open_source(options)
    facts = source.facts
    if source.test:
        images, labels = _checked(source.test(), facts, f"{facts.name} test")
        return _split(images, labels, np.arange(len(labels)))
    images, labels = _checked(source.train(), facts, f"{facts.name} train")
    _all_present(labels, facts)
    return _split(images, labels, _parts(source, labels, options).test)


# ---------------------------------------------------------------- reading and checking


def _checked(pixels: Pixels, facts: Facts, where: str) -> Pixels:
    """The same images and int64 labels, known to be what the facts say; every source passes here, users' own too."""
    images, labels = pixels[0], check_labels(pixels[1], where)
    if images.dtype != np.uint8:
        raise DataError(f"{where}: images are {images.dtype}; give uint8 from 0 to 255")
    if images.shape[1:] != (facts.channels, facts.height, facts.width):
        expected = f"(N, {facts.channels}, {facts.height}, {facts.width})"
        raise DataError(f"{where}: images have shape {images.shape} as (N, C, H, W), but {expected} was expected")
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"{where}: {len(images)} images and {len(labels)} labels; give as many of both, and at least one"
        )
    if labels.max() >= facts.classes:
        at = int(labels.argmax())
        raise DataError(
            f"{where}: label {labels[at]} at index {at} is out of range; there are {facts.classes} classes, numbered "
            "from 0"
        )
    return images, labels


def _all_present(labels: Array, facts: Facts) -> None:
    counts = np.bincount(labels, minlength=facts.classes)
    if facts.classes < 2 or not counts.all():
        lacking = ", ".join(facts.class_names[c] for c in np.flatnonzero(counts == 0)[:5])
        reason = f"no training image of class {lacking}" if lacking else "only one class"
        raise DataError(f"{facts.name}: {reason}; give at least two classes, each with images")


def _split(images: Array, labels: Array, indices: Array) -> Split:
    # On one CPU thread channels_last storage makes `normalise` 5 times faster, and indexing and cropping keep it.
    chosen = torch.from_numpy(images[indices]).contiguous(memory_format=torch.channels_last)
    return Split(chosen, torch.from_numpy(labels[indices]))


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation per channel, from histograms and so without a float copy of the images."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        shares = torch.bincount(images[:, channel].reshape(-1), minlength=256).double()
        shares /= shares.sum()
        mean = float((shares * levels).sum())
        means.append(mean)
        # A channel of one value has no deviation to divide by.
        stds.append(max(float((shares * (levels - mean) ** 2).sum()) ** 0.5, 1 / 255))
    return tuple(means), tuple(stds)


def _digest(*splits: Split) -> str:
    sha256 = hashlib.sha256()
    for split in splits:
        for array in (split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.numpy()):
            sha256.update(repr(array.shape).encode())
            sha256.update(array.reshape(-1).data)
    return sha256.hexdigest()


# ---------------------------------------------------------------- splitting


def _parts(source: Source, labels: Array, options: DataOptions) -> Indices:
    """The source's own parts stay as they are; only what it lacks is cut from its training images."""
    validation = 0.0 if source.validation else options.validation
    test = 0.0 if source.test else options.test
    return split_indices(
        labels, validation=validation, test=test, seed=options.split_seed, class_names=source.facts.class_names
    )


def split_indices(
    labels: Array, *, validation: float, test: float, seed: int, class_names: tuple[str, ...] = ()
) -> Indices:
    """Labels int (N,) -> three parts, drawn class by class: round(fraction * count) to test and to validation each.

    A fraction of 0 asks for no such part. The test part does not depend on `validation`. Raises DataError where a class
    would be absent from a part that is asked for.
    """
    counts = np.bincount(labels)
    n_test, n_validation = (np.floor(fraction * counts + 0.5).astype(np.int64) for fraction in (test, validation))
    n_train = counts - n_test - n_validation
    asked = [("train", n_train, 1.0), ("validation", n_validation, validation), ("test", n_test, test)]
    for part, n, fraction in asked:
        for label in np.flatnonzero((n < 1) & (counts > 0)) if fraction else ():
            name = class_names[label] if class_names else label
            fractions = " and ".join(f"{key} {value}" for key, _, value in asked[1:] if value)
            raise DataError(
                f"{fractions}: no image of class {name} ({counts[label]} in all) is left for {part}; change the "
                "fractions or add images"
            )
    rank = _rank_in_class(labels, seed)
    in_test = rank < n_test[labels]
    in_validation = ~in_test & (rank < (n_test + n_validation)[labels])
    return Indices(np.flatnonzero(~in_test & ~in_validation), np.flatnonzero(in_validation), np.flatnonzero(in_test))


def stratified_subset(labels: Array, limit: int, seed: int) -> Array:
    """Labels int (N,) -> ascending positions of `limit` of them (or all), classes in proportion, at least one of each.

    Seats are given by Webster's method, so a larger limit contains every smaller one. Raises DataError for fewer images
    than classes.
    """
    counts = np.bincount(labels)
    if limit < np.count_nonzero(counts):
        raise DataError(
            f"data.limit: {limit} images cannot show all {np.count_nonzero(counts)} classes; give at least one image "
            "per class"
        )
    rank = _rank_in_class(labels, seed)
    turn = np.where(rank == 0, 0.0, (rank + 0.5) / counts[labels])
    return np.sort(np.lexsort((labels, turn))[:limit])


def _rank_in_class(labels: Array, seed: int) -> Array:
    """A random order within each class, as each image's place in it (0, 1, ...).

    The raw stream of a bit generator is fixed for ever, where NumPy may change what `Generator.permutation` draws from
    it (NEP 19).
    """
    keys = np.random.PCG64(seed).random_raw(len(labels))
    order = np.lexsort((keys, labels))
    starts = np.cumsum(np.bincount(labels)) - np.bincount(labels)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank


# ---------------------------------------------------------------- pixels


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, resolution, resolution), bilinear, antialiased where it shrinks.

    Returns the input itself where nothing changes. Works in chunks of `RESIZE_CHUNK_BYTES`, so 50,000 images need
    little more than the result. The CPU's own uint8 kernel (4 to 20 times faster) rounds within, so it may differ from
    a GPU's result by one grey step.
    """
    _demand_images(images, "resize")
    if resolution < 1:
        raise ValueError(f"resize: resolution {resolution} is not a number of pixels")
    count, channels, height, width = images.shape
    if (height, width) == (resolution, resolution):
        return images
    shape = (count, channels, resolution, resolution)
    result = torch.empty(shape, dtype=torch.uint8, device=images.device, memory_format=torch.channels_last)
    step = max(1, RESIZE_CHUNK_BYTES // (4 * channels * max(height * width, resolution**2)))
    for start in range(0, count, step):
        # torch 2.15's uint8 kernel stops with an internal assert on three contiguous channels to one pixel.
        chunk = images[start : start + step].contiguous(memory_format=torch.channels_last)
        pixels = chunk if chunk.device.type == "cpu" else chunk.float()
        pixels = F.interpolate(pixels, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
        result[start : start + step] = pixels if pixels.dtype == torch.uint8 else pixels.round_().clamp_(0, 255)
    return result


def augment(batch: Tensor, generator: torch.Generator, padding: int, flip: bool) -> Tensor:
    """uint8 (N, C, H, W) -> the same: each image cut from its black-padded self at its own place, half of them
    mirrored.

    The draws come from `generator` on the generator's own device, so a CPU generator gives the same crops on every
    device.
    """
    _demand_images(batch, "augment")
    if padding < 0:
        raise ValueError(f"augment: padding {padding} is negative")
    count, _, height, width = batch.shape

    def draw(choices: int) -> Tensor:
        drawn = torch.randint(choices, (count,), generator=generator, device=generator.device)
        return drawn.to(batch.device, non_blocking=True)

    padded = F.pad(batch, (padding,) * 4)
    top, left, mirrored = draw(2 * padding + 1), draw(2 * padding + 1), draw(2 if flip else 1)
    # Every window of every image is a view; one indexed copy takes the drawn ones, far faster than indexing pixels.
    variants = torch.stack([padded, padded.flip(3)]) if flip else padded[None]
    windows = variants.unfold(3, height, 1).unfold(4, width, 1)
    return windows[mirrored, torch.arange(count, device=batch.device), :, top, left]


def normalise(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N, C, H, W) -> float32 (N, C, H, W) in channels_last memory: (pixel / 255 - mean) / std per channel."""
    _demand_images(batch, "normalise")
    if not len(mean) == len(std) == batch.shape[1]:
        raise ValueError(f"normalise: {len(mean)} means and {len(std)} deviations for {batch.shape[1]} channels")
    shift, scale = _per_channel(mean, batch.device), _per_channel(std, batch.device)
    return batch.to(torch.float32, memory_format=torch.channels_last).sub_(shift).div_(scale)


@functools.lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Statistics in grey values, (1, C, 1, 1). Kept, since a tensor made on a GPU makes the step loop wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1) * 255


def _demand_images(images: Tensor, where: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"{where}: images are {images.dtype} of shape {tuple(images.shape)}; uint8 (N, C, H, W) is needed"
        )
