"""How long a search takes to the front: mnet-search beside Ray Tune with OptunaSearch and ASHA, on CIFAR-10.

    python benchmarks/time_to_front.py --data data                 # 3 seeds, twice 10 minutes each
    python benchmarks/time_to_front.py --data data --budget 90 --seeds 1

Both sides search benchmarks/time_to_front.yaml for the same seconds on the same cores, one after the other (the order
changes from seed to seed), and train by the same loop on the same memory-mapped images. Time zero is the start of each
side's process, so that imports, the image cache and Ray's start count. Ours is the command line with the sampler and
scheduler of the file. The peer is Ray Tune as its documentation has it: `OptunaSearch` of a define-by-run space with
`metric=[...]` and `mode=[...]`, `ASHAScheduler` on accuracy, `time_budget_s`, `num_samples=-1`; and it is helped where
Tune can be: a class trainable with `reuse_actors`, ordered numbers as stepped ranges, no result loggers, and no latency
measurement at a trial's end, which ours takes.

Hypervolume counts trials that were trained to their last epoch, on both sides; a second figure adds the peer's stopped
trials at their last accuracy. Reference: accuracy 0.1 (chance) and the space's greatest costs; accuracy runs from there
to 1, costs in log10 from the space's least to its greatest, so that volumes lie between 0 and 1. Both sides are scored
by single runs on 2,500 validation images: the best of many is too high by some of that noise, on both sides. The share
is the time at which ours comes to the peer's last hypervolume over the time at which the peer did. Exit code 1 where
its median over the seeds is above a third.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from help_time import machine, versions

GOAL = 1 / 3
SPACE = Path(__file__).resolve().with_suffix(".yaml")
CHANCE = 0.1
CHECKPOINTS = 10
GENEROUS = "peer, stopped trials too"
PATIENCE_S = 120.0  # for a side to end after its budget
COSTS = ("mult_adds", "params")
Curve = list[tuple[float, float]]  # (seconds, hypervolume), a pair each time that it grows


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial that ended `seconds` after its side's process was started. `state`: finished, stopped or failed."""

    side: str
    seed: int
    seconds: float
    accuracy: float
    mult_adds: int
    params: int
    state: str
    network: str


def curve_of(rows: Sequence[Row], ranges: Mapping[str, tuple[int, int]]) -> Curve:
    """What the rows are worth together, in order of time; `ranges` are least and greatest costs over the space."""
    from mnet_search.studies.pareto import hypervolume

    found, points, best = [], [], 0.0
    for row in sorted(rows, key=lambda row: row.seconds):
        costs = (math.log(getattr(row, name) / low) / math.log(high / low) for name, (low, high) in ranges.items())
        points.append([(row.accuracy - CHANCE) / (1 - CHANCE), *costs])
        volume = hypervolume(points, ["maximize", *("minimize" for _ in ranges)], [0.0, *(1.0 for _ in ranges)])
        if volume > best:
            best = volume
            found.append((row.seconds, volume))
    return found


def open_space(settings: Mapping[str, Any]) -> Any:
    from mnet_search.search.run import fit_to_data
    from mnet_search.spaces.space import load_space

    return fit_to_data(load_space(SPACE, settings["changes"]))


def run_side(command: Sequence[str], folder: Path, seconds: float) -> float:
    """Run a side, interrupted as by Ctrl-C after so many seconds, and return when it was started.

    Raises RuntimeError with its last lines where it fails.
    """
    log = folder / "log.txt"
    with log.open("w") as lines:
        started = time.time()
        process = subprocess.Popen(command, cwd=folder, stdout=lines, stderr=lines)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
    if process.returncode not in (0, 128 + signal.SIGINT):
        raise RuntimeError(f"exit code {process.returncode}:\n{log.read_text()[-3000:]}")
    return started


def ours(seed: int, settings: Mapping[str, Any], folder: Path) -> list[Row]:
    """The command line, and what its database says afterwards."""
    from mnet_search.studies.frame import curves, load
    from mnet_search.studies.store import Store

    url = f"sqlite:///{folder / 'study.db'}"
    command = [str(Path(sys.executable).with_name("mnet-search")), "run", str(SPACE), "--quiet", "--storage", url]
    command += ["--runs-dir", str(folder / "runs"), "--executor", settings["executor"], "--seed", str(seed)]
    command += ["--n-trials", "100000", *(part for change in settings["changes"] for part in ("--set", change))]
    started = run_side(command, folder, settings["budget"])
    with Store(url) as store:
        frame, epochs = load(store, SPACE.stem), curves(store, SPACE.stem)
    last = epochs.groupby("number")["validation_accuracy"].last()  # of a stopped trial, which has no result
    rows = []
    for trial in frame[frame["finished"].notna()].itertuples():
        when = trial.finished.to_pydatetime().timestamp() - started
        accuracy = trial.accuracy if trial.state == "finished" else last.get(trial.number, math.nan)
        costs = (int(trial.mult_adds), int(trial.params))
        rows.append(Row("ours", seed, when, float(accuracy), *costs, trial.state, trial.arch_id))
    return rows


