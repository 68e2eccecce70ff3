"""The client's side of an exchange: the target of an answer's body, within the kernel if possible.

ASGI knows a body as bytes only. `taking_splices` adds a message to it, so that whatever stands between an application
and the server, and counts or times messages, does so for these, too.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from starlette.types import Message, Scope, Send

from comfyui.exceptions import ClientGoneError
from comfyui.transport.splice import Splice
from comfyui.web.server.gathering import GatheringTransport

# A message type besides "http.response.body": the bytes that its "splice" has now are moved to the client. A server
# that knows it lists it among the scope's extensions. Only for an answer that has a Content-Length.
_SPLICE: Final = "http.response.splice"
_EXTENSIONS: Final = {_SPLICE: dict[str, Any]()}


class ClientSide:
    """Takes the body of one answer, whose head has been sent: see `comfyui.transport.body.Receiver`.

    Attributes:
        sent: bytes of the body that the server has taken.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.splices = _SPLICE in scope.get("extensions", ())
        self.sent = 0
        self._send = send

    async def write(self, data: bytes, *, last: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        self.sent += len(data)

    async def splice(self, splice: Splice) -> None:
        await self._send({"type": _SPLICE, "splice": splice})
        self.sent += splice.moved


def bytes_sent(message: Message) -> int:
    """How much of a body a message has brought to the client, once it was sent."""
    if message["type"] == "http.response.body":
        return len(message.get("body", b""))
    moved: int = message["splice"].moved if message["type"] == _SPLICE else 0
    return moved


def taking_splices(scope: Scope, send: Send) -> Send:
    """A `send` that can splice, if the connection is one of `ServerHttp` without TLS; the scope then says so."""
    if scope["type"] != "http":
        return send  # a websocket has the same transport, and extensions of its own
    cycle = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if not isinstance(transport, GatheringTransport) or transport.get_extra_info("sslcontext") is not None:
        return send

    def send_or_splice(message: Message) -> Awaitable[None]:
        return _splice(cycle, transport, message["splice"]) if message["type"] == _SPLICE else send(message)

    scope["extensions"] = _EXTENSIONS
    return send_or_splice


async def _splice(cycle: Any, transport: GatheringTransport, splice: Splice) -> None:
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


def cut_off(send: Send) -> None:
    """Ends the connection of a client that was given up in the middle of its answer. `send` is the server's own."""
    cycle = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if cycle is None or transport is None:
        raise RuntimeError("this server has no way to cut a connection")
    transport.abort()
    _gone(cycle)


def _gone(cycle: Any) -> ClientGoneError:
    """uvicorn notices in a later turn only, and would log until then that the answer was not completed."""
    cycle.disconnected = True
    return ClientGoneError()
