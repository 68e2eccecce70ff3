"""`Outbox`: the frames that wait for one websocket, and `Shelf`, the file for those that memory cannot hold."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Self

from comfyui.offload import finished_in_thread
from comfyui.web.comfyui.hub.frames import PASSING, Frame, Kind

# From this size on a client is behind, and gets only the newest progress.
_BEHIND_FRAMES, _BEHIND_BYTES = 1000, 1_000_000


class Outbox:
    """Frames in the order in which they are sent. Only progress is ever left out."""

    def __init__(self) -> None:
        self._waiting: deque[Frame] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._thin_at = _BEHIND_FRAMES, _BEHIND_BYTES
        self.bytes = 0
        """About how many of the waiting bytes are in memory."""

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, frame: Frame) -> None:
        self._waiting.append(frame)
        self.bytes += frame.held
        self._filled.set()
        self._emptied.clear()
        if len(self._waiting) > self._thin_at[0] or self.bytes > self._thin_at[1]:
            self._thin()

    def _thin(self) -> None:
        """Leaves out old progress: for each prompt, the newest is sent."""
        seen: set[tuple[str | None, Kind]] = set()
        left: deque[Frame] = deque()
        for frame in reversed(self._waiting):
            if frame.kind in PASSING:
                if (frame.prompt_id, frame.kind) in seen:
                    continue
                seen.add((frame.prompt_id, frame.kind))
            left.appendleft(frame)
        self._waiting = left
        self.count()
        self._thin_at = len(left) + _BEHIND_FRAMES, self.bytes + _BEHIND_BYTES

    def count(self) -> None:
        """Some of it may have been put away."""
        self.bytes = sum(frame.held for frame in self._waiting)

    async def first(self) -> Frame:
        """Waits for a frame. It stays the first until it is `taken`."""
        while not self._waiting:
            self._thin_at = _BEHIND_FRAMES, _BEHIND_BYTES
            self._emptied.set()
            self._filled.clear()
            await self._filled.wait()
        return self._waiting[0]

    def taken(self, frame: Frame) -> None:
        """The frame was sent."""
        if self._waiting and self._waiting[0] is frame:
            self._waiting.popleft()
            self.bytes -= frame.held

    async def emptied(self) -> None:
        """Returns when all was taken."""
        await self._emptied.wait()


class Shelf:
    """A file of one websocket. It is made when it is first needed, and gone when the context ends.

    Args:
        max_bytes: of frames that wait may lie in it. The file itself is twice as long at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._file: IO[bytes] | None = None
        self._end = 0
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        async with self._turn:
            if (file := self._file) is not None:
                self._file = None
                await finished_in_thread(file.close)

    async def put(self, frames: Sequence[Frame], lying: Sequence[Frame]) -> bool:
        """Take the bytes of `frames` out of memory. Returns whether there was room for them.

        Args:
            lying: what lies here already and is still wanted.

        Raises:
            OSError: the file cannot be written.
        """
        async with self._turn:
            new = sum(frame.size for frame in frames)
            if sum(frame.size for frame in lying) + new > self._max_bytes:
                return False
            if not lying:
                self._end = 0
            elif self._end + new > 2 * self._max_bytes:
                await self._move_up(lying)
            contents = [frame.data for frame in frames if frame.data is not None]
            place = await finished_in_thread(lambda: self._written(contents))
            for frame in frames:
                frame.put_away(place)
                place += frame.size
            return True

    async def _move_up(self, lying: Sequence[Frame]) -> None:
        """Removed frames leave gaps: starts a new file with the wanted frames."""
        places = await finished_in_thread(lambda: self._moved(lying))
        for frame, place in zip(lying, places, strict=True):
            frame.put_away(place)

    def _moved(self, lying: Sequence[Frame]) -> list[int]:
        places, old, new = list[int](), self._opened(), _file()
        try:
            for frame in lying:
                old.seek(frame.place)
                places.append(new.tell())
                new.write(old.read(frame.size))
            self._end = new.tell()
        except OSError:
            new.close()
            raise
        old.close()
        self._file = new
        return places

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = _file()
        return self._file

    def _written(self, contents: Sequence[bytes]) -> int:
        place, file = self._end, self._opened()
        file.seek(place)
        for content in contents:
            file.write(content)
        file.truncate()
        self._end = file.tell()
        return place

    async def read(self, frame: Frame) -> bytes:
        """The bytes of a frame, wherever they are. Raises OSError."""
        if frame.data is not None:
            return frame.data
        async with self._turn:
            return await finished_in_thread(lambda: self._read(frame))

    def _read(self, frame: Frame) -> bytes:
        if self._file is None:
            raise OSError("the file of a websocket is closed")
        self._file.seek(frame.place)
        return self._file.read(frame.size)


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="comfyui-gateway-frames-")
