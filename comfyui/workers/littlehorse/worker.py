"""The worker for LittleHorse: ``python -m comfyui.workers.littlehorse_worker``. The only file that knows its SDK."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import grpc
import structlog
from aiohttp import web
from littlehorse import create_task_def
from littlehorse import worker as sdk
from littlehorse.config import LHConfig
from littlehorse.exceptions import LHTaskException
from littlehorse.utils import to_variable_value
from littlehorse.worker import LHTaskWorker, WorkerContext
from prometheus_client import generate_latest
from pydantic import ValidationError

from comfyui import jsonio
from comfyui.events import Event, ExecutionStart
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIValidationError,
    SettingsError,
    TaskFailedError,
)
from comfyui.logs import configure_logging
from comfyui.models import OutputFile, PromptRequest, PromptResult
from comfyui.outputs.keys import local_path
from comfyui.retrying import Backoff
from comfyui.settings import ENV_FILE, load
from comfyui.tasks import end_tasks, happens_within
from comfyui.workers.base import ComfyUIWorker, JobFields, prompt_id_for_job, stop_on_signals
from comfyui.workers.diagnostics import describing, environment, error_members
from comfyui.workers.littlehorse.gate import TaskGate
from comfyui.workers.littlehorse.settings import LittleHorseSettings, server_of
from comfyui.workers.named import NAME_FIELD, PARAMETERS_FIELD, named_request
from comfyui.workers.progress import ProgressTracker
from comfyui.workers.results import result_members, saved_before

TASK_NAME = "execute-comfyui-workflow"

_log = structlog.get_logger("littlehorse_worker")
_RPC_TIMEOUT_S = 10
# A lost connection to LittleHorse is made again after at most this time.
_HEARTBEAT_S = 5
_BACKOFF = Backoff(start_s=0.4, max_s=15.0)
# The SDK's tries to report: 15 times, 2 s apart.
_REPORT_S = 40.0
# gRPC's limit for one message, which the server does not raise, is 4 MiB; output and log travel in one.
_MAX_OUTPUT_BYTES = 3 << 20
_MAX_LOG_LINES = 100
_MAX_LINE = 2000
_MAX_FILES = 1000
_PROGRESS_STEP = 0.25
_FIRST_LOOK_S = 0.1

_REFUSALS = frozenset({400, 413, 422})
# Failures that the same task would meet again: LittleHorse does not retry these, a workflow may handle them by name.
_EXCEPTION_NAMES = {
    "validation_failed": "invalid-workflow",
    "input_failed": "invalid-input",
    "task_failed": "node-error",
    "task_cancelled": "cancelled",
    "prompt_quarantined": "quarantined",
}


class GatedConfig(LHConfig):
    """The SDK's configuration with our defaults, whose stubs pass through the gate; it closes the channels that it
    opened.
    """

    def __init__(self, settings: LittleHorseSettings, gate: TaskGate) -> None:
        super().__init__()
        # The environment's values for the SDK itself win over these.
        self.load(
            {
                **(server_of(settings.lh_host) if settings.lh_host else {}),
                "LHW_NUM_WORKER_THREADS": str(settings.lhw_num_worker_threads),
            }
        )
        self._gate = gate
        self._channels: list[tuple[Any, bool]] = []

    def stub(self, server: str | None = None, name: str = "default", async_channel: bool = False) -> Any:
        stub = super().stub(server, name, async_channel)
        if async_channel:
            stub.PollTask = self._gate.poll(stub.PollTask)
            stub.ReportTask = self._gate.report(_clean(stub.ReportTask))
        return stub

    def establish_channel(self, server: str | None = None, async_channel: bool = False) -> Any:
        channel = super().establish_channel(server, async_channel)
        self._channels.append((channel, async_channel))
        return channel

    async def close(self) -> None:
        for channel, is_async in self._channels:
            if is_async:
                await channel.close()
            else:
                await asyncio.to_thread(channel.close)


def _clean(report_task: Any) -> Any:
    async def cleaned(result: Any, **options: Any) -> Any:
        without_traceback(result)
        return await report_task(result, **options)

    return cleaned


class TaskLog:
    """The task's log in LittleHorse: few lines, each of a bounded length, since it travels with the output."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._lines = 0

    def say(self, text: str) -> None:
        self._lines += 1
        if self._lines <= _MAX_LOG_LINES:
            self._context.log(text[:_MAX_LINE])


