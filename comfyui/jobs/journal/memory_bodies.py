"""The bodies of the journal that is only memory."""

from __future__ import annotations

import hashlib
from collections import Counter

from comfyui.jobs.journal.rows import packed, unpacked


class MemoryBodies:
    """Compressed, and once for each content, whose key is its SHA-256 in hex.

    Attributes:
        size: bytes that all of them take.
    """

    def __init__(self) -> None:
        self.size = 0
        self._all: dict[str, bytes] = {}
        self._uses: Counter[str] = Counter()

    def use(self, body: bytes | None) -> str | None:
        """One more job has this body; its key."""
        if body is None:
            return None
        digest = hashlib.sha256(body).hexdigest()
        if digest not in self._all:
            self._all[digest] = packed(body)
            self.size += len(self._all[digest])
        self._uses[digest] += 1
        return digest

    def drop(self, digest: str | None) -> None:
        """One job less has it."""
        if digest is None:
            return
        self._uses[digest] -= 1
        if not self._uses[digest]:
            self.size -= len(self._all.pop(digest))
            del self._uses[digest]

    def in_place_of(self, digest: str | None, body: bytes | None) -> str | None:
        """A job has this body instead; its key."""
        new = self.use(body)
        self.drop(digest)
        return new

    def size_of(self, digest: str | None) -> int:
        return 0 if digest is None else len(self._all[digest])

    def of(self, digest: str | None) -> bytes | None:
        return None if digest is None else unpacked(self._all[digest])

    def packed_of(self, digest: str | None) -> bytes | None:
        """The body in its kept form; None for one that no job has any more."""
        return None if digest is None else self._all.get(digest)
