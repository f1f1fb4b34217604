"""Every family, over a grid of options: the closed form is the module's, torch's own counter's, the published networks'
and the printed figures'.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnet_search.models.arch import Arch, MnetError, Norm, walk
from mnet_search.models.blocks import BLOCKS
from mnet_search.models.complexity import costs, layers, shares
from mnet_search.models.factory import INITIALISATIONS, build, to_module
from mnet_search.models.families import FAMILIES, INITS, create, options_of_family

from small_networks import SMALL

# One change at a time to the small networks.
VARIED: dict[str, Any] = {
    "depth": 1.5,
    "block": "separable",
    "kernel": 5,
    "act": "silu",
    "stem_stride": 1,
    "head": "conv",
    "head_channels": 100,
    "dropout": 0.3,
    "rounding": "plain",
    "in_channels": 1,
    "stem": "imagenet",
    "bias": False,
    "norm": False,
    "stages.2.depth": 2,
    "stages.2.width": 1.5,
    "stages.2.blocks.1": {"block": "fused_inverted_residual", "expand": 2, "se": 0.25},
}
# Trainable parameters (and those with batch-norm statistics) that the sources print.
PRINTED = {
    "baseline": (198_494, 198_506),
    "lenet5": (62_006, 62_006),
    "alexnet8": (9_638_474, 9_639_178),
    "resnet18": (11_173_962, None),
    # keras.applications.ResNet50V2 and so on, of the same structure.
    "resnet_v2_50": (25_568_360, 25_613_800),
    "resnet_v2_101": (44_577_896, 44_675_560),
    "resnet_v2_152": (60_236_904, 60_380_648),
    "mobilenet_v2": (3_504_872, None),
    "mobilenet_v3_small": (2_542_856, None),
    "mobilenet_v3_large": (5_483_032, None),
    "mobilenet_v1": (4_231_976, None),
}
TIMM = [
    ("mobilenetv1_100", "mobilenet_v1", {}),
    ("mobilenetv1_125", "mobilenet_v1", {"width": 1.25, "rounding": "divisible"}),
    ("mobilenetv2_035", "mobilenet_v2", {"width": 0.35}),
    ("mobilenetv2_050", "mobilenet_v2", {"width": 0.5}),
    ("mobilenetv2_140", "mobilenet_v2", {"width": 1.4}),
    ("mobilenetv3_small_100", "mobilenet_v3_small", {}),
    ("mobilenetv3_large_100", "mobilenet_v3_large", {}),
    # not its mobilenetv3_*_075 and _050: timm rounds the expansion of the scaled width, torchvision scales the table's
    ("vgg16", "vgg16_imagenet", {}),
    ("vgg16_bn", "vgg16_imagenet", {"norm": True}),
    ("resnet18", "resnet18", {"stem": "imagenet", "resolution": 224, "classes": 1000}),
]
TORCHVISION = [
    ("mobilenet_v2", {"width_mult": 0.75}, "mobilenet_v2", {"width": 0.75}),
    ("mobilenet_v3_small", {"width_mult": 0.75}, "mobilenet_v3_small", {"width": 0.75}),
    ("mobilenet_v3_large", {"width_mult": 0.5}, "mobilenet_v3_large", {"width": 0.5}),
    ("resnet18", {}, "resnet18", {"stem": "imagenet", "resolution": 224, "classes": 1000}),
    ("vgg16", {}, "vgg16_imagenet", {}),
]


def grid(family: str) -> list[dict[str, Any]]:
    """The small network, and one for each option of VARIED that the family has."""
    small = SMALL[family]
    if family in ("resnet_v2_101", "resnet_v2_152", "resnet_v2_200"):
        return [small]  # the function of resnet_v2_50, with more units
    known = options_of_family(family)
    has_stages = "block" in known
    varied = [{name: value} for name, value in VARIED.items() if name in known or (has_stages and "." in name)]
    return [small, *({**small, **change} for change in varied)]


CASES = [pytest.param(f, o, id=f"{f}-{list(o)[-1] if o else 'plain'}") for f in SMALL for o in grid(f)]


def meta_module(arch: Arch) -> nn.Module:
    """The module without memory for its weights."""
    with torch.device("meta"):
        return to_module(arch.root).eval()


def torch_mult_adds(module: nn.Module, arch: Arch) -> int:
    """torch's own count: 2 per multiply-add."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        module(torch.empty(1, *arch.input))
    return counter.get_total_flops() // 2


def test_the_grid_covers_every_family() -> None:
    assert set(SMALL) == set(FAMILIES)


