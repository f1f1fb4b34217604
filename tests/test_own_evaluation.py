"""Evaluation by a function of the user's own: real searches through every executor, and all that such a function can do
wrong.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.own_evaluation import find_function
from mnet_search.search.settings import FailureBudgetError
from mnet_search.spaces.space import SpaceError
from mnet_search.studies.store import Store

from processes import TINY, call, load, load_curves, mnet, search, write_space

RAY = [pytest.mark.ray, pytest.mark.xdist_group("ray")]

SPACE = """\
family: mobilenet_v1
evaluate: own_functions:good
parameters: {width: [0.1, 0.12, 0.15, 0.2], resolution: [9, 12], depth: shallow, stem_stride: 1}
objectives: {accuracy: maximize, params: minimize}
training: {epochs: 4}
search: {sampler: grid, n_trials: 3, seed: 5}
resources: {concurrency: 1}
"""
OWN = SPACE.replace("accuracy: maximize", "map50: maximize")

FUNCTIONS = """
import math, os, sys, time
from pathlib import Path

def good(trial):
    for epoch in range(1, 5):
        trial.report(epoch, accuracy=trial.params["width"] * epoch, train_loss=1 / epoch)
    figures = {"accuracy": trial.params["width"] * 4, "params": 1, "seed": trial.seed, "classes": 0}
    return {**figures, "map50": 0.25 + trial.params["width"], "pid": os.getpid()}

class Methods:
    @staticmethod
    def good(trial):
        return good(trial)

def raises(trial):
    raise ValueError("a broken\\nlens")

def exits(trial):
    sys.exit("no such tool")

def nan(trial):
    return {"accuracy": math.nan, "map50": math.nan}

def few(trial):
    return {"f1": 0.5}

def number(trial):
    return 0.5

def word(trial):
    return {"accuracy": "high"}

def unknown_figure(trial):
    trial.report(1, auc=0.5)

def latency(trial):
    return {"accuracy": 0.5, "latency_ms": trial.arch.input.height / 10}

def mixed(trial):
    if trial.number == 0:
        raise RuntimeError("of its own")
    if trial.number == 1:
        time.sleep(600)
    return good(trial)

def falling(trial):
    for epoch in range(1, 5):
        trial.report(epoch, accuracy=1 / (1 + trial.number))
    return {"accuracy": 1 / (1 + trial.number)}

def stubborn(trial):
    for epoch in range(1, 5):
        try:
            trial.report(epoch, accuracy=1 / (1 + trial.number))
        except Exception:
            pass
        with Path("epochs.txt").open("a") as file:
            file.write(f"{trial.number}:{epoch} ")
    return {"accuracy": 1 / (1 + trial.number)}

