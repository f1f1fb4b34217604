"""Image folders larger than memory: pictures decoded on the way to the device, batch by batch.

What is random in a picture's view comes from (seed, position) alone, so that the number of decoding processes does not
change a pixel. Nothing at module level needs more than torch and numpy.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mnet_search.search.data_files import DataError, Facts, Pictures, read_picture

__all__ = ["StreamedSplit", "streamed_statistics"]

CROP_SCALE = (0.35, 1.0)
"""Of a training view's area in its picture. Few epochs want larger views than the 0.08 of full ImageNet training."""
STATISTICS_PICTURES = 2000


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """What `Split` is for images in memory, for pictures of any size: only labels, int64 (N,), are on the device."""

    pictures: Pictures
    facts: Facts
    labels: Tensor
    resolution: int
    crop: bool = True
    flip: bool = True

    @staticmethod
    def of(pictures: Pictures, facts: Facts) -> StreamedSplit:
        return StreamedSplit(pictures, facts, torch.from_numpy(pictures.labels), min(facts.height, facts.width))

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, resolution: int, device: torch.device) -> StreamedSplit:
        """The same pictures, whose batches will be squares of `resolution` pixels on `device`."""
        return replace(self, resolution=resolution, labels=self.labels.to(device))

    def viewed(self, *, crop: bool, flip: bool) -> StreamedSplit:
        """The same pictures, whose training views are random parts of them and mirrored, or not."""
        return replace(self, crop=crop, flip=flip)

    def batches(self, parts: Iterable[Tensor], seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions (n,) -> images uint8 (n, C, H, W) in channels_last memory and labels (n,), for each of `parts`.

        With `seed`, training views: a random part of the picture, mirrored half of the time where the facts allow it
        (see `viewed`).
        Without, the middle square of the picture. Raises DataError, naming the file, for one that cannot be read.
        """
        device = self.labels.device
        chosen = [part.to(device) for part in parts]
        loader: DataLoader[Tensor | str] = DataLoader(
            _Views(self.pictures, self.facts, self.resolution, seed, self.crop, self.flip and self.facts.flip),
            batch_size=None,  # a batch is one item of the dataset
            sampler=[part.tolist() for part in chosen],
            num_workers=_count_workers(),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        for images, part in zip(_said(loader), chosen, strict=True):
            yield images.to(device, non_blocking=True), self.labels[part]


def _count_workers() -> int:
    """One process for each thread but the one that trains. A daemon (a worker of multiprocessing) may start none."""
    if multiprocessing.current_process().daemon:
        return 0
    return max(0, min(torch.get_num_threads(), os.cpu_count() or 1) - 1)


def _said(loader: Iterable[Tensor | str]) -> Iterator[Tensor]:
    """The batches, and what goes wrong in a decoding process as an error of one line."""
    try:
        for batch in loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that decodes pictures ended: {str(error).splitlines()[0]}; give the job more memory (and "
            "/dev/shm), or fewer threads"
        ) from error


@dataclass(frozen=True, eq=False)
class _Views(Dataset[Tensor | str]):
    """A list of positions -> their pictures as uint8 (n, C, H, W), or what is wrong with one as text.

    Text, because an exception would arrive from another process as a traceback of many lines.
    """

    pictures: Pictures
    facts: Facts
    resolution: int
    seed: int | None
    crop: bool
    flip: bool

    def __getitem__(self, positions: list[int]) -> Tensor | str:
        try:
            views = [self._view(position) for position in positions]
        except DataError as error:
            return str(error)
        return torch.stack(views).contiguous(memory_format=torch.channels_last)

    def _view(self, position: int) -> Tensor:
        from torchvision.transforms import v2

        pixels = read_picture(self.pictures.path(position), self.facts, any_size=True)
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        whole = v2.Compose([v2.Resize(self.resolution, antialias=True), v2.CenterCrop(self.resolution)])
        if self.seed is None:
            return torch.as_tensor(whole(image))
        part = v2.RandomResizedCrop(self.resolution, scale=CROP_SCALE, antialias=True) if self.crop else whole
        views = v2.Compose([part, v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)])
        # torchvision draws from torch's global generator alone; a caller in this process finds it as it was.
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(_view_seed(self.seed, position))
            return torch.as_tensor(views(image))
        finally:
            torch.default_generator.set_state(before)


def _view_seed(seed: int, position: int) -> int:
    return int.from_bytes(hashlib.sha256(f"mnet-search/view/{seed}/{position}".encode()).digest()[:7], "big")


def streamed_statistics(split: StreamedSplit) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, as fractions of white, of up to STATISTICS_PICTURES, evenly chosen.

    Each picture counts the same, whatever its size, as it does in training.
    """
    count = min(len(split), STATISTICS_PICTURES)
    levels = np.arange(256) / 255
    shares = np.zeros((split.facts.channels, 256))
    for position in np.linspace(0, len(split) - 1, count).round().astype(int):
        pixels = read_picture(split.pictures.path(position), split.facts, any_size=True)
        for channel, row in enumerate(shares):
            row += np.bincount(pixels[..., channel].reshape(-1), minlength=256) / (pixels[..., channel].size * count)
    means = shares @ levels
    deviations = np.sqrt([row @ (levels - mean) ** 2 for row, mean in zip(shares, means, strict=True)])
    return tuple(means.tolist()), tuple(np.maximum(deviations, 1 / 255).tolist())


def streamed_digest(split: StreamedSplit) -> bytes:
    """Of the files' names below the root and their sizes in bytes, in order; their pixels are not read."""
    sha256 = hashlib.sha256()
    for position, name in enumerate(split.pictures.names):
        path = split.pictures.path(position)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"cannot read {str(path)!r}: {error.strerror}; replace or remove it") from error
        sha256.update(name + b"\0" + str(size).encode() + b"\n")
    return sha256.digest()
