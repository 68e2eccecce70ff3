"""The content of one input: in memory or spooled to disk, with its SHA-256, its size and the type of its bytes.

These classes do not know the source or the target of the bytes. Hashing and file access of more than a moment happen in
threads.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Protocol, Self

from comfyui.exceptions import ComfyUIDiskError, ComfyUIInputError
from comfyui.offload import finished_in_thread, opened_in_thread

CHUNK = 1 << 20
TEMPORARY = "the folder for temporary files (TMPDIR)"
_HEAD = 4096
_UTF8_BOM = b"\xef\xbb\xbf"
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!doctype>")
_EXTENSION = re.compile(r"\.[a-z0-9]{1,8}")

# (offset, bytes, extension), the first that fits. Containers that need a second look (RIFF, ISO-BMFF, EBML) come apart.
_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"GIF87a", ".gif"),
    (0, b"GIF89a", ".gif"),
    (0, b"BM", ".bmp"),
    (0, b"II*\x00", ".tiff"),
    (0, b"MM\x00*", ".tiff"),
    (0, b"v/1\x01", ".exr"),
    (0, b"#?RADIANCE", ".hdr"),
    (0, b"8BPS", ".psd"),
    (0, b"\xff\x0a", ".jxl"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", ".jxl"),
    (0, b"fLaC", ".flac"),
    (0, b"ID3", ".mp3"),
    (0, b"\xff\xfb", ".mp3"),
    (0, b"\xff\xf3", ".mp3"),
    (0, b"\xff\xf2", ".mp3"),
    (0, b"\xff\xf1", ".aac"),
    (0, b"\xff\xf9", ".aac"),
    (0, b"glTF", ".glb"),
    (0, b"Kaydara FBX Binary", ".fbx"),
    (0, b"ply\n", ".ply"),
    (0, b"ply\r\n", ".ply"),
    (0, b"\x93NUMPY", ".npy"),
)
_RIFF_FORMS = {b"WEBP": ".webp", b"WAVE": ".wav", b"AVI ": ".avi"}
_ISO_BRANDS = {
    b"avif": ".avif",
    b"avis": ".avif",
    b"heic": ".heic",
    b"heix": ".heic",
    b"mif1": ".heic",
    b"msf1": ".heic",
    b"qt  ": ".mov",
    b"M4A ": ".m4a",
    b"M4B ": ".m4a",
}


def sniff(head: bytes) -> str | None:
    """The extension for the first bytes of a file, such as ``.png``; None if they are not known."""
    if head[:4] == b"RIFF":
        return _RIFF_FORMS.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _ISO_BRANDS.get(head[8:12], ".mp4")
    if head[:4] == b"\x1aE\xdf\xa3":
        return ".webm" if b"webm" in head[:128] else ".mkv"
    if head[:4] == b"OggS":
        return ".ogv" if b"theora" in head[:128] else ".ogg"
    for offset, magic, extension in _MAGIC:
        if head.startswith(magic, offset):
            return extension
    return None


def extension_for(head: bytes, hint: str = "") -> str:
    """The extension under which to store a file: by its bytes, or `hint` if it is one, or ``.bin``."""
    hint = hint.lower()
    return sniff(head) or (hint if _EXTENSION.fullmatch(hint) else ".bin")


def refuse_no_file(head: bytes) -> None:
    """Raises `ComfyUIInputError` for bytes that are certainly not an input: none at all, or a web page (usually of an
    error).
    """
    if not head:
        raise ComfyUIInputError("the content is empty")
    start = head.removeprefix(_UTF8_BOM).lstrip()[:16].lower()
    if start.startswith(_HTML_STARTS):
        raise ComfyUIInputError("the content is an HTML page instead of a file, perhaps an error or login page")


@dataclass(frozen=True, slots=True)
class Content:
    """The content of an upload.

    Attributes:
        source: the bytes themselves, or a file that stays in place until the upload ends.
        digest: its SHA-256 in hex.
        extension: under which it is stored.
        folder: of the file, as people know it.
    """

    source: bytes | Path
    size: int
    digest: str
    extension: str
    folder: str = TEMPORARY

    @classmethod
    def of_bytes(cls, data: bytes, hint: str = "") -> Content:
        """Hashes and sniffs; takes about 1 ms per MB. Raises `ComfyUIInputError` if it is not a file."""
        refuse_no_file(data[:_HEAD])
        return cls(data, len(data), hashlib.sha256(data).hexdigest(), extension_for(data[:_HEAD], hint))

    @classmethod
    async def of_file(cls, path: Path, *, max_bytes: int, hint: str = "") -> Content:
        """The file at `path`, which the caller keeps until the upload is done and then removes."""
        with temporary_file_errors():
            size, digest, head = await asyncio.to_thread(_read_facts, path, max_bytes)
        refuse_no_file(head)
        return cls(path, size, digest, extension_for(head, hint))

    @classmethod
    async def of_hashed_file(cls, path: Path, digest: str, *, hint: str = "") -> Content:
        """The same as `of_file` for a known SHA-256 and a checked size: only the file's first bytes are read."""
        with temporary_file_errors():
            size, head = await asyncio.to_thread(_size_and_head, path)
        refuse_no_file(head)
        return cls(path, size, digest, extension_for(head, hint))

    async def chunks(self, start: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """The content in pieces of at most 1 MiB: `size` bytes from byte `start` on, or all that follow it.

        Each call starts from the beginning.
        """
        left = self.size - start if size is None else size
        if isinstance(self.source, bytes):
            for at in range(start, start + left, CHUNK):
                yield self.source[at : min(at + CHUNK, start + left)]
            return
        async with aclosing(pieces_of(self.source, start, left, self.folder)) as pieces:
            async for piece in pieces:
                yield piece


async def pieces_of(path: Path, start: int, size: int, folder: str) -> AsyncGenerator[bytes, None]:
    """`size` bytes of a file from byte `start` on, in pieces of at most 1 MiB.

    Args:
        folder: of the file, as people know it.
    """
    with disk_errors(folder):
        file = await opened_in_thread(functools.partial(_opened, path, start))
    try:
        while size > 0:
            with disk_errors(folder):
                piece = await asyncio.to_thread(file.read, min(CHUNK, size))
            if not piece:
                return
            yield piece
            size -= len(piece)
    finally:
        await finished_in_thread(file.close)


class Spool:
    """A temporary file, written off the event loop, hashed as it grows, and removed at the end of ``async with``.

    Disk use is at most `max_bytes`, memory a few MiB whatever the size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._head = b""
        self._size = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._file: IO[bytes] | None = None

    async def __aenter__(self) -> Self:
        # Closed, and with that removed, in __aexit__.
        with temporary_file_errors():
            self._file = await opened_in_thread(_new_temporary_file)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            await finished_in_thread(file.close)

    @property
    def size(self) -> int:
        """How many bytes were written."""
        return self._size

    async def clear(self) -> None:
        """Discards the written bytes: the next bytes are the file's first ones."""
        if self._size:
            self._hash = hashlib.sha256()
            self._head = b""
            self._size = self._pending_size = 0
            self._pending.clear()
            with temporary_file_errors():
                await asyncio.to_thread(self._truncate)

    async def write(self, data: bytes) -> None:
        """Raises `ComfyUIInputError` as soon as there is more than `max_bytes`; that much never reaches the disk."""
        self._size += len(data)
        if self._size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= CHUNK:
            await self._flush()

    async def finish(self, hint: str = "") -> Content:
        """The written content; its file lives until the ``async with`` ends."""
        await self._flush()
        if self._file is None:
            raise RuntimeError("use the spool inside 'async with'")
        refuse_no_file(self._head)
        return Content(Path(self._file.name), self._size, self._hash.hexdigest(), extension_for(self._head, hint))

    async def _flush(self) -> None:
        block = b"".join(self._pending)
        self._pending.clear()
        self._pending_size = 0
        if len(self._head) < _HEAD:
            self._head = (self._head + block[:_HEAD])[:_HEAD]
        with temporary_file_errors():
            await asyncio.to_thread(self._append, block)

    def _truncate(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    def _append(self, block: bytes) -> None:
        if self._file is None:
            raise RuntimeError("use the spool inside 'async with'")
        self._hash.update(block)
        self._file.write(block)
        self._file.flush()


class BroughtFiles(Protocol):
    """The files that come with a request beside its body; they stay in place while they are held.

    Attributes:
        paths: files by the name under which the workflow refers to them.
        kept: contents by the field of the body in which they were given.
    """

    @property
    def paths(self) -> Mapping[str, Path | Content]: ...
    @property
    def kept(self) -> Mapping[str, Content]: ...

    def hold(self) -> None: ...
    def release(self) -> None: ...


class SpooledFiles:
    """Files that came with one request.

    They lie in a folder of their own, which is removed when the last of those who `hold` them has let go.

    Attributes:
        paths: by the name under which the workflow refers to them.
        digests: SHA-256 of each file, for telling two requests apart.
    """

    kept: Mapping[str, Content] = MappingProxyType({})

    def __init__(self, folder: Path, paths: Mapping[str, Path], digests: Mapping[str, str]) -> None:
        self._folder = folder
        self.paths = paths
        self.digests = digests
        self._holders = 0

    def hold(self) -> None:
        self._holders += 1

    def release(self) -> None:
        """Returns at once: removing a large file takes a moment."""
        self._holders -= 1
        if not self._holders:
            asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, self._folder, True)


@contextmanager
def disk_errors(folder: str) -> Iterator[None]:
    """Translates an `OSError` about a file in `folder` into `ComfyUIDiskError`, which names the setting and no path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ComfyUIDiskError(f"{folder} cannot be used: {reason}") from error


def temporary_file_errors() -> AbstractContextManager[None]:
    return disk_errors(TEMPORARY)


def _opened(path: Path, start: int = 0) -> IO[bytes]:
    # Only we write there, so a link was put there to make us read another file.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    file.seek(start)
    return file


def _size_and_head(path: Path) -> tuple[int, bytes]:
    with _opened(path) as file:
        return os.fstat(file.fileno()).st_size, file.read(_HEAD)


def _new_temporary_file() -> IO[bytes]:
    return tempfile.NamedTemporaryFile(prefix="comfyui-input-")


def too_large(max_bytes: int) -> ComfyUIInputError:
    return ComfyUIInputError(f"larger than the {max_bytes / 1e6:g} MB that an input may have")


def _read_facts(path: Path, max_bytes: int) -> tuple[int, str, bytes]:
    digest = hashlib.sha256()
    size = 0
    head = b""
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            head = head or block[:_HEAD]
            size += len(block)
            if size > max_bytes:
                raise too_large(max_bytes)
            digest.update(block)
    return size, digest.hexdigest(), head
