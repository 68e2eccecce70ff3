"""How many prompts ComfyUI runs before each of ours, computed from the watcher's events without any request.

ComfyUI tells how many prompts are left in all; we know which of them are ours, and in which order. Prompts of others
that came after ours look like those that came before, so a position is at first the largest possible one; if all
prompts are ours, it is exact. Each prompt that leaves the queue then lowers it by one. A position is never lower than
the number of our own prompts before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from comfyui.events import QueuePosition

# ComfyUI's broadcast about a submission and its reply come in any order, and it broadcasts often.
_SETTLE_S = 0.1


class Waiting(Protocol):
    """One of our prompts that ComfyUI has accepted."""

    prompt_id: str
    place: Place

    @property
    def followed(self) -> bool: ...

    def tell(self, event: QueuePosition) -> None: ...


class Place:
    """What is known about one prompt's place; ``left`` is how many prompts had left ComfyUI's queue at that time."""

    __slots__ = ("left", "position", "told")

    def __init__(self) -> None:
        self.position: int | None = None
        self.left = 0
        self.told: int | None = None


class QueuePositions:
    """The positions on one ComfyUI server. `waiting` gives our prompts in the order in which ComfyUI runs them."""

    def __init__(self, waiting: Callable[[], Sequence[Waiting]]) -> None:
        self._waiting = waiting
        self._remaining = 0
        self._left = 0
        self._due: asyncio.TimerHandle | None = None

    def heard(self, remaining: int) -> None:
        """ComfyUI told how many prompts are pending or running."""
        self._left += max(0, self._remaining - remaining)
        self._remaining = remaining
        self.changed()

    def changed(self) -> None:
        """Counts again and tells the followers, in a moment and once for all changes until then."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_SETTLE_S, self._tell)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()

    def _tell(self) -> None:
        self._due = None
        ours = self._waiting()
        others = max(0, self._remaining - len(ours))
        for index, waiting in enumerate(ours):
            place = waiting.place
            position = index + others
            if place.position is not None:
                position = max(index, min(position, place.position - (self._left - place.left)))
            place.position, place.left = position, self._left
            if position != place.told and waiting.followed:
                place.told = position
                waiting.tell(QueuePosition(waiting.prompt_id, position))
