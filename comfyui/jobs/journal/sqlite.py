"""`SqliteJournal`: the journal in a file, which outlives the gateway and the machine's power."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from comfyui.exceptions import JournalError
from comfyui.feed import Feed
from comfyui.jobs.journal.by_owner import keys_between, newest_seq, remove_usage
from comfyui.jobs.journal.committing import Batch, CommitThread, Outcome, Work, apply, journal_error, touch
from comfyui.jobs.journal.not_kept import NotKept
from comfyui.jobs.journal.opening import connect
from comfyui.jobs.journal.protocol import YOUNG_S, JournalObserver, WriteListener
from comfyui.jobs.journal.questions import Questions
from comfyui.jobs.journal.records import Fence
from comfyui.jobs.journal.removing import kept_from
from comfyui.jobs.journal.statements import Statements
from comfyui.jobs.journal.used_keys import UsedKeys
from comfyui.jobs.journal.writes import Add, Finish, Place, PutBack, Write, id_of
from comfyui.offload import after_turns
from comfyui.tasks import SideTasks

FILE_NAME = "jobs.sqlite3"
# How long a pending write may wait for others that share its commit; and the same for a write without a listener. A
# commit takes the processor from the calls under way: with 10 ms for these, too, each prompt took 0.3 ms longer.
_LINGER_S = 0.01
_AT_REST_S = 0.25
# This number of pending writes waits no longer for others.
_HANDED_ON = 256
_REMOVED_TOGETHER = 50
# Idempotency keys are read in groups of this number of jobs: some 3 ms.
_KEYS_READ = 4000
# Limits of the writes that are kept for later: their number, and the bytes of their results.
_MOST_LATER = 1000
_MOST_LATER_BYTES = 64_000_000
# Time between two tries whether a disk that refused writes takes them again.
_LOOK_AGAIN_S = 2.0

_T = TypeVar("_T")


class SqliteJournal(Questions):
    """`Journal` in `folder`; one process uses it at a time.

    Args:
        folder: created if necessary; only this user may enter.
        lock_wait_s: how long the start waits for another process that has the file; `problem` says so meanwhile.
        max_behind: how many writes behind may wait for the disk; more are not kept.
        clock: seconds, for how often lost writes are logged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        lock_wait_s: float = 0.0,
        max_behind: int = 10_000,
        observer: JournalObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.writes: Feed[WriteListener] = Feed()
        self._path = folder / FILE_NAME
        self._lock_wait_s = lock_wait_s
        self._max_behind = max_behind
        self._observer = observer
        self._thread = CommitThread(lambda: Statements(connect(self._path)), self._done)
        self._open = False
        self._identity = ""
        self._next = Batch()
        # The position of held-back `Add`s in it: since then only pending writes of other jobs have come.
        self._added: dict[str, tuple[int, Add]] = {}
        self._handing_on: asyncio.Handle | None = None
        self._at_rest = False
        self._hurried = False
        self._behind = 0
        self._problem: str | None = None
        self._looking: asyncio.TimerHandle | None = None
        # Ends of jobs, mostly: without them a job would seem to go on.
        self._later: list[Write] = []
        self._later_bytes = 0
        self._not_kept = NotKept(clock)
        self._keys = UsedKeys()
        self._learns_keys = False
        self._tasks = SideTasks()

    async def __aenter__(self) -> Self:
        try:
            await self._thread.open(self._lock_wait_s)
        except Exception as error:
            told = journal_error(error)
            if isinstance(told, JournalError):
                told.path = self._path
            raise told from error
        self._open = True
        self._identity = await self._ask(Statements.identity)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._tasks.close()
        self._hand_on()
        self._open = False
        if self._looking is not None:
            self._looking.cancel()
        await self._thread.close()
        self._not_kept.lose(len(self._later), "it was closed")
        self._not_kept.tell("it was closed")

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def problem(self) -> str | None:
        return self._thread.problem or self._problem

    # Writing

    async def write(self, write: Write) -> int:
        return await self.begin(write)

    def begin(self, write: Write) -> asyncio.Future[int]:
        self._note_key(write)
        self._added.clear()
        writing = self._given(self._next.writes, partial(apply, write))
        writing.add_done_callback(partial(self._tell_of, write))
        return writing

    def _tell_of(self, write: Write, writing: asyncio.Future[int]) -> None:
        if not writing.cancelled() and writing.exception() is None and writing.result():
            self._tell(write)

    async def write_all(self, writes: Sequence[Write]) -> list[int]:
        for write in writes:
            self._note_key(write)
        self._added.clear()
        changed = await self._in_transaction(lambda sql: [sql.apply(write) for write in writes])
        for write, has_place in zip(writes, changed, strict=True):
            if has_place:
                self._tell(write)
        return changed

    def _tell(self, write: Write) -> None:
        for listener in self.writes:
            listener.wrote(write)

    def write_behind(self, write: Write, *, soon: bool = True) -> None:
        if not self._open or self._behind >= self._max_behind:
            self._not_kept.lose(1, self._problem or "it is closed or slower than its writes")
            if self._observer is not None:
                self._observer.failed(1)
            return
        self._note_key(write)
        if not (self._added and self._joins_what_rests(write, soon)):
            self._append(write, soon)
        self._tell(write)

    def _append(self, write: Write, soon: bool) -> None:
        if isinstance(write, Add) and not soon:
            self._added[write.job.prompt_id] = (len(self._next.writes), write)
        self._behind += 1
        self._next.writes.append((partial(apply, write), None))
        if len(self._next.writes) >= _HANDED_ON:
            self._hand_on()
        elif self._handing_on is None or (soon and self._at_rest):
            self._hand_on_within(_LINGER_S if soon else _AT_REST_S)
            self._at_rest = not soon

    def _joins_what_rests(self, write: Write, soon: bool) -> bool:
        """Whether it places or ends a job whose `Add` is still held back here.

        All become one row, which saves a third of the time, and more where the job waited before it was placed.
        """
        prompt_id = id_of(write)
        if prompt_id is None:
            self._added.clear()
            return False
        added = self._added.pop(prompt_id, None)
        if added is None or soon:
            return False
        place, add = added
        if isinstance(write, Place) and add.server is None and write.fence == Fence(prompt_id, 1, 1):
            joined = replace(add, server=write.server)
            self._added[prompt_id] = place, joined
        elif isinstance(write, Finish):
            joined = replace(add, end=write)
        else:
            return False
        self._next.writes[place] = (partial(apply, joined), None)
        return True

    # Idempotency keys

    async def sent_under(self, owner: str | None, key: str, since: float) -> str | None:
        if self._keys.is_new(owner, key, since):
            return None
        if not self._learns_keys:
            self._learns_keys = True
            self._tasks.start(self._learn_keys(since), "learn idempotency keys")
        return await super().sent_under(owner, key, since)

    async def _learn_keys(self, since: float) -> None:
        """Once, at the first question: most gateways never get a key."""
        try:
            for end in range(await self._ask(lambda sql: newest_seq(sql.database)), 0, -_KEYS_READ):
                first = end - _KEYS_READ
                found = await self._ask(lambda sql: keys_between(sql.database, first, end, since))  # noqa: B023
                self._keys.learned(found)
        except JournalError:
            self._learns_keys = False
        else:
            self._keys.all_are_known(since)

    def _note_key(self, write: Write) -> None:
        if type(write) is Add and write.job.idempotency_key is not None:
            self._keys.add(write.job.owner, write.job.idempotency_key)

    async def prune(self, now: float, *, keep_days: float | None, keep: int | None) -> int:
        removed = 0
        if keep_days is not None:
            removed += await self._remove(now - max(YOUNG_S, keep_days * YOUNG_S), None)
        if keep is not None:
            up_to = await self._ask(lambda sql: kept_from(sql.database, keep))
            if up_to is not None:
                removed += await self._remove(now - YOUNG_S, up_to)
        return removed

    async def prune_usage(self, before: str, files_before: str) -> int:
        return await self._in_transaction(lambda sql: remove_usage(sql.database, before, files_before))

    async def _remove(self, before: float, up_to: tuple[float, int] | None) -> int:
        """In small steps: writes that come meanwhile do not wait for all of it."""
        removed = 0
        while some := await self._in_transaction(lambda sql: sql.remove(before, up_to, _REMOVED_TOGETHER)):
            removed += some
        return removed

    # To the thread and back

    async def _in_transaction(self, work: Callable[[Statements], _T]) -> _T:
        return await self._given(self._next.writes, work)

    async def _ask(self, work: Callable[[Statements], _T]) -> _T:
        return await self._given(self._next.reads, work)

    def _given(
        self, calls: list[tuple[Work, asyncio.Future[Any] | None]], work: Callable[[Statements], _T]
    ) -> asyncio.Future[_T]:
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        if not self._open:
            future.set_exception(JournalError("STATE_DIR: the journal is not open"))
            return future
        calls.append((work, future))
        if not self._hurried:
            # Not at once: other writes in this turn of the loop share the commit.
            self._hurried = True
            self._hand_on_within(0.0)
        return future

    def _hand_on_within(self, seconds: float) -> None:
        self._at_rest = False
        if self._handing_on is not None:
            self._handing_on.cancel()
        loop = asyncio.get_running_loop()
        self._handing_on = loop.call_later(seconds, self._give_way) if seconds else loop.call_soon(self._hand_on)

    def _give_way(self) -> None:
        """A request that has just come writes within two turns of the loop. It shares the commit, or waits for it."""
        after_turns(2, self._hand_on)

    def _hand_on(self) -> None:
        if self._handing_on is not None:
            self._handing_on.cancel()
        self._handing_on = None
        self._hurried = self._at_rest = False
        if self._next.writes or self._next.reads:
            self._thread.give(self._next)
            self._next = Batch()
            self._added.clear()

    def _done(self, written: Sequence[Outcome], read: Sequence[Outcome], seconds: float | None) -> None:
        behind = [outcome for outcome in written if outcome.future is None]
        self._behind -= len(behind)
        failed = [outcome for outcome in written if outcome.error is not None]
        for outcome in (*failed, *(outcome for outcome in read if outcome.error is not None)):
            outcome.error = journal_error(outcome.error) if outcome.error else None
        if written:
            disk = next((outcome.error for outcome in failed if isinstance(outcome.error, JournalError)), None)
            self._works() if disk is None else self._does_not_work(disk.detail)
        if self._observer is not None and seconds is not None and len(failed) < len(written):
            self._observer.committed(len(written) - len(failed), seconds)
        if self._observer is not None and failed:
            self._observer.failed(len(failed))
        if lost := [outcome for outcome in behind if outcome.error is not None and not self._keep_for_later(outcome)]:
            self._not_kept.lose(len(lost), str(lost[0].error))
        for outcome in (*written, *read):
            outcome.tell()

    # While the disk takes no writes

    def _does_not_work(self, problem: str) -> None:
        self._problem = problem
        if self._looking is None and self._open:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look_again)

    def _works(self) -> None:
        self._problem = None
        later, self._later, self._later_bytes = self._later, [], 0
        for write in later:
            self.write_behind(write)

    def _look_again(self) -> None:
        """There may be no writes that would show it, because jobs are refused."""
        self._looking = None
        if self._problem is None or not self._open:
            return
        looked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        looked.add_done_callback(self._looked)
        self._next.reads.append((touch, looked))
        self._hand_on()

    def _looked(self, looked: asyncio.Future[None]) -> None:
        error = None if looked.cancelled() else looked.exception()
        if error is None:
            self._works()
        elif isinstance(error, JournalError):
            self._does_not_work(error.detail)

    def _keep_for_later(self, outcome: Outcome) -> bool:
        """Whether it is a write that is repeated when the disk takes writes again."""
        write = outcome.work.args[0] if isinstance(outcome.work, partial) else None
        if not isinstance(write, Finish | PutBack) or not isinstance(outcome.error, JournalError):
            return False
        size = len(write.result or b"") if isinstance(write, Finish) else 0
        if len(self._later) >= _MOST_LATER or self._later_bytes + size > _MOST_LATER_BYTES:
            return False
        self._later.append(write)
        self._later_bytes += size
        return True
