"""`Admission`: which job an id stands for: one that runs, one that waits, one that has ended, or a new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import structlog

from comfyui.events import Event, QueuePosition
from comfyui.exceptions import (
    TAKEN,
    ComfyUIConflictError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    JournalError,
)
from comfyui.inputs.content import BroughtFiles, SpooledFiles
from comfyui.jobs.entries import Entries
from comfyui.jobs.entry import Clock, Entry
from comfyui.jobs.fingerprints import check_same
from comfyui.jobs.inputs import JobInputs, Taken
from comfyui.jobs.job import Job
from comfyui.jobs.journal.first_record import first_record
from comfyui.jobs.journal.records import Delivery, JobRecord, NewJob, State
from comfyui.jobs.journal.writes import Add, Again
from comfyui.jobs.keeping import Keeping
from comfyui.jobs.origin import OURS, Origin
from comfyui.jobs.queue import JobQueue
from comfyui.jobs.runs import Runs
from comfyui.jobs.stored import error_from_fields, result_from_bytes
from comfyui.models import PromptRequest, PromptResult
from comfyui.offload import offloaded
from comfyui.owners import key_of

UNKNOWN = "neither the gateway nor ComfyUI knows this prompt_id"
NOTHING_TO_CANCEL = "the gateway does not know this prompt_id, so there is nothing to cancel"

# Used if the key has no limit.
_ROOM = nullcontext()

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """How a job is at this moment.

    Attributes:
        record: from the journal; None if ComfyUI has the prompt from another client.
        state: newer than the record's if the job runs here.
        position: jobs and prompts before it; None if that is not known, or if it runs.
        events: what holds on of what ComfyUI said of it, oldest first.
        deliveries: the job's webhooks so far, if its caller has ordered any.
        workflow: None if it is not known.
    """

    prompt_id: str
    state: State
    record: JobRecord | None = None
    position: int | None = None
    events: tuple[Event, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    workflow: Mapping[str, Any] | None = None


class Admission:
    """Asks the journal, and takes jobs into it.

    Attributes:
        entries, runs, queue: belong to their creator.
        keeping: has a sync job go on without its caller.
    """

    def __init__(
        self, entries: Entries, runs: Runs, queue: JobQueue, inputs: JobInputs, *, clock: Clock = time.time
    ) -> None:
        self._journal = entries.journal
        self.entries = entries
        self.runs = runs
        self.queue = queue
        self.keeping = Keeping(entries, runs, queue, inputs, clock)
        self._inputs = inputs
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def new_entry(self, prompt_id: str, origin: Origin, *, callers_id: bool) -> Entry:
        """The writer of a new sync job."""
        return self.entries.new(prompt_id, origin, kind="sync", callers_id=callers_id)

    def start(
        self,
        prompt_id: str,
        origin: Origin,
        request: PromptRequest,
        files: SpooledFiles | None,
        *,
        returns_s: float | None,
    ) -> Job:
        """A sync job with an id of ours. `returns_s`: see `ComfyUIHandler.submit_prompt_sync`."""
        entry = self.new_entry(prompt_id, origin, callers_id=False)
        if returns_s is not None:
            entry.told(returns_s)
        return self.runs.start(prompt_id, request, files, entry=entry)

    def room_for(self, origin: Origin) -> AbstractAsyncContextManager[None]:
        """A job of this origin may begin inside the block.

        Raises:
            ComfyUIOverloadedError: as many jobs of its key wait as may (`max_queued`).
        """
        rules = origin.rules
        return _ROOM if rules is None or rules.max_queued is None else self._room_of(rules.name, rules.max_queued)

    @asynccontextmanager
    async def _room_of(self, key: str, limit: int) -> AsyncIterator[None]:
        # One after the other, so that no two of them take the last place.
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            live = [job for job in self.runs.live.values() if job.owner is not None and key_of(job.owner) == key]
            waiting = {job.prompt_id for job in live if job.state is State.QUEUED}
            running = {job.prompt_id for job in live} - waiting
            if len(waiting) < limit:
                rows = await self._journal.queued_of(key, limit + len(running))
                waiting |= set(rows) - running
            if len(waiting) >= limit:
                raise ComfyUIOverloadedError(
                    f"{limit} jobs of the key {key!r} are already waiting (max_queued); try again later"
                )
            yield

    async def to_wait_for(
        self,
        prompt_id: str,
        origin: Origin,
        request: PromptRequest | None = None,
        files: SpooledFiles | None = None,
        fingerprint: str | None = None,
    ) -> Job | PromptResult:
        """The job of an id that a caller chose, which begins if necessary; its result if it already has one.

        Args:
            request: None if the caller only asks; no new run begins then.

        Raises:
            ComfyUIConflictError: the id is another request's.
            ComfyUINotFoundError: it is another owner's, and `request` is None; or there is none that the caller may
                see.
            ComfyUIError: the job ended so, and is not run again.
        """
        submits = request is not None
        while True:
            if (job := self.runs.live.get(prompt_id)) is not None:
                check_seen(origin, job.owner, prompt_id, submits=submits)
                check_same(prompt_id, job.fingerprint, fingerprint)
                # A job that waits in our queue has its request, and its inputs, in the journal.
                if request is not None and (job.has_task or not job.stays):
                    entry = self.new_entry(prompt_id, origin, callers_id=True)
                    job.adopt(request, files, fingerprint, entry)
                return job
            record = await self.known(prompt_id)
            if prompt_id in self.runs.live:
                continue
            if record is None:
                if request is None:
                    check_seen(origin, None, prompt_id, submits=False)
                    return self.runs.start(prompt_id, fingerprint=fingerprint)
                async with self.room_for(origin):
                    if prompt_id in self.runs.live:
                        continue
                    new = self.new_entry(prompt_id, origin, callers_id=True)
                    return self.runs.start(prompt_id, request, files, fingerprint, entry=new)
            check_seen(origin, record.owner, prompt_id, submits=submits)
            check_same(prompt_id, record.fingerprint, fingerprint)
            if not record.state.is_end:
                job = await self._unfinished(record, request, files)
                if not job.has_task:
                    await self.end_what_has_ended(job)
                return job
            if request is None or not record.may_run_again:
                return await self.outcome_of(record)
            try:
                async with self.room_for(origin):
                    begun = await self._journal.write(self._again(record))
            except JournalError as error:
                _log.error("journal.not_written", prompt_id=prompt_id, reason=error.detail)
                # The same as for a call that the journal does not know: ComfyUI is asked for it.
                return self.runs.start(
                    prompt_id, request, files, fingerprint, entry=self.new_entry(prompt_id, origin, callers_id=True)
                )
            if begun and (newer := await self.known(prompt_id)) is not None:
                if prompt_id in self.runs.live:
                    continue
                return self.runs.start(prompt_id, request, files, fingerprint, entry=self.entries.of(newer))

    async def submit(
        self,
        prompt_id: str,
        origin: Origin,
        request: PromptRequest,
        files: SpooledFiles | None,
        fingerprint: str,
        *,
        callers_id: bool,
    ) -> Look:
        """Accepts a job without a waiting caller. Returns when it is committed, and its inputs are in their store.

        Args:
            files: further inputs, which are moved away.

        Raises:
            ComfyUIConflictError: the id is another request's.
            ComfyUIOverloadedError: as many jobs wait as may, or their inputs fill the store.
            ComfyUIInputError, ComfyUILimitError: an input cannot be used.
            ComfyUIDiskError: it cannot be written.
        """
        async with AsyncExitStack() as held:
            taken: Taken | None = None
            has_room = False
            while True:
                record = await self._journal.get(prompt_id) if callers_id else None
                if (job := self.runs.live.get(prompt_id)) is not None:
                    check_seen(origin, job.owner, prompt_id, submits=True)
                    check_same(prompt_id, job.fingerprint, fingerprint)
                    if job.stays or job.ended:
                        return await self.look(prompt_id)
                elif record is not None:
                    check_seen(origin, record.owner, prompt_id, submits=True)
                    check_same(prompt_id, record.fingerprint, fingerprint)
                    if not (_was_left(record) or record.may_run_again):
                        return await self.look(prompt_id)
                if not has_room and job is None and (record is None or record.state.is_end):
                    held.enter_context(self.queue.room())
                    has_room = True
                if taken is None:
                    taken = await held.enter_async_context(self._inputs.taken(request, files))
                    if taken.inputs:
                        continue  # time has passed
                new = await self.keeping.new_async(taken, prompt_id, origin, fingerprint, callers_id=callers_id)
                if job is None and record is not None and _was_left(record):
                    job = await self._unfinished(record, taken.request, self._inputs.files_of(new))
                if job is not None:
                    await self.keeping.make_async(job, origin, taken.request, new)
                    return await self.look(prompt_id)
                write = Add(new) if record is None else self._again(record, new)
                async with self.room_for(origin):
                    begun = await self._journal.write(write)
                if begun:
                    added = first_record(new, begun) if record is None else await self._journal.get(prompt_id)
                    if added is not None and added.state is State.QUEUED:
                        await self.queue.added(added, request)
                    break
                # Another request with the same id came first.
                callers_id = True
        if added is not None and record is None and self.queue.has(prompt_id):
            return Look(prompt_id, added.state, added, await self._position(added))
        return await self.look(prompt_id)

    async def look(self, prompt_id: str, origin: Origin = OURS) -> Look:
        """How the job is.

        Raises:
            ComfyUINotFoundError: neither the journal nor this process knows it, or it is another owner's.
        """
        record = await self.known(prompt_id)
        job = self.runs.live.get(prompt_id)
        if job is not None and job.ended and record is not None and not record.state.is_end:
            # It ended while the record was read; or it is being cancelled, or goes on after a restart.
            record, job = await self.known(prompt_id) or record, None
        check_seen(origin, record.owner if record else job.owner if job else None, prompt_id, submits=False)
        if job is None or (record is not None and record.state.is_end):
            if record is None:
                raise ComfyUINotFoundError("the gateway does not know this prompt_id", prompt_id=prompt_id)
            position = await self._position(record) if record.waits else None
            return Look(prompt_id, record.state, record, position, deliveries=await self._deliveries(record))
        events = tuple(job.latest())
        position = None if job.watch is None else job.watch.place.position
        position = next((event.position for event in events if isinstance(event, QueuePosition)), position)
        if record is not None and record.server is None and job.state is State.QUEUED:
            position = await self._position(record)
        running = job.state is not State.QUEUED
        if record is not None and record.started_at is None and job.entry is not None:
            # It may have started since the record was read.
            record = replace(record, started_at=job.entry.started_at)
        told = await self._deliveries(record) if record is not None else ()
        return Look(prompt_id, job.state, record, None if running else position, events, told, job.workflow)

    async def end_what_has_ended(self, job: Job) -> None:
        """A job without a task may have ended meanwhile; its waiters would not hear of it otherwise."""
        record = await self.known(job.prompt_id)
        if record is None or not record.state.is_end or job.ended or job.has_task:
            return
        try:
            job.finish(await self.outcome_of(record))
        except ComfyUIError as error:
            job.fail(error)
        self.runs.drop(job)

    async def _deliveries(self, record: JobRecord) -> tuple[Delivery, ...]:
        if record.webhook is None or record.state.is_end:
            return ()
        return tuple(await self._journal.deliveries(record.prompt_id))

    async def _position(self, record: JobRecord) -> int:
        position = self.queue.position(record.prompt_id)
        # One whose inputs are still being fetched has no turn yet.
        return await self._journal.ahead_of(record.number) if position is None else position

    async def outcome_of(self, record: JobRecord) -> PromptResult:
        """The result of a job that has ended, or the error that it ended with, raised."""
        if record.state is not State.SUCCEEDED:
            raise error_from_fields(record.error or {"type": "", "detail": "", "prompt_id": record.prompt_id})
        kept = await self._journal.result_of(record.prompt_id)
        if kept is None:
            raise ComfyUINotFoundError("the result of this prompt is no longer kept", prompt_id=record.prompt_id)
        return await offloaded(len(kept), result_from_bytes, record.prompt_id, kept)

    async def left_behind(self, prompt_id: str, origin: Origin) -> Entry | None:
        """The writer of a run that has no task: it waits in our queue, or a gateway before this one left it.

        Raises:
            ComfyUINotFoundError: whatever there is of this id, the caller may not know of it.
        """
        record = await self.known(prompt_id)
        job = self.runs.live.get(prompt_id)
        owner = record.owner if record else job.owner if job else None
        check_seen(origin, owner, prompt_id, submits=False, unknown=NOTHING_TO_CANCEL)
        if record is None or record.state.is_end or prompt_id in self.runs.live:
            return None
        return self.entries.of(record)

    async def settled(self, prompt_id: str) -> None:
        """Returns when all writes of a job's cancel are committed, before a caller is told of it.

        Raises `ComfyUINotFoundError` if the job had its result before.
        """
        record = await self.known(prompt_id)
        if record is not None and record.state is State.SUCCEEDED:
            raise ComfyUINotFoundError(
                "the prompt has already finished, so there is nothing to cancel", prompt_id=prompt_id
            )

    async def known(self, prompt_id: str) -> JobRecord | None:
        """The journal's record; None also if it cannot be read: sync calls go on without it."""
        try:
            return await self._journal.get(prompt_id)
        except JournalError as error:
            _log.error("journal.not_read", prompt_id=prompt_id, reason=error.detail)
            return None

    def _again(self, record: JobRecord, new: NewJob | None = None) -> Again:
        """A new run: a sync call's, or that of the async job `new`, which has the same request."""
        if new is None:
            return Again(record.prompt_id, record.run, "sync", self._clock())
        brought = (new.body, new.inputs, new.needs_secrets, new.call)
        return Again(record.prompt_id, record.run, "async", self._clock(), *brought)

    async def _unfinished(self, record: JobRecord, request: PromptRequest | None, files: BroughtFiles | None) -> Job:
        """A job that has no task: it waits in our queue, or was a sync call's before a restart."""
        given = request or (None if record.kind == "async" else await self.queue.request_of(record))
        live = self.runs.live.get(record.prompt_id)
        if live is not None:
            return live
        entry = self.entries.of(record)
        if record.kind == "async":
            return self.runs.add(record.prompt_id, None, None, record.fingerprint, entry=entry)
        return self.runs.start(record.prompt_id, given, files, record.fingerprint, entry=entry)


def check_seen(origin: Origin, owner: str | None, prompt_id: str, *, submits: bool, unknown: str = UNKNOWN) -> None:
    """Refuses a job of another owner, without saying whose it is.

    Raises:
        ComfyUIConflictError: a submission has the id of another's job.
        ComfyUINotFoundError: the caller may not know of the requested job; the text is the same as for an unknown one.
    """
    if origin.sees(owner):
        return
    if submits:
        raise ComfyUIConflictError(TAKEN, prompt_id=prompt_id)
    raise ComfyUINotFoundError(unknown, prompt_id=prompt_id)


def _was_left(record: JobRecord) -> bool:
    """Whether it is a sync call's, whose task is gone."""
    return record.kind == "sync" and record.state in {State.QUEUED, State.RUNNING}
