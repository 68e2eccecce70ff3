"""`FreshJobs`: jobs that were submitted a moment ago. Their callers ask for them at once, and are answered from memory.

A quick job has often ended before its caller asks for the first time. The sizes of its files are requested in the same
turn in which its nodes report them, before its history: ComfyUI answers one request after the other, and the answer to
the caller took 0.6 ms longer if a task had to wake up first. The end is not read from the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from comfyui.assets.outputs import JobOutput, outputs_of
from comfyui.jobs.job import Job
from comfyui.jobs.journal.asset_writes import OutputFacts
from comfyui.jobs.journal.records import Fence, State
from comfyui.tasks import SideTasks

FRESH_S = 1.0
"""Seconds after its submission for which a job is fresh."""
# Each may keep a result in memory that nothing else keeps.
_MOST = 256


class Measures(Protocol):
    """Asks for the sizes of files."""

    async def measured(self, prompt_id: str, run: int, server: str, outputs: Sequence[JobOutput]) -> list[OutputFacts]:
        """See `JobOutputs.measured`."""


class FreshJob:
    """One of them.

    Attributes:
        job: its owner is not checked. It may wait in our queue.
    """

    def __init__(self, job: Job, outputs: Measures, tasks: SideTasks) -> None:
        self.job = job
        self._outputs = outputs
        self._tasks = tasks
        self._known: dict[str, OutputFacts] = {}
        self._asked: dict[str, Any] = {}
        self._attempt: tuple[Fence, str] | None = None
        self._measuring: set[asyncio.Task[None]] = set()
        job.follow_outputs(self._look)

    async def facts(self) -> Mapping[str, OutputFacts]:
        """The known facts about the ended job's files, by the ids of the outputs. Some may be missing."""
        while self._measuring:
            await asyncio.wait(self._measuring)
        return self._known

    def stop(self) -> None:
        """Ask for no more."""
        self.job.unfollow_outputs(self._look)
        for task in self._measuring:
            task.cancel()

    def _look(self) -> None:
        job = self.job
        if job.state is State.SUCCEEDED:
            result = job.result()
            self._ask(result.server, result.outputs)
        elif job.backend is not None and not job.ended:
            self._ask(job.backend.name, {event.node: dict(event.output) for event in job.made()})

    def _ask(self, server: str, made: Mapping[str, Any]) -> None:
        if self.job.entry is None:
            return
        attempt = self.job.entry.fence, server
        if attempt != self._attempt:
            # The output of another attempt is another file, even with the same name.
            self._attempt = attempt
            self._asked.clear()
            self._known.clear()
        # ComfyUI's history says the same of a node as its event, most of the time.
        new = {node: output for node, output in made.items() if node not in self._asked or self._asked[node] != output}
        if new:
            self._asked |= new
            task = self._tasks.start(self._measure(attempt, new), f"measure {self.job.prompt_id}")
            self._measuring.add(task)
            task.add_done_callback(self._measuring.discard)

    async def _measure(self, attempt: tuple[Fence, str], made: Mapping[str, Any]) -> None:
        (prompt_id, run, _), server = attempt
        found = outputs_of(prompt_id, made)
        fresh = [one for one in found if one.id not in self._known]
        if not fresh:
            return
        measured = await self._outputs.measured(prompt_id, run, server, fresh)
        if attempt == self._attempt:
            self._known |= {one.id: one for one in measured}


class FreshJobs:
    """Its arguments belong to their creator. Use it with ``async with``.

    Args:
        let_go: called with each job that is no longer fresh.
    """

    def __init__(self, outputs: Measures, let_go: Callable[[Job], None]) -> None:
        self._outputs = outputs
        self._let_go = let_go
        self._fresh: dict[str, FreshJob] = {}
        self._tasks = SideTasks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._tasks.close()

    def add(self, job: Job) -> None:
        """The job was submitted now, and runs or waits."""
        if len(self._fresh) < _MOST:
            job.join()
            self._fresh[job.prompt_id] = FreshJob(job, self._outputs, self._tasks)
            asyncio.get_running_loop().call_later(FRESH_S, self.drop, job.prompt_id)

    def get(self, prompt_id: str) -> FreshJob | None:
        """The job; None if it is no longer fresh."""
        return self._fresh.get(prompt_id)

    def drop(self, prompt_id: str) -> None:
        """The job is no longer fresh: its end was told, or it is followed, or more is known about its files."""
        if (fresh := self._fresh.pop(prompt_id, None)) is not None:
            fresh.stop()
            fresh.job.leave()
            self._let_go(fresh.job)
