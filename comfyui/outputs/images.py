"""Converts a request's images: within a budget of memory, beside the event loop, and large ones in another process.

A file that is too large, animated or no image passes unchanged, with the reason. `comfyui.outputs.pictures` does the
work.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from comfyui.file_names import content_type_of
from comfyui.models import ImageConversion
from comfyui.offload import offloaded
from comfyui.outputs import pictures
from comfyui.outputs.history import OutputContent
from comfyui.outputs.pictures import Look, NotConvertedError
from comfyui.outputs.processes import end_process
from comfyui.transport.body import IteratedBody, OpenBody

_CHUNK = 1 << 18
_EXTENSIONS = {"webp": ".webp", "jpeg": ".jpg", "png": ".png", "avif": ".avif"}
# Pillow lets no other thread run while it changes pixels: some 10 ms for this number. A larger image is worth a
# process.
_IN_THREAD_PIXELS = 2_000_000
_PROGRAM = str(Path(pictures.__file__).resolve())


def _half_of_the_processors() -> int:
    """Half of the processors that this process may use, but at least two."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    return max(2, usable // 2)


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """Files above these limits pass unchanged: a small file can be an image that fills the memory.

    Attributes:
        at_once: conversions at the same time, by default half of the processors; the others wait.
        max_memory: bytes that all conversions together may take, by `pictures.look`; the others wait.
    """

    max_bytes: int = 100_000_000
    max_pixels: int = 80_000_000
    at_once: int = field(default_factory=_half_of_the_processors)
    max_memory: int = 2_000_000_000


class ImageConverter:
    """One per gateway."""

    def __init__(self, limits: ConversionLimits | None = None) -> None:
        self._limits = limits or ConversionLimits()
        self._slots = asyncio.Semaphore(self._limits.at_once)
        self._memory = _Budget(self._limits.max_memory)

    @asynccontextmanager
    async def converted(self, content: OutputContent, conversion: ImageConversion) -> AsyncIterator[OutputContent]:
        """`content` in the other format, or as it is with the reason in its ``notes``."""
        if not content.content_type.startswith("image/"):
            yield _unchanged(content, "not an image")
            return
        async with self._slots:  # not while the client takes it: a slow one would hold up the others
            data, beginning = await self._read(content)
            try:
                if data is None:
                    raise NotConvertedError(f"larger than {self._limits.max_bytes / 1e6:g} MB")
                converted = await self._convert(data, conversion)
            except NotConvertedError as error:
                converted, reason = None, str(error)
        if converted is None:
            chunks = _all(beginning, content.body) if data is None else _pieces(data)
            yield replace(_unchanged(content, reason), body=IteratedBody(chunks, content.body.length))
            return
        del data
        name = str(PurePosixPath(content.filename).with_suffix(_EXTENSIONS[conversion.format]))
        yield OutputContent(
            name, content_type_of(name), IteratedBody(_pieces(converted), len(converted)), {"converted": True}
        )

    async def preview(self, content: OutputContent, max_bytes: int, kind: str = pictures.PREVIEW) -> bytes:
        """A small WebP of a picture, see `pictures.preview`. Raises `NotConvertedError` if none can be made."""
        limit = self._limits.max_pixels
        async with self._slots:
            data, _ = await self._read(content)
            if data is None:
                raise NotConvertedError(f"larger than {self._limits.max_bytes / 1e6:g} MB")
            found = await offloaded(len(data), pictures.look_at_preview, data, limit)  # its head only
            self._check(found)
            async with self._memory.taken(found.memory):
                if found.pixels <= _IN_THREAD_PIXELS:
                    return await asyncio.to_thread(pictures.preview, data, max_bytes, limit, kind)
                return await _in_process(data, (kind, str(max_bytes), "", str(limit)))

    async def _convert(self, data: bytes, conversion: ImageConversion) -> bytes:
        found = await asyncio.to_thread(pictures.look, data, conversion, self._limits.max_pixels)
        self._check(found)
        async with self._memory.taken(found.memory):
            if found.pixels <= _IN_THREAD_PIXELS:
                return await asyncio.to_thread(pictures.convert, data, conversion, self._limits.max_pixels)
            wanted = (conversion.format, str(conversion.quality or ""), conversion.metadata)
            return await _in_process(data, (*wanted, str(self._limits.max_pixels)))

    def _check(self, found: Look) -> None:
        if found.memory > self._limits.max_memory:
            limit = f"{self._limits.max_memory / 1e6:g} MB (CONVERT_MEMORY_MB)"
            raise NotConvertedError(f"the conversion takes about {found.memory / 1e6:.0f} MB, more than {limit}")

    async def _read(self, content: OutputContent) -> tuple[bytes | None, bytes]:
        """The whole file; or None, and the part that was read of a file that is too large."""
        limit = self._limits.max_bytes
        if content.body.length is not None and content.body.length > limit:
            return None, b""
        data = bytearray()
        async for chunk in content.body:
            data += chunk
            if len(data) > limit:
                return None, bytes(data)
        return bytes(data), b""


class _Budget:
    """A shared amount; waiters are served in the order of their arrival."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Waits for `amount`, which must not be more than there is in all."""
        if self._waiting or amount > self._left:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, turn))
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._left += amount
                self._serve()
                raise
        else:
            self._left -= amount
        try:
            yield
        finally:
            self._left += amount
            self._serve()

    def _serve(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._left):
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self._left -= amount
                turn.set_result(None)


async def _in_process(data: bytes, arguments: tuple[str, str, str, str]) -> bytes:
    """The result of `pictures.main` in a process, which ends when this is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", _PROGRAM),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        result, _ = await process.communicate(data)
    finally:
        await end_process(process)
    if process.returncode == pictures.NOT_CONVERTED:
        raise NotConvertedError(result.decode())
    if process.returncode != 0:
        raise NotConvertedError(
            "the image could not be converted: the process that converted it was ended, perhaps because of its memory"
        )
    return result


def _unchanged(content: OutputContent, reason: str) -> OutputContent:
    return replace(content, notes={**content.notes, "converted": False, "reason": reason})


async def _all(start: bytes, rest: OpenBody) -> AsyncIterator[bytes]:
    yield start
    async for chunk in rest:
        yield chunk


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
