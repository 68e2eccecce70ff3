"""`Fleet`: all servers of a pool as one, for callers that ask what it has."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping

import structlog

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError, ComfyUINotFoundError
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import Drain
from comfyui.offload import in_thread
from comfyui.replies import JSON
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.servers.server import OtherDefinitions, Server
from comfyui.tasks import SideTasks
from comfyui.workflows.node_definitions import ObjectInfo
from comfyui.workflows.union import Differences, differences, union_of

# Seconds for which node definitions, with the lists of files in them, are shown again without a request to a server.
_FRESH_S = 1.0
# How long a caller waits for a server that frees its memory.
_PATIENCE_S = 5.0
# How many classes of each kind a report names.
_NAMED = 20


class Fleet:
    """The definitions of all servers, united. It asks each server once for all callers, and works beside the loop.

    Call `open` before prompts are placed: a drained server stays drained over restarts.
    """

    def __init__(self, pool: BackendPool, journal: Journal) -> None:
        self._pool = pool
        self._journal = journal
        self._log = structlog.get_logger(__name__)
        self._united: tuple[list[JSON], ObjectInfo] = ([], {})
        self._compared: tuple[list[JSON], Mapping[str, OtherDefinitions]] = ([], {})
        self._uniting = asyncio.Lock()
        self._learning: set[str] = set()
        self._tasks = SideTasks()

    async def open(self) -> None:
        """Raises `JournalError`."""
        for name in sorted((await self._journal.held()).drained):
            if (server := self._pool.named(name)) is not None:
                server.drain(True)
                how = f"the server was drained before the restart; POST /servers/{name}/resume gives it prompts again"
                self._log.warning("server.drained", server=name, detail=how)

    async def close(self) -> None:
        await self._tasks.close()

    def _learnt(self, name: str, _task: asyncio.Task[JSON | None]) -> None:
        self._learning.discard(name)

    async def drain(self, name: str, drained: bool) -> Server:
        """Lets a server get no more prompts, or some again. Running prompts end there. The change is written to the
        journal.

        Raises:
            ComfyUINotFoundError: no server has this name.
            JournalError: the change cannot be written.
        """
        server = self._named(name)
        await self._journal.write(Drain(name, drained))
        if server.drained != drained:
            server.drain(drained)
            self._log.info("server.drained" if drained else "server.resumed", server=name)
        return server

    async def free(self, name: str) -> None:
        """Have one server drop its models and caches before its next prompt.

        Raises:
            ComfyUINotFoundError: there is no such ComfyUI server.
            ComfyUIError: it has not taken it.
        """
        server = self._named(name)
        if not isinstance(server, Backend):
            raise ComfyUINotFoundError(f"{name!r} is not a ComfyUI server, so it has no memory to free")
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await server.client.free()
        except TimeoutError:
            raise ComfyUIConnectionError(f"{name} has not answered within {_PATIENCE_S:g} s") from None
        self._log.info("server.freed", server=name)

    def _named(self, name: str) -> Server:
        if (server := self._pool.named(name)) is not None:
            return server
        names = ", ".join(each.name for each in self._pool.servers)
        raise ComfyUINotFoundError(f"there is no server {name!r}; the servers are {names}")

    async def definitions(self) -> ObjectInfo:
        """The node definitions of all servers that take prompts, or of all that once did, if none does. The object is
        the same until a server's answer changes.

        Raises:
            ComfyUIConnectionError: no server has ever told its definitions.
        """
        asked = await asyncio.gather(*(_definitions_of(one) for one in self._pool.backends if one.takes_prompts))
        known = [one for one in asked if one is not None]
        if not known:
            known = [one for backend in self._pool.backends if (one := backend.last_definitions) is not None]
        if not known:
            raise ComfyUIConnectionError(self._pool.why_not_ready())
        async with self._uniting:
            before, united = self._united
            if not _are_same(before, known):
                united = known[0] if len(known) == 1 else await in_thread(union_of, known)
                self._united = known, united
            return united

    async def differences(self) -> Mapping[str, OtherDefinitions]:
        """For each server, how its definitions differ from those of the first server that has told its own.

        It waits for no server: unknown definitions are left out, and a server that is down counts with its last ones.
        """
        for backend in self._pool.ready:
            if backend.last_definitions is None and backend.name not in self._learning:
                self._learning.add(backend.name)
                self._tasks.start(_definitions_of(backend), f"definitions {backend.name}").add_done_callback(
                    functools.partial(self._learnt, backend.name)
                )
        told = [(backend.name, one) for backend in self._pool.backends if (one := backend.last_definitions) is not None]
        known = [one for _, one in told]
        async with self._uniting:
            before, found = self._compared
            if not _are_same(before, known):
                found = {}
                for name, one in told[1:]:
                    if how := await in_thread(differences, known[0], one):
                        found[name] = _report(how)
                self._compared = known, found
            return found


def _report(how: Differences) -> OtherDefinitions:
    kinds = [list(names[:_NAMED]) for names in (how.lacks, how.adds, how.differs)]
    count = len(how.lacks) + len(how.adds) + len(how.differs)
    return {"lacks": kinds[0], "adds": kinds[1], "differs": kinds[2], "count": count}


def _are_same(first: list[JSON], second: list[JSON]) -> bool:
    return len(first) == len(second) and all(one is other for one, other in zip(first, second, strict=True))


async def _definitions_of(backend: Backend) -> JSON | None:
    """Its present definitions, or its last ones if it does not answer soon."""
    try:
        async with backend.soon():
            return await backend.object_info(max_age_s=_FRESH_S)
    except (ComfyUIError, TimeoutError):
        return backend.last_definitions
