"""`HomeCopy`: data that was read from home, or written there, through the gateway: it is read while home is down.

It is in a folder if there is one, otherwise in memory, and takes a bounded number of bytes: the least recently used
data goes first. An unreadable copy counts as none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import structlog

from comfyui import jsonio
from comfyui.offload import finished_in_thread

MOST_OF_ONE = 4_000_000
"""Bytes of one file; a larger one is not kept."""
_MOST_BYTES = 64_000_000

_log = structlog.get_logger("relay")


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer with status 200."""

    content_type: str
    body: bytes


class HomeCopy:
    """`folder` is made when it is needed."""

    def __init__(self, folder: Path | None, *, most_bytes: int = _MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._sizes: OrderedDict[str, int] | None = None if folder is not None else OrderedDict()
        self._memory: dict[str, bytes] = {}
        self._one_at_a_time = asyncio.Lock()

    async def keep(self, key: str, kept: Kept) -> None:
        """Remember the answer; one that is too long is forgotten."""
        text = jsonio.dumps(kept.content_type) + b"\n" + kept.body
        name = _name(key)
        if len(text) > MOST_OF_ONE:
            await self.drop(key)
            return
        try:
            async with self._one_at_a_time:
                await finished_in_thread(lambda: self._write(name, text))
        except OSError as error:
            _log.warning("home.not_kept", reason=error.strerror)

    async def get(self, key: str) -> Kept | None:
        """The answer that was remembered last."""
        name = _name(key)
        try:
            async with self._one_at_a_time:
                text = await finished_in_thread(lambda: self._read(name))
        except OSError:
            return None
        if text is None:
            return None
        head, _, body = text.partition(b"\n")
        return Kept(str(jsonio.loads(head)), body)

    async def drop(self, key: str) -> None:
        """Forget the answer."""
        name = _name(key)
        with contextlib.suppress(OSError):
            async with self._one_at_a_time:
                await finished_in_thread(lambda: self._remove(name))

    # Runs in a thread

    def _known(self) -> OrderedDict[str, int]:
        if self._sizes is None:
            self._sizes = OrderedDict()
            if self._folder is not None and self._folder.is_dir():
                found = [(entry.stat(), entry.name) for entry in os.scandir(self._folder) if entry.is_file()]
                self._sizes.update(
                    (name, stat.st_size) for stat, name in sorted(found, key=lambda one: one[0].st_mtime)
                )
        return self._sizes

    def _write(self, name: str, text: bytes) -> None:
        known = self._known()
        if self._folder is None:
            self._memory[name] = text
        else:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._folder / f".{name}"
            # Only the gateway's user may read other people's settings.
            with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(text)
            draft.replace(self._folder / name)
        known[name] = len(text)
        known.move_to_end(name)
        while sum(known.values()) > self._most_bytes:
            self._remove(next(iter(known)))

    def _read(self, name: str) -> bytes | None:
        known = self._known()
        if name not in known:
            return None
        known.move_to_end(name)
        return self._memory.get(name) if self._folder is None else (self._folder / name).read_bytes()

    def _remove(self, name: str) -> None:
        self._known().pop(name, None)
        self._memory.pop(name, None)
        if self._folder is not None:
            (self._folder / name).unlink(missing_ok=True)


def _name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
