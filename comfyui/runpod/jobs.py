"""`JobQueue`: the prompts that wait or run, and the only ways in and out of it.

A prompt is in the queue until its history entry can be read, so whoever looks into both always finds it in one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import structlog

from comfyui.exceptions import JournalError
from comfyui.retrying import retry
from comfyui.runpod.health import EndpointHealth
from comfyui.runpod.job import Job, State
from comfyui.runpod.journal import JOURNAL_BACKOFF, Journal
from comfyui.runpod.narrator import Failure, Narrator, described
from comfyui.runpod.sockets import Hub

_log = structlog.get_logger(__name__)

_LOST = (
    "it is not known whether RunPod took the job: {reason}. It was not sent again, so that it does not run twice; look"
    " for it in RunPod's console, or post the workflow again under another prompt_id"
)


class JobQueue:
    """The journal, the narrator and the hub belong to whoever made them.

    Attributes:
        to_send: set when there may be something to send.
        to_follow: set when RunPod has a job more, or has one that is to be cancelled there.
    """

    def __init__(self, journal: Journal, narrator: Narrator, hub: Hub, health: EndpointHealth) -> None:
        self._journal = journal
        self._narrator = narrator
        self._hub = hub
        self._health = health
        self._jobs: dict[str, Job] = {}
        self._number = 0
        self._adding = asyncio.Lock()
        self.to_send = asyncio.Event()
        self.to_follow = asyncio.Event()
        self._to_cancel: list[Job] = []

    @property
    def remaining(self) -> int:
        return len(self._jobs)

    def running(self) -> list[Job]:
        return sorted((job for job in self._jobs.values() if job.running), key=lambda job: job.order)

    def pending(self) -> list[Job]:
        return sorted((job for job in self._jobs.values() if not job.running), key=lambda job: job.order)

    def unfinished(self) -> list[Job]:
        return list(self._jobs.values())

    def counted(self) -> Counter[str]:
        """How many there are in each state: ``waiting`` to be sent, ``pending`` and ``running`` at RunPod."""
        return Counter(_state_of(job) for job in self._jobs.values())

    def find(self, prompt_id: str) -> Job | None:
        return self._jobs.get(prompt_id)

    def followed(self) -> list[Job]:
        """Those that RunPod has."""
        return [job for job in self._jobs.values() if self.follows(job)]

    def delivered(self) -> list[Job]:
        """Those whose result is in the journal, and whose files are still to be saved."""
        return [job for job in self._jobs.values() if job.state is State.DELIVERED and not job.ending]

    def follows(self, job: Job) -> bool:
        """Its result is neither here nor on its way."""
        return job.state is State.SENT and not job.ending

    def next_to_send(self) -> Job | None:
        """The first in ComfyUI's order."""
        waiting = [job for job in self._jobs.values() if job.state is State.PENDING and not job.ending]
        return min(waiting, key=lambda job: job.order, default=None)

    # In

    async def load(self) -> None:
        """What an earlier process left: it goes on, or its end is written where it cannot."""
        self._number = await self._journal.last_number()
        for job in await self._journal.unfinished():
            self._jobs[job.prompt_id] = job
        for job in list(self._jobs.values()):
            if job.state is State.SENDING:
                await self.lost(job, "the gateway was stopped while it was sent")
            elif job.state is State.PENDING and job.cancelled:
                await self.drop(job)
            elif job.state is State.PENDING and job.keyed:
                detail = "the gateway was restarted before it was sent, and its comfy.org key was in memory only"
                await self.failed(job, Failure(detail))
            elif job.state is State.PENDING:
                self.to_send.set()
            elif job.cancelled:
                self.cancel_at_runpod(job)
        if self._jobs:
            _log.info("runpod.resumed", jobs=len(self._jobs))

    async def add(self, job: Job) -> Job:
        """Returns when it is in the journal. An id that is in the queue already is not queued again: that job it is."""
        async with self._adding:
            if (known := self._jobs.get(job.prompt_id)) is not None:
                return known
            await self._journal.add(job, self._number)
            self._jobs[job.prompt_id] = job
        self._hub.status()
        self.to_send.set()
        self._health.begin()
        return job

    def next_number(self, *, front: bool) -> float:
        """ComfyUI's: ascending, and descending below zero for those that go to the front."""
        self._number += 1
        return float(-self._number if front else self._number)

    # Out

    async def cancel(self, prompt_id: str) -> bool:
        """Whatever its state, unless it has ended: what was not sent leaves no trace, what was ends as interrupted."""
        job = self._jobs.get(prompt_id)
        if job is None or job.ending or job.state is State.DELIVERED:
            return False
        if job.state is State.PENDING:
            await self.drop(job)
            return True
        if job.cancelled:
            return True
        job.cancelled = True
        if job.state is State.SENT:
            self.cancel_at_runpod(job)
        await self._journal.update(job)
        return True

    def cancel_at_runpod(self, job: Job) -> None:
        """RunPod has the job, and is to be told that nobody wants it."""
        self._to_cancel.append(job)
        self.to_follow.set()

    def take_cancels(self) -> list[Job]:
        """The jobs that are to be cancelled at RunPod since this was last asked."""
        taken, self._to_cancel = self._to_cancel, []
        return taken

    async def dequeue(self, prompt_ids: Collection[str]) -> None:
        """Of these those that do not run yet."""
        for prompt_id in prompt_ids:
            job = self._jobs.get(prompt_id)
            if job is not None and not job.running:
                await self.cancel(prompt_id)

    async def interrupt(self, prompt_id: str | None) -> None:
        """This one if it runs; without an id all that run, as ComfyUI has only one of them."""
        for job in self.running():
            if prompt_id in (None, job.prompt_id):
                await self.cancel(job.prompt_id)

    async def drop(self, job: Job) -> None:
        """It was not sent: no trace is left, as in ComfyUI."""
        job.ending = True
        try:
            await self._journal.remove(job.prompt_id)
        except JournalError:
            job.ending = False
            self.to_send.set()  # it waits again; whoever sends may have passed it over
            raise
        del self._jobs[job.prompt_id]
        self._hub.status()

    async def succeeded(self, job: Job, outputs: dict[str, Any], execution_ms: float | None) -> None:
        await self._end(job, "success", lambda: self._narrator.succeeded(job, outputs, execution_ms))

    async def failed(self, job: Job, failure: Failure) -> None:
        _log.warning("runpod.failed", prompt_id=job.prompt_id, job_id=job.job_id or None, detail=failure.message[:500])
        await self._end(job, "error", lambda: self._narrator.failed(job, failure))

    async def lost(self, job: Job, reason: str) -> None:
        await self.failed(job, Failure(_LOST.format(reason=reason), "RunPodSubmissionError"))

    async def interrupted(self, job: Job) -> None:
        await self._end(job, "interrupted", lambda: self._narrator.interrupted(job))

    async def _end(self, job: Job, outcome: str, tell: Callable[[], dict[str, Any]]) -> None:
        if job.ending:
            return
        job.ending = True
        try:
            entry = tell()
            await self.insist(lambda: self._journal.finish(job.prompt_id, entry, described(entry)))
        except Exception:
            job.ending = False  # a bug of ours; it can still end in another way
            raise
        del self._jobs[job.prompt_id]
        _log.info("runpod.done", prompt_id=job.prompt_id, job_id=job.job_id or None, outcome=outcome)
        self._narrator.done(job)
        self._hub.status()

    # States

    async def keep(self, job: Job, state: State) -> None:
        """Its state, also in the journal. Raises `JournalError`, and then it is as it was."""
        before, job.state = job.state, state
        try:
            await self._journal.update(job)
        except JournalError:
            job.state = before
            raise

    async def record(self, job: Job) -> None:
        """Its state as it is when this is called."""
        await self._journal.update(job)

    async def insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """For what has happened already and must not be forgotten: until it can be written."""

        def again(_error: JournalError, failures: int) -> None:
            if failures == 1:
                _log.exception("runpod.journal_failed")

        await retry(write, JournalError, JOURNAL_BACKOFF, told=again)

    def began(self, job: Job) -> None:
        """A worker has it."""
        if not job.running:
            job.running = True
            self._narrator.started(job)
            self._hub.status()

    def progressed(self, job: Job, report: Any) -> None:
        self.began(job)
        self._narrator.progressed(job, report)


def _state_of(job: Job) -> str:
    if job.state in {State.PENDING, State.SENDING}:
        return "waiting"
    # What is delivered has run, and its files are being fetched.
    return "running" if job.running or job.state is State.DELIVERED else "pending"
