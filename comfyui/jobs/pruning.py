"""Jobs that ended long ago leave the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from comfyui.exceptions import JournalError
from comfyui.jobs.journal.protocol import Journal
from comfyui.tasks import SideTasks

_EVERY_S = 3600.0

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def pruning(journal: Journal, *, keep_days: float, keep: int) -> AsyncIterator[None]:
    """Now and every hour; see `Journal.prune`."""

    async def prune() -> None:
        while True:
            try:
                if removed := await journal.prune(time.time(), keep_days=keep_days, keep=keep):
                    _log.info("jobs.removed", jobs=removed)
            except JournalError as error:
                _log.warning("jobs.not_removed", reason=error.detail)
            await asyncio.sleep(_EVERY_S)

    async with SideTasks() as tasks:
        tasks.start(prune(), "prune jobs")
        yield
