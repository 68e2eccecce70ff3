"""`/prompt_sync`: run a workflow and wait for its files, attach to a prompt again, cancel it.

The endpoints take the request alone: `comfyui.web.api.door` calls them, and FastAPI only describes them.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

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
from comfyui.models import ImageConversion, ImageFormat, Metadata, OutputPlace, StoreName
from comfyui.outputs.delivery import Order
from comfyui.web.api.answers import answer, result_answer
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
from comfyui.web.api.parameters import IN_PATH, Parameters, described, read
from comfyui.web.api.submitting import Preferring, SubmitCall, Submitting, call_of, ended, timeout_of
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import PROMPT_STATUS, Answer, json_of, operation

router = APIRouter(default_response_class=Response)

PromptId = Annotated[UUID, Field(json_schema_extra=IN_PATH)]


class AttachCall(Preferring):
    """The parameters of a POST's query and body that concern the answer."""

    timeout: float | None = Field(
        default=None,
        ge=0,
        description="Seconds to wait; DEFAULT_TIMEOUT if it is left out. With 0, the answer comes at once.",
    )
    prompt_id: PromptId
    return_image_base64: bool = Field(default=False, description="The same as in the body of a POST.")
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
    """The prompt to cancel."""

    prompt_id: PromptId


class WebhookCall(Parameters):
    """The job whose webhooks are sent."""

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

    With `Prefer: respond-async` the answer is 202, and the job runs when its turn comes, even without a waiting caller.
    """
    submitting = Submitting.of(request, read(SubmitCall, request, in_body=FIELDS))
    with await submission(request, waits=submitting.waits) as submitted:
        return await submitting.answer(submitted)


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

    With `Prefer: respond-async` or `timeout=0` it answers at once: 202 while the job has not ended.
    """
    asked = read(AttachCall, request)
    gateway = gateway_of(request)
    timeout_s = timeout_of(asked.timeout or None, gateway.options)
    preferred = asked.preferred(gateway.options)
    prompt_id = str(asked.prompt_id)
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    origin = origin_of(request)
    call = call_of(request, gateway, asked, prompt_id, asked.order(), timeout_s)
    if preferred.respond_async or asked.timeout == 0:
        look = await gateway.handler.look(prompt_id, origin)
        if preferred.wait_s and not look.state.is_end:
            look = await gateway.handler.look_within(prompt_id, preferred.wait_s, origin)
        if not look.state.is_end:
            return pending(request, look, preferred)
        return await ended(request, gateway, call, look, origin)
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
        {200: Answer("The prompt is cancelled.", json_of(Cancelled))},
        (RequestError, ComfyUINotFoundError, ComfyUIConnectionError, ComfyUIServerError),
        parameters=described(CancelCall),
    ),
)
async def cancel(request: Request) -> Response:
    """Removed from ComfyUI's queue, or interrupted if it runs; other callers' prompts are not touched."""
    prompt_id = str(read(CancelCall, request).prompt_id)
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    await gateway_of(request).handler.cancel(prompt_id, origin_of(request))
    return json_response(200, Cancelled(prompt_id=prompt_id, status="cancelled"))


@router.post(
    "/prompt_sync/{prompt_id}/webhook",
    summary="Send a job's webhooks again",
    openapi_extra=operation(
        "send_webhooks_again",
        {
            202: Answer(
                "The webhooks are sent now; failed attempts are repeated as they were at first.", json_of(SentAgain)
            )
        },
        (RequestError, ComfyUINotFoundError, ComfyUIConflictError, JournalError),
        parameters=described(WebhookCall),
    ),
)
async def send_webhooks_again(request: Request) -> Response:
    """For a job that has ended, with the same ids, including webhooks that were delivered."""
    prompt_id = str(read(WebhookCall, request).prompt_id)
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    return await sent_again(request, prompt_id)
