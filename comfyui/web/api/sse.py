"""A prompt as server-sent events: what happens to it, then one ``result`` or ``error`` (docs/api.md).

A client that reads slowly costs bounded memory: of unsent news about the same thing, only the newest is kept.
"""

from __future__ import annotations

import asyncio
import base64
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import structlog

from comfyui import jsonio
from comfyui.events import Event, Preview, QueuePosition
from comfyui.exceptions import ComfyUIError, error_body_of
from comfyui.workflows.progress import NodeStarted, ProgressTracker

# Each for one node; more nodes than that are started only faster than anybody looks.
_MOST_PENDING = 512

KEEP_ALIVE = b": keep-alive\n\n"
_log = structlog.get_logger(__name__)


class EventFeed:
    """The events that one client has still to be told; give it to the handler as a listener.

    Args:
        workflow: gives the prompt's workflow, or None while it is not known.
        previews: whether the client wants pictures of the work in progress.
    """

    def __init__(self, prompt_id: str, workflow: Callable[[], Mapping[str, Any] | None], *, previews: bool) -> None:
        self._prompt_id = prompt_id
        self._tracker = ProgressTracker(workflow)
        self._previews = previews
        self._pending: OrderedDict[tuple[str, str], Mapping[str, Any] | Preview] = OrderedDict()
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        match event:
            case QueuePosition(position=position):
                if not self._tracker.started:
                    self._put("queued", "", {"position": position})
            case Preview():
                if self._previews:
                    self._put("preview", "", event)
            case _:
                for step in self._tracker.observe(event):
                    kind = "executing" if isinstance(step, NodeStarted) else "progress"
                    self._put(kind, step.node, asdict(step))

    def _put(self, kind: str, about: str, data: Mapping[str, Any] | Preview) -> None:
        self._pending.pop((kind, about), None)
        self._pending[kind, about] = data
        if len(self._pending) > _MOST_PENDING:
            self._pending.popitem(last=False)
        self._news.set()

    async def news(self) -> None:
        """Waits until there is news."""
        await self._news.wait()

    def take(self) -> bytes:
        """All news, in the form in which it is sent."""
        told = bytearray()
        while self._pending:
            (kind, _), data = self._pending.popitem(last=False)
            if isinstance(data, Preview):
                data = {"content_type": data.content_type, "image": base64.b64encode(data.image).decode("ascii")}
            told += self.message(kind, data)
        self._news.clear()
        return bytes(told)

    def message(self, kind: str, data: Mapping[str, Any]) -> bytes:
        """One event about this prompt."""
        return _message(kind, {"prompt_id": self._prompt_id, **data})


async def moments(
    working: asyncio.Task[Any], news: Callable[[], Coroutine[Any, Any, None]], keep_alive_s: float
) -> AsyncGenerator[bool, None]:
    """Runs until `working` has ended: True when there may be news, False when there was none for this time.

    Args:
        news: returns when there is something to tell.
    """
    while not working.done():
        hearing = asyncio.create_task(news(), name="news of a stream")
        try:
            done, _ = await asyncio.wait((working, hearing), timeout=keep_alive_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hearing.cancel()
        yield bool(done)


async def event_stream(
    feed: EventFeed,
    working: asyncio.Task[AsyncIterator[bytes]],
    *,
    request_id: str | None,
    keep_alive_s: float,
) -> AsyncGenerator[bytes, None]:
    """The events as they come, a comment when there are none for `keep_alive_s`, and the outcome.

    Args:
        working: gives the result as JSON in pieces. Its creator cancels it.

    Raises:
        ComfyUIError: the result broke off after its first piece.
    """
    # Position 0 would be a promise, and the id is worth knowing at once: with it the client can attach again.
    yield feed.message("queued", {"position": None})
    async with aclosing(moments(working, feed.news, keep_alive_s)) as each:
        async for has_news in each:
            if told := feed.take() if has_news else KEEP_ALIVE:
                yield told
    yield feed.take()
    try:
        pieces = working.result()
    except ComfyUIError as error:
        _log.info("request.failed", type=error.code, status=error.status, detail=error.detail)
        yield _message("error", error_body_of(error, request_id=request_id))
        return
    except Exception:
        _log.exception("request.crashed")
        failure = ComfyUIError("the gateway failed; its log has the reason with this request_id")
        yield _message("error", error_body_of(failure, request_id=request_id))
        return
    yield b"event: result\ndata: "
    async for piece in pieces:
        yield piece  # JSON in one line: it has no line break in it
    yield b"\n\n"


def _message(kind: str, data: Mapping[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + jsonio.dumps(data) + b"\n\n"
