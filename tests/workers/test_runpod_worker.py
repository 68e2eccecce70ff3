"""The worker in RunPod's own production loop: the real SDK against a job API on loopback, the engine as ComfyUI.

The SDK is in an environment of its own; `make test` runs these tests there.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image
from pydantic import SecretStr
from yarl import URL

from comfyui.outputs.stores.s3 import S3Settings, S3Store
from comfyui.workers.base import prompt_id_for_job
from tests.chaos import workers as chaos
from tests.support import object_store
from tests.support.job_api import ROOT, JobApi, WorkerProcess, running_worker
from tests.support.job_inputs import b64, data_uri
from tests.support.pictures import RED
from tests.support.ports import free_port
from tests.support.running import Workflow, crash_workflow, invert_workflow, sleep_workflow

if importlib.util.find_spec("runpod") is None:
    pytest.skip("the RunPod SDK is in .venv-runpod: make test runs these there", allow_module_level=True)


pytestmark = pytest.mark.asyncio(loop_scope="module")


def prompt_id(job_id: str) -> str:
    return str(prompt_id_for_job("runpod", job_id))


def load_image_workflow(*names: str) -> Workflow:
    """Saves each of these input images as it is."""
    workflow: Workflow = {}
    for index, name in enumerate(names):
        workflow[f"{index}1"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        workflow[f"{index}2"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [f"{index}1", 0], "filename_prefix": f"saved{index}"},
        }
    return workflow


async def test_a_job_returns_its_files_or_the_reason_of_its_failure(
    shared_runpod_worker: tuple[JobApi, WorkerProcess],
) -> None:
    api, worker = shared_runpod_worker
    api.submit("good", {"workflow": invert_workflow(0x102030, prefix="good")})
    output = (await api.result("good"))["output"]
    assert output["status"] == "success"
    assert output["prompt_id"] == prompt_id("good")
    assert output["execution_time"] >= 0
    [image] = output["images"]
    assert (image["type"], image["filename"], image["node_id"]) == ("base64", "good_00001_.png", "3")
    with Image.open(io.BytesIO(base64.b64decode(image["data"]))) as picture:
        assert picture.size == (16, 12)

    workflow = invert_workflow(1)
    workflow["2"] |= {
        "class_type": "SimulatedError",
        "inputs": {"exception_type": "RuntimeError", "message": "no such luck"},
    }
    api.submit("raises", {"workflow": workflow})
    failed = await api.result("raises")
    assert "SimulatedError (node 2): RuntimeError: no such luck" in failed["error"]
    told = failed["output"]
    assert (told["status"], told["error_type"], told["prompt_id"]) == ("error", "task_failed", prompt_id("raises"))
    assert told["node_errors"] == {"2": ["RuntimeError: no such luck"]}
    assert told["diagnostics"]["versions"]["comfyui"]
    assert "last lines of ComfyUI's output:\n  simulated ComfyUI" in failed["error"]
    assert "process ready, crashed " in failed["error"]

    workflow = invert_workflow(2)
    workflow["5"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "absent.safetensors"}}
    workflow["3"]["inputs"]["images"] = ["6", 0]
    workflow["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["5", 2]}}
    workflow["7"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    api.submit("missing-model", {"workflow": workflow})
    failed = await api.result("missing-model")
    assert "node 5: Missing model file 'absent.safetensors' for ckpt_name" in failed["error"]
    assert "ckpt_name: " in failed["error"].partition("models found:")[2]
    assert prompt_id("missing-model") not in await worker.executed()

    api.submit("bad-field", {"workflw": {}})
    assert (
        "workflow or workflow_name must be given, but not both; input.workflw is unknown"
        in (await api.result("bad-field"))["error"]
    )
    api.submit("as-text", json.dumps({"workflow": invert_workflow(3), "images": None, "seed": 1}))
    output = (await api.result("as-text"))["output"]
    assert output["warnings"] == ["input.seed is unknown and was ignored"]


async def test_inputs_of_both_contracts_are_accepted_and_keys_are_never_logged(
    shared_runpod_worker: tuple[JobApi, WorkerProcess],
) -> None:
    api, worker = shared_runpod_worker
    workflow = load_image_workflow("one.png", "two.png", "masks/three.png")
    api.submit(
        "inputs",
        {
            "workflow": json.dumps(workflow),
            "images": [{"name": "one.png", "image": b64(RED)}],
            "reference_images": {"two.png": data_uri(RED), "masks/three.png": b64(RED)},
            "comfy_org_api_key": "comfyui-secret-key",
            "comfy_org_auth_token": "comfyui-secret-key-2",
            "return_base64": True,
        },
    )
    output = (await api.result("inputs"))["output"]
    assert [image["type"] for image in output["images"]] == ["base64"] * 3
    for image in output["images"]:
        with Image.open(io.BytesIO(base64.b64decode(image["data"]))) as picture:
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert not any("comfyui-secret-key" in line for line in worker.lines)


async def test_progress_is_reported_during_the_job_and_never_after_its_result(
    shared_runpod_worker: tuple[JobApi, WorkerProcess],
) -> None:
    api, _ = shared_runpod_worker
    api.submit("shown", {"workflow": sleep_workflow(3.0, steps=20)})
    await api.result("shown")
    updates = api.updates("shown")
    assert len(updates) >= 3
    fractions = [update["fraction"] for update in updates]
    assert fractions == sorted(fractions)
    assert any(update["message"].startswith("SimulatedSleep ") for update in updates)
    assert api.posts["shown"][-1].get("status") != "IN_PROGRESS"
    # A late update of the SDK's threads would arrive before the next job is done.
    api.submit("after-shown", {"workflow": invert_workflow()})
    await api.result("after-shown")
    assert api.posts["shown"][-1].get("status") != "IN_PROGRESS"


async def test_a_stopped_job_is_interrupted_in_comfyui_and_the_next_one_runs(
    shared_runpod_worker: tuple[JobApi, WorkerProcess],
) -> None:
    api, worker = shared_runpod_worker
    api.submit("stopped", {"workflow": sleep_workflow(30, steps=300)})
    await api.update("stopped")
    api.stop("stopped")
    api.submit("after-stopped", {"workflow": invert_workflow()})
    assert (await api.result("after-stopped"))["output"]["status"] == "success"
    assert api.results("stopped") == []
    assert await worker.queue() == {"queue_running": [], "queue_pending": []}
    await worker.says("prompt.cancelled")


async def test_a_job_delivered_twice_runs_once(
    shared_runpod_worker: tuple[JobApi, WorkerProcess],
) -> None:
    api, worker = shared_runpod_worker
    job = {"workflow": sleep_workflow(0.1)}
    api.submit("twice", job)
    api.submit("twice", job)
    second = await api.result("twice", count=2)
    assert second["output"]["images"] == (await api.result("twice"))["output"]["images"]
    assert (await worker.executed())[prompt_id("twice")] == 1


async def test_a_job_completes_although_comfyui_crashes_during_it(
    shared_runpod_worker: tuple[JobApi, WorkerProcess],
) -> None:
    api, worker = shared_runpod_worker
    ready = await worker.says("comfyui.ready")
    api.submit("crashing", {"workflow": sleep_workflow(1.5, steps=30)})
    await api.update("crashing")
    pid = next(part.removeprefix("pid=") for part in ready.split() if part.startswith("pid="))
    os.kill(int(pid), signal.SIGKILL)
    assert (await api.result("crashing"))["output"]["status"] == "success"
    assert any("it was ended by SIGKILL" in line for line in worker.lines)


async def test_sigterm_finishes_the_running_job_and_does_not_wait_for_open_polls(job_api: JobApi) -> None:
    async with running_worker(job_api.environment()) as worker:
        await worker.says("comfyui.ready")
        assert job_api.taken == []  # it was started before the first job
        job_api.submit("job", {"workflow": sleep_workflow(1.0, steps=10)})
        await job_api.update("job")
        worker.terminate()
        assert (await job_api.result("job"))["output"]["status"] == "success"
        job_api.submit("too-late", {"workflow": invert_workflow()})
        assert await worker.process.wait() == 0
        assert "too-late" not in job_api.posts
        with pytest.raises(aiohttp.ClientConnectorError):
            await worker.queue()


async def test_a_result_that_is_too_large_fails_with_advice(job_api: JobApi) -> None:
    workflow = {
        "1": {"class_type": "SimulatedOutput", "inputs": {
            "count": 2, "size": 60_000, "extension": "bin", "output_key": "images", "filename_prefix": "big"}}
    }  # fmt: skip
    async with running_worker(job_api.environment(), MAX_RESULT_MB="0.1", REFRESH_WORKER="true"):
        job_api.submit("large", {"workflow": workflow})
        failed = await job_api.result("large")
        assert "the reply is larger than 0.1 MB" in failed["error"]
        assert "set S3_BUCKET" in failed["error"]
        assert failed["stopPod"] is True
        job_api.submit("small", {"workflow": invert_workflow()})
        done: dict[str, Any] = await job_api.result("small")
        assert done["stopPod"] is True
        assert "refresh_worker" not in done["output"]


async def test_files_are_in_a_real_s3_server_before_the_reply_links_them(job_api: JobApi, seaweedfs: str) -> None:
    store = S3Store(
        S3Settings(
            "runpod-renders",
            endpoint_url=seaweedfs,
            access_key=SecretStr(object_store.ACCESS_KEY),
            secret_key=SecretStr(object_store.SECRET_KEY),
            addressing_style="path",
        )
    )
    async with store:
        await store._client.create_bucket(Bucket="runpod-renders")
    environment = {
        **job_api.environment(),
        "S3_BUCKET": "runpod-renders",
        "S3_ENDPOINT_URL": seaweedfs,
        "S3_ACCESS_KEY_ID": object_store.ACCESS_KEY,
        "S3_SECRET_ACCESS_KEY": object_store.SECRET_KEY,
        "S3_ADDRESSING_STYLE": "path",
    }
    async with running_worker(environment) as worker, aiohttp.ClientSession() as http:
        job_api.submit("stored", {"workflow": invert_workflow(), "output": {"store": "s3", "prefix": "customer-7"}})
        [image] = (await job_api.result("stored"))["output"]["images"]
        assert image["type"] == "s3_url"
        assert f"/runpod-renders/customer-7/{prompt_id('stored')}/3/test_00001_.png?" in image["data"]
        async with http.get(URL(image["data"], encoded=True)) as response:
            content = await response.read()
        assert (response.status, len(content)) == (200, image["size"])
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.size == (16, 12)
        job_api.submit("refused", {"workflow": invert_workflow(), "output": {"bucket": "another"}})
        assert "may not store in the bucket 'another'" in (await job_api.result("refused"))["error"]
        assert list(await worker.executed()) == [prompt_id("stored")]
        assert not any(object_store.SECRET_KEY in line for line in worker.lines)


async def test_a_comfyui_that_cannot_start_fails_the_job_with_its_last_output(job_api: JobApi) -> None:
    command = "python3 -c \"import sys; print('No module named torch'); sys.exit(3)\""
    async with running_worker(job_api.environment(), COMFYUI_COMMAND=command) as worker:
        job_api.submit("job", {"workflow": invert_workflow()})
        failed = await job_api.result("job")
        assert "ComfyUI does not run: it ended with exit status 3" in failed["error"]
        assert "  No module named torch" in failed["error"]
        assert failed["stopPod"] is True
        assert worker.process.returncode is None


async def test_the_sdks_local_api_runs_a_job() -> None:
    port = free_port()
    arguments = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port))
    async with running_worker({}, *arguments) as worker, aiohttp.ClientSession() as http:
        await worker.says("Uvicorn running")
        body = {"input": {"workflow": invert_workflow()}}
        async with http.post(f"http://127.0.0.1:{port}/runsync", json=body) as response:
            answer = await response.json()
        assert answer["status"] == "COMPLETED"
        assert answer["output"]["images"][0]["type"] == "base64"
        worker.terminate()
        await worker.process.wait()
        with pytest.raises(aiohttp.ClientConnectorError):
            await worker.queue()


def slow_to_stop(folder: Path, on_stop: str) -> dict[str, str]:
    """Settings of a worker whose ComfyUI runs the statements `on_stop` when it is stopped, before it ends."""
    engine = folder / "slow_to_stop.py"
    engine.write_text(
        "import pathlib, runpy, sys, time\n"
        "sys.argv[0] = 'comfyui.engine'\n"
        "try:\n"
        "    runpy.run_module('comfyui.engine', run_name='__main__', alter_sys=True)\n"
        "except SystemExit:\n"
        f"    {on_stop}\n"
        "    raise\n"
    )
    port = free_port()
    command = f"{sys.executable} {engine} --port {port}"
    return {"COMFYUI_COMMAND": command, "COMFYUI_SERVER_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": str(ROOT)}


async def test_sigterm_gives_comfyui_time_to_stop_and_logs_no_traceback(job_api: JobApi, tmp_path: Path) -> None:
    """Regression: ComfyUI was killed at once, because the SDK cancels every task at its end."""
    more = slow_to_stop(tmp_path, f"time.sleep(0.5); pathlib.Path({str(tmp_path / 'stopped')!r}).touch()")
    async with running_worker(job_api.environment(), **more) as worker:
        await worker.says("comfyui.ready")
        worker.terminate()
        assert await worker.process.wait() == 0
    assert (tmp_path / "stopped").exists()
    assert not [line for line in worker.lines if "Traceback" in line], "\n".join(worker.lines)
    assert not any("comfyui.killed" in line for line in worker.lines)


async def test_a_worker_takes_no_job_while_its_comfyui_stops(job_api: JobApi, tmp_path: Path) -> None:
    """Regression: the request for a job stayed open while ComfyUI stopped, so a job that came then was never run."""
    more = slow_to_stop(tmp_path, f"pathlib.Path({str(tmp_path / 'stopping')!r}).touch(); time.sleep(1)")
    async with running_worker(job_api.environment(), **more) as worker:
        await worker.says("comfyui.ready")
        worker.terminate()
        async with asyncio.timeout(40):
            while not (tmp_path / "stopping").exists():
                await asyncio.sleep(0.01)
        job_api.submit("too-late", {"workflow": invert_workflow()})
        assert await worker.process.wait() == 0
    assert job_api.taken == []


async def test_an_unusable_store_fails_the_job_before_anything_is_rendered(job_api: JobApi) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    store = {"S3_BUCKET": "renders", "S3_ENDPOINT_URL": url, "S3_ADDRESSING_STYLE": "path"}
    keys = {"S3_ACCESS_KEY_ID": "key", "S3_SECRET_ACCESS_KEY": "secret"}
    async with running_worker(job_api.environment(), **store, **keys) as worker:
        job_api.submit("unstorable", {"workflow": invert_workflow()})
        failed = await job_api.result("unstorable")
        assert "the check of the store failed at write" in failed["error"]
        assert (failed["output"]["error_type"], failed["output"]["retryable"]) == ("storage_failed", True)
        assert await worker.executed() == {}
        job_api.submit("unstored", {"workflow": invert_workflow(), "output": {"store": "none"}})
        assert (await job_api.result("unstored"))["output"]["images"][0]["type"] == "base64"


async def test_a_job_that_crashes_comfyui_fails_within_its_budget_and_the_next_succeeds(
    job_api: JobApi, tmp_path: Path
) -> None:
    """Regression: after the fourth crash ComfyUI was not started again, and the job hung until JOB_TIMEOUT."""
    port = free_port()
    executions = tmp_path / "executions"
    command = f"{sys.executable} -m comfyui.engine --port {port} --executions-file {executions}"
    more = {"COMFYUI_COMMAND": command, "COMFYUI_SERVER_ADDRESS": f"127.0.0.1:{port}"}
    async with running_worker(job_api.environment(), **more):
        job_api.submit("crash-1", {"workflow": crash_workflow(tag=1, after=0.1)})
        failed = await job_api.result("crash-1")
        assert failed["output"]["error_type"] == "prompt_quarantined"
        assert "it was ended by SIGSEGV" in failed["error"]
        assert any("Segmentation fault" in line for line in failed["output"]["log_tail"])
        job_api.submit("crash-again", {"workflow": crash_workflow(tag=1, after=0.1)})
        assert (await job_api.result("crash-again"))["output"]["error_type"] == "prompt_quarantined"
        job_api.submit("fine", {"workflow": invert_workflow(2)})
        assert (await job_api.result("fine"))["output"]["status"] == "success"
        # Two more workflows, two crashes each: the fourth in a row is one too many, and RunPod replaces the worker.
        job_api.submit("crash-2", {"workflow": crash_workflow(tag=2, after=0.1)})
        assert (await job_api.result("crash-2"))["output"]["error_type"] == "prompt_quarantined"
        job_api.submit("crash-3", {"workflow": crash_workflow(tag=3, after=0.1)})
        failed = await job_api.result("crash-3")
        assert failed["output"]["error_type"] in {"prompt_quarantined", "connection_failed"}
        assert failed["stopPod"] is True
    counts = [executions.read_text().splitlines().count(prompt_id(f"crash-{number}")) for number in (1, 2, 3)]
    assert max(counts) <= 2, counts


@pytest.mark.parametrize(("stage", "crashes"), [("starting", 4), ("collecting", 2)])
async def test_repeated_crashes_neither_hang_nor_lose_a_job_of_this_platform(stage: str, crashes: int) -> None:
    """The short form of ``python -m tests.chaos.workers --platform runpod``."""
    ended = await chaos.one("runpod", stage, crashes)
    assert ended.is_right, ended
