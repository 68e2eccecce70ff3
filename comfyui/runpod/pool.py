"""The gateway's pool of ComfyUI servers where RunPod renders: the bridge is the only one in it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from comfyui.metrics import Metrics
from comfyui.runpod.bridge import RunPodBridge, RunPodOptions
from comfyui.servers.pool import BackendPool


@asynccontextmanager
async def runpod_pool(
    options: RunPodOptions, connect: Callable[..., BackendPool], metrics: Metrics | None = None
) -> AsyncIterator[BackendPool]:
    """A pool in front of a bridge of its own; not ready while RunPod refuses us. `connect`: `BackendPool.connect`."""
    # A job may wait for as long as RunPod takes to start a worker: that is no stalled ComfyUI.
    async with (
        RunPodBridge(options, metrics) as bridge,
        connect((bridge.address,), name=bridge.name, stalled_after_s=math.inf, silent_after_s=math.inf) as pool,
    ):
        [backend] = pool.backends
        bridge.tell_trouble(backend.vetoed)
        yield pool
