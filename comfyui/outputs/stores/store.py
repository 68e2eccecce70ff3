"""Object stores for output files: the interface, what all stores share, and a local folder. S3 is in storage_s3.py.

A file is streamed through in parts: memory is bounded by the parts in flight, whatever the file's size, and what fails
or is cancelled leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import math
import re
import tempfile
import time
import unicodedata
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self
from urllib.parse import quote

import structlog

from comfyui.exceptions import StorageError, StorageRefusedError
from comfyui.offload import finished_in_thread

_log = structlog.get_logger(__name__)
PART_BYTES = 8 << 20
_LONGEST_NAME = 160
_LONGEST_KEY = 1024
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._=+-]+")


@dataclass(frozen=True, slots=True)
class Placement:
    """What one request may choose; None means as the store is set up.

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
        """Store `chunks` under `key` (made safe by `safe_key`), replacing what is there.

        Args:
            length: of all chunks together, where it is known; checked.

        Raises:
            StorageError: the store failed or refused; nothing of the file stays.
            Exception: whatever `chunks` raises, as it is; nothing of the file stays.
        """
        ...

    async def probe(self) -> None:
        """Write, read and delete a small object. Raises `StorageError` with the step that failed.

        To delete is not needed to deliver files: where that is not allowed, the object stays, and the log says so.
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
    """Where a check writes, another place each time, and what."""
    name = uuid.uuid4().hex
    return safe_key(prefix, ".comfyui-gateway-check", name), f"comfyui-gateway {name}".encode()


class LocalStore:
    """A folder that something else serves below `base_url`; for one machine, and for tests. Links do not expire."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self._folder = folder
        self._base_url = base_url.rstrip("/")

    async def __aenter__(self) -> Self:
        await _in_thread(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass

    def check(self, placement: Placement) -> None:
        if placement.bucket or placement.presign_seconds is not None:
            raise StorageRefusedError("this gateway stores in a folder, which has no buckets and no expiring links")

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        length: int | None = None,
        content_type: str = "application/octet-stream",  # noqa: ARG002 - a folder keeps none
        placement: Placement | None = None,
    ) -> StoredObject:
        """See `ObjectStore.put`; ``etag`` is the SHA-256. Readers see the whole file or none."""
        placement = placement or Placement()
        self.check(placement)
        key = safe_key(placement.prefix or "", key)
        parts = Parts(chunks, length)
        draft = _Draft(self._folder / key)
        try:
            await _in_thread(draft.open)
            while not parts.ended:
                part = await parts.next()
                await _in_thread(lambda part=part: draft.append(part))  # type: ignore[misc]
            await _in_thread(draft.publish)
        finally:
            await _in_thread(draft.discard)
        return StoredObject(f"{self._base_url}/{quote(key)}", "", key, parts.size, draft.digest.hexdigest())

    async def probe(self) -> None:
        key, content = probe_key()
        await _in_thread(lambda: _probe_folder(self._folder / key, content))


def _probe_folder(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        if path.read_bytes() != content:
            raise OSError(errno.EIO, "what was written is not what is read")
    finally:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another check is under way in it
        path.parent.rmdir()


class _Draft:
    """A temporary file beside its target, so that moving it there is one step. All methods block."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._file: IO[bytes] | None = None
        self.digest = hashlib.sha256()

    def open(self) -> None:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.NamedTemporaryFile(dir=self._target.parent, prefix=".part-", delete=False)  # noqa: SIM115

    def append(self, part: bytes) -> None:
        assert self._file is not None  # noqa: S101 - opened first
        self.digest.update(part)
        self._file.write(part)

    def publish(self) -> None:
        assert self._file is not None  # noqa: S101 - opened first
        self._file.close()
        # A temporary file is for its owner only; this one is to be served.
        Path(self._file.name).chmod(0o644)
        Path(self._file.name).replace(self._target)

    def discard(self) -> None:
        """Close it, and remove what was not published."""
        if self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)


async def _in_thread(work: Callable[[], None]) -> None:
    """See `finished_in_thread`; raises `StorageError` where the folder cannot be written."""
    try:
        await finished_in_thread(work)
    except OSError as error:
        raise StorageError(f"the folder for outputs cannot be written: {error.strerror}") from error


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
            raise StorageError(f"the file has not the {self._length} bytes that were announced")
        return bytes(part)