def peer(seed: int, settings: Mapping[str, Any], folder: Path) -> list[Row]:
    """Ray Tune in a process of its own, which writes a line for each trial that ends."""
    more = {"seed": seed, "folder": str(folder), "deadline": time.time() + settings["budget"]}
    command = [sys.executable, str(Path(__file__).resolve()), "--peer-worker", json.dumps({**settings, **more})]
    started = run_side(command, folder, settings["budget"] + PATIENCE_S)  # it ends by itself
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [Row("peer", seed, line.pop("time") - started, **line) for line in found]


def peer_worker(settings: Mapping[str, Any]) -> None:
    """The peer's process."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_AIR_NEW_OUTPUT="0")
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_GLOBAL_CHECKPOINT_S="1000000", OMP_NUM_THREADS="1")
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from mnet_search.search.data import read
    from mnet_search.search.data_cache import share
    from mnet_search.search.distributions import suggest
    from mnet_search.search.run import _job_template

    folder, space, deadline = Path(settings["folder"]), open_space(settings), settings["deadline"]
    epochs, costs = space.file.training.epochs, list(space.file.objectives)[1:]
    job = _job_template(space, 1, folder / ".data")
    data = read(job.data)
    share(data, folder / ".data")
    job = dataclasses.replace(job, seed=settings["seed"], data_digest=data.digest, folder=str(folder))
    del data  # trials map them
    trainable = tune.with_parameters(trainable_class(), space=space, template=job)
    ray.init("local", num_cpus=settings["cores"], include_dashboard=False, log_to_driver=False)
    try:
        by_run = functools.partial(suggest, space)  # even steps as ranges, else categories; conditions as they are met
        modes = ["max", *("min" for _ in costs)]
        search = OptunaSearch(by_run, metric=["accuracy", *costs], mode=modes, seed=settings["seed"])
        more = {"grace_period": 1, "reduction_factor": settings["reduction_factor"]}
        scheduler = ASHAScheduler("training_iteration", "accuracy", "max", max_t=epochs, **more)
        tune_config = tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=settings["cores"],
            time_budget_s=max(deadline - time.time(), 1.0),
            reuse_actors=True,
        )
        (folder / "rows.jsonl").touch()
        callbacks = [recorder(folder / "rows.jsonl", epochs, deadline)]
        run_config = tune.RunConfig(storage_path=str(folder / "tune"), verbose=0, callbacks=callbacks)
        tune.Tuner(tune.with_resources(trainable, {"cpu": 1}), tune_config=tune_config, run_config=run_config).fit()
    finally:
        ray.shutdown()


def trainable_class() -> Any:
    """A class trainable over our training loop: a step is an epoch. Made where Ray is imported."""
    from ray import tune

    class PeerTrial(tune.Trainable):
        def setup(self, config: dict[str, Any], space: Any, template: Any) -> None:
            self._space, self._template, self._events = space, template, None
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            from mnet_search.models.complexity import costs
            from mnet_search.search.trial import run_trial

            self.cleanup()
            arch = self._space.arch(new_config)
            self._folder = tempfile.mkdtemp(dir=self._template.folder)  # Tune trains a network that comes again anew
            network = {"family": arch.family, "options": dict(arch.options), "arch_id": arch.id}
            self._events = run_trial(dataclasses.replace(self._template, folder=self._folder, **network))
            self._known = {name: getattr(costs(arch), name) for name in COSTS} | {"network": arch.id}
            return True

        def step(self) -> dict[str, Any]:
            epoch = next(self._events)
            more = {"epoch": epoch.epoch, "done": epoch.epoch >= self._template.training.epochs}
            return {"accuracy": epoch.validation_accuracy, **self._known, **more}

        def cleanup(self) -> None:
            if self._events is not None:
                self._events.close()
                shutil.rmtree(self._folder, ignore_errors=True)

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    return PeerTrial


def recorder(path: Path, epochs: int, deadline: float) -> Any:
    """A callback that writes a line for each trial that Tune ends before the deadline."""
    from ray import tune

    class Recorder(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._write(trial, "finished" if trial.last_result.get("epoch") == epochs else "stopped")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._write(trial, "failed")

        def _write(self, trial: Any, state: str) -> None:
            nothing = {"accuracy": math.nan, "mult_adds": 0, "params": 0, "network": ""}
            line = {name: (trial.last_result or {}).get(name, none) for name, none in nothing.items()}
            line |= {"time": time.time(), "state": state}
            if line["time"] < deadline:  # the end of the budget stops what still runs
                with path.open("a") as lines:
                    lines.write(json.dumps(line) + "\n")

    return Recorder()


def compare(ours: Curve, theirs: Curve, budget: float) -> tuple[float, float, str]:
    """Ours' time to their last hypervolume, as a share of their time to it and of the budget; in words."""
    if not theirs:
        return math.inf, math.inf, "the peer finished no trial; give both a longer --budget"
    needed, last = theirs[-1]
    reached = next((when for when, volume in ours if volume >= last), math.inf)
    when = "not" if math.isinf(reached) else f"after {reached:.1f} s"
    text = f"{last:.4f} is reached by the peer after {needed:.1f} s, by ours {when}"
    return reached / needed, reached / budget, text


