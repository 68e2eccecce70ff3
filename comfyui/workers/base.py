"""Shared by the workers of all job platforms: ids from job ids, one ComfyUI, one job at a time.

A worker opens one `ComfyUIWorker` with the options that it made of its settings, and calls `run` for each job.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self
from uuid import UUID, uuid5

import structlog

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIInputError,
    ComfyUIShutdownError,
    ComfyUITimeoutError,
)
from comfyui.executors.checking import Strictness
from comfyui.executors.comfyui import RunnerOptions
from comfyui.executors.quarantine import Quarantine
from comfyui.handler import ComfyUIHandler, HandlerOptions
from comfyui.inputs.staging import InputStager
from comfyui.jobs.entries import Entries
from comfyui.jobs.job import Listener
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.runs import RunLimits
from comfyui.metrics import Metrics
from comfyui.models import PromptRequest, PromptResult
from comfyui.named.library import FleetDefinitions, NamedWorkflows
from comfyui.outputs.files import OutputFiles, Patience
from comfyui.outputs.stores.store import ObjectStore
from comfyui.servers.backend import Backend
from comfyui.servers.idle import freeing_when_idle
from comfyui.servers.options import ServerOptions
from comfyui.servers.pool import BackendPool
from comfyui.servers.process import ComfyUIProcess, ProcessState
from comfyui.servers.server import Health
from comfyui.tasks import SideTasks
from comfyui.workers.cleanup import ComfyUIFolders
from comfyui.workers.options import WorkerOptions
from comfyui.workflows.api_format import check_api_format
from comfyui.workflows.node_definitions import ObjectInfo, input_specs

_IMAGE_FIELD = re.compile(r"images\[(\d+)\]\.image")
_NAMESPACE = UUID("6c1f0b5e-3c1d-5b62-9a55-0f6f2f0a8d11")
_WEBSOCKET_PATIENCE_S = 5.0
_TIMEOUT_MARGIN_S = 0.1
# While a cancelled prompt is seen to its end: the queue is short, since its worker runs one job at a time.
_LOOK_EVERY_S = 0.5
# A missing model is an error even if ComfyUI itself would find out only while it runs. The known definitions may be
# older than the model.
_STRICT = Strictness(also_refused=frozenset({"missing_model_file"}), max_age_s=0.0)


def prompt_id_for_job(platform: str, job_id: str) -> UUID:
    """The prompt id of a platform's job: the same job delivered again attaches to the render that runs."""
    return uuid5(_NAMESPACE, f"{platform}:{job_id}")


@dataclass(frozen=True, slots=True)
class JobFields:
    """The platform's names for a job's fields, which errors use.

    Attributes:
        workflow: the field that has the workflow.
        images: the names of `PromptRequest.images`, in their order; the request's own names for those beyond.
        target: ``(field, node id, input name)`` if a field of the job chose an input of a node.
    """

    workflow: str = "prompt"
    images: Sequence[str] = ()
    target: tuple[str, str, str] | None = None

    def name_of(self, field: str) -> str:
        """A field of `PromptRequest`, as ``images[0].image``, in the caller's words."""
        match = _IMAGE_FIELD.fullmatch(field)
        if match is not None and int(match[1]) < len(self.images):
            return self.images[int(match[1])]
        return self.workflow + field.removeprefix("prompt") if field.startswith("prompt.") else field

    def check_target(self, request: PromptRequest, object_info: ObjectInfo) -> None:
        """Raises `ComfyUIInputError` if the chosen node has no such input; an unknown node is not judged here."""
        if self.target is None:
            return
        field, node_id, input_name = self.target
        class_type = request.prompt[node_id]["class_type"]
        known = [spec.name for spec in input_specs(object_info.get(class_type) or {})]
        if known and input_name not in known:
            reason = f"{class_type} (node {node_id}) has no input {input_name!r}; its inputs are {', '.join(known)}"
            raise ComfyUIInputError(reason, field=field)


