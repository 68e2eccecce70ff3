"""Bodies that a client has compressed: unpacked as they come, before anything counts or reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.types import Message, Receive, Scope, Send

from comfyui.exceptions import BodyEncodingError, InflateError
from comfyui.transport.inflate import ACCEPTED, Inflater, coding_of
from comfyui.web.front.errors import refusal
from comfyui.web.front.headers import header

# Packed zeros unpack to a thousand times their size: after so much of it, others have their turn.
_TURN_BYTES = 1 << 20
# How much is unpacked at once. It may be hundreds of streams, and each copies the bytes after it.
_PACKED_AT_ONCE = 8 * 1024
_READABLE = ", ".join(ACCEPTED)


async def decoded(scope: Scope, receive: Receive, send: Send) -> tuple[Scope, Receive] | None:
    """The request as if its body had come unpacked; None if it was refused with 415.

    The returned `receive` raises `BodyEncodingError`. It gives small messages, so who counts their bytes stops a body
    that unpacks to more than its limit before it has grown.
    """
    said = header(scope, b"content-encoding")
    if said is None:
        return scope, receive
    try:
        coding = coding_of(said.decode("latin-1"))
    except ValueError as error:
        detail = (
            f"Content-Encoding: {str(error)!r} is not supported; use {_READABLE}, or send the body without a coding"
        )
        await refusal(scope, 415, detail, {"Accept-Encoding": _READABLE})(scope, receive, send)
        return None
    if coding is None:
        return scope, receive
    headers = [pair for pair in scope["headers"] if pair[0] not in {b"content-encoding", b"content-length"}]
    return {**scope, "headers": headers}, _Unpacked(receive, coding)


class _Unpacked:
    """`receive` of a packed body."""

    def __init__(self, receive: Receive, coding: str) -> None:
        self._receive = receive
        self._coding = coding
        self._inflater = Inflater(coding)
        self._pieces: Iterator[bytes] = iter(())
        self._packed = b""
        self._last = self._ended = False
        self._turn = 0

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        while True:
            try:
                piece = next(self._pieces, None)
                if piece is not None:
                    await self._let_others_work(len(piece))
                    return {"type": "http.request", "body": piece, "more_body": True}
                if self._packed:
                    packed, self._packed = self._packed[:_PACKED_AT_ONCE], self._packed[_PACKED_AT_ONCE:]
                    self._pieces = self._inflater.feed(packed)
                    await self._let_others_work(_TURN_BYTES // 8)
                    continue
                if self._last:
                    self._inflater.finish()
                    self._ended = True
                    return {"type": "http.request", "body": b"", "more_body": False}
            except InflateError as error:
                raise BodyEncodingError(
                    f"the body is not valid {self._coding}, which its Content-Encoding names: {error}"
                ) from None
            message = await self._receive()
            if message["type"] != "http.request":
                self._ended = True
                return message
            self._last = not message.get("more_body", False)
            self._packed = message.get("body", b"")

    async def _let_others_work(self, size: int) -> None:
        self._turn += size
        if self._turn >= _TURN_BYTES:
            self._turn = 0
            await asyncio.sleep(0)
