"""Placing a request's inputs in ComfyUI before its prompt is queued: base64, data URIs, URLs and spooled files.

**Names.** Two callers may send different pictures under the same name, ``input.png``, at the same time; stored under
that name, one of them would be rendered with the other's picture. So an input that the workflow refers to is stored
under a name made of its content, ``gateway/<hash>.png``, and the reference is rewritten. "Refers to" is taken only
where it is certain: an upload widget (``upload_inputs``) whose value is exactly the entry's ``name`` or
``subfolder/name``, with or without ComfyUI's suffix ``[input]``. A text that happens to equal a file's name is never
touched. Where the name also stands somewhere else in the workflow, or nowhere (a custom node that finds its file by
itself), the file is stored under its plain name as ComfyUI would do it, and there the last caller wins. The name that
ComfyUI answers is the one that counts: where it is another than the asked one, the workflow's texts follow it.

**Once.** What is stored under its content's name is uploaded once per ComfyUI server and then remembered, also when
many requests bring it at the same moment. Plain names are uploaded each time: somebody else may have overwritten them.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

from aiohttp.abc import AbstractResolver
from pydantic import ValidationError

from comfyui.client import ComfyUIClient, may_pass
from comfyui.exceptions import ComfyUIError, ComfyUIInputError, ComfyUIServerError
from comfyui.inputs.content import Content
from comfyui.inputs.decoding import decode, is_data_uri
from comfyui.inputs.fetch import UrlFetcher
from comfyui.limits import DEFAULT_LIMITS, Limits, over
from comfyui.models import InputFile, PromptRequest
from comfyui.offload import ON_LOOP_BYTES, offloaded
from comfyui.replies import JSON
from comfyui.retrying import Backoff, retry
from comfyui.servers.backend import Backend
from comfyui.workflows.api_format import LONGEST_PATH, texts_in

_FOLDER = "gateway"
# ComfyUI's 3D loaders offer what lies anywhere below input/3d, and accept nothing else.
_MODEL_FOLDER = "3d/gateway"
_MODEL_EXTENSIONS = frozenset({".glb", ".gltf", ".obj", ".fbx", ".stl", ".ply"})
_REMEMBERED = 4096
_UPLOAD_RETRIES = 3
_BACKOFF = Backoff(start_s=0.1, max_s=5.0)
# Of one request. Each decodes up to `ON_LOOP_BYTES` on the event loop, in the same turn as the others.
_PLACED_AT_ONCE = 16
# With the blanks and line ends that stand before it where it was pasted.
_URL = re.compile(r"\s{0,1000}https?://", re.IGNORECASE)


@dataclass(slots=True)
class _Item:
    """One input to place: where it comes from, and where the workflow refers to it.

    Attributes:
        where: the field that the caller gave it in, as errors name it.
        references: the ``(node id, input name)`` of upload widgets whose value it is.
        mentions: further inputs that have its name in a text; whether they mean the file is not known.
        plain: to be stored under its own name, too.
    """

    where: str
    source: str | Path
    name: str = ""
    subfolder: str = ""
    references: list[tuple[str, str]] = field(default_factory=list)
    mentions: list[tuple[str, str]] = field(default_factory=list)
    plain: bool = False

    @property
    def path(self) -> str:
        return f"{self.subfolder}/{self.name}" if self.subfolder else self.name


@dataclass(frozen=True, slots=True)
class _Placed:
    """The names by which ComfyUI has an item: by its content, and under its own; empty where it was not so stored."""

    by_content: str = ""
    plain: str = ""


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a server was given since it was connected, by our name of the content: ComfyUI's name of the file."""

    generation: int
    names: OrderedDict[str, str] = field(default_factory=OrderedDict)


