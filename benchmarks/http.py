"""The load client's HTTP: one connection, one request at a time, with almost no work. It shares the machine's cores
with the servers that it measures, so each of its microseconds is taken from them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httptools


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `size` counts the body's bytes, even if the body was not kept."""

    status: int
    body: bytes
    size: int


class Connection(asyncio.Protocol):
    """A connection to one loopback port. Methods named ``on_…`` are the parser's callbacks."""

    def __init__(self, port: int) -> None:
        self._host = f"127.0.0.1:{port}"
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._keep = True

    @classmethod
    async def open(cls, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(port), "127.0.0.1", port)
        return connection

    async def request(
        self, method: str, path: str, body: bytes | None = None, *, headers: str = "", keep: bool = True
    ) -> Reply:
        """Makes one request. `headers` are lines that end in CRLF; without `keep`, the body is only counted.

        Raises:
            ConnectionError: the connection ended before the reply was complete.
        """
        if self._transport is None:
            raise ConnectionResetError("the connection is closed")
        self._reply = asyncio.get_running_loop().create_future()
        self._keep = keep
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{headers}"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._transport.write(f"{head}\r\n".encode() + (body or b""))
        return await self._reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error or ConnectionResetError("closed before the reply was complete"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._chunks = []
        self._size = 0

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._keep:
            self._chunks.append(data)

    def on_message_complete(self) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(self._parser.get_status_code(), b"".join(self._chunks), self._size))
