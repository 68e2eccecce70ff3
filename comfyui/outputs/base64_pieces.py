"""Base64 of a stream of bytes, in pieces that can be joined."""

from __future__ import annotations

import pybase64

# Enough for a piece: a file up to this size that breaks off still has its own error in the answer.
_PIECE = 192 * 1024


class Base64Pieces:
    """The base64 text of a byte stream in pieces, each of what came until it was enough for one."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> bytes:
        """A piece; empty until there is enough for one."""
        self._waiting.append(chunk)
        self._size += len(chunk)
        if self._size < _PIECE:
            return b""
        data = chunk if len(self._waiting) == 1 else b"".join(self._waiting)
        whole = self._size - self._size % 3  # so that pieces can be joined without padding between them
        self._waiting = [data[whole:]] if whole < self._size else []
        self._size -= whole
        return pybase64.b64encode(memoryview(data)[:whole])

    def end(self) -> bytes:
        """The rest."""
        return pybase64.b64encode(b"".join(self._waiting))
