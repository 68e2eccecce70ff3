"""The webhooks of the journal in SQL."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection
from typing import Any

from comfyui import jsonio
from comfyui.jobs.journal.records import Delivery, Due, Fence, NewDelivery
from comfyui.jobs.journal.rows import DELIVERY_COLUMNS, INSERT_DELIVERY, delivery_of
from comfyui.jobs.journal.writes import SendAgain, Tried

# Each receiver with when its first webhook is due, by two looks into the index.
_RECEIVERS = (
    "WITH RECURSIVE waits(receiver) AS (SELECT MIN(receiver) FROM deliveries WHERE state = 'waiting' UNION ALL"
    " SELECT (SELECT MIN(receiver) FROM deliveries WHERE state = 'waiting' AND receiver > waits.receiver) FROM waits"
    " WHERE receiver IS NOT NULL) SELECT receiver, (SELECT MIN(due_at) FROM deliveries AS d WHERE d.state = 'waiting'"
    " AND d.receiver = waits.receiver) AS first FROM waits WHERE receiver IS NOT NULL ORDER BY first"
)
# The columns, with the place after them.
_FIRST_OF_RECEIVER = (
    f"SELECT {DELIVERY_COLUMNS}, place FROM deliveries AS d WHERE state = 'waiting' AND receiver = ? AND NOT EXISTS"  # noqa: S608
    " (SELECT 1 FROM deliveries AS e WHERE e.seq = d.seq AND e.audience = d.audience AND e.state = 'waiting'"
    " AND e.place < d.place) ORDER BY due_at, place LIMIT ?"
)


class OutboxStatements:
    """The table `deliveries`. Writes need the transaction of `Statements`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._execute = database.execute
        self._executemany = database.executemany

    def add(self, fence: Fence, deliveries: Collection[NewDelivery]) -> None:
        if not deliveries:
            return
        (seq,) = self._execute("SELECT seq FROM jobs WHERE prompt_id = ?", (fence.prompt_id,)).fetchone()
        self._executemany(
            INSERT_DELIVERY,
            [
                (one.id, seq, fence.run, one.event, one.audience, one.url, one.receiver, one.due_at)
                for one in deliveries
            ],
        )

    def tried(self, write: Tried) -> bool:
        answer = jsonio.without_surrogates(write.answer)
        changed = self._execute(
            "UPDATE deliveries SET state = ?, due_at = ?, tried_at = ?, answer = ?, tries = tries + 1"
            " WHERE id = ? AND state = 'waiting'",
            (write.state.value, write.due_at, write.at, answer, write.id),
        )
        return changed.rowcount > 0

    def send_again(self, write: SendAgain) -> bool:
        changed = self._execute(
            "UPDATE deliveries SET state = 'waiting', tries = 0, due_at = ?"
            " WHERE (seq, run) = (SELECT seq, run FROM jobs WHERE prompt_id = ?)",
            (write.at, write.prompt_id),
        )
        return changed.rowcount > 0

    def forget(self, seq: int, run: int) -> None:
        """Remove the webhooks of a job's runs up to this one, but for those that wait."""
        self._execute("DELETE FROM deliveries WHERE seq = ? AND run <= ? AND state <> 'waiting'", (seq, run))

    def due(self, now: float, limit: int, each: int, under_way: Collection[Delivery]) -> Due:
        """A few looks into the index for each receiver, however many webhooks wait for it."""
        taken = Counter(one.receiver for one in under_way)
        ids = {one.id for one in under_way}
        due: list[tuple[Any, ...]] = []
        times: list[float] = []
        next_at: float | None = None
        for receiver, first in self._execute(_RECEIVERS).fetchall() if limit else ():
            if bisect_left(times, first) >= limit or (next_at is not None and first >= max(now, next_at)):
                break  # none of those that follow is among the first
            free = each - taken[receiver]
            if free <= 0:
                continue
            # Some of them may be under way already; one more shows when the next one is due.
            rows = self._execute(_FIRST_OF_RECEIVER, (receiver, free + taken[receiver] + 1)).fetchall()
            rows = [row for row in rows if row[0] not in ids]
            ready = [row for row in rows if row[3] <= now]
            due += ready[:free]
            times = sorted((*times, *(row[3] for row in ready[:free])))
            if len(ready) < free and len(rows) > len(ready):
                later = rows[len(ready)][3]
                next_at = later if next_at is None else min(next_at, later)
        due.sort(key=lambda row: (row[3], row[-1]))
        return Due(tuple(delivery_of(row) for row in due[:limit]), None if len(due) >= limit else next_at)

    def of(self, prompt_ids: Collection[str]) -> list[Delivery]:
        rows = self._execute(
            f"SELECT {DELIVERY_COLUMNS} FROM deliveries AS d WHERE seq IN"  # noqa: S608
            f" (SELECT seq FROM jobs WHERE prompt_id IN ({', '.join('?' * len(prompt_ids))})) ORDER BY place",
            tuple(prompt_ids),
        )
        return [delivery_of(row) for row in rows]
