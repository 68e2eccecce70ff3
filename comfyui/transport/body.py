"""An open body: its holder can read it, or send it to a client, and need not know where the bytes come from.

A long body goes from ComfyUI's socket to the client's within the kernel, if both are plain TCP and the system can do it
(`comfyui.transport.splice`). Only this room and `comfyui.web.server` know about that.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Protocol, Self, TypeVar

from comfyui.exceptions import ComfyUIConnectionError
from comfyui.retrying import Backoff
from comfyui.transport.splice import Splice

_Piece = TypeVar("_Piece", bytes, bytes | Splice)


class Receiver(Protocol):
    """The target of `OpenBody.send_to`: `comfyui.web.server.client_side.ClientSide`.

    Attributes:
        splices: whether it can take a `Splice`.
    """

    splices: bool

    async def write(self, data: bytes, *, last: bool) -> None:
        """Takes `data`, as fast as the client does. With `last` the body ends; `data` may be empty then."""

    async def splice(self, splice: Splice) -> None:
        """Lets `splice` move the bytes that its source has now."""


class OpenBody(ABC):
    """A body that is read once: with ``async for``, or by `send_to`.

    Both raise a `ComfyUIError` if the body is cut short.

    Attributes:
        length: in bytes; None if it is not known before the end.
    """

    def __init__(self, length: int | None = None) -> None:
        self.length = length
        self._first = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = self._take_first() or await self.read()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def begin(self) -> None:
        """Waits for its first bytes, so that an unreadable body fails before its answer begins."""
        self._first = self._first or await self.read()

    async def send_to(self, receiver: Receiver) -> None:
        """Sends the rest and the end, as fast as the receiver takes it."""
        read = self.read_or_splice if receiver.splices else self.read
        piece: bytes | Splice = self._take_first() or await read()
        while True:
            if isinstance(piece, bytes):
                last = not piece or self.at_end()
                await receiver.write(piece, last=last)
                if last:
                    return
            else:
                await receiver.splice(piece)
            piece = await read()

    # Implemented by each kind of body

    @abstractmethod
    async def read(self) -> bytes:
        """The bytes since the last call, at least one; nothing at the end."""

    async def read_or_splice(self) -> bytes | Splice:
        """The same as `read`. A long rest may come as a `Splice`, which must have moved the present bytes before the
        next call.
        """
        return await self.read()

    def at_end(self) -> bool:
        """Whether nothing is left, as far as that is known without waiting."""
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing of their own
        """Releases its source, if it owns one; the rest cannot be read. May be called again."""

    def _take_first(self) -> bytes:
        first, self._first = self._first, b""
        return first


RequestBody = bytes | OpenBody
"""An open body is sent as it comes, in chunks if its length is not known."""


class IteratedBody(OpenBody):
    """The chunks of an iterator, which belongs to its creator; its errors are raised here."""

    def __init__(self, chunks: AsyncIterable[bytes], length: int | None = None) -> None:
        super().__init__(length)
        self._chunks = aiter(chunks)

    async def read(self) -> bytes:
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


class ResumedBody(OpenBody):
    """A body whose rest is requested when its connection breaks.

    Args:
        body: from its start. A body of unknown length is not resumed.
        rest_from: opens the rest, from a byte on; raises if that is not the rest of the same body.
        backoff: the delay before the rest is requested.
        retries: how often the rest is requested.
        what: the name of the request in errors.
    """

    def __init__(
        self,
        body: OpenBody,
        rest_from: Callable[[int], Awaitable[OpenBody]],
        backoff: Backoff,
        *,
        retries: int,
        what: str,
    ) -> None:
        super().__init__(body.length)
        self._body = body
        self._rest_from = rest_from
        self._backoff = backoff
        self._retries = retries
        self._what = what
        self._done = self._failures = 0
        self._splice: Splice | None = None
        """It was returned last, and the bytes that it has moved since are not in `_done` yet."""

    async def read(self) -> bytes:
        return await self._resuming(lambda body: body.read())

    async def read_or_splice(self) -> bytes | Splice:
        return await self._resuming(lambda body: body.read_or_splice())

    def at_end(self) -> bool:
        return self._body.at_end()

    def close(self) -> None:
        self._body.close()

    async def _resuming(self, read: Callable[[OpenBody], Awaitable[_Piece]]) -> _Piece:
        if self._splice is not None:
            self._done += self._splice.moved
            self._splice = None
        broken = False
        while True:
            try:
                if broken:
                    self._body = await self._rest_from(self._done)
                    broken = False
                piece = await read(self._body)
            except ComfyUIConnectionError as error:
                if self._done == self.length:
                    return b""
                if self.length is None or self._failures >= self._retries:
                    raise ComfyUIConnectionError(f"{self._what}: the file's body was cut off", sent=True) from error
            else:
                if isinstance(piece, Splice):
                    self._splice = piece
                else:
                    self._done += len(piece)
                return piece
            self._body.close()
            broken = True
            self._failures += 1
            await asyncio.sleep(self._backoff.delay_s(self._failures))
