"""The MobileNets, and `staged`, a network of free stages for spaces of one's own.

To add a family, write the function and its row at the foot. Its keyword arguments are its options; it gives a Frame,
whose stages `create` fills by its table and by the options of single stages and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mnet_search.models.arch import Flatten, Layer, Pool, Shape
from mnet_search.models.blocks import KERNELS
from mnet_search.models.layers import (
    activation,
    classifier,
    conv_norm_act,
    linear,
    scale_channels,
)
from mnet_search.models.layers import dropout as dropout_layer
from mnet_search.models.options import Family, check_choice, check_common, check_depth, check_number, given
from mnet_search.models.stages import Frame, Options, Plan, Stage

# Channels, stride of the first block and number of blocks of MobileNetV1, grouped by resolution (arXiv 1704.04861,
# table 1). The paper prints stride 2 for the last depthwise layer as well; its input and output are both 7x7, so that
# is a misprint.
MOBILENET_V1 = (Stage(64, 1, 1), Stage(128, 2, 2), Stage(256, 2, 2), Stage(512, 2, 6), Stage(1024, 2, 2))
# Its table 5: without the five blocks of 512 channels that repeat.
MOBILENET_V1_SHALLOW = tuple(Stage(s.channels, s.stride, 1) if s.channels == 512 else s for s in MOBILENET_V1)
# MobileNetV2 (arXiv 1801.04381, table 2). The first stage expands by 1 whatever the network's `expand` is.
MOBILENET_V2 = (
    Stage(16, 1, 1, pinned={"expand": 1}),
    Stage(24, 2, 2),
    Stage(32, 2, 3),
    Stage(64, 2, 4),
    Stage(96, 1, 3),
    Stage(160, 2, 3),
    Stage(320, 1, 1),
)


def _v3_stage(channels: int, stride: int, hidden: tuple[int, ...], kernel: int, act: str, *, se: bool) -> Stage:
    """A group of rows of MobileNetV3's tables; squeeze-and-excite to a quarter, gated by a hard sigmoid (its
    sections 5.2 and 5.3).
    """
    excite: Mapping[str, Any] = {"se": 0.25, "se_gate": "hsigmoid", "se_rounding": "divisible"} if se else {}
    places = tuple({"hidden": inner, "kernel": kernel, "act": act, **excite} for inner in hidden)
    return Stage(channels, stride, len(hidden), places=places)


# arXiv 1905.02244, table 1.
MOBILENET_V3_LARGE = (
    _v3_stage(16, 1, (16,), 3, "relu", se=False),
    _v3_stage(24, 2, (64, 72), 3, "relu", se=False),
    _v3_stage(40, 2, (72, 120, 120), 5, "relu", se=True),
    _v3_stage(80, 2, (240, 200, 184, 184), 3, "hswish", se=False),
    _v3_stage(112, 1, (480, 672), 3, "hswish", se=True),
    _v3_stage(160, 2, (672, 960, 960), 5, "hswish", se=True),
)
# arXiv 1905.02244, table 2.
MOBILENET_V3_SMALL = (
    _v3_stage(16, 2, (16,), 3, "relu", se=True),
    _v3_stage(24, 2, (72, 88), 3, "relu", se=False),
    _v3_stage(40, 2, (96, 240, 240), 5, "hswish", se=True),
    _v3_stage(48, 1, (120, 144), 5, "hswish", se=True),
    _v3_stage(96, 2, (288, 576, 576), 5, "hswish", se=True),
)
STAGED = (Stage(64, 2, 2), Stage(128, 2, 3), Stage(256, 2, 3))


def mobilenet_v1(
    *,
    width: float = 1.0,
    resolution: int = 224,
    depth: str | float = "full",
    block: str = "separable",
    kernel: int | None = None,
    expand: float | None = None,
    se: float | None = None,
    act: str | None = None,
    stem_stride: int = 2,
    head: str = "linear",
    dropout: float = 0.0,
    rounding: str = "plain",
    classes: int = 1000,
    in_channels: int = 3,
) -> Frame:
    """conv 3x3/2 32, then 13 blocks in 5 stages, global pool, linear (Howard et al., arXiv 1704.04861, table 1).

    (in_channels, resolution, resolution) -> (classes,). `width` is the paper's alpha; `resolution` sets its rho;
    `depth` "shallow" removes the five 512-channel blocks of table 5, a number multiplies the blocks of each stage.
    `kernel`, `expand`, `se` and `act` go to every block that has them (None: the block's own default).
    """
    check_depth(depth, ("full", "shallow"))
    check_common(width=width, stem_stride=stem_stride, dropout=dropout, rounding=rounding, head=head)
    table = MOBILENET_V1_SHALLOW if depth == "shallow" else MOBILENET_V1
    asked = Options(given(kernel=kernel, expand=expand, se=se, act=act))
    plan = Plan(block, asked, width, depth if not isinstance(depth, str) else 1.0, rounding)
    stem = conv_norm_act(scale_channels(32, width, rounding), 3, stem_stride, act=act or "relu")
    tail = classifier(classes, head=head, dropout_rate=dropout)
    return Frame(Shape(in_channels, resolution, resolution), {"stem": stem}, table, plan, tail)


def mobilenet_v2(
    *,
    width: float = 1.0,
    resolution: int = 224,
    depth: float = 1.0,
    block: str = "inverted_residual",
    kernel: int | None = None,
    expand: float | None = None,
    se: float | None = None,
    act: str | None = None,
    stem_stride: int = 2,
    head_channels: int = 1280,
    head: str = "linear",
    dropout: float = 0.2,
    rounding: str = "divisible",
    classes: int = 1000,
    in_channels: int = 3,
) -> Frame:
    """conv 3x3/2 32, then 17 blocks in 7 stages, 1x1 1280, global pool, linear (Sandler et al., arXiv 1801.04381, table
    2).

    (in_channels, resolution, resolution) -> (classes,). Widths round to multiples of 8 and the 1x1 before the pool
    never shrinks below `head_channels` (the authors' code). `expand` is that of every stage but the first.
    """
    check_common(width=width, depth=depth, stem_stride=stem_stride, dropout=dropout, rounding=rounding, head=head)
    check_common(head_channels=head_channels)
    act_all = act or "relu6"
    asked = Options(given(act=act_all, kernel=kernel, expand=expand, se=se))
    plan = Plan(block, asked, width, depth, rounding)
    stem = conv_norm_act(scale_channels(32, width, rounding), 3, stem_stride, act=act_all)
    last = conv_norm_act(scale_channels(head_channels, max(1.0, width), rounding), act=act_all)
    tail = {"head": last, **classifier(classes, head=head, dropout_rate=dropout)}
    return Frame(Shape(in_channels, resolution, resolution), {"stem": stem}, MOBILENET_V2, plan, tail)


def mobilenet_v3(
    table: tuple[Stage, ...],
    head_channels_default: int,
    /,
    *,
    width: float = 1.0,
    resolution: int = 224,
    depth: float = 1.0,
    block: str = "inverted_residual",
    kernel: int | None = None,
    expand: float | None = None,
    se: float | None = None,
    act: str | None = None,
    stem_stride: int = 2,
    head_channels: int | None = None,
    dropout: float = 0.2,
    rounding: str = "divisible",
    classes: int = 1000,
    in_channels: int = 3,
) -> Frame:
    """conv 3x3/2 16 hswish, inverted residuals, 1x1 to 6 times the width, global pool, linear hswish, linear (Howard et
    al., arXiv 1905.02244, tables 1 and 2).

    (in_channels, resolution, resolution) -> (classes,). `head_channels` is the width of the linear layer before the
    last (None: 1280 in the large, 1024 in the small network); `expand`, `kernel`, `se` and `act` replace the tables'.
    """
    check_common(width=width, depth=depth, stem_stride=stem_stride, dropout=dropout, rounding=rounding)
    features = head_channels_default if head_channels is None else head_channels
    check_common(head_channels=features)
    plan = Plan(block, Options(given(kernel=kernel, expand=expand, se=se, act=act)), width, depth, rounding)
    last_act = act or "hswish"
    tail: dict[str, Layer | None] = {
        "head": lambda x: conv_norm_act(6 * x.channels, act=last_act)(x),
        "pool": Pool,
        "flatten": Flatten,
        "linear": linear(scale_channels(features, width, rounding)),
        "act": activation(last_act),
        "dropout": dropout_layer(dropout),
        "classifier": linear(classes),
    }
    stem = conv_norm_act(scale_channels(16, width, rounding), 3, stem_stride, act=last_act)
    return Frame(Shape(in_channels, resolution, resolution), {"stem": stem}, table, plan, tail)


def staged(
    *,
    width: float = 1.0,
    resolution: int = 32,
    depth: float = 1.0,
    block: str = "inverted_residual",
    kernel: int | None = None,
    expand: float | None = None,
    se: float | None = None,
    act: str = "relu",
    stem_channels: int = 32,
    stem_kernel: int = 3,
    stem_stride: int = 1,
    head_channels: int = 1280,
    head: str = "linear",
    dropout: float = 0.0,
    rounding: str = "divisible",
    classes: int = 10,
    in_channels: int = 3,
) -> Frame:
    """stem, stages of any blocks, 1x1, global pool, linear: the frame of block spaces (AnyNet's, arXiv 2003.13678,
    section 3.2, with MobileNetV2's head).

    (in_channels, resolution, resolution) -> (classes,). Stages 1 to 3 are 64, 128 and 256 channels wide with 2, 3 and 3
    blocks, the first strided; `stages.N.channels`, `.depth`, `.stride` and `.blocks.M` change them, and
    `stages.4.channels` adds a fourth. `head_channels` 0 leaves the 1x1 out.
    """
    check_common(width=width, depth=depth, stem_stride=stem_stride, dropout=dropout, rounding=rounding, head=head)
    check_common(stem_channels=stem_channels)
    check_number("head_channels", head_channels, whole=True, at_least=0)
    check_choice("stem_kernel", stem_kernel, KERNELS)
    check_common(stem_kernel=stem_kernel)  # 3.0 is among the kernels as well
    asked = Options(given(act=act, kernel=kernel, expand=expand, se=se))
    stem = conv_norm_act(scale_channels(stem_channels, width, rounding), stem_kernel, stem_stride, act=act)
    tail = classifier(classes, head=head, dropout_rate=dropout)
    if head_channels:
        tail = {"head": conv_norm_act(scale_channels(head_channels, max(1.0, width), rounding), act=act), **tail}
    plan = Plan(block, asked, width, depth, rounding)
    return Frame(Shape(in_channels, resolution, resolution), {"stem": stem}, STAGED, plan, tail, Stage(1, 2, 1))


FAMILIES: dict[str, Family] = {
    "mobilenet_v1": Family(mobilenet_v1),
    # He over the fan-out, as torchvision's mobilenetv2.py and mobilenetv3.py start them; V3's batch norm as there.
    "mobilenet_v2": Family(mobilenet_v2, init="he_fan_out"),
    "mobilenet_v3_small": Family(
        partial(mobilenet_v3, MOBILENET_V3_SMALL, 1024), init="he_fan_out", norm_eps=1e-3, norm_momentum=0.01
    ),
    "mobilenet_v3_large": Family(
        partial(mobilenet_v3, MOBILENET_V3_LARGE, 1280), init="he_fan_out", norm_eps=1e-3, norm_momentum=0.01
    ),
    "staged": Family(staged),
}
