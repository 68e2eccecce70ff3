"""`Timers`: calls that are due later, one for each name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Used on one event loop."""

    def __init__(self) -> None:
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def close(self) -> None:
        """Stops all calls."""
        for timer in self._timers.values():
            timer.cancel()

    def by(self, name: str, at: float, call: Callable[[], None]) -> None:
        """Call it at this time of the loop, unless a call of that name is due before."""
        if (timer := self._timers.get(name)) is not None:
            if timer.when() <= at:
                return
            timer.cancel()
        self._timers[name] = asyncio.get_running_loop().call_at(at, self._ring, name, call)

    def _ring(self, name: str, call: Callable[[], None]) -> None:
        del self._timers[name]
        call()


def now() -> float:
    """On the clock of the event loop, in seconds."""
    return asyncio.get_running_loop().time()
