"""The form of an upload: one file of any size, on disk and hashed on arrival, and its text fields."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

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
_IMAGE = "image"


@dataclass(frozen=True, slots=True)
class PostedFile:
    """A posted file: see `comfyui.web.comfyui.uploads.Posted`.

    Attributes:
        blake3: of the file, in hex; "" if it was not requested.
    """

    filename: str
    content: Content
    texts: Mapping[str, str]
    blake3: str = ""


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
        async with self._read(request, _IMAGE, self._limits(max_file_bytes), "MAX_STORED_INPUTS_MB") as posted:
            yield posted

    @asynccontextmanager
    async def posted_asset(self, request: Request, max_file_bytes: int, tags: list[bytes]) -> AsyncIterator[PostedFile]:
        """As `posted`, for a file called ``file``, with its BLAKE3. Each ``tags`` of the form is added to `tags`."""
        limits = replace(self._limits(max_file_bytes), lists={"tags": tags}, with_blake3=True)
        async with self._read(request, "file", limits, "half of MAX_STORED_INPUTS_MB") as posted:
            yield posted

    def _limits(self, max_file_bytes: int) -> FormLimits:
        most = max_file_bytes + _BESIDE_THE_FILE
        return FormLimits(most, _MAX_TEXT_BYTES, lambda _: None, max_parts=_MOST_PARTS)

    @asynccontextmanager
    async def _read(self, request: Request, name: str, limits: FormLimits, setting: str) -> AsyncIterator[PostedFile]:
        """The form's only file, in the field `name`. `setting` is the name of its limit in errors."""
        content_type = (header(request.scope, b"content-type") or b"").decode("latin-1")
        if not content_type.lower().startswith("multipart/form-data"):
            raise RequestError(f"the body must be a form (multipart/form-data) with the file in the field '{name}'")
        chunks = self._bounded(request, limits.max_file_bytes, setting)
        texts, files = await read_form(chunks, content_type, limits)
        if files is None:
            raise RequestError(f"{name} must be a file")
        try:
            if files.fields != [name]:
                raise RequestError(f"{name} must be the only file of the form")
            spooled = files.named(())
            ((filename, path),) = spooled.paths.items()
            size = (await in_thread(path.stat)).st_size
            content = Content(path, size, spooled.digests[filename], path.suffix)
            decoded = {name: bytes(text).decode(errors="replace") for name, text in texts.items()}
            yield PostedFile(filename, content, decoded, "".join(files.blake3s))
        finally:
            await files.remove()

    async def _bounded(self, request: Request, most: int, setting: str) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if self._max_bytes is not None and size > self._max_bytes:
                raise BodyTooLargeError(f"the body is larger than {self._max_bytes / 1e6:g} MB (MAX_UPLOAD_MB)")
            if size > most:
                raise over("the file is larger than {limit} bytes", most - _BESIDE_THE_FILE, setting)
            yield chunk