@pytest.mark.parametrize(("family", "options"), CASES)
def test_costs_are_the_modules_and_torchs(family: str, options: dict) -> None:
    arch = create(family, **{"classes": 10, **options})
    module, found = meta_module(arch), costs(arch)
    assert found.params == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert found.mult_adds == torch_mult_adds(module, arch)
    stored = sum(t.numel() * t.element_size() for t in module.state_dict().values() if t.is_floating_point())
    assert found.weight_bytes == stored
    assert found.params == sum(row.costs.params for row in layers(arch))
    assert found.mult_adds == sum(row.costs.mult_adds for row in layers(arch))
    assert found.activations == sum(row.costs.activations for row in layers(arch))


@pytest.mark.parametrize("family", sorted(SMALL))
def test_every_family_trains_one_step_and_its_shapes_are_the_descriptions(family: str) -> None:
    arch = create(family, **{**SMALL[family], "classes": 4})
    module = build(arch).train()
    seen: dict[str, tuple[int, ...]] = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, tuple(out.shape[1:])))
    loss = torch.nn.functional.cross_entropy(module(torch.randn(2, *arch.input)), torch.tensor([0, 3]))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    for name, node in walk(arch.root):
        assert seen[name] in {tuple(node.output), (node.output.channels,)}, name


@pytest.mark.parametrize("family", sorted(PRINTED))
def test_params_are_the_printed_ones(family: str) -> None:
    trainable, with_statistics = PRINTED[family]
    arch = create(family)
    assert costs(arch).params == trainable
    if with_statistics is not None:
        assert costs(arch).weight_bytes == 4 * with_statistics


@pytest.mark.parametrize(("published", "family", "options"), TIMM)
def test_timms_networks_are_ours(published: str, family: str, options: dict) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(published).eval()
    same_network(theirs, create(family, **options))


@pytest.mark.parametrize(("published", "arguments", "family", "options"), TORCHVISION)
def test_torchvisions_networks_are_ours(published: str, arguments: dict, family: str, options: dict) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(published, weights=None, **arguments).eval()
    same_network(theirs, create(family, **options))


def same_network(theirs: nn.Module, arch: Arch) -> None:
    """Weights of the same sizes, and the same mult-adds."""
    ours = meta_module(arch)
    weights = [sorted(p.numel() for p in m.parameters()) for m in (theirs, ours)]
    assert weights[0] == weights[1]
    assert costs(arch).mult_adds == torch_mult_adds(theirs, arch)


def test_timms_resnet_v2_lacks_only_the_biases() -> None:
    """slim's, and ours, has them where no batch norm follows; timm's has none and strides at another place."""
    arch = create("resnet_v2_50")
    with torch.device("meta"):
        theirs = sum(p.numel() for p in timm.create_model("resnetv2_50").parameters())
    biases = sum(node.bias * node.channels for name, node in walk(arch.root) if hasattr(node, "groups"))
    assert costs(arch).params - theirs == biases - 1000  # the classifier's own bias is in both


def test_vgg_16_for_imagenet_has_the_papers_138_m_params_and_15_3_g_mult_adds() -> None:
    found = costs(create("vgg16_imagenet"))
    assert (found.params, found.mult_adds) == (138_357_544, 15_470_264_320)
    # Printed: 15300 M (MobileNetV1, table 8). The exact sum is 15,470 M; convolutions alone are 15,347 M.
    convs = sum(r.costs.mult_adds for r in layers(create("vgg16_imagenet")) if r.kind.startswith("conv"))
    assert round(convs / 1e6) == 15_347


def test_table_2_shares_are_the_papers() -> None:
    found = shares(list(layers(create("mobilenet_v1"))))
    percent = {kind: (round(100 * a, 2), round(100 * w, 2)) for kind, (a, w) in found.items()}
    assert percent == {
        "1x1 conv": (94.86, 74.59),
        "depthwise conv": (3.06, 1.06),
        "full conv": (1.91, 0.02),  # the paper prints 1.19, and its four figures add up to 99.29
        "linear": (0.18, 24.33),
    }


def test_the_last_bottleneck_of_a_resnet_v2_stage_carries_the_stride() -> None:
    sizes = [r.output.height for r in layers(create("resnet_v2_50")) if r.name.endswith("conv2.conv")]
    assert sizes == [56, 56, 28, *[28] * 3, 14, *[14] * 5, 7, 7, 7, 7]


