"""The relay of HTTP: whatever the gateway does not own goes to ComfyUI and comes back as it is.

Bodies stream both ways with bounded memory: each side is read as fast as the other one takes it. A raw ASGI application
and not an endpoint: a web page loads hundreds of files through here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.exceptions import (
    BodyTooLargeError,
    ClientGoneError,
    ComfyUIConnectionError,
    ComfyUICredentialsError,
    ComfyUIError,
    ComfyUIServerError,
    InvalidRequestError,
    RequestError,
)
from comfyui.headers import to_client
from comfyui.metrics import Metrics
from comfyui.transport.body import IteratedBody, OpenBody, RequestBody
from comfyui.transport.drivers import OpenReply
from comfyui.web.comfyui.face import Face
from comfyui.web.comfyui.redaction import SecretFilter, may_hold_secrets, without_secrets
from comfyui.web.comfyui.relay_socket import SocketRelay
from comfyui.web.comfyui.upstreams import Upstream, Upstreams
from comfyui.web.front import comfyui_errors
from comfyui.web.front.errors import error_response, refusal
from comfyui.web.front.headers import header, public_address, request_headers
from comfyui.web.front.paths import OwnPaths, PathRules, ServerPath, route_of, server_path, target_of
from comfyui.web.front.request_state import state_of
from comfyui.web.server.client_side import ClientSide
from comfyui.web.server.disconnect import ClientWatch

_log = structlog.get_logger("relay")

# A request body up to this size is read first and sent in one piece, so that it can be sent again.
_SMALL_BODY = 64 * 1024
# An answer that may hold secrets keeps its Content-Length up to this size; a larger one is sent in chunks.
_WHOLE_ANSWER = 4 * 1024 * 1024
# Answers that another server may have when one has not: ids and files are those of the server that ran the prompt.
_ON_ONE_SERVER = frozenset({"/view", "/history/*", "/jobs/*"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """The relayed paths, and their limits; `timeout_s` is the wait for ComfyUI's headers, 0 for no limit.

    `public_url` is the gateway's address for its clients, without a slash at its end; empty: as each client writes it.
    `home_folder` gets the copy of settings and user data; None: the copy is in memory. `close_patience_s` is how long a
    websocket's other side may take to close, after one side has.
    """

    rules: PathRules = field(default_factory=PathRules)
    timeout_s: float = 300.0
    max_upload_bytes: int | None = None
    socket_buffer_bytes: int = 512_000_000
    socket_idle_s: float = 60.0
    public_url: str = ""
    home_folder: Path | None = None
    close_patience_s: float = 2.0


class Websockets(Protocol):
    """Serves the websockets of the merged face; `comfyui.web.comfyui.hub.hub.Hub` does."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One of them, from its handshake to its end."""


