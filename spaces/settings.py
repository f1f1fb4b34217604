"""Parameters that set a key of the file's `data` or `training` for a trial, instead of an option of its network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from mnet_search.models.tables import nearest
from mnet_search.spaces.schema import Choice, Data, Parameter, SpaceFile, Strict, Training, Value, conditions
from mnet_search.spaces.yamlfile import Source, first_problem

SECTIONS: Mapping[str, type[Strict]] = {"data": Data, "training": Training}
# Each is read before anything is written, and a worker keeps what it read.
MOST_DATA_SETTINGS = 8
# They decide which images validate: the accuracies of one study would be of different images.
SPLITTING = ("validation", "test", "split_seed")
UNSEARCHED = ("search", "resources", "objectives", "constraints")
TRIED_VALUES = 200

Model = TypeVar("Model", bound=Strict)


def is_setting(name: str) -> bool:
    """Whether a parameter is a key of `data` or `training`."""
    return name.startswith(("data.", "training."))


class TrialSettings:
    """The data and training of single trials: the file's own, with what the trial's parameters say of them."""

    def __init__(self, file: SpaceFile):
        self._file = file
        self.names = tuple(name for name in file.parameters if is_setting(name))
        self._made: dict[tuple[object, ...], Strict] = {}

    def network(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """The options of the network alone."""
        return {name: value for name, value in params.items() if name not in self.names}

    def data(self, params: Mapping[str, Value]) -> Data:
        return self._filled(self._file.data, "data.", params)

    def training(self, params: Mapping[str, Value]) -> Training:
        return self._filled(self._file.training, "training.", params)

    def id(self, params: Mapping[str, Value]) -> str:
        """12 hex digits over every key that some trial sets, by what it is in this one: the file's where it is not set.

        Where the images lie is part of it only as a parameter that this trial has, since a study may move.
        """
        parts: Mapping[str, Strict] = {"data": self.data(params), "training": self.training(params)}
        values = {}
        for name in self.names:
            section, _, key = name.partition(".")
            if name in params if name == "data.path" else name != "data.download":
                values[name] = getattr(parts[section], key)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def behind(self, prefix: str) -> set[str]:
        """The parameters under `prefix` and those that decide, one behind another, whether they exist."""
        found: set[str] = set()
        waiting = [name for name in self.names if name.startswith(prefix)]
        while waiting:
            name = waiting.pop()
            found.add(name)
            waiting += [other for other, _ in conditions(self._file.parameters[name]) if other not in found]
        return found

    def _filled(self, base: Model, prefix: str, params: Mapping[str, Value]) -> Model:
        """The section with the trial's values in it, made once for the same values."""
        chosen = {n.removeprefix(prefix): params[n] for n in self.names if n.startswith(prefix) and n in params}
        if not chosen:
            return base
        # 1, 1.0 and true are one key of a mapping, and not one value
        key = (prefix, *((name, type(value), value) for name, value in chosen.items()))
        if key not in self._made:
            self._made[key] = base.model_validate({**base.model_dump(), **chosen})
        made = self._made[key]
        assert isinstance(made, type(base))
        return made


def check_settings(file: SpaceFile, source: Source) -> None:
    """Raises SpaceError for a parameter that no key of `data` or `training` has, may not vary, has a value that the key
    cannot have, or is overruled from the command line. Conditions are known not to run in circles.
    """
    for name, parameter in file.parameters.items():
        section, dot, key = name.partition(".")
        if section not in SECTIONS or not dot:
            _check_section(name, source)
            continue
        path, known = ("parameters", name), SECTIONS[section].model_fields
        if key not in known:
            raise source.error(path, f"unknown key of {section}{nearest(key, known)} (known: {', '.join(known)})")
        if section == "data" and key in SPLITTING:
            reason = "the accuracies of one study would be of different validation images"
            raise source.error(path, f"cannot be searched over, {reason}; write it under `data`")
        _check_values(section, key, parameter, path, source)
        given = key in getattr(file, section).model_fields_set and source.overrides((section, key))
        if given and _always(file, name):
            raise source.error((section, key), f"parameters.{name} decides it; set that: -s parameters.{name}=...")


def _check_section(name: str, source: Source) -> None:
    """Parts of the file that are no section of a trial's settings, and misspelt ones."""
    section, dot, rest = name.partition(".")
    if dot and section in UNSEARCHED:
        raise source.error(("parameters", name), f"{section} holds for a whole study; write it under `{section}`")
    meant = nearest(section, [*SECTIONS, "stages"]) if dot and section != "stages" else ""
    if meant:
        raise source.error(("parameters", name), f"no such parameter{meant.removesuffix('?')}.{rest}?")


def _check_values(section: str, key: str, parameter: Parameter, path: tuple[str, ...], source: Source) -> None:
    """Every value of a list, the ends and first steps of a range, is one that the key may have."""
    if isinstance(parameter, Choice):
        values = parameter.values
    else:
        values = [parameter.min, parameter.max, *(parameter.grid() or [])[:TRIED_VALUES]]
    for value in values:
        try:
            SECTIONS[section].model_validate({key: value})
        except ValidationError as error:
            raise source.error(path, first_problem(error, SECTIONS[section])[1]) from None


def _always(file: SpaceFile, name: str) -> bool:
    """Whether every network has the parameter, whatever its conditions."""
    for other, values in conditions(file.parameters[name]):
        grid = file.parameters[other].grid()
        if grid is None or not all(value in values for value in grid) or not _always(file, other):
            return False
    return True
