"""`Turns`: has each job wait until its turn has come, and says to which server it goes. The `Scheduler` decides."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from comfyui.executors.assignment import Assignment
from comfyui.inputs.catalogue import Catalogue
from comfyui.inputs.plan import brought_names, texts_naming
from comfyui.jobs.abilities import Abilities
from comfyui.jobs.clearing import Clearing
from comfyui.jobs.departures import Departures
from comfyui.jobs.lines import Lane, Waiting
from comfyui.jobs.numbers import Numbers
from comfyui.jobs.paces import Paces
from comfyui.jobs.queue_options import TurnOptions
from comfyui.jobs.run_times import RunTimes
from comfyui.jobs.scheduler import Place, Scheduler, SchedulerOptions, TakeBack
from comfyui.jobs.sending_order import SendingOrder
from comfyui.jobs.servers_now import ServersNow
from comfyui.jobs.shares import OwnerTerms
from comfyui.jobs.timers import Timers, now
from comfyui.jobs.waiters import Waiters
from comfyui.models import PromptRequest
from comfyui.offload import offloaded
from comfyui.owners import OwnerRules
from comfyui.servers.backend import Backend
from comfyui.servers.pool import CHOICE_PATIENCE_S, BackendPool
from comfyui.servers.server import Server
from comfyui.servers.taking_back import take_back
from comfyui.tasks import SideTasks
from comfyui.workflows.needs import Needs, needs_of

# A server that does not say sooner whether it gave a prompt back keeps the idle one no longer.
_TAKE_BACK_S = 5.0
# How soon a change of the rules affects waiting jobs, without any other event.
_RULES_S = 1.0
# How many lanes are found again before others have their turn in the event loop.
_AT_ONCE = 200


class Turns:
    """The `Places` of all jobs. Open it before jobs come.

    Args:
        owners: the limits of each owner; None: all have the same.

    Attributes:
        numbers: the order in which jobs come.
        abilities: which servers can run what.
        run_times: how long prompts ran before.
    """

    def __init__(
        self, pool: BackendPool, options: TurnOptions, catalogue: Catalogue, owners: OwnerRules | None = None
    ) -> None:
        self._pool = pool
        self._options, self._catalogue = options, catalogue
        self._terms = OwnerTerms(owners)
        self._lanes_of, self._is_ours = 0, options.queue == "gateway"
        self._takes_back = self._is_ours and len(pool.servers) > 1
        affinity_wait_s = options.affinity_wait_s if self._is_ours else 0.0
        self._scheduler = Scheduler(made := SchedulerOptions(affinity_wait_s, takes_back=self._takes_back))
        self.abilities, self._clearing = Abilities(pool), Clearing()
        self._jobs: dict[str, Assignment] = {}
        self._needs: dict[str, Needs] = {}
        self.numbers, self.run_times = Numbers(), RunTimes()
        self._waiters, self._paces = Waiters(pool, self._scheduler), Paces(options.ahead)
        self._departures = Departures(pool, self._scheduler, self._jobs, options.move_after_s)
        self._granted: set[str] = set()
        self._due: deque[str] = deque()
        self._is_due, self._tasks, self._timers = asyncio.Event(), SideTasks(), Timers()
        self._log = structlog.get_logger(__name__)
        self._sending = SendingOrder(self._scheduler.servers, made.in_turn_s)
        self._servers_now = ServersNow(pool, self._scheduler, self.abilities, self._paces, options)

    def open(self) -> None:
        """Begin to hear of the servers."""
        self._tasks.start(self._listen(), "turns")

    async def close(self) -> None:
        self._timers.close()
        for part in (self._departures, self._tasks, self.abilities):
            await part.close()

    # Jobs that wait without a task

    async def needs_of(self, request: PromptRequest, owner: str | None, files: Collection[str]) -> Needs:
        """The needs of a job's workflow, without `files`, which come with the request."""
        names = brought_names(request, files)
        placed = self._catalogue.texts_in(request.prompt, owner) | texts_naming(request.prompt, names)
        return await offloaded(request.size, needs_of, request.prompt, placed)

    def expect(self, job: Waiting, needs: Needs | None = None) -> None:
        """The job waits from now on; `next_due` gives its id when its turn has come."""
        self._add(job, needs)
        self.decide()

    async def lane_of(self, needs: Needs) -> Lane:
        """The servers on which a workflow could be placed now."""
        await self.abilities.one_is_known(CHOICE_PATIENCE_S)
        lane = await self.abilities.sure_lane(needs)
        while self._lanes_of != self.abilities.generation:
            await self._find_lanes()
        return lane

    def place(self, job: Assignment, waiting: Waiting, needs: Needs) -> bool:
        """Gives a job its place now, if its turn has come: its task must `take` it. Otherwise the job is not added."""
        prompt_id = job.prompt_id
        self._jobs[prompt_id], self._needs[prompt_id] = job, needs
        self._look_at_servers()
        waiting, terms = self._known(waiting, needs), self._terms.of(waiting.owner)
        are_lanes_known = self._lanes_of == self.abilities.generation
        if are_lanes_known and self._scheduler.place_at_once(waiting, now(), terms):
            self._granted.add(prompt_id)
        else:
            self._scheduler.add(waiting, terms)
        self.decide()
        if prompt_id in self._granted:
            return True
        self.drop(prompt_id)
        return False

    async def next_due(self) -> str:
        """The id of a job that was expected and has its turn: its task is to `take` the place, or it is dropped."""
        while not self._due:
            self._is_due.clear()
            await self._is_due.wait()
        return self._due.popleft()

    def drop(self, *prompt_ids: str) -> None:
        """These jobs wait no more, and do not need the places that they may have got."""
        for prompt_id in prompt_ids:
            self._gone(prompt_id, 0.0)
        self.decide()

    def resume(self, job: Assignment, waiting: Waiting, server: str) -> None:
        """A job that is on the server already takes a place there, unless it has one or waits for one."""
        if self.numbers.known(job.prompt_id) is None:
            self.numbers.remember(waiting)
        if self._pool.named(server) is not None and not self._scheduler.knows(job.prompt_id):
            self._occupy(job, waiting, server)

    def move(self, prompt_id: str, priority: int | None, turn: float | None) -> None:
        """A waiting job has another place in the order. None: no change."""
        self.numbers.move(prompt_id, priority, turn)
        self._scheduler.move(prompt_id, priority, turn)
        self.decide()

    def position(self, prompt_id: str) -> int | None:
        """About how many jobs have their turn before it; None if it does not wait here."""
        return 0 if prompt_id in self._granted else self._scheduler.ahead_of(prompt_id)

    def known_needs(self, prompt_id: str) -> Needs | None:
        """The needs of a job that waits or is on a server; None if they are unknown."""
        found = self._needs.get(prompt_id) or self._scheduler.shape_of(prompt_id)
        return found if isinstance(found, Needs) else None

    @property
    def are_all_here(self) -> bool:
        """Whether all jobs wait here, and none in ComfyUI's own queue."""
        return self._is_ours

    @property
    def scheduler(self) -> Scheduler:
        """Callers may only ask it."""
        return self._scheduler

    def pause(self, paused: bool) -> None:
        """While it is paused no job gets its turn; those that have theirs go on."""
        self._scheduler.pause(paused)
        self.decide()

    # Places

    async def take(
        self,
        job: Assignment,
        request: PromptRequest,
        *,
        avoid: Collection[str],
        files_on: Collection[str],
        patience_s: float,
    ) -> Server:
        if not (self._is_ours or job.stays):
            return await self._pool.choose(patience_s=patience_s)
        prompt_id = job.prompt_id
        if (
            not (avoid or files_on)
            and prompt_id in self._jobs
            and (given := self._given(prompt_id)) is not None
            and given.ready
        ):
            return given
        self._jobs[prompt_id] = job
        self._needs[prompt_id] = needs = await self.needs_of(request, job.owner, job.file_names)
        lane = await self.abilities.sure_lane(needs, avoid)
        if (
            not files_on
            and (given := self._given(prompt_id)) is not None
            and given.ready
            and given.name not in lane.no.union(avoid)
        ):
            return given
        self._scheduler.left(prompt_id, _executed_s(job))
        priority, place, number = self.numbers.of(prompt_id, request)
        # It was placed before it had its number.
        place = job.shown_number if math.isinf(place) and job.shown_number else place
        lane = Lane(alone=job.alone, files_on=frozenset(files_on))
        self._add(Waiting(prompt_id, number, job.owner, priority, place, lane=lane), needs, avoid)
        turn = self._waiters.add(job, None if job.stays else patience_s)
        self.decide()
        try:
            if not turn.done():
                await job.waits()
            return await turn
        finally:
            self._waiters.remove(job)

    async def cleared(self, job: Assignment, backend: Server) -> None:
        if not self._is_ours and isinstance(backend, Backend):
            await self._clearing.admit(job, backend)

    async def in_turn(self, job: Assignment) -> None:
        await self._sending.turn_of(job.prompt_id, self._scheduler.server_of(job.prompt_id))

    async def spelled(self, backend: Server, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self.abilities.spelled(backend, prompt)

    def lacking(self, job: Assignment) -> Mapping[str, Sequence[str]]:
        needs = self._needs.get(job.prompt_id)
        return {} if needs is None else self.abilities.lacking(needs)

    def has_other(self, job: Assignment) -> bool:
        return self._scheduler.has_other(job.prompt_id)

    def found(self, job: Assignment, backend: Server) -> None:
        if (self._is_ours or job.stays) and self._scheduler.server_of(job.prompt_id) != backend.name:
            self._scheduler.left(job.prompt_id)
            known, number = self.numbers.known(job.prompt_id), self.numbers.next()
            priority = known.priority if known else 0 if job.request is None else job.request.priority
            waiting = Waiting(job.prompt_id, number, job.owner, priority)
            self._occupy(job, waiting, backend.name)

    async def found_waiting(self, job: Assignment, request: PromptRequest, queued: float) -> None:
        if not self._takes_back:
            return
        self._needs[job.prompt_id] = needs = await self.needs_of(request, job.owner, job.file_names)
        lane = replace(await self.abilities.sure_lane(needs), alone=job.alone and self._options.places is not None)
        self._scheduler.found_waiting(job.prompt_id, queued, needs.models, needs, lane)
        self.decide()

    def accepted(self, job: Assignment) -> None:
        self._clearing.accepted(job.prompt_id)
        if job.prompt_id in self._jobs:
            self._scheduler.accepted(job.prompt_id)
            self._sending.moved_on()
            self.decide()

    def leave(self, job: Assignment, ran_s: float) -> None:
        self._clearing.left(job.prompt_id)
        self.run_times.ended(job.prompt_id, self._needs.get(job.prompt_id), ran_s)
        if job.prompt_id in self._jobs:
            seconds = _executed_s(job)
            self._paces.ran(self._scheduler.server_of(job.prompt_id), seconds)
            self._gone(job.prompt_id, seconds)
            self.decide()
        else:
            self.numbers.forget(job.prompt_id)

    def _given(self, prompt_id: str) -> Server | None:
        """The server on which the job got a place that it has not used yet."""
        if prompt_id not in self._granted:
            return None
        self._granted.discard(prompt_id)
        return self._pool.named(self._scheduler.server_of(prompt_id) or "")

    def _add(self, job: Waiting, needs: Needs | None, avoid: Collection[str] = ()) -> None:
        self._scheduler.add(self._known(job, needs, avoid), self._terms.of(job.owner))

    def _known(self, job: Waiting, needs: Needs | None, avoid: Collection[str] = ()) -> Waiting:
        """The job with all that the scheduler is to know of it; its order is kept."""
        self.numbers.remember(job)
        alone = job.lane.alone and self._is_ours and self._options.places is not None
        lane = self.abilities.lane(needs, avoid, alone=alone, files_on=job.lane.files_on)
        return job._replace(loaders=frozenset() if needs is None else needs.models, shape=needs, lane=lane)

    def _occupy(self, job: Assignment, waiting: Waiting, server: str) -> None:
        self._jobs[job.prompt_id] = job
        self.numbers.remember(waiting)
        self._scheduler.occupy(waiting, server, now(), self._terms.of(waiting.owner))

    def _gone(self, prompt_id: str, seconds: float) -> None:
        self._scheduler.left(prompt_id, seconds)
        self._sending.moved_on()
        self._jobs.pop(prompt_id, None)
        self.numbers.forget(prompt_id)
        self._needs.pop(prompt_id, None)
        self._granted.discard(prompt_id)

    # Deciding

    async def _listen(self) -> None:
        """Servers that come up or go down, prompts of others that come and go, and definitions that become known."""
        while True:
            self._pool.news.clear()
            while self._lanes_of != self.abilities.generation:
                await self._find_lanes()
            self.decide()
            self._see_departures()
            await self._pool.news.wait()

    async def _find_lanes(self) -> None:
        """The lanes of the waiting jobs may have changed."""
        generation = self.abilities.generation
        for count, (prompt_id, needs, lane) in enumerate(self._scheduler.shapes()):
            if isinstance(needs, Needs):
                found = self.abilities.lane(needs, lane.avoid, alone=lane.alone, files_on=lane.files_on)
                self._scheduler.set_lane(prompt_id, found)
            if count % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        self._lanes_of = generation

    def decide(self) -> None:
        """Gives places. Called at each change, also of ComfyUI's queue, which every client's prompt changes."""
        if not (self._scheduler.waiting or self._takes_back):
            return
        if self._lanes_of != self.abilities.generation:
            self._pool.news.set()  # first the lanes are found
            return
        self._look_at_servers()
        at = now()
        for decision in self._scheduler.decide(at):
            self._do(decision)
        if self._waiters:
            if (end := self._waiters.check_patience(at)) is not None:
                self._timers.by("patience", end, self.decide)
            self._timers.by("tell", at + self._waiters.tell_after_s, self._waiters.tell_positions)
        if self._terms.may_change and self._scheduler.waiting:
            self._timers.by("rules", at + _RULES_S, self.decide)
        if (look_at := self._scheduler.next_look(at)) is not None:
            self._timers.by("look", look_at, self.decide)

    def _look_at_servers(self) -> None:
        """The scheduler knows the rules and the servers as they are now."""
        if self._terms.have_changed():
            self._scheduler.set_terms(self._terms.of)
        self._servers_now.tell()

    def _see_departures(self) -> None:
        """Only while servers are away: `decide` acts only if something waits."""
        if self._takes_back and (again_s := self._departures.look()) is not None:
            self._timers.by("departures", now() + again_s, self._see_departures)

    def _do(self, decision: Place | TakeBack) -> None:
        prompt_id = decision.prompt_id
        if isinstance(decision, TakeBack):
            self._tasks.start(self._take_back(decision), f"take back {prompt_id}")
            return
        backend = self._pool.named(decision.server)
        if backend is not None and self._waiters.give(prompt_id, backend):
            return
        self._granted.add(prompt_id)
        if prompt_id not in self._jobs:
            self._due.append(prompt_id)
            self._is_due.set()

    async def _take_back(self, back: TakeBack) -> None:
        prompt_id = back.prompt_id
        job, backend = self._jobs.get(prompt_id), self._pool.named(back.server)
        watch = None if job is None else job.watch
        timer = asyncio.get_running_loop().call_later(_TAKE_BACK_S, self._give_up_taking_back, prompt_id)
        try:
            moves = isinstance(backend, Backend) and watch is not None and watch in await take_back(backend, watch)
        finally:
            timer.cancel()
        if not moves or watch is None or self._jobs.get(prompt_id) is not job:
            self._scheduler.stays(prompt_id)
        else:
            self._log.info("prompt.moves", prompt_id=prompt_id, server=back.server, to=back.idle)
            for place in self._scheduler.taken_back(prompt_id, now()):
                self._do(place)
            watch.taken_back()
        self.decide()

    def _give_up_taking_back(self, prompt_id: str) -> None:
        self._scheduler.stays(prompt_id)
        self.decide()


def _executed_s(job: Assignment) -> float:
    """How long its present try has been executed."""
    return 0.0 if job.began_at is None else max(0.0, now() - job.began_at)
