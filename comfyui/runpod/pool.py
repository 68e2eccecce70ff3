"""The gateway's pool of ComfyUI servers where RunPod renders: the bridge is the only one in it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from comfyui.metrics import Metrics
from comfyui.runpod.bridge import RunPodBridge
from comfyui.runpod.options import RunPodOptions
from comfyui.servers.options import ServerOptions
from comfyui.servers.pool import BackendPool


@asynccontextmanager
async def runpod_pool(
    options: RunPodOptions, servers: ServerOptions, metrics: Metrics | None = None
) -> AsyncIterator[BackendPool]:
    """A pool in front of a bridge of its own; not ready while RunPod refuses us."""
    # A job may wait for as long as RunPod takes to start a worker: that is no stalled ComfyUI.
    servers = replace(servers, stalled_after_s=math.inf, silent_after_s=math.inf, dead_after_s=0.0)
    async with (
        RunPodBridge(options, metrics) as bridge,
        BackendPool.connect((bridge.address,), servers, name=bridge.name, metrics=metrics) as pool,
    ):
        [backend] = pool.backends
        bridge.tell_trouble(backend.vetoed)
        yield pool
