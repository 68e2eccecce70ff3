"""`/v1/images/…`: pictures by named workflows, for clients of OpenAI's image API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID, uuid4

import structlog
from fastapi import Request, Response

from comfyui.exceptions import (
    ClientGoneError,
    ComfyUIInputError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ImageCallError,
    ParametersError,
    RequestError,
)
from comfyui.jobs.job import Listener
from comfyui.jobs.journal.records import State
from comfyui.jobs.origin import Origin
from comfyui.models import ImageConversion, ImageFormat, PromptRequest, PromptResult
from comfyui.named.model_names import ModelKind
from comfyui.named.parameters import NamedWorkflow
from comfyui.outputs.delivery import Order
from comfyui.owners import owner_of
from comfyui.tasks import end_tasks
from comfyui.transport.body import IteratedBody
from comfyui.web.api.answers import file_answer
from comfyui.web.api.jobs import origin_of
from comfyui.web.api.named_runs import know_nodes, prepared, seen_files, seen_workflows
from comfyui.web.api.streams import BodyStream
from comfyui.web.front.errors import answer_to_nobody, json_response
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.headers import public_address
from comfyui.web.front.request_state import state_of
from comfyui.web.openai.answers import Picture, base64_answer, ending_of, pictures_of, url_answer
from comfyui.web.openai.calls import ImageCall, read_call
from comfyui.web.openai.events import Previews, picture_events
from comfyui.web.openai.models import can_do, models_of, workflow_for
from comfyui.web.openai.values import Values, values_of
from comfyui.web.server.disconnect import ClientWatch

_FACE = "openai"
_IGNORED = "X-Ignored-Parameters"
_RETRY_COUNT = "x-stainless-retry-count"
# SDKs give up after 600 s, and come again within 8 s.
_REPEATED_WITHIN_S = 15 * 60.0
# How long a job whose SDK is cut off waits for the next call.
_RETURNS_S = 15.0
# A refusal that comes sooner than this still gets its HTTP status, even for an answer in events.
_START_PATIENCE_S = 1.0
_CANCELLED = frozenset({State.CANCELING, State.CANCELED})
_MOST_SHOWN = 20
_LONGEST_SHOWN = 60
_FORMATS: Mapping[str, ImageFormat] = {"png": "png", "jpg": "jpeg", "webp": "webp", "avif": "avif"}


@dataclass(frozen=True, slots=True)
class _Work:
    """The prompts of one call, and who sent it.

    Attributes:
        keys: the idempotency key of each prompt.
        fields: the call's field by the parameter that it became.
        repeats: the client sends the same call again if its connection breaks.
        repeated: it has done so.
    """

    gateway: GatewayState
    origin: Origin
    call: ImageCall
    requests: tuple[PromptRequest, ...]
    keys: tuple[str, ...]
    fields: Mapping[str, str]
    repeats: bool
    repeated: bool


async def generations(request: Request) -> Response:
    """`POST /v1/images/generations`: pictures of a text."""
    return await _made(request, "generations")


async def edits(request: Request) -> Response:
    """`POST /v1/images/edits`: pictures of pictures."""
    return await _made(request, "edits")


async def models(request: Request) -> Response:
    """`GET /v1/models`: what may stand in `model`."""
    return json_response(200, {"object": "list", "data": [_model(name) for name in _known(request)]})


async def model(request: Request) -> Response:
    """`GET /v1/models/{model}`."""
    name = request.path_params["model"]
    if name not in _known(request):
        raise ComfyUINotFoundError(f"model: there is no model {name!r:.80}")
    return json_response(200, _model(name))


async def picture(request: Request) -> Response:
    """`GET /v1/images/{prompt_id}/{name}`: a picture by the address that a call was told."""
    gateway, params = gateway_of(request), request.path_params
    prompt_id = _uuid(params["prompt_id"])
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    index, _, ending = params["name"].partition(".")
    wanted = _FORMATS.get(ending)
    origin = origin_of(request)
    look = await gateway.handler.look(prompt_id, origin)
    if not look.state.is_end or not (index.isascii() and index.isdecimal() and len(index) < 6):
        raise ComfyUINotFoundError("there is no such image", prompt_id=prompt_id)
    timeout_s = gateway.options.default_timeout_s
    result = await gateway.handler.attach(prompt_id, timeout_s=timeout_s, origin=origin)
    found = next((one for one in pictures_of(result) if one.index == int(index)), None)
    if found is None:
        raise ComfyUINotFoundError("there is no such image", prompt_id=prompt_id)
    quality = _quality(request)
    as_made = quality is None and ending_of(found, None) == ending
    convert = ImageConversion(format=wanted, quality=quality) if wanted is not None and not as_made else None
    return await file_answer(gateway.deliverer, Order(convert=convert), result, found.file)


async def _made(request: Request, kind: ModelKind) -> Response:
    gateway = gateway_of(request)
    gateway.handler.refuse_when_full()
    call = await read_call(request)
    async with _held(call):
        await know_nodes(gateway)
        workflow = workflow_for(call.model, kind, seen_files(request), gateway.options.models)
        values = values_of(workflow, call, kind)
        if call.convert is not None:
            gateway.deliverer.check(Order(convert=call.convert))
        work = await _work(request, gateway, call, workflow, values)
        headers = _said_of(values)
        created = int(time.time())
        try:
            if call.stream:
                return await _streamed(request, work, kind, created, headers)
            with ClientWatch(request.receive):
                pictures = await _pictures(work)
                if call.answer_format == "url":
                    link = partial(_address, request, work)
                    return json_response(200, url_answer(pictures, call.convert, created, link), headers)
                pieces = base64_answer(gateway.deliverer, pictures, call.convert, created)
                stack = AsyncExitStack()
                stack.push_async_callback(pieces.aclose)
                body = IteratedBody(pieces)
                await body.begin()  # so that a picture that is gone still has a status
                return BodyStream(body, "application/json", headers, stack)
        except ClientGoneError:
            return answer_to_nobody()


@asynccontextmanager
async def _held(call: ImageCall) -> AsyncIterator[None]:
    """The call's files are there within the block."""
    if call.files is None:
        yield
        return
    call.files.hold()
    try:
        yield
    finally:
        call.files.release()


