"""Families: each turns scaling knobs (width, resolution, depth, blocks) into a whole network.

The families stand in tables by kind, each at the foot of its file; add one there. A family that takes `stages` can be
changed stage by stage and block by block, with options named `stages.N.OPTION` and `stages.N.blocks.M.OPTION`, N and M
counted from 1 as papers do.
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
)
from mnet_search.models.blocks import BLOCKS, options_of
from mnet_search.models.options import Family, check_choice, check_number
from mnet_search.models.stages import STAGE_OPTIONS, Options
from mnet_search.models.tables import lookup, nearest

TORCHVISION = "torchvision:"
# Rules for starting weights; the factory has their formulas and sources.
OF_EVERY_FAMILY = ("init", "norm_eps", "norm_momentum")
INITS = ("he_fan_in", "he_fan_out", "glorot", "torch")


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
    return found if isinstance(found, Family) else Family(found)


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
    options = () if dropout is None else (("dropout", dropout),)
    return External(Shape(in_channels, resolution, resolution), name, classes, options)


@lru_cache(maxsize=256)
def _signature(family: str) -> Mapping[str, Any]:
    """Options of a family with their defaults, `stages` among them."""
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
    """The options of a family with their defaults, `stages` aside. Raises MnetError for an unknown family."""
    return {option: default for option, default in _signature(name).items() if option != "stages"}


def check_option_names(family: str, names: list[str]) -> None:
    """Raises OptionError for the first name that is neither an option of the family nor a path to a stage or block
    that it could take.
    """
    known = _signature(family)
    block_options = {option for block in BLOCKS.values() for option in options_of(block)}
    at_place = sorted({"block"} | block_options)
    at_stage = sorted(set(STAGE_OPTIONS) | block_options)
    for name in names:
        match name.split("."):
            case [plain] if plain in known and plain != "stages":
                continue
            case ["stages", number] if "stages" in known and number.isdigit():
                continue
            case ["stages", number, "blocks", place] if "stages" in known and (number + place).isdigit():
                continue
            case ["stages", number, option] if "stages" in known and number.isdigit():
                if option not in at_stage:
                    known_text = f"{nearest(option, at_stage)} (a stage takes: {', '.join(at_stage)})"
                    raise UnknownOptionError(name, f"family {family}", known_text)
            case ["stages", number, "blocks", place, option] if "stages" in known and (number + place).isdigit():
                if option not in at_place:
                    known_text = f"{nearest(option, at_place)} (a block takes: {', '.join(at_place)})"
                    raise UnknownOptionError(name, f"family {family}", known_text)
            case _:
                paths = ["stages.N.OPTION", "stages.N.blocks.M.OPTION"] if "stages" in known else []
                plain_names = [option for option in known if option != "stages"]
                listed = ", ".join([*plain_names, *paths])
                raise UnknownOptionError(name, f"family {family}", f"{nearest(name, plain_names)} (it has: {listed})")


def create(family: str, **options: Any) -> Arch:
    """The network of a family under the given options; what concerns a stage or a block is named `stages.N.OPTION` or
    `stages.N.blocks.M.OPTION`, and `stages.N.blocks.M` takes a mapping of several.

    Raises MnetError for an unknown family, OptionError for an option or value that cannot be, a resolution too small
    for the strides among them.
    """
    layout = _layout(family, tuple(options))
    resolved = layout.defaults | options
    for name in layout.sizes:
        check_number(name, resolved[name], whole=True, at_least=1)
    root = _make(family, _nest(layout, options), resolved)
    kept = {name: value for name, value in resolved.items() if value is not None}
    if isinstance(root, External):
        return Arch(family, kept, root)
    check_choice("init", resolved["init"], INITS)
    return Arch(family, kept, _with_norm(root, resolved), resolved["init"])


def _make(family: str, arguments: Mapping[str, Any], resolved: Mapping[str, Any]) -> Node:
    row = find_family(family)
    try:
        root: Node = row.make(**arguments)
    except TooSmallError as error:
        raise OptionError(
            "resolution", resolved.get("resolution"), _smallest_resolution(row, arguments, resolved, str(error))
        ) from None
    return root


# An option of a stage or block ("" for a mapping of several), and the full name that it is given under.
Named = tuple[str, str]


@dataclass(frozen=True)
class _Layout:
    """Where the options of a call go: those of the family's function by name; for each stage its own options, and those
    of each block (place) in it.
    """

    defaults: dict[str, Any]
    sizes: tuple[str, ...]
    plain: tuple[str, ...]
    stages: tuple[tuple[int, tuple[Named, ...], tuple[tuple[int, tuple[Named, ...]], ...], tuple[str, ...]], ...]


@lru_cache(maxsize=1024)
def _layout(family: str, names: tuple[str, ...]) -> _Layout:
    check_option_names(family, list(names))
    defaults = options_of_family(family)
    stages: dict[int, list[Named]] = {}
    places: dict[int, dict[int, list[Named]]] = {}
    full_names: dict[int, list[str]] = {}
    for name in names:
        match name.split("."):
            case ["stages", number, "blocks", place, *option]:
                at_place = places.setdefault(int(number), {}).setdefault(int(place), [])
                at_place.append((option[0] if option else "", name))
            case ["stages", number, *option]:
                stages.setdefault(int(number), []).append((option[0] if option else "", name))
            case _:
                continue
        full_names.setdefault(int(number), []).append(name)
    return _Layout(
        defaults,
        tuple(name for name in ("resolution", "classes", "in_channels") if name in defaults),
        tuple(name for name in names if "." not in name and name not in OF_EVERY_FAMILY),
        tuple(
            (
                number,
                tuple(stages.get(number, ())),
                tuple((place, tuple(named)) for place, named in places.get(number, {}).items()),
                tuple(mine),
            )
            for number, mine in full_names.items()
        ),
    )


def _nest(layout: _Layout, options: Mapping[str, Any]) -> dict[str, Any]:
    """{"stages.3.kernel": 5, "stages.1.blocks.2": {...}, "width": 1} -> {"width": 1, "stages": {3: {"kernel": 5}, 1:
    {"blocks": {2: {...}}}}}.
    """
    arguments = {name: options[name] for name in layout.plain}
    if layout.stages:
        arguments["stages"] = stages = {}
        for number, own, places, names in layout.stages:
            values = tuple([options[name] for name in names])
            try:
                stages[number] = _stage_options(own, places, names, values)
            except TypeError:  # a plain mapping among the values, which cannot be a key
                hashable = tuple(Options(value) if isinstance(value, dict) else value for value in values)
                stages[number] = _stage_options(own, places, names, hashable)
    return arguments


@lru_cache(maxsize=4096, typed=True)
def _stage_options(
    own: tuple[Named, ...],
    places: tuple[tuple[int, tuple[Named, ...]], ...],
    names: tuple[str, ...],
    values: tuple[Any],
) -> Options:
    options = dict(zip(names, values, strict=True))
    gathered = _gather(own, options)
    if places:
        gathered["blocks"] = {place: _gather(named, options) for place, named in places}
    return gathered


def _gather(named: tuple[Named, ...], options: Mapping[str, Any]) -> Options:
    gathered = Options()
    for option, name in named:
        if option:
            gathered[option] = options[name]
        else:
            gathered.update(_mapping(name, options[name]))
    return gathered


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise OptionError(name, value, "it takes a mapping such as {block: inverted_residual, kernel: 5}")
    return value


def _with_norm(root: Node, resolved: Mapping[str, Any]) -> Node:
    """The tree with the batch norms that the options ask for."""
    eps, momentum = resolved["norm_eps"], resolved["norm_momentum"]
    check_number("norm_eps", eps, above=0, below=1)
    check_number("norm_momentum", momentum, above=0, below=1)
    if (eps, momentum) == (NORM_EPS, NORM_MOMENTUM):
        return root
    return _replace_norms(root, float(eps), float(momentum))


def _replace_norms(node: Node, eps: float, momentum: float) -> Node:
    again = partial(_replace_norms, eps=eps, momentum=momentum)
    match node:
        case Norm():
            return Norm(node.input, eps, momentum)
        case Chain(children=children):
            return Chain(node.input, tuple((label, again(child)) for label, child in children))
        case Branches(children=children):
            return Branches(tuple((label, again(child)) for label, child in children))
        case Residual(body=body, shortcut=shortcut):
            return Residual(again(body), again(shortcut) if shortcut is not None else None)
        case Scale(gate=gate):
            return Scale(again(gate))
    return node


def _smallest_resolution(row: Family, arguments: Mapping[str, Any], resolved: Mapping[str, Any], why: str) -> str:
    """What to do about a resolution that is too small: the smallest that works, found by trying."""
    for resolution in range(int(resolved["resolution"]) + 1, 1025):
        try:
            row.make(**{**arguments, "resolution": resolution})
        except TooSmallError:
            continue
        stem = " or a stem_stride of 1" if (resolved.get("stem_stride") or 1) > 1 else ""
        return f"{why}: too small for the strides; use {resolution} or more{stem}"
    return f"{why}: too small for the strides"


FAMILIES: dict[str, Family] = {**mobilenets.FAMILIES, **classics.FAMILIES, **resnets.FAMILIES}
