"""ComfyUI's own `POST /prompt`: what ComfyUI's clients queue through us, without a wait."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from fastapi import APIRouter, Request, Response
from pydantic import Field
from typing_extensions import TypedDict

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIServerError
from comfyui.headers import of_submission
from comfyui.offload import offloaded
from comfyui.servers.pool import CHOICE_PATIENCE_S
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation

router = APIRouter(default_response_class=Response)


class QueueRequest(TypedDict):
    """What ComfyUI reads of a body; further members are passed on."""

    prompt: Annotated[dict[str, Any], Field(description="The workflow in API format.")]
    prompt_id: NotRequired[str]
    client_id: NotRequired[str]
    extra_data: NotRequired[dict[str, Any]]
    front: NotRequired[bool]
    number: NotRequired[float]
    partial_execution_targets: NotRequired[list[str]]


class Queued(TypedDict):
    """ComfyUI's answer where it takes a prompt."""

    prompt_id: str
    number: float
    node_errors: Annotated[dict[str, Any], Field(description="Outputs that it left out of the run, by node.")]


class ComfyUIRefusal(TypedDict):
    """ComfyUI's answer where it refuses a workflow."""

    error: Annotated[Any, Field(description="What is wrong: an object, or a text.")]
    node_errors: Annotated[Any, Field(description="An object by node, or an empty list.")]


def _operation(name: str) -> dict[str, Any]:
    return operation(
        name,
        {
            200: Answer("ComfyUI has queued it.", json_of(Queued)),
            400: Answer("ComfyUI refuses it.", json_of(ComfyUIRefusal)),
        },
        (ComfyUIConnectionError, ComfyUIServerError),
        body=json_of(QueueRequest),
        relayed=Answer("ComfyUI's own answer.", {"application/json": {}, "*/*": {}}),
        tag="comfyui",
    )


@router.post("/prompt", summary="ComfyUI's own endpoint, unchanged", openapi_extra=_operation("queue_prompt"))
@router.post(
    "/api/prompt", summary="The same, as ComfyUI's editor calls it", openapi_extra=_operation("queue_api_prompt")
)
async def prompt(request: Request) -> Response:
    """The body goes to ComfyUI as it came, and the reply comes back as it came."""
    pieces = [chunk async for chunk in request.stream()]
    body = await offloaded(sum(map(len, pieces)), b"".join, pieces)
    gateway = gateway_of(request)
    server = await gateway.sockets.backend_for(body)
    gateway.handler.refuse_when_draining()
    pool = gateway.handler.pool
    # The server whose websocket the client watches, while it is ready.
    backend = server if server and server.ready else await pool.choose(patience_s=CHOICE_PATIENCE_S)
    try:
        reply = await backend.client.forward_prompt(body, of_submission(request.scope["headers"]))
    except ComfyUIConnectionError as error:
        backend.failed(error)
        raise
    return Response(reply.body, reply.status, {"Content-Type": reply.content_type})
