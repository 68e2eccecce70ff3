"""The record of a running job as the journal will have it, for readers before it is written."""

from __future__ import annotations

from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import JobRecord, State


def record_of(job: Job) -> JobRecord | None:
    """None if the job is not in the journal, or ended otherwise than with a result: then it must be read there.

    Values that only the journal gives, such as `seq`, are 0.
    """
    entry, request = job.entry, job.request
    if entry is None or request is None or not entry.added or (job.ended and job.state is not State.SUCCEEDED):
        return None
    return JobRecord(
        prompt_id=job.prompt_id,
        kind=entry.kind,
        callers_id=entry.callers_id,
        created_at=entry.queued_at,
        fingerprint=job.fingerprint,
        owner=entry.owner,
        workflow_name=None if job.call is None else job.call.name,
        client_id=request.client_id,
        labels=request.labels,
        priority=request.priority,
        note=entry.note,
        call=job.call,
        seq=0,
        body_sha256=None,
        run=entry.fence.run,
        state=job.state,
        server=entry.server,
        attempt=entry.fence.attempt,
        begun=job.begun,
        losses=job.losses,
        number=0,
        end_number=None,
        queued_at=entry.queued_at,
        started_at=entry.started_at,
        ended_at=entry.ended_at,
        retryable=False,
        error=None,
        hidden=False,
    )
