"""What was sent to RunPod and how it ended, in SQLite: a restart of the gateway loses neither.

One connection, used by one thread that is not the event loop's. Only one gateway may use a journal at a time: two would
both go on with the same jobs.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from comfyui import jsonio
from comfyui.exceptions import JournalError
from comfyui.retrying import Backoff
from comfyui.runpod.disk import advice, reason_of
from comfyui.runpod.job import Job, State

MAX_HISTORY = 10_000
"""As in ComfyUI."""

JOURNAL_BACKOFF = Backoff(start_s=1.0, max_s=10.0)
"""For what must not be forgotten, while the journal cannot be written."""

_T = TypeVar("_T")
_LISTED = "SELECT listed FROM history ORDER BY place"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    prompt_id TEXT PRIMARY KEY, state TEXT NOT NULL, number REAL NOT NULL, job_id TEXT NOT NULL, keyed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL, prompt BLOB NOT NULL, extra_data BLOB NOT NULL, outputs BLOB NOT NULL, result BLOB
);
CREATE TABLE IF NOT EXISTS history (
    place INTEGER PRIMARY KEY AUTOINCREMENT, prompt_id TEXT NOT NULL UNIQUE, entry BLOB NOT NULL, listed BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS counter (number INTEGER NOT NULL);
"""


