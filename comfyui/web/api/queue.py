"""The gateway's own queue as a whole: pause it, and have it go on."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from typing_extensions import TypedDict

from comfyui.exceptions import ComfyUIConflictError, JournalError
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation

router = APIRouter(default_response_class=Response)


class QueueState(TypedDict):
    """Whether jobs get their turn."""

    status: Annotated[Literal["paused", "running"], Field(description="paused: what waits goes on waiting.")]


def _described(name: str, answer: str) -> dict[str, object]:
    return operation(
        name, {200: Answer(answer, json_of(QueueState))}, (ComfyUIConflictError, JournalError), tag="queue"
    )


@router.post(
    "/queue/pause",
    summary="Let nothing begin that waits in the gateway",
    openapi_extra=_described("pause_queue", "It is paused."),
)
async def pause(request: Request) -> Response:
    """What runs ends, and submissions are taken. It stays paused over restarts of the gateway.

    Where prompts wait in ComfyUI's own queue (QUEUE), it is 409.
    """
    return await _set(request, paused=True)


@router.post(
    "/queue/resume",
    summary="Let the queue go on",
    openapi_extra=_described("resume_queue", "It goes on."),
)
async def resume(request: Request) -> Response:
    """Nothing happens when it is not paused."""
    return await _set(request, paused=False)


async def _set(request: Request, *, paused: bool) -> Response:
    await gateway_of(request).handler.queue.pause(paused)
    return json_response(200, QueueState(status="paused" if paused else "running"))
