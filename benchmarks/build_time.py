"""How long the factory takes to build a network, against torchvision building the same one.

    OMP_NUM_THREADS=1 python benchmarks/build_time.py

Both end in the same initialisation (He over the fan-out). They run in turn, so that a busy machine slows both: the
ratio travels between machines, the seconds do not. Exit code 1 where a ratio is above 1.5.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torchvision
from help_time import machine, versions

from mnet_search.models.factory import build
from mnet_search.models.families import create

GOAL = 1.5
SAME = {"init": "he_fan_out", "resolution": 224, "classes": 1000}
# torchvision's name, ours, and our options.
NETWORKS: list[tuple[str, str, dict[str, Any]]] = [
    ("mobilenet_v2", "mobilenet_v2", {}),
    ("mobilenet_v3_large", "mobilenet_v3_large", {}),
    ("resnet18", "resnet18", {"stem": "imagenet"}),
    ("vgg16", "vgg16_imagenet", {}),
]


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call; what it made is gone again before the next."""
    gc.collect()
    start = time.perf_counter()
    made = function()
    taken = time.perf_counter() - start
    del made
    return taken


def spread(values: list[float]) -> str:
    """Median with quartiles, in milliseconds."""
    first, median, third = (1e3 * v for v in statistics.quantiles(values, n=4))
    return f"median {median:8.1f} ms (quartiles {first:.1f} to {third:.1f}, n = {len(values)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11, help="timed runs of each, after one untimed (default 11)")
    parser.add_argument("--vgg-runs", type=int, default=3, help="the same for vgg16, which is of 138 M weights")
    asked = parser.parse_args()
    worst = 0.0
    for theirs, ours, options in NETWORKS:
        options = {**SAME, **options}
        arch = create(ours, **options)
        ways: dict[str, Callable[[], Any]] = {
            "torchvision": lambda theirs=theirs: torchvision.models.get_model(theirs, weights=None),
            "create, build": lambda ours=ours, options=options: build(create(ours, **options)),
            "build alone": lambda arch=arch: build(arch),
        }
        runs = asked.vgg_runs if theirs == "vgg16" else asked.runs
        rounds = [{way: seconds(function) for way, function in ways.items()} for _ in range(runs + 1)][1:]
        print(theirs)
        for way in ways:
            print(f"  {way:16}{spread([times[way] for times in rounds])}")
        for way in ("create, build", "build alone"):
            ratio = statistics.median(times[way] / times["torchvision"] for times in rounds)
            print(f"  {way} / torchvision {ratio:.2f}")
            worst = max(worst, ratio)
    print(f"goal {'reached' if worst <= GOAL else 'missed'}: a ratio of at most {GOAL}; largest here {worst:.2f}")
    print(f"python {' '.join(sys.argv)}")
    print(f"{machine()}; {versions('mnet-search', 'torch', 'torchvision')}")
    return 0 if worst <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
