"""The behaviour of every journal, in a file or in memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from comfyui.exceptions import QueryError
from comfyui.jobs.journal.asset_writes import (
    Asset,
    DropAssets,
    ExpireAssets,
    KeepAsset,
    KnowOutputs,
    OutputFacts,
    UseAssets,
)
from comfyui.jobs.journal.assets import AssetFilter
from comfyui.jobs.journal.attempts import Attempt
from comfyui.jobs.journal.first_record import first_record
from comfyui.jobs.journal.made import MadeFilter
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.persons import MOST_PERSONS
from comfyui.jobs.journal.protocol import RUNS_KEPT, Journal
from comfyui.jobs.journal.records import (
    Delivery,
    DeliveryState,
    Due,
    Fence,
    JobFilter,
    JobRecord,
    NewJob,
    RunRecord,
    State,
    WebhookOrder,
)
from comfyui.jobs.journal.usage_records import UsageQuery, UsageRow
from comfyui.jobs.journal.writes import (
    Add,
    Again,
    Cancel,
    ClearHistory,
    Died,
    DropAttempt,
    DropUploads,
    Fetched,
    Finish,
    Forgive,
    Hide,
    Keep,
    KeepUpload,
    KeptUpload,
    MadeFile,
    NoteAttempt,
    Pause,
    Place,
    PutBack,
    SendAgain,
    Sent,
    Start,
    Suspect,
    Tell,
    Tried,
    UseUpload,
    Withdraw,
)
from tests.support.journals import BODY, CALL, delivery, end, new_job, prompt_id, run

_DAY = 86_400.0


async def numbers_of(journal: Journal, narrowed: JobFilter, limit: int = 50) -> list[float]:
    """The submission times of the jobs on all pages of a list; each test's jobs have different ones."""
    found: list[float] = []
    cursor = None
    while True:
        page = await journal.page(narrowed, limit, cursor)
        found += [record.created_at for record in page.records]
        cursor = page.next_cursor
        if cursor is None:
            return found
        assert len(page.records) == limit


async def record_of(journal: Journal, number: int) -> JobRecord:
    record = await journal.get(prompt_id(number))
    assert record is not None
    return record


# The records of jobs


async def test_a_job_is_read_as_it_was_written(journal: Journal) -> None:
    job = NewJob(
        prompt_id=prompt_id(7),
        kind="sync",
        callers_id=True,
        created_at=1_700_000_000.25,
        fingerprint="f",
        owner="alice",
        face="prompt_sync",
        workflow_name="portrait",
        client_id="c",
        labels={"project": "x", "né".encode().hex(): "é"},
        inputs={"photo.png": "a" * 64},
        needs_secrets=True,
        priority=-1_000_000,
        webhook=WebhookOrder("https://a.example/?token=1", ("prompt.started",)),
        max_queued_s=1.5,
        max_execution_s=600.0,
        turn=12.5,
        idempotency_key="k 1",
        note="any text",
        call=CALL,
        body=BODY,
    )
    number = await journal.write(Add(job, "gpu-1"))
    record = await record_of(journal, 7)
    assert first_record(job, number, body_sha256=record.body_sha256, server="gpu-1") == record
    for name in NewJob.__dataclass_fields__.keys() - {"body", "front"}:
        assert getattr(record, name) == getattr(job, name), name
    assert (record.run, record.state, record.server, record.attempt) == (1, State.QUEUED, "gpu-1", 1)
    assert (record.queued_at, record.started_at, record.ended_at, record.error) == (job.created_at, None, None, None)
    assert await journal.body_of(job.prompt_id) == BODY
    assert await journal.result_of(job.prompt_id) is None


async def test_a_job_shows_the_number_that_it_got_or_asked_for(journal: Journal) -> None:
    assert await journal.write(Add(new_job(1))) == 1
    assert await journal.write(Add(new_job(2, front=True))) == 2
    assert await journal.write(Add(new_job(3, turn=0.5))) == 3
    shown = [(await record_of(journal, number)).shown_number for number in (1, 2, 3)]
    assert shown == [1, -2, 0.5]
    assert [type(number) for number in shown] == [int, int, float]
    assert not await journal.write(Add(new_job(3)))


async def test_a_job_is_found_by_its_owners_idempotency_key(journal: Journal) -> None:
    for number, owner in ((1, None), (2, "alice"), (3, "alice/x")):
        assert await journal.write(Add(new_job(number, owner=owner, idempotency_key="k")))
    assert [await journal.sent_under(owner, "k", 0.0) for owner in (None, "alice", "alice/x", "bob")] == [
        *(prompt_id(number) for number in (1, 2, 3)),
        None,
    ]
    assert await journal.sent_under("alice", "k", 2.5) is None
    assert await journal.sent_under("alice", "other", 0.0) is None
    assert await journal.write(Withdraw(Fence(prompt_id(2), 1, 0)))
    assert await journal.sent_under("alice", "k", 0.0) is None


async def test_a_withdrawn_job_leaves_no_trace(journal: Journal) -> None:
    kept = new_job(1, labels={"a": "b"})
    await journal.write(Add(kept))
    await journal.write(Add(new_job(2, labels={"a": "b"}), "gpu-1"))
    await journal.write(Add(new_job(3, body=b'{"other": 1}')))
    assert await journal.write(Withdraw(Fence(prompt_id(2), 1, 1)))
    assert await journal.write(Withdraw(Fence(prompt_id(3), 1, 0)))
    for number in (2, 3):
        assert await journal.get(prompt_id(number)) is None
        assert await journal.body_of(prompt_id(number)) is None
        assert not await journal.write(Withdraw(Fence(prompt_id(number), 1, 1)))
    assert [record.prompt_id for record in (await journal.page(JobFilter(labels={"a": "b"}), 5)).records] == [
        kept.prompt_id
    ]
    assert [record.prompt_id for record in await journal.waiting(0, 5)] == [kept.prompt_id]
    assert (await journal.counts())[State.QUEUED] == 1
    assert await journal.body_of(kept.prompt_id) == BODY
    # The withdrawn id is free again.
    assert await journal.write(Add(new_job(2)))


@pytest.mark.parametrize("began", [True, False])
async def test_a_job_that_began_or_has_ended_is_not_withdrawn(journal: Journal, began: bool) -> None:
    fence = await run(journal, 1) if began else Fence(prompt_id(1), 1, 0)
    if not began:
        await journal.write(Add(new_job(1)))
        await end(journal, 1, State.FAILED)
    assert not await journal.write(Withdraw(fence))
    assert await journal.get(prompt_id(1)) is not None


async def test_an_older_attempt_withdraws_nothing(journal: Journal) -> None:
    await journal.write(Add(new_job(1), "gpu-1"))
    await journal.write(Place(Fence(prompt_id(1), 1, 2), "gpu-2"))
    assert not await journal.write(Withdraw(Fence(prompt_id(1), 1, 1)))


