"""ComfyUI dies during a job: which attempts count, across restarts of the gateway too, and what is quarantined."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.crashing import crash_workflow, recorded_executions, restarted_engine
from tests.support.forking import forked, serve_engine
from tests.support.jobs import begins, fetch, listed, submit
from tests.support.ports import free_port
from tests.support.processes import gateway_process
from tests.support.running import (
    RunningGateway,
    invert_workflow,
    queued_elsewhere,
    running_gateway,
    sleep_workflow,
    until,
    watching_closely,
)

LIVES = 3


@asynccontextmanager
async def short_lived_engine(port: int, folder: Path, *options: str) -> AsyncIterator[str]:
    """An engine that is killed by SIGKILL."""
    command = ("--port", str(port), "--executions-file", str(folder / "executions"), *options)
    async with forked(serve_engine, *command, environ={}, descriptor=1) as process:
        await process.output.readline()
        yield f"http://127.0.0.1:{port}"


async def remaining(gateway: RunningGateway) -> int:
    return gateway.handler.pool.backends[0].watcher.queue_remaining


async def test_a_waiting_prompt_survives_every_death_of_comfyui(tmp_path: Path) -> None:
    port = free_port()
    async with running_gateway(
        f"127.0.0.1:{port}",
        ready=False,
        changed=watching_closely(),
        lost_prompt_retries=0,
        quarantine_after=1,
        state_dir=tmp_path / "state",
    ) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(1))
        for _ in range(LIVES):
            # Its prompt thread is dead, so that all prompts in its queue wait: ours, and another client's.
            async with short_lived_engine(port, tmp_path, "--fault", "prompt_thread_dead") as engine:
                await until(lambda: remaining(gateway), lambda queued: queued == 1, timeout_s=30)
                await queued_elsewhere(engine, sleep_workflow(60))
                await until(lambda: remaining(gateway), lambda queued: queued == 2, timeout_s=30)
        assert recorded_executions(tmp_path) == {}
        async with short_lived_engine(port, tmp_path):
            status, body = await fetch(gateway.http, prompt_id)
            assert (status, body["prompt_id"]) == (200, prompt_id), body
    assert recorded_executions(tmp_path) == {prompt_id: 1}


async def test_a_job_that_kills_comfyui_is_lost_after_its_retries_across_gateway_restarts(
    tmp_path: Path,
) -> None:
    settings = {"STATE_DIR": str(tmp_path / "state"), "QUARANTINE_AFTER": "0", "LOST_PROMPT_RETRIES": "1"}
    async with restarted_engine(tmp_path) as engine:
        async with gateway_process(engine, **settings) as gateway:
            prompt_id = await submit(gateway.http, crash_workflow(1))
            await begins(gateway.http, prompt_id)
            gateway.process.kill()
            await gateway.process.wait()
        async with gateway_process(engine, **settings) as gateway:
            status, body = await fetch(gateway.http, prompt_id)
            assert (status, body["type"]) == (502, "prompt_lost"), body
            job = (await listed(gateway.http, "?status=lost"))["jobs"][0]
            assert job["prompt_id"] == prompt_id
            assert (await fetch(gateway.http, await submit(gateway.http, invert_workflow(2))))[0] == 200
    assert recorded_executions(tmp_path)[prompt_id] == 2


async def test_a_workflow_that_kills_comfyui_twice_is_quarantined_for_later_jobs_too(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    async with (
        restarted_engine(tmp_path) as engine,
        running_gateway(engine, changed=watching_closely(), state_dir=state_dir, lost_prompt_retries=5) as gateway,
    ):
        first = await submit(gateway.http, crash_workflow(1))
        status, body = await fetch(gateway.http, first)
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
        second = await submit(gateway.http, crash_workflow(1))
        status, body = await fetch(gateway.http, second)
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
        assert (await fetch(gateway.http, await submit(gateway.http, invert_workflow(2))))[0] == 200
    ran = recorded_executions(tmp_path)
    assert (ran[first], ran[second]) == (2, 0)


async def test_a_workflow_that_kills_comfyui_is_quarantined_across_kills_of_the_gateway(
    tmp_path: Path,
) -> None:
    settings = {"STATE_DIR": str(tmp_path / "state"), "LOST_PROMPT_RETRIES": "0"}
    async with restarted_engine(tmp_path) as engine:
        async with gateway_process(engine, **settings) as gateway:
            status, body = await gateway.prompt_sync(crash_workflow(1))
            assert (status, body["type"]) == (502, "prompt_lost"), body
            await gateway.kill()
        async with gateway_process(engine, **settings) as gateway:
            status, body = await gateway.prompt_sync(crash_workflow(1))
            assert (status, body["type"]) == (500, "prompt_quarantined"), body
            await gateway.kill()
        async with gateway_process(engine, **settings) as gateway:
            status, body = await gateway.prompt_sync(crash_workflow(1))
            assert (status, body["type"]) == (500, "prompt_quarantined"), body
            assert (await gateway.prompt_sync(invert_workflow(2)))[0] == 200
    assert len(recorded_executions(tmp_path)) == 3


async def test_a_job_whose_submission_kills_comfyui_is_quarantined(tmp_path: Path) -> None:
    crash = 'segfault={"route": "/prompt", "method": "POST"}'
    async with (
        restarted_engine(tmp_path, "--fault", crash) as engine,
        running_gateway(engine, changed=watching_closely()) as gateway,
    ):
        status, body = await fetch(gateway.http, await submit(gateway.http, invert_workflow(1)), 50)
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
    assert recorded_executions(tmp_path) == {}
