"""`Submissions`: sends each job once, and knows which jobs RunPod has.

A send goes on when its job is given up meanwhile: its reply tells whether RunPod accepted the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIOverloadedError,
    ComfyUIServerError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    JournalError,
    RunPodRefusedError,
)
from comfyui.executors.attempts import AttemptLog
from comfyui.executors.runpod.endpoint import RunPodEndpoint
from comfyui.executors.runpod.health import EndpointHealth
from comfyui.executors.runpod.options import RunPodTimes
from comfyui.retrying import retry
from comfyui.tasks import SideTasks

_log = structlog.get_logger(__name__)

_UNKNOWN = (
    "it is not known whether RunPod took the job: {reason}. It was not sent again, so that it does not run twice; look"
    " for it in RunPod's console, or post the workflow again under another prompt_id"
)


@dataclass(frozen=True, slots=True)
class NotTaken:
    """RunPod certainly does not have the job; it may be sent again after `wait_s`, if that is more than our own
    delay.
    """

    reason: str
    wait_s: float = 0.0


def unknown_submission(reason: str, prompt_id: str) -> ComfyUITaskError:
    """The error of a job that RunPod may or may not have. It is final: the job must not be sent again."""
    return ComfyUITaskError(_UNKNOWN.format(reason=reason), prompt_id=prompt_id)


class Submissions:
    """`health` is told when RunPod refuses the key or does not know the endpoint."""

    def __init__(self, endpoint: RunPodEndpoint, health: EndpointHealth, times: RunPodTimes) -> None:
        self._endpoint = endpoint
        self._health = health
        self._times = times
        self._under_way: dict[str, asyncio.Task[str | NotTaken | ComfyUIError]] = {}
        self._unwanted: set[str] = set()
        self._tasks = SideTasks()

    async def close(self) -> None:
        """Waits a moment for jobs on their way, so that the next gateway knows whether RunPod has them."""
        await self._tasks.close(patience_s=self._times.last_word_s)

    async def send(self, prompt_id: str, attempts: AttemptLog, body: bytes) -> str | NotTaken:
        """RunPod's id of the job, which is in the journal. Raises the job's error."""
        work = self._send(prompt_id, attempts, body)
        task = self._under_way[prompt_id] = self._tasks.start(work, f"RunPod job of {prompt_id}")
        task.add_done_callback(lambda _: self._under_way.pop(prompt_id, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, ComfyUIError):
            raise outcome
        return outcome

    async def settled(self, prompt_id: str) -> str | None:
        """Keeps a job that is on its way from being sent, or waits for the reply: RunPod's id, if it has the job."""
        task = self._under_way.get(prompt_id)
        if task is None:
            return None
        self._unwanted.add(prompt_id)
        try:
            outcome = await asyncio.shield(task)
        finally:
            self._unwanted.discard(prompt_id)
        return outcome if isinstance(outcome, str) else None

    async def _send(self, prompt_id: str, attempts: AttemptLog, body: bytes) -> str | NotTaken | ComfyUIError:
        # Recorded first: if this process ends now, the next one knows that the job may have been sent.
        try:
            await attempts.sending()
        except ComfyUIError as error:
            return error
        if prompt_id in self._unwanted:
            await self._insist(attempts.taken_back)
            return ComfyUITaskCancelledError("cancelled before it was submitted", prompt_id=prompt_id)
        outcome = await self._post(prompt_id, body)
        if isinstance(outcome, str):
            job_id = outcome
            _log.info("runpod.sent", prompt_id=prompt_id, job_id=job_id)
            await self._insist(lambda: attempts.accepted(job_id))
        elif isinstance(outcome, NotTaken):
            await self._insist(attempts.taken_back)
        return outcome

    async def _post(self, prompt_id: str, body: bytes) -> str | NotTaken | ComfyUIError:
        try:
            return (await self._endpoint.run(body)).job_id
        except ComfyUIOverloadedError as error:
            return NotTaken(error.detail, error.retry_after_s)
        except ComfyUIConnectionError as error:
            return unknown_submission(error.detail, prompt_id) if error.sent else NotTaken(error.detail)
        except RunPodRefusedError as error:
            self._health.look()
            return error
        except ComfyUIServerError as error:
            if 400 <= error.upstream_status < 500:
                return ComfyUITaskError(f"RunPod refused the job: {error.detail}", prompt_id=prompt_id)
            return unknown_submission(error.detail, prompt_id)

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        await insist(write, self._times)


async def insist(write: Callable[[], Awaitable[None]], times: RunPodTimes) -> None:
    """For an event that has already happened and must not be forgotten: tries until it can be written."""

    def again(error: JournalError, failures: int) -> None:
        if failures == 1:
            _log.error("runpod.journal_failed", detail=error.detail)

    await retry(write, JournalError, times.journal_backoff, told=again)
