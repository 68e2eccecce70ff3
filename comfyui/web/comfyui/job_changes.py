"""Clears, deletes, cancels and interrupts by ComfyUI's paths: they reach the jobs that the caller sees, and no others.

A body that ComfyUI cannot use gets ComfyUI's status, usually 500; its text says what is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from comfyui.exceptions import JSONError
from comfyui.handler import ComfyUIHandler
from comfyui.web.comfyui.asked import json_body
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.front.errors import json_response

_Change = Callable[["JobChanges", Request, Viewer], Awaitable[Response]]


def _as_comfyui_fails(change: _Change) -> _Change:
    """Answers as ComfyUI does when its own code fails on a body."""

    @wraps(change)
    async def changed(self: JobChanges, request: Request, viewer: Viewer) -> Response:
        try:
            return await change(self, request, viewer)
        except JSONError:
            reason = "the body is not JSON"
        except (TypeError, AttributeError):
            reason = 'the body must be a JSON object with the ids in a list: {"delete": ["…"]}'
        return PlainTextResponse(f"500 Internal Server Error\n\n{reason}", 500)

    return changed


class JobChanges:
    """Cancels jobs, and takes them out of the history, as ComfyUI's own paths ask for it."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._pool = handler.pool
        self._removal = handler.removal
        self._history = handler.history

    @_as_comfyui_fails
    async def change_queue(self, request: Request, viewer: Viewer) -> Response:
        """Cancels jobs that wait: all, or those that are named."""
        clear, named = _clear_and_delete(await json_body(request))
        if clear:
            await self._removal.clear(viewer.origin)
        if prompt_ids := [one for one in named if isinstance(one, str)]:
            await self._removal.delete(prompt_ids, viewer.origin)
        return Response()

    @_as_comfyui_fails
    async def change_history(self, request: Request, viewer: Viewer) -> Response:
        """Shows jobs in the history no more: all, or those that are named."""
        clear, named = _clear_and_delete(await json_body(request))
        if clear:
            await self._history.clear(viewer.origin)
        if prompt_ids := [one for one in named if isinstance(one, str)]:
            await self._history.delete(prompt_ids, viewer.origin)
        return Response()

    @_as_comfyui_fails
    async def interrupt(self, request: Request, viewer: Viewer) -> Response:
        """Cancels the running jobs, or the one that is named."""
        try:
            body = await json_body(request)
        except JSONError:
            body = {}
        prompt_id = body.get("prompt_id")
        if not prompt_id:
            await self._removal.interrupt(None, viewer.origin)
        elif isinstance(prompt_id, str):
            await self._removal.interrupt(prompt_id, viewer.origin)
        return Response()

    async def cancel(self, request: Request, viewer: Viewer) -> Response:
        """Cancels one job, whether it waits or runs; whether it had not ended."""
        prompt_id = request.scope["path"].split("/")[-2]
        return json_response(200, {"cancelled": await self._removal.cancel_all([prompt_id], viewer.origin)})

    async def cancel_many(self, request: Request, viewer: Viewer) -> Response:
        """Cancels these jobs, whether they wait or run; whether one had not ended."""
        try:
            body = await json_body(request)
        except JSONError:
            return json_response(400, {"error": "Request body must be valid JSON"})
        job_ids = body.get("job_ids") if isinstance(body, dict) else None
        if not isinstance(job_ids, list):
            return json_response(400, {"error": "job_ids must be a list"})
        if invalid := [one if isinstance(one, str) else repr(one) for one in job_ids if not _is_job_id(one)]:
            return json_response(400, {"error": "job_ids contains invalid id(s)", "invalid_ids": invalid})
        return json_response(200, {"cancelled": await self._removal.cancel_all(job_ids, viewer.origin)})

    @_as_comfyui_fails
    async def free(self, request: Request, _viewer: Viewer) -> Response:
        """Tells all servers that are up to free their memory; raises a server's `ComfyUIError` if none accepts it."""
        body = await json_body(request)
        unload_models, free_memory = bool(body.get("unload_models", False)), bool(body.get("free_memory", False))
        await self._pool.free(unload_models=unload_models, free_memory=free_memory)
        return Response()


def _clear_and_delete(body: Any) -> tuple[bool, list[Any]]:
    """The request of ``POST /queue`` and ``/history``. Raises TypeError if ComfyUI's own code does."""
    clear = bool(body["clear"]) if "clear" in body else False
    return clear, list(body["delete"]) if "delete" in body else []


def _is_job_id(value: Any) -> bool:
    """Whether it is a UUID as ComfyUI writes it."""
    try:
        return isinstance(value, str) and str(UUID(value)) == value
    except ValueError:
        return False
