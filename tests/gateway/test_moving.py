"""Waiting jobs are moved: to another priority, or before all other jobs of their owner."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web

from comfyui.engine import Engine, EngineOptions
from comfyui.exceptions import ComfyUIConflictError, ComfyUINotFoundError, RequestError
from comfyui.jobs.origin import Origin
from comfyui.owners import KeyRules
from tests.support.job_inputs import loading
from tests.support.jobs import fetch, listed, look, status_is, submit
from tests.support.ports import free_port
from tests.support.running import (
    RunningGateway,
    executions,
    invert_workflow,
    queue_of,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.url_server import PNG, serve

ANYONE = Origin()


async def positions(gateway: RunningGateway, *prompt_ids: str) -> list[int]:
    return [(await look(gateway.http, prompt_id))[1]["position"] for prompt_id in prompt_ids]


async def moved_and_restarted(engine: Engine, state: Path) -> list[str]:
    """Moves four jobs in a gateway that then ends; returns their ids in the order in which they must run later."""
    async with running_gateway(engine.url, queue="gateway", state_dir=state) as gateway:
        await gateway.handler.queue.pause(True)
        one, two, three, four = [await submit(gateway.http, invert_workflow(tag)) for tag in range(4)]
        move = gateway.handler.moving.move
        await move(four, ANYONE, first=True)
        assert await positions(gateway, four, one, two, three) == [0, 1, 2, 3]
        await move(three, ANYONE, priority=5)
        await move(two, ANYONE, first=True)
        order = [three, two, four, one]
        assert await positions(gateway, *order) == [0, 1, 2, 3]
    return order


async def test_moved_jobs_run_in_their_new_order_after_a_restart(tmp_path: Path, engine: Engine) -> None:
    order = await moved_and_restarted(engine, tmp_path)
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        assert await positions(gateway, *order) == [0, 1, 2, 3]
        last = await submit(gateway.http, invert_workflow(9), front=True)
        assert await positions(gateway, *order, last) == [0, 2, 3, 4, 1], (
            "a job that comes to the front later is before them"
        )
        await gateway.handler.queue.pause(False)
        for prompt_id in (*order, last):
            assert (await fetch(gateway.http, prompt_id))[0] == 200
    assert list(executions(engine)) == [order[0], last, *order[1:]]


async def test_a_waiting_sync_call_can_be_moved(engine: Engine) -> None:
    own = str(uuid4())
    async with running_gateway(engine.url, queue="gateway") as gateway:
        await gateway.handler.queue.pause(True)
        before = [await submit(gateway.http, invert_workflow(tag)) for tag in range(2)]
        call = asyncio.create_task(gateway.prompt_sync(invert_workflow(7), prompt_id=own))
        await until(lambda: listed(gateway.http), lambda page: len(page["jobs"]) == 3)
        await gateway.handler.moving.move(own, ANYONE, first=True)
        await gateway.handler.queue.pause(False)
        assert (await call)[0] == 200
        for prompt_id in before:
            await fetch(gateway.http, prompt_id)
    assert list(executions(engine)) == [own, *before]


async def test_a_job_can_be_moved_while_its_inputs_are_fetched(engine: Engine) -> None:
    arrived, give = asyncio.Event(), asyncio.Event()

    async def give_later(_request: web.Request) -> web.Response:
        arrived.set()
        await give.wait()
        return web.Response(body=PNG, content_type="image/png")

    async with (
        serve(give_later) as server,
        running_gateway(engine.url, queue="gateway", input_url_allow="127.0.0.1") as gateway,
    ):
        await gateway.handler.queue.pause(True)
        first = await submit(gateway.http, invert_workflow(1))
        late = await submit(gateway.http, loading(server.url()))
        await asyncio.wait_for(arrived.wait(), 30)
        await gateway.handler.moving.move(late, ANYONE, priority=3)
        assert await positions(gateway, first) == [1]
        give.set()
        await until(lambda: positions(gateway, late), lambda found: found == [0])
        await gateway.handler.queue.pause(False)
        for prompt_id in (first, late):
            await fetch(gateway.http, prompt_id)
    assert list(executions(engine)) == [late, first]


async def test_only_waiting_jobs_can_be_moved(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        move = gateway.handler.moving.move
        ended = await submit(gateway.http, invert_workflow())
        await fetch(gateway.http, ended)
        runs, placed, waits = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(3)]
        await status_is(gateway.http, runs, "running")
        await until(lambda: positions(gateway, waits), lambda found: found == [0])
        for prompt_id in (ended, runs, placed):
            with pytest.raises(ComfyUIConflictError):
                await move(prompt_id, ANYONE, first=True)
        with pytest.raises(ComfyUINotFoundError):
            await move(str(uuid4()), ANYONE, first=True)
        await move(waits, ANYONE, priority=1)


async def test_a_key_moves_only_its_own_jobs_and_only_up_to_its_max_priority(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        await gateway.handler.queue.pause(True)
        prompt_id = await submit(gateway.http, invert_workflow())
        move = gateway.handler.moving.move
        user = Origin(owner="ann", rules=KeyRules(name="ann", role="user"))
        with pytest.raises(ComfyUINotFoundError):
            await move(prompt_id, user, first=True)
        limited = Origin(owner="root", rules=KeyRules(name="root", max_priority=3))
        with pytest.raises(RequestError, match="max_priority"):
            await move(prompt_id, limited, priority=4)
        with pytest.raises(RequestError, match="priority"):
            await move(prompt_id, ANYONE, priority=1_000_001)
        await move(prompt_id, limited, priority=3)
        assert [job["priority"] for job in (await listed(gateway.http))["jobs"]] == [3]


async def test_a_moved_job_keeps_its_place_when_its_server_is_lost() -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        async with Engine(EngineOptions(port=port)) as engine:
            gateway = await stack.enter_async_context(running_gateway(engine.url, queue="gateway"))
            await gateway.handler.queue.pause(True)
            behind = await submit(gateway.http, sleep_workflow(600, tag=1))
            moved = await submit(gateway.http, sleep_workflow(600, tag=2))
            await gateway.handler.moving.move(moved, ANYONE, priority=5)
            await gateway.handler.queue.pause(False)
            await status_is(gateway.http, moved, "running")
            await until(lambda: queue_of(engine), lambda queue: queue == ([moved], [behind]))
            between = await submit(gateway.http, sleep_workflow(600, tag=3), priority=3)
        async with Engine(EngineOptions(port=port)) as engine:
            for prompt_id in (moved, between, behind):
                await status_is(gateway.http, prompt_id, "running")
                engine.wake(prompt_id)
                assert (await fetch(gateway.http, prompt_id))[0] == 200
            assert list(executions(engine)) == [moved, between, behind]
            await stack.aclose()
