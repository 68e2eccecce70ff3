"""ComfyUI's queue and history as the caller may see them, made from our own jobs without asking a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.exceptions import RequestError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import EndedJob
from comfyui.jobs.lines import Standing
from comfyui.json_pieces import is_large, pieces
from comfyui.web.comfyui.asked import last_part, query_of, raw_path
from comfyui.web.comfyui.externals import Externals
from comfyui.web.comfyui.job_items import ShownJob, history_entry
from comfyui.web.comfyui.job_pages import JobPages
from comfyui.web.comfyui.json_stream import JSONStream
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.front.errors import json_response

MAXIMUM_HISTORY_SIZE = 10_000
"""ComfyUI keeps this number of prompts; the last ones of more ended jobs are shown."""


class JobReads:
    """Answers every caller."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._journal = handler.journal
        self._standing = handler.standing
        self._pages = JobPages(handler)
        self._externals = Externals(handler)

    def count(self, viewer: Viewer) -> int:
        """How many prompts wait or run, of those that the viewer sees."""
        own = self._standing.count(viewer.sees)
        return own if viewer.key is not None else own + self._externals.count()

    async def remaining(self, _request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /prompt``."""
        return json_response(200, {"exec_info": {"queue_remaining": self.count(viewer)}})

    async def queue(self, _request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /queue``: running prompts, and pending ones in the order of their turns."""
        return await JSONStream(self._queue_pieces(viewer)).begin()

    async def history(self, request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /history``: in the order of their ends."""
        query = query_of(request.scope)
        max_items, offset = _integer(query, "max_items"), _integer(query, "offset")
        offset, most = -1 if offset is None else offset, MAXIMUM_HISTORY_SIZE
        if max_items is not None and offset < 0:
            most = max(0, min(max_items, most))
        ended = await self._journal.ended(viewer.key, most)
        ids = [job.prompt_id for job in _cut(ended, max_items, offset)]
        return await JSONStream(self._history_pieces(ids, viewer)).begin()

    async def history_entry(self, request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /history/{id}``: empty if it has not ended, and for another's.

        A prompt that the journal does not know is looked for on the servers, for callers that see everything.
        """
        prompt_id = last_part(request)
        if viewer.key is None and await self._journal.get(prompt_id) is None:
            return raw_path(request.scope)
        return await JSONStream(self._history_pieces([prompt_id], viewer)).begin()

    async def _queue_pieces(self, viewer: Viewer) -> AsyncGenerator[bytes, None]:
        now = self._standing.now(viewer.sees)
        running, pending = ([], []) if viewer.key is not None else await self._externals.all()
        yield b'{"queue_running": ['
        async for piece in self._items(now.running, running, viewer):
            yield piece
        yield b'], "queue_pending": ['
        async for piece in self._items(now.pending, pending, viewer):
            yield piece
        yield b"]}"

    async def _items(
        self, listed: Sequence[Standing], others: Sequence[ShownJob], viewer: Viewer
    ) -> AsyncGenerator[bytes, None]:
        def made(job: ShownJob) -> bytes | None:
            # It may have ended meanwhile, and is then in the history.
            if job.record is not None and job.record.state.is_end:
                return None
            return jsonio.dumps(job.item(with_owner=viewer.key is None))

        lead = b""
        async for page in self._pages.each([one.prompt_id for one in listed], made):
            if items := [item for item in page if item is not None]:
                yield lead + b", ".join(items)
                lead = b", "
        if others:
            yield lead + b", ".join(jsonio.dumps(job.item(with_owner=True)) for job in others)

    async def _history_pieces(self, prompt_ids: Sequence[str], viewer: Viewer) -> AsyncGenerator[bytes, None]:
        def made(job: ShownJob) -> list[bytes]:
            record = job.record
            if record is None or not record.state.is_end or record.hidden or not viewer.sees(record.owner):
                return []
            entry = history_entry(job, record, with_owner=viewer.key is None)
            name = jsonio.dumps(job.prompt_id) + b": "
            return [name, *pieces(entry)] if is_large(entry) else [name + jsonio.dumps(entry)]

        lead = b"{"
        async for page in self._pages.each(prompt_ids, made, results=True):
            for entry in page:
                if entry:
                    yield lead
                    for piece in entry:
                        yield piece
                    lead = b", "
        yield b"{}" if lead == b"{" else b"}"


def _cut(ended: list[EndedJob], max_items: int | None, offset: int) -> list[EndedJob]:
    """Cut exactly as ComfyUI does: with an offset there is at least one entry; without an offset, the last ones are
    shown.
    """
    if offset < 0:
        return ended if max_items is None else ended[len(ended) - min(len(ended), max(0, max_items)) :]
    return ended[offset:] if max_items is None else ended[offset : offset + max(max_items, 1)]


def _integer(query: dict[str, str], name: str) -> int | None:
    if name not in query:
        return None
    try:
        return int(query[name])
    except ValueError:
        raise RequestError(f"{name} must be a whole number") from None
