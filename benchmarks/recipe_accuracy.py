"""What the default recipe gains over plain Adam on CIFAR-10: accuracy at equal images seen, and images until a goal.

    python benchmarks/recipe_accuracy.py --data data               # minutes a run: 1,000 images a second and core

MobileNetV1 shallow, width 1, 32 px, 40,000 training and 10,000 validation images, batch 128, one thread a run, as many
runs side by side as there are cores. Accuracies are validation accuracies after the last epoch. The images until the
goal are those of the shortest schedule of the default recipe that ends at or above it, and for plain Adam, whose rate
does not change, of the first epoch at or above it. Exit code 1 where a goal is missed: 15 points, and a quarter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from help_time import machine, versions

POINTS, SHARE = 15.0, 0.25


def curve(data: str, width: float, init: str, recipe: str, epochs: int, seed: int, stop_at: float = 2.0) -> list[float]:
    """Validation accuracies after each epoch, up to the first at or above `stop_at`."""
    import torch

    from mnet_search.models.factory import build
    from mnet_search.models.families import create
    from mnet_search.search.data import DataOptions, load
    from mnet_search.search.recipes import TrainingOptions
    from mnet_search.search.training import train

    torch.set_num_threads(1)
    images = load(DataOptions(name="cifar10", path=data))
    arch = create("mobilenet_v1", width=width, depth="shallow", resolution=32, classes=10, init=init)
    found = []
    for row in train(build(arch, seed), images, TrainingOptions(recipe, epochs), resolution=32, seed=seed):
        found.append(row.validation_accuracy)
        if row.validation_accuracy >= stop_at:
            break
    return found


def summary(values: list[float]) -> str:
    spread = f", sd {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f} %{spread}, n = {len(values)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--init", default="torch", help="starting weights, of both")
    parser.add_argument("--goal", type=float, default=0.67)
    parser.add_argument("--until", type=int, default=0, help="epochs of plain Adam towards the goal; 0 leaves it out")
    parser.add_argument("--schedules", type=int, nargs="*", default=[], help="epochs of ours tried for the goal")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{machine()}; {versions('torch')}; {cores} runs side by side")
    run = partial(curve, options.data, options.width, options.init)
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        long = pool.submit(run, "adam_plain", options.until, 0, options.goal) if options.until else None
        shorter = {n: pool.submit(run, "default", n, 0) for n in options.schedules}
        jobs = {
            name: [pool.submit(run, name, options.epochs, seed) for seed in range(options.seeds)]
            for name in ("default", "adam_plain")
        }
        ends = {name: [job.result()[-1] for job in of_recipe] for name, of_recipe in jobs.items()}
        plain_curve = long.result() if long else []
        schedules = {n: job.result()[-1] for n, job in shorter.items()}
    images = 40_000
    for name, values in ends.items():
        print(f"{name}: {summary(values)} after {options.epochs} epochs ({options.epochs * images:,} images seen)")
    gains = [100 * (a - b) for a, b in zip(ends["default"], ends["adam_plain"], strict=True)]
    print(f"gain, paired by seed: {statistics.mean(gains):.1f} points (least {min(gains):.1f})")
    missed = statistics.mean(gains) < POINTS
    if long:
        schedules[options.epochs] = ends["default"][0]
        ours = min((n for n, accuracy in schedules.items() if accuracy >= options.goal), default=None)
        reached = plain_curve[-1] >= options.goal
        theirs = f"{len(plain_curve)} epochs" if reached else f"not in {len(plain_curve)} (best {max(plain_curve):.1%})"
        shown = ", ".join(f"{n}: {accuracy:.1%}" for n, accuracy in sorted(schedules.items()))
        print(f"until {options.goal:.0%}: adam_plain {theirs}; default in {ours} epochs (schedules of {shown}), seed 0")
        missed = missed or ours is None or ours > SHARE * len(plain_curve)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
