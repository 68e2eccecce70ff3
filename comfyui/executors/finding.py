"""`Finder`: finds a prompt that an earlier gateway, or another client, has submitted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError
from comfyui.executors.assignment import Assignment
from comfyui.replies import HistoryEntry, QueueItem
from comfyui.retrying import Backoff
from comfyui.servers.pool import CHOICE_PATIENCE_S, BackendPool
from comfyui.servers.server import Server
from comfyui.tasks import end_tasks

Found = tuple[Server | None, HistoryEntry | QueueItem | None]
"""The server that knows the prompt, and its state there; (None, None) if no server knows it."""

_BACKOFF = Backoff(start_s=0.2, max_s=2.0)
# A server that is up and fails this often to say whether it has a prompt counts as not having it.
_TRIES = 5
_LOOK_S = 60.0


class Finder:
    """Asks the servers of a pool, which belongs to the caller.

    Args:
        absent_patience_s: for a server that does not answer.
    """

    def __init__(self, pool: BackendPool, absent_patience_s: float) -> None:
        self._pool = pool
        self._absent_patience_s = absent_patience_s

    async def find(self, prompt_id: str, *, everywhere: bool = False) -> Found:
        """Raises if no server could be asked, or if one that is up does not say. If the prompt must be looked for
        `everywhere`, also if one that is down does not say. Otherwise servers that are down get only a moment, after
        the others have answered.
        """
        failure: ComfyUIError | None = None
        is_unsure = everywhere
        asking = {asyncio.create_task(server.find(prompt_id)): server for server in self._pool.servers}
        pending = set(asking)
        try:
            while pending:
                others_are_up = bool(self._pool.ready_servers) and not any(asking[task].ready for task in pending)
                patience_s = self._absent_patience_s if others_are_up and not everywhere else None
                done, pending = await asyncio.wait(pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    try:
                        found = task.result()
                    except ComfyUIError as error:
                        failure = error
                        is_unsure = is_unsure or asking[task].ready
                    else:
                        if found is not None:
                            return asking[task], found
        finally:
            await end_tasks(*asking)
        if failure is not None and (is_unsure or not self._pool.ready_servers):
            raise failure
        return None, None

    async def find_for(self, job: Assignment) -> Found:
        """The state of a job on the servers. A job with a request waits for a server that can be asked, as it would
        wait for its turn.

        Raises:
            ComfyUIError: no server came up soon, and the job does not outlive its caller; or the only server does not
                say whether it has the prompt; or the job has no request, and one of the servers does not say.
        """
        tries = 0
        while True:
            try:
                return await self._find_again(job)
            except ComfyUIError:
                if job.request is None:
                    raise
                if self._pool.ready_servers:
                    tries += 1
                    if tries == _TRIES:
                        if len(self._pool.servers) == 1:
                            raise
                        return None, None
            if self._pool.ready_servers:
                await asyncio.sleep(_BACKOFF.delay_s(tries))
            else:
                await self._one_is_up(math.inf if job.stays else CHOICE_PATIENCE_S)

    async def _one_is_up(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not self._pool.ready_servers:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ComfyUIConnectionError(self._pool.why_not_ready())
            await self._pool.wait_for_change(min(left_s, _LOOK_S))

    async def left_over(self, backend: Server, prompt_id: str) -> HistoryEntry | QueueItem | None:
        """The state of an attempt that was given up, on a server. Raises if the server does not say."""
        tries = 0
        while True:
            try:
                return await backend.find(prompt_id)
            except ComfyUIError:
                tries += 1
                if tries == _TRIES or not backend.ready:
                    raise
            await asyncio.sleep(_BACKOFF.delay_s(tries))

    async def _find_again(self, job: Assignment) -> Found:
        """As `find`, but begins where the last attempt was, because another server may have one from before that."""
        before = self._pool.named(job.server_before or "")
        if before is not None and before.ready:
            with contextlib.suppress(ComfyUIError):
                if (found := await before.find(job.prompt_id)) is not None:
                    return before, found
        return await self.find(job.prompt_id, everywhere=job.request is None)
