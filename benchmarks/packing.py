"""Images trained a second by 1, 2, 4, 8 ... trials side by side: a space's median and largest network, on what is here.

    python benchmarks/packing.py spaces/mobilenet.yaml [--counts 1 2 4 8] [--set KEY=VALUE]

Each trial is a process of its own that makes real training steps; all of them start together. The numbers take turns
in every round, so that a busy moment falls on all; stated are medians over the rounds with quartiles, and the median of
the rounds' ratios to one trial alone. On a CPU more trials than cores are left out.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from help_time import machine, versions

START_S = 600.0  # for all processes to warm up and be timed, whatever the network


def quartiles(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:,.0f} (n = 1)"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path, nargs="?", default=Path("spaces/mobilenet.yaml"))
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()

    from mnet_search.search.local_executor import _context
    from mnet_search.search.packing import Images, subjects
    from mnet_search.search.packing_probe import Crew, ProbeFailed, TooSlow
    from mnet_search.search.resources import environment, look_at_machine
    from mnet_search.search.run import open_space
    from mnet_search.spaces.survey import survey

    here, space = look_at_machine(), open_space(options.space, options.overrides)
    asked = space.file.resources
    device = "cuda" if here.gpus and asked.gpus_per_trial != 0 else "cpu"
    most = max(options.counts) if device == "cuda" else max(here.cores // asked.cpus_per_trial, 1)
    counts = sorted({1, *(count for count in options.counts if count <= most)})
    gpu = f"; {here.gpus[0].name}, {here.gpus[0].memory_bytes / 1e9:.0f} GB" if device == "cuda" else ""
    print(f"{machine()}{gpu}; {versions('mnet-search', 'torch')}; {options.rounds} rounds of {options.seconds:g} s")
    print(f"{options.space}, {asked.cpus_per_trial} threads a trial, on {device}")
    print(f"{'network':44} {'batch':>5} {'trials':>6} {'images/s':>26} {'to 1':>5} {'MB each':>8}")
    for name, subject in subjects(space, survey(space), asked, Images(), device).items():
        rates: dict[int, list[float]] = {count: [] for count in counts}
        peak = 0
        with (
            environment(OMP_NUM_THREADS=str(asked.cpus_per_trial)),
            Crew(_context(), subject.job, START_S + options.rounds * len(counts) * options.seconds) as crew,
        ):
            try:
                for count in counts:
                    crew.warm(count)
                for _ in range(options.rounds):
                    for count in counts:
                        each = crew.train(count, options.seconds)
                        rates[count].append(sum(figures.images / figures.seconds for figures in each))
                        peak = max(peak, *(figures.peak_bytes for figures in each))
            except (TooSlow, ProbeFailed) as error:
                print(f"{name}: ended early: {error or 'no time left'}")
        for count, found in rates.items():
            if found:
                ratio = statistics.median(a / b for a, b in zip(found, rates[1], strict=False))
                text = f"{name}: {subject.about}"
                print(
                    f"{text:44} {subject.job.batch:5} {count:6} {quartiles(found):>26} {ratio:5.2f} {peak / 1e6:8,.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
