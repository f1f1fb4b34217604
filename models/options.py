"""What a family of networks offers: its row in a table, and the checks of its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mnet_search.models.arch import DEFAULT_INIT, NORM_EPS, NORM_MOMENTUM, OptionError
from mnet_search.models.layers import HEADS, ROUNDING

# Beyond any network; below it nothing overflows on the way to the costs.
LARGEST = 1e9


@dataclass(frozen=True)
class Family:
    """A row of FAMILIES: the function that makes the network's tree (or a Frame, whose stages are open; it then has the
    option `block`) from its options, and what the source of the family
    says about starting weights and batch norm. Every family has these three as options of the same name.

    `init` is a name of the factory's INITIALISATIONS; `norm_momentum` is torch's (1 minus TensorFlow's).
    """

    make: Callable[..., Any]
    init: str = DEFAULT_INIT
    norm_eps: float = NORM_EPS
    norm_momentum: float = NORM_MOMENTUM


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def check_number(
    option: str,
    value: Any,
    *,
    whole: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises OptionError unless `value` is a finite number (a whole one where asked) inside the limits."""
    kind = int if whole else (int, float)
    good = isinstance(value, kind) and not isinstance(value, bool) and abs(value) < LARGEST  # NaN is not
    good = (
        good
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not good:
        if isinstance(value, kind) and abs(value) >= LARGEST and below is None and at_most is None:
            below = LARGEST
        limits = [("at least", at_least), ("above", above), ("at most", at_most), ("below", below)]
        stated = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
        raise OptionError(option, value, f"it is a {'whole ' if whole else ''}number {stated}")


def check_choice(option: str, value: Any, allowed: tuple[str | int, ...]) -> None:
    """Raises OptionError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise OptionError(option, value, f"one of {', '.join(map(str, allowed))}")


def check_flag(option: str, value: Any) -> None:
    """Raises OptionError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise OptionError(option, value, "it is true or false")


def check_depth(value: Any, words: tuple[str, ...] = ()) -> None:
    """Raises OptionError unless `value` is one of `words` or a multiplier of the number of blocks."""
    if value in words:
        return
    try:
        check_number("depth", value, above=0, below=101)
    except OptionError:
        also = f", or one of {', '.join(words)}" if words else ""
        raise OptionError("depth", value, f"a number above 0 that multiplies the blocks of a stage{also}") from None


def check_common(**options: Any) -> None:
    """The checks of options that many families have, by their names: `width`, `depth`, `rounding`, `head`, those with
    dropout in the name; any other is a whole number of at least 1. Raises OptionError.
    """
    for name, value in options.items():
        if name == "width":
            check_number(name, value, above=0)
        elif name == "depth":
            check_depth(value)
        elif name == "rounding":
            check_choice(name, value, tuple(ROUNDING))
        elif name == "head":
            check_choice(name, value, HEADS)
        elif "dropout" in name:
            check_number(name, value, at_least=0, below=1)
        else:
            check_number(name, value, whole=True, at_least=1)
