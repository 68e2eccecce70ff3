"""`Questions`: the questions to the journal in a file, each with the statement that answers it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from comfyui.jobs.journal.asset_writes import Asset, OutputFacts
from comfyui.jobs.journal.assets import (
    AssetFilter,
    asset_bytes,
    asset_count,
    asset_digests,
    assets,
    output_facts,
    outputs_with,
)
from comfyui.jobs.journal.attempts import Attempt
from comfyui.jobs.journal.by_owner import queued_of, sent_under, usage
from comfyui.jobs.journal.cursor import cursor_of, seq_of
from comfyui.jobs.journal.deaths import Death, deaths
from comfyui.jobs.journal.held import Held, held
from comfyui.jobs.journal.made import Made, MadeFilter, made
from comfyui.jobs.journal.records import Delivery, Due, EndedJob, JobFilter, JobRecord, KeptJob, Page, RunRecord, State
from comfyui.jobs.journal.searching import Candidate, candidates_in, search
from comfyui.jobs.journal.showing import ended, kept, named_inputs, queued_since, results_of
from comfyui.jobs.journal.statements import Statements
from comfyui.jobs.journal.uploads import uploads
from comfyui.jobs.journal.usage_records import UsageQuery, UsageRow
from comfyui.jobs.journal.writes import KeptUpload

_T = TypeVar("_T")


class Questions(ABC):
    """See `comfyui.jobs.journal.protocol.Journal` for each of them."""

    @abstractmethod
    async def _ask(self, work: Callable[[Statements], _T]) -> _T:
        """Runs `work` on the journal's own thread."""

    # Jobs

    async def get(self, prompt_id: str) -> JobRecord | None:
        return await self._ask(lambda sql: sql.one(prompt_id))

    async def get_all(self, prompt_ids: Sequence[str]) -> list[JobRecord]:
        return await self._ask(lambda sql: [job for one in prompt_ids if (job := sql.one(one)) is not None])

    async def body_of(self, prompt_id: str) -> bytes | None:
        return await self._ask(lambda sql: sql.body(prompt_id))

    async def result_of(self, prompt_id: str) -> bytes | None:
        return await self._ask(lambda sql: sql.result(prompt_id))

    async def results_of(self, prompt_ids: Sequence[str], most_bytes: int) -> list[bytes | None]:
        return await self._ask(lambda sql: results_of(sql.database, prompt_ids, most_bytes))

    async def attempt_of(self, prompt_id: str) -> Attempt | None:
        return await self._ask(lambda sql: sql.attempts.of(prompt_id))

    async def reply_of(self, prompt_id: str) -> bytes | None:
        return await self._ask(lambda sql: sql.attempts.reply(prompt_id))

    async def runs(self, prompt_id: str) -> list[RunRecord]:
        return await self._ask(lambda sql: sql.runs(prompt_id))

    async def page(self, narrowed: JobFilter, limit: int, cursor: str | None = None) -> Page:
        before = seq_of(cursor, narrowed)
        if narrowed.text:

            async def candidates(before: int | None, limit: int) -> list[Candidate]:
                return await self._ask(lambda sql: candidates_in(sql.database, narrowed, before, limit))

            return await search(candidates, narrowed, limit, before)
        found = await self._ask(lambda sql: sql.newest(narrowed, before, limit + 1))
        more = len(found) > limit
        return Page(tuple(found[:limit]), cursor_of(found[limit - 1].seq, narrowed) if more else None)

    async def waiting(self, after: int, limit: int) -> list[JobRecord]:
        return await self._ask(lambda sql: sql.waiting(after, limit))

    async def fetching(self, after: int, limit: int) -> list[JobRecord]:
        return await self._ask(lambda sql: sql.waiting(after, limit, fetching=True))

    async def named_inputs(self) -> set[str]:
        return await self._ask(lambda sql: named_inputs(sql.database))

    async def held(self) -> Held:
        return await self._ask(lambda sql: held(sql.database))

    async def deaths(self, since: float) -> list[Death]:
        return await self._ask(lambda sql: deaths(sql.database, since))

    async def assets(self, narrowed: AssetFilter, limit: int) -> list[Asset]:
        return await self._ask(lambda sql: assets(sql.database, narrowed, limit))

    async def asset_bytes(self) -> int:
        return await self._ask(lambda sql: asset_bytes(sql.database))

    async def asset_digests(self, digests: Collection[str]) -> set[str]:
        return await self._ask(lambda sql: asset_digests(sql.database, digests))

    async def asset_count(self, owner: str | None) -> int:
        return await self._ask(lambda sql: asset_count(sql.database, owner))

    async def output_facts(self, runs: Sequence[tuple[str, int]]) -> list[OutputFacts]:
        return await self._ask(lambda sql: output_facts(sql.database, runs))

    async def outputs_with(self, blake3: str, key: str | None, limit: int) -> list[OutputFacts]:
        return await self._ask(lambda sql: outputs_with(sql.database, blake3, key, limit))

    async def uploads(self) -> list[KeptUpload]:
        return await self._ask(lambda sql: uploads(sql.database))

    async def ahead_of(self, number: int) -> int:
        return await self._ask(lambda sql: sql.ahead_of(number))

    async def sent_under(self, owner: str | None, key: str, since: float) -> str | None:
        return await self._ask(lambda sql: sent_under(sql.database, owner, key, since))

    async def queued_of(self, key: str, limit: int) -> list[str]:
        return await self._ask(lambda sql: queued_of(sql.database, key, limit))

    async def unfinished(self, after: int, limit: int) -> list[JobRecord]:
        return await self._ask(lambda sql: sql.unfinished(after, limit))

    async def ended(self, key: str | None, limit: int) -> list[EndedJob]:
        return await self._ask(lambda sql: ended(sql.database, key, limit))

    async def queued_since(self, key: str | None) -> dict[str, float]:
        return await self._ask(lambda sql: queued_since(sql.database, key))

    async def kept(self, prompt_ids: Sequence[str], most_bytes: int, *, results: bool = False) -> list[KeptJob | None]:
        return await self._ask(lambda sql: kept(sql.database, prompt_ids, most_bytes, results=results))

    async def counts(self) -> Mapping[State, int]:
        return await self._ask(Statements.counts)

    async def oldest_waiting(self) -> float | None:
        return await self._ask(Statements.oldest_waiting)

    async def made(self, narrowed: MadeFilter, limit: int) -> list[Made]:
        return await self._ask(lambda sql: made(sql.database, narrowed, limit))

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        return await self._ask(lambda sql: usage(sql.database, query))

    # Webhooks

    async def due(self, now: float, limit: int, each: int, under_way: Collection[Delivery] = ()) -> Due:
        being_sent = tuple(under_way)
        return await self._ask(lambda sql: sql.outbox.due(now, limit, each, being_sent))

    async def deliveries(self, *prompt_ids: str) -> list[Delivery]:
        return await self._ask(lambda sql: sql.outbox.of(prompt_ids))
