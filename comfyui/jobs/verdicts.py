"""`Verdicts`: takes the prompts of ComfyUI's own `POST /prompt`, whose callers are told at once what becomes of them.

If a server that can run it has a free place, the prompt goes there, and the caller gets that server's answer. Otherwise
it is compared with the servers' definitions: a prompt that certainly no server accepts is refused, and all others wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfyui.exceptions import ComfyUIConflictError, ComfyUIError, ComfyUIShutdownError
from comfyui.inputs.content import SpooledFiles
from comfyui.inputs.plan import has_inline_values
from comfyui.jobs.admission import Admission, Look, check_seen
from comfyui.jobs.cancels import Cancels
from comfyui.jobs.entry import Entry
from comfyui.jobs.fingerprints import check_same, fingerprint_of
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.origin import Origin
from comfyui.jobs.refusals import Refusals
from comfyui.jobs.runs import RunLimits
from comfyui.limits import Limits
from comfyui.models import PromptRequest
from comfyui.offload import offloaded
from comfyui.replies import node_errors_of
from comfyui.workflows.api_format import check_api_format


@dataclass(frozen=True, slots=True)
class Verdict:
    """The prompt is taken.

    Attributes:
        number: as ComfyUI's clients know it.
        node_errors: in ComfyUI's form, of outputs that it leaves out. Empty if no server was asked yet.
        job: if it has gone to a server at once.
        look: the state, if it waits or is known from before.
    """

    prompt_id: str
    number: float
    node_errors: Mapping[str, Any]
    job: Job | None = None
    look: Look | None = None


class Verdicts:
    """Its arguments belong to their creator."""

    def __init__(
        self,
        admission: Admission,
        cancels: Cancels,
        refusals: Refusals,
        run_limits: RunLimits,
        limits: Limits,
    ) -> None:
        self._admission = admission
        self._entries, self._runs, self._queue = admission.entries, admission.runs, admission.queue
        self._journal = admission.entries.journal
        self._cancels = cancels
        self._refusals = refusals
        self._run_limits = run_limits
        self._limits = limits

    async def on(
        self,
        request: PromptRequest,
        *,
        fresh_id: str,
        origin: Origin,
        files: SpooledFiles | None = None,
        patience_s: float | None = None,
    ) -> Verdict:
        """Take the prompt. It is in the journal when this returns.

        Args:
            fresh_id: a new UUID, to use when the request has no ``prompt_id``.
            files: further inputs. With them, the prompt waits for its turn like async jobs, once it is checked.
            patience_s: a server that does not answer for this time has accepted it, for the caller; None: no limit.

        Raises:
            ComfyUIValidationError: a server has refused it, or all would. It is no job.
            ComfyUIConflictError: the id is another request's.
            ComfyUIError: it was not taken.
        """
        await offloaded(request.size, check_api_format, request.prompt, self._limits)
        request = origin.admitted(request)
        fingerprint = await offloaded(request.size, fingerprint_of, request, files)
        prompt_id, callers_id = str(request.prompt_id or fresh_id), request.prompt_id is not None
        if callers_id:
            await self._cancels.ended(prompt_id, self._run_limits.max_timeout_s)
        while True:
            if callers_id and (known := await self._known(prompt_id, origin, request, fingerprint)) is not None:
                return known
            job = None
            if files is not None:
                needs, lane = await self._queue.ready_for(request, origin.owner, files.paths)
                await self._refusals.check(request, origin, needs, lane, files.paths)
            elif not await offloaded(request.size, has_inline_values, request.prompt):
                needs, lane = await self._queue.ready_for(request, origin.owner)
                async with self._admission.room_for(origin):
                    if prompt_id in self._runs.live:
                        continue
                    entry = self._entries.new(prompt_id, origin, kind="async", callers_id=callers_id)
                    job = self._runs.add(prompt_id, request, None, fingerprint, entry=entry)
                    job.ask()
                    if not self._queue.at_once(job, request, needs):
                        self._runs.drop(job)
                        job = None
                if job is None:
                    await self._refusals.check(request, origin, needs, lane)
            if job is None:
                look = await self._admission.submit(
                    prompt_id, origin, request, files, fingerprint, callers_id=callers_id
                )
                return _waiting(look)
            try:
                async with asyncio.timeout(patience_s):
                    verdict = await _verdict_of(job)
            except TimeoutError:
                job.stop_asking()
                await self._committed(job, entry)
                return Verdict(prompt_id, entry.shown_number, {})
            except ComfyUIConflictError:
                # Another request with the same id may have come first.
                if entry.added or await self._journal.get(prompt_id) is None:
                    raise
                callers_id = True
            else:
                await self._committed(job, entry)
                return Verdict(prompt_id, entry.shown_number, verdict.node_errors, job)

    async def _committed(self, job: Job, entry: Entry) -> None:
        """Returns when the job is in the journal. If that is impossible, its prompt is taken out of ComfyUI again."""
        try:
            await entry.committed()
        except ComfyUIError as error:
            job.cancel(error, State.FAILED)
            self._cancels.begin(job, "request")
            raise

    async def _known(self, prompt_id: str, origin: Origin, request: PromptRequest, fingerprint: str) -> Verdict | None:
        """The earlier verdict on the same request; None if the id is new."""
        record = await self._journal.get(prompt_id)
        if (job := self._runs.live.get(prompt_id)) is not None:
            check_seen(origin, job.owner, prompt_id, submits=True)
            check_same(prompt_id, job.fingerprint, fingerprint)
            if job.stays:
                return await _verdict_of(job)
        elif record is not None:
            check_seen(origin, record.owner, prompt_id, submits=True)
            check_same(prompt_id, record.fingerprint, fingerprint)
            if record.kind == "async" and not record.may_run_again:
                return Verdict(prompt_id, record.shown_number, await self._left_out(record))
        else:
            return None
        # A sync call's, which goes on without that call from now on; or one that is run again.
        return _waiting(await self._admission.submit(prompt_id, origin, request, None, fingerprint, callers_id=True))

    async def _left_out(self, record: JobRecord) -> Mapping[str, Any]:
        if record.state is not State.SUCCEEDED:
            return {}
        return node_errors_of((await self._admission.outcome_of(record)).node_errors)


def _waiting(look: Look) -> Verdict:
    return Verdict(look.prompt_id, look.record.shown_number if look.record is not None else 0, {}, look=look)


async def _verdict_of(job: Job) -> Verdict:
    """The verdict of a server, once there is one. Raises the prompt's refusal."""
    await job.verdict()
    entry = job.entry
    if job.awaits_verdict:
        try:
            job.result()
        except ComfyUIShutdownError:
            if entry is None or not entry.added:
                raise
            # It is written down, and goes on after the restart.
    return Verdict(job.prompt_id, 0 if entry is None else entry.shown_number, job.node_errors)
