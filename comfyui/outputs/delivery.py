"""What requests of the gateway want done with the files of their prompts, and what the answers say of each file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from comfyui.exceptions import ComfyUIError
from comfyui.models import (
    ConversionNote,
    FileEntry,
    ImageConversion,
    OutputFile,
    OutputPlace,
    PromptRequest,
    PromptResult,
)
from comfyui.offload import offloaded
from comfyui.outputs.files import OutputFiles
from comfyui.outputs.history import OutputContent, result_json
from comfyui.outputs.keys import prompt_key
from comfyui.outputs.stores.store import Placement
from comfyui.outputs.zipping import zip_pieces

Link = Callable[[str], str]
"""The address of a path and query of the gateway, as the reader of an answer calls it."""

# About what the entry of a file takes to be made, as JSON would take it to be written.
_ENTRY_BYTES = 256
_NOTHING_TO_CONVERT = "neither return_image_base64, an output store, nor raw bytes or zip were asked for"


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
    """One per gateway.

    Args:
        files: opens, converts and stores them; belongs to whoever opened it.
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
        """What ``images`` says of each file, in order; stores them first where that is wanted.

        Never raises for a file that could not be stored: its entry has ``error``.

        Args:
            deadline: in the loop's time. What is not stored by then is given up.
        """
        placement = self._placement(order)
        if placement is None or not self._files.has_store:
            note: ConversionNote = (
                {"converted": False, "reason": _NOTHING_TO_CONVERT} if order.convert and not order.with_base64 else {}
            )
            return await self._described(result, self._public, note)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._stored(result, file, order, placement, deadline), name="store output")
                for file in result.files
            ]
        return [task.result() for task in tasks]

    async def entries_to_tell(self, result: PromptResult, link: Link) -> list[FileEntry]:
        """As `entries`, for somebody who did not ask for the answer: nothing is stored for it.

        Args:
            link: gives the addresses of files at the gateway.
        """
        return await self._described(result, link)

    def json(
        self, result: PromptResult, entries: list[FileEntry], order: Order, *, with_outputs: bool = True
    ) -> AsyncGenerator[bytes, None]:
        """The JSON answer in pieces: see `outputs.result_json`."""
        open_file = (lambda file: self.open(result, file, order)) if order.with_base64 else None
        return result_json(result, entries, open_file=open_file, with_outputs=with_outputs)

    def zip(self, result: PromptResult, order: Order) -> AsyncGenerator[bytes, None]:
        """All files as an archive: see `zipping.zip_pieces`."""
        return zip_pieces(result.files, lambda file: self.open(result, file, order))

    async def _described(self, result: PromptResult, link: Link, note: ConversionNote | None = None) -> list[FileEntry]:
        more: ConversionNote = note or {}
        size = len(result.files) * _ENTRY_BYTES
        return await offloaded(size, lambda: [{**_entry(file, link), **more} for file in result.files])

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
        self, result: PromptResult, file: OutputFile, order: Order, placement: Placement, deadline: float
    ) -> FileEntry:
        entry = _entry(file, self._public)
        key_of = partial(prompt_key, result.prompt_id)
        try:
            stored = await self._files.put(result, file, key_of, placement, convert=order.convert, deadline=deadline)
        except ComfyUIError as error:
            return {**entry, "error": error.detail}
        placed = stored.object
        return {
            **entry,
            **stored.facts,
            "url": placed.url,
            "view_url": entry["url"],
            "bucket": placed.bucket,
            "key": placed.key,
            "size": placed.size,
        }


def _entry(file: OutputFile, link: Link) -> FileEntry:
    return {**file.to_json(), "url": link(file.url)}
