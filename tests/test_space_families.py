"""Spaces over families and named blocks: parameters that only some networks have."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from mnet_search.models.arch import MnetError
from mnet_search.models.families import create
from mnet_search.spaces.space import SpaceError, load_space, make_space
from mnet_search.spaces.survey import survey
from mnet_search.spaces.yamlfile import Source

from processes import write_space

write = partial(write_space, name="space.yaml")

FAMILIES_TEXT = """\
family: [mobilenet_v1, lenet5, staged]
blocks:
  wide: {block: inverted_residual, kernel: 5, expand: 2}
parameters:
  resolution: [20, 32]
  width: {values: [0.25, 0.5], when: {family: [mobilenet_v1, staged]}}
  depth: {values: [shallow, full], when: {family: mobilenet_v1}}
  stages.2.block: {values: [wide, separable], when: {family: [mobilenet_v1, staged]}}
  stages.1.blocks.2: {values: [identity, wide], when: {family: staged}}
"""


def test_a_family_may_be_a_choice_with_parameters_of_its_own(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, FAMILIES_TEXT)).for_data(classes=10, in_channels=1)
    assert space.families == ["mobilenet_v1", "lenet5", "staged"]
    codes = list(space.codes())
    assert len(codes) == space.n_codes == 2 * (2 * 2 * 2) + 2 + 2 * (2 * 2 * 2)
    assert {code["family"]: set(code) for code in codes} == {
        "mobilenet_v1": {"family", "resolution", "width", "depth", "stages.2.block"},
        "lenet5": {"family", "resolution"},
        "staged": {"family", "resolution", "width", "stages.2.block", "stages.1.blocks.2"},
    }
    assert {space.arch(code).family for code in codes} == set(space.families)
    assert len(survey(space).networks) == len(codes)
    again = make_space("again", space.to_json(), Source("stored"))
    assert again.hash == space.hash


def test_a_named_block_is_its_block_with_its_options(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, FAMILIES_TEXT))
    code = {"family": "staged", "resolution": 32, "width": 0.5, "stages.2.block": "wide", "stages.1.blocks.2": "wide"}
    found = space.arch(code)
    wide = {"block": "inverted_residual", "kernel": 5, "expand": 2}
    stage = {f"stages.2.{name}": value for name, value in wide.items()}
    assert found.id == create("staged", resolution=32, width=0.5, **stage, **{"stages.1.blocks.2": wide}).id
    assert found.options["stages.2.kernel"] == 5
    assert create(found.family, **json.loads(json.dumps(dict(found.options)))).id == found.id


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("lenet5", "lenet6", "space.yaml:1: family: unknown family 'lenet6'; did you mean lenet5?"),
        (", when: {family: mobilenet_v1}}", "}", "parameters.depth: family lenet5 has no option 'depth'"),
        (", when: {family: mobilenet_v1}}", "}", "give it a `when: {family: ...}`"),
        ("inverted_residual, kernel", "inverted, kernel", "space.yaml:3: blocks.wide.block: unknown block 'inverted'"),
        ("{block: inverted_residual, kernel: 5, expand: 2}", "{kernel: 5}", "blocks.wide: needs `block`"),
        ("[wide, separable]", "[broad, separable]", "stages.2.block: unknown block 'broad'"),
        ("[identity, wide]", "[identity, broad]", "stages.1.blocks.2: unknown block 'broad'"),
        (
            "kernel: 5, expand: 2",
            "kernel: 4",
            "space.yaml:3: blocks.wide.kernel: kernel=4 is not possible: kernels are odd",
        ),
        (
            "kernel: 5, expand: 2",
            "expnd: 4",
            "space.yaml:3: blocks.wide.expnd: block inverted_residual has no option 'expnd'; did",
        ),
        ("family: [mobilenet_v1, lenet5, staged]", "family: []", "space.yaml:1: family: the list of values is empty"),
        (
            "family: [mobilenet_v1, lenet5, staged]",
            "family: {a: 1}",
            "family: a name, or a list of names, got {'a': 1}",
        ),
        ("wide: {block", "conv: {block", "space.yaml:3: blocks.conv: is the name of a built-in block; choose another"),
        (
            "{block: inverted_residual, kernel: 5,",
            "{blok: inverted_residual, kernel: 5,",
            "it has: blok, kernel, expand",
        ),
        (
            "kernel: 5,",
            "kernel: [3, 5],",
            "blocks.wide.kernel: one value is expected here (a number, a word, true or f",
        ),
        ("[identity, wide]", "[identity, vide]", "unknown block 'vide'; did you mean wide? (known: separable"),
        ("when: {family: staged}", "when: {nope: 1}", "stages.1.blocks.2.when.nope: no such parameter"),
        ("stages.1.blocks.2", "stages.9.blocks.4", "space.yaml:9: parameters.stages.9.blocks.4: stages.9={"),
        ("lenet5", "'torchvision:nix'", "space.yaml:1: family: unknown torchvision classifier 'nix'"),
    ],
)
def test_errors_of_families_and_named_blocks(tmp_path: Path, old: str, new: str, text: str) -> None:
    assert old in FAMILIES_TEXT
    path = write(tmp_path, FAMILIES_TEXT.replace(old, new))
    with pytest.raises(MnetError) as caught:
        survey(load_space(path).for_data(classes=10, in_channels=1))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ("block: [wide], kernel: [3, 5]", "parameters.kernel: the named block wide decides it already"),
        ("stages.2.block: [wide], stages.2.kernel: [3, 5]", "parameters.stages.2.kernel: the named block wide decides"),
        ("stages.1.blocks.1: {min: 0.1, max: 0.9}", "blocks are named one by one, not by a range; write a list"),
    ],
)
def test_what_a_named_block_decides_is_not_searched_over(tmp_path: Path, parameters: str, text: str) -> None:
    blocks = "blocks: {wide: {block: inverted_residual, kernel: 5}}\n"
    path = write(tmp_path, f"family: mobilenet_v1\n{blocks}parameters: {{resolution: 32, {parameters}}}\n")
    with pytest.raises(SpaceError) as caught:
        survey(load_space(path))
    assert text in str(caught.value)


def test_a_torchvision_network_is_a_point_of_a_space(tmp_path: Path) -> None:
    text = "family: [lenet5, 'torchvision:squeezenet1_1']\nparameters: {resolution: 32}\n"
    found = survey(load_space(write(tmp_path, text)).for_data(classes=10, in_channels=1))
    assert sorted(c.params for _, c in found.networks.values()) == [61_706, 726_474]
