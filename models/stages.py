"""Stages: rows of blocks, the first of them strided, and how options reach them.

What a block gets is decided in this order, later wins: the family's table, an option of the whole network (`kernel=5`),
what the table pins, an option of the stage (`stages.3.kernel`), an option of one place (`stages.3.blocks.2.kernel`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from mnet_search.models.arch import Chain, Layer, Node, OptionError, Shape, UnknownOptionError
from mnet_search.models.blocks import BLOCKS, make_block, options_of
from mnet_search.models.layers import chain, is_nothing, scale_channels
from mnet_search.models.options import check_number
from mnet_search.models.tables import lookup


class Options(dict[str, Any]):
    """Options by name that can be the key of a cache, so that what follows from them is worked out once. Not to be
    changed once it is made. Values are told apart by type as well: True is not 1.
    """

    __slots__ = ("_hash", "_key")
    _hash: int
    _key: str

    def __hash__(self) -> int:  # type: ignore[override]  # a dict has none
        try:
            return self._hash
        except AttributeError:
            self._key = repr(self)
            self._hash = hash(self._key)
            return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Options):
            return dict.__eq__(self, other)
        return hash(self) == hash(other) and self._key == other._key


# What a stage takes beside the options of its blocks; `blocks` holds options by place, counted from 1.
STAGE_OPTIONS = ("block", "depth", "width", "channels", "stride", "blocks")
NOTHING = Options()
MOST_BLOCKS = 1000  # in a stage


@dataclass(frozen=True, eq=False)
class Stage:
    """A row of a family's table, made once: output channels before any multiplier, stride of the first block, number of
    blocks.

    `places` holds what the table says about each block (the last for all further ones); `pinned` what an option of the
    whole network does not change. `stride_last` puts the stride into the last block, as ResNetV2 does.
    """

    channels: int
    stride: int
    depth: int
    places: Sequence[Mapping[str, Any]] = (NOTHING,)
    pinned: Mapping[str, Any] = field(default_factory=dict)
    stride_last: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """What the options of the whole network say to every stage: the block, the options asked of it, the multipliers of
    width and depth, the rule for rounding widths.
    """

    block: str
    asked: Options
    width: float = 1.0
    depth: float = 1.0
    rounding: str = "plain"


@dataclass(frozen=True, eq=False)
class Frame:
    """A network whose stages are still open: what a family with stages gives. `stem` and `tail` are layers by label;
    `further` is the row of stages beyond the table, for families that allow them.
    """

    input: Shape
    stem: Mapping[str, Layer | None]
    stages: Sequence[Stage]
    plan: Plan
    tail: Mapping[str, Layer | None]
    further: Stage | None = None


def assemble(frame: Frame, overrides: Mapping[int, Options]) -> Chain:
    """The network of a frame, with the options of single stages by number.

    Raises OptionError for a stage, place or option that is not there, and for an option of the whole network that no
    block takes.
    """
    rows = _rows(frame, overrides) if overrides else frame.stages
    children, x = _part(frame, "stem", frame.input)
    found, names = list(children), []
    for number, row in enumerate(rows, 1):
        node, blocks = _stage(number, row, overrides.get(number, NOTHING), frame.plan, x)
        names.append(blocks)
        if node.children:
            found.append((f"stage{number}", node))
            x = node.output
    if frame.plan.asked:
        _check_taken(frame.plan.asked, names)
    return Chain(frame.input, (*found, *_part(frame, "tail", x)[0]))


@lru_cache(maxsize=4096)
def _part(frame: Frame, name: str, x: Shape) -> tuple[tuple[tuple[str, Node], ...], Shape]:
    """The children of a frame's stem or tail over `x`, and what comes out of them."""
    layers: Mapping[str, Layer | None] = getattr(frame, name)
    made = chain(x, **layers)
    return made.children, made.output


