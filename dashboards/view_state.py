"""What a visitor looks at, as a value and as the query of the page's address: every view can be shared as a link.

`/?study=cifar&view=pareto&x=params&color=depth&max.params=50000&brush.width=0.25..0.5&trials=3,7&theme=dark`
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

THEMES = ("light", "dark")
# What views may be told beside what all share; each view says which of them it hears.
OPTIONS = (
    "x", "y", "color", "size", "log", "show", "by", "of", "sort", "find", "columns", "page", "with", "cost",
)  # fmt: skip
MOST_TRIALS = 5  # side by side
MOST_QUERY = 8000  # characters
_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([kMG]?)")


@dataclass(frozen=True)
class Brush:
    """What of an axis is kept: numbers within one of the ranges, or one of the values."""

    ranges: tuple[tuple[float, float], ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class ViewState:
    """The whole state of the page. `maxima` are budgets, `brush` filters of axes, by column name."""

    study: str = ""
    view: str = ""
    trials: tuple[int, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)
    brush: Mapping[str, Brush] = field(default_factory=dict)
    theme: str = ""

    def option(self, name: str, default: str = "") -> str:
        """An option of the view, or the default where the address does not say."""
        return self.options.get(name, default)

    def to(self, view: str, *trials: int) -> ViewState:
        """Another view of the same study, with its filters and budgets and no other view's options."""
        return replace(self, view=view, trials=trials, options={})

    def having(self, **options: Any) -> ViewState:
        """The same view with other options; an empty one is taken away."""
        merged = {**self.options, **{name: str(value) for name, value in options.items()}}
        return replace(self, options={name: value for name, value in merged.items() if value})


def to_query(state: ViewState) -> str:
    """The query that `from_query` reads back, with its question mark."""
    pairs = [("study", state.study), ("view", state.view)]
    pairs += [(name, state.options[name]) for name in OPTIONS if name in state.options]
    pairs += [(f"max.{name}", _number_text(value)) for name, value in state.maxima.items()]
    pairs += [(f"brush.{name}", _brush_text(brush)) for name, brush in state.brush.items()]
    pairs += [("trials", ",".join(map(str, state.trials))), ("theme", state.theme)]
    return "?" + urlencode([(key, value) for key, value in pairs if value], safe=",:/", quote_via=quote)


def from_query(query: str) -> tuple[ViewState, tuple[str, ...]]:
    """The state that an address means, and what of the address was left out, in words."""
    if len(query) > MOST_QUERY:
        return ViewState(), (f"the address has {len(query):,} characters, more than {MOST_QUERY:,}: left out",)
    found = _Reader()
    for key, value in parse_qsl(query.removeprefix("?"), keep_blank_values=True):
        if value:
            found.read(key, value)
    return ViewState(**found.values), tuple(found.problems)


class _Reader:
    """Takes the parts of a query one by one; what it cannot read becomes a problem in words."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"options": {}, "maxima": {}, "brush": {}}
        self.problems: list[str] = []

    def read(self, key: str, value: str) -> None:
        kind, _, name = key.partition(".")
        if key in ("study", "view"):
            self.values[key] = value
        elif key in OPTIONS:
            self.values["options"][key] = value
        elif key == "theme" and value in THEMES:
            self.values["theme"] = value
        elif key == "trials":
            self.values["trials"] = self._trials(value)
        elif kind == "max" and name:
            self._maximum(name, value)
        elif kind == "brush" and name:
            self._brush(name, value)
        else:
            self.problems.append(f"{_short(key)}={_short(value)} means nothing here: left out")

    def _trials(self, value: str) -> tuple[int, ...]:
        words = value.split(",")
        numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 10]
        if len(numbers) < len(words):
            self.problems.append(f"trials={_short(value)}: trials are whole numbers with commas between")
        kept = tuple(dict.fromkeys(numbers))
        if len(kept) > MOST_TRIALS:
            self.problems.append(f"{len(kept)} trials asked for: the first {MOST_TRIALS} are shown")
        return kept[:MOST_TRIALS]

    def _maximum(self, name: str, value: str) -> None:
        number = parse_number(value)
        if number is None:
            self.problems.append(f"max.{_short(name)}={_short(value)} is no number, such as 50k: left out")
        else:
            self.values["maxima"][name] = number

    def _brush(self, name: str, value: str) -> None:
        brush = _read_brush(value)
        if brush is None:
            self.problems.append(f"brush.{_short(name)}={_short(value)} is no range, such as 0.25..0.5: left out")
        else:
            self.values["brush"][name] = brush


def parse_number(word: str) -> float | None:
    """A finite number with k, M or G behind it or not; None for anything else."""
    found = _NUMBER.fullmatch(word.strip())
    if not found:
        return None
    value = float(found[1]) * _SCALES[found[2]]
    return value if math.isfinite(value) else None


def _number_text(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _brush_text(brush: Brush) -> str:
    # A point in a value is written as %2E and a comma as %2C, which a range never has.
    words = [f"{_number_text(low)}..{_number_text(high)}" for low, high in brush.ranges]
    return ",".join([*words, *(quote(value, safe=" ").replace(".", "%2E") for value in brush.values)])


def _read_brush(text: str) -> Brush | None:
    ranges, values = [], []
    for word in text.split(","):
        if ".." in word:
            low, high = map(parse_number, word.split("..", 1))
            if low is None or high is None or low > high:
                return None
            ranges.append((low, high))
        elif word:
            values.append(unquote(word))
    return Brush(tuple(ranges), tuple(values)) if ranges or values else None


def _short(word: str) -> str:
    return word if len(word) <= 40 else f"{word[:40]}…"
