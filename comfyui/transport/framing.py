"""The bytes of HTTP/1.1: the head of a request, and the end of an answer. Pure, no sockets.

Callers share a connection one after the other. If the two sides disagree about the length of a message, one caller gets
what belongs to another. So a length is written in only one way, from the body that is sent, and each byte that is read
is either allowed by the grammar of RFC 9112 or ends the connection: nothing is repaired, skipped or guessed.
`tests/framing` compares both directions with two other implementations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from comfyui.exceptions import FramingError, InvalidRequestError
from comfyui.headers import FRAMING
from comfyui.transport.body import OpenBody, RequestBody

RawHeaders = Sequence[tuple[bytes, bytes]]

MAX_HEAD_BYTES: Final = 64 * 1024
"""Limits an answer's head, together with its interim answers, and the trailers of a chunked body."""
_MAX_CHUNK_LINE: Final = 4 * 1024
_MAX_DIGITS: Final = 18
_NO_BODY: Final = frozenset({204, 304})
_BODY_EXPECTED: Final = frozenset({"POST", "PUT", "PATCH"})

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT: Final = rb"[\t -~\x80-\xff]*"
# Only `request_head` writes them.
_OURS: Final = rb"(?:%b)" % b"|".join(sorted(FRAMING))
_REQUEST: Final = re.compile(
    rb"%(token)b [!-~]+ HTTP/1\.1\r\nHost: [!-~]+\r\n"
    rb"(?:(?!(?i:%(ours)b):)%(token)b:%(text)b\r\n)*+" % {b"token": _TOKEN, b"text": _TEXT, b"ours": _OURS}
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: %b)?\r\n" % _TEXT)
_FIELD: Final = re.compile(rb"(?<=\r\n)(%b):[ \t]*(%b)\r\n" % (_TOKEN, _TEXT))
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[ \t]*%b(?:=(?:%b|%b))?)*\r\n" % (_TOKEN, _TOKEN, _QUOTED))
_CLOSE: Final = re.compile(rb"(?i)(?:^|,)[ \t]*close[ \t]*(?:,|$)")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")


