"""The relay of websockets, on real sockets at both ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from comfyui.engine import Engine
from comfyui.web.server.socket import SocketLimits
from config import GatewayOptions
from tests.support.processes import gateway_process
from tests.support.relaying import eventually, fetch, raw_client
from tests.support.running import RunningGateway, invert_workflow, running_gateway

Socket = web.WebSocketResponse
_MB = 1_000_000


@asynccontextmanager
async def _sockets(
    handler: Callable[[web.Request, Socket], Awaitable[None]], *, protocols: tuple[str, ...] = (), **settings: Any
) -> AsyncIterator[RunningGateway]:
    """Runs a gateway before a server whose ``/ws`` the test handles; the server refuses the gateway's own socket."""

    async def serve(request: web.Request) -> web.StreamResponse:
        if "X-Forwarded-Proto" not in request.headers:
            return web.Response(status=404)
        socket = Socket(protocols=protocols, max_msg_size=0)
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            await handler(request, socket)
        return socket

    app = web.Application()
    app.router.add_get("/ws", serve)
    app.router.add_get("/{path:.*}", _queue)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with running_gateway(f"http://{host}:{port}", ready=False, **settings) as gateway:
            yield gateway
    finally:
        await runner.cleanup()


async def _queue(_request: web.Request) -> web.Response:
    return web.json_response({"exec_info": {"queue_remaining": 0}})


def _transport(websocket: aiohttp.ClientWebSocketResponse[bool]) -> asyncio.Transport:
    connection = websocket._response.connection
    assert connection is not None
    assert isinstance(connection.transport, asyncio.Transport)
    return connection.transport


async def _echo(_request: web.Request, socket: Socket) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)


@pytest.mark.parametrize("compress", [0, 15], ids=["plain", "deflate"])
async def test_text_and_binary_messages_pass_unchanged_in_both_directions(compress: int) -> None:
    async with (
        _sockets(_echo) as gateway,
        gateway.http.ws_connect("/ws?clientId=a", compress=compress, max_msg_size=0) as websocket,
    ):
        await websocket.send_str("text é ✓ \0")
        assert (await websocket.receive_str()) == "text é ✓ \0"
        await websocket.send_bytes(b"\x00\xff" * 10)
        assert (await websocket.receive_bytes()) == b"\x00\xff" * 10
        await websocket.send_str("")
        assert (await websocket.receive_str()) == ""
        assert bool(websocket.compress) is bool(compress)


async def test_frames_above_comfyuis_own_limits_are_relayed() -> None:
    """ComfyUI accepts frames of up to 4 MB, and sends frames of any size."""
    picture = bytes(40 * _MB)

    async def handler(_request: web.Request, socket: Socket) -> None:
        assert len(await socket.receive_bytes()) == 8 * _MB
        await socket.send_bytes(picture)
        await socket.receive()

    async with _sockets(handler) as gateway, gateway.http.ws_connect("/ws", max_msg_size=0) as websocket:
        await websocket.send_bytes(bytes(8 * _MB))
        assert await websocket.receive_bytes() == picture


async def test_a_ping_is_answered() -> None:
    async with _sockets(_echo) as gateway, gateway.http.ws_connect("/ws", autoping=False) as websocket:
        await websocket.ping(b"are you there")
        message = await websocket.receive()
        assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PONG, b"are you there")


async def test_a_message_with_too_many_fragments_is_refused() -> None:
    def changed(made: GatewayOptions) -> GatewayOptions:
        return replace(made, serving=replace(made.serving, sockets=SocketLimits(most_fragments=3)))

    async with _sockets(_echo, changed=changed) as gateway, gateway.http.ws_connect("/ws") as websocket:
        await websocket.send_frame(b"a", aiohttp.WSMsgType.TEXT)
        assert await websocket.receive_str() == "a"
        first, further = (bytes([kind, 0x80]) + bytes(4) for kind in (aiohttp.WSMsgType.TEXT, 0))
        _transport(websocket).write(first + further * 10_000)
        message = await websocket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1009)


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, ""), (1011, "broken"), (4001, "own code")])
async def test_comfyuis_close_code_reaches_the_client(code: int, reason: str) -> None:
    async def handler(_request: web.Request, socket: Socket) -> None:
        await socket.send_str("last words")
        await socket.close(code=code, message=reason.encode())

    async with _sockets(handler) as gateway, gateway.http.ws_connect("/ws") as websocket:
        assert await websocket.receive_str() == "last words"
        message = await websocket.receive()
        assert (message.type, message.data, message.extra or "") == (aiohttp.WSMsgType.CLOSE, code, reason)


