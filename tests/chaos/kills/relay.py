"""`KillRelay`: stands between gateway and ComfyUI, and reports each request before and after ComfyUI has it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from tests.chaos.kills.points import Point, Points

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class KillRelay:
    """Open it with ``async with``. While ComfyUI is dead, nothing listens at `port` either."""

    def __init__(self, port: int, comfyui_port: int, points: Points) -> None:
        self._port = port
        self._comfyui_port = comfyui_port
        self._points = points
        self._listener: socket.socket | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self.listen()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.cut()
        while self._open:
            await asyncio.wait(self._open)
            self.cut()

    def listen(self) -> None:
        """Accepts connections, because ComfyUI runs again."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def cut(self) -> None:
        """Aborts all connections and accepts no more, because ComfyUI is dead."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, listener: socket.socket) -> None:
        # A closed asyncio server would leave the connection open that it accepts at that moment.
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            task = asyncio.create_task(self._serve(connection), name="kill relay's connection")
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._relay(reader, writer)
        finally:
            self._writers.discard(writer)
            await _end(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _connection(self._comfyui_port) as (from_comfyui, to_comfyui):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b" ", 2)
                what = f"{method.decode()} {_ID.sub('{id}', target.decode().partition('?')[0])}"
                message = head + await _body(reader, head)
                number = await self._points.before(what)
                if self._points.at == Point(what, number, "before"):
                    return
                to_comfyui.write(message)
                if target.startswith(b"/ws"):
                    await _both_ways((reader, to_comfyui), (from_comfyui, writer))
                    return
                answer = await from_comfyui.readuntil(b"\r\n\r\n")
                if method != b"HEAD":
                    answer += await _body(from_comfyui, answer)
                await self._points.after(what, number)
                writer.write(answer)
                await writer.drain()


@asynccontextmanager
async def _connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        await _end(writer)


async def _end(writer: asyncio.StreamWriter) -> None:
    """Ends the connection as a killed process does."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The raw body that follows a head."""
    if (length := _LENGTH.search(head)) is not None:
        return await reader.readexactly(int(length[1]))
    body = b""
    if _CHUNKED.search(head) is not None:
        while True:
            size = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(size, 16) + 2)
            body += size + chunk
            if size == b"0\r\n":
                break
    return body


async def _both_ways(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Relays in both directions until either side ends."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.create_task(pump(*way)) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
