"""The gateway's own queue as a whole: pause it, have it go on, and ask which it does."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from typing_extensions import TypedDict

from comfyui.exceptions import ComfyUIConflictError, ComfyUIError, JournalError
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation

router = APIRouter(default_response_class=Response)


class QueueState(TypedDict):
    """Whether jobs leave the queue."""

    status: Annotated[Literal["paused", "running"], Field(description="paused: no waiting job is started.")]


def _described(name: str, answer: str, *errors: type[ComfyUIError]) -> dict[str, object]:
    return operation(name, {200: Answer(answer, json_of(QueueState))}, errors, tag="queue")


@router.get(
    "/queue/pause",
    summary="Whether the queue is paused",
    openapi_extra=_described("queue_state", "The state of the queue."),
)
async def state(request: Request) -> Response:
    """If prompts wait in ComfyUI's own queue (QUEUE), it is always running."""
    return _answer(request)


@router.post(
    "/queue/pause",
    summary="Pause the queue: no waiting job begins",
    openapi_extra=_described("pause_queue", "The queue is paused.", ComfyUIConflictError, JournalError),
)
async def pause(request: Request) -> Response:
    """Running jobs go on, and submissions are accepted. It stays paused over restarts of the gateway.

    If prompts wait in ComfyUI's own queue (QUEUE), the answer is 409.
    """
    return await _set(request, paused=True)


@router.post(
    "/queue/resume",
    summary="Resume the queue",
    openapi_extra=_described("resume_queue", "The queue is resumed.", ComfyUIConflictError, JournalError),
)
async def resume(request: Request) -> Response:
    """Nothing happens if it is not paused."""
    return await _set(request, paused=False)


async def _set(request: Request, *, paused: bool) -> Response:
    await gateway_of(request).handler.queue.pause(paused)
    return _answer(request)


def _answer(request: Request) -> Response:
    paused = gateway_of(request).handler.queue.paused
    return json_response(200, QueueState(status="paused" if paused else "running"), {"Cache-Control": "no-store"})
