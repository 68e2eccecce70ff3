"""uvicorn's HTTP, with one system call for an answer where it makes two, and none that copies where the kernel can."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from comfyui.splice import Splice
from comfyui.web.disconnect import ClientGoneError

# More than this is written at once: back-pressure must see it.
_SMALL = 16 * 1024
# An ASGI message in place of "http.response.body": what its "splice" has is moved to the client. Where it is understood
# it stands among the scope's extensions. Only in an answer that has a Content-Length.
SPLICE: Final = "http.response.splice"
_EXTENSIONS: Final = {SPLICE: dict[str, Any]()}


def can_splice(scope: Scope) -> bool:
    return SPLICE in scope.get("extensions", ())


def splicing(scope: Scope, send: Send) -> Send:
    """`send` that understands `SPLICE`, and says so in the scope, where `ServerHttp` serves HTTP without TLS."""
    if scope["type"] != "http":
        return send  # a websocket has the same transport, and extensions of its own
    cycle = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if not isinstance(transport, _Gathering) or transport.get_extra_info("sslcontext") is not None:
        return send

    def send_or_splice(message: Message) -> Awaitable[None]:
        return _splice(cycle, transport, message["splice"]) if message["type"] == SPLICE else send(message)

    scope["extensions"] = _EXTENSIONS
    return send_or_splice


async def _splice(cycle: Any, transport: _Gathering, splice: Splice) -> None:
    """`cycle` is uvicorn's, one request and its answer."""
    if cycle.disconnected:
        raise ClientGoneError
    if splice.left > cycle.expected_content_length:
        raise RuntimeError("a splice is for the body of an answer that has a Content-Length")
    await transport.drained(cycle.flow)
    if transport.is_closing():
        raise _gone(cycle)
    try:
        await splice.move_to(transport.fileno())
    except OSError as error:
        transport.abort()
        raise _gone(cycle) from error
    cycle.expected_content_length -= splice.moved


def _gone(cycle: Any) -> ClientGoneError:
    """uvicorn notices in a later turn only, and would log until then that the answer was not completed."""
    cycle.disconnected = True
    return ClientGoneError()


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

    __slots__ = ("_loop", "_pending", "_transport")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        """The rest is the transport's own."""
        return getattr(self._transport, name)

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

    def fileno(self) -> int:
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    async def drained(self, flow: FlowControl) -> None:
        """Until all that was written is on its way; then the socket may be written to by others."""
        self.flush()
        if self._transport.is_closing() or not self._transport.get_write_buffer_size():
            return
        low, high = self._transport.get_write_buffer_limits()
        self._transport.set_write_buffer_limits(high=0)  # pauses what is not empty, until it is
        try:
            while flow.write_paused:
                await flow.drain()
        finally:
            if not self._transport.is_closing():
                self._transport.set_write_buffer_limits(high=high, low=low)
