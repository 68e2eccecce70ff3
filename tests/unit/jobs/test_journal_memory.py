"""The journal in memory is bounded, because its process may run for months."""

from __future__ import annotations

import gc
import os
import tracemalloc

import pytest
import structlog

from comfyui.exceptions import ComfyUIOverloadedError
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import DeliveryState, State
from comfyui.jobs.journal.writes import Add, Again, Tried
from tests.support.journals import delivery, end, new_job, prompt_id


async def run_some(journal: Journal, first: int, count: int, *, size: int = 200) -> None:
    """Runs `count` sync jobs with bodies and results that cannot be compressed."""
    for number in range(first, first + count):
        await journal.write(Add(new_job(number, kind="sync", body=os.urandom(size))))
        await end(journal, number, result=os.urandom(size))


async def test_the_newest_jobs_are_kept_up_to_a_limit() -> None:
    journal = MemoryJournal(keep=10)
    await run_some(journal, 1, 50)
    counts = await journal.counts()
    assert counts[State.SUCCEEDED] == 10
    assert [await journal.get(prompt_id(number)) is not None for number in (40, 41, 50)] == [False, True, True]
    assert await journal.result_of(prompt_id(50)) is not None
    assert await journal.body_of(prompt_id(40)) is None


async def test_memory_does_not_grow_with_the_number_of_jobs() -> None:
    journal = MemoryJournal(max_bytes=500_000)
    tracemalloc.start()
    try:
        taken = []
        for first in range(1, 4000, 1000):
            await run_some(journal, first, 1000)
            gc.collect()
            taken.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert journal.size <= 500_000
    # The counted size is close to the memory that is used.
    assert 300_000 < taken[0] < 1_000_000
    assert max(taken[1:]) < taken[0] * 1.2


async def test_one_result_above_the_bound_is_kept_until_the_next_end() -> None:
    journal = MemoryJournal(max_bytes=100_000)
    await run_some(journal, 1, 1, size=1_000_000)
    assert await journal.result_of(prompt_id(1)) is not None
    await run_some(journal, 2, 1)
    assert await journal.get(prompt_id(1)) is None
    assert journal.size < 100_000


async def test_new_async_jobs_are_refused_when_waiting_jobs_fill_half_of_the_bound() -> None:
    journal = MemoryJournal(max_bytes=100_000)
    for number in range(1, 6):
        await journal.write(Add(new_job(number, body=os.urandom(9000))))
    with pytest.raises(ComfyUIOverloadedError, match="STATE_DIR"):
        await journal.write(Add(new_job(6, body=os.urandom(9000))))
    assert await journal.get(prompt_id(6)) is None
    await run_some(journal, 100, 100)
    await end(journal, 1)
    assert await journal.write(Add(new_job(6, body=os.urandom(9000))))
    assert [record.prompt_id for record in await journal.waiting(0, 10)] == [prompt_id(n) for n in range(2, 7)]


async def test_a_job_whose_webhook_waits_is_removed_last() -> None:
    journal = MemoryJournal(keep=3)
    for number in (1, 2):
        await journal.write(Add(new_job(number)))
        await end(journal, number, deliveries=(delivery(f"d{number}"),))
    await run_some(journal, 10, 20)
    assert await journal.get(prompt_id(1)) is not None
    done = Tried(id="d1", at=1.0, answer="200", state=DeliveryState.DELIVERED)
    assert await journal.write(done)
    await run_some(journal, 40, 3)
    assert await journal.get(prompt_id(1)) is None
    with structlog.testing.capture_logs() as logs:
        for number in range(50, 53):
            await journal.write(Add(new_job(number)))
            await end(journal, number, deliveries=(delivery(f"d{number}"),))
    assert [line["prompt_id"] for line in logs] == [prompt_id(2)]
    assert [one.id for one in (await journal.due(10.0, 10, 10)).deliveries] == ["d50", "d51", "d52"]


async def test_a_job_that_runs_again_is_not_removed_for_its_earlier_end() -> None:
    journal = MemoryJournal(keep=2)
    await journal.write(Add(new_job(1)))
    await end(journal, 1, State.CANCELED)
    await journal.write(Again(prompt_id(1), 1, "async", 1.0))
    await run_some(journal, 10, 10)
    record = await journal.get(prompt_id(1))
    assert record is not None
    assert record.state is State.QUEUED