def described(rows: Sequence[Row], curve: Curve) -> str:
    states = [row.state for row in rows]
    shown = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed"))
    networks = len({row.network for row in rows})
    return f"{shown}, {networks} distinct networks; hypervolume {curve[-1][1] if curve else 0.0:.4f}"


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR-10")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of each run")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--only", choices=["ours", "peer"])
    parser.add_argument("--objectives", type=int, default=2, choices=[2, 3], help="3: params as well")
    parser.add_argument("--executor", default="ray", choices=["ray", "local"], help="of ours")
    parser.add_argument("--reduction-factor", type=float, default=4, help="of ASHA; 4 is its default")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="PATH=VALUE", help="for both: as of run")
    parser.add_argument("-o", "--output", type=Path, help="CSV of every trial")
    parser.add_argument("--peer-worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer_worker:
        peer_worker(options.peer_worker)
        return 0
    from mnet_search.spaces.survey import survey

    cores = len(os.sched_getaffinity(0))
    changes = [f"data.path={options.data.resolve()}", f"resources.concurrency={cores}", *options.set]
    changes += ["objectives.params=minimize"] * (options.objectives == 3)
    settings = {"changes": changes, "budget": options.budget, "cores": cores}
    settings |= {"executor": options.executor, "reduction_factor": options.reduction_factor}
    space = open_space(settings)
    found, search = survey(space), space.file.search
    ranges = {name: found.cost_range(name) for name in space.file.objectives if name in COSTS}
    print(f"{machine()}; {versions('mnet-search', 'torch', 'ray', 'optuna')}; {cores} trials side by side")
    print(f"{len(found.networks)} networks, {space.file.training.epochs} epochs, {options.budget:g} s a run")
    peer_is = f"peer: OptunaSearch, ASHA with a reduction factor of {options.reduction_factor:g}"
    print(f"ours: {search.sampler}, {search.scheduler}, {options.executor}; {peer_is}", flush=True)
    sides = {name: run for name, run in (("ours", ours), ("peer", peer)) if options.only in (None, name)}
    kept: list[Row] = []
    compared: list[dict[str, Curve]] = []
    for seed in range(options.seeds):
        curves: dict[str, Curve] = {"ours": [], "peer": [], GENEROUS: []}
        for name in sorted(sides, reverse=seed % 2 == 1):
            with tempfile.TemporaryDirectory(prefix="time-to-front-", ignore_cleanup_errors=True) as folder:
                rows = [row for row in sides[name](seed, settings, Path(folder)) if row.seconds <= options.budget]
            kept += rows
            curves[name] = curve_of([row for row in rows if row.state == "finished"], ranges)
            print(f"seed {seed}, {name}: {described(rows, curves[name])}, load {os.getloadavg()[0]:.1f}", flush=True)
            if name == "peer":
                curves[GENEROUS] = curve_of([row for row in rows if row.state != "failed"], ranges)
            if options.output:
                with options.output.open("w", newline="") as file:
                    names = [field.name for field in dataclasses.fields(Row)]
                    csv.writer(file).writerows([names, *map(dataclasses.astuple, kept)])
        compared.append(curves)
    return report(compared, options)


def report(compared: Sequence[Mapping[str, Curve]], options: argparse.Namespace) -> int:
    """Print shares and curves. The exit code."""
    middles = []
    for name in ("peer", GENEROUS) if options.only is None else ():
        print(f"\nto the last hypervolume of the {name}:")
        shares = [compare(curves["ours"], curves[name], options.budget) for curves in compared]
        for seed, (share, part, text) in enumerate(shares):
            print(f"  seed {seed}: {text}: share {share:.3f}, of the budget {part:.3f}")
        of_peer, of_budget = ([share[which] for share in shares] for which in (0, 1))
        print(f"  median share {spread(of_peer, 3)}, of the budget {spread(of_budget, 3)}, n = {len(shares)}")
        middles.append(statistics.median(of_peer))
    shown = [name for name in ("ours", "peer", GENEROUS) if options.only is None or name.startswith(options.only)]
    print("\nhypervolume, median over seeds (least to greatest)\nseconds  " + "".join(f"{n:<32}" for n in shown))
    for index in range(1, CHECKPOINTS + 1):
        seconds, cells = options.budget * index / CHECKPOINTS, []
        for name in shown:
            values = [max((v for when, v in curves[name] if when <= seconds), default=0.0) for curves in compared]
            cells.append(spread(values, 4))
        print(f"{seconds:7.0f}  " + "".join(f"{cell:<32}" for cell in cells).rstrip())
    return int(bool(middles) and middles[0] > GOAL)


if __name__ == "__main__":
    sys.exit(main())
