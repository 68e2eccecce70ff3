"""The queue's promises, on a real Postgres."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from comfyui.exceptions import QueueError, QueueSetupError
from comfyui.workers.postgres.queue import PostgresQueue, migrate
from comfyui.workers.postgres.schema import TaskNames
from comfyui.workers.postgres.tasks import ClaimedTask, Lease, WorkerState
from tests.support.postgres_server import PostgresServer
from tests.support.tables import Tables, new_database


async def claim(queue: PostgresQueue, worker: str = "w") -> ClaimedTask:
    task = await queue.claim(worker, uuid4())
    assert task is not None
    return task


async def test_eight_concurrent_workers_claim_each_of_200_tasks_once(tables: Tables) -> None:
    await tables.sql.execute("insert into tasks (params) select '{}' from generate_series(1, 200)")
    async with tables.queue(connections=8) as queue:

        async def worker(name: str) -> list[str]:
            taken = []
            while (task := await queue.claim(name, uuid4())) is not None:
                taken.append(task.id)
            return taken

        taken = await asyncio.gather(*(worker(f"w{number}") for number in range(8)))
    every = [task_id for ids in taken for task_id in ids]
    assert len(every) == len(set(every)) == 200


async def test_the_oldest_task_is_claimed_first_and_other_types_never(tables: Tables) -> None:
    await tables.sql.execute("insert into tasks (params, task_type) values ('{}', 'training')")
    first = await tables.add({"n": 1})
    second = await tables.add({"n": 2})
    async with tables.queue() as queue:
        assert [(await claim(queue)).id, (await claim(queue)).id] == [first, second]
        assert await queue.claim("w", uuid4()) is None


async def test_repeating_a_claim_with_the_same_token_returns_the_same_task(tables: Tables) -> None:
    await tables.add({})
    await tables.add({})
    async with tables.queue() as queue:
        token = uuid4()
        assert await queue.claim("w", token) == await queue.claim("w", token)
        assert await tables.sql.fetchval("select count(*) from tasks where status = 'queued'") == 1


async def test_an_expired_lease_goes_to_another_worker_and_the_first_can_write_nothing(tables: Tables) -> None:
    task_id = await tables.add({})
    async with tables.queue() as queue:
        first = await claim(queue, "first")
        await tables.expire(task_id)
        second = await claim(queue, "second")
        assert (second.id, second.attempt, second.job_id) == (first.id, 2, first.job_id)
        assert await queue.renew(first, 0.9, "too late") is Lease.LOST
        assert not await queue.complete(first, "http://wrong", [])
        assert not await queue.fail(first, "wrong", retry=False)
        assert not await queue.fail(first, "wrong", retry=True)
        row = await tables.row(task_id)
        assert (row["status"], row["worker_id"], row["error"], row["progress"]) == ("in_progress", "second", None, 0)
        assert await queue.complete(second, "http://right", [{"url": "http://right"}])
        assert (await tables.row(task_id))["output_url"] == "http://right"


async def test_a_heartbeat_extends_the_lease_and_records_the_progress(tables: Tables) -> None:
    task_id = await tables.add({})
    async with tables.queue() as queue:
        task = await claim(queue)
        before = (await tables.row(task_id))["lease_expires_at"]
        assert await queue.renew(task, 0.5, "KSampler 5/10") is Lease.HELD
        assert await queue.seen("w", WorkerState.WORKING, task)
        row = await tables.row(task_id)
        assert row["lease_expires_at"] > before
        assert (row["progress"], row["progress_note"]) == (0.5, "KSampler 5/10")
        worker = await tables.sql.fetchrow("select * from workers")
        assert (worker["id"], worker["status"], worker["current_task_id"]) == ("w", "working", task_id)
        assert worker["last_heartbeat"] is not None


async def test_a_task_whose_workers_all_vanish_fails_after_its_last_attempt(tables: Tables) -> None:
    task_id = await tables.add({})
    async with tables.queue(max_attempts=2) as queue:
        for _ in range(2):
            await claim(queue, "gpu-7")
            await tables.expire(task_id)
        assert await queue.claim("w", uuid4()) is None
    row = await tables.row(task_id)
    assert row["status"] == "failed"
    assert row["error"] == "given up after 2 attempts: each time the worker vanished, the last was gpu-7"


async def test_a_retryable_failure_is_queued_again_until_the_last_attempt(tables: Tables) -> None:
    task_id = await tables.add({})
    async with tables.queue(max_attempts=2) as queue:
        first = await claim(queue)
        assert await queue.fail(first, "ComfyUI is unreachable", retry=True)
        assert (await tables.row(task_id))["status"] == "queued"
        second = await claim(queue)
        assert second.job_id == first.job_id
        assert await queue.fail(second, "ComfyUI is unreachable", retry=True)
        row = await tables.row(task_id)
        assert (row["status"], row["attempts"], row["error"]) == ("failed", 2, "ComfyUI is unreachable")


async def test_a_requeued_task_waits_for_the_retry_delay(tables: Tables) -> None:
    task_id = await tables.add({})
    async with tables.queue(retry_delay_s=60) as queue:
        assert await queue.fail(await claim(queue), "later", retry=True)
        assert await queue.claim("w", uuid4()) is None
        await tables.sql.execute("update tasks set run_after = now()")
        assert (await claim(queue)).id == task_id


@pytest.mark.parametrize("end", ["complete", "failed", "cancelled"])
async def test_a_task_requeued_after_its_end_is_a_new_job_with_all_attempts(tables: Tables, end: str) -> None:
    task_id = await tables.add({})
    async with tables.queue() as queue:
        first = await claim(queue)
        if end == "complete":
            assert await queue.complete(first, "http://old", [{}])
        elif end == "failed":
            assert await queue.fail(first, "old reason", retry=False)
        else:
            await tables.set_status(task_id, "cancelled")
        await tables.set_status(task_id, "queued")
        row = await tables.row(task_id)
        assert (row["attempts"], row["output_url"], row["outputs"], row["error"]) == (0, None, None, None)
        again = await claim(queue)
        assert again.attempt == 1
        assert again.job_id != first.job_id
        assert not await queue.complete(first, "http://old", [{}])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("update tasks set status = 'cancelled'", Lease.STOP),
        ("delete from tasks", Lease.STOP),
        ("update tasks set status = 'queued'", Lease.LOST),
        ("update tasks set status = 'failed'", Lease.LOST),
    ],
)
async def test_a_users_change_to_a_running_task_reaches_its_worker(tables: Tables, change: str, verdict: Lease) -> None:
    await tables.add({})
    async with tables.queue() as queue:
        task = await claim(queue)
        await tables.sql.execute(change)
        assert await queue.renew(task) is verdict
        assert not await queue.complete(task, "http://x", [])


async def test_new_and_cancelled_tasks_are_notified_at_once(tables: Tables) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with tables.queue() as queue, asyncio.timeout(30):
        queue.listen(heard.put_nowait)
        assert await heard.get() == ""  # it listens now
        task_id = await tables.add({})
        assert await heard.get() == task_id
        await claim(queue)
        await tables.set_status(task_id, "cancelled")
        assert await heard.get() == task_id


async def test_listening_continues_after_the_connection_was_cut(tables: Tables) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with tables.queue() as queue, asyncio.timeout(20):
        queue.listen(heard.put_nowait)
        assert await heard.get() == ""
        await tables.sql.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        assert await heard.get() == ""
        task_id = await tables.add({})
        assert await heard.get() == task_id
        while True:
            try:
                assert (await claim(queue)).id == task_id
                break
            except QueueError:
                continue


async def test_an_unreachable_database_is_an_error_without_its_address() -> None:
    url = SecretStr("postgresql://robot:s3cret-word@127.0.0.1:9/tasks")
    with pytest.raises(QueueError) as caught:
        async with PostgresQueue(url, lease_s=1, max_attempts=1, retry_delay_s=0):
            pass
    assert "s3cret-word" not in repr(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert not isinstance(caught.value, QueueSetupError)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", ["mysql://robot:s3cret-word@host/x", "postgresql://robot:s3cret-word@h:none/x", "x"])
async def test_an_invalid_database_url_stops_the_start_and_is_not_repeated(url: str) -> None:
    with pytest.raises(QueueSetupError, match="DATABASE_URL") as caught:
        async with PostgresQueue(SecretStr(url), lease_s=1, max_attempts=1, retry_delay_s=0):
            pass
    assert "s3cret-word" not in repr(caught.value)


async def test_a_database_without_the_migrations_is_an_error_that_names_migrate(postgres: PostgresServer) -> None:
    with pytest.raises(QueueSetupError, match="--migrate"):
        async with PostgresQueue(SecretStr(postgres.url()), lease_s=1, max_attempts=1, retry_delay_s=0):
            pass


async def test_migrations_can_run_repeatedly_and_concurrently(tables: Tables) -> None:
    await tables.add({"kept": 1})
    await asyncio.gather(*(migrate(SecretStr(tables.url), TaskNames()) for _ in range(3)))
    assert await tables.sql.fetchval("select count(*) from tasks") == 1


WAN2GP = TaskNames(
    columns={"output_url": "output_location", "error": "error_message"},
    statuses={
        "queued": "Queued",
        "in_progress": "In Progress",
        "complete": "Complete",
        "failed": "Failed",
        "cancelled": "Cancelled",
    },
)


async def test_an_existing_table_keeps_its_rows_columns_and_status_names(postgres: PostgresServer) -> None:
    """The table of Headless-Wan2GP: statuses of an enumeration, numbers as ids, other names of columns."""
    async with new_database(postgres) as tables:
        await tables.sql.execute("drop table tasks, workers cascade")
        await tables.sql.execute(
            "create type task_status as enum ('Queued', 'In Progress', 'Complete', 'Failed', 'Cancelled');"
            "create table tasks (id bigserial primary key, task_type text, params jsonb, worker_id text,"
            " status task_status not null default 'Queued', attempts integer not null default 0,"
            " output_location text, error_message text, created_at timestamptz not null default now());"
            "create table workers (id text primary key, status text, last_heartbeat timestamptz);"
            "insert into tasks (task_type, params) values ('comfy', '{\"n\": 1}'), ('comfy', '{\"n\": 2}')"
        )
        await migrate(SecretStr(tables.url), WAN2GP)
        async with tables.queue() as queue:
            first, second = await claim(queue), await claim(queue)
            assert (first.id, first.params) == ("1", {"n": 1})
            assert await queue.renew(first, 0.5) is Lease.HELD
            assert await queue.complete(first, "http://x", [{"url": "http://x"}])
            assert await queue.fail(second, "out of luck", retry=False)
        rows = await tables.sql.fetch("select * from tasks order by id")
        assert [row["status"] for row in rows] == ["Complete", "Failed"]
        assert rows[0]["output_location"] == "http://x"
        assert rows[1]["error_message"] == "out of luck"


async def test_names_with_quotes_and_sql_commands_are_only_names(postgres: PostgresServer) -> None:
    names = TaskNames(
        tasks='robert"; drop table "students',
        workers="public.my workers",
        columns={"output_url": 'the "url"; select 1 --', "status": "'state'"},
        statuses={"queued": "it's waiting", "failed": "'); drop table students; --"},
        task_types=("comfy's", "other"),
    )
    async with new_database(postgres, names) as tables:
        await tables.sql.execute("create table students (name text)")
        await tables.sql.execute(
            'insert into "robert""; drop table ""students" (params) values (\'{"n": 1}\'), (\'{}\')'
        )
        async with tables.queue() as queue:
            task = await claim(queue)
            assert await queue.fail(task, "no", retry=False)
            assert await queue.complete(await claim(queue), "http://x", [])
        found = await tables.sql.fetch('select "\'state\'" as state from "robert""; drop table ""students"')
        assert {row["state"] for row in found} == {"'); drop table students; --", "complete"}
        assert await tables.sql.fetchval('select count(*) from "my workers"') == 0
        assert await tables.sql.fetchval("select count(*) from students") == 0


async def test_supabases_public_key_can_use_neither_tables_nor_functions(postgres: PostgresServer) -> None:
    """The test makes Supabase's roles; the migration revokes what `anon` is granted on new tables and functions."""
    async with new_database(postgres) as tables:
        await tables.sql.execute("drop table tasks, workers cascade")
        await tables.sql.execute("create role anon; create role authenticated; create role service_role bypassrls")
        try:
            await tables.sql.execute(
                "alter default privileges grant all on tables to anon, service_role;"
                "alter default privileges grant all on functions to anon, service_role"
            )
            await migrate(SecretStr(tables.url), TaskNames())
            await tables.add({})
            await tables.sql.execute("set role anon")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await tables.sql.fetch("select * from comfy_dead_tasks")
            assert await tables.sql.fetchval("select count(*) from tasks") == 0
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await tables.sql.fetch("select * from comfy_claim_task('x', gen_random_uuid(), 60, 3)")
            await tables.sql.execute("set role service_role")
            assert (
                await tables.sql.fetchval("select count(*) from comfy_claim_task('x', gen_random_uuid(), 60, 3)") == 1
            )
        finally:
            await tables.sql.execute("reset role; drop owned by anon, authenticated, service_role cascade")
            await tables.sql.execute("drop role anon; drop role authenticated; drop role service_role")