def _rows(frame: Frame, overrides: Mapping[int, Options]) -> Sequence[Stage]:
    """The table, and the further stages that name their channels. Raises OptionError for a stage that is not there."""
    known, last = len(frame.stages), max(overrides)
    wrong = [number for number in overrides if number < 1 or (number > known and frame.further is None)]
    if wrong:
        allowed = f"the network has stages 1 to {known}"
        raise OptionError(f"stages.{wrong[0]}", dict(overrides[wrong[0]]), allowed)
    if frame.further is None or last <= known:
        return frame.stages
    for number in range(known + 1, last + 1):
        if "channels" not in overrides.get(number, NOTHING):
            needed = f"the network has stages 1 to {known}; a further one needs stages.{number}.channels"
            raise OptionError(f"stages.{last}", dict(overrides[last]), needed)
    return (*frame.stages, *[frame.further] * (last - known))


# Name, output channels, stride and options of one block: hashable, so that equal stages are made once.
BlockSpec = tuple[str, int, int, Options]


def _check_taken(asked: Options, of_stages: Sequence[frozenset[str]]) -> None:
    """Raises OptionError for an option that no block takes. Where a block was left out, it might have."""
    unused = asked.keys() - {"act"}  # which the stem takes as well
    if not unused:
        return
    names = frozenset[str]().union(*of_stages)
    for option in sorted(unused.difference(*map(_takes, names))):
        if "identity" not in names:
            allowed = f"no block of this network takes it (blocks: {', '.join(sorted(names))})"
            raise OptionError(option, asked[option], f"{allowed}; leave it out, or give it a `when:`")


@lru_cache(maxsize=4096)
def _stage(number: int, row: Stage, own: Options, plan: Plan, x: Shape) -> tuple[Chain, frozenset[str]]:
    """One stage over `x`, and the names of its blocks."""
    specs = _blocks_of(number, row, own, plan)
    try:
        return _row_of_blocks(specs, x), frozenset(name for name, *_ in specs)
    except OptionError as error:
        raise _under_users_name(error, number, own, plan) from None


def _under_users_name(error: OptionError, number: int, own: Options, plan: Plan) -> OptionError:
    """A block's error under the name by which the user gave the option."""
    prefix = f"stages.{number}"
    for place, options in own.get("blocks", NOTHING).items():
        if options.get(error.option) == error.value and error.option in options:
            return OptionError(f"{prefix}.blocks.{place}.{error.option}", error.value, error.allowed)
    if error.option in own:
        return OptionError(f"{prefix}.{error.option}", error.value, error.allowed)
    if error.option == "channels":
        return OptionError("width", plan.width, f"it gives stage {number} {error.value} channels: {error.allowed}")
    return error


@lru_cache(maxsize=4096)
def _row_of_blocks(specs: tuple[BlockSpec, ...], x: Shape) -> Chain:
    """The blocks one after another. A block that does nothing leaves no gap in the numbering, so that equal networks
    have equal state-dict names.
    """
    children: list[tuple[str, Node]] = []
    shape = x
    for spec in specs:
        node = _block(shape, *spec)
        if not is_nothing(node):
            children.append((f"block{len(children) + 1}", node))
            shape = node.output
    return Chain(x, tuple(children))


@lru_cache(maxsize=4096)
def _block(x: Shape, name: str, channels: int, stride: int, options: Options) -> Node:
    return make_block(name, x, channels=channels, stride=stride, options=options)


@lru_cache(maxsize=256)
def _takes(name: str) -> frozenset[str]:
    return frozenset(options_of(lookup(BLOCKS, name, "block")))


def _resolve_expansion(where: str, explicit: dict[str, Any], at_place: Mapping[str, Any]) -> None:
    """`hidden` and `expand` say the same thing: a place's stands above its stage's, and both at once are refused."""
    if "hidden" in at_place and "expand" not in at_place:
        explicit.pop("expand", None)
    if "expand" in at_place and "hidden" not in at_place:
        explicit.pop("hidden", None)
    if explicit.get("hidden") is not None and "expand" in explicit:
        raise OptionError(f"{where}.hidden", explicit["hidden"], "it says what `expand` says; leave one of them out")


