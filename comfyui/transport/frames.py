"""The messages of a websocket of aiohttp's, read so that many tiny ones hold up nobody else.

aiohttp answers pings and hands out what has come already without any wait, so a peer that sends nothing but tiny frames
had the event loop for itself.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol, Self

import aiohttp

from comfyui.offload import Turns

_KIND = aiohttp.WSMsgType


class Socket(Protocol):
    """Either side's websocket."""

    async def receive(self) -> Any: ...

    async def pong(self, message: bytes = b"") -> None: ...


class Frames:
    """Reads a websocket that was made with ``autoping=False``, and answers its pings.

    As an iterator it ends with the websocket.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._turns = Turns()

    async def next(self) -> aiohttp.WSMessage:
        """The next message that is neither ping nor pong; the last one says how the websocket ended."""
        while True:
            message: aiohttp.WSMessage = await self._socket.receive()
            if message.type is _KIND.PING:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    await self._socket.pong(message.data)
            await self._turns.handled(len(message.data) if isinstance(message.data, str | bytes) else 0)
            if message.type not in {_KIND.PING, _KIND.PONG}:
                return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> aiohttp.WSMessage:
        message = await self.next()
        if message.type not in {_KIND.TEXT, _KIND.BINARY}:
            raise StopAsyncIteration
        return message
