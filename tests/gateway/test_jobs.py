"""Async jobs without a restart: submit, leave, and return for the result."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.queue_options import QueueOptions
from tests.support.jobs import ASYNC, fetch, listed, look, status_is, submit, without_reading
from tests.support.running import (
    RunningGateway,
    executions,
    handler_options,
    invert_workflow,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)


async def test_a_job_is_accepted_at_once_and_its_result_can_be_fetched_later(tmp_path: Path, engine: Engine) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        async with gateway.http.post(
            "/prompt_sync", json={"prompt": sleep_workflow(0.5)}, headers={"Prefer": "respond-async"}
        ) as response:
            body = await response.json()
            assert response.status == 202
            assert response.headers["Location"] == f"/prompt_sync/{body['prompt_id']}"
            assert response.headers["Preference-Applied"] == "respond-async"
            assert int(response.headers["Retry-After"]) > 0
        assert body["status"] == "queued"
        assert body["position"] == 0
        assert body["created_at"].endswith("Z")
        assert "stored" not in body
        running = await status_is(gateway.http, body["prompt_id"], "running")
        assert running["started_at"] >= running["created_at"]
        status, result = await fetch(gateway.http, body["prompt_id"])
        assert (status, result["status"], len(result["images"])) == (200, "success", 1)
        status, again = await look(gateway.http, body["prompt_id"])
        assert (status, without_reading(again)) == (200, without_reading(result))
        async with gateway.http.get(result["images"][0]["url"]) as response:
            assert response.status == 200
    assert executions(engine) == {body["prompt_id"]: 1}
    # The queue of ComfyUI is not asked for while the job waits or when its status is read.
    assert requests(engine, "GET /queue") == 0


async def test_prefer_can_be_a_query_parameter_and_can_wait_for_the_result(gateway: RunningGateway) -> None:
    wanted = {"prefer": "respond-async, wait=20"}
    async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}, params=wanted) as response:
        assert response.status == 200
        assert (await response.json())["status"] == "success"
    wanted = {"prefer": "respond-async, wait=0.1"}
    async with gateway.http.post("/prompt_sync", json={"prompt": sleep_workflow(5)}, params=wanted) as response:
        body = await response.json()
        assert response.status == 202
        assert response.headers["Preference-Applied"] == "respond-async, wait=0.1"
        assert body["stored"] is False, "without STATE_DIR a job is lost with the gateway"
    async with gateway.http.delete(f"/prompt_sync/{body['prompt_id']}") as response:
        assert response.status == 200


async def test_jobs_run_in_submission_order_and_few_are_sent_ahead(engine: Engine) -> None:
    options = handler_options(queue=QueueOptions(ahead=2))
    async with running_gateway(engine.url, changed=options) as gateway:
        first = await submit(gateway.http, sleep_workflow(60))
        ids = [first, *[await submit(gateway.http, sleep_workflow(0.05, tag=tag)) for tag in range(1, 8)]]
        running, pending = await until(lambda: queue_of(engine), lambda queue: len(queue[0]) + len(queue[1]) == 2)
        assert running + pending == ids[:2]
        assert (await look(gateway.http, ids[-1]))[1]["position"] == 5
        async with gateway.http.delete(f"/prompt_sync/{first}") as response:
            assert response.status == 200
        assert (await fetch(gateway.http, ids[-1]))[0] == 200
    assert list(executions(engine)) == ids
    assert set(executions(engine).values()) == {1}


async def test_a_second_submission_with_the_same_id_is_the_same_job(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    for _ in range(2):
        assert await submit(gateway.http, sleep_workflow(0.3), prompt_id=prompt_id) == prompt_id
    other = {"prompt": sleep_workflow(0.4), "prompt_id": prompt_id}
    async with gateway.http.post("/prompt_sync", json=other, headers=ASYNC) as response:
        assert (response.status, (await response.json())["type"]) == (409, "conflict")
    status, result = await gateway.prompt_sync(sleep_workflow(0.3), prompt_id=prompt_id)
    assert status == 200
    async with gateway.http.post(
        "/prompt_sync", json={"prompt": sleep_workflow(0.3), "prompt_id": prompt_id}, headers=ASYNC
    ) as response:
        assert (response.status, (await response.json())["outputs"]) == (200, result["outputs"])
    assert executions(engine) == {prompt_id: 1}


async def test_a_sync_caller_that_times_out_does_not_cancel_an_async_job(
    gateway: RunningGateway, engine: Engine
) -> None:
    prompt_id = await submit(gateway.http, sleep_workflow(600), prompt_id=str(uuid4()))
    status, body = await gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id, timeout=0.2)
    assert (status, body["type"]) == (504, "timeout")
    engine.wake(prompt_id)
    assert (await fetch(gateway.http, prompt_id))[0] == 200
    assert executions(engine) == {prompt_id: 1}


@pytest.mark.parametrize("where", ["waiting", "running"])
async def test_a_cancelled_job_has_the_state_canceled_and_may_run_again(engine: Engine, where: str) -> None:
    async with running_gateway(engine.url, changed=handler_options(queue=QueueOptions(ahead=1))) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(20))
        await status_is(gateway.http, blocker, "running")
        waiting = await submit(gateway.http, invert_workflow(3), prompt_id=str(uuid4()))
        prompt_id = blocker if where == "running" else waiting
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert (response.status, (await response.json())["status"]) == (200, "cancelled")
        status, body = await look(gateway.http, prompt_id)
        assert (status, body["type"]) == (409, "task_cancelled")
        job = next(job for job in (await listed(gateway.http))["jobs"] if job["prompt_id"] == prompt_id)
        assert (job["status"], job["error"]["type"]) == ("canceled", "task_cancelled")
        if where == "running":
            assert (await fetch(gateway.http, waiting))[0] == 200
        else:
            await submit(gateway.http, invert_workflow(3), prompt_id=waiting)
            async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
                assert response.status == 200
            assert (await fetch(gateway.http, waiting))[0] == 200
            assert (await listed(gateway.http, "?status=succeeded"))["jobs"][0]["run"] == 2


async def test_a_cancel_after_the_end_of_the_job_is_reported_as_not_found(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends after DELETE has read its state and before DELETE looks for its task."""
    prompt_id = await submit(gateway.http, sleep_workflow(0.3))
    await status_is(gateway.http, prompt_id, "running")
    read, journal = gateway.handler.journal.get, gateway.handler.journal
    stale = await read(prompt_id)

    async def read_before_the_end(wanted: str) -> JobRecord | None:
        monkeypatch.setattr(journal, "get", read)
        await until(lambda: read(wanted), lambda record: record is not None and record.state is State.SUCCEEDED)
        return stale

    monkeypatch.setattr(journal, "get", read_before_the_end)
    async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert (response.status, (await response.json())["type"]) == (404, "not_found")
    assert (await fetch(gateway.http, prompt_id))[0] == 200


