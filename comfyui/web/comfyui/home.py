"""Settings and user data of ComfyUI's web frontend: they are home's, the first configured server's.

While home is down, reads come from a copy of earlier reads and writes through the gateway. Data without a copy, and
every write, gets 503: a write that home never sees would be lost.
"""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Scope

from comfyui import jsonio
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUICredentialsError,
    ComfyUIError,
    ComfyUIServerError,
    ComfyUITimeoutError,
)
from comfyui.servers.server import Health
from comfyui.transport.body import OpenBody
from comfyui.transport.drivers import OpenReply
from comfyui.web.comfyui.asked import Asked, raw_target
from comfyui.web.comfyui.home_copy import MOST_OF_ONE, HomeCopy, Kept
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.front.headers import header, request_headers

_TIMEOUT_S = 30.0
_SETTINGS = "/settings"
# Headers of home's answer that a client needs.
_PASSED = frozenset(
    {
        *(b"content-type", b"content-length", b"etag", b"last-modified", b"cache-control", b"content-disposition"),
        *(b"content-range", b"accept-ranges"),
    }
)
# A server in front of home says so that home is down.
_DOWN = frozenset({502, 503, 504})
# The bytes are looked into, or kept.
_NOT_ASKED = frozenset({b"accept-encoding", b"content-encoding"})
# Headers of the caller that asks for a file: the answer to us must be complete.
_OF_A_PART = frozenset(
    {b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range"}
)


class Home:
    """Asks only the first configured server."""

    def __init__(self, upstreams: Upstreams, copy: HomeCopy) -> None:
        self._upstreams = upstreams
        self._copy = copy

    async def as_asked(self, request: Request, _viewer: Viewer) -> Asked | Response:
        """The answer to a request that is home's."""
        return await self.relayed(request, raw_target(request.scope))

    async def relayed(self, request: Request, target: str) -> Asked | Response:
        """The answer to what `target` asks of home with the request's method and body."""
        scope, method = request.scope, request.method
        if method in {"GET", "HEAD"}:
            return await self._read(scope, method, target, whole=False)
        declared = header(scope, b"content-length")
        if header(scope, b"transfer-encoding") is not None or int(declared or 0) > MOST_OF_ONE:
            # It streams through without a copy; the earlier copy is no longer valid.
            self._refuse_when_down()
            await self._copy.drop(_key(scope, target))
            return Asked(target, self._upstreams.home.backend.name)
        body = await request.body()
        status, content, content_type = await self.written(scope, method, target, body)
        return Response(content, status, {"Content-Type": content_type} if content_type else None)

    async def read(self, scope: Scope, target: str) -> tuple[int, bytes]:
        """Status and body of a GET, by the copy while home is down. Raises `ComfyUIError`."""
        response = await self._read(scope, "GET", target)
        if isinstance(response, StreamingResponse):
            raise ComfyUIServerError("ComfyUI's answer about user data is too long")
        return response.status_code, bytes(response.body)

    async def written(self, scope: Scope, method: str, target: str, body: bytes) -> tuple[int, bytes, str]:
        """Status, body and content type of a write. Raises `ComfyUIError`: home has not answered."""
        self._refuse_when_down()
        try:
            answer = await self._ask(scope, method, target, body)
        except (ComfyUIConnectionError, ComfyUITimeoutError) as error:
            raise self._down(error) from error
        try:
            content = b"".join([piece async for piece in answer.body])
        finally:
            answer.close()
        if answer.status in {200, 204}:
            await self._keep_written(scope, method, target, body)
        return answer.status, content, _text(answer, b"content-type")

    async def _read(self, scope: Scope, method: str, target: str, *, whole: bool = True) -> Response:
        key = _key(scope, target)
        if self._upstreams.home.backend.health is Health.DOWN:
            return await self._copied(key)
        try:
            answer = await self._ask(scope, method, target, None, whole=whole)
        except (ComfyUIConnectionError, ComfyUITimeoutError) as error:
            return await self._copied(key, error)
        headers = {name.decode(): value.decode("latin-1") for name, value in answer.headers if name in _PASSED}
        if answer.status in _DOWN and (kept := await self._copy.get(key)) is not None:
            answer.close()
            return _of_copy(kept)
        start = bytearray()
        try:
            while not answer.body.at_end() and len(start) <= MOST_OF_ONE:
                start += await answer.body.read()
        except BaseException:
            answer.close()
            raise
        if not answer.body.at_end():
            return StreamingResponse(_rest(answer, bytes(start)), answer.status, headers)
        answer.close()
        if answer.status == 404:
            await self._copy.drop(key)
        if answer.status == 200 and method == "GET":
            await self._copy.keep(key, Kept(headers.get("content-type", "application/octet-stream"), bytes(start)))
        if method == "GET":
            headers.pop("content-length", None)
        return Response(bytes(start), answer.status, headers)

    async def _copied(self, key: str, error: ComfyUIError | None = None) -> Response:
        kept = await self._copy.get(key)
        if kept is None:
            kept = await self._setting_of_all(key)
        if kept is None:
            raise self._down(error)
        return _of_copy(kept)

    async def _setting_of_all(self, key: str) -> Kept | None:
        """One setting, where only all of them have been read."""
        path, _, who = key.partition("\0")
        if not path.startswith(f"{_SETTINGS}/"):
            return None
        kept = await self._copy.get(f"{_SETTINGS}\0{who}")
        if kept is None:
            return None
        return Kept("application/json", jsonio.dumps(_object(kept.body).get(path.removeprefix(f"{_SETTINGS}/"))))

    async def _keep_written(self, scope: Scope, method: str, target: str, body: bytes) -> None:
        key = _key(scope, target.partition("?")[0])
        path, _, who = key.partition("\0")
        if path.startswith(_SETTINGS):
            await self._settings_written(path, who, body)
        elif "/move/" in path:
            first, _, last = path.partition("/move/")
            moved, dest = f"{first}\0{who}", f"/userdata/{last}\0{who}"
            kept = await self._copy.get(moved)
            await self._copy.drop(moved)
            await (self._copy.drop(dest) if kept is None else self._copy.keep(dest, kept))
        elif method == "POST":
            kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
            await self._copy.keep(key, Kept(kind, body))
        else:
            await self._copy.drop(key)

    async def _settings_written(self, path: str, who: str, body: bytes) -> None:
        whole = f"{_SETTINGS}\0{who}"
        kept = await self._copy.get(whole)
        try:
            given = jsonio.loads(body)
        except ValueError:
            return
        name = path.removeprefix(_SETTINGS).removeprefix("/")
        changed: dict[str, Any] = {name: given} if name else given if isinstance(given, dict) else {}
        for one in changed:
            await self._copy.drop(f"{_SETTINGS}/{one}\0{who}")
        if kept is not None:
            settings = jsonio.dumps({**_object(kept.body), **changed})
            await self._copy.keep(whole, Kept(kept.content_type, settings))

    async def _ask(
        self, scope: Scope, method: str, target: str, body: bytes | None, *, whole: bool = True
    ) -> OpenReply:
        upstream, dropped = self._upstreams.home, _NOT_ASKED | _OF_A_PART if whole else _NOT_ASKED
        headers = [
            pair
            for pair in request_headers(scope, upstream.base_url, upstream.credentials)
            if pair[0].lower() not in dropped
        ]
        headers.append((b"Accept-Encoding", b"identity"))
        try:
            answer = await upstream.transport.request(method, target, headers, body, timeout_s=_TIMEOUT_S)
        except ComfyUIConnectionError as error:
            upstream.backend.failed(error)
            raise
        if answer.status == 401 and upstream.credentials:
            answer.close()
            raise ComfyUICredentialsError(method, upstream_status=401)
        return answer

    def _refuse_when_down(self) -> None:
        if self._upstreams.home.backend.health is Health.DOWN:
            raise self._down(None)

    def _down(self, error: ComfyUIError | None) -> ComfyUIConnectionError:
        backend = self._upstreams.home.backend
        detail = error.detail if error is not None else backend.reason
        return ComfyUIConnectionError(
            f"settings and user data are stored on the first server, which cannot be reached now; {detail}"
        )


def _key(scope: Scope, target: str) -> str:
    """The same for each way to ask for the same: path and query, and the user of ``--multi-user``."""
    path, mark, query = target.removeprefix("/api").partition("?")
    who = header(scope, b"comfy-user") or b""
    return f"{unquote(path, errors='replace')}{mark}{query}\0{who.decode('latin-1')}"


def _of_copy(kept: Kept) -> Response:
    return Response(kept.body, headers={"Content-Type": kept.content_type, "Cache-Control": "no-store"})


async def _rest(answer: OpenReply, start: bytes) -> AsyncIterator[bytes]:
    body: OpenBody = answer.body
    try:
        yield start
        async for piece in body:
            yield piece
    finally:
        answer.close()


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = jsonio.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(answer: OpenReply, name: bytes) -> str:
    return answer.header(name) or ""
