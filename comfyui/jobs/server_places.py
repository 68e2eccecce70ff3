"""Servers as the scheduler sees them: their jobs, their places, and which jobs they may run. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import takewhile

from comfyui.jobs.lines import NO_NAMES, Lane, Ticket

# A server with more places than one that is to have the next prompt at hand: so many jobs may have got places of which
# ComfyUI has not been heard yet.
_FEW, _PLACED_AHEAD = 2, 8


class ServerPlaces:
    """One server, and the jobs that it has from us, in the order of its queue as far as that is known."""

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self._index = index
        self.up = self.answers = self.is_many = False
        self._others = 0
        self._places: int | None = 2
        self._loaders: frozenset[str] = NO_NAMES
        self._jobs: dict[str, Ticket] = {}
        self._kept_for: str | None = None

    @property
    def loaders(self) -> frozenset[str]:
        """The files that the last job loaded; empty if unknown."""
        return NO_NAMES if self.is_many else self._loaders

    def set(self, *, up: bool, answers: bool, others: int, places: int | None, is_many: bool) -> None:
        self.up, self.answers, self._others, self._places = up, answers, others, places
        self.is_many = is_many

    @property
    def load(self) -> int:
        return len(self._jobs) + self._others

    @property
    def is_busy(self) -> bool:
        return self.load > 0 and not self.is_many

    def is_open(self, now: float, in_turn_s: float) -> bool:
        """Whether a job may go there now."""
        if not self.up or self._kept_for is not None or (self._places is not None and self.load >= self._places):
            return False
        return now >= self.wait_ends(in_turn_s)

    def wait_ends(self, in_turn_s: float) -> float:
        """When it is open whether or not ComfyUI has accepted what was sent."""
        ends = sorted(job.placed_at + in_turn_s for job in self._jobs.values() if not job.accepted)
        place = len(ends) - (_PLACED_AHEAD if self._places is not None and self._places > _FEW else 1)
        return ends[place] if place >= 0 else 0.0

    def sends_from(self, prompt_id: str, in_turn_s: float) -> float:
        """When a job of this server may be sent, even if ComfyUI has not accepted all jobs before it by then."""
        before = takewhile(lambda job: job.prompt_id != prompt_id, self._jobs.values())
        return max((job.placed_at + in_turn_s for job in before if not job.accepted), default=0.0)

    def next_sent(self, now: float, in_turn_s: float) -> Iterator[str]:
        """The first job that ComfyUI has not accepted, and the jobs behind it that need not wait for it any more."""
        for job in self._jobs.values():
            if not job.accepted:
                yield job.prompt_id
                if now < job.placed_at + in_turn_s:
                    return

    @property
    def choice(self) -> tuple[int, int]:
        return self.load, self._index

    def rank(self, lane: Lane) -> tuple[bool, ...]:
        """Jobs of this lane go to the servers with the lowest one."""
        return self.is_busy, self.is_many, self.name not in lane.yes, self.name not in lane.files_on

    def put(self, ticket: Ticket) -> None:
        self._jobs[ticket.prompt_id] = ticket
        self._loaders = ticket.loaders

    def take(self, ticket: Ticket) -> None:
        self._jobs.pop(ticket.prompt_id, None)

    def sort_found(self) -> None:
        """The jobs that were found in ComfyUI's queue get its order; the others keep their places."""
        found = [job for job in self._jobs.values() if job.was_found]
        # ComfyUI, too, sorts prompts that have one number by their ids.
        in_turn = iter(sorted(found, key=lambda job: (job.queued, job.prompt_id)))
        jobs = [next(in_turn) if job.was_found else job for job in self._jobs.values()]
        self._jobs = {job.prompt_id: job for job in jobs}

    def keep_for(self, prompt_id: str | None) -> None:
        """While this job is taken back from another server no other one goes here."""
        self._kept_for = prompt_id

    def waiting(self) -> Iterator[Ticket]:
        """Jobs behind another prompt, as far as is known."""
        if self.is_many:
            return
        before = self._others
        # Of the prompts from before a restart, those that run or are not found yet come first.
        for job in sorted(self._jobs.values(), key=lambda job: not job.began):
            if before and job.accepted and not job.began:
                yield job
            before += 1


class Servers(dict[str, ServerPlaces]):
    """All servers, by their names, in the order in which they were first named."""

    def named(self, name: str) -> ServerPlaces:
        """The server; a new one if it was not known."""
        found = self.get(name)
        if found is None:
            found = self[name] = ServerPlaces(name, len(self))
        return found

    def may_run(self, lane: Lane, name: str) -> bool:
        """Whether the job may be sent there now."""
        return self._is_able(lane, name) and self._gets_files(lane, name)

    def able(self, lane: Lane) -> list[str]:
        """The servers that are up and may run the job. One that stands for many is left out."""
        return [name for name, one in self.items() if one.up and not one.is_many and self.may_run(lane, name)]

    def is_other_up(self, lane: Lane, than: Container[str | None]) -> bool:
        """Whether a server is up that may run the job, and is not in `than`."""
        return any(one.up and name not in than and self.may_run(lane, name) for name, one in self.items())

    def away_for(self, lane: Lane) -> list[str]:
        """Servers that are down, for which a job waits: all that may run it, or those that have its files."""
        able = [server for name, server in self.items() if self._is_able(lane, name)]
        if any(server.up and self._gets_files(lane, server.name) for server in able):
            return []
        wanted = lane.files_on if any(server.up for server in able) else {server.name for server in able}
        return [name for name, server in self.items() if name in wanted and not server.up]

    def _is_able(self, lane: Lane, name: str) -> bool:
        """Whether the server is not known to be unable, or all are."""
        return name not in lane.no or lane.no.issuperset(self)

    def _gets_files(self, lane: Lane, name: str) -> bool:
        """Whether the files that the job reads are there, or on servers that answer."""
        return all(other == name or self[other].answers for other in lane.files_on & self.keys())
