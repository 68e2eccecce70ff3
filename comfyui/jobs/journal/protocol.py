"""`Journal`: what a journal does, whether it is a file or only memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, Self

from comfyui.feed import Feed
from comfyui.jobs.journal.asset_writes import Asset, OutputFacts
from comfyui.jobs.journal.assets import AssetFilter
from comfyui.jobs.journal.attempts import Attempt
from comfyui.jobs.journal.deaths import Death
from comfyui.jobs.journal.held import Held
from comfyui.jobs.journal.made import Made, MadeFilter
from comfyui.jobs.journal.records import Delivery, Due, EndedJob, JobFilter, JobRecord, KeptJob, Page, RunRecord, State
from comfyui.jobs.journal.usage_records import UsageQuery, UsageRow
from comfyui.jobs.journal.writes import KeptUpload, Write

RUNS_KEPT = 100
"""Earlier runs of one job."""
YOUNG_S = 24 * 3600.0
"""A job that ended less than this ago is not removed."""


class JournalObserver(Protocol):
    """Is told of each commit; for metrics. Called on the event loop."""

    def committed(self, writes: int, seconds: float) -> None:
        """So many writes were committed together, and that took so long."""

    def failed(self, writes: int) -> None:
        """So many writes were not kept."""


class WriteListener(Protocol):
    """Is told of writes, on the event loop, when what is read has them. It returns at once."""

    def wrote(self, write: Write) -> None:
        """One write; of a write behind, whether or not it had a place."""


class Journal(Protocol):
    """Open it with ``async with``; leaving it commits what is behind. Used from one event loop, and never blocks it.

    What is read has every write that was made before, also those behind. All methods raise `JournalError` when the
    journal cannot be read or written; what was to be written is not in it then.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_exc: object) -> None: ...

    @property
    def writes(self) -> Feed[WriteListener]:
        """Tells of each write."""

    @property
    def problem(self) -> str | None:
        """Why the journal cannot be used now, in words for readiness; None when it can."""

    # Writing

    async def write(self, write: Write) -> int:
        """Returns when the write is committed: 0 where it changed nothing; of an `Add` the job's number, and of a
        `Reorder` that puts it first the number whose negative is its turn now.

        A caller that is cancelled does not undo it.
        """

    def begin(self, write: Write) -> asyncio.Future[int]:
        """As `write`, which goes on when this returns: the future has what that returns or raises."""

    @property
    def identity(self) -> str:
        """Of the journal, once it is open: the same as long as the journal is there. No other journal has it."""

    async def write_all(self, writes: Sequence[Write]) -> list[int]:
        """As `write`, all of them in one transaction: what it returns for each.

        Others wait meanwhile: for very many writes call it several times.
        """

    def write_behind(self, write: Write, *, soon: bool = True) -> None:
        """As `write`, committed a moment later, after all writes before it. The log says when it cannot be kept.

        Not `soon`: nobody is told of it. It waits for others, so that a commit is shared by more of them.
        """

    async def prune(self, now: float, *, keep_days: float | None, keep: int | None) -> int:
        """Removes jobs that ended more than `keep_days` ago, and the oldest beyond `keep`; returns how many.

        A job that ended less than 24 hours ago stays, and one with a webhook that waits.
        """

    async def prune_usage(self, before: str, files_before: str) -> int:
        """Removes what was used on days before `before`; returns how many rows. Whose files are is kept shorter."""

    # Jobs

    async def get(self, prompt_id: str) -> JobRecord | None: ...

    async def get_all(self, prompt_ids: Sequence[str]) -> list[JobRecord]:
        """Those of these jobs that there are, in this order."""

    async def body_of(self, prompt_id: str) -> bytes | None: ...

    async def result_of(self, prompt_id: str) -> bytes | None:
        """The result of the present run, where it ended with one; of one that failed, what nodes had made before."""

    async def results_of(self, prompt_ids: Sequence[str], most_bytes: int) -> list[bytes | None]:
        """As `result_of` for the first of these jobs: so many that they have about `most_bytes`, and at least one."""

    async def attempt_of(self, prompt_id: str) -> Attempt | None:
        """How far the present attempt is at a platform that knows no ids of ours; None where it is at none."""

    async def reply_of(self, prompt_id: str) -> bytes | None:
        """What the platform gave for it, where it did."""

    async def runs(self, prompt_id: str) -> list[RunRecord]:
        """The last 100 earlier runs, oldest first."""

    async def page(self, narrowed: JobFilter, limit: int, cursor: str | None = None) -> Page:
        """Newest first. `cursor` is a page's `next_cursor`, with the same filter; else `QueryError` is raised.

        A page of a search for a text has the jobs that were found among so many, none perhaps: see `Page`.
        """

    async def waiting(self, after: int, limit: int) -> list[JobRecord]:
        """Async jobs that are on no server and not being cancelled, by `number`, from the one behind `after` on.

        Those whose inputs are still to be fetched are left out.
        """

    async def fetching(self, after: int, limit: int) -> list[JobRecord]:
        """As `waiting`, those that it leaves out."""

    async def ahead_of(self, number: int) -> int:
        """How many of `waiting` and `fetching` are before this number."""

    async def queued_of(self, key: str, limit: int) -> list[str]:
        """Ids of jobs of this key, of either kind and of all persons behind it, that are queued: so many at most."""

    async def sent_under(self, owner: str | None, key: str, since: float) -> str | None:
        """The id of the newest job that this owner sent under this idempotency key, from that time on."""

    async def unfinished(self, after: int, limit: int) -> list[JobRecord]:
        """Jobs of both kinds that have not ended, by `seq`, from the one behind `after` on."""

    async def ended(self, key: str | None, limit: int) -> list[EndedJob]:
        """The last `limit` jobs to end, of this key and all persons behind it; None: of all. In the order of ends.

        Without those that ComfyUI's history does not show any more.
        """

    async def queued_since(self, key: str | None) -> dict[str, float]:
        """When the present run was queued, of each job that has not ended, of this key as for `ended`."""

    async def kept(self, prompt_ids: Sequence[str], most_bytes: int, *, results: bool = False) -> list[KeptJob | None]:
        """The first of these jobs, with what they were asked and with `results` what they gave: None for an unknown id.

        So many that they have about `most_bytes` together, and at least one.
        """

    async def counts(self) -> Mapping[State, int]:
        """How many jobs are in each state."""

    async def oldest_waiting(self) -> float | None:
        """When the first of `waiting` and `fetching` was queued."""

    async def named_inputs(self) -> set[str]:
        """All values of the `inputs` of jobs that have not ended."""

    async def deaths(self, since: float) -> list[Death]:
        """Under which workflows, by their hash, ComfyUI's process ended from then on, the oldest first.

        The last 1,000 are kept.
        """

    async def held(self) -> Held:
        """What the last `Pause`, and the last `Drain` of each server, said."""

    async def uploads(self) -> list[KeptUpload]:
        """All files that clients uploaded, the one that was used longest ago first."""

    async def assets(self, narrowed: AssetFilter, limit: int) -> list[Asset]:
        """Assets, the newest first: so many at most."""

    async def asset_bytes(self) -> int:
        """How many bytes assets have: each content once, however many assets have it."""

    async def asset_digests(self, digests: Collection[str]) -> set[str]:
        """Those of these contents, by their SHA-256, that an asset has."""

    async def asset_count(self, owner: str | None) -> int:
        """How many assets the owner has."""

    async def output_facts(self, runs: Sequence[tuple[str, int]]) -> list[OutputFacts]:
        """What is known of the files of these runs, each the id of its job and its number."""

    async def outputs_with(self, blake3: str, key: str | None, limit: int) -> list[OutputFacts]:
        """Files of jobs' present runs that have these bytes, those of the newest jobs first: so many at most.

        Of this key and all persons behind it; None: of all.
        """

    async def made(self, narrowed: MadeFilter, limit: int) -> list[Made]:
        """Files that prompts have made, those last that were made first: so many at most."""

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """In the order of `query.by`."""

    # Webhooks

    async def due(self, now: float, limit: int, each: int, under_way: Collection[Delivery] = ()) -> Due:
        """Up to `limit` webhooks that are due, and are not being sent; at most `each` for one receiver.

        Those `under_way` count for their receiver. For each job and audience there is only the first one that waits, so
        that they arrive in order.
        """

    async def deliveries(self, *prompt_ids: str) -> list[Delivery]:
        """All webhooks of these jobs, oldest first."""
