"""`Claims`: each idempotency key of an owner makes one job, or one asset, and no second one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from comfyui.exceptions import Breach, ContractError
from comfyui.jobs.entry import Clock
from comfyui.jobs.journal.protocol import YOUNG_S

Sent = Callable[[str | None, str, float], Awaitable[str | None]]
"""Gives the id of an owner's submission under a key since a time; None if there is none."""


class Claims:
    """The keys of submissions that are under way; the journal has those of accepted ones, with the job.

    A submission that came to nothing leaves nothing there, and so its key is free again.

    Args:
        sent: asks the journal.
        what: is made, as errors call it: ``job``.
    """

    def __init__(self, sent: Sent, what: str, *, clock: Clock = time.time) -> None:
        self._sent = sent
        self._what = what
        self._clock = clock
        self._under_way: set[tuple[str | None, str]] = set()

    @asynccontextmanager
    async def claimed(self, owner: str | None, key: str | None) -> AsyncIterator[None]:
        """The key is this submission's until the block ends; by then the journal has what came of it.

        Raises:
            ContractError: the owner has used the key within 24 hours, or uses it at this moment.
        """
        if key is None:
            yield
            return
        claim = (owner, key)
        if claim in self._under_way:
            raise self._used("a request with this key is still running", None)
        self._under_way.add(claim)
        try:
            known = await self._sent(owner, key, self._clock() - YOUNG_S)
            if known is not None:
                raise self._used(f"this key was already used for the {self._what} {known}", known)
            yield
        finally:
            self._under_way.discard(claim)

    def _used(self, why: str, made: str | None) -> ContractError:
        detail = f"Idempotency-Key: {why}; use another key for each {self._what}"
        return ContractError(Breach.IDEMPOTENCY_KEY_REUSE, detail, None if made is None else {f"{self._what}_id": made})
