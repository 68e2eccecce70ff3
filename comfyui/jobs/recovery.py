"""`Recovery`: what becomes of the jobs that a gateway before this one left unfinished.

Async jobs go on: those that were placed are looked for on their servers, the others wait in the queue. A sync call's
job waits some time for its caller, if the caller knows its id; otherwise it is canceled, because no one can ask for it.
Prompts that only ComfyUI has are the task of `comfyui.jobs.orphans`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUITaskCancelledError, JournalError
from comfyui.executors.comfyui import PromptRunner
from comfyui.jobs.cancels import Cancels
from comfyui.jobs.entries import Entries
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.orphans import Orphans
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
        cancels: Cancels,
        *,
        reattach_s: float,
    ) -> None:
        self._journal = entries.journal
        self._entries = entries
        self._pool = pool
        self._runner = runner
        self._runs = runs
        self._queue = queue
        self._cancels = cancels
        self._reattach_s = reattach_s
        self._orphans = Orphans(entries.journal, pool, runs, cancels)
        self._tasks = SideTasks()
        self._log = structlog.get_logger(__name__)

    async def begin(self) -> None:
        """Returns when each job is being handled. Raises `JournalError`."""
        orphans: list[JobRecord] = []
        awaited: list[JobRecord] = []
        resumed = waiting = 0
        async for record in self._unfinished():
            if record.state is State.CANCELING or (record.kind == "sync" and not record.callers_id):
                orphans.append(record)
            elif record.kind == "sync":
                awaited.append(record)
            elif record.server is not None:
                await self._resume(record)
                resumed += 1
            else:
                waiting += 1
        if orphans or awaited or resumed or waiting:
            counts = {"awaited": len(awaited), "canceled": len(orphans), "resumed": resumed, "waiting": waiting}
            self._log.info("jobs.found", **counts)
        for record in orphans:
            why = "the gateway was restarted, and no caller knows the job's id"
            if record.state is State.CANCELING:
                why = "the job was being cancelled when the gateway stopped"
            self._tasks.start(self._take_out(record, why), f"cancel {record.prompt_id}")
        if awaited:
            self._tasks.start(self._await_callers(awaited), "jobs that wait for their callers")
        self._orphans.open()

    async def close(self) -> None:
        await self._orphans.close()
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
        self._queue.hold(job, record, before=lambda: self._server_is_up(record))

    async def _server_is_up(self, record: JobRecord) -> None:
        """Waits until the job's server can be asked for it, or has taken too long."""
        backend = self._pool.named(record.server or "")
        if backend is None:
            return
        deadline = time.monotonic() + self._reattach_s
        while not backend.ready and (left_s := deadline - time.monotonic()) > 0:
            await self._pool.wait_for_change(left_s)

    async def _take_out(self, record: JobRecord, why: str) -> None:
        """Cancels a run that no request waits for, once its server can be told."""
        error = ComfyUITaskCancelledError(f"canceled: {why}", prompt_id=record.prompt_id)
        entry = self._entries.of(record)
        await self._cancels.take_out(entry, error, "restart", before=lambda: self._server_is_up(record))

    async def _await_callers(self, records: list[JobRecord]) -> None:
        await asyncio.sleep(self._reattach_s)
        for record in records:
            await self._end_without_caller(record.prompt_id)

    async def _end_without_caller(self, prompt_id: str) -> None:
        """No caller came for the job: if it has ended, that is recorded; otherwise it is canceled."""
        try:
            record = await self._journal.get(prompt_id)
            if record is None or record.state is State.CANCELING or record.state.is_end or record.kind == "async":
                return
            _, found = await self._runner.find(prompt_id)
        except JournalError as error:
            self._log.error("journal.not_read", prompt_id=prompt_id, reason=error.detail)
            return
        except ComfyUIError:
            found = None
        if record is None or prompt_id in self._runs.live:
            return
        if found is not None and not isinstance(found, QueueItem):
            self._runs.start(prompt_id, fingerprint=record.fingerprint, entry=self._entries.of(record))
        else:
            await self._take_out(
                record, f"the job's caller did not come back within REATTACH_SECONDS ({self._reattach_s:g})"
            )
