"""`Etas`: how much longer jobs take, computed only when someone looks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from statistics import fmean

from comfyui.jobs.forecast import UNKNOWN, Eta, Forecast, OnServer
from comfyui.jobs.job import Job
from comfyui.jobs.lines import Standing
from comfyui.jobs.run_times import shape_of
from comfyui.jobs.runs import Runs
from comfyui.jobs.turns import Turns
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.workflows.needs import Needs, needs_of

# Jobs that wait, of which it is looked how long each takes.
_SAMPLE = 200
# Bytes of a request whose workflow is looked at in the event loop.
_SMALL = 256 * 1024


class EtasNow:
    """The state of one moment: it holds for one page, or one look."""

    def __init__(self, turns: Turns, forecast: Forecast) -> None:
        self._turns = turns
        self._forecast = forecast

    def of(self, prompt_id: str, ahead: int | None = None) -> Eta:
        """When a job that has not ended begins and ends.

        Args:
            ahead: how many waiting jobs have their turn before it, if the caller has them in order.
        """
        if (found := self._forecast.on_server(prompt_id)) is not None:
            return found
        scheduler = self._turns.scheduler
        if scheduler.paused:
            return UNKNOWN
        ahead = scheduler.ahead_of(prompt_id) if ahead is None else ahead
        if ahead is None:
            return UNKNOWN
        needs = self._turns.known_needs(prompt_id)
        expected_s = None if needs is None else self._turns.run_times.expected_s(shape_of(needs))
        return self._forecast.waiting(scheduler.able(prompt_id), ahead, expected_s)


class Etas:
    """Asks the queue and the running jobs; it keeps nothing.

    Attributes:
        times: how long prompts ran before; belongs to the queue.
    """

    def __init__(self, pool: BackendPool, turns: Turns, runs: Runs) -> None:
        self._pool = pool
        self._turns, self.times = turns, turns.run_times
        self._live = runs.live

    def now(self) -> EtasNow:
        """How it stands at this moment."""
        others = {one.name: one.watcher.others for one in self._pool.backends}
        return EtasNow(self._turns, Forecast(self._on_servers(), others, self._each_s()))

    def _on_servers(self) -> list[OnServer]:
        now = asyncio.get_running_loop().time()
        found = [self._on_server(one, now) for one in (*self._turns.scheduler.placed(), *self._past_the_queue())]
        # The running prompt is first on its server.
        return sorted((one for one in found if one is not None), key=lambda one: one.ran_s is None)

    def _past_the_queue(self) -> Iterator[Standing]:
        """Jobs that went to a server at once, where prompts wait in ComfyUI's own queue."""
        knows = self._turns.scheduler.knows
        for prompt_id, job in self._live.items():
            if job.backend is not None and not job.ended and not knows(prompt_id):
                yield Standing(prompt_id, job.owner, job.backend.name)

    def _on_server(self, one: Standing, now: float) -> OnServer | None:
        if one.server is None or not isinstance(self._pool.named(one.server), Backend):
            return None  # it is not known which of the many servers behind it is free
        job = self._live.get(one.prompt_id)
        ran_s = None if job is None or job.began_at is None else now - job.began_at
        return OnServer(one.prompt_id, one.server, self._expected_s(one.prompt_id, job), ran_s)

    def _expected_s(self, prompt_id: str, job: Job | None) -> float | None:
        times, needs = self.times, self._turns.known_needs(prompt_id)
        shape = times.looked_at(prompt_id) if needs is None else shape_of(needs)
        if shape is None and job is not None and (needs := _needs_in_hand(job)) is not None:
            times.look_at(prompt_id, needs)
            shape = shape_of(needs)
        return times.expected_s(shape)

    def _each_s(self) -> float | None:
        """How long a job takes that waits, in the mean over some of them."""
        times = self.times
        shapes = (shape_of(needs) for _, needs, _ in self._turns.scheduler.shapes() if isinstance(needs, Needs))
        known = [seconds for shape in islice(shapes, _SAMPLE) if (seconds := times.expected_s(shape)) is not None]
        return fmean(known) if known else times.mean_s


def _needs_in_hand(job: Job) -> Needs | None:
    """The needs of a job that is unknown to the queue. They are computed at once, and only for a small workflow."""
    if job.workflow is None or (job.request is not None and job.request.size > _SMALL):
        return None
    return needs_of(job.workflow)