async def test_a_second_job_with_the_same_id_changes_nothing(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    before = await record_of(journal, 1)
    assert not await journal.write(Add(new_job(1, body=b"{}", owner="mallory")))
    assert await record_of(journal, 1) == before
    assert await journal.body_of(prompt_id(1)) == BODY


async def test_an_unknown_job_reads_as_nothing_and_cannot_be_changed(journal: Journal) -> None:
    assert await journal.get("?") is None
    assert await journal.body_of("?") is None
    assert await journal.result_of("?") is None
    assert await journal.runs("?") == []
    assert await journal.deliveries("?") == []
    assert await journal.oldest_waiting() is None
    assert await journal.due(9.0, 10, 10) == Due((), None)
    assert set((await journal.counts()).values()) == {0}
    for write in (Tell("?"), Cancel("?", 1), Again("?", 1, "sync", 0.0), SendAgain("?", 0.0)):
        assert not await journal.write(write)


async def test_a_run_is_recorded_from_its_placement_to_its_end(journal: Journal) -> None:
    fence = await run(journal, 1, at=5.0)
    running = await record_of(journal, 1)
    assert (running.state, running.server, running.started_at, running.fence) == (State.RUNNING, "gpu-1", 5.0, fence)
    error = {"type": "task_failed", "detail": "\ud800", "timings": {"executing": math.inf}}
    ended = Finish(fence=fence, state=State.FAILED, at=9.0, error=error, result=b'{"files": []}', retryable=True)
    assert await journal.write(ended)
    record = await record_of(journal, 1)
    assert (record.state, record.ended_at, record.retryable) == (State.FAILED, 9.0, True)
    assert record.error is not None
    assert record.error["type"] == "task_failed"
    assert record.end_number is not None
    assert record.end_number > record.number
    assert await journal.result_of(fence.prompt_id) == b'{"files": []}'


async def test_results_of_many_jobs_come_in_the_given_order_up_to_a_size(journal: Journal) -> None:
    for number, size in ((1, 500), (3, 2000), (4, 10)):
        await journal.write(Add(new_job(number)))
        await end(journal, number, result=b'"%s"' % (b"a" * size))
    await journal.write(Add(new_job(2)))
    ids = [prompt_id(number) for number in (4, 2, 3, 1)]
    sizes = [None if result is None else len(result) for result in await journal.results_of([*ids, "?"], 10_000)]
    assert sizes == [12, None, 2002, 502, None]
    assert len(await journal.results_of(ids, 1000)) == 3
    assert len(await journal.results_of(ids, 1)) == 1
    assert await journal.results_of([], 1) == []


async def test_lone_surrogates_in_a_callers_texts_are_replaced(journal: Journal) -> None:
    await journal.write(Add(new_job(1, client_id="a\ud800", owner="o\udfff", workflow_name="w\ud800", face="f\ud800")))
    record = await record_of(journal, 1)
    assert (record.client_id, record.owner, record.workflow_name, record.face) == (
        "a\ufffd",
        "o\ufffd",
        "w\ufffd",
        "f\ufffd",
    )
    assert await numbers_of(journal, JobFilter(workflow_name="w\ud800", labels={"\ud800": "\ud800"})) == []
    assert await journal.get("\ud800") is None
    assert [found.number for found in await journal.get_all(["\ud800", prompt_id(1)])] == [record.number]


async def test_pending_writes_are_applied_in_order_before_a_read(journal: Journal) -> None:
    fence = Fence(prompt_id(1), 1, 1)
    for write in (Add(new_job(1)), Place(fence, "gpu-1"), Start(fence, 2.0)):
        journal.write_behind(write)
    assert (await record_of(journal, 1)).state is State.RUNNING
    journal.write_behind(Finish(fence=fence, state=State.SUCCEEDED, at=3.0))
    assert (await record_of(journal, 1)).state is State.SUCCEEDED


async def test_a_cancelled_caller_undoes_no_write(journal: Journal) -> None:
    task = asyncio.create_task(journal.write(Add(new_job(1))))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await journal.get(prompt_id(1)) is not None


async def test_an_id_that_the_caller_got_counts_as_the_callers_id(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    assert not (await record_of(journal, 1)).callers_id
    assert await journal.write(Tell(prompt_id(1)))
    assert (await record_of(journal, 1)).callers_id
    assert await journal.body_of(prompt_id(1)) == BODY


async def test_the_body_is_kept_from_the_moment_the_caller_gets_the_id(journal: Journal) -> None:
    await journal.write(Add(new_job(1, body=None)))
    assert await journal.body_of(prompt_id(1)) is None
    assert (await record_of(journal, 1)).body_sha256 is None
    assert await journal.write(Tell(prompt_id(1), BODY))
    assert await journal.body_of(prompt_id(1)) == BODY
    await end(journal, 1)
    assert await journal.write(Tell(prompt_id(1)))
    assert await journal.body_of(prompt_id(1)) == BODY


async def test_a_pending_write_that_may_wait_is_read_at_once(journal: Journal) -> None:
    journal.write_behind(Add(new_job(1), "gpu-1"), soon=False)
    journal.write_behind(Cancel(prompt_id(1), 1))
    journal.write_behind(Add(new_job(2), "gpu-1"), soon=False)
    assert (await record_of(journal, 1)).state is State.CANCELING
    assert (await record_of(journal, 2)).server == "gpu-1"


async def test_a_job_written_together_with_its_end_equals_a_job_that_ended_later(journal: Journal) -> None:
    fence = Fence(prompt_id(1), 1, 1)
    fields: dict[str, Any] = {"at": 9.0, "result": b'{"a": 1}', "started_at": 5.0, "executing_s": 3.0}
    assert await journal.write(Add(new_job(1), "gpu-1"))
    assert await journal.write(Finish(fence=fence, state=State.SUCCEEDED, **fields))
    end_ = Finish(fence=fence._replace(prompt_id=prompt_id(2)), state=State.SUCCEEDED, **fields)
    assert await journal.write(Add(new_job(2, created_at=1.0), "gpu-1", end_))
    assert not await journal.write(Add(new_job(2, created_at=1.0), "gpu-1", end_))
    first, second = await record_of(journal, 1), await record_of(journal, 2)
    assert second == replace(first, seq=3, number=3, end_number=4, prompt_id=prompt_id(2))
    assert await journal.result_of(prompt_id(2)) == b'{"a": 1}'
    assert (await journal.counts())[State.SUCCEEDED] == 2
    (used,) = await journal.usage(UsageQuery(by=("key",), since="1970-01-01", until="1970-01-02"))
    assert (used.succeeded, used.gpu_s) == (2, 6.0)


async def test_a_pending_end_is_kept_together_with_the_writes_before_it(journal: Journal) -> None:
    """The writes between the job and its end are not skipped."""
    between: dict[int, Start | Place] = {
        2: Start(Fence(prompt_id(2), 1, 1), 4.0),
        3: Place(Fence(prompt_id(3), 1, 2), "gpu-2"),
    }
    for number in (1, 2, 3, 4):
        journal.write_behind(Add(new_job(number), "gpu-1"), soon=False)
    for number, write in between.items():
        journal.write_behind(write, soon=number == 2)
    for number in (1, 2, 3):
        fence = Fence(prompt_id(number), 1, 1 + (number == 3))
        journal.write_behind(Finish(fence=fence, state=State.SUCCEEDED, at=9.0), soon=False)
    journal.write_behind(Finish(fence=Fence(prompt_id(4), 1, 1), state=State.LOST, at=9.0))
    records = [await record_of(journal, number) for number in (1, 2, 3, 4)]
    assert [record.state for record in records] == [State.SUCCEEDED] * 3 + [State.LOST]
    assert [record.started_at for record in records] == [None, 4.0, None, None]
    assert [record.server for record in records] == ["gpu-1", "gpu-1", "gpu-2", "gpu-1"]


async def test_a_pending_placement_is_kept_without_an_end_and_before_a_start(journal: Journal) -> None:
    for number in (1, 2, 3):
        journal.write_behind(Add(new_job(number)), soon=False)
        fence = Fence(prompt_id(number), 1, 1)
        journal.write_behind(Place(fence, f"gpu-{number}"), soon=False)
        if number == 2:
            journal.write_behind(Start(fence, 4.0), soon=False)
        if number == 3:
            journal.write_behind(PutBack(fence), soon=False)
            journal.write_behind(Place(Fence(prompt_id(3), 1, 3), "gpu-4"), soon=False)
    records = [await record_of(journal, number) for number in (1, 2, 3)]
    assert [(record.state, record.server, record.fence.attempt) for record in records] == [
        (State.QUEUED, "gpu-1", 1),
        (State.RUNNING, "gpu-2", 1),
        (State.QUEUED, "gpu-4", 3),
    ]


async def test_each_journal_in_memory_has_its_own_identity() -> None:
    """When a server comes back, the identity tells its prompts of this gateway from those of other gateways."""
    async with MemoryJournal() as one, MemoryJournal() as other:
        assert one.identity
        assert one.identity != other.identity


@pytest.mark.parametrize("body", [b"", b"x", b"x\x9c", b"{}", b"[1]" * 10_000])
async def test_a_body_and_a_result_are_read_byte_for_byte(journal: Journal, body: bytes) -> None:
    await journal.write(Add(new_job(1, body=body)))
    await end(journal, 1, result=body)
    assert await journal.body_of(prompt_id(1)) == body
    assert await journal.result_of(prompt_id(1)) == body


# Fences, losses and runs


async def test_a_write_with_an_old_fence_changes_nothing(journal: Journal) -> None:
    old = await run(journal, 1)
    new = old.next()
    assert await journal.write(Place(new, "gpu-2"))
    before = await record_of(journal, 1)
    for write in (
        Place(old, "gpu-3"),
        Place(new, "gpu-3"),
        PutBack(old),
        Start(old, 9.0),
        Finish(fence=old, state=State.SUCCEEDED, at=9.0, deliveries=(delivery("d"),)),
        Finish(fence=new._replace(run=2), state=State.SUCCEEDED, at=9.0),
    ):
        assert not await journal.write(write), write
    assert await record_of(journal, 1) == before
    assert await journal.deliveries(old.prompt_id) == []


async def test_only_the_loss_of_an_attempt_that_had_begun_is_counted(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    fence = Fence(prompt_id(1), 1, 1)
    await journal.write(Place(fence, "gpu-1"))
    await journal.write(PutBack(fence))
    fence = (await record_of(journal, 1)).fence.next()
    await journal.write(Place(fence, "gpu-2"))
    assert (await record_of(journal, 1)).losses == 0
    await journal.write(Start(fence, 1.0))
    await journal.write(Place(fence.next(), "gpu-3"))
    assert ((await record_of(journal, 1)).losses, (await record_of(journal, 1)).state) == (1, State.RUNNING)
    await journal.write(Place(fence.next().next(), "gpu-4"))
    assert (await record_of(journal, 1)).losses == 1, "the previous attempt had not begun"
    await journal.write(Start(fence.next().next(), 2.0))
    await journal.write(PutBack(fence.next().next()))
    put_back = await record_of(journal, 1)
    assert (put_back.losses, put_back.state, put_back.server) == (2, State.RUNNING, None)
    await journal.write(Place(put_back.fence.next(), "gpu-1"))
    assert (await record_of(journal, 1)).losses == 2, "a job that was put back counts one loss only"


async def test_server_deaths_are_kept_by_workflow_until_they_are_old_or_forgiven(journal: Journal) -> None:
    assert await journal.deaths(0.0) == []
    for workflow, at in (("a", 10.0), ("b", 20.0), ("a", 30.0)):
        assert await journal.write(Died(workflow, at, before=0.0))
    assert await journal.deaths(0.0) == [("a", 10.0), ("b", 20.0), ("a", 30.0)]
    assert await journal.deaths(20.0) == [("b", 20.0), ("a", 30.0)]
    assert await journal.write(Died("c", 40.0, before=20.0))
    assert await journal.deaths(0.0) == [("b", 20.0), ("a", 30.0), ("c", 40.0)]
    assert await journal.write(Forgive("a"))
    assert not await journal.write(Forgive("a"))
    assert await journal.deaths(0.0) == [("b", 20.0), ("c", 40.0)]
    for number in range(1001):
        journal.write_behind(Died("d", 100.0 + number, before=0.0))
    found = await journal.deaths(0.0)
    assert (len(found), found[0], found[-1]) == (1000, ("d", 101.0), ("d", 1100.0))


async def test_an_upload_is_kept_under_its_owner_and_its_name(journal: Journal) -> None:
    assert await journal.uploads() == []
    mine = KeptUpload("alice", "input/é b.png", "1" * 64, 5, 10.0, 20.0)
    theirs = mine._replace(key="", digest="2" * 64, used_at=10.0)
    for upload in (mine, theirs):
        assert await journal.write(KeepUpload(upload))
    assert await journal.uploads() == [theirs, mine], "the least recently used upload is first"
    # Other bytes under the same name.
    newer = theirs._replace(digest="3" * 64, size=7, used_at=15.0)
    assert await journal.write(KeepUpload(newer))
    assert await journal.write(UseUpload("alice", mine.place, 30.0))
    assert not await journal.write(UseUpload("alice", mine.place, 25.0)), "a later use is known"
    assert not await journal.write(UseUpload("bob", mine.place, 40.0))
    assert await journal.uploads() == [newer, mine._replace(used_at=30.0)]
    gone = (("", mine.place), ("bob", mine.place))
    assert await journal.write(DropUploads(gone))
    assert not await journal.write(DropUploads(gone))
    assert await journal.uploads() == [mine._replace(used_at=30.0)]


async def test_a_job_that_may_have_killed_its_server_runs_alone_until_its_next_run(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    placed = Fence(prompt_id(1), 1, 1)
    assert not await journal.write(Suspect(placed, begun=True)), "the job is on no server"
    await journal.write(Place(placed, "gpu-1"))
    assert await journal.write(Suspect(placed, begun=False))
    sent = await record_of(journal, 1)
    assert (sent.alone, sent.begun, sent.state) == (True, False, State.QUEUED)
    assert await journal.write(Suspect(placed, begun=True))
    await journal.write(Place(placed.next(), "gpu-2"))
    blamed = await record_of(journal, 1)
    assert (blamed.alone, blamed.losses, blamed.state) == (True, 1, State.QUEUED)
    assert not await journal.write(Suspect(placed, begun=True)), "an older attempt"
    await journal.write(Finish(fence=blamed.fence, state=State.LOST, at=9.0))
    assert (await record_of(journal, 1)).alone
    assert await journal.write(Again(prompt_id(1), 1, "async", 10.0))
    assert not (await record_of(journal, 1)).alone


async def test_an_attempt_that_was_put_back_changes_nothing_more(journal: Journal) -> None:
    fence = await run(journal, 1)
    assert await journal.write(PutBack(fence))
    assert not await journal.write(Start(fence, 9.0))
    assert not await journal.write(Finish(fence=fence, state=State.SUCCEEDED, at=9.0))
    assert not await journal.write(PutBack((await record_of(journal, 1)).fence))


async def test_a_job_that_is_being_cancelled_is_not_placed_again_and_may_end_in_any_way(journal: Journal) -> None:
    fence = await run(journal, 1)
    assert await journal.write(Cancel(fence.prompt_id, 1))
    assert not await journal.write(Cancel(fence.prompt_id, 1))
    assert not await journal.write(Place(fence.next(), "gpu-2"))
    assert not await journal.write(Start(fence, 9.0))
    assert await journal.write(Finish(fence=fence, state=State.SUCCEEDED, at=9.0))


@pytest.mark.parametrize(
    ("state", "retryable", "possible"),
    [
        (State.CANCELED, False, True),
        (State.LOST, False, True),
        (State.FAILED, True, True),
        (State.FAILED, False, False),
        (State.SUCCEEDED, False, False),
        (State.SUCCEEDED, True, False),
    ],
)
async def test_a_new_run_follows_only_an_end_that_allows_a_retry(
    journal: Journal, state: State, retryable: bool, possible: bool
) -> None:
    fence = await run(journal, 1, at=2.0)
    ended = Finish(fence=fence, state=state, at=3.0, error={"type": "x"}, result=b"{}", retryable=retryable)
    assert await journal.write(ended)
    before = await record_of(journal, 1)
    assert await journal.write(Again(fence.prompt_id, 1, "sync", 4.0)) is possible
    after = await record_of(journal, 1)
    if not possible:
        assert after == before
        assert await journal.runs(fence.prompt_id) == []
        return
    assert (after.run, after.state, after.kind, after.attempt, after.server) == (2, State.QUEUED, "sync", 0, None)
    assert (after.queued_at, after.created_at, after.seq) == (4.0, before.created_at, before.seq)
    assert before.end_number is not None
    assert after.number > before.end_number
    assert (after.started_at, after.ended_at, after.error, after.retryable) == (None, None, None, False)
    assert await journal.result_of(fence.prompt_id) is None
    assert await journal.runs(fence.prompt_id) == [
        RunRecord(
            run=1,
            state=state,
            server="gpu-1",
            attempt=1,
            number=before.number,
            end_number=before.end_number,
            queued_at=1.0,
            started_at=2.0,
            ended_at=3.0,
            error={"type": "x"},
        )
    ]
    assert not await journal.write(Finish(fence=fence, state=State.SUCCEEDED, at=5.0)), "the first run is over"
    assert not await journal.write(Again(fence.prompt_id, 1, "sync", 5.0)), "each end allows one new run"


async def test_only_the_last_runs_of_a_job_are_kept(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    for number in range(1, RUNS_KEPT + 4):
        await journal.write(Finish(fence=Fence(prompt_id(1), number, 0), state=State.LOST, at=1.0))
        assert await journal.write(Again(prompt_id(1), number, "async", 2.0))
    assert [one.run for one in await journal.runs(prompt_id(1))] == list(range(4, RUNS_KEPT + 4))


async def test_the_webhooks_of_the_last_runs_and_all_waiting_ones_are_kept(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    for number in range(1, RUNS_KEPT + 4):
        told = delivery(f"d{number}")
        await journal.write(Finish(fence=Fence(prompt_id(1), number, 0), state=State.LOST, at=1.0, deliveries=(told,)))
        if number != 2:
            await journal.write(Tried(id=told.id, at=1.0, answer="200", state=DeliveryState.DELIVERED))
        assert await journal.write(Again(prompt_id(1), number, "async", 2.0))
    kept = [2, *range(4, RUNS_KEPT + 4)]
    assert [one.run for one in await journal.deliveries(prompt_id(1))] == kept
    assert await due_at(journal, 9.0) == ["d2"]
    assert await journal.prune(1e9, keep_days=0, keep=None) == 0


def test_running_is_refused_as_an_end() -> None:
    with pytest.raises(ValueError, match="running is no end"):
        Finish(fence=Fence(prompt_id(1), 1, 1), state=State.RUNNING, at=0.0)


# The order of waiting jobs, and their numbers


async def test_async_jobs_wait_in_the_order_of_their_submission(journal: Journal) -> None:
    for number in range(1, 8):
        await journal.write(Add(new_job(number, kind="sync" if number == 3 else "async")))
    await journal.write(Place(Fence(prompt_id(1), 1, 1), "gpu-1"))
    await journal.write(Cancel(prompt_id(4), 1))
    await end(journal, 5)
    waiting = await journal.waiting(0, 50)
    assert [one.created_at for one in waiting] == [2.0, 6.0, 7.0]
    assert [one.created_at for one in await journal.waiting(waiting[0].number, 1)] == [6.0]
    assert await journal.ahead_of(waiting[2].number) == 2
    assert await journal.oldest_waiting() == 2.0
    await journal.write(PutBack(Fence(prompt_id(1), 1, 1)))
    assert [one.created_at for one in await journal.waiting(0, 50)] == [1.0, 2.0, 6.0, 7.0]
    assert [one.created_at for one in await journal.unfinished(0, 3)] == [1.0, 2.0, 3.0]
    third = (await journal.unfinished(0, 3))[2]
    assert [one.created_at for one in await journal.unfinished(third.seq, 50)] == [4.0, 6.0, 7.0]
    assert {state: count for state, count in (await journal.counts()).items() if count} == {
        State.QUEUED: 5,
        State.CANCELING: 1,
        State.SUCCEEDED: 1,
    }


async def test_a_new_run_waits_behind_the_others(journal: Journal) -> None:
    for number in (1, 2):
        await journal.write(Add(new_job(number)))
    await end(journal, 1, State.CANCELED)
    await journal.write(Again(prompt_id(1), 1, "async", 9.0))
    assert [one.created_at for one in await journal.waiting(0, 50)] == [2.0, 1.0]
    assert await numbers_of(journal, JobFilter()) == [2.0, 1.0], "a new run keeps its place in a list"


# Lists


async def test_lists_are_narrowed_and_paged_newest_first(journal: Journal) -> None:
    for number in range(1, 41):
        owner = ("alice", "bob", None)[number % 3]
        labels = {"even": str(number % 2 == 0), "tens": str(number // 10)}
        await journal.write(Add(new_job(number, owner=owner, labels=labels, workflow_name=f"w{number % 4}")))
        if number % 5 == 0:
            await end(journal, number, State.FAILED)
    every = [float(number) for number in range(40, 0, -1)]
    lists: list[tuple[JobFilter, Callable[[float], bool]]] = [
        (JobFilter(), lambda number: True),
        (JobFilter(owner="alice"), lambda number: number % 3 == 0),
        (JobFilter(owner="nobody"), lambda number: False),
        (JobFilter(states=frozenset({State.FAILED})), lambda number: number % 5 == 0),
        (JobFilter(states=frozenset(State)), lambda number: True),
        (JobFilter(workflow_name="w1"), lambda number: number % 4 == 1),
        (JobFilter(labels={"tens": "2"}), lambda number: number // 10 == 2),
        (
            JobFilter(
                owner="alice",
                states=frozenset({State.QUEUED}),
                workflow_name="w2",
                labels={"even": "True", "tens": "1"},
            ),
            lambda number: number == 18,
        ),
    ]
    for narrowed, fits in lists:
        for limit in (1, 7, 50):
            assert await numbers_of(journal, narrowed, limit) == [number for number in every if fits(number)]


async def test_a_list_has_only_jobs_that_match_all_labels(journal: Journal) -> None:
    await journal.write(Add(new_job(1, labels={"a": "1", "b": "2"})))
    await journal.write(Add(new_job(2, labels={"a": "1", "b": "3"})))
    await journal.write(Add(new_job(3)))
    assert await numbers_of(journal, JobFilter(labels={"a": "1"})) == [2.0, 1.0]
    assert await numbers_of(journal, JobFilter(labels={"a": "1", "b": "2"})) == [1.0]
    assert await numbers_of(journal, JobFilter(labels={"b": "1"})) == []
    both = JobFilter(labels={"a": "1"}, states=frozenset({State.QUEUED, State.LOST}), owner=None)
    assert await numbers_of(journal, both, 1) == [2.0, 1.0]


async def test_a_list_that_grows_while_it_is_read_shows_each_job_once(journal: Journal) -> None:
    for number in range(1, 6):
        await journal.write(Add(new_job(number)))
    first = await journal.page(JobFilter(), 2)
    await journal.write(Add(new_job(6)))
    second = await journal.page(JobFilter(), 50, first.next_cursor)
    assert [one.created_at for one in (*first.records, *second.records)] == [5.0, 4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("cursor", ["", "x", "!!!", "é", "1.5", "MS41", "A" * 10_000, "MS4tNS5h\n"])
async def test_an_invalid_cursor_is_refused_by_name(journal: Journal, cursor: str) -> None:
    with pytest.raises(QueryError, match=r"^cursor must be the unchanged"):
        await journal.page(JobFilter(), 50, cursor)


async def test_a_cursor_of_a_list_with_other_filters_is_refused(journal: Journal) -> None:
    for number in range(1, 4):
        await journal.write(Add(new_job(number, owner="alice")))
    cursor = (await journal.page(JobFilter(owner="alice"), 1)).next_cursor
    with pytest.raises(QueryError, match=r"^cursor belongs to a list with other filters"):
        await journal.page(JobFilter(), 1, cursor)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ({f"k{number}": "" for number in range(17)}, "17"),
        ({"": "x"}, "''"),
        ({"k" * 41: "x"}, "kkk"),
        ({"a b": "x"}, "'a b'"),
        ({"ä": "x"}, r"'\\xe4'"),
        ({"k\n": "x"}, r"'k\\n'"),
        ({"k": "é" * 129}, "'k' must have at most 256 bytes"),
        ({"k": "a\nb"}, "'k' must have no control"),
        ({"k": "a\u202eb"}, "'k' must have no control"),
        ({"k": "\ud800"}, "'k' must have no control"),
        ({"k": 5}, "'k' must be text"),
    ],
)
def test_labels_beyond_their_limits_are_refused_by_name(labels: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        new_job(1, labels=labels)


# Jobs that are removed


async def test_a_body_is_kept_once_and_as_long_as_a_job_has_it(journal: Journal) -> None:
    for number in (1, 2):
        await journal.write(Add(new_job(number, body=b"[1]")))
    await end(journal, 1)
    assert await journal.prune(_DAY * 8, keep_days=7, keep=None) == 1
    assert await journal.body_of(prompt_id(1)) is None
    assert await journal.body_of(prompt_id(2)) == b"[1]"
    await journal.write(Add(new_job(3, body=b"[1]")))
    assert (await record_of(journal, 2)).body_sha256 == (await record_of(journal, 3)).body_sha256


async def test_jobs_that_ended_long_ago_are_removed_and_unfinished_jobs_stay(journal: Journal) -> None:
    for number in range(1, 5):
        await journal.write(Add(new_job(number, labels={"a": "1"}, owner="o")))
    await end(journal, 1, at=0.0, result=b"{}")
    await end(journal, 2, at=_DAY * 2)
    await end(journal, 3, at=0.0, deliveries=(delivery("d"),))
    assert await journal.prune(_DAY * 7, keep_days=7, keep=None) == 0, "it ended exactly seven days ago"
    assert await journal.prune(_DAY * 8, keep_days=7, keep=None) == 1
    assert await numbers_of(journal, JobFilter(labels={"a": "1"})) == [4.0, 3.0, 2.0]
    await journal.write(Tried(id="d", at=1.0, answer="200", state=DeliveryState.DELIVERED))
    assert await journal.prune(_DAY * 8, keep_days=7, keep=None) == 1, "the job's webhook has arrived"
    assert await journal.deliveries(prompt_id(3)) == []
    assert await journal.prune(_DAY * 1000, keep_days=None, keep=None) == 0
    assert (await journal.counts())[State.QUEUED] == 1


async def test_the_newest_ended_jobs_are_kept_and_those_of_the_last_day_always(journal: Journal) -> None:
    for number in range(1, 8):
        await journal.write(Add(new_job(number)))
        await end(journal, number, at=_DAY * number)
    now = _DAY * 7.5
    assert await journal.prune(now, keep_days=None, keep=7) == 0
    assert await journal.prune(now, keep_days=None, keep=4) == 3
    assert await numbers_of(journal, JobFilter()) == [7.0, 6.0, 5.0, 4.0]
    assert await journal.prune(now, keep_days=0, keep=0) == 3
    assert await numbers_of(journal, JobFilter()) == [7.0], "the youngest ended half a day ago"


# Webhooks


async def due_at(journal: Journal, now: float, *under_way: Delivery, limit: int = 50, each: int = 50) -> list[str]:
    """Ids of the webhooks that are due."""
    return [one.id for one in (await journal.due(now, limit, each, under_way)).deliveries]


async def test_webhooks_of_one_job_are_due_one_after_the_other(journal: Journal) -> None:
    fence = await run(journal, 1)
    started = delivery("started", event="prompt.started", due_at=1.0)
    assert await journal.write(Start(fence, 1.0, (started,)))
    ends = (delivery("ended", due_at=0.0), delivery("told", audience="operator", url="https://b.example", due_at=5.0))
    await journal.write(Finish(fence=fence, state=State.SUCCEEDED, at=1.0, deliveries=ends))
    assert await journal.due(0.5, 50, 50) == Due((), 1.0)
    found = await journal.due(2.0, 50, 50)
    (first,) = found.deliveries
    assert (first.id, first.event, first.prompt_id, first.run) == ("started", "prompt.started", fence.prompt_id, 1)
    assert found.next_at == 5.0, "the operator's webhook is next"
    assert await journal.due(2.0, 50, 50, [first]) == Due((), 5.0), (
        "the first webhook is being sent, and the second waits for it"
    )
    tried = Tried(id="started", at=2.0, answer="500", state=DeliveryState.WAITING, due_at=7.0)
    assert await journal.write(tried)
    assert await due_at(journal, 7.0) == ["told", "started"]
    assert await journal.write(Tried(id="started", at=8.0, answer="410", state=DeliveryState.GIVEN_UP))
    assert not await journal.write(Tried(id="started", at=8.0, answer="200", state=DeliveryState.DELIVERED))
    assert await due_at(journal, 8.0) == ["ended", "told"]
    first = (await journal.deliveries(fence.prompt_id))[0]
    assert (first.tries, first.tried_at, first.answer, first.state) == (2, 8.0, "410", DeliveryState.GIVEN_UP)


async def test_webhooks_of_several_jobs_are_read_at_once(journal: Journal) -> None:
    for number in (1, 2, 3):
        await journal.write(Add(new_job(number)))
    for number in (3, 1, 2):
        await end(journal, number, deliveries=(delivery(f"d{number}"),))
    assert [one.id for one in await journal.deliveries(prompt_id(2), prompt_id(3), prompt_id(9))] == ["d3", "d2"]
    assert await journal.deliveries() == []


async def test_a_slow_receiver_does_not_delay_the_webhooks_of_others(journal: Journal) -> None:
    for number in range(1, 30):
        await journal.write(Add(new_job(number)))
        await end(journal, number, deliveries=(delivery(f"slow-{number}", url="http://slow.example:80/a?b"),))
    await journal.write(Add(new_job(30)))
    await end(journal, 30, deliveries=(delivery("quick", url="https://quick.example/", due_at=0.5),))
    await journal.write(Add(new_job(31)))
    await end(journal, 31, deliveries=(delivery("late", url="https://quick.example/", due_at=3.0),))
    found = await journal.due(1.0, 10, 3)
    assert [one.id for one in found.deliveries] == ["slow-1", "slow-2", "slow-3", "quick"]
    assert found.next_at == 3.0
    slow = found.deliveries[:3]
    assert await due_at(journal, 1.0, *slow, each=3) == ["quick"]
    assert await due_at(journal, 1.0, *slow, each=4) == ["slow-4", "quick"]
    assert await due_at(journal, 1.0, *slow, each=4, limit=1) == ["slow-4"]
    assert await journal.due(1.0, 10, 3, found.deliveries) == Due((), 3.0)


async def test_webhooks_are_sent_again_with_the_same_ids(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    assert not await journal.write(SendAgain(prompt_id(1), 9.0)), "the job has no webhooks yet"
    url = "https://other.example"
    await end(journal, 1, State.LOST, deliveries=(delivery("a"), delivery("b"), delivery("a", url=url)))
    await journal.write(Tried(id="a", at=1.0, answer="200", state=DeliveryState.DELIVERED))
    await journal.write(Tried(id="b", at=1.0, answer="500", state=DeliveryState.WAITING, due_at=99.0))
    assert await journal.write(SendAgain(prompt_id(1), 9.0)), "a webhook that waits for its next try is sent too"
    again = await journal.deliveries(prompt_id(1))
    assert [(one.id, one.tries, one.due_at, one.url) for one in again] == [
        ("a", 0, 9.0, "https://a.example/hook"),
        ("b", 0, 9.0, "https://a.example/hook"),
    ]
    assert await due_at(journal, 9.0) == ["a"]
    await journal.write(Tried(id="a", at=9.0, answer="200", state=DeliveryState.DELIVERED))
    await journal.write(Again(prompt_id(1), 1, "async", 10.0))
    assert not await journal.write(SendAgain(prompt_id(1), 11.0)), "the present run has no webhooks"


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("https://user:pass@a.example/x?token=1", "a.example:443"),
        ("http://[::1]:8080/", "::1:8080"),
        ("http://A.example", "a.example:80"),
        ("http://[", "http://["),
        ("no url", "no url"),
    ],
)
def test_a_receiver_is_a_host_and_a_port(url: str, receiver: str) -> None:
    assert delivery("d", url=url).receiver == receiver


# Facts that share one write


async def test_a_job_may_be_added_together_with_its_placement(journal: Journal) -> None:
    assert await journal.write(Add(new_job(1), "gpu-1"))
    record = await record_of(journal, 1)
    assert (record.state, record.server, record.attempt, record.losses) == (State.QUEUED, "gpu-1", 1, 0)
    assert await journal.waiting(0, 10) == []
    assert not await journal.write(Place(Fence(prompt_id(1), 1, 1), "gpu-2")), "the fence is not newer"
    assert await journal.write(Start(Fence(prompt_id(1), 1, 1), 5.0))


async def test_an_end_may_give_the_start_time_of_a_run_without_one(journal: Journal) -> None:
    await journal.write(Add(new_job(1), "gpu-1"))
    assert await journal.write(Finish(fence=Fence(prompt_id(1), 1, 1), state=State.SUCCEEDED, at=9.0, started_at=3.0))
    fence = await run(journal, 2, at=4.0)
    assert await journal.write(Finish(fence=fence, state=State.SUCCEEDED, at=9.0, started_at=8.0))
    assert ((await record_of(journal, 1)).started_at, (await record_of(journal, 2)).started_at) == (3.0, 4.0)


# Inputs that are fetched after the submission


async def test_a_job_waits_while_its_inputs_are_fetched_and_keeps_its_place(journal: Journal) -> None:
    for number, url in ((1, False), (2, True), (3, False), (4, True)):
        inputs = {"images[0].image": "" if url else f"{number:064x}.png"}
        assert await journal.write(Add(new_job(number, inputs=inputs)))
    assert [record.created_at for record in await journal.waiting(0, 10)] == [1, 3]
    fetching = await journal.fetching(0, 10)
    assert [record.created_at for record in fetching] == [2, 4]
    assert [record.created_at for record in await journal.fetching(fetching[0].number, 10)] == [4]
    assert [record.created_at for record in await journal.fetching(0, 1)] == [2]
    assert await journal.ahead_of((await record_of(journal, 4)).number) == 3
    assert await journal.oldest_waiting() == 1
    assert await journal.write(Fetched(prompt_id(2), 1, {"images[0].image": f"{2:064x}.png"}))
    assert [record.created_at for record in await journal.waiting(0, 10)] == [1, 2, 3]
    assert (await record_of(journal, 2)).inputs == {"images[0].image": f"{2:064x}.png"}
    assert [record.created_at for record in await journal.fetching(0, 10)] == [4]


async def test_the_oldest_waiting_job_may_be_a_job_whose_inputs_are_fetched(journal: Journal) -> None:
    assert await journal.write(Add(new_job(1, inputs={"images[0].image": ""})))
    assert await journal.write(Add(new_job(2)))
    assert await journal.oldest_waiting() == 1
    assert await end(journal, 1, State.CANCELED)
    assert await journal.fetching(0, 10) == []
    assert await journal.oldest_waiting() == 2


async def test_inputs_fetched_for_a_run_that_is_over_change_nothing(journal: Journal) -> None:
    assert await journal.write(Add(new_job(1, inputs={"images[0].image": ""})))
    assert not await journal.write(Fetched(prompt_id(1), 2, {}))
    assert not await journal.write(Fetched(prompt_id(9), 1, {}))
    assert await end(journal, 1, State.CANCELED)
    assert not await journal.write(Fetched(prompt_id(1), 1, {"images[0].image": "a" * 64}))
    assert (await record_of(journal, 1)).inputs == {"images[0].image": ""}


async def test_a_new_run_may_bring_its_own_inputs(journal: Journal) -> None:
    assert await journal.write(Add(new_job(1, inputs={"images[0].image": "a" * 64})))
    for run_of, inputs, wanted in ((1, {"images[0].image": ""}, ""), (2, None, ""), (3, {}, None)):
        fence = Fence(prompt_id(1), run_of, 0)
        assert await journal.write(Finish(fence=fence, state=State.CANCELED, at=1.0))
        assert await journal.write(Again(prompt_id(1), run_of, "async", 2.0, inputs=inputs))
        record = await record_of(journal, 1)
        assert record.inputs.get("images[0].image") == wanted
        assert len(await journal.fetching(0, 10)) == (wanted == "")
        assert len(await journal.waiting(0, 10)) == (wanted is None)


async def test_a_new_run_or_a_kept_call_may_bring_its_own_named_call(journal: Journal) -> None:
    newer = replace(CALL, version="c" * 64, used={"seed": 2})
    assert await journal.write(Add(new_job(1, call=CALL)))
    assert await end(journal, 1, State.CANCELED)
    assert await journal.write(Again(prompt_id(1), 1, "sync", 2.0))
    assert (await record_of(journal, 1)).call == CALL
    assert await journal.write(Keep(prompt_id(1), 2, BODY, {}, newer))
    assert (await record_of(journal, 1)).call == newer
    assert await journal.write(Finish(fence=Fence(prompt_id(1), 2, 0), state=State.CANCELED, at=1.0))
    assert await journal.write(Again(prompt_id(1), 2, "async", 2.0, call=CALL))
    assert (await record_of(journal, 1)).call == CALL


async def test_a_new_run_may_change_whether_it_needs_secrets(journal: Journal) -> None:
    assert await journal.write(Add(new_job(1, needs_secrets=True)))
    for run_of, needs, wanted in ((1, None, True), (2, False, False), (3, True, True)):
        assert await journal.write(Finish(fence=Fence(prompt_id(1), run_of, 0), state=State.CANCELED, at=1.0))
        assert await journal.write(Again(prompt_id(1), run_of, "async", 2.0, needs_secrets=needs))
        assert (await record_of(journal, 1)).needs_secrets is wanted


async def test_only_unfinished_jobs_name_their_inputs(journal: Journal) -> None:
    assert await journal.named_inputs() == set()
    assert await journal.write(Add(new_job(1, inputs={"images[0].image": "a", "prompt.1.inputs.image": "b"})))
    assert await journal.write(Add(new_job(2, inputs={"files['c.png']": "b"})))
    assert await journal.write(Add(new_job(3)))
    assert await journal.named_inputs() == {"a", "b"}
    assert await end(journal, 1)
    assert await journal.named_inputs() == {"b"}
    assert await end(journal, 2, State.FAILED)
    assert await journal.named_inputs() == set()


async def test_a_new_run_may_bring_its_own_body(journal: Journal) -> None:
    assert await journal.write(Add(new_job(1, body=b"null")))
    assert await journal.write(Add(new_job(2)))
    assert await end(journal, 1, State.CANCELED)
    assert await journal.write(Again(prompt_id(1), 1, "async", 2.0, body=BODY))
    assert (await journal.body_of(prompt_id(1)), await journal.body_of(prompt_id(2))) == (BODY, BODY)
    assert (await record_of(journal, 1)).body_sha256 == (await record_of(journal, 2)).body_sha256
    assert await journal.prune(1e9, keep_days=0, keep=None) == 0
    assert await journal.write(Finish(fence=Fence(prompt_id(1), 2, 0), state=State.CANCELED, at=3.0))
    assert await journal.prune(1e9, keep_days=0, keep=None) == 1
    assert await journal.body_of(prompt_id(2)) == BODY


async def test_a_pause_stays_until_it_is_ended(journal: Journal) -> None:
    assert (await journal.held()).paused is False
    assert [await journal.write(Pause(paused)) for paused in (False, True, True)] == [False, True, False]
    assert (await journal.held()).paused is True
    assert await journal.write(Pause(False)) is True
    assert (await journal.held()).paused is False


# Usage


def _usage(journal: Journal, **query: Any) -> Any:
    return journal.usage(UsageQuery(**{"by": ("key",), "since": "0000-00-00", "until": "9999-99-99", **query}))


async def test_each_end_of_a_run_counts_once_for_its_day_key_person_and_workflow(journal: Journal) -> None:
    for number, (owner, workflow, day) in enumerate(
        [("alice", "a", 0), ("alice/eve", "a", 0), ("alice", "b", 1), ("bob", None, 1), (None, None, 1)]
    ):
        await journal.write(Add(new_job(number, owner=owner, workflow_name=workflow), "gpu-1"))
        fence = Fence(prompt_id(number), 1, 1)
        at = day * _DAY + 100.0
        await journal.write(Start(fence, at - 10))
        state = State.FAILED if number == 2 else State.SUCCEEDED
        finish = Finish(fence=fence, state=state, at=at, executing_s=4.5 if number == 0 else None)
        assert await journal.write(finish)
        assert not await journal.write(finish)  # the run has ended already
    await journal.write(Sent("alice/eve", 100.0, 700))
    await journal.write(Sent("alice/eve", 200.0, 300))

    assert await _usage(journal) == [
        UsageRow(None, "", None, None, 1, 0, 0, 0, 10.0, 0),
        UsageRow(None, "alice", None, None, 2, 1, 0, 0, 24.5, 1000),
        UsageRow(None, "bob", None, None, 1, 0, 0, 0, 10.0, 0),
    ]
    assert await _usage(journal, by=("day", "person"), key="alice") == [
        UsageRow("1970-01-01", None, "", None, 1, 0, 0, 0, 4.5, 0),
        UsageRow("1970-01-01", None, "eve", None, 1, 0, 0, 0, 10.0, 1000),
        UsageRow("1970-01-02", None, "", None, 0, 1, 0, 0, 10.0, 0),
    ]
    assert await _usage(journal, by=("workflow",), key="alice", person="eve", until="1970-01-01") == [
        UsageRow(None, None, None, "", 0, 0, 0, 0, 0.0, 1000),
        UsageRow(None, None, None, "a", 1, 0, 0, 0, 10.0, 0),
    ]
    assert len(await _usage(journal, by=("day", "key", "workflow"), limit=2)) == 2
    assert await journal.prune_usage("1970-01-02", "1970-01-01") == 3
    assert [row.day for row in await _usage(journal, by=("day",))] == ["1970-01-02"]


async def test_a_key_with_endless_persons_has_a_bounded_number_of_usage_rows(journal: Journal) -> None:
    """There was once a row for each name. Now the use of further persons counts for the key without a person."""
    for number in range(MOST_PERSONS + 50):
        journal.write_behind(Sent(f"app/person {number}", 100.0, 1))
    journal.write_behind(Sent("app/person 3", 100.0, 1))
    journal.write_behind(Sent("other/person 3000", 100.0, 1))
    journal.write_behind(Sent("app/person 3000", 100_000.0, 1))
    rows = await _usage(journal, by=("key", "person"), until="1970-01-01", limit=10_000)
    assert len(rows) == MOST_PERSONS + 2
    sums = {(row.key, row.person): row.bytes for row in rows}
    assert (sums["app", ""], sums["app", "person 3"], sums["other", "person 3000"]) == (50, 2, 1)
    assert [row.bytes for row in await _usage(journal, by=("key",), until="1970-01-01")] == [MOST_PERSONS + 51, 1]
    assert [row.person for row in await _usage(journal, by=("person",), since="1970-01-02")] == ["person 3000"]


async def test_usage_stays_when_jobs_are_removed(journal: Journal) -> None:
    await journal.write(Add(new_job(1, owner="alice")))
    await end(journal, 1)
    assert await journal.prune(10 * _DAY, keep_days=1, keep=None) == 1
    assert [row.succeeded for row in await _usage(journal)] == [1]


async def test_the_jobs_of_a_key_are_its_own_and_those_of_its_persons(journal: Journal) -> None:
    owners = ["app", "app/eve", "app-2", "app0", "ap", "app/a/b", "b"]
    for number, owner in enumerate(owners):
        await journal.write(Add(new_job(number, owner=owner)))
    assert await numbers_of(journal, JobFilter(key="app")) == [5, 1, 0]
    assert await numbers_of(journal, JobFilter(key="app", states=frozenset({State.QUEUED})), 2) == [5, 1, 0]
    assert await numbers_of(journal, JobFilter(owner="app")) == [0]
    assert sorted(await journal.queued_of("app", 10)) == [prompt_id(number) for number in (0, 1, 5)]
    assert len(await journal.queued_of("app", 2)) == 2
    await end(journal, 1)
    await journal.write(Place(Fence(prompt_id(0), 1, 1), "gpu-1"))
    await journal.write(Start(Fence(prompt_id(0), 1, 1), 0.0))
    assert await journal.queued_of("app", 10) == [prompt_id(5)]


async def makers(journal: Journal, key: str | None, place: str | None = "output//a.png", **more: Any) -> list[Any]:
    found = await journal.made(MadeFilter(key=key, place=place, **more), 10)
    return [(made.server, made.prompt_id) for made in found]


async def test_a_file_belongs_to_the_prompts_that_made_it(journal: Journal) -> None:
    made = [
        ("alice", [("gpu-1", "output//a.png", True)]),
        ("bob/eve", [("gpu-2", "output//a.png", True), ("gpu-2", "temp/x/\udc80.png", True)]),
        ("alice", [("gpu-3", "output//a.png", True)]),
        (None, [("gpu-1", "output//b.png", True), ("gpu-1", "output/sub/b.png", True)]),
    ]
    ids = [prompt_id(number) for number in range(len(made))]
    for number, (owner, files) in enumerate(made):
        await journal.write(Add(new_job(number, owner=owner)))
        assert await end(journal, number, at=number * _DAY, files=tuple(MadeFile(*file) for file in files))
    assert await makers(journal, "alice") == [("gpu-3", ids[2]), ("gpu-1", ids[0])]
    assert await makers(journal, "bob") == [("gpu-2", ids[1])]
    assert await makers(journal, None) == [("gpu-3", ids[2]), ("gpu-2", ids[1]), ("gpu-1", ids[0])]
    assert await makers(journal, "bob", "temp/x/\udc80.png") == [("gpu-2", ids[1])]
    assert [await makers(journal, key) for key in ("eve", "")] == [[], []]
    assert [await makers(journal, key, "output//b.png") for key in ("alice", "")] == [[], [("gpu-1", ids[3])]]
    assert await makers(journal, "alice", server="gpu-1", prompt_id=ids[0]) == [("gpu-1", ids[0])]
    assert await makers(journal, "alice", server="gpu-3", prompt_id=ids[0]) == []
    assert await makers(journal, "bob", prompt_id=ids[0]) == []
    # The newest files directly in a folder.
    listed = await journal.made(MadeFilter(folder="output"), 10)
    assert [(one.name, one.server) for one in listed] == [
        ("b.png", "gpu-1"),
        ("a.png", "gpu-3"),
        ("a.png", "gpu-2"),
        ("a.png", "gpu-1"),
    ]
    assert await journal.made(MadeFilter(folder="output"), 2) == listed[:2]
    assert await makers(journal, "alice", None, folder="output") == [("gpu-3", ids[2]), ("gpu-1", ids[0])]
    assert await makers(journal, None, None, folder="temp") == []
    await journal.prune_usage("1970-01-01", "1970-01-02")
    assert await makers(journal, "alice") == [("gpu-3", ids[2])]
    assert await makers(journal, "bob") == [("gpu-2", ids[1])]


async def test_a_file_that_another_job_has_overwritten_no_longer_belongs_to_the_first(journal: Journal) -> None:
    made = [("alice", "gpu-1", True), ("bob", "gpu-1", False), ("bob", "gpu-2", True), ("eve", "gpu-2", True)]
    for number, (owner, server, is_new) in enumerate(made):
        await journal.write(Add(new_job(number, owner=owner)))
        assert await end(journal, number, at=float(number), files=(MadeFile(server, "output//a.png", is_new),))
    found = {key: [server for server, _ in await makers(journal, key)] for key in ("alice", "bob", "eve")}
    assert found == {"alice": ["gpu-1"], "bob": ["gpu-1"], "eve": ["gpu-2"]}


# Jobs in ComfyUI's history


async def shown(journal: Journal, **narrowed: Any) -> list[float]:
    return await numbers_of(journal, JobFilter(shown_only=True, **narrowed))


async def test_a_hidden_job_stays_listed_and_counted(journal: Journal) -> None:
    for number in (1, 2, 3):
        await journal.write(Add(new_job(number, owner="alice")))
    await end(journal, 1)
    await end(journal, 2)
    assert await journal.write(Hide((prompt_id(2), prompt_id(3), prompt_id(9))))
    assert not await journal.write(Hide((prompt_id(2), prompt_id(3)))), (
        "job 2 is hidden already and job 3 has not ended"
    )
    assert await shown(journal) == [3, 1]
    assert await numbers_of(journal, JobFilter()) == [3, 2, 1]
    assert [(await record_of(journal, number)).hidden for number in (1, 2, 3)] == [False, True, False]
    (used,) = await journal.usage(UsageQuery(by=("key",), since="1970-01-01", until="1970-01-02"))
    assert used.succeeded == 2


async def test_a_cleared_history_shows_jobs_that_end_later(journal: Journal) -> None:
    owners = ("alice", "alice/eve", "alicea", "bob", None, "alice")
    for number, owner in enumerate(owners, 1):
        await journal.write(Add(new_job(number, owner=owner)))
    for number in range(1, 6):
        await end(journal, number)
    await journal.write(ClearHistory("alice"))
    assert await shown(journal) == [6, 5, 4, 3]
    assert await shown(journal, key="alice") == [6]
    assert (await record_of(journal, 2)).hidden
    await end(journal, 6)
    assert await shown(journal, key="alice") == [6]
    await journal.write(ClearHistory(None))
    assert await shown(journal) == []
    assert len(await numbers_of(journal, JobFilter())) == 6


@pytest.mark.parametrize("hides", [Hide((prompt_id(1),)), ClearHistory("alice")], ids=["one", "all"])
async def test_a_new_run_of_a_hidden_job_is_shown(journal: Journal, hides: Hide | ClearHistory) -> None:
    await journal.write(Add(new_job(1, owner="alice")))
    await end(journal, 1, State.CANCELED)
    await journal.write(hides)
    assert (await record_of(journal, 1)).hidden
    assert await journal.write(Again(prompt_id(1), 1, "async", 1.0))
    assert not (await record_of(journal, 1)).hidden
    await journal.write(Finish(fence=Fence(prompt_id(1), 2, 0), state=State.SUCCEEDED, at=2.0))
    assert await shown(journal) == [1]


async def test_a_cursor_of_all_jobs_is_refused_for_the_list_of_shown_jobs(journal: Journal) -> None:
    for number in (1, 2):
        await journal.write(Add(new_job(number)))
    page = await journal.page(JobFilter(), 1)
    with pytest.raises(QueryError, match="cursor"):
        await journal.page(JobFilter(shown_only=True), 1, page.next_cursor)


# Many writes at once


async def test_many_writes_are_made_together_and_each_reports_its_effect(journal: Journal) -> None:
    await journal.write(Add(new_job(1)))
    await journal.write(Add(new_job(2)))
    await journal.write(Place(Fence(prompt_id(2), 1, 1), "gpu-1"))
    webhooks = (delivery("d1", event="prompt.canceled"),)
    ends = [
        Finish(fence=Fence(prompt_id(number), 1, 0), state=State.CANCELED, at=5.0, deliveries=webhooks)
        for number in (1, 2, 3)
    ]
    assert await journal.write_all(ends) == [True, False, False], "the second job has been placed, the third is unknown"
    assert [(await record_of(journal, number)).state for number in (1, 2)] == [State.CANCELED, State.QUEUED]
    assert [one.prompt_id for one in await journal.deliveries(prompt_id(1), prompt_id(2))] == [prompt_id(1)]
    assert await journal.write_all([]) == []


# Lists for ComfyUI's own API


async def test_the_last_ended_jobs_are_listed_in_the_order_of_their_ends(journal: Journal) -> None:
    for number, owner in ((1, "ann"), (2, "ann/eve"), (3, "ann2"), (4, None), (5, "ann")):
        await journal.write(Add(new_job(number, owner=owner)))
    for at, number in enumerate((5, 4, 2, 1)):
        await end(journal, number, at=100.0 + at)
    assert [job.prompt_id for job in await journal.ended(None, 9)] == [prompt_id(number) for number in (5, 4, 2, 1)]
    assert [job.prompt_id for job in await journal.ended(None, 2)] == [prompt_id(number) for number in (2, 1)]
    assert [job.prompt_id for job in await journal.ended("ann", 9)] == [prompt_id(number) for number in (5, 2, 1)]
    assert [job.prompt_id for job in await journal.ended("ann", 1)] == [prompt_id(1)]
    assert await journal.ended("an", 9) == []
    record = await record_of(journal, 1)
    (last,) = await journal.ended(None, 1)
    assert last == (record.prompt_id, record.state, record.queued_at, record.started_at, record.ended_at)
    assert await journal.queued_since(None) == {prompt_id(3): (await record_of(journal, 3)).queued_at}
    assert await journal.queued_since("ann") == {}
    assert list(await journal.queued_since("ann2")) == [prompt_id(3)]


async def test_the_last_ended_jobs_leave_out_hidden_and_cleared_jobs(journal: Journal) -> None:
    for number, owner in ((1, "ann"), (2, "bob"), (3, "ann/eve"), (4, None), (5, "ann")):
        await journal.write(Add(new_job(number, owner=owner)))
        await end(journal, number, at=100.0 + number)

    async def shown(key: str | None) -> list[int]:
        return [int(job.prompt_id[-2:]) for job in await journal.ended(key, 9)]

    await journal.write(Hide((prompt_id(4),)))
    assert (await shown(None), await shown("ann")) == ([1, 2, 3, 5], [1, 3, 5])
    await journal.write(ClearHistory("ann"))
    await journal.write(Add(new_job(6, owner="ann")))
    await end(journal, 6, at=200.0)
    assert (await shown(None), await shown("ann"), await shown("bob")) == ([2, 6], [6], [2])
    await journal.write(ClearHistory(None))
    assert (await shown(None), await shown("ann"), await shown("bob")) == ([], [], [])


async def test_jobs_are_read_with_their_bodies_up_to_a_size(journal: Journal) -> None:
    for number in range(1, 5):
        await journal.write(Add(new_job(number, body=b'{"n": "%d"}' % number + b" " * 1000)))
    await journal.write(Add(new_job(5)))
    await end(journal, 5, at=9.0, result=b"{}")
    ids = [prompt_id(1), "?", prompt_id(2), prompt_id(3), prompt_id(4)]
    found = await journal.kept(ids, 2000)
    assert [None if job is None else job.record.prompt_id for job in found] == [prompt_id(1), None, prompt_id(2)]
    assert [job.body == await journal.body_of(job.record.prompt_id) for job in found if job is not None] == [True] * 2
    assert len(await journal.kept(ids, 1)) == 1
    assert len(await journal.kept(ids, 1_000_000)) == 5
    (ended,) = await journal.kept([prompt_id(5)], 1)
    assert ended is not None
    assert (ended.record, ended.result) == (await record_of(journal, 5), None)
    (ended,) = await journal.kept([prompt_id(5)], 1, results=True)
    assert ended is not None
    assert ended.result == await journal.result_of(prompt_id(5))
    assert await journal.kept([], 1) == []


def _asset(number: int, **fields: Any) -> Asset:
    """An asset that is created at the second `number` and expires 100 seconds later."""
    made = Asset(f"a-{number}", "alice", "b" * 64, "d" * 64, 5, "image/png", "é.png", (), number, number + 100.0, 100.0)
    return made._replace(**fields)


async def test_unexpired_assets_are_found_by_id_and_hash_newest_first(
    journal: Journal,
) -> None:
    first, second = _asset(1, tags=("cat", "é")), _asset(2, owner=None, file_path="")
    other = _asset(3, blake3="c" * 64, digest="e" * 64, size=7)
    for asset in (first, second, other):
        assert await journal.write(KeepAsset(asset))
    assert not await journal.write(KeepAsset(first._replace(size=9))), "each id is stored once"
    assert await journal.assets(AssetFilter(id="a-1"), 1) == [first]
    assert await journal.assets(AssetFilter(id="\ud800"), 1) == []
    assert await journal.assets(AssetFilter(blake3="b" * 64), 9) == [second, first]
    assert await journal.assets(AssetFilter(blake3="b" * 64, after=101.0), 9) == [second]
    assert await journal.asset_bytes() == 12
    digests = {"d" * 64, "e" * 64}
    assert await journal.asset_digests([*digests, "f" * 64]) == digests
    assert await journal.asset_digests(["e" * 64]) == {"e" * 64}
    person = _asset(4, owner="alice/ann")
    await journal.write(KeepAsset(person))
    assert await journal.assets(AssetFilter(blake3="b" * 64, key="alice"), 9) == [person, first]
    assert await journal.assets(AssetFilter(key="ali"), 9) == []
    counts = [await journal.asset_count(owner) for owner in ("alice", "alice/ann", None, "bob")]
    assert counts == [2, 1, 1, 0]


async def test_an_asset_is_found_by_its_owners_idempotency_key(journal: Journal) -> None:
    mine, ownerless = _asset(1, idempotency_key="k"), _asset(2, owner=None, idempotency_key="k")
    for asset in (mine, ownerless, _asset(3)):
        await journal.write(KeepAsset(asset))
    assert await journal.assets(AssetFilter(sent_under=("alice", "k", 1.0)), 9) == [mine]
    assert await journal.assets(AssetFilter(sent_under=(None, "k", 1.0)), 9) == [ownerless]
    assert await journal.assets(AssetFilter(sent_under=("alice", "k", 1.5)), 9) == []
    assert await journal.assets(AssetFilter(sent_under=("bob", "k", 1.0)), 9) == []


async def test_an_asset_is_only_extended_and_its_bytes_are_kept_while_an_asset_has_them(
    journal: Journal,
) -> None:
    for asset in (_asset(1), _asset(2)):
        await journal.write(KeepAsset(asset))
    assert await journal.write(UseAssets(("a-1", "a-9"), 400.0))
    assert not await journal.write(UseAssets(("a-9",), 400.0))
    await journal.write(UseAssets(("a-1",), 300.0))
    assert [one.expires_at for one in await journal.assets(AssetFilter(), 9)] == [102.0, 500.0]
    await journal.write(UseAssets(("a-2",), 10.0, lifetime_s=200.0))
    await journal.write(UseAssets(("a-2",), 20.0, lifetime_s=50.0))
    assert [(one.expires_at, one.lifetime_s) for one in await journal.assets(AssetFilter(), 1)] == [(220.0, 200.0)]
    assert await journal.write(DropAssets(("a-2", "a-9")))
    assert not await journal.write(DropAssets(("a-2",)))
    assert await journal.asset_bytes() == 5
    assert await journal.write(DropAssets(("a-1",)))
    assert await journal.asset_bytes() == 0
    assert await journal.asset_digests(["d" * 64]) == set()


async def test_expired_assets_are_removed_a_few_at_a_time(journal: Journal) -> None:
    for number in range(1, 6):
        await journal.write(KeepAsset(_asset(number)))
    assert await journal.write(ExpireAssets(103.0, 2)) == 2
    assert await journal.write(ExpireAssets(103.0, 2)) == 1
    assert await journal.write(ExpireAssets(103.0, 2)) == 0
    assert [one.id for one in await journal.assets(AssetFilter(), 9)] == ["a-5", "a-4"]


async def test_facts_of_outputs_end_with_their_run_and_a_known_hash_stays(journal: Journal) -> None:
    job = prompt_id(1)
    size = OutputFacts(job, 1, "o", 10, None)
    assert not await journal.write(KnowOutputs(job, 1, (size,))), "the job does not exist"
    await journal.write(Add(new_job(1)))
    await end(journal, 1, State.LOST)
    assert not await journal.write(KnowOutputs(job, 2, (size._replace(run=2),)))
    assert await journal.write(KnowOutputs(job, 1, (size,)))
    assert await journal.output_facts([(job, 1), (prompt_id(2), 1)]) == [size]
    hashed = size._replace(blake3="b" * 64)
    await journal.write(KnowOutputs(job, 1, (hashed,)))
    await journal.write(KnowOutputs(job, 1, (size, OutputFacts(job, 1, "p", 1, None))))
    found = await journal.output_facts([(job, 1)])
    assert sorted(found) == [hashed, OutputFacts(job, 1, "p", 1, None)]
    assert await journal.write(Again(job, 1, "async", 5.0))
    assert await journal.output_facts([(job, 2)]) == []
    newer = OutputFacts(job, 2, "o", 20, None)
    assert await journal.write(KnowOutputs(job, 2, (newer,)))
    assert await journal.output_facts([(job, 1), (job, 2)]) == [newer], "nothing of the first run is kept"
    await journal.write(Finish(fence=Fence(job, 2, 0), state=State.SUCCEEDED, at=10.0))
    assert await journal.prune(10 * _DAY, keep_days=1.0, keep=None) == 1
    assert await journal.output_facts([(job, 2)]) == []


async def test_outputs_of_the_present_run_are_found_by_their_hash(journal: Journal) -> None:
    same = "b" * 64
    for number, owner in enumerate(("alice", "bob/7", "alice/2"), 1):
        await journal.write(Add(new_job(number, owner=owner)))
        made = OutputFacts(prompt_id(number), 1, "o", 10, same)
        await journal.write(KnowOutputs(made.prompt_id, 1, (made, made._replace(id="p", blake3=None))))
        await end(journal, number, State.LOST)

    async def found(key: str | None = None, limit: int = 10) -> list[str]:
        return [one.prompt_id for one in await journal.outputs_with(same, key, limit)]

    assert await found() == [prompt_id(3), prompt_id(2), prompt_id(1)]
    assert await found(limit=2) == [prompt_id(3), prompt_id(2)]
    assert await found("alice") == [prompt_id(3), prompt_id(1)]
    assert await found("bob") == [prompt_id(2)]
    assert await journal.outputs_with("c" * 64, None, 10) == []
    assert await journal.write(Again(prompt_id(3), 1, "async", 5.0))
    assert await found("alice") == [prompt_id(1)]
    await journal.write(Finish(fence=Fence(prompt_id(3), 2, 0), state=State.SUCCEEDED, at=10.0))
    assert await journal.prune(10 * _DAY, keep_days=1.0, keep=None) == 3
    assert await found() == []


async def test_progress_at_a_platform_is_kept_for_the_present_attempt_only(journal: Journal) -> None:
    one, first = prompt_id(1), Fence(prompt_id(1), 1, 1)
    await journal.write(Add(new_job(1)))
    assert await journal.write(NoteAttempt(first, 5.0)) == 0, "the job is not placed"
    await journal.write(Place(first, "runpod:x"))
    assert await journal.write(NoteAttempt(first, 5.0)) == 1
    assert await journal.attempt_of(one) == Attempt(first, 5.0, None, has_reply=False)
    await journal.write(NoteAttempt(first, 5.0, "job-1"))
    await journal.write(NoteAttempt(first, 5.0, "job-1", b"reply" * 1000))
    assert await journal.attempt_of(one) == Attempt(first, 5.0, "job-1", has_reply=True)
    assert await journal.reply_of(one) == b"reply" * 1000
    # Since there is a second attempt, notes of the first attempt are ignored.
    await journal.write(Place(first.next(), "gpu-1"))
    assert await journal.attempt_of(one) is None
    assert await journal.write(NoteAttempt(first, 5.0, "job-1")) == 0
    await journal.write(NoteAttempt(first.next(), 6.0, "job-2"))
    assert await journal.write(DropAttempt(first)) == 0
    assert (await journal.attempt_of(one)) == Attempt(first.next(), 6.0, "job-2", has_reply=False)
    assert await journal.write(DropAttempt(first.next())) == 1
    assert (await journal.attempt_of(one), await journal.reply_of(one)) == (None, None)


async def test_a_run_that_has_ended_has_no_attempt(journal: Journal) -> None:
    fence = Fence(prompt_id(1), 1, 1)
    await journal.write(Add(new_job(1), "runpod:x"))
    await journal.write(NoteAttempt(fence, 5.0, "job-1"))
    await journal.write(Cancel(prompt_id(1), 1))
    assert await journal.attempt_of(prompt_id(1)) is not None, "the attempt must still be cancelled at the platform"
    await journal.write(Finish(fence=fence, state=State.CANCELED, at=9.0))
    assert await journal.attempt_of(prompt_id(1)) is None
    assert await journal.write(NoteAttempt(fence, 5.0, "job-1")) == 0
