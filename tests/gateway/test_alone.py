"""A prompt that may have crashed its server is sent again only to an idle one, so that no other prompt is lost."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from comfyui.engine import Engine
from tests.support.crashing import crash_workflow, recorded_executions, restarted_engine
from tests.support.jobs import begins, fetch, look, submit
from tests.support.processes import gateway_process
from tests.support.running import (
    Workflow,
    executions,
    invert_workflow,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
    watching_closely,
)

# A custom node whose validation crashes ComfyUI: submitting it ends everything that runs there.
CRASHES_AT_SUBMISSION = json.dumps({"at": "validation", "class_type": "SimulatedError"})


def poison() -> Workflow:
    workflow = invert_workflow()
    workflow["4"] = {
        "class_type": "SimulatedError",
        "inputs": {"exception_type": "RuntimeError", "message": "never runs", "value": ["2", 0]},
    }
    workflow["3"]["inputs"]["images"] = ["4", 0]
    return workflow


async def queued_at(url: str) -> list[str]:
    """Returns the ids in the queue of a server; the running one comes first."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/queue") as response:
        queue = await response.json()
    return [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])]


async def is_lost(http: aiohttp.ClientSession) -> bool:
    """Whether a prompt was lost and will be submitted again."""
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return any(line.startswith('comfyui_gateway_resubmissions_total{reason="prompt_lost"} 1') for line in lines)


async def cancel(http: aiohttp.ClientSession, prompt_id: str) -> None:
    async with http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200, await response.text()


async def test_a_prompt_that_crashes_every_comfyui_loses_no_other_prompt(tmp_path: Path) -> None:
    fault = ("--fault", f"segfault={CRASHES_AT_SUBMISSION}")
    async with AsyncExitStack() as stack:
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            folder.mkdir()
        one, other = [await stack.enter_async_context(restarted_engine(folder, *fault)) for folder in folders]
        gateway = await stack.enter_async_context(
            running_gateway(one, other, changed=watching_closely(), state_dir=tmp_path / "state")
        )
        innocent = await submit(gateway.http, sleep_workflow(60))
        await begins(gateway.http, innocent)
        ends = await submit(gateway.http, poison())
        await until(lambda: is_lost(gateway.http), bool, timeout_s=30)
        # The crasher waits for the server where the innocent prompt runs; the other server is free for others.
        assert (await gateway.prompt_sync(invert_workflow(2), timeout=30))[0] == 200
        assert [innocent] in (await queued_at(one), await queued_at(other))
        await cancel(gateway.http, innocent)
        status, body = await fetch(gateway.http, ends)
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
    ran = recorded_executions(folders[0]) + recorded_executions(folders[1])
    assert (ran[innocent], ran[ends]) == (1, 0)


async def test_a_suspect_prompt_still_runs_alone_after_a_gateway_restart(tmp_path: Path) -> None:
    """The server of the suspect never returns, and the other server is busy."""
    settings = {"STATE_DIR": str(tmp_path / "state"), "QUARANTINE_AFTER": "0", "REATTACH_SECONDS": "1"}
    async with AsyncExitStack() as stack:
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            folder.mkdir()
        other = await stack.enter_async_context(restarted_engine(folders[1]))
        async with AsyncExitStack() as until_then:
            one = await until_then.enter_async_context(restarted_engine(folders[0]))
            names = f"one={one},other={other}"
            gateway = await until_then.enter_async_context(gateway_process(names, **settings))
            suspect = await submit(gateway.http, sleep_workflow(5))
            await begins(gateway.http, suspect)
            runs = await submit(gateway.http, sleep_workflow(60, tag=1))
            await begins(gateway.http, runs)
            assert (await queued_at(one), await queued_at(other)) == ([suspect], [runs])
            await gateway.kill()
        async with gateway_process(names, **settings) as gateway:
            await until(lambda: is_lost(gateway.http), bool, timeout_s=30)
            behind = await submit(gateway.http, invert_workflow(3))
            await until(lambda: look(gateway.http, behind), lambda found: found[1].get("position") == 1)
            assert await queued_at(other) == [runs]
            await cancel(gateway.http, runs)
            assert (await fetch(gateway.http, suspect))[0] == 200
            assert (await fetch(gateway.http, behind))[0] == 200
    assert recorded_executions(folders[1]) == {runs: 1, suspect: 1, behind: 1}


