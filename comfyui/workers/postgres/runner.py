"""`TaskRunner`: takes one task after the other, renders it, stores its files, and only then says complete."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import structlog

from comfyui.events import Event
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIPromptLostError,
    ComfyUITaskError,
    QueueError,
    StorageError,
)
from comfyui.models import OutputFile, PromptRequest, PromptResult
from comfyui.outputs.keys import task_key
from comfyui.outputs.stores.store import ObjectStore, Placement, StoreCheck
from comfyui.retrying import Backoff, retry
from comfyui.tasks import end_tasks, happens_within
from comfyui.workers.base import ComfyUIWorker, prompt_id_for_job
from comfyui.workers.diagnostics import environment, error_members
from comfyui.workers.postgres.tasks import ClaimedTask, Lease, TaskQueue, WorkerState, job_fields, task_request
from comfyui.workers.progress import ProgressTracker
from comfyui.workers.results import check_delivered, reason_not_delivered, result_members, saved_before

_LONGEST_REASON = 4000
# Without this limit, every step of every node would be a write to the database.
_PROGRESS_EVERY_S = 2.0
_BACKOFF = Backoff(start_s=0.4, max_s=15.0)
# How long a result that is stored is offered to a database that is away.
_REPORT_PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True)
class TaskRunnerOptions:
    """``heartbeat_s`` is well below the lease; ``poll_interval_s`` finds tasks without a notification."""

    poll_interval_s: float = 5.0
    heartbeat_s: float = 5.0
    store_check_s: float = 300.0
    workflows: Mapping[str, str] = field(default_factory=dict)
    """Named workflows by types of tasks."""


class _Current:
    """The present task. ``verdict`` is set when the task is no longer ours to finish."""

    def __init__(self, task: ClaimedTask, prompt_id: UUID) -> None:
        self.task = task
        self.prompt_id = prompt_id
        self.fraction = 0.0
        self.note = ""
        self.request: PromptRequest | None = None
        self.verdict: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()


class TaskRunner:
    """Runs one job at a time under one worker id. Queue, ComfyUI and store belong to their openers."""

    def __init__(
        self, worker_id: str, queue: TaskQueue, comfyui: ComfyUIWorker, store: ObjectStore, options: TaskRunnerOptions
    ) -> None:
        self._worker_id = worker_id
        self._queue = queue
        self._comfyui = comfyui
        self._files = comfyui.output_files(store)
        self._store_check = StoreCheck(store, every_s=options.store_check_s)
        self._options = options
        self._log = structlog.get_logger(__name__).bind(worker_id=worker_id)
        self._state = WorkerState.STARTING
        self._ready = asyncio.Event()
        """Set while the last signs of life arrived and no orchestrator said to take nothing more."""
        self._terminating = False
        self._current: _Current | None = None
        self._news = asyncio.Event()
        self._beat_now = asyncio.Event()
        queue.listen(self._heard)

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; a task that is under way then is finished first."""
        stopping = asyncio.create_task(stop.wait())
        try:
            # Together: without heartbeats a task is taken from us, so a worker whose heart stopped must stop, too.
            async with self._files, asyncio.TaskGroup() as group:
                beats = group.create_task(self._heartbeats(), name=f"heartbeat {self._worker_id}")
                await self._take_tasks(stopping)
                beats.cancel()
        finally:
            stopping.cancel()
            with contextlib.suppress(QueueError):
                await self._queue.seen(self._worker_id, WorkerState.STOPPED)

    async def _take_tasks(self, stopping: asyncio.Task[Any]) -> None:
        while not stopping.done():
            self._raise_when_comfyui_failed()
            if not self._comfyui.pool.ready:
                self._show(WorkerState.WAITING)
                await self._pause(stopping, self._comfyui.wait_until_ready())
                continue
            if not await self._store_is_usable():
                # Before a task is taken whose files could not be delivered.
                self._show(WorkerState.WAITING)
                await self._pause(stopping, asyncio.Event().wait())
                continue
            self._show(WorkerState.IDLE)
            if not self._ready.is_set():
                await self._pause(stopping, self._ready.wait())
                continue
            self._news.clear()
            task = await self._claim(stopping)
            if task is not None:
                await self._work(task)
            elif not stopping.done():
                await self._pause(stopping, self._news.wait())

    async def _store_is_usable(self) -> bool:
        try:
            await self._store_check.ensure()
        except StorageError:
            return False
        return True

    def _heard(self, task_id: str) -> None:
        self._news.set()
        if self._current is not None and task_id in {"", self._current.task.id}:
            self._beat_now.set()

    def _show(self, state: WorkerState) -> None:
        if state != self._state:
            self._state = state
            self._beat_now.set()

    async def _pause(self, stopping: asyncio.Task[Any], until: Coroutine[Any, Any, Any]) -> None:
        waiting = asyncio.create_task(until)
        try:
            await asyncio.wait(
                {stopping, waiting}, timeout=self._options.poll_interval_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            await end_tasks(waiting)

    def _raise_when_comfyui_failed(self) -> None:
        """A child that crashed too often is not started again: the worker's supervisor must know."""
        if (reason := self._comfyui.given_up) is not None:
            raise ComfyUIConnectionError(reason)

    async def _claim(self, stopping: asyncio.Task[Any]) -> ClaimedTask | None:
        """Under one token until there is an answer: when an answer was lost, the task is not."""
        token = uuid4()
        failures = 0
        while not stopping.done():
            try:
                return await self._queue.claim(self._worker_id, token)
            except QueueError as error:
                failures += 1
                if failures == 1:
                    self._log.warning("queue.unavailable", detail=str(error))
                await asyncio.wait({stopping}, timeout=_BACKOFF.delay_s(failures))
        return None

    # Signs of life

    async def _heartbeats(self) -> None:
        """The lease first and by itself: trouble with the worker's row must not take a running task from us."""
        failures = 0
        while True:
            self._beat_now.clear()
            current = self._current
            try:
                if current is not None:
                    await self._renew(current)
                may_take = await self._queue.seen(self._worker_id, self._state, current.task if current else None)
                failures = 0
            except QueueError as error:
                failures += 1
                self._ready.clear()
                if failures == 1:
                    self._log.warning("heartbeat.failed", detail=str(error), until_then="the worker takes no tasks")
            else:
                self._obey(may_take)
            delay_s = self._options.heartbeat_s
            if failures:
                delay_s = min(delay_s, _BACKOFF.delay_s(failures))
            await happens_within(self._beat_now, delay_s)

    async def _renew(self, current: _Current) -> None:
        lease = await self._queue.renew(current.task, current.fraction, current.note)
        if lease is not Lease.HELD and not current.verdict.done():
            current.verdict.set_result(lease)

    def _obey(self, may_take: bool) -> None:
        """Take tasks, or none: what an orchestrator's word in the worker's row asks for."""
        if may_take:
            self._ready.set()
        else:
            self._ready.clear()
        if may_take == self._terminating:
            self._terminating = not may_take
            event = "worker.terminating" if self._terminating else "worker.resumed"
            self._log.info(event, reason="status of its row in the table of workers")

    # One task

    async def _work(self, task: ClaimedTask) -> None:
        current = _Current(task, prompt_id_for_job("postgres", task.job_id))
        async with AsyncExitStack() as stack:
            stack.enter_context(
                structlog.contextvars.bound_contextvars(task_id=task.id, prompt_id=str(current.prompt_id))
            )
            await stack.enter_async_context(self._comfyui.folders.job())
            self._log.info("task.claimed", run=task.run, attempt=task.attempt)
            self._current = current
            self._show(WorkerState.WORKING)
            started = time.monotonic()
            work = asyncio.create_task(self._render_and_report(current), name=f"task {task.id}")
            try:
                waited: list[asyncio.Future[Any]] = [work, current.verdict]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._current = None
                given_up = work.cancel()
                await asyncio.wait({work})
            if given_up:
                await self._give_up(current)
            else:
                self._log.info("task.ended", outcome=work.result(), seconds=round(time.monotonic() - started, 3))

    async def _give_up(self, current: _Current) -> None:
        """Cancelled: ComfyUI must stop. Lost: ComfyUI goes on; the task's next owner waits for the same render."""
        verdict = current.verdict.result()
        self._log.info("task.given_up", reason="cancelled" if verdict is Lease.STOP else "lease lost")
        if verdict is Lease.STOP and current.request is not None:
            try:
                await self._comfyui.cancel(current.request)
            except ComfyUINotFoundError:
                pass  # it ended in this moment, or was never submitted
            except ComfyUIError as error:
                self._log.warning("task.cancel_failed", detail=error.detail)

    async def _render_and_report(self, current: _Current) -> str:
        task = current.task
        try:
            result = await self._render(current)
            outputs = await self._store_files(task, result)
            check_delivered(result, outputs)
        except ComfyUIError as error:
            self._log.warning("task.failed", detail=error.detail, retryable=error.retryable)
            saved = saved_before(error)
            outputs = await self._store_files(task, saved) if saved is not None else []
            failure = await self._failure(current, error, outputs)
            # A job has one budget of renders: another worker would begin with a budget of its own.
            retry = error.retryable and not isinstance(error, ComfyUIPromptLostError)
            return await self._report_failure(task, reason_of(error), failure, outputs, retry=retry)
        except Exception:
            # The text of a bug does not go into the row; the log has it.
            self._log.exception("task.crashed")
            reason = "the worker failed; its log has the reason"
            failure = await self._failure(current, ComfyUIError(reason), [])
            return await self._report_failure(task, reason, failure, retry=True)
        url = main_output(outputs)["url"]
        members = storable(result_members(result, outputs))
        written = await self._report(lambda: self._queue.complete(task, url, outputs, members))
        return "complete" if written else "lease lost"

    async def _failure(
        self, current: _Current, error: ComfyUIError, outputs: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """The members of a failed job's result, with the environment."""
        members = error_members(error)
        members["prompt_id"] = str(current.prompt_id)
        members |= {"files": list(outputs), "diagnostics": await environment(self._comfyui)}
        found: Mapping[str, Any] = storable(members)
        return found

    async def _report_failure(
        self,
        task: ClaimedTask,
        reason: str,
        result: Mapping[str, Any],
        outputs: Sequence[Mapping[str, Any]] = (),
        *,
        retry: bool,
    ) -> str:
        written = await self._report(
            lambda: self._queue.fail(task, reason, retry=retry, outputs=outputs, result=result)
        )
        return "failed" if written else "lease lost"

    async def _render(self, current: _Current) -> PromptResult:
        request = current.request = await task_request(
            current.task, current.prompt_id, self._comfyui.named, self._options.workflows
        )
        result = await self._comfyui.run(
            request,
            listener=self._progress_listener(current, request.prompt),
            fields=job_fields(current.task, request),
        )
        current.note = "storing files"
        if not result.files:
            raise ComfyUITaskError("the workflow finished without an output file", prompt_id=result.prompt_id)
        return result

    def _progress_listener(self, current: _Current, prompt: Mapping[str, Any]) -> Callable[[Event], None]:
        tracker = ProgressTracker(prompt)
        last_beat = 0.0

        def listen(event: Event) -> None:
            nonlocal last_beat
            report = tracker.observe(event)
            if report is None:
                return
            current.fraction, current.note = report.fraction, str(report.to_json()["message"])
            if time.monotonic() - last_beat > _PROGRESS_EVERY_S:
                last_beat = time.monotonic()
                self._beat_now.set()

        return listen

    async def _store_files(self, task: ClaimedTask, result: PromptResult) -> list[dict[str, Any]]:
        return [await self._store_file(task, result, file) for file in result.files]

    async def _store_file(self, task: ClaimedTask, result: PromptResult, file: OutputFile) -> dict[str, Any]:
        """The file's entry of the row's list: in the store, tried again with patience, or with ``error`` and why."""
        key_of = partial(task_key, task.id, task.run)
        try:
            stored = (await self._files.put(result, file, key_of, Placement())).object
        except ComfyUIError as error:
            self._log.warning("output.undelivered", filename=file.filename, detail=error.detail)
            entry: dict[str, Any] = storable({**file.to_json(), "url": None, **reason_not_delivered(error)})
            return entry
        return {**file.to_json(), "url": stored.url, "key": stored.key, "size": stored.size}

    async def _report(self, write: Callable[[], Awaitable[bool]]) -> bool:
        """Write the end of a task; a database that is away is asked again: heartbeats cannot lose the lease either."""

        def again(error: QueueError, failures: int) -> None:
            self._log.warning("report.failed", detail=str(error), tries=failures)

        try:
            return await retry(write, QueueError, _BACKOFF, within_s=_REPORT_PATIENCE_S, told=again)
        except QueueError as error:
            self._log.warning("report.failed", detail=str(error), until_then="the result is lost")
            return False


def reason_of(error: ComfyUIError) -> str:
    """The text for the row: the kind of error, its detail, each node's messages; without characters that Postgres
    cannot store.
    """
    lines = [f"{error.title}: {error.detail}"]
    lines += [f"node {node_id}: {message}" for node_id, messages in error.node_errors.items() for message in messages]
    text = "\n".join(line for number, line in enumerate(lines) if not number or line.partition(": ")[2] not in lines[0])
    return str(storable(text))[:_LONGEST_REASON]


def storable(value: Any) -> Any:
    """The same without what Postgres stores in no text and no jsonb: NUL, and halves of characters."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {storable(name): storable(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [storable(member) for member in value]
    return value


def main_output(outputs: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The one whose link becomes ``output_url``: the first video, else the first that is no preview, else the first."""
    outputs = [output for output in outputs if "error" not in output]
    kept = [output for output in outputs if output["type"] == "output"]
    videos = [output for output in kept if output["content_type"].startswith("video/")]
    return (videos or kept or outputs)[0]
