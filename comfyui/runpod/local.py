"""`LocalComfyUI`: the ComfyUI beside the gateway, which knows nodes and has the web frontend, and needs no GPU.

It may be away: then its paths are answered 503, and prompts run all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import structlog
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from comfyui import big_json, jsonio
from comfyui.address import parse_server_address
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIServerError,
    JSONError,
    error_body_of,
    retry_after_s,
)
from comfyui.headers import AUTOMATIC, RawHeaders, as_text, to_client, to_comfyui
from comfyui.limits import JSON_OF_COMFYUI, AnswerLimits
from comfyui.offload import in_thread
from comfyui.replies import object_info
from comfyui.runpod.options import RunPodTimes
from comfyui.tasks import SideTasks
from comfyui.transport.over_aiohttp import whole_body

_PROBE_TIMEOUT_S = 3.0
_CONNECT_S = 3.0
# Of an answer: whoever waited for it is gone by then.
_SILENCE_S = 3600.0
_HANDSHAKE_S = 10.0
_DEFINITIONS_S = 30.0
_HEADER_BYTES = 64 * 1024
# Long: ComfyUI's event loop stands still while it loads a model.
_HEARTBEAT_S = 120.0


class LocalComfyUI:
    """Open it with ``async with``; it owns its session, and a task that notices when ComfyUI comes or goes."""

    def __init__(self, address: str, answers: AnswerLimits, times: RunPodTimes) -> None:
        self.answers = answers
        server = parse_server_address(address)
        self._authorization = server.authorization
        self._base_url = server.url
        self.name = server.name
        self._times = times
        self.reachable = False
        self._listeners: list[Callable[[], None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._side = SideTasks()
        self._definitions: Mapping[str, Any] | None = None
        self._definitions_at = -math.inf
        self._lock = asyncio.Lock()
        self._log = structlog.get_logger(__name__).bind(local=self.name)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={hdrs.AUTHORIZATION: self._authorization} if self._authorization else None,
            skip_auto_headers=AUTOMATIC,
            # Bodies pass through as they are.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        await self._probe()
        if not self.reachable:
            self._log.info("runpod.local", state="away")
        self._side.start(self._probe_loop(), f"probe of the local ComfyUI {self.name}")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._side.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def listen(self, listener: Callable[[], None]) -> None:
        """Have it called whenever ComfyUI comes or goes."""
        self._listeners.append(listener)

    # HTTP

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Any status is an answer. Raises `ComfyUIConnectionError`, within the ``async with`` body too."""
        try:
            async with self._open_session.request(
                method,
                URL(f"{self._base_url}{target}", encoded=True),
                headers=headers,
                data=data,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
            ) as response:
                self._is(reachable=True)
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._is(reachable=False)
            raise self._away() from error
        except TimeoutError as error:
            raise ComfyUIConnectionError("the local ComfyUI does not answer in time", sent=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ComfyUIConnectionError("the local ComfyUI broke the connection", sent=True) from error

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """The request as it came, the answer as it comes; each side is read as fast as the other one takes it."""
        response: web.StreamResponse | None = None
        try:
            async with self.request(
                request.method,
                request.raw_path,
                headers=self._headers(request),
                data=request.content if request.body_exists else None,
            ) as answer:
                response = web.StreamResponse(status=answer.status, reason=answer.reason)
                said = to_client(_lower(answer.raw_headers), answer.status, self._base_url, "")
                response.headers.extend(as_text(said))
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except ComfyUIConnectionError as error:
            if response is None:
                return refusal(error)
            # Cut, so that it is not taken for whole.
            if request.transport is not None:
                request.transport.abort()
            return response

    async def object_info(self) -> Mapping[str, Any] | None:
        """Its node definitions, asked for at most twice a minute; None while there are none."""
        if not self.reachable:
            return None
        async with self._lock:
            if time.monotonic() - self._definitions_at > _DEFINITIONS_S:
                try:
                    self._definitions = await self._get_definitions()
                except ComfyUIError as error:
                    self._log.warning("runpod.local_failed", detail=error.detail)
                # A failure holds as long: those that wait here must not each wait for another one.
                self._definitions_at = time.monotonic()
            return self._definitions

    async def _get_definitions(self) -> Mapping[str, Any]:
        path = "/object_info"
        async with self.request("GET", path, timeout_s=self._times.local_definitions_s) as response:
            body = await whole_body(response, self.answers, f"GET {path}")
            if response.status != 200:
                raise ComfyUIServerError(f"the local ComfyUI answered {path} with HTTP {response.status}")
        try:
            answer = await in_thread(big_json.load, body, JSON_OF_COMFYUI)
        except JSONError as error:
            raise ComfyUIServerError(f"the local ComfyUI's answer to {path} is not JSON: {error}") from error
        return object_info(answer) if isinstance(answer, dict) else {}

    # Websocket

    async def connect_websocket(self, request: web.Request) -> aiohttp.ClientWebSocketResponse[bool] | None:
        """Its side of a client's ``/ws``, to be read by `Frames`; None while it cannot be had."""
        if not self.reachable:
            return None
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                return await self._open_session.ws_connect(
                    URL(f"{self._base_url}{request.raw_path}", encoded=True),
                    headers=self._headers(request, handshake=True),
                    max_msg_size=self.answers.max_frame_bytes,
                    heartbeat=_HEARTBEAT_S,
                    autoping=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._log.warning("runpod.local_failed", detail=f"its websocket: {type(error).__name__}")
            return None

    # Whether it is there

    async def _probe_loop(self) -> None:
        while True:
            await asyncio.sleep(self._times.probe_local_s)
            await self._probe()

    async def _probe(self) -> None:
        with contextlib.suppress(ComfyUIConnectionError):
            async with self.request("GET", "/prompt", timeout_s=_PROBE_TIMEOUT_S) as response:
                await response.read()

    def _is(self, *, reachable: bool) -> None:
        if reachable is self.reachable:
            return
        self.reachable = reachable
        self._definitions, self._definitions_at = None, -math.inf
        self._log.info("runpod.local", state="connected" if reachable else "away")
        for listener in self._listeners:
            listener()

    def _away(self) -> ComfyUIConnectionError:
        return ComfyUIConnectionError(
            f"no local ComfyUI answers at {self.name} (COMFYUI_SERVER_ADDRESS); prompts run on RunPod without it"
        )

    # Headers

    @property
    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the local ComfyUI inside 'async with'")
        return self._session

    def _headers(self, request: web.Request, *, handshake: bool = False) -> CIMultiDict[str]:
        """The client's, for the local ComfyUI: not the bridge's own password, and the length that aiohttp keeps to."""
        raw = [pair for pair in _lower(request.raw_headers) if pair[0] != b"authorization"]
        headers = CIMultiDict(as_text(to_comfyui(raw, self._base_url, sender=None, handshake=handshake)))
        if request.content_length is not None and request.body_exists:
            headers[hdrs.CONTENT_LENGTH] = str(request.content_length)
        return headers


def _lower(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers]


def refusal(error: ComfyUIError) -> web.Response:
    """`error` in the gateway's own shape."""
    headers = {hdrs.RETRY_AFTER: str(seconds)} if (seconds := retry_after_s(error)) is not None else None
    return web.Response(
        status=error.status, body=jsonio.dumps(error_body_of(error)), content_type="application/json", headers=headers
    )
