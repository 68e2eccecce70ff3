"""`Waiters`: jobs whose tasks wait for their turn."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from comfyui.events import QueuePosition
from comfyui.exceptions import ComfyUIConnectionError
from comfyui.executors.assignment import Assignment
from comfyui.jobs.scheduler import Scheduler
from comfyui.servers.pool import BackendPool
from comfyui.servers.server import Server

# Positions are told so often, and less often where many wait.
_TELL_S = 0.1
_TELL_EACH_S = 0.001


@dataclass(slots=True)
class _Waiter:
    """`patience_s`: how long it waits if no server has been up since it came; None: for ever."""

    job: Assignment
    turn: asyncio.Future[Server]
    patience_s: float | None
    since: float
    told: int | None = None


class Waiters:
    """Each has a future that gets its server."""

    def __init__(self, pool: BackendPool, scheduler: Scheduler) -> None:
        self._pool = pool
        self._scheduler = scheduler
        self._waiters: dict[str, _Waiter] = {}
        self._up_at = -math.inf

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def add(self, job: Assignment, patience_s: float | None) -> asyncio.Future[Server]:
        """The job waits from now on, until `remove`."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Server] = loop.create_future()
        self._waiters[job.prompt_id] = _Waiter(job, turn, patience_s, loop.time())
        if self._pool.ready_servers:
            self._up_at = loop.time()
        return turn

    def remove(self, job: Assignment) -> None:
        del self._waiters[job.prompt_id]

    def give(self, prompt_id: str, backend: Server) -> bool:
        """The job has its turn; whether it waits for that here."""
        waiter = self._waiters.get(prompt_id)
        if waiter is None or waiter.turn.done():
            return False
        waiter.turn.set_result(backend)
        return True

    def check_patience(self, now: float) -> float | None:
        """Ends those who have waited too long for any server to come up; returns when the next one has.

        A job that came while a server was up, or that has seen one up since, waits on: its caller has a timeout.
        """
        if self._pool.ready_servers:
            self._up_at = now
            return None
        is_over = all(backend.abandoned for backend in self._pool.servers)
        ends: list[float] = []
        for waiter in self._waiters.values():
            if waiter.patience_s is None or waiter.turn.done():
                continue
            end = math.inf if waiter.since <= self._up_at else waiter.since + waiter.patience_s
            if is_over or end <= now:
                waiter.turn.set_exception(ComfyUIConnectionError(self._pool.why_not_ready()))
            elif end < math.inf:
                ends.append(end)
        return min(ends, default=None)

    @property
    def tell_after_s(self) -> float:
        """How long after a change `tell_positions` is due."""
        return max(_TELL_S, _TELL_EACH_S * len(self._waiters))

    def tell_positions(self) -> None:
        for prompt_id, waiter in self._waiters.items():
            position = self._scheduler.ahead_of(prompt_id) if waiter.job.followed else None
            if position is not None and position != waiter.told:
                waiter.told = position
                waiter.job.publish(QueuePosition(prompt_id, position))
