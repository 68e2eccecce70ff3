"""Clears, deletes and interrupts by ComfyUI's paths: they reach the jobs that the caller sees, and no others."""

from __future__ import annotations

import contextlib

from starlette.requests import Request
from starlette.responses import Response

from comfyui.exceptions import ComfyUINotFoundError
from comfyui.handler import ComfyUIHandler
from comfyui.web.comfyui.asked import small_body
from comfyui.web.comfyui.viewer import Viewer


class JobChanges:
    """Cancels jobs as ComfyUI's own paths ask for it."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._handler = handler

    async def change_queue(self, request: Request, viewer: Viewer) -> str | Response:
        """Cancels jobs that wait: all, or those that are named."""
        body = await small_body(request)
        named = body.get("delete")
        for one in self._handler.standing.now(viewer.sees).pending:
            if body.get("clear") or (isinstance(named, list) and one.prompt_id in named):
                await self._cancel(one.prompt_id, viewer)
        return Response()

    async def interrupt(self, request: Request, viewer: Viewer) -> str | Response:
        """Cancels the jobs that run, or the one that is named."""
        prompt_id = (await small_body(request)).get("prompt_id")
        for one in self._handler.standing.now(viewer.sees).running:
            if not isinstance(prompt_id, str) or one.prompt_id == prompt_id:
                await self._cancel(one.prompt_id, viewer)
        return Response()

    async def _cancel(self, prompt_id: str, viewer: Viewer) -> None:
        with contextlib.suppress(ComfyUINotFoundError):  # it has ended meanwhile
            await self._handler.cancel(prompt_id, viewer.origin)
