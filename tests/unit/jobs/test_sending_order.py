"""The order in which jobs are sent to a server that may have many jobs without an answer from ComfyUI."""

from __future__ import annotations

import asyncio

from comfyui.jobs.lines import Lane, Waiting
from comfyui.jobs.scheduler import Place, Scheduler, SchedulerOptions
from comfyui.jobs.sending_order import SendingOrder
from comfyui.jobs.timers import now

_TAKEN_S = 0.05


def scheduler_with(jobs: int, places: int, at: float) -> tuple[Scheduler, list[str]]:
    """A scheduler with one server, and the jobs that are placed there at this time."""
    scheduler = Scheduler(SchedulerOptions())
    scheduler.set_server("gpu", up=True, places=places)
    for number in range(jobs):
        scheduler.add(Waiting(str(number), number, None, lane=Lane()))
    return scheduler, placed(scheduler, at)


def placed(scheduler: Scheduler, at: float) -> list[str]:
    return [one.prompt_id for one in scheduler.decide(at) if isinstance(one, Place)]


def test_a_server_with_many_places_may_have_eight_unanswered_jobs_and_others_one() -> None:
    scheduler, first = scheduler_with(20, places=32, at=10.0)
    assert first == [str(number) for number in range(8)]
    scheduler.accepted("0")
    scheduler.accepted("1")
    assert placed(scheduler, 10.1) == ["8", "9"]
    assert scheduler.next_look(10.1) == 15.0
    assert placed(scheduler, 15.0)[:1] == ["10"], "the other jobs have had no answer for five seconds"
    few, first = scheduler_with(20, places=2, at=10.0)
    assert first == ["0"]
    few.accepted("0")
    assert placed(few, 10.1) == ["1"]


def test_no_more_jobs_are_placed_than_the_server_may_have() -> None:
    scheduler, first = scheduler_with(20, places=3, at=10.0)
    assert first == ["0", "1", "2"]
    scheduler.accepted("0")
    assert placed(scheduler, 10.1) == []


async def test_each_job_is_sent_when_all_before_it_were_accepted_or_have_left() -> None:
    scheduler, jobs = scheduler_with(4, places=32, at=now())
    order, sent = SendingOrder(scheduler.servers, 60.0), list[str]()

    async def send(prompt_id: str) -> None:
        await order.turn_of(prompt_id, "gpu")
        sent.append(prompt_id)

    async def wait_for(count: int) -> None:
        async with asyncio.timeout(30):
            while len(sent) < count:
                await asyncio.sleep(0)

    sending = {prompt_id: asyncio.create_task(send(prompt_id)) for prompt_id in reversed(jobs)}
    await wait_for(1)
    assert sent == ["0"]
    scheduler.left("1")  # the job is cancelled meanwhile
    sending["1"].cancel()
    scheduler.accepted("0")
    order.moved_on()
    await wait_for(2)
    assert sent == ["0", "2"]
    scheduler.accepted("2")
    order.moved_on()
    await wait_for(3)
    assert sent == ["0", "2", "3"]
    await asyncio.wait(sending.values())


async def test_an_unanswered_job_delays_the_others_only_for_the_set_time() -> None:
    scheduler, jobs = scheduler_with(3, places=32, at=now())
    order = SendingOrder(scheduler.servers, _TAKEN_S)
    began = now()
    async with asyncio.timeout(30):
        await asyncio.gather(*(order.turn_of(prompt_id, "gpu") for prompt_id in jobs))
    assert now() - began >= _TAKEN_S * 0.9


async def test_a_job_without_a_place_is_sent_at_once() -> None:
    scheduler, _ = scheduler_with(3, places=32, at=now())
    async with asyncio.timeout(30):
        await SendingOrder(scheduler.servers, 60.0).turn_of("a sync call's", None)
