"""Storing output files in a folder, and the way in which a file appears in one: whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote

from comfyui.exceptions import StorageError, StorageRefusedError
from comfyui.offload import finished_in_thread
from comfyui.outputs.stores.store import Parts, Placement, StoredObject, probe_key, safe_key


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
        digest = hashlib.sha256()
        draft = Draft(self._folder / key)

        def append(part: bytes) -> None:
            digest.update(part)
            draft.file.write(part)

        try:
            await _in_thread(draft.open)
            while not parts.ended:
                part = await parts.next()
                await _in_thread(lambda part=part: append(part))  # type: ignore[misc]
            await _in_thread(draft.publish)
        finally:
            await _in_thread(draft.discard)
        return StoredObject(self._url(key), "", key, parts.size, digest.hexdigest())

    async def link(self, bucket: str, key: str, placement: Placement) -> str:  # noqa: ARG002 - it has neither
        return self._url(key)

    def _url(self, key: str) -> str:
        return f"{self._base_url}/{quote(key)}"

    async def probe(self) -> None:
        key, content = probe_key()
        await _in_thread(lambda: _probe_folder(self._folder / key, content))


def _probe_folder(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        if path.read_bytes() != content:
            raise OSError(errno.EIO, "the bytes that were read are not those that were written")
    finally:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another check is under way in it
        path.parent.rmdir()


class Draft:
    """A temporary file beside its target, so that moving it there is one step. All methods block.

    Attributes:
        file: the contents, open for writing after `open`.
    """

    file: IO[bytes]

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path: Path | None = None

    def open(self) -> None:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.NamedTemporaryFile(dir=self._target.parent, prefix=".part-", delete=False)  # noqa: SIM115
        self._path = Path(self.file.name)

    def publish(self) -> None:
        assert self._path is not None  # noqa: S101 - opened first
        self.file.close()
        # A temporary file is only for its owner; this one will be served.
        self._path.chmod(0o644)
        self._path.replace(self._target)

    def discard(self) -> None:
        """Closes it, and removes it unless it was published."""
        if self._path is not None:
            self.file.close()
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def draft_of(target: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is at `target` when the block ends, and nowhere when it raises. Blocks."""
    draft = Draft(target)
    try:
        draft.open()
        yield draft.file
        draft.publish()
    finally:
        draft.discard()


async def _in_thread(work: Callable[[], None]) -> None:
    """See `finished_in_thread`; raises `StorageError` if the folder cannot be written."""
    try:
        await finished_in_thread(work)
    except OSError as error:
        raise StorageError(f"the folder for outputs cannot be written: {error.strerror}") from error
