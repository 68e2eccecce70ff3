"""`Lines`: the jobs that wait, so kept that the first one that a server can run is found without a look at the others.

The order is: the highest priority; then the owner who has used the least, by weight; then the lowest number. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from typing import NamedTuple

from comfyui.jobs.shares import Share

NO_NAMES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Lane:
    """The names of the servers that can run a job. For each server, jobs with equal lanes are alike.

    Attributes:
        yes: servers that have everything the job needs.
        no: servers that lack something. Servers in neither are unknown.
        avoid: servers where the job has just failed: used only if no other server is up that may run it.
        alone: it goes only to a server without other prompts, because it may end the server.
        files_on: servers that have files which the job reads, and that did not answer when these were to be fetched.
            While one of them is down, the job can only go to that one.
    """

    yes: frozenset[str] = NO_NAMES
    no: frozenset[str] = NO_NAMES
    avoid: frozenset[str] = NO_NAMES
    alone: bool = False
    files_on: frozenset[str] = NO_NAMES

    def may_move(self, there: str, here: str) -> bool:
        """Whether a job that the server `there` has accepted can run `here`, as far as both are known."""
        return here not in self.no | self.avoid and (here in self.yes or there not in self.yes)


ANYWHERE = Lane()
Order = tuple[float, int]
"""The place that the job's caller wants among its own jobs, and then the order of submission."""


class Waiting(NamedTuple):
    """A job that is to get a place.

    Attributes:
        number: order of the submission; no two jobs have the same.
        owner: whose turn it takes.
        turn: its place among the jobs of its owner, the lowest first; None: its number.
        loaders: the model files that it loads.
        shape: what `lane` was found from; given back by `Scheduler.shapes`.
    """

    prompt_id: str
    number: int
    owner: str | None = None
    priority: int = 0
    turn: float | None = None
    loaders: frozenset[str] = NO_NAMES
    shape: Hashable = None
    lane: Lane = ANYWHERE

    def is_before(self, other: Waiting) -> bool:
        """Whether it is first by priority and turn, as if both had one owner."""
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, float, int]:
        return -self.priority, self.number if self.turn is None else self.turn, self.number

    def moved(self, priority: int | None, turn: float | None) -> Waiting:
        """The job at another place in the order; None: no change."""
        return self._replace(
            priority=self.priority if priority is None else priority, turn=self.turn if turn is None else turn
        )


class Standing(NamedTuple):
    """The place of an unfinished job. `server`: None if it waits; `accepted`: ComfyUI has it in its queue."""

    prompt_id: str
    owner: str | None
    server: str | None = None
    accepted: bool = False


class Ticket:
    """One job: in a line, or on a server.

    Attributes:
        number: order of the submission; no two jobs have the same.
        order: the place among the jobs of its owner.
        loaders: the model files that it loads.
        shape: the source of `lane`; kept for the code that computes lanes.
        passed_since: when the job was first passed over at the head of the line.
        server: the job's server; None while it is in a line.
        placed_at, placing: when it got there, and how many jobs had got a place by then.
        charged: what its owner's use has in it of the job, while it is on a server.
        accepted: the server has it in its queue.
        queued: its number in ComfyUI's queue, if it was found there; the prompts in a queue run in this order.
        began: it runs, or has ended there.
    """

    __slots__ = (
        "accepted", "began", "charged", "lane", "loaders", "number", "order", "passed_since", "placed_at",
        "placing", "priority", "prompt_id", "queued", "server", "shape", "share",
    )  # fmt: skip

    def __init__(
        self,
        prompt_id: str,
        share: Share,
        *,
        number: int,
        priority: int,
        turn: float | None,
        loaders: frozenset[str],
        shape: Hashable,
        lane: Lane,
    ) -> None:
        self.prompt_id = prompt_id
        self.share = share
        self.number = number
        self.priority = priority
        self.order: Order = (number if turn is None else turn, number)
        self.loaders = loaders
        self.shape = shape
        self.lane = lane
        self.passed_since: float | None = None
        self.server: str | None = None
        self.charged = self.placed_at = 0.0
        self.queued = math.inf
        self.placing = 0
        self.accepted = self.began = False

    @property
    def standing(self) -> Standing:
        return Standing(self.prompt_id, self.share.name, self.server, self.accepted)

    @property
    def was_found(self) -> bool:
        return self.queued < math.inf

    def wait(self, queued: float, loaders: frozenset[str], shape: Hashable, lane: Lane) -> None:
        """It was found on the server, and has not begun. Must not be in a line."""
        self.queued, self.loaders, self.shape, self.lane = queued, loaders, shape, lane
        self.began = False

    def move(self, priority: int | None, turn: float | None) -> None:
        """It has another place in the order; None: no change. Must not be in a line."""
        self.priority = self.priority if priority is None else priority
        self.order = self.order if turn is None else (turn, self.number)
        self.passed_since = None

    def runs_on(self, lane: Lane) -> None:
        """Must not be in a line."""
        self.lane = lane

    def passed_over(self, now: float) -> None:
        if self.passed_since is None:
            self.passed_since = now

    def put(self, server: str | None, now: float = 0.0, placing: int = 0) -> None:
        """It goes to the server; None: it goes back into a line."""
        self.server, self.placed_at, self.placing = server, now, placing
        self.accepted = self.began = False
        self.queued, self.passed_since = math.inf, None

    def charge(self, charged: float) -> None:
        self.charged = charged

    def accept(self) -> None:
        self.accepted = True

    def begin(self) -> None:
        self.began = True


