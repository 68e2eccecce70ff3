"""Tables made by other software, rows written by an orchestrator, and killed workers."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image
from pydantic import SecretStr
from structlog.testing import capture_logs

from comfyui.engine import Engine
from comfyui.exceptions import QueueError, QueueSetupError
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.options import WorkerOptions
from comfyui.workers.postgres.queue import PostgresQueue, migrate
from comfyui.workers.postgres.runner import TaskRunner
from comfyui.workers.postgres.schema import WAN2GP, TaskNames
from comfyui.workers.postgres.tasks import ClaimedTask, Lease, WorkerState
from tests.support.postgres_server import PostgresServer
from tests.support.running import executions, invert_workflow, sleep_workflow
from tests.support.tables import Tables, new_database
from tests.support.watched_store import WatchedStore
from tests.workers.test_postgres_queue import claim
from tests.workers.test_postgres_runner import QUICK, running_worker, serving

_OLD_TASKS = (
    "create table tasks (id uuid primary key default gen_random_uuid(), task_type text, status text, params jsonb"
)
_OLD_WORKERS = "create table workers (id text primary key, status text, last_heartbeat timestamptz"


@asynccontextmanager
async def foreign(postgres: PostgresServer, *statements: str) -> AsyncIterator[Tables]:
    """A database with these tables and without our migrations."""
    async with new_database(postgres) as tables:
        await tables.sql.execute("drop table tasks, workers cascade")
        for statement in statements:
            await tables.sql.execute(statement)
        yield tables


async def migrated(tables: Tables, names: TaskNames | None = None) -> None:
    await migrate(SecretStr(tables.url), names or TaskNames())


# The trial of a migration


@pytest.mark.parametrize(
    ("tasks", "workers", "said"),
    [
        ("", ", instance_type text not null", 'row in the table of workers.*"instance_type"'),
        (", output_url integer", "", 'completion.*"output_url" is of type integer'),
        (", priority text", "", "0001_tables.sql.* types text and integer"),
        (", error text check (error = upper(error))", "", "retry.*violates check constraint"),
        (", progress real check (progress in (0, 1))", "", "heartbeat.*violates check constraint"),
    ],
)
async def test_unusable_tables_are_refused_with_the_reason_and_left_unchanged(
    postgres: PostgresServer, tasks: str, workers: str, said: str
) -> None:
    async with foreign(postgres, f"{_OLD_TASKS}{tasks})", f"{_OLD_WORKERS}{workers})") as tables:
        with pytest.raises(QueueSetupError, match=said):
            await migrated(tables)
        columns = await tables.sql.fetch(
            "select column_name from information_schema.columns where table_name = 'tasks'"
        )
        assert "lease_token" not in {row["column_name"] for row in columns}


async def test_the_trial_of_a_migration_leaves_no_rows_and_takes_no_task(tables: Tables) -> None:
    task_id = await tables.add({"mine": 1})
    await migrated(tables)
    assert await tables.sql.fetchval("select count(*) from workers") == 0
    assert await tables.sql.fetchval("select count(*) from tasks") == 1
    row = await tables.row(task_id)
    assert (row["status"], row["attempts"], row["worker_id"]) == ("queued", 0, None)


async def test_a_table_with_required_columns_is_tried_with_an_existing_row(
    postgres: PostgresServer,
) -> None:
    made = f"{_OLD_TASKS}, project text not null, output_url integer)"
    row = "insert into tasks (task_type, status, project) values ('comfy', 'done', 'p')"
    async with foreign(postgres, made, f"{_OLD_WORKERS})") as tables:
        with capture_logs() as logs:
            await migrated(tables)
        assert [line["event"] for line in logs] == ["migration.warning"]
        assert "there is no task yet" in logs[0]["detail"]
    async with foreign(postgres, made, f"{_OLD_WORKERS})", row) as tables:
        with pytest.raises(QueueSetupError, match=r'completion.*"output_url" is of type integer'):
            await migrated(tables)
        assert await tables.sql.fetchval("select status from tasks") == "done"


async def test_null_attempts_and_run_times_are_accepted(postgres: PostgresServer) -> None:
    tasks = f"{_OLD_TASKS}, attempts integer)"
    rows = "insert into tasks (task_type, status, params) values ('comfy', 'queued', '{}'), ('comfy', 'queued', '{}')"
    async with foreign(postgres, tasks, f"{_OLD_WORKERS})", rows) as tables:
        await migrated(tables)
        async with tables.queue(max_attempts=2) as queue:
            first = await claim(queue)
            assert first.attempt == 1
            assert await queue.fail(first, "a moment", retry=True)
            await tables.sql.execute("update tasks set attempts = null, run_after = null where status = 'queued'")
            assert {(await claim(queue)).attempt, (await claim(queue)).attempt} == {1}


# Headless-Wan2GP


def _video_workflow() -> dict[str, Any]:
    load = {"video": "input.mp4", "force_rate": 0, "custom_width": 0, "custom_height": 0, "frame_load_cap": 0}
    combine = {"frame_rate": 30, "loop_count": 0, "filename_prefix": "wan", "format": "video/h264-mp4"}
    return {
        "1": {"class_type": "VHS_LoadVideo", "inputs": {**load, "skip_first_frames": 0, "select_every_nth": 1}},
        "2": {
            "class_type": "VHS_VideoCombine",
            "inputs": {"images": ["1", 0], **combine, "save_output": True, "pingpong": False},
        },
    }


async def test_the_queries_of_the_original_worker_run_unchanged(
    postgres: PostgresServer, engine: Engine, tmp_path: Path
) -> None:
    """The queries come from its documentation; the migration made the tables with the preset."""
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    insert = "INSERT INTO tasks (task_type, params, status) VALUES ('comfy', $1, 'queued')"
    async with new_database(postgres, WAN2GP) as tables, serving("/input.gif", animation.getvalue()) as url:
        params = {"video_url": url, "video_node_id": "1", "video_input_field": "video"}
        await tables.sql.execute(insert, json.dumps({"workflow": _video_workflow(), **params}))
        async with running_worker(tables, engine, WatchedStore(tmp_path / "store"), "comfy-worker-123"):
            async with asyncio.timeout(30):
                while not (rows := await tables.sql.fetch(_LATEST_TASKS)) or rows[0]["completed_at"] is None:
                    await asyncio.sleep(0.02)
            workers = await tables.sql.fetch(_LATEST_WORKERS)
        assert [(row["task_type"], row["status"]) for row in rows] == [("comfy", "complete")]
        assert rows[0]["created_at"] <= rows[0]["started_at"] <= rows[0]["completed_at"]
        assert [(row["id"], row["status"]) for row in workers] == [("comfy-worker-123", "active")]
        assert workers[0]["last_heartbeat"] is not None
        output = await tables.sql.fetchval("SELECT output_url FROM tasks WHERE task_id = $1", rows[0]["task_id"])
        assert output.startswith("http://files.test/")
        assert output.endswith(".mp4")
        assert await tables.sql.fetch("SELECT output_url FROM tasks WHERE task_id = 'abc-123'") == []


_LATEST_WORKERS = """
    SELECT id, status, current_task_id, last_heartbeat
    FROM workers
    WHERE id LIKE 'comfy-worker-%'
    ORDER BY created_at DESC;
