"""How many networks of a space are costed in a second on one core, and how much longer fvcore takes for one.

    OMP_NUM_THREADS=1 python benchmarks/cost_speed.py

A network is costed as a user does it: `for code in space.codes(): costs(space.arch(code))`; with ids, `arch.id` as
well. The first pass over a space is timed in processes of their own, since what later passes find is kept by then.
fvcore's FlopCountAnalysis counts a sample of the same networks in turn with our passes, so that a busy machine slows
both. Exit code 1 where the goal is missed: 20,000 networks a second over macro.yaml, and 1,000 times fvcore.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

from help_time import machine, versions

from mnet_search.models.complexity import costs
from mnet_search.spaces.space import Space, load_space

SPACES = Path(__file__).resolve().parents[1] / "spaces"
NAMES = ("macro", "mobilenet")
PER_SECOND, RATIO = 20_000, 1_000


def load(name: str) -> Space:
    """A space as a search on CIFAR-10 reads it."""
    return load_space(SPACES / f"{name}.yaml").for_data(classes=10, in_channels=3)


def one_pass(space: Space, *, ids: bool) -> float:
    """Networks a second over the whole space, equal ones counted as often as they are described."""
    n = 0
    start = time.perf_counter()
    for code in space.codes():
        arch = space.arch(code)
        costs(arch)
        if ids:
            _ = arch.id
        n += 1
    return n / (time.perf_counter() - start)


def first_pass(name: str, *, ids: bool) -> float:
    """The same in a process that has seen no network yet."""
    command = [sys.executable, __file__, "--first", name, *(["--ids"] if ids else [])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def fvcore_seconds(space: Space, code: dict) -> tuple[float, float]:
    """Building a module, and counting it with fvcore."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import uses torch.jit, which torch has deprecated
        from fvcore.nn import FlopCountAnalysis

    from mnet_search.models.factory import build

    arch = space.arch(code)
    start = time.perf_counter()
    module = build(arch).eval()
    built = time.perf_counter()
    analysis = FlopCountAnalysis(module, torch.zeros(1, *arch.input))
    # of what it does not count (batch norms are counted, additions are not) it would write a line for each network
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so does its trace
        analysis.total()
    return built - start, time.perf_counter() - built


def spread(values: list[float], unit: str, digits: int = 0) -> str:
    """Median with quartiles and n."""
    first, median, third = statistics.quantiles(values, n=4)
    quartiles = f"quartiles {first:,.{digits}f} to {third:,.{digits}f}"
    return f"median {median:,.{digits}f} {unit} ({quartiles}, n = {len(values)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=9, help="timed passes of each kind (default 9)")
    parser.add_argument("--sample", type=int, default=12, help="networks that fvcore counts (default 12)")
    parser.add_argument("--first", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--ids", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.first:
        print(one_pass(load(asked.first), ids=asked.ids))
        return 0

    median = {}
    for name in NAMES:
        space = load(name)
        print(f"{name}.yaml: {space.n_codes:,} networks")
        one_pass(space, ids=True)
        for ids in (False, True):
            first = [first_pass(name, ids=ids) for _ in range(asked.passes)]
            later = [one_pass(space, ids=ids) for _ in range(asked.passes)]
            what = "with ids" if ids else "costs alone"
            print(f"  {what}, first pass   {spread(first, 'networks/s')}")
            print(f"  {what}, later passes {spread(later, 'networks/s')}")
            median[name, ids] = statistics.median(later)

    space = load("macro")
    sample = random.Random(0).sample(list(space.codes()), asked.sample)
    fvcore_seconds(space, sample[0])  # its imports and first use
    one_pass(space, ids=False)
    ours, built, counted = [], [], []
    for code in sample:
        ours.append(1 / one_pass(space, ids=False))
        building, counting = fvcore_seconds(space, code)
        built.append(building)
        counted.append(counting)
    both = [b + c for b, c in zip(built, counted, strict=True)]
    print("fvcore, the same networks in turn with passes over macro.yaml")
    print(f"  ours                 {spread([1e6 * s for s in ours], 'us a network', 1)}")
    print(f"  fvcore               {spread([1e3 * s for s in counted], 'ms a network', 1)}")
    print(f"  module and fvcore    {spread([1e3 * s for s in both], 'ms a network', 1)}")
    ratios = [f / s for f, s in zip(counted, ours, strict=True)]
    print(f"  fvcore / ours        {spread(ratios, 'times')}")
    print(f"  and with the module  {spread([f / s for f, s in zip(both, ours, strict=True)], 'times')}")

    per_second, ratio = median["macro", False], statistics.median(ratios)
    reached = per_second >= PER_SECOND and ratio >= RATIO
    print(f"goal {'reached' if reached else 'missed'}: {PER_SECOND:,} networks/s and {RATIO:,} times fvcore")
    print(
        f"here {per_second:,.0f} networks/s in later passes over macro.yaml, costs alone, and {ratio:,.0f} times fvcore"
    )
    print(f"python {' '.join(sys.argv)}")
    print(f"{machine()}; {versions('mnet-search', 'torch', 'fvcore')}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
