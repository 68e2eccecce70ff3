"""Sending the webhooks of a job again."""

from __future__ import annotations

import time
from collections.abc import Callable

from comfyui.exceptions import ComfyUIConflictError, ComfyUINotFoundError
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Delivery, JobRecord
from comfyui.jobs.journal.writes import SendAgain
from comfyui.jobs.webhooks.announcements import Announcements

UNKNOWN_JOB = "the gateway does not know this job"


async def send_again(
    journal: Journal, announcements: Announcements, prompt_id: str, *, clock: Callable[[], float] = time.time
) -> tuple[JobRecord, list[Delivery]]:
    """Send the webhooks of the present run again, at once; the job, and all of that run's webhooks.

    Raises:
        ComfyUINotFoundError: the journal does not know the job.
        ComfyUIConflictError: it has not ended, or it has no webhook.
        JournalError: it cannot be written.
    """
    record = await journal.get(prompt_id)
    if record is None:
        raise ComfyUINotFoundError(UNKNOWN_JOB, prompt_id=prompt_id)
    if not record.state.is_end:
        raise ComfyUIConflictError("the job has not ended yet; its webhook is sent when it ends", prompt_id=prompt_id)
    if not await journal.write(SendAgain(prompt_id, clock())):
        raise ComfyUIConflictError("this job has no webhook for its end", prompt_id=prompt_id)
    announcements.news.set()
    return record, [one for one in await journal.deliveries(prompt_id) if one.run == record.run]
