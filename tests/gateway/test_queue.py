"""The gateway's own queue on real sockets: the order of prompts, and the server of each."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image
from pydantic import SecretStr

from comfyui.engine import Engine, EngineOptions
from comfyui.jobs.queue_options import QueueOptions
from config import Settings
from tests.support.calls import Calls
from tests.support.jobs import ASYNC, fetch, listed, look, status_is, submit
from tests.support.keys import ALICE, BOB, table, write_keys
from tests.support.ports import free_port
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    engines,
    executions,
    handler_options,
    invert_workflow,
    queue_of,
    queued_elsewhere,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)


@asynccontextmanager
async def lengths_of(*servers: Engine) -> AsyncIterator[list[int]]:
    """The numbers of prompts on the servers, read again and again while the block runs."""
    seen: list[int] = []

    async def watch() -> None:
        while True:
            for server in servers:
                running, pending = await queue_of(server)
                seen.append(len(running) + len(pending))

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()


async def busy_and_free(gateway: RunningGateway, servers: list[Engine]) -> tuple[str, Engine, Engine]:
    """Starts a job, and fills the other server by another client: the job's id, its server and the other one."""
    prompt_id = await submit(gateway.http, sleep_workflow(600))
    queues = await until(lambda: _queues(servers), lambda queues: any(running for running, _ in queues))
    busy, free = servers if queues[0][0] else reversed(servers)
    await queued_elsewhere(free.url, *(sleep_workflow(600, tag=1000 + tag) for tag in range(2)))
    watcher = gateway.handler.pool.backends[servers.index(free)].watcher
    await eventually(lambda: watcher.others == 2)
    return prompt_id, busy, free


async def wake_all(engine: Engine) -> None:
    """Lets all prompts on the engine end."""
    for prompt_id in itertools.chain(*await queue_of(engine)):
        engine.wake(prompt_id)


async def _queues(servers: list[Engine]) -> list[tuple[list[str], list[str]]]:
    return [await queue_of(server) for server in servers]


def _each_runs_another(woken: set[str], behind: int, queues: list[tuple[list[str], list[str]]]) -> bool:
    """Whether each server runs a prompt that is not in `woken`, and `behind` prompts wait there."""
    return all(running and woken.isdisjoint(running) and len(pending) == behind for running, pending in queues)


async def cancelled(gateway: RunningGateway, *prompt_ids: str) -> None:
    for prompt_id in prompt_ids:
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200, await response.text()


async def test_each_server_has_one_running_and_at_most_one_waiting_prompt() -> None:
    async with engines(3) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        async with lengths_of(*servers) as seen:
            waiting = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(600, tag=tag))) for tag in range(12)]
            woken: set[str] = set()
            for behind in (1, 1, 1, 0):
                are_full = functools.partial(_each_runs_another, woken, behind)
                for server, (running, _) in zip(servers, await until(lambda: _queues(servers), are_full), strict=True):
                    woken.update(running)
                    server.wake(*running)
            answers = await asyncio.gather(*waiting)
        assert [status for status, _ in answers] == [200] * 12
        counts = [executions(server) for server in servers]
        assert max(seen) == 2
        assert sorted(len(count) for count in counts) == [4, 4, 4]
        assert all(times == 1 for count in counts for times in count.values())
        # One submission and one read of the history for each prompt, as with ComfyUI's queue; none is taken back.
        assert sum(requests(server, "POST /prompt") for server in servers) == 12
        assert sum(requests(server, "GET /history/{prompt_id}") for server in servers) == 12
        assert sum(requests(server, "POST /queue") for server in servers) == 0


async def test_jobs_run_by_priority_and_have_a_position(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        first = await submit(gateway.http, sleep_workflow(600))
        second = await submit(gateway.http, sleep_workflow(0.05, tag=1))
        await until(lambda: queue_of(engine), lambda queue: queue == ([first], [second]))
        jobs = {p: await submit(gateway.http, sleep_workflow(0.05, tag=10 + p), priority=p) for p in (0, 5, 3)}
        assert (await look(gateway.http, jobs[5]))[1]["position"] == 0
        assert (await look(gateway.http, jobs[0]))[1]["position"] == 2
        sync = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.05, tag=30), priority=9))
        await until(lambda: listed(gateway.http), lambda page: len(page["jobs"]) == 6)
        engine.wake(first)
        for prompt_id in jobs.values():
            assert (await fetch(gateway.http, prompt_id))[0] == 200
        _, result = await sync
        order = list(executions(engine))
        assert order == [first, second, result["prompt_id"], jobs[5], jobs[3], jobs[0]]


