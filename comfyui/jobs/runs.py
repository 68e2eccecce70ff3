"""`Runs`: the jobs that are being run or waited for now, one for each prompt id, and the task of each."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIShutdownError,
    ComfyUITaskCancelledError,
    ComfyUITimeoutError,
    JournalError,
)
from comfyui.executors.comfyui import PromptRunner
from comfyui.inputs.content import BroughtFiles
from comfyui.jobs.cancels import Cancels
from comfyui.jobs.entry import Entry
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import NewJob, State
from comfyui.jobs.stored import large_result_to_bytes
from comfyui.metrics import Metrics
from comfyui.models import PromptRequest
from comfyui.offload import after_turns
from comfyui.outputs.delivery import Deliverer, Order
from comfyui.servers.server import Server

# Turns of the event loop from the end of a prompt until each of its requests has sent its answer, or asked ComfyUI for
# a file.
_TURNS_UNTIL_ANSWERED = 2
NEEDS_SECRETS = (
    "the request had keys in extra_data, which are not kept, and the gateway was restarted before it ran; send it again"
)


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How long a job may take.

    Attributes:
        max_timeout_s: a sync one in all.
        max_execution_s: an async one, from its start in ComfyUI on.
        max_queued_s: an async one until then; 0: any time.
        cancel_on_timeout: whether a sync one is taken out of ComfyUI then.
    """

    max_timeout_s: float = 3600.0
    max_execution_s: float = 3600.0
    max_queued_s: float = 0.0
    cancel_on_timeout: bool = True


class Follower(Protocol):
    """Is told the progress of an async job."""

    def rendered(self, job: Job) -> None:
        """The job is on no server any more; its files are being stored."""

    def ended(self, job: Job) -> None:
        """It has ended, or waits in our queue again."""


