"""`ComfyUIHandler` runs a workflow and returns its result. It knows no transport: HTTP and the workers use it.

Each prompt is run by the one task of its `Job`, however many requests wait for it. The job goes on while at least one
request waits; a setting decides what happens when the last one leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, Self
from uuid import uuid4

from comfyui.exceptions import (
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ComfyUIShutdownError,
    ComfyUITimeoutError,
)
from comfyui.executors.comfyui import PromptRunner, RunnerOptions
from comfyui.executors.elsewhere import Elsewhere
from comfyui.executors.made_files import MadeFiles
from comfyui.executors.preparation import Preparation
from comfyui.executors.quarantine import Quarantine
from comfyui.inputs.catalogue import Catalogue
from comfyui.inputs.content import SpooledFiles
from comfyui.inputs.staging import InputStager
from comfyui.inputs.store import InputStore
from comfyui.jobs.admission import UNKNOWN, Admission, Look
from comfyui.jobs.cancels import Cancels, given_up
from comfyui.jobs.claims import Claims
from comfyui.jobs.entries import Entries
from comfyui.jobs.etas import Etas
from comfyui.jobs.fingerprints import fingerprint_of
from comfyui.jobs.history import JobHistory
from comfyui.jobs.inputs import JobInputs
from comfyui.jobs.job import Job, Listener, Reason
from comfyui.jobs.journal.records import State
from comfyui.jobs.moving import Moving
from comfyui.jobs.origin import OURS, Origin
from comfyui.jobs.queue import JobQueue
from comfyui.jobs.queue_options import QueueOptions
from comfyui.jobs.recovery import Recovery
from comfyui.jobs.refusals import Refusals
from comfyui.jobs.removal import Removal
from comfyui.jobs.runs import RunLimits, Runs, delayed_by
from comfyui.jobs.standing import StandingJobs
from comfyui.jobs.turns import Turns
from comfyui.jobs.uploads import Uploads
from comfyui.jobs.verdicts import Verdicts
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.metrics import Metrics
from comfyui.models import PromptRequest, PromptResult
from comfyui.offload import offloaded
from comfyui.outputs.delivery import Deliverer
from comfyui.owners import OwnerRules
from comfyui.replies import QueueItem
from comfyui.servers.fleet import Fleet
from comfyui.servers.pool import BackendPool
from comfyui.workflows.api_format import check_api_format


@dataclass(frozen=True, slots=True)
class HandlerOptions:
    """Options of the handler; the fields are the settings of the same names (docs/configuration.md)."""

    max_concurrent_requests: int = 1000
    cancel_on_disconnect: bool = True
    cancel_on_shutdown: bool = False
    reattach_s: float = 60.0
    run_limits: RunLimits = field(default_factory=RunLimits)
    queue: QueueOptions = field(default_factory=QueueOptions)
    last_cancels_s: float = 5.0
    """For cancels that still run at the end. Not a setting."""
    looks_back_s: float = 1.0
    """For ComfyUI to say how an interrupted prompt ended, if we show its history. Not a setting."""
    limits: Limits = DEFAULT_LIMITS
    runner: RunnerOptions = field(default_factory=RunnerOptions)


class Readiness(Protocol):
    """A reason for which the gateway is not ready, although it accepts prompts."""

    def why_not_ready(self, *, in_detail: bool) -> str | None:
        """The reason; None if there is none. Without `in_detail`, it has no addresses and no messages."""


class ComfyUIHandler:
    """Open it with ``async with``. The pool and the stager belong to their creator.

    Args:
        also_ready: what must be ready besides the servers.
        entries, inputs, deliverer: open; they belong to their creator. Default: memory, a temporary folder, none.
        elsewhere: runs the prompts of the pool's server that is no ComfyUI.
        owners: the rules of each owner: what it may use and see; None: everything.

    Attributes:
        admission, claims, verdicts: resolve ids and idempotency keys, and accept prompts as ComfyUI does.
        draining: set once it accepts no more prompts.
        moving: gives a waiting job another place in the order.
        made, uploads: files made by prompts, and files uploaded by clients, if prompts wait in the gateway.
        fleet: the definitions of all servers, as if they were one.
    """

    def __init__(
        self,
        pool: BackendPool,
        stager: InputStager,
        options: HandlerOptions | None = None,
        *,
        metrics: Metrics | None = None,
        quarantine: Quarantine | None = None,
        also_ready: Readiness | None = None,
        entries: Entries | None = None,
        owners: OwnerRules | None = None,
        inputs: InputStore | None = None,
        elsewhere: Elsewhere | None = None,
        deliverer: Deliverer | None = None,
    ) -> None:
        self.pool, self.metrics, self._also_ready = pool, metrics or Metrics(), also_ready
        self._options = options = options or HandlerOptions()
        self.entries = entries = entries or Entries()
        self.journal, self.claims = entries.journal, Claims(entries.journal.sent_under, "job")
        self.fleet, self.history = Fleet(pool, self.journal), JobHistory(self.journal, pool)
        self._inputs, self._owns_inputs = inputs or InputStore(None), inputs is None
        catalogue = Catalogue(self.journal, self._inputs, owners)
        self.uploads = Uploads(catalogue, self._inputs, stager, self.journal, pool)
        self._turns = Turns(pool, options.queue, catalogue, owners)
        self._quarantine = quarantine = quarantine or Quarantine(after=0)
        runner, limits, ours = options.runner, options.run_limits, options.queue.queue == "gateway"
        self.made = MadeFiles(self.journal, pool, max_bytes=stager.max_bytes) if ours else None
        preparation = Preparation(stager, catalogue, self.made, owners, runner.preflight, runner.limits)
        self._runner = PromptRunner(pool, self._turns, preparation, runner, self.metrics, quarantine, elsewhere)
        looks_back_s = options.looks_back_s if ours else 0.0
        self._cancels = Cancels(self._runner, self.metrics, last_s=options.last_cancels_s, looks_back_s=looks_back_s)
        self._runs = Runs(self._runner, self._cancels, limits, self.metrics, deliverer, shows_history=ours)
        brought = JobInputs(self._inputs, stager, pool, self.uploads, options.limits)
        self.queue = JobQueue(entries, pool, self._turns, self._runs, brought, options.queue)
        self.etas = Etas(pool, self._turns, self._runs)
        self.standing = StandingJobs(pool, self._turns, self._runs, self.queue, self._cancels)
        self.admission = Admission(entries, self._runs, self.queue, brought)
        self.moving = Moving(entries.journal, self._runs, self.queue, self._turns.numbers)
        self.removal = Removal(entries, pool, self.admission, self._runs, self.queue, self._turns, self._cancels)
        refusals = Refusals(pool, self._turns.abilities, catalogue, self.made, options.limits, runner.preflight)
        self.verdicts = Verdicts(self.admission, self._cancels, refusals, options.run_limits, options.limits)
        parts = (entries, pool, self._runner, self._runs, self.queue, self._cancels)
        self._recovery = Recovery(*parts, reattach_s=options.reattach_s)
        self._waiting, self.draining, self._idle = 0, asyncio.Event(), asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        """Resumes the jobs of the journal. Raises `JournalError`."""
        await self.fleet.open()
        await self.uploads.open()
        await self._quarantine.open()
        self._turns.open()
        await self._recovery.begin()
        await self.queue.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.draining.set()
        await self._recovery.close()
        await self.removal.close()
        await self.queue.close()
        await self._answer_all()
        await self._runs.stop()
        await self._cancels.close()
        await self._turns.close()
        await self.fleet.close()
        if self._owns_inputs:
            await self._inputs.__aexit__(*_exc)

    # The calls of clients

    async def submit_prompt_sync(
        self,
        request: PromptRequest,
        *,
        timeout_s: float,
        files: SpooledFiles | None = None,
        fresh_id: str | None = None,
        listener: Listener | None = None,
        origin: Origin = OURS,
        returns_s: float | None = None,
    ) -> PromptResult:
        """Runs the workflow and waits for it; the same ``prompt_id`` again joins the run, or returns its result.

        Args:
            files: further inputs; kept as long as the prompt needs them, which may be longer than this call.
            fresh_id: a new UUID to use if the request has no ``prompt_id``; one is made when not given.
            listener: gets the prompt's events while this call waits.
            returns_s: how long the job waits for a caller who has left and may return; None: the caller cannot.

        Raises:
            ComfyUIError: any of the tree, with the ``prompt_id`` if there is one.
        """
        with self._admitted():
            await offloaded(request.size, check_api_format, request.prompt, self._options.limits)
            prompt_id = str(request.prompt_id or fresh_id or uuid4())
            request = origin.admitted(request)
            if request.prompt_id is None:
                async with self.admission.room_for(origin):
                    job = self.admission.start(prompt_id, origin, request, files, returns_s=returns_s)
                return await self._wait(job, timeout_s, listener, may_cancel=True)
            fingerprint = await offloaded(request.size, fingerprint_of, request, files)
            timeout_s = await self._cancels.ended(prompt_id, timeout_s)
            found = await self.admission.to_wait_for(prompt_id, origin, request, files, fingerprint)
            if isinstance(found, PromptResult):
                return found
            return await self._wait(found, timeout_s, listener, may_cancel=not found.stays)

    async def submit_async(
        self, request: PromptRequest, files: SpooledFiles | None, *, fresh_id: str, origin: Origin, wait_s: float
    ) -> Look:
        """Accepts the workflow and runs it when its turn comes, whether or not a caller waits.

        Args:
            files: further inputs; they are moved away.
            wait_s: how long to wait for the end. A caller that leaves before changes nothing.

        Raises:
            ComfyUIError: it was not accepted.
        """
        self.refuse_when_draining()
        await offloaded(request.size, check_api_format, request.prompt, self._options.limits)
        request = origin.admitted(request)
        prompt_id = str(request.prompt_id or fresh_id)
        fingerprint = await offloaded(request.size, fingerprint_of, request, files)
        await self._cancels.ended(prompt_id, self._options.run_limits.max_timeout_s)
        known = request.prompt_id is not None
        look = await self.admission.submit(prompt_id, origin, request, files, fingerprint, callers_id=known)
        return await self.look_within(prompt_id, wait_s, origin) if wait_s and not look.state.is_end else look

    async def look_within(self, prompt_id: str, wait_s: float, origin: Origin = OURS) -> Look:
        """The result of `look`, after the prompt has ended in ComfyUI too, or after `wait_s`."""
        with suppress(ComfyUIError, TimeoutError):
            async with asyncio.timeout(wait_s):
                with suppress(ComfyUIError):
                    await self.attach(prompt_id, timeout_s=wait_s, origin=origin)
                await self._cancels.ended(prompt_id, wait_s)
        return await self.look(prompt_id, origin)

    async def look(self, prompt_id: str, origin: Origin = OURS) -> Look:
        """The present state of the prompt. Raises `ComfyUINotFoundError` if neither we nor ComfyUI know it."""
        try:
            return await self.admission.look(prompt_id, origin)
        except ComfyUINotFoundError:
            if not origin.sees(None):
                raise
            _, found = await self._runner.find(prompt_id, everywhere=True)
        if found is None:
            raise ComfyUINotFoundError(UNKNOWN, prompt_id=prompt_id)
        if isinstance(found, QueueItem):
            return Look(prompt_id, State.RUNNING if found.running else State.QUEUED, workflow=found.prompt)
        return Look(prompt_id, State.SUCCEEDED)

    async def attach(
        self, prompt_id: str, *, timeout_s: float, listener: Listener | None = None, origin: Origin = OURS
    ) -> PromptResult:
        """Waits for a prompt that is queued, running or finished, from any client, even before a restart.

        It only watches: when this call times out or is given up, the prompt goes on.

        Raises:
            ComfyUINotFoundError: neither we nor ComfyUI know it, or it is another owner's.
        """
        with self._admitted():
            timeout_s = await self._cancels.ended(prompt_id, timeout_s)
            found = await self.admission.to_wait_for(prompt_id, origin)
            if isinstance(found, PromptResult):
                return found
            return await self._wait(found, timeout_s, listener, may_cancel=False)

    async def cancel(self, prompt_id: str, origin: Origin = OURS) -> None:
        """Takes the prompt out of ComfyUI, for all that wait for it.

        Raises:
            ComfyUINotFoundError: it is not in flight here and in no queue of ComfyUI, or it is another owner's.
            ComfyUIError: ComfyUI could not be told, so the prompt may go on there; the call can be repeated.
        """
        await self.removal.cancel(prompt_id, origin)

    # State for probes

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return self._waiting

    def why_not_ready(self, *, in_detail: bool = True) -> str | None:
        """Why a prompt would be refused now; None if not. Without `in_detail`, no addresses and no messages."""
        if self.draining.is_set():
            return "shutting down"
        if self._waiting >= self._options.max_concurrent_requests:
            return f"{self._options.max_concurrent_requests} requests are waiting, which is the limit"
        if not any(server.takes_prompts for server in self.pool.servers):
            return self.pool.why_not_ready(in_detail=in_detail)
        return self._also_ready.why_not_ready(in_detail=in_detail) if self._also_ready is not None else None

    def refuse_when_full(self) -> None:
        """Raises the error that `submit_prompt_sync` would raise now, before a body is read in vain.

        Raises:
            ComfyUIShutdownError: draining.
            ComfyUIOverloadedError: the limit of waiting requests is reached.
        """
        self.refuse_when_draining()
        limit = self._options.max_concurrent_requests
        if self._waiting >= limit:
            self.metrics.rejected.labels("overloaded").inc()
            raise ComfyUIOverloadedError(f"{limit} requests are already waiting, which is the limit; try again later")

    # Shutdown

    async def drain(self, grace_s: float) -> None:
        """Accepts nothing new, waits for the prompts in flight, then answers the rest with 503 and their prompt_id."""
        self.draining.set()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            await self._answer_all()

    async def _answer_all(self) -> None:
        jobs = list(self._runs.live.values())
        if not self._options.cancel_on_shutdown:
            # Their callers learn the ids, and may return with them.
            told = [job.entry.tell(job.request) for job in jobs if job.entry is not None and not job.ended]
            await asyncio.gather(*told)
        for job in jobs:
            if self._options.cancel_on_shutdown and job.request is not None and not job.stays:
                detail = "the gateway is shutting down; the prompt was cancelled"
                self._cancels.begin(job, "shutdown")
                job.cancel(ComfyUIShutdownError(detail, prompt_id=job.prompt_id))
            else:
                detail = "the gateway is shutting down; the prompt goes on: attach to it again with its prompt_id"
                job.abandon(ComfyUIShutdownError(detail, prompt_id=job.prompt_id))

    def refuse_when_draining(self) -> None:
        """Raises the error with which `drain` refuses."""
        if self.draining.is_set():
            self.metrics.rejected.labels("draining").inc()
            raise ComfyUIShutdownError("the gateway is shutting down and accepts no new prompts")

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

    async def _wait(self, job: Job, timeout_s: float, listener: Listener | None, *, may_cancel: bool) -> PromptResult:
        job.join(listener)
        left: Reason = "disconnect"
        try:
            if not await job.wait(timeout_s):
                left = "timeout"
                detail = f"the prompt did not finish within {timeout_s:g} s{delayed_by(job.backend)}"
                raise ComfyUITimeoutError(detail, prompt_id=job.prompt_id)
            return job.result()
        finally:
            on_timeout = self._options.run_limits.cancel_on_timeout
            wanted = on_timeout if left == "timeout" else self._options.cancel_on_disconnect
            job.leave(listener, cancel=left if may_cancel and wanted else None)
            if not job.ended and not job.waiters:
                self._abandoned(job, left)

    def _abandoned(self, job: Job, reason: Reason) -> None:
        """The last request left before the end: the prompt is cancelled, if that is set."""
        if job.stays:
            if not job.has_task:
                # The job waits in our queue: its row is enough.
                self._runs.drop(job)
        elif job.request is None:
            # Another caller's prompt goes on, and no request waits for it here.
            job.abandon(given_up(reason, job.prompt_id))
            self._runs.drop(job)  # at once: a new request must not join a job that is over
            job.stop()
        elif job.cancel_wanted is not None:
            if job.cancel_wanted == "disconnect" and (wait_s := job.returns_within(self._options.reattach_s)):
                asyncio.get_running_loop().call_later(wait_s, self._did_not_come_back, job, job.joined)
            else:
                self._cancels.give_up(job, job.cancel_wanted)

    def _did_not_come_back(self, job: Job, joined: int) -> None:
        if job.joined == joined and not job.ended and not job.stays and not self.draining.is_set():
            self._cancels.give_up(job, "disconnect")
