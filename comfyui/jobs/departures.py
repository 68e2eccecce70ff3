"""`Departures`: takes jobs off failed servers as soon as another one may run them."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from comfyui.exceptions import ComfyUIPromptLostError
from comfyui.executors.assignment import Assignment
from comfyui.jobs.scheduler import Scheduler
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.servers.taking_back import take_back
from comfyui.servers.watcher import Watch
from comfyui.tasks import SideTasks

# A job that was just placed, and has no watch yet, is looked at again after so long.
_AGAIN_S = 1.0

_log = structlog.get_logger(__name__)


class Departures:
    """A job whose server does not answer is lost to it, and its task asks for another place. A job is taken back from a
    server that answers but runs nothing.

    Args:
        jobs: those that have a place, by id; it changes.
        after_s: a server is given so long to come back.
    """

    def __init__(self, pool: BackendPool, scheduler: Scheduler, jobs: Mapping[str, Assignment], after_s: float) -> None:
        self._pool = pool
        self._scheduler = scheduler
        self._jobs = jobs
        self._after_s = after_s
        self._taking: set[str] = set()
        self._tasks = SideTasks()

    async def close(self) -> None:
        await self._tasks.close()

    def look(self) -> float | None:
        """Takes away all jobs that can be taken away now; returns the seconds until the next look, if known."""
        waits = [wait_s for backend in self._pool.backends if (wait_s := self._look_at(backend)) is not None]
        return min(waits, default=None)

    def _look_at(self, backend: Backend) -> float | None:
        if backend.ready:
            return None
        jobs = self._with_another_place(backend)
        if not jobs:
            return None
        if backend.answers:
            self._recall(backend, jobs)
        elif (left_s := self._after_s - backend.away_s) > 0:
            return left_s
        else:
            for job in jobs:
                _give_up(backend, job, "no longer answers")
        return _AGAIN_S

    def _with_another_place(self, backend: Backend) -> list[Assignment]:
        """Without a request, a job can run nowhere else."""
        there = (job for one, job in self._jobs.items() if self._scheduler.server_of(one) == backend.name)
        return [job for job in there if job.request is not None and self._scheduler.has_other(job.prompt_id)]

    def _recall(self, backend: Backend, jobs: list[Assignment]) -> None:
        if backend.watcher.worker.dead:
            for job in jobs:
                if job.begun:
                    _give_up(backend, job, "no longer runs anything")
        watches = [job.watch for job in jobs if job.watch is not None and job.watch.accepted and not job.begun]
        if watches and backend.name not in self._taking:
            self._taking.add(backend.name)
            self._tasks.start(self._take_back(backend, watches), f"take back from {backend.name}")

    async def _take_back(self, backend: Backend, watches: list[Watch]) -> None:
        try:
            for watch in await take_back(backend, *watches):
                _log.info("prompt.taken_back", prompt_id=watch.prompt_id, server=backend.name, reason=backend.reason)
                watch.taken_back()
        finally:
            self._taking.discard(backend.name)


def _give_up(backend: Backend, job: Assignment, why: str) -> None:
    if job.watch is not None:
        job.watch.fail(ComfyUIPromptLostError(f"{backend.name} {why}", prompt_id=job.prompt_id))
