"""How often a key may submit: `per_minute` of KEYS_FILE, counted over the last 60 seconds."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from comfyui.owners import KeyRules

_WINDOW_S = 60.0


class SubmissionRates:
    """Counts submissions by key. It holds as many times as its keys may submit within a minute."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def take(self, rules: KeyRules) -> int:
        """Counts one submission; 0 if it may go on, otherwise the whole seconds until one may."""
        limit = rules.per_minute
        if limit is None:
            return 0
        now = self._clock()
        times = self._recent(rules.name, now)
        if len(times) < limit:
            times.append(now)
            return 0
        # The limit may have been lowered: then more than one has to be over.
        return max(1, math.ceil(times[len(times) - limit] + _WINDOW_S - now))

    def used(self, rules: KeyRules) -> int:
        """How many submissions of the last 60 seconds are counted; 0 for a key without `per_minute`."""
        return 0 if rules.per_minute is None else len(self._recent(rules.name, self._clock()))

    def _recent(self, key: str, now: float) -> deque[float]:
        times = self._times.setdefault(key, deque())
        while times and times[0] <= now - _WINDOW_S:
            times.popleft()
        return times
