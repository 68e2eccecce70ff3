"""`Follower`: waits for jobs at RunPod.

A look costs one request to ``/status``; RunPod accepts 2,000 in 10 s per endpoint and key
(https://docs.runpod.io/serverless/endpoints/operation-reference). The more jobs there are, the less often each is
looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError, ComfyUIPromptLostError
from comfyui.executors.runpod.endpoint import JobAnswer, JobStatus, RunPodEndpoint
from comfyui.executors.runpod.options import RunPodTimes

_log = structlog.get_logger(__name__)

_GROWTH = 1.2
_SLOWEST_S = 2.5
_LOOKS_PER_S = 100.0
_LOOKS_AT_ONCE = 32
_MISSES_UNTIL_FORGOTTEN = 2
_FORGOTTEN = "RunPod no longer knows the job {job_id}: it keeps a result for 30 minutes, and a job for a day at most"


class Follower:
    """One instance follows all jobs."""

    def __init__(self, endpoint: RunPodEndpoint, times: RunPodTimes) -> None:
        self._endpoint = endpoint
        self._times = times
        self._followed = 0
        self._slots = asyncio.Semaphore(_LOOKS_AT_ONCE)

    async def end_of(self, prompt_id: str, job_id: str, running: Callable[[Any], None]) -> JobAnswer:
        """The answer with the job's end. `running` gets the worker's reports until then.

        A job never has two requests at once: the SDK's API server would run it again.

        Raises:
            ComfyUIPromptLostError: RunPod no longer knows the job.
        """
        self._followed += 1
        try:
            return await self._end_of(prompt_id, job_id, running)
        finally:
            self._followed -= 1

    async def _end_of(self, prompt_id: str, job_id: str, running: Callable[[Any], None]) -> JobAnswer:
        interval_s = wait_s = self._times.first_look_s
        failures = misses = 0
        while True:
            await asyncio.sleep(wait_s)
            try:
                async with self._slots:
                    answer = await self._endpoint.status(job_id)
            except ComfyUINotFoundError as error:
                misses += 1
                if misses >= _MISSES_UNTIL_FORGOTTEN:
                    raise ComfyUIPromptLostError(_FORGOTTEN.format(job_id=job_id), prompt_id=prompt_id) from error
            except ComfyUIError as error:
                failures += 1
                if failures == 1:
                    _log.warning("runpod.status_failed", prompt_id=prompt_id, job_id=job_id, detail=error.detail)
                wait_s = self._times.look_backoff.delay_s(failures)
                continue
            else:
                failures = misses = 0
                if answer.status is JobStatus.IN_PROGRESS:
                    running(answer.output)
                elif answer.status is not JobStatus.IN_QUEUE:
                    return answer
            interval_s = min(interval_s * _GROWTH, _SLOWEST_S)
            wait_s = max(interval_s, self._followed / _LOOKS_PER_S)