# Used, number of the head, number of the owner: of an owner in a line.
_Rank = tuple[float, int, int]


class _Line:
    """Jobs of one priority that are alike, by owner."""

    __slots__ = ("_jobs", "_ranks", "_shares")

    def __init__(self) -> None:
        self._jobs: dict[Share, list[tuple[Order, Ticket]]] = {}
        self._ranks: dict[Share, _Rank] = {}
        self._shares: list[tuple[_Rank, Share]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, ticket: Ticket) -> None:
        insort(self._jobs.setdefault(ticket.share, []), (ticket.order, ticket))
        ticket.share.join(self)
        self.rank(ticket.share)

    def remove(self, ticket: Ticket) -> None:
        share = ticket.share
        jobs = self._jobs[share]
        del jobs[bisect_left(jobs, (ticket.order,))]
        if not jobs:
            del self._jobs[share]
            share.leave(self)
        self.rank(share)

    def rank(self, share: Share) -> None:
        """Puts the owner in its present place."""
        if (rank := self._ranks.pop(share, None)) is not None:
            del self._shares[bisect_left(self._shares, (rank,))]
        jobs = self._jobs.get(share)
        if jobs and not share.account.is_full:
            self._ranks[share] = rank = (share.used, jobs[0][1].number, share.number)
            insort(self._shares, (rank, share))

    @property
    def head(self) -> tuple[_Rank, Ticket] | None:
        """The first job whose owner is not at a limit."""
        if not self._shares:
            return None
        rank, share = self._shares[0]
        return rank, self._jobs[share][0][1]

    def before(self, share: Share, order: Order) -> int:
        """How many jobs of the owner are before that place."""
        return bisect_left(self._jobs.get(share, ()), (order,))

    def by_share(self) -> Iterable[tuple[Share, list[tuple[Order, Ticket]]]]:
        """The jobs of each owner, with the place of each among them."""
        return self._jobs.items()


class _Level:
    """All jobs of one priority; those that load the same files also stand in their own lines."""

    __slots__ = ("alike", "counts", "lines")

    def __init__(self) -> None:
        self.counts: dict[Share, int] = {}
        self.lines: dict[Lane, _Line] = {}
        self.alike: dict[frozenset[str], dict[Lane, _Line]] = {}


