"""Placing a request's inputs in ComfyUI before its prompt is queued: base64, data URIs, URLs and spooled files.

**Names.** Two callers may send different pictures under the same name, ``input.png``, at the same time; stored under
that name, one of them would be rendered with the other's picture. So an input that the workflow refers to is stored
under a name made of its content, ``gateway/<hash>.png``, and the reference is rewritten. Only a certain reference
counts: an upload widget (``upload_inputs``) whose value is exactly the entry's ``name`` or ``subfolder/name``, with or
without ComfyUI's suffix ``[input]``. A text that happens to equal a file's name is never changed. If the name also
occurs somewhere else in the workflow, or nowhere (a custom node that finds its file by itself), the file is stored
under its plain name as ComfyUI would do it; there the last caller wins. If ComfyUI answers with another name than the
requested one, the workflow's texts follow it.

**Uploads.** An earlier upload of a client keeps its plain name if no other bytes have that name on the server, so that
the workflow is submitted unchanged. Otherwise, and for an upload of one key alone, the name is
``gateway/<sha256>/<name>``.

**Once.** A file stored under its content's name is uploaded once per ComfyUI server and then remembered, even if many
requests bring it at the same moment. Plain names are uploaded each time: another client may have overwritten them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

from aiohttp.abc import AbstractResolver

from comfyui.client import may_pass
from comfyui.exceptions import ComfyUIError, ComfyUIInputError, ComfyUINotFoundError, ComfyUIServerError
from comfyui.inputs.content import BroughtFiles, Content
from comfyui.inputs.decoding import base64_of, decode
from comfyui.inputs.fetch import UrlFetcher
from comfyui.inputs.plan import Item, Placed, Upload, field_of, is_url, named_by_hash, plan, rewritten
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.models import PromptRequest
from comfyui.offload import ON_LOOP_BYTES, in_thread, offloaded
from comfyui.replies import JSON
from comfyui.retrying import Backoff, retry
from comfyui.servers.server import FileShelf, Server

FOLDER = "gateway"
# ComfyUI's 3D loaders offer what lies anywhere below input/3d, and accept nothing else.
_MODEL_FOLDER = "3d/gateway"
_MODEL_EXTENSIONS = frozenset({".glb", ".gltf", ".obj", ".fbx", ".stl", ".ply"})
OURS = (f"{FOLDER}/", f"{_MODEL_FOLDER}/")
_REMEMBERED = 4096
_UPLOAD_RETRIES = 3
_BACKOFF = Backoff(start_s=0.1, max_s=5.0)
# The limit for one request. Each item decodes up to `ON_LOOP_BYTES` on the event loop, in the same turn as the others.
_PLACED_AT_ONCE = 16
_NO_UPLOADS: Mapping[str, Upload] = {}


@dataclass(frozen=True, slots=True)
class _Stored:
    """The files that a server was given in its present epoch: our name of the content to ComfyUI's name of the file."""

    epoch: int
    names: OrderedDict[str, str] = field(default_factory=OrderedDict)


