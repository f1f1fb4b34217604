"""Where images come from: one function per dataset, from options to a `Source`.

A new dataset is one function here and one row in `DATASETS`; a user's own is the same function in their own module,
named as `package.module:function`. Nothing here imports torch until images are read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mnet_search.models.tables import lookup
from mnet_search.search.data_files import DataError, DataOptions, Facts, Pixels, Source, image_folder, npz, reading


def describe(options: DataOptions) -> Facts:
    """The facts of a dataset without decoding its images: enough for the closed-form costs."""
    return open_source(options).facts


def open_source(options: DataOptions) -> Source:
    """The source that `options.name` leads to, with the user's word on mirroring; nothing is decoded yet."""
    entry = lookup(DATASETS, options.name, "dataset")
    source = entry(options) if callable(entry) else entry
    if not callable(entry) or not isinstance(source, Source):
        seen = f"gave a {type(source).__name__}" if callable(entry) else f"is a {type(entry).__name__}"
        raise DataError(f"dataset {options.name!r} {seen}; it must be a function from DataOptions to a Source")
    if options.flip is None:
        return source
    return replace(source, facts=replace(source.facts, flip=options.flip))


# ---------------------------------------------------------------- embedded


def digits(options: DataOptions) -> Source:
    """1,797 real 8x8 grey digits from inside scikit-learn, their grey values 0..16 spread over 0..255."""
    if options.path:
        raise DataError(f"digits: the images come with scikit-learn and not from {options.path!r}; leave data.path out")
    names = tuple("0123456789")
    licence = "UCI ML hand-written digits, test set (Alpaydin and Kaynak, 1998), CC BY 4.0; shipped with scikit-learn"
    return Source(Facts("digits", 1, 10, 8, 8, names, flip=False, licence=licence), train=_read_digits)


def _read_digits() -> Pixels:
    """The table that sklearn.datasets.load_digits reads, without importing scikit-learn: that takes 2 s in every
    worker.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError("digits: the images come with scikit-learn, which is not installed; pip install scikit-learn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():  # a scikit-learn that keeps it elsewhere
        from sklearn.datasets import load_digits

        table = np.column_stack([load_digits().data, load_digits().target])
    else:
        table = np.loadtxt(path, delimiter=",")
    return np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8), table[:, -1].astype(np.int64)


# ---------------------------------------------------------------- torchvision and the CIFAR binary layout


@dataclass(frozen=True)
class _Binary:
    """CIFAR's "binary version": records of `label_bytes` labels, the last of them the class, then 3x32x32 pixels."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int

    def find(self, root: Path) -> Path | None:
        """The folder of the files: `root` itself or the one below it that has the official name."""
        if root.name == self.folder or any((root / name).is_file() for name in self.train):
            return root
        return root / self.folder if (root / self.folder).is_dir() else None

    def read(self, folder: Path, names: tuple[str, ...]) -> Pixels:
        """All images and classes of the files; lengths are checked, since a cut copy would be silently short."""
        size = self.label_bytes + 3 * 32 * 32
        batches = []
        for name in names:
            path = folder / name
            if not path.is_file():
                raise DataError(f"{str(folder)!r} lacks {name}; copy the whole {self.folder} folder again")
            with reading(path, "copy it again"):
                batch = np.fromfile(path, np.uint8)
            if not batch.size or batch.size % size:
                raise DataError(
                    f"{str(path)!r} is truncated: {batch.size} bytes, not a whole number of {size}-byte records; copy "
                    "it again"
                )
            batches.append(batch.reshape(-1, size))
            if len(batches[-1]) != len(batches[0]):
                raise DataError(
                    f"{str(path)!r} has {len(batches[-1])} images but {names[0]} has {len(batches[0])}; copy both again"
                )
        records = np.concatenate(batches)
        return records[:, self.label_bytes :].reshape(-1, 3, 32, 32), records[:, self.label_bytes - 1]


DAMAGE = (RuntimeError, AssertionError, TypeError, ValueError, OSError, EOFError, pickle.UnpicklingError)
"""What torchvision raises for a missing network, a full disk, and files that are cut or not the official ones."""


@dataclass(frozen=True)
class _Published:
    """A set that torchvision knows under `cls` and keeps in `folder`, with CIFAR's binary layout as a second way in."""

    facts: Facts
    cls: str
    folder: str
    binary: _Binary | None = None

    def __call__(self, options: DataOptions) -> Source:
        root = Path(options.path or "data").expanduser().resolve()
        binary, folder = self.binary, self.binary and self.binary.find(root)
        if binary and folder:
            return Source(
                self.facts,
                train=lambda: binary.read(folder, binary.train),
                test=lambda: binary.read(folder, binary.test),
            )
        root = root.parent if root.name == self.folder else root
        return Source(
            self.facts,
            train=lambda: self._torchvision(root, options.download, train=True),
            test=lambda: self._torchvision(root, options.download, train=False),
        )

    def _torchvision(self, root: Path, download: bool, train: bool) -> Pixels:
        """What torchvision finds (or downloads) below `root`, as arrays."""
        if not download and not (root / self.folder).is_dir():
            looked = f"{self.folder}/ or {self.binary.folder}/" if self.binary else f"{self.folder}/"
            raise DataError(
                f"{self.facts.name}: no {looked} in {str(root)!r}; set data.download to true, or data.path to the "
                "folder that holds it"
            )
        from torchvision import datasets

        try:
            # Downloads print to stdout, which belongs to our own output; the official pickles break NumPy's newer
            # rules.
            with _one_downloader(root, download), contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = getattr(datasets, self.cls)(root, train=train, download=download)
        except DAMAGE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            tried, advice = ("read", "delete it and set data.download to true")
            if download:
                tried, advice = ("download to", "check the network, or delete what is there, and try again")
            where = str(root / self.folder)
            raise DataError(f"{self.facts.name}: could not {tried} {where!r}: {reason}; {advice}") from error
        images, labels = np.asarray(found.data), np.asarray(found.targets)
        return (images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)), labels


@contextlib.contextmanager
def _one_downloader(root: Path, download: bool) -> Iterator[None]:
    """Several trials may start at once: one downloads, the others wait and then find the files."""
    if not download:
        yield
        return
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".download.lock"):
        yield


CIFAR_LICENCE = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; its authors state no licence"
CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
FASHION_NAMES = "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot"
FASHION_LICENCE = "Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv 1708.07747, Zalando, MIT"

cifar10 = _Published(
    Facts("cifar10", 3, 10, 32, 32, tuple(CIFAR10_NAMES.split()), flip=True, licence=CIFAR_LICENCE),
    cls="CIFAR10",
    folder="cifar-10-batches-py",
    binary=_Binary(
        "cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), label_bytes=1
    ),
)
cifar100 = _Published(
    Facts("cifar100", 3, 100, 32, 32, tuple(CIFAR100_NAMES.split()), flip=True, licence=CIFAR_LICENCE),
    cls="CIFAR100",
    folder="cifar-100-python",
    binary=_Binary("cifar-100-binary", ("train.bin",), ("test.bin",), label_bytes=2),
)
fashion_mnist = _Published(
    Facts("fashion_mnist", 1, 10, 28, 28, tuple(FASHION_NAMES.split("|")), flip=True, licence=FASHION_LICENCE),
    cls="FashionMNIST",
    folder="FashionMNIST",
)

DATASETS: dict[str, Callable[[DataOptions], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "npz": npz,
    "image_folder": image_folder,
}