async def test_a_waiting_caller_gets_its_position_as_an_event(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        first = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(4)]
        headers = {"Accept": "text/event-stream"}
        body = {"prompt": invert_workflow()}
        async with gateway.http.post("/prompt_sync", json=body, headers=headers) as response:
            position = None
            while position is None:
                event = (await response.content.readuntil(b"\n\n")).decode()
                if "event: queue" in event:
                    position = json.loads(event.partition("data: ")[2])["position"]
            # Two prompts are in ComfyUI, and two wait in the gateway before this one.
            assert position == 2
            for prompt_id in first:
                engine.wake(prompt_id)
            assert "event: result" in await response.text()
        assert len(executions(engine)) == len(first) + 1


async def test_a_waiting_sync_call_is_listed_and_can_be_cancelled(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        await gateway.handler.queue.pause(True)
        own = str(uuid4())
        calls = [
            asyncio.create_task(gateway.prompt_sync(invert_workflow(), prompt_id=own)),
            asyncio.create_task(gateway.prompt_sync(invert_workflow(1))),
        ]
        jobs = (await until(lambda: listed(gateway.http), lambda page: len(page["jobs"]) == 2))["jobs"]
        assert {(job["status"], job["prompt_id"] == own) for job in jobs} == {("queued", True), ("queued", False)}
        for job in jobs:
            await cancelled(gateway, job["prompt_id"])
        assert {(status, body["type"]) for status, body in await asyncio.gather(*calls)} == {(409, "task_cancelled")}
        assert {job["status"] for job in (await listed(gateway.http))["jobs"]} == {"canceled"}
    assert executions(engine) == {}


async def test_a_sync_call_that_waited_at_shutdown_can_be_sent_again(engine: Engine, tmp_path: Path) -> None:
    own = str(uuid4())
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        await gateway.handler.queue.pause(True)
        calls = [
            asyncio.create_task(gateway.prompt_sync(invert_workflow(), prompt_id=own)),
            asyncio.create_task(gateway.prompt_sync(invert_workflow(1))),
        ]
        await until(lambda: listed(gateway.http), lambda page: len(page["jobs"]) == 2)
        await gateway.handler.drain(0.0)
        assert [status for status, _ in await asyncio.gather(*calls)] == [503, 503]
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        await gateway.handler.queue.pause(False)
        status, _ = await gateway.prompt_sync(invert_workflow(), prompt_id=own)
        assert (status, executions(engine)) == (200, {own: 1})


async def test_prompts_of_other_clients_take_places_on_a_server(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        await queued_elsewhere(engine.url, sleep_workflow(600, tag=1000), invert_workflow(1001))
        watcher = gateway.handler.pool.backends[0].watcher
        await eventually(lambda: watcher.others == 2)
        async with lengths_of(engine) as seen:
            sync = asyncio.create_task(gateway.prompt_sync(invert_workflow()))
            await eventually(lambda: gateway.handler.queue.waiting == 1)
            await wake_all(engine)
            status, _ = await sync
        assert status == 200
        assert max(seen) == 2


async def test_a_waiting_prompt_moves_to_a_server_that_becomes_free_and_runs_once() -> None:
    async with engines(2) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        long, busy, free = await busy_and_free(gateway, servers)
        sync = asyncio.create_task(gateway.prompt_sync(invert_workflow(5)))
        await until(lambda: queue_of(busy), lambda queue: len(queue[1]) == 1)
        await wake_all(free)
        status, result = await sync
        assert status == 200
        assert executions(free)[result["prompt_id"]] == 1
        assert await queue_of(busy) == ([long], [])
        assert requests(busy, "POST /queue") == 1
        assert requests(busy, "POST /interrupt") == 0
        await cancelled(gateway, long)
        assert result["prompt_id"] not in executions(busy)


async def test_a_waiting_prompt_moves_to_a_server_that_comes_up_later() -> None:
    """The prompt used to wait until the one before it had ended, while the second server was idle."""
    port = free_port()
    async with (
        Engine() as first,
        running_gateway(first.url, f"127.0.0.1:{port}") as gateway,
    ):
        jobs = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(2)]
        await until(lambda: queue_of(first), lambda queue: queue == ([jobs[0]], [jobs[1]]))
        async with Engine(EngineOptions(port=port)) as second:
            await until(lambda: queue_of(second), lambda queue: queue[0] == [jobs[1]])
            assert await queue_of(first) == ([jobs[0]], [])


async def test_a_prompt_that_begins_while_it_is_taken_back_runs_once_on_its_server() -> None:
    async with engines(2) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        first, busy, free = await busy_and_free(gateway, servers)
        # The request that takes it back is slow, so that the prompt begins in the meantime.
        await busy.set_faults({"delay": {"route": "/queue", "method": "POST", "seconds": 1.5}})
        sync = asyncio.create_task(gateway.prompt_sync(sleep_workflow(2.5, tag=7)))
        await until(lambda: queue_of(busy), lambda queue: len(queue[1]) == 1)
        await wake_all(free)
        await eventually(lambda: requests(busy, "POST /queue") > 0)
        busy.wake(first)
        status, result = await sync
        assert status == 200
        assert executions(busy) == {first: 1, result["prompt_id"]: 1}
        assert result["prompt_id"] not in executions(free)
        assert requests(busy, "POST /queue") == 1


@pytest.mark.parametrize("fault", ["cut", "half_json"])
async def test_a_prompt_runs_once_when_the_reply_to_its_removal_is_lost(fault: str) -> None:
    async with engines(2) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        first, busy, free = await busy_and_free(gateway, servers)
        await busy.set_faults({fault: {"route": "/queue", "method": "POST"}})
        sync = asyncio.create_task(gateway.prompt_sync(invert_workflow(5)))
        await until(lambda: queue_of(busy), lambda queue: len(queue[1]) == 1)
        await wake_all(free)
        await eventually(lambda: requests(busy, "POST /queue") > 0)
        busy.wake(first)
        status, result = await sync
        assert status == 200
        times = [executions(server).get(result["prompt_id"], 0) for server in (busy, free)]
        assert sorted(times) == [0, 1]


async def test_a_job_waits_for_the_only_server_that_can_run_it() -> None:
    async with engines(2) as (lacking, having), AsyncExitStack() as stack:
        Image.new("RGB", (8, 8), "red").save(having.folders.input / "only_there.png")
        # The gateway starts only now, because it reads the node definitions when it starts.
        gateway = await stack.enter_async_context(running_gateway(lacking.url, having.url))
        workflow = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "only_there.png"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        }
        assert (await gateway.prompt_sync(workflow))[0] == 200
        away = gateway.handler.pool.backends[1]
        away.hold("away for this test")
        prompt_id = await submit(gateway.http, {**workflow, "2": {**workflow["2"], "_meta": {"title": "again"}}})
        assert (await gateway.prompt_sync(invert_workflow(3)))[0] == 200
        seen = (await look(gateway.http, prompt_id))[1]
        assert (seen["status"], seen["waits_for"]) == ("queued", [away.name])
        away.release()
        assert (await fetch(gateway.http, prompt_id))[0] == 200
        assert prompt_id not in executions(lacking)


