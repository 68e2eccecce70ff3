"""The stores against a real S3 server (SeaweedFS) and a real folder."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from comfyui.exceptions import ComfyUIConnectionError, StorageError, StorageRefusedError
from comfyui.outputs.stores.s3 import S3Settings, S3Store
from comfyui.outputs.stores.store import PART_BYTES, Placement
from tests.support.object_store import (
    ACCESS_KEY,
    BUCKET,
    OTHER_BUCKET,
    SECRET_KEY,
    ensure_bucket,
)


async def chunks_of(data: bytes, step: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


async def zeros(size: int, digest: Any = None, step: int = 1 << 18) -> AsyncIterator[bytes]:
    """Yields `size` zero bytes in blocks; `digest` is updated with them."""
    block = bytes(step)
    while size > 0:
        block = block[:size]
        if digest is not None:
            digest.update(block)
        yield block
        size -= len(block)


async def get(url: str) -> tuple[int, bytes, str]:
    async with aiohttp.ClientSession() as session, session.get(URL(url, encoded=True)) as response:
        return response.status, await response.read(), response.content_type


async def unfinished(store: S3Store) -> list[Any]:
    return (await store._client.list_multipart_uploads(Bucket=BUCKET)).get("Uploads", [])  # type: ignore[no-any-return]


async def keys(store: S3Store, prefix: str) -> list[str]:
    listed = await store._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in listed.get("Contents", [])]


async def test_a_stored_file_can_be_fetched_by_its_link_without_credentials(s3_store: S3Store) -> None:
    stored = await s3_store.put("p1/a_00001_.png", chunks_of(b"picture"), 7, "image/png")
    assert (stored.bucket, stored.key, stored.size) == (BUCKET, "p1/a_00001_.png", 7)
    assert stored.etag == hashlib.md5(b"picture").hexdigest()  # noqa: S324 - S3's etag
    assert await get(stored.url) == (200, b"picture", "image/png")
    assert SECRET_KEY not in stored.url


async def test_an_empty_file_is_stored(s3_store: S3Store) -> None:
    stored = await s3_store.put("empty.txt", chunks_of(b""), 0, "text/plain")
    assert (await get(stored.url))[:2] == (200, b"")


async def test_a_file_of_60_mb_is_stored_in_parts_with_little_memory(s3_store: S3Store) -> None:
    digest = hashlib.sha256()
    size = 60_000_001
    tracemalloc.start()
    try:
        stored = await s3_store.put("big.mp4", zeros(size, digest), None, "video/mp4")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored.size == size
    assert stored.etag.endswith("-8")  # S3's mark for eight parts
    assert peak < 48 << 20
    status, body, content_type = await get(stored.url)
    assert (status, content_type) == (200, "video/mp4")
    assert hashlib.sha256(body).hexdigest() == digest.hexdigest()
    assert await unfinished(s3_store) == []


async def test_a_file_with_the_same_key_replaces_the_old_one(s3_store: S3Store) -> None:
    for content in (b"old", b"newer"):
        stored = await s3_store.put("same.bin", chunks_of(content))
    assert (await get(stored.url))[1] == b"newer"


async def test_a_name_in_any_script_is_stored_and_linked(s3_store: S3Store) -> None:
    stored = await s3_store.put("p/日本 é#?.png", chunks_of(b"x"))
    assert stored.key.isascii()
    assert (await get(stored.url))[0] == 200


async def test_a_request_may_choose_the_bucket_the_prefix_and_the_lifetime_of_the_link(
    s3_settings: S3Settings,
) -> None:
    async with S3Store(replace(s3_settings, prefix="gateway")) as store:
        await ensure_bucket(store, OTHER_BUCKET)
        stored = await store.put("a.txt", chunks_of(b"x"), placement=Placement(OTHER_BUCKET, "../team/42", 60))
        assert (stored.bucket, stored.key) == (OTHER_BUCKET, "gateway/team/42/a.txt")
        assert URL(stored.url).query["X-Amz-Expires"] == "60"
        assert (await get(stored.url))[1] == b"x"
        with pytest.raises(StorageRefusedError, match="may not store in the bucket"):
            await store.put("a.txt", chunks_of(b"x"), placement=Placement("someone-elses"))


async def test_a_changed_link_is_refused(s3_store: S3Store) -> None:
    first = await s3_store.put("first.txt", chunks_of(b"x"))
    await s3_store.put("secret.txt", chunks_of(b"x"))
    assert (await get(first.url.replace("first.txt", "secret.txt")))[0] == 403
    assert (await get(first.url.split("?")[0]))[0] == 403


async def test_links_use_the_public_endpoint(s3_settings: S3Settings) -> None:
    async with S3Store(replace(s3_settings, public_endpoint_url="https://files.example.com")) as store:
        await ensure_bucket(store, BUCKET)
        stored = await store.put("a.txt", chunks_of(b"x"))
    assert stored.url.startswith(f"https://files.example.com/{BUCKET}/a.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256")


async def test_a_source_that_fails_leaves_no_object_and_no_parts(s3_store: S3Store) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for block in zeros(3 * PART_BYTES):
            yield block
        raise ComfyUIConnectionError("GET /view: the file's body was cut off")

    with pytest.raises(ComfyUIConnectionError, match="cut off"):
        await s3_store.put("broken.mp4", broken())
    assert await keys(s3_store, "broken") == []
    assert await unfinished(s3_store) == []


async def test_a_file_that_ends_early_is_not_stored(s3_store: S3Store) -> None:
    with pytest.raises(StorageError, match="announced"):
        await s3_store.put("short.mp4", zeros(2 * PART_BYTES), 3 * PART_BYTES)
    assert await keys(s3_store, "short") == []
    assert await unfinished(s3_store) == []


@pytest.mark.parametrize("blocks", [1, 50, 200])
async def test_a_cancelled_upload_leaves_no_object_and_no_parts(s3_store: S3Store, blocks: int) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        sent = 0
        while True:
            if sent == blocks:
                reached.set()
            sent += 1
            yield bytes(1 << 18)

    task = asyncio.create_task(s3_store.put("cancelled.mp4", endless()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await keys(s3_store, "cancelled") == []
    assert await unfinished(s3_store) == []


@pytest.mark.parametrize("moment", ["create_multipart_upload", "upload_part", "complete_multipart_upload"])
async def test_a_cancel_during_any_request_of_an_upload_leaves_no_parts(
    s3_store: S3Store, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(s3_store._client, moment)
    task: asyncio.Task[Any] | None = None

    async def cancelling(**arguments: Any) -> Any:
        assert task is not None
        task.cancel()
        return await real(**arguments)

    monkeypatch.setattr(s3_store._client, moment, cancelling)
    task = asyncio.create_task(s3_store.put("moment.mp4", zeros(3 * PART_BYTES)))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await unfinished(s3_store) == []


@pytest.mark.parametrize(("access_key", "secret_key"), [(ACCESS_KEY, "wrong-secret"), ("AKIAUNKNOWN", SECRET_KEY)])
async def test_a_wrong_key_raises_an_error_that_does_not_show_it(
    s3_settings: S3Settings, access_key: str, secret_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = replace(s3_settings, access_key=SecretStr(access_key), secret_key=SecretStr(secret_key))
    async with S3Store(wrong) as store:
        for size in (3, 2 * PART_BYTES):
            with pytest.raises(StorageError, match="refused the gateway's credentials for bucket 'renders'") as refused:
                await store.put("a.bin", zeros(size))
            assert access_key not in refused.value.detail
            assert secret_key not in refused.value.detail
    assert access_key not in caplog.text
    assert secret_key not in caplog.text


async def test_the_error_names_a_missing_bucket(s3_settings: S3Settings) -> None:
    async with S3Store(replace(s3_settings, bucket="nowhere")) as store:
        for size in (3, 2 * PART_BYTES):
            with pytest.raises(StorageError, match="bucket 'nowhere' does not exist"):
                await store.put("a.bin", zeros(size))


async def test_the_error_of_an_unreachable_store_does_not_show_its_address(s3_settings: S3Settings) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with S3Store(replace(s3_settings, endpoint_url=endpoint)) as store:
            with pytest.raises(StorageError, match="cannot be reached") as failed:
                await store.put("a.bin", chunks_of(b"x"))
    assert "127.0.0.1" not in failed.value.detail


async def test_an_invalid_endpoint_url_stops_the_start(s3_settings: S3Settings) -> None:
    with pytest.raises(StorageError, match="settings cannot be used"):
        await S3Store(replace(s3_settings, endpoint_url="not a url")).__aenter__()


async def test_the_check_of_a_store_leaves_no_object(s3_store: S3Store) -> None:
    await s3_store.probe()
    listed = await s3_store._client.list_objects_v2(Bucket=s3_store._settings.bucket)
    assert not [entry for entry in listed.get("Contents", ()) if ".comfyui-gateway-check" in entry["Key"]]
