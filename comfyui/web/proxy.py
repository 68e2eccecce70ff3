"""The relay of HTTP: whatever the gateway does not own goes to ComfyUI and comes back as it is.

Bodies stream both ways with bounded memory: each side is read as fast as the other one takes it. A raw ASGI application
and not an endpoint: a web page loads hundreds of files through here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError, ComfyUIServerError, ComfyUITimeoutError
from comfyui.metrics import Metrics
from comfyui.web.errors import RequestError, error_response, refusal
from comfyui.web.headers import header, public_origin, request_headers, response_headers
from comfyui.web.paths import PathRules, is_own, route_of, target_of
from comfyui.web.redaction import SecretFilter, may_hold_secrets, without_secrets
from comfyui.web.relay_socket import SocketRelay
from comfyui.web.upstreams import Upstream, Upstreams

_log = structlog.get_logger("relay")

# A request body up to this size is read first and sent in one piece, so that it can be sent again.
_SMALL_BODY = 64 * 1024
# An answer that may hold secrets keeps its Content-Length up to this size; a larger one is sent in chunks.
_WHOLE_ANSWER = 4 * 1024 * 1024
# Only an answer that takes longer than this is worth a task that looks whether its client is still there.
_PATIENCE_S = 0.05
# Answers that another server may have when one has not: ids and files are those of the server that ran the prompt.
_ON_ONE_SERVER = frozenset({"/view", "/history/*", "/jobs/*"})
_EMPTY_JSON = 2
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What is relayed, and within what limits; `timeout_s` is the wait for ComfyUI's headers, 0 for any time."""

    rules: PathRules = field(default_factory=PathRules)
    timeout_s: float = 300.0
    max_upload_bytes: int | None = None
    socket_buffer_bytes: int = 16_000_000


class Relay:
    """Middleware: the gateway's own paths go on to the application, all others and every websocket to ComfyUI.

    It finds the servers in ``app.state.upstreams``, which the lifespan opens.
    """

    def __init__(self, app: ASGIApp, options: RelayOptions, metrics: Metrics) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._sockets = SocketRelay(metrics, buffer_bytes=options.socket_buffer_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and is_own(scope["method"], scope["path"])):
            await self._app(scope, receive, send)
            return
        target = target_of(scope["path"], scope.get("raw_path"), scope["query_string"])
        raw_path = target.partition("?")[0]
        verdict = self._options.rules.verdict(raw_path)
        if verdict == "denied":
            self._metrics.rejected.labels("denied").inc()
            await refusal(scope, 403, "this path of ComfyUI is not for clients (PROXY_DENY)")(scope, receive, send)
        elif verdict == "not_relayed":
            detail = f"{scope['path']}: not an endpoint of the gateway, and PROXY_MODE does not relay it"
            await refusal(scope, 404, detail)(scope, receive, send)
        elif kind == "websocket":
            await self._sockets.relay(scope, receive, send, scope["app"].state.upstreams, target)
        else:
            exchange = _Exchange(scope, receive, send, self._options, self._metrics, target, route_of(raw_path))
            await exchange.run(scope["app"].state.upstreams)


