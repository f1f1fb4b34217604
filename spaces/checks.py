"""Whether the names in a space file are those of networks: families, their options, blocks, conditions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mnet_search.models.arch import MnetError, OptionError
from mnet_search.models.blocks import BLOCKS, check_option, options_of
from mnet_search.models.families import check_option_names, find_family
from mnet_search.models.tables import lookup, nearest
from mnet_search.spaces.scalings import SCALING
from mnet_search.spaces.schema import Parameter, Range, SpaceFile, Training, Value, conditions
from mnet_search.spaces.settings import is_setting
from mnet_search.spaces.yamlfile import Source


def check_families(file: SpaceFile, families: Sequence[str], source: Source) -> None:
    """Raises SpaceError for a family, named block, parameter or condition that cannot be."""
    for name in ("classes", "in_channels"):
        if name in file.parameters and file.evaluate is None:
            raise source.error(("parameters", name), "is decided by the data, not searched; remove it")
    for variant, options in file.blocks.items():
        _check_variant(variant, options, source)
    for family in families:
        try:
            find_family(family)
        except MnetError as error:
            raise source.error(("family",), str(error)) from None
        no_options = ("family", *(SCALING if file.scalings else ()))
        searched = [name for name in file.parameters if name not in no_options and not is_setting(name)]
        mine = [name for name in searched if _exists_in(family, file.parameters[name])]
        try:
            check_option_names(family, mine)
        except OptionError as error:
            other = "; give it a `when: {family: ...}`" if len(families) > 1 else ""
            if error.option in Training.model_fields:
                other = f"; to search over how networks are trained, write training.{error.option}"
            raise source.error(("parameters", error.option), f"{error}{other}") from None
    _check_blocks(file, source)


def check_conditions(file: SpaceFile, source: Source) -> None:
    """Raises SpaceError for a condition on a parameter that is not there, or on a value that it never has."""
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


def _check_blocks(file: SpaceFile, source: Source) -> None:
    """Every block that a parameter chooses exists, under the file's own names or the built-in ones."""
    known = [*BLOCKS, *file.blocks]
    for name, parameter in file.parameters.items():
        path = name.split(".")
        if path[-1] != "block" and not (len(path) == 4 and path[2] == "blocks"):
            continue
        if isinstance(parameter, Range):
            raise source.error(("parameters", name), "blocks are named one by one, not by a range; write a list")
        for value in parameter.values:
            if value not in known and ":" not in str(value):
                has = f"(known: {', '.join(known)})"
                raise source.error(("parameters", name), f"unknown block {value!r}{nearest(str(value), known)} {has}")


def _check_variant(variant: str, options: Mapping[str, Value], source: Source) -> None:
    """A named block is one that exists, with options that it has."""
    block = str(options["block"])
    if variant in BLOCKS:
        raise source.error(("blocks", variant), "is the name of a built-in block; choose another")
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
    """Every name that stands at `path`, alone or as a key, and every value of a parameter that sets it."""
    value: Any = file
    for key in path:
        value = getattr(value, key)
    for name in [value] if isinstance(value, str) else list(value or ()):
        _check_name(source, path if isinstance(value, str) else (*path, name), names, name)
    parameter = file.parameters.get(".".join(path))
    for name in parameter.grid() or [] if parameter else []:
        _check_name(source, ("parameters", ".".join(path)), names, str(name), kind=path[-1])


def _check_name(source: Source, path: tuple[str, ...], names: Collection[str], name: str, kind: str = "") -> None:
    if name not in names and ":" not in name:
        kind = kind or next(key for key in reversed(path) if key != name).removesuffix("s")
        raise source.error(path, f"unknown {kind} {name!r}{nearest(name, names)} (known: {', '.join(names)})")
