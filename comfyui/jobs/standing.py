"""`StandingJobs`: all unfinished jobs as ComfyUI's queue shows prompts: running and pending ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from comfyui.jobs.cancels import Cancels
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import State
from comfyui.jobs.lines import Standing
from comfyui.jobs.queue import JobQueue
from comfyui.jobs.runs import Runs
from comfyui.jobs.turns import Turns
from comfyui.owners import key_of
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool

Owns = Callable[[str | None], bool]
"""Picks jobs by their owner."""


class StandingNow(NamedTuple):
    """Both in the shown order. `running` has at most one job for each server."""

    running: list[Standing]
    pending: list[Standing]


class KeyCounts(NamedTuple):
    """How many jobs of one key have not ended. `placed`: on a server, which is what `max_running` limits."""

    waiting: int
    placed: int


class Waits(NamedTuple):
    """A job that waits. `place`: how many have their turn before it, and one; None: it does not wait for its turn."""

    standing: Standing
    place: int | None = None


class StandingJobs:
    """Asks the scheduler, the queue and the running jobs; it keeps nothing."""

    def __init__(self, pool: BackendPool, turns: Turns, runs: Runs, queue: JobQueue, cancels: Cancels) -> None:
        self._pool = pool
        self._scheduler = turns.scheduler
        self._live = runs.live
        self._canceling = cancels.jobs
        self._queue = queue

    def count(self, owns: Owns) -> int:
        """How many there are."""
        others = (*self._being_cancelled(), *self._without_turn())
        return self._scheduler.shares.count(owns) + sum(owns(one.owner) for one in others)

    def count_waiting(self, owns: Owns) -> int:
        """How many `waiting` has, of owners that `owns` picks: they need not be put in their order for that."""
        others = (*self._scheduler.placed(), *self._without_turn())
        in_turn = sum(waiting for owner, waiting, _ in self._scheduler.shares.by_owner() if owns(owner))
        return in_turn + sum(owns(one.owner) and not self._has_begun(one) for one in others)

    def by_key(self) -> dict[str, KeyCounts]:
        """The counts of each key that has jobs, by its name; "" stands for jobs without one."""
        waiting, placed = Counter[str](), Counter[str]()
        for owner, waiting_now, placed_now in self._scheduler.shares.by_owner():
            key = key_of(owner or "")
            waiting[key] += waiting_now
            placed[key] += placed_now
        for one in (*self._being_cancelled(), *self._without_turn()):
            (waiting if one.server is None else placed)[key_of(one.owner or "")] += 1
        keys = waiting.keys() | placed.keys()
        return {key: KeyCounts(waiting[key], placed[key]) for key in keys if waiting[key] or placed[key]}

    def now(self, owns: Owns) -> StandingNow:
        """All of them. A job that ran, and is placed again, is the first of those that are pending."""
        # A job that is being cancelled has left the scheduler, and has not ended yet.
        listed = [*self._being_cancelled(), *self._scheduler.standing()]
        running = self._running(listed)
        ids = {one.prompt_id for one in running}
        pending = [one for one in (*listed, *self._without_turn()) if owns(one.owner) and one.prompt_id not in ids]
        pending.sort(key=self._is_new)
        return StandingNow([one for one in running if owns(one.owner)], pending)

    def waiting(self) -> Iterator[Waits]:
        """All jobs that wait, in the order in which they are shown, worked out as far as it is read.

        Read it before anything else happens here.
        """
        late = [one for one in self._without_turn() if not self._has_begun(one)]
        placed = (*self._scheduler.placed(), *(one for one in late if one.server is not None))
        yield from (Waits(one) for one in placed if not self._has_begun(one))
        yield from (Waits(one, place) for place, one in enumerate(self._scheduler.in_turn(), 1))
        yield from (Waits(one) for one in late if one.server is None)

    def owners(self) -> Mapping[str | None, int]:
        """Those who have jobs that wait for their turn, and how many."""
        return {owner: waiting for owner, waiting, _ in self._scheduler.shares.by_owner() if waiting}

    def on_servers(self) -> StandingNow:
        """As `now`, but only jobs on servers, of all owners: it takes no longer if thousands wait."""
        listed = [*self._being_cancelled(), *self._scheduler.placed(), *self._past_the_scheduler()]
        running = self._running(listed)
        ids = {one.prompt_id for one in running}
        # A server that stands for many runs more than one.
        running += [one for one in listed if one.prompt_id not in ids and self._has_begun(one)]
        ids |= {one.prompt_id for one in running}
        return StandingNow(running, [one for one in listed if one.server is not None and one.prompt_id not in ids])

    def job(self, prompt_id: str) -> Job | None:
        """The running job, if there is one: it knows facts that the journal may not have yet."""
        return self._live.get(prompt_id) or self._canceling.get(prompt_id)

    def workflow_of(self, prompt_id: str) -> Mapping[str, Any] | None:
        """The workflow of a job in flight; None if it is not known (yet)."""
        job = self._live.get(prompt_id)
        return job.workflow if job else None

    def _running(self, listed: list[Standing]) -> list[Standing]:
        by_server: dict[str, list[Standing]] = {}
        for one in listed:
            if one.server is None:
                break  # servers' jobs come first
            by_server.setdefault(one.server, []).append(one)
        found = (self._first_running(server, jobs) for server, jobs in by_server.items())
        return [one for one in found if one is not None]

    def _first_running(self, server: str, listed: list[Standing]) -> Standing | None:
        began = next((one for one in listed if self._has_begun(one)), None)
        if began is not None:
            return began
        # We hear nothing of a prompt that was sent under the id of a websocket before: what ComfyUI took first runs.
        first, backend = listed[0], self._pool.named(server)
        watch = job.watch if (job := self._live.get(first.prompt_id)) is not None else None
        if not isinstance(backend, Backend) or watch is None or backend.watcher.others or not first.accepted:
            return None
        return first if watch.client_id != backend.watcher.client_id and not watch.heard else None

    def _has_begun(self, one: Standing) -> bool:
        job = self.job(one.prompt_id)
        return job is not None and job.began_at is not None

    def _is_new(self, one: Standing) -> bool:
        """Whether it never ran."""
        job = self.job(one.prompt_id)
        return job is None or not (job.started and job.state is State.RUNNING)

    def _being_cancelled(self) -> Iterator[Standing]:
        """Jobs that a server is being told to give up."""
        for prompt_id, job in self._canceling.items():
            if job.backend is not None and not self._scheduler.knows(prompt_id):
                yield Standing(prompt_id, job.owner, job.backend.name, accepted=True)

    def _without_turn(self) -> Iterator[Standing]:
        """Jobs whose inputs are still to be fetched, and those that are about to ask for their turn."""
        yield from self._queue.without_turn()
        yield from self._past_the_scheduler()

    def _past_the_scheduler(self) -> Iterator[Standing]:
        """Jobs in hand of which the scheduler knows nothing."""
        for prompt_id, job in self._live.items():
            # Without a task, it stands for one of the queue; without a request and a server, someone only asks for it.
            is_one = job.has_task and not job.ended and (job.request is not None or job.backend is not None)
            if is_one and not self._scheduler.knows(prompt_id):
                yield Standing(prompt_id, job.owner, None if job.backend is None else job.backend.name)