def _blocks_of(number: int, row: Stage, own: Options, plan: Plan) -> tuple[BlockSpec, ...]:
    """The blocks of one stage, every option decided."""
    prefix = f"stages.{number}"
    width, channels = _width_of(prefix, row, own, plan)
    depth = own["depth"] if "depth" in own else math.ceil(row.depth * plan.depth - 1e-9)
    check_number(f"{prefix}.depth", depth, whole=True, at_least=1, at_most=MOST_BLOCKS)
    strided = depth if row.stride_last else 1
    stride = own.get("stride", row.stride)
    check_number(f"{prefix}.stride", stride, whole=True, at_least=1)
    places = own.get("blocks", NOTHING)
    for place in places:
        if place > depth:
            raise OptionError(f"{prefix}.blocks.{place}", places[place], f"stage {number} has {depth} blocks")
    specs: list[BlockSpec] = []
    for place in range(1, depth + 1):
        at_place = places.get(place, NOTHING)
        name = _block_name(prefix, place, at_place, own, plan)
        asked = _asked_of(prefix, place, name, at_place, own)
        in_table = row.places[min(place, len(row.places)) - 1]
        takes = _takes(name)
        options = {k: v for k, v in (*in_table.items(), *plan.asked.items(), *row.pinned.items()) if k in takes}
        if "hidden" in options:
            options["hidden"] = scale_channels(options["hidden"], width, plan.rounding)
            if "expand" in asked or "expand" in plan.asked:
                del options["hidden"]
        specs.append((name, channels, stride if place == strided else 1, Options(sorted((options | asked).items()))))
    return tuple(specs)


def _width_of(prefix: str, row: Stage, own: Options, plan: Plan) -> tuple[float, int]:
    """The stage's width multiplier and its output channels."""
    base = own.get("channels", row.channels)
    check_number(f"{prefix}.channels", base, whole=True, at_least=1)
    if "width" not in own:
        return plan.width, scale_channels(base, plan.width, plan.rounding)
    check_number(f"{prefix}.width", own["width"], above=0)
    width = plan.width * own["width"]
    try:
        return width, scale_channels(base, width, plan.rounding)
    except OptionError:
        allowed = f"it leaves {base} channels with none"
        raise OptionError(f"{prefix}.width", own["width"], allowed) from None


def _block_name(prefix: str, place: int, at_place: Mapping[str, Any], own: Options, plan: Plan) -> str:
    """Which block stands at a place: its own, its stage's or the network's."""
    given = ((f"{prefix}.blocks.{place}.", at_place), (f"{prefix}.", own), ("", {"block": plan.block}))
    where, name = next((where, options["block"]) for where, options in given if "block" in options)
    if not isinstance(name, str) or not name:
        raise OptionError(f"{where}block", name, f"it is the name of one: {', '.join(BLOCKS)}")
    return name


def _asked_of(prefix: str, place: int, name: str, at_place: Mapping[str, Any], own: Options) -> dict[str, Any]:
    """What the options of the stage and of the place ask of a block. Raises OptionError where it has no such option."""
    takes = _takes(name)
    for_all = {k: v for k, v in own.items() if k not in STAGE_OPTIONS}
    # an option of the stage need not fit a place that has its own block
    asked = {k: v for k, v in for_all.items() if k in takes or "block" not in at_place}
    asked |= {k: v for k, v in at_place.items() if k != "block"}
    _resolve_expansion(f"{prefix}.blocks.{place}", asked, at_place)
    for option in asked:
        if option not in takes:
            where = f"{prefix}.blocks.{place}" if option in at_place else prefix
            has = f" (it has: {', '.join(sorted(takes))})" if takes else " (it has none)"
            raise UnknownOptionError(f"{where}.{option}", f"block {name}", has)
    return asked
