"""`ComfyUIHandler`: run a workflow and return its result. Knows no transport: HTTP and the workers sit on top of it.

A prompt is run by the one task of its `Job`, however many requests wait for it. Requests come and go; the job goes on
while one waits, and what happens when the last one leaves is a setting.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from uuid import uuid4

import structlog

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ComfyUIShutdownError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUITimeoutError,
)
from comfyui.executors.comfyui import PromptRunner, RunnerOptions
from comfyui.executors.quarantine import Quarantine
from comfyui.inputs.content import SpooledFiles
from comfyui.inputs.staging import InputStager
from comfyui.jobs.cancels import Cancels, given_up
from comfyui.jobs.finished import Finished, check_same, fingerprint_of
from comfyui.jobs.job import Job, Listener, Reason
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.metrics import Metrics
from comfyui.models import OutputFile, PromptRequest, PromptResult
from comfyui.offload import after_turns, offloaded
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.pool import CHOICE_PATIENCE_S, BackendPool, ServerReport
from comfyui.transport.body import OpenBody
from comfyui.transport.drivers import RawReply
from comfyui.workflows.api_format import check_api_format

_log = structlog.get_logger(__name__)
# From the end of a prompt until each of its requests has sent its answer, or asked ComfyUI for a file.
_TURNS_UNTIL_ANSWERED = 2


@dataclass(frozen=True, slots=True)
class HandlerOptions:
    """How the handler behaves; the fields are the settings of the same names (docs/configuration.md)."""

    max_timeout_s: float = 3600.0
    max_concurrent_requests: int = 1000
    cancel_on_timeout: bool = True
    cancel_on_disconnect: bool = True
    cancel_on_shutdown: bool = False
    last_cancels_s: float = 5.0
    """At the end, for cancels that are under way. It is no setting."""
    limits: Limits = DEFAULT_LIMITS
    runner: RunnerOptions = field(default_factory=RunnerOptions)


class Readiness(Protocol):
    """Something that keeps the gateway from saying that it is ready, though it takes prompts."""

    def why_not_ready(self, *, in_detail: bool) -> str | None:
        """The reason; None when there is none. Not `in_detail`: no addresses, no messages."""


class ComfyUIHandler:
    """Open it with ``async with``. The pool and the stager belong to whoever made them.

    Args:
        also_ready: what must be ready beside the servers.
    """

    def __init__(
        self,
        pool: BackendPool,
        stager: InputStager,
        options: HandlerOptions | None = None,
        *,
        metrics: Metrics | None = None,
        quarantine: Quarantine | None = None,
        also_ready: Readiness | None = None,
    ) -> None:
        self.pool = pool
        self.metrics = metrics or Metrics()
        self._options = options or HandlerOptions()
        self._also_ready = also_ready
        self._runner = PromptRunner(pool, stager, self._options.runner, self.metrics, quarantine or Quarantine(after=0))
        # Looking up a label takes longer than counting.
        self._prompts = functools.cache(self.metrics.prompts.labels)
        self._stage_seconds = functools.cache(self.metrics.stage_seconds.labels)
        self._log = structlog.get_logger(__name__)
        self._jobs: dict[str, Job] = {}
        self._finished = Finished()
        self._cancels = Cancels(self._runner, self.metrics, last_s=self._options.last_cancels_s)
        self._waiting = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._draining = True
        self._answer_all()
        await asyncio.gather(*(job.stopped() for job in list(self._jobs.values())))
        await self._cancels.close()

    # What callers do

    async def submit_prompt_sync(
        self,
        request: PromptRequest,
        *,
        timeout_s: float,
        files: SpooledFiles | None = None,
        fresh_id: str | None = None,
        listener: Listener | None = None,
    ) -> PromptResult:
        """Run the workflow and wait for it; the same ``prompt_id`` again joins it, or returns what it gave.

        Args:
            files: further inputs; held for as long as the prompt needs them, which may be longer than this call.
            fresh_id: a new UUID to use when the request has no ``prompt_id``; one is made when not given.
            listener: gets the prompt's events while this call waits.

        Raises:
            ComfyUIError: any of the tree, with the ``prompt_id`` where there is one.
        """
        with self._admitted():
            await offloaded(request.size, check_api_format, request.prompt, self._options.limits)
            prompt_id = str(request.prompt_id or fresh_id or uuid4())
            fingerprint = None
            if request.prompt_id is not None:
                fingerprint = await offloaded(request.size, fingerprint_of, request, files)
            timeout_s = await self._cancels.ended(prompt_id, timeout_s)
            job = self._jobs.get(prompt_id)
            if job is not None:
                check_same(prompt_id, job.fingerprint, fingerprint)
                job.adopt(request, files, fingerprint)
            elif fingerprint is not None and prompt_id in self._finished:
                return self._finished.recall(prompt_id, fingerprint)
            else:
                job = self._start(prompt_id, request, files, fingerprint)
            return await self._wait(job, timeout_s, listener, may_cancel=True)

    async def attach(self, prompt_id: str, *, timeout_s: float, listener: Listener | None = None) -> PromptResult:
        """Wait for a prompt that is queued, running or finished, whoever queued it, before a restart too.

        It only looks on: when this call times out or is given up, the prompt goes on.

        Raises:
            ComfyUINotFoundError: neither we nor ComfyUI know it.
        """
        with self._admitted():
            timeout_s = await self._cancels.ended(prompt_id, timeout_s)
            job = self._jobs.get(prompt_id)
            if job is None and prompt_id in self._finished:
                return self._finished.recall(prompt_id)
            job = job or self._start(prompt_id)
            return await self._wait(job, timeout_s, listener, may_cancel=False)

    async def cancel(self, prompt_id: str) -> None:
        """Take the prompt out of ComfyUI, for all who wait for it.

        Raises:
            ComfyUINotFoundError: it is not in flight here, and in no queue of ComfyUI.
            ComfyUIError: ComfyUI could not be told, so that the prompt may go on there; it can be cancelled again.
        """
        job = self._jobs.get(prompt_id)
        if job is not None:
            job.cancel(ComfyUITaskCancelledError("cancelled on request", prompt_id=prompt_id))
            failure = await asyncio.shield(self._cancels.begin(job, "request"))
            if failure is not None:
                raise failure
            return
        backend, found = await self._runner.find(prompt_id)
        if backend is None or not isinstance(found, QueueItem):
            state = "is finished already" if found else "is not known"
            raise ComfyUINotFoundError(f"the prompt {state}: there is nothing to cancel", prompt_id=prompt_id)
        await backend.cancel(prompt_id)
        self.metrics.cancelled.labels("request").inc()

    async def queue_prompt_compatible(
        self, body: bytes, headers: Mapping[str, str], *, server: Backend | None = None
    ) -> RawReply:
        """ComfyUI's own ``POST /prompt``: the body goes as it came, the reply comes back as it came.

        `server`, while it is ready, is the one whose websocket the client watches.
        """
        self._refuse_when_draining()
        backend = server if server and server.ready else await self.pool.choose(patience_s=CHOICE_PATIENCE_S)
        try:
            return await backend.client.forward_prompt(body, headers)
        except ComfyUIConnectionError as error:
            backend.failed(error)
            raise

    def open_file(self, result: PromptResult, file: OutputFile) -> AbstractAsyncContextManager[OpenBody]:
        """One file of a result, streamed from the server that made it; see `ComfyUIClient.view`."""
        backend = self.pool.named(result.server)
        if backend is None:
            raise ComfyUINotFoundError(f"the server that has {file.filename!r} is not configured any more")
        return backend.client.view(file.filename, file.subfolder, file.type)

    def workflow_of(self, prompt_id: str) -> Mapping[str, Any] | None:
        """The workflow of a prompt in flight; None when it is not known (yet)."""
        job = self._jobs.get(prompt_id)
        return job.workflow if job else None

    # State that probes ask for

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return self._waiting

    @property
    def draining(self) -> bool:
        return self._draining

    def why_not_ready(self, *, in_detail: bool = True) -> str | None:
        """Why a prompt would not be accepted now; None when it would. Not `in_detail`: no addresses, no messages."""
        if self._draining:
            return "shutting down"
        if self._waiting >= self._options.max_concurrent_requests:
            return f"at the limit of {self._options.max_concurrent_requests} waiting requests"
        if not self.pool.ready:
            return self.pool.why_not_ready(in_detail=in_detail)
        return self._also_ready.why_not_ready(in_detail=in_detail) if self._also_ready is not None else None

    def refuse_when_full(self) -> None:
        """Raise what `submit_prompt_sync` would raise now, before a body is read for nothing.

        Raises:
            ComfyUIShutdownError: draining.
            ComfyUIOverloadedError: as many requests wait as may.
        """
        self._refuse_when_draining()
        limit = self._options.max_concurrent_requests
        if self._waiting >= limit:
            self.metrics.rejected.labels("overloaded").inc()
            raise ComfyUIOverloadedError(f"{limit} requests are waiting already; try again later")

    async def health_check(self, *, in_detail: bool = True) -> list[ServerReport]:
        """Per-server state, as `BackendPool.report` has it; those without a working websocket are asked anew."""
        for backend in self.pool.backends:
            if not backend.watcher.connected:
                backend.look_again()
        return self.pool.report(in_detail=in_detail)

    # Shutdown

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, wait for what is in flight, then answer the rest with 503 and their prompt_id."""
        self._draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self._answer_all()

    def _answer_all(self) -> None:
        for job in list(self._jobs.values()):
            if self._options.cancel_on_shutdown and job.request is not None:
                detail = "the gateway is shutting down; the prompt was cancelled"
                self._cancels.begin(job, "shutdown")
                job.cancel(ComfyUIShutdownError(detail, prompt_id=job.prompt_id))
            else:
                detail = "the gateway is shutting down; the prompt goes on in ComfyUI, attach to it with its prompt_id"
                job.fail(ComfyUIShutdownError(detail, prompt_id=job.prompt_id))

    def _refuse_when_draining(self) -> None:
        if self._draining:
            self.metrics.rejected.labels("draining").inc()
            raise ComfyUIShutdownError("the gateway is shutting down and takes no new prompts")

    # Waiting

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        self.refuse_when_full()
        self._waiting += 1
        self._idle.clear()
        self.metrics.waiting.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= 1
            self.metrics.waiting.set(self._waiting)
            if not self._waiting:
                self._idle.set()

    async def _wait(self, job: Job, timeout_s: float, listener: Listener | None, *, may_cancel: bool) -> PromptResult:
        job.join(listener)
        left: Reason = "disconnect"
        try:
            if not await job.wait(timeout_s):
                left = "timeout"
                detail = f"not finished within {timeout_s:g} s{_delayed_by(job.backend)}"
                raise ComfyUITimeoutError(detail, prompt_id=job.prompt_id)
            return job.result()
        finally:
            wanted = self._options.cancel_on_timeout if left == "timeout" else self._options.cancel_on_disconnect
            job.leave(listener, cancel=left if may_cancel and wanted else None)
            if not job.ended and not job.waiters:
                self._abandoned(job, left)

    def _abandoned(self, job: Job, reason: Reason) -> None:
        """The last request left before the end: it takes the prompt with it, where that is wanted."""
        if job.request is None:
            # Somebody else's prompt: it goes on, and nobody looks.
            job.fail(given_up(reason, job.prompt_id))
            del self._jobs[job.prompt_id]  # at once: who comes now must not join what is over
            job.stop()
        elif job.cancel_wanted is not None:
            job.cancel(given_up(job.cancel_wanted, job.prompt_id))
            self._cancels.begin(job, job.cancel_wanted)

    # Running

    def _start(
        self,
        prompt_id: str,
        request: PromptRequest | None = None,
        files: SpooledFiles | None = None,
        fingerprint: str | None = None,
    ) -> Job:
        cancelled_before = self._cancels.take_recent(prompt_id)
        job = self._jobs[prompt_id] = Job(prompt_id, request, files, fingerprint, cancelled_before=cancelled_before)
        job.begin(self._run(job))
        return job

    async def _run(self, job: Job) -> None:
        started = time.monotonic()
        outcome = ""
        timings: Mapping[str, Any] = {}
        try:
            async with asyncio.timeout(self._options.max_timeout_s):
                result = await self._runner.run(job)
            outcome = "success"
            self._finished.remember(job, result)
            job.finish(result)
            timings = result.timings.to_json()
        except TimeoutError:
            outcome = ComfyUITimeoutError.code
            detail = f"not finished within MAX_TIMEOUT{_delayed_by(job.backend)}"
            error = ComfyUITimeoutError(detail, prompt_id=job.prompt_id)
            if self._options.cancel_on_timeout and job.request is not None:
                job.cancel(error)
                self._cancels.begin(job, "timeout")
            else:
                job.fail(error)
        except ComfyUIError as error:
            outcome = error.code
            if isinstance(error, ComfyUITaskError):
                self._finished.remember(job, error)
            job.fail(error)
        except Exception:
            outcome = ComfyUIError.code
            self._log.exception("prompt.crashed", prompt_id=job.prompt_id)
            job.fail(ComfyUIError("the gateway failed; its log has the reason", prompt_id=job.prompt_id))
        finally:
            if self._jobs.get(job.prompt_id) is job:
                del self._jobs[job.prompt_id]
            job.let_go()
            outcome = outcome or job.failure_code  # cancelled: why, its waiters were told
            # Who waits goes on before that: to write a line takes as long as a request to ComfyUI.
            record = functools.partial(self._record, job, outcome, time.monotonic() - started, timings)
            after_turns(_TURNS_UNTIL_ANSWERED, record)

    def _record(self, job: Job, outcome: str, seconds: float, timings: Mapping[str, Any]) -> None:
        self._prompts(outcome).inc()
        for stage, stage_s in timings.items():
            self._stage_seconds(stage).observe(stage_s)
        self._log.info(
            "prompt.done",
            prompt_id=job.prompt_id,
            outcome=outcome,
            server=job.backend.name if job.backend else None,
            seconds=round(seconds, 3),
        )


def _delayed_by(backend: Backend | None) -> str:
    """What a prompt that timed out may have waited for: a prompt before it, or a server that is away."""
    if backend is None:
        return ""
    cause = str(backend.watcher.worker.silence or backend.reason)
    return f"; {cause}" if cause else ""
