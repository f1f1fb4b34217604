"""Layers: functions from the shape that comes in to the node that takes it (`Shape -> Node`), and how widths round.

`chain` threads a shape through a row of layers. The keyword under which a layer is given is its label, and the labels
on the way down are the module's state-dict names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

from mnet_search.models.arch import (
    Act,
    Branches,
    Chain,
    Conv,
    Dropout,
    Flatten,
    Layer,
    Linear,
    Node,
    Norm,
    OptionError,
    Pool,
    Residual,
    Scale,
    Shape,
)


def chain(shape: Shape, **layers: Layer | None) -> Chain:
    """Thread `shape` through the layers in order; a layer that is None, or gives a node that does nothing, is left
    out.
    """
    children: list[tuple[str, Node]] = []
    x = shape
    for label, layer in layers.items():
        if layer is not None:
            node = layer(x)
            if not is_nothing(node):
                children.append((label, node))
                x = node.output
    return Chain(shape, tuple(children))


def is_nothing(node: Node) -> bool:
    """Whether a node passes its input on untouched: an empty chain, as the identity block leaves it."""
    return isinstance(node, Chain) and not node.children


def residual(body: Node, shortcut: Node | None = None) -> Residual:
    """shortcut(x) + body(x)."""
    return Residual(body, shortcut)


def branches(shape: Shape, **layers: Layer) -> Branches:
    """Every layer over the same input, concatenated along the channels."""
    return Branches(tuple((label, layer(shape)) for label, layer in layers.items()))


def conv(
    channels: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, bias: bool = False, padding: int | None = None
) -> Layer:
    """A convolution that keeps the size at stride 1 unless `padding` says otherwise."""
    pad = kernel // 2 if padding is None else padding
    return lambda x: Conv(x, channels, kernel, stride, pad, groups, bias)


def conv_norm(channels: int, kernel: int = 1, stride: int = 1) -> Layer:
    """conv, norm."""
    return partial(chain, conv=conv(channels, kernel, stride), norm=Norm)


def conv_norm_act(
    channels: int, kernel: int = 1, stride: int = 1, *, act: str = "relu", bias: bool = False, norm: bool = True
) -> Layer:
    """conv, norm, act."""
    return partial(
        chain,
        conv=conv(channels, kernel, stride, bias=bias),
        norm=Norm if norm else None,
        act=activation(act),
    )


def depthwise(
    kernel: int = 3, stride: int = 1, *, act: str | None = "relu", norm: bool = True, bias: bool = False
) -> Layer:
    """One kernel x kernel filter per channel, then norm and act unless told otherwise."""
    return lambda x: chain(
        x,
        conv=conv(x.channels, kernel, stride, groups=x.channels, bias=bias),
        norm=Norm if norm else None,
        act=activation(act) if act else None,
    )


def activation(kind: str) -> Layer:
    """A pointwise activation."""
    return lambda x: Act(x, kind)


def dropout(rate: float) -> Layer | None:
    """None where the rate is 0, so that it leaves no trace in the network's identity."""
    return (lambda x: Dropout(x, rate)) if rate else None


def linear(features: int) -> Layer:
    """A fully connected layer with bias."""
    return lambda x: Linear(x, features)


def max_pool(kernel: int, stride: int, padding: int = 0) -> Layer:
    """The largest value of each window."""
    return lambda x: Pool(x, "max", kernel, stride, padding)


def squeeze_excite(ratio: float, *, gate: str = "sigmoid", rounding: str = "plain") -> Layer:
    """Global pool, 1x1 to ratio * channels, ReLU, 1x1 back, gate; multiplies its input (Hu et al., arXiv 1709.01507,
    section 3).

    MobileNetV3 gates with a hard sigmoid and rounds to a multiple of 8.
    """

    def layer(x: Shape) -> Scale:
        squeezed = max(1, scale_channels(x.channels, ratio, rounding, smallest=1))
        node = chain(
            x,
            pool=Pool,
            reduce=conv(squeezed, bias=True),
            act=activation("relu"),
            expand=conv(x.channels, bias=True),
            gate=activation(gate),
        )
        return Scale(node)

    return layer


# How the scores are made, by `classifier`.
HEADS = ("linear", "conv")


def classifier(classes: int, *, head: str = "linear", dropout_rate: float = 0.0) -> dict[str, Layer | None]:
    """Global average pool, dropout and the scores: by a linear layer, or by a 1x1 convolution with bias in the manner
    of slim's MobileNets and ResNets (the same function of the same number of weights).
    """
    last = dropout(dropout_rate)
    if head == "conv":
        return {"pool": Pool, "dropout": last, "classifier": conv(classes, bias=True), "flatten": Flatten}
    return {"pool": Pool, "flatten": Flatten, "dropout": last, "classifier": linear(classes)}


# ---------------------------------------------------------------- widths


def _plain(value: float) -> int:
    return math.floor(value + 1e-9)  # 0.29 * 100 is 28.999... in binary


def _divisible(value: float, divisor: int = 8) -> int:
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


ROUNDING: dict[str, Callable[[float], int]] = {
    # Cut to a whole number: MobileNetV1's (arXiv 1704.04861; `int(depth * depth_multiplier)` in the authors' code).
    "plain": _plain,
    # To a multiple of 8, never below 8 and never more than 10 % down: MobileNetV2's and V3's (`make_divisible`).
    "divisible": _divisible,
}


@lru_cache(maxsize=4096)
def scale_channels(channels: int, width: float, rounding: str = "plain", smallest: int = 0) -> int:
    """channels * width under a rule of ROUNDING. Raises OptionError where nothing is left, unless `smallest` says what
    is kept then.
    """
    scaled = max(ROUNDING[rounding](channels * width), smallest)
    if scaled < 1:
        least = math.ceil(1000 / channels) / 1000
        raise OptionError("width", width, f"it leaves {channels} channels with none; use {least:g} or more")
    return scaled
