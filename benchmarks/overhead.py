"""What a search adds to its trials: no-op trials through our executors, beside Ray Tune with OptunaSearch.

    python benchmarks/overhead.py                                  # 1,000 trials each
    python benchmarks/overhead.py --trials 10000 --executors ray --memory
    python benchmarks/overhead.py --trials 12 --sleep 10 --executors local ray   # how busy workers are

Each side is a process of its own, one after another, on the same cores; time zero is its start. A trial is a function
that returns a constant accuracy at once (`--sleep`: after so many seconds), and the clock when it began and ended.
Ours: sampler random, no scheduler, everything recorded in SQLite. The peer: `tune.Tuner` with `OptunaSearch` over a
random sampler and a study in SQLite, helped where Tune can be: a class trainable with `reuse_actors`, no result
loggers, no snapshots of the experiment, as many trials at once as cores, and the SQLite settings that ours has; plain
is the same with SQLite as Optuna opens it.

The space has at least two networks a trial. Above 20,000 codes it is surveyed by as many samples before the first
trial, which takes seconds of its own. Memory is the driver's alone: peak resident, and what of it is no file (at the
end, after the imports alone, and how much it grew from the first tenth of the trials to the last).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from help_time import machine, versions

SIDES = ("local", "ray", "peer", "plain")
LAST = 200  # trials over which the cost of one is taken at the end
PATIENCE_S = 7200.0
HEADER = """\
                 s a trial,  s a trial,  first runs      peak   no file   imports     grown
side     trials{:>12}     overall     after s        MB        MB        MB        MB     busy"""


def constant(trial: Any) -> Mapping[str, float]:
    """A trial of ours."""
    return act(float(os.environ.get("OVERHEAD_SLEEP_S", "0")))


def act(sleep_s: float) -> dict[str, float]:
    """The work of a trial, on both sides."""
    began = time.time()
    if sleep_s:
        time.sleep(sleep_s)
    return {"accuracy": 0.5, "began": began, "ended": time.time()}


def space_of(n_trials: int, concurrency: int) -> dict[str, Any]:
    """A space file's content with two networks a trial or more."""
    parameters: dict[str, Any] = {
        "width": {"min": 0.1, "max": 2.0, "step": 0.05},
        "resolution": {"min": 32, "max": 224, "step": 8},
        "depth": "shallow",
    }
    size, stages = 39 * 25, itertools.count(2)
    while size < 2 * n_trials:
        parameters[f"stages.{next(stages)}.kernel"] = [3, 5, 7]
        size *= 3
    return {
        "family": "mobilenet_v1",
        "evaluate": "overhead:constant",
        "parameters": parameters,
        "objectives": {"accuracy": "maximize", "params": "minimize"},
        "search": {"sampler": "random", "scheduler": "none"},
        "resources": {"concurrency": concurrency},
    }


