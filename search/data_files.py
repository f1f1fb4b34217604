"""What a source of images is, and the two that read a user's own files: an `.npz` and a folder of pictures.

A source says its facts before any pixel is read, and reads each of its parts only when that part is called.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet_search.models.arch import MnetError

Array = npt.NDArray[Any]
Pixels = tuple[Array, Array]
"""Images uint8 (N, C, H, W) and whole-number labels (N,)."""


class DataError(MnetError):
    """Data that is not there, cannot be read, or cannot be split as asked: says which, where, and what to do."""


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are parted; equal options give equal splits on every machine.

    `path` is a file or folder, `data/` below the working directory where a downloadable set names none. `validation` is
    a fraction of the training images where the source has its own test part, else both fractions are of all images.
    `test` is not used where the source has a test part, nor `validation` where it has a validation part. `train_limit`
    keeps that many training images and `train_fraction` that share of them, stratified; the smaller count wins, and the
    other parts stay as they are. `flip` overrides whether images may be mirrored; None takes the dataset's own answer,
    which is no for `npz` and `image_folder`. `stream` decodes the pictures of a folder anew for each batch; None does
    where they would take more than half of the memory available.
    """

    name: str = "digits"
    path: str | None = None
    download: bool = False
    validation: float = 0.2
    test: float = 0.2
    split_seed: int = 0
    train_limit: int | None = None
    train_fraction: float | None = None
    flip: bool | None = None
    stream: bool | None = None

    def __post_init__(self) -> None:
        for key in ("validation", "test"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise DataError(f"data.{key}: {value!r} is not a fraction between 0 and 1 (both excluded); try 0.2")
        if not _is_whole(self.split_seed) or self.split_seed < 0:
            raise DataError(f"data.split_seed: {self.split_seed!r} is not a whole number from 0 up")
        limit, share = self.train_limit, self.train_fraction
        if limit is not None and (not _is_whole(limit) or limit < 1):
            raise DataError(f"data.train_limit: {limit!r} is not a number of images; leave it out to train on all")
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise DataError(
                f"data.train_fraction: {share!r} is not a share above 0 and up to 1; leave it out to train on all"
            )
        if self.stream not in (None, True, False) or isinstance(self.stream, int) != isinstance(self.stream, bool):
            raise DataError(f"data.stream: {self.stream!r} is not true or false; leave it out to let memory decide")
        if self.path is not None and not isinstance(self.path, str):
            raise DataError(f"data.path: {self.path!r} is not text; give a file or folder in quotes")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Facts:
    """What is known of a dataset without its pixels: sizes in pixels, whether images may be mirrored (`flip`)."""

    name: str
    channels: int
    classes: int
    height: int
    width: int
    class_names: tuple[str, ...]
    flip: bool
    licence: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """Picture files below `root` that are decoded batch by batch: names as bytes (N,), whole-number labels (N,)."""

    root: Path
    names: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Array) -> Pictures:
        return Pictures(self.root, self.names[positions], self.labels[positions])

    def path(self, position: int) -> Path:
        return self.root / os.fsdecode(self.names[position])


Part = Pixels | Pictures


@dataclass(frozen=True)
class Source:
    """A dataset's facts and its parts, each read when called; `search.data` cuts a part that is None from `train`."""

    facts: Facts
    train: Callable[[], Part]
    validation: Callable[[], Part] | None = None
    test: Callable[[], Part] | None = None


def check_labels(labels: Array, where: str) -> Array:
    """Whole numbers from 0 up of shape (N,) or (N, 1) -> int64 (N,); anything else is a DataError about `where`."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{where}: labels are {labels.dtype} of shape {labels.shape}; give whole numbers 0, 1, ... of shape (N,)"
        )
    if labels.size and labels.min() < 0:
        raise DataError(
            f"{where}: label {labels.min()} at index {labels.argmin()} is negative; number the classes from 0"
        )
    return labels.astype(np.int64)


def existing(options: DataOptions, what: str) -> Path:
    """The path that the options must give, absolute, so that an error read on another machine still says where."""
    if not options.path:
        raise DataError(f"{options.name}: no path given; set data.path to {what}")
    path = Path(options.path).expanduser().resolve()
    if not path.exists():
        raise DataError(f"{options.name}: nothing found at {str(path)!r}; set data.path to {what}")
    return path


DAMAGE = (OSError, EOFError, ValueError, SyntaxError, KeyError, struct.error, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Turns what readers of damaged files raise into one line that names the file."""
    try:
        yield
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read {str(path)!r}: {reason}; {advice}") from error


# ---------------------------------------------------------------- npz

NPZ_KEYS = "train_images and train_labels (with val_* and test_* where there are such parts), or images and labels"
CHANNEL_COUNTS = (1, 2, 3, 4)


