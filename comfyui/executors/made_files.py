"""`MadeFiles`: finds files made by prompts by their name on their server, and brings them to another one.

A workflow names such a file as ``<prompt_id>/x.png [output]`` (see `comfyui.merged_files`) or, as with one ComfyUI, as
``x.png [output]``: then it is the newest file of that name that the caller may see.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIInputError,
    ComfyUIInputUnavailableError,
    ComfyUINotFoundError,
)
from comfyui.inputs.content import Content, Spool
from comfyui.inputs.plan import Upload, field_of, path_in
from comfyui.jobs.journal.made import Made, MadeFilter
from comfyui.jobs.journal.protocol import Journal
from comfyui.merged_files import from_merged
from comfyui.models import OutputFile
from comfyui.owners import key_of, place_of
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.servers.server import Server
from comfyui.workflows.api_format import LONGEST_PATH

_FOLDERS = ("output", "temp")
# The number of servers that a plain name is looked for on; the newest file on a configured server counts.
_MOST_SERVERS = 100
_MOST_LISTED = 10_000


class Source(NamedTuple):
    """A file as its server knows it. `type`: ComfyUI's folder. `prompt_id`: of the prompt that made it, if known."""

    server: str
    type: str
    subfolder: str
    filename: str
    prompt_id: str = ""

    @property
    def text(self) -> str:
        """The name of the file in a workflow for that server."""
        return f"{posixpath.join(self.subfolder, self.filename)} [{self.type}]"


Reference = tuple[str, str]
"""Node id and input name."""


@dataclass(frozen=True, slots=True)
class Brought:
    """The made files that a workflow names, for one server.

    Attributes:
        references: the inputs that name one.
        there: files that the server itself has: the text in the workflow to the server's name for the file.
        uploads: files that the server needs, by `path_in` of the text.
    """

    references: list[Reference] = field(default_factory=list)
    there: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The names in the workflow of files that exist."""
        return {*map(path_in, self.there), *self.uploads}

    def renamed(self, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """The workflow with the server's names for its own files."""
        if not self.there:
            return prompt
        changed = dict(prompt)
        for node_id, name in self.references:
            node = changed[node_id]
            text = node["inputs"][name]
            if self.there.get(text, text) != text:
                changed[node_id] = {**node, "inputs": {**node["inputs"], name: self.there[text]}}
        return changed if any(changed[node_id] is not prompt[node_id] for node_id in changed) else prompt


