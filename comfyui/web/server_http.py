"""uvicorn's HTTP, with one system call for an answer where it makes two."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# More than this is written at once: back-pressure must see it.
_SMALL = 16 * 1024


class ServerHttp(HttpToolsProtocol):
    """For ``uvicorn --http comfyui.web.server_http:ServerHttp``; `server.py` sets it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._gathering = _Gathering(transport, self.loop)
        super().connection_made(self._gathering)  # type: ignore[arg-type] # all that uvicorn uses of one

    def on_response_complete(self) -> None:
        # Not at the end of the loop's turn: the application still has its line for the log to write in this one.
        self._gathering.flush()
        super().on_response_complete()


class _Gathering:
    """A transport that sends what is written within one turn of the loop together: an answer's head and its body.

    A system call and a packet for each was an eighth of what a small relayed request costs, and the client's, too.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []
        # The rest is the transport's own.
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.set_protocol = transport.set_protocol
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        if len(data) > _SMALL:
            self._pending.append(data)
            self.flush()
            return
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or self._transport.is_closing():
            return
        if len(pending) == 1:
            self._transport.write(pending[0])
        else:
            self._transport.writelines(pending)
