"""`/prompt_sync`: run a workflow and wait for its files, attach to a prompt again, cancel it.

The endpoints take the request alone: `comfyui.web.api.door` calls them, and FastAPI only describes them.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal
from uuid import UUID, uuid4, uuid5

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import Field
from typing_extensions import TypedDict

from comfyui.exceptions import (
    ComfyUIConflictError,
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIServerError,
    JournalError,
    RequestError,
)
from comfyui.inputs.content import SpooledFiles
from comfyui.jobs.admission import Look
from comfyui.jobs.journal.records import State
from comfyui.jobs.origin import Origin
from comfyui.models import ImageConversion, ImageFormat, Metadata, OutputPlace, PromptRequest, StoreName
from comfyui.outputs.delivery import Order
from comfyui.web.api.accept import accepted_by
from comfyui.web.api.answers import Call, answer, result_answer
from comfyui.web.api.bodies import FIELDS, submission, submission_body
from comfyui.web.api.jobs import (
    JobList,
    ListCall,
    SentAgain,
    list_of_jobs,
    origin_of,
    pending,
    pending_answer,
    sent_again,
)
from comfyui.web.api.parameters import IN_HEADER, IN_HEADER_LIST, IN_PATH, Parameters, described, read
from comfyui.web.api.preferences import Preferences, preferences
from comfyui.web.front.errors import answer_error, json_response
from comfyui.web.front.gateway_state import GatewayState, WebOptions, gateway_of
from comfyui.web.front.openapi import PROMPT_STATUS, Answer, json_of, operation
from comfyui.web.front.request_state import state_of

router = APIRouter(default_response_class=Response)

# Where no API keys tell callers apart. It is ours alone, so that no other UUIDv5 scheme can collide with it.
_KEY_NAMESPACE = UUID("5f0c1a2e-7d0b-5c39-9a36-0e3b6f0f8a11")

PromptId = Annotated[UUID, Field(json_schema_extra=IN_PATH)]


class WaitingCall(Parameters):
    """What every call says that waits for an answer."""

    timeout: float | None = Field(default=None, gt=0, description="Seconds to wait; DEFAULT_TIMEOUT when not given.")
    node_id: str | None = Field(default=None, max_length=256, description="Whose file, when its bytes are asked for.")
    previews: bool = Field(default=False, description="Pictures of the work in progress among the events.")


class Preferring(WaitingCall):
    """What may be asked for in place of waiting."""

    prefer: str | None = Field(
        default=None,
        max_length=256,
        description="As the header `Prefer`, for tools that cannot set one.",
        examples=["respond-async"],
    )
    prefer_header: str | None = Field(
        default=None,
        alias="Prefer",
        max_length=1024,
        description="`respond-async`: answer 202 at once; `respond-async, wait=20`: after so many seconds, at most"
        " `timeout` (RFC 7240). Other preferences are left alone.",
        examples=["respond-async", "respond-async, wait=20"],
        json_schema_extra=IN_HEADER_LIST,
    )

    def preferred(self, options: WebOptions) -> Preferences:
        return preferences(self.prefer_header, self.prefer, options.max_timeout_s).within(self.timeout)


class SubmitCall(Preferring):
    """A POST, beside its body."""

    idempotency_key: str | None = Field(
        default=None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any key that makes the call idempotent.",
        json_schema_extra=IN_HEADER,
    )


class AttachCall(Preferring):
    """What a POST says in its query and in its body, as far as it is about the answer."""

    timeout: float | None = Field(
        default=None, ge=0, description="Seconds to wait; DEFAULT_TIMEOUT when not given. 0: answer at once."
    )
    prompt_id: PromptId
    return_image_base64: bool = Field(default=False, description="As in the body of a POST.")
    convert: ImageFormat | None = Field(default=None, description="`convert.format`.")
    quality: int | None = Field(default=None, ge=1, le=100, description="`convert.quality`.")
    metadata: Metadata = Field(default="keep", description="`convert.metadata`.")
    store: StoreName | None = Field(default=None, description="`output.store`.")
    bucket: str | None = Field(default=None, max_length=63, description="`output.bucket`.")
    prefix: str | None = Field(default=None, max_length=512, description="`output.prefix`.")
    presign_seconds: int | None = Field(default=None, ge=1, description="`output.presign_seconds`.")

    def order(self) -> Order:
        convert = self.convert and ImageConversion(format=self.convert, quality=self.quality, metadata=self.metadata)
        place = self.store and OutputPlace(
            store=self.store, bucket=self.bucket, prefix=self.prefix, presign_seconds=self.presign_seconds
        )
        return Order(self.return_image_base64, convert or None, place or None)


class CancelCall(Parameters):
    """Which prompt is meant."""

    prompt_id: PromptId


class WebhookCall(Parameters):
    """Which job is meant."""

    prompt_id: PromptId


@router.post(
    "/prompt_sync",
    summary="Run a workflow and wait for its files",
    openapi_extra=operation(
        "prompt_sync",
        {200: result_answer(), 202: pending_answer()},
        (ComfyUIError,),
        headers=(PROMPT_STATUS,),
        parameters=described(SubmitCall),
        body=submission_body(bare=False),
    ),
)
async def prompt_sync(request: Request) -> Response:
    """Post a workflow in ComfyUI's API format; the answer has the finished files, in the form that `Accept` names.

    With `Prefer: respond-async` the answer is 202, and the job runs when its turn comes, whoever is there.
    """
    asked = read(SubmitCall, request, in_body=FIELDS)
    gateway = gateway_of(request)
    timeout_s = _timeout_s(asked.timeout, gateway.options)
    preferred = asked.preferred(gateway.options)
    with await submission(request, waits=not preferred.respond_async) as submitted:
        body = submitted.request
        if body.webhook is not None:
            gateway.options.webhooks.check(body.webhook.url, origin_of(request).rules)
        if asked.idempotency_key is not None:
            if body.prompt_id is not None:
                raise RequestError("give either prompt_id or the Idempotency-Key header, not both")
            caller = state_of(request.scope).caller
            own_id = prompt_id_for_key(asked.idempotency_key, None if caller is None else caller.namespace)
            body = body.model_copy(update={"prompt_id": own_id})
        prompt_id = str(body.prompt_id or uuid4())
        structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
        origin = origin_of(request)
        call = _call(request, gateway, asked, prompt_id, Order.of(body), timeout_s)
        if preferred.respond_async:
            return await _in_the_background(request, gateway, call, body, submitted.files, origin, preferred)
        return await answer(
            request,
            gateway.deliverer,
            call,
            lambda listener: gateway.handler.submit_prompt_sync(
                body,
                timeout_s=timeout_s,
                files=submitted.files,
                fresh_id=prompt_id,
                listener=listener,
                origin=origin,
                told=listener is not None,  # events begin with the id
            ),
        )


async def _in_the_background(
    request: Request,
    gateway: GatewayState,
    call: Call,
    body: PromptRequest,
    files: SpooledFiles | None,
    origin: Origin,
    preferred: Preferences,
) -> Response:
    gateway.deliverer.check(call.order)
    look = await gateway.handler.submit_async(
        body, files, fresh_id=call.prompt_id, origin=origin, wait_s=preferred.wait_s
    )
    if not look.state.is_end:
        return pending(request, look, preferred)
    return await _ended(request, gateway, call, look, origin)


async def _ended(request: Request, gateway: GatewayState, call: Call, look: Look, origin: Origin) -> Response:
    """The result of a job that has ended, or the error that it ended with: `X-Prompt-Status` tells it from others."""
    try:
        response = await answer(
            request,
            gateway.deliverer,
            call,
            lambda listener: gateway.handler.attach(
                call.prompt_id, timeout_s=gateway.options.default_timeout_s, listener=listener, origin=origin
            ),
        )
    except ComfyUIError as error:
        record = look.record
        if record is None or not record.state.is_end:
            record = (await gateway.handler.look(call.prompt_id, origin)).record
        if record is None or record.error is None or record.error["detail"] != error.detail:
            raise
        response = await answer_error(request, error)
        response.headers[PROMPT_STATUS] = record.state.value
    else:
        response.headers[PROMPT_STATUS] = State.SUCCEEDED.value
    return response


@router.get(
    "/prompt_sync",
    summary="List jobs",
    openapi_extra=operation(
        "list_jobs",
        {200: Answer("One page of jobs, newest first.", json_of(JobList))},
        (RequestError, JournalError),
        parameters=described(ListCall),
    ),
)
async def list_jobs(request: Request) -> Response:
    """All jobs that are kept, also those that wait, newest first."""
    return await list_of_jobs(request)


@router.get(
    "/prompt_sync/{prompt_id}",
    summary="Attach again to a prompt",
    openapi_extra=operation(
        "attach",
        {200: result_answer(), 202: pending_answer()},
        (ComfyUIError,),
        headers=(PROMPT_STATUS,),
        parameters=described(AttachCall),
    ),
)
async def attach(request: Request) -> Response:
    """Answers as the POST would have, for a prompt that is queued, running or finished.

    With `Prefer: respond-async` or `timeout=0` at once: 202 while it has not ended.
    """
    asked = read(AttachCall, request)
    gateway = gateway_of(request)
    timeout_s = _timeout_s(asked.timeout or None, gateway.options)
    preferred = asked.preferred(gateway.options)
    prompt_id = str(asked.prompt_id)
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    origin = origin_of(request)
    call = _call(request, gateway, asked, prompt_id, asked.order(), timeout_s)
    if preferred.respond_async or asked.timeout == 0:
        look = await gateway.handler.look(prompt_id, origin)
        if preferred.wait_s and not look.state.is_end:
            look = await gateway.handler.look_within(prompt_id, preferred.wait_s, origin)
        if not look.state.is_end:
            return pending(request, look, preferred)
        return await _ended(request, gateway, call, look, origin)
    return await answer(
        request,
        gateway.deliverer,
        call,
        lambda listener: gateway.handler.attach(prompt_id, timeout_s=timeout_s, listener=listener, origin=origin),
    )


class Cancelled(TypedDict):
    """A prompt that was taken out of ComfyUI."""

    prompt_id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Literal["cancelled"]


@router.delete(
    "/prompt_sync/{prompt_id}",
    summary="Cancel a prompt",
    openapi_extra=operation(
        "cancel",
        {200: Answer("It is cancelled.", json_of(Cancelled))},
        (RequestError, ComfyUINotFoundError, ComfyUIConnectionError, ComfyUIServerError),
        parameters=described(CancelCall),
    ),
)
async def cancel(request: Request) -> Response:
    """Removed from ComfyUI's queue, or interrupted if it is the one that runs; nobody else's prompt is touched."""
    prompt_id = str(read(CancelCall, request).prompt_id)
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    await gateway_of(request).handler.cancel(prompt_id, origin_of(request))
    return json_response(200, Cancelled(prompt_id=prompt_id, status="cancelled"))


@router.post(
    "/prompt_sync/{prompt_id}/webhook",
    summary="Send a job's webhooks again",
    openapi_extra=operation(
        "send_webhooks_again",
        {202: Answer("They are sent at once, and tried again as at first.", json_of(SentAgain))},
        (RequestError, ComfyUINotFoundError, ComfyUIConflictError, JournalError),
        parameters=described(WebhookCall),
    ),
)
async def send_webhooks_again(request: Request) -> Response:
    """Of a job that has ended, with the ids that they had; those that were delivered, too."""
    prompt_id = str(read(WebhookCall, request).prompt_id)
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    return await sent_again(request, prompt_id)


def prompt_id_for_key(key: str, namespace: UUID | None) -> UUID:
    """The same Idempotency-Key of the same caller gives the same id, in any process and after any restart.

    `namespace`: of the caller's API key, so that nobody meets the prompts of others by chance; None where no key is
    needed.
    """
    return uuid5(namespace or _KEY_NAMESPACE, key)


def _call(
    request: Request, gateway: GatewayState, asked: WaitingCall, prompt_id: str, order: Order, timeout_s: float
) -> Call:
    return Call(
        prompt_id,
        accepted_by(request),
        order,
        asked.node_id,
        asked.previews,
        lambda: gateway.handler.workflow_of(prompt_id),
        asyncio.get_running_loop().time() + timeout_s,
    )


def _timeout_s(timeout: float | None, options: WebOptions) -> float:
    if timeout is None:
        return options.default_timeout_s
    if timeout > options.max_timeout_s:
        raise RequestError(f"timeout: at most {options.max_timeout_s:g} seconds (MAX_TIMEOUT)")
    return timeout
