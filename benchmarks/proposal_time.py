"""How long the pareto sampler takes for a proposal, over a space of 46,875 networks that it looks at whole.

    OMP_NUM_THREADS=1 python benchmarks/proposal_time.py

A study is filled with trials of a closed form, each a network of its own, then proposals are asked for and told one
after the other, so that now and then the model's hyperparameters are fitted anew: those are the slowest. The first
proposal reads all trials, builds the model and is not counted. Exit code 1 where a median is above its bound.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from typing import Any

import optuna
from help_time import machine, versions

from mnet_search.models.complexity import costs
from mnet_search.search.distributions import distribution, suggest
from mnet_search.search.pareto_sampler import ParetoSampler
from mnet_search.spaces.space import Params, Space, make_space
from mnet_search.spaces.yamlfile import Source

BOUNDS = {200: 0.2, 2_000: 1.0}  # seconds, by the number of trials
BLOCKS = {f"k{kernel}e{expand}": (kernel, expand) for kernel, expand in ((3, 2), (3, 4), (3, 6), (5, 3), (5, 6))}
RESOLUTIONS = (24, 32, 40)


def make() -> Space:
    """Six places in three stages, each one of five blocks, at three resolutions."""
    parameters: dict[str, Any] = {"resolution": list(RESOLUTIONS), "head_channels": 320}
    for stage, channels in enumerate((16, 32, 64), 1):
        parameters |= {f"stages.{stage}.channels": channels, f"stages.{stage}.depth": 2}
        parameters |= {f"stages.{stage}.blocks.{place}": list(BLOCKS) for place in (1, 2)}
    blocks = {name: {"block": "inverted_residual", "kernel": k, "expand": e} for name, (k, e) in BLOCKS.items()}
    objectives = {"accuracy": "maximize", "mult_adds": "minimize", "params": "minimize"}
    values = {"family": "staged", "blocks": blocks, "parameters": parameters, "objectives": objectives}
    return make_space("proposal_time", values, Source("proposal_time")).for_data(classes=10, in_channels=3)


def accuracy(params: Params, rng: random.Random) -> float:
    """A closed form with noise: each block takes a share of the error that is left."""
    error = 0.9 * (24 / int(params["resolution"])) ** 0.3
    for name, value in params.items():
        if value in BLOCKS:
            kernel, expand = BLOCKS[str(value)]
            error *= 1.0 - 0.04 * expand**0.5 * int(name.split(".")[1]) ** 0.5 - 0.02 * (kernel == 5)
    return 1.0 - error + rng.gauss(0.0, 0.003)


def values_of(space: Space, params: Params, rng: random.Random) -> list[float]:
    """The objectives of a trial."""
    network = costs(space.arch(params))
    return [accuracy(params, rng), float(network.mult_adds), float(network.params)]


def proposals(space: Space, sampler: ParetoSampler, n_trials: int, n_asked: int) -> list[float]:
    """Seconds of each proposal after `n_trials`."""
    rng = random.Random(0)
    study = optuna.create_study(directions=list(space.file.objectives.values()), sampler=sampler)
    distributions = {name: distribution(parameter) for name, parameter in space.parameters.items()}
    known: set[tuple[Any, ...]] = set()
    while len(known) < n_trials:
        params = space.sample(rng)
        if tuple(params.values()) not in known:
            known.add(tuple(params.values()))
            values = values_of(space, params, rng)
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, values=values))
    taken = []
    for _ in range(n_asked + 1):
        start = time.perf_counter()
        trial = study.ask()
        params = suggest(space, trial)
        taken.append(time.perf_counter() - start)
        study.tell(trial, values_of(space, params, rng))
    return taken[1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asked", type=int, default=45, help="timed proposals at each number of trials (default 45)")
    asked = parser.parse_args().asked
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, missed = make(), False
    for n_trials, bound in BOUNDS.items():
        start = time.perf_counter()
        sampler = ParetoSampler(space)
        made = time.perf_counter() - start
        taken = proposals(space, sampler, n_trials, asked)
        first, median, third = statistics.quantiles(taken, n=4)
        print(
            f"{n_trials:5} trials: median {median:.3f} s (quartiles {first:.3f} to {third:.3f}), maximum "
            f"{max(taken):.3f} s, n = {asked}; bound {bound:g} s {'kept' if median <= bound else 'missed'}; "
            f"the sampler was made in {made:.1f} s",
            flush=True,
        )
        missed = missed or median > bound
    print(f"python {' '.join(sys.argv)}")
    print(f"{space.n_codes} codes; {machine()}; {versions('mnet-search', 'optuna', 'scikit-learn', 'numpy')}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
