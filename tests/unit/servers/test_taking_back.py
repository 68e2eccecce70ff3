"""Taking back: what is out of a queue moves only where its server surely did not run it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from comfyui.events import Event
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.taking_back import take_back
from comfyui.servers.watcher import Watch


class Nobody:
    followed = collects = False

    def publish(self, event: Event) -> None:
        """Nobody listens."""


class Emptied:
    """A server whose queue and history are empty once a prompt was deleted; perhaps because it was restarted meanwhile.

    Args:
        has: how it has the prompt before that.
    """

    def __init__(self, *, has: str = "pending", restarted: bool = False) -> None:
        self.watcher = SimpleNamespace(epoch=1)
        self.client = self
        self.deleted = False
        self._has, self._restarted = has, restarted

    async def delete_from_queue(self, *_ids: str) -> None:
        self.deleted = True
        self.watcher.epoch += self._restarted

    async def get_queue(self) -> dict[str, object]:
        is_there = self._has and not self.deleted
        return {"p": QueueItem(1, "p", self._has == "running", {}, {})} if is_there else {}

    async def get_history(self, _id: str) -> None:
        return None


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_prompt_moves_unless_its_server_may_have_run_and_forgotten_it(restarted: bool) -> None:
    watch = Watch("p", "ours", Nobody(), set())
    out = await take_back(cast("Backend", Emptied(restarted=restarted)), watch)
    assert out == (set() if restarted else {watch})
    # Its watch finds out whether it ran, and nobody else is said to have removed it.
    assert watch.perhaps_recalled is restarted
    assert watch.open


@pytest.mark.parametrize("has", ["running", ""])
async def test_a_prompt_that_its_server_runs_or_does_not_know_is_left_alone(has: str) -> None:
    """It may have run, and be forgotten, without an event that reached us."""
    watch, server = Watch("p", "ours", Nobody(), set()), Emptied(has=has)
    assert await take_back(cast("Backend", server), watch) == set()
    assert (server.deleted, watch.perhaps_recalled, watch.open) == (False, False, True)
