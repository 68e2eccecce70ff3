"""The RunPod serverless worker: ``python -m comfyui.workers.runpod_worker``. The only file that knows RunPod's SDK.

All of ours runs in the SDK's own event loop: ComfyUI is started with the first turn of its loop, before the first job
is taken, and is stopped when the loop ends. `--rp_serve_api` and `--test_input` have no such turn; there the first job
starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import structlog

from comfyui.events import Event
from comfyui.exceptions import ComfyUIError, SettingsError
from comfyui.logs import configure_logging
from comfyui.models import PromptResult
from comfyui.outputs.files import OutputFiles
from comfyui.outputs.stores.store import StoreCheck
from comfyui.settings import ENV_FILE, load
from comfyui.tasks import SideTasks, happens_within
from comfyui.workers.base import ComfyUIWorker, prompt_id_for_job
from comfyui.workers.diagnostics import diagnostics, environment, error_members, error_text, log_environment
from comfyui.workers.progress import ProgressReport, ProgressTracker
from comfyui.workers.results import saved_before
from comfyui.workers.runpod.job import JobInput, job_fields, max_reply_bytes, parse_input, reply
from comfyui.workers.runpod.settings import RunPodSettings

_PLATFORM = "runpod"
# The least time between two reports of a job's progress.
_PROGRESS_INTERVAL_S = 1.0
_LONGEST_ERROR = 16_000
# The SDK sends each update in a thread of its own, which has its target's name; there is no other way to wait for it.
_UPDATE_THREAD = "(_thread_target)"
_UPDATE_PATIENCE_S = 10.0
_SDK_RUNS_JOBS = "JobScaler.run_jobs"
_SDK_WAITS_FOR_NEWS = frozenset({"JobScaler.get_jobs", "JobScaler.monitor_stop_signals"})

Job = Mapping[str, Any]


class ServerlessSdk(Protocol):
    """The part of ``runpod.serverless`` that we use."""

    def start(self, config: dict[str, Any]) -> None: ...

    def progress_update(self, job: Job, progress: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class _Running:
    """The objects that live as long as the SDK's loop."""

    worker: ComfyUIWorker
    files: OutputFiles
    store_check: StoreCheck | None