async def test_a_refused_workflow_fails_its_job(gateway: RunningGateway, engine: Engine) -> None:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "NoSuchNode"
    prompt_id = await submit(gateway.http, workflow, prompt_id=str(uuid4()))
    status, body = await fetch(gateway.http, prompt_id)
    assert (status, body["type"], body["prompt_id"]) == (400, "validation_failed", prompt_id)
    again = await gateway.prompt_sync(workflow, prompt_id=prompt_id)
    assert (again[0], again[1]["detail"]) == (400, body["detail"])
    assert requests(engine, "POST /prompt") == 1, "a refusal is repeated without asking ComfyUI"


async def test_a_job_waits_for_a_server_that_is_down(tmp_path: Path) -> None:
    async with Engine() as gone:
        address = gone.url
    async with running_gateway(address, ready=False, state_dir=tmp_path) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow())
        assert (await look(gateway.http, prompt_id))[1]["status"] == "queued"


async def test_limits_for_execution_time_queue_length_and_waiting_time_hold(engine: Engine) -> None:
    async with running_gateway(engine.url, max_execution_seconds=0.4, max_queued_jobs=1) as gateway:
        slow = await submit(gateway.http, sleep_workflow(30))
        status, body = await fetch(gateway.http, slow)
        assert (status, body["type"]) == (504, "timeout")
        assert "MAX_EXECUTION_SECONDS" in body["detail"]
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
    options = handler_options(queue=QueueOptions(ahead=0, max_queued=1))
    async with running_gateway(engine.url, changed=options) as gateway:
        await submit(gateway.http, invert_workflow())
        async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}, headers=ASYNC) as response:
            body = await response.json()
            assert (response.status, body["type"]) == (429, "overloaded")
            assert "MAX_QUEUED_JOBS" in body["detail"]
            assert "Retry-After" in response.headers
    async with running_gateway(engine.url, max_queued_seconds=0.2) as gateway:
        blocker = asyncio.create_task(gateway.prompt_sync(sleep_workflow(600)))
        await until(lambda: queue_of(engine), lambda queue: len(queue[0]) == 1)
        status, body = await fetch(gateway.http, await submit(gateway.http, invert_workflow(7)))
        assert (status, body["type"]) == (504, "timeout")
        assert "MAX_QUEUED_SECONDS" in body["detail"]
        blocker.cancel()