class Watch:
    """Progress of ours: when trials finish, and the driver's memory on the way."""

    def __init__(self, n_trials: int):
        self.finished_at: list[float] = []
        self.memory: list[tuple[int, float]] = []
        self._every = max(n_trials // 10, 1)

    def begin(self, *_: Any) -> None: ...
    def started(self, *_: Any) -> None: ...
    def epoch(self, *_: Any) -> None: ...
    def stopped(self, *_: Any) -> None: ...
    def left(self, *_: Any) -> None: ...
    def note(self, text: str) -> None: ...

    def failed(self, record: Any, reason: str) -> None:
        raise RuntimeError(reason)

    def finished(self, *_: Any) -> None:
        self.finished_at.append(time.time())
        if len(self.finished_at) % self._every == 0:
            self.memory.append((len(self.finished_at), anonymous_mb()))


def anonymous_mb() -> float:
    """This process's resident memory that is no file, in MB; not a number where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), float("nan"))


def ours(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One side in this process, and what it leaves in its database."""
    from sqlalchemy import select

    from mnet_search.search.run import KNOWN, RunOptions, check_training, run_search
    from mnet_search.spaces.space import make_space
    from mnet_search.spaces.yamlfile import Source
    from mnet_search.studies import database
    from mnet_search.studies.store import Store

    imported = anonymous_mb()
    values = space_of(settings["trials"], settings["cores"])
    space = check_training(make_space("overhead", values, Source("overhead"), KNOWN))
    url, watch = f"sqlite:///{folder / 'study.db'}", Watch(settings["trials"])
    options = RunOptions(
        url, runs_dir=folder / "runs", n_trials=settings["trials"], executor=settings["side"], max_failures=0, seed=0
    )
    run_search(space, options, watch)
    facts = measured(watch.finished_at, watch.memory, imported)  # before reading the study takes memory of its own
    with Store(url) as store:
        query = select(database.trials.c.metrics).order_by(database.trials.c.trial_id)
        with store.engine.connect() as connection:
            metrics = list(connection.execute(query).scalars())
    return facts | {name: [of_one[name] for of_one in metrics] for name in ("began", "ended")}


def peer(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Ray Tune with OptunaSearch in this process."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AIR_NEW_OUTPUT="0", TUNE_GLOBAL_CHECKPOINT_S="1000000")
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    import optuna
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from mnet_search.studies.database import tune as tune_sqlite

    imported, watch = anonymous_mb(), Watch(settings["trials"])
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    if settings["side"] == "peer":
        tune_sqlite(storage.engine)
    parameters = space_of(settings["trials"], settings["cores"])["parameters"]
    searched = {name: distribution_of(value) for name, value in parameters.items()}
    search = OptunaSearch(
        searched,
        metric=["accuracy", "params"],
        mode=["max", "min"],
        sampler=optuna.samplers.RandomSampler(seed=0),
        storage=storage,
        study_name="overhead",
    )
    times: list[tuple[float, float]] = []

    class Recorder(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            times.append((trial.last_result["began"], trial.last_result["ended"]))
            watch.finished()

    class Peer(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None: ...

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {**act(settings["sleep"]), "params": 1, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    ray.init("local", num_cpus=settings["cores"], include_dashboard=False, log_to_driver=False)
    tune.Tuner(
        tune.with_resources(Peer, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=settings["trials"],
            max_concurrent_trials=settings["cores"],
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0, callbacks=[Recorder()]),
    ).fit()
    facts = measured(watch.finished_at, watch.memory, imported)
    ray.shutdown()
    return facts | {"began": [began for began, _ in times], "ended": [ended for _, ended in times]}


def distribution_of(value: Any) -> Any:
    """A parameter of the space as Tune has it."""
    from ray import tune

    if isinstance(value, Mapping):
        draw = tune.qrandint if isinstance(value["step"], int) else tune.quniform
        return draw(value["min"], value["max"], value["step"])
    return tune.choice(value if isinstance(value, list) else [value])


def measured(finished_at: Sequence[float], memory: Sequence[tuple[int, float]], imported: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"finished": list(finished_at), "memory": list(memory), "imported": imported, "peak": peak}


def run_side(side: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A side in a process of its own. Raises RuntimeError with its last lines where it fails."""
    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as folder:
        output = Path(folder) / "facts.json"
        worker = json.dumps({**settings, "side": side, "output": str(output)})
        paths = [str(Path(__file__).resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        variables |= {"OVERHEAD_SLEEP_S": str(settings["sleep"])}
        with (Path(folder) / "log.txt").open("w+") as log:
            started = time.time()
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", worker]
            done = subprocess.run(command, cwd=folder, env=variables, stdout=log, stderr=log, timeout=PATIENCE_S)
            if done.returncode:
                log.seek(0)
                raise RuntimeError(f"{side}: exit code {done.returncode}:\n{log.read()[-3000:]}")
        facts: dict[str, Any] = json.loads(output.read_text())
        return facts | {"started": started}


def row(side: str, facts: Mapping[str, Any], cores: int) -> str:
    """A side in a line of the table."""
    times, began, ended = facts["finished"], facts["began"], facts["ended"]
    span = min(LAST, len(times) - 1)
    last, overall = (times[-1] - times[-1 - span]) / span, (times[-1] - times[0]) / (len(times) - 1)
    busy = sum(e - b for b, e in zip(began, ended, strict=True)) / (cores * (max(ended) - min(began)))
    grown = facts["memory"][-1][1] - facts["memory"][0][1]
    return (
        f"{side:<8}{len(times):>7,}{last:>12.4f}{overall:>12.4f}{min(began) - facts['started']:>12.1f}"
        f"{facts['peak']:>10.0f}{facts['memory'][-1][1]:>10.0f}{facts['imported']:>10.0f}{grown:>10.1f}{busy:>9.1%}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--executors", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs, in turn")
    parser.add_argument("--sleep", type=float, default=0.0, metavar="SECONDS", help="of each trial")
    parser.add_argument("--memory", action="store_true", help="the driver's memory at every tenth of the trials")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side = peer if options.worker["side"] in ("peer", "plain") else ours
        output = Path(options.worker["output"])
        output.write_text(json.dumps(side(options.worker, output.parent)))
        return 0
    if options.trials < 2:
        parser.error(f"--trials {options.trials}: a time per trial needs 2 or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{machine()}; {versions('mnet-search', 'ray', 'optuna', 'sqlalchemy', 'torch')}; {cores} trials at once")
    print(HEADER.format(f"last {LAST}"))
    settings = {"trials": options.trials, "cores": cores, "sleep": options.sleep}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.executors}
    for turn in range(options.rounds):
        for side in options.executors[:: -1 if turn % 2 else 1]:
            facts = run_side(side, settings)
            found[side].append(facts)
            print(f"{row(side, facts, cores)}   load {os.getloadavg()[0]:.1f}", flush=True)
            if options.memory:
                shown = ", ".join(f"{number:,}: {megabytes:.0f}" for number, megabytes in facts["memory"])
                print(f"        no file, MB after trials: {shown}", flush=True)
    if "peer" in found and len(found) > 1:
        middle = functools.partial(map, lambda facts: facts["finished"][-1] - facts["finished"][0])
        theirs = statistics.median(middle(found["peer"]))
        for side in (side for side in found if side not in ("peer", "plain")):
            print(f"{side} takes {statistics.median(middle(found[side])) / theirs:.3f} of the peer's time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
