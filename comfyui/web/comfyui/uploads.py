"""Files that clients upload where many servers are one ComfyUI: taken, masked, shown and listed.

No server has an upload before a prompt that names it is placed there: see `comfyui.inputs.catalogue`.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from comfyui import jsonio
from comfyui.exceptions import BodyTooLargeError, RequestError
from comfyui.handler import ComfyUIHandler
from comfyui.inputs.catalogue import SHARED, TYPES, NewName, check_name, place_at
from comfyui.inputs.content import Content
from comfyui.jobs.journal.writes import KeptUpload
from comfyui.web.comfyui.asked import Asked, last_part, query_of
from comfyui.web.comfyui.kept_file import KeptFile
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.comfyui.views import Views
from comfyui.web.front.errors import json_response

# Parameters of a query of /view that are passed on, besides the file.
_OF_VIEW = ("preview", "channel")
_REF = "original_ref"


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file as ComfyUI's clients name it."""

    filename: str
    subfolder: str
    type: str

    @property
    def path(self) -> str:
        return posixpath.join(self.subfolder, self.filename)


def file_ref(filename: str, subfolder: str, folder_type: str, *, plain: bool = False) -> FileRef:
    """The file as ComfyUI reads it: a suffix such as `` [output]`` names the folder. `plain`: only the last part is the
    name.
    """
    for name in TYPES:
        if filename.endswith(suffix := f" [{name}]"):
            filename, folder_type = filename.removesuffix(suffix), name
            break
    return FileRef(posixpath.basename(filename) if plain else filename, subfolder, folder_type)


class Posted(Protocol):
    """An upload as it came. `texts`: the other fields of its form."""

    @property
    def filename(self) -> str: ...
    @property
    def content(self) -> Content: ...
    @property
    def texts(self) -> Mapping[str, str]: ...


class Forms(Protocol):
    """Reads uploads; `comfyui.web.api.uploads` does it."""

    def posted(self, request: Request, max_file_bytes: int) -> AbstractAsyncContextManager[Posted]:
        """The posted file, until the block ends. Raises `ComfyUIError`; `RequestError` if it is no form with a file."""


