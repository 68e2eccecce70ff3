"""`Audience`: consoles that see the same, and what each of them is still to be told.

Each thing that a console is told has the number of its last change, and a console has the number up to which it was
told. So it gets all that has changed since, in its newest form: one that reads slowly misses what has passed, and
nothing ever waits for it. Consoles that see the same share the bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator

from comfyui import jsonio
from comfyui.web.console.now_view import NowParts, NowView
from comfyui.web.console.running_jobs import RunningJobs
from comfyui.web.console.viewer import Visitor

_ENDS_KEPT = 200
Wants = frozenset[str]
WANTS: Wants = frozenset({"servers", "queue", "progress", "previews", "ended", "changes"})
"""The kinds of news that a page can ask for: HTML of the cards and of the queue, the progress of jobs, their previews,
the end of a job, and a change of the queue."""
ALIVE = b"event: alive\ndata: 1\n\n"


class Changes:
    """Counts changes. `number`: of the last one."""

    def __init__(self) -> None:
        self.number = 1

    def next(self) -> int:
        """The number of a new change."""
        self.number += 1
        return self.number


class Audience:
    """All consoles that see the same.

    Args:
        job: the one job that they are told of; None: of all that the visitor sees.
    """

    def __init__(self, visitor: Visitor, job: str | None, running: RunningJobs, changes: Changes) -> None:
        self.visitor = visitor
        self.job = job
        self.consoles: set[Console] = set()
        self._parts: NowParts | None = None
        self._running = running
        self._changes = changes
        self._told: dict[str, tuple[int, bytes]] = {}
        self._ends: deque[tuple[int, bytes]] = deque(maxlen=_ENDS_KEPT)
        self._made: tuple[int, dict[tuple[int, Wants], bytes]] = (0, {})

    @property
    def wants(self) -> Wants:
        """The kinds of news that at least one of the consoles wants."""
        return frozenset().union(*(console.wants for console in self.consoles))

    def follows(self, prompt_id: str, owner: str | None) -> bool:
        """Whether they are told of the job."""
        return self.job in {None, prompt_id} and self.visitor.sees(owner)

    def tell(self, kind: str, message: bytes) -> None:
        """Sets the message of this kind that the consoles are sent from now on."""
        self._told[kind] = self._changes.next(), message

    def show(self, parts: NowParts, view: NowView) -> None:
        """Sets what the consoles see now, and writes the parts that have changed."""
        before, self._parts = self._parts, parts
        wants = self.wants
        if "servers" in wants and ("servers" not in self._told or before is None or before.tops != parts.tops):
            self.tell("servers", _html("servers", view.servers_html(parts, self.visitor)))
        if "queue" in wants and ("queue" not in self._told or before is None or before.rows != parts.rows):
            self.tell("queue", _html("queue", view.queue_html(parts, self.visitor)))

    def ended(self, message: bytes) -> None:
        """A job has ended."""
        self._ends.append((self._changes.next(), message))

    def wake(self) -> None:
        """There may be something that the consoles were not told."""
        for console in self.consoles:
            console.look()

    def news(self, told: int, wants: Wants) -> bytes:
        """All that has changed since the change of number `told`, for consoles that want this; 0: all that is now."""
        number, made = self._made
        if number != self._changes.number:
            made = {}
            self._made = self._changes.number, made
        if (told, wants) not in made:
            made[told, wants] = b"".join(self._news(told, wants))
        return made[told, wants]

    def _news(self, told: int, wants: Wants) -> Iterator[bytes]:
        for kind, (number, message) in self._told.items():
            if kind in wants and number > told:
                yield message
        followed = [one for one in self._running if self.follows(one.prompt_id, one.owner)]
        if "progress" in wants and (jobs := {one.prompt_id: one.told() for one in followed if one.changed > told}):
            yield b"event: progress\ndata: " + jsonio.dumps(jobs) + b"\n\n"
        if "previews" in wants:
            yield from (one.picture for one in followed if one.pictured > told)
        if "ended" in wants and told:
            yield from (message for number, message in self._ends if number > told)


class Console:
    """One open feed."""

    def __init__(self, audience: Audience, wants: Wants, changes: Changes) -> None:
        self.audience = audience
        self.wants = wants
        self._changes = changes
        self._told = 0
        self._news = asyncio.Event()
        self._waits = self._is_over = self._is_alive = False

    def look(self) -> None:
        """There may be something to tell. One that still sends will see for itself."""
        if not self._waits:
            return
        if self.audience.news(self._told, self.wants):
            self._news.set()
        else:
            self._told = self._changes.number

    def show_life(self) -> None:
        """Sends a sign of life, if there is no other news."""
        self._is_alive = True
        self._news.set()

    def end(self) -> None:
        """Ends the feed: the console is sent nothing more."""
        self._is_over = True
        self._news.set()

    async def messages(self, first: bytes) -> AsyncGenerator[bytes, None]:
        """The messages for this console: first the present state, then each change, until the console is ended."""
        while not self._is_over:
            self._news.clear()
            message = first + self.audience.news(self._told, self.wants)
            self._told = self._changes.number
            if message or self._is_alive:
                self._is_alive, first = False, b""
                yield message or ALIVE
                continue
            self._waits = True
            try:
                await self._news.wait()
            finally:
                self._waits = False


def _html(kind: str, html: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in html.splitlines() if line.strip()) or "data: \n"
    return f"event: {kind}\n{lines}\n".encode()
