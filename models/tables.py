"""Looking names up in the tables (BLOCKS, FAMILIES, DATASETS, ...) that each room keeps at the foot of a file."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from mnet_search.models.arch import MnetError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where something known is close to `name`, else nothing: to be put at the end of an error."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of `table` under `name`, or the object that `package.module:name` leads to, so that users extend without forking.

    `kind` is what the table holds ("block", "dataset"), for the error. Raises MnetError naming what is known.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return _load(name, kind)
    raise MnetError(f"unknown {kind} {name!r}{nearest(name, table)} (known: {', '.join(table)}; or package.module:name)")


def _load(path: str, kind: str) -> T:  # type: ignore[type-var]  # the user's object is what the caller's table holds, on their word
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except ImportError as error:
        raise MnetError(f"{kind} {path!r}: cannot import {module}: {error}") from error
    except AttributeError as error:
        raise MnetError(f"{kind} {path!r}: module {module} has no {name}") from error
