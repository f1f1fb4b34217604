"""Folders of pictures that are decoded on the way: real digits as files of mixed sizes, and real decoding processes."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnet_search.search import data_files, data_stream
from mnet_search.search.data import Data, DataError, DataOptions, Source, Split, StreamedSplit, load, load_test, read
from mnet_search.search.data_cache import pinned, share, shared
from mnet_search.search.data_files import Facts, Pictures

from real_digits import GREY, LABELS, balanced, colour, part, refuses

CPU = torch.device("cpu")


def write_pictures(root: Path, sizes: tuple[int, ...] = (12, 17, 30), per_class: int = 10) -> Path:
    """Three classes of colour digits, widths and heights taking turns; class by class, names in order."""
    for number, position in enumerate(balanced(per_class, classes=3)):
        folder = root / f"class {LABELS[position]}"
        folder.mkdir(parents=True, exist_ok=True)
        image = colour(GREY[position : position + 1], sizes[number % len(sizes)])[0, :, : sizes[0]]
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:04}.png")
    return root


def streamed(root: Path, **options: object) -> Data:
    return read(DataOptions("image_folder", path=str(root), stream=True, **options))  # type: ignore[arg-type]


def views(split: Split | StreamedSplit, parts: list[list[int]], seed: int | None = None) -> list[torch.Tensor]:
    return [images for images, _ in split.batches(map(torch.tensor, parts), seed)]


def test_a_streamed_folder_is_split_as_one_in_memory(tmp_path: Path) -> None:
    root = write_pictures(tmp_path, sizes=(12,))
    whole, data = read(DataOptions("image_folder", path=str(root), stream=False)), streamed(root)
    assert isinstance(data.train, StreamedSplit)
    assert isinstance(data.validation, StreamedSplit)
    assert isinstance(whole.train, Split)
    assert (part(data, "train"), part(data, "validation")) == ((6,) * 3, (2,) * 3)
    assert torch.equal(data.train.labels, whole.train.labels)
    assert data.facts == whole.facts
    assert data.mean == pytest.approx(whole.mean, abs=1e-12)
    assert data.std == pytest.approx(whole.std, abs=1e-12)
    for seed in (None, 3):
        labels = [labels.tolist() for _, labels in data.train.batches([torch.tensor([4, 17, 0])], seed)]
        assert labels == [whole.train.labels[[4, 17, 0]].tolist()]
    assert torch.equal(views(data.train.at(12, CPU), [[4, 17, 0]])[0], whole.train.images[[4, 17, 0]])
    assert len(load_test(DataOptions("image_folder", path=str(root), stream=True))) == 6
    few = streamed(root, train_fraction=0.5)
    assert (part(few, "train"), part(few, "validation")) == ((3,) * 3, (2,) * 3)


def test_pictures_of_mixed_sizes_are_cut_to_squares(tmp_path: Path) -> None:
    data = streamed(write_pictures(tmp_path))
    split = data.train.at(14, CPU)
    assert (len(split), split.labels.tolist()) == (18, data.train.labels.tolist())
    for seed in (None, 1):
        for images in views(split, [[0, 1, 2], [3, 4]], seed):
            assert images.shape[1:] == (3, 14, 14)
            assert images.dtype == torch.uint8
            assert images.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(split, StreamedSplit)
    path = split.pictures.path(1)
    with Image.open(path) as image:
        scale = 14 / min(image.size)
        size = [round(side * scale) for side in image.size]
        theirs = np.asarray(image.resize((size[0], size[1]), Image.Resampling.BILINEAR)).astype(int)
    top, left = ((side - 14) // 2 for side in theirs.shape[:2])
    middle = theirs[top : top + 14, left : left + 14].transpose(2, 0, 1)
    assert np.abs(views(split, [[1]])[0][0].numpy() - middle).mean() < 3, "the middle square, by Pillow"


def test_the_number_of_processes_changes_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = streamed(write_pictures(tmp_path), flip=True).train.at(16, CPU)
    parts, joined = [[3, 1, 16], [2], [0, 5, 9, 10]], [[3, 1, 16, 2, 0, 5, 9, 10]]
    results = []
    for workers in (0, 1, 2):
        monkeypatch.setattr(data_stream, "_count_workers", lambda workers=workers: workers)
        results.append([torch.cat(views(split, given, seed)) for given in (parts, joined) for seed in (None, 5, 6)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    plain, five, six, *again = results[0]
    assert all(map(torch.equal, (plain, five, six), again)), "nor do the batches"
    assert not torch.equal(five, six)
    assert not torch.equal(five, plain)


def test_training_views_differ_by_position_and_are_mirrored_only_where_they_may(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(60):
            ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (60, 1))
            Image.fromarray(ramp).save(tmp_path / name / f"{number}.png")
    mirrored = {}
    for flip in (False, True):
        split = streamed(tmp_path, flip=flip).train.at(20, CPU)
        images = views(split, [list(range(len(split)))], 0)[0]
        assert len({image.numpy().tobytes() for image in images}) > 60
        mirrored[flip] = sum(bool(image[0, 0, 0] > image[0, 0, -1]) for image in images) / len(images)
        widths = (images[..., -1].int() - images[..., 0].int()).abs().amax((1, 2)) / 4 / 60
        assert 0.35 <= float((widths**2).mean()) < 0.9, "the crops' share of the picture"
    assert mirrored[False] == 0
    assert 0.25 < mirrored[True] < 0.75


def test_streaming_leaves_global_generators_alone(tmp_path: Path) -> None:
    split = streamed(write_pictures(tmp_path)).train.at(8, CPU)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    views(split, [[0, 1]], 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_thread_or_a_daemon_decodes_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_stream._count_workers() == torch.get_num_threads() - 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(data_stream.os, "cpu_count", lambda: 8)
    assert data_stream._count_workers() == 1
    monkeypatch.setattr(type(multiprocessing.current_process()), "daemon", property(lambda self: True))
    assert data_stream._count_workers() == 0


# ---------------------------------------------------------------- what decides


def test_memory_decides_where_nobody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DataOptions("image_folder", path=str(write_pictures(tmp_path, sizes=(12,))))
    needed = 30 * 3 * 12 * 12
    for available, streams in ((None, False), (2 * needed, False), (2 * needed - 1, True)):
        monkeypatch.setattr(data_files, "memory_available", lambda available=available: available)
        data = read(options)
        assert isinstance(data.train, StreamedSplit) == streams == data.digest.startswith("files-")
        assert isinstance(load_test(options), StreamedSplit) == streams
        assert pinned(options, data.digest).stream == streams
        # What the search began with counts, and not the memory of this moment.
        monkeypatch.setattr(data_files, "memory_available", lambda: None)
        assert shared(options, tmp_path / ".data", data.digest).digest == data.digest


def test_the_memory_available_is_read_from_linux() -> None:
    available = data_files.memory_available()
    if not Path("/proc/meminfo").exists():
        assert available is None
    else:
        assert available is not None
        assert 2**20 < available < 2**50


def test_a_users_own_source_may_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_pictures(tmp_path / "own")
    names = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    facts = Facts("own", 3, 2, 12, 12, ("even", "odd"), False, "mine")

    def own(options: DataOptions) -> Source:
        return Source(facts, train=lambda: Pictures(root, np.array(list(map(bytes, names))), np.arange(30) % 2))

    def wrong(options: DataOptions) -> Source:
        return Source(facts, train=lambda: Pictures(root, np.array(list(map(bytes, names))), np.arange(30) % 3))

    (tmp_path / "own_streams.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import own_streams  # type: ignore[import-not-found]

    own_streams.own, own_streams.wrong = own, wrong
    assert part(read(DataOptions("own_streams:own")), "train") == (9, 9)
    refuses("own train: label 2 at index 2 is out of range; there are 2 classes", name="own_streams:wrong")


# ---------------------------------------------------------------- sharing


def test_streamed_data_are_not_copied_and_known_by_names_and_sizes(tmp_path: Path) -> None:
    root, cache = write_pictures(tmp_path / "own"), tmp_path / "cache"
    options = DataOptions("image_folder", path=str(root), stream=True)
    digest = load(options).digest
    share(load(options), cache)
    data = shared(options, cache, digest)
    assert isinstance(data.train, StreamedSplit)
    assert not cache.exists()
    assert shared(options, cache, digest) is data
    assert read(options).digest == digest
    assert streamed(root, split_seed=1).digest != digest
    shared.cache_clear()
    (root / "class 0/0000.png").write_bytes(b"longer by one" + (root / "class 0/0000.png").read_bytes())
    (root / "class 0/0000.png").rename(root / "class 0/0000.gif")
    with pytest.raises(DataError, match=r"are others than those that the search began with|cannot read"):
        shared(options, cache, digest)


# ---------------------------------------------------------------- pictures that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "cannot read '.*zz.png': cannot identify image file.*; replace or remove it"),
        ("cut", "cannot read '.*zz.png': .*; replace or remove it"),
        (Image.new("I;16", (10, 12)), "zz.png' has pixels of mode I;16; give 8-bit grey or RGB"),
        (None, "cannot read '.*zz.png': .*No such file.*; replace or remove it"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(
    tmp_path: Path, content: object, message: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stream, "_count_workers", lambda: workers)
    root = write_pictures(tmp_path)
    file = root / "class 1/zz.png"
    Image.new("RGB", (10, 12)).save(file)
    split = StreamedSplit.of(Pictures(root, np.array([b"class 1/zz.png"] * 3), np.arange(3)), streamed(root).facts)
    if isinstance(content, Image.Image):
        content.save(file)
    elif content == "cut":
        file.write_bytes((root / "class 1/0001.png").read_bytes()[:200])
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.unlink()
    for seed in (None, 0):
        with pytest.raises(DataError, match=message) as caught:
            views(split, [[0], [1, 2]], seed)
        assert "\n" not in str(caught.value)


def test_a_decoding_process_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_stream, "_count_workers", lambda: 1)
    monkeypatch.setattr(data_stream, "read_picture", lambda *_, **__: data_stream.os._exit(1))
    pictures = Pictures(tmp_path, np.array([b"a.png"]), np.array([0]))
    split = StreamedSplit.of(pictures, Facts("own", 3, 2, 12, 12, ("a", "b"), False, ""))
    with pytest.raises(
        DataError, match=r"a process that decodes pictures ended: .*; give the job more memory"
    ) as caught:
        views(split, [[0]])
    assert "\n" not in str(caught.value)


def test_colours_among_grey_are_refused_in_streams_too(tmp_path: Path) -> None:
    root = write_pictures(tmp_path)
    Image.new("L", (10, 12)).save(root / "class 0/0000.png")
    refuses("has colours but the first image is grey", name="image_folder", path=str(root), stream=True)


def test_mixed_sizes_in_memory_say_that_streams_take_them(tmp_path: Path) -> None:
    root = write_pictures(tmp_path)
    text = refuses("pixels but the first image is", name="image_folder", path=str(root), stream=False)
    assert text.endswith("resize all to one size, or set data.stream to true, which takes mixed sizes")


def test_a_recipe_without_crop_and_flip_sees_the_middle_of_every_picture(tmp_path: Path) -> None:
    data = streamed(write_pictures(tmp_path), flip=True)
    assert isinstance(data.train, StreamedSplit)
    split = data.train.at(10, CPU)
    middle = views(split, [[0, 5, 9]])[0]
    assert torch.equal(views(split.viewed(crop=False, flip=False), [[0, 5, 9]], seed=1)[0], middle)
    mirrored = torch.stack([views(split.viewed(crop=False, flip=True), [[0]], seed=seed)[0][0] for seed in range(9)])
    for one in mirrored:
        assert torch.equal(one, middle[0]) or torch.equal(one, middle[0].flip(2))
    assert len(torch.unique(mirrored, dim=0)) == 2
