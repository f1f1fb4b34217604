"""torchvision's classifiers are built, counted and read as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnet_search.models.arch import External, MnetError, OptionError, Shape
from mnet_search.models.traced import (
    build_external,
    build_torchvision,
    check_torchvision_name,
    classifiers,
    external_costs,
    external_layers,
    survey,
    trace,
)

IMAGE = Shape(3, 224, 224)
# Params as torchvision's documentation prints them, googlenet without its two auxiliary heads, and mult-adds at 224.
PUBLISHED = [
    ("squeezenet1_0", 1_248_424, 818_924_576),
    ("squeezenet1_1", 1_235_496, 349_151_936),
    ("googlenet", 6_624_904, 1_498_376_192),
    ("alexnet", 61_100_840, 714_188_480),
    ("vgg16", 138_357_544, 15_470_264_320),
    ("resnet18", 11_689_512, 1_814_073_344),
    ("mobilenet_v2", 3_504_872, 300_774_272),
    ("mobilenet_v3_small", 2_542_856, 56_510_400),
    ("mobilenet_v3_large", 5_483_032, 216_589_760),
]
# One of each family. With attention: what FlopCounterMode's mm and addmm count, which are the linear layers.
MEMBERS = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
    "wide_resnet50_2",
]


def weights_mult_adds(module: nn.Module, shape: Shape) -> int:
    """torch's count of convolutions and linear layers, half of its flops; attention's products (bmm, sdpa) left out."""
    counter = FlopCounterMode(display=False)
    with counter:
        module.eval().to("meta")(torch.empty(1, *(shape.channels, shape.height, shape.width), device="meta"))
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if "bmm" not in str(op) and "scaled_dot" not in str(op)) // 2


# ---------------------------------------------------------------- building and counting


@pytest.mark.parametrize(("name", "params", "mult_adds"), PUBLISHED)
def test_published_figures(name: str, params: int, mult_adds: int) -> None:
    found = survey(build_torchvision(name, meta=True), IMAGE)
    assert (found.params, found.mult_adds) == (params, mult_adds)


def test_rows_of_the_mobilenet_paper() -> None:
    """arXiv 1704.04861, tables 8 and 9, M mult-adds and M params; what is printed beside what adds up."""
    vgg = survey(build_torchvision("vgg16", meta=True), IMAGE)  # printed: 15300, 138
    linear = sum(row.mult_adds for row in vgg.layers if row.kind == "linear")
    assert vgg.mult_adds - linear == 15_346_630_656  # so without the 124 M of the linear layers, cut

    squeezenet = build_torchvision("squeezenet1_0", meta=True)  # printed: 1700, 1.25
    squeezenet.classifier[1] = nn.Conv2d(512, 1000, 1, padding=1)  # as its authors' Caffe file has it, at 227
    found = survey(squeezenet, Shape(3, 227, 227))
    assert (found.mult_adds, found.params) == (861_339_936, 1_248_424)  # so 2 for each multiply-add: 1723

    alexnet = survey(alexnet_2012(), Shape(3, 227, 227))  # printed: 720, 60
    assert (alexnet.mult_adds, alexnet.params) == (724_406_816, 60_965_224)  # torchvision's has no groups: 714, 61.1

    googlenet = build_torchvision("googlenet", meta=True)  # printed: 1550, 6.8
    for part in googlenet.modules():
        if type(part).__name__ == "Inception":  # torchvision's 5x5 branch is of 3x3, which gives 1498 and 6.62
            conv = part.branch3[1].conv
            part.branch3[1].conv = nn.Conv2d(conv.in_channels, conv.out_channels, 5, padding=2, bias=False)
    found = survey(googlenet, IMAGE)
    assert (found.mult_adds, found.params) == (1_582_671_872, 7_005_832)  # the print lies between the two


def alexnet_2012() -> nn.Module:
    """Krizhevsky et al. 2012: two towers, hence the groups."""
    pool = nn.MaxPool2d(3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4), pool, nn.Conv2d(96, 256, 5, padding=2, groups=2), pool),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.Conv2d(384, 384, 3, padding=1, groups=2)),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), pool, nn.Flatten()),
        *(nn.Linear(a, b, device="meta") for a, b in ((9216, 4096), (4096, 4096), (4096, 1000))),
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_every_family_is_counted_as_torch_counts_it(name: str) -> None:
    module = build_torchvision(name, classes=10, meta=True)
    found = survey(module, IMAGE)
    assert found.mult_adds == weights_mult_adds(module, IMAGE)
    assert found.mult_adds == sum(layer.mult_adds for layer in found.layers)
    assert found.params == sum(p.numel() for p in module.parameters())
    assert found.params >= sum(layer.params for layer in found.layers)  # the rest: class tokens, layer scales, tables
    assert found.layers[-1].output == Shape(10)
    assert (found.receptive_field is None) == name.startswith(("maxvit", "swin", "vit"))


def test_the_members_are_of_all_families() -> None:
    def stem(name: str) -> str:
        return name.split("_")[0].rstrip("0123456789")

    assert {stem(name) for name in classifiers()} == {stem(name) for name in MEMBERS}


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_trains_one_step(name: str) -> None:
    module = build_torchvision(name, classes=10, in_channels=1).train()
    logits = module(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 10)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_no_auxiliary_heads_in_training_either() -> None:
    with torch.no_grad():
        assert build_torchvision("googlenet", classes=4).train()(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def test_googlenet_starts_as_torchvision_says() -> None:
    torch.manual_seed(0)
    assert build_torchvision("googlenet").fc.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_a_first_convolution_for_other_channels_keeps_settings_and_response() -> None:
    torch.manual_seed(0)
    old, new = build_torchvision("resnet18").conv1, build_torchvision("resnet18", in_channels=1).conv1
    assert (new.kernel_size, new.stride, new.padding, new.bias) == (old.kernel_size, old.stride, old.padding, None)
    assert new.weight.shape == (64, 1, 7, 7)
    fan_in_deviation = new.weight.std() / (old.weight.std() * 3**0.5)
    assert fan_in_deviation.item() == pytest.approx(1, rel=0.1)
    assert torch.equal(
        build_torchvision("squeezenet1_1", in_channels=5).features[0].bias,
        build_torchvision("squeezenet1_1").features[0].bias,
    )


def test_dropout_goes_to_the_layers_that_are_there() -> None:
    rates = {m.p for m in build_torchvision("alexnet", dropout=0.3, meta=True).modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.3}


def test_a_transformer_is_built_for_its_resolution() -> None:
    module = build_torchvision("vit_b_32", resolution=64, meta=True)
    assert survey(module, Shape(3, 64, 64)).layers[0].output == Shape(768, 2, 2)


def test_meta_builds_shapes_alone() -> None:
    for name in ("regnet_y_128gf", "vit_h_14"):
        assert all(p.is_meta for p in build_torchvision(name, meta=True).parameters())


def test_a_trace_leaves_the_module_as_it_was() -> None:
    module = build_torchvision("squeezenet1_1").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    survey(module, Shape(3, 32, 32))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# ---------------------------------------------------------------- layers


def test_rows_of_mobilenet_v2() -> None:
    rows = {layer.name: layer for layer in trace(build_torchvision("mobilenet_v2", meta=True), IMAGE)}
    stem = rows["features.0.0"]
    assert (stem.kind, stem.input, stem.output) == ("conv 3x3/2", IMAGE, Shape(32, 112, 112))
    assert (stem.kernel, stem.stride, stem.groups) == ((3, 3), (2, 2), 1)
    assert (stem.params, stem.mult_adds, stem.activations) == (27 * 32, 27 * 32 * 112**2, 32 * 112**2)
    depthwise = rows["features.1.conv.0.0"]
    assert (depthwise.kind, depthwise.groups, depthwise.mult_adds) == ("depthwise 3x3", 32, 9 * 32 * 112**2)
    assert (rows["features.0.1"].kind, rows["features.0.1"].params) == ("norm", 64)
    assert (rows["features.0.2"].kind, rows["features.0.2"].mult_adds) == ("act", 0)
    linear = rows["classifier.1"]
    assert (linear.kind, linear.input, linear.output, linear.params) == ("linear", Shape(1280), Shape(1000), 1_281_000)


def test_functions_are_rows_under_their_module() -> None:
    rows = {layer.name: layer for layer in trace(build_torchvision("googlenet", meta=True), IMAGE)}
    assert rows["conv1.relu"].kind == "act"
    pool = rows["maxpool1"]
    assert (pool.kind, pool.kernel, pool.stride, pool.output) == ("pool", (3, 3), (2, 2), Shape(64, 56, 56))


def test_attention_is_its_projections() -> None:
    rows = {row.name: row for row in trace(build_torchvision("vit_b_32", meta=True), IMAGE)}
    first = rows["encoder.layers.encoder_layer_0.self_attention.in_proj"]
    assert (first.input, first.output) == (Shape(768, 50), Shape(3 * 768, 50))  # 7 x 7 patches and the class token
    assert (first.mult_adds, first.params) == (50 * 768 * 3 * 768, 769 * 3 * 768)
    rows = {row.name: row for row in trace(build_torchvision("swin_t", meta=True), Shape(3, 32, 32))}
    # a map of 8 x 8 is padded to windows of 7: 14 x 14 tokens
    assert rows["features.1.0.attn.qkv"].mult_adds == 14 * 14 * 96 * 3 * 96
    assert rows["features.1.0.mlp.1"].output == Shape(4 * 96, 8, 8)  # channels last inside, channels first here


def test_a_module_that_runs_twice_has_its_params_once() -> None:
    conv = nn.Conv2d(3, 3, 1)
    found = survey(nn.Sequential(conv, nn.ReLU(), conv), Shape(3, 4, 4))
    assert [row.params for row in found.layers] == [12, 0, 0]
    assert (found.params, found.mult_adds) == (12, 2 * 9 * 16)


def test_an_external_node_is_its_network() -> None:
    node = External(Shape(1, 64, 64), "torchvision:resnet18", 10)
    found, module = external_costs(node), build_external(node)
    assert module(torch.zeros(1, 1, 64, 64)).shape == (1, 10)
    saved = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert found.params == sum(p.numel() for p in module.parameters())
    assert found.weight_bytes == 4 * sum(value.numel() for value in saved.values())
    assert found.mult_adds == survey(module, node.input).mult_adds
    rows = list(external_layers(node))
    assert sum(row.costs.mult_adds for row in rows) == found.mult_adds
    assert (rows[0].stage, rows[0].kind, rows[0].weights) == ("conv1", "conv 7x7/2", 64 * 49)
    assert external_costs(External(IMAGE, "torchvision:vit_b_32", 10)).receptive_field == 0
    dropout = build_external(External(Shape(3, 64, 64), "torchvision:squeezenet1_1", 10, (("dropout", 0.1),)))
    assert [part.p for part in dropout.modules() if isinstance(part, nn.Dropout)] == [0.1]


def test_frozen_parameters_are_not_counted() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False))
    module[0].requires_grad_(False)
    found = survey(module, Shape(3, 4, 4))
    assert (found.params, [row.params for row in found.layers]) == (8, [0, 8])


# ---------------------------------------------------------------- errors


TOO_SMALL = [
    ("alexnet", Shape(3, 32, 32), "resolution=32 is not possible: AlexNet cannot take it at features.12: "),
    ("alexnet", Shape(3, 32, 32), "use 63 or more"),
    ("alexnet", Shape(3, 32, 64), "resolution='32x64' is not possible"),
    ("inception_v3", Shape(3, 74, 74), "use 75 or more"),
    ("vit_b_32", Shape(3, 32, 32), "Wrong image height! Expected 224; use the resolution it was built for"),
    ("alexnet", Shape(1, 224, 224), "in_channels=1 is not possible: AlexNet was built for 3"),
]


@pytest.mark.parametrize(("name", "shape", "text"), TOO_SMALL)
def test_an_input_that_cannot_be_is_named(name: str, shape: Shape, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        survey(build_torchvision(name, meta=True), shape)
    assert text in str(caught.value)


def test_the_smallest_resolution_that_the_error_names_works() -> None:
    module = build_torchvision("alexnet", meta=True)
    assert survey(module, Shape(3, 63, 63)).layers[-1].output == Shape(1000)
    with pytest.raises(OptionError, match="resolution=62"):
        survey(module, Shape(3, 62, 62))


BAD = [
    ({"name": "resnet19"}, "unknown torchvision classifier 'resnet19'; did you mean resnet18? ("),
    ({"name": "ResNet18"}, "unknown torchvision classifier 'ResNet18'; did you mean resnet18? ("),
    ({"name": "fcn_resnet50"}, "torchvision.models.list_models(module=torchvision.models) lists all)"),
    ({"name": "alexnet", "classes": 0}, "classes=0 is not possible: it is a whole number at least 1"),
    ({"name": "alexnet", "in_channels": True}, "in_channels=True is not possible"),
    ({"name": "alexnet", "dropout": 1.0}, "dropout=1.0 is not possible: it is a number at least 0 and below 1"),
    ({"name": "resnet18", "dropout": 0.1}, "dropout=0.1 is not possible: torchvision's resnet18 has no dropout layer"),
    ({"name": "vit_b_16", "resolution": 33}, "resolution=33 is not possible: vit_b_16 cannot be built for it: "),
    ({"name": "maxvit_t", "resolution": 0}, "resolution=0 is not possible: it is a whole number at least 1"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_options_are_named(options: dict, text: str) -> None:
    with pytest.raises(MnetError) as caught:
        build_torchvision(**options, meta=True)
    assert text in str(caught.value)


def test_a_name_can_be_checked_alone() -> None:
    check_torchvision_name("googlenet")
    with pytest.raises(MnetError, match="did you mean googlenet"):
        check_torchvision_name("googlenett")
