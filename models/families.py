"""Families: each turns scaling knobs (width, resolution, depth, blocks) into a whole network.

The families stand in tables by kind, each at the foot of its file; add one there. A family with the option `block` has
stages and can be changed stage by stage and block by block, with options named `stages.N.OPTION` and
`stages.N.blocks.M.OPTION`, N and M counted from 1 as papers do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from mnet_search.models import classics, mobilenets, resnets
from mnet_search.models.arch import (
    NORM_EPS,
    NORM_MOMENTUM,
    UNSAID_INIT,
    Arch,
    Branches,
    Chain,
    External,
    MnetError,
    Node,
    Norm,
    OptionError,
    Residual,
    Scale,
    Shape,
    TooSmallError,
    UnknownOptionError,
    kept,
    walk,
)
from mnet_search.models.blocks import BLOCKS, options_of
from mnet_search.models.options import Family, check_choice, check_number
from mnet_search.models.stages import NOTHING, STAGE_OPTIONS, Frame, Options, assemble
from mnet_search.models.tables import lookup, nearest

TORCHVISION = "torchvision:"
# Options that no family's function takes itself.
OF_EVERY_FAMILY = ("init", "norm_eps", "norm_momentum")
# Rules for starting weights; the factory has their formulas and sources.
INITS = ("torch", "he_fan_in", "he_fan_out", "glorot")


def find_family(name: str) -> Family:
    """The row of a family, of `torchvision:NAME`, or of what `package.module:name` leads to (a Family or a function).

    Raises MnetError that names what is known.
    """
    if name.startswith(TORCHVISION):
        return _torchvision_family(name)
    try:
        found: Any = lookup(FAMILIES, name, "family")
    except MnetError as error:
        if ":" in name:
            raise
        raise MnetError(str(error).replace("; or package", "; torchvision:NAME; or package")) from None
    return found if isinstance(found, Family) else _own_family(name, found)


def _own_family(name: str, found: Any) -> Family:
    """The row of a user's function. Raises MnetError for what cannot be one."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        raise MnetError(f"family {name!r}: it is no function; write one of a network's options") from None
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if needed:
        raise MnetError(
            f"family {name!r}: its option {needed[0]!r} has no default; the options of a family all have one"
        )
    return Family(found)


@lru_cache(maxsize=256)
def _torchvision_family(name: str) -> Family:
    from mnet_search.models.traced import check_torchvision_name

    check_torchvision_name(name.removeprefix(TORCHVISION))
    return Family(partial(_torchvision_network, name))


def _torchvision_network(
    name: str, /, *, resolution: int = 224, dropout: float | None = None, classes: int = 1000, in_channels: int = 3
) -> External:
    """A torchvision classifier as it is, without auxiliary heads. (in_channels, resolution, resolution) ->
    (classes,).
    """
    if dropout is not None:
        check_number("dropout", dropout, at_least=0, below=1)
    own = dropout is None or _has_dropout(name.removeprefix(TORCHVISION), float(dropout))
    options = () if own or dropout is None else (("dropout", float(dropout)),)
    return External(Shape(in_channels, resolution, resolution), name, classes, options)


def _has_dropout(name: str, rate: float) -> bool:
    """Whether torchvision's network has this dropout already, so that asking for it changes nothing."""
    from mnet_search.models.traced import build_torchvision

    return {part.p for part in build_torchvision(name, meta=True).modules() if hasattr(part, "p")} == {rate}


