"""`PromptRunner`: one prompt from submission to result, on whichever server, through whatever goes wrong on the way.

What is tried again, and why that is safe:

- a lost reply to the submission: only after looking for the prompt in ComfyUI, so that it never runs twice for it;
- a prompt that ComfyUI forgot, or whose server is gone: `lost_prompt_retries` times in all, however it was lost, on
  another server if there is one; but not one that ended ComfyUI's process too often (`comfyui.executors.quarantine`);
- out of memory: `oom_retries` times, once ComfyUI has dropped its models;
- a cached result whose file is gone, or that is empty: once, with ComfyUI's cache defeated.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from comfyui.events import Event
from comfyui.exceptions import (
    ComfyUIConflictError,
    ComfyUIConnectionError,
    ComfyUICredentialsError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIPromptLostError,
    ComfyUIServerError,
    ComfyUISubmissionError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUIValidationError,
)
from comfyui.executors.checking import explained, problems_on
from comfyui.executors.quarantine import Quarantine
from comfyui.inputs.content import SpooledFiles
from comfyui.inputs.staging import InputStager, is_inline
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.metrics import Metrics
from comfyui.models import OutputFile, PromptRequest, PromptResult, Timings
from comfyui.offload import offloaded
from comfyui.outputs.history import cached_nodes, executing_s, files_of, raise_if_failed
from comfyui.replies import JSON, HistoryEntry, QueueItem, flat_node_errors
from comfyui.retrying import Backoff
from comfyui.servers.backend import Backend
from comfyui.servers.pool import CHOICE_PATIENCE_S, BackendPool
from comfyui.servers.watcher import Watch
from comfyui.workflows.api_format import defeat_cache, upload_inputs
from comfyui.workflows.preflight import refusal

_LOOK_AGAIN_S = 0.5
_VANISHED_AFTER_S = 15.0
_BACKOFF = Backoff(start_s=0.4, max_s=2.0)
# ComfyUI's prompt worker reads that it is to free memory when it has nothing to run: a prompt that is queued right
# behind that request runs first, and out of memory again.
_FREED_AFTER_S = 0.25
# A caller whose prompt was taken once may wait for ComfyUI's restart; its own timeout ends that earlier.
_RESTART_PATIENCE_S = 600.0
# For a server that does not answer anyway to say that it has a prompt from before.
_ABSENT_PATIENCE_S = 2.0
_REMEMBERED_LOSSES = 1000
# Our own entry in extra_data: what tells, after a restart of the gateway, whether an id was used with another body.
_MARK = "comfyui_gateway"
# After these the process's GPU context is gone: no later prompt survives (docs/comfyui.md, trap 13).
_FATAL_GPU_ERRORS = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction was encountered",
    "CUDA error: an uncorrectable",
)

Publish = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How often each kind of trouble is met with another try.

    Attributes:
        remember_losses: the same prompt id again has only what is left of `lost_prompt_retries`. For job platforms,
            which deliver a job again by themselves; a client that asks again means it.
    """

    submission_retries: int = 3
    lost_prompt_retries: int = 1
    remember_losses: bool = False
    oom_retries: int = 0
    preflight: bool = False
    """Check a workflow against the node definitions before it is submitted, and not only when ComfyUI refused it."""
    limits: Limits = DEFAULT_LIMITS
    remote: bool = False
    """The server only stands for those that run the prompts: it says nothing of their nodes, nor a GPU fault of it."""


@dataclass(slots=True)
class PromptRun:
    """One prompt on its way.

    Attributes:
        request: None when the prompt is somebody else's, and only its end is waited for.
        fingerprint: of the request, where the caller chose the id; then ComfyUI may know the prompt from before.
            Without a request, of the one that ComfyUI was sent.
        cancelled_before: we cancelled it a moment ago, and ComfyUI may not have ended it yet.
        followed: whether somebody listens to what is published.
        backend: the server that has it, as soon as that is decided.
        workflow: in API format, as soon as it is known.
        files: further inputs, which somebody else holds.
        watch: while it is waited for on a server.
    """

    prompt_id: str
    request: PromptRequest | None
    fingerprint: str | None
    publish: Publish
    followed: Callable[[], bool] = lambda: False
    backend: Backend | None = None
    workflow: Mapping[str, Any] | None = None
    files: SpooledFiles | None = None
    cancelled_before: bool = False
    watch: Watch | None = None
    losses: int = 0
    """How often ComfyUI lost it, over all ways in which it can be lost."""

    @property
    def file_names(self) -> Collection[str]:
        return self.files.paths if self.files else ()


