"""ComfyUI servers whose answers a test writes byte by byte, and a client that sends raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from multidict import CIMultiDictProxy
from yarl import URL

from tests.support.running import RunningGateway, running_gateway

Answering = Callable[["Exchange"], Awaitable[None]]

_QUEUE = b'{"exec_info": {"queue_remaining": 0}}'
_PROBED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(_QUEUE), _QUEUE)
_NO_WEBSOCKET = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Exchange:
    """One request as it came, with methods to answer it."""

    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    """How many requests came before it on its connection."""

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", maxsplit=1)[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        """The headers by lower-case name; the values of a repeated header are joined."""
        found: dict[str, str] = {}
        for line in self.head.decode("latin-1").split("\r\n")[1:-2]:
            name, _, value = line.partition(": ")
            name = name.lower()
            found[name] = f"{found[name]}, {value}" if name in found else value
        return found

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def body(self) -> bytes:
        return await self.reader.readexactly(int(self.headers.get("content-length", 0)))

    async def until_gone(self) -> None:
        """Waits until the other side has ended the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def cut(self) -> None:
        self.writer.transport.abort()


@dataclass
class RawServer:
    """`seen` has the relayed requests, without the gateway's own probes."""

    url: str
    seen: list[Exchange] = field(default_factory=list)
    connections: int = 0


@asynccontextmanager
async def raw_server(answering: Answering) -> AsyncIterator[RawServer]:
    """Serves until the block ends; `answering` gets every request except the gateway's own."""
    tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        counted = False
        number = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"x-forwarded-proto: " not in head.lower() and head.startswith(b"GET "):
                    writer.write(_PROBED if head.startswith(b"GET /prompt ") else _NO_WEBSOCKET)
                    continue
                if not counted:
                    server.connections += 1
                    counted = True
                exchange = Exchange(head, reader, writer, number)
                server.seen.append(exchange)
                number += 1
                await answering(exchange)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server = RawServer(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer_ok(exchange: Exchange) -> None:
    await exchange.send(OK)


@asynccontextmanager
async def relayed(answering: Answering, **settings: Any) -> AsyncIterator[tuple[RawServer, RunningGateway]]:
    """A gateway in front of a `raw_server`."""
    async with raw_server(answering) as comfyui, running_gateway(comfyui.url, ready=False, **settings) as gateway:
        yield comfyui, gateway


@dataclass(frozen=True)
class Fetched:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def error_type(self) -> str:
        """The type in a standard error body."""
        body = json.loads(self.body)
        assert set(body) == {"error", "type", "detail", "prompt_id", "node_errors", "timestamp", "request_id"}
        return str(body["type"])


async def fetch(gateway: RunningGateway, path: str | URL, method: str = "GET", **options: Any) -> Fetched:
    """Makes one request and reads its whole answer."""
    async with gateway.http.request(method, path, allow_redirects=False, **options) as response:
        return Fetched(response.status, response.headers, await response.read())


@asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def raw_request(url: str, request: bytes) -> bytes:
    """Sends raw bytes and returns the raw answer; the connection is closed after it."""
    async with raw_client(url) as (reader, writer):
        writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        return await reader.read()


async def settled(figure: Callable[[], int], *, quiet_s: float = 0.25) -> int:
    """Waits until the figure does not change any longer and returns it."""
    while True:
        before = figure()
        await asyncio.sleep(quiet_s)
        if figure() == before:
            return before


async def eventually(condition: Callable[[], bool], *, within_s: float = 25.0) -> None:
    """Waits until the condition is true; `until` in `tests.support.running` does so for one that is awaited."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
