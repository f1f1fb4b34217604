"""Datasets by name: users' own functions, CIFAR's binary files and what torchvision finds, whole and damaged."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mnet_search.models.arch import MnetError
from mnet_search.search.data import DATASETS, DataOptions, describe, load, load_test, resize

from real_digits import GREY, LABELS, balanced, colour, part, refuses

# ---------------------------------------------------------------- names


def test_every_fixed_set_is_described_without_its_files(tmp_path: Path) -> None:
    shapes = {"digits": (1, 10, 8), "cifar10": (3, 10, 32), "cifar100": (3, 100, 32), "fashion_mnist": (1, 10, 28)}
    for name, shape in shapes.items():
        facts = describe(DataOptions(name))
        assert (facts.name, facts.channels, facts.classes, facts.height) == (name, *shape)
        assert len(set(facts.class_names)) == facts.classes
        assert facts.licence
    assert set(shapes) | {"npz", "image_folder"} == set(DATASETS)


def test_an_unknown_dataset_names_the_known_and_the_nearest() -> None:
    text = refuses("unknown dataset 'cifar11'", kind=MnetError, name="cifar11")
    assert "did you mean cifar10?" in text
    assert all(name in text for name in DATASETS)


def test_a_users_own_dataset_needs_no_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pictures.py").write_text("""
import numpy as np
from mnet_search.search.data import Facts, Source

def stripes(options):
    labels = np.arange(40) % 2
    images = np.zeros((40, 1, 4, 6), np.uint8)
    images[labels == 1, :, ::2] = 255
    facts = Facts("stripes", 1, 2, 4, 6, ("none", "striped"), True, "mine")
    return Source(facts, train=lambda: (images, labels))

def floats(options):
    source = stripes(options)
    return Source(source.facts, train=lambda: (source.train()[0] / 255, source.train()[1]))

def wide(options):
    source = stripes(options)
    return Source(source.facts, train=lambda: (source.train()[0][..., :5], source.train()[1]))

def short(options):
    source = stripes(options)
    return Source(source.facts, train=lambda: (source.train()[0], source.train()[1][:-1]))

def nothing(options):
    return None

