"""Jobs: prompts that run with or without a waiting caller, as single answers and in lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast, get_args

from comfyui.sdk.errors import GatewayError, GatewayProtocolError, JobStatus, error_of_job
from comfyui.sdk.models import PromptResult

Kind = Literal["sync", "async"]
ENDS: frozenset[JobStatus] = frozenset({"succeeded", "failed", "canceled", "lost"})
"""States in which a job stays, until it is submitted again under its id."""


WebhookEvent = Literal["prompt.started", "prompt.succeeded", "prompt.failed", "prompt.canceled", "prompt.lost"]


@dataclass(frozen=True, slots=True)
class Webhook:
    """The receiver of a job's events, at an http(s) URL.

    Attributes:
        events: the events that it gets; without any, the job's end.
    """

    url: str
    events: tuple[WebhookEvent, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"url": self.url, "events": list(self.events)} if self.events else {"url": self.url}


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is that runs.

    Attributes:
        overall: of the whole prompt, 0 to 1.
        node: the id of the running node; None before the first one.
        title: the node's title in the editor, else its class.
        value: finished steps of this node; None if it reports none.
        max: steps of this node.
    """

    overall: float
    node: str | None
    title: str | None
    value: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """A job at one moment.

    Attributes:
        prompt_id: a UUID, which is also ComfyUI's id.
        status: ``queued``, ``running`` and ``canceling`` change by themselves; the other four are ends.
        position: the number of jobs and prompts before it; None if it runs, has ended, or the gateway does not know.
        created_at: when it was submitted (with a time zone); None for a job that has ended.
        started_at: when it began to run; None before that, and for a job that has ended.
        progress: only while it runs.
        result: only where ``status`` is ``succeeded``.
        error: why there is no result; only where ``status`` is ``failed``, ``canceled`` or ``lost``. It is not raised.
        stored: False if the gateway has no STATE_DIR, so that its restart forgets the job.
        body: the answer as it came; empty where ``error`` has it.
    """

    prompt_id: str
    status: JobStatus
    position: int | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    progress: JobProgress | None = None
    result: PromptResult | None = None
    error: GatewayError | None = None
    stored: bool = True
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def ended(self) -> bool:
        """Whether there is a result or an error."""
        return self.status in ENDS

    @classmethod
    def pending(cls, body: Mapping[str, Any]) -> Job:
        """A job that has not ended, from a 202. Raises GatewayProtocolError when `body` is not one."""
        try:
            progress = body.get("progress")
            return cls(
                prompt_id=body["prompt_id"],
                status=_status(body["status"]),
                position=body["position"],
                created_at=_time(body["created_at"]),
                started_at=_time(body.get("started_at")),
                progress=None if progress is None else JobProgress(**progress),
                stored=body.get("stored", True),
                body=body,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _no_job(error) from error

    @classmethod
    def succeeded(cls, result: PromptResult) -> Job:
        """A job that has its result."""
        return cls(result.prompt_id, "succeeded", result=result, body=result.body)

    @classmethod
    def without_result(cls, error: GatewayError) -> Job:
        """A job that ended with this error, whose ``prompt_id`` and ``job_status`` are known."""
        if error.prompt_id is None or error.job_status is None:
            raise error
        return cls(error.prompt_id, error.job_status, error=error)


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job as the list has it.

    Attributes:
        prompt_id: a UUID, which is also ComfyUI's id.
        status: see `Job`.
        kind: ``sync`` if its caller waits on the connection, ``async`` if it was only submitted.
        run: how often it was begun, from 1 on.
        workflow: the name of the workflow, if it was called by one.
        labels: as it was submitted with them.
        priority: as it was submitted with it.
        server: the ComfyUI that has it; None before that, and if the gateway does not say.
        created_at: when it was submitted, with a time zone.
        started_at: when it began to run; None before that.
        ended_at: when it ended; None before that.
        error: why there is no result, with ``type`` and ``detail`` alone; `GatewayClient.job` has all of it.
        body: the entry as it came.
    """

    prompt_id: str
    status: JobStatus
    kind: Kind
    run: int
    workflow: str | None
    labels: Mapping[str, str]
    priority: int
    server: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: GatewayError | None
    body: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether there is a result or an error."""
        return self.status in ENDS

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ListedJob:
        """Raises GatewayProtocolError when `body` is no entry of a list."""
        try:
            failure, status = body["error"], _status(body["status"])
            return cls(
                prompt_id=body["prompt_id"],
                status=status,
                kind=body["kind"],
                run=body["run"],
                workflow=body["workflow"],
                labels=body["labels"],
                priority=body["priority"],
                server=body.get("server"),
                created_at=datetime.fromisoformat(body["created_at"]),
                started_at=_time(body["started_at"]),
                ended_at=_time(body["ended_at"]),
                error=failure and error_of_job(body["prompt_id"], status, failure["type"], failure["detail"]),
                body=body,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_job(error) from error


def listed(page: Mapping[str, Any]) -> tuple[list[ListedJob], str | None]:
    """The jobs of one page, and the cursor of the next one. Raises GatewayProtocolError."""
    jobs, cursor = page.get("jobs"), page.get("next_cursor")
    if not isinstance(jobs, list) or not isinstance(cursor, str | None):
        raise _no_job(TypeError("it is not a list of jobs"))
    return [ListedJob.from_json(entry) for entry in jobs], cursor


def _status(text: object) -> JobStatus:
    if text not in get_args(JobStatus):
        raise ValueError(f"there is no status {text!r}")
    return cast("JobStatus", text)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _no_job(error: Exception) -> GatewayProtocolError:
    return GatewayProtocolError(
        f"The answer is JSON but not a job of the gateway ({error!r}); check the address",
        title="Not the gateway",
        code="not_a_gateway",
    )
