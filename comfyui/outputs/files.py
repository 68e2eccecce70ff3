"""The files of finished prompts on their way to the caller, for the gateway and for every worker.

A render costs minutes of a GPU, an upload seconds: a file that cannot be read or stored for a moment is tried again
before it counts as undelivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import structlog
from blake3 import blake3

from comfyui.answer_json import FileFacts
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIServerError,
    ComfyUIUndeliverableError,
    StorageError,
    StorageRefusedError,
)
from comfyui.models import DeliveredFile, ImageConversion, OutputFile, PromptResult
from comfyui.offload import offloaded
from comfyui.outputs.history import OutputContent
from comfyui.outputs.images import ImageConverter
from comfyui.outputs.pictures import NotConvertedError
from comfyui.outputs.stores.store import ObjectStore, Placement, StoredObject
from comfyui.retrying import Backoff
from comfyui.tasks import SideTasks
from comfyui.transport.body import OpenBody

_T = TypeVar("_T")
_NO_STORE = "the gateway has no object store"
_log = structlog.get_logger(__name__)
# For all files together: each upload of a large file holds some parts of it.
_UPLOADS_AT_ONCE = 4
DELIVERY_BACKOFF = Backoff(start_s=0.5, max_s=15.0)

OpenView = Callable[[PromptResult, OutputFile], AbstractAsyncContextManager[OpenBody]]
"""`BackendPool.open_file`."""
KeyOf = Callable[[OutputFile], str]
"""Gives the key of a file, whose name may be that of its converted content: see `comfyui.outputs.keys`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a file that cannot be read or stored is tried again, by whichever of the two it failed.

    Attributes:
        ready: awaited before each further try, where ComfyUI itself was away; raises when it does not come back.
    """

    retries: int = 0
    backoff: Backoff = DELIVERY_BACKOFF
    ready: Callable[[], Awaitable[None]] | None = None

    async def until_done(self, file: OutputFile, work: Callable[[], Awaitable[_T]]) -> _T:
        """The result of `work`, which is tried again after errors that may pass. Raises its last error."""
        failures = 0
        while True:
            try:
                return await work()
            except (StorageError, ComfyUIConnectionError, ComfyUIServerError) as error:
                failures += 1
                if failures > self.retries or not error.retryable:
                    raise
                _log.warning("output.retried", filename=file.filename, detail=error.detail, tries=failures)
                away = isinstance(error, ComfyUIConnectionError)
            await asyncio.sleep(self.backoff.delay_s(failures))
            if away and self.ready is not None:
                await self.ready()


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that is in the store.

    Attributes:
        facts: what its entry says of it besides, such as its name when converted.
        blake3: of the stored bytes, in hex.
    """

    object: StoredObject
    facts: FileFacts
    blake3: str


