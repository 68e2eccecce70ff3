"""Unfinished jobs as callers see them, and the list of all jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired

from fastapi import Request, Response
from pydantic import Field, with_config
from typing_extensions import TypedDict

from comfyui.answer_json import WorkflowEntry
from comfyui.exceptions import ComfyUINotFoundError, RequestError
from comfyui.jobs.admission import Look
from comfyui.jobs.journal.records import Delivery, JobFilter, JobRecord, State, WebhookOrder
from comfyui.jobs.origin import Origin
from comfyui.jobs.webhooks.again import UNKNOWN_JOB, send_again
from comfyui.labels import MAX_LABELS, check_label
from comfyui.web.api.parameters import IN_QUERY_LABELS, Parameters, read
from comfyui.web.api.preferences import Preferences
from comfyui.web.front.errors import json_response
from comfyui.web.front.forwarded import prefix_of
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.openapi import PROMPT_STATUS, Answer, json_of
from comfyui.web.front.request_state import state_of
from comfyui.workflows.progress import NodeProgress, NodeStarted, ProgressTracker

_RETRY_AFTER_S = 2
_RETRY_AFTER_WAITING_S = 5
_PER_PAGE = 50
_MOST_PER_PAGE = 200

Status = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled", "lost"]
Time = Annotated[str, Field(description="UTC.", json_schema_extra={"format": "date-time"})]
Id = Annotated[str, Field(json_schema_extra={"format": "uuid"})]


class JobProgress(TypedDict):
    """How far a prompt that runs is."""

    overall: Annotated[float, Field(description="The progress of the whole prompt, from 0 to 1.")]
    node: Annotated[str | None, Field(description="The id of the node that runs.")]
    title: Annotated[str | None, Field(description="The node's title in the editor, or its class if it has none.")]
    value: Annotated[float | None, Field(description="The steps of the node that are done.")]
    max: Annotated[float | None, Field(description="Its steps.")]


_EXAMPLE_ID = "5f0c1a2e-7d0b-4c39-9a36-0e3b6f0f8a11"
_EXAMPLE_TIME = "2026-11-29T19:04:12.345Z"
_RUNNING: dict[str, Any] = {
    "prompt_id": _EXAMPLE_ID,
    "status": "running",
    "position": None,
    "created_at": _EXAMPLE_TIME,
    "started_at": _EXAMPLE_TIME,
    "progress": {"overall": 0.25, "node": "3", "title": "KSampler", "value": 5, "max": 20},
}
_FAILED: dict[str, Any] = {
    "prompt_id": _EXAMPLE_ID,
    "status": "failed",
    "kind": "async",
    "run": 1,
    "workflow": None,
    "labels": {"order": "1234"},
    "priority": 0,
    "server": "gpu-1",
    "created_at": _EXAMPLE_TIME,
    "started_at": _EXAMPLE_TIME,
    "ended_at": _EXAMPLE_TIME,
    "error": {"type": "task_failed", "detail": "KSampler (node 3): RuntimeError: …"},
}


@with_config(json_schema_extra={"examples": [_RUNNING]})
class PendingJob(TypedDict):
    """A job that has not ended."""

    prompt_id: Id
    status: Status
    position: Annotated[
        int | None, Field(description="The number of jobs before it; null if it runs, or if the number is unknown.")
    ]
    paused: NotRequired[
        Annotated[
            Literal[True], Field(description="Whether the queue is paused, so that the job waits until it is resumed.")
        ]
    ]
    waits_for: NotRequired[
        Annotated[list[str], Field(description="The only servers that can run the job, if all of them are down.")]
    ]
    created_at: Time | None
    workflow: NotRequired[Annotated[WorkflowEntry, Field(description="Only if a named workflow was called.")]]
    started_at: NotRequired[Time | None]
    progress: NotRequired[JobProgress | None]
    webhook: NotRequired[Annotated[ShownWebhooks, Field(description="Only if the job has webhooks.")]]
    stored: NotRequired[
        Annotated[
            Literal[False],
            Field(description="Whether a restart of the gateway forgets the job, because STATE_DIR is empty."),
        ]
    ]


class JobFailure(TypedDict):
    """Why a job has no result."""

    type: str
    detail: str


class ShownDelivery(TypedDict):
    """One webhook of a job."""

    id: Annotated[str, Field(description="`webhook-id`.")]
    event: str
    audience: Annotated[
        Literal["caller", "operator"], Field(description="`caller` is the request's URL, `operator` is WEBHOOK_URL.")
    ]
    run: int
    state: Annotated[
        Literal["waiting", "delivered", "given_up"], Field(description="`waiting` means that another attempt follows.")
    ]
    tries: int
    tried_at: Time | None
    answer: Annotated[str | None, Field(description="The outcome of the last attempt.")]


class ShownWebhooks(TypedDict):
    """The receivers of a job's webhooks, and the state of each."""

    url: Annotated[
        str | None,
        Field(description="The webhook's URL without its query; null if the webhook goes only to WEBHOOK_URL."),
    ]
    deliveries: list[ShownDelivery]


