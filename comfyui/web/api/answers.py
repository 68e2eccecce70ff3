"""A prompt's answer in the form that the client takes: JSON, events, the bytes of one file, an archive of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, assert_never

from fastapi import Request, Response

from comfyui.answer_json import PromptAnswer
from comfyui.exceptions import ClientGoneError, NotAcceptableError
from comfyui.jobs.job import Listener
from comfyui.models import OutputFile, PromptResult
from comfyui.outputs.delivery import Deliverer, Order
from comfyui.tasks import end_tasks
from comfyui.transport.body import IteratedBody
from comfyui.web.api.accept import ANY_BYTES, MEDIA, Accepted, Form
from comfyui.web.api.sse import EventFeed, event_stream
from comfyui.web.api.streams import BodyStream, content_disposition
from comfyui.web.front.errors import answer_to_nobody
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import BYTES, TEXT, Answer, json_of
from comfyui.web.front.request_state import state_of
from comfyui.web.server.disconnect import ClientWatch

# An answer up to this size is sent in one piece with its length; a larger one streams.
_WHOLE_ANSWER = 1024 * 1024
# A refusal that comes sooner than this still gets its HTTP status, even for an answer in events.
_START_PATIENCE_S = 1.0
_MOST_NAMED = 20
_NO_FILE = "the prompt has no output file; set Accept to application/json"

Work = Callable[[Listener | None], Coroutine[Any, Any, PromptResult]]


@dataclass(frozen=True, slots=True)
class Call:
    """One request for the answer of one prompt.

    Attributes:
        accepted: what the client accepts.
        node_id: whose file is wanted, where bytes are.
        previews: wanted among the events.
        workflow: gives the prompt's workflow, or None while it is not known.
        deadline: in the loop's time: when the client's timeout is over.
    """

    prompt_id: str
    accepted: Accepted
    order: Order
    node_id: str | None
    previews: bool
    workflow: Callable[[], Mapping[str, Any] | None]
    deadline: float


async def answer(request: Request, deliverer: Deliverer, call: Call, work: Work) -> Response:
    """Do `work`, which gives the result and tells a listener of events, and answer it.

    When the client goes away, `work` is cancelled.

    Raises:
        ComfyUIError: from `work`; `NotAcceptableError` when the result has not the form that the client takes.
    """
    forms = call.accepted.forms()
    deliverer.check(call.order)
    try:
        if forms[0] == "events":
            return await _events(request, deliverer, call, work)

        with ClientWatch(request.receive):
            return await _finished(deliverer, call, forms, await work(None))
    except ClientGoneError:
        return answer_to_nobody()


async def _finished(deliverer: Deliverer, call: Call, forms: Sequence[Form], result: PromptResult) -> Response:
    """The first of the forms that this result can have; if it can have none, the reason of the last one."""
    refusal: NotAcceptableError | None = None
    for form in forms:
        try:
            match form:
                case "raw":
                    return await file_answer(deliverer, call.order, result, _chosen(call, result))
                case "zip":
                    return await _zip(deliverer, call, result)
                case "json" | "events":  # everything has happened, so there are no events to send
                    return await _json(deliverer, call, result)
                case _:
                    assert_never(form)
        except NotAcceptableError as error:
            refusal = refusal or error
    assert refusal is not None  # noqa: S101 - there is at least one form
    raise refusal


async def _json(deliverer: Deliverer, call: Call, result: PromptResult) -> Response:
    """In one piece if it is small, otherwise streamed with bounded memory."""
    entries = await deliverer.entries(result, call.order, deadline=call.deadline)
    start = bytearray()
    pieces = deliverer.json(result, entries, call.order)
    async for piece in pieces:
        start += piece
        if len(start) > _WHOLE_ANSWER:
            stack = AsyncExitStack()
            stack.push_async_callback(pieces.aclose)
            return BodyStream(IteratedBody(_continued(bytes(start), pieces)), "application/json", stack=stack)
    return Response(bytes(start), media_type="application/json")


async def file_answer(deliverer: Deliverer, order: Order, result: PromptResult, file: OutputFile) -> Response:
    """The bytes of one file. Raises `ComfyUIError` when it cannot be read."""
    async with AsyncExitStack() as stack:
        content = await stack.enter_async_context(deliverer.open(result, file, order))
        await content.body.begin()  # so that a file that is gone still has a status
        opened = stack.pop_all()
    headers = _headers_of(content.filename, result)
    if content.body.length is not None:
        headers["Content-Length"] = str(content.body.length)
    return BodyStream(content.body, content.content_type, headers, opened)


async def _continued(start: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield start
    async for piece in rest:
        yield piece


async def _zip(deliverer: Deliverer, call: Call, result: PromptResult) -> Response:
    if not result.files:
        raise NotAcceptableError(_NO_FILE, prompt_id=call.prompt_id)
    async with AsyncExitStack() as stack:
        pieces = await stack.enter_async_context(aclosing(deliverer.zip(result, call.order)))
        body = IteratedBody(pieces)
        await body.begin()
        opened = stack.pop_all()
    headers = _headers_of(f"{call.prompt_id}.zip", result)
    return BodyStream(body, "application/zip", headers, opened)


def _headers_of(filename: str, result: PromptResult) -> dict[str, str]:
    return {
        "Content-Disposition": content_disposition(filename),
        "X-Content-Type-Options": "nosniff",
        "X-Prompt-Id": result.prompt_id,
        **({"X-Simulation": "true"} if result.simulated else {}),
    }


def result_answer() -> Answer:
    """The description of a result in OpenAPI, by the types that ``Accept`` names."""
    return Answer(
        "The result in the form that `Accept` names: JSON, events of which the last is the result or an error, the"
        " bytes of one file, or all files in a ZIP archive.",
        {
            **json_of(PromptAnswer),
            "text/event-stream": TEXT,
            "application/zip": BYTES,
            **{f"{kind}*": BYTES for kind in MEDIA},
            ANY_BYTES: BYTES,
        },
        ("X-Prompt-Id", "X-Simulation", "Content-Disposition"),
    )


def _chosen(call: Call, result: PromptResult) -> OutputFile:
    """The one file that the client can mean. Raises `NotAcceptableError` that says which there are."""
    of_node = [file for file in result.files if call.node_id in (None, file.node_id)]
    fitting = [file for file in of_node if call.accepted.takes(_type_of(call, file))]
    if len(fitting) == 1:
        return fitting[0]
    if not result.files:
        detail = _NO_FILE
    elif not of_node:
        detail = f"node {call.node_id!r} has no output file; the output files are {_named(result.files)}"
    elif not fitting:
        detail = f"no output file has a type that Accept names; the output files are {_named(of_node)}"
    elif len({file.node_id for file in fitting}) > 1:
        detail = f"there are several output files; choose one with ?node_id=: {_named(fitting)}"
    else:
        detail = f"node {fitting[0].node_id} has several output files; set Accept to application/zip: {_named(fitting)}"
    raise NotAcceptableError(detail, prompt_id=call.prompt_id)


def _type_of(call: Call, file: OutputFile) -> str:
    """The type that the file will have, as far as that is known before it is read."""
    convert = call.order.convert
    return f"image/{convert.format}" if convert and file.content_type.startswith("image/") else file.content_type


def _named(files: Sequence[OutputFile]) -> str:
    names = [f"{file.filename} (node {file.node_id}, {file.content_type})" for file in files[:_MOST_NAMED]]
    return ", ".join(names) + (", …" if len(files) > _MOST_NAMED else "")


async def _events(request: Request, deliverer: Deliverer, call: Call, work: Work) -> Response:
    feed = EventFeed(call.prompt_id, call.workflow, previews=call.previews)

    async def finish() -> AsyncGenerator[bytes, None]:
        result = await work(feed)
        entries = await deliverer.entries(result, call.order, deadline=call.deadline)
        return deliverer.json(result, entries, call.order)

    async with AsyncExitStack() as stack:
        working = asyncio.create_task(finish(), name=f"answer {call.prompt_id}")
        stack.push_async_callback(end_tasks, working)
        with ClientWatch(request.receive):
            await _begun(working, feed)
        if working.done():
            working.result()  # what failed so early is no event yet
        opened = stack.pop_all()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Prompt-Id": call.prompt_id}
    events = event_stream(
        feed,
        working,
        request_id=state_of(request.scope).request_id,
        keep_alive_s=gateway_of(request).options.keep_alive_s,
    )
    opened.push_async_callback(events.aclose)
    return BodyStream(IteratedBody(events), "text/event-stream", headers, opened)


async def _begun(working: asyncio.Task[Any], feed: EventFeed) -> None:
    """Waits until there is news, or it failed, or the client should get its headers."""
    news = asyncio.create_task(feed.news())
    try:
        await asyncio.wait((working, news), timeout=_START_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
