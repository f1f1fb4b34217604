"""The description, its costs and its modules say the same thing, and say what the paper says."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mnet_search.models.arch import Arch, Conv, MnetError, OptionError, Residual, Shape, walk
from mnet_search.models.blocks import BLOCKS, make_block
from mnet_search.models.complexity import costs, layers
from mnet_search.models.factory import DepthwiseConv2d, PointwiseConv2d, build, to_module
from mnet_search.models.families import create
from mnet_search.models.layers import chain, conv

M = 1_000_000
# Options, and M mult-adds and M params as printed in the paper (arXiv 1704.04861, tables 4 to 9).
PAPER_ROWS = [
    ({}, 569, 4.2),
    ({"width": 0.75}, 325, 2.6),
    ({"depth": "shallow"}, 307, 2.9),
    ({"width": 0.5}, 149, 1.3),
    ({"width": 0.25}, 41, 0.5),
    ({"resolution": 192}, 418, 4.2),
    ({"resolution": 160}, 290, 4.2),
    ({"resolution": 128}, 186, 4.2),
    ({"width": 0.5, "resolution": 160}, 76, 1.32),
]
# with a kernel, for channels that four branches need not share
ANY_WIDTH = sorted(set(BLOCKS) - {"identity", "inception"})
options_strategy = st.fixed_dictionaries(
    {
        "width": st.sampled_from([0.1, 0.25, 0.29, 0.5, 1.0, 1.3]),
        "resolution": st.integers(17, 64),
        "depth": st.sampled_from(["full", "shallow"]),
        "block": st.sampled_from(ANY_WIDTH),
        "kernel": st.sampled_from([3, 5]),
        "stem_stride": st.sampled_from([1, 2]),
        "classes": st.integers(2, 20),
        "in_channels": st.sampled_from([1, 3]),
        "dropout": st.sampled_from([0.0, 0.2]),
    },
    optional={"stages.4.block": st.sampled_from(ANY_WIDTH), "stages.2.kernel": st.sampled_from([1, 7])},
)


def torch_mult_adds(arch: Arch) -> int:
    """torch's own count of the built network, on the meta device: it counts 2 per multiply-add."""
    with torch.device("meta"):
        module = to_module(arch.root).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            module(torch.empty(1, arch.input.channels, arch.input.height, arch.input.width))
    return counter.get_total_flops() // 2


def test_exact_figures_of_mobilenet_v1() -> None:
    found = costs(create("mobilenet_v1"))
    assert (found.mult_adds, found.params) == (568_740_352, 4_231_976)


@pytest.mark.parametrize(("options", "mult_adds_m", "params_m"), PAPER_ROWS)
def test_rows_of_the_paper(options: dict, mult_adds_m: float, params_m: float) -> None:
    found = costs(create("mobilenet_v1", **options))
    assert abs(found.mult_adds / M - mult_adds_m) < 1.0  # the paper cuts rather than rounds: 290.7 is printed as 290
    assert found.params / M == pytest.approx(params_m, abs=0.051)


def test_full_convolutions_count_one_million_more_than_table_4_prints() -> None:
    found = costs(create("mobilenet_v1", block="conv"))
    # Printed: 4866. The exact sum is 4867.3; without the 1.02 M of the linear layer it is the printed figure.
    assert found.mult_adds == 4_867_293_184
    assert found.mult_adds - 1024 * 1000 == pytest.approx(4866 * M, rel=1e-4)
    assert found.params / M == pytest.approx(29.3, abs=0.05)


def test_table_3_one_layer() -> None:
    def one_layer(block: str, channels: int, size: int) -> tuple[float, float]:
        node = make_block(block, Shape(channels, size, size), channels=channels, stride=1, options={})
        weights = [layer.costs for layer in layers(node) if layer.costs.mult_adds]
        return sum(c.mult_adds for c in weights) / M, sum(c.params for c in weights) / M

    assert one_layer("conv", 512, 14) == pytest.approx((462, 2.36), abs=0.5)
    assert one_layer("separable", 512, 14) == pytest.approx((52.3, 0.27), abs=0.05)
    assert one_layer("separable", 384, 14) == pytest.approx((29.6, 0.15), abs=0.05)
    assert one_layer("separable", 384, 10) == pytest.approx((15.1, 0.15), abs=0.05)


