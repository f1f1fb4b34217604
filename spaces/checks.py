"""Whether the names in a space file are those of networks: families, their options, blocks, conditions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mnet_search.models.arch import MnetError, OptionError
from mnet_search.models.blocks import BLOCKS, check_option, options_of
from mnet_search.models.families import check_option_names, find_family
from mnet_search.models.tables import lookup, nearest
from mnet_search.spaces.schema import Parameter, SpaceFile, Value, conditions
from mnet_search.spaces.yamlfile import Source


def check_families(file: SpaceFile, families: Sequence[str], source: Source) -> None:
    """Raises SpaceError for a family, named block, parameter or condition that cannot be."""
    for name in ("classes", "in_channels"):
        if name in file.parameters:
            raise source.error(("parameters", name), "is decided by the data, not searched; remove it")
    for variant, options in file.blocks.items():
        _check_variant(variant, options, source)
    for family in families:
        try:
            find_family(family)
        except MnetError as error:
            raise source.error(("family",), str(error)) from None
        mine = [name for name, p in file.parameters.items() if name != "family" and _exists_in(family, p)]
        try:
            check_option_names(family, mine)
        except OptionError as error:
            other = "; give it a `when: {family: ...}`" if len(families) > 1 else ""
            raise source.error(("parameters", error.option), f"{error}{other}") from None
    _check_conditions(file, source)


def _check_conditions(file: SpaceFile, source: Source) -> None:
    known = file.parameters
    for name, parameter in known.items():
        for other, values in conditions(parameter):
            path = ("parameters", name, "when", other)
            if other not in known:
                has = f"(this space has: {', '.join(known)})"
                raise source.error(path, f"no such parameter{nearest(other, known)} {has}")
            grid = known[other].grid()
            strays = [value for value in values if grid is not None and value not in grid]
            if strays:
                raise source.error(path, f"{other} never is {strays[0]!r}; its values are {grid}")


def _check_variant(variant: str, options: Mapping[str, Value], source: Source) -> None:
    """A named block is one that exists, with options that it has."""
    block = str(options["block"])
    _check_name(source, ("blocks", variant, "block"), BLOCKS, block)
    known = options_of(lookup(BLOCKS, block, "block"))
    for option, value in options.items():
        path = ("blocks", variant, option)
        if option != "block" and option not in known:
            has = f"{nearest(option, known)} (it has: {', '.join(known) or 'none'})"
            raise source.error(path, f"block {block} has no option {option!r}{has}")
        try:
            check_option(option, value, known.get(option))
        except OptionError as error:
            raise source.error(path, str(error)) from None


def _exists_in(family: str, parameter: Parameter) -> bool:
    """Whether a parameter's conditions leave it to this family."""
    return all(family in values for other, values in conditions(parameter) if other == "family")


def check_names(file: SpaceFile, source: Source, path: tuple[str, ...], names: Collection[str]) -> None:
    """Every name that stands at `path`, alone or as a key."""
    value: Any = file
    for key in path:
        value = getattr(value, key)
    for name in [value] if isinstance(value, str) else list(value):
        _check_name(source, path if isinstance(value, str) else (*path, name), names, name)


def _check_name(source: Source, path: tuple[str, ...], names: Collection[str], name: str) -> None:
    if name not in names and ":" not in name:
        kind = next(key for key in reversed(path) if key != name).removesuffix("s")
        raise source.error(path, f"unknown {kind} {name!r}{nearest(name, names)} (known: {', '.join(names)})")
