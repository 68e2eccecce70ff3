"""Whether ComfyUI's prompt worker, the thread that runs its prompts, is alive behind HTTP 200.

Two signs say that it may be dead (docs/comfyui.md, trap 12). It is *stalled* when prompts wait and none is the running
one. It is *silent* when one is the running one and no event comes: a worker that dies in the middle of a prompt leaves
it there for ever. Silence is no proof: one node may take hours without a word, and the events of prompts that others
sent to ComfyUI do not reach us.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from comfyui.replies import QueueItem


@dataclass(frozen=True, slots=True)
class Silence:
    """The prompt that runs, and for how many seconds no event of any prompt has come."""

    prompt_id: str
    seconds: float

    def __str__(self) -> str:
        return f"ComfyUI has run prompt {self.prompt_id} for {self.seconds:.0f} s without any event"


class PromptWorker:
    """What is known of it. The watcher tells it what it hears, and looks at ComfyUI's queue when this says so.

    Args:
        stalled_after_s: without any sign for so long, look whether anything runs.
        silent_after_s: `is_silent` from then on.
        dead_after_s: `dead` from then on; 0: never.
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
        """Prompts were queued and none ran when the queue was last looked at."""

    @property
    def silence(self) -> Silence | None:
        """The prompt that was found running when nothing had been heard for a while; None when there is none."""
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
        """When to look although nothing waits: None for never, as long as no silence is to be ended."""
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
        """No prompt of ours waits: what passes meanwhile does not count towards `stalled`."""
        self._last_sign = self._clock()

    def forget(self) -> None:
        """ComfyUI was restarted."""
        self._running, self.stalled = None, False

    def look_due(self) -> bool:
        now = self._clock()
        quiet_since = max(self._last_event, self._last_look)
        return now - self._last_sign >= self._stalled_after_s or now - quiet_since >= self._look_every_s

    def looked(self, queue: Mapping[str, QueueItem]) -> None:
        """The queue, as it was when a look was due."""
        now = self._last_look = self._clock()
        running = next((item.prompt_id for item in queue.values() if item.running), None)
        if running is not None and running != self._running:
            self._seen_at = self._last_event if running == self._last_heard_of else now
        self._running = running
        if running is not None or not queue:
            self.stalled, self._last_sign = False, now
        elif now - self._last_sign >= self._stalled_after_s:
            self.stalled, self._last_sign = True, now
