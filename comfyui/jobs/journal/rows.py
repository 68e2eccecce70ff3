"""Columns of the journal's tables, and the records that are made of their rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from comfyui import jsonio
from comfyui.jobs.journal.records import (
    Delivery,
    DeliveryState,
    JobRecord,
    NewJob,
    RunRecord,
    State,
    WebhookOrder,
)
from comfyui.jobs.journal.writes import Finish
from comfyui.named_call import NamedCall

_SUBMISSION = (
    "prompt_id, kind, callers_id, created_at, fingerprint, owner, face, workflow_name, client_id, labels, inputs,"
    " needs_secrets, priority, webhook, max_queued_s, max_execution_s"
)
# The key of the owner, see `comfyui.owners.key_of`.
_KEY = "substr(jobs.owner, 1, instr(jobs.owner || '/', '/') - 1)"
HIDDEN = (
    "(jobs.hidden OR EXISTS (SELECT 1 FROM cleared AS c WHERE c.up_to >= jobs.end_number AND"  # noqa: S608
    f" c.key IN ('', {_KEY})))"
)
"""Whether ComfyUI's history hides the job."""
_END = ("attempt", "state", "ended_at", "end_number", "retryable", "error", "result", "started_at")
FINISH_JOB = (
    f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in _END[:-1])}, {_END[-1]} = COALESCE({_END[-1]}, ?)"  # noqa: S608
    " WHERE prompt_id = ? AND run = ? AND attempt <= ? AND state IN ('queued', 'running', 'canceling')"
    " RETURNING owner, workflow_name, started_at"
)
INSERT_JOB = (
    f"INSERT INTO jobs ({_SUBMISSION}, fetching, turn, idempotency_key, note, call, seq, number, body_id, queued_at,"  # noqa: S608
    f" server, {', '.join(_END)}, run, losses) VALUES ({'?, ' * 34}1, 0) ON CONFLICT (prompt_id) DO NOTHING"
)
JOB_COLUMNS = (
    f"{_SUBMISSION}, seq, (SELECT lower(hex(sha256)) FROM bodies WHERE id = body_id), run, state, server, attempt,"  # noqa: S608
    " losses, number, end_number, queued_at, started_at, ended_at, retryable, error, begun, turn, alone,"
    f" {HIDDEN}, idempotency_key, note, call"
)
RUN_COLUMNS = "run, state, server, attempt, number, end_number, queued_at, started_at, ended_at, error"
DELIVERY_COLUMNS = (
    "id, event, url, due_at, audience, (SELECT prompt_id FROM jobs WHERE jobs.seq = d.seq), run, state, tries,"
    " tried_at, answer"
)
INSERT_DELIVERY = (
    "INSERT INTO deliveries (id, seq, run, event, audience, url, receiver, due_at, state, tries)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'waiting', 0) ON CONFLICT (id) DO NOTHING"
)

# Bytes; and what each compressed text begins with, and no JSON text.
_SHORT = 512
_COMPRESSED = b"x"

STATES = {state.value: state for state in State}
_DELIVERY_STATES = {state.value: state for state in DeliveryState}


def packed(data: bytes) -> bytes:
    """Compressed, except a short text: level 1 takes most of what there is to save, in half the time of level 6."""
    return data if len(data) < _SHORT and data[:1] != _COMPRESSED else zlib.compress(data, 1)


def unpacked(data: bytes | None) -> bytes | None:
    return zlib.decompress(data) if data and data[:1] == _COMPRESSED else data


def beginning_of(data: bytes, most: int) -> bytes:
    """At most this number of bytes of the text packed as `data`, whose end may be missing."""
    return zlib.decompressobj().decompress(data, most) if data[:1] == _COMPRESSED else data[:most]


