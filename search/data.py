"""Images for the search: one fixed, stratified split, in memory as uint8 or decoded on the way.

The search sees training and validation images only (`load`); `load_test` is for the one figure that is reported at the
end. Where images come from is in `data_sources` and `data_files`, how processes share one copy of them in `data_cache`;
nothing here needs more than torch and numpy.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnet_search.search.data_files import (
    Array,
    DataError,
    DataOptions,
    Facts,
    Part,
    Pictures,
    Source,
    check_labels,
)
from mnet_search.search.data_maps import (
    IMAGES_SUFFIX,
    image_chunks,
    image_file_bytes,
    map_images,
    one_writer,
    write_whole,
)
from mnet_search.search.data_sources import DATASETS, describe, open_source
from mnet_search.search.data_stream import StreamedSplit, streamed_digest, streamed_statistics
from mnet_search.search.pixels import augment, cutout, mixup, normalise, resize

__all__ = [
    "DATASETS",
    "Data",
    "DataError",
    "DataOptions",
    "Facts",
    "Indices",
    "Source",
    "Split",
    "StreamedSplit",
    "augment",
    "cutout",
    "describe",
    "load",
    "load_test",
    "mixup",
    "normalise",
    "read",
    "resize",
    "split_indices",
    "stratified_subset",
]

RESIZED_CACHE_BYTES = 2 * 2**30
"""Of resized images: in one file beside the mapped ones, and of all that one split remembers in memory."""
PLACEMENTS = 3
"""(resolution, device) pairs that a split remembers at most."""
FILES_DIGEST = "files-"
"""Begins the digest of streamed data, which is of names and sizes and not of pixels."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W), channels_last in memory, and labels int64 (N,). Shared in the process: read only.

    `home` is the path without its ending of the files that images and labels are mapped from, where they are.
    """

    images: Tensor
    labels: Tensor
    home: Path | None = None
    _placed: dict[tuple[int, torch.device], Split] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, resolution: int, device: torch.device) -> Split:
        """The split with images (N, C, resolution, resolution) on `device`; itself where nothing changes.

        Remembered, since a reused worker trains many networks at few resolutions. Resized images of a mapped split
        are written beside its own up to RESIZED_CACHE_BYTES and mapped as well, for all processes.
        """
        key = (resolution, device)
        if key in self._placed:
            return self._placed[key]
        resized = self.images.shape[-2:] != (resolution, resolution)
        if not resized and torch.empty(0, device=device).device == self.images.device:
            return self
        self._make_room(image_file_bytes(self.images, resolution))
        source = self._mapped(resolution) if resized else self
        images = resize(self.images.to(device), resolution) if source is None else source.images.to(device)
        home = source.home if source is not None and images is source.images else None
        self._placed[key] = Split(images, self.labels.to(device), home)
        return self._placed[key]

    def batches(self, parts: Iterable[Tensor], seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions (n,) -> images uint8 (n, C, H, W) and labels (n,), for each of `parts`; `seed` is for streams."""
        for part in parts:
            yield self.images[part], self.labels[part]

    def _make_room(self, coming: int) -> None:
        """Forget the oldest placements while there are too many, or too much private memory with what is coming."""

        def private() -> int:
            return sum(split.images.nbytes for split in self._placed.values() if split.home is None)

        while self._placed and (len(self._placed) >= PLACEMENTS or private() + coming > RESIZED_CACHE_BYTES):
            del self._placed[next(iter(self._placed))]

    def _mapped(self, resolution: int) -> Split | None:
        """The resized split in a file beside the mapped images, written where it is not there; None where it may not
        or cannot be.
        """
        size = image_file_bytes(self.images, resolution)
        if self.home is None or size > RESIZED_CACHE_BYTES:
            return None
        home = self.home.with_name(f"{self.home.name}-{resolution}")
        path = home.with_suffix(IMAGES_SUFFIX)
        try:
            if not _has_size(path, size):
                with one_writer(path):
                    if not _has_size(path, size):
                        chunks = image_chunks(self.images, resolution)
                        write_whole(path, (resize(chunk, resolution) for chunk in chunks))
            images = map_images(path, (*self.images.shape[:2], resolution, resolution))
        except (OSError, RuntimeError):  # a full disk, or a folder that was removed: sharing is only an economy
            return None
        return Split(images, self.labels, home)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@dataclass(frozen=True, eq=False)
class Data:
    """What a search may see.

    `mean` and `std` are per channel of the training images, as fractions 0..1 of white. `digest` is the SHA-256 of both
    parts' pixels and labels, by which two results can be known to rest on the same images; for streamed pictures it is
    "files-" and the SHA-256 of their names and sizes.
    """

    facts: Facts
    train: Split | StreamedSplit
    validation: Split | StreamedSplit
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
    """`read`, once per process: a reused worker runs many trials."""
    return read(options)


def read(options: DataOptions) -> Data:
    """Training and validation images, never test images, as private memory of this process unless they are streamed."""
    source = open_source(options)
    facts = source.facts
    part, labels = _checked(source.train(), facts, f"{facts.name} train")
    if options.stream and not isinstance(part, Pictures):
        raise DataError(f"data.stream: {facts.name} is not read from a folder of pictures; leave it out")
    _all_present(labels, facts)
    parts = _parts(source, labels, options)
    train = _split(part, labels, _kept(labels, parts.train, options), facts)
    if source.validation:
        part, labels = _checked(source.validation(), facts, f"{facts.name} validation")
        validation = _split(part, labels, np.arange(len(labels)), facts)
    else:
        validation = _split(part, labels, parts.validation, facts)
    mean, std = streamed_statistics(train) if isinstance(train, StreamedSplit) else _statistics(train.images)
    return Data(facts, train, validation, mean, std, _digest(train, validation))


