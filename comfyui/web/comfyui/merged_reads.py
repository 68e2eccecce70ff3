"""What ComfyUI tells of its nodes, its models and itself, made of the answers of all servers.

With one server there is nothing to unite: who sees all is answered by that server itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.executors.own_files import without_files
from comfyui.handler import ComfyUIHandler
from comfyui.offload import in_thread
from comfyui.transport.drivers import RawReply
from comfyui.web.comfyui.asked import Asked, last_part, raw_target
from comfyui.web.comfyui.merging import merged_features, merged_files, merged_folders, merged_names, merged_stats
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.comfyui.viewer import Viewer
from comfyui.workflows.node_definitions import ObjectInfo

Answer = str | Asked | Response
_JSON = "application/json; charset=utf-8"


class MergedReads:
    """Answers in the name of all servers."""

    def __init__(self, handler: ComfyUIHandler, upstreams: Upstreams) -> None:
        self._fleet = handler.fleet
        self._several = upstreams.several
        self._everywhere = upstreams.everywhere
        # Made of the definitions that stand first: what each kind of viewer sees, as a whole and as text.
        self._shown: dict[bool, tuple[ObjectInfo, ObjectInfo]] = {}
        self._texts: dict[bool, tuple[ObjectInfo, bytes]] = {}

    async def definitions(self, request: Request, viewer: Viewer) -> Answer:
        """All node definitions: for a `user` without files that were uploaded."""
        if not self._several and viewer.key is None:
            return raw_target(request.scope)
        shown = await self._definitions(viewer)
        known, text = self._texts.get(viewer.key is None, ({}, b""))
        if known is not shown or not text:
            text = await in_thread(jsonio.dumps, shown)
            self._texts[viewer.key is None] = shown, text
        return Response(text, headers={"Content-Type": _JSON})

    async def definition(self, request: Request, viewer: Viewer) -> Answer:
        """One node's; empty where no server has it."""
        if not self._several and viewer.key is None:
            return raw_target(request.scope)
        class_type, known = last_part(request), await self._definitions(viewer)
        return _json({class_type: known[class_type]} if class_type in known else {})

    async def _definitions(self, viewer: Viewer) -> ObjectInfo:
        united = await self._fleet.definitions()
        if viewer.key is None:
            return united
        known, shown = self._shown.get(True, ({}, {}))
        if known is not united:
            shown = await in_thread(without_files, united)
            self._shown[True] = united, shown
        return shown

    async def names(self, request: Request, _viewer: Viewer) -> Answer:
        """Kinds of models, files of a kind, or embeddings."""
        return await self._united(request, merged_names)

    async def folders(self, request: Request, _viewer: Viewer) -> Answer:
        """Kinds of models with their folders."""
        return await self._united(request, merged_folders)

    async def files(self, request: Request, _viewer: Viewer) -> Answer:
        """Files of a kind of model, with their sizes and times."""
        return await self._united(request, merged_files)

    async def _united(self, request: Request, united: Callable[[list[Any]], Any]) -> Answer:
        if not self._several:
            return raw_target(request.scope)
        said = await self._everywhere.ask(raw_target(request.scope))
        lists = [one.body for one in said if isinstance(one.body, list)]
        return _json(united(lists)) if lists else _as_it_came(said[0].reply)

    async def one_that_has(self, request: Request, _viewer: Viewer) -> Answer:
        """The answer of a server that has what is asked for."""
        if not self._several:
            return raw_target(request.scope)
        return _as_it_came(await self._everywhere.first(raw_target(request.scope)))

    async def stats(self, request: Request, _viewer: Viewer) -> Answer:
        """Of the system and of all devices."""
        if not self._several:
            return raw_target(request.scope)
        said = await self._everywhere.ask(raw_target(request.scope))
        stats = [(one.server, one.body) for one in said if isinstance(one.body, Mapping)]
        return _json(merged_stats(stats)) if stats else _as_it_came(said[0].reply)

    async def features(self, request: Request, _viewer: Viewer) -> Answer:
        """What all servers can do."""
        if not self._several:
            return raw_target(request.scope)
        said = await self._everywhere.ask(raw_target(request.scope))
        # One without such an answer has no flags.
        return _json(merged_features([one.body if isinstance(one.body, Mapping) else {} for one in said]))


def _json(value: Any) -> Response:
    return Response(jsonio.dumps(value), headers={"Content-Type": _JSON})


def _as_it_came(reply: RawReply) -> Response:
    return Response(reply.body, reply.status, {"Content-Type": reply.content_type})