class RunPodWorker:
    """Handles jobs; everything that owns I/O lives in one task of the loop that first asks for it."""

    def __init__(
        self, settings: RunPodSettings, sdk: ServerlessSdk, *, progress_interval_s: float = _PROGRESS_INTERVAL_S
    ) -> None:
        self._settings = settings
        self._progress_interval_s = progress_interval_s
        self._sdk = sdk
        self._log = structlog.get_logger(__name__)
        self._running: asyncio.Future[_Running] | None = None
        self._tasks = SideTasks()

    # Called by the SDK

    def concurrency(self, _current: int) -> int:
        """The SDK's ``concurrency_modifier``: called in its loop before every job that it takes."""
        if self._running is None:
            self._start()
            _drain_on_sigterm(lambda: self._in_background(self._drain(), "drain"))
        return self._settings.jobs_at_once

    async def handle(self, job: Job) -> dict[str, Any]:
        """One job. Cancelled by the SDK when the platform stops it: ComfyUI is told to stop the prompt, too.

        Returns:
            The reply; a failed job's has ``error``, a text, and no files.
        """
        with structlog.contextvars.bound_contextvars(job_id=job["id"]):
            async with AsyncExitStack() as stack:
                answer = await self._answer(job, stack)
            if self._settings.refresh_worker:
                answer["refresh_worker"] = True
            return answer

    async def close(self) -> None:
        """Stops ComfyUI, which gets its time for it, and closes everything that is open."""
        await self._tasks.close()

    async def _drain(self) -> None:
        """After SIGTERM: finishes and reports the running jobs, then ends the SDK's loop, which closes everything of
        ours.

        The requests for jobs end first: ComfyUI may take its time to stop, and a job that came then would be lost.
        """
        await _until_jobs_are_reported()
        _end_long_polls()

    async def _answer(self, job: Job, stack: AsyncExitStack) -> dict[str, Any]:
        """`stack` is left when the reply is whole: until then the job's files are not cleaned away."""
        parsed: JobInput | None = None
        try:
            parsed = parse_input(job.get("input"))
            running = await asyncio.shield(self._start())
            await stack.enter_async_context(running.worker.folders.job())
            return await self._run(running, job, parsed)
        except ComfyUIError as error:
            self._log.warning("job.failed", code=error.code, detail=error.detail)
            answer = await self._failure(error, job, parsed)
            # ComfyUI and its nodes are other people's programs: we do not choose the texts of their errors.
            for secret in parsed.secrets.values() if parsed else ():
                answer = _without(secret, answer)
            return answer

    async def _run(self, running: _Running, job: Job, parsed: JobInput) -> dict[str, Any]:
        prompt_id = parsed.prompt_id or prompt_id_for_job(_PLATFORM, str(job["id"]))
        if parsed.workflow_name is None:
            request = parsed.request(prompt_id)
        else:
            await running.worker.wait_until_ready()
            request = await parsed.named_request(prompt_id, running.worker.named)
        parsed.check_placement(running.files)
        if running.store_check is not None and parsed.may_be_stored:
            # Before the GPU is used for files that could not be delivered.
            await running.store_check.ensure()
        async with _progress(self._sdk, job, request.prompt, self._progress_interval_s) as listener:
            result = await running.worker.run(request, listener=listener, fields=job_fields(parsed, request))
            return await self._reply(running, result, job, parsed)

    async def _reply(self, running: _Running, result: PromptResult, job: Job, parsed: JobInput) -> dict[str, Any]:
        return await reply(
            running.files, result, parsed, max_bytes=max_reply_bytes(str(job["id"]), self._settings.max_result_mb)
        )

    async def _failure(self, error: ComfyUIError, job: Job, parsed: JobInput | None) -> dict[str, Any]:
        """The reply of a failed job: ``error`` as text, which RunPod shows, and the same in members."""
        answer: dict[str, Any] = {**error_members(error), "images": [], "files": [], "outputs": {}}
        worker = self._worker()
        if worker is not None and self._running is not None:
            saved = saved_before(error)
            if saved is not None and parsed is not None:
                with contextlib.suppress(ComfyUIError):
                    found = await self._reply(self._running.result(), saved, job, parsed)
                    answer |= {
                        name: found[name] for name in ("images", "files", "outputs", "timings", "execution_time")
                    }
            answer["diagnostics"] = await environment(worker)
            answer["error"] = f"{error_text(error)}\n{await diagnostics(worker)}"[:_LONGEST_ERROR]
            if worker.given_up:
                # This one will never do a job again; RunPod replaces it.
                answer["refresh_worker"] = True
        else:
            answer["error"] = error_text(error)
        if parsed is not None:
            answer["warnings"] = list(parsed.warnings)
        return answer

    # The life of the loop

    def _worker(self) -> ComfyUIWorker | None:
        running = self._running
        return running.result().worker if running and running.done() and not running.exception() else None

    def _start(self) -> asyncio.Future[_Running]:
        if self._running is None:
            self._running = asyncio.get_running_loop().create_future()
            self._in_background(self._own(self._running), "ComfyUI worker")
        return self._running

    async def _own(self, running: asyncio.Future[_Running]) -> None:
        """The SDK cancels all tasks when its loop ends: that closes everything, in reverse order."""
        async with AsyncExitStack() as stack:
            try:
                worker = await stack.enter_async_context(ComfyUIWorker(self._settings.worker_options()))
                store = self._settings.store()
                if store is not None:
                    await stack.enter_async_context(store)
                files = await stack.enter_async_context(worker.output_files(store))
                running.set_result(_Running(worker, files, StoreCheck(store) if store else None))
            except Exception as error:
                self._log.exception("worker.cannot_start")
                running.set_exception(error)
                return
            # Its waiters get the error.
            with contextlib.suppress(ComfyUIError):
                await worker.wait_until_ready()
                await log_environment(worker)
            await asyncio.Event().wait()

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        # A context of its own: the lines that it logs later are not of the job that happened to start it.
        self._tasks.start(work, name, contextvars.Context())


