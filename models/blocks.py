"""Blocks: each a function from the incoming shape and its options to a tree of primitives.

To add one, write the function and its row in BLOCKS at the foot: module, costs, identity, latency and export follow
from the tree. Its keyword arguments beyond `channels` and `stride` are its options, by which space files and the
command line set it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from mnet_search.models.arch import ACTIVATIONS, Chain, Layer, Node, Norm, OptionError, Shape, UnknownOptionError
from mnet_search.models.layers import (
    ROUNDING,
    activation,
    branches,
    chain,
    conv,
    conv_norm,
    conv_norm_act,
    depthwise,
    max_pool,
    residual,
    squeeze_excite,
)
from mnet_search.models.tables import lookup

Block = Callable[..., Node]
KERNELS = (1, 3, 5, 7)


def separable(
    x: Shape,
    *,
    channels: int,
    stride: int = 1,
    kernel: int = 3,
    act: str = "relu",
    norm: bool = True,
    bias: bool = False,
) -> Node:
    """depthwise kxk, BN, act, 1x1, BN, act (MobileNetV1, arXiv 1704.04861, fig. 3 right).

    (C, H, W) -> (channels, H/stride, W/stride). `norm` and `bias` are for networks without batch norm.
    """
    return chain(
        x,
        depthwise=depthwise(kernel, stride, act=act, norm=norm, bias=bias),
        pointwise=conv_norm_act(channels, act=act, norm=norm, bias=bias),
    )


def separable_plain(x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, act: str = "relu") -> Node:
    """depthwise kxk, 1x1, BN, act: nothing between the two (Keras' SeparableConv2D; Xception, arXiv 1610.02357, section
    4.7). (C, H, W) -> (channels, H/stride, W/stride).
    """
    return chain(
        x, depthwise=depthwise(kernel, stride, act=None, norm=False), pointwise=conv_norm_act(channels, act=act)
    )


def full_conv(
    x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, act: str = "relu", bias: bool = False
) -> Node:
    """conv kxk, BN, act (MobileNetV1, fig. 3 left: the full convolution that its table 4 compares with). (C, H, W) ->
    (channels, H/stride, W/stride).
    """
    return chain(x, conv=conv(channels, kernel, stride, bias=bias), norm=Norm, act=activation(act))


def inverted_residual(
    x: Shape,
    *,
    channels: int,
    stride: int = 1,
    kernel: int = 3,
    expand: float = 6,
    hidden: int | None = None,
    se: float = 0.0,
    se_gate: str = "sigmoid",
    se_rounding: str = "plain",
    act: str = "relu6",
) -> Node:
    """expand 1x1, depthwise kxk, SE, project 1x1; x + f(x) where the shape stays (MobileNetV2, arXiv 1801.04381, fig.
    4d; with SE: MobileNetV3, arXiv 1905.02244, fig. 4). (C, H, W) -> (channels, H/stride, W/stride).

    `expand` multiplies the input's channels; `hidden` names the expanded channels instead; `se` is a share of them. No
    expansion layer where they are the input's.
    """
    inner = expanded(x, expand, hidden)
    body = chain(
        x,
        expand=conv_norm_act(inner, act=act) if inner != x.channels else None,
        depthwise=depthwise(kernel, stride, act=act),
        se=squeeze_excite(se, gate=se_gate, rounding=se_rounding) if se else None,
        project=conv_norm(channels),
    )
    return residual(body) if body.output == x else body


def fused_inverted_residual(
    x: Shape,
    *,
    channels: int,
    stride: int = 1,
    kernel: int = 3,
    expand: float = 4,
    se: float = 0.0,
    act: str = "silu",
) -> Node:
    """expand kxk, SE, project 1x1; x + f(x) where the shape stays (EfficientNetV2, arXiv 2104.00298, fig. 2).

    (C, H, W) -> (channels, H/stride, W/stride). With `expand` 1 it is one kxk convolution with BN and act; `se` is a
    share of the expanded channels.
    """
    inner = expanded(x, expand)
    se_layer = squeeze_excite(se) if se else None
    if inner == x.channels:
        body = chain(x, conv=conv_norm_act(channels, kernel, stride, act=act), se=se_layer)
    else:
        body = chain(x, expand=conv_norm_act(inner, kernel, stride, act=act), se=se_layer, project=conv_norm(channels))
    return residual(body) if body.output == x else body


def basic_residual(x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, act: str = "relu") -> Node:
    """act(shortcut(x) + [conv kxk, BN, act, conv kxk, BN]) (ResNet's basic block, arXiv 1512.03385, fig. 5 left).

    (C, H, W) -> (channels, H/stride, W/stride). Where the shape changes the shortcut is a strided 1x1 convolution with
    BN (its option B).
    """
    body = chain(
        x,
        conv1=conv_norm_act(channels, kernel, stride, act=act),
        conv2=conv_norm(channels, kernel),
    )
    shortcut = None if body.output == x else conv_norm(channels, 1, stride)(x)
    return chain(x, add=lambda _: residual(body, shortcut), act=activation(act))


def bottleneck_v2(
    x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, shrink: int = 4, act: str = "relu"
) -> Node:
    """shortcut(x) + [BN, act, 1x1, BN, act, kxk, BN, act, 1x1] (ResNetV2, arXiv 1603.05027, fig. 4e).

    (C, H, W) -> (channels, H/stride, W/stride). Inside it is channels / shrink wide. The shortcut is the input,
    subsampled where strided, if the channels stay; else a 1x1 convolution with bias of the pre-activation. The last
    1x1 has a bias and neither BN nor act.
    """
    inner = channels // shrink
    if inner < 1:
        raise OptionError("shrink", shrink, f"it leaves {channels} channels with none; use {channels} or less")
    preact = partial(chain, norm=Norm, act=activation(act))
    layers: dict[str, Layer | None] = {
        "conv1": conv_norm_act(inner, act=act),
        "conv2": conv_norm_act(inner, kernel, stride, act=act),
        "conv3": conv(channels, bias=True),
    }
    if x.channels == channels:
        subsample = max_pool(1, stride)(x) if stride > 1 else None
        return residual(chain(x, preact=preact, **layers), subsample)
    return chain(x, preact=preact, add=lambda a: residual(chain(a, **layers), conv(channels, 1, stride, bias=True)(a)))


def inception(x: Shape, *, channels: int, stride: int = 1, act: str = "relu", bias: bool = False) -> Node:
    """1x1 / 1x1-3x3 / 1x1-5x5 / max-pool 3-1x1, a quarter of the channels each, with BN and act, concatenated
    (GoogLeNet, arXiv 1409.4842, fig. 2b, with BN). (C, H, W) -> (channels, H/stride, W/stride).

    The 1x1 convolutions carry the stride.
    """
    if channels % 4:
        raise OptionError("channels", channels, "an inception block has 4 branches of equal width; use a multiple of 4")
    point = conv_norm_act(channels // 4, 1, stride, act=act, bias=bias)
    wide = partial(conv_norm_act, channels // 4, act=act, bias=bias)
    return branches(
        x,
        branch1=point,
        branch3=partial(chain, point=point, conv=wide(3)),
        branch5=partial(chain, point=point, conv=wide(5)),
        pool=partial(chain, pool=max_pool(3, 1, 1), point=point),
    )


def identity(x: Shape, *, channels: int, stride: int = 1) -> Node:
    """x, left out of the network; where the shape changes, a strided 1x1 convolution with BN. (C, H, W) -> (channels,
    H/stride, W/stride).
    """
    same = stride == 1 and channels == x.channels
    return Chain(x, ()) if same else conv_norm(channels, 1, stride)(x)


def expanded(x: Shape, expand: float, hidden: int | None = None) -> int:
    """Channels inside an inverted residual: `hidden`, or the input's times `expand`, to the nearest whole number."""
    inner = hidden if hidden is not None else round(x.channels * expand)
    if inner < 1:
        raise OptionError(
            "expand", expand, f"it leaves {x.channels} channels with none; use {1 / x.channels:.3g} or more"
        )
    return inner


# ---------------------------------------------------------------- options


@lru_cache(maxsize=256)
def _options_of(block: Block) -> Mapping[str, Any]:
    parameters = inspect.signature(block).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("channels", "stride")}


