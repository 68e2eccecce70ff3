"""The bytes of one caller never become the request or the answer of another.

This runs the short form of the differential suite (`tests.framing`), three attacks, and a test for each promise.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from yarl import URL

from comfyui.exceptions import CutShortError, FramingError, InvalidRequestError
from comfyui.transport.body import IteratedBody, OpenBody
from comfyui.transport.connection import Answer
from comfyui.transport.framing import AnswerReader, chunk, request_head
from comfyui.transport.http1 import Http1Client
from tests.framing import attacks, examples
from tests.framing.attacks import Effects
from tests.framing.reading import Tally
from tests.support.relaying import (
    OK,
    Exchange,
    answer_ok,
    eventually,
    fetch,
    raw_client,
    raw_request,
    raw_server,
    relayed,
)

_HEADERS = [(b"X-Forwarded-Proto", b"http")]


# Comparison with h11r and h11


@pytest.mark.parametrize(
    ("run", "examples_run"),
    [
        (lambda: examples.read_each(("GET",), share=5), 5_000),
        (lambda: examples.read_answers(250), 250),
        (lambda: examples.call_client(60), 60),
        (lambda: examples.call_gateway(25), 25),
        (lambda: examples.call_gateway(25, splice=False), 25),
    ],
    ids=["malformations", "reader", "client", "gateway", "gateway without splice"],
)
def test_h11r_and_h11_read_the_same_messages(run: Callable[[], Tally], examples_run: int) -> None:
    tally = run()
    assert tally.differences == []
    assert tally.examples >= examples_run
    assert tally.complete > examples_run / 4
    assert tally.refused > 0


def _reads_on(reader: AnswerReader) -> bool:
    return reader.complete


def _longer(method: str, target: str, host: str, headers: Any, body: Any) -> bytes:
    return request_head(method, target, host, headers, body).replace(b"Content-Length: ", b"Content-Length: 1")


def _in_one(data: bytes) -> tuple[bytes, ...]:
    return (b"%x\r\n" % (len(data) + 1), data, b"\r\n")


@pytest.mark.parametrize(
    ("where", "fault", "run"),
    [
        (
            "comfyui.transport.framing.AnswerReader.reusable",
            property(_reads_on),
            lambda seed: examples.call_client(60, seed),
        ),
        ("comfyui.transport.framing._CLOSE", re.compile(rb"never"), lambda seed: examples.call_client(60, seed)),
        ("comfyui.transport.http1.request_head", _longer, lambda seed: examples.call_client(20, seed)),
        ("comfyui.transport.connection.chunk", _in_one, lambda seed: examples.call_client(30, seed)),
        ("comfyui.transport.framing._MAX_DIGITS", 0, lambda seed: examples.read_answers(50, seed)),
        ("comfyui.transport.framing._NO_BODY", frozenset(), lambda seed: examples.read_answers(200, seed)),
    ],
    ids=["excess", "close", "length", "chunks", "too strict", "bodiless"],
)
def test_the_differential_suite_detects_an_injected_fault(
    where: str, fault: Any, run: Callable[[int], Tally], monkeypatch: Any
) -> None:
    monkeypatch.setattr(where, fault)
    monkeypatch.setattr("tests.framing.live.PATIENCE_S", 4.0)
    # One seed that detects the fault is enough.
    assert any(run(seed).differences for seed in range(20))


@pytest.mark.parametrize("attack", attacks.ATTACKS.values(), ids=list(attacks.ATTACKS))
async def test_a_request_smuggling_attack_has_no_effect(attack: Callable[[int], Any]) -> None:
    effects: Effects = await attack(12)
    assert effects.none, f"{effects}: {effects.foreign} {effects.failed}"


# Requests of a client

_REFUSED = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "identity, chunked": b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip": b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked after a tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "two different lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nab",
    "lengths in one line": b"Content-Length: 2, 2\r\n\r\nab",
    "length with a sign": b"Content-Length: +2\r\n\r\nab",
    "length of many zeros": b"Content-Length: " + b"0" * 5000 + b"2\r\n\r\nab",
    "length too long": b"Content-Length: 18446744073709551617\r\n\r\nab",
    "empty length": b"Content-Length:\r\n\r\nab",
    "space before the colon": b"Content-Length : 2\r\n\r\nab",
    "bare LF": b"X: a\nContent-Length: 2\r\n\r\nab",
    "bare CR": b"X: a\rContent-Length: 2\r\n\r\nab",
    "NUL": b"X: a\0b\r\n\r\n",
    "folded header": b"X: a\r\n b\r\n\r\n",
    "folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "two hosts": b"Host: b\r\n\r\n",
    "no name": b": b\r\n\r\n",
    "name in UTF-8": b"X\xc3\xa9: b\r\n\r\n",
}


@pytest.mark.parametrize("rest", _REFUSED.values(), ids=list(_REFUSED))
async def test_an_ambiguous_head_is_refused_before_it_reaches_comfyui(rest: bytes) -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        for method in (b"POST", b"GET"):
            answer = await raw_request(gateway.url, method + b" /t HTTP/1.1\r\nHost: a\r\n" + rest)
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer
            assert b"connection: close\r\n" in answer.lower()
            assert answer.count(b"HTTP/1.1 400") == 1
        assert comfyui.seen == []


@pytest.mark.parametrize(
    "line",
    [
        b"GET /t\r\n",
        b"GET /t HTTP/0.9\r\nHost: a\r\n",
        b"GET /t HTTP/2.0\r\nHost: a\r\n",
        b"GET /t HTTP/1.1\r\n",
        b"GET /t HTTP/1.1\r\nHost: a, b\r\n",
        b"GET /t HTTP/1.1\r\nHost: a/b\r\n",
        b"GET /t#x HTTP/1.1\r\nHost: a\r\n",
        b"GET http://b/t HTTP/1.1\r\nHost: a\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n",
        b"GET /t?\xc3\xa9 HTTP/1.1\r\nHost: a\r\n",
        b"POST /t HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
        b"CONNECT /t HTTP/1.1\r\nHost: a\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n",
    ],
)
async def test_an_ambiguous_request_line_is_refused(line: bytes) -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        async with raw_client(gateway.url) as (reader, writer):
            writer.write(line + b"\r\n")
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer
        assert b'"type":"bad_request"' in answer.replace(b": ", b":")
        assert comfyui.seen == []


async def test_an_absolute_target_is_accepted_if_its_host_equals_the_host_header() -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        assert b" 200 " in await raw_request(gateway.url, b"GET http://a/t?x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [seen.line for seen in comfyui.seen] == ["GET /t?x HTTP/1.1"]


@pytest.mark.parametrize("target", ["/t?", "/t?a?", "/t/%2e%2e//x;y?z=%00&{}|"])
async def test_a_target_is_relayed_unchanged(target: str) -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        await raw_request(gateway.url, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert comfyui.seen[0].line == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize(
    "name",
    [
        *("content-length", "Transfer-Encoding", "host", "x-forwarded-for", "authorization"),
        *("Comfy-User", "x-real-ip", "Forwarded"),
    ],
)
async def test_the_connection_header_cannot_remove_headers_that_comfyui_needs(name: str) -> None:
    async def answering(exchange: Exchange) -> None:
        assert await exchange.body() == b"hello"
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nConnection: content-length, x-a\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok"
        )

    async with relayed(answering) as (comfyui, gateway):
        headers = {"Connection": f"{name}, X-B", "X-B": "1", "Authorization": "Basic eDp5"}
        headers |= {"Comfy-User": "me", "X-Real-IP": "10.1.2.3", "Forwarded": "for=10.1.2.3"}
        for _ in range(2):
            got = await fetch(gateway, "/t", "POST", data=b"hello", headers=headers)
            assert (got.body, got.headers["Content-Length"]) == (b"ok", "2")
            assert "X-A" not in got.headers
        seen = comfyui.seen[-1].headers
        assert (seen["content-length"], seen["authorization"]) == ("5", "Basic eDp5")
        assert seen["x-forwarded-for"] == "127.0.0.1"
        assert (seen["comfy-user"], seen["x-real-ip"], seen["forwarded"]) == ("me", "10.1.2.3", "for=10.1.2.3")
        assert seen["host"] == comfyui.url.removeprefix("http://")
        assert "x-b" not in seen


@pytest.mark.parametrize("protocol", [b"foo", b"h2c", b"websocket"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_with_an_upgrade_is_relayed_without_the_upgrade(protocol: bytes, chunked: bool) -> None:
    bodies = []

    async def answering(exchange: Exchange) -> None:
        if exchange.headers.get("transfer-encoding"):
            chunks = (await exchange.reader.readuntil(b"0\r\n\r\n")).split(b"\r\n")
            bodies.append(b"".join(chunks[1::2]))
        else:
            bodies.append(await exchange.body())
        await exchange.send(OK)

    framing = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    sent = framing if chunked else b"Content-Length: 5\r\n\r\nhello"
    head = b"POST /t HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: %b\r\n" % protocol
    async with relayed(answering) as (comfyui, gateway), raw_client(gateway.url) as (reader, writer):
        # This sends it together with the next request, and then byte by byte.
        writer.write(head + sent + b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        for _ in range(2):
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
        for byte in head + sent + b"GET /next HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await reader.read()).count(b"\r\n\r\nok") == 2
    assert bodies == [b"hello", b""] * 2
    assert [seen.line.split(" ")[1] for seen in comfyui.seen] == ["/t", "/next"] * 2
    assert not any({"upgrade", "connection"} & set(seen.headers) for seen in comfyui.seen)


async def test_a_request_with_upgrade_and_close_ends_the_connection() -> None:
    async with relayed(answer_ok) as (comfyui, gateway), raw_client(gateway.url) as (reader, writer):
        head = b"GET /t HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n"
        writer.write(head + b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nok")
        assert len(comfyui.seen) == 1


async def test_a_websocket_handshake_is_a_get_without_bytes_behind_it() -> None:
    head = b" /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    async with relayed(answer_ok) as (comfyui, gateway):
        async with raw_client(gateway.url) as (reader, writer):
            writer.write(b"POST" + head + key + b"GET /next HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).count(b"HTTP/1.1 200 ") == 2
        assert [seen.line for seen in comfyui.seen] == ["POST /ws HTTP/1.1", "GET /next HTTP/1.1"]
        async with raw_client(gateway.url) as (reader, writer):
            writer.write(b"GET" + head + key + b"\x81\x00")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        assert len(comfyui.seen) == 2


async def test_trailers_do_not_become_headers() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.reader.readuntil(b"0\r\n\r\n")
        chunks = b"2\r\nok\r\n0\r\nX-Late: 1\r\nSet-Cookie: a=b\r\n\r\n"
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    async with relayed(answering) as (comfyui, gateway):
        body = b"5\r\nhello\r\n0\r\nX-Late: 1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
        answer = await raw_request(
            gateway.url, b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        )
        assert answer.endswith(b"2\r\nok\r\n0\r\n\r\n")
        assert b"x-late" not in answer.lower()
        assert b"set-cookie" not in answer.lower()
        assert "x-late" not in comfyui.seen[0].headers
        assert comfyui.seen[0].headers["x-forwarded-for"] == "127.0.0.1"


async def test_a_refusal_never_looks_like_the_answer_to_the_previous_request() -> None:
    go_on = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.send(OK)

    async with relayed(answering) as (comfyui, gateway), raw_client(gateway.url) as (reader, writer):
        writer.write(b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n")
        await eventually(lambda: len(comfyui.seen) == 1)
        writer.write(b"GET /next HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n")
        writer.write(b"GET /more HTTP/1.1\r\nHost: h\r\n\r\n")
        await asyncio.sleep(0.05)
        go_on.set()
        answer = await reader.read()
        assert answer.endswith(b"\r\n\r\nok")
        assert answer.count(b"HTTP/1.1") == 1
        assert len(comfyui.seen) == 1


async def test_a_body_with_broken_framing_never_reaches_comfyui_as_complete() -> None:
    bodies = []

    async def answering(exchange: Exchange) -> None:
        bodies.append(await exchange.reader.read())  # reads until the gateway cuts the connection
        await exchange.send(OK)

    async with relayed(answering) as (comfyui, gateway), raw_client(gateway.url) as (reader, writer):
        writer.write(b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await eventually(lambda: len(comfyui.seen) == 1)
        writer.write(b"0x2\r\nab\r\n0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        await eventually(lambda: bodies != [])
        assert b"0\r\n\r\n" not in bodies[0]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_client_of_http_1_0_gets_no_chunks(whole: bool) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        if whole:
            await exchange.send(b"2\r\nok\r\n0\r\n\r\n")
        else:
            exchange.cut()

    async with relayed(answering) as (_, gateway), raw_client(gateway.url) as (reader, writer):
        writer.write(b"GET /t HTTP/1.0\r\n\r\n")
        if not whole:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            return
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert body == b"hellook"
        assert b"connection: close" in head
        assert b"transfer-encoding" not in head


async def test_a_client_of_http_1_0_gets_a_content_length() -> None:
    async with relayed(answer_ok) as (_, gateway), raw_client(gateway.url) as (reader, writer):
        writer.write(b"GET /t HTTP/1.0\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert (body, b"content-length: 2" in head, b"connection: close" in head) == (b"ok", True, True)


# Answers of ComfyUI


@pytest.mark.parametrize(
    "line", [b"7;\xa5", b"7 ;a", b"7;", b"7;a=", b'7;a="b', b"7;a b", b"7 ", b"0x7", b"+7", b"", b"7\n"]
)
def test_a_chunk_size_line_outside_the_grammar_is_refused(line: bytes) -> None:
    reader = AnswerReader("GET")
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(FramingError):
        reader.feed(line + b"\r\nseven b\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 000 x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 600 x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nfirst",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nfirst",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nfirst",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 5\r\n\r\nfirst",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nfirst",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nfirst",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nfirst\r\n0\r\n\r\n",
        b"HTTP/1.1 103 x\r\nContent-Length: -1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: //a:99999999/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %b\r\n" % (b"x" * 1000) * 70 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
    ],
)
async def test_an_invalid_answer_gives_502_and_its_connection_is_closed(answer: bytes) -> None:
    gone = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        if "/next" in exchange.line:
            await exchange.send(OK)
            return
        await exchange.send(answer)
        if b"Location" not in answer:
            await exchange.until_gone()
        gone.set()

    async with relayed(answering) as (_, gateway):
        got = await fetch(gateway, "/t")
        assert (got.status, got.error_type) == (502, "server_error")
        await asyncio.wait_for(gone.wait(), 30)
        assert (await fetch(gateway, "/next")).body == b"ok"


async def test_a_location_header_becomes_a_valid_url() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(b'HTTP/1.1 302 x\r\nLocation: /a b\xc3\xa9?"<\r\nContent-Length: 0\r\n\r\n')

    async with relayed(answering) as (_, gateway):
        assert (await fetch(gateway, "/t")).headers["Location"] == "/a%20b%C3%A9?%22%3C"


# Connections of the HTTP client


async def _read(answer: Answer) -> bytes:
    content = b""
    while part := await answer.read(5):
        content += part
    return content


@pytest.mark.parametrize("behind", [OK, b"\r\n", b"x"])
async def test_a_connection_with_bytes_behind_its_answer_is_not_reused(behind: bytes, http1_client: Any) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(OK + behind)

    async with raw_server(answering) as server:
        client = http1_client(server.url)
        for count in range(1, 4):
            assert await _read(await client.request("GET", "/", _HEADERS, timeout_s=30)) == b"ok"
            assert server.connections == count


async def test_bytes_on_an_idle_connection_do_not_become_an_answer(http1_client: Any) -> None:
    first: list[Exchange] = []

    async def answering(exchange: Exchange) -> None:
        first.append(exchange)
        await exchange.send(OK)

    async with raw_server(answering) as server:
        client = http1_client(server.url)
        assert await _read(await client.request("GET", "/", _HEADERS, timeout_s=30)) == b"ok"
        # The bytes are in the kernel, unread by the event loop, when the next request takes the connection.
        sock = first[0].writer.get_extra_info("socket")
        os.write(sock.fileno(), b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
        assert await _read(await client.request("GET", "/", _HEADERS, timeout_s=30)) == b"ok"
        assert server.connections == 2


async def test_a_connection_with_an_unfinished_request_is_not_reused(http1_client: Any) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 413 x\r\nContent-Length: 2\r\n\r\nno" if exchange.line.startswith("POST") else OK
        )
        if exchange.line.startswith("POST"):
            await asyncio.Event().wait()  # never reads the body

    async with raw_server(answering) as server:
        client = http1_client(server.url)
        answer = await client.request("POST", "/", _HEADERS, bytes(50_000_000), timeout_s=30)
        assert (answer.status, await _read(answer)) == (413, b"no")
        assert await _read(await client.request("GET", "/", _HEADERS, timeout_s=30)) == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("length", [3, 9])
async def test_a_body_of_a_wrong_length_never_arrives_as_complete(length: int, http1_client: Any) -> None:
    came = []

    async def answering(exchange: Exchange) -> None:
        came.append(await exchange.reader.read())
        await exchange.send(OK)

    async def parts() -> AsyncIterator[bytes]:
        yield b"hel"
        yield b"lo"

    async with raw_server(answering) as server:
        with pytest.raises(ValueError, match="another length"):
            await http1_client(server.url).request("POST", "/", _HEADERS, IteratedBody(parts(), length), timeout_s=30)
        await eventually(lambda: came != [])
        assert len(came[0]) <= length


async def test_a_cancelled_caller_does_not_cut_the_connection_of_another(http1_client: Any) -> None:
    async with raw_server(answer_ok) as server:
        client = http1_client(server.url, limit=1)
        for turns in range(12):
            leaving = asyncio.create_task(client.request("GET", "/", _HEADERS, timeout_s=30))
            staying = asyncio.create_task(client.request("POST", "/", _HEADERS, b"", timeout_s=30))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            assert await _read(await staying) == b"ok"
            await asyncio.gather(leaving, return_exceptions=True)


async def test_a_body_without_a_length_is_complete_only_if_the_server_closed_it(http1_client: Any) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if "whole" in exchange.line:
            exchange.writer.close()
        else:
            await exchange.until_gone()

    async with raw_server(answering) as server:
        client = http1_client(server.url)
        assert await _read(await client.request("GET", "/whole", _HEADERS, timeout_s=30)) == b"hello"

        async def parts() -> AsyncIterator[bytes]:
            yield b"hel"
            await started.wait()
            raise RuntimeError("the body's source failed")

        started = asyncio.Event()
        answer = await client.request("POST", "/", _HEADERS, IteratedBody(parts(), 5), timeout_s=30)
        assert await answer.read(5) == b"hello"
        started.set()
        with pytest.raises(CutShortError):
            await answer.read(5)


async def test_a_head_request_keeps_its_connection_open(http1_client: Any) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" if "HEAD" in exchange.line else OK)

    async with raw_server(answering) as server:
        client = http1_client(server.url)
        for method, body in (("HEAD", b""), ("GET", b"ok"), ("HEAD", b"")):
            assert await _read(await client.request(method, "/", _HEADERS, timeout_s=30)) == body
        assert server.connections == 1


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/a b", []),
        ("/a\r\nX: y", []),
        ("/\xe9", []),
        ("", [(b"Content-Length", b"5")]),
        ("/", [(b"content-length", b"5")]),
        ("/", [(b"Transfer-Encoding", b"chunked")]),
        ("/", [(b"Host", b"x")]),
        ("/", [(b"Connection", b"close")]),
        ("/", [(b"Upgrade", b"x")]),
        ("/", [(b"X", b"a\r\nContent-Length: 5")]),
        ("/", [(b"X", b"a\0")]),
        ("/", [(b"X y", b"a")]),
        ("/", [(b"", b"a")]),
    ],
)
def test_an_invalid_request_is_not_written(target: str, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidRequestError):
        request_head("GET", target, "x", headers, None)


def test_the_framing_header_fits_the_body() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    def framing(method: str, body: bytes | OpenBody | None) -> bytes:
        return request_head(method, "/", "x", [(b"X-Content-Length", b"7")], body).split(b"\r\n", 3)[3]

    assert framing("GET", None) == b"\r\n"
    assert framing("GET", b"") == b"Content-Length: 0\r\n\r\n"
    assert framing("POST", None) == b"Content-Length: 0\r\n\r\n"
    assert framing("PUT", b"abc") == b"Content-Length: 3\r\n\r\n"
    assert framing("POST", IteratedBody(nothing(), 9)) == b"Content-Length: 9\r\n\r\n"
    assert framing("POST", IteratedBody(nothing(), None)) == b"Transfer-Encoding: chunked\r\n\r\n"
    assert b"".join(chunk(b"x" * 17)) == b"11\r\n" + b"x" * 17 + b"\r\n"


async def test_an_answer_in_tiny_chunks_is_read_in_short_steps() -> None:
    """Each chunk costs time in the event loop, whatever its size: 256 KB of them in one step took half a second."""

    async def answer_in_chunks(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await exchange.send(head + b"1\r\na\r\n" * 500_000 + b"0\r\n\r\n")

    async with raw_server(answer_in_chunks) as server:
        client = Http1Client(URL(server.url))
        try:
            answer = await client.request("POST", "/x", [], b"")
            await eventually(lambda: answer._connection._reading_paused)
            first = await answer.read()
            assert len(first) < 100_000
            length = len(first)
            while piece := await answer.read():
                length += len(piece)
            assert length == 500_000
        finally:
            await client.close()
