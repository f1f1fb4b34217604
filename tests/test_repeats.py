"""Networks that are trained again with another seed: a fixed number of times, or where their place is in doubt."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from mnet_search.spaces.space import SpaceError

from processes import TINY, load, search

SPACE = """\
family: mobilenet_v1
evaluate: repeat_functions:noisy
parameters: {width: [0.1, 0.12, 0.15, 0.2], resolution: [9, 12], depth: shallow, stem_stride: 1}
objectives: {accuracy: maximize, params: minimize}
training: {epochs: 4}
search: {sampler: grid, repeats: 2, seed: 5}
resources: {concurrency: 1}
"""
FUNCTIONS = """
import random

def noisy(trial):
    noise = random.Random(f"{trial.arch.id}:{trial.seed}").gauss(0, 0.03)
    return {"accuracy": 0.6 + trial.params["width"] + noise}

def certain(trial):
    return {"accuracy": 0.6 + trial.params["width"]}

def broken_again(trial):
    if trial.seed > 5:
        raise ValueError("not twice")
    return noisy(trial)

def falling(trial):
    for epoch in range(1, 5):
        trial.report(epoch, accuracy=1 / (1 + trial.number))
    return {"accuracy": 1 / (1 + trial.number)}
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repeat_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "repeat_functions", raising=False)


def seeds(frame: pd.DataFrame) -> list[list[int]]:
    """The seeds of each network, in order of its first trial."""
    return [sorted(group["seed"]) for _, group in frame.groupby("arch_id", sort=False)]


def run(folder: Path, text: str = SPACE, *, n_trials: int, executor: str = "inline") -> pd.DataFrame:
    search(folder, text, n_trials=n_trials, executor=executor, max_failures=100)
    return load(folder)


def test_each_network_has_its_seeds_within_the_trials_asked_for(tmp_path: Path) -> None:
    assert seeds(run(tmp_path, n_trials=3)) == [[5, 6], [5]]
    assert seeds(run(tmp_path, n_trials=3)) == [[5, 6], [5]]
    frame = run(tmp_path, n_trials=6)  # goes on with the repeat that was due
    assert seeds(frame) == [[5, 6], [5, 6], [5, 6]]
    assert (frame["state"] == "finished").all()
    assert not frame.duplicated(["arch_id", "seed"]).any()
    assert frame.groupby("arch_id")["accuracy"].nunique().tolist() == [2, 2, 2]


def test_workers_side_by_side_repeat_all_of_a_space_that_is_used_up(tmp_path: Path) -> None:
    text = SPACE.replace("width: [0.1, 0.12, 0.15, 0.2], resolution: [9, 12]", "width: 0.1, resolution: [9, 12]")
    frame = run(tmp_path, text.replace("concurrency: 1", "concurrency: 2"), n_trials=9, executor="local")
    assert sorted(map(tuple, seeds(frame))) == [(5, 6), (5, 6)]


def test_a_repeat_that_fails_is_not_tried_again_in_the_same_run(tmp_path: Path) -> None:
    text = SPACE.replace("noisy", "broken_again")
    frame = run(tmp_path, text, n_trials=3)
    assert frame["state"].tolist() == ["finished", "failed"] * 2 + ["finished"]
    text = text.replace("repeats: 2", "repeats: adaptive").replace("seed: 5", "seed: 5, n_trials: 8")
    search(tmp_path, text, n_trials=8, executor="inline", study="adaptive", max_failures=100)
    adaptive = load(tmp_path, "adaptive")
    assert (adaptive["state"] == "finished").sum() == 8
    failed = adaptive[adaptive["state"] == "failed"]
    assert 1 <= len(failed) <= 8 / 3 + 1
    assert not failed.duplicated(["arch_id"]).any()


def test_a_repeat_is_not_judged_by_the_scheduler(tmp_path: Path) -> None:
    text = SPACE.replace("noisy", "falling").replace(", params: minimize", "")
    text = text.replace("repeats: 2", "repeats: 3, scheduler: moasha, eta: 4")
    frame = run(tmp_path, text, n_trials=3)
    assert frame["state"].tolist() == ["finished"] * 3
    assert seeds(frame) == [[5, 6, 7]]
    assert run(tmp_path, text, n_trials=4)["state"].tolist() == [*["finished"] * 3, *["stopped"] * 7, "finished"]
    frame = run(tmp_path, text, n_trials=6)  # one that was stopped and went on is repeated like any other
    finished = frame[frame["state"] == "finished"]
    assert seeds(finished) == [[5, 6, 7], [5, 6, 7]]


def check_adaptive(frame: pd.DataFrame, n_trials: int) -> pd.DataFrame:
    """The repeats: none in the first half, at most a third, the rest of the networks once each."""
    repeats = frame[frame.duplicated("arch_id")]
    assert len(frame) == n_trials
    assert repeats["number"].min() >= n_trials / 2
    assert 1 <= len(repeats) <= n_trials / 3 + 1
    assert frame["arch_id"].nunique() == n_trials - len(repeats)
    assert sorted(repeats["seed"].unique())[0] == 6
    return repeats


def test_adaptive_repeats_learn_the_noise_and_then_what_is_in_doubt(tmp_path: Path) -> None:
    text = SPACE.replace("repeats: 2", "repeats: adaptive").replace("0.2]", "0.2, 0.22, 0.25, 0.27, 0.3]")
    frame = run(tmp_path, text, n_trials=15)
    check_adaptive(frame, 15)


def test_the_noise_is_learnt_from_three_networks_however_alike_the_first_runs_were(tmp_path: Path) -> None:
    text = SPACE.replace("repeats: 2", "repeats: adaptive").replace("noisy", "certain").replace("grid", "random")
    frame = run(tmp_path, text.replace("concurrency: 1", "concurrency: 2"), n_trials=11, executor="local")
    assert sum(len(of_network) > 1 for of_network in seeds(frame)) == 3


def test_adaptive_repeats_of_what_is_certain_are_few(tmp_path: Path) -> None:
    text = SPACE.replace("repeats: 2", "repeats: adaptive").replace("noisy", "certain")
    text = text.replace("0.2]", "0.2, 0.22, 0.25, 0.27, 0.3]")
    frame = run(tmp_path, text, n_trials=15)
    assert 1 <= int(frame.duplicated("arch_id").sum()) <= 3


def test_adaptive_repeats_of_trained_networks_are_those_in_doubt(tmp_path: Path) -> None:
    text = TINY.replace("seed: 0", "seed: 5, repeats: adaptive").replace("epochs: 2", "epochs: 1")
    text = text.replace("latency_ms: minimize, ", "")
    search(tmp_path, text, n_trials=6)
    check_adaptive(load(tmp_path), 6)


@pytest.mark.parametrize("value", ["0", "101", "1.5", "often", "[2]", "true"])
def test_bad_values_of_repeats_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(SpaceError, match=r"tiny\.yaml:6: search\.repeats"):
        search(tmp_path, SPACE.replace("repeats: 2", f"repeats: {value}"))
