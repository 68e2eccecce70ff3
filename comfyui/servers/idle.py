"""Frees the GPU's memory after a time without renders, for a GPU that another program shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from comfyui.exceptions import ComfyUIError
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks

_LOOK_EVERY_S = 1.0


@asynccontextmanager
async def freeing_when_idle(pool: BackendPool, idle_s: float) -> AsyncIterator[None]:
    """Lets each ComfyUI unload its models after `idle_s` without work, once until it works again; 0: never.

    ComfyUI is not asked before that: its own news about its queue say whether it works.
    """
    if not idle_s:
        yield
        return
    async with SideTasks() as side:
        for backend in pool.backends:
            side.start(_free(backend, idle_s), f"free {backend.name}")
        yield


async def _free(backend: Backend, idle_s: float) -> None:
    log = structlog.get_logger(__name__).bind(server=backend.name)
    # Prompts from before this process started may have left models loaded, too.
    loaded, idle_since, signs = True, time.monotonic(), backend.watcher.signs
    while True:
        await asyncio.sleep(min(_LOOK_EVERY_S, idle_s / 4))
        working = backend.in_flight > 0 or backend.watcher.queue_remaining > 0
        if working or backend.watcher.signs != signs:
            loaded, idle_since, signs = True, time.monotonic(), backend.watcher.signs
        if not loaded or time.monotonic() - idle_since < idle_s or not backend.ready:
            continue
        try:
            if await backend.client.get_queue_remaining():
                idle_since = time.monotonic()  # another caller's prompt, which no event told of
                continue
            await backend.client.free()
        except ComfyUIError as error:
            log.warning("comfyui.free_failed", detail=error.detail)
            idle_since = time.monotonic()
        else:
            loaded = False
            log.info("comfyui.freed", reason="idle", idle_s=idle_s)
