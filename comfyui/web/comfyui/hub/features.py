"""The feature flags of several servers as those of one: what all of them can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def merged_features(servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have: of booleans whether it is so everywhere, of numbers the smallest, of all else the first one's."""
    first, *others = servers or [{}]
    return {
        name: _merged([value, *(other[name] for other in others)])
        for name, value in first.items()
        if all(name in other for other in others)
    }


def _merged(values: Sequence[Any]) -> Any:
    if all(isinstance(value, bool) for value in values):
        return all(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return min(values)
    if all(isinstance(value, Mapping) for value in values):
        return merged_features(values)
    return values[0]
