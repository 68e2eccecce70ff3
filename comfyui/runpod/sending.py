"""`Submitter`: sends what waits, one job after the other in ComfyUI's order, and each only once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any

import structlog

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIOverloadedError,
    ComfyUIServerError,
    JournalError,
    RunPodRefusedError,
)
from comfyui.runpod.endpoint import JobStatus, RunPodEndpoint, Submitted
from comfyui.runpod.health import EndpointHealth
from comfyui.runpod.inputs import InputFiles
from comfyui.runpod.job import Job, State
from comfyui.runpod.jobs import JobQueue
from comfyui.runpod.narrator import Failure
from comfyui.runpod.options import RunPodTimes

_log = structlog.get_logger(__name__)


class _NotTakenError(Exception):
    """RunPod surely does not have the job; it may be sent again after `wait_s`, where that is more than our own."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Submitter:
    """`run` is its task. `health` is told when RunPod refuses the key or does not know the endpoint."""

    def __init__(
        self,
        endpoint: RunPodEndpoint,
        queue: JobQueue,
        inputs: InputFiles,
        health: EndpointHealth,
        times: RunPodTimes,
    ) -> None:
        self._endpoint = endpoint
        self._queue = queue
        self._inputs = inputs
        self._health = health
        self._times = times

    async def run(self) -> None:
        failures = 0
        while True:
            job = self._queue.next_to_send()
            if job is None:
                self._queue.to_send.clear()
                await self._queue.to_send.wait()
                continue
            try:
                await self._send(job)
                failures = 0
                continue
            except _NotTakenError as error:
                wait_s, reason = error.wait_s, str(error)
            except JournalError as error:
                wait_s, reason = 0.0, error.detail
            failures += 1
            if failures == 1:
                _log.warning("runpod.waiting", detail=reason, waiting=len(self._queue.pending()))
            await asyncio.sleep(max(wait_s, self._times.send_backoff.delay_s(failures)))

    async def _send(self, job: Job) -> None:
        try:
            body = await self._inputs.body(job)
        except ComfyUIError as error:
            await self._queue.failed(job, Failure(error.detail))
            return
        except Exception:
            # A bug of ours, or a file that went away at the wrong moment: the jobs behind this one must go on.
            _log.exception("runpod.job_crashed", prompt_id=job.prompt_id)
            await self._queue.failed(job, Failure("the gateway failed; its log has the reason"))
            return
        if job.ending:
            return  # cancelled while its inputs were read
        # Written first: if this process ends now, the next one knows that the job may have been sent.
        try:
            await self._queue.keep(job, State.SENDING)
        except asyncio.CancelledError:
            await self._in_time(self._take_back(job))
            raise
        if job.cancelled:
            await self._written(self._take_back(job))
            return
        try:
            submitted = await self._post(job, body)
        except _NotTakenError:
            await self._written(self._take_back(job))
            raise
        if submitted is not None:
            await self._written(self._sent(job, submitted))

    async def _post(self, job: Job, body: bytes) -> Submitted | None:
        """None when it has ended: refused, or nobody knows whether RunPod has it."""
        posting = asyncio.create_task(self._endpoint.run(body), name=f"RunPod job of {job.prompt_id}")
        try:
            return await asyncio.shield(posting)
        except asyncio.CancelledError:
            await asyncio.wait([posting], timeout=self._times.last_word_s)
            await self._in_time(self._last_word(job, posting))
            raise
        except ComfyUIOverloadedError as error:
            raise _NotTakenError(error.detail, error.retry_after_s) from error
        except ComfyUIConnectionError as error:
            if not error.sent:
                raise _NotTakenError(error.detail) from error
            await self._queue.lost(job, error.detail)
        except RunPodRefusedError as error:
            await self._queue.failed(job, Failure(error.detail))
            self._health.look()
        except ComfyUIServerError as error:
            if 400 <= error.upstream_status < 500:
                await self._queue.failed(job, Failure(f"RunPod refused the job: {error.detail}"))
            else:
                await self._queue.lost(job, error.detail)
        return None

    async def _last_word(self, job: Job, posting: asyncio.Task[Submitted]) -> None:
        """The gateway stops: write down what is known of the job, so that the next one goes on with it."""
        if not posting.done():
            posting.cancel()
            return
        error = posting.exception()
        if error is None:
            await self._sent(job, posting.result())
        elif isinstance(error, ComfyUIOverloadedError) or (
            isinstance(error, ComfyUIConnectionError) and not error.sent
        ):
            await self._take_back(job)

    async def _take_back(self, job: Job) -> None:
        """It is surely not at RunPod: as if it had never been sent."""
        job.state = State.PENDING
        if job.cancelled:
            await self._queue.drop(job)
        else:
            await self._queue.keep(job, State.PENDING)

    async def _sent(self, job: Job, submitted: Submitted) -> None:
        job.job_id, job.state = submitted.job_id, State.SENT
        _log.info("runpod.sent", prompt_id=job.prompt_id, job_id=job.job_id)
        if submitted.status is JobStatus.IN_PROGRESS:
            self._queue.began(job)
        # Followed at once, whatever the journal takes for it.
        self._queue.to_follow.set()
        await self._queue.insist(lambda: self._queue.record(job))
        if job.cancelled:
            self._queue.cancel_at_runpod(job)

    async def _written(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work`, even if the gateway stops meanwhile: the next one would not know whether RunPod has the job."""
        writing = asyncio.create_task(work, name="RunPod job's state")
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await self._in_time(writing)
            raise

    async def _in_time(self, work: Awaitable[None]) -> None:
        """The gateway stops: a journal that cannot be written must not hold that up, nor its error take its place."""
        with contextlib.suppress(TimeoutError, JournalError):
            async with asyncio.timeout(self._times.last_word_s):
                await work
