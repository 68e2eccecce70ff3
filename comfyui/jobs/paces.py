"""`Paces`: how many async jobs a server may have in ComfyUI's own queue: more if they are quick.

A sync call's prompt goes behind them. Four jobs that take a minute each are many, and thirty that take milliseconds are
few: with four, the server would wait for the gateway between them.
"""

from __future__ import annotations

from collections import deque

_LOOKED_AT = 16
_MOMENT_S = 1.0
_TIMES_MORE = 8


class Paces:
    """Hears how long each server's async jobs ran.

    Args:
        ahead: how many jobs each server may have in any case; if its last sixteen were quick, as many as it runs in a
            second, but at most eight times `ahead`.
    """

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._last: dict[str, deque[float]] = {}
        self._of: dict[str, int] = {}

    def of(self, server: str) -> int:
        """How many the server may have now."""
        return self._of.get(server, self._ahead)

    def ran(self, server: str | None, seconds: float) -> None:
        """A job was executed there for this time; 0 if it had not begun."""
        if server is None or not seconds:
            return
        last = self._last.setdefault(server, deque(maxlen=_LOOKED_AT))
        last.append(seconds)
        # The slowest of them: one job that takes long is enough for those behind it to wait.
        quick = int(_MOMENT_S / max(0.001, *last)) if len(last) == _LOOKED_AT else 0
        self._of[server] = max(self._ahead, min(quick, self._ahead * _TIMES_MORE))
