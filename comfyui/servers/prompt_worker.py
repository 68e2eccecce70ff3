"""Whether ComfyUI's prompt worker, the thread that runs its prompts, is alive behind HTTP 200.

Two signs say that it may be dead (docs/comfyui.md, trap 12). It is *stalled* when prompts wait and none runs. It is
*silent* when one runs and no event comes: a worker that dies in the middle of a prompt leaves it running for ever.
Silence is no proof: one node may take hours without an event, and the events of other clients' prompts do not reach us.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from comfyui.replies import QueueItem


@dataclass(frozen=True, slots=True)
class Silence:
    """The prompt that runs, and the seconds since the last event of any prompt."""

    prompt_id: str
    seconds: float

    def __str__(self) -> str:
        return f"ComfyUI has run prompt {self.prompt_id} for {self.seconds:.0f} s without any event"


class PromptWorker:
    """What is known about the prompt worker. The watcher reports what it hears, and looks at ComfyUI's queue when this
    asks for it.

    Args:
        stalled_after_s: after this time without any sign, look whether a prompt runs.
        silent_after_s: `is_silent` after this time.
        dead_after_s: `dead` after this time; 0: never.
    """

    def __init__(
        self,
        *,
        stalled_after_s: float = 60.0,
        silent_after_s: float = 600.0,
        dead_after_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stalled_after_s = stalled_after_s
        self._silent_after_s = silent_after_s
        self._dead_after_s = dead_after_s or math.inf
        self._look_every_s = min(stalled_after_s, silent_after_s, self._dead_after_s)
        self._clock = clock
        self._last_sign = self._last_event = self._last_look = clock()
        self._last_heard_of: str | None = None
        self._running: str | None = None
        self._seen_at = 0.0
        self.stalled = False
        """Whether prompts were queued and none ran when the queue was last read."""

    @property
    def silence(self) -> Silence | None:
        """The prompt that was found running after a time without events; None if there is none."""
        if self._running is None:
            return None
        return Silence(self._running, self._clock() - max(self._seen_at, self._last_event))

    @property
    def is_silent(self) -> bool:
        return self._silent_for(self._silent_after_s)

    @property
    def dead(self) -> bool:
        return self._silent_for(self._dead_after_s)

    def _silent_for(self, seconds: float) -> bool:
        silence = self.silence
        return silence is not None and silence.seconds >= seconds

    @property
    def look_again_s(self) -> float | None:
        """When to look although nothing waits; None for never, unless a silence may be over."""
        return None if self._running is None else self._look_every_s

    def heard(self, prompt_id: str) -> None:
        """An event of this prompt came, or its end was found."""
        self._last_sign = self._last_event = self._clock()
        self._last_heard_of = prompt_id
        self._running = None
        self.stalled = False

    def emptied(self) -> None:
        """ComfyUI's queue is empty."""
        self._running = None

    def nothing_waits(self) -> None:
        """No prompt of ours waits: time without prompts does not count towards `stalled`."""
        self._last_sign = self._clock()

    def forget(self) -> None:
        """ComfyUI was restarted."""
        self._running, self.stalled = None, False

    def look_due(self) -> bool:
        now = self._clock()
        quiet_since = max(self._last_event, self._last_look)
        return now - self._last_sign >= self._stalled_after_s or now - quiet_since >= self._look_every_s

    def looked(self, queue: Mapping[str, QueueItem]) -> None:
        """Takes in the queue, as it was when a look was due."""
        now = self._last_look = self._clock()
        running = next((item.prompt_id for item in queue.values() if item.running), None)
        if running is not None and running != self._running:
            self._seen_at = self._last_event if running == self._last_heard_of else now
        self._running = running
        if running is not None or not queue:
            self.stalled, self._last_sign = False, now
        elif now - self._last_sign >= self._stalled_after_s:
            self.stalled, self._last_sign = True, now
