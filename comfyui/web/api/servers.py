"""One of the ComfyUI servers: take it out, and let it have prompts again.

Other paths below ``/servers/{name}/`` belong to that server, and are relayed: `comfyui.web.comfyui.proxy`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from typing_extensions import TypedDict

from comfyui.exceptions import ComfyUIConflictError, ComfyUIError, ComfyUINotFoundError, JournalError
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import TEXT, Answer, json_of, operation

router = APIRouter(default_response_class=Response)


class ServerState(TypedDict):
    """Whether a server gets prompts."""

    server: Annotated[str, Field(description="Its name.")]
    status: Annotated[Literal["drained", "in use"], Field(description="drained: it gets no more prompts.")]
    in_flight: Annotated[
        int, Field(description="The gateway's prompts on the server; at 0, the server may be stopped.")
    ]


_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The server's name in COMFYUI_SERVER_ADDRESS, or its host and port if it has no name.",
    "schema": {**TEXT, "pattern": "^[ -~]+$"},
}


def _described(name: str, answer: str) -> dict[str, Any]:
    errors: tuple[type[ComfyUIError], ...] = (ComfyUINotFoundError, ComfyUIConflictError, JournalError)
    answers = {200: Answer(answer, json_of(ServerState))}
    return operation(name, answers, errors, parameters=[_NAME], tag="servers")


@router.post(
    "/servers/{name:path}/drain",
    summary="Drain a server: give it no more prompts",
    openapi_extra=_described("drain_server", "The server gets no more prompts."),
)
async def drain(request: Request) -> Response:
    """Running prompts end there. It stays drained over restarts of the gateway, until `resume`.

    If prompts wait in ComfyUI's own queue (QUEUE), the answer is 409.
    """
    return await _set(request, drained=True)


@router.post(
    "/servers/{name:path}/resume",
    summary="Give a drained server prompts again",
    openapi_extra=_described("resume_server", "The server gets prompts again."),
)
async def resume(request: Request) -> Response:
    """Nothing happens if it was not drained."""
    return await _set(request, drained=False)


async def _set(request: Request, *, drained: bool) -> Response:
    name, handler = request.path_params["name"], gateway_of(request).handler
    if not handler.queue.are_all_here:
        raise ComfyUIConflictError("the server cannot be drained, because prompts wait in its own queue (QUEUE)")
    backend = await handler.fleet.drain(name, drained)
    state = ServerState(server=name, status="drained" if backend.drained else "in use", in_flight=backend.in_flight)
    return json_response(200, state, {"Cache-Control": "no-store"})
