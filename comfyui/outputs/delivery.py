"""Delivers the files of prompts as the gateway's requests ask for it, and makes the entries of the files in answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from comfyui.answer_json import ConversionNote, FileEntry, FileFacts
from comfyui.exceptions import ComfyUIError, StorageError
from comfyui.models import (
    DeliveredFile,
    Delivery,
    ImageConversion,
    OutputFile,
    OutputPlace,
    PromptRequest,
    PromptResult,
)
from comfyui.offload import offloaded
from comfyui.outputs.files import OutputFiles, Patience, Stored
from comfyui.outputs.history import OutputContent, result_json
from comfyui.outputs.keys import prompt_key
from comfyui.outputs.stores.store import Placement
from comfyui.outputs.zipping import zip_pieces

_log = structlog.get_logger(__name__)

Link = Callable[[str], str]
"""The address of a path and query of the gateway, as the reader of an answer calls it."""

# About the cost of making a file's entry, as the number of bytes whose writing as JSON takes as long.
_ENTRY_BYTES = 256
_NOTHING_TO_CONVERT = "the request asked for none of return_image_base64, an output store, raw bytes and zip"


@dataclass(frozen=True, slots=True)
class Order:
    """One request's wishes for its files."""

    with_base64: bool = False
    convert: ImageConversion | None = None
    output: OutputPlace | None = None

    @classmethod
    def of(cls, request: PromptRequest) -> Order:
        return cls(request.return_image_base64, request.convert, request.output)


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """Options for the place of output files.

    Attributes:
        merged: clients see many servers as one ComfyUI, so that files are named by their prompts. Keys in the store are
            the same either way.
        store_by_default: to the store also for requests that do not ask for it.
        public_url: where clients see the gateway, for the addresses of files; empty: as paths.
        last_uploads_s: at the end, for cancelled uploads to remove the parts that they had sent.
        at_end_s: for the files of a job without a waiting caller. Files that are not stored by then can still be
            requested.
        at_end: how often each of them is tried again.
    """

    merged: bool = False
    store_by_default: bool = False
    public_url: str = ""
    last_uploads_s: float = 5.0
    at_end_s: float = 300.0
    at_end: Patience = field(default_factory=lambda: Patience(retries=8))


