"""uvicorn's websocket, with an end for clients that do not read, and turns for others while one sends much.

Through ASGI alone such a client cannot be dropped: ``send`` waits for room before it sends even the close frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

_EXTENSION = "comfyui_gateway.websocket"
# The parser gets so much at once, some 150 of the smallest frames, and goes on for so long in one turn of the event
# loop. A read of 256 KB in one go took 0.3 s.
_PIECE = 1024
_TURN_S = 0.002

_logger = logging.getLogger("uvicorn.websockets")
# Its lines about each connection carry the query, and the access log has them already.
_logger.setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """Limits of one client's websocket.

    Attributes:
        close_patience_s: for a dropped client to read what was sent to it before.
        most_fragments: of one message. A message has a largest size, but its fragments may be empty.
    """

    close_patience_s: float = 5.0
    most_fragments: int = 10_000


class ServerSocket(WebSocketsSansIOProtocol):
    """One client's websocket. `lost` is called when its connection ends."""

    def __init__(self, *args: Any, limits: SocketLimits, lost: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._lost = lost
        self._unread = b""
        """Bytes that have arrived and must wait for the parser. No more are read from the connection before."""
        self.logger = _logger

    def data_received(self, data: bytes) -> None:
        waits = bool(self._unread)
        self._unread += data
        if not waits:
            self._read()

    def _read(self) -> None:
        """Gives the parser the bytes that have arrived, until the application has a message to take or the turn is
        over.
        """
        data, self._unread = self._unread, b""
        at, end = 0, self.loop.time() + _TURN_S
        while at < len(data) and not self.read_paused and not self.transport.is_closing():
            super().data_received(data[at : at + _PIECE])
            at += _PIECE
            if self.loop.time() > end:
                break
        if not self.transport.is_closing():
            self._unread = data[at:]
            self.transport.hold(bool(self._unread))  # type: ignore[attr-defined] # it is `ServerHttp`'s
            self._read_on()

    def _read_on(self) -> None:
        if self._unread and not self.read_paused:
            self.loop.call_soon(self._read)

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        self._read_on()
        return message

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:
            return
        if len(self.frames) >= self._limits.most_fragments:
            self.conn.fail(
                CloseCode.MESSAGE_TOO_BIG, f"a message has more than {self._limits.most_fragments} fragments"
            )
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """A client that reads nothing gets no answers: they would pile up."""
        answers = self.conn.data_to_send()
        if self.writable.is_set():
            self.transport.write(b"".join(answers))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()
        self._unread = b""
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # by a refusal; uvicorn takes it for an application that has failed

    async def run_asgi(self) -> None:
        self.scope["extensions"][_EXTENSION] = {"socket": self}
        await super().run_asgi()

    @property
    def unsent(self) -> int:
        """Bytes that were written to the connection and that the client's side has not taken yet."""
        return self.transport.get_write_buffer_size()

    def drop(self, code: int, reason: str) -> None:
        """Sends the close frame after the bytes that wait to be read, and cuts the connection if they are not read
        soon.
        """
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self._limits.close_patience_s, self.transport.abort)

    def cut(self) -> None:
        """End it as a lost connection ends: without a close frame."""
        self.transport.abort()


def server_socket_of(scope: Scope) -> ServerSocket | None:
    """The connection itself; None under another server."""
    socket = scope.get("extensions", {}).get(_EXTENSION, {}).get("socket")
    return socket if isinstance(socket, ServerSocket) else None