class Runs:
    """`live` has the jobs by their id: each has a task, or stands for one that waits in our queue and is waited for.

    Args:
        shows_history: whether ComfyUI's history is answered from the journal, and not by ComfyUI.
        deliverer: stores the files of async jobs when they end; None if there is no place for them.
    """

    def __init__(
        self,
        runner: PromptRunner,
        cancels: Cancels,
        limits: RunLimits,
        metrics: Metrics,
        deliverer: Deliverer | None = None,
        *,
        shows_history: bool = False,
    ) -> None:
        self.live: dict[str, Job] = {}
        self._followers: dict[Job, Follower] = {}
        self._runner = runner
        self._cancels = cancels
        self._limits = limits
        self._deliverer = deliverer
        self._shows_history = shows_history
        self._metrics = metrics
        # Looking up a label takes longer than counting.
        self._prompts = functools.cache(metrics.prompts.labels)
        self._key_prompts = functools.cache(metrics.key_prompts.labels)
        self._stage_seconds = functools.cache(metrics.stage_seconds.labels)
        self._log = structlog.get_logger(__name__)

    def add(
        self,
        prompt_id: str,
        request: PromptRequest | None = None,
        files: BroughtFiles | None = None,
        fingerprint: str | None = None,
        *,
        entry: Entry | None = None,
    ) -> Job:
        """A job without a task."""
        cancelled_before = self._cancels.take_recent(prompt_id)
        job = Job(prompt_id, request, files, fingerprint, entry=entry, cancelled_before=cancelled_before)
        self.live[prompt_id] = job
        return job

    def start(
        self,
        prompt_id: str,
        request: PromptRequest | None = None,
        files: BroughtFiles | None = None,
        fingerprint: str | None = None,
        *,
        entry: Entry | None = None,
    ) -> Job:
        """A job that runs."""
        job = self.add(prompt_id, request, files, fingerprint, entry=entry)
        job.begin(self._run(job))
        return job

    def begin(self, job: Job, follower: Follower, before: Callable[[], Awaitable[None]] | None = None) -> None:
        """Runs a job that was added, and tells `follower` of it; the job's task waits for `before` first."""
        self.tell(job, follower)
        job.begin(self._run(job, before))

    def tell(self, job: Job, follower: Follower) -> None:
        """Tell `follower` how far the job is."""
        self._followers[job] = follower

    async def keep(self, job: Job, new: NewJob) -> None:
        """A sync job that runs is the async job `new` from now on; see `Job.keep`."""
        await job.keep(new, self._limits.max_queued_s or None)

    def drop(self, job: Job) -> None:
        """No request waits for it any more, and it has no task."""
        if self.live.get(job.prompt_id) is job:
            del self.live[job.prompt_id]

    async def stop(self) -> None:
        """Cancel all tasks, and wait for their ends."""
        await asyncio.gather(*(job.stopped() for job in list(self.live.values())))

    async def _run(
        self,
        job: Job,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        started = time.monotonic()
        outcome = ""
        timings: Mapping[str, float] = {}
        again = False
        try:
            async with job.limited(self._first_limit_s(job), self._limits.max_execution_s):
                if before is not None:
                    await before()
                result = (await self._runner.run(job)).of_call(job.call)
            if job.stays and job.request is not None and self._deliverer is not None:
                # It may have no waiting caller: its files are stored now, if they should be.
                if (follower := self._followers.get(job)) is not None:
                    follower.rendered(job)
                result = await self._deliverer.delivered(result, Order.of(job.request))
            if not self._shows_history:
                result = replace(result, told=None)
            kept = await large_result_to_bytes(result) if job.entry is not None else None
            outcome = "success"
            job.finish(result, kept)
            timings = result.timings.stages
        except TimeoutError:
            outcome = ComfyUITimeoutError.code
            self._timed_out(job)
        except ComfyUIError as error:
            # No other name may stay for it: its traceback has this frame, and so the request.
            outcome, again = self._failed(job, error)
        except Exception:
            outcome = ComfyUIError.code
            self._log.exception("prompt.crashed", prompt_id=job.prompt_id)
            job.fail(ComfyUIError("the gateway failed; its log has the reason", prompt_id=job.prompt_id))
        finally:
            if not (again and job.waiters):
                self.drop(job)
            job.let_go()
            if (follower := self._followers.pop(job, None)) is not None:
                follower.ended(job)
            if not again:
                # A cancelled job has the error that its waiters were told.
                outcome = outcome or (job.failure or ComfyUITaskCancelledError).code
                # Waiting requests go first: writing a log line takes as long as a request to ComfyUI.
                record = functools.partial(self._record, job, outcome, time.monotonic() - started, timings)
                after_turns(_TURNS_UNTIL_ANSWERED, record)

    def _failed(self, job: Job, error: ComfyUIError) -> tuple[str, bool]:
        """The outcome of the run, and whether it waits in our queue again."""
        if job.stays and job.request is None and isinstance(error, ComfyUINotFoundError):
            error = ComfyUIError(NEEDS_SECRETS)
        may_wait = job.stays and job.entry is not None and job.entry.added and not job.ended
        if may_wait and isinstance(error, ComfyUIConnectionError | JournalError):
            self._log.warning("prompt.waits_again", prompt_id=job.prompt_id, detail=error.detail)
            job.put_back()
            return error.code, True
        job.fail(error)
        return error.code, False

    def _first_limit_s(self, job: Job) -> float | None:
        if not job.stays or job.entry is None:
            return self._limits.max_timeout_s
        if not self._limits.max_queued_s or job.started:
            return None
        return max(0.0, job.entry.queued_at + self._limits.max_queued_s - time.time())

    def _timed_out(self, job: Job) -> None:
        limits = self._limits
        if job.stays:
            over = f"the job did not begin within MAX_QUEUED_SECONDS ({limits.max_queued_s:g})"
            if job.started:
                over = f"the job did not finish within MAX_EXECUTION_SECONDS ({limits.max_execution_s:g})"
            error = ComfyUITimeoutError(f"{over}{delayed_by(job.backend)}", prompt_id=job.prompt_id)
            job.cancel(error, State.FAILED)
            self._cancels.begin(job, "timeout")
            return
        detail = f"the job did not finish within MAX_TIMEOUT{delayed_by(job.backend)}"
        error = ComfyUITimeoutError(detail, prompt_id=job.prompt_id)
        if limits.cancel_on_timeout and job.request is not None:
            job.cancel(error)
            self._cancels.begin(job, "timeout")
        else:
            job.fail(error)

    def _record(self, job: Job, outcome: str, seconds: float, timings: Mapping[str, float]) -> None:
        if outcome == ComfyUIShutdownError.code and job.stays:
            return  # it goes on
        self._prompts(outcome).inc()
        if job.owner is not None:
            self._key_prompts(self._metrics.key_label(job.owner), outcome).inc()
        for stage, stage_s in timings.items():
            self._stage_seconds(stage).observe(stage_s)
        fields: dict[str, object] = {
            "prompt_id": job.prompt_id,
            "outcome": outcome,
            "key": job.owner,
            "server": job.backend.name if job.backend else None,
            "seconds": round(seconds, 3),
        }
        if job.failure is not None:
            fields["detail"] = job.failure.detail
        self._log.info("prompt.done", **fields)


def delayed_by(backend: Server | None) -> str:
    """A possible cause of a time-out: a prompt before it, or a server that is away."""
    if backend is None:
        return ""
    return f"; {backend.delay}" if backend.delay else ""
