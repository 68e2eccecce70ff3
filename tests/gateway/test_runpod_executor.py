"""BACKEND=runpod: the gateway in front of an endpoint whose API misbehaves on request."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from comfyui.exceptions import JournalError, SettingsError
from comfyui.jobs.attempt_log import JobAttempts
from comfyui.jobs.journal.sqlite import FILE_NAME
from comfyui.retrying import Backoff
from comfyui.settings import load
from config import Settings
from tests.support.log_lines import Lines
from tests.support.ports import free_port
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until
from tests.support.runpod_endpoint import (
    DATA,
    KEY,
    NOWHERE,
    PICTURE,
    QUICK,
    FakeEndpoint,
    base64_image,
    error_of,
    get,
    history,
    outputs_of,
    submit,
)


async def test_a_prompt_runs_on_the_endpoint_and_the_gateway_has_its_files_and_history(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    asking = asyncio.create_task(runpod_gateway.prompt_sync(invert_workflow(7), return_image_base64=True))
    job = await endpoint.job()
    assert endpoint.inputs[job] == {"workflow": invert_workflow(7)}
    endpoint.complete(job, base64_image(DATA, node_id="3"), outputs=outputs_of("a_00001_.png"), executionTime=120)
    status, answer = await asking
    assert status == 200
    prompt_id = answer["prompt_id"]
    [image] = answer["images"]
    assert (image["base64"], image["subfolder"]) == (DATA, prompt_id)
    assert answer["timings"]["executing"] == pytest.approx(0.12, abs=0.01)
    assert "nodes" not in answer["timings"], "the gateway polls the endpoint too rarely to time nodes"

    async with runpod_gateway.http.get(image["url"], headers={"Range": "bytes=1-3"}) as response:
        assert (response.status, await response.read()) == (206, b"PNG")
        etag = response.headers["ETag"]
    async with runpod_gateway.http.head(image["url"]) as response:
        assert response.headers["Content-Length"] == str(len(PICTURE))
        assert response.content_type == "image/png"
    async with runpod_gateway.http.get(image["url"], headers={"If-None-Match": etag}) as response:
        assert response.status == 304

    entry = await history(runpod_gateway, prompt_id)
    assert entry["outputs"] == {
        "3": {"images": [{"filename": "a_00001_.png", "subfolder": prompt_id, "type": "output"}]}
    }
    assert entry["status"]["completed"] is True
    assert await get(runpod_gateway, "/queue") == (200, {"queue_running": [], "queue_pending": []})
    _, listed = await get(runpod_gateway, "/api/jobs?status=completed")
    assert [(one["id"], one["outputs_count"]) for one in listed["jobs"]] == [(prompt_id, 1)]
    _, health = await get(runpod_gateway, "/health")
    assert health["servers"][0]["server"] == "runpod:endpoint1"


async def test_a_frontend_gets_the_events_of_its_prompt_in_comfyuis_order(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    async with runpod_gateway.http.ws_connect("/ws?clientId=front") as websocket:
        assert (await websocket.receive_json())["data"]["sid"] == "front"
        prompt_id = await submit(runpod_gateway, client_id="front")
        job = await endpoint.job()
        report = {"fraction": 0.5, "node_id": "2", "title": "Invert", "value": 3, "max": 4, "message": "Invert 3/4"}
        endpoint.says(job, "IN_PROGRESS", output=report)
        frames: list[dict[str, Any]] = []
        while not frames or frames[-1]["type"] != "progress":
            frames.append(await websocket.receive_json())
        odd: Any
        for odd in (["another worker's"], {"node_id": []}, {"node_id": "no such"}, {"node_id": "2", "value": "x"}):
            endpoint.says(job, "IN_PROGRESS", output=odd)
            await endpoint.looked(job)
        endpoint.complete(job, base64_image(DATA, node_id="3"), outputs=outputs_of("a_00001_.png"))
        while frames[-1]["type"] != "executing" or frames[-1]["data"]["node"] is not None:
            frames.append(await websocket.receive_json())
        assert (await history(runpod_gateway, prompt_id))["status"]["completed"] is True
        assert (await websocket.receive_json())["data"]["status"]["exec_info"]["queue_remaining"] == 0
    kinds = [frame["type"] for frame in frames if frame["type"] != "status"]
    assert kinds == [
        *("execution_start", "execution_cached", "executing", "progress_state", "progress"),
        # Among the invalid reports, the last one still says that the node runs.
        *("progress_state", "executed", "execution_success", "executing"),
    ]
    by_kind = {frame["type"]: frame["data"] for frame in frames}
    assert by_kind["progress"] == {"value": 3.0, "max": 4.0, "node": "2", "prompt_id": prompt_id}
    states = by_kind["progress_state"]["nodes"]
    assert {node: state["state"] for node, state in states.items()} == {"1": "finished", "2": "running"}
    assert by_kind["executed"]["output"]["images"][0]["subfolder"] == prompt_id


async def test_progress_arrives_as_server_sent_events(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    headers = {"Accept": "text/event-stream"}
    async with runpod_gateway.http.post(
        "/prompt_sync", json={"prompt": invert_workflow()}, headers=headers
    ) as response:
        job = await endpoint.job()
        endpoint.says(job, "IN_PROGRESS", output={"node_id": "2", "value": 1, "max": 2})
        async for line in response.content:
            if line.startswith(b"data:") and b'"overall"' in line:
                break
        endpoint.complete(job, base64_image(DATA, node_id="3"))
        rest = await response.read()
    assert b"event: result" in rest


# Sending


async def test_a_job_whose_reply_to_run_was_lost_fails_and_is_not_sent_twice(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    endpoint.refusals.append("cut")
    status, answer = await runpod_gateway.prompt_sync(invert_workflow())
    assert status == 500
    assert "it is not known whether RunPod took the job" in answer["detail"]
    assert "It was not sent again" in answer["detail"]
    assert "not known" in error_of(await history(runpod_gateway, answer["prompt_id"]))
    # The next prompt is sent as usual.
    await submit(runpod_gateway)
    await endpoint.job(2)
    assert endpoint.runs == 2


async def test_a_prompt_waits_while_runpod_cannot_be_reached(tmp_path: Path) -> None:
    port = free_port()
    endpoint = FakeEndpoint(port)
    endpoint.url = f"http://127.0.0.1:{port}"
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        prompt_id = await submit(gateway)
        _, queue = await get(gateway, "/queue")
        assert [item[1] for item in queue["queue_pending"]] == [prompt_id]
        assert (await get(gateway, "/health/ready"))[0] == 200
        async with endpoint:
            endpoint.complete(await endpoint.job(), base64_image(DATA))
            assert (await history(gateway, prompt_id))["status"]["completed"] is True
    assert endpoint.runs == 1


async def test_an_outage_of_runpod_and_its_end_are_logged_once_each(tmp_path: Path) -> None:
    port = free_port()
    endpoint = FakeEndpoint(port)
    endpoint.url = f"http://127.0.0.1:{port}"

    def logged(*counts: int) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            events = [line["event"] for line in lines]
            return counts == (events.count("runpod.unreachable"), events.count("runpod.recovered"))

        return ask

    with capture_logs() as lines:
        async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
            await until(logged(1, 0), bool)
            _, health = await get(gateway, "/health")
            assert health["servers"][0]["state"] == "connected", "prompts are accepted, and wait"
            assert "RunPod" in health["servers"][0]["reason"]
            async with endpoint:
                await until(logged(1, 1), bool)
                assert (await get(gateway, "/health"))[1]["servers"][0]["reason"] is None
                prompt_id = await submit(gateway)
                job = await endpoint.job()
                await endpoint.looked(job)
            await until(logged(2, 1), bool)
            async with endpoint:
                endpoint.complete(job, base64_image(DATA))
                assert (await history(gateway, prompt_id))["status"]["completed"] is True
                await until(logged(2, 2), bool)
    assert await logged(2, 2)()


async def test_a_job_that_runpod_certainly_did_not_accept_is_sent_again(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    endpoint.refusals += [429, 503]
    prompt_id = await submit(runpod_gateway)
    endpoint.complete(await endpoint.job(), base64_image(DATA))
    assert (await history(runpod_gateway, prompt_id))["status"]["completed"] is True
    assert endpoint.runs == 3


async def test_a_job_is_not_sent_again_after_a_502_that_may_hide_its_acceptance(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    endpoint.refusals.append(502)
    assert "HTTP 502" in error_of(await history(runpod_gateway, await submit(runpod_gateway)))
    assert endpoint.runs == 1


async def test_waiting_prompts_are_sent_in_the_order_of_their_numbers(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    endpoint.refusals += [429, 429, 429]
    await submit(runpod_gateway, invert_workflow(1))
    await submit(runpod_gateway, invert_workflow(2))
    await submit(runpod_gateway, invert_workflow(3), front=True)
    await endpoint.job(3)
    colors = [sent["workflow"]["1"]["inputs"]["color"] for sent in endpoint.inputs.values()]
    assert colors == [3, 1, 2]


async def test_prompts_and_readiness_name_a_refused_key_until_it_is_accepted(
    endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    endpoint.accepts_key = False
    async with running_gateway(NOWHERE, ready=False, **endpoint.settings(tmp_path)) as gateway:

        async def ready() -> tuple[int, Any]:
            return await get(gateway, "/health/ready")

        def refused(answer: tuple[int, Any]) -> bool:
            return answer[0] == 503 and "RUNPOD_API_KEY" in answer[1]["reason"]

        await until(ready, refused)
        status, answer = await gateway.prompt_sync(invert_workflow())
        assert status == 503
        assert "check RUNPOD_API_KEY" in answer["detail"]
        assert KEY not in json.dumps(answer)
        endpoint.accepts_key = True
        await until(ready, lambda answer: answer[0] == 200)
        endpoint.accepts_key = False
        assert "check RUNPOD_API_KEY" in error_of(await history(gateway, await submit(gateway)))
        await until(ready, refused)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("{elsewhere}/v2/x?token=secret", "to {elsewhere} (HTTP 307), which is not followed: correct the setting"),
        ("/v2/run", "to another path of its own (HTTP 307), which is not followed: correct the setting"),
    ],
    ids=["to another host", "to another path"],
)
async def test_a_redirect_is_not_followed_and_the_error_names_the_setting(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway, location: str, said: str
) -> None:
    async def ready() -> tuple[int, Any]:
        return await get(runpod_gateway, "/health/ready")

    async with FakeEndpoint() as other:
        reason = f"RUNPOD_ENDPOINT_URL redirects {said.format(elsewhere=other.url)}"
        endpoint.redirect = location.format(elsewhere=other.url)
        assert error_of(await history(runpod_gateway, await submit(runpod_gateway))) == reason
        _, answer = await until(ready, lambda answer: answer[0] == 503)
        assert reason in answer["reason"]
        status, body = await runpod_gateway.prompt_sync(invert_workflow())
        assert status == 503
        assert reason in body["detail"]
        assert (other.requests, endpoint.runs, endpoint.inputs) == (0, 1, {})
        endpoint.redirect = ""
        await until(ready, lambda answer: answer[0] == 200)


async def test_a_redirect_without_a_location_fails_the_job(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    endpoint.refusals.append(304)
    message = error_of(await history(runpod_gateway, await submit(runpod_gateway)))
    assert message == "RUNPOD_ENDPOINT_URL answers with a redirect (HTTP 304) that leads nowhere: correct the setting"
    assert endpoint.runs == 1


async def test_a_running_job_survives_a_redirect(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    prompt_id = await submit(runpod_gateway)
    job = await endpoint.job()
    endpoint.redirect = "https://maintenance.example/"
    await endpoint.looked(job)
    endpoint.redirect = ""
    endpoint.complete(job, base64_image(DATA))
    assert (await history(runpod_gateway, prompt_id))["status"]["completed"] is True


async def test_a_refused_job_fails_with_runpods_reason(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    endpoint.refusals.append(400)
    message = error_of(await history(runpod_gateway, await submit(runpod_gateway)))
    assert message == "RunPod refused the job: RunPod's API answered /run with HTTP 400: status 400 of the test"


async def test_the_error_names_an_unknown_endpoint(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    endpoint.refusals.append(404)
    message = error_of(await history(runpod_gateway, await submit(runpod_gateway)))
    assert message == "RunPod does not know the endpoint 'endpoint1': check RUNPOD_ENDPOINT_ID"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "invalid_prompt"),
        ({"prompt": invert_workflow(), "prompt_id": "x"}, "invalid_prompt_id"),
        ({"prompt": {}}, "invalid_prompt"),
        ({"prompt": {"1": {"class_type": "A"}}}, "prompt_outputs_failed_validation"),
        ({"prompt": invert_workflow(), "number": "x"}, "invalid_request"),
        ({"prompt": invert_workflow(), "partial_execution_targets": ["no"]}, "validation_failed"),
    ],
    ids=["no prompt", "invalid id", "empty", "no inputs", "invalid number", "unknown target"],
)
async def test_an_invalid_prompt_is_refused_with_an_error_of_comfyuis_shape(
    runpod_gateway: RunningGateway, endpoint: FakeEndpoint, body: dict[str, Any], kind: str
) -> None:
    async with runpod_gateway.http.post("/prompt", json=body) as response:
        answer = await response.json()
    assert response.status == 400
    assert answer["error"]["type"] == kind
    assert answer.keys() == {"error", "node_errors"}
    assert endpoint.runs == 0


async def test_a_prompt_without_wanted_outputs_is_refused(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    body = {"prompt": invert_workflow(), "partial_execution_targets": []}
    async with runpod_gateway.http.post("/prompt", json=body) as response:
        assert response.status == 400
    assert endpoint.runs == 0


@pytest.mark.parametrize(
    "query", ["history?max_items={}", "history?offset={}", "api/jobs?limit={}", "api/jobs?offset={}"]
)
async def test_lists_accept_numbers_beyond_64_bits(query: str, runpod_gateway: RunningGateway) -> None:
    status, _ = await get(runpod_gateway, f"/{query.format('9' * 20)}")
    assert status == 200


async def test_only_the_wanted_outputs_are_sent(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    workflow["9"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "other"}}
    await submit(runpod_gateway, workflow, partial_execution_targets=["9"])
    assert endpoint.inputs[await endpoint.job()]["workflow"].keys() == {"1", "9"}


# Ends


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": "FAILED", "error": "Task execution failed: KSampler (node 2): RuntimeError: no such luck\n"
          "node 2: RuntimeError: no such luck\nprompt_id: x\nComfyUI: connected"},
         "KSampler (node 2): RuntimeError: no such luck"),
        ({"status": "FAILED", "error": json.dumps({"error_type": "<class 'ValueError'>", "error_message": "odd",
                                                    "error_traceback": "Traceback"})}, "ValueError: odd"),
        ({"status": "FAILED"}, "RunPodError: the job failed at the endpoint, which gave no reason"),
        ({"status": "TIMED_OUT"}, "RunPodTimeoutError: RunPod ended the job, which took longer"),
        ({"status": "COMPLETED", "output": {"error": "no luck"}}, "RunPodError: no luck"),
        ({"status": "COMPLETED", "output": [1]}, "RunPodError: the endpoint's reply has no images"),
    ],
    ids=["of our worker", "of the SDK", "missing", "timed out", "returned", "of another worker"],
)  # fmt: skip
async def test_a_failed_job_reports_its_reason(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway, answer: dict[str, Any], said: str
) -> None:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "KSampler"
    asking = asyncio.create_task(runpod_gateway.prompt_sync(workflow))
    endpoint.says(await endpoint.job(), **answer)
    status, body = await asking
    assert status == 500
    assert body["detail"].startswith(said)
    assert "ComfyUI: connected" not in body["detail"]


async def test_a_refusal_of_the_worker_is_reported_by_node(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    said = {
        "status": "error",
        "error_type": "validation_failed",
        "detail": "the workflow cannot run here",
        "retryable": False,
        "node_errors": {"2": ["CheckpointLoaderSimple: no such file", 5], "3": "no list"},
    }
    asking = asyncio.create_task(runpod_gateway.prompt_sync(invert_workflow()))
    endpoint.says(await endpoint.job(), "FAILED", error="Validation failed: …", output=said)
    status, body = await asking
    assert (status, body["type"], body["detail"]) == (400, "validation_failed", "the workflow cannot run here")
    assert body["node_errors"] == {"2": ["CheckpointLoaderSimple: no such file", "5"]}
    prompt_id = await submit(runpod_gateway, invert_workflow(1))
    endpoint.says(await endpoint.job(2), "FAILED", error="Validation failed: …", output=said)
    messages = dict((await history(runpod_gateway, prompt_id))["status"]["messages"])
    assert messages["execution_error"]["node_errors"] == body["node_errors"]


async def test_the_error_names_the_node_that_failed_in_the_worker(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    said = {
        "error_type": "task_failed",
        "detail": "ImageInvert (node 2): RuntimeError: no such luck",
        "node_errors": {"2": ["RuntimeError: no such luck"]},
        "node": {"id": "2", "type": "ImageInvert", "exception_type": "RuntimeError"},
        "traceback_tail": ["in a file", "no such luck"],
    }
    prompt_id = await submit(runpod_gateway)
    endpoint.says(await endpoint.job(), "FAILED", error="Task execution failed: …", output=said)
    error = dict((await history(runpod_gateway, prompt_id))["status"]["messages"])["execution_error"]
    assert (error["node_id"], error["node_type"]) == ("2", "ImageInvert")
    assert (error["exception_type"], error["exception_message"]) == ("RuntimeError", "no such luck")
    async with runpod_gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
        assert (response.status, (await response.json())["node_errors"]) == (500, {"2": ["RuntimeError: no such luck"]})


async def test_a_job_that_runpod_forgot_fails_with_that_reason(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    prompt_id = await submit(runpod_gateway)
    del endpoint.jobs[await endpoint.job()]
    assert "RunPod no longer knows the job job-1" in error_of(await history(runpod_gateway, prompt_id))


async def test_a_cancelled_job_that_was_not_sent_yet_is_never_sent(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    endpoint.refusals += [503] * 3
    slow = replace(QUICK, send_backoff=Backoff(0.3, 0.3))
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path, times=slow)) as gateway:
        prompt_id = await submit(gateway)
        await endpoint.until(lambda: endpoint.runs > 0)
        async with gateway.http.post("/queue", json={"delete": [prompt_id]}) as response:
            assert response.status == 200
        entry = await history(gateway, prompt_id)
        assert entry["status"]["messages"][-1][0] == "execution_interrupted"
        assert (await get(gateway, "/queue"))[1]["queue_pending"] == []
        after = await submit(gateway, invert_workflow(5))
        job = await endpoint.job()
        assert endpoint.inputs[job]["workflow"]["1"]["inputs"]["color"] == 5
        endpoint.complete(job, base64_image(DATA))
        await history(gateway, after)
    assert len(endpoint.inputs) == 1


@pytest.mark.parametrize("state", ["IN_QUEUE", "IN_PROGRESS"])
async def test_a_cancelled_job_is_cancelled_at_runpod_and_ends_as_interrupted(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway, state: str
) -> None:
    prompt_id = str(uuid4())
    asking = asyncio.create_task(runpod_gateway.prompt_sync(invert_workflow(), prompt_id=prompt_id))
    job = await endpoint.job()
    endpoint.says(job, state)
    await endpoint.looked(job)
    async with runpod_gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
    assert (await asking)[0] == 409
    entry = await history(runpod_gateway, prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert endpoint.cancelled == [job]
    # The same request again starts a new run.
    asking = asyncio.create_task(runpod_gateway.prompt_sync(invert_workflow(), prompt_id=prompt_id))
    endpoint.complete(await endpoint.job(2), base64_image(DATA))
    assert (await asking)[0] == 200


async def test_the_frontends_cancel_button_interrupts_only_the_running_prompt(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    running, waiting = (
        await submit(runpod_gateway, invert_workflow(1)),
        await submit(runpod_gateway, invert_workflow(2)),
    )
    job = await endpoint.job()
    endpoint.says(job, "IN_PROGRESS")
    await endpoint.job(2)

    async def queue() -> Any:
        return (await get(runpod_gateway, "/queue"))[1]

    await until(queue, lambda queue: [item[1] for item in queue["queue_running"]] == [running])
    async with runpod_gateway.http.post("/interrupt") as response:
        assert response.status == 200
    await history(runpod_gateway, running)
    assert [item[1] for item in (await queue())["queue_pending"]] == [waiting]
    assert endpoint.cancelled == [job]


async def test_clearing_the_queue_cancels_waiting_jobs_at_runpod_and_keeps_running_ones(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    running, waiting = [await submit(runpod_gateway, invert_workflow(number)) for number in (1, 2)]
    jobs = [await endpoint.job(number) for number in (1, 2)]
    endpoint.says(jobs[0], "IN_PROGRESS")
    await until(lambda: get(runpod_gateway, "/queue"), lambda answer: bool(answer[1]["queue_running"]))
    async with runpod_gateway.http.post("/queue", json={"clear": True}) as response:
        assert response.status == 200
    await history(runpod_gateway, waiting)
    assert endpoint.cancelled == [jobs[1]]
    endpoint.complete(jobs[0], base64_image(DATA))
    assert (await history(runpod_gateway, running))["status"]["completed"] is True


async def test_a_gpu_fault_of_one_worker_does_not_disable_the_endpoint(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    asking = asyncio.create_task(runpod_gateway.prompt_sync(invert_workflow()))
    said = "Task execution failed: ImageInvert (node 2): RuntimeError: CUDA error: an illegal memory access"
    endpoint.says(await endpoint.job(), "FAILED", error=said)
    assert (await asking)[1]["detail"].endswith("CUDA error: an illegal memory access")
    assert (await get(runpod_gateway, "/health/ready"))[0] == 200


async def test_jobs_that_finish_out_of_order_are_all_answered(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    asking = [asyncio.create_task(runpod_gateway.prompt_sync(invert_workflow(tag))) for tag in range(8)]
    await endpoint.job(8)
    for job in reversed(list(endpoint.inputs)):
        done = asking[endpoint.inputs[job]["workflow"]["1"]["inputs"]["color"]]
        endpoint.complete(job, base64_image(DATA))
        status, _ = await done
        assert status == 200


# Restarts


async def test_a_restart_continues_sent_jobs_and_runs_each_once(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    prompt_ids = [str(uuid4()) for _ in range(6)]
    settings = endpoint.settings(tmp_path, shutdown_grace_seconds=0)
    async with running_gateway(NOWHERE, **settings) as gateway:
        for tag, prompt_id in enumerate(prompt_ids):
            await submit(gateway, invert_workflow(tag), prompt_id=prompt_id)
        await endpoint.job(6)
        endpoint.complete("job-1", base64_image(DATA))
        await history(gateway, prompt_ids[0])
    async with running_gateway(NOWHERE, **settings) as gateway:
        # The finished job is known. Callers can wait for the others, which finish in any order.
        assert (await history(gateway, prompt_ids[0]))["status"]["completed"] is True
        asking = {
            job: asyncio.create_task(gateway.prompt_sync(invert_workflow(tag), prompt_id=prompt_id))
            for tag, (prompt_id, job) in enumerate(zip(prompt_ids, endpoint.inputs, strict=True))
        }
        assert (await asking.pop("job-1"))[0] == 200
        assert (await gateway.prompt_sync(invert_workflow(50), prompt_id=prompt_ids[0]))[0] == 409
        # A job without a waiting caller stays in the queue longer than the others.
        await submit(gateway, invert_workflow(99))
        for job in reversed(list(asking)):
            endpoint.complete(job, base64_image(DATA))
            assert (await asking[job])[0] == 200
        assert endpoint.runs == 7


async def test_a_stop_during_sending_waits_for_the_reply(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    endpoint.refusals.append("late")
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        prompt_id = await submit(gateway)
        job = await endpoint.job()
    endpoint.complete(job, base64_image(DATA))
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        assert (await history(gateway, prompt_id))["status"]["completed"] is True
    assert endpoint.runs == 1


@pytest.mark.parametrize("step", ["sending", "taken_back", "accepted"])
async def test_a_stop_while_an_attempt_is_recorded_neither_loses_nor_repeats_the_job(
    step: str, endpoint: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, reached, stopping = getattr(JobAttempts, step), asyncio.Event(), asyncio.Event()

    async def slow(attempts: JobAttempts, *given: str) -> None:
        holds = not reached.is_set()
        if step == "sending":
            await write(attempts, *given)
        reached.set()
        if holds:
            await stopping.wait()
        if step != "sending":
            await write(attempts, *given)

    monkeypatch.setattr(JobAttempts, step, slow)
    if step == "taken_back":
        endpoint.refusals.append(429)
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        prompt_id = await submit(gateway)
        await reached.wait()
        asyncio.get_running_loop().call_later(0.2, stopping.set)
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        endpoint.complete(await endpoint.job(), base64_image(DATA))
        assert (await history(gateway, prompt_id))["status"]["completed"] is True
    assert len(endpoint.inputs) == 1


async def test_a_result_in_the_journal_survives_a_restart_without_another_request(
    endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    settings = endpoint.settings(tmp_path)
    async with running_gateway(NOWHERE, **settings) as gateway:
        prompt_id = await submit(gateway)
        await endpoint.job()
    reply = json.dumps({"output": {"images": [base64_image(DATA)]}})
    with _journal(tmp_path) as database:
        assert database.execute("UPDATE attempts SET reply = ?", (reply.encode(),)).rowcount == 1
    asked = endpoint.asked.get("job-1", 0)
    async with running_gateway(NOWHERE, **settings) as gateway:
        assert (await history(gateway, prompt_id))["status"]["completed"] is True
    assert endpoint.asked.get("job-1", 0) == asked


async def test_finished_jobs_leave_no_attempts_in_the_journal(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        prompt_ids = [await submit(gateway, invert_workflow(number)) for number in range(3)]
        jobs = [await endpoint.job(number) for number in (1, 2, 3)]
        endpoint.complete(jobs[0], base64_image(DATA))
        endpoint.says(jobs[1], "FAILED", error="no such luck")
        async with gateway.http.delete(f"/prompt_sync/{prompt_ids[2]}") as response:
            assert response.status == 200
        for prompt_id in prompt_ids:
            await history(gateway, prompt_id)
    with _journal(tmp_path) as database:
        assert database.execute("SELECT COUNT(*) FROM attempts").fetchall() == [(0,)]


def _fill_disk(database: sqlite3.Connection) -> None:
    """Makes each later write that needs another page fail with SQLite's own error."""
    [pages] = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")


