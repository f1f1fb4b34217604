"""Blocks: each a function from the incoming shape and its options to a tree of primitives.

To add one, write the function and its row in BLOCKS at the foot. Its keyword arguments beyond `channels` and `stride`
are its options, by which space files and the command line set it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mnet_search.models.arch import (
    Node,
    Norm,
    OptionError,
    Shape,
    UnknownOptionError,
    activation,
    chain,
    conv,
    conv_norm,
    conv_norm_act,
    depthwise,
    residual,
    squeeze_excite,
)
from mnet_search.models.tables import lookup

Block = Callable[..., Node]
KERNELS = (1, 3, 5, 7)


def separable(x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, act: str = "relu") -> Node:
    """depthwise kxk, BN, act, 1x1, BN, act (MobileNetV1, arXiv 1704.04861, fig. 3 right). (C, H, W) -> (channels,
    H/stride, W/stride).
    """
    return chain(x, depthwise=depthwise(kernel, stride, act=act), pointwise=conv_norm_act(channels, act=act))


def separable_plain(x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, act: str = "relu") -> Node:
    """depthwise kxk, 1x1, BN, act: nothing between the two (Keras' SeparableConv2D; Xception, arXiv 1610.02357, section
    4.7).
    """
    return chain(
        x, depthwise=depthwise(kernel, stride, act=None, norm=False), pointwise=conv_norm_act(channels, act=act)
    )


def full_conv(x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, act: str = "relu") -> Node:
    """conv kxk, BN, act (MobileNetV1, fig. 3 left: the full convolution that its table 4 compares with)."""
    return chain(x, conv=conv(channels, kernel, stride), norm=Norm, act=activation(act))


def inverted_residual(
    x: Shape, *, channels: int, stride: int = 1, kernel: int = 3, expand: int = 6, se: float = 0.0, act: str = "relu6"
) -> Node:
    """expand 1x1, depthwise kxk, SE, project 1x1; x + f(x) where the shape stays (MobileNetV2, arXiv 1801.04381, fig.
    4d).
    """
    body = chain(
        x,
        expand=conv_norm_act(x.channels * expand, act=act) if expand > 1 else None,
        depthwise=depthwise(kernel, stride, act=act),
        se=squeeze_excite(se) if se else None,
        project=conv_norm(channels),
    )
    return residual(body) if body.output == x else body


def options_of(block: Block) -> dict[str, Any]:
    """The options of a block with their defaults: every keyword but `channels` and `stride`, which its place in the
    network decides.
    """
    parameters = inspect.signature(block).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("channels", "stride")}


def make_block(name: str, x: Shape, *, channels: int, stride: int, options: Mapping[str, Any]) -> Node:
    """The block `name` over `x`, its options checked against its own signature.

    Raises OptionError for an option that the block does not have or a value that it cannot take.
    """
    block = lookup(BLOCKS, name, "block")
    known = options_of(block)
    for option, value in options.items():
        if option not in known:
            raise UnknownOptionError(option, f"block {name}", f" (it has: {', '.join(known)})")
        check_option(option, value)
    return block(x, channels=channels, stride=stride, **options)


def check_option(option: str, value: Any) -> None:
    """Raises OptionError where the value of a block option is out of its range."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if option == "kernel" and (not whole or value not in KERNELS):
        raise OptionError(option, value, f"kernels are odd: one of {', '.join(map(str, KERNELS))}")
    if option == "expand" and (not whole or value < 1):
        raise OptionError(option, value, "the expansion is a whole number, 1 or more")
    if option == "se" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1):
        raise OptionError(option, value, "squeeze-excite is a share of the channels between 0 (off) and 1")


BLOCKS: dict[str, Block] = {
    "separable": separable,
    "separable_plain": separable_plain,
    "conv": full_conv,
    "inverted_residual": inverted_residual,
}
