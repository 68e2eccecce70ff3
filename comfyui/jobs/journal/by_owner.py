"""The file's records of one owner's jobs, and of each owner's usage. Everything runs on the journal's own thread."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator

from comfyui import jsonio
from comfyui.jobs.journal.listing import OF_KEY, key_range
from comfyui.jobs.journal.persons import Persons
from comfyui.jobs.journal.usage_records import UsageQuery, UsageRow, day_of
from comfyui.jobs.journal.writes import Finish, Sent
from comfyui.owners import key_of

_COUNTED = ("succeeded", "failed", "canceled", "lost", "gpu_s", "bytes")
_MORE = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTED)
_ADD = f"INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET {_MORE}"  # noqa: S608
_SUMS = ", ".join(f"SUM({name})" for name in _COUNTED)


def queued_of(database: sqlite3.Connection, key: str, limit: int) -> list[str]:
    """See `Journal.queued_of`."""
    query = f"SELECT prompt_id FROM jobs WHERE ended_at IS NULL AND state = 'queued' AND {OF_KEY} LIMIT ?"  # noqa: S608
    return [row[0] for row in database.execute(query, (*key_range(key), limit))]


def sent_under(database: sqlite3.Connection, owner: str | None, key: str, since: float) -> str | None:
    """See `Journal.sent_under`."""
    row = database.execute(
        "SELECT prompt_id FROM jobs WHERE idempotency_key = ? AND owner IS ? AND created_at >= ?"
        " ORDER BY seq DESC LIMIT 1",
        (key, owner, since),
    ).fetchone()
    return None if row is None else str(row[0])


def newest_seq(database: sqlite3.Connection) -> int:
    """The `seq` of the newest job; 0 if there is none."""
    row = database.execute("SELECT max(seq) FROM jobs").fetchone()
    return int(row[0] or 0)


def keys_between(database: sqlite3.Connection, after: int, last: int, since: float) -> list[tuple[str | None, str]]:
    """Owner and idempotency key of each job with a `seq` behind `after`, up to `last`, from a time on."""
    return database.execute(
        "SELECT owner, idempotency_key FROM jobs WHERE seq > ? AND seq <= ? AND created_at >= ?"
        " AND idempotency_key IS NOT NULL",
        (after, last, since),
    ).fetchall()


class Used:
    """Usage, added up over a transaction: many ends make few rows."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._more: dict[tuple[str, str, str, str], defaultdict[str, float]] = {}
        self._persons = Persons(self._persons_of)

    def ended(self, write: Finish, owner: str | None, workflow: str | None, started_at: float | None) -> None:
        """Count the end of a run, and note which files it has made."""
        day = day_of(write.at)
        more = self._of(day, owner, workflow or "")
        more[write.state.value] += 1
        more["gpu_s"] += write.used_s(started_at)
        if write.files:
            places = [(jsonio.without_surrogates(file.place), file.server) for file in write.files]
            written = [place for place, file in zip(places, write.files, strict=True) if file.anew]
            self._database.executemany("DELETE FROM made WHERE place = ? AND server = ?", written)
            rows = [(*place, key_of(owner or ""), write.fence.prompt_id, day, write.at) for place in places]
            self._database.executemany("INSERT OR REPLACE INTO made VALUES (?, ?, ?, ?, ?, ?)", rows)

    def sent(self, write: Sent) -> bool:
        self._of(day_of(write.at), write.owner, "")["bytes"] += write.bytes
        return True

    def write(self) -> None:
        """Called last in a transaction."""
        for place, more in self._more.items():
            self._database.execute(_ADD, (*place, *(more[name] for name in _COUNTED)))
        self._more.clear()

    def forget(self) -> None:
        """The transaction is rolled back."""
        self._more.clear()
        self._persons.forget()

    def _of(self, day: str, owner: str | None, workflow: str) -> defaultdict[str, float]:
        return self._more.setdefault(self._persons.place_of(day, owner, workflow), defaultdict(float))

    def _persons_of(self, day: str, key: str) -> Iterator[str]:
        found = self._database.execute("SELECT DISTINCT person FROM usage WHERE day = ? AND key = ?", (day, key))
        return (row[0] for row in found)


def usage(database: sqlite3.Connection, query: UsageQuery) -> list[UsageRow]:
    """See `Journal.usage`."""
    named = [name if name in query.by else "NULL" for name in ("day", "key", "person", "workflow")]
    conditions, values = ["day >= ?", "day <= ?"], [query.since, query.until]
    for name, value in (("key", query.key), ("person", query.person)):
        if value is not None:
            conditions.append(f"{name} = ?")
            values.append(value)
    grouped = f"GROUP BY {', '.join(query.by)} ORDER BY {', '.join(query.by)}"
    rows = database.execute(
        f"SELECT {', '.join(named)}, {_SUMS} FROM usage WHERE {' AND '.join(conditions)} {grouped} LIMIT ?",  # noqa: S608
        (*values, query.limit),
    )
    return [UsageRow(*row) for row in rows]


def remove_usage(database: sqlite3.Connection, before: str, files_before: str) -> int:
    """Removes the rows of days before these; returns how many rows of usage there were."""
    database.execute("DELETE FROM made WHERE day < ?", (files_before,))
    return database.execute("DELETE FROM usage WHERE day < ?", (before,)).rowcount
