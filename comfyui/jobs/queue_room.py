"""`QueueRoom`: how many jobs may wait."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager

from comfyui.exceptions import ComfyUIOverloadedError


class QueueRoom:
    """`rows` has those that wait; `most` may."""

    def __init__(self, rows: Sized, most: int) -> None:
        self._rows = rows
        self._most = most
        self._coming = 0

    @contextmanager
    def for_one(self) -> Iterator[None]:
        """Keeps a place for a job until the block ends: by then it waits, or was refused.

        Raises `ComfyUIOverloadedError` where as many jobs wait, or are about to, as may.
        """
        if len(self._rows) + self._coming >= self._most:
            raise ComfyUIOverloadedError(
                f"{self._most} jobs are already waiting, which is the limit (MAX_QUEUED_JOBS); try again later"
            )
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
