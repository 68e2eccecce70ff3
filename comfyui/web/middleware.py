"""Pure ASGI middleware: request id and access log, cap of bodies."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from uuid import uuid4

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfyui.exceptions import error_body
from comfyui.metrics import Metrics
from comfyui.web.errors import json_response

_log = structlog.get_logger("access")
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_QUIET = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})


class RequestContext:
    """Give each request an id (the caller's own ``X-Request-ID`` where it is harmless), bind it for logs, log one line.

    The query is not logged: it may carry what a caller holds secret.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0
        sent = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        tokens = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            path = scope["path"]
            log = _log.debug if path in _QUIET and status < 400 else _log.info
            log(
                "request",
                method=scope.get("method", "WEBSOCKET"),
                path=path,
                status=status,
                bytes=sent,
                ms=round((time.perf_counter() - started) * 1000, 1),
            )
            structlog.contextvars.reset_contextvars(**tokens)


class BodyLimit:
    """Refuse a body over the limit with 413: by its Content-Length at once, else when it has grown too long.

    `limit_of` says how many bytes a path may send, None for any number.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int | None], metrics: Metrics) -> None:
        self._app = app
        self._limit_of = limit_of
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limit_of(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            await self._refuse(limit, scope, receive, send)
            return
        received = 0
        started = False

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLargeError
            return message

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted_receive, watched_send)
        except _TooLargeError:
            if started:
                raise
            await self._refuse(limit, scope, receive, send)

    async def _refuse(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.rejected.labels("body_too_large").inc()
        body = error_body(
            title="Body too large",
            code="body_too_large",
            detail=f"the body is larger than {limit / 1e6:g} MB (MAX_REQUEST_BODY_MB); pass large inputs by URL",
            request_id=scope.get("state", {}).get("request_id"),
        )
        # What is left of the body is not read: the connection cannot be used again.
        await json_response(413, body, {"Connection": "close"})(scope, receive, send)


class _TooLargeError(Exception):
    """Ends the application's reading of a body that has grown too long."""


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _SAFE_REQUEST_ID.fullmatch(given) else uuid4().hex
