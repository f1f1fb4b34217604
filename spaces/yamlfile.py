"""Reading a space file: YAML 1.2 with line numbers, `--set` overrides, and pydantic's errors put into one line that a
person can act on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.spaces.schema import COST_NAMES, Bound, Choice, Range

KeyPath = tuple[str, ...]
Model = TypeVar("Model", bound=BaseModel)


class SpaceError(MnetError):
    """A space file that cannot be used; the text names file, line, key and what to do."""


class Source:
    """Where a space came from, so that an error about a key can name its file and line."""

    def __init__(self, name: str, lines: Mapping[KeyPath, int] | None = None, overridden: Iterable[KeyPath] = ()):
        self.name, self._lines, self._overridden = name, dict(lines or {}), set(overridden)

    def overrides(self, path: KeyPath) -> bool:
        """Whether the command line gave the key `path`, or a whole mapping above it."""
        return any(path[:length] in self._overridden for length in range(1, len(path) + 1))

    def error(self, path: KeyPath, message: str) -> SpaceError:
        """A SpaceError that points at the key `path`, or at the nearest key above it that the file has."""
        if path[:2] == ("parameters", "family") and path[:2] not in self._lines:
            path = ("family",)  # a list of families is kept as a parameter, wherever it was written
        for length in range(len(path), 0, -1):
            if path[:length] in self._overridden:
                return SpaceError(f"--set {'.'.join(path[:length])}: {message}")
        if path not in self._lines and (made := next((o for o in self._overridden if o[: len(path)] == path), None)):
            return SpaceError(f"--set {'.'.join(made)}: {message}")
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                return SpaceError(f"{self.name}:{self._lines[path[:length]]}: {'.'.join(path)}: {message}")
        return SpaceError(f"{self.name}: {'.'.join(path) + ': ' if path else ''}{message}")


def read(path: Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], Source]:
    """The content of a space file as plain values, overrides applied, with the lines of its keys. Raises SpaceError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpaceError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"{path}: cannot be read: {error}") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, CommentedMap):
        raise SpaceError(f"{path}: expected keys and values (`family: mobilenet_v1`), found {_kind(tree)}")
    values, lines = _plain(tree), dict(_line_numbers(tree))
    overridden = [_override(values, item) for item in overrides]
    return values, Source(str(path), lines, overridden)


def parse_value(text: str) -> Any:
    """A value of the command line, by YAML 1.2's rules: 1e-4 is a number, no is a word, [1, 2] a list."""
    return _plain(_parse(text, "--set"))


def validate(values: Mapping[str, Any], source: Source, model: type[Model]) -> Model:
    """A file's values as a model. Raises SpaceError that names the first bad key, what is wrong with it, and how many
    more there are.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        path, message = first_problem(error, model)
        # A key that may be a number or a word is refused once by each; it is one key all the same.
        keys = {_explained(problem, model)[0] for problem in error.errors(include_url=False)}
        more = len(keys) - 1
        raise source.error(path, message + (f" (and {more} more)" if more else "")) from None


def first_problem(error: ValidationError, model: type[BaseModel]) -> tuple[KeyPath, str]:
    """The key that pydantic refuses first, and why, in a sentence."""
    # An unknown key is usually the misspelt form of a key that is then missing: name the cause first.
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    return _explained(problems[0], model)


def _explained(problem: Any, model: type[BaseModel]) -> tuple[KeyPath, str]:
    return _explain(problem["loc"], problem["type"], problem["msg"], problem.get("input"), model)


def dump(values: Mapping[str, Any]) -> str:
    """Values as YAML text."""
    stream = StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = None  # the innermost lists and mappings on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None, meant as a switch
    yaml.width = 120
    yaml.dump(dict(values), stream)
    return stream.getvalue()


def _parse(text: str, name: str) -> Any:
    try:
        return YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else ""
        raise SpaceError(f"{name}:{line}: the key {key!r} stands twice in one mapping; remove one of them") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SpaceError(f"{name}:{line}: not valid YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise SpaceError(f"{name}: not valid YAML: {error}") from None


def _plain(node: Any) -> Any:
    """ruamel's annotated containers and scalars as plain dict, list, int, float, str."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _line_numbers(node: Any, path: KeyPath = ()) -> Iterable[tuple[KeyPath, int]]:
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            here = (*path, str(key))
            yield here, node.lc.key(key)[0] + 1
            yield from _line_numbers(value, here)
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield (*path, str(index)), node.lc.item(index)[0] + 1
            yield from _line_numbers(value, (*path, str(index)))


def _override(values: dict[str, Any], item: str) -> KeyPath:
    """Apply one `PATH=VALUE` in place. Below `parameters` the rest of the path is one key, since parameter names have
    dots.
    """
    dotted, equals, text = item.partition("=")
    if not equals or not dotted.strip():
        raise SpaceError(f"--set {item}: write PATH=VALUE, for example --set training.epochs=2")
    first, *rest = dotted.strip().split(".")
    path = (first, ".".join(rest)) if first == "parameters" and rest else (first, *rest)
    here = values
    for key in path[:-1]:
        child = here.setdefault(key, {})
        if not isinstance(child, dict):
            raise SpaceError(f"--set {dotted}: {key} is {_kind(child)}, not a mapping")
        here = child
    here[path[-1]] = parse_value(text)
    return path


def _explain(
    loc: tuple[int | str, ...], kind: str, message: str, value: Any, model: type[BaseModel]
) -> tuple[KeyPath, str]:
    """Pydantic's location and message as a key path and a sentence."""
    path = tuple(
        str(part) for part in loc if part not in ("Choice", "Range", "[key]") and not str(part).startswith("function-")
    )
    message = message.removeprefix("Value error, ")
    if kind == "extra_forbidden" or (path[:1] == ("constraints",) and kind == "literal_error" and len(path) == 2):
        known = _known_keys(path[:-1], model)
        return path, f"unknown key{nearest(path[-1], known)} (known: {', '.join(known)})"
    if kind == "missing":
        return path, "is required"
    if kind in ("value_error", "assertion_error"):
        return path, message
    return path, f"{message[:1].lower()}{message[1:]}, got {value!r} ({_kind(value)})"


def _known_keys(path: KeyPath, model: type[BaseModel]) -> list[str]:
    """The keys that the schema has at a place."""
    if path[:1] == ("constraints",):
        return list(Bound.model_fields) if len(path) == 2 else list(COST_NAMES)
    if path[:1] == ("parameters",):
        return [*Choice.model_fields, *(k for k in Range.model_fields if k not in Choice.model_fields)]
    for key in path:
        annotation = model.model_fields[key].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a mapping",
        type(None): "nothing",
    }
    return next((text for kind, text in names.items() if isinstance(value, kind)), type(value).__name__)