async def test_the_error_of_a_workflow_that_no_server_can_run_names_what_each_lacks() -> None:
    async with engines(2) as servers, AsyncExitStack() as stack:
        for name, server in zip(("first.png", "second.png"), servers, strict=True):
            Image.new("RGB", (8, 8), "red").save(server.folders.input / name)
        gateway = await stack.enter_async_context(running_gateway(*(server.url for server in servers)))
        workflow = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "first.png"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": "second.png"}},
            "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
            "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
        }
        status, body = await gateway.prompt_sync(workflow)
        assert (status, body["type"]) == (400, "validation_failed")
        first, second = (backend.name for backend in gateway.handler.pool.backends)
        assert f"{first} lacks second.png" in body["detail"]
        assert f"{second} lacks first.png" in body["detail"]
        assert sum(requests(server, "POST /prompt") for server in servers) == 1


async def test_without_a_server_sync_calls_fail_and_async_jobs_wait(tmp_path: Path) -> None:
    async with engines(2) as gone:
        addresses = [server.url for server in gone]
    async with running_gateway(*addresses, ready=False, state_dir=tmp_path) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow())
        status, body = await gateway.prompt_sync(invert_workflow())
        assert (status, body["type"]) == (503, "connection_failed")
        assert (await look(gateway.http, prompt_id))[1]["status"] == "queued"
        async with gateway.http.get("/health/ready") as response:
            assert response.status == 503


