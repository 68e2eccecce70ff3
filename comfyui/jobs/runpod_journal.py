"""Takes over the journal that `RUNPOD_DATA_DIR` had before jobs had one: once, when the gateway starts."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError, ComfyUITaskCancelledError, ComfyUIUnreadableError, JournalError
from comfyui.jobs.journal.committing import is_locked
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Fence, JobRecord, NewJob, State
from comfyui.jobs.journal.writes import Add, Cancel, Finish, NoteAttempt, Write
from comfyui.jobs.stored import body_of, error_to_fields, files_made, may_run_again, result_to_bytes
from comfyui.merged_files import from_merged
from comfyui.models import PromptRequest, PromptResult, Timings, Told
from comfyui.outputs.history import executing_s, files_of, raise_if_failed
from comfyui.replies import HistoryEntry, history_entry

FILE_NAME = "journal.sqlite3"
_TAKEN_OVER = "journal.sqlite3.imported"
_FACE = "prompt"
# Members that the gateway added to the request's own.
_MARK = "comfyui_gateway"
_OF_THE_GATEWAY = ("create_time", "client_id", _MARK)

_LOOK_AGAIN_S = 0.25
# Characters of a row's error.
_SHOWN = 500
# Errors of a row that we did not write: another program's, or a damaged disk's.
_ODD = (ValueError, TypeError, ComfyUIUnreadableError)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """A row of a prompt that had not ended. `state`: pending, sending, sent or delivered."""

    prompt_id: str
    state: str
    number: float
    job_id: str
    keyed: bool
    cancelled: bool
    prompt: bytes
    extra_data: bytes
    result: bytes | None


class _Rows(NamedTuple):
    """The rows of the old journal. Their JSON is read row by row: ten thousand workflows are large."""

    jobs: list[_Job]
    ended: list[tuple[str, bytes]]


async def take_over_runpod_journal(
    folder: Path, server: str, journal: Journal, *, now: float, lock_wait_s: float = 0.0
) -> None:
    """Makes jobs of the old journal's rows, in one transaction; then the file is renamed. Does nothing if there is
    none.

    It stays as it is where `journal` ends with this process.

    A row that cannot be read is left out, and the log names it.

    Args:
        server: by which the queue knows the endpoint.
        lock_wait_s: how long it is waited for a gateway from before, which still uses the old journal.

    Raises:
        JournalError: the old one cannot be read, or is in use; or ours cannot be written.
    """
    path = folder / FILE_NAME
    if not await asyncio.to_thread(path.is_file):
        return
    if isinstance(journal, MemoryJournal):
        _log.warning("runpod.not_taken_over", detail=f"STATE_DIR is empty, but {path} has jobs of an earlier version")
        return
    rows = await _rows_of(path, lock_wait_s)
    writes: list[Write] = []
    left_out = 0
    for prompt_id, said in rows.ended:
        known = await journal.get(prompt_id)
        try:
            if known is None or not known.state.is_end:
                writes += _ended(prompt_id, jsonio.loads(said), known, server, now)
        except _ODD as error:
            left_out += 1
            _log.warning("runpod.not_taken_over", prompt_id=prompt_id, detail=_shown(error))
    for job in rows.jobs:
        known = await journal.get(job.prompt_id)
        begun = known is not None and await journal.attempt_of(job.prompt_id) is not None
        try:
            writes += [] if begun else _unfinished(job, known, server, now)
        except _ODD as error:
            left_out += 1
            _log.warning("runpod.not_taken_over", prompt_id=job.prompt_id, detail=_shown(error))
    await journal.write_all(writes)
    try:
        await asyncio.to_thread(path.rename, folder / _TAKEN_OVER)
    except OSError as error:
        raise JournalError(f"RUNPOD_DATA_DIR: the journal {path} cannot be renamed: {error.strerror}") from error
    unfinished, ended = len(rows.jobs), len(rows.ended)
    _log.info("runpod.taken_over", unfinished=unfinished, ended=ended, left_out=left_out, renamed=_TAKEN_OVER)


async def _rows_of(path: Path, lock_wait_s: float) -> _Rows:
    deadline = time.monotonic() + lock_wait_s
    waits = False
    while True:
        try:
            return await asyncio.to_thread(_read, path)
        except sqlite3.Error as error:
            if not is_locked(error):
                raise JournalError(f"RUNPOD_DATA_DIR: the journal {path} cannot be read: {error}") from error
            detail = f"RUNPOD_DATA_DIR: another gateway already uses the journal {path}. Stop it, or set another folder"
            if time.monotonic() >= deadline:
                raise JournalError(detail) from error
            if not waits:
                _log.warning("runpod.journal_in_use", detail=detail)
            waits = True
        await asyncio.sleep(_LOOK_AGAIN_S)


def _read(path: Path) -> _Rows:
    with closing(sqlite3.connect(path, timeout=0.0)) as database:
        # A gateway that still uses the file has locked it.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN IMMEDIATE")
        [version] = database.execute("PRAGMA user_version").fetchone()
        if version:
            raise JournalError(
                f"RUNPOD_DATA_DIR: the journal {path} was written by another version of the gateway (its schema is"
                f" {version}, and only the one without a number is known). Move the file away, or use another folder"
            )
        columns = "prompt_id, state, number, job_id, keyed, cancelled, prompt, extra_data, result"
        jobs = [
            _Job(prompt_id, state, number, job_id, bool(keyed), bool(cancelled), prompt, extra_data, result)
            for prompt_id, state, number, job_id, keyed, cancelled, prompt, extra_data, result in database.execute(
                f"SELECT {columns} FROM jobs ORDER BY number, prompt_id"  # noqa: S608
            )
        ]
        ended = database.execute("SELECT prompt_id, entry FROM history ORDER BY place").fetchall()
        database.execute("COMMIT")
        # Merges the files beside it into it.
        database.execute("PRAGMA journal_mode = DELETE")
    return _Rows(jobs, ended)


def _shown(error: Exception) -> str:
    return (error.detail if isinstance(error, ComfyUIError) else str(error))[:_SHOWN]


def _unfinished(job: _Job, known: JobRecord | None, server: str, now: float) -> list[Write]:
    writes: list[Write] = []
    was_sent = job.state != "pending"
    if known is None:
        prompt, extra_data = _object(job.prompt), _object(job.extra_data)
        new = _new_job(job.prompt_id, prompt, extra_data, now, needs_secrets=job.keyed, number=float(job.number))
        writes.append(Add(new, server if was_sent else None))
        fence = Fence(job.prompt_id, 1, 1)
    elif known.state.is_end or known.server != server:
        return []
    else:
        fence = known.fence
    if was_sent:
        writes.append(NoteAttempt(fence, now, job.job_id or None, job.result))
    if job.cancelled:
        writes.append(Cancel(job.prompt_id, fence.run))
    return writes


def _object(text: bytes) -> Mapping[str, Any]:
    said = jsonio.loads(text)
    if not isinstance(said, dict):
        raise TypeError("must be a JSON object")
    return said


def _ended(prompt_id: str, said: Mapping[str, Any], known: JobRecord | None, server: str, now: float) -> list[Write]:
    entry = history_entry({prompt_id: said}, prompt_id)
    if entry is None:
        return []
    fence = Fence(prompt_id, 1, 1) if known is None else known.fence
    end = _end_of(entry, fence, server, now)
    if known is not None:
        return [end]
    return [Add(_new_job(prompt_id, entry.prompt, entry.extra_data, now, number=entry.number), server, end)]


def _end_of(entry: HistoryEntry, fence: Fence, server: str, now: float) -> Finish:
    outputs = {node_id: _without_ids(output) for node_id, output in entry.outputs.items()}
    seconds, at = executing_s(entry), _seconds(entry.messages[-1][1].get("timestamp") if entry.messages else None, now)
    told = Told(list(entry.messages), entry.meta)
    timings = Timings(executing_s=seconds)
    result = PromptResult(fence.prompt_id, server, outputs, files_of(outputs), timings, told=told)
    try:
        raise_if_failed(entry, fence.prompt_id)
    except ComfyUIError as error:
        return Finish(
            fence=fence,
            state=State.CANCELED if isinstance(error, ComfyUITaskCancelledError) else State.FAILED,
            at=at,
            started_at=at - seconds,
            error=error_to_fields(error),
            retryable=may_run_again(error),
            result=result_to_bytes(result),
            files=files_made(result, kept=True),
        )
    return Finish(
        fence=fence, state=State.SUCCEEDED, at=at, started_at=at - seconds, result=result_to_bytes(result),
        executing_s=seconds or None, files=files_made(result, kept=True),
    )  # fmt: skip


def _new_job(
    prompt_id: str,
    prompt: Mapping[str, Any],
    extra_data: Mapping[str, Any],
    now: float,
    *,
    number: float,
    needs_secrets: bool = False,
) -> NewJob:
    """Raises `ValueError` if it is not a runnable prompt."""
    own = {name: value for name, value in extra_data.items() if name not in _OF_THE_GATEWAY}
    client_id, mark = extra_data.get("client_id"), extra_data.get(_MARK)
    fields = {"prompt": prompt, "prompt_id": prompt_id, "extra_data": own or None}
    request = PromptRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    return NewJob(
        prompt_id=prompt_id,
        kind="async",
        callers_id=True,
        created_at=_seconds(extra_data.get("create_time"), now),
        fingerprint=mark.get("fingerprint") if isinstance(mark, Mapping) else None,
        face=_FACE,
        client_id=client_id if isinstance(client_id, str) else None,
        needs_secrets=needs_secrets,
        body=body_of(request),
        # It went to the front.
        turn=number if number < 0 else None,
    )


def _without_ids(output: Any) -> Any:
    """The output of a node with each file's own subfolder: below the results it stood below its prompt's id."""
    if not isinstance(output, dict):
        return output
    return {
        key: [_own_subfolder(item) for item in items] if isinstance(items, list) else items
        for key, items in output.items()
    }


def _own_subfolder(item: Any) -> Any:
    subfolder = item.get("subfolder") if isinstance(item, dict) and "filename" in item else None
    found = from_merged(subfolder) if isinstance(subfolder, str) else None
    return item if found is None else {**item, "subfolder": found.subfolder}


def _seconds(timestamp: Any, otherwise: float) -> float:
    """The seconds of a time in milliseconds."""
    return float(timestamp) / 1000 if isinstance(timestamp, int | float) else otherwise
