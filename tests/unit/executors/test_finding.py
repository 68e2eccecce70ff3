"""The search for a prompt that a server may already have, while servers are down or fail."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError, ComfyUIServerError
from comfyui.executors.assignment import Assignment
from comfyui.executors.finding import Finder
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool

FOUND = cast("QueueItem", object())
BROKEN = ComfyUIServerError("GET /history: ComfyUI answered HTTP 500", upstream_status=500)
DOWN = ComfyUIConnectionError("Connection refused")


@dataclass(eq=False)
class Server:
    """Answers each question with the next item of `says`, and repeats the last item."""

    says: list[QueueItem | ComfyUIError | None]
    ready: bool = True
    name: str = "gpu"
    asked: int = 0

    async def find(self, _prompt_id: str) -> QueueItem | None:
        said = self.says[min(self.asked, len(self.says) - 1)]
        self.asked += 1
        if isinstance(said, ComfyUIError):
            raise said
        return said


@dataclass
class Pool:
    """`comes_up` says whether a server comes up while the finder waits."""

    servers: list[Server]
    comes_up: bool = True
    waited_s: list[float] = field(default_factory=list)

    @property
    def ready_servers(self) -> list[Server]:
        return [server for server in self.servers if server.ready]

    def named(self, name: str) -> Server | None:
        return next((server for server in self.servers if server.name == name), None)

    def why_not_ready(self) -> str:
        return "none is up"

    async def wait_for_change(self, timeout_s: float) -> None:
        self.waited_s.append(timeout_s)
        if not self.comes_up:
            await asyncio.sleep(timeout_s)
        self.servers[0].ready = self.comes_up and len(self.waited_s) > 2


@dataclass
class Job:
    request: Any = "a request"
    stays: bool = False
    server_before: str | None = None
    prompt_id: str = "an id"


def finder(pool: Pool) -> Finder:
    return Finder(cast("BackendPool", pool), absent_patience_s=0.1)


async def found_for(pool: Pool, job: Job) -> Any:
    return await finder(pool).find_for(cast("Assignment", job))


async def test_a_call_waits_briefly_until_a_server_can_be_asked() -> None:
    pool = Pool([Server([DOWN, FOUND], ready=False)])
    assert await found_for(pool, Job()) == (pool.servers[0], FOUND)
    assert len(pool.waited_s) == 3
    assert max(pool.waited_s) <= 2


async def test_a_call_fails_with_the_reason_when_no_server_comes_up() -> None:
    pool = Pool([Server([BROKEN], ready=False), Server([DOWN], ready=False)], comes_up=False)
    with pytest.raises(ComfyUIConnectionError, match="none is up"):
        await found_for(pool, Job())


async def test_a_job_that_outlives_its_caller_waits_until_a_server_can_be_asked() -> None:
    pool = Pool([Server([DOWN, None], ready=False)])
    assert await found_for(pool, Job(stays=True)) == (None, None)
    assert pool.waited_s == [60.0] * 3


async def test_a_server_that_fails_once_is_asked_again_before_the_prompt_runs_elsewhere() -> None:
    having, other = Server([BROKEN, FOUND]), Server([None], name="other")
    assert await found_for(Pool([having, other]), Job()) == (having, FOUND)


async def test_a_failing_server_delays_a_prompt_only_briefly_if_others_answer() -> None:
    broken, other = Server([BROKEN]), Server([None], name="other")
    assert await found_for(Pool([broken, other]), Job()) == (None, None)
    assert broken.asked == 5
    with pytest.raises(ComfyUIServerError):
        await found_for(Pool([Server([BROKEN])]), Job())


async def test_a_server_is_asked_for_the_prompt_of_an_earlier_attempt_until_it_answers() -> None:
    server = Server([BROKEN, DOWN, FOUND])
    assert await finder(Pool([server])).left_over(cast("Backend", server), "an id") is FOUND
    gone = Server([DOWN], ready=False)
    with pytest.raises(ComfyUIConnectionError):
        await finder(Pool([gone])).left_over(cast("Backend", gone), "an id")
