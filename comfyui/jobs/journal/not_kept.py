"""`NotKept`: tells the log of writes that could not be kept, once a minute at most."""

from __future__ import annotations

from collections.abc import Callable

import structlog

_TOLD_EVERY_S = 60.0
_log = structlog.get_logger(__name__)


class NotKept:
    """Counts writes behind, which have no caller that could be told. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told_at = float("-inf")
        self._writes = 0

    def lose(self, writes: int, reason: str) -> None:
        """Counts writes that were lost."""
        self._writes += writes
        if self._clock() - self._told_at >= _TOLD_EVERY_S:
            self.tell(reason)

    def tell(self, reason: str) -> None:
        """Logs those that were not logged yet."""
        if self._writes:
            _log.error("journal.writes_not_kept", writes=self._writes, reason=reason)
            self._told_at = self._clock()
            self._writes = 0
