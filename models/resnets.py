"""Residual networks: ResNet 18 for CIFAR, and ResNetV2 with pre-activation in its four depths.

To add a family, write the function and its row at the foot. Its keyword arguments are its options; it gives a Frame,
whose stages `create` fills by its table and by the options of single stages and blocks.
"""

from __future__ import annotations

from functools import partial

from mnet_search.models.arch import Layer, Norm, Shape
from mnet_search.models.layers import (
    activation,
    classifier,
    conv,
    conv_norm_act,
    max_pool,
    scale_channels,
)
from mnet_search.models.options import Family, check_choice, check_common, given
from mnet_search.models.stages import Frame, Options, Plan, Stage

RESNET18 = (Stage(64, 1, 2), Stage(128, 2, 2), Stage(256, 2, 2), Stage(512, 2, 2))


def resnet18(
    *,
    width: float = 1.0,
    resolution: int = 32,
    depth: float = 1.0,
    block: str = "residual",
    kernel: int | None = None,
    expand: float | None = None,
    se: float | None = None,
    act: str | None = None,
    stem: str = "cifar",
    stem_stride: int | None = None,
    head: str = "linear",
    dropout: float = 0.0,
    rounding: str = "plain",
    classes: int = 10,
    in_channels: int = 3,
) -> Frame:
    """conv 3x3 64, basic blocks 2, 2, 2, 2 of 64 to 512 channels, global pool, linear (He et al., arXiv 1512.03385,
    with the stem that is usual on CIFAR-10). (in_channels, resolution, resolution) -> (classes,).

    `stem` "imagenet" is the paper's 7x7/2 with max-pool 3/2. `stem_stride` None: 1 for cifar, 2 for imagenet.
    """
    check_choice("stem", stem, ("cifar", "imagenet"))
    stride = stem_stride if stem_stride is not None else (2 if stem == "imagenet" else 1)
    check_common(width=width, depth=depth, stem_stride=stride, dropout=dropout, rounding=rounding, head=head)
    asked = Options(given(kernel=kernel, expand=expand, se=se, act=act))
    channels, kernel_size = scale_channels(64, width, rounding), 7 if stem == "imagenet" else 3
    layers = {
        "stem": conv_norm_act(channels, kernel_size, stride, act=act or "relu"),
        "stem_pool": max_pool(3, 2, 1) if stem == "imagenet" else None,
    }
    tail = classifier(classes, head=head, dropout_rate=dropout)
    plan = Plan(block, asked, width, depth, rounding)
    return Frame(Shape(in_channels, resolution, resolution), layers, RESNET18, plan, tail)


def _bottlenecks(*units: int) -> tuple[Stage, ...]:
    """The stages of a ResNetV2: the stride 2 of stages 1 to 3 sits in the last unit of the stage, stage 4 has none."""
    strides, channels = (2, 2, 2, 1), (256, 512, 1024, 2048)
    return tuple(Stage(c, s, n, stride_last=True) for c, s, n in zip(channels, strides, units, strict=True))


def resnet_v2(
    table: tuple[Stage, ...],
    /,
    *,
    width: float = 1.0,
    resolution: int = 224,
    depth: float = 1.0,
    block: str = "bottleneck_v2",
    kernel: int | None = None,
    expand: float | None = None,
    se: float | None = None,
    act: str | None = None,
    stem: str = "imagenet",
    stem_stride: int | None = None,
    head: str = "conv",
    dropout: float = 0.0,
    rounding: str = "plain",
    classes: int = 1000,
    in_channels: int = 3,
) -> Frame:
    """conv 7x7/2 64 with bias, max-pool 3/2, bottlenecks of 256 to 2048 channels, BN, ReLU, global pool, 1x1 to the
    classes (He et al., arXiv 1603.05027). (in_channels, resolution, resolution) -> (classes,).

    `stem` "cifar" is a 3x3 convolution of stride 1 without pool.
    """
    check_choice("stem", stem, ("cifar", "imagenet"))
    stride = stem_stride if stem_stride is not None else (2 if stem == "imagenet" else 1)
    check_common(width=width, depth=depth, stem_stride=stride, dropout=dropout, rounding=rounding, head=head)
    asked = Options(given(kernel=kernel, expand=expand, se=se, act=act))
    layers = {
        "stem": conv(scale_channels(64, width, rounding), 7 if stem == "imagenet" else 3, stride, bias=True),
        "stem_pool": max_pool(3, 2, 1) if stem == "imagenet" else None,
    }
    head_layers = classifier(classes, head=head, dropout_rate=dropout)
    tail: dict[str, Layer | None] = {"norm": Norm, "act": activation(act or "relu"), **head_layers}
    plan = Plan(block, asked, width, depth, rounding)
    return Frame(Shape(in_channels, resolution, resolution), layers, table, plan, tail)


# He over the fan-in: variance_scaling in slim's ResNetV2; batch norm as there (decay 0.997, eps 1e-5).
FAMILIES: dict[str, Family] = {
    "resnet18": Family(resnet18),
    "resnet_v2_50": Family(partial(resnet_v2, _bottlenecks(3, 4, 6, 3)), norm_momentum=0.003),
    "resnet_v2_101": Family(partial(resnet_v2, _bottlenecks(3, 4, 23, 3)), norm_momentum=0.003),
    "resnet_v2_152": Family(partial(resnet_v2, _bottlenecks(3, 8, 36, 3)), norm_momentum=0.003),
    "resnet_v2_200": Family(partial(resnet_v2, _bottlenecks(3, 24, 36, 3)), norm_momentum=0.003),
}
