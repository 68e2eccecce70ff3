"""How the journal's file is opened."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from comfyui.jobs.journal.schema import migrate

# Bytes of the file in memory; SQLite takes them as needed.
_CACHE_KB = 8192


def connect(path: Path) -> sqlite3.Connection:
    """The file at `path`, created if necessary, with the newest schema and for this process alone.

    Raises:
        JournalError: a newer version of the gateway has written it.
        OSError, sqlite3.Error: it cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # SQLite gives its other files the mode of this one.
    # A file that is there is not opened: to close it again would take the lock from a journal of this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    database = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    try:
        # A second gateway would take the same jobs up again. No other process can even read while this one runs.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        # An acknowledged job is still there after a power cut.
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        database.execute("BEGIN IMMEDIATE")
        database.execute("COMMIT")
        migrate(database)
    except BaseException:
        database.close()
        raise
    return database
