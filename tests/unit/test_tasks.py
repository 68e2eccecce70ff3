"""Side tasks: none is forgotten, no failure stays unseen, and each task ends with its owner."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from comfyui.tasks import SideTasks, end_tasks, happens_within


async def _forever() -> None:
    await asyncio.Event().wait()


async def _fails() -> None:
    raise ValueError("a mistake")


async def _fails_when_it_ends() -> None:
    try:
        await _forever()
    finally:
        raise ValueError("while it ended")


def _task(work: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(work, name="beside")


async def test_ending_tasks_waits_until_each_has_cleaned_up() -> None:
    cleaned: list[str] = []

    async def work(name: str) -> None:
        try:
            await _forever()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(name)

    tasks = [_task(work("one")), _task(work("other"))]
    await asyncio.sleep(0)
    await end_tasks(*tasks)
    assert (cleaned, [task.cancelled() for task in tasks]) == (["one", "other"], [True, True])


async def test_an_error_of_a_task_during_its_end_is_logged_and_not_raised() -> None:
    task = _task(_fails_when_it_ends())
    await asyncio.sleep(0)
    with capture_logs() as lines:
        await end_tasks(task)
    assert [(line["event"], line["task"], str(line["exc_info"])) for line in lines] == [
        ("side_task.crashed", "beside", "while it ended")
    ]


async def test_the_error_of_a_task_that_had_already_ended_is_left_to_its_owner() -> None:
    task = _task(_fails())
    await asyncio.wait([task])
    with capture_logs() as lines:
        await end_tasks(task)
    assert lines == []
    assert str(task.exception()) == "a mistake"


async def test_a_caller_cancelled_while_it_ends_a_task_stops_after_the_task() -> None:
    slow_end = asyncio.Event()

    async def work() -> None:
        try:
            await _forever()
        except asyncio.CancelledError:
            await slow_end.wait()
            raise

    task = _task(work())
    ending = asyncio.create_task(end_tasks(task))
    await asyncio.sleep(0.01)
    assert not ending.done()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert task.done()


async def test_ending_no_tasks_is_no_error() -> None:
    await end_tasks()


async def test_side_tasks_end_with_their_owner() -> None:
    async with SideTasks() as side:
        task = side.start(_forever(), "beside")
        assert task.get_name() == "beside"
    assert task.cancelled()


async def test_a_side_task_that_fails_is_logged_once_with_its_name() -> None:
    with capture_logs() as lines:
        async with SideTasks() as side:
            await asyncio.wait([side.start(_fails(), "beside")])
            side.start(_fails_when_it_ends(), "later")
            await asyncio.sleep(0)
    assert [(line["event"], line["log_level"], line["task"]) for line in lines] == [
        ("side_task.crashed", "critical", "beside"),
        ("side_task.crashed", "critical", "later"),
    ]


async def test_a_failed_side_task_is_given_to_its_owners_callback_and_not_logged() -> None:
    told: list[str] = []
    with capture_logs() as lines:
        async with SideTasks(lambda task: told.append(f"{task.get_name()}: {task.exception()}")) as side:
            await asyncio.wait([side.start(_fails(), "beside")])
    assert (told, lines) == (["beside: a mistake"], [])


async def test_a_side_task_can_close_the_others() -> None:
    side = SideTasks()
    other = side.start(_forever(), "other")
    closing = side.start(side.close(), "closing")
    async with asyncio.timeout(30):
        await closing
    assert other.cancelled()


async def test_closing_gives_side_tasks_the_set_time_to_finish() -> None:
    side = SideTasks()
    quick, slow = side.start(asyncio.sleep(0.01), "quick"), side.start(_forever(), "slow")
    started = time.monotonic()
    await side.close(patience_s=0.2)
    assert time.monotonic() - started >= 0.19
    assert (quick.cancelled(), slow.cancelled()) == (False, True)


async def test_a_wait_for_an_event_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()
    assert not await happens_within(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await happens_within(event, None)
    assert await happens_within(event, 0)


async def test_a_wait_can_be_cancelled_at_the_moment_of_its_event() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(happens_within(event, 60))
    await asyncio.sleep(0)
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