"""
_LATEST_TASKS = """
    SELECT task_id, task_type, status, created_at, started_at, completed_at
    FROM tasks
    WHERE task_type = 'comfy'
    ORDER BY created_at DESC
    LIMIT 10;
"""


# Orchestrators


async def test_a_terminating_worker_finishes_its_task_and_takes_no_other(
    tables: Tables, engine: Engine, tmp_path: Path
) -> None:
    first = await tables.add({"workflow": sleep_workflow(0.6)})
    async with running_worker(tables, engine, WatchedStore(tmp_path / "store")):
        await tables.until(first, lambda row: row["status"] == "in_progress")
        await tables.sql.execute("update workers set status = 'terminating'")
        second = await tables.add({"workflow": invert_workflow(2)})
        await tables.until_status(first, "complete")
        await _until(lambda: _worker_is(tables, status="terminating", current_task_id=None))
        assert (await tables.row(second))["status"] == "queued"
        await tables.sql.execute("update workers set status = 'idle'")
        await tables.until_status(second, "complete")


async def test_a_claim_of_a_terminating_worker_gets_no_task(tables: Tables) -> None:
    await tables.add({})
    async with tables.queue() as queue:
        assert await queue.seen("w", WorkerState.IDLE)
        await tables.sql.execute("update workers set status = 'terminating'")
        assert await queue.claim("w", uuid4()) is None
        assert not await queue.seen("w", WorkerState.IDLE)
        assert await queue.claim("other", uuid4()) is not None


async def test_a_workers_row_and_status_from_an_orchestrator_are_kept(postgres: PostgresServer) -> None:
    """The orchestrator inserts the row before the worker starts and fills columns that the worker does not know."""
    async with new_database(postgres) as tables:
        await tables.sql.execute(
            "alter table workers add instance_type text not null default 'x'; alter table workers alter instance_type"
            " drop default; insert into workers (id, status, instance_type) values ('w', 'spawning', 'gpu')"
        )
        async with tables.queue() as queue:
            assert await queue.seen("w", WorkerState.WORKING)
        row = (await tables.workers())["w"]
        assert (row["status"], row["instance_type"]) == ("spawning", "gpu")
        assert row["last_heartbeat"] is not None


async def test_worker_statuses_can_be_renamed(postgres: PostgresServer) -> None:
    names = TaskNames(worker_statuses={"idle": "free", "working": "busy", "terminating": "drain|error"})
    async with new_database(postgres, names) as tables, tables.queue() as queue:
        for state, word in (
            (WorkerState.IDLE, "free"),
            (WorkerState.WORKING, "busy"),
            (WorkerState.STOPPED, "stopped"),
        ):
            assert await queue.seen("w", state)
            assert (await tables.workers())["w"]["status"] == word
        for word in ("drain", "error"):
            await tables.sql.execute("update workers set status = $1", word)
            assert not await queue.seen("w", WorkerState.IDLE)
            assert (await tables.workers())["w"]["status"] == word


async def test_a_killed_worker_is_marked_dead(tables: Tables) -> None:
    task_id = await tables.add({})
    async with tables.queue() as queue:
        task = await claim(queue, "killed")
        await queue.seen("killed", WorkerState.WORKING, task)
        await queue.seen("alive", WorkerState.IDLE)
        await tables.sql.execute("insert into workers (id, status) values ('of others', 'working')")
        await tables.sql.execute("update workers set alive_until = now() - interval '1 second' where id = 'killed'")
        await tables.expire(task_id)
        await claim(queue, "alive")
        rows = await tables.workers()
        assert (rows["killed"]["status"], rows["killed"]["current_task_id"]) == ("dead", None)
        assert (rows["alive"]["status"], rows["of others"]["status"]) == ("idle", "working")
        assert await queue.seen("killed", WorkerState.IDLE)
        assert (await tables.workers())["killed"]["status"] == "idle"


class BrokenRows(PostgresQueue):
    """A queue that cannot write a worker's row, as when the table has a required column of its own."""

    broken = True
    renewals = 0

    async def seen(self, worker_id: str, state: WorkerState, task: ClaimedTask | None = None) -> bool:
        if self.broken:
            raise QueueError('null value in column "instance_type"')
        return await super().seen(worker_id, state, task)

    async def renew(self, task: ClaimedTask, progress: float | None = None, note: str = "") -> Lease:
        self.renewals += 1
        return await super().renew(task, progress, note)


