"""Tensors in files: written whole or not at all, and mapped, so that all processes of a machine share one copy.

A mapping is private and copied on write: nobody can change a file through it, and torch does not warn of read-only
memory. Pages that nobody writes to are those of the operating system's file cache, once for all processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "IMAGES_SUFFIX",
    "LABELS_SUFFIX",
    "image_chunks",
    "image_file_bytes",
    "map_images",
    "map_labels",
    "one_writer",
    "write_tensors",
    "write_whole",
]

CHUNK_BYTES = 64 * 2**20
IMAGES_SUFFIX, LABELS_SUFFIX = ".u8", ".i64"


def map_images(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A file of raw NHWC bytes -> uint8 `shape` (N, C, H, W), channels_last: a view of the file's pages."""
    count, channels, height, width = shape
    flat = torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=torch.uint8)
    return flat.view(count, height, width, channels).permute(0, 3, 1, 2)


def map_labels(path: Path, count: int) -> Tensor:
    """A file of raw int64 -> (count,), a view of the file's pages."""
    return torch.from_file(str(path), shared=False, size=count, dtype=torch.int64)


def image_file_bytes(images: Tensor, resolution: int) -> int:
    """Bytes of the file that holds uint8 (N, C, H, W) at a square resolution."""
    return images.shape[0] * images.shape[1] * resolution**2


def image_chunks(images: Tensor, resolution: int = 1) -> Iterator[Tensor]:
    """uint8 (N, C, H, W) in parts of about CHUNK_BYTES, now and at `resolution`: made one by one, they are no copy."""
    _, channels, height, width = images.shape
    yield from images.split(max(1, CHUNK_BYTES // (channels * max(height * width, resolution**2))))


def write_tensors(path: Path, parts: Iterable[Tensor]) -> int:
    """Raw bytes of the parts one after the other, images as NHWC; returns how many, all of them on the disk."""
    with path.open("xb") as file:
        for part in parts:
            rows = part.permute(0, 2, 3, 1) if part.ndim == 4 else part
            file.write(rows.contiguous().numpy().reshape(-1).data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def write_whole(path: Path, parts: Iterable[Tensor]) -> None:
    """`path` with all of the parts, or as it was before; a second writer of the same is harmless."""
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        write_tensors(Path(folder) / path.name, parts)
        (Path(folder) / path.name).replace(path)


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Processes that want to write `path` come in one at a time: the later ones find it written."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):
        yield
