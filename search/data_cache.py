"""One copy of the images for all trial processes of a machine: files named by the images' digest, mapped by each.

A folder of the cache is whole or absent: it is written under another name, with the sizes of its files, and renamed.
Nothing here needs more than torch and numpy before something is written.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mnet_search.models.arch import MnetError
from mnet_search.search.data import FILES_DIGEST, Data, DataError, DataOptions, Facts, Split, describe, read
from mnet_search.search.data_maps import (
    IMAGES_SUFFIX,
    LABELS_SUFFIX,
    image_chunks,
    map_images,
    map_labels,
    one_writer,
    write_tensors,
)
from mnet_search.search.data_stream import StreamedSplit

__all__ = ["pinned", "share", "shared"]

FORMAT = 1
PARTS = ("train", "validation")
RENAMES = 5
"""How often a writer whose place another took and damaged in the same moment tries again."""


def pinned(options: DataOptions, digest: str) -> DataOptions:
    """The options with `stream` as it was decided for the data of this digest, whatever memory is available now."""
    if options.stream is not None:
        return options
    return replace(options, stream=digest.startswith(FILES_DIGEST))


def share(data: Data, folder: Path) -> None:
    """Write the images to folder/<digest>/ unless they are there; streamed ones have nothing to share.

    Several processes may do so at once. Raises DataError where the folder cannot be written or the disk is full.
    """
    if isinstance(data.train, StreamedSplit) or isinstance(data.validation, StreamedSplit):
        return
    home = _home(folder, data.digest)
    if _stored(home, data.digest) is not None:
        return
    size = data.train.images.nbytes + data.validation.images.nbytes
    with _writing(folder, size), tempfile.TemporaryDirectory(prefix=".writing-", dir=_made(folder)) as temporary:
        whole = Path(temporary) / home.name
        whole.mkdir()
        _write(data, {"train": data.train, "validation": data.validation}, whole)
        _rename(whole, home, data.digest)


@functools.lru_cache(maxsize=2)
def shared(options: DataOptions, folder: Path, digest: str) -> Data:
    """The data of this digest, mapped from folder/<digest>/; once per process, as a reused worker runs many trials.

    Where the folder is absent or damaged, it is written from the source first, by one process of the machine. Streamed
    pictures come from their own files. Raises DataError where the source has other images than the digest says.
    """
    options = pinned(options, digest)
    home = _home(folder, digest)
    if digest.startswith(FILES_DIGEST):
        return _demanded(options, digest)
    if (stored := _stored(home, digest)) is None:
        with contextlib.ExitStack() as stack:
            with _writing(folder, 0):
                stack.enter_context(one_writer(home))
            if _stored(home, digest) is None:
                share(_demanded(options, digest), folder)
            stored = _stored(home, digest)
    if stored is None:
        raise DataError(f"{str(home)!r} was removed while it was read; leave that folder alone during a search")
    return _map(home, stored, options)


def _demanded(options: DataOptions, digest: str) -> Data:
    """The data from their source, into private memory, known to be those of the digest."""
    data = read(options)
    if data.digest != digest:
        raise DataError(
            f"{options.name}: the images on this machine are others than those that the search began with (digest "
            f"{data.digest[:16]}, not {digest[:16]}); restore the files, or begin a new study"
        )
    return data


# ---------------------------------------------------------------- writing


def _home(folder: Path, digest: str) -> Path:
    return folder / digest[:16]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _writing(folder: Path, size: int) -> Iterator[None]:
    """Turns what the operating system refuses into one line that names the folder."""
    try:
        yield
    except OSError as error:
        room = f"free {size / 1e6:.0f} MB there" if size else "make it writable"
        raise DataError(
            f"cannot keep the images in {str(folder)!r}: {error.strerror or error}; {room}, or keep the runs elsewhere"
        ) from error


def _write(data: Data, splits: dict[str, Split], folder: Path) -> None:
    sizes, shapes = {}, {}
    for part, split in splits.items():
        sizes[part + IMAGES_SUFFIX] = write_tensors(folder / (part + IMAGES_SUFFIX), image_chunks(split.images))
        sizes[part + LABELS_SUFFIX] = write_tensors(folder / (part + LABELS_SUFFIX), [split.labels])
        shapes[part] = list(split.images.shape)
    meta = {
        "format": FORMAT,
        "digest": data.digest,
        "facts": asdict(data.facts),
        "mean": data.mean,
        "std": data.std,
        "shapes": shapes,
        "sizes": sizes,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _rename(whole: Path, home: Path, digest: str) -> None:
    """Put `whole` in the place of `home`; what is damaged there goes, and what another wrote meanwhile stays."""
    for attempt in range(RENAMES):
        try:
            whole.rename(home)
            return
        except OSError:
            if _stored(home, digest) is not None:
                return
            if attempt == RENAMES - 1 or not os.path.lexists(home):
                raise
        # Away under another name first: processes that have it mapped keep its pages, and nobody sees half of it. Then
        # it goes with the temporary folder that `whole` is in.
        with contextlib.suppress(FileNotFoundError):
            home.rename(whole.with_name(f"damaged-{attempt}"))


# ---------------------------------------------------------------- mapping


def _stored(home: Path, digest: str) -> dict[str, Any] | None:
    """meta.json where it is that of the digest and all files have the sizes that it says, else None."""
    try:
        meta: dict[str, Any] = json.loads((home / "meta.json").read_text(encoding="utf-8"))
        expected = {}
        for part in PARTS:
            expected[part + IMAGES_SUFFIX] = math.prod(meta["shapes"][part])
            expected[part + LABELS_SUFFIX] = 8 * meta["shapes"][part][0]
        found = {name: (home / name).stat().st_size for name in expected}
        fits = (meta["format"], meta["digest"], meta["sizes"]) == (FORMAT, digest, expected) and found == expected
        _facts(meta)
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return None
    return meta if fits and {"mean", "std"} <= set(meta) else None


def _facts(meta: dict[str, Any]) -> Facts:
    return Facts(**meta["facts"] | {"class_names": tuple(meta["facts"]["class_names"])})


def _map(home: Path, meta: dict[str, Any], options: DataOptions) -> Data:
    splits = {}
    for part in PARTS:
        shape = tuple(meta["shapes"][part])
        try:
            images = map_images(home / (part + IMAGES_SUFFIX), shape)
            labels = map_labels(home / (part + LABELS_SUFFIX), shape[0])
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"cannot map the images in {str(home)!r}: {reason}; try again, or remove it") from error
        splits[part] = Split(images, labels, home / part)
    try:
        # Other options may share the pixels (a copy of the set, another word on mirroring): their own facts count.
        facts = describe(options)
    except MnetError:  # the source is gone from this machine, and is not needed
        facts = _facts(meta)
        facts = facts if options.flip is None else replace(facts, flip=options.flip)
    return Data(facts, splits["train"], splits["validation"], tuple(meta["mean"]), tuple(meta["std"]), meta["digest"])
