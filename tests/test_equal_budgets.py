"""Networks of equal budgets: solved for exactly, trained with paired seeds, compared with intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.models.families import create
from mnet_search.search.show_iso import sentences
from mnet_search.spaces.equal_budgets import solve, space_of
from mnet_search.spaces.space import Space, make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies.paired import Runs, differences, runs_of

from processes import TINY, Done, call, load, write_space

PAPER = {
    "family": "mobilenet_v1",
    "parameters": {"width": [0.5, 1.0], "resolution": [128, 224], "depth": ["shallow", "full"]},
}
BLOCKS = {
    "family": "mobilenet_v1",
    "parameters": {
        "width": [0.25, 1.0],
        "resolution": [24, 32],
        "depth": ["shallow", "full"],
        "block": ["separable", "conv", "inverted_residual"],
        "expand": {"values": [2, 4], "when": {"block": "inverted_residual"}},
        "stem_stride": 1,
    },
}


def space(values: dict[str, Any] = PAPER, classes: int = 1000, **more: Any) -> Space:
    return make_space("test", {**values, **more}, Source("test")).for_data(classes=classes, in_channels=3)


def test_the_papers_thinner_against_shallower() -> None:
    """Table 5: at the shallow network's mult-adds the thinner one is .73 wide (the paper has .75, at 325 M)."""
    found = solve(space(), "mult_adds", 307e6, 0.02, ["width", "depth", "resolution"])
    assert [(way.name, way.params["width"], way.params["depth"]) for way in found.ways] == [
        ("width", 0.73, "full"),
        ("depth", 1.0, "shallow"),
    ]
    assert found.ways[1].cost == 307_323_392
    assert found.missed == ("resolution: the nearest has 290,675,200, -5.3% (resolution=159)",)
    assert (found.base_cost, found.base) == (568_740_352, {"width": 1.0, "resolution": 224, "depth": "full"})


@settings(max_examples=25, deadline=None)
@given(st.floats(2e6, 40e6), st.sampled_from([0.02, 0.05]))
def test_each_way_costs_what_it_says_and_is_within_the_tolerance(budget: float, tolerance: float) -> None:
    asked = space(BLOCKS, 10)
    try:
        found = solve(asked, "mult_adds", budget, tolerance, ["width", "depth", "resolution", "compound", "block"])
    except MnetError as error:
        assume("a comparison needs two" not in str(error))
        raise
    for way in found.ways:
        arch = create("mobilenet_v1", **{**way.params, "classes": 10, "in_channels": 3})
        assert (arch.id, costs(arch).mult_adds) == (way.arch_id, way.cost)
        assert abs(way.cost / budget - 1) <= tolerance
        assert way.miss == pytest.approx(way.cost / budget - 1)
    assert len({way.arch_id for way in found.ways}) == len(found.ways)
    narrowed = space_of(asked, found, "narrowed", 3).for_data(classes=10, in_channels=3)
    assert [narrowed.arch(params).id for params in narrowed.codes()] == [way.arch_id for way in found.ways]
    assert (narrowed.file.search.repeats, narrowed.file.search.scheduler) == (3, "none")


def test_other_blocks_meet_the_budget_by_their_width() -> None:
    found = solve(space(BLOCKS, 10), "mult_adds", 12e6, 0.02, ["width", "block"])
    assert [way.name for way in found.ways] == ["width", "block=conv", "block=inverted_residual"]
    assert [way.params["width"] for way in found.ways] == [0.499, 0.175, 0.244]  # a full convolution is the dearest
    assert found.ways[2].params["expand"] == 2