class UploadRoutes:
    """Answers for uploads, of everybody."""

    def __init__(self, handler: ComfyUIHandler, forms: Forms, views: Views) -> None:
        self._uploads = handler.uploads
        self._catalogue = handler.uploads.catalogue
        self._made = handler.made
        self._forms = forms
        self._views = views

    async def image(self, request: Request, viewer: Viewer) -> Response:
        """Takes a file of any medium."""
        try:
            async with self._forms.posted(request, self._uploads.max_bytes) as posted:
                wanted = _wanted(posted, viewer)
                filename = await self._uploads.add(wanted, posted.content, moved=True)
        except RequestError as error:
            return _refused(error)
        return _taken(wanted, filename)

    async def mask(self, request: Request, viewer: Viewer) -> Response:
        """Takes a file that a server makes of another one and the transparency of this one."""
        try:
            async with self._forms.posted(request, self._uploads.max_bytes) as posted:
                wanted, ref = _wanted(posted, viewer), _original_of(posted.texts)
                async with self._original(ref, viewer) as original:
                    filename = await self._uploads.add_masked(wanted, posted.content, original, ref.filename)
        except RequestError as error:
            return _refused(error)
        return _taken(wanted, filename)

    @asynccontextmanager
    async def _original(self, ref: FileRef, viewer: Viewer) -> AsyncIterator[Content]:
        """The file, anywhere. Raises `RequestError` if the caller knows no such file."""
        async with AsyncExitStack() as stack:
            kept, found = self._find(viewer, ref), None
            if kept is not None:
                found = await stack.enter_async_context(self._catalogue.opened(kept))
            elif ref.type != "input" and self._made is not None:
                text = f"{ref.path} [{ref.type}]"
                found = await stack.enter_async_context(self._made.opened(text, viewer.key, _REF))
            elif ref.type == "input" and viewer.key is None:
                found = await stack.enter_async_context(self._uploads.opened_at_home(ref.path))
            if found is None:
                raise RequestError(
                    f"{_REF} names a file that does not exist: {ref.filename!r} in {ref.type}/{ref.subfolder}"
                )
            yield found

    async def view(self, request: Request, viewer: Viewer) -> str | Asked | Response:
        """An upload; otherwise the servers' files, or for a key the files that its jobs have made."""
        query = query_of(request.scope)
        ref = file_ref(query.get("filename", ""), query.get("subfolder", ""), query.get("type", "output"), plain=True)
        kept = self._find(viewer, ref)
        if kept is None:
            return await self._views.view(request, viewer)
        if not any(name in query for name in _OF_VIEW):
            return KeptFile(self._catalogue, kept, ref.filename)
        # A server makes the picture.
        server, value = await self._uploads.placed_anywhere(kept)
        subfolder, _, filename = value.rpartition("/")
        shown = {"filename": filename, "subfolder": subfolder, "type": "input"}
        shown |= {name: query[name] for name in _OF_VIEW if name in query}
        return Asked(f"/view?{urlencode(shown, errors='surrogatepass')}", server)

    async def files(self, request: Request, viewer: Viewer) -> str | Response:
        """Names of files directly below one of ComfyUI's folders: uploads, and files made by prompts.

        The newest of each come first, and each name of a made file begins with the id of its prompt. A caller that sees
        everything gets the first server's other files at the end.
        """
        folder = last_part(request)
        if folder not in TYPES:
            return json_response(400, {"error": "Invalid directory type"})
        names = [name for name in self._catalogue.names(_key_of(viewer), folder) if "/" not in name]
        known = set(names)
        # Nodes that tell of an input have made none.
        if folder != "input" and self._made is not None:
            made = await self._made.listed(viewer.key, folder)
            names += [one.merged_name for one in made]
            known |= {one.name for one in made if one.server == self._uploads.home}
        theirs = await self._uploads.at_home(folder) if viewer.key is None else []
        return _listed(names + [name for name in theirs if name not in known])

    def _find(self, viewer: Viewer, ref: FileRef) -> KeptUpload | None:
        try:
            place = place_at(ref.type, ref.path)
        except ValueError:
            return None
        return self._catalogue.find(_key_of(viewer), place)


def _key_of(viewer: Viewer) -> str:
    return SHARED if viewer.key is None else viewer.key


def _wanted(posted: Posted, viewer: Viewer) -> NewName:
    """Raises `RequestError`."""
    texts = posted.texts
    folder_type, subfolder = texts.get("type") or "input", texts.get("subfolder", "")
    overwrite = texts.get("overwrite") in {"true", "1"}
    wanted = NewName(_key_of(viewer), folder_type, subfolder, posted.filename, overwrite)
    try:
        check_name(wanted)
    except ValueError as error:
        raise RequestError(str(error)) from None
    return wanted


def _original_of(texts: Mapping[str, str]) -> FileRef:
    """Raises `RequestError`."""
    try:
        ref = jsonio.loads(texts.get(_REF, "").encode())
        filename, subfolder, folder_type = ref["filename"], ref.get("subfolder") or "", ref.get("type") or "output"
        if not all(isinstance(text, str) for text in (filename, subfolder, folder_type)):
            raise TypeError("not texts")
        return file_ref(filename, subfolder, folder_type)
    except (ValueError, TypeError, KeyError, AttributeError):
        how = 'original_ref must be JSON, such as {"filename": "a.png", "subfolder": "", "type": "input"}'
        raise RequestError(how) from None


def _taken(wanted: NewName, filename: str) -> Response:
    return json_response(200, {"name": filename, "subfolder": wanted.subfolder, "type": wanted.type})


def _listed(names: list[str]) -> Response:
    return Response(jsonio.dumps(names), media_type="application/json")


def _refused(error: RequestError) -> Response:
    """An answer with ComfyUI's status, which has no text. Raises errors that have their own status."""
    if isinstance(error, BodyTooLargeError):
        raise error
    return PlainTextResponse(error.detail, 400)
