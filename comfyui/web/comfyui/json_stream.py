"""`JSONStream`: an answer of any length that is written as it is made, so that it takes bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comfyui.exceptions import ComfyUIError

# An answer up to this size is made first, and has its Content-Length. An error until then has its own answer.
_MADE_FIRST = 256 * 1024

_log = structlog.get_logger("relay")


class JSONStream(Response):
    """An answer with status 200. `pieces` are made as fast as the client takes them.

    Call `begin` first: it raises the errors at the beginning of `pieces`. Later errors cut the answer off.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._pieces = pieces
        self._first = b""
        self._is_whole = False

    async def begin(self) -> JSONStream:
        """Make the first pieces."""
        made = bytearray()
        while len(made) < _MADE_FIRST:
            piece = await anext(self._pieces, None)
            if piece is None:
                self._is_whole = True
                break
            made += piece
        self._first = bytes(made)
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - Starlette's signature
        headers = [(b"content-type", b"application/json")]
        if self._is_whole:
            headers.append((b"content-length", str(len(self._first)).encode()))
        async with aclosing(self._pieces):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            is_last = self._is_whole or scope["method"] == "HEAD"
            await send({"type": "http.response.body", "body": self._first, "more_body": not is_last})
            self._first = b""
            if is_last:
                return
            try:
                async for piece in self._pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except ComfyUIError as error:
                # An incomplete answer makes the server cut the connection: the client sees that the answer is not
                # whole.
                _log.warning("relay.cut", path=scope["path"], detail=error.detail)
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