async def _work(
    request: Request, gateway: GatewayState, call: ImageCall, workflow: NamedWorkflow, values: Values
) -> _Work:
    """The prompts for the call: one for each picture, if the workflow makes one at a time."""
    count = 1 if values.batch else call.n
    seed = values.parameters.get(values.seed) if values.seed is not None else None
    requests = []
    for index in range(count):
        parameters = values.parameters
        if index and values.seed is not None and isinstance(seed, int):
            parameters = {**parameters, values.seed: seed + index}
        try:
            requests.append(await prepared(gateway, workflow, parameters, {}, values.files, size=call.bytes))
        except ParametersError as error:
            first = next(iter(error.parameters))
            raise ImageCallError(error.detail, values.fields.get(first, first)) from error
    keys = tuple(f"{_FACE}:{call.digest}:{index}" for index in range(count))
    said = request.headers.get(_RETRY_COUNT, "")
    repeated = said.isdecimal() and said.strip("0") != ""
    repeats = said.isdecimal() and not call.stream  # a stream that has begun is not asked for again
    return _Work(gateway, _caller(request, call), call, tuple(requests), keys, values.fields, repeats, repeated)


def _caller(request: Request, call: ImageCall) -> Origin:
    """The caller: if one key is shared by many people and no header named the person, the body may."""
    origin, caller = replace(origin_of(request), face=_FACE), state_of(request.scope).caller
    if caller is None or caller.rules.user_header is None or caller.person or not call.person.isprintable():
        return origin
    return replace(origin, owner=owner_of(caller.rules.name, call.person))


