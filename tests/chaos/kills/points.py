"""`Points`: counts and names each moment of a job's life at which a process can be killed.

The processes report where they are and wait for permission to go on: the gateway at each write to its journal, and
the relay between gateway and ComfyUI at each request. One run records the points; each later run kills at one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

When = Literal["before", "after"]
"""After a write: it is committed. After a request: ComfyUI has answered, but the gateway has not read the answer."""


@dataclass(frozen=True, slots=True)
class Point:
    """`what`: a write's name, or method and route; `number`: 1 for the first of that name, 2 for the second, …"""

    what: str
    number: int
    when: When

    def __str__(self) -> str:
        ordinal = f" ({self.number})" if self.number > 1 else ""
        return f"{self.when} {self.what}{ordinal}"


class Points:
    """Counts from `begin` on. Calls `strike` once, at the point `at`, while the process waits there."""

    def __init__(self, at: Point | None, strike: Callable[[], Awaitable[None]]) -> None:
        self.passed: list[tuple[str, int]] = []
        self.struck = False
        self.at = at
        self._strike = strike
        self._counted = Counter[str]()
        self._counting = False

    def begin(self) -> None:
        self._counting = True

    @property
    def counted(self) -> Mapping[str, int]:
        """How often each point's name was reached."""
        return self._counted

    async def before(self, what: str) -> int:
        """Returns the number of this point, or 0 before `begin`, when the process may go on or is dead."""
        if not self._counting:
            return 0
        self._counted[what] += 1
        number = self._counted[what]
        self.passed.append((what, number))
        await self._reached(Point(what, number, "before"))
        return number

    async def after(self, what: str, number: int) -> None:
        """Like `before`, for the end of the same write or request."""
        await self._reached(Point(what, number, "after"))

    async def report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection of a process that reports where it is, as `ReportingJournal` does."""
        with contextlib.suppress(OSError):
            while line := (await reader.readline()).decode():
                when, what, *number = line.split()
                if when == "before":
                    reached = await self.before(what)
                    watched = self.at == Point(what, reached, "after")
                    writer.write(f"{reached} {'watch' if watched else 'go'}\n".encode())
                else:
                    await self.after(what, int(number[0]))
                    writer.write(b"go\n")
                await writer.drain()
        writer.close()

    async def _reached(self, point: Point) -> None:
        if point == self.at and not self.struck:
            self.struck = True
            await self._strike()