class InputStager:
    """Places inputs in ComfyUI. One per gateway; open it with ``async with``, it owns the session for URLs.

    Args:
        max_bytes: of one input, decoded.
        url_allow: hosts and networks that may be fetched although they are not public: see `fetch.AddressPolicy`.
            A bad entry raises ValueError.
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
        self._stored: WeakKeyDictionary[Backend, _Stored] = WeakKeyDictionary()
        self._locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        await self._fetcher.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._fetcher.__aexit__(*exc)

    async def stage(
        self,
        server: Backend,
        request: PromptRequest,
        upload_inputs: Sequence[tuple[str, str]] = (),
        files: Mapping[str, Path] | None = None,
    ) -> Mapping[str, Any]:
        """Place every input of `request` on the server.

        Args:
            upload_inputs: the ``(node id, input name)`` of this workflow whose widget uploads a file; data URIs and
                URLs are taken from these inputs only.
            files: further inputs by ``name`` or ``subfolder/name``, as files that the caller keeps until this returns
                and then removes.

        Returns:
            The workflow to submit: the request's own when nothing in it changes, else a copy of what changes.

        Raises:
            ComfyUIInputError: its text begins with the field: ``images[1].image: …``, ``prompt.10.inputs.image: …``.
            ComfyUILimitError: more inputs than `limits` allows, of all kinds together.
            ComfyUIConnectionError, ComfyUIServerError: from the upload, after retries.
        """
        items = await offloaded(request.size, _plan, request, upload_inputs, files or {}, self._limits)
        if not items:
            return request.prompt
        slots = asyncio.Semaphore(_PLACED_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._place(server, item, slots), name=f"stage {item.where}") for item in items
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
        return await offloaded(request.size, _rewritten, request.prompt, placed)

    def forget(self, server: Backend) -> None:
        """Upload everything to this server again; for when files were removed there. A new connection does the same."""
        self._stored.pop(server, None)

    async def _place(self, server: Backend, item: _Item, slots: asyncio.Semaphore) -> _Placed:
        try:
            async with slots, self._content(item) as content:
                plain = by_content = ""
                if item.plain:
                    plain = await _upload(server.client, content, item.name, item.subfolder, overwrite=True)
                if item.references:
                    by_content = await self._place_by_content(server, content)
                return _Placed(by_content, plain)
        except ComfyUIInputError as error:
            raise error.in_field(item.where) from error

    @asynccontextmanager
    async def _content(self, item: _Item) -> AsyncIterator[Content]:
        hint = PurePosixPath(item.name).suffix
        if isinstance(item.source, Path):
            yield await Content.of_file(item.source, max_bytes=self._max_bytes, hint=hint)
        elif _URL.match(item.source):
            async with self._fetcher.fetch(item.source) as content:
                yield content
        elif len(item.source) > ON_LOOP_BYTES:
            yield await asyncio.to_thread(decode, item.source, max_bytes=self._max_bytes, hint=hint)
        else:
            yield decode(item.source, max_bytes=self._max_bytes, hint=hint)

    async def _place_by_content(self, server: Backend, content: Content) -> str:
        folder = _MODEL_FOLDER if content.extension in _MODEL_EXTENSIONS else _FOLDER
        name = f"{content.digest[:32]}{content.extension}"
        stored = self._stored_on(server)
        # The first of many that bring the same content uploads it, the others wait; if it fails, the next one tries.
        lock = self._locks.setdefault((id(server), name), asyncio.Lock())
        async with lock:
            if name in stored:
                stored.move_to_end(name)
                return stored[name]
            # Without overwriting: ComfyUI compares, and does not truncate a file that a node may be reading.
            stored[name] = await _upload(server.client, content, name, folder, overwrite=False)
            if len(stored) > _REMEMBERED:
                stored.popitem(last=False)
            return stored[name]

    def _stored_on(self, server: Backend) -> OrderedDict[str, str]:
        known = self._stored.get(server)
        if known is None or known.generation != server.generation:
            known = self._stored[server] = _Stored(server.generation)
        return known.names


def is_inline(value: object) -> bool:
    """Whether a value in a workflow is itself an input, where its widget uploads files: a data URI or http(s) URL."""
    return isinstance(value, str) and bool(_URL.match(value) or is_data_uri(value))


def brought_inputs(
    request: PromptRequest,
    upload_inputs: Sequence[tuple[str, str]],
    files: Collection[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> set[tuple[str, str]]:
    """The ``(node id, input name)`` whose file comes with the request; `files`: names of further ones.

    Raises `ComfyUIInputError` and `ComfyUILimitError` as `InputStager.stage` does.
    """
    items = _plan(request, upload_inputs, {name: Path(name) for name in files}, limits)
    return {reference for item in items for reference in item.references}


def _plan(
    request: PromptRequest, upload_inputs: Sequence[tuple[str, str]], files: Mapping[str, Path], limits: Limits
) -> Sequence[_Item]:
    """What is to be placed, each with its references.

    Raises:
        ComfyUIInputError: two entries claim one name.
        ComfyUILimitError: there are too many.
    """
    named: dict[str, _Item] = {}
    for item in _entries(request, files):
        first = named.setdefault(item.path, item)
        if first.source != item.source:
            reason = f"{first.where} has the same name {item.path!r} and other content"
            raise ComfyUIInputError(reason, field=item.where)
    inline: dict[object, _Item] = {}
    for reference in dict.fromkeys(upload_inputs):
        node_id, input_name = reference
        value = _inputs(request.prompt.get(node_id)).get(input_name)
        if not isinstance(value, str):
            continue
        entry = _named(named, value)
        if entry is not None:
            entry.references.append(reference)
        elif is_inline(value):
            # The same URL is fetched once; a long data URI is not worth its hash, its content is compared later.
            key = value.strip() if _URL.match(value) else reference
            item = inline.setdefault(key, _Item(f"prompt.{node_id}.inputs.{input_name}", value.strip()))
            item.references.append(reference)
    if len(named) + len(inline) > limits.max_inputs:
        raise over("the request brings more than {limit} inputs", limits.max_inputs, "MAX_INPUTS")
    _mark_plain(request.prompt, named)
    return [*named.values(), *inline.values()]


def _entries(request: PromptRequest, files: Mapping[str, Path]) -> Iterator[_Item]:
    for index, image in enumerate(request.images):
        yield _Item(f"images[{index}].image", image.image.strip(), image.name, image.subfolder)
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        try:
            checked = InputFile(name=name, subfolder=folder, image="-")
        except ValidationError as error:
            reason = "the name must be a relative path without '..'"
            raise ComfyUIInputError(reason, field=f"files[{path!r}]") from error
        yield _Item(f"files[{path!r}]", file, checked.name, checked.subfolder)


def _mark_plain(prompt: Mapping[str, Any], named: Mapping[str, _Item]) -> None:
    """Where a name is (also) used in a way that cannot be rewritten with certainty, the file has to be under it."""
    for item in named.values():
        item.plain = not item.references
    for node_id, node in prompt.items():
        for input_name, value in _inputs(node).items():
            for text in texts_in(value):
                entry = _named(named, text)
                if entry is not None and (node_id, input_name) not in entry.references:
                    entry.plain = True
                    entry.mentions.append((node_id, input_name))


def _named(named: Mapping[str, _Item], value: str) -> _Item | None:
    """The entry that `value` refers to. The length is looked at first: hashing an inline video would take a while."""
    return named.get(_path_in(value)) if len(value) <= LONGEST_PATH else None


def _path_in(value: str) -> str:
    """What a loader takes for the path of a file: without ComfyUI's suffix, with the folders of Windows as ours."""
    return value.removesuffix(" [input]").replace("\\", "/")