class PromptRunner:
    """The pool, the stager and the quarantine belong to whoever made them."""

    def __init__(
        self, pool: BackendPool, stager: InputStager, options: RunnerOptions, metrics: Metrics, quarantine: Quarantine
    ) -> None:
        self._quarantine = quarantine
        self._losses: OrderedDict[str, int] = OrderedDict()
        self._pool = pool
        self._stager = stager
        self._options = options
        self._metrics = metrics
        self._log = structlog.get_logger(__name__)

    async def run(self, run: PromptRun) -> PromptResult:
        """From the request, or from what ComfyUI has of the prompt already, to the result.

        Raises:
            ComfyUINotFoundError: there is no request, and ComfyUI does not know the prompt.
            ComfyUIConflictError: ComfyUI knows it from another request.
            ComfyUIError: whatever else went wrong in the end.
        """
        if run.request is None or run.fingerprint is not None:
            backend, found = await self.find(run.prompt_id, everywhere=run.request is None)
            if backend is not None and found is not None:
                _check_same(run, found)
                if run.request is None or not _was_cancelled(found):
                    try:
                        return await self._resume(run, backend, found)
                    except ComfyUITaskCancelledError:
                        if not run.cancelled_before:
                            raise
                    except ComfyUIPromptLostError as error:
                        if run.request is None:
                            raise
                        self._lost(backend, run, error)
                        self._metrics.resubmissions.labels("prompt_lost").inc()
                # How it ended before would be taken for the end of the new run.
                await backend.client.delete_from_history(run.prompt_id)
        # Looked at only now: a caller may have brought it while ComfyUI was asked.
        if run.request is None:
            raise ComfyUINotFoundError("neither the gateway nor ComfyUI knows this prompt", prompt_id=run.prompt_id)
        return await self._run_request(run, run.request)

    async def find(
        self, prompt_id: str, *, everywhere: bool = False
    ) -> tuple[Backend | None, HistoryEntry | QueueItem | None]:
        """On which server the prompt is known, and as what.

        Raises when no server could be asked; when it has to be looked for `everywhere`, also when one could not. Else
        those that are out of rotation get a moment only, once the others have answered.
        """
        failure: ComfyUIError | None = None
        asking = {asyncio.create_task(backend.find(prompt_id)): backend for backend in self._pool.backends}
        pending = set(asking)
        try:
            while pending:
                absent = not everywhere and bool(self._pool.ready) and not any(asking[task].ready for task in pending)
                done, pending = await asyncio.wait(
                    pending, timeout=_ABSENT_PATIENCE_S if absent else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    try:
                        found = task.result()
                    except ComfyUIError as error:
                        failure = error
                    else:
                        if found is not None:
                            return asking[task], found
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if failure is not None and (everywhere or not self._pool.ready):
            raise failure
        return None, None

    # One try after the other

    async def _run_request(self, run: PromptRun, request: PromptRequest) -> PromptResult:
        left = {"out_of_memory": self._options.oom_retries}
        self._check_losses(run)
        prompt: Mapping[str, Any] = request.prompt
        defeated = False
        avoid: list[Backend] = []
        patience_s = CHOICE_PATIENCE_S
        brings_inputs = bool(request.images or run.files)
        if not brings_inputs:
            brings_inputs = await offloaded(request.size, _has_inline_inputs, prompt)
        while True:
            self._quarantine.check(request.prompt, run.prompt_id)
            # Where the inputs come with the request, no server has them yet.
            needs = None if brings_inputs else prompt
            backend = await self._pool.choose(patience_s=patience_s, avoid=avoid, prompt=needs)
            backend.takes(run.prompt_id)
            for left_behind in avoid:
                if left_behind is not backend:
                    left_behind.moved(run.prompt_id)
            try:
                result, entry = await self._try_on(backend, run, request, prompt, brings_inputs=brings_inputs)
                self._quarantine.succeeded(request.prompt)
                if defeated or not (gone := await self._gone(backend, result, entry)):
                    return result
                prompt, defeated = defeat_cache(prompt, run.prompt_id, gone), True
                reason = "output_gone"
            except ComfyUIPromptLostError as error:
                reason = "prompt_lost"
                self._lost(backend, run, error)
                avoid.append(backend)
                patience_s = _RESTART_PATIENCE_S
            except ComfyUIValidationError as error:
                # What is ours to say, preflight said already.
                if not error.upstream or self._options.remote:
                    raise
                raise await explained(error, backend, request, run.file_names, self._options.limits)  # noqa: B904
            except ComfyUITaskError as error:
                reason = await self._after_task_error(backend, run, error)
                if not left.get(reason):
                    raise
                left[reason] -= 1
            except ComfyUICredentialsError as error:
                backend.failed(error)
                if backend in avoid or len(self._pool.backends) == 1:
                    raise
                avoid.append(backend)
                continue  # it did nothing
            except ComfyUIConnectionError as error:
                backend.failed(error)
                # What was sent was an input or a question: a submission whose reply is lost does not come here.
                if backend in avoid or (error.sent and len(self._pool.backends) == 1):
                    raise
                avoid.append(backend)
                continue  # nothing was submitted: no second submission to count
            if reason != "prompt_lost":
                # How it ended before would be taken for the end of the new run.
                await backend.client.delete_from_history(run.prompt_id)
            self._metrics.resubmissions.labels(reason).inc()
            self._log.warning("prompt.again", prompt_id=run.prompt_id, reason=reason, server=backend.name)

    def _lost(self, backend: Backend, run: PromptRun, error: ComfyUIPromptLostError) -> None:
        """Count it, and what it did to ComfyUI; raises when it is not to be tried again."""
        watch, workflow = run.watch, run.request.prompt if run.request else None
        if watch is not None and watch.ended_comfyui and workflow is not None:
            death = backend.last_death
            self._quarantine.ended_comfyui(workflow, death.how if death else "", death.lines if death else ())
            self._quarantine.check(workflow, run.prompt_id)
        run.losses += 1
        if self._options.remember_losses:
            self._losses[run.prompt_id] = run.losses
            while len(self._losses) > _REMEMBERED_LOSSES:
                self._losses.popitem(last=False)
        if run.losses > self._options.lost_prompt_retries:
            raise error

    def _check_losses(self, run: PromptRun) -> None:
        """Raises for a job that a platform delivers again though ComfyUI lost it as often as it may."""
        run.losses = max(run.losses, self._losses.get(run.prompt_id, 0))
        if run.losses > self._options.lost_prompt_retries:
            detail = f"ComfyUI lost this prompt {run.losses} times already (LOST_PROMPT_RETRIES)"
            raise ComfyUIPromptLostError(detail, prompt_id=run.prompt_id)

    async def _try_on(
        self,
        backend: Backend,
        run: PromptRun,
        request: PromptRequest,
        prompt: Mapping[str, Any],
        *,
        brings_inputs: bool,
    ) -> tuple[PromptResult, HistoryEntry]:
        """One submission to one server; the result, and the history entry that it was read from."""
        run.backend = backend
        with backend.working():
            watch = run.watch = backend.watcher.watch(
                run.prompt_id, client_id=request.client_id, listener=run.publish, followed=run.followed
            )
            try:
                started = time.monotonic()
                if self._options.preflight:
                    await self._preflight(backend, run, request)
                if brings_inputs:
                    prompt = await self._stage(backend, run, request, prompt)
                staged = time.monotonic()
                number, node_errors = await self._submit(backend, run, _body(run, request, prompt, watch.client_id))
                backend.watcher.accepted(watch, number)
                entry = await watch.finished()
                waited_s = time.monotonic() - staged
            finally:
                backend.watcher.unwatch(watch)
        result = _result(backend, run.prompt_id, entry, staged - started, waited_s, node_errors)
        return result, entry

    async def _resume(self, run: PromptRun, backend: Backend, found: HistoryEntry | QueueItem) -> PromptResult:
        """Wait for a prompt that ComfyUI has already, in its queue or its history."""
        run.backend = backend
        if not isinstance(found, QueueItem):
            return _result(backend, run.prompt_id, found)
        self._check_losses(run)
        started = time.monotonic()
        # Its events go to whoever submitted it: a client id that is not ours makes the watcher look for itself.
        run.workflow = found.prompt
        watch = run.watch = backend.watcher.watch(
            run.prompt_id, client_id="another's", listener=run.publish, followed=run.followed
        )
        try:
            backend.watcher.accepted(watch, found.number)
            entry = await watch.finished()
        finally:
            backend.watcher.unwatch(watch)
        return _result(backend, run.prompt_id, entry, waited_s=time.monotonic() - started)

    async def _preflight(self, backend: Backend, run: PromptRun, request: PromptRequest) -> None:
        """Raise `ComfyUIValidationError` for what this server would refuse."""
        problems = await problems_on(backend, request, run.file_names, limits=self._options.limits)
        if found := refusal(problems):
            raise found

    async def _stage(
        self, backend: Backend, run: PromptRun, request: PromptRequest, prompt: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        widgets = await offloaded(request.size, upload_inputs, prompt, await backend.object_info())
        if prompt is not request.prompt:
            request = request.model_copy(update={"prompt": dict(prompt)})
        return await self._stager.stage(backend, request, widgets, run.files.paths if run.files else None)

    # Exactly one submission

    async def _submit(
        self, backend: Backend, run: PromptRun, body: JSON
    ) -> tuple[float, Mapping[str, tuple[str, ...]]]:
        """After a lost reply, look for the prompt before it is sent again. Returns its number and node errors."""
        reason: ComfyUIError
        deaths = backend.deaths
        if run.watch is not None:
            run.watch.sent = True
        for attempt in range(self._options.submission_retries + 1):
            try:
                queued = await backend.client.queue_prompt(body, size=run.request.size if run.request else 0)
            except ComfyUIConnectionError as error:
                if not error.sent:
                    raise
                reason = error
            except ComfyUIServerError as error:
                if 400 <= error.upstream_status < 500:
                    raise  # an answer, and a refusal: no reply was lost
                reason = error
            else:
                return queued.number, flat_node_errors(queued.node_errors)
            self._log.warning("submission.reply_lost", prompt_id=run.prompt_id, detail=reason.detail, tries=attempt + 1)
            found = await self._look_for(backend, run.prompt_id, deaths)
            if isinstance(found, QueueItem):
                return found.number, {}
            if found is not None:
                return found.number, {}
            if run.watch is not None and run.watch.heard:
                raise ComfyUIPromptLostError("ComfyUI ran the prompt and forgot it", prompt_id=run.prompt_id)
            self._metrics.resubmissions.labels("reply_lost").inc()
        raise ComfyUISubmissionError(
            f"ComfyUI's reply to the submission was lost {self._options.submission_retries + 1} times: {reason.detail}",
            prompt_id=run.prompt_id,
        )

    async def _look_for(self, backend: Backend, prompt_id: str, deaths: int) -> HistoryEntry | QueueItem | None:
        """Look twice, a moment apart: a submission whose reply was lost may still be on its way through ComfyUI.

        Raises:
            ComfyUIPromptLostError: the server does not answer any more, so nobody can tell; or it ended since there
                were `deaths` of it, or was away, so that it may have run the prompt and forgotten it.
        """
        deadline = time.monotonic() + _VANISHED_AFTER_S
        looks = failures = 0
        away = False
        while True:
            if backend.deaths != deaths:
                raise ComfyUIPromptLostError("ComfyUI ended during the submission", prompt_id=prompt_id)
            try:
                found = await backend.find(prompt_id)
            except ComfyUIError as error:
                failures += 1
                away = away or (isinstance(error, ComfyUIConnectionError) and not error.sent)
                if time.monotonic() > deadline:
                    detail = f"ComfyUI stopped answering during the submission: {error.detail}"
                    raise ComfyUIPromptLostError(detail, prompt_id=prompt_id) from error
                await asyncio.sleep(_BACKOFF.delay_s(failures))
                continue
            looks += 1
            if found is None and away:
                detail = "ComfyUI was restarted during the submission"
                raise ComfyUIPromptLostError(detail, prompt_id=prompt_id)
            if found is not None or looks == 2:
                return found
            await asyncio.sleep(_LOOK_AGAIN_S)

    # After the end

    async def _after_task_error(self, backend: Backend, run: PromptRun, error: ComfyUITaskError) -> str:
        """Let ComfyUI recover where it can, take it out of rotation where it cannot; returns the kind of error."""
        if not self._options.remote and any(said in error.detail for said in _FATAL_GPU_ERRORS):
            backend.broken(f"a GPU fault that needs a restart of ComfyUI: {error.exception_type}", run.prompt_id)
            return "gpu_fault"
        if "OutOfMemoryError" not in (error.exception_type or ""):
            return "task_failed"
        try:
            await backend.client.free()
            self._log.warning("comfyui.freed", server=backend.name, prompt_id=run.prompt_id)
            await asyncio.sleep(_FREED_AFTER_S)
        except ComfyUIError as failure:
            self._log.warning("comfyui.free_failed", server=backend.name, detail=failure.detail)
        return "out_of_memory"

    async def _gone(self, backend: Backend, result: PromptResult, entry: HistoryEntry) -> set[str]:
        """The output nodes that came from ComfyUI's cache without their files, or without anything (trap 9).

        A file that was just written is there, and a node that ran and shows nothing has nothing to show.
        """
        cached = cached_nodes(entry)
        if not result.outputs:
            return set(cached.intersection(entry.output_nodes))
        files = [file for file in result.files if file.node_id in cached]
        there = await asyncio.gather(*(self._is_there(backend, file) for file in files))
        return {file.node_id for file, exists in zip(files, there, strict=True) if not exists}

    async def _is_there(self, backend: Backend, file: OutputFile) -> bool:
        try:
            return await backend.client.has_file(file)
        except ComfyUIError as error:
            # The prompt has succeeded: whether its file can be had shows when it is fetched.
            self._log.warning("output.not_checked", server=backend.name, detail=error.detail)
            return True


def _body(run: PromptRun, request: PromptRequest, prompt: Mapping[str, Any], client_id: str) -> JSON:
    """The body for ComfyUI's ``POST /prompt``."""
    extra_data = dict(request.extra_data or {})
    if run.fingerprint:
        extra_data[_MARK] = {"fingerprint": run.fingerprint}
    body: JSON = {"prompt": prompt, "prompt_id": run.prompt_id, "client_id": client_id}
    if extra_data:
        body["extra_data"] = extra_data
    if request.front:
        body["front"] = True
    if request.number is not None:
        body["number"] = request.number
    if request.partial_execution_targets is not None:
        body["partial_execution_targets"] = request.partial_execution_targets
    return body


def _result(
    backend: Backend,
    prompt_id: str,
    entry: HistoryEntry,
    staging_s: float = 0.0,
    waited_s: float = 0.0,
    node_errors: Mapping[str, tuple[str, ...]] | None = None,
) -> PromptResult:
    """A history entry as a result; raises what the entry says went wrong, with what was saved before that."""
    executing = executing_s(entry)
    timings = Timings(staging_s, queued_s=max(0.0, waited_s - executing), executing_s=executing)
    result = PromptResult(
        prompt_id,
        backend.name,
        entry.outputs,
        files_of(entry.outputs),
        timings,
        node_errors or {},
        simulated=backend.simulated,
    )
    try:
        raise_if_failed(entry, prompt_id)
    except ComfyUITaskError as error:
        error.saved = result
        raise
    return result


def _check_same(run: PromptRun, found: HistoryEntry | QueueItem) -> None:
    """Refuse another request's prompt; who only looks on takes its fingerprint, for requests that join later."""
    mark = found.extra_data.get(_MARK)
    fingerprint = mark.get("fingerprint") if isinstance(mark, Mapping) else None
    if not isinstance(fingerprint, str):
        return
    if run.fingerprint is None:
        run.fingerprint = fingerprint
    elif fingerprint != run.fingerprint:
        raise ComfyUIConflictError("this prompt_id was used with another body", prompt_id=run.prompt_id)


def _was_cancelled(found: HistoryEntry | QueueItem) -> bool:
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
    """Whether any value could be an input to place: only then are the node definitions needed."""
    return any(is_inline(value) for node in prompt.values() for value in node.get("inputs", {}).values())
