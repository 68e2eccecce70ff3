"""Both transports of `ComfyUIClient` give the same answers and errors with misbehaving servers on real sockets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from yarl import URL

from comfyui.client import ComfyUIClient
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIServerError,
    ComfyUIUnreadableError,
    ComfyUIValidationError,
    ConnectError,
    NoAnswerError,
)
from comfyui.transport.http1 import Http1Client

Serve = Callable[[bytes], Awaitable[bytes | None]]
"""Makes the raw answer from the first bytes of a request, with its headers; None ends the connection."""

ACCEPTED = b'{"prompt_id": "p", "number": 1, "node_errors": {}}'


def answer(body: bytes, status: str = "200 OK", headers: str = "", *, length: int | None = None) -> bytes:
    said = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {said}\r\n\r\n".encode() + body


class Upstream:
    """A server with a given answer; it records the received `requests` and counts `connections`."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0
        self.arrived = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await reader.read(65536):
                self.requests.append(request)
                self.arrived.set()
                reply = await self._serve(request)
                if reply is None:
                    break
                writer.write(reply)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def upstream(serve: Serve) -> AsyncIterator[Upstream]:
    running = Upstream(serve)
    server = await asyncio.start_server(running.handle, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    async with server:
        yield running


@asynccontextmanager
async def client_of(server: Upstream, *, lean: bool, timeout_s: float = 5.0) -> AsyncIterator[ComfyUIClient]:
    address = f"http://user:secret@127.0.0.1:{server.port}/base"
    async with ComfyUIClient(address, timeout_s=timeout_s, retries=0, lean=lean) as client:
        yield client


async def never_answer(_request: bytes) -> bytes | None:
    await asyncio.Event().wait()
    return None


both = pytest.mark.parametrize("lean", [True, False], ids=["http1", "aiohttp"])


@both
async def test_path_credentials_and_body_arrive_unchanged(lean: bool) -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(ACCEPTED)

    async with upstream(serve) as server, client_of(server, lean=lean) as client:
        await client.queue_prompt({"prompt": {"é": 1}})
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/prompt HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}".encode() in head
    assert b"Authorization: Basic dXNlcjpzZWNyZXQ=" in head
    assert body == '{"prompt":{"é":1}}'.encode()


@both
async def test_a_connection_is_used_again(lean: bool) -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(b'{"exec_info": {"queue_remaining": 3}}')

    async with upstream(serve) as server, client_of(server, lean=lean) as client:
        assert [await client.get_queue_remaining() for _ in range(3)] == [3, 3, 3]
    assert server.connections == 1


@both
async def test_a_chunked_answer_is_read_whole(lean: bool) -> None:
    async def serve(_request: bytes) -> bytes:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b'11\r\n{"exec_info": {"q\r\n13\r\nueue_remaining": 3}\r\n1\r\n}\r\n0\r\n\r\n'

    async with upstream(serve) as server, client_of(server, lean=lean) as client:
        assert await client.get_queue_remaining() == 3


@both
async def test_a_submission_whose_connection_ends_without_an_answer_may_have_arrived(lean: bool) -> None:
    async def serve(_request: bytes) -> None:
        return None

    async with upstream(serve) as server, client_of(server, lean=lean) as client:
        with pytest.raises(ComfyUIConnectionError, match="POST /prompt: the connection was closed") as raised:
            await client.queue_prompt({"prompt": {}})
    assert raised.value.sent
    assert len(server.requests) == 1


@both
async def test_a_submission_without_an_answer_in_time_may_have_arrived(lean: bool) -> None:
    async with upstream(never_answer) as server, client_of(server, lean=lean, timeout_s=0.1) as client:
        with pytest.raises(ComfyUIConnectionError, match="no answer in time") as raised:
            await client.queue_prompt({"prompt": {}})
    assert raised.value.sent
    assert len(server.requests) == 1


@both
async def test_an_answer_that_stops_in_its_body_times_out(lean: bool) -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(b'{"exec', length=100)

    async with upstream(serve) as server, client_of(server, lean=lean, timeout_s=0.1) as client:
        with pytest.raises(ComfyUIConnectionError, match="no answer in time"):
            await client.get_queue_remaining()


@both
async def test_an_answer_whose_body_is_cut_off_is_an_error(lean: bool) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer(b'{"exec', length=100))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, ComfyUIClient(f"127.0.0.1:{port}", retries=0, lean=lean) as client:
        with pytest.raises(ComfyUIConnectionError, match="GET /prompt: the answer was cut off") as raised:
            await client.get_queue_remaining()
    assert raised.value.sent


@both
@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"\0\1\2\3\r\n\r\n"])
async def test_a_server_that_does_not_speak_http_is_a_connection_error(lean: bool, garbage: bytes) -> None:
    async def serve(_request: bytes) -> bytes:
        return garbage

    async with upstream(serve) as server, client_of(server, lean=lean, timeout_s=1) as client:
        with pytest.raises(ComfyUIError) as raised:
            await client.get_queue_remaining()
    assert isinstance(raised.value, ComfyUIConnectionError)


@both
async def test_a_refused_connection_means_that_nothing_was_sent(lean: bool, unused_tcp_port: int) -> None:
    async with ComfyUIClient(f"127.0.0.1:{unused_tcp_port}", retries=0, lean=lean) as client:
        with pytest.raises(ComfyUIConnectionError, match="cannot be reached: Connection refused") as raised:
            await client.queue_prompt({"prompt": {}})
    assert not raised.value.sent


