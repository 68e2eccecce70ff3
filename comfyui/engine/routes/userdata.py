"""Settings and files of the one user, as ComfyUI's frontend keeps them on the server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from aiohttp.typedefs import Handler

from comfyui.engine.files import Folders, is_within

_SETTINGS_FILE = "comfy.settings.json"


class UserRoutes:
    def __init__(self, folders: Folders) -> None:
        self._home = folders.user / "default"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/users", _in_thread(self.users)),
            web.post("/users", _in_thread(self.add_user)),
            web.get("/settings", _in_thread(self.get_settings)),
            web.post("/settings", _in_thread(self.post_settings)),
            web.get("/settings/{id}", _in_thread(self.get_setting)),
            web.post("/settings/{id}", _in_thread(self.post_setting)),
            web.get("/userdata", _in_thread(self.list_files)),
            web.get("/v2/userdata", _in_thread(self.list_v2)),
            web.get("/userdata/{file}", _in_thread(self.get)),
            web.post("/userdata/{file}", _in_thread(self.post)),
            web.delete("/userdata/{file}", _in_thread(self.delete)),
            web.post("/userdata/{file}/move/{dest}", _in_thread(self.move)),
        ]

    def users(self, _request: web.Request, _body: bytes) -> web.Response:
        return web.json_response({"storage": "server", "migrated": self._home.exists()})

    def add_user(self, _request: web.Request, body: bytes) -> web.Response:
        """There is one user only, as in a ComfyUI without --multi-user."""
        if json.loads(body)["username"] == "default":
            return web.json_response({"error": "Duplicate username."}, status=400)
        raise web.HTTPInternalServerError

    def get_settings(self, _request: web.Request, _body: bytes) -> web.Response:
        return web.json_response(self._settings())

    def get_setting(self, request: web.Request, _body: bytes) -> web.Response:
        return web.json_response(self._settings().get(request.match_info["id"]))

    def post_settings(self, _request: web.Request, body: bytes) -> web.Response:
        self._save_settings(self._settings() | json.loads(body))
        return web.Response()

    def post_setting(self, request: web.Request, body: bytes) -> web.Response:
        self._save_settings(self._settings() | {request.match_info["id"]: json.loads(body)})
        return web.Response()

    def _settings(self) -> dict[str, Any]:
        try:
            settings: dict[str, Any] = json.loads((self._home / _SETTINGS_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return settings

    def _save_settings(self, settings: dict[str, Any]) -> None:
        (self._home / _SETTINGS_FILE).write_text(json.dumps(settings, indent=4))

    def list_files(self, request: web.Request, _body: bytes) -> web.Response:
        query = request.query
        if not query.get("dir"):
            return web.Response(status=400, text="Directory not provided")
        folder = self._path(query["dir"])
        if folder is None:
            return web.Response(status=403, text="Invalid directory")
        if not folder.exists():
            return web.Response(status=404, text="Directory not found")
        found: list[Any] = []
        for path in _visible_files(folder, recurse=_is_true(query.get("recurse"))):
            relative = path.relative_to(folder).as_posix()
            if _is_true(query.get("full_info")):
                found.append(_file_info(path, folder))
            else:
                found.append([relative, *relative.split("/")] if _is_true(query.get("split")) else relative)
        return web.json_response(found)

    def list_v2(self, request: web.Request, _body: bytes) -> web.Response:
        """Files and folders below a path, folders first."""
        folder = self._path(unquote(request.query.get("path", ""))) if request.query.get("path") else self._home
        if folder is None:
            return web.Response(status=400, text="Invalid path requested")
        if not folder.exists():
            return web.Response(status=404, text="Requested path not found")
        if not folder.is_dir():
            return web.Response(status=400, text="Requested path is not a directory")
        found: list[dict[str, Any]] = []
        for path in folder.rglob("*"):
            entry: dict[str, Any] = {"name": path.name, "path": path.relative_to(self._home).as_posix()}
            if path.is_dir():
                found.append({**entry, "type": "directory"})
            else:
                status = path.stat()
                found.append({**entry, "type": "file", "size": status.st_size, "modified": status.st_mtime})
        found.sort(key=lambda entry: (entry["type"] != "directory", entry["name"].lower()))
        return web.json_response(found)

    def get(self, request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.FileResponse(self._existing(request))

    def post(self, request: web.Request, body: bytes) -> web.Response:
        path = self._wanted(request, "file")
        if request.query.get("overwrite") == "false" and path.exists():
            return web.Response(status=409, text="File already exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(body)
        except OSError:
            return web.Response(status=400, reason='Invalid filename. Please avoid special characters like :\\/*?"<>|')
        return self._told(request, path)

    def delete(self, request: web.Request, _body: bytes) -> web.Response:
        self._existing(request).unlink()
        return web.Response(status=204)

    def move(self, request: web.Request, _body: bytes) -> web.Response:
        source, target = self._existing(request), self._wanted(request, "dest")
        if request.query.get("overwrite") == "false" and target.exists():
            return web.Response(status=409, text="File already exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
        return self._told(request, target)

    def _told(self, request: web.Request, path: Path) -> web.Response:
        if _is_true(request.query.get("full_info")):
            return web.json_response(_file_info(path, self._home))
        return web.json_response(path.relative_to(self._home).as_posix())

    def _wanted(self, request: web.Request, parameter: str) -> Path:
        path = self._path(request.match_info[parameter])
        if path is None:
            raise web.HTTPForbidden(text="")
        return path

    def _existing(self, request: web.Request) -> Path:
        path = self._wanted(request, "file")
        if not os.path.exists(path):  # noqa: PTH110 (a name that is too long is none)
            raise web.HTTPNotFound(text="")
        return path

    def _path(self, name: str) -> Path | None:
        """The path below the user's folder; None if the name leads out of it. Names may be encoded twice."""
        path = Path(os.path.normpath(self._home / unquote(name)))
        return path if is_within(self._home, path) else None


def _in_thread(answer: Callable[[web.Request, bytes], web.StreamResponse]) -> Handler:
    """A handler that reads the body and leaves the rest, which is work on files, to a thread."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await asyncio.to_thread(answer, request, await request.read())

    return handler


def _is_true(value: str | None) -> bool:
    return value is not None and value.lower() == "true"


def _visible_files(folder: Path, *, recurse: bool) -> Iterator[Path]:
    for path in folder.rglob("*") if recurse else folder.glob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file():
            yield path


def _file_info(path: Path, relative_to: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "path": path.relative_to(relative_to).as_posix(),
        "size": status.st_size,
        "modified": status.st_mtime,
        "created": status.st_ctime,
    }
