"""The journal's records of assets: uploads of Comfy API v2, and facts about files that jobs have made."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from comfyui import jsonio
from comfyui.jobs.journal.asset_writes import (
    Asset,
    DropAssets,
    ExpireAssets,
    KeepAsset,
    KnowOutputs,
    OutputFacts,
    UseAssets,
)
from comfyui.owners import key_of

Appliers = dict[type, Callable[[Any], int]]

_COLUMNS = ", ".join(Asset._fields)
# The same as `comfyui.owners.key_of`.
_KEY = "substr(owner, 1, instr(owner || '/', '/') - 1)"
# "+": otherwise SQLite would use an index of times instead of the one of hashes.
_NEWEST_FIRST = "ORDER BY +created_at DESC, id"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFilter:
    """A filter of assets; a field that is None does not filter.

    Attributes:
        key: the name of the key whose they are, or of whose persons.
        after: those that expire later.
        sent_under: the idempotency key of an owner, and the time since when.
    """

    id: str | None = None
    blake3: str | None = None
    key: str | None = None
    after: float | None = None
    sent_under: tuple[str | None, str, float] | None = None

    def fits(self, asset: Asset) -> bool:
        return (
            self.id in {None, asset.id}
            and self.blake3 in {None, asset.blake3}
            and (self.key is None or (asset.owner is not None and key_of(asset.owner) == self.key))
            and (self.after is None or asset.expires_at > self.after)
            and (self.sent_under is None or self._was_sent(asset, *self.sent_under))
        )

    @staticmethod
    def _was_sent(asset: Asset, owner: str | None, key: str, since: float) -> bool:
        return asset.owner == owner and asset.idempotency_key == key and asset.created_at >= since


def asset_appliers(database: sqlite3.Connection) -> Appliers:
    """The effect of each write about assets."""
    return {
        KeepAsset: functools.partial(_keep, database),
        UseAssets: functools.partial(_use, database),
        DropAssets: functools.partial(_drop, database),
        ExpireAssets: functools.partial(_expire, database),
        KnowOutputs: functools.partial(_know, database),
    }


def assets(database: sqlite3.Connection, narrowed: AssetFilter, limit: int) -> list[Asset]:
    """See `Journal.assets`."""
    given = {
        "id = ?": None if narrowed.id is None else jsonio.without_surrogates(narrowed.id),
        "blake3 = ?": narrowed.blake3,
        f"{_KEY} = ?": narrowed.key,
        "expires_at > ?": narrowed.after,
    }
    if narrowed.sent_under is not None:
        owner, key, since = narrowed.sent_under
        given |= {"idempotency_key = ?": key, "created_at >= ?": since, "COALESCE(owner, '') = ?": owner or ""}
    conditions = [condition for condition, value in given.items() if value is not None]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    query = f"SELECT {_COLUMNS} FROM assets{where} {_NEWEST_FIRST} LIMIT {limit:d}"  # noqa: S608
    rows = database.execute(query, [value for value in given.values() if value is not None])
    return [_asset_of(row) for row in rows]


def _asset_of(row: tuple[Any, ...]) -> Asset:
    asset = Asset(*row)
    return asset._replace(tags=tuple(jsonio.loads(row[Asset._fields.index("tags")])))


def asset_bytes(database: sqlite3.Connection) -> int:
    """See `Journal.asset_bytes`."""
    query = "SELECT COALESCE(SUM(size), 0) FROM (SELECT DISTINCT digest, size FROM assets)"
    (found,) = database.execute(query).fetchone()
    return int(found)


def asset_digests(database: sqlite3.Connection, digests: Collection[str]) -> set[str]:
    """See `Journal.asset_digests`."""
    query = "SELECT DISTINCT digest FROM assets WHERE digest IN (SELECT value FROM json_each(?))"
    return {digest for (digest,) in database.execute(query, (jsonio.dumps(list(digests)).decode(),))}


def asset_count(database: sqlite3.Connection, owner: str | None) -> int:
    """See `Journal.asset_count`."""
    (count,) = database.execute("SELECT COUNT(*) FROM assets WHERE owner IS ?", (owner,)).fetchone()
    return int(count)


def output_facts(database: sqlite3.Connection, runs: Sequence[tuple[str, int]]) -> list[OutputFacts]:
    """See `Journal.output_facts`."""
    query = (
        "SELECT id, size, blake3 FROM output_facts WHERE seq = (SELECT seq FROM jobs WHERE prompt_id = ?) AND run = ?"
    )
    return [OutputFacts(*one, *row) for one in runs for row in database.execute(query, one)]


def outputs_with(database: sqlite3.Connection, blake3: str, key: str | None, limit: int) -> list[OutputFacts]:
    """See `Journal.outputs_with`."""
    query = (
        "SELECT prompt_id, run, id, size, blake3 FROM output_facts JOIN jobs USING (seq, run)"  # noqa: S608
        f" WHERE blake3 = ?1 AND (?2 IS NULL OR {_KEY} = ?2) ORDER BY seq DESC, id LIMIT ?3"
    )
    return [OutputFacts(*row) for row in database.execute(query, (blake3, key, limit))]


def _keep(database: sqlite3.Connection, write: KeepAsset) -> bool:
    keep = f"INSERT INTO assets ({_COLUMNS}) VALUES ({', '.join('?' * len(Asset._fields))}) ON CONFLICT (id) DO NOTHING"  # noqa: S608
    asset = write.asset
    values = {**asset._asdict(), "tags": jsonio.dumps(asset.tags).decode()}
    return database.execute(keep, tuple(values.values())).rowcount > 0


def _use(database: sqlite3.Connection, write: UseAssets) -> bool:
    use = (
        "UPDATE assets SET lifetime_s = MAX(lifetime_s, ?1), expires_at = MAX(expires_at, ?2 + MAX(lifetime_s, ?1))"
        " WHERE id = ?3"
    )
    values = [(write.lifetime_s, write.at, one) for one in write.ids]
    return database.executemany(use, values).rowcount > 0


def _expire(database: sqlite3.Connection, write: ExpireAssets) -> int:
    expire = "DELETE FROM assets WHERE id IN (SELECT id FROM assets WHERE expires_at <= ? LIMIT ?)"
    return database.execute(expire, (write.at, write.most)).rowcount


def _drop(database: sqlite3.Connection, write: DropAssets) -> bool:
    return database.executemany("DELETE FROM assets WHERE id = ?", [(one,) for one in write.ids]).rowcount > 0


def _know(database: sqlite3.Connection, write: KnowOutputs) -> bool:
    job = database.execute(
        "SELECT seq FROM jobs WHERE prompt_id = ? AND run = ?", (write.prompt_id, write.run)
    ).fetchone()
    if job is None:
        return False
    # No one asks for an earlier run any more.
    database.execute("DELETE FROM output_facts WHERE seq = ? AND run < ?", (*job, write.run))
    know = (
        "INSERT INTO output_facts (seq, run, id, size, blake3) VALUES (?, ?, ?, ?, ?) ON CONFLICT (seq, id)"
        " DO UPDATE SET size = excluded.size, blake3 = COALESCE(excluded.blake3, blake3)"
    )
    database.executemany(know, [(*job, write.run, one.id, one.size, one.blake3) for one in write.facts])
    return True


class MemoryAssets:
    """The same for `MemoryJournal`, which says itself whether a run is the present one."""

    def __init__(self) -> None:
        self._kept: dict[str, Asset] = {}
        self._facts: dict[str, dict[str, OutputFacts]] = {}
        # The jobs that have made these bytes.
        self._hashed: dict[str, set[str]] = {}
        self.appliers: Appliers = {
            KeepAsset: self._keep,
            UseAssets: self._use,
            DropAssets: self._drop,
            ExpireAssets: self._expire,
        }

    def found(self, narrowed: AssetFilter, limit: int) -> list[Asset]:
        if narrowed.id is not None:
            one = self._kept.get(narrowed.id)
            return [one] if one is not None and narrowed.fits(one) else []
        fitting = [one for one in self._kept.values() if narrowed.fits(one)]
        return sorted(fitting, key=lambda one: (-one.created_at, one.id))[:limit]

    def bytes(self) -> int:
        return sum({one.digest: one.size for one in self._kept.values()}.values())

    def digests(self) -> set[str]:
        return {one.digest for one in self._kept.values()}

    def count(self, owner: str | None) -> int:
        return sum(one.owner == owner for one in self._kept.values())

    def facts(self, runs: Sequence[tuple[str, int]]) -> list[OutputFacts]:
        return [one for prompt_id, run in runs for one in self._facts.get(prompt_id, {}).values() if one.run == run]

    def outputs_with(self, blake3: str) -> list[OutputFacts]:
        """The files with these bytes, of any owner."""
        jobs = self._hashed.get(blake3, ())
        return [one for job in jobs for one in self._facts[job].values() if one.blake3 == blake3]

    def know(self, write: KnowOutputs) -> bool:
        before = self._facts.get(write.prompt_id, {})
        self.forget(write.prompt_id)
        kept = {one.id: one for one in before.values() if one.run == write.run}
        for one in write.facts:
            known = kept.get(one.id)
            kept[one.id] = one._replace(blake3=one.blake3 or (known.blake3 if known else None))
        self._facts[write.prompt_id] = kept
        for fact in kept.values():
            if fact.blake3 is not None:
                self._hashed.setdefault(fact.blake3, set()).add(write.prompt_id)
        return True

    def forget(self, prompt_id: str) -> None:
        """The job is there no more."""
        for fact in self._facts.pop(prompt_id, {}).values():
            jobs = self._hashed.get(fact.blake3 or "", set())
            jobs.discard(prompt_id)
            if not jobs:
                self._hashed.pop(fact.blake3 or "", None)

    def _keep(self, write: KeepAsset) -> bool:
        return self._kept.setdefault(write.asset.id, write.asset) is write.asset

    def _use(self, write: UseAssets) -> bool:
        known = [one for name in write.ids if (one := self._kept.get(name)) is not None]
        for one in known:
            lifetime_s = max(one.lifetime_s, write.lifetime_s)
            expires_at = max(one.expires_at, write.at + lifetime_s)
            self._kept[one.id] = one._replace(expires_at=expires_at, lifetime_s=lifetime_s)
        return bool(known)

    def _drop(self, write: DropAssets) -> bool:
        return bool([one for name in write.ids if (one := self._kept.pop(name, None)) is not None])

    def _expire(self, write: ExpireAssets) -> int:
        expired = (one.id for one in self._kept.values() if one.expires_at <= write.at)
        gone = list(islice(expired, write.most))
        for name in gone:
            del self._kept[name]
        return len(gone)
