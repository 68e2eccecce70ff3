"""Questions to the journal about usage, and its answers. Days are those of UTC."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime


def day_of(at: float) -> str:
    """The day of a time in UTC, as ``2026-11-29``."""
    return _day(int(at // 86_400))


@functools.lru_cache(maxsize=64)
def _day(number: int) -> str:
    """Counted from the first one of Unix time."""
    return datetime.fromtimestamp(number * 86_400, UTC).date().isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A question for sums of usage.

    Attributes:
        by: one row for each of these that differs: ``day``, ``key``, ``person``, ``workflow``; at least one.
        since, until: days, both included.
        key, person: the user; None: all.
    """

    by: tuple[str, ...]
    since: str
    until: str
    key: str | None = None
    person: str | None = None
    limit: int = 10_000


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Runs by how they ended, the seconds that they kept a server, and the bytes that were sent.

    Columns that do not split the rows are None; `key`, `person` and `workflow` are "" if there is none.
    """

    day: str | None
    key: str | None
    person: str | None
    workflow: str | None
    succeeded: int
    failed: int
    canceled: int
    lost: int
    gpu_s: float
    bytes: int
