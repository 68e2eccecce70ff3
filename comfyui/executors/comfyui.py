"""`PromptRunner`: one prompt from submission to result, on any server, through every kind of failure.

What is tried again, and why that is safe:

- a lost reply to the submission: only after looking for the prompt in ComfyUI, so it never runs twice for this;
- a prompt that ComfyUI forgot, or whose server is gone: `lost_prompt_retries` times in all, however it was lost; but
  not one that ended ComfyUI's process too often (`comfyui.executors.quarantine`);
- a GPU fault: once, if another server can run the prompt; a prompt that met the fault of another prompt, until it meets
  none;
- a file of another server, which does not answer: the prompt waits for that server;
- out of memory: `oom_retries` times, after ComfyUI has dropped its models;
- a cached result whose file is gone, or that is empty: once, without ComfyUI's cache;
- a prompt that a platform cannot run (`comfyui.executors.platform_runs`): on a server that may.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from comfyui.events import ExecutionStart
from comfyui.exceptions import (
    TAKEN,
    ComfyUIConflictError,
    ComfyUIConnectionError,
    ComfyUIInputUnavailableError,
    ComfyUINotFoundError,
    ComfyUIPromptLostError,
    ComfyUIServerError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUIValidationError,
)
from comfyui.executors.assignment import Assignment
from comfyui.executors.checking import Strictness, explained
from comfyui.executors.elsewhere import Elsewhere
from comfyui.executors.finding import Finder, Found
from comfyui.executors.losses import Losses
from comfyui.executors.node_failures import NodeFailures
from comfyui.executors.places import Places
from comfyui.executors.platform_runs import PlatformRuns
from comfyui.executors.preparation import Preparation
from comfyui.executors.quarantine import Quarantine
from comfyui.executors.results import nodes_without_files, result_of, was_cancelled
from comfyui.executors.submission import Submission, check_same, may_go_elsewhere
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.metrics import Metrics
from comfyui.models import PromptRequest, PromptResult
from comfyui.replies import HistoryEntry, QueueItem, flat_node_errors
from comfyui.servers.backend import Backend
from comfyui.servers.pool import CHOICE_PATIENCE_S, BackendPool
from comfyui.workflows.api_format import defeat_cache

# A caller whose prompt was accepted once may wait for ComfyUI's restart; its own timeout ends that earlier.
_RESTART_PATIENCE_S = 600.0
# For a server that has a file which a prompt reads, and that answers everything except the request for that file.
_FETCH_TRIES = 5


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How often a prompt is tried again after each kind of failure.

    Attributes:
        remember_losses: the same prompt id again has only the rest of `lost_prompt_retries`. This is for job platforms,
            which deliver a job again by themselves; a client that asks again does so on purpose.
    """

    submission_retries: int = 3
    lost_prompt_retries: int = 1
    remember_losses: bool = False
    oom_retries: int = 0
    preflight: Strictness | None = None
    """How a workflow is checked before it is submitted; None: only after ComfyUI has refused it."""
    limits: Limits = DEFAULT_LIMITS
    absent_patience_s: float = 2.0
    """For a server that does not answer to say that it has a prompt from before. Not a setting."""


