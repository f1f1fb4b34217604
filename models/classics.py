"""Networks that people build by hand on CIFAR-10, as their authors wrote them (TensorFlow and Keras: convolutions with
bias, and Keras' starting weights), and VGG 16 in its ImageNet form.

To add a family, write the function and its row at the foot. Its keyword arguments are its options.
"""

from __future__ import annotations

import math
from functools import partial

from mnet_search.models.arch import Chain, Flatten, Layer, Norm, Shape
from mnet_search.models.blocks import check_option, inception, separable
from mnet_search.models.layers import (
    activation,
    chain,
    classifier,
    conv,
    conv_norm_act,
    linear,
    max_pool,
    scale_channels,
)
from mnet_search.models.layers import dropout as dropout_layer
from mnet_search.models.options import Family, check_common, check_flag


def mobilenet_cifar(
    *,
    width: float = 1.0,
    resolution: int = 32,
    kernel: int = 3,
    act: str = "relu",
    stem_stride: int = 2,
    dropout: float = 0.0,
    classes: int = 10,
    in_channels: int = 3,
) -> Chain:
    """conv 3x3/2 32, four depthwise separable pairs to 256 channels (BN in the last two only), max-pool 2, flatten,
    linear: a small MobileNet for CIFAR-10 written in TensorFlow. (in_channels, resolution, resolution) -> (classes,).
    """
    check_common(width=width, dropout=dropout, stem_stride=stem_stride)
    check_option("kernel", kernel)
    layers: dict[str, Layer | None] = {}
    for number, (channels, stride, norm) in enumerate(
        [(64, 1, False), (128, 2, False), (128, 1, True), (256, 2, True)], start=1
    ):
        layers[f"pair{number}"] = partial(
            separable,
            channels=scale_channels(channels, width),
            stride=stride,
            kernel=kernel,
            act=act,
            norm=norm,
            bias=True,
        )
    return chain(
        Shape(in_channels, resolution, resolution),
        stem=conv_norm_act(scale_channels(32, width), 3, stem_stride, act=act, bias=True, norm=False),
        **layers,
        pool=max_pool(2, 2),
        flatten=Flatten,
        dropout=dropout_layer(dropout),
        classifier=linear(classes),
    )


def baseline(
    *,
    width: float = 1.0,
    resolution: int = 32,
    act: str = "relu",
    stem_stride: int = 1,
    dropout: float = 0.2,
    hidden: int = 128,
    classes: int = 10,
    in_channels: int = 3,
) -> Chain:
    """conv 5x5 6, BN, ReLU, max-pool 2, dropout, flatten, linear 128 ReLU, dropout, linear: the least that one calls a
    convolutional network. (in_channels, resolution, resolution) -> (classes,).
    """
    check_common(width=width, dropout=dropout, stem_stride=stem_stride, hidden=hidden)
    return chain(
        Shape(in_channels, resolution, resolution),
        stem=conv_norm_act(scale_channels(6, width), 5, stem_stride, act=act, bias=True),
        pool=max_pool(2, 2),
        dropout1=dropout_layer(dropout),
        flatten=Flatten,
        linear=linear(hidden),
        act=activation(act),
        dropout2=dropout_layer(dropout),
        classifier=linear(classes),
    )


def lenet5(
    *,
    width: float = 1.0,
    resolution: int = 32,
    act: str = "sigmoid",
    stem_stride: int = 1,
    dropout: float = 0.0,
    classes: int = 10,
    in_channels: int = 3,
) -> Chain:
    """conv 5x5 valid 6, pool 2, conv 5x5 valid 16, pool 2, linear 120, 84, classes, with sigmoids (LeCun et al. 1998,
    section II.B, with max-pooling). (in_channels, resolution, resolution) -> (classes,).
    """
    check_common(width=width, dropout=dropout, stem_stride=stem_stride)
    return chain(
        Shape(in_channels, resolution, resolution),
        conv1=conv(scale_channels(6, width), 5, stem_stride, bias=True, padding=0),
        act1=activation(act),
        pool1=max_pool(2, 2),
        conv2=conv(scale_channels(16, width), 5, bias=True, padding=0),
        act2=activation(act),
        pool2=max_pool(2, 2),
        flatten=Flatten,
        linear1=linear(scale_channels(120, width)),
        act3=activation(act),
        linear2=linear(scale_channels(84, width)),
        act4=activation(act),
        dropout=dropout_layer(dropout),
        classifier=linear(classes),
    )