class ComfyUIWorker:
    """A handler on one ComfyUI. Open it with ``async with``; it owns the child, the connections, the session for URLs.

    Attributes:
        process: the child; None if another program starts ComfyUI.
        connected: ComfyUI was ready once, so that `pool` and `handler` can be used.
        named: the workflows that jobs may name.
        folders: a platform wraps each job, until its files are delivered, in ``folders.job()``.
    """

    def __init__(self, options: WorkerOptions, *, metrics: Metrics | None = None) -> None:
        self.options = options
        self.metrics = metrics or Metrics()
        self.process: ComfyUIProcess | None = _process(options) if options.command else None
        journal = MemoryJournal(max_bytes=options.max_journal_bytes)
        self.quarantine = Quarantine(options.quarantine_after, options.quarantine_s, journal)
        self.pool = BackendPool.connect(
            [options.server_address],
            ServerOptions(
                http_timeout_s=options.http_timeout_s,
                http_retries=options.http_retries,
                poll_interval_s=options.poll_interval_s,
                answers=options.answers,
            ),
            metrics=self.metrics,
        )
        self._stager = InputStager(
            max_bytes=options.max_input_bytes,
            url_allow=options.input_url_allow,
            url_timeout_s=options.input_url_timeout_s,
        )
        handler_options = HandlerOptions(
            run_limits=RunLimits(max_timeout_s=options.max_job_s),
            cancel_on_disconnect=options.cancel_abandoned,
            reattach_s=0.0,  # the platform delivers the job again, or never
            runner=RunnerOptions(
                submission_retries=options.http_retries,
                lost_prompt_retries=options.lost_prompt_retries,
                remember_losses=True,
                preflight=_STRICT,
            ),
        )
        self._handler = ComfyUIHandler(
            self.pool,
            self._stager,
            handler_options,
            metrics=self.metrics,
            quarantine=self.quarantine,
            entries=Entries(journal),
        )
        self.named = NamedWorkflows(options.workflows_dir, FleetDefinitions(self.pool, self._handler.fleet))
        self.connected = False
        self.folders = ComfyUIFolders(options.cleanup, self.forget_inputs)
        self._slot = asyncio.Semaphore(options.jobs_at_once)
        self._recovering = asyncio.Lock()
        self._ending = SideTasks()
        self._log = structlog.get_logger(__name__)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Starts ComfyUI if there is a command, without waiting for it."""
        async with AsyncExitStack() as stack:
            if self.process is not None:
                self._backend.hold("starting")
                await stack.enter_async_context(self.process)
                following = await stack.enter_async_context(SideTasks())
                following.start(self._follow(self.process), "follow ComfyUI's process")
            await stack.enter_async_context(self._stager)
            await stack.enter_async_context(self.folders)
            await stack.enter_async_context(self._ending)
            await stack.enter_async_context(self.named.following())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    @property
    def handler(self) -> ComfyUIHandler:
        """Only to cancel; run jobs with `run`.

        Raises:
            ComfyUIConnectionError: ComfyUI was never ready, so there is nothing to open or to cancel.
        """
        if not self.connected:
            raise ComfyUIConnectionError("ComfyUI is not ready yet")
        return self._handler

    @property
    def _backend(self) -> Backend:
        return self.pool.backends[0]

    @property
    def given_up(self) -> str | None:
        """Why ComfyUI is not started again, so that this worker does no more jobs; None while it runs or starts."""
        process = self.process
        if process is None or process.state is not ProcessState.FAILED:
            return None
        return f"ComfyUI does not run: {process.reason}"

    async def wait_until_ready(self) -> None:
        """Waits until ComfyUI takes prompts; one that answers but cannot run prompts is restarted first.

        Raises:
            ComfyUIConnectionError: it does not run and is not started again, or it does not answer in time.
        """
        await self._ending.join()
        async with self._recovering:
            backend = self._backend
            if self.process is not None:
                if backend.health is Health.BROKEN:
                    await self.process.restart()
                await self.process.wait_until_ready()
                backend.release()
            if not self.connected:
                # Only when the child is ready: an earlier question would only delay the next one.
                await self._stack.enter_async_context(self.pool)
                await self._stack.enter_async_context(self._handler)
                await self._stack.enter_async_context(freeing_when_idle(self.pool, self.options.free_after_idle_s))
                self.connected = True
            if not backend.ready:
                backend.look_again()
            await self.pool.choose(patience_s=self.options.start_timeout_s)
            if self.process is not None:
                await _websocket_connected(backend)

    async def run(
        self,
        request: PromptRequest,
        *,
        timeout_s: float | None = None,
        listener: Listener | None = None,
        fields: JobFields | None = None,
    ) -> PromptResult:
        """Run one job when its turn comes: wait for ComfyUI, have models and inputs checked, run; again if it crashed.

        When this is cancelled, ComfyUI is told to stop the prompt. `listener` gets the prompt's events.

        Args:
            timeout_s: for all of it, from the job's turn; without it `max_job_s`.
            fields: the caller's names for the request's fields.

        Raises:
            ComfyUIError: any of the tree.
        """
        check_api_format(request.prompt)
        self.quarantine.check(request.prompt, str(request.prompt_id))
        async with self._slot:
            loop = asyncio.get_running_loop()
            timeout_s = timeout_s or self.options.max_job_s
            deadline = loop.time() + timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._run(request, deadline, listener, fields or JobFields())
            except ComfyUITimeoutError as error:
                detail = f"the job did not finish within {timeout_s:g} s"
                raise ComfyUITimeoutError(detail, prompt_id=error.prompt_id) from error
            except ComfyUIInputError as error:
                if fields is None or not error.field:
                    raise
                raise error.in_field(fields.name_of(error.field)) from error
            except TimeoutError:
                detail = f"ComfyUI was not ready within {timeout_s:g} s"
                raise ComfyUITimeoutError(detail, prompt_id=str(request.prompt_id)) from None

    async def _run(
        self, request: PromptRequest, deadline: float, listener: Listener | None, fields: JobFields
    ) -> PromptResult:
        """Retries everything before the submission; the runner counts the tries after it."""
        failures = 0
        while True:
            try:
                await self.wait_until_ready()
                if fields.target is not None:
                    fields.check_target(request, await self._backend.object_info())
                left_s = deadline - asyncio.get_running_loop().time()
                # A moment less, so that it is the handler's timeout that comes: it ends the prompt, too.
                result = await self._submit(request, max(left_s - _TIMEOUT_MARGIN_S, 0.001), listener)
            except ComfyUIShutdownError:
                raise
            except ComfyUIConnectionError as error:
                failures += 1
                # Our own child is started again until it is given up; nothing tells when another's is.
                if self.given_up or (self.process is None and failures > self.options.lost_prompt_retries):
                    raise
                self._log.warning("job.again", prompt_id=error.prompt_id, detail=error.detail)
            else:
                if self.process is not None:
                    self.process.prove()
                return result

    async def _submit(self, request: PromptRequest, timeout_s: float, listener: Listener | None) -> PromptResult:
        try:
            return await self._handler.submit_prompt_sync(request, timeout_s=timeout_s, listener=listener)
        except ComfyUITimeoutError:
            self._see_it_end(request)
            raise
        except asyncio.CancelledError:
            if self.options.cancel_abandoned:
                self._see_it_end(request)
            raise

    async def cancel(self, request: PromptRequest) -> None:
        """Take the job's prompt out of ComfyUI. Raises as `ComfyUIHandler.cancel`."""
        self._see_it_end(request)
        await self.handler.cancel(str(request.prompt_id))

    def _see_it_end(self, request: PromptRequest) -> None:
        """The prompt was cancelled; if it does not stop, the child is restarted. The next job waits for that."""
        if self.process is not None:
            self._ending.start(self._restart_if_hung(self.process, request), "see it end")

    async def _restart_if_hung(self, process: ComfyUIProcess, request: PromptRequest) -> None:
        prompt_id = str(request.prompt_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.hung_after_s
        pid = process.pid
        while process.state is ProcessState.READY and process.pid == pid:
            with contextlib.suppress(ComfyUIError):
                item = (await self._backend.client.get_queue()).get(prompt_id)
                if item is None:
                    return
            if loop.time() >= deadline:
                self._log.error("comfyui.hung", prompt_id=prompt_id, cancelled_s=self.options.hung_after_s)
                await self.quarantine.ended_comfyui(
                    request.prompt, "ComfyUI hung and ignored the interrupt", process.recent_lines
                )
                await process.restart()
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _follow(self, process: ComfyUIProcess) -> None:
        """Tells the pool when the child ends, so that its prompts are lost, and when it is given up for good."""
        backend, crashes, before = self._backend, 0, process.state
        while True:
            if process.crashes != crashes and process.last_death is not None:
                crashes = process.crashes
                backend.process_ended(process.last_death)
            if process.state is ProcessState.FAILED:
                backend.abandon(f"ComfyUI does not run: {process.reason}")
            elif process.state is ProcessState.READY:
                backend.release()
            elif process.state is ProcessState.STARTING and before is ProcessState.READY:
                backend.hold("ComfyUI is being restarted")
                backend.watcher.give_up("ComfyUI was restarted")
            before = process.state
            await process.wait_for_change()

    def output_files(self, store: ObjectStore | None) -> OutputFiles:
        """The files of its results; the code that delivers them opens it."""
        options = self.options
        patience = Patience(options.delivery_retries, options.delivery_backoff, ready=self.wait_until_ready)
        return OutputFiles(self.pool.open_file, store, patience=patience)

    def forget_inputs(self) -> None:
        """Files were removed from ComfyUI's input folder: earlier uploads are uploaded again when needed."""
        for backend in self.pool.backends:
            self._stager.forget(backend)


def _process(options: WorkerOptions) -> ComfyUIProcess:
    return ComfyUIProcess(
        options.command,
        options.server_address,
        cwd=options.comfyui_dir,
        start_timeout_s=options.start_timeout_s,
        restart_delay_s=options.restart_delay_s,
        on_line=options.on_line,
    )


async def _websocket_connected(backend: Backend) -> None:
    """Waits until it is connected, or a moment: a prompt that is queued before has no events, and so no progress."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WEBSOCKET_PATIENCE_S):
            while not backend.watcher.connected:  # noqa: ASYNC110 - the watcher tells its backend, and nobody else
                await asyncio.sleep(0.02)


def stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets: take no more jobs, finish the running one, end.

    A second one ends the process at once, as if nothing had been installed.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    return stop
