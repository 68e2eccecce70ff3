"""`Scheduler`: which job goes to which server, and which one is taken back. Pure: no I/O, and the time is handed in.

A server runs one prompt and has a second one that waits, so that it never stands still between two. A job goes to a
server that is idle before it goes behind another prompt, and to one that can run it before one of which that is not
known. A job that waits behind another prompt is taken back when another server is idle that can run it.

A job that may end its server goes to an idle one only. When its turn has come and none is idle, one is cleared for it:
that one gets nothing more. Others may wait behind such a job.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from comfyui.jobs.lines import ANYWHERE, NO_NAMES, Lane, Lines, Standing, Ticket, Waiting
from comfyui.jobs.server_places import ServerPlaces, Servers
from comfyui.jobs.shares import NO_TERMS, Share, Shares, Terms


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """How it decides.

    Attributes:
        affinity_wait_s: how long jobs whose models a server has loaded may overtake the first job.
        in_turn_s: a job gets its place behind another one when ComfyUI has taken that, or after so long.
        takes_back: whether jobs are taken back.
    """

    affinity_wait_s: float = 10.0
    in_turn_s: float = 5.0
    takes_back: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """The job goes to the server now."""

    prompt_id: str
    server: str


@dataclass(frozen=True, slots=True)
class TakeBack:
    """The job waits on `server` behind another prompt, and `idle` could run it.

    If it can be taken out of the queue of `server`, call `Scheduler.taken_back`; otherwise `Scheduler.stays`.
    """

    prompt_id: str
    server: str
    idle: str


class Scheduler:
    """All waiting jobs and all servers. Its methods tell it what happens; `decide` says what to do.

    `shares` has each owner's share and use, `servers` what is on each server; callers may only ask them.
    """

    def __init__(self, options: SchedulerOptions = SchedulerOptions()) -> None:
        self._options, self._lines, self.servers = options, Lines(), Servers()
        self._tickets: dict[str, Ticket] = {}
        self.shares = Shares(self._lines.least_used)
        self._taking: dict[str, ServerPlaces] = {}
        # By the lane of the job for which it is cleared, as of the last decision.
        self._cleared: dict[Lane, ServerPlaces] = {}
        self._placings, self.paused = 0, False

    def pause(self, paused: bool) -> None:
        """While it is paused nothing is placed, and nothing taken back."""
        self.paused = paused

    # Servers

    def set_server(
        self, name: str, *, up: bool, drained: bool = False, others: int = 0, places: int | None = 2, many: bool = False
    ) -> None:
        """How a server is now.

        Args:
            up: whether it answers.
            drained: it gets no more prompts, and those that wait there behind another one are taken back.
            others: prompts on it that are not ours; they take places.
            places: for prompts, including the running one; None: any number.
            many: it stands for many, and is for what no other server could run at once: it costs by the job.
        """
        self.servers.named(name).set(up=up and not drained, answers=up, others=others, places=places, is_many=many)

    # Jobs

    def add(self, job: Waiting, terms: Terms = NO_TERMS) -> None:
        """The job waits from now on, wherever it was before."""
        self.left(job.prompt_id)
        self._lines.add(self._ticket(job, self.shares.of(job.owner, terms)))

    def occupy(self, job: Waiting, server: str, now: float, terms: Terms = NO_TERMS) -> None:
        """The job is on the server already. It counts as one that runs, until `found_waiting`."""
        self.left(job.prompt_id)
        ticket = self._ticket(job, self.shares.of(job.owner, terms))
        self._put(ticket, self.servers[server], now)
        ticket.accept()
        ticket.begin()

    def found_waiting(
        self, prompt_id: str, queued: float, loaders: frozenset[str], shape: Hashable, lane: Lane
    ) -> None:
        """A job that occupies a place waits in ComfyUI, as number `queued`: it may be taken back. See `Waiting`."""
        if (ticket := self._tickets.get(prompt_id)) is not None and ticket.server is not None:
            ticket.wait(queued, loaders, shape, lane)
            self.servers[ticket.server].sort_found()

    def knows(self, prompt_id: str) -> bool:
        """Whether the job waits or is on a server."""
        return prompt_id in self._tickets

    def server_of(self, prompt_id: str) -> str | None:
        """The job's server; None while it waits, or if it is unknown."""
        ticket = self._tickets.get(prompt_id)
        return None if ticket is None else ticket.server

    def accepted(self, prompt_id: str) -> None:
        """ComfyUI has the job in its queue."""
        if (ticket := self._tickets.get(prompt_id)) is not None:
            ticket.accept()

    def began(self, prompt_id: str) -> None:
        """ComfyUI runs the job: it is no longer taken back."""
        if (ticket := self._tickets.get(prompt_id)) is not None:
            ticket.begin()

    def left(self, prompt_id: str, seconds: float = 0.0) -> None:
        """The job has ended, or is no longer wanted. `seconds`: how long it was executed."""
        if (ticket := self._tickets.pop(prompt_id, None)) is None:
            return
        self._free(prompt_id)
        if ticket.server is None:
            self._lines.remove(ticket)
        else:
            self._take(ticket, ticket.server, seconds)
        self.shares.perhaps_idle(ticket.share)

    def set_lane(self, prompt_id: str, lane: Lane) -> None:
        """It has become known on which servers a job that waits, here or behind another prompt, can run."""
        ticket = self._tickets.get(prompt_id)
        if ticket is None or ticket.lane == lane:
            return
        if ticket.server is not None:
            ticket.runs_on(lane)
            return
        self._lines.remove(ticket)
        ticket.runs_on(lane)
        self._lines.add(ticket)

    def move(self, prompt_id: str, priority: int | None, turn: float | None) -> None:
        """A job that waits in a line has another place in the order; None: no change. See `Waiting`."""
        if (ticket := self._tickets.get(prompt_id)) is not None and ticket.server is None:
            self._lines.remove(ticket)
            ticket.move(priority, turn)
            self._lines.add(ticket)

    def shape_of(self, prompt_id: str) -> Hashable:
        """The source of a job's lane; None if it is unknown."""
        ticket = self._tickets.get(prompt_id)
        return None if ticket is None else ticket.shape

    def shapes(self) -> Iterator[tuple[str, Hashable, Lane]]:
        """Id, shape and lane of each waiting job, here or behind another prompt, that may be taken back."""
        tickets = [ticket for ticket in self._tickets.values() if not ticket.began]
        yield from ((ticket.prompt_id, ticket.shape, ticket.lane) for ticket in tickets)

    def taken_back(self, prompt_id: str, now: float) -> list[Place]:
        """The job has left its server; it goes to the server that kept a place for it, or waits again."""
        kept = self._free(prompt_id)
        ticket = self._tickets.get(prompt_id)
        if ticket is None or ticket.server is None:
            return []
        is_idle = kept is not None and not kept.is_busy and kept.is_open(now, self._options.in_turn_s)
        if kept is None or not is_idle or not self.servers.may_run(ticket.lane, kept.name):
            self._take(ticket, ticket.server, 0.0)
            self._lines.add(ticket)
            return []
        self.servers[ticket.server].take(ticket)
        self._placings += 1
        ticket.put(kept.name, now, self._placings)
        kept.put(ticket)
        return [Place(prompt_id, kept.name)]

    def stays(self, prompt_id: str) -> None:
        """The job could not be taken back: it runs, or has ended."""
        self._free(prompt_id)
        self.began(prompt_id)

    # Owners

    def set_terms(self, terms_of: Callable[[str | None], Terms]) -> None:
        """Each owner is on these terms from now on."""
        self.shares.set_terms(terms_of)

    # Deciding

    def decide(self, now: float) -> list[Place | TakeBack]:
        """The actions for now. They count as done."""
        decisions: list[Place | TakeBack] = []
        cleared: dict[Lane, ServerPlaces] = {}
        while not self.paused and (opened := self._open(now, cleared)):
            best = self._best_of(opened, cleared)
            head = self._lines.first(best)
            if head is None:
                decisions += filter(None, (self._take_back(one, None) for one in opened if not one.is_busy))
                break
            server = _first_for(head.loaders, best(head.lane))
            if head.lane.alone and server.is_busy:
                cleared[head.lane] = server
                continue
            # A job that waits behind a prompt elsewhere came before the head; but the server may be cleared for it.
            if not server.is_busy and (back := self._take_back(server, head.priority + head.lane.alone)) is not None:
                decisions.append(back)
                continue
            chosen = self._preferred(head, server, best, now)
            self._lines.remove(chosen)
            self._put(chosen, server, now)
            decisions.append(Place(chosen.prompt_id, server.name))
        self._cleared = cleared
        return decisions

    def place_at_once(self, job: Waiting, now: float, terms: Terms = NO_TERMS) -> str | None:
        """As `add` and `decide` for a new job, if no other job waits and it gets a place: the server.

        None if it gets none, or if there is more to decide: nothing has changed then. It takes a third of the time.
        """
        if self.paused or self._lines or job.lane.alone or job.prompt_id in self._tickets:
            return None
        if not (able := self._best(job.lane, self._open(now, {}))):
            return None
        server = _first_for(job.loaders, able)
        if not server.is_busy and self._waits_elsewhere(server, job.priority) is not None:
            return None
        if (share := self.shares.of(job.owner, terms)).account.is_full:
            self.shares.perhaps_idle(share)
            return None
        self._cleared = {}
        self._put(self._ticket(job, share), server, now)
        return server.name

    def next_look(self, now: float) -> float | None:
        """When to decide again even without an event; None if there is no such time."""
        servers = self.servers.values() if self.waiting else ()
        ends = [server.wait_ends(self._options.in_turn_s) for server in servers if server.up]
        return min([end for end in ends if end > now], default=None)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._lines)

    def standing(self) -> list[Standing]:
        """All jobs: those on servers in the order in which they came there, then the others about in turn."""
        return [*self.placed(), *self.in_turn()]

    def in_turn(self) -> Iterator[Standing]:
        """The waiting jobs, about in the order of their turns. Read the result before any other call."""
        return (ticket.standing for ticket in self._lines.in_turn(self.shares.mean_s))

    def placed(self) -> list[Standing]:
        """The jobs on servers, in the order in which they came there."""
        placed = [ticket for ticket in self._tickets.values() if ticket.server is not None]
        return [ticket.standing for ticket in sorted(placed, key=lambda ticket: ticket.placing)]

    def able(self, prompt_id: str) -> list[str]:
        """The servers that are up and may run a job that waits. One that stands for many is left out."""
        ticket = self._tickets.get(prompt_id)
        return self.servers.able(ANYWHERE if ticket is None else ticket.lane)

    def waits_for(self, prompt_id: str) -> list[str]:
        """Servers that are down, for which a job waits: all that may run it, or those that have its files."""
        ticket = self._tickets.get(prompt_id)
        if ticket is None or ticket.server is not None:
            return []
        return self.servers.away_for(ticket.lane)

    def has_other(self, prompt_id: str) -> bool:
        """Whether a server other than the job's own is up and may run it."""
        ticket = self._tickets.get(prompt_id)
        return ticket is not None and self.servers.is_other_up(ticket.lane, {ticket.server})

    def ahead_of(self, prompt_id: str) -> int | None:
        """About how many waiting jobs have their turn before this one; None if it does not wait."""
        ticket = self._tickets.get(prompt_id)
        waits = ticket is not None and ticket.server is None
        return self._lines.ahead_of(ticket, self.shares.mean_s) if ticket is not None and waits else None

    def _open(self, now: float, cleared: Mapping[Lane, ServerPlaces]) -> list[ServerPlaces]:
        shut, in_turn_s = cleared.values(), self._options.in_turn_s
        return [one for one in self.servers.values() if one not in shut and one.is_open(now, in_turn_s)]

    def _best_of(
        self, opened: Sequence[ServerPlaces], cleared: Mapping[Lane, ServerPlaces]
    ) -> Callable[[Lane], Sequence[ServerPlaces]]:
        """For each lane, those of these servers that its jobs prefer; none if they must wait.

        For jobs that go alone, these may be busy servers, one of which will be cleared.
        """
        known: dict[Lane, Sequence[ServerPlaces]] = dict.fromkeys(cleared, ())

        def best(lane: Lane) -> Sequence[ServerPlaces]:
            found = known.get(lane)
            if found is None:
                found = known[lane] = self._best(lane, opened)
            return found

        return best

    def _best(self, lane: Lane, opened: Sequence[ServerPlaces]) -> Sequence[ServerPlaces]:
        able = [server for server in opened if self.servers.may_run(lane, server.name)]
        if lane.avoid and self.servers.is_other_up(lane, lane.avoid):
            able = [server for server in able if server.name not in lane.avoid]
        if lane.alone and (before := self._cleared.get(lane)) in able and all(server.is_busy for server in able):
            return [before]
        if len(able) < 2:
            return able
        ranks = [server.rank(lane) for server in able]
        least = min(ranks)
        return [server for server, rank in zip(able, ranks, strict=True) if rank == least]

    def _preferred(
        self, head: Ticket, server: ServerPlaces, best: Callable[[Lane], Sequence[ServerPlaces]], now: float
    ) -> Ticket:
        """The job that the server is given: the head's, or one whose models it has loaded."""
        waited_s = 0.0 if head.passed_since is None else now - head.passed_since
        is_alike = not server.loaders or head.loaders == server.loaders
        if head.lane.alone or is_alike or waited_s >= self._options.affinity_wait_s:
            return head
        other = self._lines.first_like(head.priority, server.loaders, lambda lane: server in best(lane))
        if other is None:
            return head
        head.passed_over(now)
        return other

    def _take_back(self, idle: ServerPlaces, priority: int | None) -> TakeBack | None:
        """The job found by `_waits_elsewhere` should come here."""
        if (first := self._waits_elsewhere(idle, priority)) is None:
            return None
        idle.keep_for(first.prompt_id)
        self._taking[first.prompt_id] = idle
        return TakeBack(first.prompt_id, first.server or "", idle.name)

    def _waits_elsewhere(self, idle: ServerPlaces, priority: int | None) -> Ticket | None:
        """The first job that waits behind a prompt elsewhere, may run here, and has at least this priority."""
        if not self._options.takes_back or idle.is_many:
            return None
        found = [
            ticket
            for server in self.servers.values()
            if server is not idle and server.answers
            for ticket in server.waiting()
            if ticket.prompt_id not in self._taking
            and (priority is None or ticket.priority >= priority)
            and ticket.lane.may_move(server.name, idle.name)
        ]
        return min(found, key=lambda ticket: (-ticket.priority, ticket.placing), default=None)

    def _ticket(self, job: Waiting, share: Share) -> Ticket:
        ticket = self._tickets[job.prompt_id] = Ticket(
            job.prompt_id,
            share,
            number=job.number,
            priority=job.priority,
            turn=job.turn,
            loaders=NO_NAMES if job.lane.alone else job.loaders,
            shape=job.shape,
            lane=job.lane,
        )
        return ticket

    def _put(self, ticket: Ticket, server: ServerPlaces, now: float) -> None:
        self._placings += 1
        ticket.put(server.name, now, self._placings)
        ticket.charge(self.shares.placed(ticket.share))
        server.put(ticket)

    def _take(self, ticket: Ticket, server: str, seconds: float) -> None:
        self.servers[server].take(ticket)
        ticket.put(None)
        self.shares.left(ticket.share, ticket.charged, seconds)

    def _free(self, prompt_id: str) -> ServerPlaces | None:
        """The server that was kept for the job is open again."""
        if (kept := self._taking.pop(prompt_id, None)) is not None:
            kept.keep_for(None)
        return kept


def _first_for(loaders: frozenset[str], servers: Sequence[ServerPlaces]) -> ServerPlaces:
    """The server that has the models of a job, or otherwise the one with the least to do."""
    if len(servers) == 1:
        return servers[0]
    return min(servers, key=lambda server: (not loaders or server.loaders != loaders, *server.choice))