def alexnet8(
    *,
    width: float = 1.0,
    resolution: int = 32,
    act: str = "relu",
    stem_stride: int = 1,
    dropout: float = 0.5,
    hidden: int = 2048,
    classes: int = 10,
    in_channels: int = 3,
) -> Chain:
    """Five 3x3 convolutions (96 and 256 valid with BN, 384, 384, 256), three max-pools 3/2, linear 2048 twice, linear:
    AlexNet cut to 32 pixels. (in_channels, resolution, resolution) -> (classes,).
    """
    check_common(width=width, dropout=dropout, stem_stride=stem_stride, hidden=hidden)

    def unit(channels: int, stride: int = 1, *, norm: bool = False) -> Layer:
        pad = 0 if norm else 1  # the two with batch norm are the two that pad nothing
        return partial(
            chain,
            conv=conv(scale_channels(channels, width), 3, stride, bias=True, padding=pad),
            norm=Norm if norm else None,
            act=activation(act),
        )

    return chain(
        Shape(in_channels, resolution, resolution),
        conv1=unit(96, stem_stride, norm=True),
        pool1=max_pool(3, 2),
        conv2=unit(256, norm=True),
        pool2=max_pool(3, 2),
        conv3=unit(384),
        conv4=unit(384),
        conv5=unit(256),
        pool3=max_pool(3, 2),
        flatten=Flatten,
        **_two_linear(hidden, act, dropout),
        classifier=linear(classes),
    )


def vgg16(
    *,
    width: float = 1.0,
    resolution: int = 32,
    depth: float = 1.0,
    act: str = "relu",
    norm: bool = True,
    stem_stride: int = 1,
    dropout: float = 0.2,
    conv_dropout: float = 0.2,
    hidden: int = 512,
    classes: int = 10,
    in_channels: int = 3,
) -> Chain:
    """13 3x3 convolutions in five groups of 64 to 512 channels, each group ended by a max-pool, linear twice, linear
    (Simonyan and Zisserman, arXiv 1409.1556, table 1 D, with BN). (in_channels, resolution, resolution) -> (classes,).

    `hidden` is the width of the two linear layers, `dropout` follows each of them and `conv_dropout` each pool; `depth`
    multiplies the convolutions of each group.
    """
    check_common(
        width=width, depth=depth, dropout=dropout, conv_dropout=conv_dropout, stem_stride=stem_stride, hidden=hidden
    )
    check_flag("norm", norm)
    layers: dict[str, Layer | None] = {}
    for group, (channels, repeats) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for place in range(1, math.ceil(repeats * depth - 1e-9) + 1):
            stride = stem_stride if group == place == 1 else 1
            layers[f"conv{group}_{place}"] = conv_norm_act(
                scale_channels(channels, width), 3, stride, act=act, bias=True, norm=norm
            )
        layers[f"pool{group}"] = max_pool(2, 2)
        layers[f"dropout{group}"] = dropout_layer(conv_dropout)
    return chain(
        Shape(in_channels, resolution, resolution),
        **layers,
        flatten=Flatten,
        **_two_linear(hidden, act, dropout),
        classifier=linear(classes),
    )


def inception10(
    *,
    width: float = 1.0,
    resolution: int = 32,
    depth: float = 1.0,
    act: str = "relu",
    stem_stride: int = 1,
    head: str = "linear",
    dropout: float = 0.0,
    bias: bool = True,
    classes: int = 10,
    in_channels: int = 3,
) -> Chain:
    """conv 3x3 16, two groups of two inception units of 64 and 128 channels, each group's first unit strided, global
    pool, linear (Szegedy et al., arXiv 1409.4842, cut to CIFAR-10). (in_channels, resolution, resolution) ->
    (classes,). `depth` multiplies the units of each group.
    """
    check_common(width=width, depth=depth, dropout=dropout, stem_stride=stem_stride, head=head)
    check_flag("bias", bias)
    layers: dict[str, Layer | None] = {}
    for group, channels in enumerate((16, 32), start=1):
        out = 4 * scale_channels(channels, width)
        for place in range(1, math.ceil(2 * depth - 1e-9) + 1):
            stride = 2 if place == 1 else 1
            layers[f"unit{group}_{place}"] = partial(inception, channels=out, stride=stride, act=act, bias=bias)
    return chain(
        Shape(in_channels, resolution, resolution),
        stem=conv_norm_act(scale_channels(16, width), 3, stem_stride, act=act, bias=bias),
        **layers,
        **classifier(classes, head=head, dropout_rate=dropout),
    )


def _two_linear(hidden: int, act: str, dropout: float) -> dict[str, Layer | None]:
    """linear, act, dropout, twice."""
    return {
        "linear1": linear(hidden),
        "act1": activation(act),
        "drop1": dropout_layer(dropout),
        "linear2": linear(hidden),
        "act2": activation(act),
        "drop2": dropout_layer(dropout),
    }


# Keras' layers start from Glorot's uniform distribution, and so does TensorFlow's own get_variable; batch norm has an
# eps of 0.001 and a momentum of 0.99 there.
_keras = partial(Family, init="glorot", norm_eps=1e-3, norm_momentum=0.01)

FAMILIES: dict[str, Family] = {
    "mobilenet_cifar": _keras(mobilenet_cifar),
    "baseline": _keras(baseline),
    "lenet5": Family(lenet5, init="glorot"),
    "alexnet8": _keras(alexnet8),
    "vgg16": _keras(vgg16),
    # The paper's network has no BN, dropout 0.5 after the two linear layers alone, and 4096 features in each.
    "vgg16_imagenet": Family(
        partial(vgg16, resolution=224, classes=1000, hidden=4096, norm=False, dropout=0.5, conv_dropout=0.0),
        init="he_fan_out",
    ),
    "inception10": _keras(inception10),
}
