"""The writes of an `Entry`: how few they are, and what happens when the journal cannot be written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from comfyui.exceptions import ComfyUIConflictError, JournalError
from comfyui.jobs.entries import Entries
from comfyui.jobs.entry import Entry
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.records import Kind, State
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Add, Finish, Start, Write
from comfyui.jobs.origin import Origin
from comfyui.models import PromptRequest, PromptResult, Timings
from comfyui.owners import KeyRules
from tests.support.journals import new_job, prompt_id

_REQUEST = PromptRequest(prompt={"1": {"class_type": "A", "inputs": {}}})


class RecordingJournal(MemoryJournal):
    """Records the type of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[type] = []

    def begin(self, write: Write) -> asyncio.Future[int]:
        self.kinds.append(type(write))
        return super().begin(write)

    def write_behind(self, write: Write, *, soon: bool = True) -> None:
        self.kinds.append(type(write))
        super().write_behind(write)


class FullDiskJournal(MemoryJournal):
    """Fails every write."""

    def begin(self, write: Write) -> asyncio.Future[int]:
        writing: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        writing.set_exception(JournalError("STATE_DIR: the disk is full"))
        return writing


def entry_in(journal: MemoryJournal, kind: Kind, *, callers_id: bool) -> Entry:
    return Entries(journal).new(prompt_id(1), Origin(), kind=kind, callers_id=callers_id)


async def test_a_quick_call_without_an_id_needs_two_writes() -> None:
    journal = RecordingJournal()
    entry = entry_in(journal, "sync", callers_id=False)
    await entry.placed("gpu-1", _REQUEST, None)
    entry.started()
    entry.succeeded(PromptResult(prompt_id(1), "gpu-1", {}, (), Timings()), _REQUEST, None)
    assert journal.kinds == [Add, Finish]
    record = await journal.get(prompt_id(1))
    assert record is not None
    assert (record.state, record.server, record.attempt) == (State.SUCCEEDED, "gpu-1", 1)
    assert record.started_at is not None


async def test_a_sync_call_goes_on_when_the_disk_is_full() -> None:
    await entry_in(FullDiskJournal(), "sync", callers_id=True).placed("gpu-1", _REQUEST, "f")


async def test_an_async_job_is_not_submitted_when_its_placement_cannot_be_written() -> None:
    with pytest.raises(JournalError, match="STATE_DIR"):
        await entry_in(FullDiskJournal(), "async", callers_id=True).placed("gpu-1", _REQUEST, "f")


async def test_an_id_that_another_owner_took_meanwhile_is_refused_and_its_row_stays() -> None:
    journal = MemoryJournal()
    await journal.write(Add(new_job(1, owner="bob")))
    alice = Origin("prompt_sync", "alice", KeyRules(name="alice", role="user"))
    entry = Entries(journal).new(prompt_id(1), alice, kind="sync", callers_id=True)
    with pytest.raises(ComfyUIConflictError) as refused:
        await entry.placed("gpu-1", _REQUEST, "f")
    entry.failed(State.FAILED, refused.value)
    record = await journal.get(prompt_id(1))
    assert record is not None
    assert (record.owner, record.state) == ("bob", State.QUEUED)


async def test_the_row_of_a_job_placed_now_is_written_after_the_waiting_tasks_have_run() -> None:
    journal = RecordingJournal()
    entry = entry_in(journal, "async", callers_id=False)
    at_its_turn: list[list[type]] = []

    async def submit() -> None:
        at_its_turn.append(journal.kinds.copy())

    task = asyncio.create_task(submit())
    entry.place_now("gpu-1", _REQUEST, None)
    await entry.placed("gpu-1", _REQUEST, None)
    assert journal.kinds == []
    await asyncio.sleep(0)
    assert at_its_turn == [[]]
    assert journal.kinds == [Add]
    await entry.committed()
    await task
    assert journal.kinds == [Add]
    assert entry.shown_number == 1


async def test_the_end_of_a_job_placed_now_is_written_after_its_row() -> None:
    journal = RecordingJournal()
    entry = entry_in(journal, "async", callers_id=False)
    entry.place_now("gpu-1", _REQUEST, None)
    entry.started()
    entry.failed(State.FAILED, JournalError("it failed"))
    assert journal.kinds == [Add, Start, Finish]
    await entry.committed()
    assert journal.kinds == [Add, Start, Finish]
    record = await journal.get(prompt_id(1))
    assert record is not None
    assert (record.state, record.server) == (State.FAILED, "gpu-1")


async def test_a_job_placed_now_under_a_callers_id_is_written_before_its_submission() -> None:
    journal = RecordingJournal()
    entry = entry_in(journal, "async", callers_id=True)
    entry.place_now("gpu-1", _REQUEST, None)
    await entry.placed("gpu-1", _REQUEST, None)
    assert journal.kinds == [Add]
    assert entry.shown_number == 1


async def test_every_waiter_gets_the_error_when_a_job_placed_now_cannot_be_written() -> None:
    entry = entry_in(FullDiskJournal(), "async", callers_id=False)
    entry.place_now("gpu-1", _REQUEST, None)
    for _ in range(2):
        with pytest.raises(JournalError, match="the disk is full"):
            await entry.committed()
    assert not entry.added


async def test_a_cancelled_wait_for_a_row_does_not_stop_its_commit(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        entry = Entries(journal).new(prompt_id(1), Origin(), kind="async", callers_id=False)
        entry.place_now("gpu-1", _REQUEST, None)
        waiting = asyncio.create_task(entry.committed())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await entry.committed()
        assert (await journal.get(prompt_id(1))) is not None
        assert entry.shown_number == 1
