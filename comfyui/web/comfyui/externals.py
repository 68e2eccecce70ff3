"""`Externals`: prompts that others have put into the servers' queues past the gateway. They take places there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from comfyui.exceptions import ComfyUIError
from comfyui.handler import ComfyUIHandler
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.web.comfyui.job_items import ShownJob

OWNER = "external"
# Seconds. What a server said is shown again for so long, and so long a server may take to say it.
_FRESH_S = 1.0
_PATIENCE_S = 2.0


class Externals:
    """Asks only servers that are known to have such prompts, which the watcher hears from their events."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._handler = handler
        self._known: dict[Backend, tuple[float, list[QueueItem]]] = {}

    def count(self) -> int:
        """How many there are, as far as is known."""
        return sum(backend.watcher.others for backend in self._servers())

    async def all(self) -> tuple[list[ShownJob], list[ShownJob]]:
        """Those that run, and those that wait. A server that does not answer soon has none."""
        found = await asyncio.gather(*(self._on(backend) for backend in self._servers()))
        items = [item for some in found for item in some]
        return list(_shown(items, running=True)), list(_shown(items, running=False))

    def _servers(self) -> list[Backend]:
        return [backend for backend in self._handler.pool.ready if backend.watcher.others]

    async def _on(self, backend: Backend) -> list[QueueItem]:
        at, items = self._known.get(backend, (float("-inf"), []))
        if time.monotonic() - at < _FRESH_S:
            return items
        try:
            async with asyncio.timeout(_PATIENCE_S):
                queue = await backend.client.get_queue()
        except (ComfyUIError, TimeoutError):
            return []
        ids = [prompt_id for prompt_id in queue if self._handler.standing.job(prompt_id) is None]
        # What is ours and has ended here may be there for a moment longer.
        ours = {prompt_id for prompt_id in ids if await self._handler.journal.get(prompt_id) is not None}
        items = [queue[prompt_id] for prompt_id in ids if prompt_id not in ours]
        self._known[backend] = time.monotonic(), items
        return items


def _shown(items: Iterable[QueueItem], *, running: bool) -> Iterable[ShownJob]:
    for item in items:
        if item.running is running:
            created = item.extra_data.get("create_time")
            queued_at = created / 1000 if isinstance(created, int | float) else 0.0
            yield ShownJob(item.prompt_id, OWNER, None, queued_at, item.prompt, item.extra_data, None)
