"""Trials that are stopped early, in real searches: their records, what goes on later, and rungs after kills."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.run import open_space
from mnet_search.search.rungs import Rungs
from mnet_search.search.schedulers import NoScheduler
from mnet_search.search.training import Epoch
from mnet_search.spaces.space import Space, SpaceError
from mnet_search.studies.confidence import front_confidence
from mnet_search.studies.store import Store
from mnet_search.studies.writer import StudyWriter, TrialRecord

from processes import TINY, load, load_curves, mnet, search, start, wait_for, write_space

RAY = [pytest.mark.ray, pytest.mark.xdist_group("ray")]
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="kills processes")

SPACE = """\
family: mobilenet_v1
evaluate: stop_functions:falling
parameters: {width: [0.1, 0.12, 0.15, 0.2], resolution: [9, 12], depth: shallow, stem_stride: 1}
objectives: {accuracy: maximize}
training: {epochs: 4}
search: {sampler: grid, scheduler: moasha, eta: 2, n_trials: 3}
resources: {concurrency: 1}
"""
# Accuracy follows from the network alone, so that the order in which trials come does not matter to it.
FUNCTIONS = """
import time

def accuracy(trial):
    return 1 - trial.params["width"] - trial.params["resolution"] / 100

def falling(trial):
    for epoch in range(1, 5):
        trial.report(epoch, accuracy=accuracy(trial) * epoch / 4)
    return {"accuracy": accuracy(trial)}

def slow(trial):
    for epoch in range(1, 5):
        time.sleep(0.3)
        trial.report(epoch, accuracy=accuracy(trial) * epoch / 4)
    return {"accuracy": accuracy(trial)}

def rising(trial):
    for epoch in range(1, 5):
        trial.report(epoch, accuracy=trial.params["width"] + trial.params["resolution"] / 100)
    return {"accuracy": trial.params["width"] + trial.params["resolution"] / 100}

class AllButTheFirst:
    def __init__(self, epochs, eta):
        self.epochs = epochs
    def rungs(self, trial):
        return self.epochs
    def record(self, reached):
        pass
    def judge(self, reached):
        return "not the first" if reached.trial else None
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stop_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stop_functions", raising=False)


def check_stopped(frame: pd.DataFrame) -> pd.DataFrame:
    """What holds for every trial that was stopped early."""
    stopped = frame[frame["state"] == "stopped"]
    assert stopped["accuracy"].isna().all()
    assert stopped["reason"].str.len().gt(0).all()
    assert (stopped["checkpoint"] == "").all()
    assert stopped["finished"].notna().all()
    return stopped


# ---------------------------------------------------------------- the records


@pytest.mark.parametrize("executor", ["inline", "local", pytest.param("ray", marks=RAY)])
def test_stopped_trials_are_no_results_and_the_best_go_on_once_the_space_is_used_up(
    tmp_path: Path, executor: str
) -> None:
    if executor == "ray":
        write_space(tmp_path, SPACE)
        done = mnet(tmp_path, "run", "tiny.yaml", "--executor", "ray")
        assert done.returncode == 0, done.stderr
        assert "trial 1 stopped early: place 2 of 2 at epoch 1, where the first 1 go on" in done.stderr
    else:
        result = search(tmp_path, SPACE, executor=executor)
        assert (result.n_finished, result.n_new, result.n_stopped, result.exhausted) == (3, 3, 7, False)
    frame = load(tmp_path)
    assert frame["state"].tolist() == ["finished", *["stopped"] * 7, "finished", "finished"]
    stopped = check_stopped(frame)
    assert stopped["reason"].iloc[0] == "place 2 of 2 at epoch 1, where the first 1 go on"
    assert stopped["epochs"].tolist() == [1, 2, 1, 1, 1, 1, 1]
    assert (frame[frame["state"] == "finished"]["epochs"] == 4).all()
    assert (
        frame["arch_id"].iloc[[8, 9]].tolist() == frame["arch_id"].iloc[[2, 1]].tolist()
    )  # that got farthest, then the best
    assert frame["seed"].eq(0).all()
    result = front_confidence(frame, {"accuracy": "maximize"}, None)
    assert result.networks["number"].tolist() == [0, 8, 9]
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        summary = store.summary("tiny")
    assert (summary.n_finished, summary.n_stopped, summary.n_running) == (3, 7, 0)


def test_all_of_a_space_is_finished_where_so_many_are_asked_for(tmp_path: Path) -> None:
    result = search(tmp_path, SPACE, executor="inline", n_trials=20)
    assert (result.n_finished, result.n_stopped, result.exhausted) == (8, 7, True)
    again = search(tmp_path, SPACE, executor="inline", n_trials=20)
    assert (again.n_finished, again.n_new, again.exhausted) == (8, 0, True)


