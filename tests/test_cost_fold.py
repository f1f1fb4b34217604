"""The costs that are folded from a description are those of the module built from it, layer by layer, as torch.fx sees
that run: the two share no code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mnet_search.models.arch import ACTIVATIONS, Arch, Node, Shape
from mnet_search.models.blocks import BLOCKS, make_block, options_of
from mnet_search.models.complexity import costs, layers
from mnet_search.models.factory import to_module
from mnet_search.models.families import create
from mnet_search.models.layers import is_nothing, squeeze_excite
from mnet_search.models.traced import LAYER_ROLES, Traced, TracedLayer, survey

from small_networks import SMALL, every_block

# What has rows of its own in both.
KINDS = ("norm", "act", "pool", "linear")


def surveyed(arch: Arch) -> Traced:
    """What the module of a description says, read without memory for its weights."""
    with torch.device("meta"):
        module: nn.Module = to_module(arch.root)
    return survey(module, arch.input)


def assert_same_costs(arch: Arch) -> None:
    """The closed form is the module's, for the network and for each of its layers."""
    closed, traced = costs(arch), surveyed(arch)
    assert closed.params == traced.params
    assert closed.mult_adds == traced.mult_adds
    assert closed.activations == traced.activations
    assert closed.peak_activations == traced.peak_activations
    assert closed.receptive_field == traced.receptive_field
    assert closed.weight_bytes == 4 * (traced.params + traced.statistics)
    assert closed_rows(arch) == [row(layer) for layer in traced.layers]


def closed_rows(arch: Arch) -> list[tuple[Any, ...]]:
    """Name, kind, shapes and costs of the layers that a trace has rows for: all but flatten and dropout."""
    return [
        (r.name, r.kind, r.input, r.output, r.weights, r.costs.params, r.costs.mult_adds, r.costs.activations)
        for r in layers(arch)
        if r.kind in KINDS or r.kind.startswith(("conv", "depthwise"))
    ]


def row(r: TracedLayer) -> tuple[Any, ...]:
    """The same of a traced layer."""
    return (r.name, r.kind, r.input, r.output, r.weights, r.params, r.mult_adds, r.activations)


def test_every_kind_of_layer_is_compared() -> None:
    assert set(LAYER_ROLES) == {"conv", "global pool", "attention", *KINDS}
    seen = {r.kind.partition(" ")[0] for family in SMALL for r in layers(create(family, **SMALL[family]))}
    assert seen - {"flatten", "dropout"} == {"conv", "depthwise", *KINDS}


@pytest.mark.parametrize("family", sorted(SMALL))
def test_of_every_family(family: str) -> None:
    assert_same_costs(create(family, **{"classes": 10, **SMALL[family]}))


# In a stage of 3, the first block strided and widened.
VARIED: dict[str, Any] = {"kernel": 5, "expand": 1, "hidden": 24, "se": 0.25, "act": "silu", "bias": True}
BLOCK_CASES = [
    (name, {option: value})
    for name, block in sorted(BLOCKS.items())
    for option, value in {"block": name, **VARIED}.items()
    if option == "block" or option in options_of(block)
]


@pytest.mark.parametrize(("block", "change"), BLOCK_CASES, ids=[f"{b}-{next(iter(c))}" for b, c in BLOCK_CASES])
def test_of_every_block(block: str, change: dict[str, Any]) -> None:
    changes = {f"stages.2.{option}": value for option, value in {"block": block, "depth": 3, **change}.items()}
    assert_same_costs(create("staged", width=0.25, resolution=17, **changes))


X = Shape(16, 9, 9)
PARTS: dict[str, Node] = {
    "gate": squeeze_excite(0.25)(X),
    **{f"{name}-{c}": make_block(name, X, channels=c, stride=1, options={}) for name in BLOCKS for c in (8, 16, 32)},
}
PARTS = {name: part for name, part in PARTS.items() if not is_nothing(part)}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_of_every_block_alone(name: str) -> None:
    """In a network a part's own peak hides behind that of a larger one."""
    closed, traced = costs(PARTS[name]), survey(to_module(PARTS[name]), X)
    assert closed.peak_activations == traced.peak_activations
    assert closed.receptive_field == traced.receptive_field
    assert (closed.params, closed.mult_adds) == (traced.params, traced.mult_adds)


def test_of_all_blocks_together() -> None:
    assert_same_costs(create("staged", **every_block()))


@pytest.mark.parametrize("resolution", [33, 45, 64])
@pytest.mark.parametrize("family", ["mobilenet_v3_small", "alexnet8", "inception10", "resnet_v2_50"])
def test_at_resolutions_that_do_not_divide(family: str, resolution: int) -> None:
    assert_same_costs(create(family, **{**SMALL[family], "resolution": resolution}))


def place(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """A block with some of its options."""
    values: dict[str, st.SearchStrategy[Any]] = {
        "kernel": st.sampled_from([1, 3, 5, 7]),
        "expand": st.sampled_from([0.5, 1, 2, 2.01]),
        "hidden": st.integers(1, 20),
        "se": st.sampled_from([0, 0.25, 1]),
        "act": st.sampled_from(ACTIVATIONS),
        "bias": st.booleans(),
        "shrink": st.sampled_from([1, 2, 4]),
    }
    optional = {option: values[option] for option in options_of(BLOCKS[name]) if option in values}
    drawn = st.fixed_dictionaries({"block": st.just(name)}, optional=optional)
    return drawn.filter(lambda options: not {"expand", "hidden"} <= options.keys())  # they say the same thing


any_place = st.sampled_from(sorted(BLOCKS)).flatmap(place)
network = st.fixed_dictionaries(
    {
        "family": st.just("staged"),
        "width": st.sampled_from([0.125, 0.25]),
        "resolution": st.integers(16, 20),
        "rounding": st.sampled_from(["plain", "divisible"]),
        "head": st.sampled_from(["linear", "conv"]),
        "head_channels": st.sampled_from([0, 32]),
        "stem_stride": st.sampled_from([1, 2]),
        "stages.1.blocks.1": any_place,
        "stages.1.blocks.2": any_place,
        "stages.2.depth": st.just(3),
        "stages.2.stride": st.sampled_from([1, 2]),
        "stages.2.blocks.1": any_place,
        "stages.2.blocks.2": any_place,
        "stages.2.blocks.3": any_place,
        "stages.3.channels": st.sampled_from([64, 128, 256]),
        "stages.3.block": st.sampled_from(sorted(BLOCKS)),
    },
    optional={"dropout": st.sampled_from([0.0, 0.2])},
)


@settings(max_examples=15, deadline=None)
@given(options=network)
def test_of_random_networks(options: dict[str, Any]) -> None:
    assert_same_costs(create(**options))
