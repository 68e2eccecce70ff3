"""ComfyUI's answers about its nodes, its models and itself, united from those of all servers.

With one server there is nothing to unite: that server answers callers that see everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.executors.own_files import without_files
from comfyui.handler import ComfyUIHandler
from comfyui.inputs.catalogue import SHARED
from comfyui.offload import in_thread
from comfyui.transport.drivers import RawReply
from comfyui.web.comfyui.asked import Asked, last_part, raw_target
from comfyui.web.comfyui.merging import merged_features, merged_files, merged_folders, merged_names, merged_stats
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.comfyui.viewer import Viewer
from comfyui.workflows.node_definitions import ObjectInfo
from comfyui.workflows.uploaded import with_uploads

Answer = str | Asked | Response
_JSON = "application/json; charset=utf-8"
# Node definitions are some megabytes.
_MOST_SHOWN = 8


@dataclass(slots=True)
class _Shown:
    """The node definitions `base` with files of these names."""

    base: ObjectInfo
    names: list[str]
    object_info: ObjectInfo
    text: bytes = b""


class MergedReads:
    """Answers in the name of all servers."""

    def __init__(self, handler: ComfyUIHandler, upstreams: Upstreams) -> None:
        self._fleet = handler.fleet
        self._several = upstreams.several
        self._everywhere = upstreams.everywhere
        self._catalogue = handler.uploads.catalogue
        # The first definitions, as users may see them.
        self._without_files: tuple[ObjectInfo, ObjectInfo] = ({}, {})
        # By key, with its uploads as choices: the source, the whole, and its text. Few are kept.
        self._shown: OrderedDict[str, _Shown] = OrderedDict()

    async def definitions(self, request: Request, viewer: Viewer) -> Answer:
        """All node definitions with the caller's uploads as choices: for a `user` without files of others."""
        if self._is_home_s(viewer):
            return raw_target(request.scope)
        shown = await self._definitions(viewer)
        if not shown.text:
            shown.text = await in_thread(jsonio.dumps, shown.object_info)
        return Response(shown.text, headers={"Content-Type": _JSON})

    async def definition(self, request: Request, viewer: Viewer) -> Answer:
        """One node's definition; empty if no server has it."""
        if self._is_home_s(viewer):
            return raw_target(request.scope)
        class_type, known = last_part(request), (await self._definitions(viewer)).object_info
        return _json({class_type: known[class_type]} if class_type in known else {})

    def _is_home_s(self, viewer: Viewer) -> bool:
        """Whether the only server has the whole answer."""
        return not self._several and viewer.key is None and not self._catalogue.names(SHARED)

    async def _definitions(self, viewer: Viewer) -> _Shown:
        base = united = await self._fleet.definitions()
        if viewer.key is not None:
            known, base = self._without_files
            if known is not united:
                base = await in_thread(without_files, united)
                self._without_files = united, base
        names = self._catalogue.names(viewer.key or SHARED)
        # All who have no uploads are shown the same.
        key = viewer.key or SHARED if names else "/" if viewer.key else "//"
        shown = self._shown.get(key)
        if shown is None or shown.base is not base or shown.names != names:
            shown = _Shown(base, names, await in_thread(with_uploads, base, names))
            self._shown[key] = shown
            while len(self._shown) > _MOST_SHOWN:
                self._shown.popitem(last=False)
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
        """The answer of a server that has the requested object."""
        if not self._several:
            return raw_target(request.scope)
        return _as_it_came(await self._everywhere.first(raw_target(request.scope)))

    async def stats(self, request: Request, _viewer: Viewer) -> Answer:
        """The system and all devices."""
        if not self._several:
            return raw_target(request.scope)
        said = await self._everywhere.ask(raw_target(request.scope))
        stats = [(one.server, one.body) for one in said if isinstance(one.body, Mapping)]
        return _json(merged_stats(stats)) if stats else _as_it_came(said[0].reply)

    async def features(self, request: Request, _viewer: Viewer) -> Answer:
        """The features that all servers have."""
        if not self._several:
            return raw_target(request.scope)
        said = await self._everywhere.ask(raw_target(request.scope))
        # One without such an answer has no flags.
        return _json(merged_features([one.body if isinstance(one.body, Mapping) else {} for one in said]))


def _json(value: Any) -> Response:
    return Response(jsonio.dumps(value), headers={"Content-Type": _JSON})


def _as_it_came(reply: RawReply) -> Response:
    # ComfyUI's answer without a body has no type.
    return Response(reply.body, reply.status, {"Content-Type": reply.content_type} if reply.body else None)
