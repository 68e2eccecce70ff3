"""The engine's own routes below `/engine/`, for tests, and its page for a browser."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from comfyui.engine.faults import FaultError, Faults
from comfyui.engine.stats import Stats
from comfyui.engine.websocket import Hub

_HOME = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Simulated ComfyUI</title></head>
<body>
<h1>This is a simulation of ComfyUI</h1>
<p>The embedded engine of comfyui-gateway answers here with ComfyUI's API. It has no GPU, no models and no graphical
frontend: pictures are drawn by a procedure and carry the mark SIMULATION.</p>
<p>See <a href="/object_info">/object_info</a>, <a href="/queue">/queue</a>, <a href="/history">/history</a>,
<a href="/system_stats">/system_stats</a>, <a href="/engine/stats">/engine/stats</a> and
<a href="/engine/faults">/engine/faults</a>.</p>
</body>
</html>
"""


async def home_page(_request: web.Request) -> web.Response:
    return web.Response(text=_HOME, content_type="text/html", headers={"Cache-Control": "no-cache"})


class ControlRoutes:
    def __init__(
        self, faults: Faults, stats: Stats, hub: Hub, set_faults: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        self._faults = faults
        self._stats = stats
        self._hub = hub
        self._set_faults = set_faults

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/engine/faults", self.get_faults),
            web.post("/engine/faults", self.post_faults),
            web.delete("/engine/faults", self.delete_faults),
            web.get("/engine/stats", self.get_stats),
            web.delete("/engine/stats", self.delete_stats),
        ]

    async def get_faults(self, _request: web.Request) -> web.Response:
        return web.json_response(self._faults.show())

    async def post_faults(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
            if not isinstance(body, dict):
                raise FaultError("the body must be an object of fault names and their configurations")
            await self._set_faults(body)
        except (FaultError, json.JSONDecodeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self._faults.show())

    async def delete_faults(self, _request: web.Request) -> web.Response:
        self._faults.clear()
        return web.json_response({})

    async def get_stats(self, _request: web.Request) -> web.Response:
        return web.json_response({**self._stats.show(), "websockets": self._hub.open_count})

    async def delete_stats(self, _request: web.Request) -> web.Response:
        self._stats.reset()
        return web.json_response({})
