"""Removing the files of finished jobs from ComfyUI's folders, by age and by size.

Only what came after the worker started is ever removed: what is part of the image, or of a volume that others share,
stays. Symbolic links are neither followed nor removed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import structlog


class FolderCleaner:
    """Of one folder. Blocking: call it in a thread. It looks at the folder when it is made.

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

    def clean(self, now: float | None = None) -> int:
        """Returns how many files were removed. One that cannot be is left and logged."""
        oldest_allowed = (time.time() if now is None else now) - self._max_age_s
        ours = sorted(
            (status.st_mtime, path, status.st_size) for path, status in _files(self._folder) if path not in self._others
        )
        total = sum(size for _, _, size in ours)
        removed = 0
        for written, path, size in ours:
            if written >= oldest_allowed and total <= self._max_bytes:
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
