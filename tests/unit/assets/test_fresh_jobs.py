"""What is known of a job that was submitted a moment ago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from comfyui.assets.fresh_jobs import FreshJobs
from comfyui.assets.outputs import JobOutput, outputs_of
from comfyui.events import Executed, ExecutionStart
from comfyui.exceptions import ComfyUITaskError
from comfyui.jobs.entries import Entries
from comfyui.jobs.job import Job
from comfyui.jobs.journal.asset_writes import OutputFacts
from comfyui.jobs.origin import OURS
from comfyui.models import PromptRequest, PromptResult, Timings
from comfyui.servers.server import Server
from tests.support.journals import prompt_id

_ID = prompt_id(1)
_FIRST = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}
_SECOND = {"images": [{"filename": "b.png", "subfolder": "", "type": "output"}]}


class Place:
    """A server, as far as it is looked at here."""

    def __init__(self, name: str) -> None:
        self.name = name


class Measuring:
    """Knows the size of every file: as many bytes as it was asked for files by then."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def measured(self, prompt_id: str, run: int, server: str, outputs: Sequence[JobOutput]) -> list[OutputFacts]:
        found = []
        for output in outputs:
            self.asked.append((server, output.name))
            found.append(OutputFacts(prompt_id, run, output.id, len(self.asked), None))
        return found

    async def were(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.asked) < count:
                await asyncio.sleep(0)


@asynccontextmanager
async def fresh_jobs(left: list[Job] | None = None) -> AsyncIterator[tuple[FreshJobs, Measuring]]:
    measuring = Measuring()
    async with FreshJobs(measuring, ([] if left is None else left).append) as jobs:
        yield jobs, measuring


async def placed_job() -> Job:
    request = PromptRequest(prompt={"1": {"class_type": "A", "inputs": {}}})
    job = Job(_ID, request, entry=Entries().new(_ID, OURS, kind="async", callers_id=False))
    await place(job, "gpu-1")
    return job


async def place(job: Job, server: str) -> None:
    await job.placed(cast("Server", Place(server)))
    job.publish(ExecutionStart(_ID))


def end(job: Job, server: str, **outputs: Any) -> list[str]:
    """The ids of what it has made."""
    job.finish(PromptResult(_ID, server, outputs, (), Timings(0, 0, 0), {}))
    return [one.id for one in outputs_of(_ID, outputs)]


async def test_files_are_measured_when_nodes_tell_of_them_and_once() -> None:
    async with fresh_jobs() as (fresh, measuring):
        job = await placed_job()
        fresh.add(job)
        job.publish(Executed(_ID, "9", _FIRST))
        await measuring.were(1)
        job.publish(Executed(_ID, "10", _SECOND))
        await measuring.were(2)
        one = fresh.get(_ID)
        assert one is not None
        first, second = end(job, "gpu-1", **{"9": _FIRST, "10": _SECOND})
        assert {name: facts.size for name, facts in (await one.facts()).items()} == {first: 1, second: 2}
        assert measuring.asked == [("gpu-1", "a.png"), ("gpu-1", "b.png")]


async def test_what_no_node_has_told_of_is_measured_at_the_end() -> None:
    async with fresh_jobs() as (fresh, _):
        job = await placed_job()
        fresh.add(job)
        (first,) = end(job, "gpu-1", **{"9": _FIRST})
        one = fresh.get(_ID)
        assert one is not None
        assert list(await one.facts()) == [first]


async def test_the_output_of_another_attempt_is_measured_again() -> None:
    async with fresh_jobs() as (fresh, measuring):
        job = await placed_job()
        fresh.add(job)
        job.publish(Executed(_ID, "9", _FIRST))
        await measuring.were(1)
        await place(job, "gpu-2")
        (first,) = end(job, "gpu-2", **{"9": _FIRST})
        one = fresh.get(_ID)
        assert one is not None
        assert {name: facts.size for name, facts in (await one.facts()).items()} == {first: 2}
        assert measuring.asked == [("gpu-1", "a.png"), ("gpu-2", "a.png")]


async def test_a_job_is_held_until_it_is_not_fresh_any_more() -> None:
    left: list[Job] = []
    async with fresh_jobs(left) as (fresh, _):
        job = await placed_job()
        fresh.add(job)
        assert (job.waiters, left) == (1, [])
        fresh.drop(_ID)
        fresh.drop(_ID)
        assert (job.waiters, left) == (0, [job])


async def test_a_job_that_fails_or_is_dropped_waits_for_no_size() -> None:
    async with fresh_jobs() as (fresh, measuring):
        failing, dropped = await placed_job(), await placed_job()
        fresh.add(failing)
        one = fresh.get(_ID)
        failing.fail(ComfyUITaskError("a node failed"))
        assert one is not None
        assert await one.facts() == {}
        fresh.add(dropped)
        one = fresh.get(_ID)
        fresh.drop(_ID)
        assert fresh.get(_ID) is None
        assert one is not None
        assert await one.facts() == {}
        assert measuring.asked == []
