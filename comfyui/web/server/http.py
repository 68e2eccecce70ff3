"""uvicorn's HTTP: stricter with requests, and faster with answers (`comfyui.web.server.gathering`)."""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import sys
from typing import Any, Final

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from comfyui.exceptions import ComfyUIError, HeadTooLargeError, RequestHeadError, SlowRequestError
from comfyui.metrics import Metrics
from comfyui.web.server.connections import Connections
from comfyui.web.server.gathering import GatheringTransport
from comfyui.web.server.request_head import HeadLimits, HeadWatch
from comfyui.web.server.requests import checked_framing, origin_form, refusal_bytes
from comfyui.web.server.socket import ServerSocket, SocketLimits

_log = structlog.get_logger(__name__)

# How many bytes the parser gets at once, and after how many of its calls others have their turn. A read of 256 KB may
# be thousands of requests, or tens of thousands of chunks: that took half a second in one step.
_PIECE = 8 * 1024
_CALLS_AT_ONCE = 4000
# How long bytes of a refused client are read and thrown away.
_LINGER_S = 2.0
_RESET: Final = struct.pack("ii", 1, 0)


class _OldClientCycle(RequestResponseCycle):
    """A request of HTTP/1.0, whose client knows no chunks: a body of unknown length ends with the connection.

    uvicorn sends chunks even to an old client. `chunked_encoding` is uvicorn's, and None until an answer begins.
    """

    _ends_with_connection = False

    async def send(self, message: Any) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            sized = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not sized and self.scope["method"] != "HEAD" and message["status"] not in {204, 304}:
                self.chunked_encoding = False
                self._ends_with_connection = True
        elif kind == "http.response.body" and self._ends_with_connection:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    async def run_asgi(self, app: Any) -> None:
        await super().run_asgi(app)
        if self._ends_with_connection and not self.response_complete:
            # Only a reset tells this client that the answer is not complete.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class ServerHttp(HttpToolsProtocol):
    """For ``uvicorn --http comfyui.web.server.http:ServerHttp``; `server.py` sets it.

    uvicorn starts a request as soon as its headers have arrived. A request that another server might read differently
    (its end, its recipient, its target) is refused here before that.
    """

    def __init__(
        self,
        *args: Any,
        head_limits: HeadLimits | None = None,
        socket_limits: SocketLimits | None = None,
        connections: Connections | None = None,
        metrics: Metrics | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._head_limits = head_limits or HeadLimits()
        self._socket_limits = socket_limits or SocketLimits()
        self._metrics = metrics
        self._clients = connections or Connections(sys.maxsize)
        self._fits = True
        self._head_read = False
        self._in_body = False
        self._websocket = False
        self._refused = False
        self._running: RequestResponseCycle | None = None
        self._left_out: bytes | None = None
        """The framing of a request whose ``Upgrade`` is not made, while the parser still takes it for one."""
        self._muted = False
        """While the parser reads a head that `_read_on` has made."""
        self._unread = b""
        """Bytes that have arrived and must wait for the parser. No more are read from the socket before."""
        self._calls = 0
        """Calls of the parser since the others had their turn."""
        self._body: list[bytes] = []
        """Bytes of a body that the parser has read and uvicorn has not got yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._gathering = GatheringTransport(transport, self.loop)
        self._head = HeadWatch(self._head_limits, self.loop, self._late)
        self._fits = self._clients.opened()
        super().connection_made(self._gathering)  # type: ignore[arg-type] # all that uvicorn uses of one
        if not self._fits and self._clients.crowded:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.stop()
        self._clients.closed(self)
        self._unread = b""
        super().connection_lost(exc)

    def close_idle(self) -> None:
        """Makes room for another connection."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._fits:
            # Closed only now: closing it with an unread request would take the answer back.
            self._refuse(self._clients.refusal)
            return
        self._clients.busy(self)
        waits = bool(self._unread)
        self._unread += data
        if not waits:
            self._read()

    def _read(self) -> None:
        """Gives the parser the bytes that have arrived, as long as no one has to wait for it.

        Requests that arrive before the earlier one is answered wait as bytes, which take a twentieth of the memory of a
        parsed request.
        """
        if self._refused or self.transport.is_closing():
            self._unread = b""
            return
        self._unset_keepalive_if_required()
        data, self._unread = self._unread, b""
        try:
            self._unread = self._parsed(data)
        except RequestHeadError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            own = error.__context__
            if isinstance(own, RequestHeadError):
                self._refuse(own)
            else:
                self._refuse(RequestHeadError(f"it is not valid HTTP/1.1: {error}"))
        self._gathering.hold(bool(self._unread))
        if self._unread and not self.pipeline:
            self._calls = 0
            self.loop.call_soon(self._read)

    def _parsed(self, data: bytes) -> bytes:
        """The rest, which must wait."""
        view, at = memoryview(data), 0
        while at < len(data) and not self.pipeline and self._calls <= _CALLS_AT_ONCE:
            piece = view[at : at + _PIECE]
            try:
                self.parser.feed_data(piece)
                self._head.fed(len(piece))
                at += len(piece)
            except httptools.HttpParserUpgrade as upgrade:
                at += upgrade.args[0]
                if self._websocket:
                    self._become_websocket(data[at:])
                    return b""
                self._read_on()
        self._tell_of_body()
        return data[at:]

    def _tell_of_body(self) -> None:
        """uvicorn copies all that it has of a body for each piece that comes: it gets them together."""
        if self._body:
            body, self._body = self._body, []
            super().on_body(body[0] if len(body) == 1 else b"".join(body))

    def on_message_begin(self) -> None:
        if not self._muted:
            self._calls += 1
            self._head_read = False
            self._head.begun()
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._muted:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come behind the body. They must not join the headers, which have been checked and used by then.
        self._calls += 1
        if not self._head_read:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._muted:
            return
        self._head_read = True
        self._head.head_ended(self.url, self.headers)
        version, method = self.parser.get_http_version(), self.parser.get_method()
        framing = checked_framing(method, version, self.url, self.headers)
        self.url = origin_form(self.url)
        upgrade = self.parser.should_upgrade()
        self._websocket = upgrade and not framing and method == b"GET" and self._get_upgrade() == b"websocket"
        if self._websocket and self._running is not None and not self._running.response_complete:
            raise RequestHeadError("a websocket handshake must not come before the previous request is answered")
        if upgrade and not self._websocket:
            persistent = version == "1.1" and self.parser.should_keep_alive()
            self._left_out = framing + (b"" if persistent else b"Connection: close\r\n")
        super().on_headers_complete()
        if self.url.endswith(b"?") and not self._websocket and not self.scope["query_string"]:
            self.scope["raw_path"] += b"?"  # an empty query, which the scope has no other place for
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._calls += 1
        self._head.moved()
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._left_out is None:
            self._in_body = False
            self._head.ended()
            self._tell_of_body()
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return self._websocket and self._should_upgrade_to_ws()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.__class__ = _OldClientCycle
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _become_websocket(self, behind: bytes) -> None:
        if behind:
            self._in_body = False
            self._refuse(RequestHeadError("no bytes may follow a websocket handshake before it is answered"))
        else:
            # The websocket is told when the connection ends.
            lost = functools.partial(self._clients.closed, self)
            socket = functools.partial(ServerSocket, limits=self._socket_limits, lost=lost)
            self.ws_protocol_class = socket  # type: ignore[assignment]
            self.handle_websocket_upgrade()

    def _read_on(self) -> None:
        """Read a request whose ``Upgrade`` is not made as any other: its body comes next.

        The parser takes the head of such a request for its end. So another parser reads on, after a head of the same
        framing.
        """
        head = b"POST / HTTP/1.1\r\n%b\r\n" % (self._left_out or b"")
        self._left_out = None
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._muted = True
        try:
            self.parser.feed_data(head)
        finally:
            self._muted = False

    def _late(self, begun: bool) -> None:
        """A head has taken too long. A client that has sent nothing is told nothing."""
        if self.transport.is_closing() or self._refused:
            return
        if self._unread or self.pipeline:
            self._head.wait()  # it is we who do not read on
            return
        self._count("slow_client")
        if begun:
            seconds = f"{self._head_limits.seconds:g} s"
            self._refuse(SlowRequestError(f"the headers of the request did not all arrive within {seconds}"))
        else:
            self.transport.close()

    def _count(self, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.rejected.labels(reason).inc()

    def _refuse(self, error: ComfyUIError) -> None:
        """Answers and closes. Answers to earlier requests come first; one that has begun is cut."""
        self._refused = True
        _log.info("request.refused", status=error.status, detail=error.detail)
        if isinstance(error, HeadTooLargeError):
            self._count("head_too_large")
        self._head.stop()
        last: RequestResponseCycle | None = self._running
        if self.pipeline:
            if self._in_body:
                self.pipeline.popleft()  # the request itself, which has not been started
            last = self.pipeline[0][0] if self.pipeline else last
        elif self._in_body and last is not None and not last.response_complete:
            last.disconnected = True
            last.message_event.set()
            if last.response_started:
                self.transport.abort()
                return
            last = None
        if last is not None and not last.response_complete:
            last.keep_alive = False
            return
        self._answer_and_close(refusal_bytes(error))

    def _answer_and_close(self, answer: bytes) -> None:
        """A client that still sends gets a moment to read its answer: a close with unread bytes would take it back."""
        self.transport.write(answer)
        self._gathering.flush()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        # Not at the end of the loop's turn: the application still writes its log line in this one.
        self._gathering.flush()
        if self._in_body and not self.pipeline:
            self._head.wait()  # the rest of its body is never read, so its missing end would never be seen
        super().on_response_complete()
        if self.pipeline:
            return
        if self._unread:
            self.loop.call_soon(self._read)
        elif not self._head.in_message:
            self._clients.idle(self)