class Lines:
    """All jobs that wait."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._priorities: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ticket: Ticket) -> None:
        level = self._levels.get(ticket.priority)
        if level is None:
            level = self._levels[ticket.priority] = _Level()
            insort(self._priorities, ticket.priority)
        share = ticket.share
        level.counts[share] = level.counts.get(share, 0) + 1
        share.count(waiting=1)
        self._count += 1
        level.lines.setdefault(ticket.lane, _Line()).add(ticket)
        if ticket.loaders:
            level.alike.setdefault(ticket.loaders, {}).setdefault(ticket.lane, _Line()).add(ticket)

    def remove(self, ticket: Ticket) -> None:
        level = self._levels[ticket.priority]
        share = ticket.share
        share.count(waiting=-1)
        self._count -= 1
        level.counts[share] -= 1
        if not level.counts[share]:
            del level.counts[share]
        _take_from(level.lines, ticket)
        if ticket.loaders:
            _take_from(level.alike[ticket.loaders], ticket)
            if not level.alike[ticket.loaders]:
                del level.alike[ticket.loaders]
        if not level.counts:
            del self._levels[ticket.priority]
            del self._priorities[bisect_left(self._priorities, ticket.priority)]

    def first(self, fits: Callable[[Lane], object]) -> Ticket | None:
        """The job whose turn it is, among those with a lane that fits."""
        for priority in reversed(self._priorities):
            if (found := _first_of(self._levels[priority].lines, fits)) is not None:
                return found
        return None

    def first_like(self, priority: int, loaders: frozenset[str], fits: Callable[[Lane], object]) -> Ticket | None:
        """As `first`, among the jobs of this priority that load exactly these files."""
        level = self._levels.get(priority)
        return None if level is None else _first_of(level.alike.get(loaders, {}), fits)

    def least_used(self) -> float | None:
        """The least use among the owners that may have more now; None if there is none."""
        lines = [line for level in self._levels.values() for line in level.lines.values()]
        return min([head[0][0] for line in lines if (head := line.head) is not None], default=None)

    def in_turn(self, mean_s: float) -> Iterator[Ticket]:
        """All jobs, about in the order in which they have their turn. `mean_s` as for `ahead_of`.

        The order that results if each job takes as long as its owner's last ones did.
        """
        used: dict[Share, float] = {}
        for priority in reversed(self._priorities):
            by_share: dict[Share, list[tuple[Order, Ticket]]] = {}
            for line in self._levels[priority].lines.values():
                for share, jobs in line.by_share():
                    by_share[share] = by_share[share] + jobs if share in by_share else jobs
            turns = []
            for share, jobs in by_share.items():
                before, took = used.get(share, share.used), (share.mean_s or mean_s) / share.weight
                used[share] = before + len(jobs) * took
                turns.append(_turns(share.number, sorted(jobs, key=itemgetter(0)), before, took))
            yield from (ticket for _, ticket in merge(*turns))

    def ahead_of(self, ticket: Ticket, mean_s: float) -> int:
        """About how many jobs have their turn before it. `mean_s`: how long one takes whose owner had none yet."""
        level = self._levels[ticket.priority]
        share = ticket.share
        own = sum(line.before(share, ticket.order) for line in level.lines.values())
        turn = share.used + own * (share.mean_s or mean_s) / share.weight
        ahead = own
        for other, count in level.counts.items():
            if other is not share:
                jobs = math.ceil((turn - other.used) * other.weight / (other.mean_s or mean_s))
                ahead += min(count, max(0, jobs))
        for priority in self._priorities[bisect_left(self._priorities, ticket.priority + 1) :]:
            ahead += sum(self._levels[priority].counts.values())
        return ahead


def _turns(owner: int, jobs: list[tuple[Order, Ticket]], used: float, took: float) -> Iterator[tuple[_Rank, Ticket]]:
    """The jobs of one owner, each with its rank by then; each one takes `took`."""
    for place, (_, ticket) in enumerate(jobs):
        yield (used + place * took, ticket.number, owner), ticket


def _take_from(lines: dict[Lane, _Line], ticket: Ticket) -> None:
    line = lines[ticket.lane]
    line.remove(ticket)
    if not line:
        del lines[ticket.lane]


def _first_of(lines: dict[Lane, _Line], fits: Callable[[Lane], object]) -> Ticket | None:
    heads = [head for lane, line in lines.items() if (head := line.head) is not None and fits(lane)]
    if len(heads) < 2:
        return heads[0][1] if heads else None
    _, first = min(heads, key=lambda head: head[0])
    # The owner's turn is decided; which of its jobs that is, its own order says.
    return min((ticket for _, ticket in heads if ticket.share is first.share), key=lambda ticket: ticket.order)
