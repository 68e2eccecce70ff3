"""Ends jobs that have waited too long in our queue, or for their inputs: MAX_QUEUED_SECONDS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUITimeoutError, JournalError
from comfyui.jobs.entry import Clock
from comfyui.jobs.journal.paging import Read
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import JobRecord

# How often it is looked whether a job has waited too long.
_LOOK_S = 5.0
_PAGE = 100

_log = structlog.get_logger(__name__)


async def ending_late(
    journal: Journal,
    max_queued_s: float,
    clock: Clock,
    waits: Callable[[str], bool],
    end: Callable[[JobRecord, ComfyUIError], None],
) -> None:
    """Runs until it is cancelled. `waits`: whether a job is in our queue without a task. `end` ends such a job."""

    async def end_of(waiting: Read) -> None:
        # The first has waited longest, but for a new run, which stands at its end.
        while first := await waiting(0, _PAGE):
            late = [one for one in first if one.queued_at + max_queued_s <= clock() and waits(one.prompt_id)]
            for record in late:
                detail = f"the job did not begin within MAX_QUEUED_SECONDS ({max_queued_s:g})"
                end(record, ComfyUITimeoutError(detail, prompt_id=record.prompt_id))
            if len(late) < len(first):
                return

    while True:
        try:
            await end_of(journal.waiting)
            await end_of(journal.fetching)
        except JournalError as error:
            _log.error("queue.stands", reason=error.detail)
        await asyncio.sleep(min(_LOOK_S, max_queued_s))
