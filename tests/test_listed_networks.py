"""Spaces that list their networks, and networks that are scaled by one coefficient."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from mnet_search.models.complexity import costs
from mnet_search.search.run import KNOWN
from mnet_search.spaces.space import Space, SpaceError, load_space, make_space
from mnet_search.spaces.survey import survey
from mnet_search.spaces.yamlfile import Source

from processes import TINY, load, search, write_space

COMPOUND = Path(__file__).parents[1] / "spaces" / "mobilenet-compound.yaml"
LISTED = """\
family: mobilenet_v1
data: {name: digits}
parameters:
  width: [0.1, 0.25, 1.0]
  resolution: [16, 24, 32]
  depth: [shallow, full]
  block: [separable, inverted_residual]
  expand: {values: [2, 4], when: {block: inverted_residual}}
  stem_stride: 1
networks:
  - {width: 1, resolution: 16, depth: shallow, block: separable}
  - {resolution: 24, width: 0.25, depth: full, block: inverted_residual, expand: 4}
search: {sampler: grid}
"""


def space_of(**changes: Any) -> Space:
    values: dict[str, Any] = {
        "family": "mobilenet_v1",
        "parameters": {"width": [0.25, 0.5], "resolution": [16, 24], "stem_stride": 1},
        **changes,
    }
    return make_space("test", values, Source("test")).for_data(classes=10, in_channels=1)


def test_only_the_listed_networks_are_of_the_space(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path, LISTED), (), KNOWN).for_data(classes=10, in_channels=1)
    whole = {"depth": "shallow", "block": "separable", "stem_stride": 1}
    first = {"width": 1.0, "resolution": 16} | whole
    assert [dict(code) for code in space.codes()] == space.listed
    assert space.listed[0] == first
    assert list(space.listed[1]) == ["width", "resolution", "depth", "block", "stem_stride", "expand"]
    assert space.n_codes == 2 and len(survey(space).networks) == 2
    assert all(space.sample(random.Random(seed)) in space.listed for seed in range(5))


def test_it_is_another_space_than_the_whole_one() -> None:
    listed = space_of(networks=[{"width": 0.25, "resolution": 16}])
    assert "networks" not in space_of().identity and "scalings" not in space_of().identity
    assert listed.hash != space_of().hash
    assert listed.n_codes == 1


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ({"width": 0.25}, "test: networks.0: it lacks resolution, which may be 16, 24"),
        ({"width": 0.3, "resolution": 16}, "test: networks.0: width is never 0.3; it may be 0.25, 0.5"),
        (
            {"widht": 0.25, "resolution": 16},
            "test: networks.0: no parameter 'widht'; did you mean width? (the space has: width, "
            "resolution, stem_stride)",
        ),
        (
            {"width": 0.25, "resolution": 16, "dept": 1},
            "test: networks.0: no parameter 'dept' (the space has: width, resolution, stem_stride)",
        ),
    ],
)
def test_what_is_no_network_of_the_space_is_said(network: dict[str, Any], text: str) -> None:
    with pytest.raises(SpaceError) as error:
        space_of(networks=[network])
    assert str(error.value) == text


def test_a_search_trains_the_listed_ones_with_paired_seeds(tmp_path: Path) -> None:
    text = TINY + "networks: [{width: 0.2, resolution: 9}, {width: 0.1, resolution: 12}]\n"
    text = text.replace("n_trials: 4, ", "sampler: random, ").replace("sampler: grid, ", "")
    result = search(tmp_path, text, n_trials=9, overrides=("search.repeats=2",))
    frame = load(tmp_path)
    assert result.exhausted and len(frame) == 4
    runs = {(row["param.width"], row["param.resolution"], row["seed"]) for _, row in frame.iterrows()}
    assert runs == {(0.2, 9, 0), (0.2, 9, 1), (0.1, 12, 0), (0.1, 12, 1)}


# ---------------------------------------------------------------- scaling by one coefficient


def scalings_of(**changes: Any) -> Space:
    parameters = {"width": 0.25, "resolution": 20, "scaling": ["wider", "both"], "coefficient": [0, 1, 2]}
    factors = {"wider": {"width": 2}, "both": {"width": 1.5, "resolution": 1.26}}
    return space_of(**{"parameters": parameters, "scalings": factors} | changes)


def test_a_network_is_the_base_times_the_factors_to_the_power_of_the_coefficient() -> None:
    space = scalings_of()
    code = {"width": 0.25, "resolution": 20, "scaling": "both", "coefficient": 2}
    assert {name: space.arch(code).options[name] for name in ("width", "resolution")} == {
        "width": 0.5625,
        "resolution": 32,
    }
    assert len(survey(space).networks) == 5  # the base once


def test_the_shipped_ways_spend_nearly_the_same_at_each_coefficient() -> None:
    space = load_space(COMPOUND, (), KNOWN).for_data(classes=10, in_channels=3)
    spent: dict[Any, list[int]] = {}
    for code in space.codes():
        spent.setdefault(code["coefficient"], []).append(costs(space.arch(code)).mult_adds)
    assert {c: round(max(each) / min(each), 2) for c, each in spent.items()} == {0: 1.0, 1: 1.19, 2: 1.18, 3: 1.06}
    assert [round(max(each) / 1e6, 1) for each in spent.values()] == [1.5, 2.8, 5.4, 10.8]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"parameters": {"width": 0.25, "scaling": ["wider"], "resolution": 20}},
            "test: scalings: they need a parameter 'coefficient'; add it to parameters",
        ),
        (
            {"parameters": {"width": 0.25, "resolution": 20, "scaling": ["wide"], "coefficient": 1}},
            "test: parameters.scaling: unknown scaling 'wide'; did you mean wider? (known: wider, both)",
        ),
        (
            {"scalings": {"wider": {"depth": 2}, "both": {"width": 2}}},
            "test: scalings.wider.depth: no parameter 'depth' to scale; give it a value in parameters",
        ),
        (
            {"scalings": {"wider": {"width": 0}, "both": {"width": 2}}},
            "test: scalings.wider.width: input should be greater than 0, got 0 (a whole number)",
        ),
        (
            {"scalings": {"wider": {}, "both": {"width": 2}}},
            "test: scalings.wider: dictionary should have at least 1 item after validation, not 0, got {} (a mapping)",
        ),
        (
            {"scalings": {"wider": {"width": 60}, "both": {"width": 2}}},
            "test: scalings.wider.width: 60 to the power of 2 is no size of a network; lower one of them",
        ),
        (
            {"networks": []},
            "test: networks: list should have at least 1 item after validation, not 0, got [] (a list)",
        ),
    ],
)
def test_scalings_that_cannot_be_are_said(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SpaceError) as error:
        scalings_of(**changes)
    assert str(error.value) == text