def options_of(block: Block) -> dict[str, Any]:
    """The options of a block with their defaults: every keyword but `channels` and `stride`, which its place in the
    network decides.
    """
    return dict(_options_of(block))


def make_block(name: str, x: Shape, *, channels: int, stride: int, options: Mapping[str, Any]) -> Node:
    """The block `name` over `x`, its options checked against its own signature.

    Raises OptionError for an option that the block does not have or a value that it cannot take.
    """
    block = lookup(BLOCKS, name, "block")
    known = _options_of(block)
    for option, value in options.items():
        if option not in known:
            has = f" (it has: {', '.join(known)})" if known else " (it has none)"
            raise UnknownOptionError(option, f"block {name}", has)
        check_option(option, value, known[option])
    return block(x, channels=channels, stride=stride, **options)


def check_option(option: str, value: Any, default: Any = None) -> None:
    """Raises OptionError where the value of a block option is out of its range."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    if option == "kernel" and (not whole or value not in KERNELS):
        raise OptionError(option, value, f"kernels are odd: one of {', '.join(map(str, KERNELS))}")
    if option == "expand" and not (number and 0 < value <= 100):
        raise OptionError(option, value, "the expansion is a number above 0, at most 100")
    if option in ("hidden", "shrink") and value != default and not (whole and value >= 1):
        raise OptionError(option, value, "it is a whole number, 1 or more")
    if option == "se" and not (number and 0 <= value <= 1):
        raise OptionError(option, value, "squeeze-excite is a share of the channels between 0 (off) and 1")
    if option in _WORDS and value not in _WORDS[option]:
        raise OptionError(option, value, f"one of {', '.join(_WORDS[option])}")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise OptionError(option, value, "it is true or false")


_WORDS = {"act": ACTIVATIONS, "se_gate": ("sigmoid", "hsigmoid"), "se_rounding": tuple(ROUNDING)}

BLOCKS: dict[str, Block] = {
    "separable": separable,
    "separable_plain": separable_plain,
    "conv": full_conv,
    "inverted_residual": inverted_residual,
    "fused_inverted_residual": fused_inverted_residual,
    "residual": basic_residual,
    "bottleneck_v2": bottleneck_v2,
    "inception": inception,
    "identity": identity,
}
