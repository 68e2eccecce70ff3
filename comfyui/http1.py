"""A small HTTP/1.1 client for what comes often: bytes in, bytes out, nothing looked into and nothing added.

Why not aiohttp: it parses, merges and prints anew what a relay has to leave alone, and at the rate of a web page's
small requests it took longer than all the rest of the gateway (2,900 requests a second with it, 8,000 without). The
three requests of a prompt cost a third with it (`comfyui.transport`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import httptools
from yarl import URL

from comfyui.splice import Splice

CONNECT_S = 10.0
_IDLE_S = 30.0
_HIGH_WATER = 256 * 1024
# What is left of a body is worth the descriptors and the calls of a splice.
_WORTH_SPLICING = 1024 * 1024
# Sending these twice does what sending them once does.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})

Body = bytes | AsyncIterator[bytes]
RawHeaders = Sequence[tuple[bytes, bytes]]


class Http1Error(Exception):
    """Base of what this client raises."""


class ConnectError(Http1Error):
    """No connection could be made: nothing was sent."""


class NoAnswerError(Http1Error):
    """The connection ended, or did not speak HTTP, before the answer's headers had come."""


class AnswerTimeoutError(NoAnswerError):
    """The answer did not begin in time."""


class CutShortError(Http1Error):
    """The connection ended within the answer's body."""


