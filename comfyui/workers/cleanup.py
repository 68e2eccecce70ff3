"""Removing the files of finished jobs from ComfyUI's folders, by age and by size.

Only files that are newer than the worker's start are removed: those of the image, or of a shared volume, stay. Symbolic
links are neither followed nor removed.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

# A file system's time stamps are coarser than the clock: a file may seem older than the job that wrote it.
_CLOCK_MARGIN_S = 2.0


@dataclass(frozen=True, slots=True)
class CleanupOptions:
    """ComfyUI's folders on this machine, None for those that are left alone. The limits hold for each folder.

    Attributes:
        max_age_s: a file of a finished job that was not written to for longer is removed.
        max_bytes: while the files together are larger, the oldest is removed.
    """

    input_dir: Path | None = None
    output_dir: Path | None = None
    temp_dir: Path | None = None
    max_age_s: float = 3600.0
    max_bytes: int = 2_000_000_000


class ComfyUIFolders:
    """Cleans ComfyUI's folders after each job, except for files that an undelivered job may need.

    While other jobs are under way, only outputs and temporary files from before the first of them are removed. Inputs
    wait until no job is under way, since a job may use one that an earlier job brought.

    Args:
        forget_inputs: is called when inputs were removed: they have to be uploaded again when they are needed again.
    """

    def __init__(self, options: CleanupOptions, forget_inputs: Callable[[], None]) -> None:
        self._options = options
        self._forget_inputs = forget_inputs
        self._inputs: list[FolderCleaner] = []
        self._others: list[FolderCleaner] = []
        self._started: dict[object, float] = {}
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._look)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass

    @asynccontextmanager
    async def job(self) -> AsyncIterator[None]:
        """A job from its beginning until its files are delivered, however it ends."""
        key = object()
        self._started[key] = time.time()
        try:
            yield
        finally:
            del self._started[key]
            await self._clean()

    def _look(self) -> None:
        options = self._options

        def cleaners(*folders: Path | None) -> list[FolderCleaner]:
            return [
                FolderCleaner(folder, max_age_s=options.max_age_s, max_bytes=options.max_bytes)
                for folder in folders
                if folder is not None
            ]

        self._inputs = cleaners(options.input_dir)
        self._others = cleaners(options.output_dir, options.temp_dir)

    async def _clean(self) -> None:
        async with self._turn:
            before = min(self._started.values()) - _CLOCK_MARGIN_S if self._started else None
            for cleaner in self._others:
                await asyncio.to_thread(cleaner.clean, before=before)
            for cleaner in self._inputs:
                # A job that has begun meanwhile is not affected: it uploads what it needs.
                if not self._started and await asyncio.to_thread(cleaner.clean) > 0:
                    self._forget_inputs()


class FolderCleaner:
    """Cleans one folder. Blocking: call it in a thread. It reads the folder when it is made.

    Args:
        max_age_s: a file that was not written to for longer is removed.
        max_bytes: while the files together are larger, the oldest is removed.
    """

    def __init__(self, folder: Path, *, max_age_s: float, max_bytes: int) -> None:
        self._folder = folder
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._others = {path for path, _ in _files(folder)}
        self._log = structlog.get_logger(__name__)

    def clean(self, now: float | None = None, *, before: float | None = None) -> int:
        """Returns how many files were removed. One that cannot be is left and logged.

        Args:
            now: the time in seconds since 1970, for tests.
            before: files that were written to since then are kept.
        """
        oldest_allowed = (time.time() if now is None else now) - self._max_age_s
        ours = sorted(
            (status.st_mtime, path, status.st_size) for path, status in _files(self._folder) if path not in self._others
        )
        total = sum(size for _, _, size in ours)
        removed = 0
        for written, path, size in ours:
            if (written >= oldest_allowed and total <= self._max_bytes) or (before is not None and written >= before):
                break
            try:
                Path(path).unlink()
            except OSError as error:
                self._log.warning("cleanup.failed", reason=error.strerror)
                continue
            total -= size
            removed += 1
        if removed:
            self._log.info("cleanup.done", removed=removed, left_mb=round(total / 1e6, 1))
        return removed


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below `folder`; ``os.walk`` does not enter linked folders."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = f"{parent}/{name}"
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status
