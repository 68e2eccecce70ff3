"""ComfyUI's own `POST /prompt`: what ComfyUI's clients queue through us, without a wait."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from comfyui import big_json
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIServerError,
    ComfyUIValidationError,
    JSONError,
    RequestError,
)
from comfyui.executors.checking import problems_on
from comfyui.executors.own_files import as_seen_by
from comfyui.headers import of_submission
from comfyui.jobs.origin import Origin
from comfyui.limits import Limits
from comfyui.models import PromptRequest
from comfyui.offload import offloaded
from comfyui.servers.pool import CHOICE_PATIENCE_S
from comfyui.web.comfyui.refusals import refusal_of
from comfyui.web.front.errors import describe_validation, json_response
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation
from comfyui.web.front.request_state import state_of
from comfyui.workflows.api_format import check_api_format
from comfyui.workflows.preflight import refusal

# What is taken of a user's body.
_OF_A_USER = ("prompt", "prompt_id", "client_id", "extra_data", "partial_execution_targets")

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
    caller = state_of(request.scope).caller
    if caller is not None and caller.rules.role == "user":
        return await _own_prompt(gateway, body, Origin("prompt", caller.owner, caller.rules))
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


async def _own_prompt(gateway: GatewayState, body: bytes, origin: Origin) -> Response:
    """A user's prompt is a job of its key. What ComfyUI would refuse is refused at once, where a server says so."""
    try:
        posted = await offloaded(len(body), _posted, body, gateway.options.limits)
        request, files = posted, ()
        ready = gateway.handler.pool.ready
        if ready and origin.rules is not None:
            known = await ready[0].object_info()
            problems = await problems_on(ready[0], request, limits=gateway.options.limits)
            seen = await offloaded(len(body), as_seen_by, origin.rules.name, problems, request, known, files)
            if (refused := refusal(seen)) is not None:
                raise refused
        look = await gateway.handler.submit_async(request, None, fresh_id=str(uuid4()), origin=origin, wait_s=0.0)
    except (ComfyUIValidationError, RequestError) as error:
        return json_response(400, refusal_of(error))
    number = look.record.number if look.record is not None else 0
    return json_response(200, {"prompt_id": look.prompt_id, "number": number, "node_errors": {}})


def _posted(body: bytes, limits: Limits) -> PromptRequest:
    """Raises `RequestError`, and `ComfyUILimitError` for more than `limits` allow.

    `number` and `front` are left out: a user goes before nobody.
    """
    try:
        fields = big_json.load(body, limits)
    except JSONError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict) or "prompt" not in fields:
        raise RequestError("No prompt provided")
    taken = {name: fields[name] for name in _OF_A_USER if fields.get(name) is not None}
    try:
        request = PromptRequest.model_validate(taken).of_size(len(body))
    except ValidationError as error:
        raise RequestError(describe_validation(error.errors(include_url=False, include_input=False))) from None
    check_api_format(request.prompt, limits)
    return request