class SentAgain(TypedDict):
    """Webhooks that are sent again."""

    prompt_id: Id
    webhook: ShownWebhooks


@with_config(json_schema_extra={"examples": [_FAILED]})
class ListedJob(TypedDict):
    """A job in a list."""

    prompt_id: Id
    status: Status
    kind: Annotated[
        Literal["sync", "async"], Field(description="`sync` means that a caller waits for the job on its connection.")
    ]
    run: Annotated[int, Field(description="The number of the run, beginning with 1.")]
    workflow: Annotated[str | None, Field(description="The name of the workflow, if a named workflow was called.")]
    labels: Mapping[str, str]
    priority: int
    server: str | None
    created_at: Time
    started_at: Time | None
    ended_at: Time | None
    error: JobFailure | None
    webhook: NotRequired[Annotated[ShownWebhooks, Field(description="Only if the job has webhooks.")]]


class JobList(TypedDict):
    """Jobs, newest first."""

    jobs: list[ListedJob]
    next_cursor: NotRequired[
        Annotated[str, Field(description="The cursor of the next page; it is missing on the last page.")]
    ]


class ListCall(Parameters):
    """The filters of a list of jobs."""

    status: str | None = Field(
        default=None,
        max_length=100,
        description=f"States, separated by commas: {', '.join(state.value for state in State)}.",
        examples=["failed,lost"],
    )
    workflow: str | None = Field(default=None, max_length=256, description="The name of a workflow.")
    limit: int = Field(default=_PER_PAGE, ge=1, le=_MOST_PER_PAGE, description="The number of jobs on a page.")
    cursor: str | None = Field(default=None, max_length=512, description="The `next_cursor` of the previous page.")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="`label.<key>=<value>` selects jobs with this label; if several are given, jobs with all of them.",
        examples=[{"label.order": "1234"}],
        json_schema_extra=IN_QUERY_LABELS,
    )

    def narrowed(self) -> JobFilter:
        """Raises `RequestError` for a state or a label that there cannot be."""
        known = {state.value: state for state in State}
        names = [name.strip() for name in self.status.split(",")] if self.status else []
        for name in names:
            if name not in known:
                raise RequestError(f"status: there is no state {name[:20]!r}; the states are {', '.join(known)}")
        if len(self.labels) > MAX_LABELS:
            raise RequestError(f"at most {MAX_LABELS} parameters label.<key> are allowed")
        for key, value in self.labels.items():
            try:
                check_label(key, value)
            except ValueError as error:
                raise RequestError(f"label.{key[:60]}: {error}") from None
        states = frozenset(known[name] for name in names)
        return JobFilter(states=states, workflow_name=self.workflow, labels=self.labels)


def origin_of(request: Request) -> Origin:
    """The caller as the origin of the job that the call makes or asks for."""
    caller = state_of(request.scope).caller
    return Origin() if caller is None else Origin(owner=caller.owner, rules=caller.rules)


def seen_by(request: Request, narrowed: JobFilter) -> JobFilter:
    """The filter, limited to jobs that the caller may see: a user's own jobs, or those of the person behind a shared
    key.
    """
    caller = state_of(request.scope).caller
    if caller is None or caller.rules.role != "user":
        return narrowed
    whole_key = caller.rules.user_header is not None and not caller.person
    return replace(narrowed, key=caller.rules.name) if whole_key else replace(narrowed, owner=caller.owner)


async def list_of_jobs(request: Request) -> Response:
    """The answer to a list's request."""
    return json_response(200, await page_of_jobs(request, read(ListCall, request)), {"Cache-Control": "no-store"})


async def page_of_jobs(request: Request, asked: ListCall) -> JobList:
    """The requested jobs among those that the caller may see. Raises `RequestError`, `JournalError`."""
    journal = gateway_of(request).handler.journal
    page = await journal.page(seen_by(request, asked.narrowed()), asked.limit, asked.cursor)
    deliveries: defaultdict[str, list[Delivery]] = defaultdict(list)
    for delivery in await journal.deliveries(*(record.prompt_id for record in page.records)):
        deliveries[delivery.prompt_id].append(delivery)
    listed = JobList(jobs=[listed_job(record, deliveries[record.prompt_id]) for record in page.records])
    if page.next_cursor is not None:
        listed["next_cursor"] = page.next_cursor
    return listed


async def sent_again(request: Request, prompt_id: str) -> Response:
    """The answer to a POST that wants a job's webhooks sent again."""
    record, deliveries = await webhooks_again(request, prompt_id)
    shown = SentAgain(prompt_id=prompt_id, webhook=_webhooks(record.webhook, deliveries))
    return json_response(202, shown, {"Cache-Control": "no-store"})


