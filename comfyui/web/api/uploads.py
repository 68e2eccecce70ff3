"""The form of ComfyUI's uploads: one file, of any size, on disk and hashed as it came, and the texts beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from comfyui.exceptions import BodyTooLargeError, RequestError
from comfyui.inputs.content import Content
from comfyui.limits import over
from comfyui.offload import in_thread
from comfyui.web.api.multipart import FormLimits, read_form
from comfyui.web.front.headers import header

# `original_ref`, mostly.
_MAX_TEXT_BYTES = 64 * 1024
_MOST_PARTS = 16
_BESIDE_THE_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class PostedFile:
    """What was posted: see `comfyui.web.comfyui.uploads.Posted`."""

    filename: str
    content: Content
    texts: Mapping[str, str]


class UploadForms:
    """Reads the forms. `max_bytes`: of a body; None: any."""

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes

    @asynccontextmanager
    async def posted(self, request: Request, max_file_bytes: int) -> AsyncIterator[PostedFile]:
        """The file lies in a folder for temporary files until the block ends, or it is taken from there.

        Raises:
            RequestError: no form with one file, called ``image``.
            BodyTooLargeError, ComfyUILimitError: it is too large.
            ComfyUIDiskError: it cannot be kept.
        """
        content_type = (header(request.scope, b"content-type") or b"").decode("latin-1")
        if not content_type.lower().startswith("multipart/form-data"):
            raise RequestError("a form (multipart/form-data) with the file as 'image' is wanted")
        most = max_file_bytes + _BESIDE_THE_FILE
        limits = FormLimits(most, _MAX_TEXT_BYTES, lambda _: None, max_parts=_MOST_PARTS)
        texts, files = await read_form(self._bounded(request, most), content_type, limits)
        if files is None:
            raise RequestError("image: the form has no file")
        try:
            if files.fields != ["image"]:
                raise RequestError("image: one file is wanted, and no other")
            spooled = files.named(())
            ((filename, path),) = spooled.paths.items()
            size = (await in_thread(path.stat)).st_size
            content = Content(path, size, spooled.digests[filename], path.suffix)
            decoded = {name: bytes(text).decode(errors="replace") for name, text in texts.items()}
            yield PostedFile(filename, content, decoded)
        finally:
            await files.remove()

    async def _bounded(self, request: Request, most: int) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if self._max_bytes is not None and size > self._max_bytes:
                raise BodyTooLargeError(f"the body is larger than {self._max_bytes / 1e6:g} MB (MAX_UPLOAD_MB)")
            if size > most:
                raise over("the file is larger than {limit} bytes", most - _BESIDE_THE_FILE, "MAX_STORED_INPUTS_MB")
            yield chunk
