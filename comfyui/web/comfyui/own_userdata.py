"""Settings and user data of a `user` key: a folder of its own among those that ComfyUI keeps for its user.

ComfyUI's web frontend keeps workflows and settings there, and does not start without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from comfyui import jsonio
from comfyui.exceptions import BodyTooLargeError, RequestError
from comfyui.executors.own_files import is_below
from comfyui.owners import KeyRules, folder_of
from comfyui.web.comfyui.home import Home
from comfyui.web.front.errors import json_response

_SETTINGS = "comfy.settings.json"
_LISTING = ("recurse", "full_info", "split")
_STORING = ("overwrite", "full_info")
_LONGEST = 32_000_000


class OwnUserData:
    """Asks home, which has everybody's."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def listing(self, rules: KeyRules, query: Mapping[str, str]) -> str | Response:
        """The target for the files of a folder of the key."""
        wanted = _decoded(query.get("dir", "")).rstrip("/")
        folder = folder_of(rules.name)
        if not wanted:
            return PlainTextResponse("Directory not provided", 400)
        if not is_below(folder, f"{folder}/{wanted}"):
            return PlainTextResponse("Invalid directory", 403)
        kept = {name: query[name] for name in _LISTING if name in query}
        return f"/userdata?{urlencode({'dir': _encoded(f'{folder}/{wanted}'), **kept}, errors='surrogateescape')}"

    async def walked(self, request: Request, rules: KeyRules, query: Mapping[str, str]) -> Response:
        """All files and folders below a folder of the key, or below all that it has, as ComfyUI's second list."""
        wanted, folder = _decoded(_decoded(query.get("path", ""))).rstrip("/"), folder_of(rules.name)
        path = f"{folder}/{wanted}" if wanted else folder
        if wanted and not is_below(folder, path):
            return PlainTextResponse("Invalid path requested", 400)
        # ComfyUI decodes it twice itself.
        target = f"/v2/userdata?{urlencode({'path': _encoded(_encoded(path))}, errors='surrogateescape')}"
        status, body = await self._home.read(request.scope, target)
        if status == 404 and not wanted:
            return _list([])
        if status != 200:
            return PlainTextResponse(body, status)
        return _list([_without_folder(entry, f"{folder}/") for entry in jsonio.loads(body)])

    def file(self, rules: KeyRules, raw_path: str) -> str | None:
        """The target for one file, or for a move of it, without a query; None for a name that leads elsewhere."""
        parts = raw_path.removeprefix("/api").split("/")[2:]
        if len(parts) not in {1, 3} or parts[1:2] not in ([], ["move"]):
            return None
        folder = folder_of(rules.name)
        names = [f"{folder}/{unquote(part)}" for part in parts[::2]]
        if not all(is_below(folder, name) for name in names):
            return None
        return "/userdata/" + "/move/".join(quote(name, safe="") for name in names)

    async def store(self, request: Request, rules: KeyRules, raw_path: str, query: Mapping[str, str]) -> Response:
        """Write or move a file; the answer names it as the key does."""
        target = self.file(rules, raw_path)
        if target is None:
            return Response(status_code=403)
        kept = {name: query[name] for name in _STORING if name in query}
        target = f"{target}?{urlencode(kept, errors='surrogateescape')}"
        status, body, kind = await self._home.written(request.scope, "POST", target, await _read(request))
        if status != 200:
            return Response(body, status, {"Content-Type": kind} if kind else None)
        return json_response(200, _without_folder(jsonio.loads(body), f"{folder_of(rules.name)}/"))

    async def settings(self, request: Request, rules: KeyRules) -> dict[str, Any]:
        """All settings of the key."""
        target = f"/userdata/{quote(f'{folder_of(rules.name)}/{_SETTINGS}', safe='')}"
        status, body = await self._home.read(request.scope, target)
        if status == 404:
            return {}
        try:
            found = jsonio.loads(body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def change_settings(self, request: Request, rules: KeyRules, setting: str | None) -> Response:
        """Write one setting, or those that are given."""
        try:
            given = jsonio.loads(await _read(request))
        except ValueError:
            raise RequestError("the body is not JSON") from None
        if setting is None and not isinstance(given, dict):
            raise RequestError("the body is not a JSON object")
        lock = self._locks.setdefault(rules.name, asyncio.Lock())
        async with lock:
            settings = await self.settings(request, rules)
            settings |= given if setting is None else {setting: given}
            target = f"/userdata/{quote(f'{folder_of(rules.name)}/{_SETTINGS}', safe='')}?overwrite=true"
            status, _, _ = await self._home.written(request.scope, "POST", target, jsonio.dumps(settings))
        return Response(status_code=status)


def _decoded(name: str) -> str:
    """The name of a folder as ComfyUI reads it: it decodes the query's decoded value again."""
    return unquote(name, errors="surrogateescape")


def _encoded(name: str) -> str:
    """The text that ComfyUI reads as this name."""
    return quote(name, errors="surrogateescape")


async def _read(request: Request) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > _LONGEST:
            raise BodyTooLargeError(f"the body is larger than {_LONGEST / 1e6:g} MB")
    return bytes(content)


def _list(entries: list[Any]) -> Response:
    return Response(jsonio.dumps(entries), media_type="application/json")


def _without_folder(told: Any, folder: str) -> Any:
    """ComfyUI's answer about a file: its path, or its facts with the path among them."""
    if isinstance(told, str):
        return told.removeprefix(folder)
    if isinstance(told, dict) and isinstance(told.get("path"), str):
        return {**told, "path": told["path"].removeprefix(folder)}
    return told
