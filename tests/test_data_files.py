"""Users' own files, `.npz` and folders of pictures, whole and damaged; all written here from real digits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnet_search.search.data import DataError, DataOptions, describe, load, load_test
from mnet_search.search.data_files import npz_layout

from real_digits import GREY, LABELS, balanced, colour, part, refuses

# ---------------------------------------------------------------- npz


def nhwc(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_in_every_layout_is_the_same_data(tmp_path: Path, layout: str, compressed: bool) -> None:
    chosen = balanced(10)
    images = GREY[chosen] if layout == "NHW" else colour(GREY[chosen], 12)
    arrays = {"NHW": images[:, 0], "NHWC": nhwc(images), "NCHW": images}
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "own.npz", images=arrays[layout], labels=LABELS[chosen].astype(np.uint8))
    options = DataOptions("npz", path=str(tmp_path / "own.npz"))
    facts, data, test = describe(options), load(options), load_test(options)
    assert (facts.channels, facts.height, facts.width, facts.classes) == (*images.shape[1:], 10)
    assert not facts.flip, "nobody said that these may be mirrored"
    assert (part(data, "train"), part(data, "validation"), len(test)) == ((6,) * 10, (2,) * 10, 20)
    read = np.concatenate([split.images.numpy() for split in (data.train, data.validation, test)])
    assert {image.tobytes() for image in read} == {image.tobytes() for image in images}


def test_npz_keeps_official_parts_as_medmnist_writes_them(tmp_path: Path) -> None:
    train, val, test = balanced(6), balanced(8)[60:], balanced(11)[80:]
    parts = {"train": train, "val": val, "test": test}
    arrays: dict[str, Any] = {f"{name}_images": nhwc(colour(GREY[chosen], 9)) for name, chosen in parts.items()}
    arrays |= {f"{name}_labels": LABELS[chosen][:, None] for name, chosen in parts.items()}
    np.savez(tmp_path / "m.npz", **arrays, class_names=[f"sign {i}" for i in range(10)])
    options = DataOptions("npz", path=str(tmp_path / "m.npz"))
    data = load(options)
    assert (len(data.train), len(data.validation), len(load_test(options))) == (60, 20, 30)
    assert data.facts.class_names[9] == "sign 9"
    assert np.array_equal(data.validation.images.numpy(), colour(GREY[val], 9))
    assert len(load(DataOptions("npz", path=options.path, train_limit=20)).validation) == 20


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((9, 28, 28), "NHW"),
        ((9, 32, 32, 3), "NHWC"),
        ((9, 3, 32, 32), "NCHW"),
        ((9, 1, 28, 28), "NCHW"),
        ((9, 3, 224, 160), "NCHW"),
        ((9, 224, 160, 3), "NHWC"),
        ((9, 13, 64, 64), "NCHW"),
        ((9, 64, 64, 13), "NHWC"),
        ((9, 4, 4, 3), "NHWC"),
        ((9, 3, 3, 32), None),
        ((9, 3, 3, 3), None),
        ((9, 3, 32, 3), None),
        ((9, 16, 20, 30), None),
    ],
)
def test_npz_layout_is_told_by_the_shape_or_asked_for(shape: tuple[int, ...], layout: str | None) -> None:
    if layout:
        assert npz_layout(shape, None, "x.npz") == layout
    else:
        with pytest.raises(DataError, match=r"may be NHWC or NCHW; add layout='NHWC' or layout='NCHW' to the file"):
            npz_layout(shape, None, "x.npz")
    if len(shape) == 4:
        assert npz_layout(shape, "NCHW", "x.npz") == "NCHW"


def test_npz_takes_a_stated_layout(tmp_path: Path) -> None:
    images = GREY[balanced(10)][:, :, :4, :3]
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS[balanced(10)], layout="NCHW")
    assert describe(DataOptions("npz", path=str(tmp_path / "a.npz"))).channels == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "lacks images; it has labels, but needs train_images and train_labels"),
        ({"labels": None}, "lacks labels; it has images"),
        ({"images": GREY[:100, 0] / 255}, "images are float64; give uint8 from 0 to 255"),
        ({"images": GREY[:99, 0]}, "99 images and 100 labels"),
        ({"images": GREY[:100].reshape(100, 64)}, r"images have shape \(100, 64\); give"),
        ({"labels": np.full(100, 0.5)}, "labels are float64 of shape"),
        ({"labels": np.zeros((100, 2), int)}, r"labels are int64 of shape \(100, 2\)"),
        ({"labels": np.arange(100) % 5 - 1}, "label -1 at index 0 is negative; number the classes from 0"),
        ({"labels": np.arange(100) % 5 + 1}, "no training image of class 0, but one of class 5"),
        ({"labels": np.arange(100) % 2 * 10**12}, "no training image of class 1, but one of class 1000000000000"),
        ({"labels": np.zeros(100, int)}, "npz: only one class; give at least two"),
        ({"labels": np.arange(100) // 99}, "no image of class 1 .1 in all. is left for validation"),
        ({"class_names": ["a", "b"]}, "label 4 at index 4 is out of range; there are 2 classes"),
        ({"class_names": list("abcdef")}, "no training image of class f"),
        ({"images": np.array([None] * 100)}, r"images have shape \(100,\)"),
        ({"layout": "HWCN", "images": GREY[:100]}, "layout is 'HWCN'; give 'NHWC' or 'NCHW'"),
    ],
)
def test_npz_with_wrong_arrays_says_which(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {"images": GREY[:100, 0], "labels": np.arange(100) % 5} | change
    np.savez(tmp_path / "own.npz", **{key: value for key, value in arrays.items() if value is not None})
    refuses(message, name="npz", path=str(tmp_path / "own.npz"))


def test_npz_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.npz"
    refuses("npz: no path given; set data.path to an .npz file", name="npz")
    refuses("npz: nothing found at '.*own.npz'; set data.path", name="npz", path=str(file))
    refuses("is a folder; set data.path to the .npz file itself", name="npz", path=str(tmp_path))
    np.savez(file, images=GREY[:100, 0], labels=np.arange(100) % 5)
    file.write_bytes(file.read_bytes()[:-300])
    refuses("cannot read '.*own.npz': .*; write it with numpy.savez", name="npz", path=str(file))
    np.save(tmp_path / "bare.npy", GREY)
    refuses("bare.npy' holds one bare array", name="npz", path=str(tmp_path / "bare.npy"))
    np.savez(file, images=GREY[:100, 0], labels=np.array(["cat", 3] * 50, dtype=object))
    refuses("cannot read '.*own.npz': Object arrays cannot be loaded", name="npz", path=str(file))


# ---------------------------------------------------------------- folders of pictures


def write_pictures(root: Path, images: np.ndarray, labels: np.ndarray, suffix: str = ".png") -> None:
    """(N, C, H, W) as one file each, in one folder per class."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(folder / f"{i:04}{suffix}")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of ten colour pictures, 12x10 pixels, and files that are no pictures."""
    chosen = balanced(10, classes=3)
    write_pictures(tmp_path, colour(GREY[chosen], 12)[..., :10], LABELS[chosen])
    (tmp_path / "class 0/notes.txt").write_text("not a picture")
    (tmp_path / "class 0/._0000.png").write_text("left by an archive")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_a_folder_of_pictures(pictures: Path) -> None:
    options = DataOptions("image_folder", path=str(pictures))
    facts, data, test = describe(options), load(options), load_test(options)
    assert (facts.channels, facts.height, facts.width) == (3, 12, 10)
    assert facts.class_names == ("class 0", "class 1", "class 2")
    assert (part(data, "train"), part(data, "validation"), len(test)) == ((6,) * 3, (2,) * 3, 6)
    read = np.concatenate([split.images.numpy() for split in (data.train, data.validation, test)])
    expected = colour(GREY[balanced(10, classes=3)], 12)[..., :10]
    assert {image.tobytes() for image in read} == {image.tobytes() for image in expected}


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [(("test",), (24, 6, 3)), (("val",), (24, 6, 3)), (("test", "val"), (30, 3, 3)), ((), (18, 6, 6))],
)
def test_folders_of_parts_are_kept(pictures: Path, parts: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    root = pictures / "parts"
    root.mkdir()
    for name in ("class 0", "class 1", "class 2"):
        (pictures / name).rename(root / name)
    root.rename(pictures / "train")
    for shift, name in enumerate(parts):
        chosen = balanced(12, classes=3)[30 + 3 * shift :][:3]
        write_pictures(pictures / name, colour(GREY[chosen], 12)[..., :10], LABELS[chosen])
    options = DataOptions("image_folder", path=str(pictures))
    data = load(options)
    assert (len(data.train), len(data.validation), len(load_test(options))) == sizes


def test_a_class_may_be_called_train(pictures: Path) -> None:
    (pictures / "class 1").rename(pictures / "train")
    assert describe(DataOptions("image_folder", path=str(pictures))).class_names == ("class 0", "class 2", "train")


def test_grey_pictures_have_one_channel_and_may_stand_among_colours(tmp_path: Path, pictures: Path) -> None:
    write_pictures(tmp_path / "grey", GREY[balanced(5)], LABELS[balanced(5)], ".bmp")
    assert load(DataOptions("image_folder", path=str(tmp_path / "grey"))).train.images.shape == (30, 1, 8, 8)
    last = pictures / "class 2/zz.png"
    Image.new("L", (10, 12), 77).save(last)
    (pictures / "grey").rename(tmp_path.parent / f"{tmp_path.name}-grey")
    whole = DataOptions("image_folder", path=str(pictures), validation=0.1, test=0.1)
    found = torch.cat([load(whole).train.images, load(whole).validation.images, load_test(whole).images])
    assert (found == 77).all(dim=(1, 2, 3)).sum() == 1


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (9, 12)), "class 1/zz.png' is 9x12 pixels but the first image is 10x12; resize all to one"),
        (Image.new("I;16", (10, 12)), "class 1/zz.png' has pixels of mode I;16; give 8-bit grey or RGB"),
        (b"no picture", "cannot read '.*class 1/zz.png': cannot identify image file"),
        ("cut", "cannot read '.*class 1/zz.png': .*; replace or remove it"),
        (None, "class folder '.*class 1' has no image"),
    ],
)
def test_a_picture_that_does_not_fit_is_named(pictures: Path, picture: object, message: str) -> None:
    file = pictures / "class 1/zz.png"
    if isinstance(picture, Image.Image):
        picture.save(file)
    elif picture == "cut":
        file.write_bytes((pictures / "class 1/0001.png").read_bytes()[:200])
    elif isinstance(picture, bytes):
        file.write_bytes(picture)
    else:
        for path in (pictures / "class 1").iterdir():
            path.unlink()
    refuses(message, name="image_folder", path=str(pictures))


def test_folders_that_are_no_datasets_are_named(tmp_path: Path, pictures: Path) -> None:
    refuses("image_folder: no path given; set data.path to a folder", name="image_folder")
    refuses("image_folder: nothing found at '.*none'", name="image_folder", path=str(tmp_path / "none"))
    refuses(
        "0000.png' is a file; set data.path to a folder", name="image_folder", path=str(pictures / "class 0/0000.png")
    )
    refuses("no class subfolders in '.*class 0'", name="image_folder", path=str(pictures / "class 0"))
    Image.new("L", (10, 12)).save(pictures / "class 0/0000.png")
    refuses("0003.png' has colours but the first image is grey", name="image_folder", path=str(pictures))


def test_a_test_folder_with_a_class_of_its_own_is_an_error(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", GREY[balanced(5)], LABELS[balanced(5)])
    write_pictures(tmp_path / "test", GREY[balanced(1)], LABELS[balanced(1)] + 1)
    with pytest.raises(DataError, match="test' has classes that training does not: class 10"):
        load_test(DataOptions("image_folder", path=str(tmp_path)))
