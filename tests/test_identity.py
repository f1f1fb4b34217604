"""Equal networks have one id, different ones never: properties over random spaces."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_search.models.arch import Act, Arch, Branches, Chain, Conv, Node, Norm, Residual, Scale, Shape
from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.layers import chain
from mnet_search.spaces.space import load_space, make_space
from mnet_search.spaces.survey import survey
from mnet_search.spaces.yamlfile import Source

MACRO = Path(__file__).parent.parent / "spaces" / "macro.yaml"

place = st.one_of(
    st.just({"block": "identity"}),
    st.builds(
        lambda kernel, expand, se: {"block": "inverted_residual", "kernel": kernel, "expand": expand, "se": se},
        st.sampled_from([3, 5]),
        st.sampled_from([1, 2, 2.01]),
        st.sampled_from([0, 0.25, 0.26]),
    ),
    st.builds(lambda act: {"block": "separable", "act": act}, st.sampled_from(["relu", "relu6"])),
)
network = st.fixed_dictionaries(
    {
        "family": st.just("staged"),
        "width": st.sampled_from([0.125, 0.13, 0.25]),
        "rounding": st.sampled_from(["plain", "divisible"]),
        "head_channels": st.sampled_from([0, 32]),
        "stages.1.blocks.2": place,
        "stages.2.depth": st.just(3),
        "stages.2.blocks.2": place,
        "stages.2.blocks.3": place,
    },
    optional={"dropout": st.just(0.0), "norm_eps": st.sampled_from([1e-5, 1e-3]), "depth": st.just(1.0)},
)


def plain(node: Node) -> Any:
    """What a node computes, written down another way than `canonical` does: nested tuples, chains dissolved."""
    match node:
        case Chain(children=children):
            parts = [plain(child) for _, child in children]
            return tuple(p for part in parts for p in (part if isinstance(part, tuple) else (part,)))
        case Residual(body=body, shortcut=shortcut):
            return (frozenset({("body", plain(body)), ("shortcut", plain(shortcut) if shortcut else ())}),)
        case Scale(gate=gate):
            return (frozenset({("gate", plain(gate))}),)
        case Branches(children=children):
            return (frozenset(enumerate(plain(child) for _, child in children)),)
    return (repr(node),)


def same(a: Arch, b: Arch) -> bool:
    return (a.input, a.init, plain(a.root)) == (b.input, b.init, plain(b.root))


@settings(max_examples=200, deadline=None)
@given(first=network, second=network)
def test_ids_are_equal_where_networks_are(first: dict, second: dict) -> None:
    a, b = create(**first), create(**second)
    assert (a.id == b.id) == same(a, b)


@settings(max_examples=15, deadline=None)
@given(options=network, data=st.data())
def test_networks_of_one_id_have_the_same_weights_names_and_outputs(options: dict, data: st.DataObject) -> None:
    moved = dict(options)  # a place left out and its neighbour change places
    moved["stages.2.blocks.2"], moved["stages.2.blocks.3"] = options["stages.2.blocks.3"], options["stages.2.blocks.2"]
    a, b = create(**options), create(**moved)
    identity = {"block": "identity"} in (options["stages.2.blocks.2"], options["stages.2.blocks.3"])
    assert not identity or a.id == b.id
    if a.id == b.id:
        ours, theirs = build(a, seed=1).eval(), build(b, seed=1).eval()
        assert list(ours.state_dict()) == list(theirs.state_dict())
        x = torch.rand(1, *a.input)
        assert torch.equal(ours(x), theirs(x))
        assert costs(a) == costs(b)


spaces = st.fixed_dictionaries(
    {},
    optional={
        "width": st.lists(st.sampled_from([0.125, 0.126, 0.25, 0.5]), min_size=1, max_size=3, unique=True),
        "act": st.lists(st.sampled_from(["relu", "hswish"]), min_size=1, max_size=2, unique=True),
        "stages.1.depth": st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True),
        "stages.3.block": st.lists(
            st.sampled_from(["identity", "conv", "separable", "residual"]), min_size=1, max_size=3, unique=True
        ),
        "stages.2.kernel": st.lists(st.sampled_from([3, 5, 7]), min_size=1, max_size=2, unique=True),
    },
)


@settings(max_examples=15, deadline=None)
@given(parameters=spaces)
def test_a_random_space_counts_its_networks_as_the_trees_do(parameters: dict) -> None:
    values = {"family": "staged", "parameters": {"resolution": [16], **parameters}}
    space = make_space("random", values, Source("random", {}))
    found = survey(space)
    trees = {plain(space.arch(code).root) for code in space.codes()}
    assert (len(found.networks), found.exact) == (len(trees), True)
    assert len(list(space.codes())) == space.n_codes


def test_macro_is_3969_networks_in_6561_codes() -> None:
    space = load_space(MACRO)
    found = survey(space)
    assert (space.n_codes, found.exact, len(found.networks)) == (6561, True, 3969)
    largest = costs(found.largest)
    assert (largest.mult_adds, largest.params) == (105_660_928, 2_932_586)
    smallest = space.arch({**_code(space), **{n: "identity" for n in space.parameters if ".blocks." in n}})
    assert smallest.id == found.smallest.id
    wide = space.arch({**_code(space), **{n: "wide5" for n in space.parameters if ".blocks." in n}})
    assert wide.id == found.largest.id
    assert sum(p.numel() for p in build(wide).parameters()) == 2_932_586


def _code(space: Any) -> dict[str, Any]:
    return next(iter(space.codes()))


def test_the_text_behind_an_id_is_json() -> None:
    """Stored ids must not change by an accident of writing: the text is worked out here once more."""
    arch = create("lenet5")
    rows = [
        *[["conv", 3, 6, 5, 1, 0, 1, True], ["act", "sigmoid"], ["pool", "max", 2, 2, 0]],
        *[["conv", 6, 16, 5, 1, 0, 1, True], ["act", "sigmoid"], ["pool", "max", 2, 2, 0], ["flatten"]],
        *[["linear", 400, 120, True], ["act", "sigmoid"], ["linear", 120, 84, True], ["act", "sigmoid"]],
        ["linear", 84, 10, True],
    ]
    text = json.dumps([[3, 32, 32], rows, "glorot"], separators=(",", ":"))
    assert arch.id == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_starting_weights_and_batch_norm_are_part_of_a_network() -> None:
    plain_id = create("mobilenet_v1", width=0.25).id
    assert create("mobilenet_v1", width=0.25, init="glorot").id != plain_id
    assert create("mobilenet_v1", width=0.25, norm_eps=1e-3).id != plain_id
    assert create("mobilenet_v1", width=0.25, init="torch", norm_eps=1e-5).id == plain_id


def test_one_description_by_two_families_is_one_network() -> None:
    shape = {"resolution": 32, "classes": 10, "width": 0.25}
    v1 = create("mobilenet_v1", **shape, stem_stride=1)
    table = [(64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 2, 6), (1024, 2, 2)]
    stages: dict[str, Any] = {}
    for number, (channels, stride, depth) in enumerate(table, start=1):
        prefix = f"stages.{number}"
        stages |= {f"{prefix}.channels": channels, f"{prefix}.stride": stride, f"{prefix}.depth": depth}
    staged = create("staged", **shape, block="separable", head_channels=0, rounding="plain", **stages)
    assert v1.id == staged.id


def test_nodes_are_equal_by_what_they_hold() -> None:
    a = chain(Shape(4, 8, 8), norm=Norm, act=Act)
    b = chain(Shape(4, 8, 8), norm=Norm, act=Act)
    costs(a)  # what is remembered on a node is no part of it
    assert a == b
    assert a != chain(Shape(4, 8, 8), norm=Norm)
    assert Conv(Shape(4, 8, 8), 4) != Conv(Shape(4, 8, 8), 4, bias=True)
