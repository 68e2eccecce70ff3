"""One connection to a server, and the answers that arrive on it.

A connection serves one caller at a time. It returns to its pool only if its answer is complete, no byte came after the
answer, and the whole request has left; in every other case it is closed. The rules of sending and reading are in
`comfyui.transport.framing`, the pool is in `comfyui.transport.http1`.
"""

from __future__ import annotations

import asyncio
import math
import select
from typing import Protocol

from comfyui.exceptions import (
    AnswerTimeoutError,
    CutShortError,
    FramingError,
    InvalidAnswerError,
    NoAnswerError,
)
from comfyui.transport.body import OpenBody
from comfyui.transport.framing import LAST_CHUNK, AnswerReader, chunk
from comfyui.transport.splice import Splice

_HIGH_WATER = 256 * 1024
# The cost of a chunk besides its bytes: thousands of tiny ones take as long to read as a megabyte.
_CHUNK_WEIGHT = 32
# From this size on, the rest of a body is worth the descriptors and the calls of a splice.
_WORTH_SPLICING = 1024 * 1024


class Answer:
    """An answer whose headers have arrived; `read` its body, or `close` it."""

    __slots__ = (
        "_buffered", "_chunks", "_connection", "_error", "_splice", "_waiter", "complete", "headers", "status",
    )  # fmt: skip

    def __init__(self, connection: Connection, status: int, headers: list[tuple[bytes, bytes]]) -> None:
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
        """Whether the whole body has been read."""
        return self.complete and not self._chunks

    async def read(self, silence_s: float = 0.0) -> bytes:
        """The bytes since the last call, at least one; nothing at the end. 0 waits without a limit.

        Raises:
            CutShortError: the body is not whole.
            AnswerTimeoutError: no bytes came for `silence_s`; the connection is cut.
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
        """The same as `read`. A long rest comes as a `Splice`, which must move the present bytes before the next
        call.
        """
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
            # An open one would keep the server's side up, and take one of the few connections while the rest is
            # fetched.
            splice.close()
            raise self._error
        return splice

    def close(self) -> None:
        """Ends the use of it: a connection whose answer has not been read to its end cannot be used again."""
        if self._splice is not None:
            self._splice.close()
        if not self.complete:
            self._connection.abort()

    def feed(self, data: bytes, chunks: int = 0) -> None:
        """`chunks`: the number of chunks in which the bytes came."""
        self._chunks.append(data)
        self._buffered += len(data) + chunks * _CHUNK_WEIGHT
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
        if not self.complete:  # otherwise the connection may be another's
            self.end(AnswerTimeoutError())
            self._connection.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool(Protocol):
    """The owner of the connections."""

    def give_back(self, connection: Connection) -> None:
        """The connection can be used again."""

    def lost(self, connection: Connection) -> None:
        """The connection has ended."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    __slots__ = (
        "_answer", "_drained", "_due", "_head", "_loop", "_poll", "_pool", "_reader", "_reading_paused", "_timer",
        "_transport", "idle_since", "in_use", "received", "uploading",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._reader: AnswerReader | None = None
        """Set only while a request is under way."""
        self._head: asyncio.Future[Answer] | None = None
        self._answer: Answer | None = None
        self._reading_paused = False
        self._drained: asyncio.Future[None] | None = None
        """Set while the transport takes no more."""
        self._loop = asyncio.get_running_loop()
        self._due = math.inf
        """The loop's time at which an answer must have begun."""
        self._timer: asyncio.TimerHandle | None = None
        self.received = False
        self.idle_since = 0.0
        self.in_use = False
        self.uploading: asyncio.Task[None] | None = None

    # Calls of the client

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def silent(self) -> bool:
        """Whether nothing waits to be read: neither the end of the connection nor unexpected bytes."""
        return self._poll is None or not self._poll.poll(0)

    def send(self, method: str, data: bytes) -> asyncio.Future[Answer]:
        """Begins a request; the future's result is the answer with its headers."""
        assert self._transport is not None  # noqa: S101 - create_connection returns after connection_made
        self._head = self._loop.create_future()
        self._reader = AnswerReader(method)
        self.received = False
        self._transport.write(data)
        return self._head

    async def upload(self, body: OpenBody, timeout_s: float) -> None:
        """Sends the request's body, as fast as the server takes it. An error of `body` fails the request."""
        left = body.length
        try:
            async for data in body:
                self.answer_within(timeout_s)
                if not self.alive or self._transport is None:
                    return
                if left is None:
                    self._transport.writelines(chunk(data))
                else:
                    left -= len(data)
                    if left < 0:
                        break
                    self._transport.write(data)
                if self._drained is not None:
                    await self._drained
            if left:
                raise ValueError("the body has another length than was announced")
            if left is None and self._transport is not None:
                self._transport.write(LAST_CHUNK)
        except Exception as error:
            self._fail(error)
            self.abort()
        finally:
            self.uploading = None

    def answer_within(self, seconds: float) -> None:
        """Sets the time limit, counted from now; 0 is no limit."""
        self._due = self._loop.time() + seconds if seconds else math.inf
        if self._timer is None or self._timer.when() > self._due:
            self._set_timer()

    def _set_timer(self) -> None:
        """A timer that is already set stays: most answers come long before it, and setting one takes 2 µs for each."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._due == math.inf else self._loop.call_at(self._due, self._look_at_time)

    def _look_at_time(self) -> None:
        self._timer = None
        if self._head is None or self._head.done():
            return
        if self._loop.time() < self._due:
            self._set_timer()
            return
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

    def abandon(self, head: asyncio.Future[Answer]) -> None:
        """Cuts the connection, unless that request is over and the connection may be another's."""
        if self._head is head:
            self.abort()

    def abort(self) -> None:
        if self.uploading is not None:
            self.uploading.cancel()
        if self._transport is not None:
            self._transport.abort()

    # Calls of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP or TLS transport
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def eof_received(self) -> None:
        """The server sends no more; the transport closes itself after this."""
        if self._reader is not None:
            self._reader.end()
            if self._reader.complete:
                self._complete()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._poll = None  # the descriptor's number may soon belong to another
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._pool.lost(self)
        self._fail(NoAnswerError())
        if self._answer is not None:
            self._answer.end(CutShortError())

    def data_received(self, data: bytes) -> None:
        self.received = True
        reader = self._reader
        if reader is None:
            self.abort()  # no request is under way
            return
        try:
            body = reader.feed(data)
        except FramingError as error:
            self._refuse(str(error))
            return
        if self._answer is None:
            if not reader.started:
                return
            self._begin(reader)
        if body and self._answer is not None:
            self._answer.feed(body, reader.chunks)
        if reader.complete:
            self._complete()

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # The answer, from its head to its end

    def _begin(self, reader: AnswerReader) -> None:
        self._answer = Answer(self, reader.status, reader.headers)
        if self._head is not None and not self._head.done():
            self._head.set_result(self._answer)

    def splice(self) -> Splice | None:
        """The rest of the answer's body; the bytes that have arrived must have been read."""
        reader = self._reader
        if reader is None or reader.rest < _WORTH_SPLICING or not self.alive or self._transport is None:
            return None
        if self._transport.get_extra_info("sslcontext") is not None:
            return None
        splice = Splice.of(self._transport.get_extra_info("socket").fileno(), reader.rest, self._spliced)
        if splice is not None:
            self.pause_reading()
        return splice

    def _spliced(self, count: int) -> None:
        if self._reader is not None:
            self._reader.taken(count)
            if self._reader.complete:
                self._complete()

    def _complete(self) -> None:
        """The answer is complete: the only place from which a connection returns to the pool."""
        answer, reader, transport = self._answer, self._reader, self._transport
        self._answer = self._reader = self._head = None
        if answer is not None:
            answer.end()
        if reader is None or transport is None:
            return
        # An answer may come before the request has been sent: the rest of it would become the start of the next
        # request.
        sent = self.uploading is None and not transport.get_write_buffer_size()
        if sent and reader.reusable and self.alive:
            self.resume_reading()
            self._pool.give_back(self)
        else:
            self.abort()

    def _refuse(self, reason: str) -> None:
        self._fail(InvalidAnswerError(reason))
        if self._answer is not None:
            self._answer.end(CutShortError(reason))
        self.abort()

    def _fail(self, error: Exception) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
