"""The door of jobs: their endpoints are called with the request alone, past FastAPI's own work.

Its routing and resolving took a fifth of the CPU time of a prompt, and of a waiting caller's memory. FastAPI knows the
same endpoints and describes them in ``/openapi.json``; without this module it would call them, with the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import structlog
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.exceptions import ComfyUIError
from comfyui.web.front.errors import answer_error, answer_to_nobody, unexpected

_log = structlog.get_logger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


class Door:
    """Middleware: calls the endpoints of `routers`; any other request goes on to `app`."""

    def __init__(self, app: ASGIApp, *routers: APIRouter) -> None:
        self._app = app
        self._endpoints: list[tuple[str, re.Pattern[str], Endpoint]] = [
            (method, route.path_regex, route.endpoint)
            for router in routers
            for route in router.routes
            if isinstance(route, Route)
            for method in route.methods or ()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoint(scope) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except ComfyUIError as error:
            response = await answer_error(request, error)
        except ClientDisconnect:
            response = answer_to_nobody()
        except Exception:
            _log.exception("request.crashed")
            response = unexpected(request)
        await response(scope, receive, send)

    def _endpoint(self, scope: Scope) -> Endpoint | None:
        for method, pattern, endpoint in self._endpoints:
            if method == scope["method"] and (match := pattern.match(scope["path"])) is not None:
                scope["path_params"] = match.groupdict()
                return endpoint
        return None
