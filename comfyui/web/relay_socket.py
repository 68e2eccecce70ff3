"""The relay of websockets. ComfyUI publishes to its clients one after the other and waits for each (trap 4): whatever a
client does, its ComfyUI side is always drained, into a bounded buffer. A client that lets it fill is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from urllib.parse import parse_qs

import aiohttp
import structlog
from starlette.types import Receive, Scope, Send
from yarl import URL

from comfyui.exceptions import ComfyUICredentialsError, ComfyUIError, ComfyUITimeoutError
from comfyui.metrics import Metrics
from comfyui.transport import unreachable
from comfyui.web.errors import error_response, refusal
from comfyui.web.headers import request_headers, text_headers
from comfyui.web.server_socket import server_socket_of
from comfyui.web.upstreams import Upstream, Upstreams

_log = structlog.get_logger("relay")

_Message = aiohttp.WSMsgType
_NO_FRAME_LIMIT = 0
# Long: ComfyUI's event loop stands still while it loads a model, and that is no reason to hang up.
_HEARTBEAT_S = 120.0
_CLOSE_PATIENCE_S = 2.0
_NORMAL, _GOING_AWAY, _INTERNAL_ERROR, _TRY_AGAIN_LATER = 1000, 1001, 1011, 1013
# Codes that say how a connection ended; no endpoint may send them.
_NO_CODE = 1005
_NEVER_SENT = frozenset({0, 1004, _NO_CODE, 1006, 1015})
# What a message costs beside its bytes: without it, a million empty ones would be free.
_MESSAGE_OVERHEAD = 256


class SocketRelay:
    """`timeout_s`: the wait for ComfyUI's side of a handshake; 0 for any time."""

    def __init__(self, metrics: Metrics, *, buffer_bytes: int, timeout_s: float) -> None:
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._buffer_bytes = buffer_bytes

    async def relay(self, scope: Scope, receive: Receive, send: Send, upstreams: Upstreams, target: str) -> None:
        """One client's websocket from its handshake to its end."""
        await receive()  # websocket.connect
        upstream = upstreams.first()
        try:
            async with asyncio.timeout(self._timeout_s or None) as patience:
                comfyui = await _connect(upstream, scope, target)
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401 and upstream.credentials:
                refused = ComfyUICredentialsError("websocket", upstream_status=error.status)
                await error_response(refused, scope.get("state", {}).get("request_id"))(scope, receive, send)
                return
            detail = f"ComfyUI refused the websocket with HTTP {error.status}"
            await refusal(scope, error.status if error.status >= 400 else 502, detail)(scope, receive, send)
            return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure: ComfyUIError
            if patience.expired():
                failure = ComfyUITimeoutError(f"ComfyUI did not answer within {self._timeout_s:g} s")
            else:
                cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
                failure = unreachable(upstream.backend.name, cause)
                upstream.backend.failed(failure)
            await error_response(failure, scope.get("state", {}).get("request_id"))(scope, receive, send)
            return
        client_id = parse_qs(scope["query_string"].decode("latin-1")).get("clientId", [None])[0]
        self._metrics.relayed_websockets.inc()
        try:
            with upstreams.bound(client_id, upstream):
                await send({"type": "websocket.accept", "subprotocol": comfyui.protocol})
                await _Bridge(scope, receive, send, comfyui, self._metrics, self._buffer_bytes).run()
        finally:
            self._metrics.relayed_websockets.dec()
            # aiohttp waits for each message before the close frame anew, and ComfyUI may have many.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_PATIENCE_S):
                    await comfyui.close(code=_GOING_AWAY)


async def _connect(upstream: Upstream, scope: Scope, target: str) -> aiohttp.ClientWebSocketResponse[bool]:
    return await upstream.session.ws_connect(
        URL(f"{upstream.base_url.origin()}{upstream.path_prefix}{target}", encoded=True),
        protocols=scope["subprotocols"],
        headers=text_headers(request_headers(scope, upstream.base_url, upstream.credentials)),
        max_msg_size=_NO_FRAME_LIMIT,
        heartbeat=_HEARTBEAT_S,
        timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_PATIENCE_S),
    )


