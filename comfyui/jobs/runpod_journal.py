"""Takes over the journal that `RUNPOD_DATA_DIR` had before jobs had one: once, when the gateway starts."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError, ComfyUITaskCancelledError, JournalError
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
# What the gateway added to the request's own.
_MARK = "comfyui_gateway"
_OF_THE_GATEWAY = ("create_time", "client_id", _MARK)

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
    prompt: Mapping[str, Any]
    extra_data: Mapping[str, Any]
    result: bytes | None


async def take_over_runpod_journal(folder: Path, server: str, journal: Journal, *, now: float) -> None:
    """Make jobs of what the old journal has, in one transaction; then it is renamed. Does nothing where there is none.

    Args:
        server: by which the queue knows the endpoint.

    Raises:
        JournalError: the old one cannot be read, or is in use; or ours cannot be written.
    """
    path = folder / FILE_NAME
    if not await asyncio.to_thread(path.is_file):
        return
    if not journal.identity:
        _log.warning("runpod.not_taken_over", detail=f"STATE_DIR is empty, and {path} has jobs from before")
        return
    try:
        jobs, entries = await asyncio.to_thread(_read, path)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise JournalError(f"RUNPOD_DATA_DIR: the journal {path} cannot be read: {error}") from error
    writes: list[Write] = []
    for prompt_id, entry in entries:
        known = await journal.get(prompt_id)
        if known is None or not known.state.is_end:
            writes += _ended(prompt_id, entry, known, server, now)
    for job in sorted(jobs, key=lambda job: (job.number, job.prompt_id)):
        writes += _unfinished(job, await journal.get(job.prompt_id), server, now)
    await journal.write_all(writes)
    await asyncio.to_thread(path.rename, folder / _TAKEN_OVER)
    _log.info("runpod.taken_over", unfinished=len(jobs), ended=len(entries), renamed=_TAKEN_OVER)


def _read(path: Path) -> tuple[list[_Job], list[tuple[str, Mapping[str, Any]]]]:
    with closing(sqlite3.connect(path, timeout=1.0)) as database:
        # Another gateway that still uses the file has locked it.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN IMMEDIATE")
        columns = "prompt_id, state, number, job_id, keyed, cancelled, prompt, extra_data, result"
        jobs = [
            _Job(
                prompt_id,
                state,
                number,
                job_id,
                bool(keyed),
                bool(cancelled),
                jsonio.loads(prompt),
                jsonio.loads(extra),
                result,
            )
            for prompt_id, state, number, job_id, keyed, cancelled, prompt, extra, result in database.execute(
                f"SELECT {columns} FROM jobs"  # noqa: S608
            )
        ]
        rows = database.execute("SELECT prompt_id, entry FROM history ORDER BY place").fetchall()
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode = DELETE")
    return jobs, [(prompt_id, jsonio.loads(entry)) for prompt_id, entry in rows]


def _unfinished(job: _Job, known: JobRecord | None, server: str, now: float) -> list[Write]:
    writes: list[Write] = []
    was_sent = job.state != "pending"
    if known is None:
        new = _new_job(job.prompt_id, job.prompt, job.extra_data, now, needs_secrets=job.keyed, number=job.number)
        if new is None:
            return []
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


def _ended(prompt_id: str, said: Mapping[str, Any], known: JobRecord | None, server: str, now: float) -> list[Write]:
    entry = history_entry({prompt_id: said}, prompt_id)
    if entry is None:
        return []
    fence = Fence(prompt_id, 1, 1) if known is None else known.fence
    end = _end_of(entry, fence, server, now)
    if known is not None:
        return [end]
    new = _new_job(prompt_id, entry.prompt, entry.extra_data, now, number=entry.number)
    return [] if new is None else [Add(new, server, end)]


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
) -> NewJob | None:
    """None where it is no prompt that could be run."""
    own = {name: value for name, value in extra_data.items() if name not in _OF_THE_GATEWAY}
    client_id, mark = extra_data.get("client_id"), extra_data.get(_MARK)
    fields = {"prompt": prompt, "prompt_id": prompt_id, "extra_data": own or None}
    try:
        request = PromptRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        _log.warning("runpod.not_taken_over", prompt_id=prompt_id, detail=str(error)[:500])
        return None
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
    """Of a time in milliseconds."""
    return float(timestamp) / 1000 if isinstance(timestamp, int | float) else otherwise
