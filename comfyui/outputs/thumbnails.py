"""`Thumbnails`: small pictures of jobs' outputs, made at the first look, and kept within bounds.

Pictures and the first frame of animations come from `comfyui.outputs.images`, videos from `comfyui.outputs.posters`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import structlog

from comfyui.exceptions import ComfyUIDiskError, ComfyUINotFoundError, ComfyUIUndeliverableError
from comfyui.offload import opened_in_thread
from comfyui.outputs.history import OutputContent
from comfyui.outputs.images import ImageConverter
from comfyui.outputs.pictures import THUMBNAIL, NotConvertedError
from comfyui.outputs.posters import Posters
from comfyui.outputs.thumbnail_cache import ThumbnailCache
from comfyui.tasks import SideTasks, heeded
from comfyui.transport.body import IteratedBody, OpenBody

THUMBNAILS_FOLDER = "thumbnails"
"""Below `STATE_DIR`."""
_PIECE = 1 << 20
# Names of files of which no small picture can be made: they are not tried again.
_MOST_IMPOSSIBLE = 10_000
_log = structlog.get_logger(__name__)

OpenOutput = Callable[[], AbstractAsyncContextManager[OpenBody | None]]
"""Opens a file; None if it no longer exists. Raises `ComfyUIError` if its server does not answer."""


@dataclass(frozen=True, slots=True)
class ThumbnailOptions:
    """Limits of the cost of small pictures.

    Attributes:
        on_disk, in_memory: bytes of those that are kept, in a folder or without one.
        max_bytes: of one of them.
        max_video: bytes of a video of which one is made: it is copied to disk for that.
        at_once: that are made at the same time; the others wait.
        within_s: from the first byte of a file to its small picture.
    """

    on_disk: int = 256_000_000
    in_memory: int = 24_000_000
    max_bytes: int = 40_000
    max_video: int = 256_000_000
    at_once: int = 2
    within_s: float = 60.0


@dataclass(slots=True)
class _Making:
    """A picture that is being made, and how many wait for it."""

    task: asyncio.Task[bytes]
    waiting: int = 0


class Thumbnails:
    """Open it with ``async with``.

    Args:
        converter: for all pictures of the gateway, so that its bounds hold for these, too.
        folder: for the pictures only. None: in memory.
    """

    def __init__(
        self,
        converter: ImageConverter,
        folder: Path | None = None,
        options: ThumbnailOptions | None = None,
        *,
        posters: Posters | None = None,
    ) -> None:
        self._converter = converter
        self._options = options or ThumbnailOptions()
        self._posters = posters or Posters.of_host()
        self._folder = folder
        self._cache = ThumbnailCache(folder, self._options.in_memory if folder is None else self._options.on_disk)
        self._slots = asyncio.Semaphore(self._options.at_once)
        self._making: dict[str, _Making] = {}
        self._impossible: OrderedDict[str, str] = OrderedDict()
        self._tasks = SideTasks(heeded)

    async def __aenter__(self) -> Self:
        await self._cache.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._tasks.close()

    def are_made_of(self, content_type: str) -> bool:
        """Whether most files of this type have small pictures."""
        if content_type.startswith("video/"):
            return self._posters.are_made
        return content_type.startswith("image/") and not content_type.startswith("image/svg")

    async def of(self, name: str, content_type: str, open_output: OpenOutput) -> bytes:
        """The small picture of a file, as WebP.

        Args:
            name: of the file, the same as long as its bytes are the same.

        Raises:
            ComfyUIUndeliverableError: none can be made of it.
            ComfyUINotFoundError: the file no longer exists.
            ComfyUIError: its server does not answer.
        """
        if (reason := self._impossible.get(name)) is not None:
            raise ComfyUIUndeliverableError(reason)
        if not self.are_made_of(content_type):
            raise ComfyUIUndeliverableError(f"there are no small pictures of {content_type}")
        if (kept := await self._cache.get(name)) is not None:
            return kept
        making = self._making.get(name)
        if making is None:
            task = self._tasks.start(self._made(name, content_type, open_output), "make a thumbnail")
            making = self._making[name] = _Making(task)
        making.waiting += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.waiting -= 1
            if not making.waiting:
                # A reader who scrolls past many pictures no longer wants these.
                making.task.cancel()
            if (making.task.done() or not making.waiting) and self._making.get(name) is making:
                del self._making[name]

    async def _made(self, name: str, content_type: str, open_output: OpenOutput) -> bytes:
        async with self._slots:
            try:
                async with asyncio.timeout(self._options.within_s), open_output() as body:
                    if body is None:
                        raise ComfyUINotFoundError("the file is no longer on its server")
                    picture = await self._picture_of(content_type, body)
            except NotConvertedError as error:
                self._impossible[name] = str(error)
                while len(self._impossible) > _MOST_IMPOSSIBLE:
                    self._impossible.popitem(last=False)
                _log.info("thumbnail.impossible", output=name, reason=str(error))
                raise ComfyUIUndeliverableError(str(error)) from None
            except TimeoutError:
                raise ComfyUIUndeliverableError(f"it took more than {self._options.within_s:g} s") from None
        await self._cache.put(name, picture)
        return picture

    async def _picture_of(self, content_type: str, body: OpenBody) -> bytes:
        if not content_type.startswith("video/"):
            return await self._small(content_type, body)
        async with self._on_disk(body) as video:
            poster = await self._posters.first_picture(video)
        return await self._small("image/png", IteratedBody(_piece(poster), len(poster)))

    async def _small(self, content_type: str, body: OpenBody) -> bytes:
        content = OutputContent("", content_type, body)
        return await self._converter.preview(content, self._options.max_bytes, THUMBNAIL)

    @asynccontextmanager
    async def _on_disk(self, body: OpenBody) -> AsyncIterator[Path]:
        """A copy: many containers have their index at the end, so that ffmpeg has to go back and forth."""
        most = self._options.max_video
        if body.length is not None and body.length > most:
            raise NotConvertedError(_too_large(most))
        try:
            file = await opened_in_thread(self._open_copy)
        except OSError as error:
            raise _disk_error(error) from error
        try:
            await _copied(body, file, most)
            yield Path(file.name)
        finally:
            await asyncio.to_thread(file.close)

    def _open_copy(self) -> IO[bytes]:
        return tempfile.NamedTemporaryFile(dir=self._folder, prefix="video-")


async def _copied(body: OpenBody, file: IO[bytes], most: int) -> None:
    """Writes the whole body. Raises `NotConvertedError` if it is longer than `most`."""
    piece, size = bytearray(), 0

    def write() -> None:
        file.write(piece)
        file.flush()

    try:
        async for chunk in body:
            size += len(chunk)
            if size > most:
                raise NotConvertedError(_too_large(most))
            piece += chunk
            if len(piece) >= _PIECE:
                await asyncio.to_thread(write)
                piece.clear()
        await asyncio.to_thread(write)
    except OSError as error:
        raise _disk_error(error) from error


def _too_large(most: int) -> str:
    return f"it is larger than {most / 1e6:g} MB"


def _disk_error(error: OSError) -> ComfyUIDiskError:
    return ComfyUIDiskError(f"a video cannot be copied to disk for its thumbnail: {error.strerror}")


async def _piece(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content
