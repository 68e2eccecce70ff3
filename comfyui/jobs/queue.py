"""`JobQueue`: async jobs wait here, in the order of their submission, and are handed on few at a time.

A job that waits is a row in the journal and nothing else: thousands may. It becomes a task when it is handed on. One
whose inputs are still being fetched lets those behind it pass.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUIOverloadedError, ComfyUITimeoutError, JournalError
from comfyui.jobs.entry import Clock, Entries
from comfyui.jobs.fetching import InputFetching
from comfyui.jobs.inputs import JobInputs, StoredFiles
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.pruning import sweep_inputs
from comfyui.jobs.runs import NEEDS_SECRETS, Runs
from comfyui.jobs.stored import NOT_KEPT, request_of, with_secrets
from comfyui.models import PromptRequest
from comfyui.offload import offloaded
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks, end_tasks, happens_within

# A job whose inputs take longer to place does not hold up those behind it.
_IN_TURN_S = 5.0
# After a job came back, or the journal could not be read.
_PAUSE_S = 1.0
# How often it is looked whether a job has waited too long.
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How many may be where.

    Attributes:
        ahead: unfinished async jobs on each server; 0: none is handed on.
        max_queued: that wait with us; beyond it submissions are refused.
        max_queued_s: how long a job may wait; 0: any time.
        storing: jobs that wait for the store beside those on the servers, with their results in memory; further ones
            keep their places.
    """

    ahead: int = 4
    max_queued: int = 10_000
    max_queued_s: float = 0.0
    storing: int = 64


