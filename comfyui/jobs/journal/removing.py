"""How a job is taken out of the journal's file with all that hangs on it. In a transaction of the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from comfyui import jsonio
from comfyui.jobs.journal.records import Fence

# Unless a job has it.
REMOVE_BODY = (
    "DELETE FROM bodies WHERE id = ? AND NOT EXISTS (SELECT 1 FROM jobs WHERE body_id = bodies.id AND body_id > 0)"
)


def remove_labels(database: sqlite3.Connection, jobs: Iterable[tuple[int, str | bytes | None]]) -> None:
    """Of jobs that are removed: of each its `seq`, and its labels as its row has them."""
    database.executemany(
        "DELETE FROM labels WHERE key = ? AND value = ? AND seq = ?",
        [(*label, seq) for seq, labels in jobs if labels for label in jsonio.loads(labels).items()],
    )


def withdraw(database: sqlite3.Connection, fence: Fence) -> bool:
    """See `comfyui.jobs.journal.writes.Withdraw`."""
    found = database.execute(
        "DELETE FROM jobs WHERE prompt_id = ? AND run = ? AND run = 1 AND attempt <= ? AND state = 'queued'"
        " AND losses = 0 RETURNING seq, body_id, labels",
        fence,
    ).fetchall()
    for seq, body_id, labels in found:
        remove_labels(database, [(seq, labels)])
        database.execute("DELETE FROM deliveries WHERE seq = ?", (seq,))
        database.execute(REMOVE_BODY, (body_id,))
    return bool(found)
