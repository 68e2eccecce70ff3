"""Undoes the content codings of HTTP bodies as they arrive: only small pieces are in memory, however much a body
unpacks to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from comfyui.exceptions import InflateError

_PIECE = 64 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_GZIP_START = b"\x1f\x8b"
ACCEPTED = ("gzip", "x-gzip", "deflate")
"""The codings that can be undone; `identity` needs nothing."""


def coding_of(header: str | None) -> str | None:
    """The one coding that a ``Content-Encoding`` names, in lower case; None for a body without a coding.

    Raises:
        ValueError: it names a coding that cannot be undone, or several; the text is the header's own.
    """
    names = [name for part in (header or "").split(",") if (name := part.strip().lower()) not in {"", "identity"}]
    if not names:
        return None
    if len(names) > 1 or names[0] not in ACCEPTED:
        raise ValueError((header or "").strip())
    return names[0]


class Inflater:
    """One body. Give `feed` its bytes, then call `finish`."""

    def __init__(self, coding: str) -> None:
        """`coding` is one of `ACCEPTED`."""
        self._gzip = coding != "deflate"
        self._stream = zlib.decompressobj(_GZIP) if self._gzip else None
        self._start = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The unpacked `data`, in pieces of at most 64 KiB. Raises `InflateError`."""
        if self._stream is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return
            # Some clients write deflate's bare stream, without the two bytes of zlib that HTTP asks for.
            is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        self._start = self._start or data[:1]
        piece = b""
        # A piece of the full size may have more after it, even if zlib has taken all of its input.
        while data or len(piece) == _PIECE:
            if self._stream.eof:
                data = self._next_member(data)
                if not data:
                    return
            try:
                piece = self._stream.decompress(data, _PIECE)
            except zlib.error as error:
                raise InflateError("it cannot be unpacked") from error
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> None:
        """Raises `InflateError` if the end is missing. An empty body unpacks to no bytes."""
        if self._start and (self._stream is None or not self._stream.eof):
            raise InflateError("it ends too early")

    def _next_member(self, data: bytes) -> bytes:
        """gzip may be several streams in a row, and zeros that fill a block; nothing else may follow."""
        data = data.lstrip(b"\0")
        if data and (not self._gzip or not data.startswith(_GZIP_START[: len(data)])):
            raise InflateError("something follows its end")
        if data:
            self._stream = zlib.decompressobj(_GZIP)
        return data