def end_values(end: Finish, number: int) -> tuple[Any, ...]:
    """In the order of `FINISH_JOB`, and of `INSERT_JOB`. `number` is that of the end."""
    return (
        end.fence.attempt,
        end.state.value,
        end.at,
        number,
        end.retryable,
        None if end.error is None else jsonio.dumps(end.error),
        None if end.result is None else packed(end.result),
        end.started_at,
    )


def submission_values(job: NewJob, number: int) -> tuple[Any, ...]:
    """In the order of `INSERT_JOB`, up to its numbers, of which `number` is the first."""
    webhook = None if job.webhook is None else jsonio.dumps([job.webhook.url, job.webhook.events]).decode()
    return (
        job.prompt_id,
        job.kind,
        job.callers_id,
        job.created_at,
        job.fingerprint,
        job.owner,
        job.face,
        job.workflow_name,
        job.client_id,
        jsonio.dumps(dict(job.labels)).decode() if job.labels else None,
        packed_inputs(job.inputs),
        job.needs_secrets,
        job.priority,
        webhook,
        job.max_queued_s,
        job.max_execution_s,
        job.is_fetching,
        job.turn_at(number),
        job.idempotency_key,
        job.note,
        packed_call(job.call),
    )


def packed_inputs(inputs: Mapping[str, str]) -> str | None:
    return jsonio.dumps(dict(inputs)).decode() if inputs else None


def packed_call(call: NamedCall | None) -> bytes | None:
    return None if call is None else packed(jsonio.dumps(call.to_fields()))


def _call_of(kept: bytes | None) -> NamedCall | None:
    return None if kept is None else NamedCall.of_fields(jsonio.loads(unpacked(kept) or b""))


def job_of(row: tuple[Any, ...]) -> JobRecord:
    """The record in a row of `JOB_COLUMNS`."""
    webhook = jsonio.loads(row[13]) if row[13] is not None else None
    return JobRecord(
        prompt_id=row[0],
        kind=row[1],
        callers_id=bool(row[2]),
        created_at=row[3],
        fingerprint=row[4],
        owner=row[5],
        face=row[6],
        workflow_name=row[7],
        client_id=row[8],
        labels=jsonio.loads(row[9]) if row[9] is not None else {},
        inputs=jsonio.loads(row[10]) if row[10] is not None else {},
        needs_secrets=bool(row[11]),
        priority=row[12],
        webhook=WebhookOrder(webhook[0], tuple(webhook[1])) if webhook is not None else None,
        max_queued_s=row[14],
        max_execution_s=row[15],
        seq=row[16],
        body_sha256=row[17],
        run=row[18],
        state=STATES[row[19]],
        server=row[20],
        attempt=row[21],
        losses=row[22],
        number=row[23],
        end_number=row[24],
        queued_at=row[25],
        started_at=row[26],
        ended_at=row[27],
        retryable=bool(row[28]),
        error=jsonio.loads(row[29]) if row[29] is not None else None,
        begun=bool(row[30]),
        turn=row[31],
        alone=bool(row[32]),
        hidden=bool(row[33]),
        idempotency_key=row[34],
        note=row[35],
        call=_call_of(row[36]),
    )


def run_of(row: tuple[Any, ...]) -> RunRecord:
    """The record in a row of `RUN_COLUMNS`."""
    return RunRecord(
        run=row[0],
        state=STATES[row[1]],
        server=row[2],
        attempt=row[3],
        number=row[4],
        end_number=row[5],
        queued_at=row[6],
        started_at=row[7],
        ended_at=row[8],
        error=jsonio.loads(row[9]) if row[9] is not None else None,
    )


def delivery_of(row: tuple[Any, ...]) -> Delivery:
    """The record in a row of `DELIVERY_COLUMNS`."""
    return Delivery(
        id=row[0],
        event=row[1],
        url=row[2],
        due_at=row[3],
        audience=row[4],
        prompt_id=row[5],
        run=row[6],
        state=_DELIVERY_STATES[row[7]],
        tries=row[8],
        tried_at=row[9],
        answer=row[10],
    )
