"""The whole road in real processes: both executors, kills, Ctrl-C. Asserted on the database afterwards. What else may
go wrong is drilled in `faults/`.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path

import pandas as pd
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.samplers import SAMPLERS
from mnet_search.search.settings import FailureBudgetError

from processes import TINY, children, load, load_curves, mnet, ray_actors, search, start, wait_for, write_space

# One group, so that two tests running side by side never start two Rays at once.
RAY = [pytest.mark.ray, pytest.mark.xdist_group("ray")]
EXECUTORS = ["local", pytest.param("ray", marks=RAY)]
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc to find the processes to kill")


def check_complete(folder: Path, n_trials: int, epochs: int = 2) -> pd.DataFrame:
    """Exactly the asked number finished, none twice, none left running, every curve and checkpoint whole."""
    frame = load(folder)
    finished = frame[frame["state"] == "finished"]
    assert len(finished) == n_trials, frame[["number", "state", "reason"]]
    # one that was stopped early may have gone on as another trial
    assert not frame[frame["state"] != "stopped"].duplicated(["arch_id", "seed"]).any()
    assert (frame["state"] != "running").all()
    assert (finished["epochs"] == epochs).all()
    assert all(Path(path).exists() for path in finished["checkpoint"])
    assert finished[["accuracy", "latency_ms", "params", "mult_adds"]].notna().all(axis=None)
    return frame


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_both_executors_leave_the_same_records(tmp_path: Path) -> None:
    figures, lines = [], []
    for executor in ("local", "ray"):
        folder = tmp_path / executor
        folder.mkdir()
        done = mnet(folder, "run", write_space(folder), "--executor", executor, "--n-trials", 3, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["n_new"] == 3
        frame = check_complete(folder, 3)
        figures.append(
            frame[["arch_id", "seed", "accuracy", "validation_loss", "params", "mult_adds", "param.width"]]
            .set_index("arch_id")
            .sort_index()
        )
        curves = load_curves(folder).merge(frame[["number", "arch_id"]], on="number")
        lines.append(
            curves.sort_values(["arch_id", "epoch"])[
                ["arch_id", "epoch", "train_loss", "validation_accuracy", "learning_rate"]
            ].reset_index(drop=True)
        )
    pd.testing.assert_frame_equal(*figures)
    pd.testing.assert_frame_equal(*lines)


@linux
@pytest.mark.parametrize("executor", EXECUTORS)
def test_kill_9_of_the_driver_loses_and_repeats_nothing(tmp_path: Path, executor: str) -> None:
    space = write_space(tmp_path, TINY.replace("epochs: 2", "epochs: 4"))
    arguments = ("run", space, "--executor", executor, "--n-trials", 5)
    process = start(tmp_path, *arguments)
    # in the middle of a trial: one has finished, another is past its first epoch
    before = wait_for(
        tmp_path,
        lambda f: (f["state"] == "finished").any() and (f[f["state"] == "running"]["epochs"] >= 1).any(),
        process,
    )
    process.kill()
    process.wait()
    done_before = before[before["state"] == "finished"].set_index("number")
    again = mnet(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    frame = check_complete(tmp_path, 5, epochs=4).set_index("number")
    columns = ["arch_id", "accuracy", "finished", "attempts"]
    pd.testing.assert_frame_equal(frame.loc[done_before.index, columns], done_before[columns])
    assert "trials are finished already; going on" in again.stderr


@linux
@pytest.mark.parametrize("executor", EXECUTORS)
def test_kill_9_of_a_worker_runs_its_trial_again_from_its_checkpoint(tmp_path: Path, executor: str) -> None:
    space = write_space(tmp_path, TINY.replace("epochs: 2", "epochs: 12"))
    process = start(tmp_path, "run", space, "--executor", executor, "--n-trials", 2)
    wait_for(tmp_path, lambda f: (f["epochs"] >= 2).any(), process)
    if executor == "local":  # workers are forked by multiprocessing's server, itself a child of the driver
        workers = [worker for child in children(process.pid) for worker in children(child)]
    else:
        workers = ray_actors(process.pid)
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(120) == 0, (tmp_path / "log.txt").read_text()
    frame = check_complete(tmp_path, 2, epochs=12)
    assert sorted(frame["attempts"]) == [1, 2]


@linux
@pytest.mark.parametrize(
    ("executor", "number"),
    [("local", signal.SIGINT), ("local", signal.SIGTERM), pytest.param("ray", signal.SIGINT, marks=RAY)],
)
def test_a_signal_stops_cleanly_and_the_study_goes_on_later(tmp_path: Path, executor: str, number: int) -> None:
    space = write_space(tmp_path, TINY.replace("epochs: 2", "epochs: 6"))
    process = start(tmp_path, "run", space, "--executor", executor, "--n-trials", 3)
    wait_for(tmp_path, lambda f: (f["epochs"] >= 1).any(), process)
    process.send_signal(number)
    assert process.wait(60) == 128 + number, (tmp_path / "log.txt").read_text()
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log
    assert "mnet-search resume tiny" in log
    if executor == "local" and number == signal.SIGINT:
        resumed = mnet(tmp_path, "resume", "tiny", "--executor", "local")
        assert resumed.returncode == 0, resumed.stderr
        check_complete(tmp_path, 3, epochs=6)


def test_a_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    text = TINY.replace("width: [0.1, 0.12, 0.15, 0.2]", "width: [0.1, 0.100001]").replace("grid", "random")
    result = search(tmp_path, text, n_trials=9)
    assert (result.exhausted, result.n_finished, result.n_new) == (True, 2, 2)
    frame = check_complete(tmp_path, 2)  # two resolutions; both widths give one network
    assert frame["arch_id"].nunique() == 2


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_keeps_the_budget_and_repeats_no_network(tmp_path: Path, sampler: str) -> None:
    text = TINY.replace("grid", sampler) + "constraints: {params: {max: 40k}}\n"
    assert search(tmp_path, text, n_trials=2, overrides=("training.epochs=1",)).n_new == 2
    assert search(tmp_path, text, n_trials=4, overrides=("training.epochs=1",)).n_new == 2  # taught anew from the study
    assert (check_complete(tmp_path, 4, epochs=1)["params"] <= 40_000).all()


def test_a_sampler_of_the_users_own(tmp_path: Path) -> None:
    text = TINY.replace("sampler: grid", "sampler: 'optuna.samplers:QMCSampler'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert search(tmp_path, text, n_trials=2, overrides=("training.epochs=1",)).n_new == 2
    with pytest.raises(MnetError, match="is a dict, not an Optuna sampler"):
        search(tmp_path, TINY.replace("sampler: grid", "sampler: 'builtins:dict'"), study="other")


def test_an_edited_space_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    assert search(tmp_path, n_trials=1).n_new == 1
    with pytest.raises(MnetError, match=r"training\.epochs: 2 -> 3") as caught:
        search(tmp_path, overrides=("training.epochs=3",))
    assert caught.value.exit_code == 2
    assert search(tmp_path, n_trials=2).n_new == 1
    check_complete(tmp_path, 2)
    assert search(tmp_path, n_trials=2).n_new == 0  # idempotent: nothing left to do
    check_complete(tmp_path, 2)


def test_trials_that_diverge_fail_with_the_reason_and_use_up_the_failure_budget(tmp_path: Path) -> None:
    with pytest.raises(FailureBudgetError, match="more than --max-failures 1; see the reasons with `mnet-search show"):
        search(tmp_path, TINY.replace("epochs: 2", "epochs: 2, learning_rate: 1e18"), max_failures=1)
    assert FailureBudgetError.exit_code == 4
    frame = load(tmp_path)
    assert frame["state"].tolist() == ["failed", "failed"]
    assert frame["reason"].str.startswith("the training loss became").all()


def test_fewer_trials_than_were_begun_before_are_not_overshot(tmp_path: Path) -> None:
    text = TINY.replace("concurrency: 1", "concurrency: 3").replace("epochs: 2", "epochs: 30")
    process = start(tmp_path, "run", write_space(tmp_path, text), "--executor", "local", "--n-trials", 4)
    wait_for(tmp_path, lambda f: len(f) == 3 and bool((f["epochs"] >= 1).all()), process)
    process.kill()
    process.wait()
    done = mnet(tmp_path, "resume", "tiny", "--executor", "local", "--n-trials", 1, "-s", "resources.concurrency=1")
    assert done.returncode == 0, done.stderr
    assert (load(tmp_path)["state"] == "finished").sum() == 1