async def test_a_worker_that_cannot_write_its_row_keeps_its_task_and_takes_no_other(
    tables: Tables, engine: Engine, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    first = await tables.add({"workflow": invert_workflow(1)})
    queue = BrokenRows(SecretStr(tables.url), lease_s=30, max_attempts=3, retry_delay_s=0)
    async with ComfyUIWorker(WorkerOptions(engine.url)) as comfyui, WatchedStore(tmp_path / "store") as store, queue:
        await comfyui.wait_until_ready()
        running = asyncio.create_task(TaskRunner("w", queue, comfyui, store, QUICK).run(stop))
        beats = _Beats(queue)
        await beats.next(3)
        assert (await tables.row(first))["status"] == "queued"
        queue.broken = False
        await tables.until_status(first, "complete")
        second = await tables.add({"workflow": sleep_workflow(1.0)})
        await tables.until(second, lambda row: row["status"] == "in_progress")
        queue.broken = True
        renewed = queue.renewals
        await tables.until_status(second, "complete")
        assert queue.renewals > renewed
        stop.set()
        await running
    assert set(executions(engine).values()) == {1}


class _Beats:
    """Counts the heartbeats that the runner asks a queue to write."""

    def __init__(self, queue: BrokenRows) -> None:
        self._count = 0
        self._more = asyncio.Event()
        seen = queue.seen

        async def counted(worker_id: str, state: WorkerState, task: ClaimedTask | None = None) -> bool:
            self._count += 1
            self._more.set()
            return await seen(worker_id, state, task)

        queue.seen = counted  # type: ignore[method-assign]

    async def next(self, count: int) -> None:
        wanted = self._count + count
        async with asyncio.timeout(30):
            while self._count < wanted:
                self._more.clear()
                await self._more.wait()


# Priorities and dead tasks


async def test_a_higher_priority_comes_first_and_null_counts_as_zero(tables: Tables) -> None:
    await tables.sql.execute("alter table tasks alter priority drop not null")
    low = await tables.add({}, priority=-1)
    none = await tables.add({}, priority=None)
    plain = await tables.add({})
    high = await tables.add({}, priority=5)
    async with tables.queue() as queue:
        assert [(await claim(queue)).id for _ in range(4)] == [high, none, plain, low]


async def test_the_dead_tasks_view_lists_failed_and_abandoned_tasks_for_requeueing(tables: Tables) -> None:
    failed, held, orphan, _waiting = [await tables.add({}) for _ in range(4)]
    async with tables.queue() as queue:
        tasks = {task.id: task for task in [await claim(queue) for _ in range(3)]}
        assert await queue.fail(tasks[failed], "no luck", retry=False)
        await tables.expire(orphan)
        rows = {row["task_id"]: row for row in await tables.sql.fetch("select * from comfy_dead_tasks")}
        assert {task_id: row["status"] for task_id, row in rows.items()} == {failed: "failed", orphan: "in_progress"}
        assert rows[failed]["error"] == "no luck"
        await tables.sql.execute(
            "update tasks set status = 'queued' where id::text in (select task_id from comfy_dead_tasks)"
        )
        assert await tables.sql.fetchval("select count(*) from comfy_dead_tasks") == 0
        assert (await tables.row(held))["status"] == "in_progress"


async def test_a_version_1_worker_can_renew_its_lease_after_the_migration(tables: Tables) -> None:
    await tables.add({})
    async with tables.queue() as queue:
        task = await claim(queue, "old")
        beat = "select comfy_heartbeat('old', 'working', $1, $2, 60, 0.5, 'half')"
        assert await tables.sql.fetchval(beat, task.id, task.token) == "held"
        assert (await tables.workers())["old"]["current_task_id"] == task.id
        assert (await tables.row(task.id))["progress_note"] == "half"


async def _worker_is(tables: Tables, **columns: Any) -> bool:
    return any(all(row[name] == value for name, value in columns.items()) for row in (await tables.workers()).values())


async def _until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await is_so():
            await asyncio.sleep(0.02)
