"""`Abilities`: which servers can run a workflow, by their node definitions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from typing import Any

from comfyui.exceptions import ComfyUIError
from comfyui.jobs.lines import ANYWHERE, NO_NAMES, Lane
from comfyui.servers.pool import BackendPool
from comfyui.servers.server import Server
from comfyui.tasks import SideTasks
from comfyui.workflows.needs import Needs, Offer, names_folders

# Files come and go unannounced: before a workflow counts as impossible everywhere, lists that are older than this are
# requested again.
_FRESH_S = 5.0
# Needs of which it is remembered whether a server has them.
_REMEMBERED = 10_000


class Abilities:
    """Asks each server once for each connection. A single server is not asked: it gets everything."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        self._matters = len(pool.servers) > 1
        self._names = frozenset(backend.name for backend in pool.servers)
        self._offers: dict[str, tuple[Offer, dict[Needs, bool]]] = {}
        self._asked: dict[str, int] = {}
        self._asking: set[str] = set()
        self._said = asyncio.Event()
        self._tasks = SideTasks()
        self.generation = 0
        """Grows when more or other definitions are known, so that earlier lanes may be out of date."""

    async def close(self) -> None:
        await self._tasks.close()

    def is_known(self, backend: Server) -> bool:
        """Whether the server has told its definitions. If not, it is asked now, and the pool's `news` tell when it
        has.
        """
        if not self._matters or self._asked.get(backend.name) == backend.generation:
            return True
        if backend.name not in self._asking:
            self._asking.add(backend.name)
            self._tasks.start(self._ask(backend), f"abilities {backend.name}")
        return False

    async def one_is_known(self, within_s: float) -> None:
        """Returns when a server that is up has told its definitions, after `within_s`, or if none is up."""
        if not self._matters:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while (ready := self._pool.ready_servers) and not any(self.is_known(backend) for backend in ready):
                    self._said.clear()
                    await self._said.wait()

    def lane(
        self,
        needs: Needs | None,
        avoid: Collection[str] = (),
        *,
        alone: bool = False,
        files_on: frozenset[str] = NO_NAMES,
    ) -> Lane:
        """The servers that can run a workflow, as far as is known. Servers that are down count with their last
        definitions.
        """
        if not self._matters:
            return Lane(alone=alone, files_on=files_on) if alone or files_on else ANYWHERE
        avoided = frozenset(avoid)
        if needs is None:
            return Lane(avoid=avoided, alone=alone, files_on=files_on)
        said = {backend.name: self._has(backend, needs) for backend in self._pool.servers}
        yes = frozenset(name for name, has in said.items() if has)
        no = frozenset(name for name, has in said.items() if has is False)
        return Lane(yes, no, avoided, alone, files_on)

    async def sure_lane(self, needs: Needs, avoid: Collection[str] = ()) -> Lane:
        """As `lane`; before it says that no server is able, it requests their lists of files again."""
        lane = self.lane(needs, avoid)
        if not lane.no or lane.no != self._names:
            return lane
        await asyncio.gather(*(self._look(backend, _FRESH_S) for backend in self._pool.ready_servers))
        return self.lane(needs, avoid)

    def lacking(self, needs: Needs) -> dict[str, list[str]]:
        """What each server lacks, if none can run the workflow; otherwise empty."""
        if not self._matters or self.lane(needs).no != self._names:
            return {}
        return {name: offer.lacking(needs) for name, (offer, _) in self._offers.items()}

    async def spelled(self, backend: Server, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """The workflow with its choices as the server spells them, as far as its definitions are known."""
        if not names_folders(prompt):
            return prompt
        if backend.last_definitions is None:
            with contextlib.suppress(ComfyUIError, TimeoutError):
                async with backend.soon():
                    await backend.object_info()
        offer = self._offer(backend)
        return prompt if offer is None else offer[0].spelled(prompt)

    def _has(self, backend: Server, needs: Needs) -> bool | None:
        known = self._offer(backend)
        if known is None:
            return None
        offer, said = known
        if needs not in said:
            if len(said) >= _REMEMBERED:
                said.clear()
            said[needs] = offer.has(needs)
        return said[needs]

    def _offer(self, backend: Server) -> tuple[Offer, dict[Needs, bool]] | None:
        """The server's offer, and the needs that were compared with it; None if it never told its definitions."""
        definitions = backend.last_definitions
        if definitions is None:
            return None
        known = self._offers.get(backend.name)
        if known is None or known[0].object_info is not definitions:
            known = self._offers[backend.name] = (Offer(definitions), {})
            self.generation += 1
        return known

    async def _ask(self, backend: Server) -> None:
        generation = backend.generation
        try:
            await self._look(backend, None)
        finally:
            self._asking.discard(backend.name)
            self._asked[backend.name] = generation
            self.generation += 1
            self._said.set()
            self._pool.news.set()

    async def _look(self, backend: Server, max_age_s: float | None) -> None:
        try:
            async with backend.soon():
                await (backend.object_info() if max_age_s is None else backend.object_info(max_age_s=max_age_s))
        except (ComfyUIError, TimeoutError):
            return  # it stays unknown, or as it was
