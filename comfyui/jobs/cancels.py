"""`Cancels`: takes prompts out of ComfyUI, independently of the caller."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import structlog

from comfyui.exceptions import (
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUITaskCancelledError,
    ComfyUITimeoutError,
)
from comfyui.executors.comfyui import PromptRunner
from comfyui.executors.results import result_of
from comfyui.jobs.entry import Entry
from comfyui.jobs.job import Job, Reason
from comfyui.metrics import Metrics
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.server import Server
from comfyui.servers.watcher import Watch
from comfyui.tasks import SideTasks

_log = structlog.get_logger(__name__)

_REMEMBERED = 1000


class Cancels:
    """The cancels that are under way, one for each prompt id, and the ids that were cancelled a moment ago.

    Args:
        last_s: at the end, for cancels that are under way: a ComfyUI that does not answer is no reason to stay.
        looks_back_s: how long ComfyUI may take after an interruption to report the end; its history is kept then. A
            prompt whose node reacts later is shown without it. 0: no wait.

    Attributes:
        jobs: whose cancels are under way, by their ids.
    """

    def __init__(self, runner: PromptRunner, metrics: Metrics, *, last_s: float, looks_back_s: float = 0.0) -> None:
        self._looks_back_s = looks_back_s
        self._runner = runner
        self._metrics = metrics
        self._last_s = last_s
        self.jobs: dict[str, Job] = {}
        self._under_way: dict[str, asyncio.Task[ComfyUIError | None]] = {}
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._tasks = SideTasks()

    def begin(
        self, job: Job, reason: Reason, before: Callable[[], Awaitable[None]] | None = None
    ) -> asyncio.Task[ComfyUIError | None]:
        """Cancel the job's prompt, unless that is under way already. The task returns why ComfyUI could not be told.

        Args:
            before: awaited first.
        """
        prompt_id = job.prompt_id
        if (under_way := self._under_way.get(prompt_id)) is not None:
            return under_way
        self._recent[prompt_id] = None
        while len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        task = self._under_way[prompt_id] = self._tasks.start(self._cancel(job, reason, before), f"cancel {prompt_id}")
        self.jobs[prompt_id] = job
        task.add_done_callback(lambda _: self._done(prompt_id))
        return task

    def _done(self, prompt_id: str) -> None:
        del self._under_way[prompt_id], self.jobs[prompt_id]

    async def take_out(
        self,
        entry: Entry,
        error: ComfyUIError,
        reason: Reason,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> ComfyUIError | None:
        """Cancel a run that is in the journal and has no task. Returns as the task of `begin` does."""
        job = Job(entry.fence.prompt_id, entry=entry)
        job.cancel(error)
        if entry.server is not None:
            return await asyncio.shield(self.begin(job, reason, before))
        job.cancelled()
        return None

    async def take_out_unknown(self, prompt_id: str, *, has_ended: bool = False) -> None:
        """Cancels a prompt that is no job of ours, or of a job that has ended, `has_ended`, but may still run in
        ComfyUI.

        Raises:
            ComfyUINotFoundError: it is in no queue of ComfyUI.
            ComfyUIError: ComfyUI could not be told.
        """
        backend, found = await self._runner.find(prompt_id)
        if backend is None or not isinstance(found, QueueItem):
            state = "has already finished" if found or has_ended else "is not known"
            raise ComfyUINotFoundError(f"the prompt {state}, so there is nothing to cancel", prompt_id=prompt_id)
        await backend.cancel(prompt_id)
        self._metrics.cancelled.labels("request").inc()

    async def take_out_orphan(self, prompt_id: str, backend: Server, reason: Reason) -> None:
        """Cancels a prompt on a server, if no request waits for it there. Raises `ComfyUIError`."""
        await backend.cancel(prompt_id)
        self._told_of(prompt_id, reason, backend)

    def give_up(self, job: Job, reason: Reason) -> None:
        """Cancels the prompt of a job that no request waits for any more."""
        job.cancel(given_up(reason, job.prompt_id))
        self.begin(job, reason)

    async def ended(self, prompt_id: str, timeout_s: float) -> float:
        """Waits for the cancel of this id, if one is under way: it must not hit a new prompt with the same id.

        Returns the rest of `timeout_s`. Raises `ComfyUITimeoutError` if nothing is left.
        """
        began = time.monotonic()
        left_s = timeout_s
        while (task := self._under_way.get(prompt_id)) is not None:
            await asyncio.wait([task], timeout=left_s)
            left_s = timeout_s - (time.monotonic() - began)
            if left_s <= 0:
                detail = f"an earlier cancel of this prompt_id did not end within {timeout_s:g} s"
                raise ComfyUITimeoutError(detail, prompt_id=prompt_id)
        return left_s

    def take_recent(self, prompt_id: str) -> bool:
        """Whether this id was cancelled a moment ago; this is reported once."""
        return self._recent.pop(prompt_id, self) is None

    async def close(self) -> None:
        """Give the cancels that are under way a moment, then end them."""
        await self._tasks.close(patience_s=self._last_s)

    async def _cancel(
        self, job: Job, reason: Reason, before: Callable[[], Awaitable[None]] | None
    ) -> ComfyUIError | None:
        """Ends the job here, then in ComfyUI, which may have it even if no reply to its submission came.

        If this gateway ends meanwhile, the journal has the job as being cancelled, and the next gateway continues.
        """
        was, backend = job.watch, job.backend
        await job.stopped()
        if before is not None:
            await before()
        failure: ComfyUIError | None = None
        ends: Watch | None = None
        comfyui = backend if isinstance(backend, Backend) else None
        if self._looks_back_s and comfyui is not None and job.begun and was is not None and was.heard:
            ends = comfyui.watcher.watch(job.prompt_id, job, client_id=was.client_id)
        try:
            if backend is None and (job.request is None or job.perhaps_known):
                # It was still being looked for, and ComfyUI may have it from before.
                backend, _ = await self._runner.find(job.prompt_id)
            if backend is not None:
                await backend.cancel(job.prompt_id)
                self._told_of(job.prompt_id, reason, backend)
                if ends is not None and comfyui is not None:
                    await self._look_back(job, ends, comfyui)
        except ComfyUIError as error:
            _log.warning("prompt.cancel_failed", prompt_id=job.prompt_id, reason=reason, detail=error.detail)
            error.prompt_id = job.prompt_id
            failure = error
            if isinstance(backend, Backend):
                backend.look_through()  # it is told again when it answers
        finally:
            if ends is not None and comfyui is not None:
                comfyui.watcher.unwatch(ends)
        job.cancelled()
        return failure

    async def _look_back(self, job: Job, watch: Watch, backend: Backend) -> None:
        """Keeps ComfyUI's history of a prompt that was interrupted: where it was, and what it had saved."""
        try:
            async with asyncio.timeout(self._looks_back_s):
                entry = await watch.finished()
            if entry is not None:
                result_of(backend, job.prompt_id, entry)
        except ComfyUITaskCancelledError as interrupted:
            job.interrupted(interrupted.saved)
        except (ComfyUIError, TimeoutError):
            return

    def _told_of(self, prompt_id: str, reason: Reason, backend: Server) -> None:
        self._metrics.cancelled.labels(reason).inc()
        _log.info("prompt.cancelled", prompt_id=prompt_id, reason=reason, server=backend.name)


def given_up(reason: Reason, prompt_id: str) -> ComfyUIError:
    """The error of a job whose last request has left, by which it is counted."""
    if reason == "timeout":
        return ComfyUITimeoutError("cancelled on timeout", prompt_id=prompt_id)
    return ComfyUITaskCancelledError(f"cancelled on {reason}", prompt_id=prompt_id)