@pytest.mark.parametrize("code", [1000, 1001, 4002])
async def test_the_clients_close_code_reaches_comfyui(code: int) -> None:
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def handler(_request: web.Request, socket: Socket) -> None:
        await socket.receive()
        closed.set_result(socket.close_code)

    async with _sockets(handler) as gateway:
        async with gateway.http.ws_connect("/ws") as websocket:
            await websocket.close(code=code, message=b"bye")
        async with asyncio.timeout(30):
            assert await closed == code


async def test_a_lost_client_closes_its_socket_to_comfyui() -> None:
    closed = asyncio.Event()

    async def handler(_request: web.Request, socket: Socket) -> None:
        await socket.receive()
        closed.set()

    async with _sockets(handler) as gateway, gateway.http.ws_connect("/ws") as websocket:
        _transport(websocket).abort()
        async with asyncio.timeout(30):
            await closed.wait()


async def test_a_lost_comfyui_ends_the_clients_socket_abnormally() -> None:
    async def handler(request: web.Request, socket: Socket) -> None:
        await socket.receive()
        assert request.transport is not None
        request.transport.abort()

    async with _sockets(handler) as gateway, gateway.http.ws_connect("/ws") as websocket:
        await websocket.send_str("go")
        await websocket.receive()
        assert websocket.close_code == 1006


async def test_the_client_gets_the_subprotocol_that_comfyui_chose() -> None:
    async with (
        _sockets(_echo, protocols=("v2", "v1")) as gateway,
        gateway.http.ws_connect("/ws", protocols=("v1", "v0")) as websocket,
    ):
        assert websocket.protocol == "v1"


async def test_query_and_headers_of_a_handshake_reach_comfyui() -> None:
    async def handler(request: web.Request, socket: Socket) -> None:
        await socket.send_json([request.raw_path, request.headers.get("Comfy-User"), request.headers.get("Origin")])

    async with _sockets(handler) as gateway:
        target = URL(f"{gateway.url}/ws?clientId=a%2Fb&x=%20", encoded=True)
        headers = {"Comfy-User": "me", "Origin": gateway.url}
        async with gateway.http.ws_connect(target, headers=headers) as websocket:
            raw_path, user, origin = await websocket.receive_json()
    assert (raw_path, user) == ("/ws?clientId=a%2Fb&x=%20", "me")
    assert origin not in {None, gateway.url}  # ComfyUI's own origin, so that ComfyUI's check passes


async def test_a_handshake_that_comfyui_refuses_gets_the_same_status(engine: Engine, gateway: RunningGateway) -> None:
    await engine.set_faults({"ws_refuse": {"status": 429, "times": 1}})
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.http.ws_connect("/ws")
    assert refused.value.status == 429


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://gateway/ws", 101),
        ("http://gateway/ws?clientId=a", 101),
        ("http://gateway/internal/ws", 403),
        ("http://gateway/api//internal/ws", 403),
        ("http://gateway?clientId=a", 502),
    ],
)
async def test_an_absolute_url_as_request_target_is_read_as_its_path(engine: Engine, target: str, status: int) -> None:
    """Such a target once got 500: neither the relay's rules nor the code that connects could read it."""
    async with gateway_process(engine.url) as gateway:
        running = await gateway.logged("Uvicorn running on")
        async with raw_client(running["event"].split(" ")[3]) as (reader, writer):
            writer.write(
                f"GET {target} HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            answer = await reader.readuntil(b"\r\n")
            if status != 101:
                await reader.read()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        await gateway.logged("websocket.connected")
    assert not gateway.lines_of("error")


async def test_a_handshake_gets_503_while_comfyui_is_down() -> None:
    async with running_gateway("http://127.0.0.1:9", ready=False) as gateway:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await gateway.http.ws_connect("/ws")
        assert refused.value.status == 503


async def test_a_client_that_stops_reading_is_dropped_and_delays_no_other_client() -> None:
    """Trap 4: ComfyUI sends to one client after another, and would wait for this one forever."""
    sockets: list[Socket] = []
    published = 0

    async def handler(_request: web.Request, socket: Socket) -> None:
        sockets.append(socket)
        await socket.receive()

    async with (
        _sockets(handler, websocket_buffer_mb=2) as gateway,
        gateway.http.ws_connect("/ws?clientId=slow") as slow,
        gateway.http.ws_connect("/ws?clientId=quick") as quick,
    ):
        await eventually(lambda: len(sockets) == 2)
        _transport(slow).pause_reading()

        async def read_quickly() -> int:
            count = 0
            async for _ in quick:
                count += 1
                if count == 60:
                    break
            return count

        reading = asyncio.create_task(read_quickly())
        async with asyncio.timeout(30):
            for _ in range(60):
                for socket in sockets:
                    with contextlib.suppress(ConnectionError):
                        await socket.send_bytes(bytes(500_000))
                published += 1
            assert await reading == 60
        assert published == 60
        metrics = (await fetch(gateway, "/metrics")).body.decode()
        assert 'comfyui_gateway_rejected_requests_total{reason="slow_client"} 1.0' in metrics
        _transport(slow).resume_reading()
        async with asyncio.timeout(30):
            while (message := await slow.receive()).type is aiohttp.WSMsgType.BINARY:
                pass
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1013)


