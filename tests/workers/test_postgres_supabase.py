"""The queue and the storage over Supabase's HTTPS API: a stub of the API calls the migrations' real functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIConnectionError, QueueError, QueueSetupError, StorageError, StorageRefusedError
from comfyui.outputs.stores.store import Placement
from comfyui.outputs.stores.supabase import SupabaseApi, SupabaseStorage
from comfyui.workers.postgres.settings import PostgresWorkerSettings
from comfyui.workers.postgres.supabase import SupabaseQueue
from comfyui.workers.postgres.tasks import Lease, WorkerState
from comfyui.workers.postgres.worker import serve
from tests.support.running import executions, invert_workflow, sleep_workflow
from tests.support.supabase_stub import SERVICE_ROLE_KEY, SupabaseStub
from tests.support.tables import Tables


def queue_on(api: SupabaseApi) -> SupabaseQueue:
    return SupabaseQueue(api, lease_s=30, max_attempts=2, retry_delay_s=0)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def fetched(url: str) -> tuple[int, bytes, str]:
    async with aiohttp.ClientSession() as http, http.get(URL(url, encoded=True)) as response:
        return response.status, await response.read(), response.content_type


@asynccontextmanager
async def running_worker(supabase: SupabaseStub, engine: Engine, **settings: Any) -> AsyncIterator[None]:
    chosen: dict[str, Any] = {"poll_interval": 0.1, **settings}
    configured = PostgresWorkerSettings(
        supabase_url=supabase.url,
        supabase_service_role_key=SecretStr(SERVICE_ROLE_KEY),
        comfyui_server_address=(engine.url,),
        **chosen,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(serve(configured, "w", stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await running


async def test_a_task_is_claimed_and_stored_over_https_alone(
    tables: Tables, supabase: SupabaseStub, engine: Engine
) -> None:
    async with running_worker(supabase, engine):
        task_id = await tables.add({"workflow": invert_workflow(prefix="Ausgabe é 日本 #1")})
        row = await tables.until_status(task_id, "complete", "failed")
    assert (row["status"], row["error"]) == ("complete", None)
    assert row["output_url"].startswith(f"{supabase.url}/storage/v1/object/sign/outputs/{task_id}/")
    status, body, content_type = await fetched(row["output_url"])
    assert (status, content_type) == (200, "image/png")
    assert body.startswith(b"\x89PNG")
    assert row["outputs"][0]["key"].isascii()
    assert "日本" in row["outputs"][0]["filename"]
    assert await tables.sql.fetchval("select status from workers where id = 'w'") == "stopped"


async def test_a_cancelled_task_interrupts_comfyui_at_the_next_heartbeat(
    tables: Tables, supabase: SupabaseStub, engine: Engine
) -> None:
    async with running_worker(supabase, engine):
        task_id = await tables.add({"workflow": sleep_workflow(60)})
        await tables.until(task_id, lambda row: row["progress_note"] not in {None, "queued", ""})
        await tables.set_status(task_id, "cancelled")
        following = await tables.add({"workflow": invert_workflow()})
        await tables.until_status(following, "complete")


async def test_temporary_failures_of_supabase_are_retried(
    tables: Tables, supabase: SupabaseStub, engine: Engine
) -> None:
    supabase.failures = [
        ("comfy_schema_version", 503, {"message": "no connection to the database"}),
        ("comfy_claim_task", 502, None),
        ("comfy_worker_seen", 500, None),
        ("/object/outputs", 503, {"statusCode": "503", "error": "DatabaseTimeout"}),
        ("comfy_complete_task", 429, None),
    ]
    task_id = await tables.add({"workflow": invert_workflow()})
    async with running_worker(supabase, engine):
        row = await tables.until_status(task_id, "complete", "failed", within_s=25)
    assert (row["status"], row["attempts"], supabase.failures) == ("complete", 1, [])
    assert set(executions(engine).values()) == {1}


async def test_the_https_queue_keeps_the_promises_of_the_direct_one(tables: Tables, supabase_api: SupabaseApi) -> None:
    task_id = await tables.add({"a": [1, "é"]})
    async with queue_on(supabase_api) as queue:
        token = uuid4()
        task = await queue.claim("w", token)
        assert task is not None
        assert task == await queue.claim("w", token)
        assert (task.id, task.params) == (task_id, {"a": [1, "é"]})
        assert await queue.claim("w", uuid4()) is None
        assert await queue.renew(task, 0.25, "half") is Lease.HELD
        assert await queue.seen("w", WorkerState.IDLE)
        await tables.expire(task_id)
        second = await queue.claim("v", uuid4())
        assert second is not None
        assert await queue.renew(task) is Lease.LOST
        assert not await queue.complete(task, "http://x", [])
        assert await queue.fail(second, "no 'luck'", retry=True)
        assert (await tables.row(task_id))["error"] == "no 'luck'"


async def test_a_refusal_by_supabase_stops_the_start_with_advice(
    tables: Tables, supabase: SupabaseStub, supabase_api: SupabaseApi
) -> None:
    async with SupabaseApi(supabase.url, SecretStr("header.anon.other-s3cret")) as other:
        with pytest.raises(QueueSetupError, match="that the key is the service-role key") as caught:
            async with queue_on(other):
                pass
        assert "other-s3cret" not in repr(caught.value)
        assert "other-s3cret" not in repr(vars(other)["_key"])
    await tables.sql.execute("drop function comfy_schema_version")
    with pytest.raises(QueueSetupError, match="check that the migrations were run"):
        async with queue_on(supabase_api):
            pass


async def test_an_unreachable_project_is_an_error_without_its_address() -> None:
    async with SupabaseApi("http://127.0.0.1:9", SecretStr(SERVICE_ROLE_KEY)) as api:
        with pytest.raises(QueueError, match="Supabase cannot be reached") as caught:
            await queue_on(api).claim("w", uuid4())
        with pytest.raises(StorageError, match="storage cannot be reached") as refused:
            await SupabaseStorage(api, "outputs").put("a.png", chunks(b"x"), 1)
    for error in (caught.value, refused.value):
        assert "127.0.0.1" not in str(error)
        assert "s3cret-word" not in repr(error)


@pytest.mark.parametrize(("key", "bearer"), [(SERVICE_ROLE_KEY, True), ("sb_secret_abc", False)])
async def test_only_json_web_tokens_are_sent_as_bearer_tokens(supabase: SupabaseStub, key: str, bearer: bool) -> None:
    supabase.keys.add(key)
    async with SupabaseApi(supabase.url, SecretStr(key)) as api, queue_on(api):
        pass
    assert ("Authorization" in supabase.headers[-1]) is bearer
    assert supabase.headers[-1]["apikey"] == key


async def test_supabases_redirect_is_not_followed(supabase: SupabaseStub, supabase_api: SupabaseApi) -> None:
    supabase.failures = [("rpc", 307, None)]
    with pytest.raises(QueueSetupError, match="HTTP 307"):
        await queue_on(supabase_api).claim("w", uuid4())


# The storage


async def test_storing_a_file_again_replaces_it_under_the_same_key(
    supabase: SupabaseStub, supabase_api: SupabaseApi
) -> None:
    store = SupabaseStorage(supabase_api, "outputs", prefix="a b", signed_url_s=60)
    await store.put("x/ü.png", chunks(b"old"), 3, "image/png")
    stored = await store.put("x/ü.png", chunks(b"ne", b"w"), 3, "image/png")
    assert (stored.size, stored.bucket) == (3, "outputs")
    assert supabase.buckets["outputs"] == {stored.key: (b"new", "image/png")}
    assert await fetched(stored.url) == (200, b"new", "image/png")
    assert (await fetched(stored.url + "x"))[0] == 400


async def test_files_of_a_public_bucket_have_plain_links(supabase: SupabaseStub, supabase_api: SupabaseApi) -> None:
    stored = await SupabaseStorage(supabase_api, "outputs").put("a.png", chunks(b"x"), 1, "image/png")
    assert stored.url == f"{supabase.url}/storage/v1/object/public/outputs/a.png"
    assert (await fetched(stored.url))[:2] == (200, b"x")


@pytest.mark.parametrize(
    ("bucket", "key", "size", "said"),
    [
        ("missing", SERVICE_ROLE_KEY, 1, "Supabase has no bucket 'missing'"),
        ("outputs", SERVICE_ROLE_KEY, 60 * 1024, "larger than the project's upload limit"),
        ("outputs", "wrong", 1, "refused the key"),
    ],
)
async def test_the_status_in_the_body_decides_the_error(
    supabase: SupabaseStub, bucket: str, key: str, size: int, said: str
) -> None:
    """Supabase sends HTTP 400 for each of these."""
    async with SupabaseApi(supabase.url, SecretStr(key)) as api:
        with pytest.raises(StorageRefusedError, match=said):
            await SupabaseStorage(api, bucket).put("a.png", chunks(b"x" * size), size)


@pytest.mark.parametrize(
    ("status", "body", "retryable"),
    [
        (503, {"statusCode": "503", "error": "SlowDown"}, True),
        (400, {"statusCode": "500", "error": "InternalError"}, True),
        (400, {"statusCode": "429", "error": "TooManyRequests"}, True),
        (400, {"statusCode": "400", "error": "InvalidKey"}, False),
        (502, None, True),
    ],
)
async def test_only_temporary_storage_errors_are_retryable(
    supabase: SupabaseStub, supabase_api: SupabaseApi, status: int, body: Any, retryable: bool
) -> None:
    supabase.failures = [("/object/", status, body)]
    with pytest.raises(StorageError) as caught:
        await SupabaseStorage(supabase_api, "outputs").put("a.png", chunks(b"x"), 1)
    assert caught.value.retryable is retryable


async def test_a_broken_source_raises_its_own_error_and_stores_nothing(
    supabase: SupabaseStub, supabase_api: SupabaseApi
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ComfyUIConnectionError("GET /view: the file's body was cut off", sent=True)

    with pytest.raises(ComfyUIConnectionError, match="cut off"):
        await SupabaseStorage(supabase_api, "outputs").put("a.png", broken(), 8)
    assert supabase.buckets["outputs"] == {}


async def test_a_bucket_that_is_not_allowed_is_refused(supabase_api: SupabaseApi) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(SupabaseStorage(supabase_api, "outputs"))
        with pytest.raises(StorageRefusedError, match="worker's settings"):
            await store.put("a.png", chunks(b"x"), 1, placement=Placement(bucket="other"))
