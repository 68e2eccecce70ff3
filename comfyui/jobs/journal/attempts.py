"""The journal's records of attempts at a platform that does not know our ids, such as RunPod.

Each step is written before it is announced: the sending, the platform's own id, and its reply.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from comfyui.jobs.journal.records import Fence, JobRecord
from comfyui.jobs.journal.rows import packed, unpacked
from comfyui.jobs.journal.writes import DropAttempt, NoteAttempt


class Attempt(NamedTuple):
    """How far the present attempt of a run is at a platform.

    Attributes:
        fence: of the attempt.
        sent_at: when it was about to be sent.
        ref: the platform's id; None if it is not known whether the platform has it.
        has_reply: its reply is in the journal, and the platform may have forgotten it.
    """

    fence: Fence
    sent_at: float
    ref: str | None
    has_reply: bool


class AttemptStatements:
    """The table of attempts."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._execute = database.execute

    def appliers(self) -> Mapping[type, Callable[[Any], int]]:
        """Applies each write about an attempt."""
        return {NoteAttempt: self._note, DropAttempt: self._drop}

    def _note(self, write: NoteAttempt) -> bool:
        noted = self._execute(
            "INSERT INTO attempts (seq, run, attempt, sent_at, ref, reply)"
            " SELECT seq, run, attempt, ?, ?, ? FROM jobs"
            " WHERE prompt_id = ? AND run = ? AND attempt = ? AND server IS NOT NULL AND ended_at IS NULL"
            " ON CONFLICT (seq) DO UPDATE SET run = excluded.run, attempt = excluded.attempt,"
            " sent_at = excluded.sent_at, ref = excluded.ref, reply = excluded.reply",
            (write.sent_at, write.ref, None if write.reply is None else packed(write.reply), *write.fence),
        )
        return noted.rowcount > 0

    def _drop(self, write: DropAttempt) -> bool:
        prompt_id, run, attempt = write.fence
        dropped = self._execute(
            "DELETE FROM attempts WHERE seq = (SELECT seq FROM jobs WHERE prompt_id = ?) AND run = ? AND attempt = ?",
            (prompt_id, run, attempt),
        )
        return dropped.rowcount > 0

    def of(self, prompt_id: str) -> Attempt | None:
        """See `Journal.attempt_of`."""
        row = self._execute(
            "SELECT a.run, a.attempt, a.sent_at, a.ref, a.reply IS NOT NULL FROM attempts AS a JOIN jobs AS j"
            " ON j.seq = a.seq AND j.run = a.run AND j.attempt = a.attempt"
            " WHERE j.prompt_id = ? AND j.ended_at IS NULL",
            (prompt_id,),
        ).fetchone()
        return None if row is None else Attempt(Fence(prompt_id, row[0], row[1]), row[2], row[3], bool(row[4]))

    def reply(self, prompt_id: str) -> bytes | None:
        """See `Journal.reply_of`."""
        row = self._execute(
            "SELECT reply FROM attempts WHERE seq = (SELECT seq FROM jobs WHERE prompt_id = ?)", (prompt_id,)
        ).fetchone()
        return None if row is None else unpacked(row[0])


class MemoryAttempts:
    """The same for `MemoryJournal`."""

    def __init__(self, find: Callable[[str], JobRecord | None]) -> None:
        self._find = find
        self._attempts: dict[str, tuple[Attempt, bytes | None]] = {}

    def appliers(self) -> Mapping[type, Callable[[Any], int]]:
        return {NoteAttempt: self._note, DropAttempt: self._drop}

    def _note(self, write: NoteAttempt) -> bool:
        job = self._find(write.fence.prompt_id)
        if job is None or job.fence != write.fence or job.server is None or job.ended_at is not None:
            return False
        reply = None if write.reply is None else packed(write.reply)
        noted = Attempt(write.fence, write.sent_at, write.ref, reply is not None)
        self._attempts[write.fence.prompt_id] = noted, reply
        return True

    def _drop(self, write: DropAttempt) -> bool:
        known = self._attempts.get(write.fence.prompt_id)
        if known is None or known[0].fence != write.fence:
            return False
        del self._attempts[write.fence.prompt_id]
        return True

    def forget(self, prompt_id: str) -> None:
        """The job has left the journal."""
        self._attempts.pop(prompt_id, None)

    def of(self, prompt_id: str) -> Attempt | None:
        known, job = self._attempts.get(prompt_id), self._find(prompt_id)
        if known is None or job is None or job.fence != known[0].fence or job.ended_at is not None:
            return None
        return known[0]

    def reply(self, prompt_id: str) -> bytes | None:
        known = self._attempts.get(prompt_id)
        return None if known is None else unpacked(known[1])
