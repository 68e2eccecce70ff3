"""One worker between a real Postgres and the embedded engine."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from comfyui.client import ComfyUIClient
from comfyui.engine import Engine, EngineOptions
from comfyui.exceptions import StorageError, StorageRefusedError
from comfyui.retrying import Backoff
from comfyui.workers.base import ComfyUIWorker, prompt_id_for_job
from comfyui.workers.options import WorkerOptions
from comfyui.workers.postgres.runner import TaskRunner, TaskRunnerOptions
from tests.support.running import executions, invert_workflow, sleep_workflow, until_running
from tests.support.tables import Tables
from tests.support.watched_store import WatchedStore

QUICK = TaskRunnerOptions(poll_interval_s=0.2, heartbeat_s=0.1)


@asynccontextmanager
async def running_worker(
    tables: Tables, engine: Engine, store: WatchedStore, worker_id: str = "w", **queue: Any
) -> AsyncIterator[asyncio.Event]:
    """Runs a worker and yields the event that stops it; waits for its end on exit."""
    stop = asyncio.Event()
    comfyui = WorkerOptions(
        engine.url,
        cancel_abandoned=False,
        input_url_allow=("127.0.0.1",),
        input_url_timeout_s=2,
        http_retries=0,
        delivery_retries=2,
        delivery_backoff=Backoff(0.05, 15.0),
    )
    async with ComfyUIWorker(comfyui) as worker, store, tables.queue(**queue) as opened:
        running = asyncio.create_task(TaskRunner(worker_id, opened, worker, store, QUICK).run(stop))
        try:
            yield stop
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await running


async def test_a_task_is_complete_after_its_files_are_stored(
    tables: Tables, engine: Engine, watched_store: WatchedStore, tmp_path: Path
) -> None:
    workflow = invert_workflow(1, prefix="first")
    workflow["8"] = {**workflow["3"], "inputs": {**workflow["3"]["inputs"], "filename_prefix": "sub/second"}}
    statuses: list[str] = []

    async def look(_key: str) -> None:
        statuses.append((await tables.row(task_id))["status"])

    watched_store.before = look
    task_id = await tables.add({"workflow": workflow})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "complete", "failed")
    assert (row["status"], row["error"], row["progress"], row["attempts"]) == ("complete", None, 1.0, 1)
    assert statuses == ["in_progress", "in_progress"]
    assert [(output["node_id"], output["subfolder"]) for output in row["outputs"]] == [("3", ""), ("8", "sub")]
    for output in row["outputs"]:
        content = (tmp_path / "store" / output["key"]).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) == output["size"]
        assert output["url"] == f"http://files.test/{output['key']}"
    assert row["output_url"] == row["outputs"][0]["url"]
    assert row["finished_at"] >= row["started_at"]
    result = row["result"]
    assert (result["status"], result["partial"], result["node_errors"]) == ("success", False, {})
    assert result["prompt_id"] == str(prompt_id_for_job("postgres", task_id))
    assert result["files"] == row["outputs"]
    assert set(result["timings"]) == {"staging", "queued", "executing", "collecting", "nodes"}
    assert result["execution_time"] > 0


async def test_a_new_task_is_taken_without_waiting_for_the_next_poll(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    patient = TaskRunnerOptions(poll_interval_s=300, heartbeat_s=300)
    stop = asyncio.Event()
    async with ComfyUIWorker(WorkerOptions(engine.url)) as worker, watched_store, tables.queue() as queue:
        await worker.wait_until_ready()
        running = asyncio.create_task(TaskRunner("w", queue, worker, watched_store, patient).run(stop))
        first = await tables.add({"workflow": invert_workflow(1)})
        await tables.until_status(first, "complete")
        second = await tables.add({"workflow": invert_workflow(2)})
        await tables.until_status(second, "complete")
        stop.set()
        await running


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, "NoSuchNode"),
        ({"workflow": {}}, "The workflow is empty"),
        ({"workflow": invert_workflow(), "colour": 1}, "params.colour"),
        ({"workflow": invert_workflow(), "images": [{"name": "a.png", "image": "%%%"}]}, "params.images[0].image"),
        ({"no": "workflow"}, "params.workflow"),
    ],
)
async def test_a_failure_that_no_retry_can_fix_ends_the_task_at_once(
    tables: Tables, engine: Engine, watched_store: WatchedStore, params: dict[str, Any], said: str
) -> None:
    task_id = await tables.add(params)
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "failed")
    assert said in row["error"]
    assert row["attempts"] == 1
    assert row["outputs"] is None


async def test_a_node_error_fails_the_task_and_requeueing_it_renders_again(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    async with ComfyUIClient(engine.url) as client:
        await client._post("/engine/faults", {"node_error": {"class_type": "ImageInvert", "times": 1}})
    task_id = await tables.add({"workflow": invert_workflow(3)})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "failed")
        assert "ImageInvert (node 2): RuntimeError" in row["error"]
        assert row["attempts"] == 1
        await tables.set_status(task_id, "queued")
        row = await tables.until_status(task_id, "complete")
    assert row["error"] is None
    assert len(executions(engine)) == 2


async def test_a_cancelled_task_interrupts_comfyui_and_the_next_one_runs(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    task_id = await tables.add({"workflow": sleep_workflow(60)})
    prompt_id = str(prompt_id_for_job("postgres", task_id))
    async with running_worker(tables, engine, watched_store):
        await until_running(engine, prompt_id)
        await tables.set_status(task_id, "cancelled")
        following = await tables.add({"workflow": invert_workflow(5)})
        await tables.until_status(following, "complete")
        row = await tables.row(task_id)
    assert (row["status"], row["outputs"]) == ("cancelled", None)
    assert row["finished_at"] is not None


async def test_a_worker_that_lost_its_lease_leaves_the_render_to_its_new_owner(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    task_id = await tables.add({"workflow": sleep_workflow(1.0)})
    prompt_id = str(prompt_id_for_job("postgres", task_id))
    async with running_worker(tables, engine, watched_store, "first") as stop:
        await until_running(engine, prompt_id)
        stop.set()  # so that it does not take the task again itself
        await tables.sql.execute("update tasks set status = 'queued'")
        async with running_worker(tables, engine, watched_store, "second"):
            row = await tables.until_status(task_id, "complete")
    assert (row["worker_id"], row["attempts"]) == ("second", 2)
    assert executions(engine) == {prompt_id: 1}


async def test_a_stopping_worker_finishes_its_task_and_takes_no_other(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    first = await tables.add({"workflow": sleep_workflow(0.5)})
    second = await tables.add({"workflow": invert_workflow(2)})
    async with running_worker(tables, engine, watched_store) as stop:
        await until_running(engine, str(prompt_id_for_job("postgres", first)))
        stop.set()
    assert (await tables.row(first))["status"] == "complete"
    assert (await tables.row(second))["status"] == "queued"
    assert await tables.sql.fetchval("select status from workers") == "stopped"


async def test_tasks_are_taken_only_while_comfyui_answers(tables: Tables, watched_store: WatchedStore) -> None:
    async with Engine() as engine:
        address, port = engine.url, int(engine.url.rpartition(":")[2])
    task_id = await tables.add({"workflow": invert_workflow()})
    stop = asyncio.Event()
    async with ComfyUIWorker(WorkerOptions(address)) as worker, watched_store, tables.queue() as queue:
        running = asyncio.create_task(TaskRunner("w", queue, worker, watched_store, QUICK).run(stop))
        async with asyncio.timeout(30):
            while await tables.sql.fetchval("select status from workers") != "waiting":
                await asyncio.sleep(0.02)
        assert (await tables.row(task_id))["attempts"] == 0
        async with Engine(EngineOptions(port=port)):
            await tables.until_status(task_id, "complete", within_s=20)
            stop.set()
            await running


async def test_a_short_failure_of_the_store_only_delays_completion(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    watched_store.failures = [StorageError("the object store cannot be reached")]
    task_id = await tables.add({"workflow": invert_workflow()})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "complete", "failed")
    assert (row["status"], row["attempts"]) == ("complete", 1)


async def test_a_store_that_refuses_a_file_fails_the_task(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    watched_store.failures = [StorageRefusedError("Supabase has no bucket 'outputs'")]
    task_id = await tables.add({"workflow": invert_workflow()})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "failed")
    assert "no bucket 'outputs'" in row["error"]
    assert (row["output_url"], row["outputs"]) == (None, None)


async def test_the_next_attempt_delivers_unstored_files_without_rendering_again(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    watched_store.failures = [StorageError("the object store cannot be reached")] * 3
    task_id = await tables.add({"workflow": invert_workflow()})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "complete", "failed")
    assert (row["status"], row["attempts"], row["error"]) == ("complete", 2, None)
    assert set(executions(engine).values()) == {1}


async def test_a_task_with_some_undelivered_files_is_complete_and_marked_partial(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    watched_store.failures = [StorageError("the object store cannot be reached")] * 3
    workflow = invert_workflow(1)
    workflow["8"] = {**workflow["3"], "inputs": {**workflow["3"]["inputs"], "filename_prefix": "second"}}
    task_id = await tables.add({"workflow": workflow})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "complete", "failed")
    assert (row["status"], row["error"]) == ("complete", "partial: 1 of 2 files could not be delivered")
    assert [("error" in output, bool(output["url"])) for output in row["outputs"]] == [(True, False), (False, True)]
    assert row["output_url"] == row["outputs"][1]["url"]
    assert (row["result"]["status"], row["result"]["partial"]) == ("success", True)


async def test_a_failed_task_keeps_the_files_that_other_nodes_saved(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    workflow = invert_workflow(1)
    workflow["7"] = {"class_type": "SimulatedSleep", "inputs": {"seconds": 0.01, "steps": 1, "value": ["2", 0]}}
    workflow["8"] = {
        "class_type": "SimulatedError",
        "inputs": {"exception_type": "RuntimeError", "message": "no", "value": ["7", 0]},
    }
    workflow["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}}
    task_id = await tables.add({"workflow": workflow})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "complete", "failed")
    assert row["status"] == "failed"
    assert "SimulatedError (node 8): RuntimeError: no" in row["error"]
    assert [(output["node_id"], bool(output["url"])) for output in row["outputs"]] == [("3", True)]
    result = row["result"]
    assert (result["status"], result["error_type"], result["retryable"]) == ("error", "task_failed", False)
    assert result["node"] == {"id": "8", "type": "SimulatedError", "exception_type": "RuntimeError"}
    assert result["node_errors"] == {"8": ["RuntimeError: no"]}
    assert result["files"] == row["outputs"]
    assert result["diagnostics"]["versions"]["comfyui"]
    await tables.set_status(task_id, "queued")
    assert (await tables.row(task_id))["result"] is None


async def test_an_error_text_with_nul_still_ends_the_task(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    """Postgres stores NUL neither in text nor in jsonb, but a node's message may contain it."""
    workflow = invert_workflow(1)
    workflow["2"] |= {
        "class_type": "SimulatedError",
        "inputs": {"exception_type": "RuntimeError", "message": "a\0b", "value": ["1", 0]},
    }
    task_id = await tables.add({"workflow": json.dumps(workflow)})
    async with running_worker(tables, engine, watched_store):
        row = await tables.until_status(task_id, "complete", "failed")
    assert row["status"] == "failed"
    assert row["result"]["node_errors"] == {"2": ["RuntimeError: ab"]}