async def test_the_limit_of_waiting_jobs_holds_for_concurrent_submissions(tmp_path: Path, engine: Engine) -> None:
    async def came(http: aiohttp.ClientSession, tag: int) -> int:
        async with http.post("/prompt_sync", json={"prompt": invert_workflow(tag)}, headers=ASYNC) as response:
            return response.status

    options = handler_options(queue=QueueOptions(ahead=0, max_queued=5))
    async with running_gateway(engine.url, changed=options, state_dir=tmp_path) as gateway:
        statuses = await asyncio.gather(*(came(gateway.http, tag) for tag in range(20)))
        assert sorted(statuses) == [202] * 5 + [429] * 15
        first = (await listed(gateway.http))["jobs"][0]["prompt_id"]
        async with gateway.http.delete(f"/prompt_sync/{first}") as response:
            assert response.status == 200
        assert [await came(gateway.http, 20), await came(gateway.http, 21)] == [202, 429]


async def test_a_waiting_caller_gets_the_time_limit_as_the_end_of_the_job(engine: Engine) -> None:
    async with running_gateway(engine.url, max_execution_seconds=0.4) as gateway:
        await gateway.http.post(f"{engine.url}/engine/faults", json={"delay": {"route": "*/cancel", "seconds": 0.3}})
        wait = {"Prefer": "respond-async, wait=20"}
        async with gateway.http.post("/prompt_sync", json={"prompt": sleep_workflow(30)}, headers=wait) as response:
            assert (response.status, response.headers["X-Prompt-Status"]) == (504, "failed")
            assert "MAX_EXECUTION_SECONDS" in (await response.json())["detail"]


async def test_the_job_list_is_filtered_by_state_and_labels_and_has_pages(gateway: RunningGateway) -> None:
    ids = [
        await submit(gateway.http, invert_workflow(tag), labels={"order": str(tag % 2), "shop": "a"}, priority=tag)
        for tag in range(4)
    ]
    for prompt_id in ids:
        assert (await fetch(gateway.http, prompt_id))[0] == 200
    status, sync = await gateway.prompt_sync(invert_workflow(9))
    assert status == 200
    newest_first = [sync["prompt_id"], *reversed(ids)]
    everything = await listed(gateway.http)
    assert [job["prompt_id"] for job in everything["jobs"]] == newest_first
    assert [job["kind"] for job in everything["jobs"]] == ["sync", *["async"] * 4]
    assert "next_cursor" not in everything
    page = await listed(gateway.http, "?limit=2")
    rest = await listed(gateway.http, f"?limit=10&cursor={page['next_cursor']}")
    assert [job["prompt_id"] for job in page["jobs"] + rest["jobs"]] == newest_first
    odd = await listed(gateway.http, "?label.order=1&label.shop=a&status=succeeded,failed")
    assert [job["prompt_id"] for job in odd["jobs"]] == [ids[3], ids[1]]
    assert (odd["jobs"][0]["labels"], odd["jobs"][0]["priority"]) == ({"order": "1", "shop": "a"}, 3)
    assert (await listed(gateway.http, "?status=queued"))["jobs"] == []


async def test_secrets_of_a_request_are_not_written_to_a_file(tmp_path: Path, engine: Engine) -> None:
    secret = "comfyui-0f0f0f0f-secret"
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        prompt_id = await submit(
            gateway.http, invert_workflow(), extra_data={"api_key_comfy_org": secret, "note": "kept-note"}
        )
        assert (await fetch(gateway.http, prompt_id))[0] == 200
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert kept
    assert secret.encode() not in kept


