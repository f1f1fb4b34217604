"""Tables for people and JSON for programs, on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """At the terminal's width; unbroken lines where stdout is a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    console.print(table)


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
