"""Tables for people and JSON for programs, on stdout, and files that commands write."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from mnet_search.models.arch import MnetError

PIPE_WIDTH = 240  # at least: there is no edge where stdout is no terminal
WHOLE = "\N{NO-BREAK SPACE}"


def print_table(table: Table) -> None:
    """At the terminal's width; unbroken lines where stdout is a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(PIPE_WIDTH, _width(table, console)))
    console.print(table)


def print_whole(table: Table, blocks: Iterable[Sequence[Sequence[str]]]) -> None:
    """The table where the terminal is wide enough for it, else one block a row: lines of parts, the first at the
    margin and the others below it, wrapped between parts, so that nothing is cropped.
    """
    console = Console(highlight=False)
    if not console.is_terminal or _width(table, console) <= console.width:
        print_table(table)
        return
    if table.title:
        console.print(table.title, style="bold", soft_wrap=False)
    for lines in blocks:
        for number, parts in enumerate(lines):
            text = " ".join(part.replace(" ", WHOLE) if len(part) < console.width - 4 else part for part in parts)
            first, more = ("", "    ") if number == 0 else ("  ", "    ")
            for line in textwrap.wrap(
                text, console.width, initial_indent=first, subsequent_indent=more, break_on_hyphens=False
            ):
                echo(line.replace(WHOLE, " "))


def _width(table: Table, console: Console) -> int:
    """What a table needs to be whole."""
    return Measurement.get(console, console.options.update(max_width=100_000), table).maximum


def print_json(content: Any) -> None:
    print(json.dumps(_clean(content), indent=2, default=str))


def _clean(value: Any) -> Any:
    """NaN is not JSON: null."""
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def params_text(chosen: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in chosen.items())


def echo(text: str) -> None:
    print(text)


# ---------------------------------------------------------------- files


def check_file(path: Path, option: str, *, force: bool, endings: Sequence[str] = ()) -> None:
    """What can be known to be wrong before there is anything to write. Raises MnetError as `write_file` does."""
    ending = path.suffix.lower()
    if endings and ending not in endings:
        raise MnetError(
            f"{option} {path}: its ending says the form, and is {ending or 'none'}; write {' or '.join(endings)}"
        )
    try:
        if path.is_dir():
            raise MnetError(f"{path}: is a folder; name a file with {option}")
        if not path.parent.is_dir():
            raise MnetError(f"{path}: there is no folder {str(path.parent)!r}; make it, or name another with {option}")
        if path.exists() and not force:
            raise MnetError(f"{path}: exists already; replace it with --force, or name another with {option}")
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise _unwritable(path, option, error) from None


def write_file(path: Path, content: bytes, option: str, *, force: bool, endings: Sequence[str] = ()) -> None:
    """Write a file that `option` names: whole, or as it was before.

    Raises MnetError for a file that exists (unless `force`), a folder that is missing (none is made), an ending that is
    none of `endings` (as ".html", where they are given), and a file that cannot be written.
    """
    from mnet_search.models.checkpoints import write_atomically  # a second, with torch

    check_file(path, option, force=force, endings=endings)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise _unwritable(path, option, error) from None


def _unwritable(path: Path, option: str, error: OSError) -> MnetError:
    reason = error.strerror or type(error).__name__
    return MnetError(f"{path}: cannot be written ({reason}); name another with {option}")