number = 3
""")
    monkeypatch.syspath_prepend(tmp_path)
    data = load(DataOptions("own_pictures:stripes"))
    assert (part(data, "train"), part(data, "validation")) == ((12, 12), (4, 4))
    assert data.train.images.shape == (24, 1, 4, 6)
    refuses("stripes train: images are float64; give uint8", name="own_pictures:floats")
    refuses(r"images have shape \(40, 1, 4, 5\) as .N, C, H, W., but \(N, 1, 4, 6\)", name="own_pictures:wide")
    refuses("stripes train: 40 images and 39 labels", name="own_pictures:short")
    refuses("gave a NoneType; it must be a function from DataOptions to a Source", name="own_pictures:nothing")
    refuses("is a int; it must be a function", name="own_pictures:number")
    refuses("has no absent", kind=MnetError, name="own_pictures:absent")
    refuses("cannot import no_such_module", kind=MnetError, name="no_such_module:x")


# ---------------------------------------------------------------- CIFAR's binary layout


def write_records(path: Path, images: np.ndarray, *labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [column.astype(np.uint8)[:, None] for column in labels]
    path.write_bytes(np.concatenate([*columns, images.reshape(len(images), -1)], axis=1).tobytes())


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """`tmp_path` with a small cifar-10-batches-bin: five files of 20 images and a test file of 10, classes balanced."""
    chosen = balanced(11)
    images, labels = colour(GREY[chosen], 32), LABELS[chosen]
    for i in range(5):
        batch = slice(20 * i, 20 * i + 20)
        write_records(tmp_path / f"cifar-10-batches-bin/data_batch_{i + 1}.bin", images[batch], labels[batch])
    write_records(tmp_path / "cifar-10-batches-bin/test_batch.bin", images[100:], labels[100:])
    return tmp_path


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_cifar10_is_found_in_and_above_its_folder(cifar10: Path, folder: str) -> None:
    options = DataOptions("cifar10", path=str(cifar10 / folder))
    data, test = load(options), load_test(options)
    assert (part(data, "train"), part(data, "validation")) == ((8,) * 10, (2,) * 10)
    assert test.labels.tolist() == list(range(10))
    assert np.array_equal(test.images.numpy(), colour(GREY[balanced(11)[100:]], 32)), "the official test part, in order"


def test_cifar10_is_looked_for_in_data_below_the_working_directory(
    cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cifar10)
    (cifar10 / "data").mkdir()
    (cifar10 / "cifar-10-batches-bin").rename("data/cifar-10-batches-bin")
    assert len(load_test(DataOptions("cifar10"))) == 10


def test_a_test_fraction_does_not_touch_an_official_test_part(cifar10: Path) -> None:
    one, other = (load(DataOptions("cifar10", path=str(cifar10), test=test)) for test in (0.1, 0.4))
    assert one.digest == other.digest


def test_damaged_cifar10_files_are_named(cifar10: Path) -> None:
    third = cifar10 / "cifar-10-batches-bin/data_batch_3.bin"
    whole = third.read_bytes()
    third.write_bytes(whole[:-1000])
    refuses(
        "data_batch_3.bin' is truncated: 60460 bytes, not a whole number of 3073", name="cifar10", path=str(cifar10)
    )
    third.write_bytes(whole[: 3073 * 7])
    refuses("data_batch_3.bin' has 7 images but data_batch_1.bin has 20", name="cifar10", path=str(cifar10))
    third.write_bytes(b"\xc8" + whole[1:])
    refuses("cifar10 train: label 200 at index 40 is out of range", name="cifar10", path=str(cifar10))
    third.write_bytes(b"")
    refuses("data_batch_3.bin' is truncated: 0 bytes", name="cifar10", path=str(cifar10))
    third.unlink()
    refuses("cifar-10-batches-bin' lacks data_batch_3.bin", name="cifar10", path=str(cifar10))


def test_cifar100_is_read_by_its_fine_labels(tmp_path: Path) -> None:
    fine = np.arange(500) % 100
    images = colour(GREY[:500], 32)
    write_records(tmp_path / "cifar-100-binary/train.bin", images, fine % 20, fine)
    write_records(tmp_path / "cifar-100-binary/test.bin", images[:7], fine[:7] % 20, 99 - fine[:7])
    options = DataOptions("cifar100", path=str(tmp_path))
    assert (part(load(options), "train"), part(load(options), "validation")) == ((4,) * 100, (1,) * 100)
    assert load_test(options).labels.tolist() == [99, 98, 97, 96, 95, 94, 93]


# ---------------------------------------------------------------- torchvision


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    for name, chosen in (("train", balanced(5)), ("t10k", balanced(2))):
        images = resize(torch.from_numpy(GREY[chosen]), 28)[:, 0].numpy()
        write_idx(tmp_path / f"FashionMNIST/raw/{name}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"FashionMNIST/raw/{name}-labels-idx1-ubyte", LABELS[chosen].astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("folder", [".", "FashionMNIST"])
def test_fashion_mnist_is_what_torchvision_finds(fashion: Path, folder: str) -> None:
    options = DataOptions("fashion_mnist", path=str(fashion / folder))
    data, test = load(options), load_test(options)
    assert (part(data, "train"), part(data, "validation")) == ((4,) * 10, (1,) * 10)
    assert data.train.images.shape == (40, 1, 28, 28)
    assert len(test) == 20


def test_a_cut_fashion_mnist_file_is_an_error(fashion: Path) -> None:
    file = fashion / "FashionMNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5000])
    refuses("fashion_mnist: could not read '.*FashionMNIST': .*; delete it", name="fashion_mnist", path=str(fashion))


@pytest.mark.parametrize(
    ("name", "looked"),
    [
        ("cifar10", "cifar-10-batches-py/ or cifar-10-batches-bin/"),
        ("cifar100", "cifar-100-python/ or cifar-100-binary/"),
        ("fashion_mnist", "FashionMNIST/"),
    ],
)
def test_missing_files_say_what_was_looked_for_where_and_what_to_do(tmp_path: Path, name: str, looked: str) -> None:
    text = refuses(f"^{name}: no {looked} in '", name=name, path=str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in text
    assert "set data.download to true, or data.path to the folder that holds it" in text
    assert not (tmp_path / "nowhere").exists()


def test_files_that_are_not_the_official_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"no pickle")
    refuses("cifar10: could not read '.*cifar-10-batches-py': .*corrupted", name="cifar10", path=str(tmp_path))


def test_a_download_without_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    for name in ("cifar10", "fashion_mnist"):
        refuses(
            f"{name}: could not download to '.*': .*check the network", name=name, path=str(tmp_path), download=True
        )
    assert capfd.readouterr().out == "", "stdout is for results"
