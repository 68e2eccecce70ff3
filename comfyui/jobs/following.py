"""Looking on at a job, without waiting for it as a caller of `/prompt_sync` does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from comfyui.jobs.admission import Admission
from comfyui.jobs.job import Job, Listener
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.runs import Runs

_STANDING = frozenset({State.QUEUED, State.RUNNING})


@asynccontextmanager
async def following(admission: Admission, record: JobRecord, listener: Listener | None) -> AsyncIterator[Job | None]:
    """The job, whose events `listener` gets until the block ends: first what holds on of those that it missed.

    None if there is nothing to follow: the job has ended, is being cancelled, or its caller waits for it on a
    connection.
    """
    job = await in_hand(admission, record)
    if job is None:
        yield None
        return
    job.join(listener)
    try:
        yield job
    finally:
        job.leave(listener)
        let_go(admission.runs, job)


async def in_hand(admission: Admission, record: JobRecord) -> Job | None:
    """The job to join; one that waits in our queue has no task. None as for `following`."""
    job = admission.runs.live.get(record.prompt_id)
    if job is None and record.kind == "async" and record.state in _STANDING:
        waits = admission.queue.has(record.prompt_id)
        job = admission.runs.add(record.prompt_id, None, None, record.fingerprint, entry=admission.entries.of(record))
        if not waits:
            await admission.end_what_has_ended(job)
    return job if job is not None and job.stays else None


def let_go(runs: Runs, job: Job) -> None:
    """A request has left a job that was `in_hand`. If the job waits in our queue without another request, its row is
    enough.
    """
    if not (job.ended or job.waiters or job.has_task):
        runs.drop(job)
