"""`NodeDefinitions`: the node definitions of one ComfyUI server, requested once for all callers, and kept."""

from __future__ import annotations

import asyncio
import time

from comfyui.client import ComfyUIClient
from comfyui.offload import in_thread
from comfyui.replies import JSON
from comfyui.tasks import SideTasks


class NodeDefinitions:
    """`close` ends the requests that are under way. `within_s`: how long a choice of servers waits for an answer."""

    def __init__(self, client: ComfyUIClient, *, within_s: float) -> None:
        self._client = client
        self._within_s = within_s
        self._known: JSON | None = None
        self.last: JSON | None = None
        """The last answer, even if it is out of date."""
        self._known_at = 0.0
        self._asking: asyncio.Task[JSON] | None = None
        self._asked_at = 0.0
        # Those that wait for it get its error; there may be none left.
        self._tasks = SideTasks(lambda _task: None)

    async def get(self, max_age_s: float) -> JSON:
        if self._known is not None and time.monotonic() - self._known_at <= max_age_s:
            return self._known
        if self._asking is None:
            self._asking = self._tasks.start(self._ask(), f"definitions {self._client.name}")
            self._asked_at = time.monotonic()
        # It goes on without a caller that gives up: others want the answer, and later calls too.
        return await asyncio.shield(self._asking)

    def patience_s(self) -> float:
        """How long to wait for an answer on which a choice of servers depends."""
        waited_s = time.monotonic() - self._asked_at if self._asking is not None else 0.0
        return max(0.0, self._within_s - waited_s)

    def forget(self) -> None:
        """Forgets the known answer, and the one that is under way."""
        self._known = self._asking = None

    async def close(self) -> None:
        await self._tasks.close()

    async def _ask(self) -> JSON:
        try:
            answer = await self._client.object_info()
            if self.last is not None and await in_thread(_are_equal, answer, self.last):
                answer = self.last  # the result is valid
            if self._asking is asyncio.current_task():
                self._known, self._known_at = answer, time.monotonic()
                self.last = answer
            return answer
        finally:
            if self._asking is asyncio.current_task():
                self._asking = None


def _are_equal(answer: JSON, other: JSON) -> bool:
    """Compares in many short steps: see `comfyui.offload`."""
    return answer.keys() == other.keys() and all(answer[name] == other[name] for name in answer)
