"""Workers as processes of their own: a real Postgres, a real S3 server, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from pydantic import SecretStr
from yarl import URL

from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIConnectionError
from comfyui.outputs.stores.s3 import S3Store
from comfyui.workers.base import prompt_id_for_job
from comfyui.workers.postgres.queue import migrate
from comfyui.workers.postgres.schema import TaskNames
from comfyui.workers.postgres.settings import PostgresWorkerSettings
from comfyui.workers.postgres.worker import serve
from tests.chaos import workers as chaos
from tests.support.object_store import ACCESS_KEY, POSTGRES_BUCKET, SECRET_KEY
from tests.support.ports import free_port
from tests.support.postgres_server import PostgresServer, running_postgres
from tests.support.running import crash_workflow, executions, invert_workflow, sleep_workflow, until_running
from tests.support.supabase_stub import SERVICE_ROLE_KEY, running_supabase
from tests.support.tables import Tables

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def worker(*arguments: str, **settings: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker's process, killed on exit if it still runs. Its log is printed, so pytest shows it with a failure."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "comfyui.workers.postgres_worker", *arguments),
            env=environment(settings),
            stdout=log,
            stderr=log,
            cwd=ROOT,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            log.seek(0)
            print(log.read().decode()[-4000:])


def environment(settings: Mapping[str, Any]) -> dict[str, str]:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return plain | {name.upper(): str(value) for name, value in settings.items()}


def s3_settings(url: str) -> dict[str, str]:
    return {
        "s3_bucket": POSTGRES_BUCKET,
        "s3_endpoint_url": url,
        "s3_access_key_id": ACCESS_KEY,
        "s3_secret_access_key": SECRET_KEY,
        "s3_addressing_style": "path",
    }


async def stored_keys(store: S3Store, prefix: str) -> set[str]:
    pages = store._client.get_paginator("list_objects_v2").paginate(Bucket=POSTGRES_BUCKET, Prefix=prefix)
    return {entry["Key"] async for page in pages for entry in page.get("Contents", ())}


async def test_killing_a_rendering_worker_loses_no_task_and_renders_none_twice(
    tables: Tables,
    engine: Engine,
    seaweedfs: str,
    outputs_bucket: S3Store,
) -> None:
    """Two workers share 200 tasks. After kill -9 of one, each task was rendered once and its file is in S3."""
    quick = [await tables.add({"workflow": invert_workflow(number)}) for number in range(20)]
    victim_id = await tables.add({"workflow": sleep_workflow(1.5)})
    quick += [await tables.add({"workflow": invert_workflow(number)}) for number in range(20, 199)]
    settings = {
        "database_url": tables.url,
        "comfyui_server_address": engine.url,
        "poll_interval": 0.25,
        "lease_seconds": 2,
        "s3_prefix": f"kill/{victim_id}",
        **s3_settings(seaweedfs),
    }
    async with worker("--worker-id", "a", **settings) as a, worker("--worker-id", "b", **settings) as b:
        await until_running(engine, str(prompt_id_for_job("postgres", victim_id)))
        killed = str((await tables.row(victim_id))["worker_id"])
        {"a": a, "b": b}[killed].kill()
        victim = await tables.until_status(victim_id, "complete", "failed", within_s=40)
        async with asyncio.timeout(40):
            while await tables.sql.fetchval("select count(*) from tasks where status = 'queued'"):
                await asyncio.sleep(0.05)
        rows = [await tables.until_status(task_id, "complete", "failed") for task_id in quick]
        survivor = b if killed == "a" else a
        survivor.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await survivor.wait() == 0
    assert {row["status"] for row in [*rows, victim]} == {"complete"}
    assert (victim["attempts"], victim["worker_id"]) == (2, "b" if killed == "a" else "a")
    expected = {str(prompt_id_for_job("postgres", task_id)): 1 for task_id in [*quick, victim_id]}
    assert executions(engine) == expected
    assert len(expected) == 200
    listed = {output["key"] for row in [*rows, victim] for output in row["outputs"]}
    assert len(listed) == 200
    assert await stored_keys(outputs_bucket, f"kill/{victim_id}/") == listed
    async with aiohttp.ClientSession() as http, http.get(URL(victim["output_url"], encoded=True)) as response:
        assert response.status == 200
        assert (await response.read()).startswith(b"\x89PNG")


async def test_sigterm_finishes_the_running_task_and_ends_the_workers_comfyui(
    postgres: PostgresServer,
    tables: Tables,
    seaweedfs: str,
    outputs_bucket: S3Store,
    tmp_path: Path,
) -> None:
    """At the start the database has no tables and ComfyUI does not run."""
    await tables.sql.execute("drop table tasks, workers cascade")
    async with worker("--migrate", database_url=tables.url) as migration:
        assert await migration.wait() == 0
    (tmp_path / "main.py").write_text(
        f"import sys; sys.path[0] = {str(ROOT)!r}\nfrom comfyui.engine.__main__ import main\nsys.exit(main())\n"
    )
    port = free_port()
    task_id = await tables.add({"workflow": sleep_workflow(1.0)})
    waiting = await tables.add({"workflow": invert_workflow()})
    settings = {
        "database_url": tables.url,
        "comfy_path": tmp_path,
        "comfy_port": port,
        "path": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "poll_interval": 0.25,
        **s3_settings(seaweedfs),
    }
    async with worker("--worker-id", "a", **settings) as process:
        await tables.until(task_id, lambda row: row["status"] == "in_progress", within_s=20)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    assert (await tables.row(task_id))["status"] == "complete"
    assert (await tables.row(waiting))["status"] == "queued"
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_database_without_the_migrations_ends_the_worker_with_advice(tables: Tables, seaweedfs: str) -> None:
    await tables.sql.execute("drop function comfy_schema_version")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "comfyui.workers.postgres_worker"),
        env=environment({"database_url": tables.url, **s3_settings(seaweedfs)}),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    async with asyncio.timeout(20):
        _, complaint = await process.communicate()
    assert process.returncode == 1
    assert b"run --migrate" in complaint
    assert b"Traceback" not in complaint


async def test_a_restart_of_postgres_loses_no_task_and_logs_each_outage_once(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_postgres() as server:
        await migrate(SecretStr(server.url()), TaskNames())
        # Only the project's storage is used; it needs no database.
        async with connected(server) as tables, running_supabase(server.url()) as project:
            first = await tables.add({"workflow": sleep_workflow(1.5)})
            settings = {
                "database_url": server.url(),
                "comfyui_server_address": engine.url,
                "poll_interval": 0.25,
                "supabase_url": project.url,
                "supabase_service_role_key": SERVICE_ROLE_KEY,
                "log_output": log,
            }
            async with worker("--worker-id", "a", **settings) as process:
                await until_running(engine, str(prompt_id_for_job("postgres", first)))
                for outage in (1, 2):
                    await asyncio.to_thread(server.stop)
                    await until_logged(log, "heartbeat.failed", outage)
                    await asyncio.to_thread(server.start)
                    async with connected(server) as again:
                        for task in (first, await again.add({"workflow": invert_workflow(outage)})):
                            row = await again.until_status(task, "complete", "failed", within_s=40)
                            assert (row["status"], row["attempts"]) == ("complete", 1)
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(20):
                    assert await process.wait() == 0
    lines = log.read_text()
    for event in ("heartbeat.failed", "queue.unavailable", "queue.not_listening"):
        assert lines.count(event) <= 2, lines
    assert "Traceback" not in lines
    assert set(executions(engine).values()) == {1}


@asynccontextmanager
async def connected(server: PostgresServer) -> AsyncIterator[Tables]:
    sql = await asyncpg.connect(server.url())
    try:
        yield Tables(server.url(), sql)
    finally:
        await sql.close()


async def until_logged(log: Path, event: str, count: int) -> None:
    async with asyncio.timeout(30):
        while not log.exists() or log.read_text().count(event) < count:
            await asyncio.sleep(0.02)


async def test_a_comfyui_that_keeps_crashing_ends_the_worker(tables: Tables, tmp_path: Path) -> None:
    """The worker's supervisor can react to its end; tasks stay queued for other workers."""
    (tmp_path / "main.py").write_text("raise SystemExit('no GPU')")
    task_id = await tables.add({"workflow": invert_workflow()})
    settings = PostgresWorkerSettings(
        database_url=SecretStr(tables.url),
        comfy_path=tmp_path,
        comfyui_command=(sys.executable, "main.py"),
        comfy_port=free_port(),
        poll_interval=0.2,
        supabase_url="http://127.0.0.1:9",
        supabase_service_role_key=SecretStr("unused"),
    )
    async with asyncio.timeout(20):
        with pytest.raises(ComfyUIConnectionError, match="ComfyUI does not run: it ended with exit status 1, 4 times"):
            await serve(settings, "w", asyncio.Event())
    assert (await tables.row(task_id))["attempts"] == 0
    assert await tables.sql.fetchval("select status from workers where id = 'w'") == "stopped"


