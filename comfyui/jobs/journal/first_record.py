"""The record of a job that is written now, for who need not read it back."""

from __future__ import annotations

from dataclasses import fields

from comfyui.jobs.journal.records import JobRecord, NewJob, State, Submission

_GIVEN = tuple(field.name for field in fields(Submission))


def first_record(job: NewJob, seq: int, *, body_sha256: str | None = None, server: str | None = None) -> JobRecord:
    """The record that `Journal.get` then gives. `seq`: the result of `Journal.write` for its `Add`."""
    given = {name: getattr(job, name) for name in _GIVEN}
    given |= {"labels": dict(job.labels), "inputs": dict(job.inputs), "turn": job.turn_at(seq)}
    return JobRecord(
        **given,
        seq=seq,
        body_sha256=body_sha256,
        run=1,
        state=State.QUEUED,
        server=server,
        attempt=int(server is not None),
        begun=False,
        losses=0,
        number=seq,
        end_number=None,
        queued_at=job.created_at,
        started_at=None,
        ended_at=None,
        retryable=False,
        error=None,
        hidden=False,
    )