class Relay:
    """Middleware: the gateway's own paths go on to the application, all others and their websockets to ComfyUI."""

    def __init__(
        self,
        app: ASGIApp,
        own: OwnPaths,
        upstreams: Upstreams,
        options: RelayOptions,
        metrics: Metrics,
        face: Face,
        hub: Websockets,
    ) -> None:
        self._app = app
        self._face = face
        self._hub = hub
        self._own = own
        self._upstreams = upstreams
        self._options = options
        self._metrics = metrics
        self._counters = _Counters(metrics)
        self._sockets = SocketRelay(
            metrics,
            buffer_bytes=options.socket_buffer_bytes,
            idle_s=options.socket_idle_s,
            timeout_s=options.timeout_s,
            close_patience_s=options.close_patience_s,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        is_own = kind == "http" and self._own.has(scope["method"], scope["path"])
        if is_own and scope["path"] not in comfyui_errors.PATHS:
            await self._app(scope, receive, send)
            return
        target = target_of(scope["path"], scope.get("raw_path"), scope["query_string"])
        raw_path = target.partition("?")[0]
        one = server_path(raw_path) if self._face.is_merged else None
        verdict = self._options.rules.verdict(raw_path)
        if one is not None and verdict != "denied":
            verdict = self._options.rules.verdict(one.rest)
        if verdict == "denied":
            self._metrics.rejected.labels("denied").inc()
            await refusal(scope, 403, "clients may not use this path of ComfyUI (PROXY_DENY)")(scope, receive, send)
        elif is_own:
            await self._app(scope, receive, send)
        elif verdict == "not_relayed":
            detail = f"{scope['path']} is not an endpoint of the gateway, and PROXY_MODE does not relay it to ComfyUI"
            await refusal(scope, 404, detail)(scope, receive, send)
        elif one is not None:
            await self._to_one(one, scope, receive, send)
        elif kind == "websocket":
            if self._face.has_websocket(raw_path):
                await self._hub.serve(scope, receive, send)
            else:
                await self._sockets.relay(scope, receive, send, self._upstreams.home, target)
        else:
            if scope["method"] in {"GET", "HEAD"}:
                # A web page loads hundreds of files.
                state_of(scope).quiet = True
            server = self._face.only(scope, raw_path)
            if self._face.answers(scope, raw_path):
                asked = await self._face.target(scope, receive, send, raw_path)
                if asked is None:
                    return
                target, server = asked.target, asked.server
            exchange = _Exchange(scope, receive, send, self._options, self._counters, target, route_of(raw_path))
            await exchange.run(self._upstreams, server)

    async def _to_one(self, asked: ServerPath, scope: Scope, receive: Receive, send: Send) -> None:
        """A request for exactly one server is relayed to it unchanged."""
        upstream = self._upstreams.named(asked.name)
        if upstream is None:
            names = ", ".join(self._upstreams.names)
            detail = f"there is no server {asked.name!r}; the servers are {names}"
            await refusal(scope, 404, detail)(scope, receive, send)
            return
        if not asked.rest:
            # If a page is below a path, the resources that it loads are, too.
            slash = Response(status_code=307, headers={"Location": f"{quote(asked.name, safe='')}/"})
            await slash(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        target = f"{asked.rest}?{query}" if query else asked.rest
        if scope["type"] == "websocket":
            await self._sockets.relay(scope, receive, send, upstream, target)
            return
        below = f"/servers/{quote(asked.name, safe='')}"
        route = route_of(asked.rest)
        exchange = _Exchange(scope, receive, send, self._options, self._counters, target, route, below)
        await exchange.run(self._upstreams, asked.name)


class _Counters:
    """The relay's own, found once: looking up a label takes longer than counting."""

    def __init__(self, metrics: Metrics) -> None:
        self.request = lru_cache(maxsize=4096)(metrics.upstream_requests.labels)
        self.to_comfyui = metrics.relayed_bytes.labels("to_comfyui")
        self.to_client = metrics.relayed_bytes.labels("to_client")
        self.too_large = metrics.rejected.labels("body_too_large")


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        options: RelayOptions,
        counters: _Counters,
        target: str,
        route: str,
        below: str = "",
    ) -> None:
        """`below`: the path below which the client sees the server."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._options = options
        self._counters = counters
        self._target = target
        self._route = route
        self._below = below
        self._method: str = scope["method"]
        self._started = False
        self._body_read = False
        self._received = 0
        self._guarded = may_hold_secrets(self._method, route)

    async def run(self, upstreams: Upstreams, server: str | None) -> None:
        """`server`: the name of the only one that may be asked; None: any may."""
        try:
            with ClientWatch(self._receive, lambda: self._body_read):
                body = await self._body()
                upstream, answer = await self._open(upstreams, body, server)
                try:
                    await self._answer(upstream, answer)
                finally:
                    answer.close()
        except (ClientGoneError, ConnectionAbortedError):  # it left, or `SlowClients` has given it up
            _log.debug("relay.client_gone", path=self._scope["path"])
        except ComfyUIError as error:
            if self._started:
                # An incomplete answer makes the server cut the connection: the client sees that the answer is not
                # whole.
                _log.warning("relay.cut", path=self._scope["path"], detail=error.detail)
                return
            level = 30 if error.status >= 500 else 20
            _log.log(level, "relay.failed", path=self._scope["path"], status=error.status, detail=error.detail)
            response = error_response(error, self._scope)
            await response(self._scope, self._receive, self._send)
        except Exception:
            _log.exception("relay.crashed", path=self._scope["path"])
            if not self._started:
                detail = "the gateway failed; its log has the reason with this request_id"
                response = error_response(ComfyUIError(detail), self._scope)
                await response(self._scope, self._receive, self._send)
        finally:
            if self._received:
                self._counters.to_comfyui.inc(self._received)

    # The request

    async def _body(self) -> RequestBody | None:
        """The body according to the client's framing; the sent body is framed only by this."""
        if header(self._scope, b"transfer-encoding") is not None:
            return IteratedBody(self._chunks())
        declared = header(self._scope, b"content-length")
        length = int(declared or 0)
        if not length:
            self._body_read = True
            return None if declared is None else b""
        self._check_size(length)
        if length <= _SMALL_BODY:
            return b"".join([chunk async for chunk in self._chunks()])
        return IteratedBody(self._chunks(), length)

    async def _chunks(self) -> AsyncIterator[bytes]:
        """The client's body, read as ComfyUI takes it."""
        while not self._body_read:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            self._body_read = not message.get("more_body", False)
            self._received += len(chunk)
            self._check_size(self._received)
            if chunk:
                yield chunk

    def _check_size(self, size: int) -> None:
        limit = self._options.max_upload_bytes
        if limit is not None and size > limit:
            self._counters.too_large.inc()
            raise BodyTooLargeError(f"the body is larger than {limit / 1e6:g} MB (MAX_UPLOAD_MB)")

    async def _open(
        self, upstreams: Upstreams, body: RequestBody | None, server: str | None
    ) -> tuple[Upstream, OpenReply]:
        only = None if server is None else upstreams.named(server)
        upstream = only or upstreams.first()
        if only is not None or not upstreams.several or isinstance(body, OpenBody):
            return upstream, await self._request(upstream, body)
        elsewhere = upstreams.others(upstream)
        while True:
            try:
                answer = await self._request(upstream, body)
            except ComfyUIConnectionError:
                # Nothing was sent: the next server may be asked, for any method.
                if not elsewhere:
                    raise
            else:
                if not elsewhere or not self._is_elsewhere(answer):
                    return upstream, answer
                answer.close()
            upstream = elsewhere.pop(0)

    def _is_elsewhere(self, answer: OpenReply) -> bool:
        if self._method not in {"GET", "HEAD"} or self._route not in _ON_ONE_SERVER:
            return False
        unknown = self._route == "/history/*" and answer.body.length == len(b"{}")
        return answer.status == 404 or unknown

    async def _request(self, upstream: Upstream, body: RequestBody | None) -> OpenReply:
        """ComfyUI's answer up to its headers."""
        status = 0
        try:
            answer = await upstream.transport.request(
                self._method, self._target, self._headers(upstream), body, timeout_s=self._options.timeout_s
            )
            status = answer.status
            if status == 401 and upstream.credentials:
                # It is not the client's key that was wrong.
                answer.close()
                raise ComfyUICredentialsError(self._method, upstream_status=status)
            return answer
        except ComfyUIConnectionError as error:
            upstream.backend.failed(error)
            raise
        except InvalidRequestError as error:
            raise RequestError(str(error)) from error
        finally:
            method = self._method if self._method in _METHODS else "other"
            self._counters.request(upstream.backend.name, method, self._route, status).inc()

    def _headers(self, upstream: Upstream) -> list[tuple[bytes, bytes]]:
        headers = request_headers(self._scope, upstream.base_url, upstream.credentials)
        if self._guarded:
            headers = [pair for pair in headers if pair[0] != b"accept-encoding"]
            headers.append((b"Accept-Encoding", b"identity"))
        return headers

    # The answer

    async def _answer(self, upstream: Upstream, answer: OpenReply) -> None:
        public = public_address(self._scope, self._options.public_url) + self._below
        headers = to_client(answer.headers, answer.status, upstream.base_url, public)
        client = ClientSide(self._scope, self._send)
        try:
            if self._guarded:
                await self._answer_without_secrets(answer, headers, client)
                return
            await self._start(answer.status, headers)
            await answer.body.send_to(client)
        finally:
            if client.sent:
                self._counters.to_client.inc(client.sent)

    async def _answer_without_secrets(
        self, answer: OpenReply, headers: list[tuple[bytes, bytes]], client: ClientSide
    ) -> None:
        if answer.header(b"content-encoding") not in {None, "identity"}:
            raise ComfyUIServerError("ComfyUI compressed an answer that the gateway must read")
        body = answer.body
        start = bytearray()
        while not body.at_end() and len(start) <= _WHOLE_ANSWER:
            start += await body.read()
        without_length = [pair for pair in headers if pair[0] != b"content-length"]
        if body.at_end():
            shown = without_secrets(bytes(start))
            if len(shown) != len(start):
                headers = [*without_length, (b"content-length", str(len(shown)).encode())]
            await self._start(answer.status, headers)
            await client.write(shown, last=True)
            return
        await self._start(answer.status, without_length)
        secrets = SecretFilter()
        await client.write(secrets.feed(bytes(start)), last=False)
        del start
        async for chunk in body:
            await client.write(secrets.feed(chunk), last=False)
        await client.write(secrets.end(), last=True)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
