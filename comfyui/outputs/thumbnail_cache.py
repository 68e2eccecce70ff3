"""`ThumbnailCache`: small pictures that were made before, in a folder or in memory; those used last stay."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import structlog

from comfyui.outputs.stores.folder import draft_of

_ENDING = ".webp"
_log = structlog.get_logger(__name__)


class ThumbnailCache:
    """Keeps at most `max_bytes`. Call `open` before everything else.

    Args:
        folder: only for this cache: other files in it are removed. None: in memory, of which it takes `max_bytes`.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes = 0
        # By file name, the least recently used first: its size and, in memory, its content.
        self._kept: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes

    async def open(self) -> None:
        """Finds the pictures in the folder. An unusable folder counts as empty, and the log says so."""
        if self._folder is None:
            return
        try:
            found = await asyncio.to_thread(_found_in, self._folder)
        except OSError as error:
            _log.warning("thumbnails.not_kept", reason=error.strerror)
            return
        for name, size in found:
            self._kept[name] = (size, b"")
            self._bytes += size
        await self._make_room()

    async def get(self, name: str) -> bytes | None:
        """The picture of this name, which may be any text; None if it is not here."""
        file = _file_name(name)
        kept = self._kept.get(file)
        if kept is None:
            return None
        self._kept.move_to_end(file)
        if self._folder is None:
            return kept[1]
        try:
            return await asyncio.to_thread((self._folder / file).read_bytes)
        except OSError:
            self._forget(file)
            return None

    async def put(self, name: str, picture: bytes) -> None:
        """Keeps the picture. If it cannot be written, it is not kept, and the log says so."""
        file = _file_name(name)
        if self._folder is not None:
            try:
                await asyncio.to_thread(_write, self._folder / file, picture)
            except OSError as error:
                _log.warning("thumbnails.not_kept", reason=error.strerror)
                return
        self._forget(file)
        self._kept[file] = (len(picture), picture if self._folder is None else b"")
        self._bytes += len(picture)
        await self._make_room()

    def _forget(self, file: str) -> None:
        size, _ = self._kept.pop(file, (0, b""))
        self._bytes -= size

    async def _make_room(self) -> None:
        gone: list[Path] = []
        while self._bytes > self._max_bytes:
            file = next(iter(self._kept))
            self._forget(file)
            if self._folder is not None:
                gone.append(self._folder / file)
        if gone:
            await asyncio.to_thread(_remove, gone)


def _file_name(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest() + _ENDING


def _found_in(folder: Path) -> list[tuple[str, int]]:
    """The pictures in it, the oldest first. Half-written files of an earlier process are removed."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = []
    for path in folder.iterdir():
        if path.suffix != _ENDING:
            path.unlink(missing_ok=True)
            continue
        stat = path.stat()
        found.append((stat.st_mtime, path.name, stat.st_size))
    return [(name, size) for _, name, size in sorted(found)]


def _write(path: Path, picture: bytes) -> None:
    with draft_of(path) as file:
        file.write(picture)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)
