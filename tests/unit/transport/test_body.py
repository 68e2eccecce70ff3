"""An open body is read chunk by chunk or sent to a client, with and without splice, and resumed after a break."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest
from yarl import URL

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIServerError
from comfyui.retrying import Backoff
from comfyui.transport.body import IteratedBody, OpenBody, ResumedBody
from comfyui.transport.relay import RelayTransport
from comfyui.transport.splice import Splice
from tests.support.relaying import Exchange, raw_server

_HEADERS = [(b"X-Forwarded-Proto", b"http")]
_FILE = os.urandom(4_000_000)

with_and_without_splice = pytest.mark.parametrize(
    "splices",
    [pytest.param(True, marks=pytest.mark.skipif(not hasattr(os, "splice"), reason="splice(2) is Linux's")), False],
    ids=["splice", "no splice"],
)


class Client:
    """Receives a body through a socket, as a client of the gateway does."""

    def __init__(self, *, splices: bool) -> None:
        self.splices = splices
        self.spliced = 0
        self.writes: list[tuple[int, bool]] = []
        """The size of each write, and whether it was the last."""
        self._near, self._far = socket.socketpair()
        for end in (self._near, self._far):
            end.setblocking(False)
        self._reading = asyncio.create_task(self._read())

    async def write(self, data: bytes, *, last: bool) -> None:
        self.writes.append((len(data), last))
        await asyncio.get_running_loop().sock_sendall(self._near, data)

    async def splice(self, splice: Splice) -> None:
        await splice.move_to(self._near.fileno())
        self.spliced += splice.moved

    async def received(self) -> bytes:
        """Closes the client, and returns all bytes that it received."""
        self._near.close()
        received = await self._reading
        self._far.close()
        return received

    async def _read(self) -> bytes:
        received = bytearray()
        while data := await asyncio.get_running_loop().sock_recv(self._far, 65536):
            received += data
        return bytes(received)


async def file_server(exchange: Exchange) -> None:
    """Answers with `_FILE` or its rest, and stops at the byte in the path: ``/2000000`` stops after 2,000,000 bytes."""
    stop = int(exchange.line.split()[1].removeprefix("/"))
    start = int(exchange.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(_FILE) - start))
    await exchange.send(_FILE[start:stop] if start < stop else _FILE[start:])
    if start < stop < len(_FILE):
        exchange.writer.close()


@asynccontextmanager
async def transport() -> AsyncIterator[RelayTransport]:
    async with raw_server(file_server) as server:
        relay = RelayTransport(URL(server.url), "the server")
        yield relay
        await relay.close()


async def opened(relay: RelayTransport, stop: int, start: int = 0) -> OpenBody:
    headers = [*_HEADERS, *([(b"Range", b"bytes=%d-" % start)] if start else [])]
    return (await relay.request("GET", f"/{stop}", headers, None, timeout_s=30)).body


async def chunks(*given: bytes) -> AsyncIterator[bytes]:
    for chunk in given:
        yield chunk


@with_and_without_splice
async def test_a_client_gets_every_byte_once_and_one_last_write(splices: bool) -> None:
    client = Client(splices=splices)
    async with transport() as relay:
        with closing(await opened(relay, len(_FILE))) as body:
            assert body.length == len(_FILE)
            await body.send_to(client)
            assert body.at_end()
    assert await client.received() == _FILE
    assert (client.spliced > 1_000_000) is splices
    assert [last for _, last in client.writes] == [*[False] * (len(client.writes) - 1), True]


@with_and_without_splice
async def test_a_begun_body_is_still_sent_from_its_first_byte(splices: bool) -> None:
    client = Client(splices=splices)
    async with transport() as relay:
        with closing(await opened(relay, len(_FILE))) as body:
            await body.begin()
            await body.begin()
            await body.send_to(client)
    assert await client.received() == _FILE


@with_and_without_splice
async def test_a_body_that_is_cut_off_raises_an_error_after_its_bytes_were_sent(splices: bool) -> None:
    client = Client(splices=splices)
    async with transport() as relay:
        with closing(await opened(relay, 2_500_000)) as body, pytest.raises(ComfyUIServerError, match="cut"):
            await body.send_to(client)
    assert await client.received() == _FILE[:2_500_000]
    assert not any(last for _, last in client.writes)


@with_and_without_splice
async def test_a_body_is_resumed_from_the_byte_where_it_broke(splices: bool) -> None:
    client = Client(splices=splices)
    starts = []
    async with transport() as relay:

        async def broken(start: int) -> OpenBody:
            starts.append(start)
            stop = [1_300_000, 2_900_000, len(_FILE)][len(starts) - 1]
            return BreakingBody(await opened(relay, stop, start))

        with closing(ResumedBody(await broken(0), broken, Backoff(0, 0), retries=2, what="GET /view")) as body:
            await body.send_to(client)
    assert await client.received() == _FILE
    assert starts == [0, 1_300_000, 2_900_000]


async def test_a_body_that_breaks_after_the_last_try_raises_the_error() -> None:
    async with transport() as relay:

        async def broken(start: int) -> OpenBody:
            return BreakingBody(await opened(relay, start + 1000, start))

        with (
            closing(ResumedBody(await broken(0), broken, Backoff(0, 0), retries=2, what="GET /view")) as body,
            pytest.raises(ComfyUIConnectionError, match="GET /view: the file's body was cut off"),
        ):
            [chunk async for chunk in body]


async def test_an_empty_chunk_is_not_the_end() -> None:
    assert [chunk async for chunk in IteratedBody(chunks(b"", b"a", b"", b"b", b""))] == [b"a", b"b"]
    client = Client(splices=False)
    await IteratedBody(chunks(b"a", b"", b"b")).send_to(client)
    assert client.writes == [(1, False), (1, False), (0, True)]
    assert await client.received() == b"ab"


async def test_an_empty_body_is_one_empty_last_write() -> None:
    client = Client(splices=True)
    body = IteratedBody(chunks())
    await body.begin()
    await body.send_to(client)
    assert client.writes == [(0, True)]
    assert await client.received() == b""


class BreakingBody(OpenBody):
    """A body whose breaks raise the error that `ComfyUIClient` raises."""

    def __init__(self, body: OpenBody) -> None:
        super().__init__(body.length)
        self._body = body

    async def read(self) -> bytes:
        try:
            return await self._body.read()
        except ComfyUIServerError as error:
            raise ComfyUIConnectionError(str(error), sent=True) from error

    async def read_or_splice(self) -> bytes | Splice:
        try:
            return await self._body.read_or_splice()
        except ComfyUIServerError as error:
            raise ComfyUIConnectionError(str(error), sent=True) from error

    def at_end(self) -> bool:
        return self._body.at_end()

    def close(self) -> None:
        self._body.close()