async def webhooks_again(request: Request, prompt_id: str) -> tuple[JobRecord, list[Delivery]]:
    """Sends the webhooks of a job's present run again; the job, and these webhooks. Raises as `send_again`."""
    gateway = gateway_of(request)
    journal, origin = gateway.handler.journal, origin_of(request)
    known = await journal.get(prompt_id)
    if known is not None and not origin.sees(known.owner):
        raise ComfyUINotFoundError(UNKNOWN_JOB, prompt_id=prompt_id)
    gateway.options.webhooks.check_enabled(gateway.keys.rules_of(known.owner) if known else origin.rules)
    return await send_again(journal, gateway.handler.entries.announcements, prompt_id)


def pending(request: Request, look: Look, preferred: Preferences) -> Response:
    """202 for a job that has not ended."""
    headers = {
        PROMPT_STATUS: look.state.value,
        "Location": link_to(f"/prompt_sync/{look.prompt_id}", request),
        "Retry-After": str(_RETRY_AFTER_S if look.state is State.RUNNING else _RETRY_AFTER_WAITING_S),
        "Cache-Control": "no-store",
    }
    if preferred.respond_async:
        headers["Preference-Applied"] = preferred.applied
    return json_response(202, pending_job(gateway_of(request), look, in_detail=request.method == "GET"), headers)


def pending_job(gateway: GatewayState, look: Look, *, in_detail: bool) -> PendingJob:
    """An unfinished job as a caller sees it. `in_detail`: with its progress and its webhooks."""
    record = look.record
    body = PendingJob(
        prompt_id=look.prompt_id,
        status=look.state.value,
        position=look.position,
        created_at=_time(record.created_at) if record else None,
    )
    if record is not None and record.call is not None:
        body["workflow"] = record.call.to_json()
    queue = gateway.handler.queue
    if queue.paused and queue.has_no_turn(look.prompt_id):
        body["paused"] = True
    if servers := queue.waits_for(look.prompt_id):
        body["waits_for"] = servers
    if in_detail:
        body["started_at"] = _time(record.started_at) if record else None
        body["progress"] = _progress(look)
        if look.deliveries or (record is not None and record.webhook is not None):
            body["webhook"] = _webhooks(record.webhook if record else None, look.deliveries)
    if not gateway.options.jobs_are_stored:
        body["stored"] = False
    return body


def pending_answer() -> Answer:
    """The description of `pending` in OpenAPI."""
    return Answer(
        "The job has not ended; poll it at `Location`.",
        json_of(PendingJob),
        ("Location", "Retry-After", "Preference-Applied"),
    )


def link_to(path: str, request: Request) -> str:
    """A path of ours as this client writes it: absolute where PUBLIC_URL says how."""
    return (gateway_of(request).options.public_url or prefix_of(request.scope)) + path


def _progress(look: Look) -> JobProgress | None:
    if look.state is not State.RUNNING:
        return None
    tracker = ProgressTracker(lambda: look.workflow)
    found = JobProgress(overall=0.0, node=None, title=None, value=None, max=None)
    for event in look.events:
        for step in tracker.observe(event):
            if isinstance(step, NodeStarted):
                found["node"], found["title"], found["value"], found["max"] = step.node, step.title, None, None
            elif isinstance(step, NodeProgress):
                found["overall"] = step.overall
                if step.node == found["node"]:
                    found["value"], found["max"] = step.value, step.max
    return found


def _webhooks(order: WebhookOrder | None, deliveries: Sequence[Delivery]) -> ShownWebhooks:
    return ShownWebhooks(
        url=order.shown_url if order else None,
        deliveries=[
            ShownDelivery(
                id=one.id,
                event=one.event,
                audience=one.audience,
                run=one.run,
                state=one.state.value,
                tries=one.tries,
                tried_at=_time(one.tried_at),
                answer=one.answer,
            )
            for one in deliveries
        ],
    )


def listed_job(record: JobRecord, deliveries: Sequence[Delivery] = ()) -> ListedJob:
    """A job as lists show it."""
    error = record.error
    listed = ListedJob(
        prompt_id=record.prompt_id,
        status=record.state.value,
        kind=record.kind,
        run=record.run,
        workflow=record.workflow_name,
        labels=record.labels,
        priority=record.priority,
        server=record.server,
        created_at=_time(record.created_at),
        started_at=_time(record.started_at),
        ended_at=_time(record.ended_at),
        error=JobFailure(type=error["type"], detail=error["detail"]) if error else None,
    )
    if deliveries or record.webhook is not None:
        listed["webhook"] = _webhooks(record.webhook, deliveries)
    return listed


def _time(seconds: Any) -> Any:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
