"""How many bytes went to each owner: counted in memory, and written into the journal now and then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import Sent
from comfyui.tasks import SideTasks

_WRITTEN_EVERY_S = 10.0


class SentBytes:
    """Adds up sent bytes."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._bytes: Counter[str] = Counter()

    def add(self, owner: str, size: int) -> None:
        """This number of bytes of an answer went to a caller of this owner."""
        self._bytes[owner] += size

    def write(self) -> None:
        """Hand all to the journal that was not written yet."""
        sent, self._bytes = self._bytes, Counter()
        for owner, size in sent.items():
            if size:
                self._journal.write_behind(Sent(owner, time.time(), size), soon=False)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Self]:
        """While open, the journal is told every ten seconds, and at the end."""

        async def write() -> None:
            while True:
                await asyncio.sleep(_WRITTEN_EVERY_S)
                self.write()

        async with SideTasks() as tasks:
            tasks.start(write(), "bytes by owner")
            try:
                yield self
            finally:
                self.write()