async def test_a_status_request_shows_the_progress_of_a_job(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = await submit(gateway.http, sleep_workflow(600))
    _, body = await until(
        lambda: look(gateway.http, prompt_id), lambda found: bool((found[1].get("progress") or {}).get("node") == "4")
    )
    assert body["progress"]["title"] == "SimulatedSleep"
    assert 0 < body["progress"]["overall"] < 1
    assert body["position"] is None
    engine.wake(prompt_id)
    status, _ = await fetch(gateway.http, prompt_id)
    assert status == 200


async def test_an_unknown_id_gets_404_at_once(gateway: RunningGateway) -> None:
    assert (await look(gateway.http, str(uuid4())))[0] == 404


async def test_a_caller_with_an_id_can_return_after_a_lost_connection(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    leaving = asyncio.create_task(gateway.prompt_sync(sleep_workflow(1), prompt_id=prompt_id))
    await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
    leaving.cancel()
    assert (await gateway.prompt_sync(sleep_workflow(1), prompt_id=prompt_id))[0] == 200
    assert executions(engine) == {prompt_id: 1}


async def abandoned(gateway: RunningGateway, engine: Engine) -> str:
    """Starts a sync call and drops its client while the prompt runs; returns the id."""
    prompt_id = str(uuid4())
    leaving = asyncio.create_task(gateway.prompt_sync(sleep_workflow(30), prompt_id=prompt_id))
    await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
    leaving.cancel()
    return prompt_id


async def state_of(gateway: RunningGateway) -> str:
    state: str = (await listed(gateway.http))["jobs"][0]["status"]
    return state


async def test_status_requests_and_lists_do_not_keep_an_abandoned_prompt(engine: Engine) -> None:
    async with running_gateway(engine.url, reattach_seconds=1) as gateway:
        prompt_id = await abandoned(gateway, engine)
        # This reads the status and the list all the time.
        while await state_of(gateway) == "running":
            await look(gateway.http, prompt_id)
        assert await until(lambda: state_of(gateway), lambda state: state == "canceled")
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_returning_caller_keeps_its_prompt_and_restarts_the_reattach_time(engine: Engine, method: str) -> None:
    async with running_gateway(engine.url, reattach_seconds=0.6, cancel_on_timeout=False) as gateway:
        prompt_id = await abandoned(gateway, engine)
        body = {"prompt": sleep_workflow(30), "prompt_id": prompt_id} if method == "POST" else None
        path = "/prompt_sync" if method == "POST" else f"/prompt_sync/{prompt_id}"
        async with gateway.http.request(method, path, json=body, params={"timeout": "1.5"}) as response:
            assert response.status == 504
        assert await state_of(gateway) == "running", "a caller waited for twice the reattach time"
        await until(lambda: state_of(gateway), lambda state: state == "canceled")
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))


async def test_the_prompt_of_a_caller_with_an_id_that_never_returns_is_cancelled(engine: Engine) -> None:
    prompt_id = str(uuid4())
    async with running_gateway(engine.url, reattach_seconds=0.3) as gateway:
        leaving = asyncio.create_task(gateway.prompt_sync(sleep_workflow(30), prompt_id=prompt_id))
        await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
        leaving.cancel()
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
        await until(lambda: listed(gateway.http), lambda page: page["jobs"][0]["status"] == "canceled")


async def test_a_running_sync_call_made_async_gets_the_limits_of_an_async_job(tmp_path: Path, engine: Engine) -> None:
    limits: dict[str, Any] = {"default_timeout": 1, "max_timeout": 1, "max_execution_seconds": 60}
    async with running_gateway(engine.url, state_dir=tmp_path, **limits) as gateway:
        prompt_id, workflow = str(uuid4()), sleep_workflow(600)
        call = asyncio.create_task(gateway.prompt_sync(workflow, prompt_id=prompt_id))
        await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
        assert await submit(gateway.http, workflow, prompt_id=prompt_id) == prompt_id
        assert await submit(gateway.http, workflow, prompt_id=prompt_id) == prompt_id
        async with gateway.http.post(
            "/prompt_sync", json={"prompt": invert_workflow(), "prompt_id": prompt_id}, headers=ASYNC
        ) as response:
            assert response.status == 409
        status, body = await call
        assert (status, body["type"]) == (504, "timeout")
        record = await gateway.handler.journal.get(prompt_id)
        assert record is not None
        assert (record.kind, record.callers_id, record.state.value) == ("async", True, "running")
        engine.wake(prompt_id)
        _, result = await until(lambda: look(gateway.http, prompt_id), lambda found: found[0] == 200)
        assert result["prompt_id"] == prompt_id
    assert executions(engine) == {prompt_id: 1}


async def test_a_running_sync_call_made_async_takes_a_place_on_the_server(engine: Engine) -> None:
    async with running_gateway(engine.url, changed=handler_options(queue=QueueOptions(ahead=1))) as gateway:
        prompt_id, workflow = str(uuid4()), sleep_workflow(600)
        call = asyncio.create_task(gateway.prompt_sync(workflow, prompt_id=prompt_id))
        await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
        await submit(gateway.http, workflow, prompt_id=prompt_id)
        later = await submit(gateway.http, invert_workflow(5))
        assert await queue_of(engine) == ([prompt_id], [])
        engine.wake(prompt_id)
        assert (await call)[0] == 200
        assert (await fetch(gateway.http, later))[0] == 200
