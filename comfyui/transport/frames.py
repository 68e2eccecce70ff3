"""Messages of one of aiohttp's websockets, read so that many tiny ones do not block others.

aiohttp answers pings and hands out messages that have arrived without any wait, so a peer that sent only tiny frames
took the whole event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Protocol, Self

import aiohttp

from comfyui.offload import Turns

_TEXT, _BINARY = aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY
_PING, _PONG = aiohttp.WSMsgType.PING, aiohttp.WSMsgType.PONG

Message = aiohttp.WSMessage


class Socket(Protocol):
    """A websocket of either side."""

    async def receive(self) -> Any: ...

    async def pong(self, message: bytes = b"") -> None: ...


class Frames:
    """Reads a websocket that was made with ``autoping=False``, and answers its pings.

    The iterator ends with the websocket.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._turns = Turns()

    def next(self) -> Coroutine[Any, Any, Message]:
        """The next message that is neither ping nor pong; the last one says how the websocket ended."""
        return self._next(ends=False)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Message]:
        return self._next(ends=True)

    async def _next(self, *, ends: bool) -> Message:
        while True:
            message: Message = await self._socket.receive()
            kind = message.type
            has_content = kind is _TEXT or kind is _BINARY
            if kind is _PING:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    await self._socket.pong(message.data)
            elif not has_content and kind is not _PONG:
                if ends:
                    raise StopAsyncIteration
                return message
            if self._turns.over(len(message.data)):
                await asyncio.sleep(0)
            if has_content:
                return message
