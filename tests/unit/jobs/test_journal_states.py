"""Both journals keep to a job's state machine: random writes are checked against its rules and the other journal."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import (
    ENDS,
    DeliveryState,
    Fence,
    JobFilter,
    JobRecord,
    NewDelivery,
    State,
)
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import (
    Add,
    Again,
    Cancel,
    ClearHistory,
    Finish,
    Hide,
    Keep,
    Place,
    PutBack,
    Reorder,
    SendAgain,
    Start,
    Suspect,
    Tell,
    Tried,
    Withdraw,
    Write,
)
from tests.support.journals import delivery, new_job, prompt_id

_T = TypeVar("_T")

_NUMBERS = st.integers(1, 3)
_RUNS = st.integers(1, 3)
_FENCES = st.builds(Fence, _NUMBERS.map(prompt_id), _RUNS, st.integers(0, 4))
_AUDIENCES = ("caller", "operator")
_DELIVERIES = st.lists(st.integers(1, 4), max_size=2).map(
    lambda names: tuple(
        delivery(f"d{name}", due_at=10 * name, audience=_AUDIENCES[name > 3], url=f"https://{name % 2}.example")
        for name in names
    )
)
_OWNERS = ("alice", "bob/eve")
_KINDS = st.sampled_from(["sync", "async"])
# The states that may follow a state within one run.
_FORWARD = {
    State.QUEUED: frozenset(State),
    State.RUNNING: frozenset(State) - {State.QUEUED},
    State.CANCELING: ENDS | {State.CANCELING},
} | {state: frozenset({state}) for state in ENDS}


class JournalMachine(RuleBasedStateMachine):
    """Gives both journals the same writes."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp())
        self._loop = asyncio.new_event_loop()
        self._journals: tuple[Journal, ...] = (SqliteJournal(self._folder), MemoryJournal())
        self._now = 0.0
        for journal in self._journals:
            self._do(journal.__aenter__())

    def teardown(self) -> None:
        for journal in self._journals:
            self._do(journal.__aexit__())
        self._loop.close()
        shutil.rmtree(self._folder)

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(work)

    def _same(self, *answers: _T) -> _T:
        assert answers[0] == answers[1]
        return answers[0]

    def _job(self, number_or_id: int | str) -> JobRecord | None:
        name = number_or_id if isinstance(number_or_id, str) else prompt_id(number_or_id)
        return self._same(*(self._do(journal.get(name)) for journal in self._journals))

    def _write(self, write: Write, name: str | None) -> None:
        """Both journals make the same change, which is none or a step forward."""
        before = self._job(name) if name else None
        changed = self._same(*(self._do(journal.write(write)) for journal in self._journals))
        after = self._job(name) if name else None
        if not changed:
            assert before == after
        if before is None or after is None or after.run != before.run:
            return
        assert after.state in _FORWARD[before.state]
        assert after.attempt >= before.attempt
        assert after.alone >= before.alone, "suspicion ends with the run"
        if changed and isinstance(write, Place | PutBack | Start | Suspect | Finish):
            assert write.fence.run == before.run
            assert write.fence.attempt >= before.attempt
            assert before.state not in ENDS

    def _time(self) -> float:
        self._now += 1.0
        return self._now

    @rule(number=_NUMBERS, kind=_KINDS, body=st.sampled_from([b"1", b"2"]))
    def add(self, number: int, kind: Any, body: bytes) -> None:
        known = self._job(number)
        labels, owner = {"k": str(number % 2)}, _OWNERS[number % 2]
        job = new_job(number, kind=kind, body=body, labels=labels, owner=owner, created_at=self._time())
        self._write(Add(job), job.prompt_id)
        assert known is None or self._job(number) == known

    @rule(number=_NUMBERS, attempt=st.integers(0, 2))
    def withdraw(self, number: int, attempt: int) -> None:
        before = self._job(number)
        self._write(Withdraw(Fence(prompt_id(number), 1, attempt)), prompt_id(number))
        if before is not None and (before.state is not State.QUEUED or before.run > 1 or before.attempt > attempt):
            assert self._job(number) == before

    @rule(fence=_FENCES, server=st.sampled_from(["a", "b"]))
    def place(self, fence: Fence, server: str) -> None:
        self._write(Place(fence, server), fence.prompt_id)

    @rule(number=_NUMBERS)
    def place_next(self, number: int) -> None:
        if (job := self._job(number)) is not None:
            self._write(Place(job.fence.next(), "c"), job.prompt_id)
            after = self._job(number)
            assert after is not None
            assert (after.attempt == job.attempt + 1) is (job.state in {State.QUEUED, State.RUNNING})

    @rule(fence=_FENCES)
    def put_back(self, fence: Fence) -> None:
        self._write(PutBack(fence), fence.prompt_id)

    @rule(fence=_FENCES, priority=st.sampled_from([None, 0, 7]), first=st.booleans())
    def reorder(self, fence: Fence, priority: int | None, first: bool) -> None:
        self._reorder(Reorder(fence, priority, first))

    @rule(number=_NUMBERS, priority=st.sampled_from([None, 0, 7]), first=st.booleans())
    def reorder_now(self, number: int, priority: int | None, first: bool) -> None:
        """The present fence makes it more likely that the job still waits."""
        if (job := self._job(number)) is not None:
            self._reorder(Reorder(job.fence, priority, first))

    def _reorder(self, write: Reorder) -> None:
        name = write.fence.prompt_id
        before = self._job(name)
        self._write(write, name)
        after = self._job(name)
        if before is None or after is None:
            return
        waits = before.state in {State.QUEUED, State.RUNNING} and before.server is None and before.fence == write.fence
        if not waits:
            assert after == before
            return
        wanted = before.priority if write.priority is None else write.priority
        turn = after.turn if write.first else before.turn
        assert after == replace(before, priority=wanted, turn=turn)
        if write.first:
            turns = [job.shown_number for one in (1, 2, 3) if (job := self._job(one)) is not None and job != after]
            assert all(after.shown_number < turn for turn in turns), (
                "it is before all other jobs, even those that were put first earlier"
            )

    @rule(fence=_FENCES, deliveries=_DELIVERIES)
    def start(self, fence: Fence, deliveries: tuple[NewDelivery, ...]) -> None:
        self._write(Start(fence, self._time(), deliveries), fence.prompt_id)

    @rule(fence=_FENCES, begun=st.booleans())
    def suspect(self, fence: Fence, begun: bool) -> None:
        self._write(Suspect(fence, begun), fence.prompt_id)

    @rule(number=_NUMBERS, run=_RUNS)
    def cancel(self, number: int, run: int) -> None:
        self._write(Cancel(prompt_id(number), run), prompt_id(number))

    @rule(fence=_FENCES, state=st.sampled_from(sorted(ENDS, key=str)), retryable=st.booleans(), deliveries=_DELIVERIES)
    def finish(self, fence: Fence, state: State, retryable: bool, deliveries: tuple[NewDelivery, ...]) -> None:
        ended = Finish(
            fence=fence,
            state=state,
            at=self._time(),
            error={"type": state.value},
            result=b"{}",
            retryable=retryable,
            deliveries=deliveries,
        )
        self._write(ended, fence.prompt_id)

    @rule(number=_NUMBERS)
    def finish_now(self, number: int) -> None:
        """The present fence makes it more likely that later runs are reached."""
        job = self._job(number)
        if job is not None and not job.state.is_end:
            self._write(Finish(fence=job.fence, state=State.LOST, at=self._time()), job.prompt_id)
            after = self._job(number)
            assert after is not None
            assert after.state is State.LOST

    @rule(number=_NUMBERS)
    def tell(self, number: int) -> None:
        self._write(Tell(prompt_id(number)), prompt_id(number))

    @rule(number=_NUMBERS, run=_RUNS, kind=_KINDS)
    def again(self, number: int, run: int, kind: Any) -> None:
        before = self._job(number)
        self._write(Again(prompt_id(number), run, kind, self._time()), prompt_id(number))
        after = self._job(number)
        if before is None or after is None:
            return
        assert not (after.alone and after.run > before.run)
        open_again = before.state in {State.CANCELED, State.LOST} or (before.state is State.FAILED and before.retryable)
        assert after.run == before.run + (open_again and run == before.run)

    @rule(number=_NUMBERS, run=_RUNS, fetching=st.booleans())
    def keep(self, number: int, run: int, fetching: bool) -> None:
        before = self._job(number)
        inputs = {"images[0].image": "" if fetching else "0" * 64}
        self._write(Keep(prompt_id(number), run, b"3", inputs), prompt_id(number))
        after = self._job(number)
        if before is None or after is None:
            return
        goes_on = run == before.run and before.state in {State.QUEUED, State.RUNNING}
        assert (after.kind != before.kind) is (goes_on and before.kind == "sync")

    @rule(numbers=st.lists(_NUMBERS, max_size=2))
    def hide(self, numbers: list[int]) -> None:
        self._write(Hide(tuple(prompt_id(number) for number in numbers)), None)
        assert all(job.hidden for number in numbers if (job := self._job(number)) is not None and job.state.is_end)

    @rule(key=st.sampled_from([None, "alice", "bob"]))
    def clear_history(self, key: str | None) -> None:
        self._write(ClearHistory(key), None)
        ended = [job for number in (1, 2, 3) if (job := self._job(number)) is not None and job.state.is_end]
        assert all(job.hidden for job in ended if key in {None, _OWNERS[int(job.labels["k"])].partition("/")[0]})

    @rule(name=st.integers(1, 4), state=st.sampled_from(DeliveryState), later=st.integers(0, 5))
    def tried(self, name: int, state: DeliveryState, later: int) -> None:
        now = self._time()
        self._write(Tried(id=f"d{name}", at=now, answer="500", state=state, due_at=now + later), None)

    @rule(number=_NUMBERS)
    def send_again(self, number: int) -> None:
        self._write(SendAgain(prompt_id(number), self._time()), prompt_id(number))

    @rule(limit=st.integers(0, 3), each=st.integers(1, 3), sent=st.integers(0, 2))
    def due(self, limit: int, each: int, sent: int) -> None:
        now = self._time()
        under_way = self._same(*(self._do(one.due(now, sent, each)) for one in self._journals)).deliveries
        found = self._same(*(self._do(one.due(now, limit, each, under_way)) for one in self._journals))
        assert len(found.deliveries) <= limit
        of_jobs = [(one.prompt_id, one.audience) for one in (*under_way, *found.deliveries)]
        assert len(set(of_jobs)) == len(of_jobs), "each job's deliveries are due one after the other"
        receivers = Counter(one.receiver for one in (*under_way, *found.deliveries))
        assert max(receivers.values(), default=0) <= each
        assert all(one.due_at <= now for one in found.deliveries)
        assert found.next_at is None or found.next_at > now

    @rule(days=st.sampled_from([None, 0, 1, 2]), keep=st.sampled_from([None, 0, 1, 2]), later=st.integers(0, 30))
    def prune(self, days: float | None, keep: int | None, later: int) -> None:
        now = self._now + 86_400.0 + later - 10
        self._same(*(self._do(one.prune(now, keep_days=days, keep=keep)) for one in self._journals))

    @rule()
    def restart(self) -> None:
        """The file has the same content after it is opened again."""
        sqlite, memory = self._journals
        self._do(sqlite.__aexit__())
        sqlite = SqliteJournal(self._folder)
        self._do(sqlite.__aenter__())
        self._journals = (sqlite, memory)

    @rule()
    def kill(self) -> None:
        """A copy of the file that was never closed has the same content."""
        sqlite, memory = self._journals
        copied = Path(tempfile.mkdtemp())
        shutil.copytree(self._folder, copied, dirs_exist_ok=True)
        self._do(sqlite.__aexit__())
        shutil.rmtree(self._folder)
        self._folder = copied
        sqlite = SqliteJournal(self._folder)
        self._do(sqlite.__aenter__())
        self._journals = (sqlite, memory)

    @invariant()
    def both_give_the_same_answers(self) -> None:
        for number in (1, 2, 3):
            name = prompt_id(number)
            self._job(name)
            self._same(*(self._do(one.runs(name)) for one in self._journals))
            self._same(*(self._do(one.deliveries(name)) for one in self._journals))
            self._same(*(self._do(one.result_of(name)) for one in self._journals))
            self._same(*(self._do(one.body_of(name)) for one in self._journals))
        counts = self._same(*(self._do(one.counts()) for one in self._journals))
        page = self._same(*(self._do(one.page(JobFilter(), 50)) for one in self._journals))
        assert sum(counts.values()) == len(page.records)
        self._same(*(self._do(one.page(JobFilter(labels={"k": "1"}), 1)) for one in self._journals))
        shown = self._same(*(self._do(one.page(JobFilter(shown_only=True), 50)) for one in self._journals))
        assert shown.records == tuple(one for one in page.records if not one.hidden)
        assert all(one.state.is_end for one in page.records if one.hidden)
        waiting = self._same(*(self._do(one.waiting(0, 50)) for one in self._journals))
        unfinished = self._same(*(self._do(one.unfinished(0, 50)) for one in self._journals))
        assert {one.seq for one in waiting} <= {one.seq for one in unfinished}
        assert all(not one.state.is_end for one in unfinished)
        self._same(*(self._do(one.ahead_of(5)) for one in self._journals))
        self._same(*(self._do(one.oldest_waiting()) for one in self._journals))


TestJournalStates = JournalMachine.TestCase
TestJournalStates.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
