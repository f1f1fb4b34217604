"""Looking names up in the tables (BLOCKS, FAMILIES, DATASETS, ...) that each room keeps at the foot of a file."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mnet_search.models.arch import MnetError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where something known is close to `name`, else nothing: to be put at the end of an error."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of `table` under `name`, or the object that `package.module:name` leads to, so that users extend
    without forking.

    `kind` is what the table holds ("block", "dataset"), for the error. Raises MnetError naming what is known.
    """
    if name in table:
        return table[name]
    if ":" in name:
        found: T = _load(name, kind)
        return found
    raise MnetError(
        f"unknown {kind} {name!r}{nearest(name, table)} (known: {', '.join(table)}; or package.module:name)"
    )


def _load(path: str, kind: str) -> Any:
    module, _, name = path.partition(":")
    if not module or not name or module.startswith("."):
        raise MnetError(f"{kind} {path!r}: write package.module:name")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise MnetError(f"{kind} {path!r}: cannot import {module}: {error}") from error
    except AttributeError as error:
        raise MnetError(f"{kind} {path!r}: module {module} has no {name}") from error
