"""How many evaluations searchers need: the hypervolume after 25, 50, 100, 200, 400 of them, on problems whose fronts
are known.

    python benchmarks/searchers.py -o searchers.csv                 # about an hour on two cores
    python benchmarks/searchers.py --searchers pareto tpe --seeds 3 --problems table

Every searcher is an Optuna sampler over the same study: one asks and tells. Peers are set up as Optuna's documentation
recommends (TPE multivariate and grouped, with knobs that have an order as integers; the categories of a parameter that
has none as they are). A proposal of a network that was evaluated before counts as an evaluation, as it would in
Optuna; for `tpe_unique` and `mutation` it does not. The hypervolume is of true accuracies, over log10 of the costs,
from the worst of the whole space, as a share of what the whole space has. With `noise`, a searcher sees single runs.
With 8 in flight, the oldest of 8 proposals is told each time. Exit code 1 where pareto needs more than a quarter of
the evaluations in which the best Optuna sampler comes to its last hypervolume (medians over seeds).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import random
import statistics
import sys
import time
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import optuna
from help_time import machine, versions
from landscape import PROBLEMS, Problem
from optuna.trial import TrialState

from mnet_search.search.accuracy_model import AccuracyModel, Observation
from mnet_search.search.candidates import Candidates, mutate
from mnet_search.search.distributions import suggest
from mnet_search.search.gain import expected_gain
from mnet_search.search.pareto_sampler import ParetoSampler
from mnet_search.spaces.space import Params, Space
from mnet_search.studies.pareto import hypervolume, non_dominated

COLUMNS = ("problem", "objectives", "noise", "in_flight", "searcher", "seed", "evaluations", "hypervolume_share")
MARKS = (25, 50, 100, 200, 400)
SHARE = 0.25
SEARCHERS = (
    "pareto",
    "tpe",
    "tpe_categories",
    "tpe_unique",
    "nsga2",
    "mutation",
    "random",
)  # also gp, minutes a run; oracle
OPTUNA = ("tpe", "tpe_categories", "gp", "nsga2")  # as they are: the best of them is to be beaten
HELPED = ("tpe_unique",)  # with what our driver does for every sampler: known networks are not evaluated again
ORDERED = {"identity": 0, "narrow3": 1, "wide5": 2, "shallow": 0, "full": 1}  # knobs with an order, for TPE and GP
TRIES = 20  # proposals of known networks in a row, before one is drawn


@dataclass(frozen=True)
class Setting:
    """One line of the comparison."""

    problem: str
    objectives: tuple[str, ...]
    noisy: bool
    in_flight: int
    searcher: str
    seed: int


class Peer:
    """An Optuna sampler over the space, with ordered knobs as integers."""

    unique = False

    def __init__(self, space: Space, sampler: optuna.samplers.BaseSampler):
        self.space = space
        self.study = optuna.create_study(directions=list(space.file.objectives.values()), sampler=sampler)

    def ask(self) -> tuple[optuna.trial.Trial, Params]:
        trial = self.study.ask()
        chosen: Params = {}
        for name, parameter in self.space.parameters.items():
            if not self.space.active(parameter, chosen):
                continue
            values = parameter.grid() or []
            if len(values) == 1:
                chosen[name] = values[0]
            elif all(isinstance(v, int | float) or v in ORDERED for v in values):
                chosen[name] = values[trial.suggest_int(name, 0, len(values) - 1)]
            else:
                chosen[name] = trial.suggest_categorical(name, values)
        return trial, chosen

    def tell(self, trial: optuna.trial.Trial, values: list[float]) -> None:
        self.study.tell(trial, values)


class UniquePeer(Peer):
    """The same, where a known network is told at once and does not count."""

    unique = True


class Ours(Peer):
    """With the product's own distributions: names are categories, numbers in even steps are ordered."""

    def ask(self) -> tuple[optuna.trial.Trial, Params]:
        trial = self.study.ask()
        return trial, suggest(self.space, trial)


class Mutation(Peer):
    """Mutations of members of the front, never of a network that is known: the simple searcher to beat."""

    def __init__(self, space: Space, seed: int):
        super().__init__(space, optuna.samplers.RandomSampler(seed=seed))
        self._rng, self._known = random.Random(seed), set[str]()

    def ask(self) -> tuple[optuna.trial.Trial, Params]:
        done = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        parents: list[Params] = []
        if len(done) >= 10:
            mask = non_dominated(np.array([t.values for t in done]), list(self.space.file.objectives.values()))
            parents = [done[i].params for i in np.flatnonzero(mask)]
        for _ in range(1000):
            draw = parents and self._rng.random() < 0.9
            chosen = mutate(self.space, self._rng.choice(parents), self._rng) if draw else self.space.sample(self._rng)
            key = self.space.arch(chosen).id
            if key not in self._known:
                break
        self._known.add(key)
        self.study.enqueue_trial(dict(chosen))
        trial = self.study.ask()
        return trial, suggest(self.space, trial)


