"""`Timers`: calls that are due later, one for each name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Used on one event loop."""

    def __init__(self) -> None:
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def close(self) -> None:
        """Nothing is called any more."""
        for timer in self._timers.values():
            timer.cancel()

    def within(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Call it in so long, unless a call of that name is due before."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.0, seconds)
        if (timer := self._timers.get(name)) is not None:
            if timer.when() <= at:
                return
            timer.cancel()
        self._timers[name] = loop.call_at(at, self._ring, name, call)

    def _ring(self, name: str, call: Callable[[], None]) -> None:
        del self._timers[name]
        call()