async def test_a_task_that_crashes_comfyui_fails_within_its_budget_and_the_next_succeeds(
    tables: Tables, seaweedfs: str, outputs_bucket: S3Store, tmp_path: Path
) -> None:
    """Regression: the lease of such a task was renewed for ever, and SIGTERM did not end the worker."""
    executions_file, port = tmp_path / "executions", free_port()
    (tmp_path / "main.py").write_text(
        f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'comfyui.engine'\n"
        "runpy.run_module('comfyui.engine', run_name='__main__', alter_sys=True)\n"
    )
    settings = {
        "database_url": tables.url,
        "comfy_path": tmp_path,
        "comfyui_command": f"{sys.executable} main.py --port {port} --executions-file {executions_file}",
        "comfy_port": port,
        "poll_interval": 0.25,
        "retry_delay_seconds": 0,
        **s3_settings(seaweedfs),
    }
    crashing = await tables.add({"workflow": crash_workflow("exit", tag=1, after=0.1)})
    async with worker("--worker-id", "a", **settings) as process:
        row = await tables.until_status(crashing, "failed", within_s=60)
        assert "Workflow is quarantined" in row["error"]
        assert "ended with exit status 1" in row["error"]
        fine = await tables.add({"workflow": invert_workflow(2)})
        await tables.until_status(fine, "complete", within_s=60)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    begun = executions_file.read_text().splitlines()
    assert begun.count(str(prompt_id_for_job("postgres", crashing))) == 2


@pytest.mark.parametrize(("stage", "crashes"), [("starting", 4), ("staging", 2)])
async def test_repeated_crashes_neither_hang_nor_lose_a_job_of_this_platform(stage: str, crashes: int) -> None:
    """The short form of ``python -m tests.chaos.workers --platform postgres``."""
    ended = await chaos.one("postgres", stage, crashes)
    assert ended.is_right, ended
