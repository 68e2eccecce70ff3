"""uvicorn's websocket, with an end for clients that do not read.

Through ASGI alone such a client cannot be dropped: ``send`` waits for room before it sends even the close frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_EXTENSION = "comfyui_gateway.websocket"
_CLOSE_PATIENCE_S = 5.0

_logger = logging.getLogger("uvicorn.websockets")
# Its lines about each connection carry the query, and the access log has them already.
_logger.setLevel(logging.WARNING)


class ServerSocket(WebSocketsSansIOProtocol):
    """For ``uvicorn --ws comfyui.web.server.socket:ServerSocket``; `server.py` sets it."""

    def __init__(self, *args: Any, lost: Callable[[], None] = lambda: None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lost = lost
        self.logger = _logger

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()
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
        """Put the close frame behind what waits to be read, and cut the connection when it is not read soon."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(_CLOSE_PATIENCE_S, self.transport.abort)

    def cut(self) -> None:
        """End it as a lost connection ends: without a close frame."""
        self.transport.abort()


def server_socket_of(scope: Scope) -> ServerSocket | None:
    """The connection itself; None under another server."""
    socket = scope.get("extensions", {}).get(_EXTENSION, {}).get("socket")
    return socket if isinstance(socket, ServerSocket) else None