class Oracle(Peer):
    """What no searcher can have: the same model and gain, told every run of every network of the table beforehand. What
    it still needs is the price of what seeds did to the truth.
    """

    def __init__(self, problem: Problem, seed: int):
        super().__init__(problem.space, optuna.samplers.RandomSampler(seed=seed))
        self._problem, self._candidates = problem, Candidates(problem.space)
        costs = np.stack(
            [np.log(self._candidates.cost(n)) for n in problem.space.file.objectives if n != "accuracy"], 1
        )
        self._costs = (costs - costs.min(axis=0)) / np.ptp(costs, axis=0)
        runs = [(i, a) for i, row in enumerate(self._candidates.rows) for a in problem.runs[row.key]]
        told = [Observation(i, float(np.log(1 - accuracy))) for i, accuracy in runs]
        self._mean, self._sd = AccuracyModel(self._candidates.features()).posterior(told)
        self._taken: list[int] = []

    def ask(self) -> tuple[optuna.trial.Trial, Params]:
        there = np.array(self._taken, dtype=int)
        errors = np.array([1 - self._problem.truth[self._candidates.rows[i].key] for i in self._taken])
        corner = np.full(self._costs.shape[1], 1.1)
        worst = float(np.exp(self._mean).max()) * 1.05
        gains = expected_gain(
            self._mean, self._sd, self._costs, errors, self._costs[there], corner, worst_error=worst, logarithmic=True
        )
        gains[there] = -1.0
        self._taken.append(int(gains.argmax()))
        chosen = self._candidates.rows[self._taken[-1]].params
        self.study.enqueue_trial(dict(chosen))
        trial = self.study.ask()
        return trial, suggest(self.space, trial)


def searcher(name: str, problem: Problem, seed: int) -> Peer:
    space = problem.space
    match name:
        case "oracle":
            return Oracle(problem, seed)
        case "pareto":
            return Ours(space, ParetoSampler(space, seed))
        case "tpe":
            return Peer(space, optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True))
        case "tpe_categories":
            return Ours(space, optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True))
        case "tpe_unique":
            return UniquePeer(space, optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True))
        case "gp":
            return Peer(space, optuna.samplers.GPSampler(seed=seed))
        case "nsga2":
            return Peer(space, optuna.samplers.NSGAIISampler(seed=seed, population_size=20))
        case "mutation":
            return Mutation(space, seed)
        case "random":
            return Peer(space, optuna.samplers.RandomSampler(seed=seed))
    raise SystemExit(f"unknown searcher {name}")


@cache
def problem_of(name: str, objectives: tuple[str, ...]) -> Problem:
    return PROBLEMS[name](objectives)


@cache
def whole(name: str, objectives: tuple[str, ...]) -> tuple[Any, float]:
    """The corner and the hypervolume of the whole space."""
    problem = problem_of(name, objectives)
    rows = np.array([figures(problem, key, problem.truth[key]) for key in problem.truth])
    corner = np.where(np.arange(rows.shape[1]) == 0, rows.min(axis=0), rows.max(axis=0))
    return corner, hypervolume(rows, directions(problem), corner)


def figures(problem: Problem, key: str, accuracy: float) -> list[float]:
    """The objectives as volumes are measured: accuracy, log10 of costs."""
    names = list(problem.space.file.objectives)
    return [accuracy if name == "accuracy" else float(np.log10(problem.costs[key][name])) for name in names]


def directions(problem: Problem) -> list[str]:
    return list(problem.space.file.objectives.values())


