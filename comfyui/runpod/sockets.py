"""The bridge's websockets.

Two kinds of clients: the gateway's own watcher, which hears of every prompt, whoever submitted it; and frontends, which
the gateway relays and which hear of theirs, as in ComfyUI. A frontend's socket is also relayed to the local ComfyUI.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import structlog
from aiohttp import web

from comfyui import jsonio
from comfyui.exceptions import JSONError
from comfyui.offload import Turns
from comfyui.runpod.local import LocalComfyUI
from comfyui.tasks import end_tasks
from comfyui.transport.frames import Frames

_log = structlog.get_logger(__name__)

_Text = aiohttp.WSMsgType.TEXT
_Binary = aiohttp.WSMsgType.BINARY
_NO_FRAME_LIMIT = 0
# What a message costs beside its bytes.
_MESSAGE_OVERHEAD = 256
_GOING_AWAY, _TRY_AGAIN_LATER = 1001, 1013
_CLOSE_PATIENCE_S = 1.0
# The watcher may be told of a prompt's end just before it begins to watch it: it is told once more.
_SAID_AGAIN_S = 2.0
_FEATURES = {"supports_preview_metadata": True, "max_upload_size": 100 * 1024 * 1024}


class _Client:
    """One websocket, fed from a bounded buffer so that nobody waits for its reader."""

    def __init__(self, socket: web.WebSocketResponse, sid: str, *, is_own: bool, buffer_bytes: int) -> None:
        self.socket = socket
        self.sid = sid
        self.is_own = is_own
        self._buffer_bytes = buffer_bytes
        self._buffer: deque[str | bytes] = deque()
        self._buffered = 0
        self._filled = asyncio.Event()
        self.dropped = asyncio.Event()

    def post(self, message: str | bytes) -> None:
        if self.dropped.is_set():
            return
        self._buffer.append(message)
        self._buffered += len(message) + _MESSAGE_OVERHEAD
        self._filled.set()
        # A single message may be larger than the buffer.
        if self._buffered > self._buffer_bytes and len(self._buffer) > 1:
            _log.warning("runpod.slow_client", buffered_bytes=self._buffered)
            self._buffer.clear()
            self.dropped.set()

    async def write(self) -> None:
        """Until the client is gone, or is dropped."""
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            turns = Turns()
            while True:
                while self._buffer:
                    message = self._buffer.popleft()
                    self._buffered -= len(message) + _MESSAGE_OVERHEAD
                    if isinstance(message, str):
                        await self.socket.send_str(message)
                    else:
                        await self.socket.send_bytes(message)
                    await turns.handled(len(message))
                self._filled.clear()
                await self._filled.wait()


class Hub:
    """All websockets. `send` and the others return at once.

    Args:
        remaining: how many prompts are pending or running.
    """

    def __init__(self, local: LocalComfyUI, remaining: Callable[[], int], *, buffer_bytes: int) -> None:
        self._local = local
        self._remaining = remaining
        self._buffer_bytes = buffer_bytes
        self._clients: set[_Client] = set()
        local.listen(self.drop_own)

    def send(self, kind: str, data: Mapping[str, Any], client_id: str | None, *, to_all: bool = False) -> None:
        """To the gateway, and to the sockets of that client id."""
        message = jsonio.dumps({"type": kind, "data": data}).decode()
        for client in self._clients:
            if to_all or client.is_own or client.sid == client_id:
                client.post(message)

    def status(self) -> None:
        """To everyone: the queue has changed."""
        message = jsonio.dumps({"type": "status", "data": self._status()}).decode()
        for client in self._clients:
            client.post(message)

    def finished(self, prompt_id: str, client_id: str | None) -> None:
        """``executing`` with node null: the history can be read."""
        data = {"node": None, "prompt_id": prompt_id}
        self.send("executing", data, client_id)
        asyncio.get_running_loop().call_later(_SAID_AGAIN_S, self.send, "executing", data, None)

    def drop_own(self) -> None:
        """Have the gateway connect anew: what it knows of ComfyUI does not hold any more."""
        for client in self._clients:
            if client.is_own:
                client.dropped.set()

    def drop_all(self) -> None:
        for client in self._clients:
            client.dropped.set()

    async def handle(self, request: web.Request, *, is_own: bool) -> web.StreamResponse:
        """One client from its handshake to its end."""
        upstream = None if is_own else await self._local.connect_websocket(request)
        protocols = (upstream.protocol,) if upstream is not None and upstream.protocol else ()
        socket = web.WebSocketResponse(
            max_msg_size=_NO_FRAME_LIMIT, protocols=protocols, timeout=_CLOSE_PATIENCE_S, autoping=False
        )
        try:
            await socket.prepare(request)
            sid = request.query.get("clientId") or uuid.uuid4().hex
            client = _Client(socket, sid, is_own=is_own, buffer_bytes=self._buffer_bytes)
            if upstream is None:
                client.post(jsonio.dumps({"type": "status", "data": {**self._status(), "sid": sid}}).decode())
            self._clients.add(client)
            try:
                await self._serve(client, upstream)
            finally:
                self._clients.discard(client)
            if client.dropped.is_set() and request.transport is not None and not socket.closed:
                # It does not read: a close frame would only wait behind the others.
                request.transport.abort()
        finally:
            if upstream is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CLOSE_PATIENCE_S):
                        await upstream.close(code=_GOING_AWAY)
        return socket

    async def _serve(self, client: _Client, upstream: aiohttp.ClientWebSocketResponse[bool] | None) -> None:
        reading = asyncio.create_task(self._read_client(client, upstream), name="bridge websocket, from the client")
        writing = asyncio.create_task(client.write(), name="bridge websocket, to the client")
        dropped = asyncio.create_task(client.dropped.wait(), name="bridge websocket, dropped")
        tasks: list[asyncio.Task[Any]] = [reading, writing, dropped]
        if upstream is not None:
            tasks.append(asyncio.create_task(self._read_local(client, upstream), name="bridge websocket, from local"))
        try:
            # When only the local ComfyUI goes, RunPod's news still come.
            await asyncio.wait((reading, writing, dropped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*tasks)

    async def _read_client(self, client: _Client, upstream: aiohttp.ClientWebSocketResponse[bool] | None) -> None:
        first = True
        async for message in Frames(client.socket):
            if upstream is not None:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    if message.type is _Text:
                        await upstream.send_str(message.data)
                    elif message.type is _Binary:
                        await upstream.send_bytes(message.data)
            elif first and message.type is _Text and _kind_of(message.data) == "feature_flags":
                client.post(jsonio.dumps({"type": "feature_flags", "data": _FEATURES}).decode())
            first = False

    async def _read_local(self, client: _Client, upstream: aiohttp.ClientWebSocketResponse[bool]) -> None:
        async for message in Frames(upstream):
            if message.type is _Text:
                client.post(self._with_our_queue(client, message.data))
            elif message.type is _Binary:
                client.post(message.data)

    def _with_our_queue(self, client: _Client, text: str) -> str:
        """A frame of the local ComfyUI; its queue is not the one that the client's prompts wait in."""
        if _kind_of(text) != "status":
            return text
        data = jsonio.loads(text)["data"]
        if isinstance(sid := data.get("sid"), str):
            client.sid = sid  # a client that came without an id submits under this one
        return jsonio.dumps({"type": "status", "data": {**data, **self._status()}}).decode()

    def _status(self) -> dict[str, Any]:
        return {"status": {"exec_info": {"queue_remaining": self._remaining()}}}


def _kind_of(text: str) -> str | None:
    if '"type"' not in text:
        return None
    try:
        message = jsonio.loads(text)
    except JSONError:
        return None
    return message.get("type") if isinstance(message, dict) else None
