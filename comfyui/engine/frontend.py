"""ComfyUI's web frontend from a folder, as ComfyUI serves it: the page at `/`, and each file by its path."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

# The same as in ComfyUI, so that a browser notices a new version.
_FRESH = {"Cache-Control": "no-cache", "Pragma": "no-cache", "Expires": "0"}


def frontend_routes(root: Path) -> list[web.RouteDef]:
    root = root.resolve()

    async def page(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(root / "index.html", headers=_FRESH)

    async def file(request: web.Request) -> web.StreamResponse:
        wanted = root / request.match_info["path"]
        if not await asyncio.to_thread(_is_file_in, root, wanted):
            return web.Response(status=404)
        return web.FileResponse(wanted)

    return [web.get("/", page), web.get("/{path:.*}", file)]


def _is_file_in(root: Path, wanted: Path) -> bool:
    try:
        return wanted.resolve().is_relative_to(root) and wanted.is_file()
    except (OSError, ValueError):
        return False
