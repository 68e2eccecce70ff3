"""A ComfyUI that others start: workflows that kill it are refused, and its memory is freed while it is idle."""

from __future__ import annotations

import asyncio
from pathlib import Path

from comfyui.engine import Engine
from tests.support.crashing import crash_workflow, recorded_executions, restarted_engine
from tests.support.running import invert_workflow, requests, running_gateway, sleep_workflow, until


async def test_a_workflow_that_killed_comfyui_twice_is_refused(tmp_path: Path) -> None:
    async with asyncio.timeout(60), restarted_engine(tmp_path) as comfyui, running_gateway(comfyui) as gateway:
        for _ in range(2):  # the second never reaches ComfyUI
            status, body = await gateway.prompt_sync(crash_workflow(1), timeout=50)
            assert (status, body["type"]) == (500, "prompt_quarantined"), body
            assert "ended ComfyUI's process 2 times" in body["detail"]
            assert recorded_executions(tmp_path).total() == 2
        await gateway.handler.pool.choose(patience_s=20)
        assert (await gateway.prompt_sync(invert_workflow(2), timeout=50))[0] == 200


async def test_a_broken_connection_does_not_count_as_a_death_of_comfyui(engine: Engine) -> None:
    async with running_gateway(engine.url, quarantine_after=1, lost_prompt_retries=3) as gateway:
        for number in range(3):
            waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.3 + number / 1000, tag=7)))
            await asyncio.sleep(0.1)
            await engine.set_faults({"ws_drop": {"abrupt": True}} if number else {"forget": {}})
            assert (await waiting)[0] == 200


async def test_memory_is_freed_once_in_each_idle_period(engine: Engine) -> None:
    async def freed() -> int:
        return requests(engine, "POST /free")

    async with running_gateway(engine.url, free_after_idle=0.3) as gateway:
        await until(freed, lambda count: count == 1)
        await asyncio.sleep(0.8)
        assert await freed() == 1
        assert (await gateway.prompt_sync(invert_workflow(2)))[0] == 200
        await until(freed, lambda count: count == 2)


async def test_memory_is_not_freed_by_default_nor_while_another_client_runs_prompts(engine: Engine) -> None:
    async with running_gateway(engine.url), running_gateway(engine.url, free_after_idle=0.3) as freeing:
        # The prompt is relayed as from a frontend, so it is none of the gateway's own.
        async with freeing.http.post("/prompt", json={"prompt": sleep_workflow(1.0, tag=2)}) as response:
            assert response.status == 200
        await asyncio.sleep(0.7)
        assert requests(engine, "POST /free") == 0
