"""`ComfyUIHandler`: run a workflow and return its result. Knows no transport: HTTP and the workers sit on top of it.

A prompt is run by one task, its `_Job`, however many requests wait for it. Requests come and go; the job goes on while
one waits, and what happens when the last one leaves is a setting.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from uuid import uuid4

import structlog

from comfyui.events import Event, Executing, ExecutionCached, ExecutionStart, ProgressState, QueuePosition
from comfyui.exceptions import (
    ComfyUIConflictError,
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ComfyUIShutdownError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUITimeoutError,
)
from comfyui.executors.comfyui import PromptRun, PromptRunner, RunnerOptions
from comfyui.executors.quarantine import Quarantine
from comfyui.inputs.content import SpooledFiles
from comfyui.inputs.staging import InputStager
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.metrics import Metrics
from comfyui.models import OutputFile, PromptRequest, PromptResult
from comfyui.offload import offloaded
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.pool import CHOICE_PATIENCE_S, BackendPool
from comfyui.transport.body import OpenBody
from comfyui.transport.drivers import RawReply
from comfyui.workflows.api_format import check_api_format

_log = structlog.get_logger(__name__)
_REMEMBERED_RESULTS = 1000
# At the end, for cancels that are under way: a ComfyUI that does not answer is no reason to stay.
_LAST_CANCELS_S = 5.0
# From the end of a prompt until each of its requests has sent its answer, or asked ComfyUI for a file.
_TURNS_UNTIL_ANSWERED = 2

# Events that say how it is, and not only what happened: who comes later is told the last of each.
_HOLDS_ON = frozenset({QueuePosition, ExecutionCached, Executing, ProgressState})

Reason = Literal["timeout", "disconnect", "request", "shutdown"]
Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class HandlerOptions:
    """How the handler behaves; the fields are the settings of the same names (docs/configuration.md)."""

    max_timeout_s: float = 3600.0
    max_concurrent_requests: int = 1000
    cancel_on_timeout: bool = True
    cancel_on_disconnect: bool = True
    cancel_on_shutdown: bool = False
    limits: Limits = DEFAULT_LIMITS
    runner: RunnerOptions = field(default_factory=RunnerOptions)


class _Job:
    """One prompt in flight, and who waits for it."""

    def __init__(
        self,
        prompt_id: str,
        request: PromptRequest | None,
        files: SpooledFiles | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.run = PromptRun(
            prompt_id,
            request,
            fingerprint,
            self._publish,
            followed=lambda: bool(self.listeners),
            workflow=request.prompt if request else None,
            files=files,
        )
        self.waiters = 0
        self.leave_to_cancel: Reason | None = None
        """A request that may cancel left while others still waited: the last of those takes the prompt with it."""
        self.listeners: set[Listener] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._latest: dict[type[Event], Event] = {}
        self.outcome: asyncio.Future[PromptResult] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    @property
    def prompt_id(self) -> str:
        return self.run.prompt_id

    def begin(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self._hold_files()

    def adopt(self, request: PromptRequest, files: SpooledFiles | None, fingerprint: str | None) -> None:
        """Of a prompt that was only looked on: from now on it is this request's, to be run where it is not known."""
        if self.run.request is None:
            self.run.request, self.run.fingerprint = request, fingerprint
            self.run.workflow = self.run.workflow or request.prompt
            self.run.files = files
            self._hold_files()

    def ended(self) -> None:
        """Nothing goes on any more: what refers to each other lets go, so that the garbage collector has no work."""
        self.task = None
        self.run.publish, self.run.followed, self.run.watch = _ignore, _nobody, None

    def _hold_files(self) -> None:
        """For as long as the task may need them."""
        if (files := self.run.files) is not None and self.task is not None:
            files.hold()
            self.task.add_done_callback(lambda _: files.release())

    def listen(self, listener: Listener) -> None:
        """Publish to it from now on, after what it missed that still holds."""
        if self.run.watch is not None:
            self.run.watch.catch_up()
        for event in self._latest.values():
            listener(event)
        self.listeners.add(listener)

    def _publish(self, event: Event) -> None:
        kind = type(event)
        if kind is ExecutionStart:
            self._latest.clear()
        elif kind in _HOLDS_ON:
            self._latest.pop(kind, None)
            self._latest[kind] = event
        for listener in tuple(self.listeners):
            try:
                listener(event)
            except Exception:
                # One reader's trouble with an event must not end the watcher that all prompts share.
                self.listeners.discard(listener)
                _log.exception("listener.failed", prompt_id=self.prompt_id)

    def finish(self, result: PromptResult) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)
            self._wake()

    def fail(self, error: ComfyUIError) -> None:
        if not self.outcome.done():
            error.prompt_id = error.prompt_id or self.prompt_id
            self.outcome.set_exception(error)
            self.outcome.exception()  # nobody may be waiting any more
            self._wake()

    @property
    def failure_code(self) -> str:
        """The type of the error that ended the job for its waiters."""
        error = self.outcome.exception() if self.outcome.done() and not self.outcome.cancelled() else None
        return error.code if isinstance(error, ComfyUIError) else ComfyUITaskCancelledError.code

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the outcome; whether there is one. `asyncio.wait` took three times as long, and two turns more."""
        if self.outcome.done():
            return True
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _set, woken)
        self._waiting.add(woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._waiting.discard(woken)
        return self.outcome.done()

    def _wake(self) -> None:
        for woken in self._waiting:
            _set(woken)


class ComfyUIHandler:
    """Open it with ``async with``. The pool and the stager belong to whoever made them."""

    def __init__(
        self,
        pool: BackendPool,
        stager: InputStager,
        options: HandlerOptions | None = None,
        *,
        metrics: Metrics | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.pool = pool
        self.metrics = metrics or Metrics()
        self._options = options or HandlerOptions()
        self._runner = PromptRunner(pool, stager, self._options.runner, self.metrics, quarantine or Quarantine(after=0))
        # Looking up a label takes longer than counting.
        self._prompts = functools.cache(self.metrics.prompts.labels)
        self._stage_seconds = functools.cache(self.metrics.stage_seconds.labels)
        self._log = structlog.get_logger(__name__)
        self._jobs: dict[str, _Job] = {}
        self._finished: OrderedDict[str, tuple[str | None, PromptResult | ComfyUITaskError]] = OrderedDict()
        self._background: set[asyncio.Task[ComfyUIError | None]] = set()
        self._cancelling: dict[str, asyncio.Task[ComfyUIError | None]] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._waiting = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.not_warm: str | None = None
        """Why it is not said to be ready though it takes prompts: `comfyui.warmup` writes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._draining = True
        self._answer_all()
        running = [job.task for job in self._jobs.values() if job.task]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._background:
            await asyncio.wait(self._background, timeout=_LAST_CANCELS_S)
        for cancel in self._background:
            cancel.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

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
                fingerprint = await offloaded(request.size, _fingerprint, request, files)
            timeout_s = await self._cancellation_ended(prompt_id, timeout_s)
            if fingerprint is not None and (earlier := self._earlier(prompt_id, fingerprint)) is not None:
                return earlier
            job = self._jobs.get(prompt_id) or self._start(_Job(prompt_id, request, files, fingerprint))
            job.adopt(request, files, fingerprint)
            return await self._wait(job, timeout_s, listener, may_cancel=True)

    async def attach(self, prompt_id: str, *, timeout_s: float, listener: Listener | None = None) -> PromptResult:
        """Wait for a prompt that is queued, running or finished, whoever queued it, before a restart too.

        It only looks on: when this call times out or is given up, the prompt goes on.

        Raises:
            ComfyUINotFoundError: neither we nor ComfyUI know it.
        """
        with self._admitted():
            timeout_s = await self._cancellation_ended(prompt_id, timeout_s)
            job = self._jobs.get(prompt_id)
            if job is None:
                if prompt_id in self._finished:
                    return self._recall(prompt_id)
                job = self._start(_Job(prompt_id, None))
            return await self._wait(job, timeout_s, listener, may_cancel=False)

    async def cancel(self, prompt_id: str) -> None:
        """Take the prompt out of ComfyUI, for all who wait for it.

        Raises:
            ComfyUINotFoundError: it is not in flight here, and in no queue of ComfyUI.
            ComfyUIError: ComfyUI could not be told, so that the prompt may go on there; it can be cancelled again.
        """
        job = self._jobs.get(prompt_id)
        if job is not None:
            job.fail(ComfyUITaskCancelledError("cancelled on request", prompt_id=prompt_id))
            failure = await asyncio.shield(self._begin_cancel(job, "request"))
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
        return job.run.workflow if job else None

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
        return self.not_warm if in_detail or self.not_warm is None else "not warm: WARMUP_WORKFLOW has not run through"

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

    async def health_check(self, *, in_detail: bool = True) -> list[dict[str, Any]]:
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
            detail = "the gateway is shutting down; the prompt goes on in ComfyUI, attach to it with its prompt_id"
            if self._options.cancel_on_shutdown and job.run.request is not None:
                detail = "the gateway is shutting down; the prompt was cancelled"
                self._begin_cancel(job, "shutdown")
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

    async def _wait(self, job: _Job, timeout_s: float, listener: Listener | None, *, may_cancel: bool) -> PromptResult:
        job.waiters += 1
        if listener is not None:
            job.listen(listener)
        left: Reason = "disconnect"
        try:
            if not await job.wait(timeout_s):
                left = "timeout"
                detail = f"not finished within {timeout_s:g} s{_delayed_by(job.run.backend)}"
                raise ComfyUITimeoutError(detail, prompt_id=job.prompt_id)
            return job.outcome.result()
        finally:
            job.waiters -= 1
            if listener is not None:
                job.listeners.discard(listener)
            if not job.outcome.done():
                self._left(job, left, may_cancel=may_cancel)

    def _left(self, job: _Job, reason: Reason, *, may_cancel: bool) -> None:
        """A request left before the end: the last one takes the prompt with it, where that is wanted."""
        wanted = {"timeout": self._options.cancel_on_timeout, "disconnect": self._options.cancel_on_disconnect}
        if may_cancel and wanted[reason]:
            job.leave_to_cancel = reason
        if job.waiters:
            return
        if job.run.request is None:
            # Somebody else's prompt: it goes on, and nobody looks.
            job.fail(_given_up(reason, job.prompt_id))
            del self._jobs[job.prompt_id]  # at once: who comes now must not join what is over
            if job.task:
                job.task.cancel()
        elif job.leave_to_cancel is not None:
            job.fail(_given_up(job.leave_to_cancel, job.prompt_id))
            self._begin_cancel(job, job.leave_to_cancel)

    def _begin_cancel(self, job: _Job, reason: Reason) -> asyncio.Task[ComfyUIError | None]:
        under_way = self._cancelling.get(job.prompt_id)
        if under_way is not None:
            return under_way
        self._cancelled[job.prompt_id] = None
        while len(self._cancelled) > _REMEMBERED_RESULTS:
            self._cancelled.popitem(last=False)
        task = self._in_background(self._cancel_upstream(job, reason))
        self._cancelling[job.prompt_id] = task
        task.add_done_callback(lambda _: self._cancelling.pop(job.prompt_id, None))
        return task

    async def _cancellation_ended(self, prompt_id: str, timeout_s: float) -> float:
        """The same id again, while its cancel is under way, is a new prompt: that cancel must not hit it.

        Returns what is left of `timeout_s`.
        """
        began = time.monotonic()
        left_s = timeout_s
        while (task := self._cancelling.get(prompt_id)) is not None:
            await asyncio.wait([task], timeout=left_s)
            left_s = timeout_s - (time.monotonic() - began)
            if left_s <= 0:
                detail = f"within {timeout_s:g} s the cancel of the same id before did not end"
                raise ComfyUITimeoutError(detail, prompt_id=prompt_id)
        return left_s

    async def _cancel_upstream(self, job: _Job, reason: Reason) -> ComfyUIError | None:
        """End the job here, then in ComfyUI, where it may have arrived even if no reply to its submission came.

        Returns why ComfyUI could not be told.
        """
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait([job.task])
        backend = job.run.backend
        try:
            if backend is None and (job.run.request is None or job.run.fingerprint is not None):
                # It was still being looked for, and ComfyUI may have it from before.
                backend, _ = await self._runner.find(job.prompt_id)
            if backend is None:
                return None
            await backend.cancel(job.prompt_id)
            self.metrics.cancelled.labels(reason).inc()
            self._log.info("prompt.cancelled", prompt_id=job.prompt_id, reason=reason, server=backend.name)
        except ComfyUIError as error:
            self._log.warning("prompt.cancel_failed", prompt_id=job.prompt_id, reason=reason, detail=error.detail)
            error.prompt_id = job.prompt_id
            return error
        return None

    # Running

    def _start(self, job: _Job) -> _Job:
        self._jobs[job.prompt_id] = job
        job.run.cancelled_before = self._cancelled.pop(job.prompt_id, job) is None
        job.begin(asyncio.create_task(self._run(job), name=f"prompt {job.prompt_id}"))
        return job

    async def _run(self, job: _Job) -> None:
        started = time.monotonic()
        outcome = ""
        timings: Mapping[str, float] = {}
        try:
            async with asyncio.timeout(self._options.max_timeout_s):
                result = await self._runner.run(job.run)
            outcome = "success"
            self._remember(job, result)
            job.finish(result)
            timings = result.timings.to_json()
        except TimeoutError:
            outcome = ComfyUITimeoutError.code
            detail = f"not finished within MAX_TIMEOUT{_delayed_by(job.run.backend)}"
            job.fail(ComfyUITimeoutError(detail, prompt_id=job.prompt_id))
            if self._options.cancel_on_timeout and job.run.request is not None:
                self._begin_cancel(job, "timeout")
        except ComfyUIError as error:
            outcome = error.code
            if isinstance(error, ComfyUITaskError):
                self._remember(job, error)
            job.fail(error)
        except Exception:
            outcome = ComfyUIError.code
            self._log.exception("prompt.crashed", prompt_id=job.prompt_id)
            job.fail(ComfyUIError("the gateway failed; its log has the reason", prompt_id=job.prompt_id))
        finally:
            if self._jobs.get(job.prompt_id) is job:
                del self._jobs[job.prompt_id]
            job.ended()
            outcome = outcome or job.failure_code  # cancelled: why, its waiters were told
            # Who waits goes on before that: to write a line takes as long as a request to ComfyUI.
            record = functools.partial(self._record, job, outcome, time.monotonic() - started, timings)
            _after_turns(_TURNS_UNTIL_ANSWERED, record)

    def _record(self, job: _Job, outcome: str, seconds: float, timings: Mapping[str, float]) -> None:
        self._prompts(outcome).inc()
        for stage, stage_s in timings.items():
            self._stage_seconds(stage).observe(stage_s)
        self._log.info(
            "prompt.done",
            prompt_id=job.prompt_id,
            outcome=outcome,
            server=job.run.backend.name if job.run.backend else None,
            seconds=round(seconds, 3),
        )

    # Idempotency

    def _earlier(self, prompt_id: str, fingerprint: str) -> PromptResult | None:
        """The result of an earlier request with this id, None when there is none; a job in flight is compared only."""
        if (job := self._jobs.get(prompt_id)) is not None:
            known = job.run.fingerprint
        elif prompt_id in self._finished:
            known = self._finished[prompt_id][0]
        else:
            return None
        if known is not None and known != fingerprint:
            raise ComfyUIConflictError("this prompt_id was used with another body", prompt_id=prompt_id)
        return None if job is not None else self._recall(prompt_id)

    def _remember(self, job: _Job, outcome: PromptResult | ComfyUITaskError) -> None:
        self._finished[job.prompt_id] = (job.run.fingerprint, outcome)
        while len(self._finished) > _REMEMBERED_RESULTS:
            self._finished.popitem(last=False)

    def _recall(self, prompt_id: str) -> PromptResult:
        outcome = self._finished[prompt_id][1]
        if isinstance(outcome, ComfyUITaskError):
            raise outcome.with_traceback(None)
        return outcome

    def _in_background(self, work: Coroutine[Any, Any, ComfyUIError | None]) -> asyncio.Task[ComfyUIError | None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _delayed_by(backend: Backend | None) -> str:
    """What a prompt that timed out may have waited for: a prompt before it, or a server that is away."""
    if backend is None:
        return ""
    cause = str(backend.watcher.worker.silence or backend.reason)
    return f"; {cause}" if cause else ""


def _given_up(reason: Reason, prompt_id: str) -> ComfyUIError:
    """What a job fails with when its last request has left; it is counted as that."""
    if reason == "timeout":
        return ComfyUITimeoutError("cancelled on timeout", prompt_id=prompt_id)
    return ComfyUITaskCancelledError(f"cancelled on {reason}", prompt_id=prompt_id)


def _ignore(_event: Event) -> None:
    """What is published of a prompt that has ended."""


def _nobody() -> bool:
    return False


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _after_turns(turns: int, call: Callable[[], None]) -> None:
    """After so many turns of the event loop."""
    asyncio.get_running_loop().call_soon(*((_after_turns, turns - 1, call) if turns else (call,)))


def _fingerprint(request: PromptRequest, files: SpooledFiles | None) -> str:
    """Of all that decides the result."""
    if files is None:
        return request.fingerprint()
    named = "".join(f"\n{name}\0{digest}" for name, digest in sorted(files.digests.items()))
    return hashlib.sha256((request.fingerprint() + named).encode()).hexdigest()
