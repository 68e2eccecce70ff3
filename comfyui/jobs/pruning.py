"""Removes old ended jobs from the journal, and inputs that no job needs from their store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from comfyui.exceptions import ComfyUIDiskError, JournalError
from comfyui.jobs.inputs import JobInputs
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.usage_records import day_of
from comfyui.tasks import SideTasks

_EVERY_S = 3600.0
_PAUSE_S = 60.0
_IDLE_SHARE = 20
_DAY_S = 24 * 3600.0

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def pruning(
    journal: Journal, *, keep_days: float, keep: int, usage_keep_days: float = 400.0
) -> AsyncIterator[None]:
    """Now and every hour; see `Journal.prune` and `Journal.prune_usage`."""

    async def prune() -> None:
        while True:
            try:
                if removed := await journal.prune(time.time(), keep_days=keep_days, keep=keep):
                    _log.info("jobs.removed", jobs=removed)
                now = time.time()
                await journal.prune_usage(day_of(now - usage_keep_days * _DAY_S), day_of(now - keep_days * _DAY_S))
            except JournalError as error:
                _log.warning("jobs.not_removed", reason=error.detail)
            await asyncio.sleep(_EVERY_S)

    async with SideTasks() as tasks:
        tasks.start(prune(), "prune jobs")
        yield


async def sweep_inputs(inputs: JobInputs) -> None:
    """Now, whenever a job has ended, and every hour; see `JobInputs.sweep`."""
    while True:
        started = time.monotonic()
        try:
            if removed := await inputs.sweep():
                _log.info("inputs.removed", files=removed)
        except ComfyUIDiskError as error:
            _log.warning("inputs.not_removed", reason=error.detail)
            await asyncio.sleep(_PAUSE_S)
        # The more jobs wait, the longer it takes: it is a small part of the time in any case.
        await asyncio.sleep((time.monotonic() - started) * _IDLE_SHARE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EVERY_S):
                await inputs.wait_until_stale()