def evaluate(setting: Setting, most: int | None = None) -> tuple[list[float], float]:
    """The share of the hypervolume after each evaluation, and the seconds of a proposal."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = problem_of(setting.problem, setting.objectives)
    corner, full = whole(setting.problem, setting.objectives)
    rng = np.random.default_rng(setting.seed)
    found = searcher(setting.searcher, problem, setting.seed)
    waiting: deque[tuple[Any, str]] = deque()
    known: dict[str, list[float]] = {}
    volumes: list[float] = []
    seconds = 0.0
    rows: list[list[float]] = []
    n_evaluations = min(most or problem.most, problem.most)

    def tell(trial: Any, key: str) -> None:
        accuracy = problem.observed(key, rng, noisy=setting.noisy)
        own = [accuracy if n == "accuracy" else problem.costs[key][n] for n in problem.space.file.objectives]
        known.setdefault(key, own)
        found.tell(trial, own)
        rows.append(figures(problem, key, problem.truth[key]))
        mask = non_dominated(np.array(rows), directions(problem))
        rows[:] = [row for row, kept in zip(rows, mask, strict=True) if kept]
        volumes.append(hypervolume(np.array(rows), directions(problem), corner) / full)

    while len(volumes) < n_evaluations:
        began = time.perf_counter()
        trial, chosen = found.ask()
        key = problem.space.arch(chosen).id
        for _ in range(TRIES if found.unique else 0):
            if key not in known:
                break
            found.tell(trial, known[key])
            trial, chosen = found.ask()
            key = problem.space.arch(chosen).id
        seconds += time.perf_counter() - began
        waiting.append((trial, key))
        if len(waiting) >= setting.in_flight:
            tell(*waiting.popleft())
    return volumes, seconds / (n_evaluations + len(waiting))


def needed(volumes: list[float], goal: float) -> int | None:
    """The first evaluation after which the goal is reached."""
    return next((i + 1 for i, volume in enumerate(volumes) if volume >= goal), None)


def report(group: tuple[Any, ...], curves: dict[str, list[list[float]]], seconds: dict[str, float]) -> bool:
    """Print one setting; whether pareto needs at most a quarter."""
    problem, objectives, noisy, in_flight = group
    print(f"\n{problem}, {len(objectives)} objectives, {'noise' if noisy else 'no noise'}, {in_flight} in flight")
    medians = {name: np.median(np.array(of_seeds), axis=0).tolist() for name, of_seeds in curves.items()}
    for name, of_seeds in curves.items():
        cells = []
        for mark in [m for m in MARKS if m <= len(medians[name])]:
            spread = np.quantile([c[mark - 1] for c in of_seeds], (0.25, 0.5, 0.75))
            cells.append(f"{mark}: {spread[1]:.4f} ({spread[0]:.3f}-{spread[2]:.3f})")
        print(f"  {name:11} {'  '.join(cells)}  n = {len(of_seeds)}, {1000 * seconds[name]:.1f} ms a proposal")
    reached = True
    for names in (OPTUNA, HELPED):
        theirs = {name: medians[name] for name in curves if name in names}
        if "pareto" not in medians or not theirs:
            continue
        best = max(theirs, key=lambda name: theirs[name][-1])
        goal, most = theirs[best][-1], len(theirs[best])
        ours = needed(medians["pareto"], goal)
        each = [needed(curve, goal) or len(curve) + 1 for curve in curves["pareto"]]
        low, high = np.quantile(each, (0.25, 0.75))
        share = "-" if ours is None else f"{ours / most:.2f}"
        print(
            f"  {best} has {goal:.4f} at {most}: pareto in {ours} (quartiles {low:.0f} to {high:.0f}), {share} of them"
        )
        reached &= names is HELPED or (ours is not None and ours <= SHARE * most)
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searchers", nargs="*", default=SEARCHERS)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--objectives", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--noise", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--most", type=int, help="evaluations; default: 400, or half of the table")
    parser.add_argument("--most-pareto", type=int, help="evaluations of pareto, whose proposals take longest")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-o", "--output", help="CSV of every curve at the marks")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{machine()}; {versions('optuna', 'scikit-learn', 'numpy')}; {options.processes} processes", flush=True)
    names = {2: ("accuracy", "mult_adds"), 3: ("accuracy", "mult_adds", "params")}
    groups = list(
        itertools.product(
            options.problems, [names[n] for n in options.objectives], map(bool, options.noise), options.in_flight
        )
    )
    most = dict.fromkeys(options.searchers, options.most) | {"pareto": options.most_pareto or options.most}
    written: list[list[Any]] = []
    reached = True
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        jobs = {
            group: {
                name: [pool.submit(evaluate, Setting(*group, name, s), most[name]) for s in range(options.seeds)]
                for name in options.searchers
            }
            for group in groups
        }
        for group, of_group in jobs.items():
            done = {name: [job.result() for job in of_seeds] for name, of_seeds in of_group.items()}
            curves = {name: [curve for curve, _ in of_seeds] for name, of_seeds in done.items()}
            seconds = {name: statistics.median(s for _, s in of_seeds) for name, of_seeds in done.items()}
            reached &= report(group, curves, seconds)
            sys.stdout.flush()
            for name, of_seeds in curves.items():
                for seed, curve in enumerate(of_seeds):
                    head = [group[0], len(group[1]), int(group[2]), group[3], name, seed]
                    written += [[*head, mark, f"{curve[mark - 1]:.5f}"] for mark in MARKS if mark <= len(curve)]
    if options.output:
        with open(options.output, "w", newline="", encoding="utf-8") as file:  # noqa: PTH123
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows(written)
    return int(not reached)


if __name__ == "__main__":
    sys.exit(main())
