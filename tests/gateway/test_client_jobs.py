"""The jobs of client.py against a real gateway and the embedded engine, which some tests kill."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from PIL import Image

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from comfyui.sdk import (
    Event,
    Executing,
    GatewayCancelledError,
    GatewayClient,
    GatewayRefusedError,
    GatewayTimeoutError,
    Reconnecting,
)
from comfyui.sdk.command_line import Exit
from tests.support.command_line import cli, cli_here, finish, start
from tests.support.jobs import listed, status_is
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, engine_process, gateway_process
from tests.support.running import (
    RunningGateway,
    executions,
    handler_options,
    invert_workflow,
    running_gateway,
    sleep_workflow,
)

ROOT = Path(__file__).parents[2]
INVERT = str(ROOT / "examples/invert.json")
PATIENCE_S = 60.0


@asynccontextmanager
async def both(folder: Path, gateway_port: int, engine_port: int, *options: str) -> AsyncIterator[GatewayProcess]:
    """Runs the gateway and an engine with these `options`, and kills both at the end."""
    state = {"STATE_DIR": str(folder), "SERVER_PORT": str(gateway_port)}
    async with (
        engine_process("--port", str(engine_port), *options) as address,
        gateway_process(address, **state) as gateway,
    ):
        yield gateway
        await gateway.kill()


async def test_a_job_of_the_command_line_survives_a_kill_of_gateway_and_engine(tmp_path: Path) -> None:
    """Both are killed while one job runs and one waits; `wait` and `result` work after their restart."""
    ports = free_port(), free_port()
    server = ("--server", f"http://127.0.0.1:{ports[0]}")
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(sleep_workflow(0.1)))
    # The first engine never finishes this job, however long the commands take.
    endless = ("--fault", 'hang={"class_type": "SimulatedSleep"}')
    async with both(tmp_path / "state", *ports, *endless) as gateway:
        running = (await cli("submit", str(slow), "--label", "order=1", *server)).out.strip()
        await status_is(gateway.http, running, "running")
        waiting = (await cli("submit", INVERT, *server)).out.strip()
        assert (await cli("result", waiting, *server)).code == Exit.NOT_FINISHED
        waits = await start(
            "wait", running, "--output", str(tmp_path / "waited"), "--timeout", str(PATIENCE_S), *server
        )
        assert waits.stderr
        # This line names the running node, so the command is connected and waits.
        assert b"node" in await waits.stderr.readuntil(b"node")
    assert (await cli("result", waiting, *server)).code == Exit.UNREACHABLE
    async with both(tmp_path / "state", *ports):
        waited = await finish(waits)
        assert waited.code == Exit.OK, waited.err
        assert "attaching again" in waited.err
        done = await cli("wait", waiting, "--output", str(tmp_path / "done"), *server)
        assert done.code == Exit.OK, done.err
        again = await cli("result", waiting, "--output", str(tmp_path / "again"), *server)
        assert again.code == Exit.OK, again.err
        for folder in ("done", "again"):
            [path] = (tmp_path / folder).iterdir()
            with Image.open(path) as picture:
                assert picture.convert("RGB").getpixel((0, 0)) == (0xFF - 0x33, 0xFF - 0x66, 0xFF - 0x99)
        rows = (await cli("list", "--label", "order=1", "--status", "succeeded", *server)).out.splitlines()
        assert [line.split()[:2] for line in rows[1:]] == [[running, "succeeded"]]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_wait_survives_a_restart_of_the_gateway(tmp_path: Path, engine: Engine, how: signal.Signals) -> None:
    port = str(free_port())
    settings = {"STATE_DIR": str(tmp_path), "SERVER_PORT": port, "SHUTDOWN_GRACE_SECONDS": "0.1"}
    events: list[Event] = []
    begun = asyncio.Event()

    def note(event: Event) -> None:
        events.append(event)
        if isinstance(event, Executing):
            begun.set()

    async with GatewayClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as client:
        async with gateway_process(engine.url, **settings) as gateway:
            job = await client.submit(sleep_workflow(2))
            waiting = asyncio.create_task(client.wait(job.prompt_id, show=note))
            await begun.wait()
            gateway.signal(how)
            await gateway.exit_status()
        async with gateway_process(engine.url, **settings):
            result = await waiting
    assert result.prompt_id == job.prompt_id
    assert any(isinstance(event, Reconnecting) for event in events)
    assert executions(engine) == {job.prompt_id: 1}


async def test_wait_fails_when_the_gateway_has_forgotten_the_job(engine: Engine) -> None:
    """The gateway has no STATE_DIR, and ComfyUI was restarted too."""
    port = str(free_port())
    async with GatewayClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as client:
        async with gateway_process(engine.url, SERVER_PORT=port) as gateway:
            job = await client.submit(sleep_workflow(20))
            assert not job.stored
            waiting = asyncio.create_task(client.wait(job.prompt_id))
            await status_is(gateway.http, job.prompt_id, "running")
            await gateway.kill()
        async with Engine() as other, gateway_process(other.url, SERVER_PORT=port):
            with pytest.raises(GatewayRefusedError) as caught:
                await waiting
    assert caught.value.type == "not_found"


async def test_jobs_of_several_pages_are_listed_newest_first(engine: Engine) -> None:
    options = handler_options(queue=QueueOptions(ahead=0))
    async with running_gateway(engine.url, changed=options) as gateway, GatewayClient(gateway.url) as client:
        ids = [
            (await client.submit(invert_workflow(tag), labels={"odd": str(tag % 2)})).prompt_id for tag in range(220)
        ]
        newest_first = ids[::-1]
        assert [job.prompt_id async for job in client.jobs()] == newest_first
        assert [job.prompt_id async for job in client.jobs(["queued", "running"], limit=120)] == newest_first[:120]
        odd = [job.prompt_id async for job in client.jobs("queued", labels={"odd": "1"})]
        assert odd == newest_first[::2]
        assert [job async for job in client.jobs("succeeded")] == []
        shown = await cli("list", "--limit", "210", "--server", gateway.url)
        assert [line.split()[0] for line in shown.out.splitlines()[1:]] == newest_first[:210]
        assert "more than 210" in shown.err


async def test_the_sdk_shows_a_job_waits_for_it_and_fetches_its_result(
    gateway: RunningGateway, sdk_client: GatewayClient
) -> None:
    job = await sdk_client.submit(sleep_workflow(1), labels={"a": "b"}, priority=4)
    assert (job.status, job.ended, job.stored) == ("queued", False, False)
    assert job.created_at is not None
    await status_is(gateway.http, job.prompt_id, "running")
    running = await sdk_client.job(job.prompt_id)
    assert running.progress is not None
    with pytest.raises(GatewayTimeoutError) as caught:
        await sdk_client.wait(job.prompt_id, timeout_s=0.05)
    assert caught.value.type == "not_finished"
    events: list[Event] = []
    result = await sdk_client.wait(job.prompt_id, show=events.append)
    assert any(isinstance(event, Executing) for event in events)
    assert (await sdk_client.result(job.prompt_id)).files == result.files
    ended = await sdk_client.job(job.prompt_id, return_base64=True)
    assert ended.status == "succeeded"
    assert ended.result is not None
    assert ended.result.files[0].base64
    [entry] = [entry async for entry in sdk_client.jobs(labels={"a": "b"})]
    assert (entry.prompt_id, entry.status, entry.priority, entry.kind) == (job.prompt_id, "succeeded", 4, "async")
    assert entry.ended_at is not None
    again = await sdk_client.submit(sleep_workflow(1), prompt_id=job.prompt_id)
    assert (again.status, again.result and again.result.files) == ("succeeded", result.files)


async def test_the_exit_code_says_how_a_job_ended(
    gateway: RunningGateway, sdk_client: GatewayClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "NoSuchNode"
    failed = await sdk_client.submit(workflow, wait_s=PATIENCE_S)
    assert (failed.status, failed.error and failed.error.type) == ("failed", "validation_failed")
    cancelled = await sdk_client.submit(sleep_workflow(PATIENCE_S))
    there = ("--server", gateway.url, "--output", str(tmp_path))
    assert (await cli_here(capsys, "result", cancelled.prompt_id, *there)).code == Exit.NOT_FINISHED
    assert (await cli_here(capsys, "wait", cancelled.prompt_id, "--timeout", "0.1", *there)).code == Exit.TIMED_OUT
    assert (await cli_here(capsys, "cancel", cancelled.prompt_id, *there[:2])).code == Exit.OK
    with pytest.raises(GatewayCancelledError):
        await sdk_client.wait(cancelled.prompt_id)
    for command in ("wait", "result"):
        assert (await cli_here(capsys, command, failed.prompt_id, *there)).code == Exit.FAILED
        assert (await cli_here(capsys, command, cancelled.prompt_id, *there)).code == Exit.CANCELLED
        assert (await cli_here(capsys, command, str(uuid4()), *there)).code == Exit.UNKNOWN
    states = {job["prompt_id"]: job["status"] for job in (await listed(gateway.http))["jobs"]}
    assert states == {failed.prompt_id: "failed", cancelled.prompt_id: "canceled"}


@pytest.mark.parametrize("full", [False, True])
async def test_only_an_error_of_the_job_itself_carries_its_status(engine: Engine, full: bool) -> None:
    """A full gateway refuses the request for a failed job too; that refusal has no X-Prompt-Status."""
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "NoSuchNode"
    async with running_gateway(engine.url, max_concurrent_requests=1) as gateway, GatewayClient(gateway.url) as client:
        job = await client.submit(workflow)
        async with gateway.http.get(f"/prompt_sync/{job.prompt_id}") as response:
            assert response.status == 400
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(20))) if full else None
        while full and not gateway.handler.waiting:
            await asyncio.sleep(0.01)
        async with gateway.http.get(f"/prompt_sync/{job.prompt_id}?timeout=0") as response:
            told = (response.status, response.headers.get("X-Prompt-Status"))
        assert told == ((429, None) if full else (400, "failed"))
        if waiting is not None:
            waiting.cancel()