async def test_a_slow_client_that_keeps_reading_gets_large_pictures() -> None:
    sent, count = bytes(12 * _MB), 3

    async def handler(_request: web.Request, socket: Socket) -> None:
        for _ in range(count):
            await socket.send_bytes(sent)
            await socket.send_str("between")
        await socket.receive()

    async with _sockets(handler, client_idle_seconds=0.5) as gateway:
        url = URL(gateway.url)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=_MB)
        handshake = (
            f"GET /ws HTTP/1.1\r\nHost: {url.authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        writer.write(handshake.encode())
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while got < len(sent) * count:
            piece = await reader.read(1_500_000)
            assert piece, f"cut off after {got} bytes"
            got += len(piece)
            await asyncio.sleep(0.05)
        writer.close()


async def test_a_client_that_reads_nothing_is_dropped_after_client_idle_seconds() -> None:
    closed = asyncio.Event()

    async def handler(_request: web.Request, socket: Socket) -> None:
        for _ in range(20):
            await socket.send_bytes(bytes(_MB))
        await socket.receive()
        closed.set()

    async with (
        _sockets(handler, client_idle_seconds=0.3) as gateway,
        gateway.http.ws_connect("/ws") as websocket,
    ):
        _transport(websocket).pause_reading()
        async with asyncio.timeout(30):
            await closed.wait()
        metrics = (await fetch(gateway, "/metrics")).body.decode()
        assert 'comfyui_gateway_rejected_requests_total{reason="slow_client"} 1.0' in metrics
        _transport(websocket).abort()


async def test_an_idle_client_without_waiting_data_stays_connected() -> None:
    async def handler(_request: web.Request, socket: Socket) -> None:
        await socket.send_str("first")
        assert (await socket.receive()).data == "go on"
        await socket.send_str("second")
        await socket.receive()

    async with (
        _sockets(handler, client_idle_seconds=0.1) as gateway,
        gateway.http.ws_connect("/ws") as websocket,
    ):
        assert await websocket.receive_str() == "first"
        await asyncio.sleep(0.5)  # time alone must not end the connection
        await websocket.send_str("go on")
        assert await websocket.receive_str() == "second"


async def test_a_client_that_never_reads_its_close_frame_is_cut_off() -> None:
    def changed(made: GatewayOptions) -> GatewayOptions:
        return replace(
            made,
            serving=replace(made.serving, sockets=SocketLimits(close_patience_s=0.05)),
            app=replace(made.app, relay=replace(made.app.relay, close_patience_s=0.05)),
        )

    ended = asyncio.Event()

    async def handler(_request: web.Request, socket: Socket) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await socket.send_bytes(bytes(500_000))
        ended.set()

    async with (
        _sockets(handler, changed=changed, websocket_buffer_mb=1) as gateway,
        gateway.http.ws_connect("/ws") as websocket,
    ):
        _transport(websocket).pause_reading()
        async with asyncio.timeout(30):
            await ended.wait()
        gauge = gateway.app.running.metrics.relayed_websockets._value
        await eventually(lambda: gauge.get() == 0)
        _transport(websocket).abort()


async def test_a_client_receives_the_events_of_its_prompt(gateway: RunningGateway) -> None:
    async with gateway.http.ws_connect("/ws?clientId=me") as websocket:
        await websocket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        answer = await fetch(gateway, "/prompt", "POST", json={"prompt": invert_workflow(9), "client_id": "me"})
        prompt_id = json.loads(answer.body)["prompt_id"]
        kinds = []
        async with asyncio.timeout(30):
            while True:
                message = json.loads(await websocket.receive_str())
                kinds.append(message["type"])
                if message["type"] == "executing" and message["data"]["node"] is None:
                    break
    assert message["data"]["prompt_id"] == prompt_id
    assert {"status", "feature_flags", "execution_start", "executed", "execution_success"} <= set(kinds)


async def test_a_handshake_that_comfyui_does_not_answer_gets_504(engine: Engine) -> None:
    """Otherwise each new try of a client would leave another connection open."""
    async with running_gateway(engine.url, proxy_timeout=0.3) as gateway:
        await engine.set_faults({"hang": {"route": "/ws"}})
        async with asyncio.timeout(30):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await gateway.http.ws_connect("/ws")
        engine.faults.clear()
    assert refused.value.status == 504