async def test_with_comfyuis_queue_a_suspect_waits_for_an_idle_server(engine: Engine) -> None:
    """ComfyUI forgets one running and two waiting prompts; new ones arrive until the suspect has finished."""
    async with running_gateway(engine.url, queue="comfyui") as gateway:

        async def status_of(workflow: Workflow) -> int:
            return (await gateway.prompt_sync(workflow))[0]

        seen: list[list[str]] = []

        async def keep_looking() -> None:
            while True:
                seen.append(await queued_at(engine.url))
                await asyncio.sleep(0.01)

        first = asyncio.create_task(status_of(sleep_workflow(600)))
        (suspect,), _ = await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        others = [asyncio.create_task(status_of(sleep_workflow(0.3, tag=tag))) for tag in (1, 2)]
        await until(lambda: queue_of(engine), lambda queue: len(queue[1]) == 2)
        looking = asyncio.create_task(keep_looking())
        await engine.set_faults({"forget": {}})
        while not first.done():
            others.append(asyncio.create_task(status_of(sleep_workflow(0.1, tag=10 + len(others)))))
            await asyncio.sleep(0.05)
            if executions(engine)[suspect] == 2 and suspect in seen[-1]:
                engine.wake(suspect)
        assert set(await asyncio.gather(first, *others)) == {200}
        looking.cancel()
        assert executions(engine)[suspect] == 2
    again = [queue for queue in seen if suspect in queue]
    assert again
    assert all(queue[0] == suspect for queue in again), again


async def test_with_comfyuis_queue_a_suspect_waits_for_prompts_of_other_clients(engine: Engine, tmp_path: Path) -> None:
    """After a restart of both, ComfyUI has lost the async job and runs the prompt of another client."""
    settings = {"STATE_DIR": str(tmp_path / "state"), "QUEUE": "comfyui"}
    async with gateway_process(engine.url, **settings) as gateway:
        suspect = await submit(gateway.http, sleep_workflow(600))
        await begins(gateway.http, suspect)
        await gateway.kill()
    await engine.set_faults({"forget": {}})
    engine.wake(suspect)
    async with aiohttp.ClientSession(engine.url) as http:
        async with http.post("/prompt", json={"prompt": sleep_workflow(60, tag=9)}) as response:
            other = (await response.json())["prompt_id"]
        async with gateway_process(engine.url, **settings) as gateway:
            await until(lambda: is_lost(gateway.http), bool, timeout_s=30)
            before = requests(engine, "GET /queue")
            await until(lambda: _asked(engine), lambda asked: asked >= before + 2)
            assert await queued_at(engine.url) == [other]
            async with http.post("/interrupt", json={"prompt_id": other}):
                pass
            assert (await fetch(gateway.http, suspect))[0] == 200
    assert executions(engine) == {suspect: 2, other: 1}


async def _asked(engine: Engine) -> int:
    return requests(engine, "GET /queue")


async def test_a_prompt_that_crashes_comfyui_while_running_loses_no_prompt_behind_it(tmp_path: Path) -> None:
    async with (
        restarted_engine(tmp_path) as engine,
        running_gateway(engine, changed=watching_closely(), queue="gateway") as gateway,
    ):
        ends = await submit(gateway.http, crash_workflow(1))
        others = [await submit(gateway.http, invert_workflow(tag)) for tag in (2, 3)]
        status, body = await fetch(gateway.http, ends, 50)
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
        assert [(await fetch(gateway.http, other))[0] for other in others] == [200, 200]
    assert recorded_executions(tmp_path) == {ends: 2, others[0]: 1, others[1]: 1}
