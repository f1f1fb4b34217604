"""One copy of the images for all processes of a machine: equal bit for bit, whole or absent, and really one."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mnet_search.search import data as data_module
from mnet_search.search import data_cache, data_maps
from mnet_search.search.data import Data, DataError, DataOptions, Split, load, read, resize
from mnet_search.search.data_cache import share, shared

from real_digits import GREY, LABELS, balanced, colour

CPU = torch.device("cpu")
DIGITS = load(DataOptions())


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Each test begins as a new process does."""
    shared.cache_clear()
    yield
    shared.cache_clear()


def write_npz(path: Path, step: int = 0) -> DataOptions:
    """A user's own colour digits, of 9x9 pixels and three classes; another `step`, other images."""
    chosen = balanced(20, classes=3)
    np.savez(path, images=colour(GREY[chosen], 9) + np.uint8(step), labels=LABELS[chosen], layout="NCHW")
    return DataOptions("npz", path=str(path))


def same(one: Data, other: Data) -> bool:
    parts = [(getattr(one, name), getattr(other, name)) for name in ("train", "validation")]
    pixels = all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in parts)
    return pixels and (one.facts, one.mean, one.std, one.digest) == (other.facts, other.mean, other.std, other.digest)


def mapped_files() -> set[str]:
    """Of this process (Linux)."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]).name for line in lines if len(line.split(maxsplit=5)) == 6}


# ---------------------------------------------------------------- the same images


def test_mapped_images_are_the_loaded_ones_bit_for_bit(tmp_path: Path) -> None:
    for options in (DataOptions(), write_npz(tmp_path / "own.npz"), DataOptions(train_fraction=0.3)):
        loaded = read(options)
        share(loaded, tmp_path / "cache")
        data = shared(options, tmp_path / "cache", loaded.digest)
        assert same(data, loaded)
        assert isinstance(data.train, Split)
        assert data.train.images.is_contiguous(memory_format=torch.channels_last)
        assert shared(options, tmp_path / "cache", loaded.digest) is data, "a reused worker maps once"
        assert data_module._digest(data.train, data.validation) == loaded.digest
    if Path("/proc/self/maps").exists():
        assert {"train.u8", "validation.u8"} <= mapped_files()


def test_writing_to_a_mapped_image_changes_no_file(tmp_path: Path) -> None:
    share(DIGITS, tmp_path)
    data = shared(DataOptions(), tmp_path, DIGITS.digest)
    data.train.images[0] = 99  # type: ignore[union-attr]
    shared.cache_clear()
    assert same(shared(DataOptions(), tmp_path, DIGITS.digest), DIGITS)


def test_an_absent_cache_is_written_from_the_source_and_nothing_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr(data_cache, "read", lambda options: reads.append(options) or read(options))
    for _ in range(3):
        assert same(shared(DataOptions(), tmp_path / "deep/cache", DIGITS.digest), DIGITS)
        shared.cache_clear()
    assert len(reads) == 1
    assert [path.name for path in (tmp_path / "deep/cache").iterdir() if path.is_dir()] == [DIGITS.digest[:16]]


def test_facts_are_those_of_the_options_and_not_of_who_wrote(tmp_path: Path) -> None:
    share(DIGITS, tmp_path)
    assert shared(DataOptions(flip=True), tmp_path, DIGITS.digest).facts == replace(DIGITS.facts, flip=True)
    assert not shared(DataOptions(), tmp_path, DIGITS.digest).facts.flip


def test_a_source_that_is_gone_is_not_needed(tmp_path: Path) -> None:
    options = write_npz(tmp_path / "own.npz")
    loaded = read(options)
    share(loaded, tmp_path)
    (tmp_path / "own.npz").unlink()
    assert same(shared(options, tmp_path, loaded.digest), loaded)
    assert shared(replace(options, flip=True), tmp_path, loaded.digest).facts.flip


# ---------------------------------------------------------------- damage


def damage_meta(home: Path) -> None:
    (home / "meta.json").write_text('{"format": 1, "dig')


def other_meta(home: Path) -> None:
    meta = json.loads((home / "meta.json").read_text())
    (home / "meta.json").write_text(json.dumps(meta | {"digest": "0" * 64}))


def older_meta(home: Path) -> None:
    meta = json.loads((home / "meta.json").read_text())
    (home / "meta.json").write_text(json.dumps(meta | {"facts": {"name": "digits"}}))


DAMAGES = {
    "truncated": lambda home: os.truncate(home / "train.u8", 1000),
    "longer": lambda home: os.truncate(home / "validation.u8", 10**6),
    "labels truncated": lambda home: os.truncate(home / "train.i64", 8),
    "missing file": lambda home: (home / "validation.i64").unlink(),
    "missing meta": lambda home: (home / "meta.json").unlink(),
    "meta cut": damage_meta,
    "meta of others": other_meta,
    "meta of another version": older_meta,
    "meta no object": lambda home: (home / "meta.json").write_text("[]"),
    "empty": lambda home: [path.unlink() for path in home.iterdir()],
    "a file": lambda home: (shutil.rmtree(home), home.write_text("")),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_written_anew(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    share(DIGITS, tmp_path)
    home = tmp_path / DIGITS.digest[:16]
    damage(home)
    assert same(shared(DataOptions(), tmp_path, DIGITS.digest), DIGITS)
    assert sorted(path.name for path in home.iterdir()) == [
        "meta.json",
        "train.i64",
        "train.u8",
        "validation.i64",
        "validation.u8",
    ]
    assert not list(tmp_path.glob(".writing-*"))


def test_a_changed_source_is_refused_by_digest(tmp_path: Path) -> None:
    digest = read(write_npz(tmp_path / "own.npz")).digest
    options = write_npz(tmp_path / "own.npz", step=1)
    with pytest.raises(
        DataError, match="npz: the images on this machine are others than those that the search"
    ) as caught:
        shared(options, tmp_path / "cache", digest)
    assert f"not {digest[:16]}); restore the files, or begin a new study" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, parts: object) -> int:
        if path.name.startswith("validation"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return data_maps.write_tensors(path, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(data_cache, "write_tensors", full)
    for write in (lambda: share(DIGITS, tmp_path), lambda: shared(DataOptions(), tmp_path, DIGITS.digest)):
        with pytest.raises(DataError, match=r"cannot keep the images in '.*': No space left on device; free") as caught:
            write()
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob(".writing-*"))
        assert not (tmp_path / DIGITS.digest[:16]).exists()


def test_a_file_that_may_not_grow_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(
            DataError, match=r"cannot keep the images in '.*': File too large; free 0 MB there, or keep"
        ):
            share(DIGITS, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (share, lambda data, folder: shared(DataOptions(), folder, data.digest)):
        with pytest.raises(DataError, match=r"cannot keep the images in '.*file/cache': ") as caught:
            write(DIGITS, tmp_path / "file/cache")
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- resized


def test_resized_images_are_one_file_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share(DIGITS, tmp_path)
    data = shared(DataOptions(), tmp_path, DIGITS.digest)
    monkeypatch.setattr(data_maps, "CHUNK_BYTES", 5000)
    assert data.train.at(8, CPU) is data.train
    large = data.train.at(12, CPU)
    assert torch.equal(large.images, resize(DIGITS.train.images, 12))  # type: ignore[union-attr]
    assert large.images.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    file = tmp_path / DIGITS.digest[:16] / "train-12.u8"
    assert file.stat().st_size == len(DIGITS.train) * 144
    assert data.train.at(12, CPU) is large is large.at(12, CPU)
    twice = large.at(10, CPU)
    assert torch.equal(twice.images, resize(large.images, 10))  # type: ignore[union-attr]
    assert not file.with_name("train-10.u8").exists(), "train at 12 at 10 is not train at 10"
    del large, twice  # mapped from what is damaged now
    for damage, kept in ((lambda: None, True), (lambda: os.truncate(file, 7), False), (file.unlink, False)):
        shared.cache_clear()
        inode = file.stat().st_ino
        damage()
        again = shared(DataOptions(), tmp_path, DIGITS.digest).train.at(12, CPU)
        assert torch.equal(again.images, resize(DIGITS.train.images, 12))  # type: ignore[union-attr]
        assert (file.stat().st_ino == inode) == kept


def test_large_resized_images_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share(DIGITS, tmp_path)
    train = shared(DataOptions(), tmp_path, DIGITS.digest).train
    monkeypatch.setattr(data_module, "RESIZED_CACHE_BYTES", 1000)
    large = train.at(12, CPU)
    assert train.at(12, CPU) is large
    shutil.rmtree(tmp_path / DIGITS.digest[:16])
    monkeypatch.undo()
    assert torch.equal(train.at(13, CPU).images, resize(DIGITS.train.images, 13))  # type: ignore[union-attr]


# ---------------------------------------------------------------- several processes


def write_and_map(folder: Path, barrier) -> None:  # type: ignore[no-untyped-def]
    barrier.wait()
    share(DIGITS, folder)
    assert same(shared(DataOptions(), folder, DIGITS.digest), DIGITS)
    assert len(shared(DataOptions(), folder, DIGITS.digest).train.at(15, CPU)) == len(DIGITS.train)


def test_writers_at_once_are_harmless(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    (tmp_path / DIGITS.digest[:16]).mkdir()
    (tmp_path / DIGITS.digest[:16] / "meta.json").write_text("damaged")
    processes = [context.Process(target=write_and_map, args=(tmp_path, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says how memory is shared")
def test_several_processes_hold_one_copy() -> None:
    benchmark = Path(__file__).parents[1] / "benchmarks/data_memory.py"
    done = subprocess.run(
        [sys.executable, str(benchmark), "--images", "12000", "--processes", "2", "--shared-only"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shared" in done.stdout
