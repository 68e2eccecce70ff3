"""`UploadedAssets`: files that were uploaded by Comfy API v2, several with the same bytes, each until it expires.

The bytes lie in the store of inputs, once for each content. A record in the journal has name, tags and time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import uuid4

import structlog

from comfyui.exceptions import ComfyUIOverloadedError, JournalError
from comfyui.inputs.content import Content
from comfyui.inputs.store import InputStore
from comfyui.jobs.claims import Claims
from comfyui.jobs.journal.asset_writes import Asset, DropAssets, ExpireAssets, KeepAsset, UseAssets
from comfyui.jobs.journal.assets import AssetFilter
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.origin import Origin
from comfyui.jobs.uploads import Uploads
from comfyui.limits import over
from comfyui.tasks import SideTasks

_EVERY_S = 600.0
# Records of one content that are looked at for one that is the same in all.
_MOST_LOOKED_AT = 1000
_MOST_OF_OWNER = 100_000
# Owners whose assets are counted in memory.
_MOST_COUNTS = 10_000
_REMOVED_TOGETHER = 500
# Assets have that part of the store: jobs and other uploads have room in any case.
_SHARE = 2
# An asset's last use is recorded when that extends its lifetime by at least this part.
_WORTH_WRITING = 0.05

_log = structlog.get_logger(__name__)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class NewAsset:
    """A caller's description of a file.

    Attributes:
        content_type: "" if not given.
        file_path: below ComfyUI's input folder; "" if not given.
        lifetime_s: None: as long as the gateway keeps assets by default.
        idempotency_key: under which the caller sends it.
    """

    content_type: str = ""
    file_path: str = ""
    tags: tuple[str, ...] = ()
    lifetime_s: float | None = None
    idempotency_key: str | None = None


class UploadedAssets:
    """Open `expiring` beside it. Its arguments belong to their creator.

    Args:
        keep_s: how long an asset is kept after its upload or last use, if its caller does not say.
        most: assets of one owner.
        clock: seconds.

    Attributes:
        claims: the idempotency keys of uploads.
    """

    def __init__(
        self,
        journal: Journal,
        store: InputStore,
        uploads: Uploads,
        *,
        keep_s: float,
        most: int = _MOST_OF_OWNER,
        clock: Clock = time.time,
    ) -> None:
        self._journal = journal
        self._store = store
        self._uploads = uploads
        self._keep_s = keep_s
        self._most = most
        self._clock = clock
        # Bytes of assets that are being stored, and of all others: the last count, and the additions since.
        self._coming = 0
        self._bytes: int | None = None
        # The same for each owner.
        self._counts: dict[str | None, int] = {}
        self.claims = Claims(self._sent_under, "asset", clock=clock)

    @property
    def max_bytes(self) -> int:
        """Largest size of one file."""
        return self._store.max_bytes // _SHARE

    # Questions

    async def find(self, asset_id: str, origin: Origin) -> Asset | None:
        """The asset; None if it does not exist, the caller may not see it, or its bytes are gone."""
        found = await self._journal.assets(AssetFilter(id=asset_id, after=self._clock()), 1)
        return next((one for one in found if origin.sees(one.owner) and self._store.has(one.digest)), None)

    async def by_hash(self, blake3: str, origin: Origin) -> list[Asset]:
        """The assets with these bytes that the caller sees, newest first; none if the bytes are gone."""
        key = origin.rules.name if origin.rules is not None and origin.is_confined else None
        narrowed = AssetFilter(blake3=blake3, key=key, after=self._clock())
        found = await self._journal.assets(narrowed, _MOST_LOOKED_AT)
        return [one for one in found if self._store.has(one.digest)]

    async def _sent_under(self, owner: str | None, key: str, since: float) -> str | None:
        found = await self._journal.assets(AssetFilter(sent_under=(owner, key, since)), 1)
        return found[0].id if found else None

    @contextmanager
    def held(self, *assets: Asset) -> Iterator[None]:
        """Their bytes stay until the block ends."""
        digests = [one.digest for one in assets]
        self._store.hold(digests)
        try:
            yield
        finally:
            self._store.let_go(digests)

    def content_of(self, asset: Asset) -> Content:
        """The bytes, to be read while they are held."""
        return self._store.kept(asset.digest, PurePosixPath(asset.file_path).suffix.lower() or ".bin")

    # Changes

    async def add(
        self, new: NewAsset, content: Content, blake3: str, origin: Origin, *, moved: bool = True
    ) -> tuple[Asset, bool]:
        """Keeps a file; whether its bytes are new to the caller. It is in the journal when this returns.

        Args:
            moved: whether the content's file may be moved away.

        Raises:
            ComfyUILimitError, ComfyUIOverloadedError, ComfyUIDiskError: as `InputStore.put`.
            JournalError: it cannot be kept.
        """
        known = await self.by_hash(blake3, origin)
        with self._store.holding() as holding:
            async with self._room_for(content):
                await self._uploads.make_room(content)
                await holding.put(content, moved=moved)
                asset = await self._keep(new, blake3, content.digest, content.size, origin)
        return asset, not known

    async def again(self, new: NewAsset, blake3: str, origin: Origin) -> tuple[Asset, bool] | None:
        """An asset with bytes that are already here, and whether it is new; None if the caller sees none of them.

        One of the caller's that is the same in all that was said of it is taken again, and kept longer.
        """
        found = await self.by_hash(blake3, origin)
        if not found:
            return None
        with self.held(found[0]):
            same = (one for one in found if one.owner == origin.owner and _is_same(one, new))
            if (known := next(same, None)) is None:
                content_type = new.content_type or found[0].content_type
                named = NewAsset(content_type, new.file_path, new.tags, new.lifetime_s)
                return await self._keep(named, blake3, found[0].digest, found[0].size, origin), True
            lifetime_s = max(known.lifetime_s, new.lifetime_s or 0.0)
            await self._journal.write(UseAssets((known.id,), self._clock(), lifetime_s))
            newer = await self._journal.assets(AssetFilter(id=known.id), 1)
            return (newer[0] if newer else known), False

    async def drop(self, asset_id: str, origin: Origin) -> bool:
        """Removes the asset. False if the caller sees none of this id. Its bytes go with their last asset.

        Raises `JournalError`.
        """
        found = await self._journal.assets(AssetFilter(id=asset_id, after=self._clock()), 1)
        if not any(origin.sees(one.owner) for one in found):
            return False
        if not await self._journal.write(DropAssets((asset_id,))):
            return False
        self._store.let_go(())
        return True

    def used(self, *assets: Asset) -> None:
        """A job names them: each is kept for its lifetime from now on."""
        now = self._clock()
        worth = [one for one in assets if now + one.lifetime_s - one.expires_at > one.lifetime_s * _WORTH_WRITING]
        if worth:
            self._journal.write_behind(UseAssets(tuple(one.id for one in worth), now), soon=False)

    # Time

    async def expire(self) -> int:
        """Removes expired assets; returns how many. Raises `JournalError`."""
        gone = 0
        while some := await self._journal.write(ExpireAssets(self._clock(), _REMOVED_TOGETHER)):
            gone += some
        if gone:
            _log.info("assets.expired", assets=gone)
            self._store.let_go(())
        return gone

    @asynccontextmanager
    async def expiring(self) -> AsyncIterator[None]:
        """Has `expire` called, now and every ten minutes, until the block ends."""

        async def expire() -> None:
            while True:
                try:
                    await self.expire()
                except JournalError as error:
                    _log.warning("assets.not_removed", reason=error.detail)
                await asyncio.sleep(_EVERY_S)

        async with SideTasks() as tasks:
            tasks.start(expire(), "expire assets")
            yield

    async def _keep(self, new: NewAsset, blake3: str, digest: str, size: int, origin: Origin) -> Asset:
        await self._check_count(origin.owner)
        now, lifetime_s = self._clock(), new.lifetime_s or self._keep_s
        asset = Asset(
            id=str(uuid4()),
            owner=origin.owner,
            blake3=blake3,
            digest=digest,
            size=size,
            content_type=new.content_type,
            file_path=new.file_path,
            tags=new.tags,
            created_at=now,
            expires_at=now + lifetime_s,
            lifetime_s=lifetime_s,
            idempotency_key=new.idempotency_key,
        )
        await self._journal.write(KeepAsset(asset))
        self._counts[origin.owner] = self._counts.get(origin.owner, 0) + 1
        return asset

    async def _check_count(self, owner: str | None) -> None:
        """Raises `ComfyUIOverloadedError` if the owner has as many assets as allowed."""
        if self._counts.get(owner, self._most) < self._most:
            return
        if len(self._counts) >= _MOST_COUNTS:
            self._counts.clear()
        self._counts[owner] = await self._journal.asset_count(owner)
        if self._counts[owner] >= self._most:
            raise ComfyUIOverloadedError(
                f"there are already {self._most} assets, which is the limit; delete some, or try again when some"
                " have expired"
            )

    @asynccontextmanager
    async def _room_for(self, content: Content) -> AsyncIterator[None]:
        """The content is counted until the block ends. Raises `ComfyUILimitError` and `ComfyUIOverloadedError`."""
        if content.size > self.max_bytes:
            raise over("an asset is larger than {limit} bytes", self.max_bytes, "half of MAX_STORED_INPUTS_MB")
        if self._bytes is None or not self._fits(content, self._bytes):
            await self.expire()
            self._bytes = await self._journal.asset_bytes()
            known = await self._journal.asset_digests([content.digest])
            if not known and not self._fits(content, self._bytes):
                raise ComfyUIOverloadedError(
                    f"assets fill {self.max_bytes / 1e6:g} MB, half of MAX_STORED_INPUTS_MB; delete some, or try again"
                    " when some have expired"
                )
        self._coming += content.size
        try:
            yield
        finally:
            self._coming -= content.size
            self._bytes += content.size

    def _fits(self, content: Content, others: int) -> bool:
        return others + self._coming + content.size <= self.max_bytes


def _is_same(asset: Asset, new: NewAsset) -> bool:
    return asset.file_path == new.file_path and asset.tags == new.tags and new.content_type in {"", asset.content_type}