class JobQueue:
    """Open it with ``async with``: from then on jobs are handed on."""

    def __init__(
        self,
        entries: Entries,
        pool: BackendPool,
        runs: Runs,
        inputs: JobInputs,
        options: QueueOptions,
        *,
        clock: Clock = time.time,
    ) -> None:
        self._journal = entries.journal
        self._entries = entries
        self._pool = pool
        self._runs = runs
        self._inputs = inputs
        self._fetching = InputFetching(entries.journal, inputs, pool, self)
        self._options = options
        self._clock = clock
        self._in_hand: dict[str, Job] = {}
        self._storing: set[str] = set()
        self._secrets: dict[str, Mapping[str, Any]] = {}
        self._waiting = self._coming = 0
        self._wake = asyncio.Event()
        self._paused = False
        self._tasks = SideTasks()
        self._log = structlog.get_logger(__name__)

    async def open(self) -> None:
        """Begin to hand on. Raises `JournalError`."""
        self._waiting = (await self._journal.counts())[State.QUEUED]
        await self._fetching.open()
        self._tasks.start(self._hand_on_all(), "job queue")
        self._tasks.start(sweep_inputs(self._inputs), "sweep inputs")

    async def close(self) -> None:
        """Hand on nothing more. What was handed on goes on."""
        await self._fetching.close()
        await self._tasks.close()

    @contextmanager
    def room(self) -> Iterator[None]:
        """Keeps a place for a job until the block ends: by then it was `added`, or refused.

        Raises `ComfyUIOverloadedError` where as many jobs wait, or are about to, as may.
        """
        if self._waiting + self._coming >= self._options.max_queued:
            raise ComfyUIOverloadedError(
                f"{self._options.max_queued} jobs are waiting already (MAX_QUEUED_JOBS); try again later"
            )
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def added(self, prompt_id: str, secrets: Mapping[str, Any], *, fetching: bool) -> None:
        """A job waits in the journal. `secrets` are kept in memory, for as long as it is there.

        `fetching`: it has inputs that are still to be fetched.
        """
        self._waiting += 1
        if secrets:
            self._secrets[prompt_id] = secrets
        if fetching:
            self._fetching.added(prompt_id)
        self._wake.set()

    def inputs_came(self) -> None:
        """The inputs of a job are there now."""
        self._wake.set()

    def inputs_failed(self, record: JobRecord, error: ComfyUIError) -> None:
        """The inputs of a job cannot be had."""
        self._end(record, error)

    def left(self, prompt_id: str) -> None:
        """A job that waited waits no more, and was not handed on."""
        self._waiting = max(0, self._waiting - 1)
        self._secrets.pop(prompt_id, None)
        self._fetching.left(prompt_id)
        self._inputs.ended()
        self._wake.set()

    def kept(self, job: Job, secrets: Mapping[str, Any]) -> None:
        """A sync job that runs already becomes one of ours: it takes one of the places."""
        if not job.has_task or job.prompt_id in self._in_hand:
            return
        self._in_hand[job.prompt_id] = job
        if secrets:
            self._secrets[job.prompt_id] = secrets
        self._runs.tell(job, self)

    def hold(self, job: Job, before: Callable[[], Awaitable[None]]) -> None:
        """Run a job that was handed on before a restart, after `before`: it takes one of the places."""
        self._in_hand[job.prompt_id] = job
        self._runs.begin(job, self, before)

    async def request_of(self, record: JobRecord) -> PromptRequest | None:
        """The request of a job, from the journal; None where it is not kept, or its secrets are gone."""
        secrets = self._secrets.get(record.prompt_id, {})
        body = await self._journal.body_of(record.prompt_id)
        if body is None or body == NOT_KEPT or (record.needs_secrets and not secrets):
            return None
        request = with_secrets(await offloaded(len(body), request_of, body), secrets)
        files = self.files_of(record)
        return request if files is None else request.of_size(len(body) + files.text_bytes)

    def files_of(self, record: JobRecord) -> StoredFiles | None:
        """What a job brings beside its request."""
        return self._inputs.files_of(record)

    # Handing on

    async def _hand_on_all(self) -> None:
        stands = False
        while True:
            self._wake.clear()
            if self._paused:
                self._paused = False
                await asyncio.sleep(_PAUSE_S)
            problem = self._journal.problem
            try:
                if problem is None:
                    await self._expire()
                    await self._hand_on()
            except JournalError as error:
                problem = error.detail
            if problem is None:
                stands = False
                await self._something_changed()
                continue
            # To place a job is a write.
            self._paused = True
            if self._waiting and not stands:
                stands = True
                self._log.error("queue.stands", reason=problem)

    async def _something_changed(self) -> None:
        if self._free > 0 or not self._waiting:
            # A server that comes up makes no difference.
            await happens_within(self._wake, _LOOK_S if self._options.max_queued_s and self._waiting else None)
            return
        waits: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._wake.wait(), name="queue wakes"),
            asyncio.create_task(self._pool.wait_for_change(_LOOK_S), name="queue watches servers"),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*waits)

    @property
    def _free(self) -> int:
        return self._options.ahead * len(self._pool.ready) - len(self._in_hand)

    async def _hand_on(self) -> None:
        while (free := self._free) > 0:
            # Those in hand may not be placed yet.
            first = await self._journal.waiting(0, free + len(self._in_hand))
            new = [record for record in first if record.prompt_id not in self._in_hand]
            if len(first) < free + len(self._in_hand):
                self._waiting = len(new) + self._fetching.jobs  # these are all
            new = new[:free]
            if not new:
                return
            for record in new:
                if self._free <= 0 or self._paused:
                    return
                await self._begin(record)

    async def _begin(self, record: JobRecord) -> None:
        request = await self.request_of(record)
        live = self._runs.live.get(record.prompt_id)
        if live is not None and live.ended:
            return  # it is being cancelled
        if request is None:
            self._end(record, ComfyUIError(NEEDS_SECRETS, prompt_id=record.prompt_id))
            return
        entry = live.entry if live is not None and live.entry is not None else self._entries.of(record)
        job = live or self._runs.add(record.prompt_id, entry=entry)
        job.adopt(request, self.files_of(record), record.fingerprint, entry)
        # Those before it have been placed by now.
        placed = Counter(other.backend for other in self._in_hand.values())
        job.keep_off([backend for backend in self._pool.ready if placed[backend] >= self._options.ahead])
        self._waiting = max(0, self._waiting - 1)
        self._in_hand[job.prompt_id] = job
        self._runs.begin(job, self)
        # One after the other, so that ComfyUI gets them in order.
        await happens_within(entry.handed_on, _IN_TURN_S)

    def rendered(self, job: Job) -> None:
        """No server has it any more, and its files are being stored: while the store is away, others may render."""
        if len(self._storing) < self._options.storing and self._in_hand.pop(job.prompt_id, None) is not None:
            self._storing.add(job.prompt_id)
            self._wake.set()

    def ended(self, job: Job) -> None:
        """It has ended, or waits in our queue again."""
        self._in_hand.pop(job.prompt_id, None)
        self._storing.discard(job.prompt_id)
        if job.ended:
            self._secrets.pop(job.prompt_id, None)
        else:
            # No server took it: it waits again.
            self._waiting += 1
            self._paused = True
        self._wake.set()

    async def _expire(self) -> None:
        """End what has waited too long, in our queue or for its inputs."""
        if self._options.max_queued_s:
            await self._expire_of(self._journal.waiting)
            await self._expire_of(self._journal.fetching)

    async def _expire_of(self, waiting: Callable[[int, int], Awaitable[list[JobRecord]]]) -> None:
        """The first of `waiting` has waited longest, but for a new run, which stands at its end."""
        while True:
            first = await waiting(0, 100)
            late = [
                record
                for record in first
                if record.queued_at + self._options.max_queued_s <= self._clock()
                and record.prompt_id not in self._in_hand
            ]
            for record in late:
                detail = f"not begun within MAX_QUEUED_SECONDS ({self._options.max_queued_s:g})"
                self._end(record, ComfyUITimeoutError(detail, prompt_id=record.prompt_id))
            if len(late) < len(first) or not first:
                return

    def _end(self, record: JobRecord, error: ComfyUIError) -> None:
        """A job that waits fails, also for those who wait for it."""
        if (live := self._runs.live.get(record.prompt_id)) is not None:
            live.fail(error)
            self._runs.drop(live)
        else:
            self._entries.of(record).failed(State.FAILED, error)
        self.left(record.prompt_id)
