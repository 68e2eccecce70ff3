"""Requests that overlap: a cancel in progress, an id that is submitted again, an answer that belongs to another run."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from comfyui.engine import Engine
from comfyui.jobs.journal.records import JobRecord
from comfyui.jobs.queue_options import QueueOptions
from tests.support.jobs import fetch, submit
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    executions,
    handler_options,
    invert_workflow,
    prompts_are_queued,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)


async def test_a_resubmitted_id_gets_its_own_result_after_a_cancel(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(3), prompt_id=prompt_id))
    await prompts_are_queued(engine, 1)
    async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
    assert (await first)[0] == 409
    status, body = await gateway.prompt_sync(sleep_workflow(3), prompt_id=prompt_id)
    assert status == 200, "the new run got the result of the cancelled one"
    assert body["images"]


async def test_an_id_that_is_resubmitted_during_its_cancel_runs(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(3), prompt_id=prompt_id))
    await prompts_are_queued(engine, 1)
    await engine.set_faults({"delay": {"route": "/api/jobs/*", "seconds": 0.3, "times": 1}})
    first.cancel()
    await eventually(lambda: gateway.handler.waiting == 0)
    assert (await gateway.prompt_sync(sleep_workflow(3), prompt_id=prompt_id))[0] == 200


async def test_a_cancel_without_a_reply_is_retried(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"cut": {"route": "/api/jobs/*", "times": 1}})
    status, _ = await gateway.prompt_sync(sleep_workflow(30), timeout=0.3)
    assert status == 504
    await until(lambda: queue_of(engine), lambda queue: queue == ([], []))


async def test_a_submission_that_joins_a_lookup_of_its_id_is_run(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    await engine.set_faults({"delay": {"route": "/history/*", "seconds": 0.3}})
    looking = asyncio.create_task(gateway.http.get(f"/prompt_sync/{prompt_id}"))
    await eventually(lambda: requests(engine, "GET /history/{prompt_id}") > 0)
    status, _ = await gateway.prompt_sync(invert_workflow(), prompt_id=prompt_id)
    assert status == 200
    assert (await looking).status == 200


@pytest.mark.parametrize("when", ["in flight", "finished"])
async def test_an_attached_id_refuses_another_body(engine: Engine, when: str) -> None:
    prompt_id = str(uuid4())
    async with running_gateway(engine.url) as before, running_gateway(engine.url) as after:
        first = asyncio.create_task(before.prompt_sync(sleep_workflow(600), prompt_id=prompt_id))
        await prompts_are_queued(engine, 1)
        looking = asyncio.create_task(after.http.get(f"/prompt_sync/{prompt_id}"))
        await eventually(lambda: after.handler.waiting > 0)
        await asyncio.sleep(0.2)
        if when == "finished":
            engine.wake(prompt_id)
            await looking
        status, body = await after.prompt_sync(sleep_workflow(600, tag=1), prompt_id=prompt_id)
        assert (status, body.get("type")) == (409, "conflict")
        engine.wake(prompt_id)
        assert (await after.prompt_sync(sleep_workflow(600), prompt_id=prompt_id))[0] == 200
        assert (await looking).status == 200
        assert (await first)[0] == 200
    assert executions(engine) == {prompt_id: 1}


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_request_waits_for_a_hanging_cancel_only_until_its_timeout(
    gateway: RunningGateway, engine: Engine, method: str
) -> None:
    prompt_id = str(uuid4())
    first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(3), prompt_id=prompt_id))
    await prompts_are_queued(engine, 1)
    await engine.set_faults({"hang": {"route": "/api/jobs/*"}})
    first.cancel()
    await eventually(lambda: gateway.handler.waiting == 0)
    async with asyncio.timeout(30):
        if method == "POST":
            status, body = await gateway.prompt_sync(sleep_workflow(3), prompt_id=prompt_id, timeout=0.3)
        else:
            async with gateway.http.get(f"/prompt_sync/{prompt_id}?timeout=0.3") as response:
                status, body = response.status, await response.json()
    assert (status, body["type"], body["prompt_id"]) == (504, "timeout", prompt_id)
    engine.faults.clear()


async def test_a_hanging_cancel_does_not_block_the_stop_of_the_gateway(engine: Engine) -> None:
    async with running_gateway(engine.url, changed=handler_options(last_cancels_s=0.3)) as gateway:
        first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(3)))
        await prompts_are_queued(engine, 1)
        await engine.set_faults({"hang": {"route": "/api/jobs/*"}})
        first.cancel()
        await eventually(lambda: gateway.handler.waiting == 0)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 20


async def test_a_cancel_that_comfyui_refused_is_not_reported_as_done(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id))
    await prompts_are_queued(engine, 1)
    await engine.set_faults({"status": {"route": "/api/jobs/*"}})
    async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert (response.status, (await response.json())["prompt_id"]) == (502, prompt_id)
    assert (await first)[0] == 409
    engine.faults.clear()
    # The gateway repeats the cancel, so that no prompt runs without a caller.
    await until(lambda: queue_of(engine), lambda queue: queue == ([], []))


@pytest.mark.parametrize(("answered", "kind"), [(401, "credentials_refused"), (413, "server_error")])
async def test_a_submission_that_comfyui_refuses_with_401_or_413_is_not_repeated(
    gateway: RunningGateway, engine: Engine, answered: int, kind: str
) -> None:
    await engine.set_faults({"status": {"route": "/prompt", "method": "POST", "status": answered}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert (status, body["type"]) == (502, kind)
    assert requests(engine, "POST /prompt") == 1


async def test_a_failed_check_of_a_cached_file_does_not_fail_the_prompt(
    gateway: RunningGateway, engine: Engine
) -> None:
    await gateway.prompt_sync(invert_workflow())
    await engine.set_faults({"status": {"route": "/view", "method": "HEAD", "status": 500}})
    assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_a_prompt_that_ran_out_of_memory_gets_the_result_of_its_second_run(engine: Engine) -> None:
    await engine.set_faults({"out_of_memory": {"class_type": "SaveImage"}})
    async with running_gateway(engine.url, oom_retries=1) as gateway:
        status, body = await gateway.prompt_sync(sleep_workflow(3))
    assert status == 200
    assert executions(engine)[body["prompt_id"]] == 2


async def test_an_empty_idempotency_key_is_refused(gateway: RunningGateway) -> None:
    headers = {"Idempotency-Key": ""}
    async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}, headers=headers) as response:
        assert response.status == 422


async def test_a_job_that_ends_during_a_lookup_is_reported(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends between the journal's answer and the wait, so a wait for its end would never return."""
    async with running_gateway(engine.url, changed=handler_options(queue=QueueOptions(ahead=0))) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow())
        journal = gateway.handler.journal
        get = journal.get

        async def get_and_end(asked: str) -> JobRecord | None:
            record = await get(asked)
            monkeypatch.setattr(journal, "get", get)
            async with gateway.http.delete(f"/prompt_sync/{asked}") as response:
                assert response.status == 200
            return record

        monkeypatch.setattr(journal, "get", get_and_end)
        status, body = await fetch(gateway.http, prompt_id, 5)
        assert (status, body["type"]) == (409, "task_cancelled")
