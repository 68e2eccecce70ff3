"""When a webhook is tried again, and when it is given up."""

from __future__ import annotations

import random
from collections.abc import Callable

DELAYS_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 14_400.0, 28_800.0, 33_445.0)
"""After each try that failed, at most: together 24 hours."""
TRIES = len(DELAYS_S) + 1
# The earliest part of each delay at which the next try may come, so that many do not come together.
_JITTER = 0.8
# A receiver may ask for a later try, but not for one on some other day.
LONGEST_WAIT_S = 12 * 3600.0

Jitter = Callable[[float, float], float]


def wait_s(failures: int, asked_s: float = 0.0, jitter: Jitter = random.uniform) -> float | None:
    """Seconds until the next try after this number of failures (1 or more); None if there is none.

    Args:
        asked_s: the receiver's ``Retry-After``.
    """
    if failures >= TRIES:
        return None
    longest_s = DELAYS_S[failures - 1]
    return max(jitter(longest_s * _JITTER, longest_s), min(asked_s, LONGEST_WAIT_S))