def test_mobilenet_cifar_flattens_1024_features() -> None:
    rows = {r.name: r for r in layers(create("mobilenet_cifar"))}
    assert rows["classifier"].input.elements == 1024
    assert [r.name for r in rows.values() if r.kind == "norm"] == [
        f"pair{n}.{part}.norm" for n in (3, 4) for part in ("depthwise", "pointwise")
    ]


def test_norm_options_reach_every_norm_and_the_module() -> None:
    arch = create("mobilenet_v1", width=0.25, resolution=32, norm_eps=1e-3, norm_momentum=0.01)
    assert all((n.eps, n.momentum) == (1e-3, 0.01) for _, n in walk(arch.root) if isinstance(n, Norm))
    module = build(create("mobilenet_v3_small", resolution=32, width=0.5))
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all((m.eps, m.momentum) == (1e-3, 0.01) for m in norms)


@pytest.mark.parametrize("init", INITS)
def test_initialisations_have_the_spread_of_their_formula(init: str) -> None:
    module = build(create("mobilenet_v1", resolution=32, init=init))
    weight = module.state_dict()["stage4.block3.pointwise.conv.weight"]  # 512 x 512 x 1 x 1
    sd = {"he_fan_in": (2 / 512) ** 0.5, "he_fan_out": (2 / 512) ** 0.5, "glorot": (2 / 1024) ** 0.5}
    assert float(weight.std()) == pytest.approx(sd.get(init, (1 / (3 * 512)) ** 0.5), rel=0.02)
    depthwise = module.state_dict()["stage4.block3.depthwise.conv.weight"]  # 512 x 1 x 3 x 3: fan-in 9, fan-out 4608
    assert float(depthwise.std()) == pytest.approx(
        {
            "he_fan_in": (2 / 9) ** 0.5,
            "he_fan_out": (2 / 4608) ** 0.5,
            "glorot": (2 / (9 + 4608)) ** 0.5,
            "torch": (1 / 27) ** 0.5,
        }[init],
        rel=0.05,
    )


def test_the_names_of_the_initialisations_are_the_factorys() -> None:
    assert set(INITS) == set(INITIALISATIONS)


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_can_be_chosen_for_a_stage(block: str) -> None:
    arch = create("staged", width=0.25, resolution=16, **{"stages.2.block": block})
    assert costs(arch).params == sum(p.numel() for p in meta_module(arch).parameters())
    assert build(arch).eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


