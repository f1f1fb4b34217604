"""The search from Python: spaces in every form, any callable, typed errors, threads, Ctrl-C; and learning from another
study.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mnet_search.search.api import FailureBudgetError, MnetError, OwnTrial, Result, Search, SpaceError, StorageError
from mnet_search.search.progress import Quiet
from mnet_search.search.run import open_space
from mnet_search.spaces.space import load_space
from mnet_search.studies.writer import TrialRecord

from processes import TINY, call, environment, load, wait_for, write_space

SPACE: dict[str, Any] = {
    "name": "mapping",
    "family": "mobilenet_v1",
    "parameters": {"width": [0.1, 0.12, 0.15, 0.2], "resolution": [9, 12], "depth": "shallow", "stem_stride": 1},
    "objectives": {"accuracy": "maximize", "params": "minimize"},
    "search": {"sampler": "random", "scheduler": "none", "n_trials": 3},
}
PARETO = {**SPACE, "search": {"sampler": "pareto", "scheduler": "none", "n_trials": 8}}


def good(trial: OwnTrial) -> Mapping[str, float]:
    return {"accuracy": 0.5 + trial.params["width"]}


def settings(folder: Path) -> dict[str, Any]:
    return {"storage": f"sqlite:///{folder / 'study.db'}", "runs_dir": folder / "runs"}


class Table:
    """A table of accuracies, looked up by a bound method or by calling it."""

    def look_up(self, trial: OwnTrial) -> Mapping[str, float]:
        return good(trial)

    __call__ = look_up


# ---------------------------------------------------------------- what goes well


def nested() -> Any:
    def inner(trial: OwnTrial) -> Mapping[str, float]:
        return good(trial)

    return inner


@pytest.mark.parametrize(
    "evaluate",
    [good, lambda trial: good(trial), nested(), Table().look_up, Table(), partial(good)],
    ids=["function", "lambda", "nested", "bound", "object", "partial"],
)
def test_any_callable_evaluates_and_running_again_changes_nothing(tmp_path: Path, evaluate: Any) -> None:
    search = Search(SPACE, evaluate=evaluate, **settings(tmp_path))
    result = search.run()
    assert (result.study, result.n_finished, result.n_new, result.n_failed) == ("mapping", 3, 3, 0)
    assert not result.exhausted
    check_result(result)
    again = search.run()
    assert (again.n_finished, again.n_new) == (3, 0)
    assert again.trials.equals(result.trials)
    assert Search(SPACE, evaluate=evaluate, **settings(tmp_path)).run(5).n_new == 2
    assert search.run(20).exhausted


def check_result(result: Result) -> None:
    assert (result.trials["state"] == "finished").all()
    assert 1 <= len(result.front) <= 3
    assert (result.front["n"] == 1).all()
    assert result.front["probability"].between(0, 1).all()
    assert {"number", "accuracy", "params"} <= set(result.front.columns)


def test_a_space_may_be_a_file_its_content_or_a_space_and_trains_without_a_callable(tmp_path: Path) -> None:
    text = TINY.replace("epochs: 2", "epochs: 1")
    path = write_space(tmp_path, text)
    frames = []
    for number, space in enumerate((path, str(path), open_space(path, []), load_space(path, []))):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = Search(space, executor="inline", n_trials=1, **settings(folder)).run()
        check_result(result)
        frames.append(result.trials[["arch_id", "accuracy", "params"]])
    assert all(frame.equals(frames[0]) for frame in frames)  # a Space that nobody fitted to its data, too
    result = Search(
        path, overrides=["parameters.width=0.2"], executor="local", n_trials=1, study="x", **settings(tmp_path)
    )
    assert result.run().trials["param.width"].tolist() == [0.2]


def test_a_made_space_takes_a_callable_and_its_study_says_so(tmp_path: Path) -> None:
    space = open_space(write_space(tmp_path, TINY.replace("latency_ms: minimize, ", "")), [])
    assert Search(space, evaluate=good, n_trials=2, **settings(tmp_path)).run().n_finished == 2
    resumed = call(tmp_path, "resume", "tiny", "--storage", "study.db", "--executor", "inline", "--n-trials", 3)
    assert resumed.returncode == 0, resumed.stderr
    assert load(tmp_path)["accuracy"].tolist()[2] == load(tmp_path)["param.width"].tolist()[2] + 0.5  # not trained


def test_it_runs_in_a_thread_and_tells_a_progress_object(tmp_path: Path) -> None:
    class Told(Quiet):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def begin(self, study: str, n_asked: int, done: Any) -> None:
            self.calls.append(f"begin {study} {n_asked}")

        def started(self, record: TrialRecord) -> None:
            self.calls.append("started")

        def stopped(self, record: TrialRecord, reason: str) -> None:
            self.calls.append("stopped")

        def finished(self, record: TrialRecord, values: Mapping[str, float]) -> None:
            self.calls.append("finished")

        def failed(self, record: TrialRecord, reason: str) -> None:
            self.calls.append(f"failed {reason}")

    def evaluate(trial: OwnTrial) -> Mapping[str, float]:
        if trial.number == 1:
            raise ValueError("once")
        for epoch in range(1, 9):
            trial.report(epoch, accuracy=1 / (1 + trial.number))
        return {"accuracy": 1 / (1 + trial.number)}

    space = {**SPACE, "objectives": {"accuracy": "maximize"}, "search": {"sampler": "random", "eta": 4, "n_trials": 2}}
    told, results = Told(), []
    search = Search(space, evaluate=evaluate, progress=told, **settings(tmp_path))
    thread = threading.Thread(target=lambda: results.append(search.run()))
    thread.start()
    thread.join(60)
    assert results[0].n_finished == 2
    assert told.calls[0] == "begin mapping 2"
    assert (told.calls.count("finished"), told.calls.count("stopped")) == (2, results[0].n_stopped)
    assert results[0].n_stopped > 0
    assert "failed evaluate raised ValueError: once" in told.calls
    assert told.calls.count("started") == len(told.calls) - told.calls.count("started") - 1


def test_the_front_has_objectives_of_ones_own(tmp_path: Path) -> None:
    space = {**SPACE, "objectives": {"map50": "maximize", "params": "minimize"}}
    front = Search(space, evaluate=lambda trial: {"map50": trial.params["width"]}, **settings(tmp_path)).run().front
    assert front["map50"].between(0.1, 0.2).all()


# ---------------------------------------------------------------- errors


def test_errors_are_typed_and_never_end_the_process(tmp_path: Path) -> None:
    def leaves(trial: OwnTrial) -> Mapping[str, float]:
        sys.exit(3)

    with pytest.raises(SpaceError, match=r"search\.sampler: unknown sampler 'x'"):
        Search({**SPACE, "search": {"sampler": "x"}}, evaluate=good)
    with pytest.raises(SpaceError, match="unknown objective 'map50'"):
        Search({**SPACE, "objectives": {"map50": "maximize"}})
    with pytest.raises(MnetError, match="overrides are for a space file"):
        Search(SPACE, evaluate=good, overrides=["search.n_trials=2"])
    with pytest.raises(MnetError, match="unknown executor 'rya'"):
        Search(SPACE, executor="rya", **settings(tmp_path)).run()
    with pytest.raises(StorageError, match="does not exist"):
        Search(SPACE, evaluate=good, storage="sqlite:////no/such/folder/x.db", runs_dir=tmp_path / "runs").run()
    with pytest.raises(FailureBudgetError, match="3 trials failed"):
        Search(SPACE, evaluate=leaves, max_failures=2, **settings(tmp_path)).run()
    assert load(tmp_path, "mapping")["reason"].str.startswith("evaluate raised SystemExit").all()
    with pytest.raises(MnetError, match=r"evaluate: .* -> "):  # another function, the same study
        Search(SPACE, evaluate=good, **settings(tmp_path)).run()


def test_a_search_in_which_everything_failed_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        FailureBudgetError, match="all 8 trials failed, and the space has no other network; see the"
    ) as caught:
        Search(SPACE, evaluate=lambda trial: {}, max_failures=99, **settings(tmp_path)).run()
    assert caught.value.exit_code == 4


def test_what_cannot_be_called_or_is_no_seed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MnetError, match="evaluate='mine:f' cannot be called; pass the function itself, or name it in"):
        Search(SPACE, evaluate="mine:f", **settings(tmp_path))  # type: ignore[arg-type]
    for seed in (-1, 2**31):
        with pytest.raises(MnetError, match=f"--seed {seed}: a seed is a whole number from 0 to 2,147,483,647"):
            Search(SPACE, evaluate=good, seed=seed, **settings(tmp_path)).run()
    two = {**PARETO, "objectives": {"accuracy": "maximize", "map50": "maximize"}}
    with pytest.raises(MnetError, match="the pareto sampler takes one objective that is learnt"):
        Search(two, evaluate=good, **settings(tmp_path)).run()
    late = {**SPACE, "search": {"sampler": "random", "first_rung": 8}}
    with pytest.raises(
        MnetError, match=r"search.first_rung: 8 is not below training.epochs \(8\), so no trial would ever"
    ):
        Search(late, evaluate=good, **settings(tmp_path)).run()
    assert not list(tmp_path.glob("*.db"))


def test_two_lambdas_are_two_studies(tmp_path: Path) -> None:
    assert Search(SPACE, evaluate=lambda trial: {"accuracy": 0.9}, **settings(tmp_path)).run(1).n_finished == 1
    with pytest.raises(MnetError, match="the space differs from the one that study 'mapping' was made with"):
        Search(SPACE, evaluate=lambda trial: {"accuracy": 0.1}, **settings(tmp_path)).run(2)


def test_a_callable_runs_in_the_thread_that_searches(tmp_path: Path) -> None:
    table = sqlite3.connect(":memory:")  # which another thread may not use

    def look_up(trial: OwnTrial) -> Mapping[str, float]:
        trial.report(1, accuracy=0.5)
        return {"accuracy": float(table.execute("SELECT 0.5").fetchone()[0])}

    assert Search(SPACE, evaluate=look_up, **settings(tmp_path)).run().n_finished == 3


def test_a_large_study_goes_on_with_every_sampler_of_optunas(tmp_path: Path) -> None:
    for sampler in ("tpe", "random", "nsga2", "nsga3"):
        space = {**SPACE, "search": {"sampler": sampler, "scheduler": "none", "seed": 2**31 - 1}}
        of_one = {**settings(tmp_path), "study": sampler}
        assert Search(space, evaluate=good, **of_one).run(1).n_new == 1
        assert Search(space, evaluate=good, **of_one).run(2).n_new == 1  # by a seed from the number of trials


SCRIPT = """
import sys, time
from mnet_search.search.api import Search

