"""Forecasts when a job begins and ends: from the prompts on the servers, the jobs before it, and their duration. Pure.

A forecast is no promise: other jobs may come first, and workflows differ in things that their shape does not show.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

# If a job has run this many times as long as others, its end is unknown.
_OVERDUE = 1.5


class Eta(NamedTuple):
    """Seconds from now; None if unknown. `begins_s` is 0 for a running job."""

    begins_s: float | None
    ends_s: float | None


UNKNOWN = Eta(None, None)


class OnServer(NamedTuple):
    """A job on a server. `expected_s`: its whole duration; `ran_s`: how long it has run; None: not begun."""

    prompt_id: str
    server: str
    expected_s: float | None
    ran_s: float | None


def begins_in(free_in: Collection[float], ahead: int, each_s: float) -> float:
    """When the job begins that has `ahead` others before it, each of which takes `each_s`.

    Args:
        free_in: seconds until each server that can run it has nothing more to do; at least one.

    The servers share the work: the ones that are free sooner do more of it.
    """
    work = ahead * each_s
    taken = 0.0
    order = sorted(free_in)
    for count, free in enumerate(order, 1):
        taken += free
        level = (work + taken) / count
        if count == len(order) or level <= order[count]:
            break
    return max(level, order[0])


class Forecast:
    """How it stands at one moment.

    Args:
        jobs: on each server in the order in which it runs them.
        others: prompts on each server that are none of ours.
        each_s: the duration of a job of unknown shape; None if no duration is known.
    """

    def __init__(self, jobs: Iterable[OnServer], others: Mapping[str, int], each_s: float | None) -> None:
        self._each_s = each_s
        self._free_in: dict[str, float | None] = {}
        self._on_servers: dict[str, Eta] = {}
        for server, count in others.items():
            self._free_in[server] = 0.0 if not count else None if each_s is None else count * each_s
        for job in jobs:
            self._add(job)

    def _add(self, job: OnServer) -> None:
        expected_s = self._each_s if job.expected_s is None else job.expected_s
        begins_s = self._free_in.get(job.server, 0.0)
        if job.ran_s is None:
            ends_s = _sum(begins_s, job.expected_s)
            self._free_in[job.server] = _sum(begins_s, expected_s)
            self._on_servers[job.prompt_id] = Eta(begins_s, ends_s)
            return
        self._on_servers[job.prompt_id] = Eta(0.0, _left_s(job.expected_s, job.ran_s))
        self._free_in[job.server] = _sum(begins_s, _left_s(expected_s, job.ran_s))

    def on_server(self, prompt_id: str) -> Eta | None:
        """The forecast for a job on a server; None for another job."""
        return self._on_servers.get(prompt_id)

    def waiting(self, servers: Sequence[str], ahead: int, expected_s: float | None) -> Eta:
        """The forecast for a job that waits, and can run on these servers.

        Args:
            ahead: jobs that wait and have their turn before it.
            expected_s: how long it takes itself.
        """
        free_in = [free for name in servers if (free := self._free_in.get(name, 0.0)) is not None]
        if not free_in or (ahead and self._each_s is None):
            return UNKNOWN
        begins_s = begins_in(free_in, ahead, self._each_s or 0.0)
        return Eta(begins_s, _sum(begins_s, expected_s))


def _left_s(expected_s: float | None, ran_s: float) -> float | None:
    if expected_s is None or ran_s > _OVERDUE * expected_s:
        return None
    return max(0.0, expected_s - ran_s)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
