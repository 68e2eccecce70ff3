"""The output sizes of jobs that were submitted a moment ago."""

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


class NamedServer:
    """The part of a server that these tests need: its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class CountingMeasurer:
    """Gives the n-th file that is asked for a size of n bytes."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def measured(self, prompt_id: str, run: int, server: str, outputs: Sequence[JobOutput]) -> list[OutputFacts]:
        found = []
        for output in outputs:
            self.asked.append((server, output.name))
            found.append(OutputFacts(prompt_id, run, output.id, len(self.asked), None))
        return found

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.asked) < count:
                await asyncio.sleep(0)


@asynccontextmanager
async def fresh_jobs(left: list[Job] | None = None) -> AsyncIterator[tuple[FreshJobs, CountingMeasurer]]:
    measuring = CountingMeasurer()
    async with FreshJobs(measuring, ([] if left is None else left).append) as jobs:
        yield jobs, measuring


async def placed_job() -> Job:
    request = PromptRequest(prompt={"1": {"class_type": "A", "inputs": {}}})
    job = Job(_ID, request, entry=Entries().new(_ID, OURS, kind="async", callers_id=False))
    await place(job, "gpu-1")
    return job


async def place(job: Job, server: str) -> None:
    await job.placed(cast("Server", NamedServer(server)))
    job.publish(ExecutionStart(_ID))


def end(job: Job, server: str, **outputs: Any) -> list[str]:
    """Ends the job and returns the ids of its outputs."""
    job.finish(PromptResult(_ID, server, outputs, (), Timings(0, 0, 0), {}))
    return [one.id for one in outputs_of(_ID, outputs)]


async def test_each_file_is_measured_once_as_soon_as_its_node_reports_it() -> None:
    async with fresh_jobs() as (fresh, measuring):
        job = await placed_job()
        fresh.add(job)
        job.publish(Executed(_ID, "9", _FIRST))
        await measuring.wait_for(1)
        job.publish(Executed(_ID, "10", _SECOND))
        await measuring.wait_for(2)
        one = fresh.get(_ID)
        assert one is not None
        first, second = end(job, "gpu-1", **{"9": _FIRST, "10": _SECOND})
        assert {name: facts.size for name, facts in (await one.facts()).items()} == {first: 1, second: 2}
        assert measuring.asked == [("gpu-1", "a.png"), ("gpu-1", "b.png")]


async def test_files_that_no_node_reported_are_measured_at_the_end() -> None:
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
        await measuring.wait_for(1)
        await place(job, "gpu-2")
        (first,) = end(job, "gpu-2", **{"9": _FIRST})
        one = fresh.get(_ID)
        assert one is not None
        assert {name: facts.size for name, facts in (await one.facts()).items()} == {first: 2}
        assert measuring.asked == [("gpu-1", "a.png"), ("gpu-2", "a.png")]


async def test_a_fresh_job_is_held_until_it_is_dropped() -> None:
    left: list[Job] = []
    async with fresh_jobs(left) as (fresh, _):
        job = await placed_job()
        fresh.add(job)
        assert (job.waiters, left) == (1, [])
        fresh.drop(_ID)
        fresh.drop(_ID)
        assert (job.waiters, left) == (0, [job])


async def test_no_size_is_awaited_for_a_job_that_failed_or_was_dropped() -> None:
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
