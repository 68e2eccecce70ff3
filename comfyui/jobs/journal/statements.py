"""The journal in SQL: what each write does, and each question. All on the journal's own thread."""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from comfyui import jsonio
from comfyui.jobs.journal.assets import asset_appliers
from comfyui.jobs.journal.attempts import AttemptStatements
from comfyui.jobs.journal.by_owner import Used
from comfyui.jobs.journal.deaths import died, forgive, suspect
from comfyui.jobs.journal.held import held_appliers
from comfyui.jobs.journal.listing import page_of
from comfyui.jobs.journal.outbox_statements import OutboxStatements
from comfyui.jobs.journal.protocol import RUNS_KEPT
from comfyui.jobs.journal.records import ENDS, JobFilter, JobRecord, RunRecord, State
from comfyui.jobs.journal.removing import REMOVE_BODY, remove_ended, withdraw
from comfyui.jobs.journal.rows import (
    FINISH_JOB,
    INSERT_JOB,
    JOB_COLUMNS,
    RUN_COLUMNS,
    end_values,
    job_of,
    packed,
    packed_call,
    packed_inputs,
    run_of,
    submission_values,
    unpacked,
)
from comfyui.jobs.journal.showing import hide
from comfyui.jobs.journal.uploads import upload_appliers
from comfyui.jobs.journal.writes import (
    Add,
    Again,
    Cancel,
    ClearHistory,
    Died,
    Fetched,
    Finish,
    Forgive,
    Hide,
    Keep,
    Place,
    PutBack,
    Reorder,
    SendAgain,
    Sent,
    Start,
    Suspect,
    Tell,
    Tried,
    Withdraw,
    Write,
)

_Row = tuple[Any, ...]
_OF_THE_RUN = "prompt_id = ? AND run = ? AND attempt <= ? AND state IN ('queued', 'running')"
_ENDED_AND_OPEN_AGAIN = "state IN ('canceled', 'lost') OR (state = 'failed' AND retryable)"
# The same as in the index `jobs_waiting`, word for word.
_WAITING = "kind = 'async' AND server IS NULL AND ended_at IS NULL AND state <> 'canceling'"
_NO_BODY = 0
_NOT_ENDED = (State.QUEUED.value, None, None, False, None, None, None)