async def test_a_paused_queue_accepts_jobs_starts_none_and_stays_paused_after_a_restart(
    tmp_path: Path, engine: Engine
) -> None:
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        running = await submit(gateway.http, sleep_workflow(600))
        await status_is(gateway.http, running, "running")
        async with gateway.http.post("/queue/pause") as response:
            assert (response.status, await response.json()) == (200, {"status": "paused"})
        assert "paused" not in (await look(gateway.http, running))[1]
        waiting = await submit(gateway.http, invert_workflow(3))
        engine.wake(running)
        assert (await fetch(gateway.http, running))[0] == 200
        status, _ = await gateway.prompt_sync(invert_workflow(4), timeout=0.3)
        assert status == 504
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        held = (await look(gateway.http, waiting))[1]
        assert (held["status"], held["position"], held["paused"]) == ("queued", 0, True)
        async with gateway.http.post("/queue/resume") as response:
            assert (response.status, await response.json()) == (200, {"status": "running"})
        assert (await fetch(gateway.http, waiting))[0] == 200
    assert executions(engine) == {running: 1, waiting: 1}


async def _queue_state(gateway: RunningGateway) -> tuple[str, dict[str, Any], str]:
    """The state of the queue in `GET /queue/pause`, in `/health` and in the metric."""
    async with gateway.http.get("/queue/pause") as response:
        state = (await response.json())["status"]
    async with gateway.http.get("/health") as response:
        health = (await response.json())["queue"]
    async with gateway.http.get("/metrics") as response:
        (paused,) = re.findall(r"^comfyui_gateway_queue_paused (.+)$", await response.text(), re.MULTILINE)
    return state, health, paused