BAD = [
    ("inception10", {"width": 0.01}, "width=0.01 is not possible: it leaves 16 channels with none; use 0.063 or more"),
    ("staged", {"stages.1.block": "inception", "stages.1.channels": 66, "rounding": "plain"}, "channels=66 is not"),
    ("staged", {"stages.5.channels": 8}, "stages.5={'channels': 8} is not possible: the network has stages 1 to 3; a"),
    ("mobilenet_v1", {"block": ["conv"]}, "block=['conv'] is not possible: it is the name of one: separable, "),
    ("mobilenet_v1", {"block": None}, "block=None is not possible: it is the name of one: separable, "),
    (
        "mobilenet_v1",
        {"stages.1.block": {"block": "conv"}},
        "stages.1.block={'block': 'conv'} is not possible: it is the",
    ),
    ("mobilenet_v1", {"stages.1.blocks.1.block": ["conv"]}, "stages.1.blocks.1.block=['conv'] is not possible: it is"),
    ("mobilenet_v1", {"stages.1.blocks.1": ["conv"]}, "stages.1.blocks.1=['conv'] is not possible: it takes a mapping"),
    (
        "mobilenet_v1",
        {"stages.1.blocks": "conv"},
        "stages.1.blocks='conv' is not possible: it takes a mapping of places",
    ),
    (
        "mobilenet_v1",
        {"stages.1": {"blocks": [1]}},
        "stages.1.blocks=[1] is not possible: it takes a mapping of places",
    ),
    (
        "mobilenet_v1",
        {"stages.1.depth": 10**6},
        "stages.1.depth=1000000 is not possible: it is a whole number at least 1 and",
    ),
    ("mobilenet_v1", {"stages.01.kernel": 5}, "family mobilenet_v1 has no option 'stages.01.kernel'"),
    (
        "mobilenet_v1",
        {"stages.1": {"kernel": 5}, "stages.1.kernel": 3},
        "'kernel' is given twice; leave one of them out",
    ),
    ("mobilenet_v1", {"stages.1.kernel": None}, "stages.1.kernel=None is not possible: kernels are odd"),
    ("mobilenet_v1", {"stages.1.blocks.1.bias": 1}, "stages.1.blocks.1.bias=1 is not possible: it is true or false"),
    (
        "mobilenet_v1",
        {"block": "inception", "width": 0.3},
        "width=0.3 is not possible: it gives stage 1 19 channels: an ",
    ),
    ("mobilenet_v1", {"width": 1e300}, "width=1e+300 is not possible: it is a number above 0 and below 1e+09"),
    (
        "mobilenet_v2",
        {"expand": 0.001},
        "expand=0.001 is not possible: it leaves 16 channels with none; use 0.0625 or more",
    ),
    ("inception10", {"bias": 1}, "bias=1 is not possible: it is true or false"),
    ("vgg16", {"norm": "no"}, "norm='no' is not possible: it is true or false"),
    ("os:system", {}, "family 'os:system': its option 'command' has no default; the options of a family all have one"),
    ("os:getcwd", {}, "which is no network; it should give a Chain or a Frame"),
    ("mobilenet_cifar", {"kernel": 4}, "kernel=4 is not possible: kernels are odd"),
    ("mobilenet_cifar", {"kernel": True}, "kernel=True is not possible: kernels are odd"),
    ("staged", {"stem_kernel": 3.0}, "stem_kernel=3.0 is not possible: it is a whole number"),
    ("staged", {"stem_kernel": 4}, "stem_kernel=4 is not possible: one of 1, 3, 5, 7"),
    ("lenet5", {"norm_eps": 0.01}, "norm_eps=0.01 is not possible: this network has no batch norm; leave it out"),
    ("mobilenet_v2", {"stages.2.blocks.0.kernel": 5}, "family mobilenet_v2 has no option 'stages.2.blocks.0.kernel'"),
    ("mobilenet_v2", {"stages.2.hidden": 64, "stages.2.expand": 3}, "hidden=64 is not possible: it says what `expand`"),
    ("mobilenet_v2", {"stages.2.block": "bottleneck_v2", "stages.2.shrink": None}, "shrink=None is not possible"),
    ("os:sep", {}, "family 'os:sep': it is no function; write one of a network's options"),
    ("staged", {"stages.1.blocks.3": {"block": "conv"}}, "is not possible: stage 1 has 2 blocks"),
    (
        "staged",
        {"stages.1.blocks.1": {"block": "conv", "expand": 2}},
        "block conv has no option 'stages.1.blocks.1.exp",
    ),
    ("staged", {"stages.1.blocks.1.expand": -1}, "expand=-1 is not possible: the expansion is a number above 0"),
    ("staged", {"stages.1.blocks.1": "conv"}, "='conv' is not possible: it takes a mapping such as"),
    ("staged", {"stages.1.block": "identity", "stages.1.kernel": 3}, "block identity has no option 'stages.1.kernel'"),
    ("staged", {"stages.1.depth": 0}, "stages.1.depth=0 is not possible: it is a whole number at least 1"),
    ("mobilenet_v2", {"stages.2.width": 0.0}, "stages.2.width=0.0 is not possible: it is a number above 0"),
    (
        "mobilenet_v1",
        {"stages.2.width": 0.001},
        "stages.2.width=0.001 is not possible: it leaves 128 channels",
    ),
    ("mobilenet_v1", {"resolution": 10}, "use 17 or more or a stem_stride of 1"),
    ("mobilenet_v2", {"depth": "shallow"}, "depth='shallow' is not possible: a number above 0 that multiplies"),
    ("mobilenet_v2", {"rounding": "up"}, "rounding='up' is not possible: one of plain, divisible"),
    ("mobilenet_v3_small", {"init": "zeros"}, "init='zeros' is not possible: one of torch, he_fan_in, he_fan_out"),
    ("lenet5", {"depth": 2}, "family lenet5 has no option 'depth'"),
    ("lenet5", {"stages.1.depth": 2}, "family lenet5 has no option 'stages.1.depth'"),
    ("lenet5", {"resolution": 11}, "use 16 or more"),
    ("lenet5", {"act": "tanh"}, "act='tanh' is not possible: known activations"),
    ("vgg16", {"resolution": 16}, "resolution=16 is not possible: max pool 2x2 stride 2 cannot be applied to a map of"),
    ("vgg16", {"hidden": 0}, "hidden=0 is not possible: it is a whole number at least 1"),
    ("resnet18", {"stem": "big"}, "stem='big' is not possible: one of cifar, imagenet"),
    ("resnet_v2_50", {"width": 0.001}, "width=0.001 is not possible: it leaves"),
    ("resnet_v2_50", {"norm_eps": 0}, "norm_eps=0 is not possible: it is a number above 0 and below 1"),
]


