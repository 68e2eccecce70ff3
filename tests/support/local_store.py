"""`LocalStore`: an object store in a folder, for tests of code that stores files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self
from urllib.parse import quote

from comfyui.outputs.stores.store import Parts, Placement, StoredObject, safe_key


class LocalStore:
    """An object store in a folder; its links start with `base_url` and do not expire."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self._folder = folder
        self._base_url = base_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass

    def check(self, placement: Placement) -> None:
        pass

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        length: int | None = None,
        content_type: str = "application/octet-stream",
        placement: Placement | None = None,
    ) -> StoredObject:
        key = safe_key((placement or Placement()).prefix or "", key)
        parts, content = Parts(chunks, length), bytearray()
        while not parts.ended:
            content += await parts.next()
        await asyncio.to_thread(_write, self._folder / key, bytes(content))
        return StoredObject(self._url(key), "", key, parts.size, "")

    async def link(self, bucket: str, key: str, placement: Placement) -> str:
        return self._url(key)

    async def probe(self) -> None:
        pass

    def _url(self, key: str) -> str:
        return f"{self._base_url}/{quote(key)}"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