class _Bridge:
    """Both directions of one websocket, and its end from either side."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        comfyui: aiohttp.ClientWebSocketResponse[bool],
        metrics: Metrics,
        buffer_bytes: int,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._comfyui = comfyui
        self._to_comfyui = metrics.relayed_bytes.labels("to_comfyui")
        self._to_client = metrics.relayed_bytes.labels("to_client")
        self._rejected = metrics.rejected.labels("slow_client")
        self._buffer_bytes = buffer_bytes
        self._buffer: deque[tuple[str, str | bytes]] = deque()
        self._buffered = 0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    async def run(self) -> None:
        """Until one side ends; then the other one is ended in the same way."""
        reading = asyncio.create_task(self._read_client(), name="websocket to ComfyUI")
        draining = asyncio.create_task(self._drain_comfyui(), name="websocket from ComfyUI")
        writing = asyncio.create_task(self._write_client(), name="websocket to the client")
        tasks = (reading, draining, writing)
        try:
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                code, reason = reading.result()
                await self._comfyui.close(code=code, message=reason.encode())
                return
            end = draining.result()
            if end is not None:
                # The client gets what came before the end.
                waiting = asyncio.create_task(self._emptied.wait())
                await asyncio.wait((waiting, reading), timeout=_CLOSE_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            writing.cancel()
            await self._end_client(*(end or (_TRY_AGAIN_LATER, "the client does not read what it is sent")))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_client(self) -> tuple[int, str]:
        """To ComfyUI what the client sends, as fast as it takes it; returns the client's close code and reason."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", _NORMAL)
                return (_NORMAL if code in _NEVER_SENT else code), message.get("reason") or ""
            text, data = message.get("text"), message.get("bytes") or b""
            # After ComfyUI's end, which the other direction tells, nothing can be sent.
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                if text is not None:
                    await self._comfyui.send_str(text)
                else:
                    await self._comfyui.send_bytes(data)
                self._to_comfyui.inc(len(data if text is None else text))

    async def _drain_comfyui(self) -> tuple[int, str] | None:
        """Into the buffer what ComfyUI sends; returns its close code and reason, None when the buffer is full."""
        while True:
            message = await self._comfyui.receive()
            if message.type is _Message.TEXT:
                self._buffer.append(("text", message.data))
            elif message.type is _Message.BINARY:
                self._buffer.append(("bytes", message.data))
            else:
                reason = message.extra if message.type is _Message.CLOSE else ""
                return (self._comfyui.close_code or _NORMAL), str(reason or "")
            self._buffered += len(message.data) + _MESSAGE_OVERHEAD
            self._emptied.clear()
            self._filled.set()
            # A single message may be larger than the buffer.
            if self._buffered > self._buffer_bytes and len(self._buffer) > 1:
                self._rejected.inc()
                _log.warning("relay.slow_client", path=self._scope["path"], buffered_bytes=self._buffered)
                return None

    async def _write_client(self) -> None:
        # uvicorn's error for a client that is gone is an OSError; the reader of the client is told, too.
        with contextlib.suppress(OSError):
            while True:
                while self._buffer:
                    kind, data = self._buffer.popleft()
                    self._buffered -= len(data) + _MESSAGE_OVERHEAD
                    await self._send({"type": "websocket.send", kind: data})
                    self._to_client.inc(len(data))
                self._emptied.set()
                self._filled.clear()
                await self._filled.wait()

    async def _end_client(self, code: int, reason: str) -> None:
        socket = server_socket_of(self._scope)
        if socket is not None:
            if code in _NEVER_SENT - {_NO_CODE}:
                socket.cut()
            else:
                socket.drop(_NORMAL if code == _NO_CODE else code, reason)
            return
        close = {"type": "websocket.close", "code": _INTERNAL_ERROR if code in _NEVER_SENT else code, "reason": reason}
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_PATIENCE_S):
                await self._send(close)