def slow(trial):
    time.sleep(0.4)
    trial.report(1, accuracy=0.5)
    return {"accuracy": 0.5}

if __name__ == "__main__":
    try:
        Search("tiny.yaml", evaluate=slow, storage="sqlite:///study.db", executor="local", n_trials=50).run()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(7)
"""


def test_ctrl_c_raises_keyboard_interrupt_once_everything_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    text = TINY.replace("latency_ms: minimize, ", "").replace(
        "[0.1, 0.12, 0.15, 0.2]", "{min: 0.1, max: 1.0, step: 0.02}"
    )
    write_space(tmp_path, text)
    log = (tmp_path / "log.txt").open("a")
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment(), stdout=log, stderr=log, text=True
    )
    wait_for(tmp_path, lambda f: bool((f["state"] == "finished").any()), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 7, (tmp_path / "log.txt").read_text()
    assert (tmp_path / "log.txt").read_text() == "interrupted\n"
    frame = load(tmp_path)
    assert set(frame["state"]) <= {"finished", "waiting"}
    assert (frame["state"] == "running").sum() <= 1


# ---------------------------------------------------------------- learning from another study


def test_a_warm_start_teaches_and_its_networks_may_be_trained_again(tmp_path: Path) -> None:
    cold = Search(PARETO, evaluate=good, study="cold", **settings(tmp_path)).run()
    warm_space = {**PARETO, "search": {**PARETO["search"], "warm_start": "cold"}}
    warm = Search(warm_space, evaluate=good, study="warm", **settings(tmp_path)).run()
    assert warm.n_finished == cold.n_finished == 8
    assert set(warm.trials["arch_id"]) == set(cold.trials["arch_id"])
    assert warm.trials["arch_id"].tolist() != cold.trials["arch_id"].tolist()


def test_a_warm_start_that_cannot_be_is_refused(tmp_path: Path) -> None:
    def warm(name: str, study: str = "two", **changes: Any) -> Search:
        space = {**PARETO, **changes, "search": {**PARETO["search"], "warm_start": name}}
        return Search(space, evaluate=good, study=study, **settings(tmp_path))

    with pytest.raises(StorageError, match="no such database"):
        warm("one").run()
    assert not list(tmp_path.glob("*.db"))
    Search(PARETO, evaluate=good, study="one", n_trials=1, **settings(tmp_path)).run()
    with pytest.raises(StorageError, match=r"no study .onee. in .*; did you mean one\?") as caught:
        warm("onee").run()
    assert caught.value.exit_code == 3
    with pytest.raises(MnetError, match=r"search\.warm_start: study 'one' is of another space \(objectives\.params"):
        warm("one", objectives={"accuracy": "maximize"}).run()
    with pytest.raises(MnetError, match="study 'one' is this study itself"):
        warm("one", study="one").run()
    assert warm("one").run(2).n_finished == 2