@both
async def test_a_refusal_is_read_whatever_its_status(lean: bool) -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(b'{"error": {"message": "No prompt"}, "node_errors": {}}', "400 Bad Request")

    async with upstream(serve) as server, client_of(server, lean=lean) as client:
        with pytest.raises(ComfyUIValidationError, match="No prompt"):
            await client.queue_prompt({"prompt": {}})


async def test_a_cancelled_submission_whose_server_dies_leaves_no_unread_error() -> None:
    async def serve(_request: bytes) -> None:
        await asyncio.sleep(0.1)  # the connection ends a moment after the call was cancelled

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    async with upstream(serve) as server, client_of(server, lean=True) as client:
        call = asyncio.create_task(client.queue_prompt({"prompt": {}}))
        await server.arrived.wait()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        del call
        gc.collect()
    assert told == []


@both
async def test_a_cancelled_submission_still_arrives(lean: bool) -> None:
    """Otherwise ComfyUI could accept it after the cancel that follows."""
    answered = asyncio.Event()

    async def serve(_request: bytes) -> bytes:
        await answered.wait()
        return answer(ACCEPTED)

    async with upstream(serve) as server, client_of(server, lean=lean) as client:
        submission = asyncio.create_task(client.queue_prompt({"prompt": {}}))
        await server.arrived.wait()
        submission.cancel()
        await asyncio.sleep(0)
        assert not submission.done()
        answered.set()
        with pytest.raises(asyncio.CancelledError):
            await submission


@both
async def test_a_file_that_stops_is_resumed_with_a_range_request(lean: bool) -> None:
    content = bytes(range(256)) * 40

    async def serve(request: bytes) -> bytes | None:
        if b"Range: bytes=" in request:
            start = int(request.partition(b"Range: bytes=")[2].partition(b"-")[0])
            rest = f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\n"
            return answer(content[start:], "206 Partial Content", rest)
        return answer(content[:5000], length=len(content))

    async with upstream(serve) as server:
        address = f"127.0.0.1:{server.port}"
        async with (
            ComfyUIClient(address, timeout_s=0.1, retries=1, lean=lean) as client,
            client.view("a b.png", "sub/folder") as view,
        ):
            assert view.length == len(content)
            assert b"".join([chunk async for chunk in view]) == content
    assert server.requests[0].startswith(b"GET /view?filename=a+b.png&subfolder=sub%2Ffolder&type=output HTTP/1.1\r\n")


async def test_a_compressed_answer_that_was_not_asked_for_is_refused() -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(b"\x1f\x8b", headers="Content-Encoding: gzip\r\n")

    async with upstream(serve) as server, client_of(server, lean=True) as client:
        with pytest.raises(ComfyUIServerError, match="compressed"):
            await client.get_queue_remaining()
    assert b"Accept-Encoding: identity\r\n" in server.requests[0]


async def test_an_id_cannot_break_out_of_its_path() -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(b"{}")

    async with upstream(serve) as server, client_of(server, lean=True) as client:
        assert await client.get_history("x/../../queue?a\r\nX-Evil: 1") is None
    assert server.requests[0].startswith(b"GET /base/history/x%2F..%2F..%2Fqueue%3Fa%0D%0AX-Evil%3A%201 HTTP/1.1\r\n")


async def test_a_header_with_a_line_break_is_never_sent() -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(b"{}")

    async with upstream(serve) as server, client_of(server, lean=True) as client:
        with pytest.raises(ComfyUIError, match="does not allow"):
            await client.forward_prompt(b"{}", {"X-A": "1\nX-Evil: 1"})
    assert not server.requests


async def test_connections_are_limited_and_each_waiting_request_gets_its_turn() -> None:
    both_came, go_on = asyncio.Event(), asyncio.Event()
    open_now: list[int] = [0, 0]

    async def serve(_request: bytes) -> bytes:
        open_now[0] += 1
        open_now[1] = max(open_now)
        if open_now[0] == 2:
            both_came.set()
        await go_on.wait()
        open_now[0] -= 1
        return answer(b"{}")

    async with upstream(serve) as server:
        client = Http1Client(URL(f"http://127.0.0.1:{server.port}"), limit=2)
        calls = [asyncio.create_task(client.fetch("GET", "/", [], timeout_s=30, max_bytes=1_000)) for _ in range(5)]
        await both_came.wait()
        calls[0].cancel()  # its turn goes to a waiting request
        calls[4].cancel()  # this request still waits
        go_on.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(outcome, tuple) for outcome in done] == [False, True, True, True, False]
        assert len(server.requests) == 4
        assert open_now[1] == 2
        await client.close()


async def test_a_request_that_gets_no_turn_in_time_was_not_sent() -> None:
    async with upstream(never_answer) as server:
        client = Http1Client(URL(f"http://127.0.0.1:{server.port}"), limit=1)
        first = asyncio.create_task(client.fetch("GET", "/", [], timeout_s=30, max_bytes=1_000))
        await server.arrived.wait()
        with pytest.raises(ConnectError, match="all 1 connections are in use"):
            await client.fetch("GET", "/", [], timeout_s=0.05, max_bytes=1_000)
        await client.close()
        with pytest.raises(NoAnswerError):
            await first
        assert len(server.requests) == 1


@both
async def test_an_answer_that_announces_too_many_bytes_is_refused_at_once(lean: bool) -> None:
    async def serve(_request: bytes) -> bytes:
        return answer(b"{", length=99_999_999_999)

    async with upstream(serve) as server, client_of(server, lean=lean, timeout_s=30) as client, asyncio.timeout(30):
        with pytest.raises(ComfyUIUnreadableError, match="MAX_ANSWER_MB"):
            await client.get_queue()
