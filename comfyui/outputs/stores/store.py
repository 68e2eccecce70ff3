"""Object stores for output files: their interface, and what all of them share.

A file is streamed through in parts: memory is bounded by the parts in flight, whatever the file's size, and what fails
or is cancelled leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
import unicodedata
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, Self

import structlog

from comfyui.exceptions import StorageError, StorageRefusedError

_log = structlog.get_logger(__name__)
PART_BYTES = 8 << 20
_LONGEST_NAME = 160
_LONGEST_KEY = 1024
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._=+-]+")


@dataclass(frozen=True, slots=True)
class Placement:
    """One request's choices; None means the store's default.

    Attributes:
        prefix: a folder below the store's own prefix, which stays in front of it.
        presign_seconds: how long the link works.
    """

    bucket: str | None = None
    prefix: str | None = None
    presign_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A stored file. ``url`` fetches it by plain GET; for S3 it is presigned, and carries the access key's id, which is
    no secret. ``size`` is in bytes."""

    url: str
    bucket: str
    key: str
    size: int
    etag: str


class ObjectStore(Protocol):
    """Open it with ``async with``; it owns its connections."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    def check(self, placement: Placement) -> None:
        """Raise `StorageRefusedError` before any work is done for a placement that `put` would refuse."""

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        length: int | None = None,
        content_type: str = "application/octet-stream",
        placement: Placement | None = None,
    ) -> StoredObject:
        """Stores `chunks` under `key` (made safe by `safe_key`), replacing an existing object.

        Args:
            length: of all chunks together, if it is known; checked.

        Raises:
            StorageError: the store failed or refused; nothing of the file stays.
            Exception: whatever `chunks` raises, as it is; nothing of the file stays.
        """
        ...

    async def link(self, bucket: str, key: str, placement: Placement) -> str:
        """A new link to what `put` stored, as `StoredObject.url`.

        Args:
            bucket, key: as `StoredObject` has them.
            placement: only how long the link works counts.

        Raises:
            StorageError: there is no link.
        """
        ...

    async def probe(self) -> None:
        """Write, read and delete a small object. Raises `StorageError` with the step that failed.

        Deleting is not needed to deliver files: if it is not allowed, the object stays, and the log says so.
        """
        ...


class StoreCheck:
    """Says whether a store can be used, before work is done whose results it is to take.

    Args:
        every_s: a check that went well holds for so long.
    """

    def __init__(
        self, store: ObjectStore, *, every_s: float = 300.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._every_s = every_s
        self._clock = clock
        self._good_until = -math.inf
        self._turn = asyncio.Lock()

    async def ensure(self) -> None:
        """Returns at once while the last check holds. Raises `StorageError`; then the next call checks again."""
        async with self._turn:
            if self._clock() < self._good_until:
                return
            try:
                await self._store.probe()
            except StorageError as error:
                _log.warning("store.unusable", detail=error.detail)
                raise
            self._good_until = self._clock() + self._every_s


def probe_key(prefix: str = "") -> tuple[str, bytes]:
    """The place and the contents of a check, different each time."""
    name = uuid.uuid4().hex
    return safe_key(prefix, ".comfyui-gateway-check", name), f"comfyui-gateway {name}".encode()


def safe_key(*parts: str) -> str:
    """One key of all parts, in letters that every store and URL takes: ASCII letters, digits, ``._=+-`` and ``/``.

    No part can leave its folder. A name that had to be changed gets a piece of its own hash, so that two different
    names never become one key. Raises `StorageRefusedError` when nothing is left, or more than stores take.
    """
    names = [name for part in parts for name in re.split(r"[/\\]+", part) if name not in {"", ".", ".."}]
    key = "/".join(_safe_name(name) for name in names)
    if not 0 < len(key) <= _LONGEST_KEY:
        raise StorageRefusedError(f"prefix and file name together must be from 1 to {_LONGEST_KEY} characters")
    return key


def _safe_name(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = _NOT_IN_KEYS.sub("_", plain)
    if plain == name and len(name) <= _LONGEST_NAME:
        return name
    stem, dot, extension = plain.rpartition(".")
    if not dot or len(extension) > 16:
        stem, dot, extension = plain, "", ""
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{stem[: _LONGEST_NAME - 32]}-{mark}{dot}{extension}"


class Parts:
    """`chunks` in parts of `part_bytes`; the last one is shorter, and the only one when the file is small.

    Attributes:
        ended: there is no further part.
        size: bytes until now.
    """

    def __init__(self, chunks: AsyncIterator[bytes], length: int | None, part_bytes: int = PART_BYTES) -> None:
        self._chunks = chunks
        self._part_bytes = part_bytes
        self._length = length
        self._first = b""
        self._rest = b""
        self.ended = False
        self.size = 0

    async def whole(self) -> bytes | None:
        """The file when it fits into one part; else None, and `next` gives all of it, from the start."""
        part = await self.next()
        if self.ended:
            return part
        self._first = part
        return None

    async def next(self) -> bytes:
        """Raises `StorageError` when the file has not the length that was announced."""
        if self._first:
            first, self._first = self._first, b""
            return first
        part = bytearray(self._rest)
        exhausted = False
        # One byte more than a part, to know whether this is the last.
        while len(part) <= self._part_bytes and not exhausted:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                exhausted = True
            else:
                part += chunk
        self._rest = bytes(part[self._part_bytes :])
        del part[self._part_bytes :]
        self.ended = exhausted and not self._rest
        self.size += len(part)
        if self._length is not None and (self.size > self._length or (self.ended and self.size < self._length)):
            raise StorageError(f"the file does not have the {self._length} bytes that were announced")
        return bytes(part)
