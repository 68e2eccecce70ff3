"""`Clearing`: with ComfyUI's own queue, a prompt that may end ComfyUI is sent when nothing else is there."""

from __future__ import annotations

import asyncio

from comfyui.exceptions import ComfyUIError
from comfyui.executors.assignment import Assignment
from comfyui.servers.backend import Backend
from comfyui.tasks import happens_within

# Prompts of others end without a word to us.
_LOOK_EVERY_S = 1.0
# A prompt that takes longer to be sent, for its files, holds up others no longer.
_SENT_WITHIN_S = 5.0


class Clearing:
    """All prompts of ours pass `admit` before they are sent. While one waits to be alone, those that come wait too.

    They come after it in any case, so that this costs them nothing but the moment of its submission. Prompts of others,
    which are relayed, cannot be held up: those that come while it waits are not waited for.
    """

    def __init__(self) -> None:
        self._there: set[str] = set()
        self._holder: str | None = None
        self._free = asyncio.Event()
        self._fewer = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def admit(self, job: Assignment, backend: Backend) -> None:
        """Returns when the prompt may be sent to that server. It counts as being there until `left`.

        A place from before is given up.
        """
        self.left(job.prompt_id)
        while self._holder is not None:
            await self._free.wait()
        if job.alone:
            self._hold(job.prompt_id)
            await self._until_empty(backend)
            self._timer = asyncio.get_running_loop().call_later(_SENT_WITHIN_S, self._release)
        self._there.add(job.prompt_id)

    def accepted(self, prompt_id: str) -> None:
        """ComfyUI has the prompt in its queue."""
        if self._holder == prompt_id:
            self._release()

    def left(self, prompt_id: str) -> None:
        """The prompt is on no server any more, and is not about to be sent to one."""
        self._there.discard(prompt_id)
        self._fewer.set()
        self.accepted(prompt_id)

    async def _until_empty(self, backend: Backend) -> None:
        """Waits until all present prompts have left it."""
        before: set[str] | None = None
        while True:
            self._fewer.clear()
            try:
                queue = set(await backend.client.get_queue())
            except ComfyUIError:
                return  # it has no prompts, or the submission will show it
            before = queue if before is None else before
            if not self._there and before.isdisjoint(queue):
                return
            await happens_within(self._fewer, _LOOK_EVERY_S)

    def _hold(self, prompt_id: str) -> None:
        self._holder = prompt_id
        self._free.clear()

    def _release(self) -> None:
        self._holder = None
        self._free.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
