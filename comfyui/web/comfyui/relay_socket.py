"""The relay of websockets. ComfyUI sends to its clients one after the other and waits for each (trap 4): whatever a
client does, its ComfyUI side is always read, into memory. A client that takes nothing for a while is dropped. A slow
reader is dropped only when the waiting bytes of all clients together reach a last limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator

import aiohttp
import structlog
from starlette.types import Receive, Scope, Send
from yarl import URL

from comfyui.exceptions import ComfyUICredentialsError, ComfyUIError, ComfyUITimeoutError
from comfyui.headers import as_text
from comfyui.metrics import Metrics
from comfyui.offload import Turns
from comfyui.tasks import end_tasks
from comfyui.transport.drivers import unreachable
from comfyui.transport.frames import Frames
from comfyui.web.comfyui.upstreams import Upstream
from comfyui.web.comfyui.websocket_ends import (
    GOING_AWAY,
    NEVER_SENT,
    NORMAL,
    TOO_BIG,
    TRY_AGAIN_LATER,
    SlowReader,
    end_client,
)
from comfyui.web.front.errors import error_response, refusal
from comfyui.web.front.headers import request_headers

_log = structlog.get_logger("relay")

_Message = aiohttp.WSMsgType
# Long: ComfyUI's event loop stands still while it loads a model, and that is no reason to hang up.
_HEARTBEAT_S = 120.0
# The cost of a message besides its bytes: without it, a million empty ones would be free.
_MESSAGE_OVERHEAD = 256


class SocketRelay:
    """Relays websockets.

    Args:
        buffer_bytes: what may wait in memory for all clients together; above it, the client furthest behind is dropped.
        idle_s: a client for which something waits and that takes nothing for so long is dropped.
        timeout_s: the wait for ComfyUI's side of a handshake; 0 for any time.
        close_patience_s: for a side to close when the other one has.
    """

    def __init__(
        self, metrics: Metrics, *, buffer_bytes: int, idle_s: float, timeout_s: float, close_patience_s: float
    ) -> None:
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._close_patience_s = close_patience_s
        self._idle_s = idle_s
        self._backlogs = _Backlogs(buffer_bytes)

    async def relay(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        upstream: Upstream,
        target: str,
    ) -> None:
        """One client's websocket from its handshake to its end."""
        await receive()  # websocket.connect
        try:
            async with asyncio.timeout(self._timeout_s or None) as patience:
                comfyui = await _connect(upstream, scope, target, self._close_patience_s)
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401 and upstream.credentials:
                refused = ComfyUICredentialsError("websocket", upstream_status=error.status)
                await error_response(refused, scope)(scope, receive, send)
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
            await error_response(failure, scope)(scope, receive, send)
            return
        self._metrics.relayed_websockets.inc()
        try:
            await send({"type": "websocket.accept", "subprotocol": comfyui.protocol})
            bridge = _Bridge(
                scope,
                receive,
                send,
                comfyui,
                self._metrics,
                self._backlogs,
                idle_s=self._idle_s,
                close_patience_s=self._close_patience_s,
                too_long=upstream.backend.client.answers.frame_too_long,
            )
            with self._backlogs.of(bridge):
                await bridge.run()
        finally:
            self._metrics.relayed_websockets.dec()
            # aiohttp starts its wait again for each message before the close frame, and ComfyUI may have many.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._close_patience_s):
                    await comfyui.close(code=GOING_AWAY)


async def _connect(
    upstream: Upstream, scope: Scope, target: str, close_patience_s: float
) -> aiohttp.ClientWebSocketResponse[bool]:
    return await upstream.transport.websockets.ws_connect(
        URL(f"{upstream.base_url.origin()}{upstream.path_prefix}{target}", encoded=True),
        protocols=scope["subprotocols"],
        headers=as_text(request_headers(scope, upstream.base_url, upstream.credentials)),
        max_msg_size=upstream.backend.client.answers.max_bytes,
        heartbeat=_HEARTBEAT_S,
        autoping=False,
        timeout=aiohttp.ClientWSTimeout(ws_close=close_patience_s),
    )


