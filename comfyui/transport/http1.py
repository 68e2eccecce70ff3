"""A small HTTP/1.1 client for frequent requests: bytes in, bytes out, nothing parsed and nothing added.

aiohttp parses, merges and rewrites headers that a relay must leave alone. For the many small requests of a web page it
took longer than the rest of the gateway (2,900 requests a second with it, 8,000 without). With it, the three requests
of a prompt took three times as long (`comfyui.transport.drivers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from yarl import URL

from comfyui.exceptions import AnswerTimeoutError, AnswerTooLongError, ConnectError, InvalidAnswerError, NoAnswerError
from comfyui.transport.body import IteratedBody, OpenBody, RequestBody
from comfyui.transport.connection import Answer, Connection
from comfyui.transport.framing import RawHeaders, request_head

CONNECT_S = 10.0
_IDLE_S = 30.0
# Methods that can be sent twice with the same effect.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


# A larger body is sent in pieces: copying it whole would block everything else.
_SENT_AT_ONCE = 1 << 20


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _SENT_AT_ONCE):
        yield body[start : start + _SENT_AT_ONCE]


class Http1Client:
    """Pooled connections to one server. `close` it.

    Args:
        limit: how many may be in use at once; further requests wait for one. 0 is any number.
        tls: for an https address; None for the certificates that the system trusts.
    """

    def __init__(self, base_url: URL, *, limit: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._host = base_url.raw_host or ""
        self._port = base_url.port or 80
        # One context for all connections: making one reads every authority that the system trusts.
        self._tls = (tls or ssl.create_default_context()) if base_url.scheme == "https" else None
        self._authority = base_url.raw_authority
        self._prefix = base_url.raw_path.rstrip("/")
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: deque[Connection] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._open: set[Connection] = set()
        self._closed = False

    async def close(self) -> None:
        """Cuts every connection, including those in use."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # the transports end in the next turn of the loop

    async def request(
        self,
        method: str,
        target: str,
        headers: RawHeaders,
        body: RequestBody | None = None,
        *,
        timeout_s: float = 0.0,
        last_word_s: float = 0.0,
    ) -> Answer:
        """Sends a request and waits for its answer's headers: at most `timeout_s` without progress; 0 is no limit.

        Args:
            target: path and query, below the base URL's path.
            headers: all but ``Host`` and the framing, which follow from the base URL and from `body`.
            last_word_s: when the call is cancelled, how long to wait for an answer to what was already sent.

        Raises:
            InvalidRequestError: nothing was sent.
            ConnectError, NoAnswerError, InvalidAnswerError, AnswerTimeoutError: no answer.
            Exception: whatever `body` raises.
        """
        if isinstance(body, bytes) and len(body) > _SENT_AT_ONCE:
            body = IteratedBody(_in_pieces(body), len(body))
        data = request_head(method, f"{self._prefix}{target}", self._authority, headers, body)
        upload = body if isinstance(body, OpenBody) else None
        if isinstance(body, bytes):
            data += body
        await self._take_turn(timeout_s)
        connection = self._pooled()
        if connection is not None:
            try:
                return await self._exchange(connection, method, data, upload, timeout_s, last_word_s)
            except (AnswerTimeoutError, InvalidAnswerError):
                raise
            except NoAnswerError:
                # The server may have closed the connection just when we took it. A request that cannot be sent again is
                # not retried.
                if connection.received or upload is not None or method not in _IDEMPOTENT:
                    raise
            await self._take_turn(timeout_s)
        return await self._exchange(await self._connect(timeout_s), method, data, upload, timeout_s, last_word_s)

    async def fetch(
        self,
        method: str,
        target: str,
        headers: RawHeaders,
        body: bytes | None = None,
        *,
        timeout_s: float,
        max_bytes: int,
        last_word_s: float = 0.0,
    ) -> tuple[Answer, bytes]:
        """An answer with its whole body, as from `request`, within `timeout_s` in all.

        Raises:
            AnswerTooLongError: the body has, or announces, more than `max_bytes`.
        """
        deadline = time.monotonic() + timeout_s
        answer = await self.request(method, target, headers, body, timeout_s=timeout_s, last_word_s=last_word_s)
        content = []
        size = 0
        try:
            if not answer.complete and _announced(answer) > max_bytes:
                raise AnswerTooLongError
            while chunk := await answer.read(max(0.001, deadline - time.monotonic())):
                content.append(chunk)
                size += len(chunk)
                if size > max_bytes:
                    raise AnswerTooLongError
        except BaseException:
            content.clear()  # the holder of the error keeps this frame
            raise
        finally:
            answer.close()
        return answer, b"".join(content)

    async def _exchange(
        self,
        connection: Connection,
        method: str,
        data: bytes,
        upload: OpenBody | None,
        timeout_s: float,
        last_word_s: float,
    ) -> Answer:
        answer = connection.send(method, data)
        connection.answer_within(timeout_s)
        if upload is not None:
            connection.uploading = asyncio.create_task(connection.upload(upload, timeout_s))
        try:
            return await (asyncio.shield(answer) if last_word_s else answer)
        except asyncio.CancelledError:
            if last_word_s:
                answer.add_done_callback(_heeded)
                await asyncio.wait([answer], timeout=last_word_s)
            connection.abandon(answer)
            raise

    # Connections

    async def _take_turn(self, timeout_s: float) -> None:
        """Waits until one more connection may be in use."""
        if not self._limit or self._taken < self._limit:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s or None):
                await turn  # the giver leaves the count as it is
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_turn()  # the turn came too late
            if isinstance(error, TimeoutError):
                raise ConnectError(f"all {self._limit} connections are in use") from error
            raise

    def _give_turn(self) -> None:
        """One connection fewer is in use."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1

    def _pooled(self) -> Connection | None:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and now - connection.idle_since < _IDLE_S and connection.silent:
                connection.in_use = True
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_s: float) -> Connection:
        try:
            if self._closed:
                raise ConnectionAbortedError("the client is closed")
            async with asyncio.timeout(min(CONNECT_S, timeout_s or CONNECT_S)):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except BaseException as error:
            self._give_turn()
            if isinstance(error, OSError | TimeoutError):
                raise ConnectError(str(error)) from error
            raise
        connection.in_use = True
        self._open.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """The connection can be used again."""
        if not connection.in_use:
            return
        connection.in_use = False
        self._give_turn()
        if self._closed:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_IDLE_S, self._close_idle)

    def lost(self, connection: Connection) -> None:
        """The connection has ended."""
        if connection.in_use:
            connection.in_use = False
            self._give_turn()
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def _close_idle(self) -> None:
        """Closes connections that were unused for long: after a rush there may be many."""
        loop = asyncio.get_running_loop()
        while self._idle and time.monotonic() - self._idle[0].idle_since >= _IDLE_S:
            self._idle.popleft().abort()
        self._sweep = loop.call_later(_IDLE_S, self._close_idle) if self._idle else None


def _announced(answer: Answer) -> int:
    """The length in the answer's head; 0 if there is none."""
    return next((int(value) for name, value in answer.headers if name.lower() == b"content-length"), 0)


def _heeded(answer: asyncio.Future[Answer]) -> None:
    """Marks the answer's error as seen, when no one waits for it any more."""
    if not answer.cancelled():
        answer.exception()