def _without(secret: str, value: Any) -> Any:
    """The value without the secret in any of its texts."""
    if isinstance(value, str):
        return value.replace(secret, "***")
    if isinstance(value, Mapping):
        return {name: _without(secret, member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_without(secret, member) for member in value]
    return value


# Progress


@asynccontextmanager
async def _progress(
    sdk: ServerlessSdk, job: Job, workflow: Mapping[str, Any], interval_s: float
) -> AsyncIterator[Callable[[Event], None]]:
    """A listener that reports a prompt's progress to the platform: the latest state, not more often than `interval_s`.

    The SDK posts an update to the address of the result and promises no order, so an update may neither be sent while
    another is on its way nor when the result is: leaving the context waits for the last one.
    """
    tracker = ProgressTracker(workflow)
    latest: list[ProgressReport] = []
    changed, done = asyncio.Event(), asyncio.Event()

    def listener(event: Event) -> None:
        if (report := tracker.observe(event)) is not None:
            latest[:] = [report]
            changed.set()

    async def send_all() -> None:
        while True:
            await changed.wait()
            changed.clear()
            if done.is_set():
                return
            await asyncio.to_thread(_send_update, sdk, job, latest[0].to_json())
            await happens_within(done, interval_s)

    sender = asyncio.create_task(send_all(), name="progress")
    try:
        yield listener
    finally:
        done.set()
        changed.set()
        await asyncio.wait([sender])
        if (error := sender.exception()) is not None:
            structlog.get_logger(__name__).warning("progress.failed", reason=str(error))


def _send_update(sdk: ServerlessSdk, job: Job, progress: Mapping[str, Any]) -> None:
    """Returns when the update was sent, or could not be sent in time."""
    sdk.progress_update(job, progress)
    deadline = time.monotonic() + _UPDATE_PATIENCE_S
    for thread in threading.enumerate():
        if thread.name.endswith(_UPDATE_THREAD):
            thread.join(max(0.0, deadline - time.monotonic()))


# Shutdown


def _drain_on_sigterm(drain: Callable[[], None]) -> None:
    """Works beside the SDK's own handler, which was installed before and lets running jobs finish."""
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGTERM)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if callable(previous):
            previous(number, frame)
        loop.call_soon_threadsafe(drain)

    signal.signal(signal.SIGTERM, on_signal)


async def _until_jobs_are_reported() -> None:
    running = [task for task in asyncio.all_tasks() if _coroutine_of(task) == _SDK_RUNS_JOBS]
    if running:
        await asyncio.wait(running)


def _end_long_polls() -> None:
    """End the SDK's requests for jobs and stop signals, when all jobs are done and reported.

    The SDK would wait up to 90 s for their answers, longer than a stopping container gets; and a job in such an answer
    would never run.
    """
    for task in asyncio.all_tasks():
        if _coroutine_of(task) in _SDK_WAITS_FOR_NEWS:
            task.cancel()


def _coroutine_of(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "")


def main() -> int:
    """Run until SIGTERM comes. Exit status 2 when a setting cannot be used."""
    try:
        settings = load(RunPodSettings, env_file=ENV_FILE)
    except SettingsError as error:
        print(f"the RunPod worker cannot start:\n{error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_output)
    # At DEBUG, its default, it writes every reply and, in local mode, every input, with callers' keys.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    sdk: ServerlessSdk = importlib.import_module("runpod.serverless")
    worker = RunPodWorker(settings, sdk)
    # For the time before the SDK has its own handler, and for its local API, whose uvicorn raises the signal again at
    # its end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        sdk.start({"handler": worker.handle, "concurrency_modifier": worker.concurrency})
    except asyncio.CancelledError:
        # `_end_long_polls` ended its loop.
        structlog.get_logger(__name__).info("worker.stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
