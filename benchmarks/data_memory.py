"""How much memory several processes take for the same images: mapped from one cache, and loaded by each.

    OMP_NUM_THREADS=1 python benchmarks/data_memory.py                       # made images, as many as CIFAR-10's
    OMP_NUM_THREADS=1 python benchmarks/data_memory.py --data FOLDER         # CIFAR-10 itself

Each process makes one pass of augmented, normalised batches. While all still hold their data, each reads from
/proc/self/smaps its proportional share (Pss) of the cache's files, and by how much its own private memory has grown
since before it had the data, after a first pass over other images. Both are given as multiples of the bytes of the
training and validation images. Exit code 1 where their sum is above 1.5 for mapped images. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from help_time import machine, versions

from mnet_search.search.data import Data, DataOptions, Split, load
from mnet_search.search.data_cache import share, shared
from mnet_search.search.pixels import augment, normalise

GOAL = 1.5
BATCH = 128


def one_pass(data: Data) -> None:
    """Every training and validation image once, as training sees them."""
    generator = torch.Generator().manual_seed(0)
    for split in (data.train, data.validation):
        split = split.at(32, torch.device("cpu"))
        order = torch.randperm(len(split), generator=generator)
        for images, _ in split.batches(order.split(BATCH)):
            normalise(augment(images, generator, 2, True), data.mean, data.std)


def memory(cache: Path) -> tuple[int, int]:
    """Bytes: this process's proportional share of the mapped files below `cache`, and what is its own of all else."""
    mapped = private = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split(maxsplit=1)
        if not key.endswith(":"):  # the head of a mapping, with its file last
            inside = str(cache) in line
        elif key == "Pss:" and inside:
            mapped += int(rest[0].split()[0]) * 1024
        elif key.startswith("Private_") and not inside:
            private += int(rest[0].split()[0]) * 1024
    return mapped, private


def hold(options: DataOptions, cache: Path, digest: str, map_it: bool, barrier: Barrier, answers: Any) -> None:
    """One process: take the data, pass over them, measure while all others hold theirs."""
    torch.set_num_threads(1)
    other = Split(torch.zeros(4 * BATCH, 3, 32, 32, dtype=torch.uint8), torch.zeros(4 * BATCH, dtype=torch.int64))
    one_pass(Data(facts=None, train=other, validation=other, mean=(0.5,) * 3, std=(0.5,) * 3, digest=""))  # type: ignore[arg-type]
    before = memory(cache)[1]
    data = shared(options, cache, digest) if map_it else load(options)
    one_pass(data)
    barrier.wait()
    mapped, private = memory(cache)
    barrier.wait()
    answers.put((mapped, private - before))


def prepare(options: DataOptions, cache: Path, answers: Any) -> None:
    """Fill the cache in a process of its own, as the driver of a search does."""
    data = load(options)
    share(data, cache)
    answers.put((data.digest, data.train.images.nbytes + data.validation.images.nbytes))  # type: ignore[union-attr]


def made_options(folder: Path, count: int) -> DataOptions:
    """`count` noise images of 32x32 and as many labels of ten classes."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    np.savez(folder / "made.npz", train_images=images, train_labels=np.arange(count) % 10)
    return DataOptions("npz", path=str(folder / "made.npz"), test=0.001)


def measure(
    options: DataOptions, cache: Path, processes: int, names: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """For each of `names`: the sums over processes of mapped and of new private memory, as multiples of the images."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    writer = context.Process(target=prepare, args=(options, cache, answers))
    writer.start()
    digest, size = answers.get(timeout=300)
    writer.join()
    print(f"images: {size / 1e6:.1f} MB; {processes} processes")
    results = {}
    for name in names:
        barrier = context.Barrier(processes)
        given = (options, cache, digest, name == "shared", barrier, answers)
        workers = [context.Process(target=hold, args=given) for _ in range(processes)]
        for worker in workers:
            worker.start()
        found = [answers.get(timeout=300) for _ in workers]
        for worker in workers:
            worker.join()
        results[name] = (sum(row[0] for row in found) / size, sum(row[1] for row in found) / size)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with CIFAR-10; default: made images of the same size")
    parser.add_argument("--images", type=int, default=50_000, help="how many are made")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--shared-only", action="store_true", help="leave out the processes that load each for itself")
    arguments = parser.parse_args()
    if not Path("/proc/self/smaps").exists():
        print("only Linux says how memory is shared (/proc/PID/smaps)", file=sys.stderr)
        return 2
    names = ("shared",) if arguments.shared_only else ("shared", "loaded")
    print(machine())
    print(versions("torch", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        options = (
            DataOptions("cifar10", path=arguments.data)
            if arguments.data
            else made_options(Path(folder), arguments.images)
        )
        results = measure(options, Path(folder) / "cache", arguments.processes, names)
    print(f"{'':8} {'mapped (Pss)':>14} {'new private':>14} {'together':>10}   in multiples of the images' bytes")
    for name, (mapped, private) in results.items():
        print(f"{name:8} {mapped:14.2f} {private:14.2f} {mapped + private:10.2f}")
    return int(sum(results["shared"]) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