class PromptRunner:
    """Its arguments belong to its creator."""

    def __init__(
        self,
        pool: BackendPool,
        places: Places,
        preparation: Preparation,
        options: RunnerOptions,
        metrics: Metrics,
        quarantine: Quarantine,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._platform = PlatformRuns(elsewhere, places, preparation)
        self._places = places
        self._quarantine = quarantine
        retries = options.lost_prompt_retries
        self._losses = Losses(quarantine, retries, remember=options.remember_losses)
        self._pool = pool
        self._preparation = preparation
        self._options = options
        self._metrics = metrics
        self._failures = NodeFailures(places, quarantine)
        self._finder = Finder(pool, options.absent_patience_s)
        self._submission = Submission(options.submission_retries, metrics)
        self._log = structlog.get_logger(__name__)

    async def run(self, job: Assignment) -> PromptResult:
        """Runs the job from its request, or from the state that ComfyUI already has, to its result.

        Raises:
            ComfyUINotFoundError: the job has no request, and ComfyUI does not know the prompt.
            ComfyUIConflictError: ComfyUI has the prompt from another request.
            ComfyUIError: any other failure that is left in the end.
        """
        ran_s = 0.0
        try:
            result = await self._run(job)
            ran_s = result.timings.executing_s
            return result
        finally:
            self._places.leave(job, ran_s)

    async def _run(self, job: Assignment) -> PromptResult:
        if job.placed_before and (attempt := await job.attempts.found()) is not None:
            return await self._platform.rejoin(job, attempt)
        left = {"out_of_memory": self._options.oom_retries, "gpu_fault": 1}
        if job.request is None or job.perhaps_known:
            server_before = job.server_before
            backend, found = await self._finder.find_for(job)
            if isinstance(backend, Backend) and found is not None:
                if (result := await self._run_found(job, backend, found, left)) is not None:
                    return result
            elif job.server_before is not None:
                job.leaves(job.server_before)
            if found is None and job.begun:
                # Nothing is left of it on its server: ComfyUI was restarted while the gateway was away.
                job.suspect(ended_comfyui=False)
                self._losses.count(job, ComfyUIPromptLostError("ComfyUI forgot the prompt", prompt_id=job.prompt_id))
                self._count_try("prompt_lost", server_before, job)
        # Read only now: a caller may have brought it while ComfyUI was asked.
        if job.request is None:
            raise ComfyUINotFoundError("neither the gateway nor ComfyUI knows this prompt_id", prompt_id=job.prompt_id)
        return await self._run_request(job, job.request, left)

    async def _run_found(
        self, job: Assignment, backend: Backend, found: HistoryEntry | QueueItem, left: dict[str, int]
    ) -> PromptResult | None:
        """The result of a prompt that ComfyUI has from before; None if the request must run after all."""
        is_ours = job.request is not None and job.placed_before
        if job.others_are_hidden:
            raise ComfyUIConflictError(TAKEN, prompt_id=job.prompt_id)
        check_same(job, found)
        if job.request is None or job.placed_before or not was_cancelled(found):
            try:
                return await self._resume(job, backend, found)
            except ComfyUITaskCancelledError:
                if not job.cancelled_before:
                    raise
            except ComfyUIPromptLostError as error:
                if job.request is None:
                    raise
                await self._losses.lost(backend, job, error)
                self._count_try("prompt_lost", backend.name, job)
                return None
            except ComfyUITaskError as error:
                if not is_ours or not (reason := await self._failures.tried_again(backend, job, error, left)):
                    raise
                self._count_try(reason, backend.name, job)
                if reason != "out_of_memory":
                    return None
        # Its earlier end would be taken for the end of the new run.
        await backend.client.delete_from_history(job.prompt_id)
        return None

    async def find(self, prompt_id: str, *, everywhere: bool = False) -> Found:
        """See `Finder.find`."""
        return await self._finder.find(prompt_id, everywhere=everywhere)

    # One attempt after the other

    async def _run_request(self, job: Assignment, request: PromptRequest, left: dict[str, int]) -> PromptResult:
        self._losses.check(job)
        prompt: Mapping[str, Any] = request.prompt
        defeated = placed_anew = False
        avoid: set[str] = set()
        failed: set[str] = set()
        away: defaultdict[str, int] = defaultdict(int)
        patience_s = CHOICE_PATIENCE_S
        brings_inputs = await self._preparation.brings_inputs(job, request)
        while True:
            self._quarantine.check(request.prompt, job.prompt_id)
            backend = await self._places.take(job, request, avoid=avoid, files_on=away.keys(), patience_s=patience_s)
            if not isinstance(backend, Backend):
                try:
                    done = await self._platform.run(job, request, avoid, brings_inputs=brings_inputs)
                except ComfyUIInputUnavailableError as error:
                    self._wait_for(error, job, away)
                else:
                    if done is not None:
                        return done
                continue
            await self._places.cleared(job, backend)
            try:
                if (
                    backend.name in job.left_on
                    and (found := await self._finder.left_over(backend, job.prompt_id)) is not None
                ):
                    if (left_over := await self._left_over(backend, job, found)) is not None:
                        return left_over
                    continue  # it has given up its place, or has another one
                outcome = await self._try_on(backend, job, request, prompt, brings_inputs=brings_inputs)
                if outcome is None:
                    self._log.info("prompt.taken_back", prompt_id=job.prompt_id, server=backend.name)
                    continue
                result, entry = outcome
                self._quarantine.succeeded(request.prompt)
                if defeated or not (gone := await nodes_without_files(backend, result, entry)):
                    return result
                prompt, defeated = defeat_cache(prompt, job.prompt_id, gone), True
                reason = "output_gone"
            except ComfyUIPromptLostError as error:
                reason = "prompt_lost"
                await self._losses.lost(backend, job, error)
                patience_s = _RESTART_PATIENCE_S
            except ComfyUIValidationError as error:
                if not placed_anew and self._preparation.places_anew(backend, error):
                    placed_anew = True
                    continue
                # The preflight has already reported our own checks.
                if job.awaits_verdict:
                    raise error.lacked_by(self._places.lacking(job))  # noqa: B904
                if not error.upstream:
                    raise
                names = self._preparation.names(job, request)
                told = explained(error, backend, request, names, self._options.limits)
                raise (await told).lacked_by(self._places.lacking(job))  # noqa: B904 - nameless: it has this frame
            except ComfyUITaskError as error:
                if not (reason := await self._failures.tried_again(backend, job, error, left)):
                    raise
            except ComfyUIInputUnavailableError as error:
                self._wait_for(error, job, away)
                continue
            except (ComfyUIServerError, ComfyUIConnectionError) as error:
                if not may_go_elsewhere(error, job):
                    raise
                backend.failed(error)
                # The failed request was an input or a question: a submission whose reply is lost does not come here.
                did_nothing = isinstance(error, ComfyUIConnectionError) and not error.sent
                if not did_nothing:
                    if backend.name in failed or len(self._pool.servers) == 1:
                        raise
                    failed.add(backend.name)
                avoid.add(backend.name)
                continue  # nothing was submitted, so this is no second submission
            if reason in {"out_of_memory", "output_gone"}:
                # Its earlier end would be taken for the end of the new run.
                await backend.client.delete_from_history(job.prompt_id)
            self._count_try(reason, backend.name, job)

    def _count_try(self, reason: str, server: str | None, job: Assignment) -> None:
        """Counts and logs that the prompt will run again; `server` ran it before."""
        self._metrics.resubmissions.labels(reason).inc()
        self._log.warning("prompt.again", prompt_id=job.prompt_id, reason=reason, server=server)

    def _wait_for(self, error: ComfyUIInputUnavailableError, job: Assignment, away: defaultdict[str, int]) -> None:
        """The prompt waits for the server that has its file, or fails with the error."""
        if not error.server or away[error.server] == _FETCH_TRIES:
            raise error
        away[error.server] += 1
        self._log.info("prompt.waits_for_file", prompt_id=job.prompt_id, server=error.server)

    async def _try_on(
        self,
        backend: Backend,
        job: Assignment,
        request: PromptRequest,
        prompt: Mapping[str, Any],
        *,
        brings_inputs: bool,
    ) -> tuple[PromptResult, HistoryEntry] | None:
        """One submission to one server; returns the result, and the history entry that it was read from.

        None if the prompt was taken back from that server before it ran.
        """
        await job.placed(backend)
        with backend.working():
            client_id = None if self._places.are_all_here else request.client_id
            watch = backend.watcher.watch(job.prompt_id, job, client_id=client_id)
            job.watched(watch)
            try:
                started = time.monotonic()
                async with watch.sending():
                    prompt = await self._preparation.prepared(
                        backend, job, request, prompt, brings_inputs=brings_inputs
                    )
                    staged = time.monotonic()
                    prompt = await self._places.spelled(backend, prompt)
                    await self._places.in_turn(job)
                    ordered = request.without_order() if self._places.are_all_here else request
                    number, node_errors = await self._submission.send(backend, job, watch, ordered, prompt)
                backend.watcher.accepted(watch, number)
                self._places.accepted(job)
                job.accepted(node_errors)
                entry = await watch.finished()
                if entry is None:
                    return None
                waited_s = time.monotonic() - staged
            finally:
                backend.watcher.unwatch(watch)
        node_seconds = watch.times.seconds()
        left_out = flat_node_errors(node_errors)
        result = result_of(backend, job.prompt_id, entry, staged - started, waited_s, left_out, node_seconds)
        return result, entry

    async def _left_over(
        self, backend: Backend, job: Assignment, found: HistoryEntry | QueueItem
    ) -> PromptResult | None:
        """The result of an attempt that the server still has; None if that was cancelled, or taken back."""
        try:
            return await self._resume(job, backend, found)
        except ComfyUITaskCancelledError:
            await backend.client.delete_from_history(job.prompt_id)
            return None

    async def _resume(self, job: Assignment, backend: Backend, found: HistoryEntry | QueueItem) -> PromptResult | None:
        """Waits for a prompt that ComfyUI already has, in its queue or its history. None if it was taken back."""
        is_ours = job.placed_before
        await job.attached(backend)
        if not isinstance(found, QueueItem):
            return result_of(backend, job.prompt_id, found)
        if found.running:
            job.publish(ExecutionStart(job.prompt_id))
        self._losses.check(job)
        self._places.found(job, backend)
        started = time.monotonic()
        # Its events go to the client that submitted it: with a foreign client id, the watcher polls for it.
        job.found(found.prompt)
        watch = backend.watcher.watch(job.prompt_id, job, client_id="another's")
        job.watched(watch)
        try:
            backend.watcher.accepted(watch, found.number)
            if is_ours and not found.running and (request := job.request) is not None:
                await self._places.found_waiting(job, request, found.number)
            entry = await watch.finished()
        finally:
            backend.watcher.unwatch(watch)
        if entry is None:
            self._log.info("prompt.taken_back", prompt_id=job.prompt_id, server=backend.name)
            return None
        return result_of(backend, job.prompt_id, entry, waited_s=time.monotonic() - started)
