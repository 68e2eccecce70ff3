"""The container's entry point with supervisord and our configuration, in front of the embedded engine as ComfyUI."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.containers import Container, running_container
from tests.support.running import invert_workflow, sleep_workflow

pytestmark = pytest.mark.timeout(90)


async def _pid_of(container: Container, program: str, *, after: int = 0) -> int:
    match = await container.logged(rf"spawned: '{program}' with pid (\d+)", after=after)
    return int(match[1])


async def _prompt_sync(container: Container, workflow: dict[str, Any]) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.post(container.url + "/prompt_sync", json={"prompt": workflow}) as response,
    ):
        return response.status, await response.json()


async def test_the_container_is_live_before_comfyui_and_ready_again_after_its_crash(
    engine_container: dict[str, str], tmp_path: Path
) -> None:
    # The test decides when this ComfyUI starts.
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    engine_container["COMFYUI_COMMAND"] = f"/bin/sh -c 'read line < {gate}; exec {engine_container['COMFYUI_COMMAND']}'"
    async with running_container(engine_container) as container:
        await container.answers("/health/live", 200)
        body = await container.answers("/health/ready", 503)
        assert "127.0.0.1" in body["reason"]
        await container.answers("/health", 503)

        gate.write_text("go\n")
        await container.answers("/health/ready", 200)
        assert (await _prompt_sync(container, invert_workflow()))[0] == 200

        seen = len(container.lines)
        os.kill(await _pid_of(container, "comfyui"), signal.SIGKILL)
        await container.logged(r"exited: comfyui \(terminated by SIGKILL", after=seen)
        await _pid_of(container, "comfyui", after=seen)
        await container.answers("/health/ready", 503)
        gate.write_text("go\n")
        await container.answers("/health/ready", 200)
        assert (await _prompt_sync(container, invert_workflow(1)))[0] == 200

        container.process.send_signal(signal.SIGTERM)
        assert await container.ended() == 0
    log = "\n".join(container.lines)
    assert re.search(r"^comfyui \| ", log, re.MULTILINE), "every line has its program's name in front"
    assert re.search(r"^gateway \| .*gateway.starting", log, re.MULTILINE)
    assert log.index("stopped: worker") < log.index("stopped: comfyui"), "the gateway drains while ComfyUI still runs"


async def test_a_stopping_container_finishes_the_running_prompt(engine_container: dict[str, str]) -> None:
    async with running_container(engine_container) as container:
        await container.answers("/health/ready", 200)
        waiting = asyncio.create_task(_prompt_sync(container, sleep_workflow(1.5)))
        await container.serves("/health", lambda body: body["waiting_requests"] == 1)
        container.process.send_signal(signal.SIGTERM)
        status, body = await waiting
        assert (status, body["status"]) == (200, "success")
        assert await container.ended() == 0
    await container.logged("shutdown.draining")


async def test_a_program_that_cannot_start_ends_the_container_with_status_70(
    engine_container: dict[str, str],
) -> None:
    engine_container |= {"COMFYUI_COMMAND": "/bin/false", "START_RETRIES": "0"}
    async with running_container(engine_container) as container:
        assert await container.ended() == 70
    await container.logged("comfyui cannot be started: stopping the container")
    await container.logged("ending with 70")


async def test_a_program_that_crashes_too_often_ends_the_container_with_status_70(
    engine_container: dict[str, str],
) -> None:
    # Each run lasts longer than startsecs, so supervisord itself never gives up.
    engine_container |= {"MAX_CRASHES": "0"}
    async with running_container(engine_container) as container:
        await container.logged("success: comfyui entered RUNNING")
        os.kill(await _pid_of(container, "comfyui"), signal.SIGKILL)
        assert await container.ended() == 70
    await container.logged("comfyui ended more than 0 times in 600 s")


async def test_a_comfyui_that_answers_but_runs_no_prompts_is_restarted(engine_container: dict[str, str]) -> None:
    engine_container["RESTART_BROKEN_AFTER"] = "0"
    async with running_container(engine_container) as container:
        await container.answers("/health/ready", 200)
        comfyui = f"http://127.0.0.1:{engine_container['COMFY_PORT']}"
        async with aiohttp.ClientSession() as http, http.post(comfyui + "/engine/faults", json={"cuda_fault": True}):
            pass
        seen = len(container.lines)
        await _prompt_sync(container, invert_workflow())
        await container.answers("/health/ready", 503)
        await container.logged("answers but runs no prompts; it is restarted", after=seen)
        await container.answers("/health/ready", 200)
        assert (await _prompt_sync(container, invert_workflow(2)))[0] == 200


async def test_a_container_can_run_comfyui_alone(engine_container: dict[str, str]) -> None:
    engine_container |= {"WORKER": "comfyui", "SERVER_PORT": engine_container["COMFY_PORT"]}
    async with running_container(engine_container) as container:
        await container.answers("/system_stats", 200)
        await container.logged("success: comfyui entered RUNNING")
        async with running_container(engine_container, "supervisorctl", "status") as control:
            await control.logged(r"^comfyui +RUNNING")
    assert not [line for line in container.lines if "spawned: 'worker'" in line]
