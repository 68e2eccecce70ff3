"""BACKEND=comfyui,runpod: one queue for ComfyUI servers and an endpoint."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.engine import Engine, EngineOptions
from comfyui.warmup import WarmUp
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    executions,
    invert_workflow,
    loading_workflow,
    prompts_are_queued,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.runpod_endpoint import (
    DATA,
    NOWHERE,
    FakeEndpoint,
    base64_image,
    error_of,
    get,
    history,
    submit,
)
from tests.support.tabs import ENDED, Tab, kind_of
from tests.support.uploads import upload

BOTH = "comfyui,runpod"


async def test_a_free_server_is_preferred_to_runpod(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint, engine: Engine
) -> None:
    for number in range(3):
        status, _ = await runpod_and_engine.prompt_sync(invert_workflow(number))
        assert status == 200
    assert sum(executions(engine).values()) == 3
    assert endpoint.runs == 0


async def test_runpod_gets_prompts_that_no_server_can_run_at_once(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint, engine: Engine
) -> None:
    long = await submit(runpod_and_engine, sleep_workflow(600))
    await prompts_are_queued(engine, 1)
    asking = asyncio.create_task(runpod_and_engine.prompt_sync(invert_workflow(7), return_image_base64=True))
    job = await endpoint.job()
    assert endpoint.inputs[job]["workflow"] == invert_workflow(7)
    endpoint.complete(job, base64_image(DATA))
    status, answer = await asking
    assert (status, answer["images"][0]["base64"]) == (200, DATA)
    async with runpod_and_engine.http.get(answer["images"][0]["url"]) as response:
        assert response.status == 200
    # When a server has room again, RunPod gets no more prompts.
    await _cancel(runpod_and_engine, long)
    await history(runpod_and_engine, long)
    assert (await runpod_and_engine.prompt_sync(invert_workflow(8)))[0] == 200
    assert endpoint.runs == 1


async def test_a_job_waits_for_a_server_while_runpod_refuses(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint, engine: Engine
) -> None:
    endpoint.refusals += [429] * 1000
    long = await submit(runpod_and_engine, sleep_workflow(600))
    await prompts_are_queued(engine, 1)
    asking = asyncio.create_task(runpod_and_engine.prompt_sync(invert_workflow(7)))
    await endpoint.until(lambda: endpoint.runs > 0)
    await _cancel(runpod_and_engine, long)
    assert (await asking)[0] == 200
    assert endpoint.inputs == {}


async def test_workflows_that_the_servers_cannot_run_go_to_runpod(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint
) -> None:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "OnlyTheWorkerHasIt"
    prompt_id = await submit(runpod_and_engine, workflow)
    endpoint.complete(await endpoint.job(), base64_image(DATA))
    assert (await history(runpod_and_engine, prompt_id))["status"]["completed"] is True


async def test_a_refused_runpod_key_does_not_make_the_gateway_unready(
    endpoint: FakeEndpoint, engine: Engine, tmp_path: Path
) -> None:
    endpoint.accepts_key = False
    settings: dict[str, Any] = endpoint.settings(tmp_path) | {"backend": BOTH}
    async with running_gateway(engine.url, **settings) as gateway:

        async def servers() -> Any:
            return (await get(gateway, "/health"))[1]["servers"]

        states = await until(servers, lambda servers: {one["state"] for one in servers} == {"connected", "broken"})
        assert [one["server"] for one in states][1] == "runpod:endpoint1"
        assert "RUNPOD_API_KEY" in states[1]["reason"]
        assert (await get(gateway, "/health/ready"))[0] == 200
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_prompts_go_to_runpod_while_the_server_is_down(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    async with running_gateway(NOWHERE, ready=False, **endpoint.settings(tmp_path) | {"backend": BOTH}) as gateway:
        asking = asyncio.create_task(gateway.prompt_sync(invert_workflow()))
        endpoint.complete(await endpoint.job(), base64_image(DATA))
        assert (await asking)[0] == 200


async def test_a_warm_up_runs_on_the_servers_and_not_on_runpod(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint, engine: Engine
) -> None:
    handler = runpod_and_engine.handler
    await eventually(lambda: len(handler.pool.ready_servers) == 2)
    warm_up = WarmUp(sleep_workflow(0.2), timeout_s=30)
    async with warm_up.running(handler):
        await eventually(lambda: warm_up.why_not_ready(in_detail=True) is None)
    assert list(executions(engine).values()) == [1]
    assert endpoint.runs == 0


@pytest.mark.parametrize("later", [{"backend": "comfyui"}, {"runpod_endpoint_id": "endpoint2"}])
async def test_jobs_sent_to_a_removed_endpoint_are_not_run_again(
    later: dict[str, str], endpoint: FakeEndpoint, engine: Engine, tmp_path: Path
) -> None:
    settings = endpoint.settings(tmp_path)
    async with running_gateway(engine.url, **settings) as gateway:
        prompt_id = await submit(gateway)
        await endpoint.job()
    if later == {"backend": "comfyui"}:
        settings = {"state_dir": tmp_path / "state", "queue": "gateway"}
    async with running_gateway(engine.url, **settings | later) as gateway:
        assert "was sent to runpod:endpoint1, which no longer runs prompts" in error_of(
            await history(gateway, prompt_id)
        )
    assert (executions(engine), endpoint.runs) == ({}, 1)


async def test_prompts_wait_a_moment_for_servers_that_have_not_answered_yet(
    endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    """A gateway that starts with a queue must not send it to RunPod before its servers have answered."""
    settings: dict[str, Any] = endpoint.settings(tmp_path)
    async with running_gateway(NOWHERE, **settings | {"runpod_endpoint_url": "http://127.0.0.1:9"}) as before:
        prompt_ids = [await submit(before, invert_workflow(number)) for number in range(4)]
    async with (
        Engine(EngineOptions()) as engine,
        running_gateway(engine.url, **settings | {"backend": BOTH}) as gateway,
    ):
        assert (await history(gateway, prompt_ids[0]))["status"]["completed"] is True
        assert prompt_ids[0] in executions(engine)


async def test_jobs_that_are_too_large_for_runpod_wait_for_a_server(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint, engine: Engine
) -> None:
    long = await submit(runpod_and_engine, sleep_workflow(600))
    await prompts_are_queued(engine, 1)
    assert (await upload(runpod_and_engine, "large.png", _large_picture()))[0] == 200
    asking = asyncio.create_task(runpod_and_engine.prompt_sync(loading_workflow("large.png")))
    await prompts_are_queued(engine, 2)
    await _cancel(runpod_and_engine, long)
    assert (await asking)[0] == 200
    assert endpoint.runs == 0


async def test_a_workflow_that_the_worker_refuses_runs_on_a_server(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint, engine: Engine
) -> None:
    async with runpod_and_engine.http.ws_connect("/ws?clientId=tab") as websocket:
        tab = Tab(websocket)
        long = await submit(runpod_and_engine, sleep_workflow(600))
        await prompts_are_queued(engine, 1)
        prompt_id = await submit(runpod_and_engine, invert_workflow(7), client_id="tab")
        said = {"error_type": "validation_failed", "detail": "no such node", "node_errors": {"2": ["no such node"]}}
        endpoint.says(await endpoint.job(), "FAILED", error="Validation failed: …", output=said)
        await prompts_are_queued(engine, 2)
        await _cancel(runpod_and_engine, long)
        await tab.read_until(ENDED, prompt_id)
        kinds = [kind_of(frame) for frame in tab.texts if frame["data"].get("prompt_id") == prompt_id]
    assert "execution_error" not in kinds, "its client sees no failure"
    assert (await history(runpod_and_engine, prompt_id))["status"]["completed"] is True
    assert endpoint.runs == 1


async def test_a_workflow_that_all_refuse_fails_with_the_workers_reason(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint
) -> None:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "NoServerHasIt"
    said = {"error_type": "validation_failed", "detail": "no such node", "node_errors": {"2": ["no such node"]}}
    asking = asyncio.create_task(runpod_and_engine.prompt_sync(workflow))
    endpoint.says(await endpoint.job(), "FAILED", error="Validation failed: …", output=said)
    status, answer = await asking
    assert (status, answer["type"], answer["node_errors"]) == (400, "validation_failed", {"2": ["no such node"]})
    assert endpoint.runs == 1


async def test_a_prompt_waits_for_a_server_when_runpod_refuses_the_key(
    runpod_and_engine: RunningGateway, endpoint: FakeEndpoint, engine: Engine
) -> None:
    long = await submit(runpod_and_engine, sleep_workflow(600))
    await prompts_are_queued(engine, 1)
    endpoint.accepts_key = False
    asking = asyncio.create_task(runpod_and_engine.prompt_sync(invert_workflow(7)))
    await endpoint.until(lambda: endpoint.runs > 0)
    await prompts_are_queued(engine, 2)
    await _cancel(runpod_and_engine, long)
    assert (await asking)[0] == 200
    assert endpoint.inputs == {}


async def test_runpod_is_drained_and_resumed_like_a_server(
    endpoint: FakeEndpoint, engine: Engine, tmp_path: Path
) -> None:
    settings: dict[str, Any] = endpoint.settings(tmp_path) | {"backend": BOTH}
    name = "runpod:endpoint1"

    async def post(gateway: RunningGateway, how: str) -> Any:
        async with gateway.http.post(f"/servers/{name}/{how}") as response:
            return response.status, await response.json()

    async with running_gateway(engine.url, **settings) as gateway:
        assert await post(gateway, "drain") == (200, {"server": name, "status": "drained", "in_flight": 0})
    async with running_gateway(engine.url, **settings) as gateway:
        _, health = await get(gateway, "/health")
        [there] = [one for one in health["servers"] if one["server"] == name]
        assert (there["drained"], "resume gives it prompts again" in there["reason"]) == (True, True)
        await submit(gateway, sleep_workflow(600))
        await prompts_are_queued(engine, 1)
        await submit(gateway, invert_workflow(1))
        await prompts_are_queued(engine, 2)
        waiting = await submit(gateway, invert_workflow(2))
        assert endpoint.runs == 0
        assert (await post(gateway, "resume"))[1]["status"] == "in use"
        endpoint.complete(await endpoint.job(), base64_image(DATA))
        assert (await history(gateway, waiting))["status"]["completed"] is True


def _large_picture() -> bytes:
    """A PNG of 8.6 MB."""
    file = io.BytesIO()
    Image.frombytes("RGB", (1700, 1700), os.urandom(3 * 1700 * 1700)).save(file, "PNG")
    return file.getvalue()


async def _cancel(gateway: RunningGateway, prompt_id: str) -> None:
    async with gateway.http.post(f"/api/jobs/{prompt_id}/cancel") as response:
        assert response.status == 200
