"""`Uploads`: files that clients uploaded are kept while there is room; then those of which no job is in need go first.

The store of inputs has them beside the inputs of async jobs. This module says which of them are still needed.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError, ComfyUIServerError, RequestError
from comfyui.inputs.catalogue import Catalogue, NewName
from comfyui.inputs.content import Content, Spool
from comfyui.inputs.plan import Upload
from comfyui.inputs.staging import FOLDER, InputStager, digest_there
from comfyui.inputs.store import InputStore
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import KeptUpload
from comfyui.jobs.stored import request_of
from comfyui.offload import offloaded
from comfyui.servers.pool import CHOICE_PATIENCE_S, BackendPool

DIGEST = 64
# The part of the store that is freed at once, since all unfinished jobs are read for it.
_FREED_SHARE = 10
_PAGE = 100

_log = structlog.get_logger(__name__)


class Uploads:
    """Its arguments belong to their creator."""

    def __init__(
        self, catalogue: Catalogue, store: InputStore, stager: InputStager, journal: Journal, pool: BackendPool
    ) -> None:
        self.catalogue = catalogue
        self._stager = stager
        self._store = store
        self._journal = journal
        self._pool = pool
        self._freeing = asyncio.Lock()

    async def open(self) -> None:
        """Raises `JournalError`."""
        await self.catalogue.open()

    async def add(self, wanted: NewName, content: Content, *, like: str = "", moved: bool = False) -> str:
        """As `Catalogue.add`, for a content that is not in the store yet.

        Args:
            moved: whether its file may be moved away.

        Raises:
            ComfyUILimitError, ComfyUIOverloadedError, ComfyUIDiskError: as `InputStore.put`.
            JournalError: it cannot be kept.
        """
        with self._store.holding() as holding:
            await self.make_room(content)
            await holding.put(content, moved=moved)

            async def elsewhere(place: str) -> str | None:
                return await self._digest_at_home(place, content.size) if wanted.is_shared else None

            return await self.catalogue.add(wanted, content, elsewhere, like=like)

    async def add_masked(self, wanted: NewName, mask: Content, original: Content, name: str) -> str:
        """As `add`, for the `original`, called `name`, with the transparency of the `mask`: a server makes it.

        Raises:
            RequestError: ComfyUI cannot make it of these two.
            ComfyUIError: no server can be asked, or as `add`.
        """
        backend = await self._pool.choose(patience_s=CHOICE_PATIENCE_S)
        filename = posixpath.basename(name)
        value = await self._stager.place_upload(backend, Upload(original, filename, plain=False))
        subfolder, _, placed = value.rpartition("/")
        # The same two files make the same one: nothing piles up there.
        made = f"{FOLDER}/{original.digest}/{mask.digest}"
        ref = {"filename": placed, "subfolder": subfolder, "type": "input"}
        try:
            stored = await backend.client.upload_mask(filename, mask.chunks(), ref, subfolder=made)
            async with Spool(self.max_bytes) as spool:
                async with backend.client.view(str(stored.get("name")), made, "input") as body:
                    async for chunk in body:
                        await spool.write(chunk)
                content = await spool.finish()
                return await self.add(wanted, content, like=mask.digest)
        except ComfyUINotFoundError as error:
            raise ComfyUIServerError("POST /upload/mask: ComfyUI has made no file") from error
        except ComfyUIServerError as error:
            if error.upstream_status in {400, 413, 500}:
                raise RequestError(
                    f"ComfyUI could not put this mask on {name!r}: are both of them pictures?"
                ) from error
            raise

    async def placed_anywhere(self, kept: KeptUpload) -> tuple[str, str]:
        """Has the file on a server that is up: that server's name, and the file's path below its input folder there."""
        backend = await self._pool.choose(patience_s=CHOICE_PATIENCE_S)
        with self.catalogue.held([kept]):
            (upload,) = self.catalogue.to_place({"": kept}).values()
            return backend.name, await self._stager.place_upload(backend, upload)

    @asynccontextmanager
    async def opened_at_home(self, path: str) -> AsyncIterator[Content | None]:
        """A file of the first server's input folder, until the block ends; None if it does not exist."""
        folder, _, name = path.rpartition("/")
        async with Spool(self.max_bytes) as spool:
            found = True
            try:
                async with self._pool.backends[0].client.view(name, folder, "input") as body:
                    async for chunk in body:
                        await spool.write(chunk)
            except ComfyUINotFoundError:
                found = False
            except ComfyUIServerError as error:
                # ComfyUI's answer to a path that leads elsewhere.
                if error.upstream_status not in {400, 403}:
                    raise
                found = False
            yield await spool.finish(posixpath.splitext(name)[1]) if found else None

    @property
    def home(self) -> str:
        """The name of the first server."""
        return self._pool.backends[0].name

    async def at_home(self, folder_type: str) -> list[str]:
        """Names of files directly below a folder of the first server, newest first, if it answers soon."""
        home = self._pool.backends[0]
        try:
            async with home.soon():
                return await home.client.files_in(folder_type) if home.ready else []
        except (ComfyUIError, TimeoutError):
            return []

    @property
    def max_bytes(self) -> int:
        """Largest size of one file."""
        return self._store.max_bytes

    async def _digest_at_home(self, place: str, size: int) -> str | None:
        """The digest of the first server's file of this name, if that server answers soon."""
        folder_type, _, path = place.partition("/")
        home = self._pool.backends[0]
        if folder_type != "input" or not home.ready:
            return None
        try:
            async with home.soon():
                return await digest_there(home.client, path, size)
        except (ComfyUIError, TimeoutError):
            return None

    async def sweep(self) -> int:
        """Remove the files that no unfinished job, no upload and no asset has; how many.

        Raises `JournalError` and `ComfyUIDiskError`.
        """
        others: set[str] | None = None

        async def named(digests: Collection[str]) -> set[str]:
            nonlocal others
            if others is None:
                jobs = await self._journal.named_inputs()
                others = {value[:DIGEST] for value in jobs} | self.catalogue.digests()
            return others.intersection(digests) | await self._journal.asset_digests(digests)

        return await self._store.sweep(named)

    async def make_room(self, content: Content) -> None:
        """Removes the least recently used uploads, if the content has no room beside them."""
        if self._store.has_room(content):
            return
        async with self._freeing:
            if self._store.is_stale and not self._store.has_room(content):
                await self.sweep()
            if self._store.has_room(content) or content.size > self._store.max_bytes:
                return
            wanted = max(content.size, self._store.max_bytes // _FREED_SHARE)
            needed, gone, freed = await self._named_by_jobs(), list[KeptUpload](), 0
            for kept in self.catalogue.oldest():
                if freed >= wanted:
                    break
                if kept.digest not in needed:
                    gone.append(kept)
                    freed += kept.size
            if gone:
                await self.catalogue.drop(gone)
                _log.info("uploads.removed", files=len(gone), reason="MAX_STORED_INPUTS_MB")
                await self.sweep()

    async def _named_by_jobs(self) -> set[str]:
        """The uploads that jobs need which have not ended, by their hashes."""
        needed: set[str] = set()
        after = 0
        while page := await self._journal.unfinished(after, _PAGE):
            for record in page:
                body = await self._journal.body_of(record.prompt_id)
                if body is not None:
                    request = await offloaded(len(body), request_of, body)
                    needed |= {kept.digest for kept in self.catalogue.named_in(request.prompt, record.owner).values()}
            after = page[-1].seq
        return needed