class _ClientGoneError(Exception):
    """Nobody is left to answer."""


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        options: RelayOptions,
        metrics: Metrics,
        target: str,
        route: str,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._options = options
        self._metrics = metrics
        self._target = target
        self._route = route
        self._method: str = scope["method"]
        self._started = False
        self._body_read = False
        self._received = 0
        self._failure: Exception | None = None
        self._deadline: asyncio.Timeout | None = None

    async def run(self, upstreams: Upstreams) -> None:
        try:
            with _Watch(self):
                body = await self._body()
                upstream, response = await self._open(upstreams, body)
                try:
                    await self._answer(upstream, response)
                finally:
                    response.close()
        except _ClientGoneError:
            _log.debug("relay.client_gone", path=self._scope["path"])
        except ComfyUIError as error:
            if self._started:
                # Not completing the answer makes the server cut the connection: the client sees that it is not whole.
                _log.warning("relay.cut", path=self._scope["path"], detail=error.detail)
                return
            level = 30 if error.status >= 500 else 20
            _log.log(level, "relay.failed", path=self._scope["path"], status=error.status, detail=error.detail)
            answer = error_response(error, self._scope.get("state", {}).get("request_id"))
            await answer(self._scope, self._receive, self._send)
        finally:
            self._metrics.relayed_bytes.labels("to_comfyui").inc(self._received)

    # The request

    async def _body(self) -> bytes | AsyncIterator[bytes] | None:
        length = header(self._scope, b"content-length")
        if header(self._scope, b"transfer-encoding") is None:
            if length is None or int(length) == 0:
                self._body_read = True
                return None
            self._check_size(int(length))
            if int(length) <= _SMALL_BODY:
                return b"".join([chunk async for chunk in self._chunks()])
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        """The client's body, read as ComfyUI takes it. What it raises reaches us through aiohttp as another error."""
        try:
            while not self._body_read:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGoneError
                chunk = message.get("body", b"")
                self._body_read = not message.get("more_body", False)
                self._received += len(chunk)
                self._check_size(self._received)
                self._wait_anew()
                if chunk:
                    yield chunk
        except (_ClientGoneError, ComfyUIError) as error:
            self._failure = error
            raise

    def _check_size(self, size: int) -> None:
        limit = self._options.max_upload_bytes
        if limit is not None and size > limit:
            self._metrics.rejected.labels("body_too_large").inc()
            raise BodyTooLargeError(f"the body is larger than {limit / 1e6:g} MB (MAX_UPLOAD_MB)")

    def _wait_anew(self) -> None:
        if self._deadline is not None and self._options.timeout_s:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._options.timeout_s)

    async def _open(
        self, upstreams: Upstreams, body: bytes | AsyncIterator[bytes] | None
    ) -> tuple[Upstream, aiohttp.ClientResponse]:
        upstream = upstreams.first()
        if not upstreams.several or (body is not None and not isinstance(body, bytes)):
            return upstream, await self._request(upstream, body)
        elsewhere = upstreams.others(upstream)
        while True:
            try:
                response = await self._request(upstream, body)
            except ComfyUIConnectionError:
                # Nothing was sent: the next server may be asked, whatever the method.
                if not elsewhere:
                    raise
            else:
                if not elsewhere or not self._is_elsewhere(response):
                    return upstream, response
                response.close()
            upstream = elsewhere.pop(0)

    def _is_elsewhere(self, response: aiohttp.ClientResponse) -> bool:
        if self._method not in {"GET", "HEAD"} or self._route not in _ON_ONE_SERVER:
            return False
        unknown = self._route == "/history/*" and response.content_length == _EMPTY_JSON
        return response.status == 404 or unknown

    async def _request(self, upstream: Upstream, body: Any) -> aiohttp.ClientResponse:
        """ComfyUI's answer as far as its headers; aiohttp's errors become ours."""
        headers = request_headers(self._scope, upstream.base_url)
        if upstream.authorization is not None:
            headers = [pair for pair in headers if pair[0] != "authorization"]
            headers.append(("Authorization", upstream.authorization))
        if may_hold_secrets(self._method, self._route):
            headers = [pair for pair in headers if pair[0] != "accept-encoding"]
            headers.append(("Accept-Encoding", "identity"))
        status = 0
        try:
            async with asyncio.timeout(self._options.timeout_s or None) as self._deadline:
                response = await upstream.session.request(
                    self._method,
                    URL(upstream.prefix + self._target, encoded=True),
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                )
            status = response.status
            return response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            failure = ComfyUIConnectionError(f"{upstream.backend.name} cannot be reached")
            upstream.backend.failed(failure)
            raise failure from error
        except TimeoutError as error:
            raise ComfyUITimeoutError(f"ComfyUI did not answer within {self._options.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if self._failure is not None:
                raise self._failure from None
            raise ComfyUIServerError("ComfyUI closed the connection without an answer") from error
        finally:
            self._deadline = None
            method = self._method if self._method in _METHODS else "other"
            self._metrics.upstream_requests.labels(upstream.backend.name, method, self._route, status).inc()

    # The answer

    async def _answer(self, upstream: Upstream, response: aiohttp.ClientResponse) -> None:
        headers = response_headers(response.raw_headers, response.status, upstream.base_url, public_origin(self._scope))
        try:
            if may_hold_secrets(self._method, self._route):
                await self._answer_without_secrets(response, headers)
                return
            await self._start(response.status, headers)
            if self._method == "HEAD":
                await self._write(b"", more=False)
                return
            left = -1 if response.content_length is None else response.content_length
            while chunk := await response.content.readany():
                left -= len(chunk)
                await self._write(chunk, more=left != 0)
            if left:
                await self._write(b"", more=False)
        except (aiohttp.ClientError, OSError) as error:
            raise ComfyUIServerError("ComfyUI cut the connection within its answer") from error

    async def _answer_without_secrets(
        self, response: aiohttp.ClientResponse, headers: list[tuple[bytes, bytes]]
    ) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ComfyUIServerError("ComfyUI compressed an answer that the gateway must look into")
        start = bytearray()
        while chunk := await response.content.readany():
            start += chunk
            if len(start) > _WHOLE_ANSWER:
                break
        else:
            body = without_secrets(bytes(start))
            if len(body) != len(start):
                headers = [pair for pair in headers if pair[0] != b"content-length"]
                headers.append((b"content-length", str(len(body)).encode()))
            await self._start(response.status, headers)
            await self._write(body, more=False)
            return
        await self._start(response.status, [pair for pair in headers if pair[0] != b"content-length"])
        secrets = SecretFilter()
        await self._write(secrets.feed(bytes(start)), more=True)
        del start
        while chunk := await response.content.readany():
            await self._write(secrets.feed(chunk), more=True)
        await self._write(secrets.end(), more=False)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, body: bytes, *, more: bool) -> None:
        if body:
            self._metrics.relayed_bytes.labels("to_client").inc(len(body))
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    # The client's disconnect

    async def watch(self, exchanging: asyncio.Task[Any]) -> None:
        """End the exchange when its client goes away. Call it when the request's body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        exchanging.cancel()

    @property
    def body_read(self) -> bool:
        return self._body_read


class BodyTooLargeError(RequestError):
    """A relayed body over MAX_UPLOAD_MB."""

    title = "Body too large"
    code = "body_too_large"
    status = 413


class _Watch:
    """Looks after the client of an exchange that takes its time; cancels it when the client is gone."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._exchanging = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_PATIENCE_S, self._begin)

    def _begin(self) -> None:
        if not self._exchange.body_read:
            # Until then the body's reader notices it.
            self._timer = self._loop.call_later(_PATIENCE_S, self._begin)
        elif self._exchanging is not None:
            self._task = self._loop.create_task(self._exchange.watch(self._exchanging))

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None:
            return
        if kind is asyncio.CancelledError and self._task.done() and self._exchanging is not None:
            self._exchanging.uncancel()
            raise _ClientGoneError
        self._task.cancel()
