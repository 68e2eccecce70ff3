"""One job through each platform's real loop while ComfyUI crashes.

This module takes the platform's part: it restarts a worker that ended, and delivers a job that failed as retryable
again, as often as the platform would. Each function returns "done" or the type of error with which the job ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

from comfyui.exceptions import ComfyUIError
from comfyui.models import PromptRequest
from comfyui.servers.process import ComfyUIProcess
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.options import WorkerOptions
from tests.chaos.crashing import engine_command, picture_workflow
from tests.support.job_api import ROOT, JobApi, running_worker
from tests.support.ports import free_port

_DELIVERIES = 3
_QUICK = {"HTTP_RETRIES": "0", "RETRY_DELAY_SECONDS": "0", "POLL_INTERVAL": "0.2"}

OneJob = Callable[[Path, str, int], Awaitable[str]]


async def under_worker(folder: Path, stage: str, crashes: int) -> str:
    """Runs the part that RunPod's and Postgres' workers share: ComfyUI is the worker's child."""
    port = free_port()
    command = engine_command(port, folder, stage, crashes)
    options = WorkerOptions(f"127.0.0.1:{port}", command, http_retries=0, restart_delay_s=0.05)
    async with ComfyUIWorker(options) as worker:
        return await _run(worker)


async def under_supervisor(folder: Path, stage: str, crashes: int) -> str:
    """Runs the case of LittleHorse's worker: a supervisor restarts ComfyUI."""
    async with (
        _supervised(folder, stage, crashes) as address,
        ComfyUIWorker(WorkerOptions(address, http_retries=0)) as worker,
    ):
        return await _run(worker)


async def _run(worker: ComfyUIWorker) -> str:
    request = PromptRequest.model_validate({"prompt": picture_workflow(), "prompt_id": str(uuid4())})
    try:
        return "done" if (await worker.run(request)).files else "no files"
    except ComfyUIError as error:
        return error.code


@asynccontextmanager
async def _supervised(folder: Path, stage: str, crashes: int) -> AsyncIterator[str]:
    address = f"127.0.0.1:{free_port()}"
    command = engine_command(int(address.rpartition(":")[2]), folder, stage, crashes)
    async with ComfyUIProcess(command, address, max_crashes=20, restart_delay_s=0.05):
        yield address


async def on_runpod(folder: Path, stage: str, crashes: int) -> str:
    """Runs the SDK's production loop and replaces a worker that asks for it."""
    port = free_port()
    settings = {
        **_QUICK,
        "COMFYUI_COMMAND": shlex.join(engine_command(port, folder, stage, crashes)),
        "COMFYUI_SERVER_ADDRESS": f"127.0.0.1:{port}",
    }
    outcome = ""
    async with JobApi() as api, AsyncExitStack() as stack:
        worker: AsyncExitStack | None = None
        for delivery in range(1, _DELIVERIES + 1):
            if worker is None:
                worker = await stack.enter_async_context(AsyncExitStack())
                await worker.enter_async_context(running_worker(api.environment(), **settings))
            api.submit("chaos", {"workflow": picture_workflow()})
            result = await api.result("chaos", count=delivery)
            if "error" not in result:
                return "done" if result["output"]["images"] else "no files"
            outcome = str(result["output"]["error_type"])
            if not result["output"]["retryable"]:
                return outcome
            if result.get("stopPod"):
                await worker.aclose()
                worker = None
    return outcome


async def on_postgres(folder: Path, stage: str, crashes: int) -> str:
    """Runs a worker's process on a database of its own and restarts it when it ends, as a supervisor does."""
    from tests.support.postgres_server import running_postgres
    from tests.support.supabase_stub import SERVICE_ROLE_KEY, running_supabase
    from tests.support.tables import new_database

    port = free_port()
    async with AsyncExitStack() as stack:
        server = stack.enter_context(running_postgres())
        tables = await stack.enter_async_context(new_database(server))
        project = await stack.enter_async_context(running_supabase(tables.url))
        settings = {
            **_QUICK,
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "DATABASE_URL": tables.url,
            "SUPABASE_URL": project.url,
            "SUPABASE_SERVICE_ROLE_KEY": SERVICE_ROLE_KEY,
            "COMFY_PORT": str(port),
            "COMFYUI_COMMAND": shlex.join(engine_command(port, folder, stage, crashes)),
        }
        task = await tables.add({"workflow": picture_workflow()})
        supervisor = asyncio.create_task(_supervise(settings))
        try:
            row = await tables.until_status(task, "complete", "failed", within_s=120)
        finally:
            supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await supervisor
        if row["status"] == "complete":
            return "done" if row["outputs"] else "no files"
        return str(row["error"]).partition(":")[0]


async def _supervise(settings: dict[str, str]) -> None:
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "comfyui.workers.postgres_worker", "--worker-id", "chaos"),
            env=settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=ROOT,
        )
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


@asynccontextmanager
async def _silent() -> AsyncIterator[None]:
    """Hides the worker's log, which is printed for tests and does not belong into the report."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


async def on_littlehorse(folder: Path, stage: str, crashes: int) -> str:
    """Runs the SDK's worker; schedules a task that failed technically again, as the server does when it may retry."""
    from tests.support.littlehorse_process import running_fake, running_worker

    outcome = ""
    async with (
        _silent(),
        _supervised(folder, stage, crashes) as address,
        running_fake() as fake,
        running_worker(fake.ports[0], f"http://{address}", comfyui_http_retries=0),
    ):
        for attempt in range(_DELIVERIES):
            fake.schedule(picture_workflow(), "chaos", attempt=attempt)
            report = await fake.report("chaos", within_s=60)
            if report["status"] == "TASK_SUCCESS":
                return "done" if json.loads(report["output"]["jsonObj"])["outputs"] else "no files"
            if report["status"] == "TASK_EXCEPTION":
                return str(report["exception"]["name"])
            outcome = str(report["error"]["message"]).removeprefix("TaskFailedError: ").partition(":")[0]
    return outcome


PLATFORMS: dict[str, OneJob] = {
    "own child": under_worker,
    "supervised": under_supervisor,
    "runpod": on_runpod,
    "postgres": on_postgres,
    "littlehorse": on_littlehorse,
}
