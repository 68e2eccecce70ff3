"""The scheduler's rules hold after each step, whatever happens on the servers and in whatever order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from comfyui.jobs.lines import Lane, Waiting
from comfyui.jobs.scheduler import Place, Scheduler, TakeBack
from comfyui.jobs.shares import Terms

NAMES = ("gpu-0", "gpu-1", "gpu-2")
LIMITS = {"ann": 2, "bob": None, "cid": None}
kinds = st.one_of(st.just(["yes"] * 3), st.lists(st.sampled_from(["yes", "no", "unknown"]), min_size=3, max_size=3))
some_job = st.tuples(kinds, st.sampled_from(["ann", "bob"]), st.integers(0, 1), st.booleans())


@dataclass
class World:
    """One ComfyUI. `queue` has our jobs there, whose first runs if `running`; `sent` has jobs on their way to it."""

    up: bool = True
    others: int = 0
    running: bool = False
    queue: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)


class Fleet(RuleBasedStateMachine):
    """`runs` counts the starts of each job on any server. While `slow`, submissions arrive later. `stayed` has jobs
    that could not be taken back, and `unfound` jobs that are on servers since before a restart and are not found yet.
    `numbers` has ComfyUI's number of each job. `checked` counts the checks of all runs together.
    """

    checked: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.checked["runs"] += 1
        self.now = 0.0
        self.scheduler = Scheduler()
        self.worlds = {name: World() for name in NAMES}
        self.jobs: dict[str, Waiting] = {}
        self.waiting: set[str] = set()
        self.runs: dict[str, int] = {}
        self.moves = 0
        self.taking: list[TakeBack] = []
        self.slow = False
        self.stayed: set[str] = set()
        self.unfound: list[str] = []
        self.numbers: dict[str, int] = {}
        for name in NAMES:
            self.tell(name)

    def tell(self, name: str) -> None:
        world = self.worlds[name]
        self.scheduler.set_server(name, up=world.up, others=world.others)

    def load(self, name: str) -> int:
        world = self.worlds[name]
        return world.others + len(world.queue) + len(world.sent)

    def may_run(self, prompt_id: str, name: str) -> bool:
        lane = self.jobs[prompt_id].lane
        return name not in lane.no or lane.no == set(NAMES)

    # Steps of callers and servers

    @rule(jobs=st.lists(some_job, min_size=1, max_size=4), at_once=st.booleans())
    def submit(self, jobs: list[tuple[list[str], str, int, bool]], at_once: bool = False) -> None:
        for kinds, owner, priority, front in jobs:
            by_kind = {kind: frozenset(n for n, k in zip(NAMES, kinds, strict=True) if k == kind) for kind in kinds}
            lane = Lane(by_kind.get("yes", frozenset()), by_kind.get("no", frozenset()))
            number = len(self.jobs) + 1
            job = Waiting(str(number), number, owner, priority=priority, turn=-number if front else None, lane=lane)
            self.checked["jobs"] += 1
            self.jobs[job.prompt_id] = job
            self.waiting.add(job.prompt_id)
            terms = Terms(1.0, owner, LIMITS[owner])
            if at_once:
                self.place_at_once(job, terms)
            if not self.scheduler.knows(job.prompt_id):
                self.scheduler.add(job, terms)
            self.decide()

    def place_at_once(self, job: Waiting, terms: Terms) -> None:
        server = self.scheduler.place_at_once(job, self.now, terms)
        if server is not None:
            self.checked["placed at once"] += 1
            self.do([Place(job.prompt_id, server)])

    def take_what_was_sent(self, name: str) -> None:
        for prompt_id in self.queue_what_was_sent(self.worlds[name]):
            self.scheduler.accepted(prompt_id)

    def queue_what_was_sent(self, world: World) -> list[str]:
        queued, world.sent = world.sent, []
        for prompt_id in queued:
            self.checked["prompts queued"] += 1
            self.numbers[prompt_id] = max(self.numbers.values(), default=0) + 1
            world.queue.append(prompt_id)
        return queued

    @rule(name=st.sampled_from(NAMES))
    def arrives(self, name: str) -> None:
        self.take_what_was_sent(name)
        self.decide()

    def can_begin(self) -> list[str]:
        return [
            n for n, world in self.worlds.items() if world.up and world.queue and not (world.running or world.others)
        ]

    @precondition(lambda self: self.can_begin())
    @rule(data=st.data())
    def begins(self, data: st.DataObject) -> None:
        self.begin(self.worlds[data.draw(st.sampled_from(self.can_begin()))])

    def begin(self, world: World) -> None:
        world.running = True
        self.checked["prompts begun"] += 1
        self.runs[world.queue[0]] = self.runs.get(world.queue[0], 0) + 1
        self.scheduler.began(world.queue[0])
        self.decide()

    @precondition(lambda self: any(world.running for world in self.worlds.values()))
    @rule(data=st.data(), seconds=st.floats(0.1, 50))
    def ends(self, data: st.DataObject, seconds: float) -> None:
        self.end(data.draw(st.sampled_from([world for world in self.worlds.values() if world.running])), seconds)

    def end(self, world: World, seconds: float) -> None:
        world.running = False
        ended = world.queue.pop(0)
        self.taking = [back for back in self.taking if back.prompt_id != ended]
        self.scheduler.left(ended, seconds)
        self.decide()

    @rule(name=st.sampled_from(NAMES), others=st.sampled_from([0, 0, 0, 1, 2]))
    def others_come_and_go(self, name: str, others: int) -> None:
        self.worlds[name].others = others
        self.tell(name)
        self.decide()

    @rule(name=st.sampled_from(NAMES), up=st.sampled_from([True, True, True, False]))
    def goes_down_or_comes_up(self, name: str, up: bool) -> None:
        self.worlds[name].up = up
        self.tell(name)
        self.decide()

    def can_die(self) -> list[str]:
        return [name for name, world in self.worlds.items() if world.running]

    @precondition(lambda self: self.can_die())
    @rule(data=st.data(), seconds=st.floats(0.1, 50))
    def dies(self, data: st.DataObject, seconds: float) -> None:
        """The server dies and is started again at once. Only the job that ran there may be the cause."""
        name = data.draw(st.sampled_from(self.can_die()))
        self.checked["deaths"] += 1
        world = self.worlds[name]
        lost = [*world.queue, *world.sent]
        self.taking = [back for back in self.taking if back.prompt_id not in lost]
        for prompt_id in lost:
            job = self.jobs[prompt_id]
            began = prompt_id == world.queue[0]
            lane = replace(job.lane, avoid=job.lane.avoid | {name}, alone=job.lane.alone or began)
            self.jobs[prompt_id] = job = job._replace(lane=lane)
            self.scheduler.left(prompt_id, seconds if began else 0.0)
            self.runs.pop(prompt_id, None)
            self.waiting.add(prompt_id)
            self.scheduler.add(job, Terms(1.0, job.owner, LIMITS[job.owner or ""]))
        world.running, world.queue, world.sent = False, [], []
        self.decide()

    def known(self) -> list[str]:
        return sorted(prompt_id for prompt_id in self.jobs if self.scheduler.knows(prompt_id))

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def is_cancelled(self, data: st.DataObject) -> None:
        prompt_id = data.draw(st.sampled_from(self.known()))
        self.scheduler.left(prompt_id)
        self.waiting.discard(prompt_id)
        for world in self.worlds.values():
            if world.running and world.queue[0] == prompt_id:
                world.running = False
            world.queue = [one for one in world.queue if one != prompt_id]
            world.sent = [one for one in world.sent if one != prompt_id]
        self.decide()

    @precondition(lambda self: self.known())
    @rule(data=st.data(), priority=st.sampled_from([None, 0, 1, 2]), first=st.booleans())
    def is_moved(self, data: st.DataObject, priority: int | None, first: bool) -> None:
        """Only a waiting job gets another place in the order."""
        prompt_id = data.draw(st.sampled_from(self.known()))
        self.moves += 1
        turn = -1000.0 - self.moves if first else None
        if prompt_id in self.waiting:
            self.checked["moved"] += 1
            self.jobs[prompt_id] = self.jobs[prompt_id].moved(priority, turn)
        self.scheduler.move(prompt_id, priority, turn)
        self.check_positions()
        self.decide()

    def check_positions(self) -> None:
        """Positions agree with the order: of two jobs of one owner and priority, the later one has more jobs ahead."""
        ahead = {prompt_id: self.scheduler.ahead_of(prompt_id) or 0 for prompt_id in self.waiting}
        for one in (self.jobs[prompt_id] for prompt_id in self.waiting):
            for other in (self.jobs[prompt_id] for prompt_id in self.waiting):
                if one.owner == other.owner and one.priority == other.priority and _order(one) < _order(other):
                    assert ahead[one.prompt_id] < ahead[other.prompt_id]
                if one.priority > other.priority:
                    assert ahead[one.prompt_id] < ahead[other.prompt_id]

    @precondition(lambda self: self.taking)
    @rule()
    def is_taken_back(self) -> None:
        """The job moves if it is still in the queue and has not begun. Otherwise it stays."""
        back = self.taking.pop(0)
        world = self.worlds[back.server]
        waits = back.prompt_id in world.queue and not (world.running and world.queue[0] == back.prompt_id)
        if waits and world.up:
            world.queue.remove(back.prompt_id)
            self.waiting.add(back.prompt_id)
            self.place(self.scheduler.taken_back(back.prompt_id, self.now))
        else:
            self.stayed.add(back.prompt_id)
            self.scheduler.stays(back.prompt_id)
        self.decide()

    @rule(data=st.data())
    def the_gateway_is_restarted(self, data: st.DataObject) -> None:
        """The new gateway knows from the journal where each job was sent, and finds the jobs there one by one."""
        there = sorted(one for world in self.worlds.values() for one in (*world.queue, *world.sent))
        self.restart(data.draw(st.permutations(there)), data.draw(st.permutations(there)))

    def restart(self, met: list[str], unfound: list[str]) -> None:
        """`met` has the jobs on servers in the journal's order; `unfound` has them in the reverse order of finding."""
        self.checked["restarts"] += 1
        self.scheduler, self.taking = Scheduler(), []
        there: dict[str, str] = {}
        for name, world in self.worlds.items():
            self.queue_what_was_sent(world)
            there |= dict.fromkeys(world.queue, name)
            self.tell(name)
        self.unfound = unfound
        for prompt_id in met:
            job = self.jobs[prompt_id]
            terms = Terms(1.0, job.owner, LIMITS[job.owner or ""])
            self.scheduler.occupy(job._replace(lane=Lane(alone=job.lane.alone)), there[prompt_id], self.now, terms)
        for prompt_id in self.waiting:
            job = self.jobs[prompt_id]
            self.scheduler.add(job, Terms(1.0, job.owner, LIMITS[job.owner or ""]))
        self.decide()

    @precondition(lambda self: self.unfound)
    @rule()
    def is_found_on_its_server(self) -> None:
        prompt_id = self.unfound.pop()
        runs = [world.queue[0] for world in self.worlds.values() if world.running]
        if prompt_id not in runs:
            # The job may have ended or been placed again meanwhile.
            self.stayed.discard(prompt_id)
            number = self.numbers[prompt_id]
            self.scheduler.found_waiting(prompt_id, number, frozenset(), None, self.jobs[prompt_id].lane)
            self.decide()

    @rule(seconds=st.sampled_from([0.1, 5.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.decide()

    @rule()
    def submissions_become_slow_or_quick(self) -> None:
        self.slow = not self.slow
        self.decide()

    # The scheduler's decisions, after each step

    def decide(self) -> None:
        while decisions := self.scheduler.decide(self.now):
            self.do(decisions)
        self.check_that_no_job_waits_in_vain()

    def do(self, decisions: list[Place | TakeBack]) -> None:
        for decision in decisions:
            if isinstance(decision, Place):
                self.check_order(decision)
                self.place([decision])
            else:
                self.check_taking_back(decision)
                self.taking.append(decision)
        for name in () if self.slow else NAMES:
            self.take_what_was_sent(name)

    def check_that_no_job_waits_in_vain(self) -> None:
        """No job waits behind a prompt while an idle server can run it."""
        given_up = {*self.stayed, *self.unfound, *(back.prompt_id for back in self.taking)}
        for world in self.worlds.values():
            behind = world.queue if world.others and not world.running else world.queue[1:]
            for prompt_id in behind if world.up else ():
                if prompt_id not in given_up:
                    self.checked["wait behind another one"] += 1
                    assert not self.idle_for(prompt_id)

    def place(self, places: list[Place]) -> None:
        for place in places:
            self.checked["places"] += 1
            world = self.worlds[place.server]
            owner = self.jobs[place.prompt_id].owner or ""
            assert world.up
            assert self.load(place.server) < 2, "one runs and one waits"
            assert self.may_run(place.prompt_id, place.server)
            assert self.runs.get(place.prompt_id, 0) == 0, "the job has not run yet"
            if self.jobs[place.prompt_id].lane.alone:
                self.checked["places alone"] += 1
                assert not self.load(place.server), "a job that goes alone gets an empty server"
            if self.load(place.server):
                assert not self.idle_for(place.prompt_id), "no idle server can run the job"
            self.waiting.remove(place.prompt_id)
            world.sent.append(place.prompt_id)
            assert LIMITS[owner] is None or self.on_servers(owner) <= (LIMITS[owner] or 0)

    def underway(self) -> list[TakeBack]:
        """The pending take-backs of jobs that still exist. No place is kept for the others, even without an answer."""
        return [back for back in self.taking if self.scheduler.knows(back.prompt_id)]

    def on_servers(self, owner: str) -> int:
        on = [prompt_id for world in self.worlds.values() for prompt_id in (*world.queue, *world.sent)]
        return sum(self.jobs[prompt_id].owner == owner for prompt_id in on)

    def idle_for(self, prompt_id: str) -> list[str]:
        kept, lane = {back.idle for back in self.taking}, self.jobs[prompt_id].lane
        return [
            name
            for name, world in self.worlds.items()
            if world.up and not self.load(name) and name not in kept and name in lane.yes - lane.avoid
        ]

    def check_order(self, place: Place) -> None:
        job = self.jobs[place.prompt_id]
        for other in (self.jobs[prompt_id] for prompt_id in self.waiting - {place.prompt_id}):
            limit = LIMITS[other.owner or ""]
            if other.lane != job.lane or (limit is not None and self.on_servers(other.owner or "") >= limit):
                continue
            assert other.priority <= job.priority
            if other.owner == job.owner and other.priority == job.priority:
                assert _order(job) < _order(other)

    def check_taking_back(self, back: TakeBack) -> None:
        self.checked["taken back"] += 1
        world = self.worlds[back.server]
        assert back.prompt_id in world.queue
        assert not (world.running and world.queue[0] == back.prompt_id)
        assert self.load(back.server) > 1, "the job waits behind another prompt"
        assert self.worlds[back.idle].up
        assert self.load(back.idle) == 0
        assert self.may_run(back.prompt_id, back.idle)
        assert back.idle not in {other.idle for other in self.underway()}
        assert back.prompt_id not in {other.prompt_id for other in self.underway()}

    # The rule at the end

    def teardown(self) -> None:
        """Jobs that go alone get their turn although other jobs keep coming and no server is ever idle."""
        self.slow = False
        for name, world in self.worlds.items():
            world.up, world.others = True, 0
            self.tell(name)
        for step in range(400):
            if not any(self.jobs[prompt_id].lane.alone for prompt_id in self.waiting):
                return
            self.submit([(["yes"] * 3, "cid", 0, False)] * 3)
            while self.taking:
                self.is_taken_back()
            for name in NAMES:
                self.arrives(name)
            for name in self.can_begin():
                self.begin(self.worlds[name])
            if (world := self.worlds[NAMES[step % 3]]).running:
                self.end(world, 50.0)
        raise AssertionError("a job that goes alone is never placed")

    # The rules after each step

    @invariant()
    def no_job_is_lost_or_runs_twice(self) -> None:
        self.checked["steps"] += 1
        on = [prompt_id for world in self.worlds.values() for prompt_id in (*world.queue, *world.sent)]
        assert len(on) == len(set(on))
        assert not self.waiting.intersection(on)
        assert self.scheduler.waiting == len(self.waiting)
        assert all(count == 1 for count in self.runs.values())


def _order(job: Waiting) -> float:
    return job.number if job.turn is None else job.turn


@pytest.mark.parametrize("met", list(permutations("12")))
@pytest.mark.parametrize("unfound", list(permutations("12")))
def test_a_job_behind_a_prompt_from_before_a_restart_moves_to_an_idle_server(
    met: tuple[str, ...], unfound: tuple[str, ...]
) -> None:
    """Neither job runs when it is found, and the order in which they are found does not matter."""
    fleet = Fleet()
    for name in NAMES[1:]:
        fleet.others_come_and_go(name, 2)
    fleet.submit([(["yes", "no", "no"], "bob", 0, False), (["yes"] * 3, "bob", 0, False)])
    assert fleet.worlds["gpu-0"].queue == ["1", "2"]
    fleet.restart(list(met), list(unfound))
    while fleet.unfound:
        fleet.is_found_on_its_server()
    fleet.others_come_and_go("gpu-1", 0)
    assert fleet.taking == [TakeBack("2", "gpu-0", "gpu-1")]
    fleet.is_taken_back()
    fleet.arrives("gpu-1")
    assert [fleet.worlds[name].queue for name in NAMES] == [["1"], ["2"], []]
    fleet.no_job_is_lost_or_runs_twice()


Fleet.TestCase.settings = settings(deadline=None, max_examples=200, stateful_step_count=50)
TestFleet = Fleet.TestCase