class _Backlogs:
    """The waiting bytes of all relayed websockets."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._bridges: set[_Bridge] = set()

    @contextlib.contextmanager
    def of(self, bridge: _Bridge) -> Iterator[None]:
        self._bridges.add(bridge)
        try:
            yield
        finally:
            self._bridges.discard(bridge)
            self._bytes -= bridge.buffered

    def grown(self, count: int) -> None:
        """Drops the client furthest behind if the total is too large. A single message may be larger."""
        self._bytes += count
        if self._bytes > self._max_bytes:
            behind = [bridge for bridge in self._bridges if bridge.is_behind]
            if behind:
                max(behind, key=lambda bridge: bridge.buffered).drop()

    def shrunk(self, count: int) -> None:
        self._bytes -= count


class _Bridge:
    """Both directions of one websocket, and its end from either side."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        comfyui: aiohttp.ClientWebSocketResponse[bool],
        metrics: Metrics,
        backlogs: _Backlogs,
        *,
        idle_s: float,
        close_patience_s: float,
        too_long: str,
    ) -> None:
        self._scope = scope
        self._too_long = too_long
        self._receive = receive
        self._send = send
        self._comfyui = comfyui
        self._to_comfyui = metrics.relayed_bytes.labels("to_comfyui")
        self._to_client = metrics.relayed_bytes.labels("to_client")
        self._rejected = metrics.rejected.labels("slow_client")
        self._backlogs = backlogs
        self._idle_s = idle_s
        self._close_patience_s = close_patience_s
        self._too_slow = asyncio.Event()
        self._written = 0
        self._buffer: deque[tuple[str, str | bytes]] = deque()
        self.buffered = 0
        """Bytes that ComfyUI has sent and that were not handed to the client's connection yet."""
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    @property
    def is_behind(self) -> bool:
        """More than one message waits, and it is not being dropped already."""
        return len(self._buffer) > 1 and not self._too_slow.is_set()

    def drop(self) -> None:
        """End it as a client that does not read."""
        if not self._too_slow.is_set():
            self._rejected.inc()
            _log.warning("relay.slow_client", path=self._scope["path"], buffered_bytes=self.buffered)
            self._too_slow.set()

    async def run(self) -> None:
        """Runs until one side ends, and then ends the other in the same way."""
        reading = asyncio.create_task(self._read_client(), name="websocket to ComfyUI")
        draining = asyncio.create_task(self._drain_comfyui(), name="websocket from ComfyUI")
        writing = asyncio.create_task(self._write_client(), name="websocket to the client")
        watching = asyncio.create_task(self._watch_client(), name="progress of the client")
        dropped = asyncio.create_task(self._too_slow.wait(), name="drop of the client")
        tasks = (reading, draining, writing, watching, dropped)
        try:
            await asyncio.wait((reading, draining, dropped), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                code, reason = reading.result()
                await self._comfyui.close(code=code, message=reason.encode())
                return
            end = (TRY_AGAIN_LATER, "the client does not read its messages")
            if not dropped.done():
                end = draining.result()
                # The client gets the messages from before the end, as long as it takes them.
                waiting = asyncio.create_task(self._emptied.wait())
                await asyncio.wait((waiting, reading, dropped), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            writing.cancel()
            await end_client(self._scope, self._send, *end, self._close_patience_s)
        finally:
            await end_tasks(*tasks)

    async def _read_client(self) -> tuple[int, str]:
        """Sends the client's messages to ComfyUI, as fast as ComfyUI takes them; returns the client's close code and
        reason.
        """
        turns = Turns()
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", NORMAL)
                return (NORMAL if code in NEVER_SENT else code), message.get("reason") or ""
            text, data = message.get("text"), message.get("bytes") or b""
            # After ComfyUI's end, which the other direction tells, nothing can be sent.
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                if text is not None:
                    await self._comfyui.send_str(text)
                else:
                    await self._comfyui.send_bytes(data)
                self._to_comfyui.inc(len(data if text is None else text))
            await turns.handled(len(data if text is None else text))

    async def _drain_comfyui(self) -> tuple[int, str]:
        """Into the buffer what ComfyUI sends; returns its close code and reason."""
        frames = Frames(self._comfyui)
        while True:
            message = await frames.next()
            data = message.data
            if message.type is _Message.TEXT:
                self._buffer.append(("text", data))
            elif message.type is _Message.BINARY:
                self._buffer.append(("bytes", data))
            else:
                reason = message.extra if message.type is _Message.CLOSE else ""
                if message.type is _Message.ERROR and self._comfyui.close_code == TOO_BIG:
                    reason = self._too_long
                    _log.error("relay.frame_too_long", path=self._scope["path"], detail=reason)
                return (self._comfyui.close_code or NORMAL), str(reason or "")
            size = len(data) + _MESSAGE_OVERHEAD
            self.buffered += size
            self._emptied.clear()
            self._filled.set()
            self._backlogs.grown(size)

    async def _write_client(self) -> None:
        turns = Turns()
        # uvicorn's error for a client that is gone is an OSError; the reader of the client is told, too.
        with contextlib.suppress(OSError):
            while True:
                while self._buffer:
                    kind, data = self._buffer[0]
                    # It waits until the earlier bytes are on their way, and only then writes these.
                    await self._send({"type": "websocket.send", kind: data})
                    self._buffer.popleft()
                    self.buffered -= len(data) + _MESSAGE_OVERHEAD
                    self._backlogs.shrunk(len(data) + _MESSAGE_OVERHEAD)
                    self._written += len(data)
                    self._to_client.inc(len(data))
                    await turns.handled(len(data))
                self._emptied.set()
                self._filled.clear()
                await self._filled.wait()

    async def _watch_client(self) -> None:
        """Drops the client when something waits for it and it has taken nothing for long."""
        reader = SlowReader(self._scope, self._idle_s)
        await reader.takes_nothing(lambda: self._written, lambda: bool(self._buffer))
        self.drop()
