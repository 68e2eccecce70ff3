"""`UsedKeys`: which idempotency keys are surely new, without asking the file.

SDKs make a new key for each request, so nearly all are new; asking the journal's thread for each took 0.5 ms of a
submission, and more while the thread was committing. This is a Bloom filter: it takes 512 KB for any number of keys,
and is never wrong about a key that it calls new. For any other key, the file is asked: for 3 new ones in 1,000 if
100,000 keys came in a day, and for one in seven if 500,000 did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from comfyui import jsonio

_BITS = 1 << 21
_MASK = _BITS - 1
# Longer than any key counts.
_KEPT_S = 25 * 3600.0


class UsedKeys:
    """The keys of at least the last 25 hours. The keys of the file must be `learned` first.

    Args:
        clock: seconds, which only grow.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._newer, self._older = bytearray(_BITS // 8), bytearray(_BITS // 8)
        self._older_until = clock() + _KEPT_S

    def add(self, owner: str | None, key: str) -> None:
        """The owner uses the key now."""
        if self._clock() >= self._older_until:
            self._newer, self._older = bytearray(_BITS // 8), self._newer
            self._older_until = self._clock() + _KEPT_S
        for place in _places(owner, key):
            self._newer[place >> 3] |= 1 << (place & 7)

    def learned(self, keys: Iterable[tuple[str | None, str]]) -> None:
        """The file has these keys, too."""
        for owner, key in keys:
            self.add(owner, key)

    def all_are_known(self, since: float) -> None:
        """All that the file has from `since` on, a Unix time, was `learned`."""
        self._since = since

    def is_new(self, owner: str | None, key: str, since: float) -> bool:
        """Whether the owner has certainly not used the key from `since` on, a Unix time."""
        if self._since is None or since < self._since:
            return False
        places = _places(owner, key)
        return not any(
            all(bits[place >> 3] & (1 << (place & 7)) for place in places) for bits in (self._newer, self._older)
        )


def _places(owner: str | None, key: str) -> tuple[int, int, int]:
    # The same form as in the file.
    known_as = jsonio.without_surrogates(owner) if owner else owner
    number = hash((known_as, key))
    return number & _MASK, number >> 21 & _MASK, number >> 42 & _MASK
