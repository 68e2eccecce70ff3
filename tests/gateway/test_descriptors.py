"""File descriptors: connections over the limit get an error, and no ComfyUI server is blamed for it."""

from __future__ import annotations

import asyncio
import errno
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIDescriptorsError
from comfyui.metrics import Metrics
from comfyui.transport.drivers import unreachable
from comfyui.web.server.connections import Connections
from tests.support.relaying import raw_client
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until

_LIVE = b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n"


async def asked(stack: AsyncExitStack, gateway: RunningGateway, request: bytes) -> asyncio.StreamReader:
    reader, writer = await stack.enter_async_context(raw_client(gateway.url))
    writer.write(request)
    return reader


async def test_an_idle_connection_makes_room_for_another(engine: Engine, few_connections: Connections) -> None:
    async with running_gateway(engine.url, connections=few_connections) as gateway, AsyncExitStack() as stack:
        readers = []
        for _ in range(20):
            readers.append(await asked(stack, gateway, _LIVE))
            assert (await readers[-1].readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        async with asyncio.timeout(30):
            assert await readers[0].read() == b""  # this connection was idle for the longest time
        assert few_connections._open <= 3


async def test_a_connection_over_the_limit_gets_503_with_the_reason(
    engine: Engine, few_connections: Connections
) -> None:
    async with running_gateway(engine.url, connections=few_connections) as gateway, AsyncExitStack() as stack:
        for _ in range(3):
            await asked(stack, gateway, b"POST /prompt_sync HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{")
        await until(lambda: asyncio.sleep(0, few_connections._open), lambda count: count >= 3)
        answer = await (await asked(stack, gateway, _LIVE)).read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 5" in head
    assert json.loads(body)["type"] == "overloaded"
    assert "limit of open files" in json.loads(body)["detail"]


async def test_a_closed_connection_frees_its_place(engine: Engine, few_connections: Connections) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    websocket = b"GET /ws HTTP/1.1\r\nHost: h\r\n" + upgrade + b"Sec-WebSocket-Version: 13\r\n\r\n"
    async with running_gateway(engine.url, connections=few_connections) as gateway:
        for request in (_LIVE, websocket, b"GET /health/live", b"") * 3:
            async with AsyncExitStack() as stack:
                reader = await asked(stack, gateway, request)
                if request.endswith(b"\r\n\r\n"):
                    await reader.readuntil(b"\r\n\r\n")
            await until(lambda: asyncio.sleep(0, few_connections._open), lambda count: count == 0)
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_lack_of_descriptors_does_not_mark_a_server_as_failed(gateway: RunningGateway, number: int) -> None:
    error = unreachable("comfyui", OSError(number, "x"))
    assert isinstance(error, ComfyUIDescriptorsError)
    assert "ulimit -n" in error.detail
    (backend,) = gateway.handler.pool.backends
    backend.failed(error)
    assert backend.ready


def test_a_burst_of_refused_connections_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    connections = Connections(0, Metrics())
    answers: list[Any] = [connections.opened() for _ in range(50)]
    assert answers == [False] * 50
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("connections.full") == 1
