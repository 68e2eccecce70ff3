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
# Seconds for which a server's answer is shown again, and that a server may take to answer.
_FRESH_S = 1.0
# The same for a server that has not reported a change of its queue since.
_SILENT_S = 10.0
_PATIENCE_S = 2.0


class Externals:
    """Asks only servers that are known to have such prompts, which the watcher hears from their events."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._handler = handler
        self._known: dict[Backend, tuple[float, int, list[QueueItem]]] = {}

    def count(self) -> int:
        """Their number, as far as known."""
        return sum(backend.watcher.others for backend in self._servers())

    async def all(self) -> tuple[list[ShownJob], list[ShownJob]]:
        """The running and the waiting ones. A server that does not answer soon has none."""
        items = [item for some in (await self.by_server()).values() for item in some]
        return list(_shown(items, running=True)), list(_shown(items, running=False))

    async def by_server(self) -> dict[str, list[QueueItem]]:
        """All of them, by the names of their servers."""
        servers = self._servers()
        found = await asyncio.gather(*(self._on(backend) for backend in servers))
        return {backend.name: items for backend, items in zip(servers, found, strict=True) if items}

    def _servers(self) -> list[Backend]:
        # If prompts wait in ComfyUI's own queue, prompts of others are not counted: any may be one.
        ours = self._handler.queue.are_all_here
        ready = self._handler.pool.ready
        return [one for one in ready if (one.watcher.others if ours else one.watcher.queue_remaining)]

    async def _on(self, backend: Backend) -> list[QueueItem]:
        at, signs, items = self._known.get(backend, (float("-inf"), -1, []))
        has_said_nothing = backend.watcher.connected and backend.watcher.signs == signs
        if time.monotonic() - at < (_SILENT_S if has_said_nothing else _FRESH_S):
            return items
        signs = backend.watcher.signs
        try:
            async with asyncio.timeout(_PATIENCE_S):
                queue = await backend.client.get_queue()
        except (ComfyUIError, TimeoutError):
            return []
        ids = [prompt_id for prompt_id in queue if self._handler.standing.job(prompt_id) is None]
        # A prompt of ours that has just ended may still be there for a moment.
        ours = {prompt_id for prompt_id in ids if await self._handler.journal.get(prompt_id) is not None}
        items = [queue[prompt_id] for prompt_id in ids if prompt_id not in ours]
        self._known[backend] = time.monotonic(), signs, items
        return items


def _shown(items: Iterable[QueueItem], *, running: bool) -> Iterable[ShownJob]:
    for item in items:
        if item.running is running:
            created = item.extra_data.get("create_time")
            queued_at = created / 1000 if isinstance(created, int | float) else 0.0
            yield ShownJob(item.prompt_id, OWNER, None, queued_at, item.prompt, item.extra_data, None)
