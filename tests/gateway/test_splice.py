"""The kernel moves long bodies from ComfyUI's socket to the client's."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from yarl import URL

from comfyui.engine import Engine
from comfyui.exceptions import AnswerTimeoutError, CutShortError
from comfyui.transport.connection import Answer
from comfyui.transport.http1 import Http1Client
from comfyui.transport.splice import Splice
from tests.support.relaying import OK, Exchange, eventually, fetch, raw_client, raw_server, relayed
from tests.support.running import RunningGateway, running_gateway

pytestmark = pytest.mark.skipif(not hasattr(os, "splice"), reason="splice(2) is Linux's")

_HEADERS = [(b"X-Forwarded-Proto", b"http")]
_BODY = os.urandom(3_000_000)


def _start(length: int = len(_BODY)) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length


async def _send_whole(exchange: Exchange) -> None:
    await exchange.send(_start())
    await exchange.send(_BODY)


def _descriptors() -> int:
    """Counts the open descriptors, except the one to /dev/null that uvloop keeps after the first server."""
    return sum(1 for one in Path("/proc/self/fd").iterdir() if one.is_symlink() and one.readlink() != Path(os.devnull))


class Target:
    """A socket to move to, whose other end is read by a task."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        for end in (self._near, self._far):
            end.setblocking(False)
        self.received = bytearray()
        self._reading = asyncio.create_task(self._read())

    @property
    def fileno(self) -> int:
        return self._near.fileno()

    async def close(self) -> None:
        self._near.shutdown(socket.SHUT_WR)
        await self._reading
        self._near.close()
        self._far.close()

    async def _read(self) -> None:
        while data := await asyncio.get_running_loop().sock_recv(self._far, 65536):
            self.received += data


@asynccontextmanager
async def target() -> AsyncIterator[Target]:
    open_one = Target()
    try:
        yield open_one
    finally:
        await open_one.close()


@asynccontextmanager
async def http(url: str) -> AsyncIterator[Http1Client]:
    client = Http1Client(URL(url))
    try:
        yield client
    finally:
        await client.close()


async def moved(answer: Answer, to: Target, silence_s: float = 5.0) -> bytes:
    """Reads the answer to its end: returns its bytes, and moves its splices to `to`."""
    start = b""
    while piece := await answer.read_or_splice(silence_s):
        if isinstance(piece, Splice):
            await piece.move_to(to.fileno)
        else:
            start += piece
    return start


async def test_a_long_body_is_spliced_and_the_connection_reused() -> None:
    before = _descriptors()
    async with raw_server(_send_whole) as server, http(server.url) as client:
        for _ in range(3):
            async with target() as to:
                answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
                start = await moved(answer, to)
                assert answer.at_end()
                answer.close()
            assert len(to.received) > 1_000_000
            assert start + to.received == _BODY
        assert server.connections == 1
    await eventually(lambda: _descriptors() == before)


async def test_a_short_body_is_read_without_a_splice() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(_start(900_000) + bytes(900_000))

    async with raw_server(answering) as server, http(server.url) as client, target() as to:
        assert await moved(await client.request("GET", "/file", _HEADERS, timeout_s=30), to) == bytes(900_000)
        assert not to.received


async def test_a_body_that_ends_early_raises_cut_short() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(_start() + _BODY[:-1])
        exchange.writer.close()

    async with raw_server(answering) as server, http(server.url) as client, target() as to:
        answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
        with pytest.raises(CutShortError):
            await moved(answer, to)
        with pytest.raises(CutShortError):
            await answer.read_or_splice()
        answer.close()


async def test_silence_during_a_body_ends_the_answer_and_its_connection() -> None:
    gone = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        await exchange.send(_start() + _BODY[:1_500_000])
        await exchange.until_gone()
        gone.set()

    async with raw_server(answering) as server, http(server.url) as client, target() as to:
        answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
        with pytest.raises(AnswerTimeoutError):
            await moved(answer, to, silence_s=0.1)
        async with asyncio.timeout(30):
            await gone.wait()
        answer.close()


async def test_bodies_beyond_the_limit_of_splices_are_read() -> None:
    before = _descriptors()
    async with raw_server(_send_whole) as server, http(server.url) as client:
        answers = []
        kinds = []
        for _ in range(34):
            answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
            answers.append(answer)
            while isinstance(piece := await answer.read_or_splice(5), bytes) and not answer.at_end():
                pass
            kinds.append(type(piece))
        assert kinds == [Splice] * 32 + [bytes] * 2
        for answer in answers:
            answer.close()
        answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
        async with target() as to:
            start = await moved(answer, to)
        answer.close()
        assert to.received
        assert start + to.received == _BODY
    await eventually(lambda: _descriptors() == before)


async def test_a_closed_target_raises_broken_pipe() -> None:
    async with raw_server(_send_whole) as server, http(server.url) as client:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.close()
        answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
        while isinstance(piece := await answer.read_or_splice(5), bytes):
            pass
        with pytest.raises(OSError, match="Broken pipe"):
            await piece.move_to(near.fileno())
        answer.close()
        near.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