async def _logged(lines: Lines, *prefixes: str) -> None:
    """Waits for a line whose event begins with one of these."""

    async def found() -> bool:
        return any(line["event"].startswith(prefixes) for line in lines)

    await until(found, bool)


def _large_workflow() -> dict[str, Any]:
    workflow = invert_workflow()
    workflow["2"]["_meta"] = {"title": os.urandom(100_000).hex()}
    return workflow


async def test_a_result_is_written_once_the_full_journal_has_room(
    journals: list[sqlite3.Connection], endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    prompt_id = await submit(runpod_gateway)
    job = await endpoint.job()
    large = base64.b64encode(os.urandom(400_000)).decode()
    with capture_logs() as lines:
        _fill_disk(journals[0])
        endpoint.complete(job, base64_image(large))
        await _logged(lines, "runpod.journal_failed")
        journals[0].execute("PRAGMA max_page_count = 100000")
        entry = await history(runpod_gateway, prompt_id)
    assert entry["status"]["completed"] is True
    assert endpoint.asked[job] < 20, "the result was fetched once, and kept"


async def test_the_end_of_a_job_is_written_once_the_full_journal_has_room(
    journals: list[sqlite3.Connection], endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        prompt_id = await submit(gateway)
        job = await endpoint.job()
        await endpoint.looked(job, 1)
        _fill_disk(journals[0])
        # The files are on the disk, but the journal has no room for their description.
        shown = {"3": {"text": [os.urandom(200_000).hex()]}}
        with capture_logs() as lines:
            endpoint.says(job, "FAILED", error=os.urandom(1000).hex(), output={"odd": shown})
            endpoint.complete(job, base64_image(DATA), outputs=shown)
            await _logged(lines, "runpod.journal_failed", "journal.")
        journals[0].execute("PRAGMA max_page_count = 100000")
        assert (await history(gateway, prompt_id))["status"]["completed"] is True


async def test_a_full_disk_is_named_in_the_answer_and_loses_no_prompt(
    journals: list[sqlite3.Connection], endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    prompt_id = str(uuid4())
    _fill_disk(journals[0])
    status, answer = await runpod_gateway.prompt_sync(_large_workflow(), prompt_id=prompt_id)
    assert (status, answer["type"], answer["prompt_id"]) == (503, "disk_failed", prompt_id)
    assert answer["detail"].startswith("STATE_DIR: ")
    async with runpod_gateway.http.post("/prompt", json={"prompt": _large_workflow()}) as response:
        assert (response.status, (await response.json())["error"]["type"]) == (503, "disk_failed")
    assert endpoint.runs == 0

    journals[0].execute("PRAGMA max_page_count = 100000")
    asking = asyncio.create_task(runpod_gateway.prompt_sync(_large_workflow(), prompt_id=prompt_id))
    endpoint.complete(await endpoint.job(), base64_image(DATA))
    assert (await asking)[0] == 200
    assert endpoint.runs == 1


async def test_a_stop_does_not_wait_forever_for_a_journal_that_cannot_be_written(
    endpoint: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.refusals.append("late")

    async def full(_attempts: JobAttempts, _ref: str) -> None:
        raise JournalError("the disk is full")

    async with asyncio.timeout(30):
        async with running_gateway(
            NOWHERE, **endpoint.settings(tmp_path, times=replace(QUICK, last_word_s=1.0))
        ) as gateway:
            monkeypatch.setattr(JobAttempts, "accepted", full)
            await submit(gateway)
            await endpoint.job()


async def test_repeated_cancels_are_sent_to_runpod_once(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    prompt_id = await submit(runpod_gateway)
    job = await endpoint.job()
    await endpoint.looked(job, 1)
    await asyncio.gather(
        *(runpod_gateway.http.post("/queue", json={"delete": [prompt_id]}, raise_for_status=True) for _ in range(5))
    )
    await history(runpod_gateway, prompt_id)
    assert endpoint.cancelled == [job]


# Secrets


async def test_callers_keys_are_sent_to_runpod_and_neither_shown_nor_stored(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway, tmp_path: Path
) -> None:
    secrets = {"api_key_comfy_org": "comfy-secret-1", "auth_token_comfy_org": "comfy-secret-2"}
    prompt_id = await submit(runpod_gateway, extra_data={**secrets, "extra_pnginfo": {"workflow": {"id": "w"}}})
    job = await endpoint.job()
    assert endpoint.inputs[job]["comfy_org_api_key"] == "comfy-secret-1"
    assert endpoint.inputs[job]["comfy_org_auth_token"] == "comfy-secret-2"
    assert endpoint.inputs[job]["extra_pnginfo"] == {"workflow": {"id": "w"}}
    seen = [await get(runpod_gateway, path) for path in ("/queue", f"/api/jobs/{prompt_id}")]
    endpoint.complete(job, base64_image(DATA))
    await history(runpod_gateway, prompt_id)
    seen += [await get(runpod_gateway, path) for path in ("/history", "/api/jobs", f"/api/jobs/{prompt_id}")]
    assert "comfy-secret" not in json.dumps(seen)
    assert '"workflow": {"id": "w"}' in json.dumps(seen)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"comfy-secret" not in written
    assert KEY.encode() not in written


@pytest.mark.parametrize("name", ["api_key_comfy_org", "auth_token_comfy_org"])
async def test_a_job_with_a_callers_key_is_not_sent_after_a_restart(
    name: str, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    settings = endpoint.settings(tmp_path)
    away = settings | {"runpod_endpoint_url": f"http://127.0.0.1:{free_port()}"}
    async with running_gateway(NOWHERE, **away) as gateway:
        prompt_id = await submit(gateway, extra_data={name: "comfy-secret"})
    async with running_gateway(NOWHERE, **settings) as gateway:
        assert "which are not kept, and the gateway was restarted before it ran" in error_of(
            await history(gateway, prompt_id)
        )
    assert endpoint.runs == 0


# Settings


def test_settings_that_do_not_fit_backend_runpod_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND", "runpod")
    with pytest.raises(SettingsError, match="RUNPOD_ENDPOINT_ID and RUNPOD_API_KEY are not set"):
        load(Settings)
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "abc")
    monkeypatch.setenv("RUNPOD_API_KEY", "secret")
    assert load(Settings).backend == ("runpod",)
    monkeypatch.setenv("COMFYUI_SERVER_ADDRESS", "a:1,b:2")
    with pytest.raises(SettingsError, match="COMFYUI_SERVER_ADDRESS must be one address"):
        load(Settings)
    monkeypatch.setenv("BACKEND", "comfyui,runpod")
    assert load(Settings).options().handler.queue.queue == "gateway"
    monkeypatch.setenv("QUEUE", "comfyui")
    with pytest.raises(SettingsError, match="QUEUE must be auto or gateway"):
        load(Settings)


@pytest.mark.parametrize("value", ["", "comfy", "runpod,runpod", "comfyui,runpod,x"])
def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BACKEND", value)
    with pytest.raises(SettingsError, match=r"BACKEND: .*must be comfyui, runpod or both"):
        load(Settings)


@contextmanager
def _journal(folder: Path) -> Iterator[sqlite3.Connection]:
    """Opens the journal that a stopped gateway has left."""
    database = sqlite3.connect(folder / "state" / FILE_NAME)
    try:
        with database:
            yield database
    finally:
        database.close()
