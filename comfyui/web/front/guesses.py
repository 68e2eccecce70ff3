"""Callers that guess keys are answered slowly. A valid key is never slowed down, wherever it comes from."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from starlette.types import Scope

_IPV6_SITE_BITS = 64


@dataclass(frozen=True, slots=True)
class GuessLimits:
    """How slowly guesses are answered.

    Attributes:
        free: wrong keys that are answered at once: a slip, a page with a stale key.
        per_second: how many answers a second follow after those.
        longest_s: no answer waits longer.
        addresses: how many are remembered; the oldest guessers are forgotten first.
        waiting: how many answers may wait at once, for all addresses.
    """

    free: int = 20
    per_second: float = 10.0
    longest_s: float = 5.0
    addresses: int = 10_000
    waiting: int = 500


class Guesses:
    """Counts wrong keys by the address that they come from."""

    def __init__(self, limits: GuessLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / limits.per_second
        self._free_s = limits.free * self._interval_s
        self._longest_s = limits.longest_s
        self._most = limits.addresses
        self._most_waiting = limits.waiting
        self._clock = clock
        self._busy_until: OrderedDict[str, float] = OrderedDict()
        """By address: when all of its wrong keys would be answered at `per_second`."""
        self._waiting = 0

    async def slow_down(self, scope: Scope) -> bool:
        """Waits as long as the answer to this wrong key should; False if too many are waiting already."""
        delay_s = self.count(_site(scope))
        if not delay_s:
            return True
        if self._waiting >= self._most_waiting:
            return False
        self._waiting += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._waiting -= 1
        return True

    def count(self, address: str) -> float:
        """One wrong key more; the seconds that its answer should wait."""
        now = self._clock()
        busy_until = max(self._busy_until.get(address, 0.0), now) + self._interval_s
        busy_until = min(busy_until, now + self._free_s + self._longest_s)
        self._busy_until[address] = busy_until
        self._busy_until.move_to_end(address)
        if len(self._busy_until) > self._most:
            self._busy_until.popitem(last=False)
        return max(0.0, busy_until - now - self._free_s)


def _site(scope: Scope) -> str:
    """The client's address; of IPv6 the network, since one client has all addresses of it."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Address(int(address) >> _IPV6_SITE_BITS << _IPV6_SITE_BITS))
    return str(address)
