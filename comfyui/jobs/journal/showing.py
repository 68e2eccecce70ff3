"""Reads many jobs at a time from the journal's file, for lists: a part of each, or all of few. Also hides jobs.

Runs on the journal's own thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from comfyui import jsonio
from comfyui.jobs.journal.listing import OF_KEY, key_range
from comfyui.jobs.journal.records import EndedJob, KeptJob
from comfyui.jobs.journal.rows import HIDDEN, JOB_COLUMNS, STATES, job_of, unpacked
from comfyui.jobs.journal.writes import Hide

_ENDED = (
    "SELECT prompt_id, state, queued_at, started_at, ended_at, end_number FROM jobs"
    " WHERE ended_at IS NOT NULL AND end_number > ?"
)
_LAST = "ORDER BY end_number DESC LIMIT ?"


def ended(database: sqlite3.Connection, key: str | None, limit: int) -> list[EndedJob]:
    """See `Journal.ended`."""
    # Cleared jobs need not be read.
    cleared = dict(database.execute("SELECT key, up_to FROM cleared").fetchall())
    after = max(cleared.get("", 0), cleared.get(key or "", 0))
    if key is None:
        hidden = HIDDEN if cleared.keys() - {""} else "jobs.hidden"
        rows = database.execute(f"{_ENDED} AND NOT {hidden} {_LAST}", (after, limit)).fetchall()
    else:
        # Each half by an index: with OR all jobs of the key would be sorted.
        name, first, end = key_range(key)
        halves = (
            f"SELECT * FROM ({_ENDED} AND NOT hidden AND owner = ? {_LAST}) UNION ALL"  # noqa: S608
            f" SELECT * FROM ({_ENDED} AND NOT hidden AND owner >= ? AND owner < ? {_LAST}) {_LAST}"
        )
        rows = database.execute(halves, (after, name, limit, after, first, end, limit, limit)).fetchall()
    return [EndedJob(row[0], STATES[row[1]], *row[2:5]) for row in reversed(rows)]


def hide(database: sqlite3.Connection, write: Hide) -> bool:
    """See `comfyui.jobs.journal.writes.Hide`."""
    statement = "UPDATE jobs SET hidden = 1 WHERE prompt_id = ? AND ended_at IS NOT NULL AND NOT hidden"
    return database.executemany(statement, [(one,) for one in write.prompt_ids]).rowcount > 0


def named_inputs(database: sqlite3.Connection) -> set[str]:
    """See `Journal.named_inputs`."""
    rows = database.execute("SELECT inputs FROM jobs WHERE ended_at IS NULL AND inputs IS NOT NULL")
    return {value for (inputs,) in rows for value in jsonio.loads(inputs).values()}


def queued_since(database: sqlite3.Connection, key: str | None) -> dict[str, float]:
    """See `Journal.queued_since`."""
    query = "SELECT prompt_id, queued_at FROM jobs WHERE ended_at IS NULL"
    if key is None:
        return dict(database.execute(query))
    return dict(database.execute(f"{query} AND {OF_KEY}", key_range(key)))


def results_of(database: sqlite3.Connection, prompt_ids: Sequence[str], most_bytes: int) -> list[bytes | None]:
    """See `Journal.results_of`."""
    rows = (
        database.execute("SELECT result FROM jobs WHERE prompt_id = ?", (prompt_id,)).fetchone()
        for prompt_id in prompt_ids
    )
    return first_of((None if row is None else unpacked(row[0]) for row in rows), most_bytes)


def first_of(results: Iterable[bytes | None], most_bytes: int) -> list[bytes | None]:
    """As many as have about `most_bytes`, and at least one."""
    found: list[bytes | None] = []
    size = 0
    for result in results:
        found.append(result)
        size += len(result or b"")
        if size >= most_bytes:
            break
    return found


def kept(
    database: sqlite3.Connection, prompt_ids: Sequence[str], most_bytes: int, *, results: bool
) -> list[KeptJob | None]:
    """See `Journal.kept`."""
    query = (
        f"SELECT {JOB_COLUMNS}, (SELECT data FROM bodies WHERE id = body_id),"  # noqa: S608
        f" {'result' if results else 'NULL'} FROM jobs WHERE prompt_id = ?"
    )
    found: list[KeptJob | None] = []
    size = 0
    for prompt_id in prompt_ids:
        row = database.execute(query, (prompt_id,)).fetchone()
        job = None if row is None else KeptJob(job_of(row[:-2]), unpacked(row[-2]), unpacked(row[-1]))
        found.append(job)
        if job is not None:
            size += len(job.body or b"") + len(job.result or b"")
            if size >= most_bytes:
                break
    return found