class Journal:
    """Open it with ``async with``; it owns its connection and its thread.

    Raises:
        JournalError: from every method, and when another gateway uses this journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runpod-journal")
        self._database: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        try:
            self._database = await self._do(self._open)
        except JournalError as error:
            self._thread.shutdown(wait=False)
            reason = error.__cause__
            hint = "another gateway uses this folder" if "locked" in str(reason) else str(reason)
            raise JournalError(f"RUNPOD_DATA_DIR: the journal {self._path} cannot be opened: {hint}") from reason
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._database is not None:
            await self._do(self._database.close)
            self._database = None
        self._thread.shutdown(wait=False)

    # Jobs

    async def unfinished(self) -> list[Job]:
        """Without their keys: those were never written."""
        rows = await self._rows(
            "SELECT prompt_id, state, number, job_id, keyed, cancelled, prompt, extra_data, outputs FROM jobs"
        )
        return [
            Job(
                prompt_id,
                number,
                jsonio.loads(prompt),
                jsonio.loads(extra_data),
                jsonio.loads(outputs),
                keyed=bool(keyed),
                state=State(state),
                job_id=job_id,
                cancelled=bool(cancelled),
            )
            for prompt_id, state, number, job_id, keyed, cancelled, prompt, extra_data, outputs in rows
        ]

    async def last_number(self) -> int:
        """The last that was given to a prompt; numbers go on from there after a restart."""
        rows = await self._rows("SELECT number FROM counter")
        return int(rows[0][0]) if rows else 0

    async def add(self, job: Job, counter: int) -> None:
        values = (
            *(job.prompt_id, job.state.value, job.number, job.job_id, job.keyed, job.cancelled),
            *(jsonio.dumps_for_comfyui(part) for part in (job.prompt, job.extra_data, job.outputs)),
        )

        def write(database: sqlite3.Connection) -> None:
            columns = "prompt_id, state, number, job_id, keyed, cancelled, prompt, extra_data, outputs"
            database.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
            database.execute("DELETE FROM counter")
            database.execute("INSERT INTO counter VALUES (?)", (counter,))

        await self._write(write)

    async def update(self, job: Job) -> None:
        """Its state as it is now."""
        values = (job.state.value, job.job_id, job.cancelled, job.prompt_id)
        await self._write(
            lambda database: database.execute(
                "UPDATE jobs SET state = ?, job_id = ?, cancelled = ? WHERE prompt_id = ?", values
            )
        )

    async def deliver(self, job: Job, body: bytes) -> None:
        """Keep the result, before anything is done with it: RunPod gives it for a while only, and its SDK once."""
        values = (State.DELIVERED.value, body, job.prompt_id)
        await self._write(
            lambda database: database.execute("UPDATE jobs SET state = ?, result = ? WHERE prompt_id = ?", values)
        )

    async def result(self, prompt_id: str) -> bytes:
        rows = await self._rows("SELECT result FROM jobs WHERE prompt_id = ?", prompt_id)
        return bytes(rows[0][0]) if rows and rows[0][0] is not None else b""

    async def remove(self, prompt_id: str) -> None:
        """A prompt that was cancelled before it was sent leaves no trace, as in ComfyUI."""
        await self._write(lambda database: database.execute("DELETE FROM jobs WHERE prompt_id = ?", (prompt_id,)))

    async def finish(self, prompt_id: str, entry: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
        """From the queue into the history, in one step. `listed`: what a list of all prompts says of it."""

        def write(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM jobs WHERE prompt_id = ?", (prompt_id,))
            database.execute("DELETE FROM history WHERE prompt_id = ?", (prompt_id,))
            database.execute(
                "INSERT INTO history (prompt_id, entry, listed) VALUES (?, ?, ?)",
                (prompt_id, jsonio.dumps(entry), jsonio.dumps(listed)),
            )
            database.execute(
                "DELETE FROM history WHERE place <= (SELECT place FROM history ORDER BY place DESC LIMIT 1 OFFSET ?)",
                (MAX_HISTORY,),
            )

        await self._write(write)

    # History

    async def entry(self, prompt_id: str) -> bytes | None:
        """As JSON: it is mostly the workflow, and whoever asks for it only passes it on."""
        rows = await self._rows("SELECT entry FROM history WHERE prompt_id = ?", prompt_id)
        return bytes(rows[0][0]) if rows else None

    async def entries(self, max_items: int | None = None, offset: int = -1) -> dict[str, bytes]:
        """As ComfyUI lists them: without an offset the newest `max_items`, oldest first."""
        if offset < 0 and max_items is not None:
            query = "SELECT prompt_id, entry FROM history ORDER BY place DESC LIMIT ?"
            rows = (await self._rows(query, _within(max_items, 1)))[::-1]
        else:
            query = "SELECT prompt_id, entry FROM history ORDER BY place LIMIT ? OFFSET ?"
            limit = -1 if max_items is None else _within(max_items, 1)
            rows = await self._rows(query, limit, _within(offset, 0))
        return {prompt_id: bytes(entry) for prompt_id, entry in rows}

    async def listed(self) -> list[dict[str, Any]]:
        """What `finish` was given of each, oldest first; without workflows, which would be most of it."""
        return await self._do(lambda: [jsonio.loads(row[0]) for row in self._fetch(_LISTED)])

    async def forget(self, prompt_ids: Iterable[str]) -> None:
        wanted = [(prompt_id,) for prompt_id in prompt_ids]
        await self._write(lambda database: database.executemany("DELETE FROM history WHERE prompt_id = ?", wanted))

    async def forget_all(self) -> None:
        await self._write(lambda database: database.execute("DELETE FROM history"))

    # The connection

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            # A commit that a power cut takes back could send a job twice.
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(_SCHEMA)
            database.execute("BEGIN IMMEDIATE")
            database.execute("COMMIT")
        except sqlite3.Error:
            database.close()
            raise
        self._path.chmod(0o600)
        return database

    async def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return await self._do(lambda: self._fetch(query, *values))

    def _fetch(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()

    async def _write(self, change: Callable[[sqlite3.Connection], Any]) -> None:
        def commit() -> None:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                change(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite has rolled back by itself, and a second time would hide the reason.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

        await self._do(commit)

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise RuntimeError("use the journal inside 'async with'")
        return self._database

    async def _do(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else error
            raise JournalError(advice(f"the journal cannot be read or written: {reason}")) from error


def _within(asked: int, least: int) -> int:
    """A number of entries: SQLite takes none beyond 64 bits."""
    return min(max(asked, least), MAX_HISTORY)