@pytest.mark.parametrize(
    ("budget", "tolerance", "knobs", "message"),
    [
        (
            900e6,
            0.02,
            ["width"],
            "--mult-adds 900,000,000: the network that knobs lower has 568,740,352 (width=1.0 resolution=224 "
            "depth=full); ask for less, or raise the largest values of the space",
        ),
        (
            300e6,
            0.005,
            ["width", "resolution"],
            "300,000,000 mult_adds within 0.5%: only width meets it, and a comparison needs two; resolution: the "
            "nearest has 290,675,200, -3.1% (resolution=159); try --mult-adds 290675200, which resolution meets, a "
            "wider --tolerance or more --knobs",
        ),
        (300e6, 0.02, ["widht"], "--knobs widht: no parameter of the space; did you mean width? (it has: width,"),
        (300e6, 0.02, [], "--knobs: name one or more, such as width,depth,resolution"),
        (300e6, 1.5, ["width"], "--tolerance 1.5: write a share such as 2% or 0.02, above 0 and below 1"),
        (0.0, 0.02, ["width"], "a budget of 0 mult_adds: write a number above 0, such as 5M"),
    ],
)
def test_budgets_that_cannot_be_met_are_said(budget: float, tolerance: float, knobs: list[str], message: str) -> None:
    with pytest.raises(MnetError) as error:
        solve(space(), "mult_adds", budget, tolerance, knobs)
    assert str(error.value).startswith(message)


SEVERAL = {
    "family": ["mobilenet_v2", "mobilenet_v1"],
    "parameters": {
        "resolution": [24, 32],
        "width": {"values": [0.1, 1.0], "when": {"family": "mobilenet_v1"}},
        "depth": {"values": ["shallow", "full"], "when": {"family": "mobilenet_v1"}},
        "training.epochs": [1, 2],
    },
}


def test_another_family_meets_the_budget_from_its_own_largest_width() -> None:
    found = solve(space(SEVERAL, 10), "mult_adds", 5e6, 0.1, ["resolution", "family", "width", "compound"])
    assert [(way.name, way.params.get("width")) for way in found.ways] == [
        ("resolution", None),
        ("family=mobilenet_v1", 0.651),
    ]
    assert found.missed == (
        "width: it exists only with family=mobilenet_v1, and the network that knobs lower has none",
        "compound: depth exists only with family=mobilenet_v1, and the network that knobs lower has none",
    )


def test_a_setting_is_no_knob() -> None:
    with pytest.raises(MnetError, match=r"--knobs training.epochs: it changes how a network is trained and not what"):
        solve(space(SEVERAL, 10), "mult_adds", 5e6, 0.1, ["family", "training.epochs"])


def test_a_knob_that_the_space_does_not_have() -> None:
    narrow = space({"family": "mobilenet_v1", "parameters": {"width": [0.5, 1.0], "resolution": 224}})
    with pytest.raises(MnetError, match=r"--knobs compound: it lowers width, depth and resolution.*has no depth"):
        solve(narrow, "mult_adds", 300e6, 0.02, ["compound"])


# ---------------------------------------------------------------- paired differences


def test_the_interval_is_of_the_pairs() -> None:
    """What a seed does to both networks cancels: values that vary by 10 points differ by 1 to 1.2."""
    one = Runs("one", {0: 0.70, 1: 0.75, 2: 0.80, 3: 0.60})
    other = Runs("other", {1: 0.738, 0: 0.69, 2: 0.788, 5: 0.1})
    (gap,) = differences([other, one])
    assert (gap.first, gap.second, gap.n) == ("one", "other", 3)
    gaps = np.array([0.01, 0.012, 0.012])
    half = 4.302652729911275 * gaps.std(ddof=1) / math.sqrt(3)  # Student's t of two degrees of freedom
    assert (gap.mean, gap.low, gap.high) == pytest.approx((gaps.mean(), gaps.mean() - half, gaps.mean() + half))
    assert gap.clear and gap.correlation > 0.99
    assert sentences((gap,))[0] == "one over other: +1.13 points, 95% interval +0.85 to +1.42, 3 pairs"


def test_equal_gaps_are_not_certain() -> None:
    """An accuracy of 100 images is known to a hundredth, however alike two pairs are."""
    one, other = Runs("one", {0: 0.90, 1: 0.92}), Runs("other", {0: 0.89, 1: 0.91})
    (gap,) = differences([one, other], images=100)
    assert (gap.mean, gap.clear) == (pytest.approx(0.01), False)
    assert gap.high - gap.low == pytest.approx(2 * 12.706 * math.sqrt(2 / 12) / 100 / math.sqrt(2), rel=1e-3)
    (unknown,) = differences([one, other])
    assert math.isnan(unknown.low) and not unknown.clear
    assert sentences((unknown,))[0].endswith("(2 pairs that do not differ tell no spread; give more --seeds)")


