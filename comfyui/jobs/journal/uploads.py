"""The journal's records of files that clients uploaded: their owners, names and bytes."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from typing import Any

from comfyui.jobs.journal.writes import DropUploads, KeepUpload, KeptUpload, UseUpload

Appliers = dict[type, Callable[[Any], int]]


def upload_appliers(database: sqlite3.Connection) -> Appliers:
    """The effect of each write about uploads."""
    return {
        KeepUpload: functools.partial(_keep, database),
        UseUpload: functools.partial(_use, database),
        DropUploads: functools.partial(_drop, database),
    }


def uploads(database: sqlite3.Connection) -> list[KeptUpload]:
    """See `Journal.uploads`."""
    rows = database.execute("SELECT key, place, digest, size, at, used_at FROM uploads ORDER BY used_at, key, place")
    return [KeptUpload(*row) for row in rows]


def _keep(database: sqlite3.Connection, write: KeepUpload) -> bool:
    keep = "INSERT OR REPLACE INTO uploads (key, place, digest, size, at, used_at) VALUES (?, ?, ?, ?, ?, ?)"
    return database.execute(keep, write.upload).rowcount > 0


def _use(database: sqlite3.Connection, write: UseUpload) -> bool:
    used = "UPDATE uploads SET used_at = ? WHERE key = ? AND place = ? AND used_at < ?"
    return database.execute(used, (write.at, write.key, write.place, write.at)).rowcount > 0


def _drop(database: sqlite3.Connection, write: DropUploads) -> bool:
    return database.executemany("DELETE FROM uploads WHERE key = ? AND place = ?", write.names).rowcount > 0


class MemoryUploads:
    """The same for `MemoryJournal`."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], KeptUpload] = {}
        self.appliers: Appliers = {KeepUpload: self._keep, UseUpload: self._use, DropUploads: self._drop}

    def all(self) -> list[KeptUpload]:
        return sorted(self._kept.values(), key=lambda one: (one.used_at, one.key, one.place))

    def _keep(self, write: KeepUpload) -> bool:
        self._kept[write.upload.key, write.upload.place] = write.upload
        return True

    def _use(self, write: UseUpload) -> bool:
        kept = self._kept.get((write.key, write.place))
        if kept is None or kept.used_at >= write.at:
            return False
        self._kept[write.key, write.place] = kept._replace(used_at=write.at)
        return True

    def _drop(self, write: DropUploads) -> bool:
        before = len(self._kept)
        for name in write.names:
            self._kept.pop(name, None)
        return len(self._kept) < before