class MadeFiles:
    """Asks the journal, which belongs to its creator, as does the pool.

    `key` is always the name of the only key whose files count; None: the caller sees all files.

    Args:
        max_bytes: largest file that is brought to another server.
    """

    def __init__(self, journal: Journal, pool: BackendPool, *, max_bytes: int) -> None:
        self._journal = journal
        self._pool = pool
        self._max_bytes = max_bytes

    async def is_of(self, prompt_id: str, owner: str | None, server: str, place: str) -> bool | None:
        """Whether that prompt of that owner made the file at this place on a server (see `place_of`).

        None: no known prompt made it.
        """
        there = self._pool.named(server)
        if there is not None and not isinstance(there, Backend):
            return True  # it keeps the files of each prompt in a separate folder
        if await self._journal.made(
            MadeFilter(key=key_of(owner or ""), place=place, server=server, prompt_id=prompt_id), 1
        ):
            return True
        return False if await self._journal.made(MadeFilter(place=place, server=server), 1) else None

    async def newest(self, key: str | None, place: str) -> Made | None:
        """The newest file of this place on a configured server."""
        made = await self._journal.made(MadeFilter(key=key, place=place), _MOST_SERVERS)
        return next((one for one in made if self._pool.named(one.server) is not None), None)

    async def listed(self, key: str | None, folder: str) -> list[Made]:
        """The files in one of ComfyUI's folders, not below it, newest first, each with its last maker."""
        found: dict[tuple[str, str], Made] = {}
        for one in await self._journal.made(MadeFilter(key=key, folder=folder), _MOST_LISTED):
            if self._pool.named(one.server) is not None:
                found.setdefault((one.server, one.place), one)
        return list(found.values())

    async def texts_in(self, prompt: Mapping[str, Any], key: str | None) -> set[str]:
        """The texts in the workflow's inputs that name a file made by a prompt, by `path_in`."""
        found = set()
        for text in {text for text, _ in _annotated(prompt)}:
            if await self._source(text, key) is not None:
                found.add(path_in(text))
        return found

    @asynccontextmanager
    async def brought(
        self, backend: Server, prompt: Mapping[str, Any], key: str | None, others: Collection[str]
    ) -> AsyncIterator[Brought]:
        """The made files that the workflow names, as `backend` needs them; fetched files stay until the block ends.

        A name without a file is left out: the server itself will report it.

        Args:
            others: names with another meaning, by `path_in`.

        Raises:
            ComfyUIInputError: a file is too large, or its server is no longer configured.
            ComfyUIInputUnavailableError: its `server` does not answer.
        """
        brought = Brought()
        async with AsyncExitStack() as stack:
            for text, reference in list(_annotated(prompt)):
                if path_in(text) in others:
                    continue
                if text not in brought.there and path_in(text) not in brought.uploads:
                    source = await self._source(text, key) or self._at_home(text, key, field_of(*reference))
                    if source is None:
                        continue
                    if source.server == backend.name and isinstance(backend, Backend):
                        brought.there[text] = source.text
                    else:
                        content = await self._fetched(stack, source, field_of(*reference))
                        if content is None:
                            continue
                        brought.uploads[path_in(text)] = Upload(content, source.filename, plain=False)
                brought.references.append(reference)
            yield brought

    @asynccontextmanager
    async def opened(self, text: str, key: str | None, where: str) -> AsyncIterator[Content | None]:
        """The file that a workflow would name so, until the block ends; None if there is none.

        Raises:
            ComfyUIInputError: for the field `where`, as in `brought`.
        """
        source = await self._source(text, key) or self._at_home(text, key, where)
        async with AsyncExitStack() as stack:
            yield None if source is None else await self._fetched(stack, source, where)

    async def _source(self, text: str, key: str | None) -> Source | None:
        named = _parsed(text)
        if named is None:
            return None
        folder_type, subfolder, filename = named
        of_prompt = from_merged(subfolder)
        if of_prompt is not None and (record := await self._journal.get(of_prompt.prompt_id)) is not None:
            owner, server = record.owner, record.server
            if server is None or (key is not None and (owner is None or key_of(owner) != key)):
                return None
            source = Source(server, folder_type, of_prompt.subfolder, filename, record.prompt_id)
            is_own = await self.is_of(record.prompt_id, owner, server, place_of(*source[1:4]))
            return source if is_own or (is_own is None and key is None) else None
        newest = await self.newest(key, place_of(folder_type, subfolder, filename))
        return None if newest is None else Source(newest.server, folder_type, subfolder, filename, newest.prompt_id)

    def _at_home(self, text: str, key: str | None, where: str) -> Source | None:
        """The file of this name on the first server, if no prompt of ours made it."""
        named = _parsed(text)
        home = self._pool.backends[0]
        if named is None or key is not None:
            return None
        if not home.ready:
            raise ComfyUIInputUnavailableError("the server that may have it is down", field=where, server=home.name)
        return Source(home.name, *named)

    async def _fetched(self, stack: AsyncExitStack, source: Source, where: str) -> Content | None:
        """The file; None if its server does not have it."""
        backend = self._pool.named(source.server)
        if backend is None:
            raise ComfyUIInputError("the server that made it is no longer configured", field=where)
        spool = await stack.enter_async_context(Spool(self._max_bytes))
        try:
            made = OutputFile("", "", source.filename, source.subfolder, source.type)
            async with backend.open_file(source.prompt_id, made) as body:
                async for chunk in body:
                    await spool.write(chunk)
            return await spool.finish(posixpath.splitext(source.filename)[1])
        except ComfyUINotFoundError:
            return None
        except ComfyUIInputError as error:
            raise error.in_field(where) from error
        except ComfyUIConnectionError as error:
            if isinstance(backend, Backend):
                backend.failed(error)
            raise ComfyUIInputUnavailableError(
                "the server that made it does not answer", field=where, server=backend.name
            ) from error


def names_made(prompt: Mapping[str, Any]) -> bool:
    """Whether any text of the workflow ends like the name of such a file."""
    return next(_annotated(prompt), None) is not None


def _annotated(prompt: Mapping[str, Any]) -> Iterator[tuple[str, Reference]]:
    """Texts that end like names of files in folders other than the input folder, and their places."""
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value.endswith("]") and _parsed(value) is not None:
                yield value, (node_id, name)


def _parsed(text: str) -> tuple[str, str, str] | None:
    """Type, subfolder and name; None if it is not a plain path below such a folder."""
    for folder_type in _FOLDERS:
        suffix = f" [{folder_type}]"
        if text.endswith(suffix) and len(text) <= LONGEST_PATH:
            path = text.removesuffix(suffix).replace("\\", "/")
            if not path or path.startswith("/") or posixpath.normpath(path) != path or "\0" in path:
                return None
            if path == ".." or path.startswith("../"):
                return None
            subfolder, _, filename = path.rpartition("/")
            return folder_type, subfolder, filename
    return None
