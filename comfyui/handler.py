"""`ComfyUIHandler`: run a workflow and return its result. Knows no transport: HTTP and the workers sit on top of it.

A prompt is run by one task, its `_Job`, however many requests wait for it. Requests come and go; the job goes on while
one waits, and what happens when the last one leaves is a setting.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self
from uuid import uuid4

import structlog

from comfyui.backends import Backend, BackendPool
from comfyui.client import JSON, QueueItem, RawReply, View, backoff_s, flat_node_errors
from comfyui.events import Event
from comfyui.exceptions import (
    ComfyUIConflictError,
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ComfyUIPromptLostError,
    ComfyUIServerError,
    ComfyUIShutdownError,
    ComfyUISubmissionError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUITimeoutError,
)
from comfyui.inputs import InputStager
from comfyui.metrics import Metrics
from comfyui.models import OutputFile, PromptRequest, PromptResult, Timings
from comfyui.outputs import executing_s, files_of, raise_if_failed
from comfyui.workflow import check_api_format, upload_inputs

_REMEMBERED_RESULTS = 1000
_LOOK_AGAIN_S = 0.5
_VANISHED_AFTER_S = 15.0
_CHOICE_PATIENCE_S = 2.0
# Our own entry in extra_data: what tells, after a restart of the gateway, whether a key was used with another body.
_MARK = "comfyui_gateway"

Reason = Literal["timeout", "disconnect", "request", "shutdown"]
Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class HandlerOptions:
    """How the handler behaves; the fields are the settings of the same names (docs/configuration.md)."""

    max_timeout_s: float = 3600.0
    max_concurrent_requests: int = 1000
    submission_retries: int = 3
    lost_prompt_retries: int = 1
    cancel_on_timeout: bool = True
    cancel_on_disconnect: bool = True
    cancel_on_shutdown: bool = False


class _Job:
    """One prompt in flight, and who waits for it."""

    def __init__(self, prompt_id: str, request: PromptRequest | None, *, known_id: bool) -> None:
        self.prompt_id = prompt_id
        self.request = request
        self.known_id = known_id
        """The caller chose the id (or a key for it), so ComfyUI may know the prompt from before."""
        self.fingerprint = request.fingerprint() if request and known_id else None
        self.waiters = 0
        self.backend: Backend | None = None
        self.listeners: set[Listener] = set()
        self.outcome: asyncio.Future[PromptResult] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    @property
    def ours(self) -> bool:
        """Started by a request of ours, not merely attached to: ours to cancel."""
        return self.request is not None

    def publish(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def finish(self, result: PromptResult) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)

    def fail(self, error: ComfyUIError) -> None:
        if not self.outcome.done():
            error.prompt_id = error.prompt_id or self.prompt_id
            self.outcome.set_exception(error)
            self.outcome.exception()  # nobody may be waiting any more


class ComfyUIHandler:
    """Open it with ``async with``. The pool and the stager belong to whoever made them."""

    def __init__(
        self,
        pool: BackendPool,
        stager: InputStager,
        options: HandlerOptions | None = None,
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self.pool = pool
        self.metrics = metrics or Metrics()
        self._stager = stager
        self._options = options or HandlerOptions()
        self._log = structlog.get_logger(__name__)
        self._jobs: dict[str, _Job] = {}
        self._finished: OrderedDict[str, tuple[str | None, PromptResult | ComfyUITaskError]] = OrderedDict()
        self._background: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._draining = True
        self._stop_all()
        tasks = [job.task for job in self._jobs.values() if job.task] + list(self._background)
        for job in self._jobs.values():
            if job.task:
                job.task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What callers do

    async def submit_prompt_sync(
        self,
        request: PromptRequest,
        *,
        timeout_s: float,
        fresh_id: str | None = None,
        listener: Listener | None = None,
    ) -> PromptResult:
        """Run the workflow and wait for it; the same ``prompt_id`` again joins it, or returns what it gave.

        Args:
            fresh_id: a new UUID to use when the request has no ``prompt_id``; one is made when not given.
            listener: gets the prompt's events while this call waits.

        Raises:
            ComfyUIError: any of the tree, with the ``prompt_id`` where there is one.
        """
        with self._admitted():
            check_api_format(request.prompt)
            prompt_id = str(request.prompt_id or fresh_id or uuid4())
            known_id = request.prompt_id is not None
            if known_id and (earlier := self._earlier(prompt_id, request)) is not None:
                return earlier
            job = self._jobs.get(prompt_id) or self._start(_Job(prompt_id, request, known_id=known_id))
            return await self._wait(job, timeout_s, listener)

    async def attach(self, prompt_id: str, *, timeout_s: float, listener: Listener | None = None) -> PromptResult:
        """Wait for a prompt that is queued, running or finished, whoever queued it, before a restart too.

        Raises:
            ComfyUINotFoundError: neither we nor ComfyUI know it.
        """
        with self._admitted():
            job = self._jobs.get(prompt_id)
            if job is None:
                if prompt_id in self._finished:
                    return self._recall(prompt_id)
                job = self._start(_Job(prompt_id, None, known_id=True))
            return await self._wait(job, timeout_s, listener)

    async def cancel(self, prompt_id: str) -> None:
        """Take the prompt out of ComfyUI, for all who wait for it.

        Raises:
            ComfyUINotFoundError: it is not in flight here, and in no queue of ComfyUI.
        """
        job = self._jobs.get(prompt_id)
        if job is not None:
            job.fail(ComfyUITaskCancelledError("cancelled on request", prompt_id=prompt_id))
            await self._cancel_upstream(job, "request")
            return
        backend, found = await self._find(prompt_id)
        if backend is None or not isinstance(found, QueueItem):
            state = "is finished already" if found else "is not known"
            raise ComfyUINotFoundError(f"the prompt {state}: there is nothing to cancel", prompt_id=prompt_id)
        await backend.cancel(prompt_id)
        self.metrics.cancelled.labels("request").inc()

    async def queue_prompt_compatible(self, body: bytes, headers: Mapping[str, str]) -> RawReply:
        """ComfyUI's own ``POST /prompt``: the body goes as it came, the reply comes back as it came."""
        self._refuse_when_draining()
        backend = await self.pool.choose(patience_s=_CHOICE_PATIENCE_S)
        try:
            return await backend.client.forward_prompt(body, headers)
        except ComfyUIConnectionError as error:
            backend.failed(error)
            raise

    @asynccontextmanager
    async def open_file(self, result: PromptResult, file: OutputFile) -> AsyncIterator[View]:
        """One file of a result, streamed from the server that made it."""
        backend = self.pool.named(result.server)
        if backend is None:
            raise ComfyUINotFoundError(f"the server that has {file.filename!r} is not configured any more")
        async with backend.client.view(file.filename, file.subfolder, file.type) as view:
            yield view

    # State that probes ask for

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return self._waiting

    @property
    def draining(self) -> bool:
        return self._draining

    def why_not_ready(self) -> str | None:
        """Why a prompt would not be accepted now; None when it would."""
        if self._draining:
            return "shutting down"
        if self._waiting >= self._options.max_concurrent_requests:
            return f"at the limit of {self._options.max_concurrent_requests} waiting requests"
        return None if self.pool.ready else self.pool.why_not_ready()

    async def health_check(self) -> list[dict[str, Any]]:
        """Per-server state; those without a working websocket are asked anew."""
        for backend in self.pool.backends:
            if not backend.watcher.connected:
                backend.look_again()
        return self.pool.report()

    # Shutdown

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, wait for what is in flight, then answer the rest with 503 and their prompt_id."""
        self._draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self._stop_all()

    def _stop_all(self) -> None:
        for job in list(self._jobs.values()):
            detail = "the gateway is shutting down; the prompt goes on in ComfyUI, attach to it with its prompt_id"
            if self._options.cancel_on_shutdown:
                detail = "the gateway is shutting down; the prompt was cancelled"
                self._in_background(self._cancel_upstream(job, "shutdown"))
            job.fail(ComfyUIShutdownError(detail, prompt_id=job.prompt_id))

    # Waiting

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        self._refuse_when_draining()
        limit = self._options.max_concurrent_requests
        if self._waiting >= limit:
            self.metrics.rejected.labels("overloaded").inc()
            raise ComfyUIOverloadedError(f"{limit} requests are waiting already; try again later")
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

    def _refuse_when_draining(self) -> None:
        if self._draining:
            self.metrics.rejected.labels("draining").inc()
            raise ComfyUIShutdownError("the gateway is shutting down and takes no new prompts")

    async def _wait(self, job: _Job, timeout_s: float, listener: Listener | None) -> PromptResult:
        job.waiters += 1
        if listener is not None:
            job.listeners.add(listener)
        reason: Reason = "disconnect"
        try:
            done, _ = await asyncio.wait([job.outcome], timeout=timeout_s)
            if not done:
                reason = "timeout"
                raise ComfyUITimeoutError(f"not finished within {timeout_s:g} s", prompt_id=job.prompt_id)
            return job.outcome.result()
        finally:
            job.waiters -= 1
            if listener is not None:
                job.listeners.discard(listener)
            if not job.waiters and not job.outcome.done():
                self._abandoned(job, reason)

    def _abandoned(self, job: _Job, reason: Reason) -> None:
        """The last request left before the end."""
        wanted = {"timeout": self._options.cancel_on_timeout, "disconnect": self._options.cancel_on_disconnect}
        if not job.ours:
            job.fail(ComfyUIError("nobody waits any more"))
            if job.task:
                job.task.cancel()
        elif wanted[reason]:
            job.fail(ComfyUITaskCancelledError(f"cancelled on {reason}", prompt_id=job.prompt_id))
            self._in_background(self._cancel_upstream(job, reason))

    async def _cancel_upstream(self, job: _Job, reason: Reason) -> None:
        """End the job here, then in ComfyUI, where it may have arrived even if no reply to its submission came."""
        backend = job.backend
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait([job.task])
        if backend is None:
            return
        try:
            await backend.cancel(job.prompt_id)
            self.metrics.cancelled.labels(reason).inc()
            self._log.info("prompt.cancelled", prompt_id=job.prompt_id, reason=reason, server=backend.name)
        except ComfyUIError as error:
            self._log.warning("prompt.cancel_failed", prompt_id=job.prompt_id, reason=reason, detail=error.detail)

    # Running

    def _start(self, job: _Job) -> _Job:
        self._jobs[job.prompt_id] = job
        job.task = asyncio.create_task(self._run(job), name=f"prompt {job.prompt_id}")
        return job

    async def _run(self, job: _Job) -> None:
        started = time.monotonic()
        outcome = "cancelled"
        try:
            async with asyncio.timeout(self._options.max_timeout_s):
                result = await (self._execute(job) if job.request else self._resume(job))
            self._remember(job, result)
            job.finish(result)
            outcome = "success"
            for stage, seconds in result.timings.to_json().items():
                self.metrics.stage_seconds.labels(stage).observe(seconds)
        except TimeoutError:
            outcome = ComfyUITimeoutError.code
            job.fail(ComfyUITimeoutError("not finished within MAX_TIMEOUT", prompt_id=job.prompt_id))
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
            self.metrics.prompts.labels(outcome).inc()
            server = job.backend.name if job.backend else None
            self._log.info(
                "prompt.done",
                prompt_id=job.prompt_id,
                outcome=outcome,
                server=server,
                seconds=round(time.monotonic() - started, 3),
            )

    async def _execute(self, job: _Job) -> PromptResult:
        if job.known_id:
            backend, found = await self._find(job.prompt_id)
            if backend is not None and found is not None:
                self._check_same(job, found)
                if not _was_cancelled(found):
                    return await self._resume(job, backend, found)
        lost = 0
        avoid: list[Backend] = []
        while True:
            backend = await self.pool.choose(patience_s=_CHOICE_PATIENCE_S, avoid=avoid)
            try:
                return await self._execute_on(backend, job)
            except ComfyUIPromptLostError:
                lost += 1
                if lost > self._options.lost_prompt_retries:
                    raise
                self.metrics.resubmissions.labels("prompt_lost").inc()
                self._log.warning("prompt.submitted_again", prompt_id=job.prompt_id, reason="lost", server=backend.name)
            except ComfyUIConnectionError as error:
                backend.failed(error)
                if error.sent or backend in avoid:
                    raise
            avoid.append(backend)

    async def _execute_on(self, backend: Backend, job: _Job) -> PromptResult:
        """One try on one server."""
        request = job.request
        assert request is not None  # noqa: S101 - `_run` calls this for requests only
        job.backend = backend
        backend.in_flight += 1
        self.metrics.in_flight.labels(backend.name).inc()
        watch = backend.watcher.watch(job.prompt_id, client_id=request.client_id, listener=job.publish)
        try:
            started = time.monotonic()
            prompt = await self._stage(backend, request)
            staged = time.monotonic()
            number, node_errors = await self._submit(backend, job, self._body(job, prompt, watch.client_id))
            backend.watcher.accepted(watch, number)
            entry = await watch.finished()
            waited_s = time.monotonic() - staged
        finally:
            backend.watcher.unwatch(watch)
            backend.in_flight -= 1
            self.metrics.in_flight.labels(backend.name).dec()
        return _result(backend, job.prompt_id, entry, staged - started, waited_s, node_errors)

    async def _stage(self, backend: Backend, request: PromptRequest) -> Mapping[str, Any]:
        inline: Sequence[tuple[str, str]] = ()
        if _has_inline_inputs(request.prompt):
            inline = upload_inputs(request.prompt, await backend.object_info())
        if not inline and not request.images:
            return request.prompt
        return await self._stager.stage(backend.client, request, inline)

    def _body(self, job: _Job, prompt: Mapping[str, Any], client_id: str) -> JSON:
        request = job.request
        assert request is not None  # noqa: S101 - as above
        extra_data = dict(request.extra_data or {})
        if job.fingerprint:
            extra_data[_MARK] = {"fingerprint": job.fingerprint}
        body: JSON = {"prompt": prompt, "prompt_id": job.prompt_id, "client_id": client_id}
        if extra_data:
            body["extra_data"] = extra_data
        if request.front:
            body["front"] = True
        if request.number is not None:
            body["number"] = request.number
        if request.partial_execution_targets is not None:
            body["partial_execution_targets"] = request.partial_execution_targets
        return body

    async def _submit(self, backend: Backend, job: _Job, body: JSON) -> tuple[float, Mapping[str, tuple[str, ...]]]:
        """Submit exactly once: after a lost reply, look for the prompt before it is sent again."""
        for attempt in range(self._options.submission_retries + 1):
            try:
                queued = await backend.client.queue_prompt(body)
            except ComfyUIConnectionError as error:
                if not error.sent:
                    raise
                reason: ComfyUIError = error
            except ComfyUIServerError as error:
                reason = error
            else:
                return queued.number, flat_node_errors(queued.node_errors)
            self._log.warning("submission.reply_lost", prompt_id=job.prompt_id, detail=reason.detail, tries=attempt + 1)
            found = await self._find_on(backend, job.prompt_id)
            if isinstance(found, QueueItem):
                return found.number, {}
            if found is not None:
                return float(found["prompt"][0]), {}
            self.metrics.resubmissions.labels("reply_lost").inc()
        raise ComfyUISubmissionError(
            f"ComfyUI's reply to the submission was lost {self._options.submission_retries + 1} times: {reason.detail}",
            prompt_id=job.prompt_id,
        )

    async def _find_on(self, backend: Backend, prompt_id: str) -> JSON | QueueItem | None:
        """Look twice, a moment apart: a submission whose reply was lost may still be on its way through ComfyUI.

        Raises:
            ComfyUIPromptLostError: the server does not answer any more, so nobody can tell.
        """
        deadline = time.monotonic() + _VANISHED_AFTER_S
        looks = failures = 0
        while looks < 2:
            try:
                found = await backend.find(prompt_id)
            except ComfyUIError as error:
                failures += 1
                if time.monotonic() > deadline:
                    raise ComfyUIPromptLostError(
                        f"ComfyUI stopped answering during the submission: {error.detail}", prompt_id=prompt_id
                    ) from error
                await asyncio.sleep(backoff_s(failures, start_s=0.2, max_s=2.0))
                continue
            if found is not None:
                return found
            looks += 1
            await asyncio.sleep(_LOOK_AGAIN_S if looks < 2 else 0)
        return None

    async def _find(self, prompt_id: str) -> tuple[Backend | None, JSON | QueueItem | None]:
        """On which server the prompt is known, and as what. Raises only when no server could be asked."""
        failure: ComfyUIError | None = None
        for backend in self.pool.backends:
            try:
                found = await backend.find(prompt_id)
            except ComfyUIError as error:
                failure = error
                continue
            if found is not None:
                return backend, found
        if failure is not None and not self.pool.ready:
            raise failure
        return None, None

    async def _resume(
        self, job: _Job, backend: Backend | None = None, found: JSON | QueueItem | None = None
    ) -> PromptResult:
        """Wait for a prompt that ComfyUI has already, in its queue or its history."""
        if backend is None:
            backend, found = await self._find(job.prompt_id)
        if backend is None or found is None:
            raise ComfyUINotFoundError("neither the gateway nor ComfyUI knows this prompt", prompt_id=job.prompt_id)
        job.backend = backend
        if not isinstance(found, QueueItem):
            return _result(backend, job.prompt_id, found)
        started = time.monotonic()
        # Its events go to whoever submitted it: a client id that is not ours makes the watcher look for itself.
        watch = backend.watcher.watch(job.prompt_id, client_id="another's", listener=job.publish)
        try:
            backend.watcher.accepted(watch, found.number)
            entry = await watch.finished()
        finally:
            backend.watcher.unwatch(watch)
        return _result(backend, job.prompt_id, entry, waited_s=time.monotonic() - started)

    # Idempotency

    def _earlier(self, prompt_id: str, request: PromptRequest) -> PromptResult | None:
        """The result of an earlier request with this id, None when there is none; a job in flight is compared only."""
        if (job := self._jobs.get(prompt_id)) is not None:
            known = job.fingerprint
        elif prompt_id in self._finished:
            known = self._finished[prompt_id][0]
        else:
            return None
        if known is not None and known != request.fingerprint():
            raise ComfyUIConflictError("this prompt_id was used with another body", prompt_id=prompt_id)
        return None if job is not None else self._recall(prompt_id)

    def _check_same(self, job: _Job, found: JSON | QueueItem) -> None:
        extra_data = found.extra_data if isinstance(found, QueueItem) else (found.get("prompt") or [None] * 4)[3]
        mark = extra_data.get(_MARK) if isinstance(extra_data, Mapping) else None
        if isinstance(mark, Mapping) and mark.get("fingerprint") != job.fingerprint:
            raise ComfyUIConflictError("this prompt_id was used with another body", prompt_id=job.prompt_id)

    def _remember(self, job: _Job, outcome: PromptResult | ComfyUITaskError) -> None:
        self._finished[job.prompt_id] = (job.fingerprint, outcome)
        while len(self._finished) > _REMEMBERED_RESULTS:
            self._finished.popitem(last=False)

    def _recall(self, prompt_id: str) -> PromptResult:
        outcome = self._finished[prompt_id][1]
        if isinstance(outcome, ComfyUITaskError):
            raise outcome.with_traceback(None)
        return outcome

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _result(
    backend: Backend,
    prompt_id: str,
    entry: JSON,
    staging_s: float = 0.0,
    waited_s: float = 0.0,
    node_errors: Mapping[str, tuple[str, ...]] | None = None,
) -> PromptResult:
    """A history entry as a result; raises what the entry says went wrong."""
    raise_if_failed(entry, prompt_id)
    executing = executing_s(entry)
    outputs = entry.get("outputs") or {}
    return PromptResult(
        prompt_id,
        backend.name,
        outputs,
        files_of(outputs),
        Timings(staging_s, queued_s=max(0.0, waited_s - executing), executing_s=executing),
        node_errors or {},
    )


def _was_cancelled(found: JSON | QueueItem) -> bool:
    """Interrupted in an earlier try: the caller asks for it again, so it runs again."""
    if isinstance(found, QueueItem):
        return False
    try:
        raise_if_failed(found, "")
    except ComfyUITaskCancelledError:
        return True
    except ComfyUITaskError:
        return False
    return False


def _has_inline_inputs(prompt: Mapping[str, Any]) -> bool:
    """Whether any input could be a data URI or URL: only then are the node definitions needed."""
    return any(
        isinstance(value, str) and value.startswith(("data:", "http://", "https://"))
        for node in prompt.values()
        for value in node.get("inputs", {}).values()
    )
