"""Several ComfyUI servers behind one gateway: the least busy one comes first, and no prompt is lost with a server."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from config import GatewayOptions
from tests.support.pictures import picture
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    Workflow,
    executions,
    handler_options,
    invert_workflow,
    loading_workflow,
    moving_after,
    prompts_are_queued,
    requests,
    running_gateway,
    server_options,
    sleep_workflow,
    until,
)


@dataclass
class EngineProcess:
    """An engine that can be killed."""

    process: asyncio.subprocess.Process
    url: str

    async def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def executed(self) -> dict[str, int]:
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/engine/stats") as response:
            executed: dict[str, int] = (await response.json())["executed"]
            return executed


@asynccontextmanager
async def engine_process(port: int = 0) -> AsyncIterator[EngineProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comfyui.engine", "--port", str(port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    line = (await process.stdout.readline()).decode()
    running = EngineProcess(process, next(word for word in line.split() if word.startswith("http")))
    try:
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_prompts_go_to_the_server_with_the_least_work(two_engines: list[Engine]) -> None:
    async with running_gateway(*(engine.url for engine in two_engines)) as gateway:
        results = await asyncio.gather(*(gateway.prompt_sync(sleep_workflow(0.2, tag=tag)) for tag in range(8)))
    assert [status for status, _ in results] == [200] * 8
    assert [len(executions(engine)) for engine in two_engines] == [4, 4]


async def test_prompts_of_other_clients_count_as_work_of_a_server(two_engines: list[Engine]) -> None:
    busy, free = two_engines
    async with running_gateway(busy.url, free.url) as gateway, aiohttp.ClientSession() as http:
        for tag in range(3):
            async with http.post(f"{busy.url}/prompt", json={"prompt": sleep_workflow(3, tag=tag)}) as response:
                assert response.status == 200
        watcher = gateway.handler.pool.backends[0].watcher
        await eventually(lambda: watcher.queue_remaining >= 3)
        _, body = await gateway.prompt_sync(invert_workflow(77))
    assert body["prompt_id"] in executions(free)


async def test_files_come_from_the_server_that_made_them(two_engines: list[Engine]) -> None:
    async with running_gateway(*(engine.url for engine in two_engines)) as gateway:
        results = await asyncio.gather(
            *(gateway.prompt_sync(sleep_workflow(0.1, tag=tag), return_image_base64=True) for tag in range(4))
        )
    assert all(body["images"][0]["base64"] for _, body in results)


async def test_a_server_that_goes_down_is_skipped_until_it_is_back(two_engines: list[Engine]) -> None:
    async with engine_process() as other, running_gateway(two_engines[0].url, other.url) as gateway:
        port = int(other.url.rsplit(":", 1)[1])
        await until_state(gateway, other.url, "connected")  # a server that never answered counts as starting
        await other.kill()
        results = await asyncio.gather(*(gateway.prompt_sync(invert_workflow(tag)) for tag in range(6)))
        assert [status for status, _ in results] == [200] * 6
        assert len(executions(two_engines[0])) == 6
        health = await until_state(gateway, other.url, "unreachable")
        assert health["status"] == "healthy"
        async with engine_process(port) as restarted:
            await until_state(gateway, restarted.url, "connected")
            results = await asyncio.gather(*(gateway.prompt_sync(sleep_workflow(0.1, tag=tag)) for tag in range(4)))
            assert [status for status, _ in results] == [200] * 4
            assert await restarted.executed()


async def test_prompts_of_a_killed_server_move_to_another(two_engines: list[Engine]) -> None:
    async with (
        engine_process() as dying,
        running_gateway(dying.url, two_engines[0].url, changed=moving_after(0.5)) as gateway,
    ):
        waiting = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.4, tag=tag))) for tag in range(6)]
        await prompts_are_queued(two_engines[0], 2)
        await dying.kill()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 6
    counts = executions(two_engines[0])
    assert len(counts) == 6
    assert set(counts.values()) == {1}


async def test_a_killed_and_restarted_server_gets_its_prompts_again() -> None:
    async with engine_process() as dying, running_gateway(dying.url) as gateway:
        port = int(dying.url.rsplit(":", 1)[1])
        waiting = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.3, tag=tag))) for tag in range(3)]
        await until(dying.executed, bool)
        await dying.kill()
        async with engine_process(port) as restarted:
            assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 3
            assert set((await restarted.executed()).values()) == {1}


async def test_a_workflow_goes_to_the_server_that_has_its_files(two_engines: list[Engine]) -> None:
    without, having = two_engines
    workflow = workflow_with_a_picture_of(having)
    async with running_gateway(without.url, having.url) as gateway:
        for _ in range(3):
            status, body = await gateway.prompt_sync(workflow)
            assert status == 200, body
    assert executions(without) == {}


async def test_a_server_without_an_answer_to_object_info_delays_no_prompt(two_engines: list[Engine]) -> None:
    silent, speaking = two_engines
    await silent.set_faults({"hang": {"route": "/object_info"}})
    # The server may be silent for 600 s: no prompt waits for its answer, and none goes there before.
    async with (
        running_gateway(silent.url, speaking.url, changed=server_options(definitions_within_s=600)) as gateway,
        asyncio.timeout(30),
    ):
        for _ in range(2):
            answers = await asyncio.gather(*(gateway.prompt_sync(invert_workflow(tag)) for tag in range(4)))
            assert [status for status, _ in answers] == [200] * 4
        assert executions(silent) == {}
        assert requests(silent, "GET /object_info") == 1
        silent.faults.clear()


async def test_a_server_with_unknown_nodes_gets_prompts_that_no_other_server_can_run(two_engines: list[Engine]) -> None:
    silent, lacking = two_engines
    workflow = workflow_with_a_picture_of(silent)
    await silent.set_faults({"hang": {"route": "/object_info"}})
    async with running_gateway(lacking.url, silent.url, changed=server_options(definitions_within_s=0.3)) as gateway:
        status, body = await gateway.prompt_sync(workflow)
        assert status == 200, body
        silent.faults.clear()
    assert executions(lacking) == {}


async def test_node_definitions_that_arrive_late_are_used_for_the_next_prompt(two_engines: list[Engine]) -> None:
    slow, quick = two_engines
    workflow = workflow_with_a_picture_of(slow)
    await slow.set_faults({"delay": {"route": "/object_info", "seconds": 0.6}})
    async with running_gateway(slow.url, quick.url, changed=server_options(definitions_within_s=0.2)) as gateway:
        assert (await gateway.prompt_sync(invert_workflow(1)))[0] == 200
        assert executions(slow) == {}
        await asyncio.sleep(0.6)
        assert (await gateway.prompt_sync(workflow))[0] == 200
    assert len(executions(slow)) == 1
    assert requests(slow, "GET /object_info") == 1


async def test_an_unreachable_server_does_not_delay_a_prompt_with_an_id(two_engines: list[Engine]) -> None:
    """The gateway asks that server whether it already has the prompt, and may never get an answer."""

    def changed(made: GatewayOptions) -> GatewayOptions:
        runner = replace(made.handler.runner, absent_patience_s=0.3)
        return replace(handler_options(runner=runner)(made), servers=replace(made.servers, probe_timeout_s=0.2))

    gone, there = two_engines
    async with running_gateway(gone.url, there.url, changed=changed) as gateway:
        await gone.set_faults({"ws_refuse": {}, "hang": {}, "ws_drop": {}})
        await until_state(gateway, gone.url, "unreachable")
        async with asyncio.timeout(30):
            status, _ = await gateway.prompt_sync(invert_workflow(), prompt_id=str(uuid4()))
        gone.faults.clear()
    assert status == 200


async def test_a_prompt_is_found_while_another_server_hangs(two_engines: list[Engine]) -> None:
    hanging, having = two_engines
    prompt_id = str(uuid4())
    async with running_gateway(having.url) as before:
        assert (await before.prompt_sync(invert_workflow(), prompt_id=prompt_id))[0] == 200
    async with running_gateway(hanging.url, having.url) as gateway:
        await hanging.set_faults({"hang": {"route": "/history/*"}})
        async with asyncio.timeout(30), gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
        hanging.faults.clear()


@pytest.mark.parametrize("fault", [{"cut": {"route": "/upload/image"}}, {"status": {"route": "/upload/image"}}])
async def test_a_prompt_goes_to_another_server_when_its_upload_fails(
    two_engines: list[Engine], fault: dict[str, Any]
) -> None:
    failing, working = two_engines
    images = [{"name": "brought.png", "image": base64.b64encode(picture()).decode()}]
    await failing.set_faults(fault)
    async with running_gateway(failing.url, working.url, http_retries=0) as gateway:
        for _ in range(3):
            status, body = await gateway.prompt_sync(loading_workflow("brought.png"), images=images)
            assert status == 200, body
    assert executions(failing) == {}


async def test_validate_skips_a_server_without_an_answer_to_object_info(two_engines: list[Engine]) -> None:
    silent, speaking = two_engines
    await silent.set_faults({"hang": {"route": "/object_info"}})
    async with (
        running_gateway(silent.url, speaking.url, changed=server_options(definitions_within_s=0.3)) as gateway,
        asyncio.timeout(30),
    ):
        async with gateway.http.post("/validate", json={"prompt": invert_workflow()}) as response:
            body = await response.json()
        silent.faults.clear()
    assert body["valid"] is True
    assert [server["server"] for server in body["servers"]] == [speaking.url.removeprefix("http://")]


def workflow_with_a_picture_of(engine: Engine) -> Workflow:
    """A workflow that needs a picture which only this engine has."""
    (engine.folders.input / "only_here.png").write_bytes(picture())
    return loading_workflow("only_here.png")


async def until_state(gateway: RunningGateway, url: str, state: str) -> dict[str, Any]:
    """Returns `/health` once it shows the server in this state."""

    async def health() -> dict[str, Any]:
        async with gateway.http.get("/health") as response:
            return dict(await response.json())

    name = url.removeprefix("http://")
    return await until(
        health, lambda shown: any(one["server"] == name and one["state"] == state for one in shown["servers"])
    )