def npz(options: DataOptions) -> Source:
    """An `.npz` with uint8 images as (N, H, W), (N, H, W, C) or (N, C, H, W) and whole-number labels.

    MedMNIST's files are of this kind. Optional arrays: `class_names`, and `layout` ("NHWC" or "NCHW") where the shape
    alone does not tell.
    """
    path = existing(options, "an .npz file")
    if path.is_dir():
        raise DataError(f"{options.name}: {str(path)!r} is a folder; set data.path to the .npz file itself")
    with reading(path, "write it with numpy.savez"):
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{str(path)!r} holds one bare array; write an .npz with {NPZ_KEYS}")
        with archive:
            keys = set(archive.files)
            prefix = "train_" if "train_images" in keys else ""
            if missing := {f"{prefix}images", f"{prefix}labels"} - keys:
                raise DataError(
                    f"{str(path)!r} lacks {', '.join(sorted(missing))}; it has {', '.join(sorted(keys)) or 'nothing'}, "
                    f"but needs {NPZ_KEYS}"
                )
            labels = check_labels(archive[f"{prefix}labels"], f"{str(path)!r} {prefix}labels")
            named = tuple(str(name) for name in archive["class_names"]) if "class_names" in keys else None
            stated = str(archive["layout"]) if "layout" in keys else None
    shape, dtype = _npz_header(path, f"{prefix}images")
    layout = npz_layout(shape, stated, str(path))
    channels, height, width = {"NHW": (1, *shape[1:]), "NCHW": shape[1:], "NHWC": (*shape[3:], *shape[1:3])}[layout]
    if dtype != np.uint8:
        raise DataError(f"{str(path)!r} {prefix}images are {dtype}; give uint8 from 0 to 255")
    names = named or tuple(str(label) for label in range(_count_classes(labels, str(path))))
    facts = Facts(
        options.name, channels, len(names), height, width, names, flip=False, licence="of your own file: yours to know"
    )
    official = prefix == "train_"
    return Source(
        facts,
        train=lambda: _npz_part(path, prefix, layout),
        validation=(lambda: _npz_part(path, "val_", layout)) if official and "val_images" in keys else None,
        test=(lambda: _npz_part(path, "test_", layout)) if official and "test_images" in keys else None,
    )


def _npz_part(path: Path, prefix: str, layout: str) -> Pixels:
    with reading(path, "write it with numpy.savez"), np.load(path, allow_pickle=False) as archive:
        images, labels = archive[f"{prefix}images"], archive[f"{prefix}labels"]
    if images.ndim != len(layout):
        raise DataError(f"{str(path)!r} {prefix}images have shape {images.shape}, but the training images are {layout}")
    if layout == "NHW":
        images = images[:, None]
    return (images.transpose(0, 3, 1, 2) if layout == "NHWC" else images), labels


