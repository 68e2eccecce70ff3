"""`JobQueue`: async jobs wait here until their turn has come.

A job that waits is a row in the journal and an entry of the scheduler, and nothing else: thousands may. It becomes a
task when it is handed on. One whose inputs are still being fetched lets those behind it pass.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from comfyui.exceptions import (
    ComfyUIConflictError,
    ComfyUIError,
    JournalError,
)
from comfyui.jobs.entries import Entries
from comfyui.jobs.entry import Clock
from comfyui.jobs.expiry import ending_late
from comfyui.jobs.fetching import InputFetching
from comfyui.jobs.inputs import JobInputs, StoredFiles
from comfyui.jobs.job import Job
from comfyui.jobs.journal.paging import pages
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.journal.writes import Pause
from comfyui.jobs.kept_requests import KeptRequests
from comfyui.jobs.lines import Lane, Standing, Waiting
from comfyui.jobs.origin import Origin
from comfyui.jobs.pruning import sweep_inputs
from comfyui.jobs.queue_options import QueueOptions
from comfyui.jobs.queue_room import QueueRoom
from comfyui.jobs.runs import NEEDS_SECRETS, Runs
from comfyui.jobs.stored import request_of, secrets_of, with_secrets
from comfyui.jobs.turns import Turns
from comfyui.models import PromptRequest
from comfyui.offload import offloaded
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks
from comfyui.workflows.needs import Needs

# After a job came back, or the journal could not be read.
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Row:
    """A waiting job. `needs`: None if its workflow was not examined yet."""

    waiting: Waiting
    needs: Needs | None = None


class JobQueue:
    """Call `open` once the turns are open: from then on jobs are handed on."""

    def __init__(
        self,
        entries: Entries,
        pool: BackendPool,
        turns: Turns,
        runs: Runs,
        inputs: JobInputs,
        options: QueueOptions,
        *,
        clock: Clock = time.time,
    ) -> None:
        self._journal = entries.journal
        self._entries = entries
        self._turns = turns
        self._runs = runs
        self._inputs = inputs
        self._fetching = InputFetching(entries.journal, inputs, pool, self)
        self._options = options
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._in_hand: dict[str, _Row] = {}
        self._room = QueueRoom(self._rows, options.max_queued)
        self._storing: set[str] = set()
        self._may_store = asyncio.Event()
        self._may_store.set()
        self._late: set[str] = set()
        self._standing: list[str] = []
        self._secrets: dict[str, Mapping[str, Any]] = {}
        self._kept, self._tasks = KeptRequests(), SideTasks()
        self._log = structlog.get_logger(__name__)

    async def open(self) -> None:
        """Begin to hand on, unless it was paused before. Raises `JournalError`."""
        if self._turns.are_all_here and (await self._journal.held()).paused:
            self._turns.pause(True)
            self._log.warning(
                "queue.paused", detail="the queue was paused before the restart; POST /queue/resume ends the pause"
            )
        found = [
            *[(record, False) async for record in pages(self._journal.waiting)],
            *[(record, True) async for record in pages(self._journal.fetching)],
        ]
        for record, is_fetching in sorted(found, key=lambda one: one[0].number):
            if record.prompt_id not in self._in_hand:
                self._rows[record.prompt_id] = row = _Row(self._waiting_of(record))
                if is_fetching:
                    self._late.add(record.prompt_id)
                else:
                    self._turns.expect(row.waiting)
        await self._fetching.open()
        self._tasks.start(self._hand_on_all(), "job queue")
        self._tasks.start(sweep_inputs(self._inputs), "sweep inputs")
        if self._options.max_queued_s:
            expiring = ending_late(self._journal, self._options.max_queued_s, self._clock, self.has, self.fail)
            self._tasks.start(expiring, "jobs that wait too long")

    async def close(self) -> None:
        """Passes on nothing more. Jobs that were passed on go on."""
        await self._fetching.close()
        await self._tasks.close()

    def room(self) -> AbstractContextManager[None]:
        """See `QueueRoom.for_one`."""
        return self._room.for_one()

    async def ready_for(
        self, request: PromptRequest, owner: str | None, files: Collection[str] = ()
    ) -> tuple[Needs, Lane]:
        """The needs and the lane of a workflow before it waits; `at_once` takes a workflow that brings no `files`."""
        needs = await self._turns.needs_of(request, owner, files)
        return needs, await self._turns.lane_of(needs)

    def at_once(self, job: Job, request: PromptRequest, needs: Needs) -> bool:
        """Runs a new job now, if its turn has come; returns whether it does."""
        if not self._may_store.is_set() or self._journal.problem is not None:
            return False
        turn = request.number if request.number is not None else -math.inf if request.front else math.inf
        waiting = Waiting(job.prompt_id, self._turns.numbers.next(), job.owner, request.priority, turn)
        if not self._turns.place(job, waiting, needs):
            return False
        self._in_hand[job.prompt_id] = _Row(waiting, needs)
        if secrets := secrets_of(request):
            self._secrets[job.prompt_id] = secrets
        self._runs.begin(job, self)
        # Its row is made once the task has had its first turn, and submitted it.
        job.place_now(self._turns.scheduler.server_of(job.prompt_id) or "")
        return True

    async def added(self, record: JobRecord, request: PromptRequest) -> None:
        """A job waits in the journal. Its secrets are kept in memory, as long as it waits."""
        if secrets := secrets_of(request):
            self._secrets[record.prompt_id] = secrets
        self._rows[record.prompt_id] = _Row(self._waiting_of(record))
        files = self.files_of(record)
        needs = await self._turns.needs_of(request, record.owner, files.paths if files else ())
        if (row := self._rows.get(record.prompt_id)) is None:
            return  # it has been cancelled
        waiting = row.waiting  # it may have been moved
        self._rows[record.prompt_id] = _Row(waiting, needs)
        if record.is_fetching:
            self._late.add(record.prompt_id)
            self._fetching.added(record.prompt_id)
        else:
            if files is None:
                self._kept.keep(record, request)
            self._turns.expect(waiting, needs)

    def inputs_came(self, prompt_id: str) -> None:
        """The inputs of a job are there now."""
        self._late.discard(prompt_id)
        self._wait_again(prompt_id)

    def left(self, prompt_id: str) -> None:
        """A job that waited waits no more, and was not handed on."""
        self._secrets.pop(prompt_id, None)
        self._kept.take(prompt_id)
        self._late.discard(prompt_id)
        if self._rows.pop(prompt_id, None) is not None:
            self._turns.drop(prompt_id)
        self._fetching.left(prompt_id)
        self._inputs.ended()

    def ids_seen_by(self, origin: Origin, prompt_ids: Iterable[str] | None = None) -> list[str]:
        """The jobs that wait here, of these or of all, of which a caller may know."""
        named = self._rows if prompt_ids is None else prompt_ids
        found = ((one, self._rows.get(one)) for one in named)
        return [one for one, row in found if row is not None and origin.sees(row.waiting.owner)]

    def hold_back(self, prompt_ids: Iterable[str]) -> dict[str, _Row]:
        """These jobs get no turn until they `let_wait` again or have `left`."""
        held = {prompt_id: row for prompt_id in prompt_ids if (row := self._rows.pop(prompt_id, None)) is not None}
        self._turns.drop(*held)
        return held

    def let_wait(self, held: Mapping[str, _Row]) -> None:
        """Jobs that were held back wait again."""
        self._rows |= held
        for prompt_id in held.keys() - self._late:
            self._wait_again(prompt_id)

    def move(self, prompt_id: str, priority: int | None, turn: float | None) -> None:
        """A waiting job has another place in the order; None: no change."""
        for rows in (self._rows, self._in_hand):
            if (row := rows.get(prompt_id)) is not None:
                rows[prompt_id] = replace(row, waiting=row.waiting.moved(priority, turn))
        self._kept.take(prompt_id)  # its row has changed
        self._turns.move(prompt_id, priority, turn)

    def kept(self, job: Job, secrets: Mapping[str, Any]) -> None:
        """A sync job that runs already becomes one of ours: it takes one of the places."""
        if not job.has_task or job.prompt_id in self._in_hand:
            return
        numbers, priority = self._turns.numbers, job.request.priority if job.request is not None else 0
        if (known := numbers.known(job.prompt_id)) is not None:
            priority = known.priority
        waiting = Waiting(job.prompt_id, numbers.next(), job.owner, priority=priority)
        self._in_hand[job.prompt_id] = _Row(waiting)
        if secrets:
            self._secrets[job.prompt_id] = secrets
        if job.backend is not None:
            self._turns.resume(job, waiting, job.backend.name)
        self._runs.tell(job, self)

    @property
    def are_all_here(self) -> bool:
        """Whether all prompts wait in the gateway, and none in ComfyUI's own queue."""
        return self._turns.are_all_here

    @property
    def paused(self) -> bool:
        return self._turns.scheduler.paused

    async def pause(self, paused: bool) -> None:
        """While it is paused, no job gets its turn; running ones end. It stays paused over restarts.

        Raises:
            ComfyUIConflictError: prompts wait in ComfyUI's own queue.
            JournalError: it cannot be kept.
        """
        if not self._turns.are_all_here:
            raise ComfyUIConflictError(
                "the queue cannot be paused, because prompts wait in ComfyUI's own queue (QUEUE)"
            )
        await self._journal.write(Pause(paused))
        self._turns.pause(paused)
        self._log.info("queue.paused" if paused else "queue.resumed")

    @property
    def waiting(self) -> int:
        """How many jobs are on no server: they wait for their turn, for inputs, or for a server to take them."""
        return self._turns.scheduler.waiting + sum(1 for _ in self.without_turn())

    def has_no_turn(self, prompt_id: str) -> bool:
        """Whether the job waits here without a chosen server."""
        scheduler = self._turns.scheduler
        waits = prompt_id in self._rows or scheduler.knows(prompt_id)
        return waits and scheduler.server_of(prompt_id) is None

    def position(self, prompt_id: str) -> int | None:
        """About how many jobs have their turn before it; None if it does not wait."""
        ahead, row = self._turns.position(prompt_id), self._rows.get(prompt_id)
        if ahead is None or row is None:
            return ahead
        # Jobs that wait for their inputs keep their places.
        rows = (self._rows.get(late) for late in self._late)
        return ahead + sum(late.waiting.is_before(row.waiting) for late in rows if late is not None)

    def has(self, prompt_id: str) -> bool:
        """Whether the job waits here."""
        return prompt_id in self._rows

    def waits_for(self, prompt_id: str) -> list[str]:
        """See `Scheduler.waits_for`."""
        return self._turns.scheduler.waits_for(prompt_id)

    def without_turn(self) -> Iterator[Standing]:
        """Jobs that wait here and not for their turn: their inputs are fetched, or no server took them a moment ago."""
        for prompt_id, row in self._rows.items():
            if not self._turns.scheduler.knows(prompt_id):
                yield Standing(prompt_id, row.waiting.owner)

    def hold(self, job: Job, record: JobRecord, before: Callable[[], Awaitable[None]]) -> None:
        """Run a job that was handed on before a restart, after `before`: it has its place on its server."""
        self._in_hand[job.prompt_id] = row = _Row(self._waiting_of(record))
        self._turns.resume(job, row.waiting, record.server or "")
        self._runs.begin(job, self, before)

    async def request_of(self, record: JobRecord) -> PromptRequest | None:
        """The request of a job, from the journal; None if it is not kept, or its secrets are gone."""
        secrets = self._secrets.get(record.prompt_id, {})
        body = await self._journal.body_of(record.prompt_id)
        if body is None or (record.needs_secrets and not secrets):
            return None
        request = with_secrets(await offloaded(len(body), request_of, body), secrets).of_named(record.call)
        files = self.files_of(record)
        return request if files is None else request.of_size(len(body) + files.text_bytes)

    def files_of(self, record: JobRecord) -> StoredFiles | None:
        """The files that come with a job besides its request."""
        return self._inputs.files_of(record)

    # Handing on

    def _waiting_of(self, record: JobRecord) -> Waiting:
        self._turns.numbers.seen(record.number)
        number = self._turns.numbers.next()
        lane = Lane(alone=record.alone)
        return Waiting(record.prompt_id, number, record.owner, record.priority, record.shown_number, lane=lane)

    async def _hand_on_all(self) -> None:
        stands = False
        while True:
            prompt_id = await self._turns.next_due()
            await self._may_store.wait()
            problem = self._journal.problem
            if problem is None:
                try:
                    await self._hand_on(prompt_id)
                    stands = False
                    continue
                except JournalError as error:
                    problem = error.detail
            # Placing a job is a write. While that is impossible, others get the place.
            self._turns.drop(prompt_id)
            if not stands:
                stands = True
                self._log.error("queue.stands", reason=problem)
            if not self._standing:
                self._tasks.start(self._stand(), "job queue stands")
            self._standing.append(prompt_id)
            await asyncio.sleep(0)

    async def _stand(self) -> None:
        """Waits until the journal probably takes writes again."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            if self._journal.problem is None:
                break
        standing, self._standing = self._standing, []
        for prompt_id in standing:
            self._wait_again(prompt_id)

    async def _hand_on(self, prompt_id: str) -> None:
        record, request = self._kept.take(prompt_id) or (await self._journal.get(prompt_id), None)
        if record is not None and request is None:
            request = await self.request_of(record)
        live = self._runs.live.get(prompt_id)
        is_over = record is None or not record.waits or (live is not None and live.ended)
        if record is None or is_over or prompt_id not in self._rows:
            self.left(prompt_id)
            self._turns.drop(prompt_id)
            return
        if request is None:
            self.fail(record, ComfyUIError(NEEDS_SECRETS, prompt_id=prompt_id))
            return
        entry = live.entry if live is not None and live.entry is not None else self._entries.of(record)
        job = live or self._runs.add(prompt_id, entry=entry)
        job.adopt(request, self.files_of(record), record.fingerprint, entry)
        self._in_hand[prompt_id] = self._rows.pop(prompt_id)
        self._runs.begin(job, self)

    def rendered(self, job: Job) -> None:
        """Its files are being stored, and its result is in memory until they are."""
        self._storing.add(job.prompt_id)
        if len(self._storing) >= self._options.storing:
            self._may_store.clear()

    def ended(self, job: Job) -> None:
        """It has ended, or waits in our queue again."""
        self._storing.discard(job.prompt_id)
        if len(self._storing) < self._options.storing:
            self._may_store.set()
        row = self._in_hand.pop(job.prompt_id)
        if job.ended:
            self._secrets.pop(job.prompt_id, None)
        else:
            # No server took it.
            turn, lane = row.waiting.turn, Lane(alone=job.alone)
            if turn is not None:
                # It has its number now, or is about to get it.
                number = 0.0 if job.entry is None else job.entry.shown_number
                turn = number or self._turns.numbers.last_turn
            self._rows[job.prompt_id] = replace(row, waiting=row.waiting._replace(turn=turn, lane=lane))
            asyncio.get_running_loop().call_later(_PAUSE_S, self._wait_again, job.prompt_id)

    def _wait_again(self, prompt_id: str) -> None:
        if (row := self._rows.get(prompt_id)) is not None:
            self._turns.expect(row.waiting, row.needs)

    def fail(self, record: JobRecord, error: ComfyUIError) -> None:
        """A job that waits fails, also for those who wait for it."""
        if (live := self._runs.live.get(record.prompt_id)) is not None:
            live.fail(error)
            self._runs.drop(live)
        else:
            self._entries.of(record).failed(State.FAILED, error)
        self.left(record.prompt_id)
