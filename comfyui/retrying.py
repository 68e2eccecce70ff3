"""The delay before the next try, and the loop that repeats a call.

Every loop of ours that waits because of a failure takes its delays from `Backoff`. A loop that only repeats a call is
`retry`; a loop that keeps something open, or goes round for several reasons, is written out and asks `delay_s`.

tenacity (and stamina, which uses it) is too slow: nearly every call succeeds at its first try, and each prompt makes
several. `retry` costs 1 µs, tenacity 60 µs, and neither has a delay for loops that are no calls. The islands `engine`
and `sdk` have their own.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Exception)
# 2**30 times any start is above any limit of ours, so a larger power is not needed.
_LARGEST_POWER = 30


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double with each failure. Only this class knows how they grow.

    Attributes:
        start_s: the longest delay after the first failure.
        max_s: the longest delay.
        jitter: chooses a number between two, so that the clients of one server do not all return at the same time.
    """

    start_s: float
    max_s: float
    jitter: Callable[[float, float], float] = random.uniform

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after `failures` in succession (1 or more): between half and all of the longest delay."""
        longest_s = min(self.max_s, self.start_s * 2 ** min(failures - 1, _LARGEST_POWER))
        return self.jitter(longest_s / 2, longest_s)


def _always(_error: Exception) -> bool:
    return True


def _untold(_error: Exception, _failures: int) -> None:
    """The default for `told`."""


async def retry(
    work: Callable[[], Awaitable[_T]],
    on: type[_E] | tuple[type[_E], ...],
    backoff: Backoff,
    *,
    retries: float = math.inf,
    within_s: float = math.inf,
    worth: Callable[[_E], bool] = _always,
    told: Callable[[_E, int], Any] = _untold,
    clock: Callable[[], float] = time.monotonic,
) -> _T:
    """The result of `work`, which is called again while it raises an error of `on`.

    Args:
        retries: further calls after the first.
        within_s: no further call is made after this time since the first one.
        worth: False for an error that a further try would repeat.
        told: called in the handler of each error that is followed by a further try, with the error and the number of
            failures.

    Raises:
        The last error of `work`; at once, any error that is not of `on` or not `worth` another try.
    """
    failures = 0
    deadline = clock() + within_s
    while True:
        try:
            return await work()
        except on as error:
            failures += 1
            if failures > retries or not worth(error) or clock() > deadline:
                raise
            told(error, failures)
        await asyncio.sleep(backoff.delay_s(failures))


def retry_after_of(value: str, now: float) -> float:
    """Seconds of a ``Retry-After``, which is a number or a date; 0 if it cannot be read."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return 0.0