def _npz_header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of one array, without unpacking its pixels."""
    with (
        reading(path, "write it with numpy.savez"),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{key}.npy") as file,
    ):
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def npz_layout(shape: tuple[int, ...], stated: str | None, where: str) -> str:
    """Which axes an array of images has, "NHW", "NHWC" or "NCHW": as `stated`, else as the shape tells.

    Two signs are read: only one end of (a, b, c) is a usual number of channels, and only one pair of neighbours is
    square. Where they disagree, or neither speaks, guessing would train on scrambled images without a word, so it is an
    error.
    """
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        raise DataError(f"{where!r}: images have shape {shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if stated is not None:
        if stated not in ("NHWC", "NCHW"):
            raise DataError(f"{where!r}: layout is {stated!r}; give 'NHWC' or 'NCHW'")
        return stated
    _, first, middle, last = shape
    signs = set()
    if (first in CHANNEL_COUNTS) != (last in CHANNEL_COUNTS):
        signs.add("NCHW" if first in CHANNEL_COUNTS else "NHWC")
    if (first == middle) != (middle == last):
        signs.add("NHWC" if first == middle else "NCHW")
    if len(signs) != 1:
        raise DataError(
            f"{where!r}: images have shape {shape}, which may be NHWC or NCHW; add layout='NHWC' or layout='NCHW' to "
            "the file"
        )
    return signs.pop()


def _count_classes(labels: Array, where: str) -> int:
    """Classes in labels without names: no gaps allowed, so that a stray label cannot ask for a million outputs."""
    present = np.unique(labels)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        raise DataError(
            f"{where!r}: no training image of class {gaps[0]}, but one of class {present[-1]}; number the classes 0, "
            "1, ... without gaps"
        )
    return len(present)


# ---------------------------------------------------------------- folders of pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
GREY_MODES, COLOUR_MODES = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
HELD_OUT = ("test", "val", "valid", "validation")


def image_folder(options: DataOptions) -> Source:
    """Pictures in one subfolder per class, or such folders below train/ and test/ or val/.

    A val/ beside a test/ is the validation part; a val/ alone is the held-out test part, as published sets use it. The
    first picture tells whether all are grey or RGB, and the size that all must have unless they are streamed (see
    DataOptions); without `stream`, everything is decoded into memory. Pictures are not turned by their EXIF tag.
    """
    root = existing(options, "a folder with one subfolder per class")
    if not root.is_dir():
        raise DataError(
            f"{options.name}: {str(root)!r} is a file; set data.path to a folder with one subfolder per class"
        )
    # A class may itself be called "train" (a vehicle): only a train/ with subfolders is a part.
    parted = (root / "train").is_dir() and bool(_subfolders(root / "train"))
    train = root / "train" if parted else root
    held_out = [root / name for name in HELD_OUT if parted and (root / name).is_dir()]
    names = tuple(_subfolders(train))
    if not names:
        raise DataError(
            f"{options.name}: no class subfolders in {str(train)!r}; give one subfolder of images per class"
        )
    with _opened(_pictures(train / names[0])[0]) as first:
        (width, height), channels = first.size, 1 if first.mode in GREY_MODES else 3
    facts = Facts(
        options.name, channels, len(names), height, width, names, flip=False, licence="of your own files: yours to know"
    )
    training = functools.cache(lambda: _listed(train, root, facts))
    streams = functools.cache(lambda: _must_stream(training(), facts) if options.stream is None else options.stream)

    def read(pictures: Pictures) -> Part:
        return pictures if streams() else _decode(pictures, facts)

    return Source(
        facts,
        train=lambda: read(training()),
        validation=(lambda: read(_listed(held_out[1], root, facts))) if len(held_out) > 1 else None,
        test=(lambda: read(_listed(held_out[0], root, facts))) if held_out else None,
    )


def _must_stream(pictures: Pictures, facts: Facts) -> bool:
    """Whether the decoded pictures, at the first one's size, would take more than half of the memory available."""
    available = memory_available()
    return available is not None and len(pictures) * facts.channels * facts.height * facts.width > available / 2


def memory_available() -> int | None:
    """Bytes that a new program may take without swapping, as Linux says; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _subfolders(folder: Path) -> list[str]:
    """In the order of their names, which numbers the classes as torchvision does."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        raise DataError(f"class folder {str(folder)!r} has no image ({', '.join(SUFFIXES)}); add some or remove it")
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A picture whose header is read and whose pixels are not yet."""
    from PIL import Image

    with reading(path, "replace or remove it"), Image.open(path) as image:
        if image.mode not in GREY_MODES + COLOUR_MODES:
            raise DataError(f"{str(path)!r} has pixels of mode {image.mode}; give 8-bit grey or RGB images")
        yield image


def _listed(folder: Path, root: Path, facts: Facts) -> Pictures:
    """All pictures below `folder`, class by class in the order of their names; nothing is opened."""
    if strange := sorted(set(_subfolders(folder)) - set(facts.class_names)):
        raise DataError(f"{str(folder)!r} has classes that training does not: {', '.join(strange)}")
    names, labels = [], []
    for label, name in enumerate(facts.class_names):
        found = _pictures(folder / name) if (folder / name).is_dir() else []
        names += [os.fsencode(path.relative_to(root)) for path in found]
        labels += [label] * len(found)
    return Pictures(root, np.array(names, dtype=np.bytes_), np.array(labels, np.int64))


def _decode(pictures: Pictures, facts: Facts) -> Pixels:
    """All pictures as one array; the first that does not fit the facts is named."""
    images = np.empty((len(pictures), facts.height, facts.width, facts.channels), np.uint8)
    for position, slot in enumerate(images):
        slot[:] = read_picture(pictures.path(position), facts)
    return images.transpose(0, 3, 1, 2), pictures.labels


def read_picture(path: Path, facts: Facts, any_size: bool = False) -> Array:
    """One picture as (H, W, C). Grey among RGB is spread over three channels; RGB among grey is refused."""
    with _opened(path) as image:
        (width, height), mode = image.size, image.mode
        if not any_size and (width, height) != (facts.width, facts.height):
            raise DataError(
                f"{str(path)!r} is {width}x{height} pixels but the first image is {facts.width}x{facts.height}; resize "
                "all to one size, or set data.stream to true, which takes mixed sizes"
            )
        if facts.channels == 1 and mode not in GREY_MODES:
            raise DataError(f"{str(path)!r} has colours but the first image is grey; convert all to one kind")
        # Pillow warns unless a palette with transparent entries goes through RGBA.
        opaque = image.convert("RGBA") if mode == "P" and "transparency" in image.info else image
        return np.asarray(opaque.convert("L" if facts.channels == 1 else "RGB")).reshape(height, width, facts.channels)
