"""A prompt that was removed from a queue moves only if its server certainly did not run it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from comfyui.events import Event
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.taking_back import take_back
from comfyui.servers.watcher import Watch


class NoListener:
    followed = collects = False

    def publish(self, event: Event) -> None:
        """Ignores the event."""


class EmptiedServer:
    """A server whose queue and history are empty after a prompt was deleted, perhaps because it was restarted.

    Args:
        has: the state of the prompt there before the deletion; "" if the server does not know it.
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
async def test_a_prompt_moves_unless_a_restarted_server_may_have_run_it(restarted: bool) -> None:
    watch = Watch("p", "ours", NoListener(), set())
    out = await take_back(cast("Backend", EmptiedServer(restarted=restarted)), watch)
    assert out == (set() if restarted else {watch})
    # After a restart the watch finds out whether the prompt ran. It does not report a removal by someone else.
    assert watch.perhaps_recalled is restarted
    assert watch.open


@pytest.mark.parametrize("has", ["running", ""])
async def test_a_prompt_that_is_running_or_unknown_is_left_alone(has: str) -> None:
    """The prompt may have run and been forgotten without an event that reached the gateway."""
    watch, server = Watch("p", "ours", NoListener(), set()), EmptiedServer(has=has)
    assert await take_back(cast("Backend", server), watch) == set()
    assert (server.deleted, watch.perhaps_recalled, watch.open) == (False, False, True)
