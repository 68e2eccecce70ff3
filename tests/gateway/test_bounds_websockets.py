"""A flood of tiny websocket frames, from a client or from ComfyUI, delays no other request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from benchmarks.bombs import probing
from benchmarks.processes import Server
from comfyui.engine import Engine
from tests.support.held_up import assert_not_held_up
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.relaying import raw_client
from tests.support.running import invert_workflow

pytestmark = pytest.mark.alone

_HANDSHAKE = (
    b"GET /ws?clientId=flood HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_COUNT = 50_000
_FINAL, _MASKED, _CONTINUATION, _TEXT, _BINARY, _PING = 0x80, 0x80, 0, 1, 2, 9


def frame(opcode: int, data: bytes = b"", *, final: bool = True) -> bytes:
    """Returns a frame as a client sends it; its mask is zero, so the data stays as it is."""
    return bytes([opcode | (_FINAL if final else 0), _MASKED | len(data)]) + bytes(4) + data


LAST = b"the last one"
FLOODS = {
    # The message is JSON, because the engine logs every other one.
    "messages": frame(_TEXT, b"1") * _COUNT,
    "empty frames": frame(_BINARY) * _COUNT,
    "pings": frame(_PING) * _COUNT,
    "fragments": (frame(_BINARY, b"1", final=False) + frame(_CONTINUATION, final=False) * 98 + frame(_CONTINUATION))
    * (_COUNT // 100),
}


async def assert_flood_does_not_hold_up(
    gateway: GatewayProcess, kind: str, flood: Callable[[], Awaitable[None]]
) -> None:
    async def cpu_s() -> float:
        with probing(Server(gateway.process.pid, gateway.port)) as worst:
            async with asyncio.timeout(20):
                await flood()
        return worst().cpu_s

    await assert_not_held_up(kind, cpu_s)


@pytest.mark.timeout(180)
async def test_tiny_frames_from_a_client_delay_no_other_request(engine: Engine) -> None:
    async with gateway_process(engine.url) as gateway:

        async def flood(frames: bytes) -> None:
            async with raw_client(gateway.url) as (reader, writer):
                writer.write(_HANDSHAKE)
                await reader.readuntil(b"\r\n\r\n")
                writer.write(frames + frame(_PING, LAST))
                await reader.readuntil(LAST)

        for kind, frames in FLOODS.items():
            await assert_flood_does_not_hold_up(gateway, kind, partial(flood, frames))


@pytest.mark.timeout(180)
async def test_tiny_frames_from_comfyui_delay_no_other_request(engine: Engine) -> None:
    async with gateway_process(engine.url) as gateway, gateway.http.ws_connect("/ws?clientId=a") as websocket:
        await websocket.receive()

        async def flood(ping: bool) -> None:
            await engine.set_faults({"ws_flood": {"count": _COUNT, "text": "{}", "ping": ping}})
            if not ping:
                count = 0
                while count < _COUNT:
                    count += await websocket.receive_str() == "{}"
            assert (await gateway.prompt_sync(invert_workflow()))[0] == 200
            while "status" not in await websocket.receive_str():
                pass

        for ping in (False, True):
            await assert_flood_does_not_hold_up(gateway, "pings" if ping else "messages", partial(flood, ping))
