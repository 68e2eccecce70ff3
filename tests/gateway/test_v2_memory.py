"""Comfy API v2: a quick job is served from memory; the journal is written for it, but not read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from comfyui.engine import Engine
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.statements import Statements
from tests.support.relaying import eventually
from tests.support.running import RunningGateway, executions, invert_workflow, running_gateway, sleep_workflow, until
from tests.support.v2 import JOBS, ask, submit, until_ended

# The questions about one job; sweepers and webhooks ask the others.
_OF_A_JOB = ("get", "get_all", "body_of", "result_of", "sent_under", "output_facts", "ahead_of")


@contextmanager
def questions(gateway: RunningGateway) -> Iterator[Counter[str]]:
    """Counts the questions about jobs that the journal's thread gets meanwhile, by their names."""
    journal, asked = gateway.handler.journal, Counter[str]()
    assert isinstance(journal, SqliteJournal)
    ask_thread = journal._ask

    async def counted(work: Callable[[Statements], Any]) -> Any:
        name = getattr(work, "__qualname__", "").removeprefix("Questions.").partition(".")[0]
        if name in _OF_A_JOB:
            asked[name] += 1
        return await ask_thread(work)

    journal._ask = counted  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        del journal._ask


async def run(gateway: RunningGateway, tag: int) -> Any:
    key = {"Idempotency-Key": str(uuid4())}
    status, job = await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow(tag)}, headers=key)
    assert status == 201
    job = await until_ended(gateway, job)
    assert job["status"] == "succeeded"
    assert job["outputs"][0]["size_bytes"] > 0
    return job


async def test_quick_jobs_are_not_read_from_the_journal(tmp_path: Path, engine: Engine) -> None:
    async with running_gateway(engine.url, state_dir=str(tmp_path)) as gateway:

        async def asked_by_one() -> Counter[str]:
            with questions(gateway) as asked:
                await run(gateway, 0)
            return asked

        await until(asked_by_one, lambda asked: asked["sent_under"] == 0)  # then it has read the file's keys
        # A machine under load runs so few within a second; after that, the journal is read for a job.
        with questions(gateway) as asked:
            jobs = await asyncio.gather(*(run(gateway, tag) for tag in range(1, 13)))
        assert max(executions(engine)[job["id"]] for job in jobs) == 1
        slow = [job for job in jobs if job["metrics"]["queue_ms"] + job["metrics"]["execution_ms"] > 500]
        assert slow or asked == {}, asked


async def test_a_job_that_waited_still_shows_its_metadata(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        running = [await submit(gateway, sleep_workflow(600, tag=tag)) for tag in range(2)]
        job = await submit(gateway, invert_workflow(), metadata="a note")
        assert (job["status"], job["metadata"]) == ("queued", "a note")
        looking = asyncio.create_task(until_ended(gateway, job))
        for one in running:
            await ask(gateway, f"{JOBS}/{one['id']}/cancel", "POST")
        found = await looking
        assert (found["status"], found["metadata"]) == ("succeeded", "a note")


async def test_a_job_that_waits_long_is_kept_only_in_the_journal(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        running = [await submit(gateway, sleep_workflow(600, tag=tag)) for tag in range(2)]
        job = await submit(gateway, invert_workflow())
        live = gateway.handler.admission.runs.live
        assert job["id"] in live
        await eventually(lambda: job["id"] not in live)
        for one in running:
            await ask(gateway, f"{JOBS}/{one['id']}/cancel", "POST")
        assert (await until_ended(gateway, job))["status"] == "succeeded"
