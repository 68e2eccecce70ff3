"""`JobInputs`: the inputs of async jobs, which lie in the input store from the submission until the job has ended.

Inputs that come as base64, as a data URI or as a file of a form are stored before the job is written to the journal.
The body has their hash, and the job's `inputs` have for each field the hash and the ending of the file's name, or
nothing for a URL that is still to be fetched. A file of a form has the field ``files:<name>``.

A data URI in the workflow is an input only if its widget takes files, which a server must confirm. If none does, the
node gets the text itself: it is in the store nevertheless, and staging restores it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from comfyui.exceptions import ComfyUIError, ComfyUIInputError, ComfyUIInputUnavailableError, ComfyUIJobInputError
from comfyui.inputs.content import Content, SpooledFiles
from comfyui.inputs.decoding import head_of_data_uri, is_data_uri, plain_data_uri
from comfyui.inputs.plan import Item, field_of, file_parameter, image_field, inline_values, is_url, named_by_hash, plan
from comfyui.inputs.staging import InputStager
from comfyui.inputs.store import Holding, InputStore
from comfyui.jobs.journal.records import JobRecord, Submission
from comfyui.jobs.uploads import DIGEST, Uploads
from comfyui.limits import Limits
from comfyui.models import PromptRequest
from comfyui.offload import in_thread, offloaded
from comfyui.servers.pool import BackendPool
from comfyui.tasks import end_tasks
from comfyui.workflows.api_format import upload_inputs

_FILE = "files:"
# Downloads for jobs. Sync calls have as many places again that jobs never take.
_DOWNLOADS = 16


def names_in(inputs: Mapping[str, str]) -> list[str]:
    """The names of the files of a job, which came with its workflow, by its `inputs`."""
    return [where.removeprefix(_FILE) for where in inputs if where.startswith(_FILE)]


@dataclass(frozen=True, slots=True)
class Taken:
    """A request whose inputs are in the store: it names them by their hash, and `inputs` says where each one is."""

    request: PromptRequest
    inputs: Mapping[str, str]


class StoredFiles:
    """The inputs of one job, to be placed: see `comfyui.inputs.content.BroughtFiles`."""

    def __init__(self, store: InputStore, inputs: Mapping[str, str]) -> None:
        self._store = store
        found = {where: store.kept(value[:DIGEST], value[DIGEST:]) for where, value in inputs.items() if value}
        self._digests = [content.digest for content in found.values()]
        self.paths = {where[len(_FILE) :]: one for where, one in found.items() if where.startswith(_FILE)}
        self.kept = {where: one for where, one in found.items() if not where.startswith(_FILE)}
        in_the_workflow = (one.size for where, one in found.items() if where.startswith("prompt."))
        self.text_bytes = sum(in_the_workflow)
        """The largest growth of the workflow when it is sent."""

    def hold(self) -> None:
        self._store.hold(self._digests)

    def release(self) -> None:
        self._store.let_go(self._digests)


class JobInputs:
    """The store, the stager and the pool belong to their creators."""

    def __init__(
        self, store: InputStore, stager: InputStager, pool: BackendPool, uploads: Uploads, limits: Limits
    ) -> None:
        self._store = store
        self._stager = stager
        self._pool = pool
        self._uploads = uploads
        self._limits = limits
        self._downloads = asyncio.Semaphore(_DOWNLOADS)

    async def sweep(self) -> int:
        """See `Uploads.sweep`."""
        return await self._uploads.sweep()

    async def wait_until_stale(self) -> None:
        """See `InputStore.wait_until_stale`."""
        await self._store.wait_until_stale()

    def ended(self) -> None:
        """A job ended that had no task, and with that held nothing."""
        self._store.let_go(())

    def files_of(self, record: Submission) -> StoredFiles | None:
        """The job's files in the store."""
        return StoredFiles(self._store, record.inputs) if record.kind == "async" and record.inputs else None

    # At submission

    @asynccontextmanager
    async def taken(self, request: PromptRequest, files: SpooledFiles | None) -> AsyncIterator[Taken]:
        """Puts what the request brings into the store, where it stays until the block ends: the job is written by then.

        Raises:
            ComfyUIInputError, ComfyUILimitError: as `InputStager.stage`, for all that needs no fetching.
            ComfyUIOverloadedError, ComfyUIDiskError: the store is full, or cannot be written.
        """
        inline = await offloaded(request.size, inline_values, request.prompt)
        if not (inline or request.images or files):
            yield Taken(request, {})
            return
        with self._store.holding() as holding:
            yield await self._take(request, files, inline, holding)

    async def _take(
        self, request: PromptRequest, files: SpooledFiles | None, inline: Mapping[str, str], holding: Holding
    ) -> Taken:
        contents = await _contents_of(request, files)
        widgets = await self._widgets(request) if inline else ()
        items = await offloaded(request.size, plan, request, widgets or (), contents, self._limits)
        inputs: dict[str, str] = {}
        for item in items:
            if not isinstance(item.source, Content):
                inputs |= dict.fromkeys(item.fields, await self._put_item(item, holding))
        for name, content in contents.items():
            inputs[f"{_FILE}{name}"] = await self._put(content, holding, moved=True)
        for where, text in inline.items():
            if where in inputs:
                continue
            if is_url(text):
                if widgets is None:
                    inputs[where] = ""
            elif (data := await in_thread(plain_data_uri, text)) is not None:
                inputs[where] = await self._put(data, holding)
        return Taken(await offloaded(request.size, _by_hash, request, inputs), inputs)

    async def _put_item(self, item: Item, holding: Holding) -> str:
        """The item's entry in the job's `inputs`: empty for a URL."""
        if isinstance(item.source, str) and is_url(item.source):
            return ""
        try:
            async with self._stager.content(item) as content:
                return await self._put(content, holding)
        except ComfyUIInputError as error:
            raise error.in_field(item.told) from error

    async def _put(self, content: Content, holding: Holding, *, moved: bool = False) -> str:
        await self._uploads.make_room(content)
        await holding.put(content, moved=moved)
        return content.digest + content.extension

    async def _widgets(self, request: PromptRequest) -> Sequence[tuple[str, str]] | None:
        """The inputs that are uploaded files, according to any server that is up; None if none answers soon."""
        found: list[tuple[str, str]] | None = None
        for backend in self._pool.ready_servers:
            try:
                async with backend.soon():
                    definitions = await backend.object_info()
            except (ComfyUIError, TimeoutError):
                continue
            found = [*(found or ()), *await offloaded(request.size, upload_inputs, request.prompt, definitions)]
        return found

    # After the submission

    @asynccontextmanager
    async def fetched(
        self, record: JobRecord, request: PromptRequest, *, last: bool
    ) -> AsyncIterator[Mapping[str, str] | None]:
        """Fetches the missing inputs of the job. Gives its `inputs`; they stay in the store until the block ends.

        None: no server says which texts of the workflow are inputs. On the `last` try, they are left to the job's turn,
        as in a sync call.

        Raises:
            ComfyUIInputError: one cannot be fetched, as far as that is known now.
            ComfyUIOverloadedError, ComfyUIDiskError: the store is full, or cannot be written.
        """
        lacking = {where for where, value in record.inputs.items() if not value}
        widgets: Sequence[tuple[str, str]] | None = ()
        if any(not where.startswith("images[") for where in lacking):
            widgets = await self._widgets(request)
        if widgets is None and not last:
            yield None
            return
        kept = StoredFiles(self._store, record.inputs)
        items = await offloaded(request.size, plan, request, widgets or (), kept.paths, self._limits, kept.kept)
        wanted = [item for item in items if lacking.intersection(item.fields) and isinstance(item.source, str)]
        with self._store.holding() as holding:
            tasks = [asyncio.create_task(self._fetch(item, holding), name=f"fetch {item.where}") for item in wanted]
            try:
                if tasks:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                values = [task.result() for task in tasks if task.done()]
            finally:
                await end_tasks(*tasks)
            inputs = {where: value for where, value in record.inputs.items() if value}
            for item, value in zip(wanted, values, strict=True):
                inputs |= dict.fromkeys(item.fields, value)
            yield inputs

    async def _fetch(self, item: Item, holding: Holding) -> str:
        try:
            async with self._downloads, self._stager.content(item) as content:
                return await self._put(content, holding)
        except ComfyUIInputUnavailableError as error:
            raise ComfyUIJobInputError(error.reason, field=item.told) from error
        except ComfyUIInputError as error:
            raise error.in_field(item.told) from error


