"""Uploads of Comfy API v2: their bytes, their lifetime and their owners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from comfyui.assets.uploaded import NewAsset, UploadedAssets
from comfyui.exceptions import ComfyUILimitError, ComfyUIOverloadedError
from comfyui.inputs.catalogue import Catalogue
from comfyui.inputs.content import Content
from comfyui.inputs.staging import InputStager
from comfyui.inputs.store import InputStore
from comfyui.jobs.journal.asset_writes import Asset
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.origin import Origin
from comfyui.jobs.uploads import Uploads
from comfyui.owners import KeyRules
from comfyui.servers.pool import BackendPool
from tests.support.clock import Clock
from tests.support.journals import journal_of

ALICE = Origin(owner="alice", rules=KeyRules(name="alice", role="user"))
BOB = Origin(owner="bob", rules=KeyRules(name="bob", role="user"))
ROOT = Origin(owner="root", rules=KeyRules(name="root"))
DAY_S = 86_400.0


@dataclass(frozen=True)
class OpenedAssets:
    """The uploaded assets and the parts that they are built from."""

    assets: UploadedAssets
    store: InputStore
    uploads: Uploads
    journal: Journal
    clock: Clock

    async def add(self, data: bytes, origin: Origin = ALICE, **fields: object) -> tuple[Asset, bool]:
        new = NewAsset("image/png", **fields)  # type: ignore[arg-type]
        return await self.assets.add(new, Content.of_bytes(data, ".png"), hash_of(data), origin)


def hash_of(data: bytes) -> str:
    return blake3(data).hexdigest()


@asynccontextmanager
async def opened_assets(folder: Path, *, max_bytes: int = 1000, most: int = 100) -> AsyncIterator[OpenedAssets]:
    pool, clock = BackendPool.connect(["127.0.0.1:1"]), Clock()
    stager = InputStager(max_bytes=max_bytes, url_allow=(), url_timeout_s=1.0)
    async with journal_of("sqlite", folder) as journal, InputStore(folder / "inputs", max_bytes=max_bytes) as store:
        uploads = Uploads(Catalogue(journal, store), store, stager, journal, pool)
        assets = UploadedAssets(journal, store, uploads, keep_s=7 * DAY_S, most=most, clock=clock)
        yield OpenedAssets(assets, store, uploads, journal, clock)


async def test_bytes_stay_as_long_as_one_asset_refers_to_them(tmp_path: Path) -> None:
    async with opened_assets(tmp_path) as one:
        first, is_new = await one.add(b"same")
        second, again = await one.add(b"same", file_path="b.png")
        assert (is_new, again, first.id == second.id) == (True, False, False)
        assert await one.assets.drop(first.id, ALICE)
        assert await one.uploads.sweep() == 0
        assert await one.assets.drop(second.id, ALICE)
        assert not await one.assets.drop(second.id, ALICE)
        assert await one.uploads.sweep() == 1
        assert not one.store.has(first.digest)
        assert await one.assets.again(NewAsset(), hash_of(b"same"), ALICE) is None


async def test_an_asset_is_gone_when_it_expires_and_its_bytes_at_the_next_sweep(tmp_path: Path) -> None:
    async with opened_assets(tmp_path) as one:
        short, _ = await one.add(b"short", lifetime_s=60.0)
        usual, _ = await one.add(b"usual")
        assert (short.expires_at, usual.expires_at) == (one.clock.now + 60, one.clock.now + 7 * DAY_S)
        one.clock.now += 59.9
        assert await one.assets.find(short.id, ALICE) == short
        one.clock.now += 0.1
        assert await one.assets.find(short.id, ALICE) is None, "an expired asset is hidden before it is removed"
        assert await one.assets.by_hash(short.blake3, ALICE) == []
        assert not await one.assets.drop(short.id, ALICE)
        assert await one.assets.expire() == 1
        assert await one.assets.expire() == 0
        assert await one.uploads.sweep() == 1
        assert (one.store.has(short.digest), one.store.has(usual.digest)) == (False, True)


async def test_use_extends_the_lifetime_of_an_asset_and_never_shortens_it(tmp_path: Path) -> None:
    async with opened_assets(tmp_path) as one:
        asset, _ = await one.add(b"used", lifetime_s=1000.0)
        one.clock.now += 10
        one.assets.used(asset)
        assert await one.assets.find(asset.id, ALICE) == asset, "so small an extension is not worth a write"
        one.clock.now += 490
        one.assets.used(asset)
        found = await one.assets.find(asset.id, ALICE)
        assert found is not None
        assert found.expires_at == one.clock.now + 1000
        same = await one.assets.again(NewAsset(lifetime_s=60.0), asset.blake3, ALICE)
        assert same is not None
        assert (same[0].id, same[0].expires_at, same[1]) == (asset.id, one.clock.now + 1000, False)
        longer = await one.assets.again(NewAsset(lifetime_s=5000.0), asset.blake3, ALICE)
        assert longer is not None
        assert longer[0].expires_at == one.clock.now + 5000


async def test_an_asset_of_another_owner_looks_as_if_it_did_not_exist(tmp_path: Path) -> None:
    async with opened_assets(tmp_path) as one:
        mine, _ = await one.add(b"bytes")
        assert await one.assets.find(mine.id, BOB) is None
        assert await one.assets.by_hash(mine.blake3, BOB) == []
        assert await one.assets.again(NewAsset(), mine.blake3, BOB) is None
        assert not await one.assets.drop(mine.id, BOB)
        theirs, is_new = await one.add(b"bytes", BOB)
        assert is_new
        assert await one.assets.find(mine.id, ROOT) == mine
        minted = await one.assets.again(NewAsset(), mine.blake3, ROOT)
        assert minted is not None
        assert (minted[0].owner, minted[1]) == ("root", True)
        assert {found.owner for found in await one.assets.by_hash(theirs.blake3, ROOT)} == {"alice", "bob", "root"}


async def test_assets_leave_half_of_the_store_to_jobs_and_expired_ones_make_room(tmp_path: Path) -> None:
    async with opened_assets(tmp_path, max_bytes=1000) as one:
        with pytest.raises(ComfyUILimitError, match="half of MAX_STORED_INPUTS_MB"):
            await one.add(b"x" * 501)
        first, _ = await one.add(b"a" * 300, lifetime_s=60.0)
        await one.add(b"a" * 300, file_path="no more bytes.png")
        with pytest.raises(ComfyUIOverloadedError, match="half of MAX_STORED_INPUTS_MB"):
            await one.add(b"b" * 300)
        assert await one.assets.find(first.id, ALICE) == first, "an asset that has not expired is kept"
        await one.add(b"a" * 300, file_path="nor here.png")
        one.clock.now += 8 * DAY_S
        await one.add(b"b" * 300)
        assert await one.journal.asset_bytes() == 300


async def test_the_number_of_assets_of_an_owner_is_limited(tmp_path: Path) -> None:
    async with opened_assets(tmp_path, most=2) as one:
        first, _ = await one.add(b"a")
        await one.assets.again(NewAsset(file_path="b.png"), first.blake3, ALICE)
        with pytest.raises(ComfyUIOverloadedError, match="2 assets"):
            await one.assets.again(NewAsset(file_path="c.png"), first.blake3, ALICE)
        with pytest.raises(ComfyUIOverloadedError, match="2 assets"):
            await one.add(b"b")
        await one.add(b"b", BOB)
        await one.assets.drop(first.id, ALICE)
        await one.add(b"b")


async def test_assets_survive_a_restart_unless_their_bytes_are_missing(tmp_path: Path) -> None:
    async with opened_assets(tmp_path) as one:
        kept, _ = await one.add(b"kept", tags=("a", "b"), file_path="x/y.png")
        lost, _ = await one.add(b"lost")
    (tmp_path / "inputs" / lost.digest).unlink()
    async with opened_assets(tmp_path) as one:
        assert await one.assets.find(kept.id, ALICE) == kept
        with one.assets.held(kept):
            assert b"".join([chunk async for chunk in one.assets.content_of(kept).chunks(1, 2)]) == b"ep"
        assert await one.assets.find(lost.id, ALICE) is None
        assert await one.assets.by_hash(lost.blake3, ALICE) == []
        again, is_new = await one.add(b"lost")
        assert (is_new, await one.assets.find(again.id, ALICE)) == (True, again)