def load_test(options: DataOptions) -> Split | StreamedSplit:
    """The held-out images: the source's own test part, else those that `load` leaves out under the same options."""
    source = open_source(options)
    facts = source.facts
    if source.test:
        part, labels = _checked(source.test(), facts, f"{facts.name} test")
        return _split(part, labels, np.arange(len(labels)), facts)
    part, labels = _checked(source.train(), facts, f"{facts.name} train")
    _all_present(labels, facts)
    return _split(part, labels, _parts(source, labels, options).test, facts)


# ---------------------------------------------------------------- reading and checking


def _checked(part: Part, facts: Facts, where: str) -> tuple[Part, Array]:
    """The same images and their int64 labels, known to be what the facts say; every source passes here, users' too."""
    given = part.labels if isinstance(part, Pictures) else part[1]
    labels = check_labels(given, where)
    if not isinstance(part, Pictures):
        _check_pixels(part[0], facts, where)
    count = len(part.names) if isinstance(part, Pictures) else len(part[0])
    if count != len(labels) or not len(labels):
        raise DataError(f"{where}: {count} images and {len(labels)} labels; give as many of both, and at least one")
    if labels.max() >= facts.classes:
        at = int(labels.argmax())
        raise DataError(
            f"{where}: label {labels[at]} at index {at} is out of range; there are {facts.classes} classes, numbered "
            "from 0"
        )
    return part, labels


def _check_pixels(images: Array, facts: Facts, where: str) -> None:
    if images.dtype != np.uint8:
        raise DataError(f"{where}: images are {images.dtype}; give uint8 from 0 to 255")
    if images.shape[1:] != (facts.channels, facts.height, facts.width):
        expected = f"(N, {facts.channels}, {facts.height}, {facts.width})"
        raise DataError(f"{where}: images have shape {images.shape} as (N, C, H, W), but {expected} was expected")


def _all_present(labels: Array, facts: Facts) -> None:
    counts = np.bincount(labels, minlength=facts.classes)
    if facts.classes < 2 or not counts.all():
        lacking = ", ".join(facts.class_names[c] for c in np.flatnonzero(counts == 0)[:5])
        reason = f"no training image of class {lacking}" if lacking else "only one class"
        raise DataError(f"{facts.name}: {reason}; give at least two classes, each with images")


def _split(part: Part, labels: Array, indices: Array, facts: Facts) -> Split | StreamedSplit:
    if isinstance(part, Pictures):
        return StreamedSplit.of(Pictures(part.root, part.names, labels).take(indices), facts)
    # On one CPU thread channels_last storage makes `normalise` 5 times faster, and indexing and cropping keep it.
    chosen = torch.from_numpy(part[0][indices]).contiguous(memory_format=torch.channels_last)
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


def _digest(*splits: Split | StreamedSplit) -> str:
    sha256 = hashlib.sha256()
    for split in splits:
        if isinstance(split, StreamedSplit):
            sha256.update(streamed_digest(split))
            continue
        for array in (split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.numpy()):
            sha256.update(repr(array.shape).encode())
            sha256.update(array.reshape(-1).data)
    prefix = FILES_DIGEST if any(isinstance(split, StreamedSplit) for split in splits) else ""
    return prefix + sha256.hexdigest()


# ---------------------------------------------------------------- splitting


def _parts(source: Source, labels: Array, options: DataOptions) -> Indices:
    """The source's own parts stay as they are; only what it lacks is cut from its training images."""
    validation = 0.0 if source.validation else options.validation
    test = 0.0 if source.test else options.test
    return split_indices(
        labels, validation=validation, test=test, seed=options.split_seed, class_names=source.facts.class_names
    )


def _kept(labels: Array, chosen: Array, options: DataOptions) -> Array:
    """Of the positions `chosen` for training those that train_limit and train_fraction leave."""
    counts = {}
    if options.train_limit is not None:
        counts["data.train_limit"] = options.train_limit
    if options.train_fraction is not None:
        counts["data.train_fraction"] = int(options.train_fraction * len(chosen) + 0.5)
    if not counts:
        return chosen
    name = min(counts, key=lambda key: counts[key])
    return chosen[stratified_subset(labels[chosen], counts[name], options.split_seed, name)]


def split_indices(
    labels: Array, *, validation: float, test: float, seed: int, class_names: tuple[str, ...] = ()
) -> Indices:
    """Labels int (N,) -> three parts, drawn class by class: round(fraction * count) to test and to validation each.

    A fraction of 0 asks for no such part. The test part does not depend on `validation`. Raises DataError where a class
    would be absent from a part that is asked for.
    """
    if validation + test >= 1:
        raise DataError(
            f"validation {validation} and test {test}: together {validation + test:g} of all images, which leaves none "
            "for training; lower one of them"
        )
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


def stratified_subset(labels: Array, limit: int, seed: int, option: str = "data.train_limit") -> Array:
    """Labels int (N,) -> ascending positions of `limit` of them (or all), classes in proportion, at least one of each.

    Seats are given by Webster's method, so a larger limit contains every smaller one. Raises DataError for fewer images
    than classes, which `option` is then said to ask for.
    """
    counts = np.bincount(labels)
    if limit < np.count_nonzero(counts):
        raise DataError(
            f"{option}: {limit} images cannot show all {np.count_nonzero(counts)} classes; give at least one image "
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
