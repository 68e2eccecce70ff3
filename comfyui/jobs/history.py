"""`JobHistory`: jobs that ComfyUI's history no longer shows. They stay in our own lists, and in the usage."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import structlog

from comfyui.exceptions import ComfyUIError
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import ClearHistory, Hide
from comfyui.jobs.origin import Origin
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool

# Jobs that are hidden in one transaction, and named to a server in one request.
_TOGETHER = 500
# No caller waits longer than this for a server that does not answer.
_PATIENCE_S = 5.0
_log = structlog.get_logger(__name__)


class JobHistory:
    """Jobs that ComfyUI's own clients remove from the history. All methods raise `JournalError`."""

    def __init__(self, journal: Journal, pool: BackendPool) -> None:
        self._journal = journal
        self._pool = pool

    async def clear(self, origin: Origin) -> None:
        """Hides all ended jobs that the caller sees."""
        key = None if origin.rules is None or origin.sees(None) else origin.rules.name
        await self._journal.write(ClearHistory(key))

    async def delete(self, prompt_ids: Sequence[str], origin: Origin) -> None:
        """Hides these jobs, if they have ended and the caller sees them; their servers forget them, too.

        For a caller that sees everything, all servers forget the ids that the gateway does not know.
        """
        named = list(dict.fromkeys(prompt_ids))
        for start in range(0, len(named), _TOGETHER):
            some = named[start : start + _TOGETHER]
            of_server: defaultdict[str, list[str]] = defaultdict(list)
            hidden: list[str] = []
            known = {record.prompt_id: record for record in await self._journal.get_all(some)}
            for prompt_id in some:
                record = known.get(prompt_id)
                if record is None and origin.sees(None):
                    for backend in self._pool.ready:
                        of_server[backend.name].append(prompt_id)
                elif record is not None and record.state.is_end and origin.sees(record.owner):
                    hidden.append(prompt_id)
                    of_server[record.server or ""].append(prompt_id)
            if hidden:
                await self._journal.write(Hide(tuple(hidden)))
            servers = ((self._pool.named(name), ids) for name, ids in of_server.items())
            await asyncio.gather(*(_forget(one, ids) for one, ids in servers if isinstance(one, Backend) and one.ready))


async def _forget(backend: Backend, prompt_ids: Sequence[str]) -> None:
    """Entries that the server keeps nevertheless are not shown."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await backend.client.delete_from_history(*prompt_ids)
    except (ComfyUIError, TimeoutError) as error:
        _log.info("history.not_forgotten", server=backend.name, jobs=len(prompt_ids), detail=str(error))
