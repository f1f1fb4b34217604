"""Images trained a second: this loop beside the plain loop of the field, in turns, on the same network and images.

    python benchmarks/train_speed.py --data data          # CIFAR-10 below data/; without it, made images of its shape

Plain: PIL images through torchvision's transforms (random crop, mirror, to tensor, normalise), a DataLoader, Adam,
`loss.item()` each step, all cores for one training; with 0 and with 2 loader workers, the faster one counts. Ours: as a
search runs it, one trial with one thread on every core (on a GPU one trial), whose rates are added up. Each side trains
whole epochs over the same images; the first step or epoch is not timed. Exit code 1 where a goal is missed: on a CPU 2
times at width 1 and 4 times at 0.25, on a GPU 10 times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from help_time import machine, versions

GOALS = {1.0: 2.0, 0.25: 4.0}
GPU_GOAL = 10.0
# Enough images for some seconds of each side.
IMAGES = {1.0: 2_560, 0.25: 7_680}
GPU_IMAGES = 40_000


def images_and_labels(folder: str | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 3, 32, 32) and int64 (count,)."""
    if folder is None:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (count, 3, 32, 32), np.uint8), np.arange(count) % 10
    from mnet_search.search.data import DataOptions, load

    train = load(DataOptions(name="cifar10", path=folder, train_limit=count)).train
    return train.images.numpy(), train.labels.numpy()


def network(width: float, depth: str) -> Any:
    from mnet_search.models.factory import build
    from mnet_search.models.families import create

    return build(create("mobilenet_v1", width=width, depth=depth, resolution=32, classes=10), 0)


# ---------------------------------------------------------------- the plain loop


class Pictures:
    """Images as torchvision's CIFAR10 gives them: one PIL image at a time, through a list of transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        from torchvision import transforms

        self.images, self.labels = images.transpose(0, 2, 3, 1).copy(), labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plain(pipe: Any, settings: dict[str, Any]) -> None:
    """Images a second of an epoch of the plain loop, every time that the pipe asks."""
    import torch
    from torch import nn

    device = torch.device(settings["device"])
    torch.set_num_threads(settings["cores"])
    module = network(settings["width"], settings["depth"]).to(device)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    pictures = Pictures(*images_and_labels(settings["data"], settings["count"]))
    loader = torch.utils.data.DataLoader(
        pictures, settings["batch"], shuffle=True, num_workers=settings["workers"], drop_last=True
    )

    def epoch() -> float:
        total, seen, started = 0.0, 0, 0.0
        module.train()
        for images, labels in loader:
            started = started or time.perf_counter()  # the loader's start is not counted
            images, labels = images.to(device), labels.to(device)
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(module(images), labels)
            loss.backward()
            optimiser.step()
            total += loss.item()
            seen += len(labels)
        return (seen - settings["batch"]) / (time.perf_counter() - started) if seen > settings["batch"] else 0.0

    serve(pipe, epoch)


def ours(pipe: Any, settings: dict[str, Any]) -> None:
    """Images a second of an epoch of ours, every time that the pipe asks."""
    from dataclasses import replace

    import torch

    from mnet_search.search.data import Data, Facts, Split
    from mnet_search.search.recipes import TrainingOptions
    from mnet_search.search.speed import Speed
    from mnet_search.search.training import train

    torch.set_num_threads(1)
    images, labels = images_and_labels(settings["data"], settings["count"])
    held = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    split = Split(held, torch.from_numpy(labels))
    small = replace(split, images=split.images[:64], labels=split.labels[:64])
    facts = Facts("made", 3, 10, 32, 32, tuple("0123456789"), flip=True, licence="")
    data = Data(facts, split, small, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), "none")
    way = Speed("channels_last", "bfloat16") if settings["device"] == "cuda" else Speed()
    options = TrainingOptions(epochs=10_000, batch_size=settings["batch"], learning_rate=1e-3)
    module = network(settings["width"], settings["depth"])
    rows = train(module, data, options, resolution=32, seed=0, device=settings["device"], speed=way)
    serve(pipe, lambda: next(rows).images_per_second)


def serve(pipe: Any, epoch: Any) -> None:
    epoch()
    pipe.send("ready")
    while pipe.recv() == "go":
        pipe.send(epoch())


# ---------------------------------------------------------------- side by side


def rates(settings: dict[str, Any], rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Images a second of each side, a value a round, the sides in turns: every side waits while another runs."""
    context = multiprocessing.get_context("spawn")
    trials = 1 if settings["device"] == "cuda" else settings["cores"]
    sides = {"ours": [(ours, {})] * trials}
    sides |= {f"plain, {workers} workers": [(plain, {"workers": workers})] for workers in settings["loader_workers"]}
    found: dict[str, list[float]] = {name: [] for name in sides}
    processes, pipes = [], {name: [] for name in sides}
    for name, members in sides.items():
        for target, more in members:
            mine, theirs = context.Pipe()
            processes.append(context.Process(target=target, args=(theirs, settings | more)))
            processes[-1].start()
            pipes[name].append(mine)
        for pipe in pipes[name]:
            assert pipe.recv() == "ready"
    for _ in range(rounds):
        for name, members in pipes.items():
            for pipe in members:
                pipe.send("go")
            found[name].append(sum(pipe.recv() for pipe in members))
    for members in pipes.values():
        for pipe in members:
            pipe.send("end")
    for process in processes:
        process.join()
    yield from found.items()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with CIFAR-10")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--depth", default="full", choices=["full", "shallow"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the plain loop's DataLoader")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{machine()}; {versions('torch', 'torchvision')}; {cores} cores; {options.rounds} rounds; {options.device}")
    missed = False
    for width in options.widths:
        for batch in options.batches:
            count = GPU_IMAGES if options.device == "cuda" else max(IMAGES.get(width, 2_560), 4 * batch)
            settings = {"width": width, "depth": options.depth, "batch": batch, "count": count, "cores": cores}
            settings |= {"device": options.device, "data": options.data, "loader_workers": options.workers}
            found = dict(rates(settings, options.rounds))
            own = found.pop("ours")
            best = max(found, key=lambda name: statistics.median(found[name]))
            ratios = [a / b for a, b in zip(own, found[best], strict=True)]
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            others = ", ".join(f"{name} {statistics.median(values):,.0f}" for name, values in found.items())
            print(
                f"width {width:g}, batch {batch}: ours {statistics.median(own):,.0f} images/s; {others}; ratio to the "
                f"faster one {middle:.2f} (quartiles {low:.2f} to {high:.2f}, n = {len(ratios)})",
                flush=True,
            )
            goal = GPU_GOAL if options.device == "cuda" else GOALS.get(width, 0.0)
            missed = missed or middle < goal
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
