"""`/internal`: the latest log lines and the folders, which ComfyUI's frontend asks for."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from comfyui.engine.files import Folders

_KEPT_LINES = 300


class LogBook(logging.Handler):
    """Keeps the engine's latest log lines while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.entries: deque[dict[str, str]] = deque(maxlen=_KEPT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        moment = datetime.fromtimestamp(record.created)  # noqa: DTZ006 (ComfyUI shows local time)
        self.entries.append({"t": moment.isoformat(), "m": record.getMessage() + "\n"})

    def __enter__(self) -> Self:
        logging.getLogger("comfyui.engine").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("comfyui.engine").removeHandler(self)


class LogRoutes:
    def __init__(self, book: LogBook, folders: Folders) -> None:
        self._book = book
        self._folders = folders

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/internal/logs", self.logs),
            web.get("/internal/logs/raw", self.raw_logs),
            web.patch("/internal/logs/subscribe", self.subscribe),
            web.get("/internal/folder_paths", self.folder_paths),
            web.get("/internal/files/{directory_type}", self.files),
        ]

    async def logs(self, _request: web.Request) -> web.Response:
        return web.json_response("".join(f"{entry['t']} - {entry['m']}" for entry in self._book.entries))

    async def raw_logs(self, _request: web.Request) -> web.Response:
        return web.json_response({"entries": list(self._book.entries), "size": {"cols": 80, "rows": 24}})

    async def subscribe(self, request: web.Request) -> web.Response:
        """Accepted as ComfyUI accepts it; no log lines are sent on the websocket."""
        await request.json()
        return web.Response()

    async def folder_paths(self, _request: web.Request) -> web.Response:
        models = self._folders.base / "models"
        return web.json_response({name: [str(models / name)] for name in self._folders.models})

    async def files(self, request: web.Request) -> web.Response:
        folder = self._folders.by_type(request.match_info["directory_type"])
        if folder is None:
            return web.json_response({"error": "Invalid directory type"}, status=400)
        return web.json_response(await asyncio.to_thread(_newest_first, folder))


def _newest_first(folder: Path) -> list[str]:
    entries = [entry for entry in os.scandir(folder) if entry.is_file()]
    entries.sort(key=lambda entry: -entry.stat().st_mtime)
    return [entry.name for entry in entries]
