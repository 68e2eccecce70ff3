"""`MemoryJournal`: the journal of a gateway without `STATE_DIR`, and of workers. It ends with the process."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any, Self
from uuid import uuid4

import structlog

from comfyui import jsonio
from comfyui.exceptions import ComfyUIOverloadedError
from comfyui.feed import Feed
from comfyui.jobs.journal.asset_writes import Asset, KnowOutputs, OutputFacts
from comfyui.jobs.journal.assets import AssetFilter, MemoryAssets
from comfyui.jobs.journal.attempts import Attempt, MemoryAttempts
from comfyui.jobs.journal.cursor import cursor_of, seq_of
from comfyui.jobs.journal.deaths import Death, MemoryDeaths
from comfyui.jobs.journal.first_record import first_record
from comfyui.jobs.journal.held import Held, MemoryHeld
from comfyui.jobs.journal.made import Made, MadeFilter
from comfyui.jobs.journal.memory_bodies import MemoryBodies
from comfyui.jobs.journal.memory_outbox import MemoryOutbox
from comfyui.jobs.journal.memory_usage import MemoryUsage
from comfyui.jobs.journal.protocol import RUNS_KEPT, YOUNG_S, WriteListener
from comfyui.jobs.journal.records import (
    Delivery,
    Due,
    EndedJob,
    Fence,
    JobFilter,
    JobRecord,
    KeptJob,
    Page,
    RunRecord,
    State,
)
from comfyui.jobs.journal.rows import packed, unpacked
from comfyui.jobs.journal.searching import MOST_LOOKED_AT, Candidate, search, some_of
from comfyui.jobs.journal.showing import first_of
from comfyui.jobs.journal.uploads import MemoryUploads
from comfyui.jobs.journal.usage_records import UsageQuery, UsageRow
from comfyui.jobs.journal.writes import (
    Add,
    Again,
    Cancel,
    ClearHistory,
    Died,
    Fetched,
    Finish,
    Forgive,
    Hide,
    Keep,
    KeptUpload,
    Place,
    PutBack,
    Reorder,
    SendAgain,
    Sent,
    Start,
    Suspect,
    Tell,
    Tried,
    Withdraw,
    Write,
)
from comfyui.owners import key_of

_RUN = tuple(field.name for field in fields(RunRecord))
_LIVE = frozenset({State.QUEUED, State.RUNNING})


# Measured size of a job besides its body and result, and of a webhook or an earlier run of it.
_RECORD_BYTES = 1500
_PART_BYTES = 600
# How many jobs with waiting webhooks are passed over to find one that can be removed.
_PASSED_OVER = 100

_log = structlog.get_logger(__name__)


class MemoryJournal:
    """`Journal` in dictionaries. Bodies and results are compressed, bodies once for each content.

    Args:
        keep: how many jobs that have ended are kept at most, however young.
        max_bytes: about as much memory it takes: the oldest jobs that have ended make room. Async jobs that wait may
            have half of it; beyond that they are refused with `ComfyUIOverloadedError`.
    """

    problem: str | None = None

    def __init__(self, *, keep: int = 100_000, max_bytes: int = 64_000_000) -> None:
        self.identity = uuid4().hex[:16]
        self.writes: Feed[WriteListener] = Feed()
        self._most_ended = keep
        self._max_bytes = max_bytes
        # Jobs that have ended, without their bodies.
        self._bytes = 0
        self._counter = 0
        # The last end that ComfyUI's history hides, by key; "" for all.
        self._cleared: dict[str, int] = {}
        # By `seq`, which only grows: newest last.
        self._jobs: dict[int, JobRecord] = {}
        self._seqs: dict[str, int] = {}
        # Unfinished jobs, with the bytes of their bodies, and ended ones, oldest first, with their size without bodies.
        self._unfinished: dict[int, int] = {}
        self._unfinished_bytes = 0
        self._ended: dict[int, int] = {}
        self._bodies = MemoryBodies()
        self._results: dict[int, bytes] = {}
        self._runs: dict[int, list[RunRecord]] = {}
        self._counts = dict.fromkeys(State, 0)
        # The numbers of those that wait, in order, and whose they are.
        self._waiting: list[int] = []
        self._waiting_seqs: dict[int, int] = {}
        # The newest job of each idempotency key of an owner.
        self._sent_under: dict[tuple[str | None, str], str] = {}
        self._outbox = MemoryOutbox()
        self._usage = MemoryUsage()
        self._deaths = MemoryDeaths()
        self._uploads, self._held = MemoryUploads(), MemoryHeld()
        self._attempts = MemoryAttempts(self._find)
        self._assets = MemoryAssets()
        self._appliers: dict[type, Callable[[Any], int]] = {
            Add: self._add,
            Withdraw: self._withdraw,
            Place: self._place,
            PutBack: self._put_back,
            Reorder: self._reorder,
            Start: self._start,
            Suspect: self._suspect,
            Died: self._deaths.died,
            Forgive: self._deaths.forgive,
            Cancel: self._cancel,
            Finish: self._finish,
            Tell: self._tell,
            Again: self._again,
            Keep: self._keep,
            Fetched: self._fetched,
            Tried: self._outbox.tried,
            SendAgain: self._send_again,
            **self._held.appliers,
            Sent: self._usage.sent,
            Hide: self._hide,
            ClearHistory: self._clear_history,
            **self._uploads.appliers,
            **self._attempts.appliers(),
            **self._assets.appliers,
            KnowOutputs: self._know_outputs,
        }

    @property
    def size(self) -> int:
        """About how many bytes bodies, results and all jobs that have ended take."""
        return self._bodies.size + self._bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """There is nothing to close."""

    # Writing

    async def write(self, write: Write) -> int:
        return await self.begin(write)

    def begin(self, write: Write) -> asyncio.Future[int]:
        writing: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            writing.set_result(self._write(write))
        except Exception as error:
            writing.set_exception(error)
        return writing

    async def write_all(self, writes: Sequence[Write]) -> list[int]:
        return [self._write(write) for write in writes]

    def write_behind(self, write: Write, *, soon: bool = True) -> None:  # noqa: ARG002 - it takes no time
        self._write(write)

    def _write(self, write: Write) -> int:
        if changed := self._appliers[type(write)](write):
            for listener in self.writes:
                listener.wrote(write)
        return changed

    def _add(self, write: Add) -> int:
        job = write.job
        if job.prompt_id in self._seqs:
            return 0
        if job.kind == "async" and self._unfinished_bytes + len(job.body or b"") > self._max_bytes // 2:
            raise ComfyUIOverloadedError(
                f"the waiting jobs take {self._max_bytes // 2_000_000} MB of memory; try again later, or keep them on"
                " disk by STATE_DIR"
            )
        seq = self._next_number()
        digest = self._bodies.use(job.body)
        self._seqs[job.prompt_id] = seq
        added = first_record(job, seq, body_sha256=digest, server=write.server)
        self._put(added, None)
        self._has_begun(added)
        if job.idempotency_key is not None:
            self._sent_under[job.owner, job.idempotency_key] = job.prompt_id
        if write.end is not None:
            self._finish(write.end)
        return seq

    def _withdraw(self, write: Withdraw) -> bool:
        job = self._fenced(write.fence)
        if job is None or job.state is not State.QUEUED or job.run > 1 or job.losses:
            return False
        self._unfinished_bytes -= self._unfinished.pop(job.seq)
        self._stops_waiting(job)
        self._forget(job)
        return True

    def _place(self, write: Place) -> bool:
        job = self._current(write.fence.prompt_id, write.fence.run)
        if job is None or job.state not in _LIVE or write.fence.attempt <= job.attempt:
            return False
        return self._change_server(job, write.server, write.fence.attempt)

    def _put_back(self, write: PutBack) -> bool:
        job = self._fenced(write.fence)
        if job is None or job.state not in _LIVE or job.server is None:
            return False
        return self._change_server(job, None, write.fence.attempt + 1)

    def _reorder(self, write: Reorder) -> int:
        job = self._current(write.fence.prompt_id, write.fence.run)
        waits = job is not None and job.state in _LIVE and job.server is None
        if job is None or not waits or job.attempt != write.fence.attempt:
            return 0
        number = self._next_number() if write.first else 1
        turn = -number if write.first else job.turn
        self._change(job, priority=job.priority if write.priority is None else write.priority, turn=turn)
        return number

    def _change_server(self, job: JobRecord, server: str | None, attempt: int) -> bool:
        return self._change(job, server=server, attempt=attempt, begun=False, losses=job.losses + job.begun)

    def _start(self, write: Start) -> bool:
        job = self._fenced(write.fence)
        if job is None or job.state not in _LIVE or job.server is None:
            return False
        self._outbox.add(write.fence, write.deliveries)
        return self._change(job, state=State.RUNNING, begun=True, started_at=write.at, attempt=write.fence.attempt)

    def _suspect(self, write: Suspect) -> bool:
        job = self._fenced(write.fence)
        if job is None or job.state not in _LIVE or job.server is None:
            return False
        return self._change(job, alone=True, begun=job.begun or write.begun, attempt=write.fence.attempt)

    def _cancel(self, write: Cancel) -> bool:
        job = self._current(write.prompt_id, write.run)
        return job is not None and job.state in _LIVE and self._change(job, state=State.CANCELING)

    def _finish(self, write: Finish) -> bool:
        job = self._fenced(write.fence)
        if job is None or job.state.is_end:
            return False
        if write.result is not None:
            self._results[job.seq] = packed(write.result)
        self._outbox.add(write.fence, write.deliveries)
        started_at = write.started_at if job.started_at is None else job.started_at
        self._usage.ended(write, job.owner, job.workflow_name, started_at)
        self._change(
            job,
            state=write.state,
            ended_at=write.at,
            started_at=started_at,
            end_number=self._next_number(),
            retryable=write.retryable,
            error=None if write.error is None else jsonio.loads(jsonio.dumps(write.error)),
            attempt=write.fence.attempt,
        )
        self._has_ended(job, len(self._results.get(job.seq, b"")) + (len(str(write.error)) if write.error else 0))
        return True

    def _tell(self, write: Tell) -> bool:
        job = self._find(write.prompt_id)
        if job is None:
            return False
        body = job.body_sha256
        if write.body is not None:
            body = self._bodies.in_place_of(body, write.body)
        self._change(job, callers_id=True, body_sha256=body)
        if job.seq in self._unfinished:
            self._has_another_body(self._jobs[job.seq])
        return True

    def _again(self, write: Again) -> bool:
        job = self._current(write.prompt_id, write.run)
        if job is None or not job.may_run_again:
            return False
        ended = self._runs.setdefault(job.seq, [])
        ended.append(RunRecord(**{name: getattr(job, name) for name in _RUN}))
        del ended[:-RUNS_KEPT]
        self._outbox.forget(job.prompt_id, job.run - RUNS_KEPT)
        self._results.pop(job.seq, None)
        self._bytes -= self._ended.pop(job.seq)
        body = job.body_sha256
        if write.body is not None:
            body = self._bodies.in_place_of(body, write.body)
        self._change(
            job,
            run=job.run + 1,
            kind=write.kind,
            body_sha256=body,
            inputs=job.inputs if write.inputs is None else dict(write.inputs),
            needs_secrets=job.needs_secrets if write.needs_secrets is None else write.needs_secrets,
            call=write.call or job.call,
            state=State.QUEUED,
            server=None,
            attempt=0,
            begun=False,
            alone=False,
            losses=0,
            number=self._next_number(),
            end_number=None,
            queued_at=write.at,
            started_at=None,
            ended_at=None,
            retryable=False,
            error=None,
            hidden=False,
        )
        self._has_begun(self._jobs[job.seq])
        return True

    def _keep(self, write: Keep) -> bool:
        job = self._current(write.prompt_id, write.run)
        if job is None or job.kind == "async" or job.state not in _LIVE:
            return False
        body = self._bodies.in_place_of(job.body_sha256, write.body)
        call = write.call or job.call
        self._change(job, kind="async", callers_id=True, body_sha256=body, inputs=dict(write.inputs), call=call)
        self._has_another_body(self._jobs[job.seq])
        return True

    def _fetched(self, write: Fetched) -> bool:
        job = self._current(write.prompt_id, write.run)
        return job is not None and job.state in _LIVE and self._change(job, inputs=dict(write.inputs))

    def _send_again(self, write: SendAgain) -> bool:
        job = self._find(write.prompt_id)
        return job is not None and self._outbox.send_again(job.prompt_id, job.run, write.at)

    def _hide(self, write: Hide) -> bool:
        found = [self._find(prompt_id) for prompt_id in write.prompt_ids]
        shown = [job for job in found if job is not None and job.state.is_end and not job.hidden]
        for job in shown:
            self._jobs[job.seq] = replace(job, hidden=True)
        return bool(shown)

    def _clear_history(self, write: ClearHistory) -> bool:
        self._cleared[write.key or ""] = self._counter
        return True

    def _know_outputs(self, write: KnowOutputs) -> bool:
        return self._current(write.prompt_id, write.run) is not None and self._assets.know(write)

    async def prune(self, now: float, *, keep_days: float | None, keep: int | None) -> int:
        ended = ((job.ended_at, job.end_number or 0, job) for job in self._jobs.values() if job.ended_at is not None)
        old = sorted((one for one in ended if one[0] < now - YOUNG_S), key=_by_end)
        too_old = float("-inf") if keep_days is None else now - keep_days * YOUNG_S
        too_many = 0 if keep is None else len(self._jobs) - len(self._unfinished) - keep
        gone = [job for place, (ended_at, _, job) in enumerate(old) if ended_at < too_old or place < too_many]
        gone = [job for job in gone if not self._outbox.waits_for(job.prompt_id)]
        for job in gone:
            self._remove(job)
        return len(gone)

    def _has_begun(self, job: JobRecord) -> None:
        self._unfinished[job.seq] = self._bodies.size_of(job.body_sha256)
        self._unfinished_bytes += self._unfinished[job.seq]

    def _has_another_body(self, job: JobRecord) -> None:
        self._unfinished_bytes -= self._unfinished[job.seq]
        self._has_begun(job)

    def _has_ended(self, job: JobRecord, more: int) -> None:
        self._unfinished_bytes -= self._unfinished.pop(job.seq)
        parts = len(self._runs.get(job.seq, ())) + len(self._outbox.of(job.prompt_id))
        self._ended[job.seq] = _RECORD_BYTES + parts * _PART_BYTES + more
        self._bytes += self._ended[job.seq]
        while len(self._ended) > 1 and (
            len(self._ended) > self._most_ended or self._bodies.size + self._bytes > self._max_bytes
        ):
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        oldest = self._jobs[next(iter(self._ended))]
        for seq in tuple(islice(self._ended, min(_PASSED_OVER, len(self._ended) - 1))):
            if not self._outbox.waits_for(self._jobs[seq].prompt_id):
                self._remove(self._jobs[seq])
                return
            self._ended[seq] = self._ended.pop(seq)
        _log.warning("journal.memory_full", prompt_id=oldest.prompt_id, detail="the job's webhook will not be sent")
        self._remove(oldest)

    def _remove(self, job: JobRecord) -> None:
        self._bytes -= self._ended.pop(job.seq)
        self._forget(job)

    def _forget(self, job: JobRecord) -> None:
        del self._jobs[job.seq], self._seqs[job.prompt_id]
        self._counts[job.state] -= 1
        self._results.pop(job.seq, None)
        self._runs.pop(job.seq, None)
        self._attempts.forget(job.prompt_id)
        self._outbox.remove(job.prompt_id)
        if job.idempotency_key is not None:
            self._sent_under.pop((job.owner, job.idempotency_key), None)
        self._assets.forget(job.prompt_id)
        self._bodies.drop(job.body_sha256)

    async def prune_usage(self, before: str, files_before: str) -> int:
        return self._usage.remove(before, files_before)

    # Jobs

    async def get(self, prompt_id: str) -> JobRecord | None:
        job = self._find(prompt_id)
        return None if job is None else self._marked(job)

    async def get_all(self, prompt_ids: Sequence[str]) -> list[JobRecord]:
        return [self._marked(job) for one in prompt_ids if (job := self._find(one)) is not None]

    async def body_of(self, prompt_id: str) -> bytes | None:
        job = self._find(prompt_id)
        return None if job is None else self._bodies.of(job.body_sha256)

    async def result_of(self, prompt_id: str) -> bytes | None:
        return unpacked(self._results.get(self._seqs.get(prompt_id, 0)))

    async def results_of(self, prompt_ids: Sequence[str], most_bytes: int) -> list[bytes | None]:
        found = (self._results.get(self._seqs.get(prompt_id, 0)) for prompt_id in prompt_ids)
        return first_of(map(unpacked, found), most_bytes)

    async def runs(self, prompt_id: str) -> list[RunRecord]:
        return list(self._runs.get(self._seqs.get(prompt_id, 0), ()))

    async def page(self, narrowed: JobFilter, limit: int, cursor: str | None = None) -> Page:
        before = seq_of(cursor, narrowed)
        if narrowed.text:
            # Jobs come and go while texts are compared.
            fitting = iter(tuple(islice(self._fitting(narrowed, before), MOST_LOOKED_AT)))

            async def candidates(_before: int | None, limit: int) -> list[Candidate]:
                return some_of(self._candidate(job) for job in islice(fitting, limit))

            return await search(candidates, narrowed, limit, before)
        found = tuple(islice(self._fitting(narrowed, before), limit + 1))
        more = len(found) > limit
        return Page(found[:limit], cursor_of(found[limit - 1].seq, narrowed) if more else None)

    def _fitting(self, narrowed: JobFilter, before: int | None) -> Iterator[JobRecord]:
        jobs = map(self._marked, reversed(self._jobs.values()))
        return (job for job in jobs if (before is None or job.seq < before) and narrowed.fits(job))

    def _candidate(self, job: JobRecord) -> Candidate:
        return Candidate(job.seq, job.created_at, lambda: job, self._bodies.packed_of(job.body_sha256))

    async def waiting(self, after: int, limit: int) -> list[JobRecord]:
        return self._in_turn(after, limit, fetching=False)

    async def fetching(self, after: int, limit: int) -> list[JobRecord]:
        return self._in_turn(after, limit, fetching=True)

    def _in_turn(self, after: int, limit: int, *, fetching: bool) -> list[JobRecord]:
        behind = islice(self._waiting, bisect_right(self._waiting, after), None)
        jobs = (self._jobs[self._waiting_seqs[number]] for number in behind)
        return list(islice((job for job in jobs if job.is_fetching is fetching), limit))

    async def named_inputs(self) -> set[str]:
        return {value for seq in self._unfinished for value in self._jobs[seq].inputs.values()}

    async def held(self) -> Held:
        return self._held.held

    async def assets(self, narrowed: AssetFilter, limit: int) -> list[Asset]:
        return self._assets.found(narrowed, limit)

    async def asset_bytes(self) -> int:
        return self._assets.bytes()

    async def asset_digests(self, digests: Collection[str]) -> set[str]:
        return self._assets.digests().intersection(digests)

    async def asset_count(self, owner: str | None) -> int:
        return self._assets.count(owner)

    async def output_facts(self, runs: Sequence[tuple[str, int]]) -> list[OutputFacts]:
        return self._assets.facts(runs)

    async def outputs_with(self, blake3: str, key: str | None, limit: int) -> list[OutputFacts]:
        found: list[tuple[int, OutputFacts]] = []
        for one in self._assets.outputs_with(blake3):
            job = self._jobs[self._seqs[one.prompt_id]]
            if one.run == job.run and (key is None or (job.owner is not None and key_of(job.owner) == key)):
                found.append((-job.seq, one))
        return [one for _, one in sorted(found)[:limit]]

    async def uploads(self) -> list[KeptUpload]:
        return self._uploads.all()

    async def attempt_of(self, prompt_id: str) -> Attempt | None:
        return self._attempts.of(prompt_id)

    async def reply_of(self, prompt_id: str) -> bytes | None:
        return self._attempts.reply(prompt_id)

    async def deaths(self, since: float) -> list[Death]:
        return self._deaths.since(since)

    async def ahead_of(self, number: int) -> int:
        return bisect_left(self._waiting, number)

    async def sent_under(self, owner: str | None, key: str, since: float) -> str | None:
        job = self._find(self._sent_under.get((owner, key), ""))
        return None if job is None or job.created_at < since else job.prompt_id

    async def queued_of(self, key: str, limit: int) -> list[str]:
        narrowed = JobFilter(key=key, states=frozenset({State.QUEUED}))
        queued = (job for seq in self._unfinished if narrowed.fits(job := self._jobs[seq]))
        return [job.prompt_id for job in islice(queued, limit)]

    async def unfinished(self, after: int, limit: int) -> list[JobRecord]:
        return [self._jobs[seq] for seq in sorted(self._unfinished) if seq > after][:limit]

    async def ended(self, key: str | None, limit: int) -> list[EndedJob]:
        narrowed = JobFilter(key=key, shown_only=True)
        last = (job for seq in reversed(self._ended) if narrowed.fits(job := self._marked(self._jobs[seq])))
        found = sorted(islice(last, limit), key=lambda job: job.end_number or 0)
        return [EndedJob(job.prompt_id, job.state, job.queued_at, job.started_at, job.ended_at or 0.0) for job in found]

    async def queued_since(self, key: str | None) -> dict[str, float]:
        narrowed = JobFilter(key=key)
        fitting = (job for seq in self._unfinished if narrowed.fits(job := self._jobs[seq]))
        return {job.prompt_id: job.queued_at for job in fitting}

    async def kept(self, prompt_ids: Sequence[str], most_bytes: int, *, results: bool = False) -> list[KeptJob | None]:
        found: list[KeptJob | None] = []
        size = 0
        for prompt_id in prompt_ids:
            if (job := self._find(prompt_id)) is None:
                found.append(None)
                continue
            result = unpacked(self._results.get(job.seq)) if results else None
            body = self._bodies.of(job.body_sha256)
            found.append(KeptJob(self._marked(job), body, result))
            size += len(body or b"") + len(result or b"")
            if size >= most_bytes:
                break
        return found

    async def counts(self) -> Mapping[State, int]:
        return dict(self._counts)

    async def oldest_waiting(self) -> float | None:
        return self._jobs[self._waiting_seqs[self._waiting[0]]].queued_at if self._waiting else None

    async def made(self, narrowed: MadeFilter, limit: int) -> list[Made]:
        return self._usage.made(narrowed, limit)

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        return self._usage.rows(query)

    # Webhooks

    async def due(self, now: float, limit: int, each: int, under_way: Collection[Delivery] = ()) -> Due:
        return self._outbox.due(now, limit, each, under_way)

    async def deliveries(self, *prompt_ids: str) -> list[Delivery]:
        return self._outbox.of(*prompt_ids)

    # Shorthand

    def _next_number(self) -> int:
        self._counter += 1
        return self._counter

    def _find(self, prompt_id: str) -> JobRecord | None:
        return self._jobs.get(self._seqs.get(prompt_id, 0))

    def _marked(self, job: JobRecord) -> JobRecord:
        """The job, marked as hidden if someone has cleared the history since it ended."""
        if job.end_number is None or not self._cleared:
            return job
        keys = ("", key_of(job.owner)) if job.owner is not None else ("",)
        hidden = any(self._cleared.get(key, 0) >= job.end_number for key in keys)
        return replace(job, hidden=True) if hidden else job

    def _current(self, prompt_id: str, run: int) -> JobRecord | None:
        job = self._find(prompt_id)
        return job if job is not None and job.run == run else None

    def _fenced(self, fence: Fence) -> JobRecord | None:
        """The job, unless an attempt has begun that is newer than the fence."""
        job = self._current(fence.prompt_id, fence.run)
        return job if job is not None and job.attempt <= fence.attempt else None

    def _change(self, job: JobRecord, **changes: Any) -> bool:
        self._put(replace(job, **changes), job)
        return True

    def _put(self, job: JobRecord, before: JobRecord | None) -> None:
        """All that follows from a job's state: how many there are, and which of them wait."""
        self._jobs[job.seq] = job
        self._counts[job.state] += 1
        if before is not None:
            self._counts[before.state] -= 1
            self._stops_waiting(before)
        if job.waits:
            self._waiting_seqs[job.number] = job.seq
            insort(self._waiting, job.number)

    def _stops_waiting(self, job: JobRecord) -> None:
        if self._waiting_seqs.pop(job.number, None) is not None:
            del self._waiting[bisect_left(self._waiting, job.number)]


def _by_end(ended: tuple[float, int, JobRecord]) -> tuple[float, int]:
    return ended[:2]
