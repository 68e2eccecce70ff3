"""`AssetReferences`: a workflow that names assets becomes one that names files, which come with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from comfyui.assets.job_outputs import FoundOutput, JobOutputs
from comfyui.assets.references import Reference, name_of, references_in
from comfyui.assets.uploaded import UploadedAssets
from comfyui.exceptions import Breach, ComfyUIInputError, ContractError
from comfyui.inputs.content import Content, SpooledFiles
from comfyui.inputs.store import Holding, InputStore
from comfyui.jobs.journal.asset_writes import Asset
from comfyui.jobs.origin import Origin
from comfyui.jobs.uploads import Uploads
from comfyui.merged_files import merged_subfolder
from comfyui.models import OutputFile, PromptRequest
from comfyui.offload import offloaded

_NOT_INPUT = ("output", "temp")


class AssetFiles(SpooledFiles):
    """Files of the store of inputs, as if they came with the request."""

    def __init__(self, store: InputStore) -> None:
        self._store = store
        super().__init__(Path(), {}, {})

    def add(self, name: str, content: Content) -> None:
        """`content` is in the store; the workflow refers to it by `name`."""
        if isinstance(content.source, Path):
            self.paths = {**self.paths, name: content.source}
            self.digests = {**self.digests, name: content.digest}

    def hold(self) -> None:
        self._store.hold(self.digests.values())

    def release(self) -> None:
        self._store.let_go(self.digests.values())


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request without references. `files`: the referenced files, which come with it; None if there are none."""

    request: PromptRequest
    files: AssetFiles | None


class AssetReferences:
    """Its arguments belong to their creator.

    Args:
        merged: names of outputs begin with the id of their prompt: see `comfyui.merged_files`.
    """

    def __init__(
        self, uploaded: UploadedAssets, outputs: JobOutputs, store: InputStore, uploads: Uploads, *, merged: bool
    ) -> None:
        self._uploaded = uploaded
        self._outputs = outputs
        self._store = store
        self._uploads = uploads
        self._merged = merged

    @asynccontextmanager
    async def resolved(self, request: PromptRequest, origin: Origin) -> AsyncIterator[Resolved]:
        """The request with names instead of references; their files stay in the store until the block ends.

        The request's own workflow is changed. A caller that leaves the block without an error has made it a job.

        Raises:
            ContractError: a reference names no asset, or one that the caller does not see.
            ComfyUIError: a text cannot be stored.
        """
        references = await offloaded(request.size, references_in, request.prompt)
        if not references:
            yield Resolved(request, None)
            return
        known: dict[tuple[str, str], Asset | FoundOutput] = {}
        missing: dict[str, None] = {}
        for reference in references:
            key = (reference.id, reference.hash)
            if key not in known:
                found = await self._find(reference, origin)
                if found is None:
                    missing[reference.shown] = None
                else:
                    known[key] = found
        if missing:
            raise _missing(list(missing))
        uploaded = list(dict.fromkeys(one for one in known.values() if isinstance(one, Asset)))
        with self._uploaded.held(*uploaded), self._store.holding() as holding:
            files = AssetFiles(self._store)
            names = {key: await self._named(found, files, holding) for key, found in known.items()}
            for reference in references:
                reference.replace(names[reference.id, reference.hash])
            yield Resolved(request, files if files.paths else None)
            self._uploaded.used(*uploaded)

    async def _find(self, reference: Reference, origin: Origin) -> Asset | FoundOutput | None:
        """Finds it by the id, or by the hash if there is no such asset."""
        if reference.id:
            found = await self._outputs.find(reference.id, origin) or await self._uploaded.find(reference.id, origin)
            if found is not None:
                return found
        same = await self._uploaded.by_hash(reference.hash, origin) if reference.hash else []
        if same or not reference.hash:
            return same[0] if same else None
        return await self._outputs.by_hash(reference.hash, origin)

    async def _named(self, found: Asset | FoundOutput, files: AssetFiles, holding: Holding) -> str:
        """The text by which the workflow refers to it."""
        if isinstance(found, Asset):
            content = self._uploaded.content_of(found)
            filename = found.file_path.rpartition("/")[2] or f"{found.id}{content.extension}"
            return _added(files, name_of(found.id, filename), content)
        if found.output.file is not None:
            return self._place(found.record.prompt_id, found.output.file)
        text = found.output
        try:
            content = await offloaded(len(text.text), lambda: Content.of_bytes(text.content(), ".txt"))
        except ComfyUIInputError as error:
            raise error.in_field(f"asset {text.id}") from error
        await self._uploads.make_room(content)
        await holding.put(content)
        name = name_of(found.output.id, found.output.name)
        return _added(files, name, self._store.kept(content.digest, ".txt"))

    def _place(self, prompt_id: str, file: OutputFile) -> str:
        """How a workflow names a file that a prompt has made; it is brought to the server that runs the workflow."""
        subfolder = file.subfolder
        if file.type not in _NOT_INPUT:
            return f"{subfolder}/{file.filename}" if subfolder else file.filename
        if self._merged:
            subfolder = merged_subfolder(prompt_id, subfolder)
        return f"{subfolder}/{file.filename} [{file.type}]" if subfolder else f"{file.filename} [{file.type}]"


def _added(files: AssetFiles, name: str, content: Content) -> str:
    files.add(name, content)
    return name


def _missing(ids: Sequence[str]) -> ContractError:
    shown = ", ".join(ids[:5])
    return ContractError(
        Breach.MISSING_ASSET,
        f"workflow: there {'is no asset' if len(ids) == 1 else 'are no assets'} with the"
        f" {'id' if len(ids) == 1 else 'ids'} {shown}",
        {"missing_ids": list(ids)},
    )