@pytest.mark.parametrize(("family", "options", "text"), BAD)
def test_bad_options_are_named(family: str, options: dict, text: str) -> None:
    with pytest.raises(MnetError) as caught:
        create(family, **options)
    assert text in str(caught.value)


def test_a_value_of_another_type_is_another_value_to_the_caches() -> None:
    """True, 1 and 1.0 are equal keys of a dict, but not equal options."""
    create("mobilenet_v1", kernel=3, width=1, **{"stages.2.kernel": 3})
    for bad in ({"kernel": 3.0}, {"width": True}, {"stages.2.kernel": 3.0}, {"stages.2.blocks.1": {"kernel": 3.0}}):
        with pytest.raises(MnetError, match="is not possible"):
            create("mobilenet_v1", **bad)


def test_places_may_be_given_one_by_one_or_together() -> None:
    one = create("staged", **{"stages.1.blocks.2.block": "conv", "stages.1.blocks.2.kernel": 5})
    conv = {"block": "conv", "kernel": 5}
    for options in ({"stages.1.blocks.2": conv}, {"stages.1.blocks": {2: conv}}, {"stages.1": {"blocks": {"2": conv}}}):
        assert create("staged", **options).id == one.id


# A value of every option that is no family's default.
OTHER: dict[str, Any] = {
    "width": 0.5,
    "resolution": 97,
    "depth": 2.0,
    "block": "fused_inverted_residual",
    "kernel": 5,
    "expand": 3,
    "se": 0.5,
    "act": "silu",
    "stem_stride": 1,
    "dropout": 0.37,
    "classes": 7,
    "in_channels": 1,
    "hidden": 99,
    "head_channels": 64,
    "stem_channels": 24,
    "stem_kernel": 5,
    "conv_dropout": 0.11,
    "init": "he_fan_in",
    "norm_eps": 0.01,
    "norm_momentum": 0.3,
}
EITHER = {"head": ("linear", "conv"), "stem": ("cifar", "imagenet"), "rounding": ("plain", "divisible")}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_option_changes_the_network_or_is_refused(family: str) -> None:
    for option, default in options_of_family(family).items():
        values = EITHER.get(option, (True, False) if isinstance(default, bool) else (OTHER.get(option),))
        if option == "stem_stride" and default != 2 and options_of_family(family).get("stem") != "imagenet":
            values = (2,)
        rest = {"width": 0.3} if option == "rounding" else {}
        value = next(v for v in values if v != default)
        try:
            changed = create(family, **rest, **{option: value})
        except MnetError as error:
            assert option in {"expand", "se", "norm_eps", "norm_momentum"} or "for the strides" in str(error), error
            continue
        assert changed.id != create(family, **rest).id, option
        assert changed.options[option] == value


def test_a_place_stands_above_its_stage() -> None:
    """`hidden` and `expand` say the same; the nearer one counts."""
    stage = {"stages.2.hidden": 64}
    place = create("mobilenet_v2", **stage, **{"stages.2.blocks.1.expand": 3})
    hidden = create("mobilenet_v2", **stage)
    assert place.id != hidden.id
    rows = {row.name: row for row in layers(place)}
    assert rows["stage2.block1.expand.conv"].output.channels == 3 * 16
    assert rows["stage2.block2.expand.conv"].output.channels == 64


def test_the_dropout_that_torchvision_has_is_no_other_network() -> None:
    plain = create("torchvision:squeezenet1_1")
    assert create("torchvision:squeezenet1_1", dropout=0.5).id == plain.id
    assert create("torchvision:squeezenet1_1", dropout=0).id == create("torchvision:squeezenet1_1", dropout=0.0).id
    assert create("torchvision:squeezenet1_1", dropout=0).id != plain.id


@pytest.mark.parametrize(("family", "options"), CASES)
def test_the_options_that_a_network_keeps_build_it_again(family: str, options: dict) -> None:
    """As jobs, studies and exported configs do, through JSON."""
    arch = create(family, **{"classes": 10, **options})
    again = json.loads(json.dumps(arch.to_json()))
    assert create(again["family"], **again["options"]).id == again["arch_id"] == arch.id


def test_a_stem_stride_is_proposed_only_where_it_helps() -> None:
    with pytest.raises(MnetError) as caught:
        create("mobilenet_v1", resolution=2)
    assert str(caught.value).endswith("use 17 or more")
    create("mobilenet_v1", resolution=10, stem_stride=1)
