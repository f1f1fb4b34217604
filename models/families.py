"""Families: each turns scaling knobs (width, resolution, depth, blocks) into a whole network.

To add one, write the function and its row in FAMILIES at the foot. Its keyword arguments are its options; a family that
takes `stages` can be changed stage by stage with options named `stages.N.OPTION`, N counted from 1 as papers do.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mnet_search.models.arch import (
    Arch,
    Chain,
    Flatten,
    Layer,
    Node,
    Norm,
    OptionError,
    Pool,
    Shape,
    TooSmallError,
    UnknownOptionError,
    activation,
    chain,
    conv,
    linear,
)
from mnet_search.models.arch import (
    dropout as dropout_layer,
)
from mnet_search.models.blocks import BLOCKS, make_block, options_of
from mnet_search.models.tables import lookup, nearest

StageOptions = Mapping[int, Mapping[str, Any]]
Family = Callable[..., Chain]

# (channels, stride of the first block, number of blocks) of MobileNetV1, grouped by resolution (arXiv 1704.04861, table
# 1). The paper prints stride 2 for the last depthwise layer as well; its input and output are both 7x7, so that is a
# misprint.
MOBILENET_V1_STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 2, 6), (1024, 2, 2))


def mobilenet_v1(
    *,
    width: float = 1.0,
    resolution: int = 224,
    depth: str = "full",
    block: str = "separable",
    kernel: int | None = None,
    expand: int | None = None,
    se: float | None = None,
    act: str | None = None,
    stages: StageOptions | None = None,
    stem_stride: int = 2,
    dropout: float = 0.0,
    classes: int = 1000,
    in_channels: int = 3,
) -> Chain:
    """conv 3x3/2 32, then 13 blocks in 5 stages, global pool, linear (Howard et al., arXiv 1704.04861, table 1).

    (in_channels, resolution, resolution) -> (classes,). `width` is the paper's alpha: every channel count is multiplied
    by it and cut to a whole number; `resolution` sets its rho; `depth` "shallow" removes the five 512-channel blocks of
    table 5. `kernel`, `expand`, `se` and `act` go to every block that has them (None: the block's own default);
    `stages` changes them, or the block, for one stage.
    """
    check_number("width", width, above=0)
    check_choice("depth", depth, ("full", "shallow"))
    check_number("stem_stride", stem_stride, whole=True, at_least=1)
    check_number("dropout", dropout, at_least=0, below=1)
    asked = {
        name: value
        for name, value in (("kernel", kernel), ("expand", expand), ("se", se), ("act", act))
        if value is not None
    }
    plan = _plan_stages(block, asked, stages or {}, len(MOBILENET_V1_STAGES))
    stem_act = act or "relu"
    layers: dict[str, Layer | None] = {
        "stem": partial(
            chain,
            conv=conv(scale_channels(32, width), 3, stem_stride),
            norm=Norm,
            act=activation(stem_act),
        )
    }
    for number, (channels, stride, repeats) in enumerate(MOBILENET_V1_STAGES, start=1):
        if depth == "shallow" and channels == 512:
            repeats -= 5
        name, options = plan[number]
        out = scale_channels(channels, width)
        layers[f"stage{number}"] = partial(
            _stage, name=name, options=options, channels=out, stride=stride, repeats=repeats
        )
    layers |= {"pool": Pool, "flatten": Flatten, "dropout": dropout_layer(dropout), "classifier": linear(classes)}
    return chain(Shape(in_channels, resolution, resolution), **layers)


def _stage(x: Shape, *, name: str, options: Mapping[str, Any], channels: int, stride: int, repeats: int) -> Node:
    """`repeats` blocks, the first of them strided."""
    return chain(
        x,
        **{
            f"block{i + 1}": partial(
                make_block, name, channels=channels, stride=stride if i == 0 else 1, options=options
            )
            for i in range(repeats)
        },
    )


def _plan_stages(
    block: str, asked: Mapping[str, Any], stages: StageOptions, n_stages: int
) -> dict[int, tuple[str, dict[str, Any]]]:
    """Block name and options of every stage. An option for all stages goes to the blocks that have it, and must have at
    least one taker.
    """
    for number in stages:
        if not 1 <= number <= n_stages:
            raise OptionError(f"stages.{number}", dict(stages[number]), f"the family has stages 1 to {n_stages}")
    plan = {}
    for number in range(1, n_stages + 1):
        own = dict(stages.get(number, {}))
        name = own.pop("block", block)
        takes = options_of(lookup(BLOCKS, name, "block"))
        for option in own:
            if option not in takes:
                raise UnknownOptionError(f"stages.{number}.{option}", f"block {name}", f" (it has: {', '.join(takes)})")
        plan[number] = (name, {k: v for k, v in asked.items() if k in takes} | own)
    for option, value in asked.items():
        if option not in {k for name, _ in plan.values() for k in options_of(lookup(BLOCKS, name, "block"))}:
            names = ", ".join(sorted({name for name, _ in plan.values()}))
            raise OptionError(
                option,
                value,
                f"no block of this network takes it (blocks: {names}); leave it out, or give it a `when:`",
            )
    return plan


def scale_channels(channels: int, width: float) -> int:
    """channels * width, cut to a whole number as MobileNetV1 does (no rounding to a multiple of 8). Raises OptionError
    below 1.
    """
    scaled = math.floor(channels * width + 1e-9)  # 0.29 * 100 is 28.999... in binary
    if scaled < 1:
        raise OptionError(
            "width",
            width,
            f"it leaves {channels} channels with none; use {math.ceil(1000 / channels) / 1000:g} or more",
        )
    return scaled


# Beyond any network; below it nothing overflows on the way to the costs.
LARGEST = 1e9


def check_number(
    option: str,
    value: Any,
    *,
    whole: bool = False,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises OptionError unless `value` is a finite number (a whole one where asked) inside the limits."""
    kind = int if whole else (int, float)
    limits = [("at least", at_least), ("above", above), ("below", below)]
    good = isinstance(value, kind) and not isinstance(value, bool) and abs(value) < LARGEST  # NaN is not
    good = (
        good
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not good:
        stated = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
        raise OptionError(option, value, f"it is a {'whole ' if whole else ''}number {stated}")


def check_choice(option: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises OptionError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise OptionError(option, value, f"one of {', '.join(allowed)}")


def options_of_family(name: str) -> dict[str, Any]:
    """The options of a family with their defaults, `stages` aside."""
    parameters = inspect.signature(lookup(FAMILIES, name, "family")).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "stages"}


def check_option_names(family: str, names: list[str]) -> None:
    """Raises OptionError for the first name that is neither an option of the family nor a `stages.N.OPTION` path it
    could take.
    """
    function = lookup(FAMILIES, family, "family")
    known = options_of_family(family)
    has_stages = "stages" in inspect.signature(function).parameters
    stage_options = sorted({"block"} | {option for block in BLOCKS.values() for option in options_of(block)})
    for name in names:
        match name.split("."):
            case [plain] if plain in known:
                continue
            case ["stages", number, option] if has_stages and number.isdigit():
                if option not in stage_options:
                    known_text = f"{nearest(option, stage_options)} (a stage takes: {', '.join(stage_options)})"
                    raise UnknownOptionError(name, f"family {family}", known_text)
            case _:
                listed = ", ".join([*known, *(["stages.N.OPTION"] if has_stages else [])])
                raise UnknownOptionError(name, f"family {family}", f"{nearest(name, known)} (it has: {listed})")


def create(family: str, **options: Any) -> Arch:
    """The network of a family under the given options; per-stage options are named `stages.N.OPTION`.

    Raises MnetError for an unknown family, OptionError for an option or value that cannot be, a resolution too small
    for the strides among them.
    """
    function = lookup(FAMILIES, family, "family")
    check_option_names(family, list(options))
    resolved = options_of_family(family) | options
    for name in ("resolution", "classes", "in_channels"):
        if name in resolved:
            check_number(name, resolved[name], whole=True, at_least=1)
    try:
        root = function(**_nest_stages(options))
    except TooSmallError as error:
        raise OptionError(
            "resolution", resolved.get("resolution"), _smallest_resolution(function, options, resolved, str(error))
        ) from None
    return Arch(family, {k: v for k, v in resolved.items() if v is not None}, root)


def _nest_stages(options: Mapping[str, Any]) -> dict[str, Any]:
    """{"stages.3.kernel": 5, "width": 1} -> {"width": 1, "stages": {3: {"kernel": 5}}}."""
    flat = {k: v for k, v in options.items() if not k.startswith("stages.")}
    stages: dict[int, dict[str, Any]] = {}
    for path, value in options.items():
        if path.startswith("stages."):
            _, number, option = path.split(".")
            stages.setdefault(int(number), {})[option] = value
    return flat | ({"stages": stages} if stages else {})


def _smallest_resolution(function: Family, options: Mapping[str, Any], resolved: Mapping[str, Any], why: str) -> str:
    """What to do about a resolution that is too small: the smallest that works, found by trying."""
    for resolution in range(int(resolved["resolution"]) + 1, 513):
        try:
            function(**_nest_stages({**options, "resolution": resolution}))
        except TooSmallError:
            continue
        stem = " or a stem_stride of 1" if resolved.get("stem_stride", 1) > 1 else ""
        return f"{why}: too small for the strides; use {resolution} or more{stem}"
    return f"{why}: too small for the strides"


FAMILIES: dict[str, Family] = {
    "mobilenet_v1": mobilenet_v1,
}
