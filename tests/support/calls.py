"""Requests of callers with different keys to a gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.support.keys import bearer
from tests.support.running import RunningGateway


@dataclass(frozen=True)
class Calls:
    """Its methods return status and JSON."""

    gateway: RunningGateway

    async def call(
        self, key: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        async with self.gateway.http.request(
            method, path, json=body, headers={**bearer(key), **(headers or {})}
        ) as response:
            return response.status, await response.json()

    async def submit(
        self, key: str, workflow: Any, headers: dict[str, str] | None = None, **fields: Any
    ) -> tuple[int, Any]:
        return await self.call(key, "POST", "/prompt_sync", {"prompt": workflow, **fields}, headers)

    async def listed(self, key: str, headers: dict[str, str] | None = None) -> list[str]:
        _, page = await self.call(key, "GET", "/prompt_sync", headers=headers)
        return [job["prompt_id"] for job in page["jobs"]]
