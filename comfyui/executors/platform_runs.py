"""`PlatformRuns`: the run of a prompt on a platform such as RunPod; `comfyui.executors.comfyui` does it on servers."""

from __future__ import annotations

import time

import structlog

from comfyui.exceptions import ComfyUIPromptLostError, ComfyUIValidationError, RunPodRefusedError
from comfyui.executors.assignment import Assignment
from comfyui.executors.elsewhere import Elsewhere
from comfyui.executors.places import Places
from comfyui.executors.preparation import Preparation
from comfyui.jobs.journal.attempts import Attempt
from comfyui.models import PromptRequest, PromptResult

_log = structlog.get_logger(__name__)


class PlatformRuns:
    """Its arguments belong to its creator. `elsewhere`: the platform; None if there is none."""

    def __init__(self, elsewhere: Elsewhere | None, places: Places, preparation: Preparation) -> None:
        self._elsewhere = elsewhere
        self._places = places
        self._preparation = preparation

    async def run(
        self, job: Assignment, request: PromptRequest, avoid: set[str], *, brings_inputs: bool
    ) -> PromptResult | None:
        """The result of a prompt that has a place there.

        None if it waits for its turn again: the platform did not accept it, or refused a prompt that another server may
        run, and is then in `avoid`. A refused prompt has not run.
        """
        elsewhere = self._elsewhere
        if elsewhere is None:
            raise RuntimeError("BACKEND has no runpod, so no platform runs prompts")
        server = elsewhere.server
        await job.placed(server)
        began = time.monotonic()
        with server.working():
            prompt = await self._preparation.prepared(server, job, request, request.prompt, brings_inputs=brings_inputs)
            staging_s, key = time.monotonic() - began, self._preparation.key_of(job)
            try:
                if not await elsewhere.submit(job, request, prompt, key=key, staging_s=staging_s):
                    return None
                self._places.accepted(job)
                return await elsewhere.result(job)
            except (ComfyUIValidationError, RunPodRefusedError) as error:
                if server.name in avoid or not self._places.has_other(job):
                    raise
                _log.warning("prompt.refused_there", prompt_id=job.prompt_id, server=server.name, detail=error.detail)
        await job.attempts.taken_back()
        avoid.add(server.name)
        return None

    async def rejoin(self, job: Assignment, attempt: Attempt) -> PromptResult:
        """Continues a prompt that an earlier gateway submitted to the platform."""
        elsewhere = self._elsewhere
        if elsewhere is None or (job.server_before != elsewhere.server.name and not attempt.has_reply):
            detail = (
                f"the prompt was sent to {job.server_before}, which no longer runs prompts of this gateway. It was"
                " not sent again, so that it does not run twice; post the workflow again if it must run"
            )
            raise ComfyUIPromptLostError(detail, prompt_id=job.prompt_id)
        server = elsewhere.server
        await job.attached(server)
        self._places.found(job, server)
        with server.working():
            await elsewhere.rejoin(job, attempt)
            return await elsewhere.result(job)
