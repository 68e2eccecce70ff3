"""The files of an async job go to the requested store at its end, even if no client asks for the result."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from yarl import URL

from comfyui.engine import Engine
from comfyui.exceptions import StorageError
from comfyui.jobs.queue_options import QueueOptions
from comfyui.web.api.rendering import JobRenderer
from tests.support.jobs import ASYNC, fetch, listed, status_is, submit
from tests.support.keys import KEY
from tests.support.object_store import OUTPUTS_BUCKET
from tests.support.receivers import SECRET, Receiver
from tests.support.running import (
    Change,
    RunningGateway,
    executions,
    handler_options,
    invert_workflow,
    running_gateway,
    until,
)
from tests.support.watched_store import WatchedStore

_S3 = {"store": "s3"}


def storing_in(store: WatchedStore) -> Change:
    """Returns a change for `running_gateway` that uses this store instead of S3."""
    return lambda made: replace(made, store=store)


async def ended(gateway: RunningGateway, count: int = 1) -> list[Any]:
    """Returns the listed jobs once this number has ended, without fetching a result."""
    query = "?status=succeeded,failed,canceled,lost"
    page = await until(lambda: listed(gateway.http, query), lambda page: len(page["jobs"]) == count, timeout_s=30)
    jobs: list[Any] = page["jobs"]
    return jobs


async def told(gateway: RunningGateway, prompt_id: str) -> Any:
    """Returns the data in the webhook of a succeeded job."""
    running, journal = gateway.app.running, gateway.handler.journal
    record, kept = await journal.get(prompt_id), await journal.result_of(prompt_id)
    assert record is not None
    assert kept is not None
    renderer = JobRenderer(running.deliverer, running.tickets)
    return orjson.loads(await renderer.succeeded(prompt_id, record.owner, kept))


async def executions_of(engine: Engine) -> int:
    return len(executions(engine))


async def bytes_at(url: str) -> bytes:
    async with aiohttp.ClientSession() as http, http.get(URL(url, encoded=True)) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def test_files_are_in_the_bucket_without_a_reader_and_get_new_links(
    engine: Engine, s3_variables: dict[str, Any], tmp_path: Path
) -> None:
    place = {"store": "s3", "prefix": "team 7", "presign_seconds": 60}
    convert = {"format": "webp"}
    settings: dict[str, Any] = {
        **s3_variables,
        "api_keys": KEY,
        "public_url": "https://example.org",
        "state_dir": tmp_path,
    }
    headers = {"X-API-Key": KEY}
    async with running_gateway(engine.url, **settings) as gateway:
        gateway.http.headers.update(headers)
        prompt_id = await submit(gateway.http, invert_workflow(), output=place, convert=convert)
        await ended(gateway)
        (said,) = (await told(gateway, prompt_id))["images"]
        assert said["bucket"] == OUTPUTS_BUCKET
        assert said["key"].endswith(f"/{prompt_id}/test_00001_.webp")
        assert (said["filename"], said["content_type"], said["converted"]) == ("test_00001_.webp", "image/webp", True)
        assert URL(said["url"], encoded=True).query["X-Amz-Expires"] == "60"
        content = await bytes_at(said["url"])
        assert content[8:12] == b"WEBP"
        assert len(content) == said["size"]
        assert said["view_url"].startswith("https://example.org/view?")
        assert "&ticket=" in said["view_url"]
    async with running_gateway(engine.url, **settings) as again:
        again.http.headers.update(headers)
        _, result = await fetch(again.http, prompt_id)
        (image,) = result["images"]
        assert {**image, "url": 0, "view_url": 0} == {**said, "url": 0, "view_url": 0}
        assert await bytes_at(image["url"]) == content
        assert image["view_url"] == said["view_url"].partition("&ticket=")[0]
        async with again.http.get(f"/prompt_sync/{prompt_id}?store=none") as response:
            assert (await response.json())["images"][0]["url"] == image["view_url"]


async def test_a_webhook_names_the_stored_file(engine: Engine, webhook_receiver: Receiver, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "public_url": "https://example.org",
        "webhook_secret": SECRET,
        "webhook_url_allow": "127.0.0.1",
    }
    async with running_gateway(engine.url, changed=storing_in(WatchedStore(tmp_path)), **settings) as gateway:
        await submit(gateway.http, invert_workflow(), output=_S3, webhook={"url": webhook_receiver.url()})
        (came,) = await webhook_receiver.got(1)
    (image,) = orjson.loads(came.body)["data"]["images"]
    assert image["url"].startswith("http://files.test/")
    assert image["view_url"].startswith("https://example.org/view?")
    assert (tmp_path / image["key"]).read_bytes()[:4] == b"\x89PNG"


async def test_async_jobs_are_stored_by_default_unless_they_decline(engine: Engine, tmp_path: Path) -> None:
    store = WatchedStore(tmp_path / "files")
    async with running_gateway(engine.url, changed=_by_default(store)) as gateway:
        stored = await submit(gateway.http, invert_workflow(1))
        declined = await submit(gateway.http, invert_workflow(2), output={"store": "none"})
        await ended(gateway, 2)
        assert (await told(gateway, stored))["images"][0]["url"].startswith("http://files.test/")
        assert (await told(gateway, declined))["images"][0]["url"].startswith("/view?")


def _by_default(store: WatchedStore) -> Change:
    return lambda made: replace(made, store=store, delivery=replace(made.delivery, store_by_default=True))


async def test_a_file_is_uploaded_once_for_many_requests(engine: Engine, tmp_path: Path) -> None:
    store, uploads = WatchedStore(tmp_path / "files"), list[str]()

    async def count(key: str) -> None:
        uploads.append(key)

    store.before = count
    async with running_gateway(engine.url, changed=storing_in(store)) as gateway:
        body = {"prompt": invert_workflow(), "output": _S3}
        wanted = {"Prefer": "respond-async, wait=20"}
        async with gateway.http.post("/prompt_sync", json=body, headers=wanted) as response:
            assert response.status == 200
            result = await response.json()
        prompt_id = result["prompt_id"]
        assert result["images"][0]["url"].startswith("http://files.test/")
        for query in ("", "?store=s3"):
            async with gateway.http.get(f"/prompt_sync/{prompt_id}{query}") as response:
                assert (await response.json())["images"] == result["images"]
        async with gateway.http.get(f"/prompt_sync/{prompt_id}?store=s3&prefix=elsewhere") as response:
            assert (await response.json())["images"][0]["key"].startswith("elsewhere/")
    assert uploads == [f"{prompt_id}/test_00001_.png"] * 2


async def test_a_store_that_fails_for_a_moment_costs_nothing(engine: Engine, tmp_path: Path) -> None:
    store = WatchedStore(tmp_path / "files")
    store.failures = [StorageError("away"), StorageError("away")]
    async with running_gateway(engine.url, changed=storing_in(store)) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), output=_S3)
        (job,) = await ended(gateway)
        assert job["status"] == "succeeded"
        (image,) = (await told(gateway, prompt_id))["images"]
        assert image["url"].startswith("http://files.test/")
        assert "error" not in image
    assert executions(engine) == {prompt_id: 1}


async def test_a_store_that_stays_down_fails_no_job_and_files_can_be_stored_later(
    engine: Engine, tmp_path: Path
) -> None:
    store = WatchedStore(tmp_path / "files")
    store.failures = [StorageError("away")] * 100

    def impatient(made: Any) -> Any:
        return replace(made, store=store, delivery=replace(made.delivery, at_end_s=0.2))

    async with running_gateway(engine.url, changed=impatient) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), output=_S3)
        (job,) = await ended(gateway)
        assert job["status"] == "succeeded"
        (image,) = (await told(gateway, prompt_id))["images"]
        assert image["error"]
        assert image["url"].startswith("/view?")
        assert "bucket" not in image
        store.failures.clear()
        async with gateway.http.get(f"/prompt_sync/{prompt_id}?store=s3") as response:
            (image,) = (await response.json())["images"]
        assert image["url"].startswith("http://files.test/")
        assert "error" not in image


async def test_a_job_that_is_being_stored_counts_as_running_and_can_be_canceled(engine: Engine, tmp_path: Path) -> None:
    store, reached, go_on = WatchedStore(tmp_path / "files"), asyncio.Event(), asyncio.Event()

    async def hold(_key: str) -> None:
        reached.set()
        await go_on.wait()

    store.before = hold
    async with running_gateway(engine.url, changed=storing_in(store)) as gateway:
        first = await submit(gateway.http, invert_workflow(1), output=_S3)
        await reached.wait()
        await status_is(gateway.http, first, "running")
        async with gateway.http.delete(f"/prompt_sync/{first}") as response:
            assert response.status == 200
        assert (await ended(gateway))[0]["status"] == "canceled"
        reached.clear()
        second = await submit(gateway.http, invert_workflow(2), output=_S3)
        await reached.wait()
        waiting = asyncio.create_task(fetch(gateway.http, second))
        go_on.set()
        status, result = await waiting
        assert (status, result["images"][0]["url"].startswith("http://files.test/")) == (200, True)


async def test_jobs_that_wait_for_the_store_do_not_block_rendering(engine: Engine, tmp_path: Path) -> None:
    store = WatchedStore(tmp_path / "files")
    store.failures = [StorageError("away")] * 1000
    async with running_gateway(engine.url, changed=storing_in(store)) as gateway:
        storing = [await submit(gateway.http, invert_workflow(number), output=_S3) for number in range(8)]
        other = await submit(gateway.http, invert_workflow(8))
        assert [job["prompt_id"] for job in await ended(gateway)] == [other]
        for prompt_id in storing:
            await status_is(gateway.http, prompt_id, "running")
        store.failures.clear()
        jobs = await ended(gateway, 9)
        assert {job["status"] for job in jobs} == {"succeeded"}
    assert executions(engine) == dict.fromkeys([*storing, other], 1)


async def test_no_job_is_started_while_too_many_wait_for_the_store(engine: Engine, tmp_path: Path) -> None:
    store, go_on = WatchedStore(tmp_path / "files"), asyncio.Event()

    async def hold(_key: str) -> None:
        await go_on.wait()

    store.before = hold
    few = handler_options(queue=QueueOptions(storing=2, ahead=1))
    async with running_gateway(engine.url, changed=lambda made: few(storing_in(store)(made))) as gateway:
        submitted = [await submit(gateway.http, invert_workflow(number), output=_S3) for number in range(6)]
        for prompt_id in submitted[:2]:
            await status_is(gateway.http, prompt_id, "running")
        await until(lambda: executions_of(engine), lambda count: count == 2)
        sync = await gateway.http.post("/prompt_sync", json={"prompt": invert_workflow(9)})
        assert sync.status == 200, "other calls still run"
        assert [job["status"] for job in (await listed(gateway.http, "?status=queued"))["jobs"]] == ["queued"] * 4
        go_on.set()
        assert {job["status"] for job in (await ended(gateway, 7))} == {"succeeded"}


async def test_an_upload_interrupted_by_a_restart_is_repeated_without_a_new_run(engine: Engine, tmp_path: Path) -> None:
    store, reached = WatchedStore(tmp_path / "files"), asyncio.Event()

    async def hold(_key: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    store.before = hold
    state = tmp_path / "state"
    async with running_gateway(engine.url, changed=storing_in(store), state_dir=state) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), output=_S3)
        await reached.wait()
    store.before = None
    async with running_gateway(engine.url, changed=storing_in(store), state_dir=state) as again:
        await ended(again)
        (image,) = (await told(again, prompt_id))["images"]
        assert image["url"].startswith("http://files.test/")
    assert executions(engine) == {prompt_id: 1}


async def test_without_the_former_store_results_link_to_the_files_of_comfyui(engine: Engine, tmp_path: Path) -> None:
    state = tmp_path / "state"
    store = WatchedStore(tmp_path / "files")
    async with running_gateway(engine.url, changed=storing_in(store), state_dir=state) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), output=_S3)
        await ended(gateway)
    async with running_gateway(engine.url, state_dir=state) as without:
        (image,) = (await fetch(without.http, prompt_id))[1]["images"]
        assert image["url"].startswith("/view?")
        assert "no object store" in image["error"]


async def test_an_unavailable_output_store_is_refused_before_the_202(gateway: RunningGateway) -> None:
    body = {"prompt": invert_workflow(), "output": _S3}
    async with gateway.http.post("/prompt_sync", json=body, headers=ASYNC) as response:
        assert (response.status, (await response.json())["type"]) == (400, "storage_refused")


@pytest.mark.parametrize("accept", ["image/png", "application/zip"])
async def test_stored_files_can_still_be_fetched_as_bytes(accept: str, engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, changed=storing_in(WatchedStore(tmp_path))) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), output=_S3)
        await ended(gateway)
        async with gateway.http.get(f"/prompt_sync/{prompt_id}", headers={"Accept": accept}) as response:
            assert (response.status, response.content_type) == (200, accept)