def test_what_is_stopped_while_nothing_is_left_to_begin_goes_on_too(tmp_path: Path) -> None:
    """Two workers, two networks: the second is stopped while the first still runs and the space is used up."""
    text = SPACE.replace("width: [0.1, 0.12, 0.15, 0.2], resolution: [9, 12]", "width: 0.1, resolution: [9, 12]")
    text = text.replace("falling", "slow").replace("concurrency: 1", "concurrency: 2")
    result = search(tmp_path, text.replace("moasha", "'stop_functions:AllButTheFirst'"), n_trials=2)
    assert (result.n_finished, result.n_stopped) == (2, 1)


def test_trained_networks_go_on_from_their_checkpoints_with_the_whole_curve(tmp_path: Path) -> None:
    text = TINY.replace("sampler: grid", "sampler: grid, scheduler: 'stop_functions:AllButTheFirst'")
    text = text.replace("width: [0.1, 0.12, 0.15, 0.2]", "width: 0.1").replace("epochs: 2", "epochs: 3")
    assert search(tmp_path, text, n_trials=9).n_stopped == 1
    frame, curves = load(tmp_path), load_curves(tmp_path)
    assert frame["state"].tolist() == ["finished", "stopped", "finished"]
    check_stopped(frame)
    assert frame["epochs"].tolist() == [3, 1, 3]
    assert Path(frame["checkpoint"].iloc[2]).exists()
    columns = [name for name in curves if name != "number"]
    first = curves[curves["number"] == 1][columns].reset_index(drop=True)
    again = curves[curves["number"] == 2][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, again.iloc[:1])  # clocks too: it was not trained again
    whole = tmp_path / "whole"
    whole.mkdir()
    search(whole, text.replace("'stop_functions:AllButTheFirst'", "none"), n_trials=9)
    clocks = ["seconds", "images_per_second"]
    never = load_curves(whole).query("number == 1")[columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.drop(columns=clocks), never.drop(columns=clocks))


def test_the_pareto_sampler_may_take_up_what_was_stopped(tmp_path: Path) -> None:
    text = SPACE.replace("sampler: grid", "sampler: pareto").replace("falling", "rising")
    text = text.replace("accuracy: maximize", "accuracy: maximize, params: maximize")
    text = text.replace("[0.1, 0.12, 0.15, 0.2]", "{min: 0.1, max: 1.0, step: 0.05}")
    result = search(tmp_path, text, executor="inline", n_trials=14)
    frame = load(tmp_path)
    assert result.n_finished == 14
    assert not frame[frame["state"] == "finished"].duplicated("arch_id").any()
    twice = frame[frame.duplicated("arch_id", keep=False)]
    assert set(twice["state"]) <= {"stopped", "finished"}
    assert not twice[twice["state"] == "stopped"].duplicated("arch_id").any()
    last_new = frame[~frame.duplicated("arch_id")]["number"].max()
    assert twice[twice["state"] == "finished"]["number"].min() < last_new  # while there were new ones to propose


# ---------------------------------------------------------------- kills and going on


