"""Jobs when the gateway, ComfyUI or both are killed (docs/jobs.md)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from comfyui.jobs.journal.records import State
from comfyui.jobs.journal.sqlite import FILE_NAME, SqliteJournal
from comfyui.jobs.journal.writes import Pause, PutBack
from tests.support.jobs import ASYNC, begins, fetch, listed, look, state_of, submit, without_reading
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, engine_process, gateway_process
from tests.support.running import executions, invert_workflow, queue_of, sleep_workflow, until


async def test_jobs_survive_a_kill_of_the_gateway(tmp_path: Path, engine: Engine) -> None:
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        done = await submit(gateway.http, invert_workflow(1), labels={"at": "done"})
        _, result = await fetch(gateway.http, done)
        assert set(result["timings"]["nodes"]) == set(invert_workflow())
        running = await submit(gateway.http, sleep_workflow(1.5, tag=2))
        await begins(gateway.http, running)
        waiting = [await submit(gateway.http, invert_workflow(tag)) for tag in range(3, 10)]
        await gateway.kill()
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        status, kept = await look(gateway.http, done)
        assert (status, without_reading(kept)) == (200, without_reading(result))
        for prompt_id in (running, *waiting):
            status, body = await fetch(gateway.http, prompt_id)
            assert (status, body["prompt_id"]) == (200, prompt_id)
        assert [job["prompt_id"] for job in (await listed(gateway.http, "?label.at=done"))["jobs"]] == [done]
    assert executions(engine) == dict.fromkeys([done, running, *waiting], 1)


@contextlib.asynccontextmanager
async def killed(port: str, **settings: str) -> AsyncIterator[GatewayProcess]:
    """Runs ComfyUI on this port and a gateway, and kills both at the end."""
    async with engine_process("--port", port) as address, gateway_process(address, **settings) as gateway:
        yield gateway
        await gateway.kill()


async def test_jobs_survive_a_kill_of_gateway_and_comfyui(tmp_path: Path) -> None:
    port = str(free_port())
    async with killed(port, **state_of(tmp_path)) as gateway:
        running = await submit(gateway.http, sleep_workflow(2, tag=1))
        await begins(gateway.http, running)
        waiting = await submit(gateway.http, invert_workflow(2))
    async with engine_process("--port", port) as address, gateway_process(address, **state_of(tmp_path)) as gateway:
        for prompt_id in (running, waiting):
            status, body = await fetch(gateway.http, prompt_id)
            assert (status, body["prompt_id"]) == (200, prompt_id)
        again = [line for line in gateway.lines if line["event"] == "prompt.again"]
    assert [(line["prompt_id"], line["reason"], line["server"]) for line in again] == [
        (running, "prompt_lost", f"127.0.0.1:{port}")
    ]


async def test_the_retries_of_a_lost_job_count_across_restarts(tmp_path: Path) -> None:
    port = str(free_port())
    settings = {**state_of(tmp_path), "LOST_PROMPT_RETRIES": "0"}
    async with killed(port, **settings) as gateway:
        running = await submit(gateway.http, sleep_workflow(20, tag=1))
        await begins(gateway.http, running)
    async with engine_process("--port", port) as address, gateway_process(address, **settings) as gateway:
        status, body = await fetch(gateway.http, running)
        assert (status, body["type"]) == (502, "prompt_lost")
        assert (await listed(gateway.http, "?status=lost"))["jobs"][0]["prompt_id"] == running


@pytest.mark.parametrize("cleared", [False, True])
async def test_a_lost_job_that_waits_again_runs_or_is_cleared_after_a_restart(tmp_path: Path, *, cleared: bool) -> None:
    """ComfyUI lost the job, and no server has taken it since: it counts as running and waits in the gateway."""
    port = str(free_port())
    async with killed(port, **state_of(tmp_path)) as gateway:
        prompt_id = await submit(gateway.http, sleep_workflow(1, tag=1))
        await begins(gateway.http, prompt_id)
    async with SqliteJournal(tmp_path) as journal:
        record = await journal.get(prompt_id)
        assert record is not None
        assert record.state is State.RUNNING
        assert await journal.write(PutBack(record.fence))
        await journal.write(Pause(cleared))
    settings = state_of(tmp_path) | {"QUEUE": "gateway"}
    async with engine_process("--port", port) as address, gateway_process(address, **settings) as gateway:
        assert (await gateway.logged("jobs.found"))["waiting"] == 1
        if cleared:
            async with gateway.http.post("/queue", json={"clear": True}) as response:
                assert response.status == 200, await response.text()
        status, body = await fetch(gateway.http, prompt_id)
        assert (status, body.get("type")) == ((409, "task_cancelled") if cleared else (200, None))
        async with gateway.http.get(f"/console/jobs/{prompt_id}") as response:
            assert "<dt>Times that a server lost the job</dt><dd>1</dd>" in await response.text()


async def test_a_cancel_survives_a_restart(tmp_path: Path, engine: Engine) -> None:
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        running = await submit(gateway.http, sleep_workflow(2, tag=1))
        await begins(gateway.http, running)
        waiting = [await submit(gateway.http, invert_workflow(tag)) for tag in range(2, 9)]
        for prompt_id in (waiting[-1], running):
            async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
                assert response.status == 200
        await gateway.kill()
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        for prompt_id in (waiting[-1], running):
            status, body = await look(gateway.http, prompt_id)
            assert (status, body["type"]) == (409, "task_cancelled")
        assert (await fetch(gateway.http, waiting[-2]))[0] == 200
    assert waiting[-1] not in executions(engine)


async def interrupted_call(gateway: GatewayProcess, engine: Engine, seconds: float = 60, **fields: Any) -> str:
    """Starts a sync call and kills the gateway while it runs; returns its id in ComfyUI."""
    call = asyncio.create_task(
        gateway.http.post("/prompt_sync", json={"prompt": sleep_workflow(seconds, tag=1), **fields}).__aenter__()
    )
    running, _ = await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
    await until(lambda: is_listed(gateway, running[0]), bool)
    await gateway.kill()
    with pytest.raises(aiohttp.ClientError):
        await call
    return running[0]


async def is_listed(gateway: GatewayProcess, prompt_id: str) -> bool:
    jobs = (await listed(gateway.http, "?status=running"))["jobs"]
    return any(job["prompt_id"] == prompt_id for job in jobs)


async def test_a_sync_call_without_an_id_is_cancelled_after_a_restart(tmp_path: Path, engine: Engine) -> None:
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        prompt_id = await interrupted_call(gateway, engine)
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
        assert (await listed(gateway.http, "?status=canceled"))["jobs"][0]["prompt_id"] == prompt_id


async def test_a_sync_call_with_an_id_waits_for_its_caller_after_a_restart(tmp_path: Path, engine: Engine) -> None:
    prompt_id = str(uuid4())
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        assert await interrupted_call(gateway, engine, 2, prompt_id=prompt_id) == prompt_id
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        status, body = await fetch(gateway.http, prompt_id)
        assert (status, body["prompt_id"]) == (200, prompt_id)
    assert executions(engine) == {prompt_id: 1}


async def test_a_sync_call_with_an_id_is_cancelled_if_its_caller_does_not_return(
    tmp_path: Path, engine: Engine
) -> None:
    prompt_id = str(uuid4())
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        await interrupted_call(gateway, engine, prompt_id=prompt_id)
    async with gateway_process(engine.url, REATTACH_SECONDS="0.2", **state_of(tmp_path)) as gateway:
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
        status, body = await until(lambda: look(gateway.http, prompt_id), lambda found: found[0] != 202)
        assert (status, body["type"]) == (409, "task_cancelled")
        assert "REATTACH_SECONDS" in body["detail"]


async def test_a_sync_call_resubmitted_as_async_survives_restarts(tmp_path: Path, engine: Engine) -> None:
    prompt_id = str(uuid4())
    settings = {"REATTACH_SECONDS": "1", **state_of(tmp_path)}
    async with gateway_process(engine.url, **settings) as gateway:
        await interrupted_call(gateway, engine, prompt_id=prompt_id)
    async with gateway_process(engine.url, **settings) as gateway:
        assert await submit(gateway.http, sleep_workflow(60, tag=1), prompt_id=prompt_id) == prompt_id
        await gateway.kill()
    async with gateway_process(engine.url, **settings) as gateway:
        await begins(gateway.http, prompt_id)
        assert (await listed(gateway.http))["jobs"][0]["kind"] == "async"
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
    assert executions(engine) == {prompt_id: 1}


async def test_an_interrupted_call_can_be_cancelled_and_a_get_does_not_run_it(tmp_path: Path, engine: Engine) -> None:
    prompt_id = str(uuid4())
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        await interrupted_call(gateway, engine, prompt_id=prompt_id)
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
        assert [job["status"] for job in (await listed(gateway.http))["jobs"]] == ["canceled"]
        status, body = await fetch(gateway.http, prompt_id)
        assert (status, body["type"]) == (409, "task_cancelled")
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
    assert executions(engine) == {prompt_id: 1}


async def test_the_waiting_limit_does_not_apply_to_a_running_job_after_a_restart(
    tmp_path: Path, engine: Engine
) -> None:
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        running = await submit(gateway.http, sleep_workflow(8, tag=1))
        await begins(gateway.http, running)
        await gateway.kill()
    async with gateway_process(engine.url, MAX_QUEUED_SECONDS="0.1", **state_of(tmp_path)) as gateway:
        status, body = await fetch(gateway.http, running)
        assert status == 200, body


async def test_the_execution_time_of_a_job_counts_across_restarts(tmp_path: Path, engine: Engine) -> None:
    settings = {"MAX_EXECUTION_SECONDS": "3", **state_of(tmp_path)}
    async with gateway_process(engine.url, **settings) as gateway:
        running = await submit(gateway.http, sleep_workflow(600, tag=1))
        await begins(gateway.http, running)
        await gateway.kill()
    async with gateway_process(engine.url, **settings) as gateway:
        status, body = await fetch(gateway.http, running)
        assert (status, body["type"]) == (504, "timeout")
        assert "MAX_EXECUTION_SECONDS" in body["detail"]
        # Callers get the timeout before ComfyUI is interrupted; the job ends after the interrupt.
        failed = await until(lambda: listed(gateway.http, "?status=failed"), lambda found: bool(found["jobs"]))
        job = failed["jobs"][0]
        ran_s = datetime.fromisoformat(job["ended_at"]) - datetime.fromisoformat(job["started_at"])
        assert job["prompt_id"] == running
        assert ran_s.total_seconds() >= 3
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))


async def test_the_shutdown_leaves_jobs_to_the_next_gateway(tmp_path: Path, engine: Engine) -> None:
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        job = await submit(gateway.http, sleep_workflow(1.5, tag=1))
        await begins(gateway.http, job)
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_status() == 0
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        assert (await fetch(gateway.http, job))[0] == 200
    assert executions(engine) == {job: 1}


async def test_a_job_that_needs_its_secrets_fails_with_a_reason_after_a_restart(tmp_path: Path, engine: Engine) -> None:
    secret = {"api_key_comfy_org": "comfyui-secret-key"}
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(60, tag=1))
        ids = [await submit(gateway.http, invert_workflow(tag), extra_data=secret) for tag in range(2, 8)]
        async with gateway.http.post(
            "/prompt_sync", json={"prompt": invert_workflow(9), "extra_data": secret}, headers=ASYNC
        ) as response:
            assert "comfyui-secret-key" not in await response.text()
        await begins(gateway.http, blocker)
        await gateway.kill()
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
            assert response.status == 200
        status, body = await fetch(gateway.http, ids[-1])
        assert status == 500
        assert "extra_data" in body["detail"]
    assert ids[-1] not in executions(engine)


async def test_an_unjournaled_call_without_an_id_is_removed_from_comfyui(tmp_path: Path, engine: Engine) -> None:
    """ComfyUI has a prompt that the journal lacks; prompts of another gateway stay."""
    others = {"prompt": sleep_workflow(600), "extra_data": {"comfyui_gateway": {"journal": "another"}}}
    async with aiohttp.ClientSession(engine.url) as http, http.post("/prompt", json=others) as response:
        other_id = (await response.json())["prompt_id"]
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        call = asyncio.create_task(call_without_id(gateway, invert_workflow(2)))
        _, (ours,) = await until(lambda: queue_of(engine), lambda queue: len(queue[1]) == 1)
        await gateway.kill()
        await call
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database, database:
        # The kill may come before or after the journal was written, so the test removes the record.
        database.execute("DELETE FROM jobs")
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        told = await gateway.logged("prompt.cancelled")
        assert (told["prompt_id"], told["reason"]) == (ours, "restart")
        assert await queue_of(engine) == ([other_id], [])
    assert ours not in executions(engine)


async def call_without_id(gateway: GatewayProcess, workflow: dict[str, Any]) -> None:
    """Makes a sync call without an id; the kill of the gateway ends it."""
    with contextlib.suppress(aiohttp.ClientError):
        async with gateway.http.post("/prompt_sync", json={"prompt": workflow}) as response:
            await response.read()


async def test_a_generated_id_that_the_caller_received_counts_as_its_own(tmp_path: Path, engine: Engine) -> None:
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        body, accept = {"prompt": sleep_workflow(2, tag=1)}, {"Accept": "text/event-stream"}
        async with gateway.http.post("/prompt_sync", json=body, headers=accept) as response:
            prompt_id = response.headers["X-Prompt-Id"]
            await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
            await gateway.kill()
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        status, result = await fetch(gateway.http, prompt_id)
        assert (status, result["prompt_id"]) == (200, prompt_id)
    assert executions(engine) == {prompt_id: 1}


async def sync_call(gateway: GatewayProcess, prompt_id: str, workflow: dict[str, Any], **fields: Any) -> None:
    """Makes a sync call with this id; the kill of the gateway ends it."""
    with contextlib.suppress(aiohttp.ClientError):
        body = {"prompt": workflow, "prompt_id": prompt_id, **fields}
        async with gateway.http.post("/prompt_sync", json=body) as response:
            await response.read()


async def waiting_requests(gateway: GatewayProcess) -> int:
    async with gateway.http.get("/health") as response:
        waiting: int = (await response.json())["waiting_requests"]
        return waiting


async def test_a_running_sync_call_made_async_continues_after_a_restart(tmp_path: Path, engine: Engine) -> None:
    prompt_id = str(uuid4())
    workflow = sleep_workflow(8, tag=1)
    workflow["1"]["_meta"] = {"title": "x" * 300_000}  # the journal keeps no body of that size for a sync call
    settings = {**state_of(tmp_path), "REATTACH_SECONDS": "0.1"}
    async with gateway_process(engine.url, **settings) as gateway:
        call = asyncio.create_task(sync_call(gateway, prompt_id, workflow))
        await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
        assert await submit(gateway.http, workflow, prompt_id=prompt_id) == prompt_id
        (job,) = (await listed(gateway.http))["jobs"]
        assert job["prompt_id"] == prompt_id
        await gateway.kill()
        await call
    async with gateway_process(engine.url, **settings) as gateway:
        status, body = await fetch(gateway.http, prompt_id)
        assert (status, body["prompt_id"]) == (200, prompt_id)
    assert executions(engine) == {prompt_id: 1}


async def test_a_waiting_sync_call_made_async_runs_after_a_restart(tmp_path: Path) -> None:
    """No ComfyUI has the prompt yet, so only the journal can provide it."""
    prompt_id = str(uuid4())
    port = str(free_port())
    async with AsyncExitStack() as first:
        async with engine_process("--port", port) as address:
            gateway = await first.enter_async_context(gateway_process(address, **state_of(tmp_path)))
        workflow = invert_workflow(1)
        call = asyncio.create_task(sync_call(gateway, prompt_id, workflow))
        await until(lambda: waiting_requests(gateway), lambda waiting: waiting == 1)
        assert await submit(gateway.http, workflow, prompt_id=prompt_id) == prompt_id
        await gateway.kill()
        await call
    async with (
        engine_process("--port", port) as address,
        gateway_process(address, **state_of(tmp_path)) as gateway,
    ):
        status, body = await fetch(gateway.http, prompt_id)
        assert (status, body["prompt_id"]) == (200, prompt_id)


async def test_a_sync_call_from_before_a_restart_can_be_made_async(tmp_path: Path, engine: Engine) -> None:
    prompt_id = str(uuid4())
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        await interrupted_call(gateway, engine, prompt_id=prompt_id)
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        assert await submit(gateway.http, sleep_workflow(60, tag=1), prompt_id=prompt_id) == prompt_id
        await gateway.kill()
    async with gateway_process(engine.url, REATTACH_SECONDS="0", **state_of(tmp_path)) as gateway:
        await begins(gateway.http, prompt_id)
        assert await queue_of(engine) == ([prompt_id], [])
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
    assert executions(engine) == {prompt_id: 1}
