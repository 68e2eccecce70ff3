"""Looking on at a job, without waiting for it as a caller of `/prompt_sync` does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from comfyui.jobs.admission import Admission
from comfyui.jobs.job import Job, Listener
from comfyui.jobs.journal.records import JobRecord, State

_STANDING = frozenset({State.QUEUED, State.RUNNING})


@asynccontextmanager
async def following(admission: Admission, record: JobRecord, listener: Listener | None) -> AsyncIterator[Job | None]:
    """The job, whose events `listener` gets until the block ends: first what holds on of those that it missed.

    None where there is nothing to follow: it has ended, is being cancelled, or its caller waits for it on a connection.
    """
    job = await _job_of(admission, record)
    if job is None:
        yield None
        return
    job.join(listener)
    try:
        yield job
    finally:
        job.leave(listener)
        if not (job.ended or job.waiters or job.has_task):
            # It waits in our queue: a row is enough.
            admission.runs.drop(job)


async def _job_of(admission: Admission, record: JobRecord) -> Job | None:
    job = admission.runs.live.get(record.prompt_id)
    if job is None and record.kind == "async" and record.state in _STANDING:
        job = admission.runs.add(record.prompt_id, None, None, record.fingerprint, entry=admission.entries.of(record))
        await admission.end_what_has_ended(job)
    return job if job is not None and job.stays else None
