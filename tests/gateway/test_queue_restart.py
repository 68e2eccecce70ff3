"""After a restart of the gateway, no job waits behind a prompt while an idle server can run it (docs/queue.md).

The gateway is a process that is killed; the servers run on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from PIL import Image

from comfyui.engine import Engine, EngineOptions
from tests.support.jobs import begins, fetch, state_of, submit
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.running import (
    engines,
    executions,
    queue_of,
    queued_elsewhere,
    requests,
    sleep_workflow,
    until,
)


@asynccontextmanager
async def gateway_of(state: Path, *servers: Engine | str, **settings: str) -> AsyncIterator[GatewayProcess]:
    """A gateway that is killed when the block ends, so that it cannot shut down in order."""
    addresses = ",".join(server if isinstance(server, str) else server.url for server in servers)
    async with gateway_process(addresses, **state_of(state), **settings) as gateway:
        yield gateway


async def fill(server: Engine) -> None:
    """Takes all places of a server with two long prompts of another client."""
    await queued_elsewhere(server.url, *(sleep_workflow(600, tag=1000 + tag) for tag in range(2)))


async def queue_has(gateway: GatewayProcess, wanted: int) -> None:
    """Waits until the gateway knows `wanted` prompts, including those of other clients."""

    async def pending() -> int:
        async with gateway.http.get("/queue") as response:
            queue = await response.json()
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    await until(pending, lambda count: count == wanted)


async def running_on(servers: list[Engine]) -> set[str]:
    return {prompt_id for server in servers for prompt_id in (await queue_of(server))[0]}


async def end_all(*servers: Engine) -> None:
    """Lets all prompts end that are on these servers now."""
    for server in servers:
        for prompt_ids in await queue_of(server):
            server.wake(*prompt_ids)


async def runs_once(gateway: GatewayProcess, servers: list[Engine], *prompt_ids: str) -> None:
    """Checks that the prompts succeed, and that each runs once on any of the servers."""
    for server in servers:
        server.wake(*prompt_ids)
    for prompt_id in prompt_ids:
        status, body = await fetch(gateway.http, prompt_id)
        assert status == 200, body
    times = sum((Counter(executions(server)) for server in servers), Counter[str]())
    assert {prompt_id: times[prompt_id] for prompt_id in prompt_ids} == dict.fromkeys(prompt_ids, 1)


async def test_a_job_that_waits_behind_another_moves_to_an_idle_server_after_a_restart(
    tmp_path: Path,
) -> None:
    async with engines(3) as servers:
        busy, *free = servers
        for server in free:
            await fill(server)
        async with gateway_of(tmp_path, *servers) as gateway:
            await queue_has(gateway, 4)
            runs = await submit(gateway.http, sleep_workflow(600, tag=1))
            await begins(gateway.http, runs)
            waits = await submit(gateway.http, sleep_workflow(600, tag=2))
            await until(lambda: queue_of(busy), lambda queue: queue == ([runs], [waits]))
        await end_all(*free)
        async with gateway_of(tmp_path, *servers) as gateway:
            await until(lambda: running_on(free), lambda running: waits in running)
            assert await queue_of(busy) == ([runs], [])
            assert requests(busy, "POST /interrupt") == 0
            await runs_once(gateway, servers, waits, runs)


async def test_a_running_job_is_not_moved_though_the_journal_lists_it_second(tmp_path: Path) -> None:
    """The waiting job is first in the journal: it came first, but has the lower priority."""
    async with engines(2) as servers:
        busy, free = servers
        await fill(free)
        async with gateway_of(tmp_path, *servers) as gateway:
            await queue_has(gateway, 2)
            async with gateway.http.post("/queue/pause") as response:
                assert response.status == 200
            waits = await submit(gateway.http, sleep_workflow(600, tag=1))
            runs = await submit(gateway.http, sleep_workflow(600, tag=2), priority=1)
            async with gateway.http.post("/queue/resume") as response:
                assert response.status == 200
            await until(lambda: queue_of(busy), lambda queue: queue == ([runs], [waits]))
        await end_all(free)
        async with gateway_of(tmp_path, *servers) as gateway:
            await until(lambda: queue_of(free), lambda queue: queue == ([waits], []))
            assert await queue_of(busy) == ([runs], [])
            await runs_once(gateway, servers, waits, runs)


async def test_a_job_moves_to_a_server_that_comes_up_long_after_the_restart(tmp_path: Path) -> None:
    port = free_port()
    addresses = f"http://127.0.0.1:{port}"
    async with Engine() as busy:
        async with gateway_of(tmp_path, busy, addresses) as gateway:
            jobs = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(2)]
            await until(lambda: queue_of(busy), lambda queue: queue == ([jobs[0]], [jobs[1]]))
        async with gateway_of(tmp_path, busy, addresses) as gateway:
            await begins(gateway.http, jobs[0])
            async with Engine(EngineOptions(port=port)) as other:
                await until(lambda: queue_of(other), lambda queue: queue == ([jobs[1]], []))
                await runs_once(gateway, [busy, other], *jobs)


async def test_a_job_moves_only_to_a_server_that_has_its_files(tmp_path: Path) -> None:
    async with engines(3) as servers, contextlib.AsyncExitStack() as stack:
        busy, lacking, having = servers
        for server in (busy, having):
            Image.new("RGB", (8, 8), "red").save(server.folders.input / "there.png")
        workflow = sleep_workflow(600) | {
            "8": {"class_type": "LoadImage", "inputs": {"image": "there.png"}},
            "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
        }
        for server in (lacking, having):
            await fill(server)
        async with gateway_of(tmp_path, *servers) as gateway:
            await queue_has(gateway, 4)
            runs = await submit(gateway.http, sleep_workflow(600, tag=1))
            await begins(gateway.http, runs)
            waits = await submit(gateway.http, workflow)
            await until(lambda: queue_of(busy), lambda queue: queue == ([runs], [waits]))
        await end_all(lacking)
        gateway = await stack.enter_async_context(gateway_of(tmp_path, *servers))
        # The server that lacks the file is idle and connected: it gets a job that it can run.
        first = await submit(gateway.http, sleep_workflow(600, tag=2))
        await until(lambda: queue_of(lacking), lambda queue: queue == ([first], []))
        assert await queue_of(busy) == ([runs], [waits])
        await end_all(having)
        await until(lambda: queue_of(having), lambda queue: queue == ([waits], []))
        await runs_once(gateway, servers, waits, runs, first)


@pytest.mark.parametrize("asks", ["GET", "POST"])
async def test_a_sync_call_whose_caller_returns_moves_to_an_idle_server(tmp_path: Path, asks: str) -> None:
    async with engines(2) as servers:
        busy, free = servers
        await fill(free)
        fields: dict[str, Any] = {"prompt": sleep_workflow(600, tag=2), "prompt_id": str(uuid4())}
        waits = fields["prompt_id"]
        async with gateway_of(tmp_path, *servers) as gateway:
            await queue_has(gateway, 2)
            runs = await submit(gateway.http, sleep_workflow(600, tag=1))
            await begins(gateway.http, runs)
            call = asyncio.create_task(gateway.http.post("/prompt_sync", json=fields).__aenter__())
            await until(lambda: queue_of(busy), lambda queue: queue == ([runs], [waits]))
            await gateway.kill()
            with pytest.raises(aiohttp.ClientError):
                await call
        await end_all(free)
        async with gateway_of(tmp_path, *servers) as gateway:
            if asks == "POST":
                back = asyncio.create_task(gateway.http.post("/prompt_sync", json=fields).__aenter__())
            else:
                back = asyncio.create_task(gateway.http.get(f"/prompt_sync/{waits}?timeout=60").__aenter__())
            await until(lambda: queue_of(free), lambda queue: queue == ([waits], []))
            free.wake(waits)
            assert (await back).status == 200
            await runs_once(gateway, servers, waits, runs)


async def test_prompts_of_other_clients_are_never_moved(tmp_path: Path) -> None:
    """They are not moved even if a caller attaches to one, or submits the same workflow with its id."""
    async with engines(2) as servers, contextlib.AsyncExitStack() as stack:
        busy, free = servers
        workflow = sleep_workflow(600, tag=5)
        theirs = await queued_elsewhere(busy.url, *[workflow] * 3)
        gateway = await stack.enter_async_context(gateway_of(tmp_path, *servers))
        asked = asyncio.create_task(fetch(gateway.http, theirs[1], 60))
        body = {"prompt": workflow, "prompt_id": theirs[2]}
        joined = asyncio.create_task(gateway.http.post("/prompt_sync", json=body).__aenter__())
        # The gateway knows that the other server is idle, because our own prompt runs there.
        own = await submit(gateway.http, sleep_workflow(600, tag=6))
        free.wake(own)
        assert (await fetch(gateway.http, own))[0] == 200
        after = await submit(gateway.http, sleep_workflow(600, tag=7))
        await until(lambda: queue_of(free), lambda queue: queue == ([after], []))
        assert await queue_of(busy) == ([theirs[0]], theirs[1:])
        assert requests(busy, "POST /queue") == 0
        busy.wake(*theirs)
        assert (await asked)[0] == 200
        assert (await joined).status == 200
        assert executions(busy) == dict.fromkeys(theirs, 1)


async def test_jobs_that_hit_a_gpu_fault_after_a_restart_are_retried_on_another_server(tmp_path: Path) -> None:
    """They used to fail, because a prompt that was found on a server had no second attempt."""
    async with engines(2) as servers:
        broken, other = servers
        await fill(other)
        async with gateway_of(tmp_path, *servers) as gateway:
            await queue_has(gateway, 2)
            jobs = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(2)]
            await until(lambda: queue_of(broken), lambda queue: queue == ([jobs[0]], [jobs[1]]))
        await broken.set_faults({"cuda_fault": {"class_type": "SaveImage"}})
        async with gateway_of(tmp_path, *servers) as gateway:
            await queue_has(gateway, 4)
            broken.wake(*jobs)
            await until(lambda: queue_of(broken), lambda queue: queue == ([], []))
            await end_all(other)
            other.wake(*jobs)
            for prompt_id in jobs:
                status, body = await fetch(gateway.http, prompt_id)
                assert status == 200, body
        assert executions(broken)[jobs[0]] == 1
        assert {prompt_id: executions(other)[prompt_id] for prompt_id in jobs} == dict.fromkeys(jobs, 1)


async def test_a_job_that_runs_out_of_memory_after_a_restart_is_retried_with_oom_retries(
    tmp_path: Path, engine: Engine
) -> None:
    async with gateway_of(tmp_path, engine) as gateway:
        prompt_id = await submit(gateway.http, sleep_workflow(600))
        await begins(gateway.http, prompt_id)
    await engine.set_faults({"out_of_memory": {"class_type": "SaveImage"}})
    async with gateway_of(tmp_path, engine, OOM_RETRIES="1") as gateway:
        await begins(gateway.http, prompt_id)
        engine.wake(prompt_id)
        status, body = await fetch(gateway.http, prompt_id)
        assert status == 200, body
    assert executions(engine) == {prompt_id: 2}
