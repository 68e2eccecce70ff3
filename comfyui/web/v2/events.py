"""`GET /api/v2/jobs/{id}/events`: a job as server-sent events, in the order in which SDKs read them.

They stop at the terminal status, after every output. Unsent news is kept only in its newest form: a slow reader costs
one snapshot and one picture.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.events import Event, Executed, Preview, QueuePosition
from comfyui.jobs.admission import Look
from comfyui.jobs.following import following
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import State
from comfyui.transport.body import IteratedBody
from comfyui.web.api.streams import BodyStream
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.v2.jobs import address_of, caller_of, look_at
from comfyui.web.v2.outputs import outputs_of
from comfyui.web.v2.positions import queue_position
from comfyui.web.v2.progress import Snapshots
from comfyui.web.v2.shapes import JSON, STATUSES

_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# Between two snapshots, and between two pictures.
_EVERY_S = 0.5
# A position in the queue changes without a word.
_LOOK_EVERY_S = 1.0
_COMMENT = b": keep-alive\n\n"


async def events(request: Request) -> Response:
    """The events of the job, from now to its end."""
    gateway, origin = gateway_of(request), caller_of(request)
    look = await look_at(request)
    if request.method == "HEAD":
        return Response(None, 200, _HEADERS, media_type=_TYPE)
    # The stream asks for sizes itself.
    gateway.assets.fresh.drop(look.prompt_id)
    async with AsyncExitStack() as stack:
        stack.enter_context(gateway.streams.opened(None if origin.rules is None else origin.rules.name))
        frames = await stack.enter_async_context(aclosing(_Stream(request, gateway, look).frames()))
        opened = stack.pop_all()
    return BodyStream(IteratedBody(frames), _TYPE, _HEADERS, opened)


class _News:
    """The unsent news of the job; a listener of the job."""

    def __init__(self, look: Look) -> None:
        self._workflow: Mapping[str, Any] | None = look.workflow
        self.snapshots = Snapshots(lambda: self._workflow)
        self.has_progress = self.has_outputs = False
        self.preview: Preview | None = None
        self.position: int | None = None
        self.came = asyncio.Event()

    def __call__(self, event: Event) -> None:
        match event:
            case Preview():
                self.preview = event
            case QueuePosition():
                self.position = event.position
            case Executed():
                self.has_outputs = True
            case _:
                self.has_progress |= self.snapshots.observe(event)
        self.came.set()

    def knows(self, workflow: Mapping[str, Any] | None) -> None:
        """A job that waited had none here."""
        self._workflow = self._workflow or workflow


class _Stream:
    """One client's stream."""

    def __init__(self, request: Request, gateway: GatewayState, look: Look) -> None:
        self._request = request
        self._gateway = gateway
        self._look = look
        self._address = address_of(request, gateway)
        self._news = _News(look)
        self._status: JSON | None = None
        self._outputs: set[str] = set()
        self._told_at = {"progress": 0.0, "preview": 0.0}

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """All of them, with comments while nothing happens."""
        loop = asyncio.get_running_loop()
        spoke_at = loop.time()
        record = self._look.record
        if record is None:
            return
        async with following(self._gateway.handler.admission, record, self._news) as job:
            while not self._gateway.handler.draining.is_set():
                self._news.came.clear()
                if job is None or job.ended:
                    self._look = await look_at(self._request)
                told = await (self._last() if self._has_ended() else self._what_is_new(job))
                if told:
                    spoke_at = loop.time()
                    yield told
                elif loop.time() - spoke_at >= self._gateway.options.keep_alive_s:
                    spoke_at = loop.time()
                    yield _COMMENT
                if self._has_ended():
                    return
                await self._pause(job)

    def _has_ended(self) -> bool:
        record = self._look.record
        return record is not None and record.state.is_end

    async def _what_is_new(self, job: Job | None) -> bytes:
        frames = bytearray()
        status = self._status_of(job)
        if status != self._status:
            self._status = status
            frames += _frame("status", status)
        if self._news.has_outputs:
            self._news.has_outputs = False
            self._look = await look_at(self._request)
            frames += await self._new_outputs()
        if job is not None and job.state is State.RUNNING:
            self._news.knows(job.workflow)
            frames += self._snapshot()
        return bytes(frames)

    def _status_of(self, job: Job | None) -> JSON:
        state = self._look.state if job is None or job.ended else job.state
        if state is not State.QUEUED:
            return {"status": STATUSES[state]}
        before = self._look.position if job is None or self._news.position is None else self._news.position
        position = queue_position(self._gateway.handler, self._look.prompt_id, before)
        return {"status": STATUSES[state], "queue_position": position}

    def _snapshot(self) -> bytes:
        """Progress and picture, if there are new ones and the last ones were sent some time ago."""
        frames, news = bytearray(), self._news
        if news.has_progress and self._is_due("progress"):
            news.has_progress = False
            frames += _frame("progress", news.snapshots.now())
        if news.preview is not None and self._is_due("preview"):
            preview, news.preview = news.preview, None
            frames += _frame(
                "preview",
                {
                    "node_id": preview.node or news.snapshots.node or "",
                    "content_type": preview.content_type,
                    "data_base64": base64.b64encode(preview.image).decode("ascii"),
                },
            )
        return bytes(frames)

    def _is_due(self, kind: str) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._told_at[kind] < _EVERY_S:
            return False
        self._told_at[kind] = now
        return True

    async def _new_outputs(self) -> bytes:
        made = await outputs_of(self._gateway, self._look, self._address)
        fresh = [one for one in made if one["id"] not in self._outputs]
        self._outputs |= {one["id"] for one in fresh}
        return b"".join(_frame("output", one) for one in fresh)

    async def _last(self) -> bytes:
        """The news that the client lacks, and the end."""
        frames = bytearray()
        if self._look.state is State.SUCCEEDED and self._status is not None:
            frames += _frame("progress", self._news.snapshots.at_end())
        frames += await self._new_outputs()
        frames += _frame("status", {"status": STATUSES[self._look.state]})
        return bytes(frames)

    async def _pause(self, job: Job | None) -> None:
        """Waits until there may be news."""
        if job is None or job.ended:
            await asyncio.sleep(_LOOK_EVERY_S / 10 if job is not None else _LOOK_EVERY_S)
            return
        waits = self._news.has_progress or self._news.preview is not None
        news = asyncio.create_task(self._news.came.wait())
        end = asyncio.create_task(job.wait(_EVERY_S if waits else _LOOK_EVERY_S))
        try:
            await asyncio.wait((news, end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            end.cancel()


def _frame(kind: str, data: JSON) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + jsonio.dumps(data) + b"\n\n"
