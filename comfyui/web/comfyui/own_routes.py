"""Data of one `user` key that is not a job: its settings, its user data.

Each rule gives the request to ComfyUI in the caller's name, or the answer.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.web.comfyui.asked import Asked, last_part, query_of, raw_path
from comfyui.web.comfyui.home import Home
from comfyui.web.comfyui.own_userdata import OwnUserData
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.front.errors import json_response


class OwnRoutes:
    """Answers what only the owner may have."""

    def __init__(self, home: Home) -> None:
        self._home, self._userdata = home, OwnUserData(home)

    async def users(self, _request: Request, _viewer: Viewer) -> str | Response:
        """The answer of a ComfyUI that has one user."""
        return json_response(200, {"storage": "server", "migrated": True})

    async def settings(self, request: Request, viewer: Viewer) -> str | Response:
        """All settings of the key."""
        return json_response(200, await self._userdata.settings(request, viewer.rules))

    async def setting(self, request: Request, viewer: Viewer) -> str | Response:
        """One setting, or null."""
        found = (await self._userdata.settings(request, viewer.rules)).get(last_part(request))
        return Response(jsonio.dumps(found), media_type="application/json")

    async def change_settings(self, request: Request, viewer: Viewer) -> str | Response:
        """Settings of the key."""
        return await self._userdata.change_settings(request, viewer.rules, None)

    async def change_setting(self, request: Request, viewer: Viewer) -> str | Response:
        """One setting of the key."""
        return await self._userdata.change_settings(request, viewer.rules, last_part(request))

    async def list_userdata(self, request: Request, viewer: Viewer) -> str | Asked | Response:
        """Files of a folder of the key."""
        target = self._userdata.listing(viewer.rules, query_of(request.scope))
        return await self._home.relayed(request, target) if isinstance(target, str) else target

    async def walk_userdata(self, request: Request, viewer: Viewer) -> str | Response:
        """Files and folders of the key."""
        return await self._userdata.walked(request, viewer.rules, query_of(request.scope))

    async def userdata(self, request: Request, viewer: Viewer) -> str | Asked | Response:
        """One file of the key, to be read or removed."""
        target = self._userdata.file(viewer.rules, raw_path(request.scope))
        return Response(status_code=403) if target is None else await self._home.relayed(request, target)

    async def store_userdata(self, request: Request, viewer: Viewer) -> str | Response:
        """One file of the key, to be written or moved."""
        return await self._userdata.store(request, viewer.rules, raw_path(request.scope), query_of(request.scope))
