"""The websockets of `/ws` and the one publisher that feeds them.

Like ComfyUI's: one queue of messages, sent one after the other without a time limit, so that a client that does not
read holds up the others; sockets are found by client id, and a handler that ends forgets its *id*, even when a newer
socket has taken it over (the reconnect under the same clientId that goes deaf).
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import uuid
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from aiohttp import ClientError, WSMsgType, web
from PIL import Image

from comfyui.engine.faults import Config, FaultError, Faults, with_wrong_value

_log = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 100 * 1024 * 1024
FEATURES = {"supports_preview_metadata": True, "max_upload_size": MAX_UPLOAD_BYTES}

_PREVIEW_IMAGE, _PREVIEW_WITH_METADATA = 1, 4
_FORMATS = {"JPEG": 1, "PNG": 2}
# A frame's first byte, and the length from which it has a longer head.
_FINAL, _LONG_FRAME = 0x80, 126


class Hub:
    """`send*` may be called from any thread; `client_id` None reaches every socket, as in ComfyUI.

    `flags` are sent to a client that begins with its own feature flags.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        faults: Faults,
        queue_info: Callable[[], dict[str, Any]],
        flags: Mapping[str, Any],
    ) -> None:
        self._loop = loop
        self._faults = faults
        self._queue_info = queue_info
        self._outbox: asyncio.Queue[tuple[str | bytes, str | None]] = asyncio.Queue()
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._open: dict[web.WebSocketResponse, web.Request] = {}
        self._flags = flags
        self._features: dict[str, dict[str, Any]] = {}
        self._seen: set[str] = set()
        self.executing: tuple[str, str] | None = None  # client id and node, told to that client when it reconnects

    @property
    def open_count(self) -> int:
        return len(self._open)

    def send(self, event: str, data: dict[str, Any], client_id: str | None = None) -> None:
        self._post(self._message(event, data), client_id)

    def _message(self, event: str, data: Mapping[str, Any]) -> str:
        message = json.dumps({"type": event, "data": data})
        wrong = self._faults.take("ws_wrong_value", type=event)
        return message if wrong is None else with_wrong_value(wrong, message)

    def send_status(self) -> None:
        self.send("status", {"status": self._queue_info()})

    def send_preview(
        self, image: Image.Image, image_format: str, metadata: dict[str, Any], client_id: str | None
    ) -> None:
        if not self._open:
            return
        encoded = BytesIO()
        image.save(encoded, image_format, quality=95, compress_level=1)
        if self.wants_preview_metadata(client_id):
            described = json.dumps({**metadata, "image_type": f"image/{image_format.lower()}"}).encode()
            head = struct.pack(">II", _PREVIEW_WITH_METADATA, len(described)) + described
        else:
            head = struct.pack(">II", _PREVIEW_IMAGE, _FORMATS[image_format])
        self._post(head + encoded.getvalue(), client_id)

    def wants_preview_metadata(self, client_id: str | None) -> bool:
        """Whether the client has declared that it knows pictures with metadata."""
        features = {} if client_id is None else self._features.get(client_id, {})
        return features.get("supports_preview_metadata") is True

    def _post(self, message: str | bytes, client_id: str | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, (message, client_id))

    async def publish(self) -> None:
        """Runs for the life of the engine."""
        while True:
            message, client_id = await self._outbox.get()
            if self._faults.is_on("ws_silent"):
                continue
            if client_id is None:
                sockets = list(self._sockets.values())
            else:
                sockets = [self._sockets[client_id]] if client_id in self._sockets else []
            for socket in sockets:
                await _send(socket, message)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        refusal = self._faults.take("ws_refuse")
        if refusal is not None:
            return web.Response(status=int(refusal.get("status", 503)))
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        self._open[socket] = request
        self._sockets[client_id] = socket
        self._features[client_id] = {}
        try:
            await self._greet(client_id, socket)
            await self._read(client_id, socket)
        finally:
            self._sockets.pop(client_id, None)
            self._features.pop(client_id, None)
            del self._open[socket]
        return socket

    async def _greet(self, client_id: str, socket: web.WebSocketResponse) -> None:
        if not self._faults.is_on("ws_silent"):
            status = {"status": self._queue_info(), "sid": client_id}
            await _send(socket, json.dumps({"type": "status", "data": status}))
            if self.executing is not None and self.executing[0] == client_id:
                await _send(socket, json.dumps({"type": "executing", "data": {"node": self.executing[1]}}))
        if client_id in self._seen and self._faults.take("ws_deaf_reconnect") is not None:
            self._sockets.pop(client_id, None)
        self._seen.add(client_id)

    async def _read(self, client_id: str, socket: web.WebSocketResponse) -> None:
        first = True
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                data = json.loads(message.data)
            except ValueError:
                _log.warning("Invalid JSON received from client %s", client_id)
                continue
            if first and isinstance(data, dict) and data.get("type") == "feature_flags":
                flags = data.get("data")
                self._features[client_id] = flags if isinstance(flags, dict) else {}
                if not self._faults.is_on("ws_silent"):
                    await _send(socket, self._message("feature_flags", self._flags))
            first = False

    def flood(self, config: Config) -> None:
        """Writes many messages past aiohttp, so that they come in one go."""
        text = str(config.get("text", "{}")).encode()
        if len(text) >= _LONG_FRAME:
            raise FaultError(f"fault ws_flood: text is shorter than {_LONG_FRAME} bytes")
        head = bytes([_FINAL | (WSMsgType.PING if config.get("ping") else WSMsgType.TEXT), len(text)])
        for request in self._open.values():
            if request.transport is not None:
                request.transport.write((head + text) * int(config.get("count", 50_000)))

    async def drop_all(self, *, abrupt: bool) -> int:
        """Ends every websocket that is open: with a close frame, or by cutting the connection."""
        victims = list(self._open.items())
        for socket, request in victims:
            if abrupt and request.transport is not None:
                request.transport.abort()
            else:
                await socket.close(code=1001)
        return len(victims)


async def _send(socket: web.WebSocketResponse, message: str | bytes) -> None:
    try:
        if isinstance(message, str):
            await socket.send_str(message)
        else:
            await socket.send_bytes(message)
    except (ClientError, ConnectionError) as error:
        _log.warning("send error: %s", error)
