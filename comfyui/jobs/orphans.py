"""`Orphans`: cancels prompts of ours that a returning server still has, and that no request waits for there.

A server that was only cut off goes on with prompts that other servers were given meanwhile. A server that did not get a
cancel still has the prompt. And a gateway that is killed leaves prompts that it had sent and not recorded.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import structlog

from comfyui.exceptions import ComfyUIError
from comfyui.executors.submission import attempt_of, is_callers, journal_of
from comfyui.jobs.cancels import Cancels
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Fence, State
from comfyui.jobs.runs import Runs
from comfyui.replies import QueueItem
from comfyui.retrying import Backoff
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks

_BACKOFF = Backoff(start_s=0.2, max_s=3.0)
# A server that fails this often to tell its queue gets prompts nevertheless.
_TRIES = 4
_TRY_S = 10.0

_log = structlog.get_logger(__name__)


class Orphans:
    """Searches the queue of each server that comes up, once for each time. Before that, the server gets no prompts, if
    prompts wait in the gateway; see `Backend.is_cleared`.
    """

    def __init__(self, journal: Journal, pool: BackendPool, runs: Runs, cancels: Cancels) -> None:
        self._journal = journal
        self._pool = pool
        self._runs = runs
        self._cancels = cancels
        self._tasks = SideTasks()

    def open(self) -> None:
        """Call it after the jobs of the journal are resumed."""
        for backend in self._pool.backends:
            self._tasks.start(self._clear_each_time(backend), f"orphans on {backend.name}")

    async def close(self) -> None:
        await self._tasks.close()

    async def _clear_each_time(self, backend: Backend) -> None:
        failures = 0
        while True:
            while backend.is_cleared or not backend.ready:
                await backend.wait_for_change()
            arrivals = backend.arrivals
            try:
                async with asyncio.timeout(_TRY_S):
                    await self._clear(backend)
            except (ComfyUIError, TimeoutError) as error:
                failures += 1
                if failures < _TRIES:
                    await asyncio.sleep(_BACKOFF.delay_s(failures))
                    continue
                detail = error.detail if isinstance(error, ComfyUIError) else f"no answer within {_TRY_S:g} s"
                _log.warning("jobs.not_looked_for", server=backend.name, detail=detail)
            failures = 0
            backend.cleared(arrivals)

    async def _clear(self, backend: Backend) -> None:
        if not await backend.client.get_queue_remaining():
            return
        queue = (await backend.client.get_queue()).values()
        # Waiting prompts go first: they would begin when the running one is interrupted.
        for item in sorted(queue, key=lambda item: item.running):
            if journal_of(item) == self._journal.identity and (reason := await self._why_not(backend, item)):
                await self._cancels.take_out_orphan(item.prompt_id, backend, reason)

    async def _why_not(self, backend: Backend, item: QueueItem) -> Literal["orphan", "restart", ""]:
        """Why no request waits for this prompt on this server; "" if one does.

        The running jobs are asked first: an end is recorded before it leaves them.
        """
        if (job := self._runs.live.get(item.prompt_id)) is not None:
            if job.is_on(backend.name):
                return ""
            entry = job.entry
            return "" if entry is not None and _is_same(backend, item, entry.server, entry.fence) else "orphan"
        record = await self._journal.get(item.prompt_id)
        if record is None:
            return "" if is_callers(item) else "restart"
        is_wanted = not record.state.is_end and record.state is not State.CANCELING
        is_there = record.server == backend.name or _is_same(backend, item, record.server, record.fence)
        return "" if is_wanted and is_there else "orphan"


def _is_same(backend: Backend, item: QueueItem, server: str | None, present: Fence) -> bool:
    """Whether a prompt on `backend` is the job's present attempt, which is on `server`: then both are one server."""
    if server in {None, backend.name} or present.mark != attempt_of(item):
        return False
    detail = (
        f"it has prompts that were sent to {server}: two addresses of COMFYUI_SERVER_ADDRESS lead to the same ComfyUI"
    )
    _log.error("server.twice", server=backend.name, prompt_id=item.prompt_id, detail=detail)
    return True