class Answer:
    """An answer whose headers have come; `read` its body, or `close` it."""

    __slots__ = (
        "_buffered", "_chunks", "_connection", "_error", "_splice", "_waiter", "complete", "headers", "status",
    )  # fmt: skip

    def __init__(self, connection: _Connection, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.headers = headers
        self.complete = False
        self._connection = connection
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._splice: Splice | None = None

    def at_end(self) -> bool:
        """The whole body has been read."""
        return self.complete and not self._chunks

    async def read(self, silence_s: float = 0.0) -> bytes:
        """What has come since the last call, at least one byte; nothing at the end. 0 waits any time.

        Raises:
            CutShortError: the body is not whole.
            AnswerTimeoutError: nothing came for so long; the connection is cut.
        """
        while not self._chunks:
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._news(silence_s)
        chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if not self.complete:
            self._connection.resume_reading()
        return chunk

    async def read_or_splice(self, silence_s: float = 0.0) -> bytes | Splice:
        """As `read`. A long rest comes as a `Splice`: what has come is to be moved with that before the next call."""
        if self._splice is None and not (self._chunks or self.complete or self._error):
            self._splice = self._connection.splice()
        splice = self._splice
        if splice is None or self.complete:
            return await self.read(silence_s)
        if splice.refused:
            splice.close()
            self._connection.resume_reading()
            return await self.read(silence_s)
        if splice.cut:
            self.end(CutShortError())
            self._connection.abort()
        if self._error is None:
            loop = asyncio.get_running_loop()
            loop.add_reader(splice.source, self._wake)
            try:
                await self._news(silence_s)
            finally:
                loop.remove_reader(splice.source)
        if self._error is not None:
            # Open here, it would keep the connection up at the server, and be one of the few while the rest is fetched.
            splice.close()
            raise self._error
        return splice

    def close(self) -> None:
        """Done with it: a connection whose answer has not been read to its end cannot be used again."""
        if self._splice is not None:
            self._splice.close()
        if not self.complete:
            self._connection.abort()

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > _HIGH_WATER:
            self._connection.pause_reading()
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        if error is None:
            self.complete = True
        else:
            self._error = self._error or error
        self._wake()

    async def _news(self, silence_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(silence_s, self._silent) if silence_s else None
        try:
            await self._waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _silent(self) -> None:
        self.end(AnswerTimeoutError())
        self._connection.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection; one request at a time. Methods named ``on_…`` are the parser's callbacks."""

    __slots__ = (
        "_answer", "_bodiless", "_drained", "_fed", "_head", "_headers", "_left", "_parser", "_reading_paused",
        "_release", "_timer", "_transport", "idle_since", "in_use", "received", "uploading",
    )  # fmt: skip

    def __init__(self, release: Callable[[_Connection], None]) -> None:
        self._release = release
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._head: asyncio.Future[Answer] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._answer: Answer | None = None
        self._fed: int | None = 0
        """Bytes of the body that went through the parser; None where only that can find the body's end."""
        self._left = 0
        """Of a body whose length is known: how much of it need not go through the parser, which would copy it."""
        self._bodiless = False
        self._reading_paused = False
        self._drained: asyncio.Future[None] | None = None
        """While the transport takes no more."""
        self._timer: asyncio.TimerHandle | None = None
        self.received = False
        self.idle_since = 0.0
        self.in_use = False
        self.uploading: asyncio.Task[None] | None = None

    # For the client

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, method: str, head: bytes) -> asyncio.Future[Answer]:
        """Begin a request; the answer's headers are the future's result."""
        assert self._transport is not None  # noqa: S101 - create_connection returns after connection_made
        self._head = asyncio.get_running_loop().create_future()
        self._bodiless = method == "HEAD"
        self.received = False
        self._transport.write(head)
        return self._head

    async def upload(self, body: AsyncIterator[bytes], timeout_s: float, *, chunked: bool) -> None:
        """The request's body, as fast as the server takes it. An error of `body` is the request's."""
        try:
            async for chunk in body:
                self.answer_within(timeout_s)
                if not self.alive or self._transport is None:
                    return
                if chunked:
                    self._transport.writelines((b"%x\r\n" % len(chunk), chunk, b"\r\n"))
                else:
                    self._transport.write(chunk)
                if self._drained is not None:
                    await self._drained
            if chunked and self._transport is not None:
                self._transport.write(b"0\r\n\r\n")
        except Exception as error:
            self._fail(error)
            self.abort()
        finally:
            self.uploading = None

    def answer_within(self, seconds: float) -> None:
        """From now; 0 is any time."""
        if self._timer is not None:
            self._timer.cancel()
        if seconds and self._head is not None and not self._head.done():
            self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        self._fail(AnswerTimeoutError())
        self.abort()

    def resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def abort(self) -> None:
        if self.uploading is not None:
            self.uploading.cancel()
        if self._transport is not None:
            self._transport.abort()

    # For the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP or TLS transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self._release(self)
        self._fail(NoAnswerError())
        answer = self._answer
        if answer is not None and not answer.complete:
            # Without a length, the end of the connection is the end of the body.
            answer.end(None if error is None and _ends_with_connection(answer.headers) else CutShortError())

    def data_received(self, data: bytes) -> None:
        self.received = True
        if self._left:
            self._take(data)
            return
        if self._head is None:
            self.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(NoAnswerError())
            self.abort()
            return
        if self._answer is not None and self._fed is not None and not self._bodiless:
            length = _length_of(self._answer.headers)
            if length is None:
                self._fed = None
            else:
                self._left = length - self._fed

    def _take(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or len(data) > self._left:
            self.abort()  # more than was announced
            return
        answer.feed(data)
        self._taken(len(data))

    def splice(self) -> Splice | None:
        """What is left of the answer's body; what has come of it must have been read."""
        if self._left < _WORTH_SPLICING or not self.alive or self._transport is None:
            return None
        if self._transport.get_extra_info("sslcontext") is not None:
            return None
        splice = Splice.of(self._transport.get_extra_info("socket").fileno(), self._left, self._taken)
        if splice is not None:
            self.pause_reading()
        return splice

    def _taken(self, count: int) -> None:
        self._left -= count
        if not self._left:
            may_go_on = self._parser.should_keep_alive()
            self._parser = httptools.HttpResponseParser(self)  # the old one still waits for this body
            self._complete(may_go_on)

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # For the parser

    def on_message_begin(self) -> None:
        self._headers = []
        self._fed = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # an interim answer; the real one follows
        if self._timer is not None:
            self._timer.cancel()
        self._answer = Answer(self, status, self._headers)
        if self._head is not None and not self._head.done():
            self._head.set_result(self._answer)
        if self._bodiless:
            # The parser cannot be told that this answer has no body: it is not used again.
            self._answer.complete = True
            self.abort()

    def on_body(self, data: bytes) -> None:
        if self._answer is not None and not self._bodiless:
            self._answer.feed(data)
            if self._fed is not None:
                self._fed += len(data)

    def on_message_complete(self) -> None:
        self._complete(self._parser.should_keep_alive())

    def _complete(self, may_go_on: bool) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        answer.end()
        self._head = None
        if self.uploading is not None or not may_go_on:
            self.abort()
        else:
            self.resume_reading()
            self._release(self)

    def _fail(self, error: Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)


def header_value(headers: RawHeaders, wanted: bytes) -> bytes | None:
    """The first of that name, which is given in lower case."""
    for name, value in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            return value
    return None


def _length_of(headers: RawHeaders) -> int | None:
    """Of the body; None where the parser has to find its end."""
    length = None
    for name, value in headers:
        lower = name.lower()
        if lower == b"transfer-encoding":
            return None
        if lower == b"content-length" and value.isdigit():
            length = int(value)
    return length


def _ends_with_connection(headers: RawHeaders) -> bool:
    return not any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in headers)


class Http1Client:
    """Pooled connections to one server. `close` it.

    Args:
        limit: how many may be in use at once, further requests wait for one; 0 is any number.
    """

    def __init__(self, base_url: URL, *, limit: int = 0) -> None:
        self._host = base_url.raw_host or ""
        self._port = base_url.port or 80
        self._tls = base_url.scheme == "https"
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: deque[_Connection] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._open: set[_Connection] = set()
        self._closed = False

    async def close(self) -> None:
        """Cut every connection, those in use, too."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # the transports end in the next turn of the loop

    async def request(
        self,
        method: str,
        head: bytes,
        body: Body | None = None,
        *,
        timeout_s: float = 0.0,
        chunked: bool = False,
        last_word_s: float = 0.0,
    ) -> Answer:
        """Send a request and wait for its answer's headers: `timeout_s` without progress at most; 0 is any time.

        Args:
            head: request line and headers, with the empty line after them.
            chunked: `body` is an iterator of unknown length.
            last_word_s: when the call is cancelled, how long what was sent may still take to be answered.

        Raises:
            ConnectError, NoAnswerError, AnswerTimeoutError: no answer.
            Exception: whatever `body` raises.
        """
        whole = head + body if isinstance(body, bytes) else head
        stream = None if body is None or isinstance(body, bytes) else body
        exchange = functools.partial(self._exchange, method, whole, stream, timeout_s, chunked, last_word_s)
        await self._take_turn(timeout_s)
        connection = self._pooled()
        if connection is not None:
            try:
                return await exchange(connection)
            except AnswerTimeoutError:
                raise
            except NoAnswerError:
                # The server may have closed it just when we took it. What cannot be sent again is not.
                if connection.received or stream is not None or method not in _IDEMPOTENT:
                    raise
            await self._take_turn(timeout_s)
        return await exchange(await self._connect(timeout_s))

    async def fetch(
        self, method: str, head: bytes, body: bytes | None = None, *, timeout_s: float, last_word_s: float = 0.0
    ) -> tuple[Answer, bytes]:
        """An answer with its whole body, as `request`, within `timeout_s` in all."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        answer = await self.request(method, head, body, timeout_s=timeout_s, last_word_s=last_word_s)
        content = []
        try:
            while chunk := await answer.read(max(0.001, deadline - asyncio.get_running_loop().time())):
                content.append(chunk)
        finally:
            answer.close()
        return answer, b"".join(content)

    async def _exchange(
        self,
        method: str,
        head: bytes,
        stream: AsyncIterator[bytes] | None,
        timeout_s: float,
        chunked: bool,
        last_word_s: float,
        connection: _Connection,
    ) -> Answer:
        answer = connection.send(method, head)
        connection.answer_within(timeout_s)
        if stream is not None:
            connection.uploading = asyncio.create_task(connection.upload(stream, timeout_s, chunked=chunked))
        try:
            return await (asyncio.shield(answer) if last_word_s else answer)
        except asyncio.CancelledError:
            if last_word_s:
                await asyncio.wait([answer], timeout=last_word_s)
            connection.abort()
            raise

    # Connections

    async def _take_turn(self, timeout_s: float) -> None:
        """Until one more may be in use."""
        if not self._limit or self._taken < self._limit:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s or None):
                await turn  # whoever gives it leaves the count as it is
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_turn()  # it came too late
            if isinstance(error, TimeoutError):
                raise ConnectError(f"all {self._limit} connections are in use") from error
            raise

    def _give_turn(self) -> None:
        """One fewer is in use."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1

    def _pooled(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and now - connection.idle_since < _IDLE_S:
                connection.in_use = True
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_s: float) -> _Connection:
        try:
            if self._closed:
                raise ConnectionAbortedError("the client is closed")
            async with asyncio.timeout(min(CONNECT_S, timeout_s or CONNECT_S)):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._released), self._host, self._port, ssl=self._tls or None
                )
        except BaseException as error:
            self._give_turn()
            if isinstance(error, OSError | TimeoutError):
                raise ConnectError(str(error)) from error
            raise
        connection.in_use = True
        self._open.add(connection)
        return connection

    def _released(self, connection: _Connection) -> None:
        """It can be used again, or it has ended."""
        if connection.in_use:
            connection.in_use = False
            self._give_turn()
        if connection.alive and not self._closed:
            loop = asyncio.get_running_loop()
            connection.idle_since = loop.time()
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = loop.call_later(_IDLE_S, self._close_idle)
            return
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def _close_idle(self) -> None:
        """Connections that nobody has used for long: after a rush there may be many."""
        loop = asyncio.get_running_loop()
        while self._idle and loop.time() - self._idle[0].idle_since >= _IDLE_S:
            self._idle.popleft().abort()
        self._sweep = loop.call_later(_IDLE_S, self._close_idle) if self._idle else None
