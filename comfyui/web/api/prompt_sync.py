"""`/prompt_sync`: run a workflow and wait for its files, attach to a prompt again, cancel it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal
from uuid import UUID, uuid4, uuid5

import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from comfyui.models import ImageConversion, OutputPlace
from comfyui.outputs.delivery import Order
from comfyui.web.api.accept import accepted_by
from comfyui.web.api.answers import Call, answer, result_schema
from comfyui.web.api.bodies import Submitted, body_schema
from comfyui.web.front.deps import CALLER, Delivery, Handler, Options, WebOptions
from comfyui.web.front.errors import RequestError

router = APIRouter()

# Where no API keys tell callers apart. It is ours alone, so that no other UUIDv5 scheme can collide with it.
_KEY_NAMESPACE = UUID("5f0c1a2e-7d0b-5c39-9a36-0e3b6f0f8a11")

NodeId = Annotated[str | None, Query(max_length=256, description="Whose file, when its bytes are asked for.")]
Previews = Annotated[bool, Query(description="Pictures of the work in progress among the events.")]
Timeout = Annotated[float | None, Query(gt=0, description="Seconds to wait; DEFAULT_TIMEOUT when not given.")]
Key = Annotated[str | None, Header(min_length=1, max_length=255, description="Any key that makes the call idempotent.")]


class AttachQuery(BaseModel):
    """What a POST says in its query and its body, as far as it is about the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: float | None = Field(default=None, gt=0, description="Seconds to wait.")
    node_id: str | None = Field(default=None, max_length=256, description="Whose file, when its bytes are asked for.")
    previews: bool = Field(default=False, description="Pictures of the work in progress among the events.")
    return_image_base64: bool = False
    convert: Literal["webp", "jpeg", "png", "avif"] | None = Field(default=None, description="`convert.format`.")
    quality: int | None = Field(default=None, ge=1, le=100, description="`convert.quality`.")
    metadata: Literal["keep", "strip"] = Field(default="keep", description="`convert.metadata`.")
    store: Literal["s3", "none"] | None = Field(default=None, description="`output.store`.")
    bucket: str | None = Field(default=None, max_length=63, description="`output.bucket`.")
    prefix: str | None = Field(default=None, max_length=512, description="`output.prefix`.")
    presign_seconds: int | None = Field(default=None, ge=1, description="`output.presign_seconds`.")

    def order(self) -> Order:
        convert = self.convert and ImageConversion(format=self.convert, quality=self.quality, metadata=self.metadata)
        place = self.store and OutputPlace(
            store=self.store, bucket=self.bucket, prefix=self.prefix, presign_seconds=self.presign_seconds
        )
        return Order(self.return_image_base64, convert or None, place or None)


@router.post(
    "/prompt_sync",
    summary="Run a workflow and wait for its files",
    openapi_extra=body_schema(),
    responses=result_schema(),
)
async def prompt_sync(
    request: Request,
    submitted: Submitted,
    handler: Handler,
    deliverer: Delivery,
    options: Options,
    timeout: Timeout = None,
    node_id: NodeId = None,
    previews: Previews = False,
    idempotency_key: Key = None,
) -> Response:
    """Post a workflow in ComfyUI's API format; the answer has the finished files, in the form that `Accept` names."""
    timeout_s = _timeout_s(timeout, options)
    body = submitted.request
    if idempotency_key is not None:
        if body.prompt_id is not None:
            raise RequestError("give either prompt_id or the Idempotency-Key header, not both")
        caller: UUID | None = request.scope["state"].get(CALLER)
        body = body.model_copy(update={"prompt_id": prompt_id_for_key(idempotency_key, caller)})
    prompt_id = str(body.prompt_id or uuid4())
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    call = Call(
        prompt_id,
        accepted_by(request),
        Order.of(body),
        node_id,
        previews,
        lambda: handler.workflow_of(prompt_id),
        _deadline(timeout_s),
    )
    return await answer(
        request,
        deliverer,
        call,
        lambda listener: handler.submit_prompt_sync(
            body, timeout_s=timeout_s, files=submitted.files, fresh_id=prompt_id, listener=listener
        ),
    )


@router.get("/prompt_sync/{prompt_id}", summary="Attach again to a prompt", responses=result_schema())
async def attach(
    request: Request,
    prompt_id: UUID,
    handler: Handler,
    deliverer: Delivery,
    options: Options,
    wanted: Annotated[AttachQuery, Query()],
) -> Response:
    """Answers as the POST would have, for a prompt that is queued, running or finished."""
    known_id = str(prompt_id)
    structlog.contextvars.bind_contextvars(prompt_id=known_id)
    timeout_s = _timeout_s(wanted.timeout, options)
    call = Call(
        known_id,
        accepted_by(request),
        wanted.order(),
        wanted.node_id,
        wanted.previews,
        lambda: handler.workflow_of(known_id),
        _deadline(timeout_s),
    )
    return await answer(
        request, deliverer, call, lambda listener: handler.attach(known_id, timeout_s=timeout_s, listener=listener)
    )


@router.delete("/prompt_sync/{prompt_id}", summary="Cancel a prompt")
async def cancel(prompt_id: UUID, handler: Handler) -> dict[str, str]:
    """Removed from ComfyUI's queue, or interrupted if it is the one that runs; nobody else's prompt is touched."""
    structlog.contextvars.bind_contextvars(prompt_id=str(prompt_id))
    await handler.cancel(str(prompt_id))
    return {"prompt_id": str(prompt_id), "status": "cancelled"}


def prompt_id_for_key(key: str, caller: UUID | None) -> UUID:
    """The same Idempotency-Key of the same caller gives the same id, in any process and after any restart.

    `caller`: the name of the API key that was shown, so that nobody meets the prompts of others by chance; None where
    no key is needed.
    """
    return uuid5(caller or _KEY_NAMESPACE, key)


def _timeout_s(timeout: float | None, options: WebOptions) -> float:
    if timeout is None:
        return options.default_timeout_s
    if timeout > options.max_timeout_s:
        raise RequestError(f"timeout: at most {options.max_timeout_s:g} seconds (MAX_TIMEOUT)")
    return timeout


def _deadline(timeout_s: float) -> float:
    return asyncio.get_running_loop().time() + timeout_s
