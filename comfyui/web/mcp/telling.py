"""Progress of a job, for a client that asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from comfyui.events import Event, QueuePosition
from comfyui.tasks import end_tasks
from comfyui.workflows.progress import NodeProgress, ProgressTracker

# Between two messages: a sampler makes more steps than anyone wants to be told.
_PAUSE_S = 0.2
# The protocol wants each figure to be above the one before, also where only the words are new.
_A_BIT = 1e-6


class Session(Protocol):
    """The part of the package's session that is used here."""

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Tell the client."""


class Telling:
    """A listener of one job. A client that reads slowly is told less, and holds nothing up."""

    def __init__(self, workflow: Callable[[], Mapping[str, Any] | None]) -> None:
        self._tracker = ProgressTracker(workflow)
        self._overall = 0.0
        self._message = ""
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, QueuePosition):
            if not self._tracker.started:
                self._say(f"the job waits; {event.position} jobs are before it")
            return
        for step in self._tracker.observe(event):
            if isinstance(step, NodeProgress):
                self._overall = max(self._overall, step.overall)
                self._news.set()
            else:
                self._say(step.title)

    def _say(self, message: str) -> None:
        self._message = message
        self._news.set()

    @asynccontextmanager
    async def to(self, session: Session) -> AsyncIterator[None]:
        """Sends news within the block."""
        telling = asyncio.create_task(self._tell(session), name="progress of a tool")
        try:
            yield
        finally:
            await end_tasks(telling)

    async def _tell(self, session: Session) -> None:
        told = 0.0
        while True:
            await self._news.wait()
            self._news.clear()
            told = max(self._overall, told + _A_BIT)
            await session.report_progress(told, 1.0, self._message or None)
            await asyncio.sleep(_PAUSE_S)
