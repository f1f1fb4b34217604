"""Fronts with confidence: hand-made frames with known answers, properties, and what the commands print of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search.distributions import distribution
from mnet_search.spaces.space import make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies.confidence import doubtful, front_confidence, networks, sampling_error
from mnet_search.studies.export import config_of, select
from mnet_search.studies.frame import load
from mnet_search.studies.pareto import dominated_by, front, non_dominated
from mnet_search.studies.store import Store
from mnet_search.studies.writer import open_study

from processes import call

TWO = {"accuracy": "maximize", "params": "minimize"}
THREE = {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"}
NAN = math.nan


def frame_of(*rows, **columns):
    """Rows of (arch_id, accuracy, params); trial numbers from 0, seeds by the run of the network."""
    frame = pd.DataFrame(rows, columns=["arch_id", "accuracy", "params"])
    frame.insert(0, "number", range(len(frame)))
    frame["state"], frame["mult_adds"] = "finished", frame["params"] * 10
    frame["seed"] = frame.groupby("arch_id").cumcount()
    return frame.assign(**columns)


REPEATED = frame_of(("a", 0.90, 100), ("b", 0.95, 200), ("a", 0.92, 100), ("c", 0.80, 150), ("a", 0.94, 100))


def shares(result):
    return dict(zip(result.networks["arch_id"], result.networks["probability"], strict=True))


# ---------------------------------------------------------------- networks


def test_networks_are_means_over_runs_in_the_row_of_the_first():
    found = networks(REPEATED, TWO)
    assert found[["arch_id", "number", "seed", "n", "numbers", "params"]].to_numpy().tolist() == [
        ["a", 0, 0, 3, (0, 2, 4), 100],
        ["b", 1, 0, 1, (1,), 200],
        ["c", 3, 0, 1, (3,), 150],
    ]
    assert found["accuracy"].tolist() == pytest.approx([0.92, 0.95, 0.80])
    assert found["accuracy_sd"].tolist() == pytest.approx([0.02, NAN, NAN], nan_ok=True)
    assert "params_sd" not in found, "an exact cost has no spread"
    assert networks(REPEATED.iloc[::-1], TWO)["number"].tolist() == [0, 1, 3], "whatever the order of the rows"


def test_only_finished_runs_count_and_a_recipe_is_no_repeat():
    states = ["failed", "finished", "finished", "finished", "running"]
    found = networks(REPEATED.assign(state=states), TWO)
    assert found[["arch_id", "number", "n"]].to_numpy().tolist() == [["b", 1, 1], ["a", 2, 1], ["c", 3, 1]]
    recipes = REPEATED.assign(**{"param.training.recipe": [None, None, None, None, "paper"], "param.width": range(5)})
    assert networks(recipes, TWO)["numbers"].tolist() == [(0, 2), (1,), (3,), (4,)], "a None is a value"


def test_latency_is_averaged_with_its_quartiles_and_gaps_do_not_count():
    frame = frame_of(("a", 0.9, 1), ("a", 0.9, 1), latency_ms=[1.0, 3.0], latency_q1_ms=[0.5, 2.5])
    row = networks(frame.assign(latency_q3_ms=[1.5, NAN]), THREE).iloc[0]
    assert (row["latency_ms"], row["latency_q1_ms"], row["latency_q3_ms"]) == (2.0, 1.5, 1.5)
    assert row["latency_ms_sd"] == pytest.approx(math.sqrt(2))


def test_networks_of_nothing_and_of_unknown_objectives():
    found = networks(REPEATED.iloc[:0], TWO)
    assert found.empty
    assert {"n", "numbers", "accuracy_sd"} <= set(found)
    result = front_confidence(REPEATED.iloc[:0], TWO, 100)
    assert (result.networks.empty, doubtful(result), result.noise_source) == (True, [], "sampling")
    with pytest.raises(MnetError, match="objective 'energy' is no column of the study"):
        front_confidence(REPEATED, {"energy": "minimize"}, 100)
    with pytest.raises(MnetError, match="n_draws is 0: a share of draws needs 1 or more; try 2000"):
        front_confidence(REPEATED, TWO, 100, n_draws=0)


def test_front_and_best_go_by_the_means_and_give_the_first_run():
    frame = frame_of(("a", 0.96, 100), ("a", 0.90, 100), ("b", 0.94, 100), ("b", 0.94, 100), ("c", 0.5, 50))
    assert front(frame, TWO)[["arch_id", "accuracy"]].to_numpy().tolist() == [["c", 0.5], ["b", 0.94]]
    best = select(frame, TWO, "best")
    assert best[["number", "accuracy", "seed"]].to_numpy().tolist() == [[2, 0.94, 0]]
    assert select(frame, TWO, "front")["number"].tolist() == [4, 2]
    frame["accuracy"] = [0.97, 0.93, 0.94, 0.94, 0.5]  # the mean of a is 0.95
    assert select(frame, TWO, "best")["accuracy"].tolist() == [0.97], "as it was recorded"
    assert list(select(frame, TWO, "front").columns) == list(frame.columns)


def test_limits_hold_for_means():
    frame = frame_of(("a", 0.96, 100), ("a", 0.96, 100), ("b", 0.9, 50), latency_ms=[1.0, 3.0, 1.5])
    assert select(frame, TWO, "best", {"latency_ms": 2.0})["number"].tolist() == [0]
    assert select(frame, TWO, "best", {"latency_ms": 1.9})["number"].tolist() == [2]
    with pytest.raises(MnetError, match=r"no finished trial has latency_ms within 1; the least is 1\.5"):
        select(frame, TWO, "best", {"latency_ms": 1.0})


# ---------------------------------------------------------------- confidence


def test_noise_between_runs_is_pooled_by_degrees_of_freedom():
    rows = [("a", 0.90, 100), ("a", 0.92, 100), ("a", 0.94, 100), ("b", 0.95, 200), ("b", 0.97, 200), ("c", 0.8, 150)]
    result = front_confidence(frame_of(*rows), TWO, 500)
    pooled = math.sqrt((2 * np.var([0.90, 0.92, 0.94], ddof=1) + np.var([0.95, 0.97], ddof=1)) / 3)
    assert (result.noise_source, result.principal, result.n_repeated) == ("repeats", "accuracy", 2)
    assert result.sd == {"accuracy": pytest.approx(pooled)}
    assert result.networks["on_front"].tolist() == [True, True, False]


def test_probability_of_two_networks_by_hand():
    """Equal costs, so that one of two is on the front; their accuracies differ by one standard error of the difference:
    with many degrees of freedom Phi(1) = 0.841.
    """
    generator = np.random.default_rng(0)
    noise = generator.normal(size=400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    sd, errors = 0.1, np.log(0.05) + np.array([0.0, 0.1 * math.sqrt(2)])  # n = 1 each, so their errors are the sd's
    spread = [("z", 1 - math.exp(math.log(0.2) + sd * z), 100) for z in noise]
    frame = frame_of(("a", 1 - math.exp(errors[0]), 100), ("b", 1 - math.exp(errors[1]), 100), *spread)
    result = front_confidence(frame, TWO, 10_000, n_draws=20_000)
    assert shares(result) == {"a": pytest.approx(0.841, abs=0.01), "b": pytest.approx(0.159, abs=0.01), "z": 0.0}
    assert doubtful(result) == [0, 1]


def test_few_degrees_of_freedom_have_wide_tails():
    """One repeat: Cauchy, so a difference of one standard error is much less sure than 0.841."""
    step = 0.1 * math.sqrt(2)  # between ln errors whose sample sd is 0.1
    rows = [("z", 1 - 0.2 * math.exp(step / 2), 100), ("z", 1 - 0.2 * math.exp(-step / 2), 100)]
    rows += [("a", 0.95, 100), ("b", 1 - 0.05 * math.exp(step), 100)]
    result = front_confidence(frame_of(*rows), TWO, 10_000, n_draws=20_000)
    assert shares(result)["a"] == pytest.approx(0.75, abs=0.02)  # 1/2 + arctan(1)/pi
    assert 0 < shares(result)["z"] < 0.2


def test_without_repeats_the_sampling_error_is_a_lower_bound():
    frame = frame_of(("a", 0.90, 100), ("b", 0.90, 100), ("c", 0.60, 100), ("d", 0.60, 50))
    result = front_confidence(frame, TWO, 400)
    assert (result.noise_source, result.n_repeated, result.sd) == ("sampling", 0, {})
    found = shares(result)
    assert found["a"] == pytest.approx(0.5, abs=0.04)
    assert found["a"] + found["b"] == pytest.approx(1.0)
    assert (found["c"], found["d"]) == (0.0, 1.0), "far behind, and the cheapest"
    assert set(doubtful(result)) == {0, 1}
    assert sampling_error(0.9, 400) == pytest.approx(0.015)
    assert sampling_error(1.0, 100) == sampling_error(0.99, 100), "no error in 100 images is not: no noise"
    close = frame_of(("a", 0.90, 100), ("b", 0.93, 100))
    few, many = (shares(front_confidence(close, TWO, images))["b"] for images in (100, 10_000))
    assert few < 0.9 < 0.999 < many


def test_runs_that_do_not_differ_tell_no_noise():
    frame = frame_of(("a", 0.90, 100), ("a", 0.90, 100), ("b", 0.91, 100))
    assert front_confidence(frame, TWO, 100).noise_source == "sampling"
    unknown = front_confidence(frame, TWO, None)
    assert (unknown.noise_source, shares(unknown), doubtful(unknown)) == ("unknown", {"a": 0.0, "b": 1.0}, [])


def test_latency_from_its_quartiles():
    objectives = {"latency_ms": "minimize", "params": "minimize"}
    frame = frame_of(("a", 0.9, 100), ("b", 0.9, 100), ("c", 0.9, 100), latency_ms=[1.0, 1.0, 9.0])
    result = front_confidence(frame.assign(latency_q1_ms=[0.9, 0.9, NAN], latency_q3_ms=1.1), objectives, None)
    assert (result.noise_source, result.principal) == ("sampling", "latency_ms")
    assert shares(result)["a"] == pytest.approx(0.5, abs=0.04)
    assert shares(result)["c"] == 0.0
    assert front_confidence(frame, objectives, None).noise_source == "unknown"
    assert front_confidence(frame, {"params": "minimize"}, None).principal is None


def test_an_objective_of_ones_own_may_be_negative():
    frame = frame_of(*[(name, 0.9, 100) for name in "aaab"], score=[-3.0, -2.0, -1.0, -2.0])
    result = front_confidence(frame, {"score": "maximize", "params": "minimize"}, None, n_draws=20_000)
    assert (result.noise_source, result.sd) == ("repeats", {"score": 1.0})
    assert list(shares(result).values()) == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_missing_objective_is_on_no_front():
    result = front_confidence(frame_of(("a", NAN, 1), ("b", 0.5, 100), ("c", 0.5, 200)), TWO, 100)
    assert result.networks["on_front"].tolist() == [False, True, False]
    assert shares(result)["a"] == 0.0
    assert shares(front_confidence(frame_of(("a", NAN, 1)), TWO, 100)) == {"a": 0.0}


def test_equal_networks_without_noise_are_both_on_the_front():
    result = front_confidence(frame_of(("a", 0.9, 5), ("b", 0.9, 5)), TWO, None)
    assert shares(result) == {"a": 1.0, "b": 1.0}


def test_doubtful_begins_with_the_closest_call():
    rows = [("a", 0.900, 100), ("b", 0.901, 110), ("c", 0.912, 120), ("d", 0.3, 500)]
    result = front_confidence(frame_of(*rows), TWO, 2_000)
    assert doubtful(result)[0] == 1
    assert set(doubtful(result)) == {1, 2}
    p = result.networks.set_index("number")["probability"]
    order = [p[number] * (1 - p[number]) for number in doubtful(result)]
    assert order == sorted(order, reverse=True)


ACCURACIES = st.integers(0, 50).map(lambda k: k / 50)
ROWS = st.lists(st.tuples(st.sampled_from("abcdefgh"), ACCURACIES), min_size=1, max_size=20)


@given(ROWS, st.sampled_from([None, 50]))
@settings(max_examples=30, deadline=None)
def test_probabilities_are_shares_and_the_same_every_time(rows, images):
    """And some network is on the front of every draw, whatever is drawn."""
    frame = frame_of(*((name, accuracy, 100 * (ord(name) % 3)) for name, accuracy in rows))
    result = front_confidence(frame, TWO, images, n_draws=50)
    probability = result.networks["probability"]
    assert probability.between(0, 1).all()
    assert probability.sum() >= 1 - 1e-9
    assert result.networks["on_front"].sum() == len(front(frame, TWO))
    pd.testing.assert_frame_equal(front_confidence(frame, TWO, images, n_draws=50).networks, result.networks)
    best = result.networks.sort_values(["params"])["params"].iloc[0]
    assert probability[result.networks["params"] == best].max() > 0


@given(ACCURACIES, st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_lone_network_is_the_front(accuracy, runs):
    rows = [("a", accuracy * (1 - 0.01 * run), 100) for run in range(runs)]
    assert shares(front_confidence(frame_of(*rows), TWO, 100, n_draws=50)) == {"a": 1.0}


@given(st.floats(0.0, 0.3))
@settings(max_examples=20, deadline=None)
def test_dominated_by_far_is_hardly_ever_on_the_front(accuracy):
    rows = [("a", 0.94, 100), ("a", 0.95, 100), ("a", 0.96, 100), ("a", 0.95, 100), ("b", accuracy, 200)]
    for frame in (frame_of(*rows), frame_of(rows[0], rows[-1])):
        assert shares(front_confidence(frame, TWO, 500, n_draws=500))["b"] < 0.01


def test_more_repeats_narrow():
    """The same pooled noise, from networks that stay; the two in question have 1, 4 and 16 runs each."""
    spread = [("z", 0.9 + 0.01 * (-1) ** run, 100) for run in range(400)]
    found = []
    for runs in (1, 4, 16):
        close = [(name, accuracy, 100) for name, accuracy in (("a", 0.950), ("b", 0.954)) for _ in range(runs)]
        found.append(shares(front_confidence(frame_of(*close, *spread), TWO, 1_000))["b"])
    assert 0.6 < found[0] < found[1] < found[2]
    assert found[2] > 0.99


@given(st.integers(1, 4), st.integers(0, 12), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_dominated_by_equals_brute_force(columns, n_rows, n_others, random):
    numbers = [0.0, -0.0, 1.0, 2.0, NAN, math.inf]
    directions = [random.choice(["maximize", "minimize"]) for _ in range(columns)]
    rows, others = (
        np.array([[random.choice(numbers) for _ in range(columns)] for _ in range(n)]).reshape(n, columns)
        for n in (n_rows, n_others)
    )
    pairs = [
        [not non_dominated([row, other], directions)[0] and not np.isnan(row).any() for other in others] for row in rows
    ]
    assert dominated_by(rows, others, directions).tolist() == [any(pair) for pair in pairs]


# ---------------------------------------------------------------- in a study, and printed


@pytest.fixture(params=["single", "repeated"])
def study(request, tmp_path: Path) -> tuple[Path, bool]:
    """A folder with a study of two networks, and one that was stopped early; if repeated, one ran three times."""
    values = {
        "family": "mobilenet_v1",
        "parameters": {"width": [0.1, 0.2, 0.3], "resolution": 20},
        "objectives": THREE,
    }
    space = make_space("tiny", values, Source("tiny.yaml")).for_data(classes=10, in_channels=1)
    repeated = request.param == "repeated"
    runs = [(0.1, 0, 0.90), (0.2, 0, 0.95)] + [(0.1, 1, 0.92), (0.1, 2, 0.94)] * repeated
    with Store(f"sqlite:///{tmp_path / 'study.db'}", create=True) as store:
        made = open_study(
            store, space, "tiny", n_trials=9, runs_dir=Path("runs"), provenance={"validation_images": 400}
        )
        for width, seed, accuracy in [*runs, (0.3, 0, None)]:
            chosen = {"width": width, "resolution": 20}
            arch = space.arch(chosen)
            distributions = {name: distribution(space.parameters[name]) for name in chosen}
            record = made.begin(chosen=chosen, distributions=distributions, arch=arch, costs=costs(arch), seed=seed)
            if accuracy is None:
                store.optuna.set_trial_state_values(record.trial_id, _pruned())
                continue
            made.finish(
                record.trial_id,
                [accuracy, 1.5 + width, float(costs(arch).params)],
                metrics={"accuracy": accuracy, "latency_ms": 1.5 + width, "latency_q1_ms": 1.4, "latency_q3_ms": 1.9},
                environment={},
                measurement=None,
                checkpoint="last.pt",
                checkpoint_sha256="0" * 64,
            )
    return tmp_path, repeated


def _pruned() -> object:
    from optuna.trial import TrialState

    return TrialState.PRUNED


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


def test_show_says_how_sure_the_front_is(study):
    folder, repeated = study
    lines = call(folder, "show", "tiny").stdout.splitlines()
    head = f"Study tiny (space tiny): {4 if repeated else 2} of 9 finished, 1 stopped early. Front: 2 networks"
    single = ", single runs, so places are uncertain: sampling error of accuracy about +-1.1 points"
    noise = "; noise between runs: sd 2 points from 1 repeated network"
    assert lines[0] == head + (noise if repeated else f"{single}; repeat with search.repeats: adaptive")
    assert lines[1].split() == ["trial", *THREE, "mult_adds", "runs", "sd", "P(front)", "parameters"]
    first = next(line.split() for line in lines[2:] if line.split()[0] == "0")
    assert first[1] == ("92.0%" if repeated else "90.0%")
    assert (["3", "2.00%"] if repeated else ["1", "-"]) == first[-5:-3]
    assert first[-3] == "1.00", "the cheapest"


def test_show_and_best_as_json(study):
    folder, repeated = study
    shown = json.loads(call(folder, "show", "tiny", "--json").stdout)
    record = next(row for row in shown["front"] if row["number"] == 0)
    figures = [record[name] for name in ("n", "numbers", "probability")]
    assert figures == ([3, [0, 2, 3], 1.0] if repeated else [1, [0], 1.0])
    assert record["accuracy_sd"] == (pytest.approx(0.02) if repeated else None)
    assert shown["noise"]["source"] == ("repeats" if repeated else "sampling")
    best = json.loads(call(folder, "best", "tiny", "--max", "params=40k", "--json").stdout)
    assert best["n"] == (3 if repeated else 1)
    assert best["accuracy"] == pytest.approx(0.92 if repeated else 0.90)


def test_best_in_words(study):
    folder, repeated = study
    line = call(folder, "best", "tiny", "--max", "params=40k").stdout.splitlines()[0]
    words = (
        "the mean of 3 runs; noise between runs: sd 2 points from 1 repeated network"
        if repeated
        else "a single run: sampling error of accuracy about +-1.5 points; repeat with search.repeats: adaptive"
    )
    assert line == f"Best accuracy of study tiny within params 40 k, 1 stopped early, {words}"


def test_a_config_has_the_number_of_runs(study):
    folder, repeated = study
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        row = select(load(store, "tiny"), THREE, "0").iloc[0]
        measured = config_of(store, "tiny", row)["measured"]
    assert (measured["accuracy"], measured["runs"], measured["validation_images"]) == (0.90, 3 if repeated else 1, 400)
    if repeated:
        assert (measured["accuracy_mean"], measured["accuracy_sd"]) == (pytest.approx(0.92), pytest.approx(0.02))
    else:
        assert not {"accuracy_mean", "accuracy_sd"} & set(measured)
