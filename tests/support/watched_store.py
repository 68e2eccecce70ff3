"""A store that reports what is put into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from comfyui.exceptions import StorageError
from comfyui.outputs.stores.store import Placement, StoredObject
from tests.support.local_store import LocalStore


class WatchedStore(LocalStore):
    """A store in a folder that calls `before` for every file, and fails with the next of `failures`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "http://files.test")
        self.failures: list[StorageError] = []
        self.before: Callable[[str], Any] | None = None
        self.usable = True
        self.asked = asyncio.Event()

    async def probe(self) -> None:
        self.asked.set()
        if not self.usable:
            raise StorageError("the check of the store failed at write")
        await super().probe()

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        length: int | None = None,
        content_type: str = "application/octet-stream",
        placement: Placement | None = None,
    ) -> StoredObject:
        if self.before is not None:
            await self.before(key)
        if self.failures:
            raise self.failures.pop()
        return await super().put(key, chunks, length, content_type, placement)
