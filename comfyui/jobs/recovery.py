"""`Recovery`: what becomes of the jobs that a gateway before this one left unfinished.

Async jobs go on: those that were placed are looked for on their servers, the others wait in the queue. A sync call's
job waits a time for its caller, where the caller knows its id; else nobody can ask for it, and it is canceled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUITaskCancelledError
from comfyui.executors.comfyui import PromptRunner
from comfyui.jobs.entry import Entries
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.queue import JobQueue
from comfyui.jobs.runs import Runs
from comfyui.replies import QueueItem
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks

_PAGE = 200


class Recovery:
    """Call `begin` once, before the queue hands on and before callers come.

    Args:
        reattach_s: how long a sync call's job waits for its caller, and how long any job waits for the server that had
            it, before it is looked for on the others.
    """

    def __init__(
        self,
        entries: Entries,
        pool: BackendPool,
        runner: PromptRunner,
        runs: Runs,
        queue: JobQueue,
        *,
        reattach_s: float,
    ) -> None:
        self._journal = entries.journal
        self._entries = entries
        self._pool = pool
        self._runner = runner
        self._runs = runs
        self._queue = queue
        self._reattach_s = reattach_s
        self._tasks = SideTasks()
        self._log = structlog.get_logger(__name__)

    async def begin(self) -> None:
        """Returns when each job has somebody who sees to it. Raises `JournalError`."""
        orphans: list[JobRecord] = []
        awaited: list[JobRecord] = []
        resumed = 0
        async for record in self._unfinished():
            if record.state is State.CANCELING or (record.kind == "sync" and not record.callers_id):
                orphans.append(record)
            elif record.kind == "sync":
                awaited.append(record)
            elif record.server is not None:
                await self._resume(record)
                resumed += 1
        if orphans or awaited or resumed:
            self._log.info("jobs.found", resumed=resumed, awaited=len(awaited), canceled=len(orphans))
        for record in orphans:
            self._cancel(record, "canceled: the gateway was restarted, and nobody knows its id")
        if orphans:
            self._tasks.start(self._take_out(orphans), "orphaned jobs")
        if awaited:
            self._tasks.start(self._await_callers(awaited), "jobs that wait for their callers")

    async def close(self) -> None:
        await self._tasks.close()

    async def _unfinished(self) -> AsyncIterator[JobRecord]:
        after = 0
        while page := await self._journal.unfinished(after, _PAGE):
            for record in page:
                yield record
            after = page[-1].seq

    async def _resume(self, record: JobRecord) -> None:
        request = await self._queue.request_of(record)
        entry = self._entries.of(record)
        files = self._queue.files_of(record)
        job = self._runs.add(record.prompt_id, request, files, record.fingerprint, entry=entry)
        self._queue.hold(job, before=lambda: self._server_is_up(record))

    async def _server_is_up(self, record: JobRecord) -> None:
        """Until the server that had the job can be asked for it, or that has taken too long."""
        backend = self._pool.named(record.server or "")
        if backend is None:
            return
        deadline = time.monotonic() + self._reattach_s
        while not backend.ready and (left_s := deadline - time.monotonic()) > 0:
            await self._pool.wait_for_change(left_s)

    def _cancel(self, record: JobRecord, detail: str) -> None:
        error = ComfyUITaskCancelledError(detail, prompt_id=record.prompt_id)
        self._entries.of(record).failed(State.CANCELED, error)

    async def _take_out(self, records: list[JobRecord]) -> None:
        for record in records:
            if record.server is None:
                continue
            await self._server_is_up(record)
            try:
                backend, found = await self._runner.find(record.prompt_id)
                if backend is not None and isinstance(found, QueueItem):
                    await backend.cancel(record.prompt_id)
            except ComfyUIError as error:
                self._log.warning("prompt.cancel_failed", prompt_id=record.prompt_id, detail=error.detail)

    async def _await_callers(self, records: list[JobRecord]) -> None:
        await asyncio.sleep(self._reattach_s)
        for record in records:
            try:
                await self._end_without_caller(record.prompt_id)
            except ComfyUIError as error:
                self._log.warning("prompt.cancel_failed", prompt_id=record.prompt_id, detail=error.detail)

    async def _end_without_caller(self, prompt_id: str) -> None:
        """Nobody came for the job: what has ended meanwhile is written down, the rest is canceled."""
        record = await self._journal.get(prompt_id)
        if record is None or record.state.is_end or record.kind == "async" or prompt_id in self._runs.live:
            return
        try:
            backend, found = await self._runner.find(prompt_id)
        except ComfyUIError:
            backend = found = None
        if prompt_id in self._runs.live:
            return
        if backend is not None and found is not None and not isinstance(found, QueueItem):
            self._runs.start(prompt_id, fingerprint=record.fingerprint, entry=self._entries.of(record))
            return
        self._cancel(record, f"canceled: its caller did not come back within REATTACH_SECONDS ({self._reattach_s:g})")
        if backend is not None:
            await backend.cancel(prompt_id)