no_function = 7
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module own_functions, in a folder that is on the path here and in workers."""
    (tmp_path / "own_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_functions", raising=False)


def space(function: str, text: str = SPACE) -> str:
    return text.replace("own_functions:good", f"own_functions:{function}")


def values(folder: Path, study: str = "tiny") -> list[list[float] | None]:
    """The objective values of every trial, as Optuna has them."""
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        return [t.values for t in store.optuna.get_all_trials(store.row(study)["study_id"])]


# ---------------------------------------------------------------- what goes well


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_objectives_of_ones_own_are_recorded_with_costs_that_are_ours(tmp_path: Path, executor: str) -> None:
    done = search(tmp_path, OWN, executor=executor)
    assert (done.n_finished, done.n_failed) == (3, 0)
    frame = load(tmp_path)
    assert (frame["state"] == "finished").all()
    assert (frame["seed"] == 5).all()
    assert (frame["epochs"] == 4).all()
    assert (frame["params"] > 1000).all()
    expected = [[0.25 + width, params] for width, params in zip(frame["param.width"], frame["params"], strict=True)]
    assert values(tmp_path) == expected
    curves = load_curves(tmp_path)
    assert curves["train_loss"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4] * 3)
    assert curves["validation_loss"].isna().all()
    assert frame["checkpoint"].tolist() == [""] * 3


def test_a_study_is_shown_and_resumed_from_another_process(tmp_path: Path) -> None:
    write_space(tmp_path, SPACE)
    done = call(tmp_path, "run", "tiny.yaml", "--executor", "inline", "--storage", "study.db", "--json")
    assert done.returncode == 0, done.stderr
    again = mnet(tmp_path, "resume", "tiny", "--executor", "inline", "--n-trials", 5, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["n_new"] == 2
    assert (load(tmp_path)["state"] == "finished").sum() == 5


def test_a_study_with_an_objective_of_ones_own_is_shown(tmp_path: Path) -> None:
    write_space(tmp_path, OWN)
    done = call(tmp_path, "run", "tiny.yaml", "--executor", "inline", "--storage", "study.db", "--json")
    assert done.returncode == 0, done.stderr
    assert call(tmp_path, "show", "tiny", "--storage", "study.db").returncode == 0


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_ray_evaluates_and_outlives_what_raises_and_what_hangs(tmp_path: Path) -> None:
    write_space(tmp_path, space("mixed").replace("seed: 5", "seed: 5, trial_timeout_s: 1"))
    done = mnet(tmp_path, "run", "tiny.yaml", "--executor", "ray", "--json")
    assert done.returncode == 0, done.stderr
    frame = load(tmp_path)
    check_mixed(frame["state"].tolist(), frame["reason"].tolist())
    assert "Traceback" not in done.stderr
    assert (frame["epochs"].iloc[2:] == 4).all()


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_what_raises_and_what_hangs_fails_and_the_search_goes_on(tmp_path: Path, executor: str) -> None:
    began = time.monotonic()
    done = search(tmp_path, space("mixed"), executor=executor, overrides=("search.trial_timeout_s=1",))
    assert (done.n_finished, done.n_failed) == (3, 2)
    assert time.monotonic() - began < 60
    frame = load(tmp_path)
    check_mixed(frame["state"].tolist(), frame["reason"].tolist())
    assert frame["attempts"].tolist() == [1] * 5


def check_mixed(states: list[str], reasons: list[str]) -> None:
    assert states == ["failed", "failed", "finished", "finished", "finished"]
    assert reasons[0] == "evaluate raised RuntimeError: of its own"
    assert reasons[1].startswith("the trial was not done after search.trial_timeout_s = 1 s; raise it, or look for")


def test_latency_of_ones_own_needs_no_quartiles(tmp_path: Path) -> None:
    text = space("latency").replace("params: minimize", "latency_ms: minimize")
    assert search(tmp_path, text, executor="inline").n_finished == 3
    assert load(tmp_path)["latency_ms"].tolist() == pytest.approx([0.9, 1.2, 0.9])


def test_every_cost_may_be_an_objective(tmp_path: Path) -> None:
    text = SPACE.replace("params: minimize", "peak_activations: minimize, weight_bytes: minimize")
    assert search(tmp_path, text, executor="inline").n_finished == 3
    assert all(v is not None and min(v[1:]) > 1000 for v in values(tmp_path))
    assert (load(tmp_path)[["peak_activations", "weight_bytes"]] > 1000).all(axis=None)


def test_the_ends_of_the_network_are_the_familys_or_parameters(tmp_path: Path) -> None:
    text = SPACE.replace("stem_stride: 1", "stem_stride: 1, classes: [4, 40], in_channels: 7")
    search(tmp_path, text, executor="inline", n_trials=4)
    frame = load(tmp_path)
    assert frame["param.classes"].tolist() == [4, 40, 4, 40]
    assert frame["params"].diff().iloc[1] > 0
    without = text.replace("evaluate: own_functions:good\n", "")
    for name in ("classes", "in_channels"):
        one = without.replace("in_channels: 7" if name == "classes" else "classes: [4, 40],", "")
        with pytest.raises(SpaceError, match=rf"parameters\.{name}: is decided by the data, not searched"):
            search(tmp_path, one.replace("stem_stride: 1, }", "stem_stride: 1}"))


# ---------------------------------------------------------------- what goes wrong in a function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "evaluate raised ValueError: a broken"),
        ("exits", "evaluate raised SystemExit: no such tool"),
        ("nan", "evaluate returned nan for the objective accuracy, which is not finite"),
        ("few", "evaluate returned no value for the objective accuracy; it returned: f1"),
        ("number", "evaluate returned 0.5; it returns a mapping such as {'accuracy': 0.93}"),
        ("word", "evaluate returned 'high' for accuracy, which is no number"),
        (
            "unknown_figure",
            "trial.report takes accuracy, validation_loss, train_accuracy, train_loss, got 'auc'",
        ),
    ],
)
def test_a_trial_fails_with_the_reason_and_failures_use_up_their_budget(
    tmp_path: Path, function: str, reason: str
) -> None:
    with pytest.raises(FailureBudgetError, match="more than --max-failures 1"):
        search(tmp_path, space(function), executor="inline", max_failures=1)
    frame = load(tmp_path)
    assert frame["state"].tolist() == ["failed", "failed"]
    assert frame["reason"].tolist() == [reason] * 2


def test_the_command_line_ends_with_exit_code_4_in_worker_processes_too(tmp_path: Path) -> None:
    write_space(tmp_path, space("exits"))
    done = call(tmp_path, "run", "tiny.yaml", "--executor", "local", "--storage", "study.db", "--max-failures", 1, "-q")
    assert done.returncode == 4, done.stderr
    assert load(tmp_path)["reason"].tolist() == ["evaluate raised SystemExit: no such tool"] * 2


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_a_function_that_catches_everything_around_report_is_ended_all_the_same(
    tmp_path: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = space("stubborn").replace(", params: minimize", "").replace("seed: 5", "scheduler: moasha, eta: 4, seed: 5")
    assert search(tmp_path, text, executor=executor, n_trials=2).n_stopped == 7  # the second finished went on
    frame = load(tmp_path)
    assert frame["state"].tolist() == ["finished", *["stopped"] * 7, "finished"]
    went_on = (tmp_path / "epochs.txt").read_text().split()
    assert went_on == [f"{number}:{epoch}" for number in (0, 8) for epoch in range(1, 5)]


# ---------------------------------------------------------------- bad input


def refused(folder: Path, text: str) -> str:
    with pytest.raises(MnetError) as caught:
        search(folder, text, executor="inline")
    assert caught.value.exit_code == 2
    assert not (folder / "study.db").exists()
    return str(caught.value)


def test_a_function_that_cannot_be_had_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    (tmp_path / "own_unparsable.py").write_text("def :\n")
    assert "'no_such_module:f': cannot import no_such_module" in refused(
        tmp_path, SPACE.replace("own_functions:good", "no_such_module:f")
    )
    assert "module own_functions has no goood" in refused(tmp_path, space("goood"))
    assert "no_function is no function of a trial, it is of type int" in refused(tmp_path, space("no_function"))
    broken = refused(tmp_path, SPACE.replace("own_functions:good", "own_broken:f"))
    assert "evaluate: importing own_broken raised ZeroDivisionError: division by zero" in broken
    unparsable = refused(tmp_path, SPACE.replace("own_functions:good", "own_unparsable:f"))
    assert "evaluate: importing own_unparsable raised SyntaxError" in unparsable
    assert "tiny.yaml:2: evaluate: write package.module:function, got 'foo'" in refused(
        tmp_path, SPACE.replace("own_functions:good", "foo")
    )
    assert find_function("own_functions:Methods.good") is not None


def test_what_was_not_trained_has_no_weights(tmp_path: Path) -> None:
    search(tmp_path, executor="inline", text=SPACE)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    done = call(tmp_path, "export", "tiny", "--best", "--storage", url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "has no weights: it was evaluated by a function and not trained here; --format config needs none" in done.stderr
    )
    assert call(tmp_path, "export", "tiny", "--best", "--format", "config", "--storage", url).returncode == 0
    tested = call(tmp_path, "best", "tiny", "--test", "--storage", url)
    assert tested.returncode == 2 and "was evaluated by a function and not trained here: no weights" in tested.stderr
    scored = call(tmp_path, "scores", "tiny", "--storage", url)
    assert scored.returncode == 2 and "was evaluated by a function: it has no images to take scores on" in scored.stderr
    shown = call(tmp_path, "show", "tiny", "--storage", url)
    assert "the noise of accuracy is not known" in shown.stdout


def test_objectives_without_sense_are_refused(tmp_path: Path) -> None:
    assert "unknown objective 'map50'" in refused(tmp_path, TINY.replace("latency_ms", "map50"))
    text = SPACE.replace("params: minimize", "params: maximize") + "constraints: {params: {max: 1M}}\n"
    assert (
        "objectives.params: it is to be maximized, and constraints.params bounds it by 1e+06; minimize it, or remove "
        "one of the two" in refused(tmp_path, text)
    )
    assert "unknown score 'magic'" in refused(tmp_path, SPACE.replace("seed: 5", "scores: [magic]"))
    assert "trial_timeout_s" in refused(tmp_path, SPACE.replace("seed: 5", "trial_timeout_s: 0"))
