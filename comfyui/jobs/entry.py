"""`Entry`: one job's writer in the journal. It has the fence of the present attempt, and is the only one that writes
with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from comfyui.exceptions import TAKEN, ComfyUIConflictError, ComfyUIError, ComfyUITaskCancelledError, JournalError
from comfyui.jobs.attempt_log import JobAttempts, over
from comfyui.jobs.first_write import FirstWrite
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Fence, JobRecord, Kind, NewJob, State, WebhookOrder
from comfyui.jobs.journal.writes import Add, Cancel, Finish, Keep, Place, PutBack, Start, Suspect, Tell, Withdraw, Write
from comfyui.jobs.new_job import KEPT_OF_SYNC, new_job, order_of
from comfyui.jobs.origin import Origin
from comfyui.jobs.stored import body_of, error_to_fields, files_made, may_run_again, result_to_bytes
from comfyui.jobs.webhooks.announcements import Announcements
from comfyui.models import PromptRequest, PromptResult
from comfyui.named_call import NamedCall
from comfyui.offload import offloaded

# How long a sync call's prompt may run before the journal has it as running.
_START_WAITS_S = 0.5

Clock = Callable[[], float]

_log = structlog.get_logger(__name__)


class Entry:
    """One run. An async job is in the journal before it is run, a sync one from when it is placed or has to wait for
    its turn in our queue.

    A sync job that was neither leaves no row, unless its caller wants to be told of its end.

    Attributes:
        kind: sync if a caller waits for the job on its connection.
        callers_id: whether the caller knows the id, so that each write is committed before ComfyUI is asked.
        chosen: the caller made the id up, so that ComfyUI may know it from before.
        returns_s: how long the job waits for a caller who has left, if the id is ours.
        added: the job is in the journal.
        fence: of the present attempt.
        losses: how many attempts of this run a server had lost after they had begun, when this process took it up.
        begun, alone, state: how far the attempt was then, and whether the run was under suspicion; see `suspect`.
        queued_at: when the run was queued.
        started_at: when ComfyUI last began to execute it.
        ended_at, note: when it ended in this process; see `Submission`.
        call: of its named workflow, where this process took the run up.
        shown_number: the job's number as ComfyUI's clients are told it, once it is in the journal.
        journal_id: identity of the journal that it writes to.
    """

    def __init__(
        self,
        journal: Journal,
        prompt_id: str,
        origin: Origin,
        *,
        kind: Kind,
        callers_id: bool,
        announcements: Announcements,
        keep_files: bool,
        clock: Clock = time.time,
    ) -> None:
        self.kind: Kind = kind
        self.callers_id = self.chosen = callers_id
        self.returns_s = 0.0
        self.added = False
        self.fence = Fence(prompt_id, 1, 0)
        self.losses = 0
        self.begun = self.alone = False
        self.state = State.QUEUED
        self.queued_at = clock()
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.note = origin.note
        self.call: NamedCall | None = None
        self.shown_number: float = 0
        self.journal_id = journal.identity
        self._journal = journal
        self._origin = origin
        self._clock = clock
        self._server: str | None = None
        self._write_start: asyncio.TimerHandle | None = None
        self._announcements = announcements
        self._keep_files = keep_files
        self._order: WebhookOrder | None = None
        self._is_just_placed = self._is_noted = False
        self._first: FirstWrite | None = None

    def take_up(self, record: JobRecord) -> None:
        """The run is in the journal already, as this record has it."""
        self.added, self.fence, self.losses = True, record.fence, record.losses
        self.begun, self.state, self.alone, self._server = record.begun, record.state, record.alone, record.server
        self.queued_at, self.started_at = record.queued_at, record.started_at
        self.shown_number, self.note = record.shown_number, record.note
        self._order, self.call = record.webhook, record.call

    @property
    def _ordered(self) -> Journal:
        """The journal, which already has the job's row."""
        if self._first is not None:
            self._first.begin()
        return self._journal

    @property
    def attempts(self) -> JobAttempts:
        """How far the present attempt is at a platform."""
        self._is_noted = True
        return JobAttempts(self._ordered, self.fence, self._clock())

    @property
    def owner(self) -> str | None:
        return self._origin.owner

    @property
    def others_are_hidden(self) -> bool:
        """Whether a prompt that ComfyUI knows by this id is hidden from the caller: no journal has it as the
        caller's.
        """
        return not self.added and not self._origin.sees(None)

    @property
    def outlives_us(self) -> bool:
        """Whether the job goes on after a restart, or waits for its caller."""
        return self.kind == "async" or self.callers_id

    @property
    def was_placed(self) -> bool:
        """Whether some server may have the prompt."""
        return self.fence.attempt > 0 and not self._is_just_placed

    @property
    def server(self) -> str | None:
        """The server of the present attempt; None while the job waits in the gateway."""
        return self._server

    async def keep(self, new: NewJob) -> None:
        """The job goes on as `new`, without any waiting caller. Returns when that is committed.

        Raises:
            JournalError: it cannot be written, and goes on as before.
        """
        self.kind, self.callers_id = "async", True
        self._start()
        add = not self.added
        if add:
            self.added, self._order = True, new.webhook
        try:
            kept = (new.body, new.inputs, new.call)
            await self._ordered.write(Add(new) if add else Keep(new.prompt_id, self.fence.run, *kept))
        except JournalError:
            self.kind = "sync"
            self.added = self.added and not add
            raise

    async def waits(self, request: PromptRequest | None, fingerprint: str | None) -> None:
        """The job waits for its turn in our queue. Returns when the necessary writes are committed.

        Raises:
            ComfyUIConflictError: the id is another owner's.
        """
        if self.added or request is None:
            return
        new = await offloaded(request.size, self._new, request, fingerprint)
        self.added = True
        await self._place(Add(new))

    async def placed(self, server: str, request: PromptRequest | None, fingerprint: str | None) -> None:
        """Returns when everything is committed that must be so before the submission.

        Raises:
            JournalError: it is async, and cannot be written.
            ComfyUITaskCancelledError: it was cancelled meanwhile.
            ComfyUIConflictError: the id is another owner's.
        """
        if self._is_just_placed and server == self._server:
            self._is_just_placed = False
            if self.chosen:
                await self.committed()
            return
        self._server = server
        place: Add | Place
        new = None if self.added or request is None else await offloaded(request.size, self._new, request, fingerprint)
        if self.added:
            place = Place(self.fence.next(), server)
        elif new is None:
            return  # another client's prompt
        else:
            place = Add(new, server)
            self.added = True
        self.fence = self.fence.next()
        await self._place(place)

    def place_now(self, server: str, request: PromptRequest, fingerprint: str | None) -> None:
        """As `placed`, for a new job. Its row is about to be written: `committed` says when that is done.

        An id of ours is submitted meanwhile. If the gateway ends between the two, the next one takes the prompt out of
        ComfyUI.
        """
        self.added, self._server, self.fence, self._is_just_placed = True, server, self.fence.next(), True
        self._first = FirstWrite(self._journal, lambda: Add(self._new(request, fingerprint), server), self._settle)

    async def committed(self) -> None:
        """Returns when the job is in the journal. Raises as `placed`."""
        if self._first is not None:
            await self._first.committed()

    async def _place(self, place: Add | Place) -> None:
        if not self.outlives_us:
            self._write_behind(place)
            return
        outcome: int | ComfyUIError
        try:
            outcome = await self._ordered.write(place)
        except ComfyUIError as error:
            outcome = error
        self._settle(place, outcome)

    def _settle(self, place: Add | Place, outcome: int | ComfyUIError) -> None:
        """`outcome`: the result or the error of the write."""
        if isinstance(outcome, ComfyUIError):
            if self.kind == "async" or not isinstance(outcome, JournalError):
                self.added = isinstance(place, Place)
                raise outcome
            # As without a journal: the caller waits, and gets its answer from ComfyUI.
            _log.error("journal.not_written", prompt_id=self.fence.prompt_id, reason=outcome.detail)
            return
        if isinstance(place, Add):
            self.shown_number = outcome if (turn := place.job.turn_at(outcome)) is None else turn
        if not outcome and isinstance(place, Add) and (self.kind == "async" or not self._origin.sees(None)):
            # Another request took the id at this moment: that row is not to be written.
            self.added = False
            raise ComfyUIConflictError(TAKEN, prompt_id=self.fence.prompt_id)
        if not outcome and self.kind == "async":
            raise ComfyUITaskCancelledError("cancelled before it was submitted", prompt_id=self.fence.prompt_id)

    async def attached(self, server: str, request: PromptRequest | None, fingerprint: str | None) -> None:
        """The prompt was found on `server`: as `placed`, unless that is known already."""
        if not (self.added and self.was_placed and self._server == server):
            await self.placed(server, request, fingerprint)

    def started(self) -> None:
        """ComfyUI has begun to run the prompt."""
        self.started_at = self._clock()
        if not self.added:
            return
        told = self._announcements.of_start(self.fence, self._order, self.started_at)
        if self.outlives_us or told:
            self._tell(Start(self.fence, self.started_at, told))
        else:
            # Most end before anybody could look: one write less for each.
            self._write_start = asyncio.get_running_loop().call_later(_START_WAITS_S, self._start)

    def _start(self) -> None:
        if self._write_start is not None and self.started_at is not None:
            self._write_start.cancel()
            self._write_start = None
            self._write_behind(Start(self.fence, self.started_at))

    def suspect(self, *, begun: bool) -> None:
        """The server died while it had the prompt, or was being sent it. `begun`: it counts as begun there."""
        self._start()
        if self.added:
            self._write_behind(Suspect(self.fence, begun))

    def put_back(self) -> None:
        """The attempt came to nothing: the job waits in our queue again."""
        if self.added and self._server is not None:
            self._write_behind(PutBack(self.fence))
            self.fence = self.fence.next()
        self._server = None

    def move(self, turn: float | None) -> None:
        """The job has another place in the order, which the journal already has; None: no change."""
        self.shown_number = self.shown_number if turn is None else turn

    def withdraw(self) -> None:
        """A server refused the prompt as it came: it was no job."""
        if self.added:
            self._write_behind(Withdraw(self.fence))

    def canceling(self) -> None:
        """The prompt is about to be taken out of ComfyUI."""
        self._start()
        if self.added:
            self._write_behind(Cancel(self.fence.prompt_id, self.fence.run))

    def told(self, returns_s: float) -> None:
        """The caller is told the id at once, before anything is written, or repeats its call without it.

        Args:
            returns_s: how long the job waits for a caller who has left.
        """
        self.callers_id, self.returns_s = True, returns_s

    async def tell(self, request: PromptRequest | None) -> None:
        """The caller is about to be told the id, which from now on counts as its own."""
        # If it was the caller's before, the body is known.
        kept = None if self.callers_id or request is None or request.size > KEPT_OF_SYNC else body_of(request)
        self.callers_id = True
        self._start()
        if self.added:
            try:
                await self._ordered.write(Tell(self.fence.prompt_id, kept))
            except JournalError as error:
                _log.error("journal.not_written", prompt_id=self.fence.prompt_id, reason=error.detail)

    def succeeded(
        self,
        result: PromptResult,
        request: PromptRequest | None,
        fingerprint: str | None,
        kept: bytes | None = None,
    ) -> None:
        """`kept`: the result in the journal's form, if that is made already."""
        if not self.added and request is not None and self._server is not None:
            # It was only watched at first.
            self._write_behind(Add(self._new(request, fingerprint), self._server))
            self.fence = self.fence.next()
            self.added = True
        stored = (kept or result_to_bytes(result)) if self.added else None
        self._finish(State.SUCCEEDED, result, result=stored, executing_s=result.timings.executing_s or None)

    def failed(
        self, state: State, error: ComfyUIError, request: PromptRequest | None = None, fingerprint: str | None = None
    ) -> None:
        """The run ends without a result. `request` and `fingerprint`: if they are known."""
        if not self.added and request is not None and request.webhook is not None:
            self._write_behind(Add(self._new(request, fingerprint)))
            self.added = True
        saved: PromptResult | None = error.saved
        stored = None if saved is None or not self.added else result_to_bytes(saved)
        self._finish(state, saved, error=error_to_fields(error), retryable=may_run_again(error), result=stored)

    def end(self, state: State, error: ComfyUIError) -> Finish:
        """The end of a run that waits in this way, for a caller who writes several together."""
        return self._finish_of(state, error=error_to_fields(error), retryable=may_run_again(error))

    def _finish(self, state: State, made: PromptResult | None, **fields: Any) -> None:
        if self._write_start is not None:
            self._write_start.cancel()
            fields["started_at"] = self.started_at
        if self.added:
            self._tell(self._finish_of(state, files=files_made(made, kept=self._keep_files), **fields))
        if self._is_noted:
            self._write_behind(over(self.fence))

    def _finish_of(self, state: State, **fields: Any) -> Finish:
        self.ended_at = now = self._clock()
        told = self._announcements.of_end(self.fence, self._order, state, now)
        return Finish(fence=self.fence, state=state, at=now, deliveries=told, **fields)

    def _tell(self, write: Start | Finish) -> None:
        # A start is held back, so that a quick end shares its commit; readers see it at once.
        self._ordered.write_behind(write, soon=bool(write.deliveries) or (self.outlives_us and type(write) is Finish))
        if write.deliveries:
            self._announcements.news.set()

    def _write_behind(self, write: Write, *, soon: bool = False) -> None:
        """The end of a job that outlives us may be awaited in another place."""
        self._ordered.write_behind(write, soon=soon or self.outlives_us)

    def _new(self, request: PromptRequest, fingerprint: str | None) -> NewJob:
        self._order = order_of(request)
        return new_job(
            request,
            self.fence.prompt_id,
            self._origin,
            fingerprint,
            kind=self.kind,
            callers_id=self.callers_id,
            now=self.queued_at,
        )
