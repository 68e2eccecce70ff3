"""A finished prompt's files on their way to the client: converted where that is asked for, stored, or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from comfyui.exceptions import ComfyUIError, StorageRefusedError
from comfyui.models import FileEntry, ImageConversion, OutputFile, OutputPlace, PromptRequest, PromptResult
from comfyui.outputs.history import OutputContent, result_json
from comfyui.outputs.images import ImageConverter
from comfyui.outputs.stores.store import ObjectStore, Placement
from comfyui.outputs.zipping import zip_pieces
from comfyui.tasks import end_tasks
from comfyui.transport.body import OpenBody

_log = structlog.get_logger(__name__)
# Of all requests together: each upload of a large file holds some parts of it.
_UPLOADS_AT_ONCE = 4
_NOTHING_TO_CONVERT = "neither return_image_base64, an output store, nor raw bytes or zip were asked for"


OpenView = Callable[[PromptResult, OutputFile], AbstractAsyncContextManager[OpenBody]]
"""`ComfyUIHandler.open_file`."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one request wants done with its files."""

    with_base64: bool = False
    convert: ImageConversion | None = None
    output: OutputPlace | None = None

    @classmethod
    def of(cls, request: PromptRequest) -> Order:
        return cls(request.return_image_base64, request.convert, request.output)


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """Where output files go.

    Attributes:
        store_by_default: to the store also for requests that do not ask for it.
        public_url: where clients see the gateway, for the addresses of files; empty: as paths.
        last_uploads_s: at the end, for uploads that were given up to remove what they had sent.
    """

    store_by_default: bool = False
    public_url: str = ""
    last_uploads_s: float = 5.0


class Deliverer:
    """One per gateway; the store belongs to whoever opened it.

    Args:
        open_view: a file of a result, as ComfyUI has it.
        store: None where no store is set up.
    """

    def __init__(
        self,
        open_view: OpenView,
        converter: ImageConverter,
        store: ObjectStore | None,
        options: DeliveryOptions,
    ) -> None:
        self._open_view = open_view
        self._converter = converter
        self._store = store
        self._options = options
        self._uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self._given_up: set[asyncio.Task[dict[str, Any]]] = set()

    async def close(self) -> None:
        """Gives the uploads that were given up a moment to remove what they had sent."""
        if self._given_up:
            await asyncio.wait(self._given_up, timeout=self._options.last_uploads_s)
            await end_tasks(*self._given_up)

    def check(self, order: Order) -> None:
        """Raise `StorageRefusedError` for an order that cannot be met, before any work is done for it."""
        placement = self._placement(order)
        if placement is None:
            return
        if self._store is None:
            raise StorageRefusedError("output.store: this gateway has no object store (S3_BUCKET is not set)")
        self._store.check(placement)

    def is_stored(self, order: Order) -> bool:
        return self._placement(order) is not None

    @asynccontextmanager
    async def open(self, result: PromptResult, file: OutputFile, order: Order) -> AsyncIterator[OutputContent]:
        """The file as the client is to have it. Raises `ComfyUIError` when it cannot be read."""
        async with self._open_view(result, file) as body:
            content = OutputContent(file.filename, file.content_type, body)
            if order.convert is None:
                yield content
                return
            async with self._converter.converted(content, order.convert) as converted:
                yield converted

    async def entries(self, result: PromptResult, order: Order, *, deadline: float) -> list[dict[str, Any]]:
        """What ``images`` says of each file, in order; stores them first where that is wanted.

        Never raises for a file that could not be stored: its entry has ``error``.

        Args:
            deadline: in the loop's time. What is not stored by then is given up.
        """
        placement = self._placement(order)
        if placement is None or self._store is None:
            note = (
                {"converted": False, "reason": _NOTHING_TO_CONVERT} if order.convert and not order.with_base64 else {}
            )
            return [{**self._entry(file), **note} for file in result.files]
        store = self._store
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._stored_in_time(store, result, file, order, placement, deadline), name="store output"
                )
                for file in result.files
            ]
        return [task.result() for task in tasks]

    def json(self, result: PromptResult, entries: list[dict[str, Any]], order: Order) -> AsyncGenerator[bytes, None]:
        """The JSON answer in pieces: see `outputs.result_json`."""
        open_file = (lambda file: self.open(result, file, order)) if order.with_base64 else None
        return result_json(result, entries, open_file=open_file)

    def zip(self, result: PromptResult, order: Order) -> AsyncGenerator[bytes, None]:
        """All files as an archive: see `zipping.zip_pieces`."""
        return zip_pieces(result.files, lambda file: self.open(result, file, order))

    def _entry(self, file: OutputFile) -> FileEntry:
        entry = file.to_json()
        return {**entry, "url": f"{self._options.public_url}{file.url}"} if self._options.public_url else entry

    def _placement(self, order: Order) -> Placement | None:
        place = order.output
        if place is None:
            return Placement() if self._options.store_by_default else None
        if place.store == "none":
            return None
        return Placement(place.bucket, place.prefix, place.presign_seconds)

    async def _stored_in_time(
        self,
        store: ObjectStore,
        result: PromptResult,
        file: OutputFile,
        order: Order,
        placement: Placement,
        deadline: float,
    ) -> dict[str, Any]:
        """The entry of one file, by the deadline, whatever the store does.

        An upload that is given up still has parts to remove, and a store that is silent does not answer that, either:
        it ends in its own time.
        """
        try:
            async with asyncio.timeout_at(deadline), self._uploads:
                storing = asyncio.create_task(self._stored(store, result, file, order, placement), name="upload")
                try:
                    return await asyncio.shield(storing)
                finally:
                    if not storing.done():
                        storing.cancel()
                        self._given_up.add(storing)
                        storing.add_done_callback(self._given_up.discard)
        except TimeoutError:
            return {**file.to_json(), "error": "the object store did not take the file within the request's timeout"}

    async def _stored(
        self, store: ObjectStore, result: PromptResult, file: OutputFile, order: Order, placement: Placement
    ) -> dict[str, Any]:
        entry = self._entry(file)
        try:
            async with self.open(result, file, order) as content:
                stored = await store.put(
                    _key(result, file, content.filename),
                    content.body,
                    content.body.length,
                    content.content_type,
                    placement,
                )
                return {
                    **entry,
                    **content.facts(),
                    "url": stored.url,
                    "view_url": entry["url"],
                    "bucket": stored.bucket,
                    "key": stored.key,
                    "size": stored.size,
                }
        except ComfyUIError as error:
            return {**entry, "error": error.detail}
        except Exception:
            # Whatever it is, the render is there and worth more than the upload.
            _log.exception("store.failed", prompt_id=result.prompt_id)
            return {**entry, "error": "the file could not be stored; the gateway's log has the reason"}


def _key(result: PromptResult, file: OutputFile, filename: str) -> str:
    """One folder per prompt, so that no other prompt's file is replaced; other folders than output have their name."""
    folders = [result.prompt_id, *([] if file.type == "output" else [file.type]), file.subfolder]
    return "/".join([*(folder for folder in folders if folder), filename])
