"""`Follower`: what becomes of the jobs that RunPod has. One loop looks after all of them.

A look costs a request to ``/status``, of which RunPod takes 2,000 in 10 s per endpoint and key
(https://docs.runpod.io/serverless/endpoints/operation-reference): many jobs are looked at less often.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError, JournalError
from comfyui.retrying import retry
from comfyui.runpod.endpoint import JobAnswer, JobStatus, RunPodEndpoint
from comfyui.runpod.job import Job, State
from comfyui.runpod.jobs import JobQueue
from comfyui.runpod.journal import JOURNAL_BACKOFF, Journal
from comfyui.runpod.narrator import Failure, failure_of
from comfyui.runpod.options import RunPodTimes
from comfyui.runpod.results import ResultFiles
from comfyui.tasks import SideTasks, happens_within

_log = structlog.get_logger(__name__)

_GROWTH = 1.2
_SLOWEST_S = 2.5
_LOOKS_PER_S = 100.0
_LOOKS_AT_ONCE = 32
_MISSES_UNTIL_FORGOTTEN = 2
_FORGOTTEN = (
    "RunPod does not know the job {job_id} any more: it keeps a result for 30 minutes, and a job for a day at most"
)


@dataclass(slots=True)
class _Look:
    """When a job is looked at next."""

    due: float
    interval_s: float
    failures: int = 0
    misses: int = 0
    task: asyncio.Task[None] | None = None


class Follower:
    """`run` is its task; `close` ends what it started."""

    def __init__(
        self, endpoint: RunPodEndpoint, queue: JobQueue, journal: Journal, results: ResultFiles, times: RunPodTimes
    ) -> None:
        self._endpoint = endpoint
        self._queue = queue
        self._journal = journal
        self._results = results
        self._first_s = times.first_look_s
        self._backoff = times.look_backoff
        self._looks: dict[Job, _Look] = {}
        self._tasks = SideTasks(_log_crash)

    async def run(self) -> None:
        for job in self._queue.delivered():  # to an earlier process
            self._tasks.start(self._guarded(job, self._collect(job, None, None)), f"collect {job.prompt_id}")
        while True:
            self._queue.to_follow.clear()
            for job in self._queue.take_cancels():
                self._tasks.start(self._cancel(job), f"cancel {job.prompt_id}")
            await happens_within(self._queue.to_follow, self._look_around())

    async def close(self) -> None:
        await self._tasks.close()

    def _look_around(self) -> float | None:
        """Begin the looks that are due; seconds until the next one, None when there is nothing to look at."""
        jobs = self._queue.followed()
        for job in self._looks.keys() - set(jobs):
            del self._looks[job]  # a look that is under way ends what it has begun
        now = time.monotonic()
        busy = sum(look.task is not None for look in self._looks.values())
        waits: list[float] = []
        for job in jobs:
            look = self._looks.setdefault(job, _Look(now + self._first_s, self._first_s))
            if look.task is not None:
                continue
            if look.due > now:
                waits.append(look.due - now)
            elif busy < _LOOKS_AT_ONCE:
                busy += 1
                look.task = self._tasks.start(self._look(job, look), f"status of {job.prompt_id}")
        return min(waits, default=None)

    async def _look(self, job: Job, look: _Look) -> None:
        """One question, never two at once for one job: to the SDK's API server a second one would run it again."""
        try:
            answer = await self._endpoint.status(job.job_id)
        except ComfyUINotFoundError:
            look.misses += 1
            if look.misses >= _MISSES_UNTIL_FORGOTTEN:
                await self._queue.failed(job, Failure(_FORGOTTEN.format(job_id=job.job_id)))
        except ComfyUIError as error:
            look.failures += 1
            if look.failures == 1:
                _log.warning("runpod.status_failed", prompt_id=job.prompt_id, job_id=job.job_id, detail=error.detail)
        else:
            look.failures = look.misses = 0
            await self._guarded(job, self._heard(job, answer))
        finally:
            look.task = None
            look.due = time.monotonic() + self._delay_s(look)
            self._queue.to_follow.set()

    def _delay_s(self, look: _Look) -> float:
        if look.failures:
            return self._backoff.delay_s(look.failures)
        interval_s = look.interval_s
        look.interval_s = min(interval_s * _GROWTH, _SLOWEST_S)
        return max(interval_s, len(self._looks) / _LOOKS_PER_S)

    async def _heard(self, job: Job, answer: JobAnswer) -> None:
        if job.ending:
            return
        match answer.status:
            case JobStatus.IN_PROGRESS:
                self._queue.progressed(job, answer.output)
            case JobStatus.COMPLETED:
                if (error := _error_in(answer.output)) is not None:
                    await self._queue.failed(job, failure_of(error))
                else:
                    await self._completed(job, answer)
            case JobStatus.FAILED:
                await self._queue.failed(job, failure_of(answer.error or _error_in(answer.output)))
            case JobStatus.CANCELLED:
                await self._queue.interrupted(job)
            case JobStatus.TIMED_OUT:
                detail = "RunPod ended the job, which took longer than the endpoint's execution timeout"
                await self._queue.failed(job, Failure(f"{detail}{_said(answer.error)}", "RunPodTimeoutError"))

    async def _completed(self, job: Job, answer: JobAnswer) -> None:
        self._queue.began(job)
        job.state = State.DELIVERED
        # First of all, and without end: RunPod will not keep it, and its SDK has forgotten it already.
        await self._queue.insist(lambda: self._journal.deliver(job, answer.body))
        collecting = self._collect(job, answer.body, answer.execution_ms)
        self._tasks.start(self._guarded(job, collecting), f"collect {job.prompt_id}")

    async def _collect(self, job: Job, body: bytes | None, execution_ms: float | None) -> None:
        """From the result that is in the journal to files; `body` is that result where it is at hand."""
        try:
            outputs = await self._results.save(job, body or await self._result(job))
        except ComfyUIError as error:
            await self._queue.failed(job, Failure(error.detail))
        else:
            await self._queue.succeeded(job, outputs, execution_ms)

    async def _guarded(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        """What an endpoint answers can be anything. A bug of ours about it ends this job, and nobody waits for ever."""
        try:
            await work
        except Exception:
            _log.exception("runpod.job_crashed", prompt_id=job.prompt_id, job_id=job.job_id)
            await self._queue.failed(job, Failure("the gateway failed; its log has the reason"))

    async def _result(self, job: Job) -> bytes:
        return await retry(lambda: self._journal.result(job.prompt_id), JournalError, JOURNAL_BACKOFF)

    async def _cancel(self, job: Job) -> None:
        failures = 0
        while self._queue.follows(job):
            try:
                known = await self._endpoint.cancel(job.job_id)
            except ComfyUIError as error:
                failures += 1
                if failures == 1:
                    _log.warning("runpod.cancel_failed", prompt_id=job.prompt_id, detail=error.detail)
                await asyncio.sleep(self._backoff.delay_s(failures))
                continue
            if not known:
                _log.warning("runpod.not_cancelled", prompt_id=job.prompt_id, job_id=job.job_id)
            if not self._queue.follows(job):
                return  # it was done meanwhile
            if (look := self._looks.get(job)) is not None and look.task is not None:
                look.task.cancel()
            await self._queue.interrupted(job)


def _log_crash(task: asyncio.Task[None]) -> None:
    _log.critical("runpod.crashed", task=task.get_name(), exc_info=task.exception())


def _error_in(output: Any) -> Any:
    """A worker that returns an error instead of raising it."""
    return output.get("error") if isinstance(output, dict) and "images" not in output else None


def _said(error: Any) -> str:
    return f": {error}" if isinstance(error, str) and error else ""
