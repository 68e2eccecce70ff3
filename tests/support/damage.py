"""JSON values with damaged parts, as a broken file has them."""

from __future__ import annotations

from random import Random
from typing import Any

_INSTEAD: tuple[Any, ...] = (None, 0, -1, "x", [], {}, [1, 2], {"a": 1}, 1e308, 10**400, True, "-10")


def damaged(value: Any, rng: Random, *, replaced: float, lost: float) -> Any:
    """A copy of a JSON value in which each part is replaced or lost with these probabilities."""
    if rng.random() < replaced:
        return rng.choice(_INSTEAD)
    if isinstance(value, dict):
        kept = {key: entry for key, entry in value.items() if rng.random() >= lost}
        return {key: damaged(entry, rng, replaced=replaced, lost=lost) for key, entry in kept.items()}
    if isinstance(value, list):
        entries = [entry for entry in value if rng.random() >= lost]
        return [damaged(entry, rng, replaced=replaced, lost=lost) for entry in entries]
    return value
