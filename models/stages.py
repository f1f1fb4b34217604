"""Stages: rows of blocks, the first of them strided, and how options reach them.

What a block gets is decided in this order, later wins: the family's table, an option of the whole network (`kernel=5`),
what the table pins, an option of the stage (`stages.3.kernel`), an option of one place (`stages.3.blocks.2.kernel`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from mnet_search.models.arch import Layer, Node, OptionError, Shape, UnknownOptionError
from mnet_search.models.blocks import BLOCKS, make_block, options_of
from mnet_search.models.layers import chain, is_nothing, scale_channels
from mnet_search.models.options import check_number
from mnet_search.models.tables import lookup


class Options(dict[str, Any]):
    """Options by name that can be a key of a cache, so that what follows from them is worked out once. Not to be
    changed once it is made. Values are told apart by type as well: True is not 1.
    """

    __slots__ = ("_hash", "_key")

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


StageOptions = Mapping[int, Options]
# What a stage takes beside the options of its blocks; `blocks` holds options by place, counted from 1.
STAGE_OPTIONS = ("block", "depth", "width", "channels", "stride", "blocks")
NOTHING = Options()


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
    block: str = ""
    places: Sequence[Mapping[str, Any]] = (NOTHING,)
    pinned: Mapping[str, Any] = field(default_factory=dict)
    stride_last: bool = False


@dataclass(frozen=True)
class Plan:
    """What the options of the whole network say to every stage."""

    block: str
    asked: Options
    width: float = 1.0
    depth: float = 1.0
    rounding: str = "plain"


def stage_layers(table: Sequence[Stage], overrides: StageOptions | None, plan: Plan) -> dict[str, Layer | None]:
    """The stages of a network as layers `stage1`, `stage2`, ... Raises OptionError for a stage, place or option that is
    not there, and for an option of the whole network that no block takes.
    """
    overrides = overrides or {}
    for number in overrides:
        if not 1 <= number <= len(table):
            allowed = f"the network has stages 1 to {len(table)}"
            raise OptionError(f"stages.{number}", dict(overrides[number]), allowed)
    specs = [_blocks_of(number, row, overrides.get(number, NOTHING), plan) for number, row in enumerate(table, 1)]
    _check_taken(plan.asked, specs)
    return {f"stage{number}": partial(_stage, blocks) for number, blocks in enumerate(specs, 1)}


def _check_taken(asked: Options, specs: Sequence[tuple[BlockSpec, ...]]) -> None:
    """Raises OptionError for an option that no block takes. Where a block was left out, it might have."""
    unused = asked.keys() - {"act"}  # which the stem takes as well
    names = {name for blocks in specs for name, *_ in blocks} if unused else set()
    for option in sorted(unused.difference(*map(_takes, names))):
        if "identity" not in names:
            allowed = f"no block of this network takes it (blocks: {', '.join(sorted(names))})"
            raise OptionError(option, asked[option], f"{allowed}; leave it out, or give it a `when:`")


# Name, output channels, stride and options of one block: hashable, so that equal stages are made once.
BlockSpec = tuple[str, int, int, tuple[tuple[str, Any], ...]]


@lru_cache(maxsize=4096)
def _stage(specs: tuple[BlockSpec, ...], x: Shape) -> Node:
    """The blocks one after another. A block that does nothing leaves no gap in the numbering, so that equal networks
    have equal state-dict names.
    """
    layers: dict[str, Layer] = {}
    shape = x
    for spec in specs:
        node = _block(shape, *spec)
        if is_nothing(node):
            continue
        layers[f"block{len(layers) + 1}"] = lambda _, node=node: node  # type: ignore[misc]  # bound now
        shape = node.output
    return chain(x, **layers)


@lru_cache(maxsize=4096)
def _block(x: Shape, name: str, channels: int, stride: int, options: tuple[tuple[str, Any], ...]) -> Node:
    return make_block(name, x, channels=channels, stride=stride, options=dict(options))


@lru_cache(maxsize=256)
def _takes(name: str) -> frozenset[str]:
    return frozenset(options_of(lookup(BLOCKS, name, "block")))


@lru_cache(maxsize=4096)
def _blocks_of(number: int, row: Stage, own: Options, plan: Plan) -> tuple[BlockSpec, ...]:
    """The blocks of one stage, every option decided."""
    prefix = f"stages.{number}"
    for name in ("channels", "stride", "depth"):
        if name in own:
            check_number(f"{prefix}.{name}", own[name], whole=True, at_least=1)
    if "width" in own:
        check_number(f"{prefix}.width", own["width"], above=0)
    width = plan.width * own.get("width", 1.0)
    channels = scale_channels(own.get("channels", row.channels), width, plan.rounding)
    depth = own["depth"] if "depth" in own else math.ceil(row.depth * plan.depth - 1e-9)
    places = own.get("blocks", NOTHING)
    for place in places:
        if place > depth:
            raise OptionError(f"{prefix}.blocks.{place}", places[place], f"stage {number} has {depth} blocks")
    for_all = {k: v for k, v in own.items() if k not in STAGE_OPTIONS}
    specs: list[BlockSpec] = []
    for place in range(1, depth + 1):
        at_place = places.get(place, NOTHING)
        name = at_place.get("block") or own.get("block") or plan.block or row.block
        takes = _takes(name)
        in_table = row.places[min(place, len(row.places)) - 1]
        options = {k: v for k, v in (*in_table.items(), *plan.asked.items(), *row.pinned.items()) if k in takes}
        explicit = {k: v for k, v in at_place.items() if k != "block"}
        if for_all:
            # an option of the stage need not fit a place that has its own block
            explicit = {k: v for k, v in for_all.items() if k in takes or "block" not in at_place} | explicit
        for option in explicit:
            if option not in takes:
                where = f"{prefix}.blocks.{place}" if option in at_place else prefix
                has = f" (it has: {', '.join(sorted(takes))})" if takes else " (it has none)"
                raise UnknownOptionError(f"{where}.{option}", f"block {name}", has)
        if "hidden" in options:
            options["hidden"] = scale_channels(options["hidden"], width, plan.rounding)
            if "expand" in explicit or "expand" in plan.asked:
                del options["hidden"]
        options |= explicit
        stride = own.get("stride", row.stride) if place == (depth if row.stride_last else 1) else 1
        specs.append((name, channels, stride, tuple(sorted(options.items()))))
    return tuple(specs)