class OutputFiles:
    """Opens, reads and stores files of results. Open it with ``async with``; the store belongs to its opener.

    Args:
        open_view: a file of a result, as ComfyUI has it.
        store: None if no store is set up.
        converter: None if no picture is converted.
        last_uploads_s: at the end, for uploads that were given up: they have parts at the store to remove.
    """

    def __init__(
        self,
        open_view: OpenView,
        store: ObjectStore | None = None,
        *,
        converter: ImageConverter | None = None,
        patience: Patience | None = None,
        last_uploads_s: float = 5.0,
    ) -> None:
        self._open_view = open_view
        self._store = store
        self._converter = converter
        self._patience = patience or Patience()
        self._slots = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self._uploads = SideTasks()
        self._last_uploads_s = last_uploads_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Gives cancelled uploads a moment to remove the parts that they had sent."""
        await self._uploads.close(patience_s=self._last_uploads_s)

    @property
    def has_store(self) -> bool:
        return self._store is not None

    def check(self, placement: Placement) -> None:
        """Raise `StorageRefusedError` for a place that files cannot have, before any work is done for them."""
        if self._store is None:
            raise StorageRefusedError("output.store must be none, because S3_BUCKET is not set")
        self._store.check(placement)

    @asynccontextmanager
    async def open(
        self, result: PromptResult, file: OutputFile, convert: ImageConversion | None = None
    ) -> AsyncIterator[OutputContent]:
        """The file, converted if requested. Raises `ComfyUIError` if it cannot be read."""
        async with self._open_view(result, file) as body:
            content = OutputContent(file.filename, file.content_type, body)
            if convert is None or self._converter is None:
                yield content
                return
            async with self._converter.converted(content, convert) as converted:
                yield converted

    async def preview(self, result: PromptResult, file: OutputFile, max_bytes: int) -> bytes:
        """A small WebP of a picture that has at most `max_bytes`.

        Raises:
            ComfyUIError: it cannot be read, or there is no small picture of it.
        """
        if self._converter is None:
            raise ComfyUIUndeliverableError("this process converts no images")
        async with self._open_view(result, file) as body:
            try:
                return await self._converter.preview(OutputContent(file.filename, file.content_type, body), max_bytes)
            except NotConvertedError as error:
                raise ComfyUIUndeliverableError(str(error)) from None

    async def read(self, result: PromptResult, file: OutputFile, max_bytes: int) -> bytes | None:
        """The whole file, with patient retries; None if it is larger, in which case it is not read to its end.

        Raises:
            ComfyUIError: it cannot be read.
        """

        async def once() -> bytes | None:
            async with self._open_view(result, file) as body:
                if max_bytes < 0 or (body.length or 0) > max_bytes:
                    return None
                content = bytearray()
                async for chunk in body:
                    content += chunk
                    if len(content) > max_bytes:
                        return None
                return bytes(content)

        return await self._patience.until_done(file, once)

    async def put(
        self,
        result: PromptResult,
        file: OutputFile,
        key_of: KeyOf,
        placement: Placement,
        *,
        convert: ImageConversion | None = None,
        deadline: float | None = None,
        patience: Patience | None = None,
    ) -> Stored:
        """Store the file, tried again with patience, and at the latest at the deadline.

        An upload that is given up still has parts to remove, and a store that is silent does not answer that, either:
        it ends in its own time.

        Args:
            deadline: in the loop's time, whatever the store does; None: no deadline.
            patience: replaces the usual one.

        Raises:
            ComfyUIError: it cannot be read; a `StorageError` if it cannot be stored, or not in time.
        """
        try:
            async with asyncio.timeout_at(deadline), self._slots:
                upload = self._uploads.start(self._upload(result, file, key_of, placement, convert, patience), "upload")
                try:
                    outcome = await asyncio.shield(upload)
                finally:
                    upload.cancel()
        except TimeoutError:
            raise StorageError("the object store did not take the file in time") from None
        if isinstance(outcome, ComfyUIError):
            raise outcome
        return outcome

    async def link(self, file: DeliveredFile, placement: Placement) -> str:
        """A new link to a file in the store. Raises `StorageError` if there is none."""
        if self._store is None:
            raise StorageError(_NO_STORE)
        return await self._store.link(file.bucket, file.key, placement)

    async def _upload(
        self,
        result: PromptResult,
        file: OutputFile,
        key_of: KeyOf,
        placement: Placement,
        convert: ImageConversion | None,
        patience: Patience | None,
    ) -> Stored | ComfyUIError:
        store = self._store
        if store is None:
            return StorageError(_NO_STORE)

        async def once() -> Stored:
            async with self.open(result, file, convert) as content:
                key = key_of(replace(file, filename=content.filename))
                body, hasher = content.body, blake3()
                async with aclosing(_hashed(body, hasher)) as chunks:
                    stored = await store.put(key, chunks, body.length, content.content_type, placement)
                return Stored(stored, content.facts(), hasher.hexdigest())

        try:
            return await (patience or self._patience).until_done(file, once)
        except ComfyUIError as error:
            return error
        except Exception:
            # Whatever it is, the render is there and worth more than the upload.
            _log.exception("store.failed", prompt_id=result.prompt_id)
            return StorageError("the file could not be stored; the log has the reason")


async def _hashed(body: OpenBody, hasher: blake3) -> AsyncGenerator[bytes, None]:
    """The body, which `hasher` has seen when it has passed."""
    async for chunk in body:
        await offloaded(len(chunk), hasher.update, chunk)
        yield chunk
