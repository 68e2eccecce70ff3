"""Servers that run what a `Scheduler` places on them, in simulated time; each step is checked against the rules."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from comfyui.jobs.lines import Waiting
from comfyui.jobs.scheduler import Place, Scheduler, SchedulerOptions, TakeBack
from comfyui.jobs.shares import Terms


@dataclass
class SimulatedServer:
    """`queue`: ids of the prompts that wait."""

    name: str
    running: str | None = None
    queue: list[str] = field(default_factory=list)


class Simulation:
    """Runs jobs in simulated time.

    Attributes:
        begun: ids in the order in which servers began to run them.
        placed: the placements, in order.
        starts, ends: the times at which jobs began and ended, by id.
    """

    def __init__(
        self,
        servers: int,
        seconds_of: Callable[[str], float] = lambda _: 1.0,
        *,
        terms: Callable[[str | None], Terms] = lambda _: Terms(),
        options: SchedulerOptions | None = None,
    ) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(options or SchedulerOptions())
        self.servers = {f"gpu-{index}": SimulatedServer(f"gpu-{index}") for index in range(servers)}
        self.jobs: dict[str, Waiting] = {}
        self.begun: list[str] = []
        self.placed: list[Place] = []
        self.ends: dict[str, float] = {}
        self.starts: dict[str, float] = {}
        self._seconds_of = seconds_of
        self._terms = terms
        self._events: list[tuple[float, int, str]] = []
        self._number = 0
        self._submitted: Counter[str | None] = Counter()
        self._begun: Counter[str | None] = Counter()
        for server in self.servers.values():
            self.scheduler.set_server(server.name, up=True)

    def submit(self, owner: str | None = None, **fields: object) -> str:
        self._number += 1
        prompt_id = str(fields.pop("prompt_id", f"{owner}-{self._number}"))
        job = Waiting(prompt_id, self._number, owner, **fields)  # type: ignore[arg-type]
        self.jobs[prompt_id] = job
        self._submitted[owner] += 1
        self.scheduler.add(job, self._terms(owner))
        return prompt_id

    def run(self, until_s: float = 1e9) -> None:
        """Runs until no job is left, or until that time."""
        self.decide()
        while self._events and self._events[0][0] <= until_s:
            self.step()

    def step(self) -> None:
        """Runs until the next job has ended, and makes the decisions that follow."""
        self.decide()
        self.now, _, name = heapq.heappop(self._events)
        self._end(self.servers[name])
        self.decide()

    def decide(self) -> None:
        while decisions := self.scheduler.decide(self.now):
            self._do(decisions)

    def _do(self, decisions: Iterable[Place | TakeBack]) -> None:
        for decision in decisions:
            if isinstance(decision, Place):
                self._place(decision)
                continue
            server = self.servers[decision.server]
            if decision.prompt_id in server.queue:
                server.queue.remove(decision.prompt_id)
                self._do(self.scheduler.taken_back(decision.prompt_id, self.now))
            else:
                self.scheduler.stays(decision.prompt_id)

    def _place(self, place: Place) -> None:
        server = self.servers[place.server]
        self.placed.append(place)
        server.queue.append(place.prompt_id)
        self.scheduler.accepted(place.prompt_id)
        self._begin(server)
        assert len(server.queue) <= 1, "more than one prompt waits"

    def _begin(self, server: SimulatedServer) -> None:
        if server.running is None and server.queue:
            server.running = prompt_id = server.queue.pop(0)
            self.begun.append(prompt_id)
            self._begun[self.jobs[prompt_id].owner] += 1
            self.starts[prompt_id] = self.now
            self.scheduler.began(prompt_id)
            heapq.heappush(self._events, (self.now + self._seconds_of(prompt_id), len(self.begun), server.name))

    def _end(self, server: SimulatedServer) -> None:
        prompt_id = server.running
        assert prompt_id is not None
        server.running = None
        self.ends[prompt_id] = self.now
        self.scheduler.left(prompt_id, self.now - self.starts[prompt_id])
        self._begin(server)

    def begun_of(self, owner: str) -> int:
        """How many of the owner's jobs a server has begun."""
        return self._begun[owner]

    def waiting_of(self, owner: str) -> int:
        """How many of the owner's jobs no server has begun."""
        return self._submitted[owner] - self._begun[owner]

    def times_begun(self) -> Counter[str]:
        return Counter(self.begun)
