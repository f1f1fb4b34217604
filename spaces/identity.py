"""What differs between a space and the one that a study was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Keys that an earlier version had under another name.
RENAMED = {"data.limit": "data.train_limit"}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two spaces' identities, a line each: `training.epochs: 8 -> 4`. A key that one of them does
    not have and that is null in the other is no difference: it came with a later version.
    """
    before, after = ({RENAMED.get(k, k): v for k, v in _flatten(side)} for side in (old, new))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{k}: {before.get(k, 'absent')} -> {after.get(k, 'absent')}" for k in keys if before.get(k) != after.get(k)
    ]


def _flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values
