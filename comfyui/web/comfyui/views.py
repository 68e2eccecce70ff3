"""``GET /view`` of the merged face: a file is on its prompt's server, and its subfolder names the prompt.

A subfolder without a prompt that the caller may see is one of ComfyUI's own: home is asked, then the others. A key of
role `user` then gets only files that its jobs made or that it uploaded, and learns nothing else: a prompt of another
key, an unknown prompt, and a file that a prompt did not make have the same answer.
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from comfyui.exceptions import ComfyUINotFoundError
from comfyui.executors.own_files import is_below
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.job import Job
from comfyui.merged_files import OfPrompt, from_merged
from comfyui.owners import folder_of, place_of
from comfyui.servers.backend import Backend
from comfyui.servers.server import Server
from comfyui.web.comfyui.asked import Asked, query_of, raw_target
from comfyui.web.comfyui.kept_files import kept_file
from comfyui.web.comfyui.viewer import Viewer

# Parameters of a query of /view that are passed on, besides the file.
_OF_VIEW = ("preview", "channel")


class _Known(NamedTuple):
    """A prompt: its present or last server, its owner, and its job while it runs."""

    server: str | None
    owner: str | None
    job: Job | None = None


class Views:
    """Answers every caller."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._journal = handler.journal
        self._standing = handler.standing
        self._pool = handler.pool
        self._made = handler.made

    async def view(self, request: Request, viewer: Viewer) -> str | Asked | Response:
        """The request to a server for the file; 404 if there is none for this caller."""
        query = query_of(request.scope)
        found = from_merged(query.get("subfolder", ""))
        if found is not None:
            known = await self._known(found.prompt_id, viewer)
            if known is not None:
                return await self._of_prompt(request, viewer, found, known)
        if viewer.key is None:
            return raw_target(request.scope)
        return await self._own(request, viewer)

    async def _known(self, prompt_id: str, viewer: Viewer) -> _Known | None:
        """None if the caller knows no such prompt."""
        job = self._standing.job(prompt_id)
        if job is not None and job.backend is not None:
            return _Known(job.backend.name, job.owner, job) if viewer.sees(job.owner) else None
        record = await self._journal.get(prompt_id)
        return _Known(record.server, record.owner) if record is not None and viewer.sees(record.owner) else None

    async def _of_prompt(self, request: Request, viewer: Viewer, prompt: OfPrompt, known: _Known) -> Asked | Response:
        """A file of a prompt that the caller may see. No other server is asked: it may have another's of this name."""
        query = query_of(request.scope)
        place, server = _place(query, prompt.subfolder), known.server
        if server is None or self._made is None or (place is None and viewer.key is not None):
            return Response(status_code=404)
        # While a prompt runs, its client already hears of files.
        if place is not None and not (known.job is not None and known.job.has_shown(place)):
            is_own = await self._made.is_of(prompt.prompt_id, known.owner, server, place)
            # A file that no known prompt made: callers that see everything may have it.
            if is_own is False or (is_own is None and viewer.key is not None):
                return Response(status_code=404)
        there = self._pool.named(server)
        if there is None:
            detail = "the server that made this file is no longer in COMFYUI_SERVER_ADDRESS"
            raise ComfyUINotFoundError(detail, prompt_id=prompt.prompt_id)
        return await self._from(there, request, prompt)

    async def _from(self, server: Server, request: Request, prompt: OfPrompt) -> Asked | Response:
        """A file as the server gives it, or as it is kept here."""
        query = query_of(request.scope)
        if isinstance(server, Backend):
            return _asked(query, prompt.subfolder, server.name)
        path = None
        if query.get("type", "output") == "output":
            path = await server.path_of(prompt.prompt_id, prompt.subfolder, query.get("filename", ""))
        return Response(status_code=404) if path is None else await kept_file(request, path)

    async def _own(self, request: Request, viewer: Viewer) -> Asked | Response:
        """A file that a job of the key has made, or that the key has uploaded. All others are not there."""
        query = query_of(request.scope)
        rules, subfolder = viewer.rules, query.get("subfolder", "")
        place = _place(query, subfolder)
        if place is None or self._made is None:
            return Response(status_code=404)
        if query.get("type") == "input" and is_below(folder_of(rules.name), place.removeprefix("input/")):
            return _asked(query, subfolder, None)
        newest = await self._made.newest(rules.name, place)
        server = None if newest is None else self._pool.named(newest.server)
        if newest is None or server is None:
            return Response(status_code=404)
        return await self._from(server, request, OfPrompt(newest.prompt_id, subfolder))


def _place(query: dict[str, str], subfolder: str) -> str | None:
    """The file's place in the journal; None if it is not a plain name."""
    given = query.get("filename", "")
    # ComfyUI reads the last part only, so the file is another one than a name with folders seems to say.
    filename = posixpath.basename(given)
    # A suffix such as " [output]" would lead to another folder.
    if not filename or ".." in given or filename.rstrip().endswith("]"):
        return None
    return place_of(query.get("type", "output"), subfolder, filename)


def _asked(query: dict[str, str], subfolder: str, server: str | None) -> Asked:
    # Written again: two servers may read the same query in two ways.
    named = {name: query[name] for name in ("filename", "type", *_OF_VIEW) if name in query}
    return Asked(f"/view?{urlencode({**named, 'subfolder': subfolder}, errors='surrogatepass')}", server)
