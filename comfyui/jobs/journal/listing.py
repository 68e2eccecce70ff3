"""The query of one page of a list: it begins with the filter that fits the fewest jobs."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from comfyui.jobs.journal.records import JobFilter
from comfyui.jobs.journal.rows import HIDDEN, JOB_COLUMNS

# Entries of an index that are counted to compare filters, at most; a millisecond's work.
_COUNTED = 10_000


OF_KEY = "(owner = ? OR (owner >= ? AND owner < ?))"
"""Jobs of a key: its own, and those of the persons behind it. Its values are those of `key_range`."""


def key_range(key: str) -> tuple[str, str, str]:
    return key, f"{key}/", f"{key}{chr(ord('/') + 1)}"


@dataclass(frozen=True, slots=True)
class _Narrowing:
    """One filter. `column` is None for a label, which has its own table. `of_key`: `values` are those of
    `key_range`.
    """

    column: str | None
    values: tuple[str, ...]
    of_key: bool = False

    @property
    def indexed(self) -> str:
        """The condition on the index of the filter, which is ordered by `seq` for each value."""
        if self.of_key:
            return OF_KEY
        return f"{self.column} IN ({', '.join('?' * len(self.values))})" if self.column else "key = ? AND value = ?"

    @property
    def is_several(self) -> bool:
        """Whether it matches several parts of its index: all matches would be sorted."""
        return self.column is not None and len(self.values) > 1

    @property
    def plain(self) -> str:
        """The condition on a job that was found otherwise; the sign keeps SQLite from the index of the column."""
        if self.of_key:
            return OF_KEY.replace("owner", "+jobs.owner")
        if self.column:
            return "+jobs." + self.indexed
        return f"EXISTS (SELECT 1 FROM labels AS l WHERE l.{self.indexed} AND l.seq = jobs.seq)"  # noqa: S608


def page_of(
    database: sqlite3.Connection, narrowed: JobFilter, before: int | None, limit: int, more: str = ""
) -> list[tuple[Any, ...]]:
    """Rows of `JOB_COLUMNS`, and of `more` columns, newest first, from before `before` on. The text is not compared."""
    narrowings = _narrowings(narrowed)
    first = _rarest(database, narrowings)
    conditions: list[str] = []
    values: list[Any] = []
    source, seq = "jobs", "jobs.seq"
    if first is not None and first.column is None:
        source, seq = "labels AS first CROSS JOIN jobs ON jobs.seq = first.seq", "first.seq"
        conditions.append("first.key = ? AND first.value = ?")
        values += first.values
    elif first is not None:
        conditions.append(first.indexed)
        values += first.values
    for other in narrowings:
        if other is not first:
            conditions.append(other.plain)
            values += other.values
    if narrowed.shown_only:
        conditions.append(f"NOT {HIDDEN}")
    if before is not None:
        conditions.append(f"{seq} < ?")
        values.append(before)
    where = " AND ".join(conditions) or "TRUE"
    columns = JOB_COLUMNS.replace(" seq,", " jobs.seq,") + more
    query = f"SELECT {columns} FROM {source} WHERE {where} ORDER BY {seq} DESC LIMIT ?"  # noqa: S608
    return database.execute(query, (*values, limit)).fetchall()


def _narrowings(narrowed: JobFilter) -> list[_Narrowing]:
    """Filters that usually match fewer jobs come first."""
    found = []
    if narrowed.owner is not None:
        found.append(_Narrowing("owner", (narrowed.owner,)))
    if narrowed.key is not None:
        found.append(_Narrowing("owner", key_range(narrowed.key), of_key=True))
    if narrowed.workflow_name is not None:
        found.append(_Narrowing("workflow_name", (narrowed.workflow_name,)))
    if narrowed.states:
        found.append(_Narrowing("state", tuple(sorted(state.value for state in narrowed.states))))
    return found + [_Narrowing(None, label) for label in narrowed.labels.items()]


def _rarest(database: sqlite3.Connection, narrowings: list[_Narrowing]) -> _Narrowing | None:
    """The filter to begin with; None if reading the jobs themselves is shortest."""
    best, fewest = None, _COUNTED
    for one in narrowings:
        table = "jobs" if one.column else "labels"
        query = f"SELECT COUNT(*) FROM (SELECT 1 FROM {table} WHERE {one.indexed} LIMIT {fewest})"  # noqa: S608
        count = database.execute(query, one.values).fetchone()[0] if len(narrowings) > 1 or one.is_several else 0
        if count < fewest:
            best, fewest = one, count
    return best or next((one for one in narrowings if not one.is_several), None)
