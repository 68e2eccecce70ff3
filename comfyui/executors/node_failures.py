"""`NodeFailures`: handles a server on which a node has failed, and decides whether the prompt may be tried again."""

from __future__ import annotations

import asyncio

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUITaskError
from comfyui.executors.assignment import Assignment
from comfyui.executors.places import Places
from comfyui.executors.quarantine import Quarantine
from comfyui.servers.backend import Backend
from comfyui.servers.server import Health

# ComfyUI's prompt worker frees memory only when it has nothing to run: a prompt that is queued right after that request
# runs first, and is out of memory again.
_FREED_AFTER_S = 0.25
# After these errors the process's GPU context is gone: no later prompt survives (docs/comfyui.md, trap 13).
_FATAL_GPU_ERRORS = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction was encountered",
    "CUDA error: an uncorrectable",
)

_log = structlog.get_logger(__name__)


class NodeFailures:
    """Lets ComfyUI recover if it can, and otherwise takes it out of rotation."""

    def __init__(self, places: Places, quarantine: Quarantine) -> None:
        self._places = places
        self._quarantine = quarantine

    async def tried_again(
        self, backend: Backend, job: Assignment, error: ComfyUITaskError, left: dict[str, int]
    ) -> str:
        """The kind of failure after which the prompt is tried again; "" if it is not. `left`: the prompt's remaining
        tries for each kind, of which this uses one.
        """
        reason, is_free = await self._after(backend, job, error)
        if is_free:
            return reason
        if not left.get(reason):
            return ""
        left[reason] -= 1
        return reason

    async def _after(self, backend: Backend, job: Assignment, error: ComfyUITaskError) -> tuple[str, bool]:
        """Returns the kind of failure, and whether another prompt is to blame, so that a further try costs this one
        nothing.
        """
        if any(said in error.detail for said in _FATAL_GPU_ERRORS):
            return await self._after_gpu_fault(backend, job, error)
        if "OutOfMemoryError" not in (error.exception_type or ""):
            return "task_failed", False
        try:
            await backend.client.free()
            _log.warning("comfyui.freed", server=backend.name, prompt_id=job.prompt_id)
            await asyncio.sleep(_FREED_AFTER_S)
        except ComfyUIError as failure:
            _log.warning("comfyui.free_failed", server=backend.name, detail=failure.detail)
        return "out_of_memory", False

    async def _after_gpu_fault(self, backend: Backend, job: Assignment, error: ComfyUITaskError) -> tuple[str, bool]:
        """The first prompt that meets the fault may have caused it: it counts as one that ended ComfyUI."""
        is_anothers = backend.health is Health.BROKEN
        backend.broken(f"a GPU fault that needs a restart of ComfyUI: {error.exception_type}", job.prompt_id)
        if not is_anothers and job.request is not None:
            job.suspect(ended_comfyui=False)
            await self._quarantine.ended_comfyui(job.request.prompt, f"with a GPU fault: {error.exception_type}")
        # Without another server, the fault is the answer, however often it occurred.
        return ("gpu_fault", is_anothers) if self._places.has_other(job) else ("task_failed", False)