@lru_cache(maxsize=256)
def _signature(family: str) -> Mapping[str, Any]:
    row = find_family(family)
    known = {
        p.name: p.default
        for p in inspect.signature(row.make).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    if family.startswith(TORCHVISION):
        return known
    return known | {"init": row.init, "norm_eps": row.norm_eps, "norm_momentum": row.norm_momentum}


def options_of_family(name: str) -> dict[str, Any]:
    """The options of a family with their defaults. Raises MnetError for an unknown family."""
    return dict(_signature(name))


def _is_count(number: str) -> bool:
    """Whether a part of a path is a number in its one spelling: 01 would be a second name for 1."""
    return number.isdecimal() and number == str(int(number)) and number != "0"


def check_option_names(family: str, names: list[str]) -> None:
    """Raises OptionError for the first name that is neither an option of the family nor a path to a stage or block
    that it could take.
    """
    known = _signature(family)
    has_stages = "block" in known
    block_options = {option for block in BLOCKS.values() for option in options_of(block)}
    at_place = sorted({"block"} | block_options)
    at_stage = sorted(set(STAGE_OPTIONS) | block_options)
    for name in names:
        match name.split("."):
            case [plain] if plain in known:
                continue
            case ["stages", number] if has_stages and _is_count(number):
                continue
            case ["stages", number, "blocks", place] if has_stages and _is_count(number) and _is_count(place):
                continue
            case ["stages", number, option] if has_stages and _is_count(number):
                if option not in at_stage:
                    known_text = f"{nearest(option, at_stage)} (a stage takes: {', '.join(at_stage)})"
                    raise UnknownOptionError(name, f"family {family}", known_text)
            case ["stages", number, "blocks", place, option] if has_stages and _is_count(number) and _is_count(place):
                if option not in at_place:
                    known_text = f"{nearest(option, at_place)} (a block takes: {', '.join(at_place)})"
                    raise UnknownOptionError(name, f"family {family}", known_text)
            case _:
                paths = ["stages.N.OPTION", "stages.N.blocks.M.OPTION"] if has_stages else []
                listed = ", ".join([*known, *paths])
                raise UnknownOptionError(name, f"family {family}", f"{nearest(name, known)} (it has: {listed})")


def create(family: str, **options: Any) -> Arch:
    """The network of a family under the given options; what concerns a stage or a block is named `stages.N.OPTION` or
    `stages.N.blocks.M.OPTION`, and `stages.N.blocks.M` takes a mapping of several.

    Raises MnetError for an unknown family, OptionError for an option or value that cannot be, a resolution too small
    for the strides among them. What networks have in common is made once.
    """
    layout = _layout(family, tuple(options))
    values = [options[name] for name in layout.plain]
    try:
        base = _base(family, layout.plain, *values)
    except TypeError:  # a list, say, that cannot be a key: refused by the checks of the option
        base = _base.__wrapped__(family, layout.plain, *values)
    if not layout.stages:
        return Arch(family, base.options, _finish(base, {}), base.init)
    overrides = {stage.number: _stage_options(stage, options) for stage in layout.stages}
    given = {name: options[name] for stage in layout.stages for name in stage.names}
    return Arch(family, {**base.options, **given}, _finish(base, overrides), base.init)


@dataclass(frozen=True)
class _Base:
    """A family's network under the options of the whole network: the options with defaults, the function's own
    arguments, and what it made of them.
    """

    family: Family
    arguments: Mapping[str, Any]
    made: Frame | Node
    options: Mapping[str, Any]
    init: str
    norm: tuple[float, float]


@lru_cache(maxsize=1024, typed=True)
def _base(family: str, names: tuple[str, ...], *values: Any) -> _Base:
    row, asked = find_family(family), dict(zip(names, values, strict=True))
    resolved = {**_signature(family), **asked}
    for name in ("resolution", "classes", "in_channels"):
        if name in resolved:
            check_number(name, resolved[name], whole=True, at_least=1)
    arguments = {name: value for name, value in asked.items() if name not in OF_EVERY_FAMILY}
    try:
        made = row.make(**arguments)
    except TooSmallError as error:
        raise _too_small(row, arguments, {}, str(error)) from None
    if not isinstance(made, Frame) and not isinstance(getattr(made, "input", None), Shape):
        raise MnetError(f"family {family!r} gave {made!r}, which is no network; it should give a Chain or a Frame")
    given = {name: value for name, value in resolved.items() if value is not None}
    if isinstance(made, External):
        return _Base(row, arguments, made, given, UNSAID_INIT, (NORM_EPS, NORM_MOMENTUM))
    check_choice("init", resolved["init"], INITS)
    for name in ("norm_eps", "norm_momentum"):
        check_number(name, resolved[name], above=0, below=1)
        changed = resolved[name] != _signature(family)[name]
        if changed and isinstance(made, Chain) and not any(isinstance(node, Norm) for _, node in walk(made)):
            raise OptionError(name, asked[name], "this network has no batch norm; leave it out")
    norm = (float(resolved["norm_eps"]), float(resolved["norm_momentum"]))
    return _Base(row, arguments, made, given, resolved["init"], norm)


def _finish(base: _Base, overrides: Mapping[int, Options]) -> Node:
    """The tree: stages filled, batch norms as asked for."""
    try:
        root = assemble(base.made, overrides) if isinstance(base.made, Frame) else base.made
    except TooSmallError as error:
        raise _too_small(base.family, base.arguments, overrides, str(error)) from None
    return root if base.norm == (NORM_EPS, NORM_MOMENTUM) else _with_norms(root, base.norm)


# An option of a stage or block ("" for a mapping of several), and the full name that it is given under.
Named = tuple[str, str]


@dataclass(frozen=True, eq=False)
class _StageLayout:
    """Where the options of one stage go: its own, and those of each block (place) in it; `names` are all of them."""

    number: int
    own: tuple[Named, ...]
    places: tuple[tuple[int, tuple[Named, ...]], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Layout:
    """Where the options of a call go: to the whole network, by name, or to its stages."""

    plain: tuple[str, ...]
    stages: tuple[_StageLayout, ...]


@lru_cache(maxsize=1024)
def _layout(family: str, names: tuple[str, ...]) -> _Layout:
    check_option_names(family, list(names))
    own: dict[int, list[Named]] = {}
    places: dict[int, dict[int, list[Named]]] = {}
    full_names: dict[int, list[str]] = {}
    for name in names:
        match name.split("."):
            case ["stages", number, "blocks", place, *option]:
                at_place = places.setdefault(int(number), {}).setdefault(int(place), [])
                at_place.append((option[0] if option else "", name))
            case ["stages", number, *option]:
                own.setdefault(int(number), []).append((option[0] if option else "", name))
            case _:
                continue
        full_names.setdefault(int(number), []).append(name)
    stages = (
        _StageLayout(
            number,
            tuple(own.get(number, ())),
            tuple((place, tuple(named)) for place, named in places.get(number, {}).items()),
            tuple(mine),
        )
        for number, mine in full_names.items()
    )
    return _Layout(tuple(name for name in names if "." not in name), tuple(stages))


def _stage_options(stage: _StageLayout, options: Mapping[str, Any]) -> Options:
    """{"stages.3.kernel": 5, "stages.3.blocks.2": {...}} -> {"kernel": 5, "blocks": {2: {...}}}."""
    values = [options[name] for name in stage.names]
    try:
        return _gathered(stage, *values)
    except TypeError:  # a mapping or list among the values, which cannot be a key
        found: Options = _gathered.__wrapped__(stage, *values)
        return found


@lru_cache(maxsize=4096, typed=True)
def _gathered(stage: _StageLayout, *values: Any) -> Options:
    options = dict(zip(stage.names, values, strict=True))
    gathered = _gather(stage.own, options)
    if "blocks" in gathered:
        gathered["blocks"] = _by_place(f"stages.{stage.number}.blocks", gathered["blocks"])
    for place, named in stage.places:
        places = gathered.setdefault("blocks", {})
        places[place] = _gather(named, options, places.get(place, {}))
    return gathered


def _by_place(name: str, blocks: Any) -> dict[int, Options]:
    """{1: {...}, 2: {...}}, the places as numbers or as JSON's words."""
    if not isinstance(blocks, Mapping) or not all(_is_count(str(place)) for place in blocks):
        raise OptionError(name, blocks, "it takes a mapping of places such as {1: {block: inverted_residual}}")
    return {int(place): Options(_mapping(f"{name}.{place}", options)) for place, options in blocks.items()}


def _gather(named: tuple[Named, ...], options: Mapping[str, Any], before: Mapping[str, Any] = NOTHING) -> Options:
    """The options of a stage or place. Raises OptionError where one is given twice."""
    gathered = Options(before)
    for option, name in named:
        for key, value in {option: options[name]}.items() if option else _mapping(name, options[name]).items():
            if key in gathered:
                raise OptionError(name, options[name], f"{key!r} is given twice; leave one of them out")
            gathered[key] = value
    return gathered


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise OptionError(name, value, "it takes a mapping such as {block: inverted_residual, kernel: 5}")
    return value


def _with_norms(node: Node, norm: tuple[float, float]) -> Node:
    """The tree with these eps and momentum in its batch norms."""
    return kept(node, f"_with_norms {norm}", partial(_replace_norms, norm=norm))


def _replace_norms(node: Node, norm: tuple[float, float]) -> Node:
    match node:
        case Norm():
            return Norm(node.input, *norm)
        case Chain(children=children):
            return Chain(node.input, tuple((label, _with_norms(child, norm)) for label, child in children))
        case Branches(children=children):
            return Branches(tuple((label, _with_norms(child, norm)) for label, child in children))
        case Residual(body=body, shortcut=shortcut):
            return Residual(_with_norms(body, norm), _with_norms(shortcut, norm) if shortcut is not None else None)
        case Scale(gate=gate):
            return Scale(_with_norms(gate, norm))
    return node


def _too_small(row: Family, arguments: Mapping[str, Any], overrides: Mapping[int, Options], why: str) -> OptionError:
    """What to do about a resolution that is too small: the smallest that works, found by trying."""
    defaults = {p.name: p.default for p in inspect.signature(row.make).parameters.values()}
    given = {**defaults, **arguments}
    for resolution in range(int(given["resolution"]) + 1, 1025):
        if not _fits(row, {**arguments, "resolution": resolution}, overrides, given):
            continue
        stem = " or a stem_stride of 1" if _fits(row, {**arguments, "stem_stride": 1}, overrides, given) else ""
        why = f"{why}: too small for the strides; use {resolution} or more{stem}"
        return OptionError("resolution", given["resolution"], why)
    return OptionError("resolution", given["resolution"], f"{why}: too small for the strides")


def _fits(
    row: Family, arguments: Mapping[str, Any], overrides: Mapping[int, Options], known: Mapping[str, Any]
) -> bool:
    """Whether the resolution is large enough under these arguments, all of which the family knows."""
    if not arguments.keys() <= known.keys():
        return False
    try:
        made = row.make(**arguments)
        if isinstance(made, Frame):
            assemble(made, overrides)
    except TooSmallError:
        return False
    return True


FAMILIES: dict[str, Family] = {**mobilenets.FAMILIES, **classics.FAMILIES, **resnets.FAMILIES}