class Statements:
    """One connection, and the counter for jobs and their ends. `apply` and `remove` need a transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.outbox = OutboxStatements(database)
        self.attempts = AttemptStatements(database)
        self._used = Used(database)
        self._execute = database.execute
        self._counter: int = database.execute("SELECT value FROM counter").fetchone()[0]
        self._written_counter = self._counter
        # The number of ended jobs, by state; None until it is requested. There may be very many of them.
        self._ended: Counter[str] | None = None
        self._appliers: dict[type, Callable[[Any], int]] = {
            Add: self._add,
            Withdraw: self._withdraw,
            Place: self._place,
            PutBack: self._put_back,
            Reorder: self._reorder,
            Start: self._start,
            Suspect: functools.partial(suspect, database),
            Died: functools.partial(died, database),
            Forgive: functools.partial(forgive, database),
            Cancel: self._cancel,
            Finish: self._finish,
            Tell: self._tell,
            Again: self._again,
            Keep: self._keep,
            Fetched: self._fetched,
            Tried: self.outbox.tried,
            SendAgain: self.outbox.send_again,
            **held_appliers(database),
            Sent: self._used.sent,
            Hide: functools.partial(hide, database),
            ClearHistory: self._clear_history,
            **upload_appliers(database),
            **self.attempts.appliers(),
            **asset_appliers(database),
        }

    def apply(self, write: Write) -> int:
        """Whether the write had a place; for an `Add`, the number of the job."""
        return self._appliers[type(write)](write)

    # Transactions

    def begin(self) -> None:
        # A transaction that began with a question could not write once another process has written.
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        if self._counter != self._written_counter:
            self._execute("UPDATE counter SET value = ?", (self._counter,))
        self._used.write()
        self._execute("COMMIT")
        self._written_counter = self._counter

    def rollback(self) -> None:
        """The numbers that the transaction gave are left out."""
        self._ended = None
        self._used.forget()
        # On a full disk, SQLite has already rolled back, and a second time would hide the reason.
        if self.database.in_transaction:
            self._execute("ROLLBACK")

    # Writes

    def _add(self, write: Add) -> int:
        job = write.job
        seq = self._next_number()
        body = self._body_id(job.body)
        end = write.end
        attempt = int(write.server is not None)
        so_far = (attempt, *_NOT_ENDED) if end is None else end_values(end, self._next_number())
        placed = (job.created_at, write.server, *so_far)
        if not self._changed(INSERT_JOB, (*submission_values(job, seq), seq, seq, body, *placed)):
            self._counter = seq - 1
            self._execute(REMOVE_BODY, (body,))
            return 0
        if job.labels:
            self._add_labels(job.labels.items(), seq)
        if end is not None:
            self._has_ended(end, job.owner, job.workflow_name, end.started_at)
        return seq

    def _withdraw(self, write: Withdraw) -> bool:
        return withdraw(self.database, write.fence)

    def _body_id(self, body: bytes | None) -> int:
        if body is None:
            return _NO_BODY
        digest = hashlib.sha256(body).digest()
        known = self._execute("SELECT id FROM bodies WHERE sha256 = ?", (digest,)).fetchone()
        if known is not None:
            return int(known[0])
        cursor = self._execute("INSERT INTO bodies (sha256, data) VALUES (?, ?)", (digest, packed(body)))
        return cursor.lastrowid or 0

    def _add_labels(self, labels: Iterable[tuple[str, str]], seq: int) -> None:
        self.database.executemany("INSERT INTO labels VALUES (?, ?, ?)", [(*label, seq) for label in labels])

    def _place(self, write: Place) -> bool:
        prompt_id, run, attempt = write.fence
        return self._changed(
            "UPDATE jobs SET losses = losses + begun, begun = 0, server = ?, attempt = ?"
            " WHERE prompt_id = ? AND run = ? AND attempt < ? AND state IN ('queued', 'running')",
            (write.server, attempt, prompt_id, run, attempt),
        )

    def _put_back(self, write: PutBack) -> bool:
        return self._changed(
            "UPDATE jobs SET losses = losses + begun, begun = 0, server = NULL, attempt = ?"  # noqa: S608
            f" WHERE {_OF_THE_RUN} AND server IS NOT NULL",
            (write.fence.attempt + 1, *write.fence),
        )

    def _reorder(self, write: Reorder) -> int:
        number = self._next_number() if write.first else 1
        changed = self._changed(
            "UPDATE jobs SET priority = COALESCE(?, priority), turn = COALESCE(?, turn) WHERE prompt_id = ? AND run = ?"
            " AND attempt = ? AND server IS NULL AND state IN ('queued', 'running')",
            (write.priority, -number if write.first else None, *write.fence),
        )
        if not changed:
            self._counter -= write.first
        return changed and number

    def _start(self, write: Start) -> bool:
        fence = write.fence
        started = self._changed(
            f"UPDATE jobs SET state = 'running', begun = 1, started_at = ?, attempt = ? WHERE {_OF_THE_RUN}"  # noqa: S608
            " AND server IS NOT NULL",
            (write.at, fence.attempt, *fence),
        )
        if started:
            self.outbox.add(fence, write.deliveries)
        return started

    def _cancel(self, write: Cancel) -> bool:
        return self._changed(
            "UPDATE jobs SET state = 'canceling' WHERE prompt_id = ? AND run = ? AND state IN ('queued', 'running')",
            (write.prompt_id, write.run),
        )

    def _finish(self, write: Finish) -> bool:
        fence = write.fence
        finished = self._execute(
            FINISH_JOB,
            (*end_values(write, self._next_number()), *fence),
        ).fetchall()
        if finished:
            self._has_ended(write, *finished[0])
        else:
            self._counter -= 1
        return bool(finished)

    def _has_ended(self, end: Finish, owner: str | None, workflow: str | None, started_at: float | None) -> None:
        self._used.ended(end, owner, workflow, started_at)
        self.outbox.add(end.fence, end.deliveries)
        self._count_end(end.state.value, 1)

    def _tell(self, write: Tell) -> bool:
        found = self._execute(
            "UPDATE jobs SET callers_id = 1 WHERE prompt_id = ? RETURNING seq", (write.prompt_id,)
        ).fetchall()
        if found and write.body is not None:
            self._has_body(found[0][0], write.body)
        return bool(found)

    def _again(self, write: Again) -> bool:
        found = self._execute(
            f"SELECT seq, state FROM jobs WHERE prompt_id = ? AND run = ? AND ({_ENDED_AND_OPEN_AGAIN})",  # noqa: S608
            (write.prompt_id, write.run),
        ).fetchone()
        if found is None:
            return False
        seq, ended = found
        self._count_end(ended, -1)
        self._execute(
            f"INSERT INTO runs (seq, {RUN_COLUMNS}) SELECT seq, {RUN_COLUMNS} FROM jobs WHERE seq = ?",  # noqa: S608
            (seq,),
        )
        self._execute("DELETE FROM runs WHERE seq = ? AND run <= ?", (seq, write.run - RUNS_KEPT))
        self.outbox.forget(seq, write.run - RUNS_KEPT)
        return self._changed(
            "UPDATE jobs SET run = run + 1, kind = ?, state = 'queued', server = NULL, attempt = 0, begun = 0,"
            " alone = 0, losses = 0, needs_secrets = COALESCE(?, needs_secrets), number = ?, end_number = NULL,"
            " queued_at = ?, started_at = NULL, ended_at = NULL,"
            " retryable = 0, error = NULL, result = NULL, hidden = 0 WHERE seq = ?",
            (write.kind, write.needs_secrets, self._next_number(), write.at, seq),
        ) and self._brings(seq, write)

    def _keep(self, write: Keep) -> bool:
        found = self._execute(
            "UPDATE jobs SET kind = 'async', callers_id = 1"
            " WHERE prompt_id = ? AND run = ? AND kind = 'sync' AND state IN ('queued', 'running') RETURNING seq",
            (write.prompt_id, write.run),
        ).fetchall()
        return bool(found) and self._brings(found[0][0], write)

    def _brings(self, seq: int, write: Again | Keep) -> bool:
        if write.inputs is not None:
            self._has_inputs("seq = ?", (seq,), write.inputs)
        if write.body is not None:
            self._has_body(seq, write.body)
        if write.call is not None:
            self._execute("UPDATE jobs SET call = ? WHERE seq = ?", (packed_call(write.call), seq))
        return True

    def _has_body(self, seq: int, body: bytes) -> None:
        (before,) = self._execute("SELECT body_id FROM jobs WHERE seq = ?", (seq,)).fetchone()
        self._execute("UPDATE jobs SET body_id = ? WHERE seq = ?", (self._body_id(body), seq))
        self._execute(REMOVE_BODY, (before,))

    def _fetched(self, write: Fetched) -> bool:
        where = "prompt_id = ? AND run = ? AND state IN ('queued', 'running')"
        return self._has_inputs(where, (write.prompt_id, write.run), write.inputs)

    def _has_inputs(self, where: str, values: _Row, inputs: Mapping[str, str]) -> bool:
        return self._changed(
            f"UPDATE jobs SET inputs = ?, fetching = ? WHERE {where}",  # noqa: S608
            (packed_inputs(inputs), "" in inputs.values(), *values),
        )

    def _clear_history(self, write: ClearHistory) -> bool:
        self._execute("INSERT OR REPLACE INTO cleared VALUES (?, ?)", (write.key or "", self._counter))
        return True

    # Removing

    def remove(self, before: float, up_to: tuple[float, int] | None, limit: int) -> int:
        """As `remove_ended`; returns how many there were."""
        states = remove_ended(self.database, before, up_to, limit)
        for state in states:
            self._count_end(state, -1)
        return len(states)

    # Questions

    def identity(self) -> str:
        return str(self._value("SELECT id FROM identity"))

    def one(self, prompt_id: str) -> JobRecord | None:
        # Callers may send any text; no job has one that SQLite cannot take.
        return next(iter(self._jobs("prompt_id = ?", (jsonio.without_surrogates(prompt_id),))), None)

    def body(self, prompt_id: str) -> bytes | None:
        stored: bytes | None = self._value(
            "SELECT data FROM bodies WHERE id = (SELECT body_id FROM jobs WHERE prompt_id = ?)", (prompt_id,)
        )
        return unpacked(stored)

    def result(self, prompt_id: str) -> bytes | None:
        stored: bytes | None = self._value("SELECT result FROM jobs WHERE prompt_id = ?", (prompt_id,))
        return unpacked(stored)

    def runs(self, prompt_id: str) -> list[RunRecord]:
        rows = self._execute(
            f"SELECT {RUN_COLUMNS} FROM runs WHERE seq = (SELECT seq FROM jobs WHERE prompt_id = ?) ORDER BY run",  # noqa: S608
            (prompt_id,),
        )
        return [run_of(row) for row in rows]

    def newest(self, narrowed: JobFilter, before: int | None, limit: int) -> list[JobRecord]:
        return [job_of(row) for row in page_of(self.database, narrowed, before, limit)]

    def waiting(self, after: int, limit: int, *, fetching: bool = False) -> list[JobRecord]:
        return self._jobs(f"{_WAITING} AND fetching = ? AND number > ?", (fetching, after), "number", limit)

    def ahead_of(self, number: int) -> int:
        found = self._value(
            f"SELECT COUNT(*) FROM jobs WHERE {_WAITING} AND fetching IN (0, 1) AND number < ?",  # noqa: S608
            (number,),
        )
        return int(found)

    def unfinished(self, after: int, limit: int) -> list[JobRecord]:
        return self._jobs("ended_at IS NULL AND seq > ?", (after,), "seq", limit)

    def counts(self) -> dict[State, int]:
        if self._ended is None:
            self._ended = self._count(ENDS)
        unfinished = self._count(set(State) - ENDS)
        return {state: (self._ended if state.is_end else unfinished)[state.value] for state in State}

    def oldest_waiting(self) -> float | None:
        # One question for each half of the index: both at once would have to be sorted.
        first = f"SELECT number, queued_at FROM jobs WHERE {_WAITING} AND fetching = ? ORDER BY number LIMIT 1"  # noqa: S608
        found = [row for half in (0, 1) for row in self._execute(first, (half,))]
        return float(min(found)[1]) if found else None

    # Shorthand

    def _count(self, states: Collection[State]) -> Counter[str]:
        names = [state.value for state in states]
        query = f"SELECT state, COUNT(*) FROM jobs WHERE state IN ({', '.join('?' * len(names))}) GROUP BY state"  # noqa: S608
        return Counter(dict(self._execute(query, names).fetchall()))

    def _count_end(self, state: str, more: int) -> None:
        if self._ended is not None:
            self._ended[state] += more

    def _next_number(self) -> int:
        self._counter += 1
        return self._counter

    def _changed(self, statement: str, values: _Row) -> bool:
        return self._execute(statement, values).rowcount > 0

    def _value(self, query: str, values: _Row = ()) -> Any:
        """The first column of the first row."""
        row = self._execute(query, values).fetchone()
        return None if row is None else row[0]

    def _jobs(self, condition: str, values: _Row, order: str = "seq", limit: int = 1) -> list[JobRecord]:
        query = f"SELECT {JOB_COLUMNS} FROM jobs WHERE {condition} ORDER BY {order} LIMIT ?"  # noqa: S608
        return [job_of(row) for row in self._execute(query, (*values, limit)).fetchall()]
