"""A gateway used as a ComfyUI, by a caller who may see everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfyui.engine import Engine
from tests.support.jobs import ASYNC
from tests.support.keys import bearer
from tests.support.running import RunningGateway, until


@dataclass(frozen=True)
class Face:
    """A gateway, the engines behind it, and the headers of an admin's request."""

    gateway: RunningGateway
    engines: list[Engine]
    headers: dict[str, str]

    async def get(self, path: str, key: str | None = None) -> tuple[int, Any]:
        headers = self.headers if key is None else bearer(key)
        async with self.gateway.http.get(path, headers=headers) as response:
            return response.status, await response.json()

    async def queue(self, key: str | None = None) -> tuple[list[str], list[str]]:
        status, queue = await self.get("/queue", key)
        assert status == 200
        return [item[1] for item in queue["queue_running"]], [item[1] for item in queue["queue_pending"]]

    async def submit(self, workflow: Any, key: str | None = None, **fields: Any) -> str:
        headers = {**(self.headers if key is None else bearer(key)), **ASYNC}
        body = {"prompt": workflow, **fields}
        async with self.gateway.http.post("/prompt_sync", json=body, headers=headers) as response:
            assert response.status == 202, await response.text()
            return str((await response.json())["prompt_id"])

    async def ended(self, prompt_id: str) -> dict[str, Any]:
        answer = await until(lambda: self.get(f"/history/{prompt_id}"), lambda found: prompt_id in found[1])
        entry: dict[str, Any] = answer[1][prompt_id]
        return entry

    async def runs(self, *prompt_ids: str) -> None:
        await until(self.queue, lambda queue: set(queue[0]) >= set(prompt_ids))
