"""The gateway's own endpoints: `/prompt_sync`, and ComfyUI's `/prompt` for drop-in use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any
from uuid import UUID, uuid4, uuid5

import orjson
import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from comfyui.client import View
from comfyui.handler import ComfyUIHandler
from comfyui.models import OutputFile, PromptRequest, PromptResult
from comfyui.outputs import result_json
from comfyui.web.deps import Body, ClientGoneError, Handler, Options, WebOptions, unless_gone
from comfyui.web.errors import RequestError
from comfyui.web.headers import submission_headers
from comfyui.web.upstreams import Upstreams

router = APIRouter()

# Names under which keys become ids are ours alone, so that no other UUIDv5 scheme can collide with them.
_KEY_NAMESPACE = UUID("5f0c1a2e-7d0b-5c39-9a36-0e3b6f0f8a11")
# An answer up to this size is sent in one piece with its length; a larger one streams.
_WHOLE_ANSWER = 1024 * 1024

Timeout = Annotated[float | None, Query(gt=0, description="Seconds to wait; DEFAULT_TIMEOUT when not given.")]
Key = Annotated[str | None, Header(max_length=255, description="Any key that makes the call idempotent.")]


def _body_schema() -> dict[str, Any]:
    """What OpenAPI says of the body, which FastAPI does not read itself: its definitions stand inline."""
    schema = PromptRequest.model_json_schema()
    definitions = schema.pop("$defs", {})
    text = orjson.dumps(schema).decode()
    for name, definition in definitions.items():
        text = text.replace(f'{{"$ref":"#/$defs/{name}"}}', orjson.dumps(definition).decode())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": orjson.loads(text)}}}}


@router.post("/prompt_sync", summary="Run a workflow and wait for its files", openapi_extra=_body_schema())
async def prompt_sync(
    request: Request,
    body: Body,
    handler: Handler,
    options: Options,
    timeout: Timeout = None,
    idempotency_key: Key = None,
) -> Response:
    """Post a workflow in ComfyUI's API format; the answer has the finished files."""
    timeout_s = _timeout_s(timeout, options)
    if idempotency_key is not None:
        if body.prompt_id is not None:
            raise RequestError("give either prompt_id or the Idempotency-Key header, not both")
        body = body.model_copy(update={"prompt_id": prompt_id_for_key(idempotency_key)})
    prompt_id = str(body.prompt_id or uuid4())
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    try:
        work = handler.submit_prompt_sync(body, timeout_s=timeout_s, fresh_id=prompt_id)
        result = await unless_gone(request, work)
    except ClientGoneError:
        return _nobody()
    return await _answer(handler, result, with_base64=body.return_image_base64)


@router.get("/prompt_sync/{prompt_id}", summary="Attach again to a prompt")
async def attach(
    request: Request,
    prompt_id: UUID,
    handler: Handler,
    options: Options,
    timeout: Timeout = None,
    return_image_base64: bool = False,
) -> Response:
    """Answers as the POST would have, for a prompt that is queued, running or finished."""
    structlog.contextvars.bind_contextvars(prompt_id=str(prompt_id))
    timeout_s = _timeout_s(timeout, options)
    try:
        result = await unless_gone(request, handler.attach(str(prompt_id), timeout_s=timeout_s))
    except ClientGoneError:
        return _nobody()
    return await _answer(handler, result, with_base64=return_image_base64)


@router.delete("/prompt_sync/{prompt_id}", summary="Cancel a prompt")
async def cancel(prompt_id: UUID, handler: Handler) -> dict[str, str]:
    """Removed from ComfyUI's queue, or interrupted if it is the one that runs; nobody else's prompt is touched."""
    structlog.contextvars.bind_contextvars(prompt_id=str(prompt_id))
    await handler.cancel(str(prompt_id))
    return {"prompt_id": str(prompt_id), "status": "cancelled"}


@router.post("/prompt", summary="ComfyUI's own endpoint, unchanged")
@router.post("/api/prompt", include_in_schema=False)
async def prompt(request: Request, handler: Handler) -> Response:
    """The body goes to ComfyUI as it came, and the reply comes back as it came."""
    body = await request.body()
    upstreams: Upstreams = request.app.state.upstreams
    reply = await handler.queue_prompt_compatible(
        body, submission_headers(request.scope), server=upstreams.backend_for(body)
    )
    return Response(reply.body, reply.status, {"Content-Type": reply.content_type})


def prompt_id_for_key(key: str) -> UUID:
    """The same key gives the same id, in any process and after any restart."""
    return uuid5(_KEY_NAMESPACE, key)


def _timeout_s(timeout: float | None, options: WebOptions) -> float:
    if timeout is None:
        return options.default_timeout_s
    if timeout > options.max_timeout_s:
        raise RequestError(f"timeout: at most {options.max_timeout_s:g} seconds (MAX_TIMEOUT)")
    return timeout


async def _answer(handler: ComfyUIHandler, result: PromptResult, *, with_base64: bool) -> Response:
    """The result as JSON: in one piece while it is small, streamed with bounded memory when it is not."""

    def open_file(file: OutputFile) -> AbstractAsyncContextManager[View]:
        return handler.open_file(result, file)

    pieces = result_json(result, open_file=open_file if with_base64 else None)
    start = bytearray()
    async for piece in pieces:
        start += piece
        if len(start) > _WHOLE_ANSWER:
            return StreamingResponse(_all(bytes(start), pieces), media_type="application/json")
    return Response(bytes(start), media_type="application/json")


async def _all(start: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for piece in rest:
        yield piece


def _nobody() -> Response:
    """Nobody reads this; the status stands in the access log (nginx's "client closed request")."""
    return Response(status_code=499)
