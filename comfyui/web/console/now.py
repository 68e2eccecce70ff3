"""`/console`: what runs now, and what comes next; and `/console/feed`, by which open pages are kept up to date."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing

from fastapi import APIRouter, Request, Response

from comfyui.exceptions import ComfyUINotFoundError, ComfyUIShutdownError, RequestError
from comfyui.transport.body import IteratedBody
from comfyui.web.api.streams import BodyStream
from comfyui.web.console.audience import WANTS, Wants
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.feed import consoles_of, ended_message
from comfyui.web.console.pages import page
from comfyui.web.console.queue_rows import priorities_of
from comfyui.web.console.viewer import Visitor, visitor_of
from comfyui.web.front.gateway_state import gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)
# Seconds that the page waits for servers to report their memory. The feed brings a later answer.
_FACTS_S = 0.05
_FEED_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}


@router.get("/console")
async def show_now(request: Request) -> Response:
    """The servers, and the beginning of the queue."""
    consoles, visitor = consoles_of(request), visitor_of(request)
    if visitor.sees_all:
        await consoles.facts.looked(_FACTS_S)
    parts = await consoles.view.look(visitor)
    lowest, highest = priorities_of(visitor)
    progress = consoles.view.progress
    return page(request, "now.html", parts=parts, progress=progress, lowest=lowest, highest=highest)


@router.get("/console/feed")
async def feed(request: Request) -> Response:
    """The changes, as server-sent events.

    Query: ``want`` is what the page wants, see `WANTS`, with commas; ``job`` narrows it to one job, and is for no
    page that shows servers or the queue: what they show would be looked up for each job, and slow all feeds down.
    """
    gateway, consoles, visitor = gateway_of(request), consoles_of(request), visitor_of(request)
    if gateway.handler.draining.is_set():
        raise ComfyUIShutdownError("the gateway is shutting down")
    wants, job = _wanted(request), request.query_params.get("job") or None
    if job is not None and wants & {"servers", "queue"}:
        raise RequestError("job must be left out if servers or queue are wanted, because they do not belong to one job")
    first = b"" if job is None else await _end_of(request, visitor, job)
    async with AsyncExitStack() as stack:
        stack.enter_context(gateway.streams.opened(visitor.origin.rules.name if visitor.origin.rules else None))
        console = stack.enter_context(consoles.opened(visitor, wants, job))
        messages = await stack.enter_async_context(aclosing(consoles.messages(console, first)))
        opened = stack.pop_all()
    return BodyStream(IteratedBody(messages), "text/event-stream", _FEED_HEADERS, opened)


def _wanted(request: Request) -> Wants:
    wants = frozenset(request.query_params.get("want", "").split(","))
    if not wants <= WANTS:
        raise RequestError(f"want must be one or more of {', '.join(sorted(WANTS))}")
    return wants


async def _end_of(request: Request, visitor: Visitor, prompt_id: str) -> bytes:
    """That the job has ended already, where it has; a page may come too late to be told."""
    record = await gateway_of(request).handler.journal.get(prompt_id)
    if record is None or not visitor.sees(record.owner):
        if consoles_of(request).sees_running(visitor, prompt_id):
            return b""
        raise ComfyUINotFoundError("there is no such job", prompt_id=prompt_id)
    return ended_message(prompt_id, record.state.value) if record.state.is_end else b""