async def _contents_of(request: PromptRequest, files: SpooledFiles | None) -> dict[str, Content]:
    contents: dict[str, Content] = {}
    if files is None:
        return contents
    for name, path in files.paths.items():
        try:
            hint = PurePosixPath(name).suffix
            contents[name] = await Content.of_hashed_file(path, files.digests[name], hint=hint)
        except ComfyUIInputError as error:
            raise error.in_field(file_parameter(request, name) or f"files[{name!r}]") from error
    return contents


def _by_hash(request: PromptRequest, inputs: Mapping[str, str]) -> PromptRequest:
    """The request with a hash for each content that is in the store."""
    images = list(request.images)
    for index, image in enumerate(images):
        if value := inputs.get(image_field(index)):
            images[index] = image.model_copy(update={"image": named_by_hash(value[:DIGEST])})
    prompt: dict[str, Any] = {}
    for node_id, node in request.prompt.items():
        short = {
            name: head_of_data_uri(node["inputs"][name]) + named_by_hash(value[:DIGEST])
            for name in node["inputs"]
            if (value := inputs.get(field_of(node_id, name))) and is_data_uri(node["inputs"][name])
        }
        prompt[node_id] = {**node, "inputs": {**node["inputs"], **short}} if short else node
    return request.model_copy(update={"images": tuple(images), "prompt": prompt}).of_size(request.size)
