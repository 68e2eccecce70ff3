"""Limits for a connection before its caller is known: the bytes and fields of a head, and the seconds that it takes."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from benchmarks.processes import Server
from comfyui.engine import Engine
from tests.support.processes import gateway_process
from tests.support.relaying import OK, Exchange, raw_client, relayed
from tests.support.running import RunningGateway, head_limits, running_gateway

_LIVE = b"GET /health/live HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (_LIVE + b"X: " + b"a" * 5_000 + b"\r\n\r\n", "larger than 4 KB"),
        (b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", "larger than 4 KB"),
        (_LIVE + b"X: 1\r\n" * 20 + b"\r\n", "20 header fields"),
    ],
    ids=["long field", "long target", "many fields"],
)
async def test_a_head_that_is_too_large_is_refused_and_the_limit_named(
    guarded_heads: RunningGateway, sent: bytes, named: str
) -> None:
    async with raw_client(guarded_heads.url) as (reader, writer):
        writer.write(sent)
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"type":"head_too_large"' in answer
    assert named.encode() in answer


@pytest.mark.parametrize("start", [b"X: ", b""], ids=["one field", "many fields"])
async def test_an_endless_head_is_refused_while_it_arrives(guarded_heads: RunningGateway, start: bytes) -> None:
    """The gateway does not wait for the end: a parser would keep the whole head, and copy it again and again."""
    sent = 0
    async with raw_client(guarded_heads.url) as (reader, writer):
        writer.write(_LIVE + start)
        answering = asyncio.create_task(reader.read())
        while not answering.done() and sent < 100_000_000:
            writer.write(b"a" * 65_536 if start else b"X: aaaaaaaa\r\n" * 5_000)
            sent += 65_536
            try:
                await writer.drain()
            except ConnectionError:
                break
        assert (await answering).startswith(b"HTTP/1.1 431 ")
    assert sent < 50_000_000


async def test_endless_trailers_are_refused_while_they_arrive(gateway: RunningGateway) -> None:
    async with raw_client(gateway.url) as (reader, writer):
        writer.write(b"POST /prompt_sync HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ")
        await writer.drain()
        reading = asyncio.create_task(reader.read())
        for _ in range(400):
            if reading.done():
                break
            writer.write(b"a" * 65_536)
            try:
                await writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await reading


@pytest.mark.parametrize("sent", [b"GET /", _LIVE, _LIVE + b"X: aaa"])
async def test_an_unfinished_head_gets_408_after_its_time(guarded_heads: RunningGateway, sent: bytes) -> None:
    async with raw_client(guarded_heads.url) as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(30):
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"within 0.3 s" in answer


async def test_bytes_that_arrive_one_by_one_do_not_extend_the_time_of_a_head(guarded_heads: RunningGateway) -> None:
    async with raw_client(guarded_heads.url) as (reader, writer):
        writer.write(_LIVE + b"X: ")
        reading = asyncio.create_task(reader.read())
        async with asyncio.timeout(30):
            while not reading.done():
                writer.write(b"a")
                await asyncio.wait([reading], timeout=0.05)
        assert reading.result().startswith(b"HTTP/1.1 408 ")


async def test_a_connection_that_sends_nothing_is_closed(guarded_heads: RunningGateway) -> None:
    async with raw_client(guarded_heads.url) as (reader, _), asyncio.timeout(30):
        assert await reader.read() == b""


async def test_each_head_has_its_own_time_limit_and_an_idle_connection_has_none(guarded_heads: RunningGateway) -> None:
    async with raw_client(guarded_heads.url) as (reader, writer):
        for _ in range(3):
            writer.write(_LIVE + b"\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.4)  # longer than `HeadLimits.seconds`
        writer.write(_LIVE)
        async with asyncio.timeout(30):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_arrives_with_the_next_head_does_not_count_as_head(gateway: RunningGateway) -> None:
    body = b"[" + b" " * 200_000 + b"]"
    post = b"POST /convert HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with raw_client(gateway.url) as (reader, writer):
        writer.write(post + _LIVE)
        await asyncio.sleep(0.1)
        writer.write(b"Connection: close\r\n\r\n")
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"431" not in answers.split(b"\r\n")[0]
    assert b"HTTP/1.1 200 OK" in answers


async def test_refused_heads_are_counted(guarded_heads: RunningGateway) -> None:
    rejected = guarded_heads.app.running.metrics.rejected
    async with raw_client(guarded_heads.url) as (reader, writer):
        writer.write(_LIVE + b"X: " + b"a" * 5_000 + b"\r\n\r\n")
        await reader.read()
    async with raw_client(guarded_heads.url) as (reader, _):
        await reader.read()
    assert rejected.labels("head_too_large")._value.get() == 1
    assert rejected.labels("slow_client")._value.get() == 1


async def test_pipelined_requests_wait_as_unparsed_bytes(engine: Engine) -> None:
    """When all were parsed at once, a caller without a key could take hundreds of MB and block the event loop."""
    request = b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n"
    async with gateway_process(engine.url) as gateway:
        running = await gateway.logged("Uvicorn running on")
        process = Server(gateway.process.pid, 0)
        before_kb = process.peak_rss_kb()
        async with raw_client(running["event"].split(" ")[3]) as (reader, writer):
            writer.write(request * 50_000)
            for _ in range(200):
                await reader.readuntil(b"HTTP/1.1 200 OK\r\n")
            grown_kb = process.peak_rss_kb() - before_kb
    assert grown_kb < 30_000


async def test_pipelined_requests_are_answered_in_order(gateway: RunningGateway) -> None:
    """They are more than the gateway reads at once, and one of them has a body of 20,000 chunks."""
    request = (
        b"POST /validate HTTP/1.1\r\nHost: h\r\nX-Request-ID: r%d\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'%bd\r\n{"prompt":{}}\r\n0\r\n\r\n'
    )
    requests = [request % (number, b"1\r\n \r\n" * 20_000 if number == 2 else b"") for number in range(300)]
    answered = []
    async with raw_client(gateway.url) as (reader, writer), asyncio.timeout(60):
        writer.write(b"".join(requests))
        for _ in requests:
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert answer.startswith(b"http/1.1 200 ")
            answered.append(answer.split(b"x-request-id: ")[1].split(b"\r\n")[0])
            await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
    assert answered == [b"r%d" % number for number in range(300)]


async def test_a_pipelined_head_is_not_late_while_earlier_answers_are_pending() -> None:
    async def slow(exchange: Exchange) -> None:
        if exchange.line.startswith("GET /slow "):
            await asyncio.sleep(2)
        await exchange.send(OK)

    async with (
        relayed(slow, changed=head_limits(seconds=1.5)) as (_, gateway),
        raw_client(gateway.url) as (reader, writer),
    ):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\nGET /c HTTP/1.1\r\n")
        async with asyncio.timeout(30):
            await reader.readuntil(b"HTTP/1.1 200 OK\r\n")
            writer.write(b"Host: h\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).count(b"HTTP/1.1 200 OK\r\n") == 2


async def test_a_connection_whose_body_never_ends_is_closed_after_the_answer(engine: Engine) -> None:
    """Each byte that arrived once made the keep-alive timer forget the connection."""
    async with running_gateway(engine.url, changed=head_limits(seconds=0.3)) as gateway:
        async with raw_client(gateway.url) as (reader, writer):
            writer.write(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 405 ")
            end = asyncio.create_task(reader.read())
            async with asyncio.timeout(30):
                while not end.done():
                    writer.write(b"x")
                    await asyncio.wait([end], timeout=0.02)
            with contextlib.suppress(ConnectionResetError):
                await end
        async with raw_client(gateway.url) as (reader, writer):
            writer.write(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
            await reader.readuntil(b"}")
            writer.write(b"12345GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"HTTP/1.1 200 " in await reader.read()
