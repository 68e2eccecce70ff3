"""Files as one ZIP archive that is made while it is sent: stored, not deflated, of any size, with flat memory."""

from __future__ import annotations

import re
import time
import unicodedata
import zipfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError
from comfyui.models import OutputFile
from comfyui.outputs.history import OpenFile
from comfyui.transport.body import OpenBody

# Characters that Windows refuses in a name; the folders' separators are handled before.
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
_LONGEST_NAME = 200
_FAILURES = "errors.json"


class _Pipe:
    """The target of `zipfile`: not seekable, so that it never returns to bytes that were already sent."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pending.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        pending, self._pending = self._pending, []
        return b"".join(pending)


async def zip_pieces(files: Sequence[OutputFile], open_file: OpenFile) -> AsyncGenerator[bytes, None]:
    """The archive, piece by piece; a piece comes from at most one chunk of a file.

    A file that cannot be read is left out, and ``errors.json`` in the archive says why; if none can be read, the first
    one's `ComfyUIError` is raised before the first piece. A file that breaks off ends the archive with its error.
    """
    pipe = _Pipe()
    names = _Names()
    failures: dict[str, str] = {}
    archive = zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED)  # type: ignore[call-overload] # it asks for no more
    for index, file in enumerate(files):
        try:
            async with open_file(file) as content:
                name = names.unique(file.subfolder, content.filename)
                async with aclosing(_member(archive, pipe, name, content.body)) as pieces:
                    async for piece in pieces:
                        yield piece
        except _BrokenOffError as broken:
            raise broken.error from broken
        except ComfyUIError as error:
            if len(failures) == index == len(files) - 1:
                raise
            failures[names.unique(file.subfolder, file.filename)] = error.detail
    if failures:
        archive.writestr(_info(_FAILURES), jsonio.dumps(failures, indent=True))
    archive.close()
    yield pipe.take()


class _BrokenOffError(Exception):
    """Part of the file is in the archive already."""

    def __init__(self, error: ComfyUIError) -> None:
        super().__init__(error.detail)
        self.error = error


async def _member(archive: zipfile.ZipFile, pipe: _Pipe, name: str, body: OpenBody) -> AsyncGenerator[bytes, None]:
    await body.begin()  # before its header is written: a file that is gone leaves nothing behind
    info = _info(name)
    info.file_size = body.length or 0
    with archive.open(info, "w", force_zip64=body.length is None) as member:
        try:
            async for chunk in body:
                member.write(chunk)
                yield pipe.take()
        except ComfyUIError as error:
            raise _BrokenOffError(error) from error


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, time.localtime()[:6])
    info.external_attr = 0o644 << 16
    return info


class _Names:
    """Names that lead nowhere else when they are unpacked, each one once, also where case does not count."""

    def __init__(self) -> None:
        self._taken = {_FAILURES}

    def unique(self, subfolder: str, filename: str) -> str:
        parts = [_safe(part) for part in re.split(r"[/\\]+", f"{subfolder}/{filename}")]
        path = "/".join(part for part in parts if part) or "file"
        folder, slash, name = path.rpartition("/")
        stem, dot, extension = name.rpartition(".")
        if not stem:
            stem, dot, extension = name, "", ""
        candidate, number = path, 1
        while _key(candidate) in self._taken:
            number += 1
            candidate = f"{folder}{slash}{stem} ({number}){dot}{extension}"
        self._taken.add(_key(candidate))
        return candidate


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _safe(part: str) -> str:
    """One folder's or file's name; empty for what leads elsewhere. Windows drops dots and spaces at the end."""
    name = _NOT_IN_NAMES.sub("_", part.encode("utf-8", "replace").decode()).rstrip(" .")
    return name[-_LONGEST_NAME:]
