"""`Claims`: each idempotency key of an owner makes one job, and no second one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from comfyui.exceptions import Breach, ContractError
from comfyui.jobs.entry import Clock
from comfyui.jobs.journal.protocol import YOUNG_S, Journal


class Claims:
    """The keys of submissions that are under way; the journal has those of jobs, with the jobs.

    A submission that came to nothing leaves no job, and so its key is free again.
    """

    def __init__(self, journal: Journal, *, clock: Clock = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._under_way: set[tuple[str | None, str]] = set()

    @asynccontextmanager
    async def claimed(self, owner: str | None, key: str | None) -> AsyncIterator[None]:
        """The key is this submission's until the block ends; by then its job is in the journal, or there is none.

        Raises:
            ContractError: the owner has used the key within 24 hours, or uses it at this moment.
        """
        if key is None:
            yield
            return
        claim = (owner, key)
        if claim in self._under_way:
            raise _used("a request with this key is under way", None)
        self._under_way.add(claim)
        try:
            known = await self._journal.sent_under(owner, key, self._clock() - YOUNG_S)
            if known is not None:
                raise _used(f"this key was used for the job {known}", known)
            yield
        finally:
            self._under_way.discard(claim)


def _used(why: str, prompt_id: str | None) -> ContractError:
    details = None if prompt_id is None else {"job_id": prompt_id}
    return ContractError(
        Breach.IDEMPOTENCY_KEY_REUSE, f"Idempotency-Key: {why}; each job needs a key of its own", details
    )