async def test_no_task_is_taken_while_the_store_cannot_be_used(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    watched_store.usable = False
    task_id = await tables.add({"workflow": invert_workflow()})
    async with running_worker(tables, engine, watched_store):
        await watched_store.asked.wait()
        await asyncio.sleep(0.5)
        row = await tables.row(task_id)
        assert (row["status"], row["attempts"]) == ("queued", 0)
        assert executions(engine) == {}
        watched_store.usable = True
        await tables.until_status(task_id, "complete")


async def test_the_file_at_video_url_reaches_its_node(
    tables: Tables, engine: Engine, watched_store: WatchedStore, tmp_path: Path
) -> None:
    """A picture replaces the video, because the engine decodes it and the test can compare the result."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 0)).save(picture, "PNG")
    workflow = invert_workflow()
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": "unused.png"}}
    params = {"video_node_id": "1", "video_input_field": "image"}
    async with serving("/clip.png", picture.getvalue()) as url, running_worker(tables, engine, watched_store):
        task_id = await tables.add({"workflow": workflow, "video_url": url, **params})
        row = await tables.until_status(task_id, "complete", "failed")
    assert (row["status"], row["error"]) == ("complete", None)
    with Image.open(tmp_path / "store" / row["outputs"][0]["key"]) as rendered:
        assert rendered.convert("RGB").getpixel((0, 0)) == (55, 155, 255)


async def test_a_video_is_fetched_again_after_503_and_not_after_404(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    workflow = invert_workflow()
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": "unused.png"}}
    params = {"workflow": workflow, "video_node_id": "1", "video_input_field": "image"}
    errors = {}
    async with (
        serving("/clip.png", b"", status=503) as url,
        running_worker(tables, engine, watched_store, max_attempts=2),
    ):
        for address in (url, f"{url}.gone"):
            task_id = await tables.add({**params, "video_url": address})
            row = await tables.until_status(task_id, "complete", "failed", within_s=60)
            errors[row["attempts"]] = row["error"]
    assert errors[2].startswith("Input could not be fetched: params.video_url: the URL's server answered HTTP 503 (")
    assert errors[1] == "Input could not be staged: params.video_url: the URL's server answered HTTP 404"


async def test_an_unknown_video_input_field_is_refused_with_the_nodes_fields(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    workflow = invert_workflow()
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": "unused.png"}}
    params = {"workflow": workflow, "video_url": "http://127.0.0.1:9/v.mp4", "video_node_id": "1"}
    async with running_worker(tables, engine, watched_store):
        task_id = await tables.add({**params, "video_input_field": "imgae"})
        row = await tables.until_status(task_id, "failed")
    said = "params.video_input_field: LoadImage (node 1) has no input 'imgae'; its inputs are image"
    assert row["error"] == f"Input could not be staged: {said}"
    assert row["attempts"] == 1


@asynccontextmanager
async def serving(path: str, body: bytes, status: int = 200) -> AsyncIterator[str]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, status=status)

    app = web.Application()
    app.router.add_get(path, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
    finally:
        await runner.cleanup()


async def test_two_lanes_of_a_process_run_two_tasks_at_once_under_two_names(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    stop = asyncio.Event()
    task_ids = [await tables.add({"workflow": sleep_workflow(0.4, tag=number)}) for number in range(2)]
    options = WorkerOptions(engine.url, jobs_at_once=2)
    async with ComfyUIWorker(options) as worker, watched_store, tables.queue(connections=4) as queue:
        lanes = [
            asyncio.create_task(TaskRunner(name, queue, worker, watched_store, QUICK).run(stop))
            for name in ("w", "w-2")
        ]
        rows = [await tables.until_status(task_id, "in_progress") for task_id in task_ids]
        assert {row["worker_id"] for row in rows} == {"w", "w-2"}
        for task_id in task_ids:
            await tables.until_status(task_id, "complete")
        stop.set()
        await asyncio.gather(*lanes)


async def test_losing_the_database_connection_during_a_render_costs_no_attempt(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    task_id = await tables.add({"workflow": sleep_workflow(0.6)})
    async with running_worker(tables, engine, watched_store):
        await until_running(engine, str(prompt_id_for_job("postgres", task_id)))
        await tables.sql.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        row = await tables.until_status(task_id, "complete", "failed")
    assert (row["status"], row["attempts"]) == ("complete", 1)
    assert set(executions(engine).values()) == {1}


async def test_a_task_completes_although_comfyui_forgot_its_prompt(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    task_id = await tables.add({"workflow": sleep_workflow(0.8)})
    async with running_worker(tables, engine, watched_store), ComfyUIClient(engine.url) as client:
        await until_running(engine, str(prompt_id_for_job("postgres", task_id)))
        await client._post("/engine/faults", {"forget": True})
        row = await tables.until_status(task_id, "complete", "failed", within_s=30)
    assert row["status"] == "complete"


async def test_two_workers_share_one_budget_of_lost_renders(
    tables: Tables, engine: Engine, watched_store: WatchedStore
) -> None:
    """Regression: each worker counted alone, so two workers and three attempts made six renders instead of two."""
    task_id = await tables.add({"workflow": sleep_workflow(30)})
    prompt_id = str(prompt_id_for_job("postgres", task_id))
    async with running_worker(tables, engine, watched_store, "a"), running_worker(tables, engine, watched_store, "b"):
        for _ in range(2):
            await until_running(engine, prompt_id)
            await engine.set_faults({"forget": {}})
        row = await tables.until_status(task_id, "failed", "complete", within_s=30)
    assert (row["status"], row["attempts"], row["result"]["error_type"]) == ("failed", 1, "prompt_lost")
