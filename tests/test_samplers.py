"""Every sampler through `make_proposer`, and what the pareto sampler promises: on closed forms, nothing is trained."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search import candidates
from mnet_search.search.accuracy_model import Observation
from mnet_search.search.distributions import distribution, suggest
from mnet_search.search.pareto_sampler import CURVE, FIRST_QUANTILES, OTHER_STUDY, ParetoSampler, extrapolated
from mnet_search.search.samplers import SAMPLERS, Proposal, Proposer, make_proposer
from mnet_search.spaces.space import Params, Space, load_space, make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies.pareto import hypervolume

MACRO = Path(__file__).parents[1] / "spaces" / "macro.yaml"
PARAMETERS: dict[str, Any] = {
    "width": [0.25, 0.5, 0.75, 1.0],
    "resolution": [20, 24, 32, 40, 48],
    "block": ["separable", "inverted_residual"],
    "expand": {"values": [2, 4, 6], "when": {"block": "inverted_residual"}},
}
OBJECTIVES = {"accuracy": "maximize", "mult_adds": "minimize", "params": "minimize"}
BUDGET = {"params": {"max": "4M"}}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def space_of(
    sampler: str = "pareto",
    objectives: dict[str, str] = OBJECTIVES,
    parameters: dict[str, Any] = PARAMETERS,
    constraints: dict[str, Any] = BUDGET,
) -> Space:
    values = {"family": "mobilenet_v1", "parameters": parameters, "objectives": objectives, "constraints": constraints}
    values["search"] = {"sampler": sampler}
    return make_space("test", values, Source("test")).for_data(classes=10, in_channels=3)


def measured(space: Space, params: Params) -> dict[str, float]:
    """A closed form: what larger networks gain is less and less."""
    network = costs(space.arch(params))
    error = 0.9 * (network.mult_adds / 1e5) ** -0.2 * (network.params / 1e4) ** -0.1
    return {
        "accuracy": 1 - min(error, 0.9),
        "validation_loss": 3 * error,
        "mine": 10 * error,
        "latency_ms": 0.1 + network.mult_adds / 1e7,
        **{name: float(getattr(network, name)) for name in ("params", "mult_adds", "activations", "weight_bytes")},
        "peak_activations": float(network.peak_activations),
    }


def values_of(space: Space, params: Params) -> list[float]:
    found = measured(space, params)
    return [found[name] for name in space.file.objectives]


def feasible(space: Space) -> set[str]:
    """The networks within the budgets, by key."""
    return {space.key(c) for c in space.codes() if space.violation(costs(space.arch(c))) is None}


def search(space: Space, proposer: Proposer, n: int) -> list[Params]:
    """The distinct networks within the budgets of `n` proposals, as the driver takes them."""
    found: dict[str, Params] = {}
    for _ in range(n):
        proposal = proposer.ask()
        if proposal is None:
            break
        key = space.key(proposal.chosen)
        if space.violation(costs(space.arch(proposal.chosen))):
            proposer.reject(proposal, over_budget=True)
        elif key in found:
            proposer.reject(proposal, over_budget=False)
        else:
            found[key] = proposal.chosen
            proposer.tell(proposal, values_of(space, proposal.chosen), {1: 0.1, 2: 0.2})
    return list(found.values())


def trial_of(space: Space, params: Params, **rest: Any) -> optuna.trial.FrozenTrial:
    """A trial of an earlier run."""
    distributions = {name: distribution(space.parameters[name]) for name in params}
    rest = {"values": values_of(space, params)} if "state" not in rest else rest
    return optuna.trial.create_trial(params=params, distributions=distributions, **rest)


# ---------------------------------------------------------------- every sampler


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_assignments_of_the_space(sampler: str) -> None:
    space = space_of(sampler)
    codes = list(space.codes())
    proposer = make_proposer(space, 0)
    for _ in range(30):
        proposal = proposer.ask()
        assert proposal is not None and proposal.chosen in codes
        assert proposal.distributions == {name: distribution(space.parameters[name]) for name in proposal.chosen}
        proposer.tell(proposal, values_of(space, proposal.chosen), {})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_history_and_seed_lead_to_the_same_proposals(sampler: str) -> None:
    space = space_of(sampler)
    runs = [search(space, make_proposer(space, seed), 25) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert sampler == "grid" or runs[0] != runs[2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_finished_failed_and_stopped_trials_are_told_and_remembered(sampler: str) -> None:
    space = space_of(sampler)
    proposer, rng = make_proposer(space, 0), random.Random(0)
    for other_study in (False, True):
        for _ in range(6):
            proposer.remember(trial_of(space, space.sample(rng)), {1: 0.3, 2: 0.5}, other_study=other_study)
        stopped = trial_of(space, space.sample(rng), state=optuna.trial.TrialState.PRUNED)
        proposer.remember(stopped, {1: 0.2}, other_study=other_study)
    for number in range(12):
        proposal = proposer.ask()
        assert proposal is not None
        values = values_of(space, proposal.chosen) if number % 3 == 0 else None
        proposer.tell(proposal, values, {1: 0.2 + number / 100}, stopped=number % 3 == 1)
    wanted = {"width": 0.5, "resolution": 32, "block": "separable"}
    assert proposer.ask_for(wanted).chosen == wanted


@pytest.mark.parametrize("name", ["optuna.samplers:QMCSampler", "optuna.samplers:TPESampler"])
def test_an_optuna_class_of_the_users_own(name: str) -> None:
    space = space_of(name)
    assert len(search(space, make_proposer(space, 0), 12)) > 3


def test_what_is_no_sampler() -> None:
    with pytest.raises(MnetError, match="sampler 'builtins:dict' is a dict, not an Optuna sampler"):
        make_proposer(space_of("builtins:dict"), 0)
    with pytest.raises(MnetError, match=r"unknown sampler 'paretto'; did you mean pareto\?"):
        make_proposer(space_of("paretto"), 0)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_ranges_of_every_kind(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SAMPLED", 150)
    monkeypatch.setattr(candidates, "NEW", 100)
    parameters = {
        "width": {"min": 0.25, "max": 1.0},
        "resolution": {"min": 20, "max": 64, "step": 4},
        "training.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True},
        "training.batch_size": {"min": 16, "max": 256, "log": True},
        "training.momentum": {"min": 0.5, "max": 0.5, "log": True},
        "training.label_smoothing": {"min": 0.1, "max": 0.5, "step": 0.1},
    }
    space = space_of(sampler, parameters=parameters)
    for params in search(space, make_proposer(space, 0), 14):
        assert 0.25 <= params["width"] <= 1.0 and params["resolution"] in range(20, 65, 4)
        assert 1e-3 <= params["training.learning_rate"] <= 1e-1 and params["training.momentum"] == 0.5
        assert type(params["training.batch_size"]) is int and 16 <= params["training.batch_size"] <= 256
        assert params["training.label_smoothing"] in (0.1, 0.2, 0.3, 0.4, 0.5)


# ---------------------------------------------------------------- the pareto sampler


def test_pareto_repeats_nothing_keeps_the_budget_and_comes_to_an_end() -> None:
    space = space_of()
    every = feasible(space)
    assert len(every) < space.n_codes
    proposer = make_proposer(space, 0)
    found = search(space, proposer, len(every))
    assert {space.key(params) for params in found} == every
    assert proposer.ask().chosen in list(space.codes())  # all are known: whoever asks sees it


def test_pareto_begins_all_over_the_costs() -> None:
    space = load_space(MACRO).for_data(classes=10, in_channels=3)
    sampler = ParetoSampler(space)
    every = np.sort(sampler._candidates.cost("mult_adds"))
    study = optuna.create_study(directions=list(space.file.objectives.values()), sampler=sampler)
    places = []
    for _ in FIRST_QUANTILES:
        mult_adds = costs(space.arch(suggest(space, study.ask()))).mult_adds  # all side by side
        places.append(np.searchsorted(every, mult_adds) / len(every))
    assert places == pytest.approx(FIRST_QUANTILES, abs=0.05)


def test_pareto_in_plain_optuna() -> None:
    space = space_of()
    sampler = ParetoSampler(space, seed=1)
    study = optuna.create_study(directions=list(space.file.objectives.values()), sampler=sampler)
    study.enqueue_trial({"width": 0.25, "resolution": 20, "block": "separable"})
    study.optimize(lambda trial: values_of(space, suggest(space, trial)), n_trials=15)
    assert study.trials[0].params == {"width": 0.25, "resolution": 20, "block": "separable"}
    keys = [space.key(t.params) for t in study.trials]
    assert len(set(keys)) == 15 and set(keys) <= feasible(space)


def test_pareto_counts_what_is_running() -> None:
    space = space_of()
    proposer = make_proposer(space, 0)
    search(space, proposer, 10)
    asked = [proposer.ask() for _ in range(8)]
    assert len({space.key(proposal.chosen) for proposal in asked}) == 8
    for proposal in reversed(asked):  # they finish in another order
        proposer.tell(proposal, values_of(space, proposal.chosen), {})
    assert proposer.ask() is not None


def test_pareto_does_not_propose_again_what_failed_or_was_refused() -> None:
    space = space_of()
    proposer, seen = make_proposer(space, 0), set()
    for number in range(40):
        proposal = proposer.ask()
        assert space.key(proposal.chosen) not in seen
        seen.add(space.key(proposal.chosen))
        if number % 4 == 1:
            proposer.tell(proposal, None, {})
        elif number % 4 == 2:
            proposer.reject(proposal, over_budget=False)
        else:
            proposer.tell(proposal, values_of(space, proposal.chosen), {})


def read(sampler: ParetoSampler, trials: Iterable[optuna.trial.FrozenTrial]) -> Any:
    return sampler._read(list(trials))


def test_stopped_trials_are_held_teach_by_their_curves_and_may_go_on() -> None:
    space = space_of()
    sampler = ParetoSampler(space)
    rows = sampler._candidates.rows
    finished = [trial_of(space, rows[i].params) for i in range(0, 20, 4)]
    for trial in finished:
        trial.user_attrs = {CURVE: {1: trial.values[0] / 2, 4: trial.values[0]}}
    state = optuna.trial.TrialState.PRUNED
    stopped = trial_of(space, rows[5].params, state=state, user_attrs={CURVE: {"1": 0.2}})
    known = read(sampler, [*finished, stopped])
    assert known.held == {5} and 5 not in known.taken | known.there
    assert [o.candidate for o in known.stopped] == [5] and known.stopped[0].variance > 0
    gone_on = read(sampler, [*finished, stopped, trial_of(space, rows[5].params)])
    assert (gone_on.held, gone_on.stopped) == (set(), []) and 5 in gone_on.taken
    # with nothing else left, the stopped one is what is proposed
    proposer = make_proposer(space, 0)
    others = [row.params for i, row in enumerate(rows) if i != 5]
    for params in others:
        proposer.remember(trial_of(space, params), {1: 0.1})
    proposer.remember(stopped, {1: 0.2})
    assert proposer.takes_up_stopped
    assert proposer.ask().chosen == rows[5].params


def test_another_study_teaches_and_takes_nothing() -> None:
    space = space_of()
    sampler = ParetoSampler(space)
    rows = sampler._candidates.rows
    theirs = [trial_of(space, rows[i].params) for i in range(4)]
    for trial in theirs:
        trial.user_attrs = {OTHER_STUDY: True}
    known = read(sampler, [*theirs, trial_of(space, rows[9].params)])
    assert [o.candidate for o in known.told] == [0, 1, 2, 3, 9]
    assert known.taken == known.there == {9}
    proposer = make_proposer(space, 0)
    for row in rows:
        proposer.remember(trial_of(space, row.params), {}, other_study=True)
    found = search(space, proposer, len(rows))
    assert len(found) == len(rows)


def test_infinite_values_teach_nothing() -> None:
    objectives = {"validation_loss": "minimize", "params": "minimize"}
    space = space_of(objectives=objectives)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=ParetoSampler(space))
    for number in range(16):
        trial = study.ask()
        loss, params = values_of(space, suggest(space, trial))
        study.tell(trial, [float("inf") if number % 5 == 1 else loss, params])
    assert len({space.key(t.params) for t in study.trials}) == 16


@pytest.mark.parametrize(
    ("objectives", "text"),
    [
        (
            {"accuracy": "maximize", "validation_loss": "minimize", "params": "minimize"},
            "objectives accuracy, validation_loss, params: the pareto sampler takes one objective that is learnt "
            "(accuracy, validation_loss or your own; here: accuracy, validation_loss) and up to 4 costs; use "
            "search.sampler: tpe or nsga2 for others",
        ),
        (
            {"params": "minimize", "mult_adds": "minimize"},
            "objectives params, mult_adds: the pareto sampler takes one objective that is learnt (accuracy, "
            "validation_loss or your own; here: none) and up to 4 costs; use search.sampler: tpe or nsga2 for others",
        ),
        (
            {"accuracy": "maximize"}
            | dict.fromkeys(("params", "mult_adds", "activations", "peak_activations", "latency_ms"), "minimize"),
            "objectives accuracy, params, mult_adds, activations, peak_activations, latency_ms: the pareto sampler "
            "takes one objective that is learnt (accuracy, validation_loss or your own; here: accuracy) and up to 4 "
            "costs; use search.sampler: tpe or nsga2 for others",
        ),
    ],
    ids=["two learnt", "none learnt", "five costs"],
)
def test_pareto_says_what_it_does_not_take(objectives: dict[str, str], text: str) -> None:
    with pytest.raises(MnetError) as caught:
        make_proposer(space_of(objectives=objectives), 0)
    assert str(caught.value) == text


def test_pareto_says_that_nothing_is_within_the_budgets() -> None:
    with pytest.raises(MnetError, match="no network of the space test was found within its constraints"):
        make_proposer(space_of(constraints={"params": {"max": 10}}), 0)


@pytest.mark.parametrize(
    "objectives",
    [
        {"accuracy": "maximize"},
        {"mine": "maximize"},
        {"validation_loss": "minimize", "latency_ms": "minimize"},
        {"latency_ms": "minimize", "accuracy": "maximize", "params": "minimize"},
        {"accuracy": "maximize", "params": "maximize"},
        {"mine": "minimize", "params": "minimize", "mult_adds": "minimize", "activations": "minimize"},
        {"accuracy": "maximize"}
        | dict.fromkeys(("params", "mult_adds", "weight_bytes", "peak_activations"), "minimize"),
    ],
    ids=lambda objectives: " ".join(objectives),
)
def test_pareto_under_other_objectives(objectives: dict[str, str]) -> None:
    space = space_of(objectives=objectives, constraints={})
    found = search(space, make_proposer(space, 0), 24)
    assert len(found) == 24
    name, direction = next(iter(objectives.items()))
    if len(objectives) == 1:  # no cost: it comes to the best network
        values = [measured(space, params)[name] for params in space.codes()]
        best = max(values) if direction == "maximize" else min(values)
        assert best in [measured(space, params)[name] for params in found]


def test_latency_is_predicted_from_the_trials_that_were_timed() -> None:
    space = space_of(objectives={"accuracy": "maximize", "latency_ms": "minimize"})
    sampler = ParetoSampler(space)
    rows = sampler._candidates.rows
    truth = np.log([measured(space, row.params)["latency_ms"] for row in rows])
    by_mult_adds = sampler._latencies([], 1)
    assert by_mult_adds == pytest.approx(np.log1p([row.costs.mult_adds for row in rows]))
    trials = [trial_of(space, row.params) for row in rows[::3]]
    fitted = sampler._latencies(trials, 1)
    assert np.abs(fitted - truth).mean() < 0.2 * truth.std()


def test_extrapolated_by_hand() -> None:
    finished = [({1: x, 3: 9.0}, y) for x, y in ((0.0, 1.0), (1.0, 3.2), (2.0, 4.8), (3.0, 7.0))]
    # least squares: slope (1.5 x 3 + 0.5 x 0.8) / 2.5 = 1.96, through the means (1.5, 4)
    left = [1.0 - 1.06, 3.2 - 3.02, 4.8 - 4.98, 7.0 - 6.94]
    (found,) = extrapolated(7, {1: 5.0}, finished)
    assert found.candidate == 7
    assert found.figure == pytest.approx(4 + 1.96 * 3.5)
    assert found.variance == pytest.approx(sum(x * x for x in left) / 2)
    assert extrapolated(7, {}, finished) == extrapolated(7, {1: 5.0}, finished[:3]) == []
    assert extrapolated(7, {1: 5.0, 2: 5.0}, finished) == []  # the last epoch is what counts; none has it
    assert extrapolated(7, {3: 5.0}, finished) == []  # all are alike there
    assert isinstance(found, Observation)


def macro_accuracy(params: Params, shares: dict[str, float]) -> float:
    """A closed form over spaces/macro.yaml: each block takes a share of the error that is left."""
    error = 0.9
    for name, value in params.items():
        error *= 1 - shares.get(f"{name} {value}", 0.0)
    return 1 - error


def test_pareto_finds_a_better_front_than_random_within_40_trials() -> None:
    space = load_space(MACRO).for_data(classes=10, in_channels=3)
    rng = random.Random(0)
    shares = {f"{n} narrow3": rng.uniform(0.1, 0.3) for n in space.parameters}
    shares |= {f"{n} wide5": shares[f"{n} narrow3"] + rng.uniform(0.0, 0.15) for n in space.parameters}
    directions, low, volumes = list(space.file.objectives.values()), {}, {"pareto": [], "random": []}
    every = [row.costs for row in ParetoSampler(space)._candidates.rows]
    for name in ("mult_adds", "params"):
        low[name] = (min(getattr(c, name) for c in every), max(getattr(c, name) for c in every))
    for seed in range(3):
        samplers = {"pareto": ParetoSampler(space, seed), "random": optuna.samplers.RandomSampler(seed=seed)}
        for name, sampler in samplers.items():
            study, points = optuna.create_study(directions=directions, sampler=sampler), []
            for _ in range(40):
                trial = study.ask()
                params = suggest(space, trial)
                network, accuracy = costs(space.arch(params)), macro_accuracy(params, shares)
                study.tell(trial, [accuracy, network.mult_adds, network.params])
                logs = (np.log(getattr(network, n) / a) / np.log(b / a) for n, (a, b) in low.items())
                points.append([accuracy, *logs])
            volumes[name].append(hypervolume(points, directions, [0.1, 1.0, 1.0]))
    assert statistics.median(volumes["pareto"]) > 1.05 * statistics.median(volumes["random"]), volumes


def test_a_proposal_carries_what_the_sampler_wants_remembered() -> None:
    space = space_of("nsga2")
    proposer = make_proposer(space, 0)
    proposal: Proposal | None = None
    for _ in range(25):  # more than one generation
        proposal = proposer.ask()
        assert proposal is not None
        proposer.tell(proposal, values_of(space, proposal.chosen), {})
    assert any("generation" in key for key in proposal.system_attrs)


def test_plain_optuna_with_threads_trains_no_network_twice() -> None:
    knobs = {"width": [0.25, 0.5, 0.75, 1.0], "resolution": [20, 24, 28, 32], "depth": ["shallow", "full", 0.5]}
    space = space_of(objectives={"accuracy": "maximize", "params": "minimize"}, parameters=knobs, constraints={})
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=ParetoSampler(space, seed=0))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        arch = space.arch(suggest(space, trial))
        return 1 - 1 / (1 + costs(arch).mult_adds) ** 0.1, costs(arch).params

    study.optimize(objective, n_trials=24, n_jobs=4)
    assert len({space.arch(trial.params).id for trial in study.trials}) == 24