class InputStager:
    """Places inputs in ComfyUI. One per gateway; open it with ``async with``, it owns the session for URLs.

    Args:
        max_bytes: of one input, decoded.
        url_allow: hosts and networks that may be fetched although they are private: see `fetch.AddressPolicy`. A bad
            entry raises ValueError.
        url_timeout_s: for one download.
        resolver: of the hosts in URLs; the system's by default.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
        url_allow: Sequence[str],
        url_timeout_s: float,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._limits = limits
        self._fetcher = UrlFetcher(max_bytes=max_bytes, allow=url_allow, timeout_s=url_timeout_s, resolver=resolver)
        self._stored: WeakKeyDictionary[Server, _Stored] = WeakKeyDictionary()
        self._locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()

    @property
    def max_bytes(self) -> int:
        """Largest size of one decoded input."""
        return self._max_bytes

    async def __aenter__(self) -> Self:
        await self._fetcher.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._fetcher.__aexit__(*exc)

    async def stage(
        self,
        server: Server,
        request: PromptRequest,
        upload_inputs: Sequence[tuple[str, str]] = (),
        files: BroughtFiles | None = None,
        plain_folder: str = "",
        uploads: Mapping[str, Upload] = _NO_UPLOADS,
    ) -> Mapping[str, Any]:
        """Place every input of `request` on the server.

        Args:
            upload_inputs: the ``(node id, input name)`` of this workflow whose widget uploads a file; data URIs and
                URLs are taken from these inputs only.
            files: further inputs, which the caller holds until this returns.
            plain_folder: below ComfyUI's input folder, where files are stored that keep their plain names.
            uploads: earlier uploads that the server needs: see `comfyui.inputs.plan.plan`.

        Returns:
            The workflow to submit: the request's own when nothing in it changes, else a copy of what changes.

        Raises:
            ComfyUIInputError: its text begins with the field: ``images[1].image: …``, ``prompt.10.inputs.image: …``.
            ComfyUILimitError: more inputs than `limits` allows, of all kinds together.
            ComfyUIConnectionError, ComfyUIServerError: from the upload, after retries.
        """
        paths, kept = (files.paths, files.kept) if files else ({}, {})
        items = await offloaded(request.size, plan, request, upload_inputs, paths, self._limits, kept, uploads)
        if kept:
            request = await _with_texts(request, kept, items)
        if not items:
            return request.prompt
        slots = asyncio.Semaphore(_PLACED_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._place(server, item, slots, plain_folder), name=f"stage {item.where}")
                    for item in items
                ]
        except asyncio.CancelledError as error:
            # The group has the task that keeps the error, and in Python 3.11 its frame has the error: with either in
            # the traceback nothing of this call would be freed.
            del group
            raise error.with_traceback(None)  # noqa: B904 - it is the same error
        except BaseExceptionGroup as errors:
            # One reason is enough for the caller; the group has cancelled the others.
            # A group's traceback has the group in it, and its context would have the error itself: nothing of this
            # call would be freed.
            first = errors.with_traceback(None).exceptions[0]
            raise copy(first) if isinstance(first, ComfyUIError) else first  # noqa: B904 - its own cause stays
        placed = [(item, task.result()) for item, task in zip(items, tasks, strict=True)]
        return await offloaded(request.size, rewritten, request.prompt, placed)

    def forget(self, server: Server) -> bool:
        """Upload everything to this server again, for when files were removed there; whether there was anything. A new
        connection does the same."""
        known = self._stored.pop(server, None)
        return known is not None and bool(known.names)

    async def _place(self, server: Server, item: Item, slots: asyncio.Semaphore, plain_folder: str) -> Placed:
        try:
            async with slots, self.content(item) as content:
                if item.upload is not None:
                    return Placed(await self.place_upload(server, item.upload))
                plain = by_content = ""
                if item.plain:
                    folder = "/".join(filter(None, (plain_folder, item.subfolder)))
                    plain = await _upload(server.shelf, content, item.name, folder, overwrite=True)
                if item.references:
                    by_content = await self._place_by_content(server, content)
                return Placed(by_content, plain)
        except ComfyUIInputError as error:
            raise error.in_field(item.told) from error

    @asynccontextmanager
    async def content(self, item: Item) -> AsyncIterator[Content]:
        """The content of an input, until the ``async with`` ends: decoded, or fetched if it is a URL.

        Raises:
            ComfyUIInputError: without naming the field.
        """
        hint = PurePosixPath(item.name).suffix
        if isinstance(item.source, Content):
            yield item.source
        elif isinstance(item.source, Path):
            yield await Content.of_file(item.source, max_bytes=self._max_bytes, hint=hint)
        elif is_url(item.source):
            async with self._fetcher.fetch(item.source) as content:
                yield content
        elif len(item.source) > ON_LOOP_BYTES:
            yield await asyncio.to_thread(decode, item.source, max_bytes=self._max_bytes, hint=hint)
        else:
            yield decode(item.source, max_bytes=self._max_bytes, hint=hint)

    async def _place_by_content(self, server: Server, content: Content) -> str:
        folder = _MODEL_FOLDER if content.extension in _MODEL_EXTENSIONS else FOLDER
        name = f"{content.digest[:32]}{content.extension}"
        stored = self._stored_on(server)
        # The first of many that bring the same content uploads it, the others wait; if it fails, the next one tries.
        lock = self._locks.setdefault((id(server), name), asyncio.Lock())
        async with lock:
            if name in stored:
                stored.move_to_end(name)
                return stored[name]
            # Without overwriting, ComfyUI compares, and does not truncate a file that a node may be reading.
            stored[name] = await _upload(server.shelf, content, name, folder, overwrite=False)
            if len(stored) > _REMEMBERED:
                stored.popitem(last=False)
            return stored[name]

    async def place_upload(self, server: Server, upload: Upload) -> str:
        """Has an upload on the server; the name by which a workflow refers to it there, below the input folder."""
        content, path = upload.content, upload.path
        stored, place = self._stored_on(server), f"{upload.content.digest}/{path}"
        lock = self._locks.setdefault((id(server), path), asyncio.Lock())
        async with lock:
            if place in stored:
                stored.move_to_end(place)
                return stored[place]
            folder, _, name = path.rpartition("/")
            there = None
            if not upload.plain or f"{folder}/".startswith(OURS):
                there = ""
            else:
                there = await _digest_shown(server.shelf, path, content.size)
            if there == content.digest:
                stored[place] = path
            else:
                if there is not None:
                    below = _MODEL_FOLDER if content.extension.lower() in _MODEL_EXTENSIONS else FOLDER
                    folder = f"{below}/{content.digest}"
                # ComfyUI's answer counts: another client may have taken the name just now.
                stored[place] = await _upload(server.shelf, content, name, folder, overwrite=False)
            if len(stored) > _REMEMBERED:
                stored.popitem(last=False)
            return stored[place]

    def _stored_on(self, server: Server) -> OrderedDict[str, str]:
        known = self._stored.get(server)
        if known is None or known.epoch != server.epoch:
            known = self._stored[server] = _Stored(server.epoch)
        return known.names


async def digest_there(shelf: FileShelf, path: str, size: int) -> str | None:
    """SHA-256 of the file with this path below ComfyUI's input folder; None if there is none.

    "" for a file of another size, of which nothing is read.
    """
    folder, _, name = path.rpartition("/")
    digest = hashlib.sha256()
    try:
        async with shelf.view(name, folder, "input") as body:
            if body.length not in {None, size}:
                return ""
            async for chunk in body:
                await in_thread(digest.update, chunk)
    except ComfyUINotFoundError:
        return None
    return digest.hexdigest()


async def _digest_shown(shelf: FileShelf, path: str, size: int) -> str | None:
    """As `digest_there`; "" for a name that ComfyUI stores and reads but does not show: one with two dots."""
    try:
        return await digest_there(shelf, path, size)
    except ComfyUIServerError as error:
        if error.upstream_status != 400:
            raise
        return ""


async def _upload(shelf: FileShelf, content: Content, name: str, subfolder: str, *, overwrite: bool) -> str:
    """Stream it to ComfyUI, again when the connection fails; returns the name by which a workflow refers to it."""

    def upload() -> Awaitable[JSON]:
        return shelf.upload_image(name, content.chunks(), subfolder=subfolder, overwrite=overwrite)

    try:
        stored = await retry(upload, ComfyUIError, _BACKOFF, retries=_UPLOAD_RETRIES, worth=may_pass)
    except ComfyUIServerError as error:
        if error.upstream_status in {400, 413}:
            raise _refused(error.upstream_status, content.size) from error
        raise
    stored_name, folder = stored.get("name"), stored.get("subfolder")
    if not isinstance(stored_name, str) or not stored_name:
        raise ComfyUIServerError("POST /upload/image: the answer has no name")
    return f"{folder}/{stored_name}" if folder else stored_name


async def _with_texts(request: PromptRequest, kept: Mapping[str, Content], items: Sequence[Item]) -> PromptRequest:
    """Restores a data URI if this server takes the text itself: its kept content is then not placed."""
    placed = {where for item in items for where in item.fields}
    prompt = dict(request.prompt)
    for node_id, node in request.prompt.items():
        for input_name, value in node["inputs"].items():
            content = kept.get(where := field_of(node_id, input_name))
            if content is not None and where not in placed and value.endswith(content.digest):
                pieces = [chunk async for chunk in content.chunks()]
                head = value.removesuffix(named_by_hash(content.digest))
                text = head + await in_thread(base64_of, b"".join(pieces))
                prompt[node_id] = {**prompt[node_id], "inputs": {**prompt[node_id]["inputs"], input_name: text}}
    return request.model_copy(update={"prompt": prompt}).of_size(request.size)


def _refused(status: int, size: int) -> ComfyUIInputError:
    if status == 413:
        return ComfyUIInputError(
            f"{size / 1e6:.1f} MB is more than this ComfyUI accepts (its option --max-upload-size)"
        )
    return ComfyUIInputError("ComfyUI refused to store the file under this name and subfolder")
