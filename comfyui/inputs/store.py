"""`InputStore`: inputs of async jobs and uploads, on the disk by their SHA-256, so that the same bytes are there once.

A file is written under a temporary name, synced and renamed, and its folder is synced: a hash always names a whole file
or none. The code that brings or uses a file holds it; the store removes files that are neither held nor named by an
unfinished job or an upload. It knows neither jobs nor uploads: the caller of a sweep says which files they name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self
from weakref import WeakValueDictionary

from comfyui.exceptions import ComfyUIDiskError, ComfyUIOverloadedError, JournalError
from comfyui.inputs.content import CHUNK, TEMPORARY, Content, disk_errors
from comfyui.limits import over
from comfyui.offload import finished_in_thread, made_in_thread

FOLDER_NAME = "inputs"
_STATE = "the folder of the jobs' inputs (STATE_DIR)"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NEW = "new-"
_ONLY_US = 0o700
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_DAY_S = 86_400.0
# A sweep asks the journal: it waits for what else ends in this time.
_SETTLE_S = 1.0
# How many files are asked for in one turn of the event loop.
_SWEPT_TOGETHER = 500

Named = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Gives the hashes, among these and possibly others, that jobs or uploads name."""


class InputStore:
    """Open it with ``async with``. One process uses a folder at a time.

    Args:
        folder: created if it does not exist; only this user may enter. None: a temporary one, which ends with us.
        max_bytes: of all files together.
        keep_s: how long a file is kept after the last job that needs it.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int = 10_000_000_000, keep_s: float = 0.0) -> None:
        self._path = folder
        self._is_temporary = folder is None
        self._label = TEMPORARY if folder is None else _STATE
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._folder: int | None = None
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._held: Counter[str] = Counter()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._opening = asyncio.Lock()
        self._sweeping = asyncio.Lock()
        # During a sweep: the files that were held since it began, even if they were released.
        self._spared: set[str] | None = None
        self._stale = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Looks at names and sizes only, however large the files are.

        Raises:
            JournalError: the folder cannot be used.
        """
        if not self._is_temporary:
            try:
                await self._open()
            except ComfyUIDiskError as error:
                failure = JournalError(
                    f"{error.detail}. It must be a folder, not a link, in which the gateway may write"
                )
                failure.path = self._path
                raise failure from error
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        await asyncio.to_thread(os.close, folder)
        if self._is_temporary and self._path is not None:
            await asyncio.to_thread(shutil.rmtree, self._path, True)

    @property
    def max_bytes(self) -> int:
        """The most bytes of all files together."""
        return self._max_bytes

    @property
    def files(self) -> int:
        return len(self._sizes)

    @property
    def bytes(self) -> int:
        """Bytes of all files together, including those that are being written."""
        return self._bytes

    def has(self, digest: str) -> bool:
        """Whether the file is here."""
        return digest in self._sizes

    def kept(self, digest: str, extension: str) -> Content:
        """The file, to be uploaded while it is held. If it is gone, reading it raises `ComfyUIDiskError`."""
        path = (self._path or Path()) / digest
        return Content(path, self._sizes.get(digest, 0), digest, extension, self._label)

    # Holding files

    def hold(self, digests: Iterable[str]) -> None:
        """These files stay until `let_go`."""
        for digest in digests:
            self._held[digest] += 1
            if self._spared is not None:
                self._spared.add(digest)

    def let_go(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]
        self._stale.set()

    @contextmanager
    def holding(self) -> Iterator[Holding]:
        """Files that it puts stay until the block ends: by then, a job in the journal names them."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.let_go(holding.digests)

    @property
    def is_stale(self) -> bool:
        """Whether a file was released since the last sweep began."""
        return self._stale.is_set()

    async def wait_until_stale(self) -> None:
        """Returns a moment after a file was released: it may no longer be needed."""
        await self._stale.wait()
        await asyncio.sleep(_SETTLE_S)

    # Files in and out

    def has_room(self, content: Content) -> bool:
        return content.digest in self._sizes or self._bytes + content.size <= self._max_bytes

    async def put(self, content: Content, *, moved: bool = False) -> None:
        """Returns when the file is durably on the disk. The caller holds it.

        Args:
            moved: whether its file may be moved away.

        Raises:
            ComfyUILimitError: the file alone is larger than the store may be.
            ComfyUIOverloadedError: there is no room now.
            ComfyUIDiskError: it cannot be written.
        """
        if content.size > self._max_bytes:
            raise over("the file is larger than {limit} bytes", self._max_bytes, "MAX_STORED_INPUTS_MB")
        lock = self._locks.setdefault(content.digest, asyncio.Lock())
        async with lock:
            known = self._sizes.get(content.digest)
            if known is None:
                if not self.has_room(content):
                    raise ComfyUIOverloadedError(
                        f"inputs of async jobs and uploads take all of {self._max_bytes / 1e6:g} MB"
                        " (MAX_STORED_INPUTS_MB);"
                        " try again later"
                    )
                self._bytes += content.size
            try:
                folder = await self._open()
                with disk_errors(self._label):
                    await finished_in_thread(functools.partial(_write, folder, content, moved=moved))
            except asyncio.CancelledError:
                # It was usually written nevertheless; otherwise a sweep finds nothing to remove.
                self._sizes[content.digest] = content.size
                raise
            except BaseException:
                if known is None:
                    self._bytes -= content.size
                raise
            self._sizes[content.digest] = content.size

    async def sweep(self, named: Named) -> int:
        """Removes files that are neither held nor named by a job; returns how many. Raises the error of `named`."""
        async with self._sweeping:
            self._stale.clear()
            if self._folder is None or not self._sizes:
                return 0
            # A job that is accepted now may be missing among the named: its files have been held since.
            self._spared = set(self._held)
            gone = 0
            try:
                for digests in _batches(list(self._sizes)):
                    unused = set(digests).difference(await named(digests))
                    gone += sum([await self._remove(digest) for digest in unused])
            finally:
                self._spared = None
            return gone

    async def _remove(self, digest: str) -> bool:
        lock = self._locks.setdefault(digest, asyncio.Lock())
        # A request that brings the same bytes meanwhile waits, and then writes them again.
        async with lock:
            folder = self._folder
            if folder is None or self._spared is None or digest in self._spared:
                return False
            before = time.time() - self._keep_s
            with disk_errors(self._label):
                gone = await finished_in_thread(functools.partial(_unlink, folder, digest, before))
            if gone:
                self._bytes -= self._sizes.pop(digest)
            return gone

    async def _open(self) -> int:
        """The descriptor of the folder, which is created if it does not exist."""
        async with self._opening:
            if self._folder is not None:
                return self._folder
            with disk_errors(self._label):
                if self._path is None:
                    self._path = Path(await made_in_thread(_new_folder, shutil.rmtree))
                opened = functools.partial(_opened, self._path)
                folder, self._sizes = await made_in_thread(opened, lambda made: os.close(made[0]))
            self._bytes += sum(self._sizes.values())
            self._folder = folder
            return folder


class Holding:
    """The files that one request brings: see `InputStore.holding`."""

    def __init__(self, store: InputStore) -> None:
        self.digests: list[str] = []
        self._store = store

    async def put(self, content: Content, *, moved: bool = False) -> None:
        """See `InputStore.put`."""
        self._store.hold([content.digest])
        self.digests.append(content.digest)
        await self._store.put(content, moved=moved)


def _batches(digests: list[str]) -> Iterator[list[str]]:
    return (digests[start : start + _SWEPT_TOGETHER] for start in range(0, len(digests), _SWEPT_TOGETHER))


# Runs in threads. All files are named relative to the open folder, whatever its path leads to by then.


def _new_folder() -> str:
    return tempfile.mkdtemp(prefix="comfyui-jobs-")


def _opened(path: Path) -> tuple[int, dict[str, int]]:
    """The folder, and the sizes of its files. Half-written files are removed."""
    path.mkdir(parents=True, exist_ok=True, mode=_ONLY_US)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    try:
        if stat.S_IMODE(os.fstat(folder).st_mode) != _ONLY_US:
            os.fchmod(folder, _ONLY_US)
        sizes: dict[str, int] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if _DIGEST.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                elif entry.name.startswith(_NEW):
                    os.unlink(entry.name, dir_fd=folder)
        return folder, sizes
    except BaseException:
        os.close(folder)
        raise


def _write(folder: int, content: Content, *, moved: bool) -> None:
    if _is_there(folder, content):
        os.utime(content.digest, dir_fd=folder, follow_symlinks=False)
        return
    name = f"{_NEW}{secrets.token_hex(16)}"
    try:
        with os.fdopen(_create(folder, name, content.source if moved else None), "wb") as file:
            if os.fstat(file.fileno()).st_size != content.size:
                _copy(content.source, file)
            file.flush()
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
        os.rename(name, content.digest, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise


def _is_there(folder: int, content: Content) -> bool:
    try:
        found = os.stat(content.digest, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == content.size


def _create(folder: int, name: str, source: bytes | Path | None) -> int:
    """Opens a new file for writing; `source`, if it is a file on the same disk, becomes it."""
    if isinstance(source, Path):
        try:
            os.rename(source, name, dst_dir_fd=folder)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            return os.open(name, os.O_WRONLY | _FLAGS, dir_fd=folder)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=folder)


def _copy(source: bytes | Path, file: IO[bytes]) -> None:
    if isinstance(source, bytes):
        file.write(source)
        return
    with source.open("rb") as given:
        shutil.copyfileobj(given, file, CHUNK)


def _unlink(folder: int, name: str, before: float) -> bool:
    """Whether it is gone: a file that was used since `before` stays."""
    try:
        if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > before:
            return False
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    return True