def _inputs(node: Any) -> Mapping[str, Any]:
    """A node's inputs; empty for what is no node: to complain is the validation's task."""
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def _rewritten(prompt: Mapping[str, Any], placed: Sequence[tuple[_Item, _Placed]]) -> Mapping[str, Any]:
    changed = dict(prompt)

    def change(reference: tuple[str, str], value: Any) -> None:
        node_id, input_name = reference
        node = changed[node_id]
        changed[node_id] = {**node, "inputs": {**node["inputs"], input_name: value}}

    for item, names in placed:
        for reference in item.references:
            change(reference, names.by_content)
        if names.plain and names.plain != item.path:
            for node_id, input_name in item.mentions:
                value = changed[node_id]["inputs"][input_name]
                change((node_id, input_name), _renamed(value, item.path, names.plain))
    return changed if any(changed[node_id] is not prompt[node_id] for node_id in changed) else prompt


def _renamed(value: Any, old: str, new: str) -> Any:
    """`value` with every text that is the path `old` as `new`, however deep it stands."""
    if isinstance(value, str):
        return new if _path_in(value) == old else value
    if isinstance(value, Mapping):
        return {key: _renamed(part, old, new) for key, part in value.items()}
    return [_renamed(part, old, new) for part in value] if isinstance(value, list) else value


async def _upload(client: ComfyUIClient, content: Content, name: str, subfolder: str, *, overwrite: bool) -> str:
    """Stream it to ComfyUI, again when the connection fails; returns the name by which a workflow refers to it."""

    def upload() -> Awaitable[JSON]:
        return client.upload_image(name, content.chunks(), subfolder=subfolder, overwrite=overwrite)

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


def _refused(status: int, size: int) -> ComfyUIInputError:
    if status == 413:
        return ComfyUIInputError(f"{size / 1e6:.1f} MB is more than this ComfyUI takes (its option --max-upload-size)")
    return ComfyUIInputError("ComfyUI refused to store the file under this name and subfolder")
