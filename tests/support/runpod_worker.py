"""RunPod's HTTP API on loopback; our own worker behind it runs the jobs on a ComfyUI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from comfyui.workers.runpod.settings import RunPodSettings
from comfyui.workers.runpod.worker import RunPodWorker
from tests.support.runpod_endpoint import FakeEndpoint


class WorkingEndpoint(FakeEndpoint):
    """Runs its accepted jobs one after the other on the ComfyUI at `comfyui`."""

    def __init__(self, comfyui: str) -> None:
        super().__init__()
        settings = RunPodSettings(comfyui_server_address=(comfyui,), comfyui_output_dir=None, comfyui_input_dir=None)
        self._worker = RunPodWorker(settings, self, progress_interval_s=0)
        self._one = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def __aexit__(self, *exc: object) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._worker.close()
        await super().__aexit__(*exc)

    # For the worker: `comfyui.workers.runpod.worker.ServerlessSdk`

    def start(self, config: dict[str, Any]) -> None:
        raise NotImplementedError("its jobs come by HTTP")

    def progress_update(self, job: Mapping[str, Any], progress: Any) -> None:
        if self.jobs[job["id"]]["status"] == "IN_PROGRESS":
            self.says(job["id"], "IN_PROGRESS", output=progress)

    # For the gateway

    async def _run(self, request: web.Request) -> web.StreamResponse:
        answer = await super()._run(request)
        for job in self.inputs.keys() - self._running.keys():
            self._running[job] = asyncio.create_task(self._work(job), name=f"RunPod {job}")
        return answer

    async def _cancel(self, request: web.Request) -> web.Response:
        answer = await super()._cancel(request)
        self._running[request.match_info["job"]].cancel()
        return answer

    async def _work(self, job: str) -> None:
        async with self._one:
            self.says(job, "IN_PROGRESS")
            began = time.monotonic()
            output = await self._worker.handle({"id": job, "input": self.inputs[job]})
            taken_ms = int(1000 * (time.monotonic() - began))
            # The SDK splits it in the same way.
            error = output.pop("error", None)
            if error is None:
                self.says(job, "COMPLETED", output=output, executionTime=taken_ms)
            else:
                self.says(job, "FAILED", error=error, output=output, executionTime=taken_ms)
