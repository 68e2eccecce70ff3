"""What an `Entry` does when the journal cannot be written, and how few writes it makes."""

from __future__ import annotations

import pytest

from comfyui.exceptions import ComfyUIConflictError, JournalError
from comfyui.jobs.entry import Entries, Entry
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.records import Kind, State
from comfyui.jobs.journal.writes import Add, Finish, Write
from comfyui.jobs.origin import Origin
from comfyui.models import PromptRequest, PromptResult, Timings
from comfyui.owners import KeyRules
from tests.support.journals import new_job, prompt_id

_REQUEST = PromptRequest(prompt={"1": {"class_type": "A", "inputs": {}}})


class Counting(MemoryJournal):
    """Says what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[type] = []

    async def write(self, write: Write) -> int:
        self.kinds.append(type(write))
        return await super().write(write)

    def write_behind(self, write: Write, *, soon: bool = True) -> None:
        self.kinds.append(type(write))
        super().write_behind(write)


class FullDisk(MemoryJournal):
    """Keeps nothing."""

    async def write(self, write: Write) -> int:
        raise JournalError("STATE_DIR: the disk is full")


def entry_in(journal: MemoryJournal, kind: Kind, *, callers_id: bool) -> Entry:
    return Entries(journal).new(prompt_id(1), Origin(), kind=kind, callers_id=callers_id)


async def test_a_quick_call_without_an_id_is_written_twice() -> None:
    journal = Counting()
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
    await entry_in(FullDisk(), "sync", callers_id=True).placed("gpu-1", _REQUEST, "f")


async def test_an_async_job_is_not_submitted_when_its_placing_cannot_be_written() -> None:
    with pytest.raises(JournalError, match="STATE_DIR"):
        await entry_in(FullDisk(), "async", callers_id=True).placed("gpu-1", _REQUEST, "f")


async def test_an_id_that_another_owner_takes_at_this_moment_is_taken_and_its_row_is_left_alone() -> None:
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
