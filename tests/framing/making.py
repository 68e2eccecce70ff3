"""What hypothesis makes: requests, valid and invalid answers, and the segments in which they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import h11r
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

Pairs = list[tuple[bytes, bytes]]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_STATUSES = (200, 200, 200, 201, 204, 206, 302, 304, 400, 404, 413, 500, 503, 599)
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Id: poison\r\n\r\nPOISON"
_SMUGGLED = b"GET /internal/logs/raw HTTP/1.1\r\nHost: x\r\n\r\n"

_names = st.sampled_from([b"X-A", b"x-a", b"X-Content-Length", b"X!#$%&'*+-.^_`|~9", b"Date", b"Content-Type", b"Vary"])
_values = st.one_of(
    st.sampled_from(
        [b"", b"a", b"\xff\xfe", b"a \t b", b"chunked", b"0", b'"\\"', b"Content-Length: 5", b'a, b;c="d"', b"~"]
    ),
    st.binary(max_size=8).map(lambda value: bytes(byte for byte in value if byte > 32 and byte != 127)),
)
header_lists = st.lists(st.tuples(_names, _values), max_size=4)
bodies = st.one_of(
    st.binary(max_size=100),
    st.sampled_from([b"", POISON, _SMUGGLED, b"0\r\n\r\n", b"\r\n\r\n", POISON * 3, b"x" * 70_000, b"\r\n" * 9_000]),
)
targets = st.sampled_from(
    ["", "?", "?a=b", "/a%2Fb", "/%2e%2e/x", "//y", "/a;b=c?d=%00&e", "/~!$&'()*+,=:@?/?x{}|\\^`<>\""]
)


@st.composite
def segments(draw: DrawFn, data: bytes) -> list[bytes]:
    """The same bytes, cut at up to five points."""
    if not data:
        return []
    points = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=5))})
    return [data[start:end] for start, end in pairwise(points)]


@dataclass(frozen=True)
class Made:
    """An answer in bytes."""

    data: bytes
    valid: bool
    ends_with_connection: bool = False


@st.composite
def valid_answers(draw: DrawFn, method: str, identity: bytes, body: bytes | None = None) -> Made:
    """As h11r writes it, with more that the grammar allows. ``X-Id`` and the body's first bytes are the identity."""
    status = draw(st.sampled_from(_STATUSES))
    body = identity + (draw(bodies) if body is None else body)
    headers = [*draw(header_lists), (b"X-Id", identity)]
    framing = draw(st.sampled_from(["length", "length", "chunked", "end"]))
    bodiless = method == "HEAD" or status in {204, 304}
    judge = h11r.Connection(h11r.Role.SERVER)
    judge.receive_data(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    judge.next_event()
    judge.next_event()
    data = b"".join(
        judge.send_informational_response(code, draw(header_lists))
        for code in draw(st.lists(st.sampled_from([100, 102, 103]), max_size=2))
    )
    if framing == "length" and status != 204:
        headers.append((draw(st.sampled_from([b"Content-Length", b"content-length"])), str(len(body)).encode()))
    elif framing == "chunked" and status != 204:
        headers.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
    else:
        headers.append((b"Connection", draw(st.sampled_from([b"close", b"x, Close"]))))
    data += judge.send_response(status, headers, reason=draw(st.sampled_from([b"", b"OK", b"\xff  \t!"])))
    if framing == "end":
        data = data.replace(b"Transfer-Encoding: chunked\r\n", b"")  # which h11r has added
    if bodiless:
        return Made(data, True)
    if framing == "chunked":
        return Made(data + draw(_chunked(body)), True)
    return Made(data + body, True, framing != "length")


@st.composite
def _chunked(draw: DrawFn, body: bytes) -> bytes:
    """The body in chunks of any size, with extensions and trailers."""
    parts = []
    for piece in draw(segments(body)):
        size = f"{len(piece):{draw(st.sampled_from(['x', 'X', '06x']))}}".encode()
        extension = draw(st.sampled_from([b"", b"", b"", b";a", b";a=b;c", b';a="b \\"c"', b"; a"]))
        parts.append(size + extension + b"\r\n" + piece + b"\r\n")
    trailers = b"".join(b"%b: %b\r\n" % pair for pair in draw(st.lists(st.tuples(_names, _values), max_size=2)))
    return b"".join(parts) + draw(st.sampled_from([b"0", b"000", b"0;x"])) + b"\r\n" + trailers + b"\r\n"


_EVIL = (
    b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x0b", b"\x7f", b"\x80", b"0", b"1", b"-", b"+",
    b"0x",
)  # fmt: skip
_EVIL_LINES = (
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Content-Length: -1\r\n", b"Content-Length: +5\r\n",
    b"Content-Length: 5, 5\r\n", b"Content-Length: 18446744073709551621\r\n", b"Content-Length : 4\r\n",
    b"Content-Length:\r\n", b"Content-Length: 0x5\r\n", b"Content-Length: 1_0\r\n", b"Content-Length: 5\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n", b"Transfer-Encoding:\r\n chunked\r\n", b"X: a\r\n b\r\n", b"X: a\rb\r\n",
    b"X: a\nb: c\r\n", b"X\r\n", b": x\r\n", b" X: y\r\n", b"X\0: y\r\n", b"X: \0\r\n", b"Connection: upgrade\r\n",
    b"Connection: close\r\n", b"Connection: content-length\r\n", b"Connection: keep-alive\r\n", b"Upgrade: h2c\r\n",
)  # fmt: skip
_CHUNK_LINE = re.compile(rb"(?<=\n)[0-9A-Fa-f]+[^\r\n]{0,20}\r\n")
_EVIL_SIZES = (
    b" ", b"\t", b";", b" ;a", b"\t;a", b";a b", b";a=", b";=b", b";a;;b", b";\x80", b';a="', b';a="\\"', b";a\0", b"x",
    b"_", b"g", b"-1", b";a\n", b"\n", b";a=b=c", b"; a", b";\t a",
)  # fmt: skip
_EVIL_STARTS = (
    b"HTTP/1.1 000 x", b"HTTP/1.1 099 x", b"HTTP/1.1 101 x", b"HTTP/1.1 199 x", b"HTTP/1.1 600 x", b"HTTP/1.1 999 x",
    b"HTTP/1.1 70000 x", b"HTTP/1.1 20 x", b"HTTP/1.1 200", b"HTTP/1.1  200 x", b"HTTP/1.1 +20 x", b"HTTP/1.0 200 OK",
    b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1.2 200 OK", b"http/1.1 200 OK", b"HTTP/11 200 OK", b"ICY 200 OK",
    b"\r\nHTTP/1.1 200 OK", b" HTTP/1.1 200 OK", b"", b"HTTP/1.1 204 x", b"HTTP/1.1 304 x", b"HTTP/1.1\t200\tOK",
    b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\rK",
)  # fmt: skip


@st.composite
def broken_answers(draw: DrawFn, method: str, identity: bytes, body: bytes | None = None) -> Made:
    """A valid answer, changed in one to three places; the result may still be valid."""
    data = draw(valid_answers(method, identity, body)).data
    for _ in range(draw(st.integers(1, 3))):
        change = draw(
            st.sampled_from(["insert", "insert", "delete", "line", "line", "start", "chunk", "chunk", "behind", "cut"])
        )
        # The decisive bytes are the first few hundred and the last few.
        at = draw(st.one_of(st.integers(0, min(len(data), 400)), st.integers(max(0, len(data) - 30), len(data))))
        if change == "insert":
            data = data[:at] + draw(st.sampled_from(_EVIL)) + data[at:]
        elif change == "delete":
            data = data[:at] + data[at + draw(st.integers(1, 3)) :]
        elif change == "line":
            head, line, rest = data.partition(b"\r\n")
            data = head + line + draw(st.sampled_from(_EVIL_LINES)) + rest
        elif change == "start":
            _, line, rest = data.partition(b"\r\n")
            data = draw(st.sampled_from(_EVIL_STARTS)) + line + rest
        elif change == "chunk":
            lines = list(_CHUNK_LINE.finditer(data))
            if lines:
                end = draw(st.sampled_from(lines)).end() - 2
                data = data[:end] + draw(st.sampled_from(_EVIL_SIZES)) + data[end:]
        elif change == "behind":
            data += draw(st.sampled_from([POISON, POISON * 2, b"\r\n", b"x", b"0\r\n\r\n"]))
        else:
            data = data[:at]
    return Made(data, False)


def broken_once() -> Iterator[bytes]:
    """Plain answers, each with one corruption at each place where it could matter."""
    starts = (b"HTTP/1.1 200 OK", b"HTTP/1.1 304 x", b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK", b"HTTP/1.0 200 OK")
    bodies = (
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
        b"\r\nhello",
    )
    for start in starts:
        for body in bodies:
            plain = start + b"\r\nX-A: b\r\n" + body
            yield plain
            for other in _EVIL_STARTS:
                yield other + plain[len(start) :]
            for line in re.finditer(rb"\r\n(?=[A-Z])", plain):
                yield from (plain[: line.end()] + evil + plain[line.end() :] for evil in _EVIL_LINES)
            for line in _CHUNK_LINE.finditer(plain):
                yield from (plain[: line.end() - 2] + evil + plain[line.end() - 2 :] for evil in _EVIL_SIZES)
            for at in range(len(plain) + 1):
                yield from (plain[:at] + evil + plain[at:] for evil in _EVIL)
                yield plain[:at] + plain[at + 1 :]
                yield plain[:at]


def answers(method: str, identity: bytes, body: bytes | None = None) -> SearchStrategy[Made]:
    return st.one_of(valid_answers(method, identity, body), broken_answers(method, identity, body))