async def _pictures(work: _Work, listener: Listener | None = None) -> list[Picture]:
    """All pictures of a call. When one prompt fails or the caller leaves, the others are given up."""
    tasks: list[asyncio.Task[PromptResult]] = []
    refused = set[int]()

    async def made(index: int) -> PromptResult:
        while True:
            try:
                return await _result(work, index, None if index else listener)
            except ComfyUIOverloadedError:
                # No more may wait now: this one begins when another one of the call has ended.
                refused.add(index)
                others = [task for other, task in enumerate(tasks) if other not in refused and not task.done()]
                if not others:
                    raise
                await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
                refused.discard(index)

    tasks += [asyncio.create_task(made(index), name=f"openai {index}") for index in range(len(work.requests))]
    try:
        results = await asyncio.gather(*tasks)
    except ComfyUIInputError as error:
        raise error.in_field(work.fields.get(error.field, error.field)) from error
    finally:
        await end_tasks(*tasks)
    pictures = [picture for result in results for picture in pictures_of(result)]
    if not pictures:
        raise RequestError("the workflow made no image")
    return pictures


async def _result(work: _Work, index: int, listener: Listener | None) -> PromptResult:
    """The result of one prompt. A call that its client repeats joins the earlier job."""
    gateway, key = work.gateway, work.keys[index]
    timeout_s = gateway.options.default_timeout_s
    if work.repeated:
        since = time.time() - _REPEATED_WITHIN_S
        known = await gateway.handler.journal.sent_under(work.origin.owner, key, since)
        if known is not None and not await _is_cancelled(work, known):
            return await gateway.handler.attach(known, timeout_s=timeout_s, listener=listener, origin=work.origin)
    return await gateway.handler.submit_prompt_sync(
        work.requests[index],
        timeout_s=timeout_s,
        files=work.call.files,
        fresh_id=str(uuid4()),
        listener=listener,
        origin=replace(work.origin, idempotency_key=key),
        returns_s=_RETURNS_S if work.repeats else 0.0,
    )


async def _is_cancelled(work: _Work, prompt_id: str) -> bool:
    """Whether the job was given up, because its client came back too late."""
    return (await work.gateway.handler.look(prompt_id, work.origin)).state in _CANCELLED


async def _streamed(
    request: Request, work: _Work, kind: ModelKind, created: int, headers: Mapping[str, str]
) -> Response:
    gateway, previews = work.gateway, Previews(work.call.partial_images)
    async with AsyncExitStack() as stack:
        working = asyncio.create_task(_pictures(work, previews), name="openai events")
        stack.push_async_callback(end_tasks, working)
        if work.call.files is not None:
            work.call.files.hold()
            stack.callback(work.call.files.release)
        with ClientWatch(request.receive):
            await asyncio.wait((working,), timeout=_START_PATIENCE_S)
        if working.done():
            working.result()  # what failed so early is no event yet
        opened = stack.pop_all()
    events = picture_events(
        working,
        previews,
        gateway.deliverer,
        kind=kind,
        convert=work.call.convert,
        created=created,
        keep_alive_s=gateway.options.keep_alive_s,
    )
    opened.push_async_callback(events.aclose)
    said = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers}
    return BodyStream(IteratedBody(events), "text/event-stream", said, opened)


def _said_of(values: Values) -> dict[str, str]:
    """The header that names the fields that were not used; empty if all were."""
    shown = [name[:_LONGEST_SHOWN].encode("ascii", "replace").decode() for name in values.ignored[:_MOST_SHOWN]]
    text = ", ".join("".join(char if char.isprintable() else "?" for char in name) for name in shown)
    return {_IGNORED: text} if text else {}


def _address(request: Request, work: _Work, path: str) -> str:
    """The absolute address of a path of ours, which opens without a key."""
    address = work.gateway.tickets.link(work.origin.owner, path)
    return address if address.startswith("http") else public_address(request.scope) + address


def _known(request: Request) -> list[str]:
    """The names of the models that the caller may use."""
    able = {
        workflow.name: workflow
        for workflow in seen_workflows(request)
        if can_do(workflow, "generations") or can_do(workflow, "edits")
    }
    return models_of(able, gateway_of(request).options.models)


def _model(name: str) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "comfyui-gateway"}


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ComfyUINotFoundError("there is no such image") from None


def _quality(request: Request) -> int | None:
    text = request.query_params.get("quality", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= 100 else None
