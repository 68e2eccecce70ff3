"""Pure ASGI middleware: request id and access log, slow clients, cap of bodies."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from dataclasses import dataclass

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfyui.exceptions import (
    BodyTooLargeError,
    ComfyUIError,
    ComfyUIOverloadedError,
    SlowRequestError,
    StalledClientError,
)
from comfyui.jobs.usage import SentBytes
from comfyui.metrics import Metrics
from comfyui.web.front.decoding import decoded
from comfyui.web.front.errors import error_response
from comfyui.web.front.request_state import RequestState, state_of
from comfyui.web.front.v2_errors import is_v2
from comfyui.web.server.client_side import bytes_sent

_log = structlog.get_logger("access")
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_QUIET = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/api/v2/health"})
_ID_NAMES = (b"x-request-id",)
# SDKs of Comfy API v2 put it on their errors.
_ID_NAMES_OF_V2 = (*_ID_NAMES, b"x-comfy-request-id")
# The length of an IPv6 address with a zone; a longer text is not an address.
_LONGEST_ADDRESS = 64
# Bytes a second that a body must bring on average, over the time for which the gateway waits for it.
_LEAST_BODY_RATE = 1000
_FORM = b"multipart/form-data"
# The endpoints that keep a form's files on disk; whatever else reads a body has it in memory.
_PATHS = frozenset({"/v1/images/edits", "/prompt_sync", "/validate", "/api/v2/assets"})
_PATHS_BELOW = ("/workflows/", "/console/run/")


def is_form(scope: Scope) -> bool:
    """Whether `comfyui.web.api.multipart` reads the body of this request, so that it is never whole in memory."""
    types = (value for name, value in scope["headers"] if name == b"content-type")
    path = scope["path"]
    return (path in _PATHS or path.startswith(_PATHS_BELOW)) and next(types, b"").lower().startswith(_FORM)


class RequestContext:
    """Gives each request an id (the caller's own ``X-Request-ID`` if it is harmless), binds it for logs, logs one line.

    The query is not logged: it may contain secrets. The key is logged by its name, and the client's address is the one
    that a trusted proxy tells. `counted` is called with the bytes that went to each key.
    """

    def __init__(self, app: ASGIApp, counted: SentBytes | None = None) -> None:
        self._app = app
        self._counted = counted
        self._debug = logging.getLogger("access").isEnabledFor(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        state.request_id = request_id = _request_id(scope)
        started = time.perf_counter()
        status = 0
        sent = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [(name, request_id.encode()) for name in (_ID_NAMES_OF_V2 if is_v2(scope) else _ID_NAMES)]
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)
            sent += bytes_sent(message)

        tokens = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if state.caller is not None and self._counted is not None and sent:
                self._counted.add(state.caller.owner, sent)
            path = scope["path"]
            quiet = status < 400 and (path in _QUIET or state.quiet)
            if not quiet or self._debug:
                log = _log.debug if quiet else _log.info
                log(
                    "request",
                    method=scope.get("method", "WEBSOCKET"),
                    path=path,
                    status=status,
                    bytes=sent,
                    ms=round((time.perf_counter() - started) * 1000, 1),
                    client=_client(scope),
                    key=_key(state),
                )
            structlog.contextvars.reset_contextvars(**tokens)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits in bytes.

    Attributes:
        max_bytes: of one body.
        max_total_bytes: of the bodies of all requests that are being read or answered.
        max_form_bytes: of one form with files, which is kept on disk: only its texts have a part in the limit for all.
    """

    max_bytes: int
    max_total_bytes: int
    max_form_bytes: int


class BodyLimit:
    """Refuse a body over the limit with 413: by its Content-Length at once, else when it has grown too long.

    A compressed body is unpacked here, and the unpacked size counts.

    All bodies together have a limit, too, as long as their requests last: beyond it, a new one gets 429.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits, metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._held = 0
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        length = int(declared) if declared.isdigit() else 0
        request = await decoded(scope, receive, send)
        if request is None:
            return
        scope, receive = request
        on_disk = is_form(scope)
        max_bytes = self._limits.max_form_bytes if on_disk else self._limits.max_bytes
        if length > max_bytes:
            await self._refuse(self._too_large(max_bytes), scope, receive, send)
            return
        if not on_disk and self._held + length > self._limits.max_total_bytes:
            await self._refuse(self._no_room(), scope, receive, send)
            return
        received = held = 0
        started = False
        refused: ComfyUIError | None = None

        def hold(size: int) -> None:
            nonlocal held, refused
            held += size
            self._held += size
            if self._held > self._limits.max_total_bytes:
                refused = self._no_room()
                raise refused

        async def counted_receive() -> Message:
            nonlocal received, refused
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            if received > max_bytes:
                refused = self._too_large(max_bytes)
                raise refused
            if not on_disk:
                hold(size)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal started
            if refused is not None and not started:
                return  # the application's answer to half a body; the client gets its 413 or 429 below
            started = True
            await send(message)

        state_of(scope).hold = hold
        try:
            await self._app(scope, counted_receive, watched_send)
        except ComfyUIError:
            if started or refused is None:
                raise
        finally:
            self._held -= held
        if refused is not None and not started:
            await self._refuse(refused, scope, receive, send)

    def _too_large(self, max_bytes: int) -> BodyTooLargeError:
        self._metrics.rejected.labels("body_too_large").inc()
        setting = "MAX_REQUEST_BODY_MB" if max_bytes == self._limits.max_bytes else "MAX_MULTIPART_MB"
        limit = f"{max_bytes / 1e6:g} MB ({setting})"
        return BodyTooLargeError(f"the body is larger than {limit}; pass large inputs by URL")

    def _no_room(self) -> ComfyUIOverloadedError:
        self._metrics.rejected.labels("overloaded").inc()
        limit = f"{self._limits.max_total_bytes / 1e6:g} MB (MAX_BUFFERED_MB)"
        return ComfyUIOverloadedError(f"the bodies of all current requests take more than {limit}; try again later")

    async def _refuse(self, error: ComfyUIError, scope: Scope, receive: Receive, send: Send) -> None:
        # The rest of the body is not read: the connection cannot be used again.
        response = error_response(error, scope, {"Connection": "close"})
        await response(scope, receive, send)


class SlowClients:
    """Ends requests that a client leaves open without progress: a body that stops coming (408), an answer that is not
    read.

    A client may wait for its answer as long as it likes; only what it sends or takes is timed. Raises
    `StalledClientError` if an answer has begun, which can end only with the connection.

    Args:
        idle_s: the longest silence; a body has this time besides what its rate allows.
    """

    def __init__(self, app: ASGIApp, idle_s: float, metrics: Metrics) -> None:
        self._app = app
        self._idle_s = idle_s
        self._patience = _Patience(idle_s)
        self._silent = f"no more of the body arrived for {idle_s:g} s (CLIENT_IDLE_SECONDS)"
        self._too_slow = f"the body arrived at less than {_LEAST_BODY_RATE / 1000:g} KB a second"
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_complete = started = unread = False
        stalled = ""
        clock = asyncio.get_running_loop().time
        # How long the client may still have us wait for its body; each byte that comes adds to it.
        left_s = self._idle_s

        async def timed_receive() -> Message:
            nonlocal body_complete, stalled, left_s
            if body_complete:
                return await receive()  # waits for the client to go away
            began = clock()
            try:
                with _Wait(self._patience):
                    message = await receive()
            except TimeoutError:
                stalled = self._silent
                return {"type": "http.disconnect"}
            body_complete = not message.get("more_body", False)
            if not body_complete:
                left_s += len(message.get("body", b"")) / _LEAST_BODY_RATE - (clock() - began)
                if left_s < 0:
                    stalled = self._too_slow
                    return {"type": "http.disconnect"}
            return message

        async def timed_send(message: Message) -> None:
            nonlocal started, unread
            if stalled:
                return  # the application's answer to half a body; the client gets its 408 below
            started = True
            try:
                with _Wait(self._patience):
                    await send(message)
            except TimeoutError:
                unread = True
                raise StalledClientError from None

        try:
            await self._app(scope, timed_receive, timed_send)
        except Exception:
            if not stalled and not unread:
                raise
        if unread:
            self._metrics.rejected.labels("slow_client").inc()
            raise StalledClientError("the client did not read its answer")
        if stalled:
            self._metrics.rejected.labels("slow_client").inc()
            if started:
                raise StalledClientError("the client did not send its body")
            response = error_response(SlowRequestError(stalled), scope, {"Connection": "close"})
            await response(scope, receive, send)


class _Patience:
    """Bounds many waits by the same time, with one timer for all.

    A timer for each was 2.4 µs, three times a request, for what hardly ever waits; `asyncio.timeout` 3.8 µs.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: dict[_Wait, float] = {}
        """When each is over, in the loop's time; the first one first."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, wait: _Wait, loop: asyncio.AbstractEventLoop) -> None:
        self._waits[wait] = over_at = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(over_at, self._look, loop)

    def end(self, wait: _Wait) -> None:
        self._waits.pop(wait, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._waits:
            wait, over_at = next(iter(self._waits.items()))
            if over_at > loop.time():
                self._timer = loop.call_at(over_at, self._look, loop)
                return
            self.end(wait)
            wait.is_over()


class _Wait:
    """A block that is cancelled when `patience` is at its end, and raises TimeoutError then."""

    __slots__ = ("_late", "_patience", "_task")

    def __init__(self, patience: _Patience) -> None:
        self._patience = patience
        self._late = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._patience.begin(self, loop)

    def is_over(self) -> None:
        if self._task is not None:
            self._late = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        self._patience.end(self)
        # If someone else cancelled the task too, their cancellation wins.
        if self._late and self._task is not None and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError


def _client(scope: Scope) -> str | None:
    client = scope.get("client")
    return str(client[0])[:_LONGEST_ADDRESS] if client else None


def _key(state: RequestState) -> str | None:
    return None if state.caller is None else state.caller.owner


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE_REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return f"{random.getrandbits(128):032x}"