async def test_health_metrics_and_waiting_jobs_show_a_pause(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        assert await _queue_state(gateway) == ("running", {"paused": False, "waiting": 0}, "0.0")
        running, behind, waiting = [await submit(gateway.http, sleep_workflow(30, tag=tag)) for tag in range(3)]
        await until(lambda: queue_of(engine), lambda queue: queue == ([running], [behind]))
        assert "paused" not in (await look(gateway.http, waiting))[1]
        async with gateway.http.post("/queue/pause") as response:
            assert response.status == 200
        assert await _queue_state(gateway) == ("paused", {"paused": True, "waiting": 1}, "1.0")
        # Prompts in ComfyUI's queue go on.
        paused = {name: (await look(gateway.http, name))[1].get("paused") for name in (running, behind, waiting)}
        assert paused == {running: None, behind: None, waiting: True}
        async with gateway.http.post("/queue/resume") as response:
            assert response.status == 200
        assert "paused" not in (await look(gateway.http, waiting))[1]
        assert await _queue_state(gateway) == ("running", {"paused": False, "waiting": 1}, "0.0")


async def test_jobs_that_wait_before_comfyuis_own_queue_are_counted(engine: Engine) -> None:
    options = handler_options(queue=QueueOptions(ahead=1))
    async with running_gateway(engine.url, queue="comfyui", changed=options) as gateway:
        running = await submit(gateway.http, sleep_workflow(30))
        await status_is(gateway.http, running, "running")
        await submit(gateway.http, invert_workflow(1))
        assert await _queue_state(gateway) == ("running", {"paused": False, "waiting": 1}, "0.0")


async def test_comfyuis_own_queue_cannot_be_paused(gateway: RunningGateway) -> None:
    async with gateway.http.post("/queue/pause") as response:
        body = await response.json()
        assert (response.status, body["type"]) == (409, "conflict")
        assert "QUEUE" in body["detail"]


async def test_waiting_jobs_keep_their_order_after_a_restart(tmp_path: Path, engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        async with gateway.http.post("/queue/pause") as response:
            assert response.status == 200
        jobs = [await submit(gateway.http, invert_workflow(tag), priority=tag % 2) for tag in range(4)]
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        async with gateway.http.post("/queue/resume") as response:
            assert response.status == 200
        for prompt_id in jobs:
            assert (await fetch(gateway.http, prompt_id))[0] == 200
    assert list(executions(engine)) == [jobs[1], jobs[3], jobs[0], jobs[2]]


async def test_a_cancelled_waiting_job_never_runs_and_frees_its_place(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        first, second, third = [await submit(gateway.http, sleep_workflow(60, tag=tag)) for tag in range(3)]
        await until(lambda: queue_of(engine), lambda queue: queue == ([first], [second]))
        prompt_id = str(uuid4())
        waiting = asyncio.create_task(gateway.prompt_sync(invert_workflow(8), prompt_id=prompt_id))
        await cancelled(gateway, third, second)
        await until(lambda: queue_of(engine), lambda queue: queue == ([first], [prompt_id]))
        await cancelled(gateway, first)
        assert (await waiting)[0] == 200
        assert executions(engine) == {first: 1, prompt_id: 1}


def test_comfyuis_queue_can_be_used_with_one_server_only() -> None:
    two = ("a:8188", "b:8188")
    assert Settings(comfyui_server_address=("a:8188",)).options().handler.queue.queue == "comfyui"
    assert Settings(comfyui_server_address=two).options().handler.queue.queue == "gateway"
    assert Settings(comfyui_server_address=("a:8188",), queue="gateway").options().handler.queue.queue == "gateway"
    with pytest.raises(ValueError, match="QUEUE must not be comfyui with the 2 servers of COMFYUI_SERVER_ADDRESS"):
        Settings(comfyui_server_address=two, queue="comfyui")


def test_a_keys_file_requires_the_gateways_queue(keys_path: Path) -> None:
    one = ("a:8188",)
    assert Settings(comfyui_server_address=one, keys_file=keys_path).options().handler.queue.queue == "gateway"
    assert Settings(comfyui_server_address=one, api_keys=(SecretStr("k"),)).options().handler.queue.queue == "comfyui"
    with pytest.raises(ValueError, match="QUEUE must not be comfyui with KEYS_FILE"):
        Settings(comfyui_server_address=one, keys_file=keys_path, queue="comfyui")


async def test_max_running_limits_all_persons_behind_a_key_together(
    tmp_path: Path,
) -> None:
    def keys(max_running: int) -> str:
        return table("alice", ALICE, max_running=max_running, user_header="X-User") + table("bob", BOB)

    path = write_keys(tmp_path / "keys.toml", keys(1))
    async with engines(2) as servers, running_gateway(*[one.url for one in servers], keys_file=path) as gateway:
        calls = Calls(gateway)
        for person in ("eve", "dan"):
            status, _ = await calls.submit(ALICE, sleep_workflow(600), {**ASYNC, "X-User": person})
            assert status == 202
        bobs = (await calls.submit(BOB, invert_workflow()))[1]["prompt_id"]
        assert any(bobs in executions(server) for server in servers)
        alices = await calls.listed(ALICE)
        assert (await calls.call(ALICE, "GET", f"/prompt_sync/{alices[0]}?timeout=0"))[1]["status"] == "queued"
        queues = await _queues(servers)
        assert sorted(len(running) + len(pending) for running, pending in queues) == [0, 1]
        # Waiting jobs get the new limit, though nothing else happens.
        write_keys(path, keys(2))
        queues = await until(lambda: _queues(servers), lambda queues: all(running for running, _ in queues))
        assert sorted(running[0] for running, _ in queues) == sorted(alices)


async def test_a_key_with_twice_the_weight_runs_twice_as_many_jobs(engine: Engine, tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", table("alice", ALICE, weight=2.0) + table("bob", BOB))
    async with running_gateway(engine.url, keys_file=path) as gateway:
        calls = Calls(gateway)
        await gateway.handler.queue.pause(True)
        for number in range(6):
            for key in (ALICE, BOB):
                assert (await calls.submit(key, sleep_workflow(0.3, tag=number), ASYNC))[0] == 202
        alices = set(await calls.listed(ALICE))
        await gateway.handler.queue.pause(False)
        await eventually(lambda: len(executions(engine)) == 12)
        ran = list(executions(engine))
        assert sum(prompt_id in alices for prompt_id in ran[:9]) in {5, 6}, "6 and 3, give or take one job"