def test_one_pair_has_no_interval() -> None:
    (gap,) = differences([Runs("a", {0: 0.5}), Runs("b", {0: 0.6})])
    assert (gap.first, gap.n, gap.clear) == ("b", 1, False) and math.isnan(gap.low)
    assert sentences((gap,)) == ["b over a: +10.00 points (one pair tells no spread; give more --seeds)"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seed: int) -> None:
    """400 experiments of 4 pairs with a common part ten times their own noise: 95 % within 91 and 99."""
    generator = np.random.default_rng(seed)
    covered = 0
    for _ in range(100):
        common, own = generator.normal(0.7, 0.05, 4), generator.normal(0, 0.005, (2, 4))
        one, other = common + own[0] + 0.01, common + own[1]
        (gap,) = differences([Runs("one", dict(enumerate(one))), Runs("other", dict(enumerate(other)))])
        low, high = (gap.low, gap.high) if gap.first == "one" else (-gap.high, -gap.low)
        covered += low <= 0.01 <= high
    assert covered >= 86


def test_runs_are_the_finished_ones_of_a_network() -> None:
    frame = pd.DataFrame(
        {
            "number": [0, 1, 2, 3, 4],
            "state": ["finished", "finished", "failed", "finished", "finished"],
            "arch_id": ["a", "a", "a", "b", "a"],
            "seed": [1, 0, 2, 0, 0],
            "accuracy": [0.5, 0.6, math.nan, 0.7, 0.9],
        }
    )
    assert runs_of(frame, "accuracy", {"x": "a", "y": "b", "z": "c"}) == (
        Runs("x", {0: 0.6, 1: 0.5}),
        Runs("y", {0: 0.7}),
        Runs("z", {}),
    )
    with pytest.raises(MnetError, match="'speed' is no figure of this study; try accuracy"):
        runs_of(frame, "speed", {})


# ---------------------------------------------------------------- the command

SPACE = TINY.replace("width: [0.1, 0.12, 0.15, 0.2]", "width: [0.1, 0.2]").replace("shallow", "[shallow, full]")


def iso(folder: Path, *more: object) -> Done:
    base = ("--mult-adds", "150k", "--tolerance", "5%", "--executor", "local", "-q")
    return call(folder, "iso", "tiny.yaml", *base, "--storage", "sqlite:///study.db", *more)


def test_the_command_trains_pairs_and_says_how_they_differ(tmp_path: Path) -> None:
    write_space(tmp_path, SPACE)
    planned = iso(tmp_path, "--dry-run", "--json", "-o", "iso.yaml")
    ways = json.loads(planned.stdout)["ways"]
    assert [way["name"] for way in ways] == ["width", "depth"]
    assert not (tmp_path / "study.db").exists()
    assert call(tmp_path, "validate", "iso.yaml").returncode == 0
    done = iso(tmp_path, "--seeds", 2)
    assert done.returncode == 0, done.stderr
    name = "tiny-iso-mult_adds-150k"
    frame = load(tmp_path, name)
    assert sorted(zip(frame["arch_id"], frame["seed"], strict=True)) == sorted(
        (way["arch_id"], seed) for way in ways for seed in (0, 1)
    )
    assert f"study {name}" in done.stdout and "2 pairs" in done.stdout
    again = json.loads(iso(tmp_path, "--seeds", 2, "--json").stdout)
    assert len(load(tmp_path, name)) == len(frame)
    assert {tuple(each["values"]) for each in again["runs"]} == {("0", "1")}
    gap = again["differences"][0]
    means = {each["name"]: each["mean"] for each in again["runs"]}
    assert gap["mean"] == pytest.approx(means[gap["first"]] - means[gap["second"]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("iso", "tiny.yaml"), "mnet-search: say the budget: one of --mult-adds 300M or --params 1M"),
        (("iso", "tiny.yaml", "--params", "many"), "mnet-search: --params: 'many' is not a quantity"),
        (
            ("iso", "tiny.yaml", "--params", "5k", "--tolerance", "two"),
            "mnet-search: --tolerance two: write a share such as 2% or 0.02",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_space(tmp_path, SPACE)
    done = call(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