def test_table_2_shares_by_layer_type() -> None:
    arch = create("mobilenet_v1")
    rows = list(layers(arch))
    total = sum(r.costs.mult_adds for r in rows)
    share = lambda kind: 100 * sum(r.costs.mult_adds for r in rows if r.kind.startswith(kind)) / total  # noqa: E731
    assert (round(share("conv 1x1"), 2), round(share("depthwise"), 2), round(share("linear"), 2)) == (94.86, 3.06, 0.18)


def test_keras_separable_has_2336_weights() -> None:
    node = make_block("separable_plain", Shape(32, 16, 16), channels=64, stride=1, options={})
    assert sum(layer.costs.params for layer in layers(node) if layer.costs.mult_adds) == 2336


@settings(max_examples=12, deadline=None)
@given(options=options_strategy)
def test_costs_equal_the_module_and_torchs_counter(options: dict) -> None:
    arch = create("mobilenet_v1", **options)
    found = costs(arch)
    assert found.params == sum(p.numel() for p in build(arch).parameters() if p.requires_grad)
    assert found.mult_adds == torch_mult_adds(arch)


@settings(max_examples=12, deadline=None)
@given(options=options_strategy)
def test_shapes_of_the_description_are_the_modules(options: dict) -> None:
    arch = create("mobilenet_v1", **options)
    module = build(arch).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, tuple(out.shape[1:])))
    module(torch.zeros(1, arch.input.channels, arch.input.height, arch.input.width))
    for name, node in walk(arch.root):
        shape = node.output
        assert seen[name] in {(shape.channels, shape.height, shape.width), (shape.channels,)}, name


def test_options_that_change_nothing_keep_the_id() -> None:
    assert (
        create("mobilenet_v1", width=0.5).id == create("mobilenet_v1", width=0.5001).id
    )  # 1024 * 0.5001 is cut to 512
    assert create("mobilenet_v1", kernel=3, act="relu").id == create("mobilenet_v1").id
    assert create("mobilenet_v1", **{"stages.3.kernel": 5}).id != create("mobilenet_v1").id


def test_json_form_builds_the_same_network() -> None:
    arch = create("mobilenet_v1", width=0.5, block="inverted_residual", expand=2, **{"stages.5.kernel": 5})
    again = arch.to_json()
    assert create(again["family"], **again["options"]).id == again["arch_id"]
    assert pickle.loads(pickle.dumps(arch)) == arch


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    arch = create("mobilenet_v1", width=0.1, resolution=32)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = build(arch, seed=3), build(arch, seed=3), build(arch, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.state_dict()["stem.conv.weight"], other.state_dict()["stem.conv.weight"])


def test_state_dict_names_are_the_labels() -> None:
    names = set(build(create("mobilenet_v1", width=0.1, resolution=32, block="inverted_residual")).state_dict())
    assert {
        "stem.conv.weight",
        "stage2.block1.depthwise.conv.weight",
        "stage2.block2.project.norm.bias",
        "classifier.weight",
    } <= names


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_keeps_and_halves_the_size(block: str) -> None:
    for stride, size in ((1, 8), (2, 4)):
        node = make_block(block, Shape(8, 8, 8), channels=8, stride=stride, options={})
        assert node.output == Shape(8, size, size)
        assert to_module(node)(torch.zeros(2, 8, 8, 8)).shape == (2, 8, size, size)


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_opens_its_docstring_with_its_recipe_and_names_its_shapes(block: str) -> None:
    text = " ".join((BLOCKS[block].__doc__ or "").split())
    assert "(C, H, W) -> (channels, H/stride, W/stride)" in text
    assert "arXiv" in text or block in ("identity", "conv"), "the recipe names its source"


