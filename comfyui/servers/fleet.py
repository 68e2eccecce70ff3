"""`Fleet`: all servers of a pool as one, to whoever asks what it has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError
from comfyui.offload import in_thread
from comfyui.replies import JSON
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.workflows.node_definitions import ObjectInfo
from comfyui.workflows.union import Differences, differences, union_of

# Seconds for which node definitions, with the lists of files in them, are shown again without a question to a server.
_FRESH_S = 1.0


class Fleet:
    """What the servers have, united. It asks each server once for all who want to know, and works beside the loop."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        self._united: tuple[list[JSON], ObjectInfo] = ([], {})
        self._compared: tuple[list[JSON], Mapping[str, Differences]] = ([], {})
        self._uniting = asyncio.Lock()

    async def definitions(self) -> ObjectInfo:
        """The node definitions of all servers that are up; where none is, of all that were. As long as no server says
        anything else, it is the same object.

        Raises:
            ComfyUIConnectionError: no server has ever said what it has.
        """
        asked = await asyncio.gather(*(_definitions_of(backend) for backend in self._pool.ready))
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

    async def differences(self) -> Mapping[str, Differences]:
        """By server, how its definitions differ from those of the first server that has told its own.

        It asks no server: what is not known yet is left out, and a server that is down counts as it was.
        """
        told = [(backend.name, one) for backend in self._pool.backends if (one := backend.last_definitions) is not None]
        known = [one for _, one in told]
        async with self._uniting:
            before, found = self._compared
            if not _are_same(before, known):
                found = {name: how for name, one in told[1:] if (how := await in_thread(differences, known[0], one))}
                self._compared = known, found
            return found


def _are_same(first: list[JSON], second: list[JSON]) -> bool:
    return len(first) == len(second) and all(one is other for one, other in zip(first, second, strict=True))


async def _definitions_of(backend: Backend) -> JSON | None:
    """As it says them now, or as it said them last where it does not answer soon."""
    try:
        async with backend.soon():
            return await backend.object_info(max_age_s=_FRESH_S)
    except (ComfyUIError, TimeoutError):
        return backend.last_definitions
