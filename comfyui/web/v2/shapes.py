"""The answers of Comfy API v2: the gateway's jobs in the form of the contract. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from comfyui.jobs.admission import Look
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.web.v2.progress import progress_of

JSON = dict[str, Any]

STATUSES: Final[Mapping[State, str]] = {
    State.QUEUED: "queued",
    State.RUNNING: "running",
    State.CANCELING: "canceling",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELED: "canceled",
    State.LOST: "expired",
}
"""The contract's word for each state. `expired` is an end: SDKs take the job for failed."""
JOBS: Final = "/api/v2/jobs"
# The contract's codes for these of ours; others keep their own.
_CODES: Final = {"task_failed": "node_execution_error", "validation_failed": "invalid_workflow"}


@dataclass(frozen=True, slots=True)
class Address:
    """How a client writes our addresses.

    Attributes:
        links: comes before the path of a job's links; a path, or the whole address.
        public: scheme, host and prefix, without a slash at its end.
        keep_s: how long a job is kept after its end.
    """

    links: str
    public: str
    keep_s: float


def job_json(look: Look, record: JobRecord, position: int | None, outputs: Sequence[JSON], address: Address) -> JSON:
    """A Job. `look` is the same job as `record`, seen at this moment; `position` is its place in the queue."""
    state = look.state
    return {
        **_facts(record, state, address),
        "queue_position": position if state is State.QUEUED else None,
        "progress": progress_of(look) if state is State.RUNNING else None,
        "outputs": outputs,
        "error": _error(record),
        "urls": urls(record.prompt_id, address),
        "metrics": _metrics(record),
    }


def listed_json(record: JobRecord, outputs: Sequence[JSON], address: Address) -> JSON:
    """A job in a list: a Job, and the two times of the contract's list items."""
    changed = record.ended_at or record.started_at or record.created_at
    return {
        **_facts(record, record.state, address),
        "create_time": time_of(record.created_at),
        "update_time": time_of(changed),
        "queue_position": None,
        "progress": None,
        "outputs": outputs,
        "error": _error(record),
        "urls": urls(record.prompt_id, address),
        "metrics": _metrics(record),
    }


def _facts(record: JobRecord, state: State, address: Address) -> JSON:
    return {
        "id": record.prompt_id,
        "status": STATUSES[state],
        "created_at": time_of(record.created_at),
        "started_at": time_of(record.started_at),
        "completed_at": time_of(record.ended_at),
        "expires_at": time_of(expires_at(record, address.keep_s)),
        "metadata": dict(record.labels) if record.note is None else record.note,
        "priority": record.priority,
    }


def expires_at(record: JobRecord, keep_s: float) -> float:
    """When the job may be forgotten. An unfinished one is kept even then."""
    if record.ended_at is not None:
        return record.ended_at + keep_s
    deadline = record.created_at + keep_s
    return deadline if deadline > (now := time.time()) else now + keep_s


def urls(prompt_id: str, address: Address) -> JSON:
    """The URLs at which the job is read, followed and cancelled."""
    own = f"{address.links}{JOBS}/{prompt_id}"
    return {"self": own, "events": f"{own}/events", "cancel": f"{own}/cancel"}


def time_of(seconds: float | None) -> str | None:
    """A time as the contract writes it, with its zone."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _metrics(record: JobRecord) -> JSON:
    started, ended = record.started_at, record.ended_at
    return {
        "queue_ms": None if started is None else max(0, round((started - record.queued_at) * 1000)),
        "execution_ms": None if started is None or ended is None else max(0, round((ended - started) * 1000)),
    }


def _error(record: JobRecord) -> JSON | None:
    error = record.error
    if error is None or record.state is State.CANCELED:
        return None
    raised = error.get("raised") or {}
    nodes = list(error.get("node_errors") or ())
    lines = raised.get("traceback")
    return {
        "code": _CODES.get(error["type"], error["type"]),
        "message": error["detail"],
        "node_id": raised.get("node_id") or (nodes[0] if len(nodes) == 1 else None),
        "class_type": raised.get("node_type"),
        "traceback": "\n".join(lines) if lines else None,
    }
