"""Removes a job from the journal's file with everything that belongs to it, in the caller's transaction."""

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
    """Removes the labels of jobs that are removed: each job as its `seq` and the labels of its row."""
    database.executemany(
        "DELETE FROM labels WHERE key = ? AND value = ? AND seq = ?",
        [(*label, seq) for seq, labels in jobs if labels for label in jsonio.loads(labels).items()],
    )


def kept_from(database: sqlite3.Connection, keep: int) -> tuple[float, int] | None:
    """The end of the oldest finished job that is beyond the newest `keep`: all up to it are too many."""
    row = database.execute(
        "SELECT ended_at, end_number FROM jobs WHERE ended_at IS NOT NULL"
        " ORDER BY ended_at DESC, end_number DESC LIMIT 1 OFFSET ?",
        (keep,),
    ).fetchone()
    return None if row is None else (row[0], row[1])


def remove_ended(database: sqlite3.Connection, before: float, up_to: tuple[float, int] | None, limit: int) -> list[str]:
    """Removes up to `limit` jobs that ended before `before` and not after `up_to`; returns their states."""
    narrowed, values = ("", ()) if up_to is None else (" AND (ended_at, end_number) <= (?, ?)", up_to)
    rows = database.execute(
        f"SELECT seq, body_id, labels, state FROM jobs WHERE ended_at < ?{narrowed} AND NOT EXISTS"  # noqa: S608
        " (SELECT 1 FROM deliveries AS d WHERE d.seq = jobs.seq AND d.state = 'waiting')"
        " ORDER BY ended_at, end_number LIMIT ?",
        (before, *values, limit),
    ).fetchall()
    seqs = [(row[0],) for row in rows]
    many = database.executemany
    many("DELETE FROM deliveries WHERE seq = ?", seqs)
    many("DELETE FROM runs WHERE seq = ?", seqs)
    many("DELETE FROM attempts WHERE seq = ?", seqs)
    many("DELETE FROM output_facts WHERE seq = ?", seqs)
    remove_labels(database, ((seq, labels) for seq, _, labels, _ in rows))
    many("DELETE FROM jobs WHERE seq = ?", seqs)
    many(REMOVE_BODY, [(body_id,) for body_id in {row[1] for row in rows}])
    return [row[3] for row in rows]


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