class WorkflowTask:
    """The task ``execute-comfyui-workflow``."""

    def __init__(self, comfyui: ComfyUIWorker, settings: LittleHorseSettings) -> None:
        self._comfyui = comfyui
        self._settings = settings

    async def execute(self, workflow: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
        """Run a workflow in ComfyUI's API format; gives ``{"prompt_id", "outputs": [paths], …}``.

        `workflow` may also be ``{"workflow_name": …, "parameters": {…}}``: see docs/workflows.md.

        The prompt id comes from the task run, not from its attempt: a retry attaches to the running prompt.

        Raises:
            LHTaskException: ``invalid-workflow``, ``missing-model``, ``invalid-input``, ``node-error``, ``cancelled``,
                ``quarantined``, ``no-outputs``, ``output-too-large``: the same task again would fail, too.
            TaskFailedError: unreachable, lost, timed out: LittleHorse may retry.
        """
        run_id = context.task_run_id
        prompt_id = prompt_id_for_job("littlehorse", f"{run_id.wf_run_id.id}/{run_id.task_guid}")
        log = TaskLog(context)
        with structlog.contextvars.bound_contextvars(prompt_id=str(prompt_id), wf_run=run_id.wf_run_id.id):
            async with self._comfyui.folders.job():
                try:
                    return self._output(await self._run(workflow, str(prompt_id), log), log)
                except ComfyUIError as error:
                    log.say(f"failed: {error.detail}")
                    _log.warning("task.failed", type=error.code, detail=error.detail)
                    await self._raise(error)

    async def _request(self, workflow: Any, prompt_id: str) -> PromptRequest:
        """The request of a graph, or of a named workflow with its parameters. Raises `ComfyUIError`."""
        if isinstance(workflow, Mapping) and isinstance(workflow.get(NAME_FIELD), str):
            if unknown := workflow.keys() - {NAME_FIELD, PARAMETERS_FIELD}:
                raise ComfyUIValidationError(f"workflow.{min(unknown)} must not be given together with {NAME_FIELD}")
            await self._comfyui.wait_until_ready()
            parameters = workflow.get(PARAMETERS_FIELD, {})
            fields = {"prompt_id": prompt_id}
            return await named_request(self._comfyui.named, workflow[NAME_FIELD], parameters, fields, where="workflow.")
        try:
            return PromptRequest.model_validate({"prompt": workflow, "prompt_id": prompt_id})
        except ValidationError as error:
            reasons = "; ".join(str(item["msg"]) for item in error.errors())
            raise ComfyUIValidationError(f"workflow: {reasons}", prompt_id=prompt_id) from None

    async def _run(self, workflow: Any, prompt_id: str, log: TaskLog) -> PromptResult:
        request = await self._request(workflow, prompt_id)
        log.say(f"prompt {prompt_id}")
        started = asyncio.Event()
        looking = asyncio.create_task(self._tell_position(prompt_id, started, log), name=f"position {prompt_id}")
        try:
            return await self._comfyui.run(
                request,
                timeout_s=self._settings.comfyui_history_timeout_sec,
                listener=_listener(request.prompt, started, log),
                fields=JobFields("workflow"),
            )
        finally:
            await end_tasks(looking)

    async def _tell_position(self, prompt_id: str, started: asyncio.Event, log: TaskLog) -> None:
        """Logs the prompt's place in ComfyUI's queue, until it runs."""
        said: int | None = None
        interval_s = _FIRST_LOOK_S
        while not started.is_set():
            if await happens_within(started, interval_s):
                return
            interval_s = self._settings.comfyui_poll_interval_sec
            for backend in self._comfyui.pool.ready:
                with contextlib.suppress(ComfyUIError):
                    queue = await backend.client.get_queue()
                    item = queue.get(prompt_id)
                    if item is None or item.running or started.is_set():
                        continue
                    before = sum(other.running or other.number < item.number for other in queue.values())
                    if before != said:
                        said = before
                        log.say(f"queued, {before} before it")

    def _output(self, result: PromptResult, log: TaskLog) -> dict[str, Any]:
        kept = [file for file in result.files if file.type == "output"]
        log.say(f"collecting {len(kept)} file{'' if len(kept) == 1 else 's'}")
        if not kept:
            previews = f" but {len(result.files)} previews" if result.files else ""
            raise LHTaskException("no-outputs", f"ComfyUI finished the prompt but lists no output file{previews}")
        output = {**result_members(result, [_told(file) for file in kept]), "outputs": self._paths(kept)}
        if len(jsonio.dumps(output)) > _MAX_OUTPUT_BYTES:
            detail = (
                f"the paths of {len(kept)} files do not fit into a message; the files are in ComfyUI's output folder"
            )
            raise LHTaskException("output-too-large", detail)
        log.say(f"done in {result.timings.total_s:.1f} s")
        return output

    def _paths(self, files: Sequence[OutputFile]) -> list[str]:
        return [local_path(self._settings.reader_output_dir, file) for file in files]

    async def _raise(self, error: ComfyUIError) -> NoReturn:
        message = f"{error.title}: {error.detail}"[:_MAX_LINE]
        refused = error.status in _REFUSALS and not error.retryable
        name = _EXCEPTION_NAMES.get(error.code) or ("invalid-workflow" if refused else None)
        if name is None:
            raise TaskFailedError(f"{message}\nprompt_id: {error.prompt_id}" if error.prompt_id else message) from None
        if isinstance(error, ComfyUIValidationError) and "missing_model_file" in error.codes:
            name = "missing-model"
        raise LHTaskException(name, message, to_variable_value(await self._content(error))) from None

    async def _content(self, error: ComfyUIError) -> dict[str, Any]:
        """The content that a handler in the workflow can read; bounded, like everything in the report."""
        members = error_members(error)
        members["detail"] = error.detail[:_MAX_LINE]
        members["node_errors"] = {
            node_id: [message[:_MAX_LINE] for message in messages[:5]]
            for node_id, messages in list(error.node_errors.items())[:_MAX_LOG_LINES]
        }
        saved = saved_before(error)
        files = [file for file in saved.files if file.type == "output"][:_MAX_FILES] if saved else []
        members |= {"outputs": self._paths(files), "files": [_told(file) for file in files]}
        members["diagnostics"] = await environment(self._comfyui)
        return members


def _listener(prompt: Mapping[str, Any], started: asyncio.Event, log: TaskLog) -> Any:
    tracker = ProgressTracker(prompt)
    next_said = _PROGRESS_STEP

    def listen(event: Event) -> None:
        nonlocal next_said
        if isinstance(event, ExecutionStart) and not started.is_set():
            log.say("running")
            started.set()
        report = tracker.observe(event)
        if report is not None and report.fraction >= next_said:
            next_said = report.fraction + _PROGRESS_STEP
            log.say(f"{report.fraction:.0%} {report.title}")

    return listen


def _told(file: OutputFile) -> dict[str, Any]:
    """A file's entry, the same on every platform; `outputs` says where the file is."""
    told: dict[str, Any] = {**file.to_json()}
    del told["url"]
    return told


def without_traceback(result: Any) -> None:
    """The SDK reports a failure by its traceback, with the paths of this machine: leaves only the message for
    others.
    """
    if not result.HasField("error") or "Traceback (most recent call last)" not in result.error.message:
        return
    _, ours, said = result.error.message.rpartition(f"{TaskFailedError.__name__}: ")
    result.error.message = f"{ours}{said.strip()}" if ours else "the worker failed; its log has the reason"


async def serve(settings: LittleHorseSettings, stop: asyncio.Event) -> bool:
    """Works until `stop` is set, then finishes and reports the running tasks; False if one could not be reported.

    Raises:
        grpc.RpcError: the server refuses us or the task's definition.
    """
    # The SDK rebuilds a lost connection at its next heartbeat, and has its interval as a constant: one minute.
    sdk.HEARTBEAT_INTERVAL_SECONDS = _HEARTBEAT_S
    async with AsyncExitStack() as stack:
        comfyui = await stack.enter_async_context(ComfyUIWorker(settings.worker_options()))
        gate = TaskGate(
            settings.lhw_num_worker_threads, lambda: _until_ready(comfyui), report_tries=sdk.REPORT_TASK_FAIL_RETRIES
        )
        config = GatedConfig(settings, gate)
        stack.push_async_callback(config.close)
        await stack.enter_async_context(describing(comfyui))
        task = WorkflowTask(comfyui, settings)
        worker = LHTaskWorker(task.execute, TASK_NAME, config)
        if settings.health_port:
            await _serve_health(stack, settings.health_port, worker, comfyui)
        if not await _register(task, config, stop):
            return True
        _log.info("worker.started", server=config.bootstrap_server, task=TASK_NAME, jobs=config.num_worker_threads)
        polling = asyncio.create_task(worker.start(), name="littlehorse worker")
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([polling, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if polling.done():
            polling.result()
        finished = await gate.drain(worker.stop, grace_s=settings.comfyui_history_timeout_sec + _REPORT_S)
        await end_tasks(polling)
    _log.info("worker.stopped", all_reported=finished)
    return finished


async def _until_ready(comfyui: ComfyUIWorker) -> None:
    while True:
        try:
            return await comfyui.wait_until_ready()
        except ComfyUIConnectionError as error:
            _log.warning("comfyui.not_ready", detail=error.detail)


async def _register(task: WorkflowTask, config: GatedConfig, stop: asyncio.Event) -> bool:
    """Put the task's definition, as soon as the server answers; False when `stop` came before."""
    failures = 0
    while not stop.is_set():
        try:
            # Synchronous in the SDK: not for the event loop.
            await asyncio.to_thread(create_task_def, task.execute, TASK_NAME, config, _RPC_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise
            failures += 1
            if failures == 1:
                _log.warning("littlehorse.unavailable", server=config.bootstrap_server, until_then="trying again")
        else:
            return True
        await happens_within(stop, _BACKOFF.delay_s(failures))
    return False


async def _serve_health(stack: AsyncExitStack, port: int, worker: LHTaskWorker, comfyui: ComfyUIWorker) -> None:
    async def health(_request: web.Request) -> web.Response:
        said = worker.health()
        why_not = comfyui.handler.why_not_ready() if comfyui.connected else "not reached yet"
        healthy = said.healthy and why_not is None
        body = {
            "status": "healthy" if healthy else "unhealthy",
            "littlehorse": said.reason.value,
            "comfyui": why_not or "connected",
        }
        return web.json_response(body, status=200 if healthy else 503)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(comfyui.metrics.registry), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, port=port).start()


def main() -> int:
    """0: stopped as asked; 1: LittleHorse refuses us, or a task could not be reported; 2: bad settings."""
    try:
        settings = load(LittleHorseSettings, env_file=ENV_FILE)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_output)
    try:
        return 0 if asyncio.run(_main(settings)) else 1
    except grpc.RpcError as error:
        print(f"LittleHorse refused the worker: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1


async def _main(settings: LittleHorseSettings) -> bool:
    return await serve(settings, stop_on_signals())


if __name__ == "__main__":
    sys.exit(main())
