"""`Removal`: jobs that callers want gone: one, several, or all that wait or run.

ComfyUI's own clients tell waiting prompts from running ones: ``POST /queue`` does not touch running ones, ``POST
/interrupt`` not waiting ones. A caller reaches the jobs that it may see. A caller that sees everything also reaches
prompts that came to a server past the gateway.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError, ComfyUITaskCancelledError
from comfyui.jobs.admission import Admission
from comfyui.jobs.cancels import Cancels
from comfyui.jobs.entries import Entries
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import State
from comfyui.jobs.journal.writes import Finish
from comfyui.jobs.origin import Origin
from comfyui.jobs.queue import JobQueue
from comfyui.jobs.runs import Runs
from comfyui.jobs.turns import Turns
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.servers.taking_back import take_back
from comfyui.servers.watcher import Watch
from comfyui.tasks import SideTasks

# Jobs that end in one transaction. Others have their turn in the event loop, and in the journal, after each of them.
_TOGETHER = 100
# Jobs with tasks that end before others have their turn.
_AT_ONCE = 50
# No caller waits longer than this for a server: the rest goes on without the caller.
_PATIENCE_S = 5.0

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Removal:
    """Knows the place of each job, and how it is removed from there. Close it before its arguments."""

    def __init__(
        self,
        entries: Entries,
        pool: BackendPool,
        admission: Admission,
        runs: Runs,
        queue: JobQueue,
        turns: Turns,
        cancels: Cancels,
    ) -> None:
        self._entries = entries
        self._journal = entries.journal
        self._pool = pool
        self._admission = admission
        self._runs = runs
        self._queue = queue
        self._turns = turns
        self._cancels = cancels
        self._tasks = SideTasks()

    async def close(self) -> None:
        """End what still goes on after its caller was answered."""
        await self._tasks.close()

    async def cancel(self, prompt_id: str, origin: Origin) -> None:
        """Take one prompt out of ComfyUI, for all who wait for it, whether it waits or runs.

        Raises:
            ComfyUINotFoundError: it is not in flight here, and in no queue of ComfyUI; or it is another owner's.
            ComfyUIError: ComfyUI could not be told, so that the prompt may go on there; it can be cancelled again.
        """
        error = _cancelled(prompt_id)
        entry = await self._admission.left_behind(prompt_id, origin)
        if (job := self._runs.live.get(prompt_id)) is not None:
            job.cancel(error)
            if not job.has_task:
                self._queue.left(prompt_id)
                self._runs.drop(job)
            failure = await asyncio.shield(self._cancels.begin(job, "request"))
        elif entry is not None:
            if not entry.server is not None:
                self._queue.left(prompt_id)
            failure = await self._cancels.take_out(entry, error, "request")
        else:
            record = await self._admission.known(prompt_id)
            has_ended = record is not None and record.state.is_end
            await self._cancels.take_out_unknown(prompt_id, has_ended=has_ended)
            return
        await self._admission.settled(prompt_id)
        if failure is not None:
            raise failure

    async def cancel_all(self, prompt_ids: Sequence[str], origin: Origin) -> bool:
        """Cancels these, whether they wait or run; returns whether any did. Others are ignored."""
        return await self._whole(self._cancel_all(prompt_ids, origin))

    async def delete(self, prompt_ids: Sequence[str], origin: Origin) -> None:
        """Cancel those of these that wait, wherever that is."""
        await self._whole(self._delete(prompt_ids, origin))

    async def clear(self, origin: Origin) -> None:
        """Cancels all waiting jobs. None of them begins when a running one ends meanwhile.

        Raises:
            JournalError: it cannot be written.
        """
        await self._whole(self._clear(origin))

    async def interrupt(self, prompt_id: str | None, origin: Origin) -> None:
        """Cancels this prompt if it runs, or all that run."""
        await self._whole(self._interrupt(prompt_id, origin))

    async def _whole(self, work: Coroutine[Any, Any, bool]) -> bool:
        """Do it to its end, also when the caller leaves."""
        outcome = await asyncio.shield(self._tasks.start(_told(work), "removal"))
        if isinstance(outcome, ComfyUIError):
            raise outcome
        return outcome

    # The requests

    async def _clear(self, origin: Origin) -> bool:
        rows = self._queue.ids_seen_by(origin)
        jobs = [job for job in self._runs.live.values() if self._is_seen(job, origin) and job.has_task]
        sweep = (self._everywhere(_clear_queue),) if origin.sees(None) else ()
        await self._end_rows(rows, self._end_jobs(jobs), *sweep)
        _log.info("queue.cleared", key=origin.owner, jobs=len(rows) + len(jobs))
        return True

    async def _delete(self, prompt_ids: Sequence[str], origin: Origin) -> bool:
        rows, jobs, others = await self._sorted(prompt_ids, origin)
        works: list[Coroutine[Any, Any, Any]] = [self._end_jobs(jobs)]
        works += [self._cancel_one(one, origin) for one, state in others.items() if state is State.QUEUED]
        unknown = [one for one in set(prompt_ids).difference(rows) if not self._is_ours(one)]
        if origin.sees(None) and unknown:
            works.append(self._everywhere(lambda backend: backend.client.delete_from_queue(*unknown)))
        await self._end_rows(rows, *works)
        return True

    async def _interrupt(self, prompt_id: str | None, origin: Origin) -> bool:
        jobs = [
            job
            for job in self._runs.live.values()
            if self._is_seen(job, origin) and prompt_id in {None, job.prompt_id} and not self._waits(job)
        ]
        works: list[Coroutine[Any, Any, Any]] = [self._stop_running(job) for job in jobs]
        if origin.sees(None) and prompt_id is None:
            works.append(self._everywhere(self._interrupt_others))
        elif origin.sees(None) and prompt_id is not None and not self._is_ours(prompt_id):
            works.append(self._everywhere(lambda backend: backend.client.interrupt(prompt_id)))
        await self._all(*works)
        return True

    async def _cancel_all(self, prompt_ids: Sequence[str], origin: Origin) -> bool:
        rows, jobs, others = await self._sorted(prompt_ids, origin)
        works: list[Coroutine[Any, Any, Any]] = [self._stop(job) for job in jobs]
        works += [self._cancel_one(one, origin) for one, state in others.items() if not state.is_end]
        unknown = {one for one in set(prompt_ids).difference(rows, others) if not self._is_ours(one)}
        if origin.sees(None) and unknown:
            works.append(self._everywhere(lambda backend: self._cancel_on(backend, unknown)))
        return any(await self._end_rows(rows, *works))

    async def _sorted(self, prompt_ids: Sequence[str], origin: Origin) -> tuple[list[str], list[Job], dict[str, State]]:
        """The jobs among these that the caller sees: rows of our queue, jobs with tasks, and those that only the
        journal knows.
        """
        named = list(dict.fromkeys(prompt_ids))
        rows = self._queue.ids_seen_by(origin, named)
        live = [job for one in named if (job := self._runs.live.get(one)) is not None and job.has_task]
        jobs = [job for job in live if self._is_seen(job, origin)]
        waiting, others = set(rows), dict[str, State]()
        for some in _slices([one for one in named if one not in waiting and one not in self._runs.live], _TOGETHER):
            seen = (record for record in await self._journal.get_all(some) if origin.sees(record.owner))
            others |= {record.prompt_id: record.state for record in seen}
        return rows, jobs, others

    def _is_ours(self, prompt_id: str) -> bool:
        job = self._runs.live.get(prompt_id)
        return job is not None and job.entry is not None

    def _is_seen(self, job: Job, origin: Origin) -> bool:
        """Whether the caller may know of an unfinished job of ours."""
        return job.entry is not None and not job.ended and origin.sees(job.owner)

    def _waits(self, job: Job) -> bool:
        """Whether it waits in the gateway, and its present attempt is on no server."""
        return self._turns.position(job.prompt_id) is not None

    # Jobs that wait

    async def _end_rows(self, prompt_ids: Sequence[str], *works: Coroutine[Any, Any, Any]) -> list[Any]:
        """Ends rows of our queue, many with one write, and runs `works` meanwhile.

        Returns whether any row has ended, and the results of the works. Raises `JournalError`; rows that have not ended
        then wait on.
        """
        held = self._queue.hold_back(prompt_ids)
        doing = self._tasks.start(self._all(*works), "removal")
        ended = 0
        try:
            for some in _slices(prompt_ids, _TOGETHER):
                ended += await self._end_some(some)
                for prompt_id in some:
                    held.pop(prompt_id, None)
                    self._queue.left(prompt_id)
                await asyncio.sleep(0)
        finally:
            self._queue.let_wait(held)
        return [ended > 0, *await doing]

    async def _end_jobs(self, jobs: Sequence[Job]) -> None:
        """Cancel those of these jobs that have tasks and do not run."""
        there: defaultdict[Backend, dict[Watch, Job]] = defaultdict(dict)
        away: list[Job] = []
        for job in jobs:
            backend, watch = job.backend, job.watch
            if job.begun and backend is not None and not isinstance(backend, Backend) and not self._waits(job):
                continue
            if self._waits(job) or backend is None or watch is None or not watch.accepted:
                away.append(job)
            elif not job.begun and backend.ready and isinstance(backend, Backend):
                there[backend][watch] = job
            elif not job.begun:
                # A server that is down is not asked. It is told when it is back.
                away.append(job)
        await self._all(self._end_away(away), *(self._end_on(backend, some) for backend, some in there.items()))

    async def _end_on(self, backend: Backend, jobs: Mapping[Watch, Job]) -> None:
        """Cancels the waiting ones among jobs that wait on a server, or may have begun there unnoticed."""
        out = await take_back(backend, *jobs)
        await self._all(*(self._stop(job) for watch, job in jobs.items() if watch in out))

    async def _end_away(self, jobs: Sequence[Job]) -> None:
        for some in _slices(jobs, _AT_ONCE):
            await self._all(*map(self._end_one_away, some))

    async def _end_some(self, prompt_ids: Sequence[str]) -> int:
        ended = 0
        ends: list[Finish] = []
        for record in await self._journal.get_all(prompt_ids):
            if not record.waits:
                continue
            error = _cancelled(record.prompt_id)
            if (job := self._runs.live.get(record.prompt_id)) is not None:
                # A request waits for it.
                job.cancel(error)
                job.cancelled()
                self._runs.drop(job)
                ended += 1
            else:
                ends.append(self._entries.of(record).end(State.CANCELED, error))
        ended += sum(await self._journal.write_all(ends))
        if any(end.deliveries for end in ends):
            self._entries.announcements.news.set()
        return ended

    async def _end_one_away(self, job: Job) -> None:
        """Cancel a job that no server has accepted, or whose server is down."""
        if job.ended:
            return
        if job.backend is None and self._waits(job) and not (job.placed_before or (job.stays and job.perhaps_known)):
            # No server has it, and none is asked. An async job with a place may still be looked for.
            job.cancel(_cancelled(job.prompt_id))
            await job.stopped()
            job.cancelled()
        else:
            await self._stop(job)

    # Jobs that run

    async def _stop(self, job: Job) -> bool:
        """Cancel the job wherever it is; whether it had not ended."""
        if job.ended:
            return False
        job.cancel(_cancelled(job.prompt_id))
        await asyncio.shield(self._cancels.begin(job, "request"))
        return True

    async def _stop_running(self, job: Job) -> None:
        if job.begun:
            await self._stop(job)
        elif isinstance(job.backend, Backend) and job.watch is not None and job.watch.accepted:
            # It may run unnoticed: it was sent under the id of a websocket that has closed.
            await job.backend.client.interrupt(job.prompt_id)

    async def _cancel_one(self, prompt_id: str, origin: Origin) -> bool:
        try:
            await self.cancel(prompt_id, origin)
        except ComfyUINotFoundError:
            return False
        return True

    # Prompts of others

    async def _interrupt_others(self, backend: Backend) -> None:
        if backend.watcher.others or not backend.watcher.connected:
            running = [one for one, item in (await backend.client.get_queue()).items() if item.running]
            await self._all(*(backend.client.interrupt(one) for one in running if not self._is_ours(one)))

    async def _cancel_on(self, backend: Backend, prompt_ids: Collection[str]) -> bool:
        there = [prompt_id for prompt_id in await backend.client.get_queue() if prompt_id in prompt_ids]
        await self._all(*map(backend.cancel, there))
        return bool(there)

    async def _everywhere(self, ask: Callable[[Backend], Coroutine[Any, Any, Any]]) -> bool:
        """Ask all servers that are up; whether any has answered with something that is true."""
        return any(await self._all(*map(ask, self._pool.ready)))

    async def _all(self, *works: Coroutine[Any, Any, _T]) -> list[_T]:
        """Do all of these at the same time; the caller waits for them for a time, and what takes longer goes on.

        A server's failure is logged, and does not affect the others.
        """
        tasks = [self._tasks.start(_tried(work), "removal") for work in works]
        if tasks:
            await asyncio.wait(tasks, timeout=_PATIENCE_S)
        return [found for task in tasks if task.done() and (found := task.result()) is not None]


async def _tried(work: Coroutine[Any, Any, _T]) -> _T | None:
    try:
        return await work
    except ComfyUIError as error:
        _log.warning("prompt.cancel_failed", reason="request", detail=error.detail)
        return None


async def _told(work: Coroutine[Any, Any, _T]) -> _T | ComfyUIError:
    """An error of ours is for the caller, while there is one, and no crash."""
    try:
        return await work
    except ComfyUIError as error:
        return error


def _slices(whole: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


async def _clear_queue(backend: Backend) -> None:
    await backend.client.clear_queue()


def _cancelled(prompt_id: str) -> ComfyUITaskCancelledError:
    return ComfyUITaskCancelledError("cancelled on request", prompt_id=prompt_id)
