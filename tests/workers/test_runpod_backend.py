"""BACKEND=runpod in front of RunPod's own SDK: its local API server, and its production loop.

The SDK is in an environment of its own; `make test` runs these tests there.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from tests.support.job_api import JobApi, WorkerProcess, running_worker
from tests.support.running import (
    RunningGateway,
    invert_workflow,
    loading_workflow,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.runpod_endpoint import NOWHERE, error_of, gateway_settings, get, history, submit

if importlib.util.find_spec("runpod") is None:
    pytest.skip("the RunPod SDK is in .venv-runpod: make test runs these there", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def picture(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


# The SDK's local API server


async def test_prompt_sync_returns_a_jobs_files_from_the_sdks_local_api(
    local_api_worker: tuple[str, WorkerProcess], tmp_path: Path
) -> None:
    url, _ = local_api_worker
    async with running_gateway(NOWHERE, **gateway_settings(url, tmp_path)) as gateway:
        status, answer = await gateway.prompt_sync(invert_workflow(0x102030), return_image_base64=True)
        assert status == 200
        [image] = answer["images"]
        assert picture(base64.b64decode(image["base64"])) == (16, 12)
        content = io.BytesIO()
        Image.new("RGB", (5, 7), "red").save(content, "PNG")
        files = [{"name": "photo.png", "image": base64.b64encode(content.getvalue()).decode()}]
        status, answer = await gateway.prompt_sync(
            loading_workflow("photo.png"), images=files, return_image_base64=True
        )
        assert status == 200
        assert picture(base64.b64decode(answer["images"][0]["base64"])) == (5, 7)
        workflow = invert_workflow()
        workflow["2"] |= {
            "class_type": "SimulatedError",
            "inputs": {"exception_type": "RuntimeError", "message": "no such luck"},
        }
        status, answer = await gateway.prompt_sync(workflow)
        assert (status, answer["detail"]) == (500, "SimulatedError (node 2): RuntimeError: no such luck")


async def test_a_frontend_gets_its_result_through_the_sdks_local_api(
    local_api_worker: tuple[str, WorkerProcess], tmp_path: Path
) -> None:
    url, worker = local_api_worker
    async with (
        running_gateway(NOWHERE, **gateway_settings(url, tmp_path)) as gateway,
        gateway.http.ws_connect("/ws?clientId=front") as websocket,
    ):
        # Takes longer than a status request may: the local API runs the job within that request.
        extra_data = {"extra_pnginfo": {"workflow": {"id": "of the editor"}}}
        prompt_id = await submit(gateway, sleep_workflow(1.5, steps=3), client_id="front", extra_data=extra_data)
        kinds = []
        while True:
            frame = await websocket.receive_json()
            kinds.append(frame["type"])
            if frame["type"] == "executing" and frame["data"]["node"] is None:
                break
        seen = [kind for kind in kinds if kind != "status"]
        assert seen == ["execution_start", "execution_cached", "executed", "execution_success", "executing"]
        entry = await history(gateway, prompt_id)
        [image] = entry["outputs"]["3"]["images"]
        async with gateway.http.get("/view", params=image) as response, gateway.http.get("/queue") as queue:
            with Image.open(io.BytesIO(await response.read())) as saved:
                assert saved.size == (16, 12)
                # The editor can open the picture, as it can open one from ComfyUI.
                assert json.loads(saved.info["workflow"]) == {"id": "of the editor"}
            assert (await queue.json())["queue_running"] == []
        assert sum((await worker.executed()).values()) >= 1


# The SDK's production loop


async def test_progress_reaches_server_sent_events_and_a_frontends_websocket(gateway_of_worker: RunningGateway) -> None:
    body = {"prompt": sleep_workflow(3, steps=30), "client_id": "front"}
    headers = {"Accept": "text/event-stream"}
    async with (
        gateway_of_worker.http.ws_connect("/ws?clientId=front") as websocket,
        gateway_of_worker.http.post("/prompt_sync", json=body, headers=headers) as response,
    ):
        events = (await response.read()).decode().split("\n\n")
        progress = [json.loads(event.partition("data: ")[2]) for event in events if event.startswith("event: progress")]
        fractions = [one["overall"] for one in progress]
        assert len(fractions) >= 2
        assert fractions == sorted(fractions)
        assert any(event.startswith("event: result") for event in events)
        frames: list[dict[str, Any]] = []
        while not frames or frames[-1]["type"] != "execution_success":
            frames.append(await websocket.receive_json())
        steps = [frame["data"] for frame in frames if frame["type"] == "progress"]
        assert steps
        assert {(step["node"], step["max"]) for step in steps if step["max"] > 1} == {("4", 30.0)}


async def test_a_cancelled_prompt_is_interrupted_in_the_workers_comfyui(
    production_worker: tuple[JobApi, WorkerProcess], gateway_of_worker: RunningGateway
) -> None:
    api, worker = production_worker
    runs, prompt_id = len(api.runs), str(uuid4())
    asking = asyncio.create_task(gateway_of_worker.prompt_sync(sleep_workflow(30, steps=300), prompt_id=prompt_id))
    await api.update(await job_after(api, runs))
    async with gateway_of_worker.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
    assert (await asking)[0] == 409
    await worker.says("prompt.cancelled")
    assert (await history(gateway_of_worker, prompt_id))["status"]["messages"][-1][0] == "execution_interrupted"
    status, _ = await gateway_of_worker.prompt_sync(invert_workflow())
    assert status == 200


async def test_a_failed_job_reports_the_reason_without_comfyuis_log(gateway_of_worker: RunningGateway) -> None:
    workflow = invert_workflow()
    workflow["5"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "absent.safetensors"}}
    workflow["7"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    workflow["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["5", 2]}}
    workflow["3"]["inputs"]["images"] = ["6", 0]
    message = error_of(await history(gateway_of_worker, await submit(gateway_of_worker, workflow)))
    assert "Missing model file 'absent.safetensors' for ckpt_name" in message
    assert "last lines of ComfyUI's output" not in message


async def test_two_workers_finish_out_of_order_and_each_caller_gets_its_own_result(
    production_worker: tuple[JobApi, WorkerProcess], gateway_of_worker: RunningGateway
) -> None:
    api, first = production_worker
    runs = len(api.runs)
    slow = asyncio.create_task(gateway_of_worker.prompt_sync(sleep_workflow(6, steps=60), return_image_base64=True))
    await api.update(await job_after(api, runs))
    async with running_worker(api.environment(), RUNPOD_POD_ID="second") as second:
        status, quick = await gateway_of_worker.prompt_sync(invert_workflow(2, width=20), return_image_base64=True)
        assert status == 200
        assert picture(base64.b64decode(quick["images"][0]["base64"])) == (20, 12)
        status, answer = await slow
        assert status == 200
        assert picture(base64.b64decode(answer["images"][0]["base64"])) == (16, 12)
        assert first.process.returncode is None
        assert second.process.returncode is None


async def test_a_gateway_restarted_during_a_render_returns_the_result_of_that_render(
    production_worker: tuple[JobApi, WorkerProcess], tmp_path: Path
) -> None:
    api, worker = production_worker
    before, runs = sum((await worker.executed()).values()), len(api.runs)
    prompt_id = str(uuid4())
    workflow = sleep_workflow(4, steps=40, tag=5)
    more = gateway_settings(api.url, tmp_path, shutdown_grace_seconds=0)
    async with running_gateway(NOWHERE, **more) as gateway:
        await submit(gateway, workflow, prompt_id=prompt_id)
        await api.update(await job_after(api, runs))
    async with running_gateway(NOWHERE, **more) as gateway:
        status, answer = await gateway.prompt_sync(workflow, prompt_id=prompt_id)
        assert (status, answer["prompt_id"]) == (200, prompt_id)
        assert (await get(gateway, f"/history/{prompt_id}"))[1][prompt_id]["status"]["completed"] is True
    assert len(api.runs) == runs + 1
    assert sum((await worker.executed()).values()) == before + 1


async def job_after(api: JobApi, runs: int) -> str:
    """Waits for the job that comes after the first `runs`, and returns its id."""

    async def job() -> str:
        return api.runs[runs] if len(api.runs) > runs else ""

    return await until(job, bool)
