"""How many streams of events each caller has open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from comfyui.exceptions import TooManyStreamsError

MOST_STREAMS = 256
"""The limit for one key, or for all callers if no keys are required. Each costs a connection and at most one
picture.
"""


class OpenStreams:
    """Counts them by key."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._open: Counter[str | None] = Counter()

    @contextmanager
    def opened(self, key: str | None) -> Iterator[None]:
        """One more, until the block ends. Raises `TooManyStreamsError`."""
        if self._open[key] >= self._most:
            raise TooManyStreamsError(
                f"{self._most} event streams are already open, which is the limit; close one, or poll the job instead"
            )
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