def check_alike(ours: torch.nn.Conv2d, theirs: torch.nn.Conv2d, x: torch.Tensor) -> None:
    """The same outputs and gradients from the same weights."""
    theirs.load_state_dict(ours.state_dict())
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours(a).square().sum().backward()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(a.grad, b.grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2)])
def test_depthwise_convolutions_on_tiny_maps_are_torchs(size: int, kernel: int, stride: int) -> None:
    ours = DepthwiseConv2d(8, 8, kernel, stride, kernel // 2, groups=8, bias=False)
    theirs = torch.nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8, bias=False)
    check_alike(ours, theirs, torch.randn(4, 8, size, size))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_convolutions_on_small_maps_are_torchs(
    size: int, bias: bool, memory_format: torch.memory_format
) -> None:
    ours, theirs = PointwiseConv2d(6, 9, 1, bias=bias), torch.nn.Conv2d(6, 9, 1, bias=bias)
    x = torch.randn(4, 6, size, size).contiguous(memory_format=memory_format)
    check_alike(ours, theirs, x)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours.train()(x).dtype == torch.bfloat16


def test_squeeze_excite_counts_and_runs() -> None:
    arch = create("mobilenet_v1", width=0.25, resolution=32, block="inverted_residual", se=0.25)
    assert costs(arch).params == sum(p.numel() for p in build(arch).parameters())
    assert costs(arch).mult_adds == torch_mult_adds(arch)


BAD = [
    (
        {"resolution": 8},
        "resolution=8 is not possible: conv 3x3 stride 2 cannot be applied to a map of 1x1 pixels: too small",
    ),
    ({"resolution": 9}, "use 17 or more or a stem_stride of 1"),
    ({"resolution": 0}, "resolution=0 is not possible: it is a whole number at least 1"),
    ({"width": 0.01}, "width=0.01 is not possible: it leaves 32 channels with none; use 0.032 or more"),
    ({"width": float("nan")}, "width=nan is not possible"),
    ({"width": True}, "width=True is not possible: it is a number above 0"),
    ({"depth": "deep"}, "depth='deep' is not possible: a number above 0 that multiplies the blocks of a stage, or one"),
    ({"expand": 4}, "expand=4 is not possible: no block of this network takes it (blocks: separable)"),
    ({"kernel": 4}, "kernel=4 is not possible: kernels are odd: one of 1, 3, 5, 7"),
    ({"act": "gelu"}, "act='gelu' is not possible: known activations: relu, relu6, hswish, silu"),
    (
        {"block": "seperable"},
        "unknown block 'seperable'; did you mean separable? (known: separable, separable_plain, conv",
    ),
    ({"widht": 1}, "family mobilenet_v1 has no option 'widht'; did you mean width?"),
    ({"stages.3.expand": 2}, "block separable has no option 'stages.3.expand' (it has: act, bias, kernel, norm)"),
    ({"stages.6.kernel": 3}, "the network has stages 1 to 5"),
    ({"stages.3.kernl": 3}, "has no option 'stages.3.kernl'; did you mean kernel?"),
    ({"block": "inverted_residual", "se": 2}, "se=2 is not possible: squeeze-excite is a share"),
    ({"dropout": 1.0}, "dropout=1.0 is not possible: it is a number at least 0 and below 1"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_options_are_named(options: dict, text: str) -> None:
    with pytest.raises(MnetError) as caught:
        create("mobilenet_v1", **options)
    assert text in str(caught.value)


def test_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(
        MnetError, match=r"unknown family 'mobilenet_v9'; did you mean mobilenet_v2\? \(known: mobilenet_v1, mobil"
    ):
        create("mobilenet_v9")


def test_the_smallest_resolution_that_the_error_names_works() -> None:
    create("mobilenet_v1", resolution=17)
    with pytest.raises(OptionError):
        create("mobilenet_v1", resolution=16)
    create("mobilenet_v1", resolution=16, stem_stride=1)


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(OptionError, match="groups=3 is not possible: must divide both 8 input and 8 output channels"):
        Conv(Shape(8, 4, 4), 8, groups=3)


def test_a_residual_needs_equal_shapes() -> None:
    with pytest.raises(MnetError, match="equal shapes on both sides, got 8x4x4 and 16x4x4"):
        Residual(chain(Shape(8, 4, 4), conv=conv(16)))


def test_a_block_of_the_users_own_is_found_by_its_path() -> None:
    ours = create("mobilenet_v1", block="mnet_search.models.blocks:separable")
    assert ours.id == create("mobilenet_v1").id
    with pytest.raises(MnetError, match="cannot import nowhere_at_all"):
        create("mobilenet_v1", block="nowhere_at_all:block")
