"""Keys that every store accepts, settings of stores, and secrets in a repr."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from comfyui.exceptions import StorageError, StorageRefusedError
from comfyui.outputs.stores.s3 import S3Settings, S3Store, s3_store
from comfyui.outputs.stores.store import Parts, Placement, StoreCheck, safe_key
from comfyui.workers.runpod.settings import RunPodSettings
from config import Settings
from tests.support.local_store import LocalStore


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (("renders", "4f/a_00001_.png"), "renders/4f/a_00001_.png"),
        (("/a//b/", "c.png"), "a/b/c.png"),
        (("a\\b", "c.png"), "a/b/c.png"),
        (("", "c.png"), "c.png"),
        (("../../etc", "./c.png"), "etc/c.png"),
    ],
)
def test_a_plain_name_stays_as_it_is_and_never_leads_out_of_its_folder(parts: tuple[str, ...], key: str) -> None:
    assert safe_key(*parts) == key


@pytest.mark.parametrize("name", ["é.png", "日本.png", "a b.png", "a%2f.png", "a#b?.png", "~x.png", "x" * 300 + ".png"])
def test_a_name_that_stores_refuse_becomes_ascii_and_keeps_its_extension(name: str) -> None:
    key = safe_key(name)
    assert key.isascii()
    assert key.endswith(".png")
    assert len(key) <= 160


def test_two_names_never_become_one_key() -> None:
    names = ["é.png", "e.png", "è.png", "日.png", "本.png", "_.png", "a b.png", "a_b.png", "a%b.png"]
    assert len({safe_key(name) for name in names}) == len(names)


@given(st.text(min_size=1, max_size=80))
def test_any_text_is_a_safe_key_or_refused(text: str) -> None:
    try:
        key = safe_key(text)
    except StorageRefusedError:
        return
    assert key.isascii()
    assert not {"", ".", ".."} & set(key.split("/"))


@pytest.mark.parametrize("parts", [("", ".."), ("a/" * 600, "b.png")])
def test_an_empty_or_too_long_key_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(StorageRefusedError):
        safe_key(*parts)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 19, 20, 21, 35])
@pytest.mark.parametrize("step", [1, 7, 10, 40])
async def test_parts_have_equal_sizes_and_lose_no_byte(size: int, step: int) -> None:
    data = bytes(range(size))

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, step):
            yield data[start : start + step]

    parts = Parts(chunks(), size, part_bytes=10)
    whole = await parts.whole()
    if size <= 10:
        assert whole == data
        assert parts.ended
        return
    assert whole is None
    found = []
    while not parts.ended:
        found.append(await parts.next())
    assert b"".join(found) == data
    assert {len(part) for part in found[:-1]} == {10}
    assert found[-1]
    assert parts.size == size


@pytest.mark.parametrize("length", [4, 6])
async def test_a_file_that_is_shorter_or_longer_than_announced_is_an_error(length: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"12345"

    with pytest.raises(StorageError, match=f"does not have the {length} bytes"):
        await Parts(chunks(), length).whole()


def test_credentials_are_in_no_repr() -> None:
    settings = S3Settings(
        "renders", access_key=SecretStr("AKIAKEY"), secret_key=SecretStr("hush"), session_token=SecretStr("t0k")
    )
    assert not [word for word in ("AKIAKEY", "hush", "t0k") if word in f"{settings!r} {settings} {S3Store(settings)!r}"]


async def test_empty_s3_keys_mean_the_credentials_that_aws_tools_would_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file of settings may have the line ``S3_ACCESS_KEY_ID=``."""
    pytest.importorskip("aiobotocore")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEROLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    nothing = SecretStr("")
    async with S3Store(S3Settings("renders", access_key=nothing, secret_key=nothing, session_token=nothing)) as store:
        link = await store._client.generate_presigned_url("get_object", Params={"Bucket": "renders", "Key": "k"})
    assert "AKIAOFTHEROLE" in link


@pytest.mark.parametrize("of", [Settings, RunPodSettings], ids=["gateway", "worker"])
def test_a_store_gets_all_its_settings(of: type[Settings | RunPodSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = S3Settings(
        "renders",
        region="eu-1",
        endpoint_url="https://store.example",
        public_endpoint_url="https://cdn.example",
        prefix="out",
        access_key=SecretStr("key"),
        secret_key=SecretStr("secret"),
        session_token=SecretStr("token"),
        addressing_style="path",
        presign_seconds=77,
        allowed_buckets=("mine", "yours"),
    )
    given = {
        "s3_bucket": "renders",
        "s3_region": "eu-1",
        "s3_endpoint_url": "https://store.example",
        "s3_public_endpoint_url": "https://cdn.example",
        "s3_prefix": "out",
        "s3_access_key_id": "key",
        "s3_secret_access_key": "secret",
        "s3_session_token": "token",
        "s3_addressing_style": "path",
        "s3_presign_seconds": "77",
        "s3_allowed_buckets": "mine,yours",
    }
    for name, value in given.items():
        monkeypatch.setenv(name.upper(), value)
    store = s3_store(of())
    assert store is not None
    assert store._settings == expected
    monkeypatch.setenv("S3_BUCKET", "")
    assert s3_store(of()) is None


@pytest.mark.parametrize(
    "wrong", [{"bucket": ""}, {"bucket": "a/b"}, {"presign_seconds": 0}, {"presign_seconds": 700_000}]
)
def test_settings_that_cannot_work_stop_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bucket|presign_seconds"):
        S3Store(S3Settings(**{"bucket": "renders", **wrong}))


@pytest.mark.parametrize(
    "placement",
    [
        Placement(bucket="others"),
        Placement(presign_seconds=0),
        Placement(presign_seconds=604_801),
        Placement("renders/.."),
    ],
)
def test_a_request_gets_neither_a_foreign_bucket_nor_an_endless_link(placement: Placement) -> None:
    with pytest.raises(StorageRefusedError):
        S3Store(S3Settings("renders", allowed_buckets=["mine"])).check(placement)


async def test_the_error_for_a_missing_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiobotocore.session", None)
    with pytest.raises(StorageError, match=r"comfyui-gateway\[s3\]"):
        await S3Store(S3Settings("renders")).__aenter__()


async def test_a_store_is_checked_again_only_after_the_interval_or_a_failure(tmp_path: Path) -> None:
    now, probes = 0.0, 0

    class Store(LocalStore):
        broken = False

        async def probe(self) -> None:
            nonlocal probes
            probes += 1
            if self.broken:
                raise StorageError("full")

    async with Store(tmp_path, "http://files.test") as store:
        check = StoreCheck(store, every_s=10, clock=lambda: now)
        await check.ensure()
        await check.ensure()
        assert probes == 1
        now = 11.0
        store.broken = True
        for _ in range(2):
            with pytest.raises(StorageError, match="full"):
                await check.ensure()
        store.broken = False
        await check.ensure()
        await check.ensure()
        assert probes == 4
