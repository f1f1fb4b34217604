"""Which parameters decide, and an objective against one of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from mnet_search.dashboards.importance_plot import LEAST, POINTS, Slice
from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.quantities import QUANTITIES
from mnet_search.models.arch import MnetError

from plot_frames import NAN, frame_of, grid_frame, large_snapshot, snapshot_of


@pytest.fixture(scope="module")
def grid():
    return snapshot_of(grid_frame(repeats=2, noise=0.02), objectives={"accuracy": "maximize", "params": "minimize"})


def test_importance_finds_the_parameter_that_decides(grid):
    info = PLOTS["importance"].info(grid)
    assert info.parameters == ("width", "depth", "resolution") and info.n_trials == 36
    (accuracy, shares), (params, of_params) = info.objectives
    assert (accuracy, params) == ("accuracy", "params")
    assert sum(shares) == pytest.approx(1, abs=1e-3) == sum(of_params)
    assert max(shares) == shares[0], "error falls fastest with width"
    assert of_params[2] == 0, "params do not depend on resolution"
    assert info.note == "share of reaching the best tenth; from 36 finished trials"
    figure = PLOTS["importance"].figure(info)
    assert [trace.name for trace in figure.data] == ["accuracy", "params"]
    assert len({(trace.marker.color, trace.marker.pattern.shape) for trace in figure.data}) == 2


def test_importance_agrees_with_optuna_on_a_study_of_its_own(grid):
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    names = ("width", "resolution", "depth")
    choices = {name: tuple(grid.frame[f"param.{name}"].map(str).unique()) for name in names}
    kinds = {name: optuna.distributions.CategoricalDistribution(choices[name]) for name in names}
    for row in grid.frame.to_dict("records"):
        chosen = {name: str(row[f"param.{name}"]) for name in names}
        study.add_trial(optuna.trial.create_trial(params=chosen, distributions=kinds, value=row["accuracy"]))
    theirs = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    info = PLOTS["importance"].info(grid)
    ours = dict(zip(info.parameters, info.objectives[0][1], strict=True))
    assert ours == pytest.approx(dict(theirs), abs=1e-3)


def test_importance_says_what_it_leaves_out_and_when_there_is_none():
    trials = [(i, "finished", 0.5 + i / 100, 1.0, 1.0, 1.0, 10 + i, 10, i % 2, "ab"[i % 2], NAN) for i in range(LEAST)]
    frame = frame_of(trials)
    frame["param.expand"] = [float(i % 3) if i % 2 else NAN for i in range(LEAST)]
    info = PLOTS["importance"].info(snapshot_of(frame, objectives={"accuracy": "maximize"}))
    assert set(info.parameters) == {"width", "block"}
    assert info.note.endswith("; left out, since not always active: expand")
    few = PLOTS["importance"].info(snapshot_of(frame.head(LEAST - 3)))
    assert few.empty.endswith("3 more finished trials needed, not enough yet")
    same = frame.assign(**{"param.width": 1, "param.block": "a", "param.expand": NAN})
    assert PLOTS["importance"].info(snapshot_of(same)).empty.startswith("no parameter that is always active varies")


def test_slice_of_a_choice(grid):
    info = PLOTS["slice"].info(grid, parameter="depth")
    accuracy = grid.frame["accuracy"][grid.frame["param.depth"] == "full"].to_numpy()
    half = t.ppf(0.975, 17) * accuracy.std(ddof=1) / np.sqrt(18)
    mean = accuracy.mean()
    assert info.slices[0] == Slice(
        "full", 0.0, 18, pytest.approx(mean), pytest.approx(mean - half), pytest.approx(mean + half)
    )
    assert (info.choice, info.objective, info.n_trials) == (True, QUANTITIES["accuracy"], 36)
    assert len(info.points) == 36 and {at for at, _, _ in info.points} == {0.0, 1.0}
    figure = PLOTS["slice"].figure(info)
    assert list(figure.layout.xaxis.ticktext) == ["full", "shallow"]
    assert figure.data[1].y[0] == pytest.approx(100 * mean)
    assert PLOTS["slice"].info(grid).parameter == "width", "the first that varies"
    assert PLOTS["slice"].info(grid, parameter="param.depth", objective="params").objective == QUANTITIES["params"]


def test_slice_of_a_range_and_of_what_is_not_there(grid):
    large = large_snapshot(4000)
    info = PLOTS["slice"].info(large, parameter="learning_rate")
    assert (info.choice, info.log, len(info.points)) == (False, True, POINTS)
    assert PLOTS["slice"].figure(info).layout.xaxis.type == "log", "a learning rate"
    assert sum(each.n for each in info.slices) == info.n_trials
    assert [each.at for each in info.slices] == sorted(each.at for each in info.slices)
    assert info.note.startswith(f"{POINTS:,} of {info.n_trials:,} shown of the finished trials; ")
    with pytest.raises(MnetError, match=r"the space has no parameter 'dept'; did you mean depth\?; it has: width, "):
        PLOTS["slice"].info(grid, parameter="dept")
    with pytest.raises(MnetError, match="'width' is neither better nor worse"):
        PLOTS["slice"].info(grid, objective="width")
