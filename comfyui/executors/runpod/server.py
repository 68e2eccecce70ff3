"""`RunPodServer`: a serverless endpoint as one more server of the queue, and the executor of its jobs.

RunPod has jobs, a status and a cancel, but none of our ids, no events and no files. So each send is recorded in the job
before it happens, results are fetched and kept here, and clients get events that are made from the status.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import structlog

from comfyui import jsonio
from comfyui.events import event_of
from comfyui.exceptions import (
    ComfyUIError,
    ComfyUIServerError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUIValidationError,
)
from comfyui.executors.assignment import Assignment
from comfyui.executors.runpod.endpoint import RunPodEndpoint
from comfyui.executors.runpod.failures import ERROR_TYPE, error_of, message_of, task_failed
from comfyui.executors.runpod.following import Follower
from comfyui.executors.runpod.gate import Gate
from comfyui.executors.runpod.health import EndpointHealth
from comfyui.executors.runpod.inputs import InputFiles, wanted_of
from comfyui.executors.runpod.options import RunPodOptions
from comfyui.executors.runpod.results import ResultFiles, opened
from comfyui.executors.runpod.retention import Retention, Unfinished
from comfyui.executors.runpod.runs import Run
from comfyui.executors.runpod.submissions import NotTaken, Submissions, insist, unknown_submission
from comfyui.executors.runpod.telling import Telling
from comfyui.feed import Feed
from comfyui.inputs.fetch import UrlFetcher
from comfyui.jobs.journal.attempts import Attempt
from comfyui.jobs.journal.protocol import Journal
from comfyui.merged_files import merged_subfolder
from comfyui.metrics import Metrics
from comfyui.models import OutputFile, PromptRequest, PromptResult, Timings
from comfyui.outputs.history import files_of
from comfyui.replies import JSON, QueueItem
from comfyui.retrying import retry
from comfyui.servers.backend import Backend
from comfyui.servers.frame_listener import FrameListener
from comfyui.servers.server import FileShelf, Health, Server, ServerDetail, ServerReport
from comfyui.tasks import SideTasks
from comfyui.transport.body import OpenBody
from comfyui.workflows.api_format import last_nodes, node_order
from comfyui.workflows.loaders import LOADERS

_log = structlog.get_logger(__name__)

_START = "execution_start"
_HOLDS_ON = (_START, "executing", "progress_state")
_LARGEST_DOWNLOAD = 1 << 40
_DOWNLOAD_S = 3600.0
_DAY_S = 86_400.0


class RunPodServer:
    """Open it with ``async with``, after the journal and before jobs come. It owns everything except its arguments.

    Args:
        home: the ComfyUI beside us, which may have inputs and knows which texts are files.
        journal: knows the jobs that an earlier gateway sent.
        unfinished: the prompts whose files are kept.
        news: set when it begins or ceases to take prompts.
        frames: get the frames that a ComfyUI would send for a prompt.
    """

    def __init__(
        self,
        options: RunPodOptions,
        home: Backend,
        journal: Journal,
        unfinished: Unfinished,
        news: asyncio.Event,
        frames: Feed[FrameListener],
        metrics: Metrics,
    ) -> None:
        self.name = f"runpod:{options.endpoint_id}"
        self.abandoned = self.drained = False
        self.in_flight = 0
        self.generation = self.epoch = 0
        self.last_definitions: JSON | None = None
        """The files of the endpoint's workers are not known."""
        self._options = options
        self._home = home
        self._journal = journal
        self._metrics = metrics
        self._news, self._frames = news, frames
        self._changed = asyncio.Event()
        self._health = EndpointHealth()
        self._endpoint = RunPodEndpoint(
            options.endpoint_id, options.api_key, options.endpoint_url, health=self._health, metrics=metrics
        )
        self._fetcher = UrlFetcher(max_bytes=_LARGEST_DOWNLOAD, allow=options.url_allow, timeout_s=_DOWNLOAD_S)
        folder = options.data_dir
        self._results = ResultFiles(folder / "outputs", self._fetcher, metrics, options.times)
        self._inputs = InputFiles(folder / "inputs", self._results, home)
        self._unfinished = unfinished
        self._submissions = Submissions(self._endpoint, self._health, options.times)
        self._follower = Follower(self._endpoint, options.times)
        self._cancels = SideTasks()
        self._runs: dict[str, Run] = {}
        self._gate = Gate(options.times.send_backoff, news)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._endpoint)
            await stack.enter_async_context(self._fetcher)
            stack.push_async_callback(self._submissions.close)
            stack.push_async_callback(self._cancels.close)
            for state in ("waiting", "pending", "running"):
                self._metrics.runpod_jobs.labels(state).set_function(functools.partial(self._count, state))
            self._health.listen(self._trouble_changed)
            side = await stack.enter_async_context(SideTasks(self._give_up))
            asking = self._health.run(self._endpoint, lambda: self.in_flight > 0 or not self.takes_more)
            side.start(asking, "RunPod health")
            if self._options.data_days:
                retention = Retention(
                    self._results,
                    self._inputs,
                    self._unfinished,
                    max_age_s=self._options.data_days * _DAY_S,
                    every_s=self._options.times.clean_every_s,
                    on_inputs_removed=self._inputs_removed,
                )
                side.start(retention.run(), "RunPod retention")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._gate.close()
        await self._stack.aclose()

    # Its face to the queue: `comfyui.servers.server.Server`

    @property
    def server(self) -> Server:
        return self

    @property
    def ready(self) -> bool:
        return not self._health.trouble

    @property
    def health(self) -> Health:
        return Health.READY if self.ready else Health.BROKEN

    @property
    def delay(self) -> str:
        return self._health.trouble

    @property
    def takes_prompts(self) -> bool:
        return self.ready and not self.drained

    @property
    def why_not(self) -> str:
        drained = f"drained: POST /servers/{self.name}/resume gives it prompts again" if self.drained else ""
        return self._health.trouble or drained

    def drain(self, drained: bool) -> None:
        self.drained = drained
        self._metrics.server_drained.labels(self.name).set(drained)
        self._news.set()

    @property
    def takes_more(self) -> bool:
        return self._gate.is_open

    @property
    def shelf(self) -> FileShelf:
        return self._inputs

    @contextmanager
    def working(self) -> Iterator[None]:
        self.in_flight += 1
        self._metrics.in_flight.labels(self.name).inc()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._metrics.in_flight.labels(self.name).dec()

    def report(self, *, in_detail: bool) -> ServerReport:
        detail: ServerDetail = {}
        if in_detail:
            detail = {"server": self.name, "reason": self.why_not or self._health.away or None, "silent": None}
        return {
            **detail,
            "state": self.health.value,
            "websocket": "none",
            "queue_remaining": len(self._runs),
            "in_flight": self.in_flight,
            "drained": self.drained,
            "simulation": False,
        }

    async def object_info(self, *, max_age_s: float = math.inf) -> JSON:
        """The node definitions of the ComfyUI beside us; while it does not answer, those of known file loaders."""
        if self._home.ready:
            with contextlib.suppress(ComfyUIError, TimeoutError):
                async with self._home.soon():
                    return await self._home.object_info(max_age_s=max_age_s)
        return LOADERS

    def soon(self) -> asyncio.Timeout:
        return self._home.soon()

    def wait_for_change(self) -> Coroutine[Any, Any, Literal[True]]:
        return self._changed.wait()

    async def find(self, prompt_id: str) -> QueueItem | None:
        """A job that was sent and has not ended, according to the journal."""
        attempt = await self._journal.attempt_of(prompt_id)
        if attempt is None or attempt.ref is None:
            return None
        run = self._runs.get(prompt_id)
        return QueueItem(0.0, prompt_id, run is not None and run.is_running, {}, {})

    async def cancel(self, prompt_id: str) -> None:
        """Tells RunPod to give the job up, if it has it. Raises if RunPod could not be told yet; it goes on trying."""
        job_id = await self._submissions.settled(prompt_id)
        if job_id is None:
            attempt = await self._journal.attempt_of(prompt_id)
            job_id = None if attempt is None else attempt.ref
        if job_id is None:
            return
        telling = self._cancels.start(self._cancel(prompt_id, job_id), f"cancel {prompt_id}")
        done, _ = await asyncio.wait([telling], timeout=self._options.times.cancel_s)
        if not done:
            raise ComfyUIServerError("RunPod has not received the cancel yet", prompt_id=prompt_id)

    async def _cancel(self, prompt_id: str, job_id: str) -> None:
        def again(error: ComfyUIError, failures: int) -> None:
            if failures == 1:
                _log.warning("runpod.cancel_failed", prompt_id=prompt_id, detail=error.detail)

        backoff = self._options.times.look_backoff
        if not await retry(lambda: self._endpoint.cancel(job_id), ComfyUIError, backoff, told=again):
            _log.warning("runpod.not_cancelled", prompt_id=prompt_id, job_id=job_id)

    def open_file(self, prompt_id: str, file: OutputFile) -> AbstractAsyncContextManager[OpenBody]:
        """One file of a result."""
        merged = merged_subfolder(prompt_id, file.subfolder)
        return opened(lambda: self._results.find(merged, file.filename), file.filename)

    async def path_of(self, prompt_id: str, subfolder: str, filename: str) -> Path | None:
        """The path of a result's file on this disk; None if there is none."""
        return await asyncio.to_thread(self._results.find, merged_subfolder(prompt_id, subfolder), filename)

    # Its face to the runner: `comfyui.executors.elsewhere.Elsewhere`

    async def submit(
        self, job: Assignment, request: PromptRequest, prompt: Mapping[str, Any], *, key: str | None, staging_s: float
    ) -> bool:
        body = await self._inputs.body(wanted_of(prompt, request), request, key)
        # It now waits for a worker as it would wait for its turn, whatever its callers do.
        job.accepted({})
        self._health.begin()
        taken = await self._submissions.send(job.prompt_id, job.attempts, body)
        if isinstance(taken, NotTaken):
            self._gate.refused(taken)
            return False
        self._gate.taken()
        self._runs[job.prompt_id] = Run(taken, staging_s=staging_s, since=time.monotonic())
        return True

    async def rejoin(self, job: Assignment, attempt: Attempt) -> None:
        if attempt.ref is None:
            raise unknown_submission("the gateway was stopped while it sent the prompt", job.prompt_id)
        self._runs[job.prompt_id] = Run(attempt.ref, has_reply=attempt.has_reply, since=time.monotonic())

    async def result(self, job: Assignment) -> PromptResult:
        prompt_id = job.prompt_id
        run = self._runs[prompt_id]
        prompt: Mapping[str, Any] = job.request.prompt if job.request is not None else {}
        telling = Telling(prompt_id, prompt, functools.partial(self._tell, job, run))
        try:
            outcome = await self._outcome(job, run, telling)
            return self._made(prompt_id, run, telling, outcome)
        except ComfyUIError as error:
            self._failed(prompt_id, run, telling, error)
            raise
        except asyncio.CancelledError:
            if run.is_running:
                # For the history of a prompt that was cancelled. Its end is told when that is written.
                telling.interrupted(tell=False)
                job.interrupted(self._made(prompt_id, run, telling, {}))
            raise
        finally:
            if self._runs.get(prompt_id) is run:
                del self._runs[prompt_id]

    async def _outcome(self, job: Assignment, run: Run, telling: Telling) -> JSON:
        """The job's outputs. Raises the job's error."""
        prompt_id, execution_ms = job.prompt_id, None
        prompt: Mapping[str, Any] = job.request.prompt if job.request is not None else {}
        if run.has_reply:
            body = await job.attempts.reply()
        else:

            def running(report: Any) -> None:
                run.began()
                telling.progressed(report)

            answer = await self._follower.end_of(prompt_id, run.job_id, running)
            if (error := error_of(answer, prompt, prompt_id)) is not None:
                raise error
            body, execution_ms = answer.body, answer.execution_ms
            # Recorded first, and without a time limit: RunPod will not keep it, and RunPod's SDK has already forgotten
            # it.
            await insist(lambda: job.attempts.delivered(run.job_id, body), self._options.times)
        run.began()
        telling.started(execution_ms)
        made_by = next(iter(node_order(last_nodes(prompt))), "0")
        try:
            outputs = await self._results.save(prompt_id, made_by, body)
        except ComfyUIServerError as error:
            # It has run: the same job again would bring the same result.
            raise task_failed(error.detail, prompt_id) from error
        telling.succeeded(outputs, execution_ms)
        return outputs

    def _made(self, prompt_id: str, run: Run, telling: Telling, outputs: JSON) -> PromptResult:
        executing_s = telling.executing_s
        queued_s = max(0.0, time.monotonic() - run.since - executing_s)
        timings = Timings(run.staging_s, queued_s=queued_s, executing_s=executing_s)
        return PromptResult(prompt_id, self.name, outputs, files_of(outputs), timings, {}, told=telling.told(outputs))

    def _failed(self, prompt_id: str, run: Run, telling: Telling, error: ComfyUIError) -> None:
        """Tells the end, and attaches the history's part to the error."""
        if isinstance(error, ComfyUIValidationError):
            return  # it has not run, and another server may run it
        if isinstance(error, ComfyUITaskCancelledError):
            telling.interrupted()
        else:
            task = error if isinstance(error, ComfyUITaskError) else None
            kind = (task.exception_type if task is not None else None) or ERROR_TYPE
            trace = [f"{line}\n" for line in task.traceback_tail] if task is not None else []
            telling.failed(message_of(error), kind, task.node_id if task is not None else None, trace)
        error.saved = self._made(prompt_id, run, telling, {})

    # Events

    def _tell(self, job: Assignment, run: Run, kind: str, data: Mapping[str, Any]) -> None:
        event = event_of(kind, data)
        job.publish(event)
        frame = jsonio.dumps({"type": kind, "data": data})
        if kind in _HOLDS_ON:
            run.latest[kind] = frame
        for listener in self._frames:
            if kind == _START or listener.wants(job.prompt_id):
                listener.heard(self.name, job.prompt_id, event, frame)

    def running_frames(self) -> list[tuple[str, list[bytes]]]:
        """Each job that a worker has, with its latest frames."""
        return [(prompt_id, list(run.latest.values())) for prompt_id, run in self._runs.items() if run.latest]

    # Changes

    def _count(self, state: str) -> float:
        running = sum(run.is_running for run in self._runs.values())
        counts = {"waiting": self.in_flight - len(self._runs), "running": running, "pending": len(self._runs) - running}
        return float(counts[state])

    def _trouble_changed(self, trouble: str) -> None:
        self._metrics.server_up.labels(self.name).set(not trouble)
        self._changed.set()
        self._changed = asyncio.Event()
        self._news.set()

    def _inputs_removed(self) -> None:
        self.epoch += 1

    def _give_up(self, task: asyncio.Task[Any]) -> None:
        """A bug of ours: no prompt may be accepted that would not be sent or followed."""
        _log.critical("runpod.crashed", task=task.get_name(), exc_info=task.exception())
        self._health.give_up("a part of the gateway failed; its log has the reason. Restart it")
