"""ComfyUI's own `POST /prompt`: what ComfyUI's clients queue through us, without a wait."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid4

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from comfyui import big_json, jsonio
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIServerError,
    ComfyUIValidationError,
    JSONError,
    RequestError,
)
from comfyui.executors.own_files import answer_without_files
from comfyui.headers import of_submission
from comfyui.jobs.origin import Origin
from comfyui.models import PromptRequest
from comfyui.offload import in_thread, offloaded
from comfyui.servers.backend import Backend
from comfyui.servers.pool import CHOICE_PATIENCE_S
from comfyui.transport.drivers import RawReply
from comfyui.web.comfyui.viewer import viewer_of
from comfyui.web.front.comfyui_errors import comfyui_error, error_of
from comfyui.web.front.errors import describe_validation, json_response
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation
from comfyui.workflows.api_format import is_ui_format

# The members of a body that ComfyUI reads, except `front`.
_READ = ("prompt", "prompt_id", "client_id", "extra_data", "number", "partial_execution_targets")
# How many bytes of an invalid body are sent on, so that ComfyUI can answer it.
_ASKED_ABOUT = 1_000_000
# ComfyUI's words.
_ID_DETAILS = (
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one"
)

router = APIRouter(default_response_class=Response)


class QueueRequest(TypedDict):
    """The members of a body that ComfyUI reads."""

    prompt: Annotated[dict[str, Any], Field(description="The workflow in API format.")]
    prompt_id: NotRequired[str]
    client_id: NotRequired[str]
    extra_data: NotRequired[dict[str, Any]]
    front: NotRequired[bool]
    number: NotRequired[float]
    partial_execution_targets: NotRequired[list[str]]


class Queued(TypedDict):
    """ComfyUI's answer when it accepts a prompt."""

    prompt_id: str
    number: float
    node_errors: Annotated[dict[str, Any], Field(description="Outputs that it left out of the run, by node.")]


class ComfyUIRefusal(TypedDict):
    """ComfyUI's answer when it refuses a workflow."""

    error: Annotated[Any, Field(description="The error: an object, or a text.")]
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


@router.post("/prompt", summary="ComfyUI's own endpoint", openapi_extra=_operation("queue_prompt"))
@router.post(
    "/api/prompt", summary="The same, as ComfyUI's editor calls it", openapi_extra=_operation("queue_api_prompt")
)
async def prompt(request: Request) -> Response:
    """If prompts wait in the gateway, it becomes a job. Otherwise body and reply are passed on unchanged."""
    pieces = [chunk async for chunk in request.stream()]
    body = await offloaded(sum(map(len, pieces)), b"".join, pieces)
    gateway, viewer = gateway_of(request), viewer_of(request.scope)
    if gateway.handler.queue.are_all_here or viewer.key is not None:
        try:
            return await _as_job(gateway, body, viewer.origin)
        except ComfyUIError as error:
            return comfyui_error(error)
    gateway.handler.refuse_when_draining()
    backend = await gateway.handler.pool.choose(patience_s=CHOICE_PATIENCE_S)
    return _relayed(await _forwarded(backend, body, of_submission(request.scope["headers"])))


async def _forwarded(backend: Backend, body: bytes, headers: Mapping[str, str]) -> RawReply:
    try:
        return await backend.client.forward_prompt(body, headers)
    except ComfyUIConnectionError as error:
        backend.failed(error)
        raise


def _relayed(reply: RawReply) -> Response:
    return Response(reply.body, reply.status, {"Content-Type": reply.content_type})


async def _as_job(gateway: GatewayState, body: bytes, origin: Origin) -> Response:
    """Raises `ComfyUIError` if it is not accepted."""
    gateway.handler.refuse_when_draining()
    try:
        fields = await offloaded(len(body), big_json.load, body, gateway.options.limits)
    except JSONError as error:
        return await _refused_by_comfyui(gateway, body, f"the body is not JSON: {error}")
    if isinstance(fields, dict) and "prompt" in fields and not _has_good_id(fields):
        return json_response(400, error_of("invalid_prompt_id", "prompt_id must be a valid UUID", _ID_DETAILS))
    if _is_never_taken(fields):
        return await _refused_by_comfyui(gateway, body, "the body must have a prompt")
    posted = _posted(fields).of_size(len(body))
    try:
        taken = await gateway.handler.verdicts.on(posted, fresh_id=str(uuid4()), origin=origin)
    except ComfyUIValidationError as error:
        await hide_files_of_others(error, gateway, origin)
        raise
    answer = {"prompt_id": taken.prompt_id, "number": taken.number, "node_errors": taken.node_errors}
    return json_response(200, answer)


async def hide_files_of_others(error: ComfyUIValidationError, gateway: GatewayState, origin: Origin) -> None:
    """ComfyUI's own answer lists the existing files: a caller that sees only its own must not see them."""
    if error.upstream is not None and origin.is_confined:
        known = [found.last_definitions for found in gateway.handler.pool.backends]
        definitions = [found for found in known if found is not None]
        error.upstream = await in_thread(answer_without_files, error.upstream, definitions)


async def _refused_by_comfyui(gateway: GatewayState, body: bytes, why: str) -> Response:
    """ComfyUI's own answer to a body that it certainly refuses; ours if no server is up."""
    ready = gateway.handler.pool.ready
    if ready and len(body) <= _ASKED_ABOUT:
        reply = await _forwarded(ready[0], body, of_submission(()))
        if reply.status >= 400:
            return _relayed(reply)
        # A node pack made a prompt of it. It is in no journal.
        with contextlib.suppress(ComfyUIError, JSONError, KeyError, TypeError):
            await ready[0].cancel(str(jsonio.loads(reply.body)["prompt_id"]))
    return json_response(400, error_of("invalid_prompt", why))


def _has_good_id(fields: Mapping[str, Any]) -> bool:
    """Whether the id has the form that newer versions of ComfyUI want; older ones accept any."""
    prompt_id = fields.get("prompt_id")
    if prompt_id is None:
        return True
    try:
        return isinstance(prompt_id, str) and str(UUID(prompt_id)) == prompt_id
    except ValueError:
        return False


def _is_never_taken(fields: Any) -> bool:
    """Whether every ComfyUI refuses it, or fails, before it reads anything else of it."""
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    if not isinstance(prompt, dict) or not prompt:
        return True
    if is_ui_format(prompt):
        return False  # what to do about it is ours to say
    return any(not isinstance(node, dict) or not isinstance(node.get("class_type"), str) for node in prompt.values())


def _posted(fields: dict[str, Any]) -> PromptRequest:
    """The members of a body that ComfyUI reads. Raises `RequestError`."""
    taken = {name: fields[name] for name in _READ if fields.get(name) is not None}
    if "number" not in taken and fields.get("front"):
        taken["front"] = True
    extra_data = taken.get("extra_data")
    if "client_id" not in taken and isinstance(extra_data, dict) and isinstance(extra_data.get("client_id"), str):
        taken["client_id"] = extra_data["client_id"]
    try:
        return PromptRequest.model_validate(taken)
    except ValidationError as error:
        raise RequestError(describe_validation(error.errors(include_url=False, include_input=False))) from None
