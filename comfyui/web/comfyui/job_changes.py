"""Clears, deletes and interrupts by ComfyUI's paths: they reach the jobs that the caller sees, and no others."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfyui.exceptions import ComfyUINotFoundError
from comfyui.handler import ComfyUIHandler
from comfyui.web.comfyui.asked import small_body
from comfyui.web.comfyui.job_reads import MOST_SHOWN, RUNNING, WAITING, JobReads
from comfyui.web.comfyui.viewer import Viewer


class JobChanges:
    """Cancels jobs as ComfyUI's own paths ask for it."""

    def __init__(self, handler: ComfyUIHandler, reads: JobReads) -> None:
        self._handler = handler
        self._journal = handler.journal
        self._reads = reads

    async def change_queue(self, request: Request, viewer: Viewer) -> str | Response:
        """Cancels jobs that wait: all, or those that are named."""
        body = await small_body(request)
        if body.get("clear"):
            for record in await self._reads.records(viewer, WAITING, MOST_SHOWN):
                await self._cancel_waiting(record.prompt_id, viewer)
        if isinstance(ids := body.get("delete"), list):
            await self._delete(ids, viewer)
        return Response()

    async def interrupt(self, request: Request, viewer: Viewer) -> str | Response:
        """Cancels the jobs that run, or the one that is named."""
        prompt_id = (await small_body(request)).get("prompt_id")
        records = await self._reads.records(viewer, WAITING | RUNNING, MOST_SHOWN)
        for running in await self._reads.running(records):
            if not isinstance(prompt_id, str) or prompt_id == running:
                await self._cancel(running, viewer)
        return Response()

    async def _delete(self, prompt_ids: Sequence[Any], viewer: Viewer) -> None:
        """Cancel those that wait; of others nothing is said."""
        for prompt_id in prompt_ids:
            if isinstance(prompt_id, str):
                await self._cancel_waiting(prompt_id, viewer)

    async def _cancel_waiting(self, prompt_id: str, viewer: Viewer) -> None:
        record = await self._journal.get(prompt_id)
        waits = record is not None and viewer.origin.sees(record.owner) and record.state in WAITING
        if record is not None and waits and not await self._reads.running([record]):
            await self._cancel(prompt_id, viewer)

    async def _cancel(self, prompt_id: str, viewer: Viewer) -> None:
        with contextlib.suppress(ComfyUINotFoundError):  # it has ended meanwhile
            await self._handler.cancel(prompt_id, viewer.origin)
