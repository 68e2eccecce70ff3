"""`Journal`: the protocol of a journal, in a file or only in memory."""

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
    """Is told of each commit, for metrics. Called on the event loop."""

    def committed(self, writes: int, seconds: float) -> None:
        """This number of writes was committed together, in this time."""

    def failed(self, writes: int) -> None:
        """This number of writes was lost."""


class WriteListener(Protocol):
    """Is told of writes, on the event loop, once reads include them. It returns at once."""

    def wrote(self, write: Write) -> None:
        """One write; of a write behind, whether or not it had a place."""


class Journal(Protocol):
    """Open it with ``async with``; leaving it commits pending writes. It is used from one event loop, and never blocks
    it.

    A read includes every earlier write, even one that is not committed yet. All methods raise `JournalError` if the
    journal cannot be read or written; the write is then not in it.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_exc: object) -> None: ...

    @property
    def writes(self) -> Feed[WriteListener]:
        """Tells of each write."""

    @property
    def problem(self) -> str | None:
        """Why the journal cannot be used now, in words for readiness; None if it can."""

    # Writing

    async def write(self, write: Write) -> int:
        """Returns when the write is committed: 0 if it changed nothing; for an `Add`, the job's number; for a `Reorder`
        to the front, the number whose negative is its turn now.

        A caller that is cancelled does not undo it.
        """

    def begin(self, write: Write) -> asyncio.Future[int]:
        """As `write`, but returns at once: the future has its result or error."""

    @property
    def identity(self) -> str:
        """The identity of the journal, once it is open: the same as long as the journal exists. No other journal has
        it.
        """

    async def write_all(self, writes: Sequence[Write]) -> list[int]:
        """As `write`, all of them in one transaction: the result of each.

        Others wait meanwhile: for very many writes, call it several times.
        """

    def write_behind(self, write: Write, *, soon: bool = True) -> None:
        """As `write`, committed a moment later, after all earlier writes. A failure is logged.

        Without `soon`, listeners are not told. The write waits longer, so that more writes share a commit.
        """

    async def prune(self, now: float, *, keep_days: float | None, keep: int | None) -> int:
        """Removes jobs that ended more than `keep_days` ago, and the oldest beyond `keep`; returns how many.

        A job that ended less than 24 hours ago stays, and one with a webhook that waits.
        """

    async def prune_usage(self, before: str, files_before: str) -> int:
        """Removes the usage of days before `before`; returns how many rows. The owners of files are kept shorter."""

    # Jobs

    async def get(self, prompt_id: str) -> JobRecord | None: ...

    async def get_all(self, prompt_ids: Sequence[str]) -> list[JobRecord]:
        """Those of these jobs that exist, in this order."""

    async def body_of(self, prompt_id: str) -> bytes | None: ...

    async def result_of(self, prompt_id: str) -> bytes | None:
        """The result of the present run, if it ended with one; for a failed run, the outputs that nodes had made
        before.
        """

    async def results_of(self, prompt_ids: Sequence[str], most_bytes: int) -> list[bytes | None]:
        """As `result_of` for the first of these jobs: for as many as have about `most_bytes`, and at least one."""

    async def attempt_of(self, prompt_id: str) -> Attempt | None:
        """The progress of the present attempt at a platform that does not know our ids; None if it is at none."""

    async def reply_of(self, prompt_id: str) -> bytes | None:
        """The platform's reply to it, if there was one."""

    async def runs(self, prompt_id: str) -> list[RunRecord]:
        """The last 100 earlier runs, oldest first."""

    async def page(self, narrowed: JobFilter, limit: int, cursor: str | None = None) -> Page:
        """Newest first. `cursor` is a page's `next_cursor`, with the same filter; else `QueryError` is raised.

        A page of a search for a text has the matches among a limited number of jobs, perhaps none: see `Page`.
        """

    async def waiting(self, after: int, limit: int) -> list[JobRecord]:
        """Async jobs that are on no server and not being cancelled, by `number`, from the one behind `after` on.

        Jobs whose inputs are still to be fetched are left out.
        """

    async def fetching(self, after: int, limit: int) -> list[JobRecord]:
        """As `waiting`, for the jobs that it leaves out."""

    async def ahead_of(self, number: int) -> int:
        """How many of `waiting` and `fetching` are before this number."""

    async def queued_of(self, key: str, limit: int) -> list[str]:
        """Ids of queued jobs of this key, of either kind and of all persons behind it, at most `limit`."""

    async def sent_under(self, owner: str | None, key: str, since: float) -> str | None:
        """The id of the newest job that this owner sent under this idempotency key, from that time on."""

    async def unfinished(self, after: int, limit: int) -> list[JobRecord]:
        """Jobs of both kinds that have not ended, by `seq`, from the one behind `after` on."""

    async def ended(self, key: str | None, limit: int) -> list[EndedJob]:
        """The last `limit` jobs that ended, of this key and all persons behind it; None: of all. In the order of their
        ends.

        Jobs that ComfyUI's history hides are left out.
        """

    async def queued_since(self, key: str | None) -> dict[str, float]:
        """When the present run was queued, of each job that has not ended, of this key as for `ended`."""

    async def kept(self, prompt_ids: Sequence[str], most_bytes: int, *, results: bool = False) -> list[KeptJob | None]:
        """The first of these jobs, with their requests and, with `results`, their results: None for an unknown id.

        For as many as have about `most_bytes` together, and at least one.
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
        """The state after the last `Pause`, and the last `Drain` of each server."""

    async def uploads(self) -> list[KeptUpload]:
        """All files that clients uploaded, the least recently used first."""

    async def assets(self, narrowed: AssetFilter, limit: int) -> list[Asset]:
        """Assets, newest first, at most `limit`."""

    async def asset_bytes(self) -> int:
        """How many bytes assets have: each content once, however many assets have it."""

    async def asset_digests(self, digests: Collection[str]) -> set[str]:
        """Those of these contents, by their SHA-256, that belong to an asset."""

    async def asset_count(self, owner: str | None) -> int:
        """How many assets the owner has."""

    async def output_facts(self, runs: Sequence[tuple[str, int]]) -> list[OutputFacts]:
        """The facts about the files of these runs, each the id of its job and its number."""

    async def outputs_with(self, blake3: str, key: str | None, limit: int) -> list[OutputFacts]:
        """Files of jobs' present runs that have these bytes, those of the newest jobs first, at most `limit`.

        Only of this key and all persons behind it; None: of all.
        """

    async def made(self, narrowed: MadeFilter, limit: int) -> list[Made]:
        """Files that prompts have made, newest first, at most `limit`."""

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Sorted by `query.by`."""

    # Webhooks

    async def due(self, now: float, limit: int, each: int, under_way: Collection[Delivery] = ()) -> Due:
        """Up to `limit` webhooks that are due, and are not being sent; at most `each` for one receiver.

        Those `under_way` count for their receiver. Each job and audience has only its first waiting one, so that they
        arrive in order.
        """

    async def deliveries(self, *prompt_ids: str) -> list[Delivery]:
        """All webhooks of these jobs, oldest first."""