class Deliverer:
    """One per gateway.

    Args:
        files: opens, converts and stores them; belongs to its opener.
    """

    def __init__(self, files: OutputFiles, options: DeliveryOptions) -> None:
        self._files = files
        self._options = options

    def check(self, order: Order) -> None:
        """Raise `StorageRefusedError` for an order that cannot be met, before any work is done for it."""
        placement = self._placement(order)
        if placement is not None:
            self._files.check(placement)

    def open(self, result: PromptResult, file: OutputFile, order: Order) -> AbstractAsyncContextManager[OutputContent]:
        """The file as the client is to have it. Raises `ComfyUIError` when it cannot be read."""
        return self._files.open(result, file, order.convert)

    async def entries(self, result: PromptResult, order: Order, *, deadline: float) -> list[FileEntry]:
        """The entries of ``images``, in order; first stores files that should be stored and are not yet.

        Never raises for a file that could not be stored: its entry has ``error``.

        Args:
            deadline: in the loop's time. Files that are not stored by then are given up.
        """
        delivery = result.delivery
        if delivery is not None and _is_met_by(order, delivery):
            return await self._delivered_entries(result, delivery, self._public)
        placement = self._placement(order)
        if placement is None or not self._files.has_store:
            note: ConversionNote = (
                {"converted": False, "reason": _NOTHING_TO_CONVERT} if order.convert and not order.with_base64 else {}
            )
            return await self._entries(result, self._public, note)
        files = await self._stored(result, order, placement, deadline)
        return [
            _entry_of_stored(self._entry(result, file, self._public), stored)
            for file, stored in zip(result.files, files, strict=True)
        ]

    async def entries_to_tell(self, result: PromptResult, link: Link) -> list[FileEntry]:
        """As `entries`, for a reader who did not request the answer: nothing is stored for it.

        Args:
            link: gives the addresses of files at the gateway.
        """
        if result.delivery is not None:
            return await self._delivered_entries(result, result.delivery, link)
        return await self._entries(result, link)

    async def delivered(self, result: PromptResult, order: Order) -> PromptResult:
        """The result of a job that may have no waiting caller, with its files delivered as the order says.

        Never raises for a file that could not be stored.
        """
        placement = self._placement(order)
        if placement is None or not result.files:
            return result
        loop = asyncio.get_running_loop()
        began = loop.time()
        options = self._options
        stored = await self._stored(result, order, placement, began + options.at_end_s, options.at_end)
        for file, one in zip(result.files, stored, strict=True):
            if isinstance(one, ComfyUIError):
                _log.warning(
                    "output.undelivered", prompt_id=result.prompt_id, filename=file.filename, detail=one.detail
                )
        files = tuple(
            DeliveredFile(error=one.detail)
            if isinstance(one, ComfyUIError)
            else DeliveredFile(one.facts, one.object.bucket, one.object.key, one.object.size, blake3=one.blake3)
            for one in stored
        )
        timings = replace(result.timings, collecting_s=result.timings.collecting_s + loop.time() - began)
        return replace(result, timings=timings, delivery=Delivery(order.output, order.convert, files))

    async def link(self, file: DeliveredFile) -> str:
        """A new link to a file in the store. Raises `StorageError` if there is none."""
        return await self._files.link(file, Placement())

    async def preview(self, result: PromptResult, file: OutputFile, max_bytes: int) -> bytes:
        """See `OutputFiles.preview`."""
        return await self._files.preview(result, file, max_bytes)

    def json(
        self, result: PromptResult, entries: list[FileEntry], order: Order, *, with_outputs: bool = True
    ) -> AsyncGenerator[bytes, None]:
        """The JSON answer in pieces: see `outputs.history.result_json`."""
        open_file = (lambda file: self.open(result, file, order)) if order.with_base64 else None
        merged = self._options.merged
        return result_json(result, entries, open_file=open_file, with_outputs=with_outputs, merged=merged)

    def zip(self, result: PromptResult, order: Order) -> AsyncGenerator[bytes, None]:
        """All files as an archive: see `zipping.zip_pieces`."""
        return zip_pieces(result.files, lambda file: self.open(result, file, order))

    def _public(self, target: str) -> str:
        return f"{self._options.public_url}{target}"

    def _placement(self, order: Order) -> Placement | None:
        place = order.output
        if place is None:
            return Placement() if self._options.store_by_default else None
        if place.store == "none":
            return None
        return Placement(place.bucket, place.prefix, place.presign_seconds)

    async def _stored(
        self,
        result: PromptResult,
        order: Order,
        placement: Placement,
        deadline: float,
        patience: Patience | None = None,
    ) -> list[Stored | ComfyUIError]:
        """Each file in the store, or why it is not there."""
        key_of = partial(prompt_key, result.prompt_id)

        async def one(file: OutputFile) -> Stored | ComfyUIError:
            try:
                return await self._files.put(
                    result, file, key_of, placement, convert=order.convert, deadline=deadline, patience=patience
                )
            except ComfyUIError as error:
                return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(file), name="store output") for file in result.files]
        return [task.result() for task in tasks]

    async def _delivered_entries(self, result: PromptResult, delivery: Delivery, link: Link) -> list[FileEntry]:
        """The known entries of the files, with new links to the store."""
        seconds = delivery.output.presign_seconds if delivery.output else None
        placement = Placement(presign_seconds=seconds)
        entries: list[FileEntry] = []
        for file, delivered in zip(result.files, delivery.files, strict=True):
            entry = self._entry(result, file, link)
            try:
                if delivered.error:
                    raise StorageError(delivered.error)
                url = await self._files.link(delivered, placement)
            except StorageError as error:
                entries.append({**entry, "error": error.detail})
            else:
                entries.append(_placed(entry, delivered.facts, url, delivered.bucket, delivered.key, delivered.size))
            await asyncio.sleep(0)  # to sign takes a fraction of a millisecond
        return entries

    async def _entries(self, result: PromptResult, link: Link, note: ConversionNote | None = None) -> list[FileEntry]:
        """The entries of files that only ComfyUI has."""
        more: ConversionNote = note or {}
        size = len(result.files) * _ENTRY_BYTES
        return await offloaded(size, lambda: [{**self._entry(result, file, link), **more} for file in result.files])

    def _entry(self, result: PromptResult, file: OutputFile, link: Link) -> FileEntry:
        shown = file.of_prompt(result.prompt_id) if self._options.merged else file
        entry: FileEntry = {**shown.to_json(), "url": link(shown.url)}
        if result.call is not None and (name := result.call.outputs.get(file.node_id)) is not None:
            entry["output"] = name
        return entry


def _entry_of_stored(entry: FileEntry, stored: Stored | ComfyUIError) -> FileEntry:
    if isinstance(stored, ComfyUIError):
        return {**entry, "error": stored.detail}
    placed = stored.object
    return _placed(entry, stored.facts, placed.url, placed.bucket, placed.key, placed.size)


def _placed(entry: FileEntry, facts: FileFacts, url: str, bucket: str, key: str, size: int) -> FileEntry:
    return {**entry, **facts, "url": url, "view_url": entry["url"], "bucket": bucket, "key": key, "size": size}


def _is_met_by(order: Order, delivery: Delivery) -> bool:
    """Whether the job's stored files are those that this order wants."""
    if order.output is None:
        return True
    wanted = order.output == delivery.output and order.convert == delivery.convert
    return wanted and not any(file.error for file in delivery.files)