@linux
def test_after_kill_9_rungs_are_those_of_the_study_and_exactly_so_many_finish(tmp_path: Path) -> None:
    write_space(tmp_path, SPACE.replace("falling", "slow"))
    arguments = ("run", "tiny.yaml", "--executor", "local", "--n-trials", 3)
    process = start(tmp_path, *arguments)
    before = wait_for(
        tmp_path,
        lambda f: bool((f["state"] == "stopped").sum() >= 2 and (f["state"] == "running").any()),
        process,
    )
    process.kill()
    process.wait()
    done_before = before[before["state"] != "running"].set_index("number")
    assert verdicts(tmp_path) == verdicts(tmp_path, lambda records: records[::-1])
    again = mnet(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    frame = load(tmp_path)
    assert (frame["state"] == "finished").sum() == 3
    assert not (frame["state"] == "running").any()
    columns = ["state", "arch_id", "epochs", "finished"]
    pd.testing.assert_frame_equal(frame.set_index("number").loc[done_before.index, columns], done_before[columns])
    assert frame["state"].tolist() == ["finished", *["stopped"] * 7, "finished", "finished"]  # as without a kill
    check_stopped(frame)


def verdicts(
    folder: Path, order: Callable[[list[TrialRecord]], list[TrialRecord]] = lambda records: records
) -> list[str | None]:
    """What rungs that are built from the study say of trials at their first rung, from good to bad."""
    space = open_space(folder / "tiny.yaml", [])
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        study = StudyWriter(store, int(store.row("tiny")["study_id"]), "tiny")
        records, curves = study.records(), study.curves()
    found = []
    for accuracy in (0.9, 0.204, 0.15, 0.01):
        rungs = Rungs(space)
        for record in order(records):
            rungs.take_up(record, curves.get(record.trial_id, {}))
        found.append(rungs.judge(record_of(space, 99, {"width": 0.2, "resolution": 12}), row(accuracy), ends=True))
    assert found[0] is None
    assert found[-1] is not None
    return found


def record_of(space: Space, number: int, chosen: dict[str, object], state: str = "running") -> TrialRecord:
    chosen = {**chosen, "depth": "shallow", "stem_stride": 1}
    arch = space.arch(chosen)  # type: ignore[arg-type]
    return TrialRecord(number, number, state, arch.id, 0, chosen, None, 1)


def row(accuracy: float, epoch: int = 1) -> Epoch:
    return Epoch(epoch, 0.0, 0.0, 0.0, accuracy, 0.0, 0.0, 0.0)


def figures(*accuracies: float) -> dict[int, dict[str, float | None]]:
    return {epoch: {"validation_accuracy": accuracy} for epoch, accuracy in enumerate(accuracies, 1)}


def test_a_running_trial_that_is_taken_up_and_then_stopped_may_go_on_later(tmp_path: Path) -> None:
    space = open_space(write_space(tmp_path, SPACE), [])
    rungs = Rungs(space)
    rungs.take_up(record_of(space, 0, {"width": 0.1, "resolution": 9}, "finished"), figures(0.5, 0.6))
    left = record_of(space, 1, {"width": 0.1, "resolution": 12})
    rungs.take_up(left, {})
    assert rungs.judge(left, row(0.1), ends=True) is not None
    assert rungs.best_stopped() == left
    again = record_of(space, 2, {"width": 0.1, "resolution": 12})
    rungs.go_on(left, again)
    assert rungs.best_stopped() is None
    assert rungs.was_stopped(again)


def test_a_network_under_another_code_is_the_same_run_and_no_second_measure(tmp_path: Path) -> None:
    space = open_space(write_space(tmp_path, SPACE.replace("0.12", "0.100001")), [])
    rungs = Rungs(space)
    rungs.take_up(record_of(space, 0, {"width": 0.1, "resolution": 9}, "stopped"), figures(0.5))
    other = record_of(space, 1, {"width": 0.100001, "resolution": 9})
    assert rungs.stopped(other.arch_id) is not None
    rungs.go_on(rungs.stopped(other.arch_id), other)  # type: ignore[arg-type]
    assert rungs.was_stopped(other)
    assert rungs.best_stopped() is None
    rungs.judge(other, row(0.5), ends=False)
    reason = rungs.judge(record_of(space, 2, {"width": 0.2, "resolution": 9}), row(0.4), ends=True)
    assert reason == "place 2 of 2 at epoch 1, where the first 1 go on"


# ---------------------------------------------------------------- defaults and bad input


def test_a_grid_is_not_stopped_early_by_default_and_other_samplers_are(tmp_path: Path) -> None:
    without = SPACE.replace("scheduler: moasha, ", "")
    assert search(tmp_path, without, executor="inline", n_trials=8).n_stopped == 0
    text = without.replace("grid", "random")
    assert search(tmp_path, text, executor="inline", n_trials=8, study="random").n_stopped > 0
    space = open_space(write_space(tmp_path, without), [])
    assert isinstance(Rungs(space)._scheduler, NoScheduler)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scheduler", "moasah", "unknown scheduler 'moasah'; did you mean moasha?"),
        ("scheduler", "3", "search.scheduler"),
        ("eta", "1", "search.eta"),
        ("eta", "many", "search.eta"),
        ("eta", "101", "search.eta"),
        ("first_rung", "0", "search.first_rung"),
        ("first_rung", "1.5", "search.first_rung"),
    ],
)
def test_bad_values_are_refused_at_their_line(tmp_path: Path, key: str, value: str, message: str) -> None:
    text = SPACE.replace("scheduler: moasha, eta: 2", f"{key}: {value}")
    with pytest.raises(SpaceError, match=r"tiny\.yaml:6: search\.") as caught:
        search(tmp_path, text, executor="inline")
    assert message in str(caught.value)


def test_a_scheduler_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MnetError, match="scheduler 'stop_functions:Nothing': module stop_functions has no Nothing"):
        search(tmp_path, SPACE.replace("moasha", "'stop_functions:Nothing'"), executor="inline")