async def test_the_body_is_read_if_the_system_refuses_a_splice(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_arguments: int, **_options: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "splice", refusing)
    async with raw_server(_send_whole) as server, http(server.url) as client:
        for _ in range(2):
            async with target() as to:
                answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
                assert await moved(answer, to) == _BODY
                answer.close()
        assert server.connections == 1


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, most))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, most))
        with suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(1))
        yield


async def test_an_open_splice_needs_no_further_descriptor() -> None:
    async with raw_server(_send_whole) as server, http(server.url) as client, target() as to:
        answer = await client.request("GET", "/file", _HEADERS, timeout_s=30)
        start = b""
        while isinstance(piece := await answer.read_or_splice(5), bytes):
            start += piece
        with no_descriptor_left():
            await piece.move_to(to.fileno)
        rest = await moved(answer, to)
        answer.close()
    assert not rest
    assert start + to.received == _BODY


# Through the gateway


def sample(gateway: RunningGateway, name: str, **labels: str) -> float | None:
    return gateway.handler.metrics.registry.get_sample_value(f"comfyui_gateway_{name}_total", labels)


async def test_a_relayed_file_arrives_in_full_and_the_connection_stays_open() -> None:
    async def answering(exchange: Exchange) -> None:
        await (exchange.send(OK) if "/small" in exchange.line else _send_whole(exchange))

    async with relayed(answering) as (_, gateway), raw_client(gateway.url) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET /view HTTP/1.1\r\nHost: g\r\n\r\nGET /small HTTP/1.1\r\nHost: g\r\n\r\n")
            assert b"content-length: 3000000" in (await reader.readuntil(b"\r\n\r\n")).lower()
            assert await reader.readexactly(len(_BODY)) == _BODY
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"ok"
        assert sample(gateway, "relayed_bytes", direction="to_client") == 2 * len(_BODY) + 4


async def test_a_relayed_file_that_ends_early_closes_the_clients_connection() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(_start() + _BODY[:2_000_000])
        exchange.writer.close()

    async with relayed(answering) as (_, gateway), raw_client(gateway.url) as (reader, writer):
        writer.write(b"GET /view HTTP/1.1\r\nHost: g\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read(-1) == _BODY[:2_000_000]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_disconnects_leaves_no_descriptors_and_no_error(
    reads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gone = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        await exchange.send(_start(1_000_000_000))
        try:
            while True:
                await exchange.send(_BODY)
        finally:
            gone.set()

    async with relayed(answering) as (_, gateway):
        await fetch(gateway, "/health/live")
        before = _descriptors()
        async with raw_client(gateway.url) as (reader, writer):
            writer.write(b"GET /view HTTP/1.1\r\nHost: g\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(5_000_000 if reads else 1)
        async with asyncio.timeout(30):
            await gone.wait()
        await eventually(lambda: _descriptors() <= before)
    assert not [line for line in caplog.messages if "without completing" in line]


async def test_a_client_that_does_not_read_is_cut_off_without_a_crash() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(_start(1_000_000_000))
        for _ in range(333):
            await exchange.send(_BODY)

    with capture_logs() as lines:
        async with (
            relayed(answering, client_idle_seconds=0.2) as (_, gateway),
            raw_client(gateway.url) as (reader, writer),
        ):
            writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport
            writer.write(b"GET /view HTTP/1.1\r\nHost: g\r\n\r\n")
            await eventually(lambda: sample(gateway, "rejected_requests", reason="slow_client") == 1)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(1_000_000_000)
    assert "relay.crashed" not in [line["event"] for line in lines]


async def test_a_pause_of_comfyui_does_not_count_as_a_slow_client() -> None:
    go_on = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        await exchange.send(_start() + _BODY[:1_500_000])
        await go_on.wait()
        await exchange.send(_BODY[1_500_000:])

    async with relayed(answering, client_idle_seconds=0.1) as (_, gateway), raw_client(gateway.url) as (reader, writer):
        writer.write(b"GET /view HTTP/1.1\r\nHost: g\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        start = await reader.readexactly(1_500_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.readexactly(1)
        go_on.set()
        assert start + await reader.readexactly(1_500_000) == _BODY


async def test_a_raw_answer_is_the_file_and_its_size_is_logged(engine: Engine) -> None:
    inputs = {"count": 1, "size": 5_000_000, "extension": "mp4", "output_key": "images", "filename_prefix": "long"}
    body = {"prompt": {"1": {"class_type": "SimulatedOutput", "inputs": inputs}}}
    async with running_gateway(engine.url) as gateway:
        with capture_logs() as lines:
            raw = await fetch(gateway, "/prompt_sync", "POST", json=body, headers={"Accept": "video/*"})
        name = raw.headers["Content-Disposition"].split('"')[1]
        assert raw.body == (await fetch(gateway, f"/view?filename={name}")).body
    (size,) = (line["bytes"] for line in lines if line["event"] == "request")
    assert len(raw.body) == size == 5_000_000
