"""Studies side by side: known answers by hand, properties, and what the command says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_search.dashboards.compare_plot import (
    FrontLine,
    FrontsInfo,
    compare_page,
    errors_figure,
    fronts_figure,
    fronts_info,
)
from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search.api import OwnTrial, Search
from mnet_search.studies.comparing import AtBudget, Entry, StudyFrame, compare

from processes import call

TWO = {"accuracy": "maximize", "params": "minimize"}


def study(name: str, *rows: tuple[float, float], runs: int = 1, **changes: Any) -> StudyFrame:
    """Networks of (accuracy, params); further runs differ by a point each way."""
    trials = [
        {"accuracy": accuracy + 0.01 * (run % 2 * 2 - 1) * (runs > 1), "params": params, "arch_id": f"{name}{i}"}
        for i, (accuracy, params) in enumerate(rows)
        for run in range(runs)
    ]
    frame = pd.DataFrame(trials)
    frame["number"], frame["state"] = range(len(frame)), "finished"
    frame["mult_adds"], frame["activations"], frame["latency_ms"] = 10 * frame["params"], 1, math.nan
    return StudyFrame(name, frame, TWO, **changes)


A = study("a", (0.80, 100), (0.90, 200), (0.70, 150))
B = study("b", (0.85, 150), (0.86, 300))


def test_volumes_are_shares_of_what_both_have() -> None:
    """Reference: accuracy .70 - a tenth of .20, params 300 + a tenth of 200. Areas by hand."""
    found = compare([A, B])
    a = (0.80 - 0.68) * 100 + (0.90 - 0.68) * 120  # from 100 to 200, then to 320
    b = (0.85 - 0.68) * 150 + (0.86 - 0.68) * 20
    both = (0.80 - 0.68) * 50 + (0.85 - 0.68) * 50 + (0.90 - 0.68) * 120
    assert [(v.study, v.n_networks, v.n_front) for v in found.volumes] == [("a", 3, 2), ("b", 2, 2)]
    assert [v.share for v in found.volumes] == pytest.approx([a / both, b / both])
    assert [(v.low, v.high, v.best) for v in found.volumes] == [
        (pytest.approx(a / both), pytest.approx(a / both), 1.0),
        (pytest.approx(b / both), pytest.approx(b / both), 0.0),
    ]  # nothing tells any noise


def test_who_wins_at_which_budget() -> None:
    found = compare([A, B], budgets=[150, 90, 250])
    assert found.cost == "params"
    assert found.budgets == (
        AtBudget(90, ()),
        AtBudget(150, (Entry("b", 0, 0.85, 0.0, 150.0, 1.0), Entry("a", 0, 0.80, 0.0, 100.0, 0.0))),
        AtBudget(250, (Entry("a", 1, 0.90, 0.0, 200.0, 1.0), Entry("b", 0, 0.85, 0.0, 150.0, 0.0))),
    )


def test_budgets_of_its_own_leave_every_study_a_network() -> None:
    budgets = [row.budget for row in compare([A, B]).budgets]
    assert budgets[0] >= 150 and budgets[-1] >= 300 and len(budgets) == 5
    assert all(len(row.entries) == 2 for row in compare([A, B], cost="mult_adds").budgets)


def test_errors_are_a_distribution_over_networks_and_not_runs() -> None:
    (a, b) = compare([A, study("b", (0.85, 150), (0.75, 300), runs=2)]).errors
    assert (a.errors, a.shares) == (pytest.approx((0.1, 0.2, 0.3)), pytest.approx((1 / 3, 2 / 3, 1.0)))
    assert b.errors == pytest.approx((0.15, 0.25))
    assert a.quantiles == pytest.approx((0.1, 0.12, 0.2, 0.28))
    assert a.median_low == pytest.approx(0.1) and a.median_high == pytest.approx(0.3)


def test_noise_between_runs_makes_a_win_a_chance() -> None:
    """Half a point between networks of which a run varies by more than a point."""
    one, other = study("one", (0.805, 100), runs=2), study("other", (0.80, 100), runs=2)
    (entry, second) = compare([one, other], budgets=[100]).budgets[0].entries
    assert entry.study == "one" and 0.5 < entry.wins < 0.8 and entry.wins + second.wins == pytest.approx(1)
    assert 0.005 < entry.standard_error < 0.1
    far = compare([study("one", (0.95, 100), runs=4), other], budgets=[100]).budgets[0].entries[0]
    assert far.wins > 0.98
    volume = compare([one, other]).volumes[0]
    assert volume.low < volume.share <= volume.high


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 0.99), st.integers(1, 10**6)), min_size=1, max_size=12))
def test_a_study_has_as_much_as_itself(rows: list[tuple[float, int]]) -> None:
    one, other = study("a", *rows), study("b", *rows)
    found = compare([one, other], n_draws=100)
    shares = [volume.share for volume in found.volumes]
    assert shares[0] == shares[1] and shares[0] in (pytest.approx(1), 0.0)
    for row in found.budgets:
        assert row.entries[0].accuracy == row.entries[1].accuracy
        assert sum(entry.wins for entry in row.entries) == pytest.approx(1)
    assert found.errors[0].errors == tuple(np.sort([1 - accuracy for accuracy, _ in rows]))


def test_accuracy_is_compared_wherever_it_stands() -> None:
    objectives = dict.fromkeys(("params", "mult_adds", "activations", "validation_loss"), "minimize")
    rows = (
        StudyFrame(s.name, s.frame.assign(validation_loss=1.0), {**objectives, "accuracy": "maximize"}) for s in (A, B)
    )
    found = compare(list(rows), n_draws=100)
    assert list(found.objectives) == ["accuracy", "params", "mult_adds", "activations"]
    assert found.notes[0].startswith(
        "compared by accuracy, params, mult_adds, activations alone; validation_loss is not"
    )
    turned = StudyFrame("b", B.frame, {"params": "minimize", "accuracy": "maximize"})
    assert not any("compared by" in note for note in compare([A, turned], n_draws=100).notes)


def test_other_training_and_other_numbers_of_networks_are_said() -> None:
    many = study("many", *((0.8, params) for params in range(100, 112)), training={"epochs": 1})
    few = study("few", (0.8, 100), training={"epochs": 3, "batch_size": 10})
    assert compare([many, few], n_draws=100).notes[:2] == (
        "few was trained otherwise than many (batch_size: absent -> 10; epochs: 1 -> 3)",
        "many has 12 networks and few 1: the best of more is luckier, which the draws do not know",
    )


def test_what_limits_a_comparison_is_said() -> None:
    found = compare([study("a", (0.8, 1), data_digest="x", guided=True), study("b", (0.7, 2), data_digest="y")])
    assert found.notes == (
        "the studies were trained or validated on different images, so their accuracies differ for that too",
        "a: its networks were chosen by a sampler that learns, or ended early, so its errors are those of what was "
        "trained and not of its space",
        *(f"{name}: nothing tells the noise of its accuracies; search.repeats would" for name in "ab"),
    )
    (note,) = compare([study("a", (0.8, 1), validation_images=100), study("b", (0.7, 2), runs=2)]).notes
    assert note.startswith("a: no network was repeated, so its intervals know of the sampling of validation images")


@pytest.mark.parametrize(
    ("studies", "options", "message"),
    [
        ([A], {}, "name two studies or more to compare; `mnet-search show STUDY` shows one"),
        (
            [A, StudyFrame("c", A.frame, {"params": "minimize"})],
            {},
            "study 'c' does not maximize accuracy (its objectives: params), and studies are compared by that",
        ),
        ([A, B], {"cost": "latency_ms"}, "--cost latency_ms: study 'a' did not measure it; try mult_adds or params"),
        ([A, B], {"cost": "parms"}, "--cost parms: no cost of a network; did you mean params? (known: mult_adds,"),
        ([A, B], {"budgets": [0.0]}, "--at 0: budgets are numbers above 0, such as 1M,5M"),
        (
            [A, StudyFrame("c", A.frame.assign(state="failed"), TWO)],
            {},
            "study 'c' has no finished network with accuracy, params; let it run on, or leave it out",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(studies: list[StudyFrame], options: dict[str, Any], message: str) -> None:
    with pytest.raises(MnetError) as error:
        compare(studies, **options)
    assert str(error.value).startswith(message)


# ---------------------------------------------------------------- plots


def test_the_plots() -> None:
    info = fronts_info([A, B], "params")
    assert info == FrontsInfo(
        "params",
        (FrontLine("a", (100.0, 200.0), (0.8, 0.9), (0, 1)), FrontLine("b", (150.0, 300.0), (0.85, 0.86), (0, 1))),
    )
    figure = fronts_figure(info)
    assert [list(trace.y) for trace in figure.data] == [[80.0, 90.0], [85.0, 86.0]]
    assert len({trace.line.dash for trace in figure.data}) == 2
    found = compare([A, B])
    steps = errors_figure(found).data[1]
    assert list(steps.x) == pytest.approx([14, 14, 15]) and list(steps.y) == [0.0, 0.5, 1.0]
    page = compare_page(info, found)
    assert "http-equiv" in page and "Errors of all networks" in page


def test_names_are_escaped() -> None:
    bad = study("<script>alert(1)</script>", (0.8, 100))
    page = compare_page(fronts_info([bad, B], "params"), compare([bad, B]))
    assert "<script>alert(1)" not in page


# ---------------------------------------------------------------- the command


def accuracy_of(trial: OwnTrial) -> dict[str, float]:
    """A closed form in place of training."""
    return {"accuracy": 0.3 + 0.1 * math.log10(costs(trial.arch).params), "latency_ms": 1.0}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    for name, widths, sampler in (("thin", [0.1, 0.2, 0.3], "grid"), ("wide", [0.25, 0.5, 1.0], "random")):
        space = {
            "name": name,
            "family": "mobilenet_v1",
            "parameters": {"width": widths, "resolution": 32},
            "objectives": TWO,
            "search": {"sampler": sampler, "scheduler": "none"},
        }
        Search(
            space,
            evaluate=accuracy_of,
            storage=f"sqlite:///{folder / 'study.db'}",
            runs_dir=folder / "runs",
            n_trials=3,
        ).run()
    return folder


def test_the_command(studies: Path) -> None:
    done = call(studies, "compare", "thin", "wide", "--storage", "sqlite:///study.db", "--plot", "both.html")
    assert done.returncode == 0, done.stderr
    assert "as a share of that of all fronts together" in done.stdout and "wide alone" not in done.stdout
    assert (studies / "both.html").read_text().startswith("<!DOCTYPE html>")
    content = json.loads(
        call(studies, "compare", "thin", "wide", "--storage", "sqlite:///study.db", "--at", "500k,4M", "--json").stdout
    )
    assert [row["entries"][0]["study"] for row in content["budgets"]] == ["wide", "wide"]
    assert [v["n_networks"] for v in content["volumes"]] == [3, 3] and len(content["notes"]) == 2
    again = call(studies, "compare", "thin", "wide", "--storage", "sqlite:///study.db", "--plot", "both.html")
    assert (again.returncode, again.stderr) == (
        2,
        "mnet-search: both.html: exists already; replace it with --force, or name another with --plot\n",
    )


def test_only_networks_within_the_limits(studies: Path) -> None:
    arguments = ("compare", "thin", "wide", "--storage", "sqlite:///study.db", "--max", "params=500k", "--json")
    assert [v["n_networks"] for v in json.loads(call(studies, *arguments).stdout)["volumes"]] == [2, 1]
    done = call(studies, *arguments[:-2], "weight=3")
    assert done.returncode == 2 and done.stderr.startswith("mnet-search: --max weight: not a figure of a trial")
