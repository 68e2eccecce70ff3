"""The keys of gateways that require one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

KEY, OTHER_KEY = "correct-horse-battery", "second-key"

ALICE, BOB, WATCHER, ROOT = "alice-key", "bob-key", "watcher-key", "root-key"
"""The keys in `KEYS`: two of role `user`, one of role `read`, one of role `admin`."""
CAROL, DAVE = "carol-key", "dave-key"
"""Keys for tests that give them limits."""


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def table(name: str, key: str, role: str = "user", **fields: Any) -> str:
    """A table of KEYS_FILE for this key."""
    given = {"sha256": hashlib.sha256(key.encode()).hexdigest(), "role": role, **fields}
    lines = [
        f"{field} = {value if isinstance(value, int | float | list) else repr(value)}" for field, value in given.items()
    ]
    return "\n".join([f"[keys.{name}]", *lines, ""])


KEYS = "\n".join(
    [
        table("alice", ALICE),
        table("bob", BOB),
        table("watcher", WATCHER, "read"),
        table("root", ROOT, "admin"),
    ]
)


def write_keys(path: Path, text: str) -> Path:
    """Replaces the file by another one, as an editor or a mounted secret does."""
    new = path.with_suffix(".edited")
    new.write_text(text)
    new.replace(path)
    return path


def touch_keys(path: Path, text: str) -> None:
    """Writes new content into the same file."""
    path.write_text(text)
    os.utime(path)
