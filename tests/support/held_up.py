"""Whether work on one request held up the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks.bombs import HELD_UP_S

_TRIES = 5


async def assert_not_held_up(what: str, cpu_s: Callable[[], Awaitable[float]]) -> None:
    """The CPU time that the gateway uses while a probe waits stays within the bound, in the best of some tries.

    `cpu_s` does the work once, and gives that time in seconds. The tests that call this have the marker `alone`, since
    the same work takes more CPU time beside others.
    """
    tries: list[float] = []
    while not tries or (tries[-1] > HELD_UP_S and len(tries) < _TRIES):
        tries.append(await cpu_s())
    assert min(tries) <= HELD_UP_S, (what, tries)