def request_head(method: str, target: str, host: str, headers: RawHeaders, body: RequestBody | None) -> bytes:
    """The request line and the headers, with the framing of this body and the empty line.

    Args:
        headers: all others, without any about the framing or the connection.

    Raises:
        InvalidRequestError: a part has a character that HTTP does not allow, or `headers` has one that is not the
            caller's.
    """
    lines = [f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n".encode("latin-1", "replace")]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    head = b"".join(lines)
    if _REQUEST.fullmatch(head) is None:
        raise InvalidRequestError("the request line or a header has a character that HTTP does not allow there")
    if isinstance(body, OpenBody):
        if body.length is None:
            return head + b"Transfer-Encoding: chunked\r\n\r\n"
        return b"%bContent-Length: %d\r\n\r\n" % (head, body.length)
    if body is not None or method in _BODY_EXPECTED:
        return b"%bContent-Length: %d\r\n\r\n" % (head, len(body or b""))
    return head + b"\r\n"


def chunk(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A part of a body that is sent in chunks. It must not be empty: an empty one is the end."""
    return b"%x\r\n" % len(data), data, b"\r\n"


LAST_CHUNK: Final = b"0\r\n\r\n"


class AnswerReader:
    """Reads one answer. Give `feed` the bytes, in pieces of any size; call `end` when the connection has ended.

    Attributes:
        status, headers: those of the final answer, once `started`; names are in lower case.
        started: whether its head has arrived.
        complete: whether its body has arrived.
        excess: whether bytes came after it.
        chunks: number of chunk pieces that the last call of `feed` has read.
        rest: bytes of a body of announced length that are still to come; otherwise 0.
    """

    __slots__ = (
        "_chunk_left", "_chunked", "_first_chunk", "_head_bytes", "_head_only", "_kept", "_persistent", "chunks",
        "complete", "excess", "headers", "rest", "started", "status",
    )  # fmt: skip

    def __init__(self, method: str) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.started = False
        self.complete = False
        self.excess = False
        self.chunks = 0
        self.rest = 0
        self._head_only = method == "HEAD"
        self._head_bytes = 0
        self._persistent = False
        self._chunked = False
        self._chunk_left = 0
        self._first_chunk = True
        self._kept = b""
        """The incomplete head, or line between chunks, that has arrived so far."""

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on this connection, as far as the answer says."""
        return self.complete and self._persistent and not self.excess

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in `data`; raises `FramingError`."""
        if not self.started:
            data = self._read_head(data)
            if not self.started:
                return b""
        if self.complete:
            self.excess = self.excess or bool(data)
            return b""
        if self._chunked:
            return self._read_chunks(data)
        if not self.rest:
            return data  # until the connection ends
        if len(data) > self.rest:
            self.excess = True
            data = data[: self.rest]
        self.taken(len(data))
        return data

    def taken(self, count: int) -> None:
        """Counts bytes of `rest` that have arrived."""
        self.rest -= count
        self.complete = not self.rest

    def end(self) -> None:
        """The server has ended the connection: `complete` afterwards, if that marks the end of the body."""
        self.complete = self.complete or (self.started and not self._chunked and not self.rest)

    # The head

    def _read_head(self, data: bytes) -> bytes:
        """Reads up to the final answer's head, if it has arrived; returns the bytes after it."""
        if self._kept:
            data = self._kept + data
        while True:
            end = data.find(b"\r\n\r\n")
            if self._head_bytes + (end if end >= 0 else len(data)) > MAX_HEAD_BYTES:
                raise FramingError(f"its head is longer than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                if not b"HTTP/1.".startswith(data[:7]) or _BARE_LF.search(data):
                    raise FramingError("it does not begin with a status line and headers")
                self._kept = data
                return b""
            line = _STATUS_LINE.match(data)
            if line is None:
                raise FramingError("its status line is not one of HTTP/1.1")
            headers = _parsed_fields(data, line.end(), end + 2)
            status = int(line[2])
            if status >= 200:
                self._kept = b""
                self._begin(line[1] == b"1", status, headers)
                return data[end + 4 :]
            if status == 101:
                raise FramingError("it switches protocols without a request to do so")
            _framing_of(headers, line[1] == b"1")  # means nothing here, but must not be nonsense
            self._head_bytes += end + 4
            data = data[end + 4 :]

    def _begin(self, persistent: bool, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """`persistent` is true for HTTP/1.1, in which a connection stays open by default."""
        length, chunked, close = _framing_of(headers, persistent)
        self.status, self.headers, self.started = status, headers, True
        self._persistent = persistent and not close
        if self._head_only or status in _NO_BODY:
            self.complete = True
        elif length is not None:
            self.rest = length
            self.complete = not length
        elif chunked:
            self._chunked = True
        else:
            self._persistent = False

    # A body in chunks

    def _read_chunks(self, data: bytes) -> bytes:
        data, self._kept = self._kept + data, b""
        pieces = []
        at = 0
        while at < len(data):
            if self._chunk_left:
                piece = data[at : at + self._chunk_left]
                pieces.append(piece)
                at += len(piece)
                self._chunk_left -= len(piece)
                continue
            behind = self._read_chunk_line(data, at)
            if behind is None:
                self._kept = data[at:]
                break
            at = behind
            if self.complete:
                self.excess = at < len(data)
                break
        self.chunks = len(pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_chunk_line(self, data: bytes, at: int) -> int | None:
        """Reads the line before the next chunk, or the end of the body; returns the position after it, None if it is
        incomplete.
        """
        start = at
        if not self._first_chunk:
            if not b"\r\n".startswith(data[at : at + 2]):
                raise FramingError("a chunk is longer than it says")
            start += 2
        line = _CHUNK_LINE.match(data, start)
        if line is None:
            if data.find(b"\n", start) >= 0 or len(data) - start > _MAX_CHUNK_LINE:
                raise FramingError("the size of a chunk is not a number")
            return None
        size = int(line[1], 16)
        if size:
            self._chunk_left = size
            self._first_chunk = False
            return line.end()
        return self._read_trailers(data, line.end())

    def _read_trailers(self, data: bytes, at: int) -> int | None:
        """Checks the trailers and drops them: a header after the body must not count as one before it."""
        end = data.find(b"\r\n\r\n", at - 2)
        if end < 0:
            if len(data) - at > MAX_HEAD_BYTES or _BARE_LF.search(data, at):
                raise FramingError("its trailers are not headers, or too long")
            return None
        _framing_of(_parsed_fields(data, at, end + 2), True)  # means nothing here, but must not be nonsense
        self.complete = True
        return end + 4


def _framing_of(headers: list[tuple[bytes, bytes]], persistent: bool) -> tuple[int | None, bool, bool]:
    """The body's announced length, whether it comes in chunks, and whether the connection closes after it."""
    length = None
    chunked = close = False
    for name, value in headers:
        if name == b"content-length":
            if length is not None:
                raise FramingError("it has two Content-Length headers")
            if not value.isdigit() or len(value) > _MAX_DIGITS:
                raise FramingError("its Content-Length is not a number of bytes")
            length = int(value)
        elif name == b"transfer-encoding":
            if chunked or not persistent or value.lower() != b"chunked":
                raise FramingError("its Transfer-Encoding is not 'chunked', once, in HTTP/1.1")
            chunked = True
        elif name == b"connection" and _CLOSE.search(value):
            close = True
    if chunked and length is not None:
        raise FramingError("it has a Transfer-Encoding and a Content-Length")
    return length, chunked, close


def _parsed_fields(data: bytes, start: int, end: int) -> list[tuple[bytes, bytes]]:
    fields = _FIELD.findall(data, start, end)
    # Each match is one whole line, from the end of the line before: if both counts are equal, all lines match.
    if len(fields) != data.count(b"\r\n", start, end):
        raise FramingError("a header is not 'name: value'")
    return [(name.lower(), value.rstrip(b" \t")) for name, value in fields]


def header_value(headers: RawHeaders, wanted: bytes) -> bytes | None:
    """The first value of a header, whose name is given in lower case."""
    for name, value in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            return value
    return None
